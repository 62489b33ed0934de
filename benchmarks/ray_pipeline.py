"""Rows of a table over the machines of a Ray cluster: python benchmarks/ray_pipeline.py ROWS OUT"""

import sys
from pathlib import Path

import ray

import vlkit


class Answer:
    """One process with one model; Ray starts as many as it has room for."""

    def __init__(self, model: str, journals: Path):
        self.vlm, self.journals = vlkit.load(model), journals

    def __call__(self, rows: dict) -> dict:
        messages = list(map(vlkit.user, rows["question"], rows["image"]))
        journal = self.journals / f"{rows['id'][0]}.jsonl"  # resumed after a crash
        results = vlkit.generate_batch(self.vlm, messages, max_new_tokens=64, out=journal)
        failed = [isinstance(each, vlkit.Failure) for each in results]
        pairs = list(zip(results, failed, strict=True))  # "" and not None: one type in every file
        rows["answer"] = ["" if bad else each.text for each, bad in pairs]
        rows["error"] = [str(each) if bad else "" for each, bad in pairs]
        return rows


if __name__ == "__main__":
    table, out = Path(sys.argv[1]), Path(sys.argv[2]).absolute()
    (out / "journals").mkdir(parents=True, exist_ok=True)
    rows = ray.data.read_csv(str(table)).repartition(target_num_rows_per_block=64)
    options = {"model": "tiny", "journals": out / "journals"}  # on every machine the same folder
    workers = ray.data.ActorPoolStrategy(size=2)  # with num_gpus=1 in place of num_cpus on GPUs
    answers = rows.map_batches(
        Answer, fn_constructor_kwargs=options, batch_size=None, compute=workers, num_cpus=0.5
    )
    answers.write_parquet(str(out / "answers"), mode="overwrite")
