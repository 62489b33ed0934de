"""The README and the pages of figures say what is so: code runs, tables are counted."""

import json
import re
from pathlib import Path

import pytest

import vlkit

ROOT = Path(__file__).resolve().parents[2]
README, BENCHMARKS, HARDWARE = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/benchmarks.md", "docs/hardware.md")
)


def test_the_ten_lines_run_and_are_right(tmp_path, monkeypatch, capsys):
    code = re.search(r"## Ten lines\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    truth = next(b for b in vlkit.samples()["three_shapes"].boxes if b.label == "blue square")
    assert vlkit.iou(names["reply"].boxes[0], truth) > 0.5
    assert (tmp_path / "answer.png").is_file()


def test_the_hardware_table_is_what_memory_table_counts():
    rows = re.findall(
        r"^\| (Qwen\S+) \| ([\d.]+) B \| ([\d.]+) GB \| ([\d.]+) GB \| ", HARDWARE, re.M
    )
    table = vlkit.memory_table()
    assert [f"Qwen/{name}" for name, *_ in rows] == list(table.index)
    for name, *numbers in rows:
        counted = table.loc[f"Qwen/{name}"].iloc[:3]
        assert [float(n) for n in numbers] == pytest.approx(list(counted), abs=0.051)


def test_the_notebook_table_matches_the_folder():
    table = README.partition("\n## Notebooks\n")[2].partition("\n## ")[0]
    linked = re.findall(r"^\| \[\w+\]\(notebooks/(\d\S+\.ipynb)\)", table, re.M)
    assert linked == sorted(path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_the_readme_is_short_and_every_table_of_figures_has_a_page():
    assert len(README.encode()) < 9_000
    for page in ("benchmarks", "grounding", "hardware", "services", "install", "teaching", "tour"):
        assert README.count(f"](docs/{page}.md)") == 1, page


def test_installation_names_the_locked_versions():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    text = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    for line in re.findall(r"torch(?:vision)?==[\d.]+", text):
        assert re.search(rf"^{line}\b", lock, re.M), line


def test_the_notebooks_memory_table_is_counted_and_measured():
    text = (ROOT / "notebooks/09_your_own_boxes.ipynb").read_text(encoding="utf-8")
    table = vlkit.memory_table()
    for size in ("2B", "7B"):
        weights, packed = table.loc[f"Qwen/Qwen2-VL-{size}-Instruct"].iloc[1:3]
        assert f"bfloat16, {weights:.1f} GB of weights" in text
        assert size == "2B" or f"{packed:.1f} GB of weights" in text
    (whole, _), (packed, _) = (figures(f"lora_training_h100_7b{bits}") for bits in ("", "_4bit"))
    for speed, peak in (whole[1], whole[2], packed[2]):
        assert f"peak {peak} GB, {3 * 5_000 / speed / 60:.0f} minutes" in text


def test_links_inside_the_repository_resolve():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_every_command_shown_exists():
    from typer.testing import CliRunner

    from vlkit.cli.app import app

    for command in set(re.findall(r"^vlkit ([\w-]+)|`vlkit ([\w-]+)", README, re.MULTILINE)):
        name = "".join(command)
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name
    targets = re.findall(r"^make (\w+)$|`make (\w+)`", README, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"".join(t) for t in targets} <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))


def recorded(name):
    """What a benchmark wrote."""
    path = ROOT / f"benchmarks/results/{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_comparison_is_what_the_benchmark_wrote():
    result = recorded("startup_and_overhead")
    rows = re.findall(r"^\| (.*?) \| ([\d.]+) s \| ([\d.]+) s \| ([\d.]+) \|$", BENCHMARKS, re.M)
    for (_, ours, bare, ratio), name in zip(rows, ("first_answer", "generate"), strict=True):
        seconds = result[f"{name}_seconds"]
        assert float(ours) == pytest.approx(seconds["vlkit"], abs=0.006)
        assert float(bare) == pytest.approx(seconds["transformers"], abs=0.006)
        assert float(ratio) == pytest.approx(result[f"{name}_ratio"], abs=0.006)


def test_the_batch_table_is_what_the_benchmark_wrote():
    result = recorded("batch_inference_h100_7b")
    assert f"`{result['command']}`" in BENCHMARKS
    rows = re.findall(r"^\| (.*?) \| (\d+) \| ([\d.]+) \| ([\d.]+) GB \|$", BENCHMARKS, re.M)
    assert len(rows) == 6
    for name, count, tokens, peak in rows:
        recipe = result["recipes"][name]
        measured = (recipe["rows"], recipe["tokens_per_second"], recipe["peak_gb"])
        assert (int(count), float(tokens), float(peak)) == measured, name
    spread = recorded("batch_processes_2x_h200_2b")
    fast = spread["runs"]["2 processes"]["tokens_per_second"]
    assert f"`{spread['command']}`" in BENCHMARKS and spread["same_answers"] == 1
    assert f"{fast:,.0f} tokens/s" in BENCHMARKS
    assert f"{spread['times_as_fast']} times as many as one process" in BENCHMARKS
    result = recorded("batch_inference_cpu")
    loop, ours = (
        result["recipes"][name]["rows_per_second"]
        for name in ("quickstart loop", "vlkit.generate_batch, 64 rows")
    )
    assert f"`{result['command']}`" in BENCHMARKS
    assert f"loop {loop} rows/s, `generate_batch` {ours} rows/s" in BENCHMARKS
    assert f"{result['rows_per_second_over_loop']} times as many" in BENCHMARKS


def test_the_tables_of_newer_shapes_and_of_one_question_are_what_the_benchmarks_wrote():
    rows = re.findall(r"^\| (Qwen3.*?) \| (.*?) \| ([\d.]+) \| ([\d.]*) ?\|$", BENCHMARKS, re.M)
    for name, (theirs, ours) in zip(("3.5_9b", "3_30b_a3b"), (rows[:2], rows[2:]), strict=True):
        recipes = recorded(f"batch_inference_h200_{name}")["recipes"]
        speeds = [recipes[recipe]["tokens_per_second"] for _, recipe, *_ in (theirs, ours)]
        assert [float(theirs[2]), float(ours[2])] == speeds
        assert float(ours[3]) == round(speeds[1] / speeds[0], 2)
    h200, h100, cpu = (recorded(f"one_question_{each}") for each in ("h200_7b", "gpu_7b", "cpu"))
    names = ("transformers", "vlkit.generate", "vlkit.stream")
    for result, text in (
        (h200, "generate {} tokens/s, `vlkit.generate` {}, `vlkit.stream` {}"),
        (h100, "on an H100 {}, {} and {}"),
    ):
        speeds = [result["one_row"]["recipes"][name]["tokens_per_second"] for name in names]
        assert text.format(*speeds) in BENCHMARKS
    shares = [result["chat"]["second_over_first"] for result in (h200, h100, cpu)]
    said = "{} of the first turn's time on the H200 ({} on an H100), and with the bundled model"
    assert (said + " on two CPU cores after {}").format(*shares) in BENCHMARKS
    theirs, ours, again = (
        cpu["one_row"]["recipes"][name]
        for name in ("transformers", "vlkit.generate", "vlkit.generate, same picture")
    )
    said = "transformers {} tokens/s, `vlkit.generate` {} ({} times), and {} about a picture that"
    speeds = theirs["tokens_per_second"], ours["tokens_per_second"], ours["over_transformers"]
    assert said.format(*speeds, again["tokens_per_second"]) in BENCHMARKS


def test_the_training_table_is_what_the_benchmark_wrote():
    gpu = recorded("lora_training_h100_7b")
    assert f"`{gpu['command'].partition(' --output')[0]}`" in BENCHMARKS
    rows = re.findall(
        r"^\| ((?:plain|vlkit), .*?) \| ([\d.]+) \| ([\d.]+) GB \|$", BENCHMARKS, re.M
    )
    assert [name for name, *_ in rows] == list(gpu["recipes"])
    for name, speed, peak in rows:
        recipe = gpu["recipes"][name]
        assert (float(speed), float(peak)) == (recipe["samples_per_second"], recipe["peak_gb"])


def test_the_tables_beside_unsloth_and_of_a_24_gb_card_are_what_the_benchmarks_wrote():
    beside, card = recorded("lora_training_h200_7b"), recorded("lora_memory_h200")
    for result in (beside, card):
        assert f"`{result['command'].partition(' --output')[0]}`" in BENCHMARKS
    rows = re.findall(
        r"^\| (\S+, 8 at .*?) \| ([\d.]+), ([\d.]+) \| ([\d.]+) GB \|$", BENCHMARKS, re.M
    )
    found = {
        name: ([float(first), float(second)], float(peak)) for name, first, second, peak in rows
    }
    assert found == {
        name: (recipe["samples_per_second_by_epoch"], recipe["peak_gb"])
        for name, recipe in beside["recipes"].items()
    }
    whole, kept = (
        beside["over_unsloth"][f"vlkit, 8 at a time{more}"]["samples_per_second_by_epoch"][0]
        for more in ("", ", checkpointed")
    )
    assert f"takes {whole} times Unsloth's samples/s, and {kept} times with" in BENCHMARKS
    first = {name: speeds[0] for name, (speeds, _) in found.items() if name.startswith("vlkit")}
    shares = [
        round(speed / other, 2) for speed, other in zip(first.values(), (17.5, 12.7), strict=True)
    ]
    assert f"first epoch is {shares[0]} and {shares[1]} times" in BENCHMARKS
    lines = re.findall(
        r"^\| Qwen\S+ \| (\w+) \| ([\d,]+) \| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) \|$",
        BENCHMARKS, re.M,
    )  # fmt: skip
    assert [(w, int(t.replace(",", "")), *map(float, rest)) for w, t, *rest in lines] == [
        (
            run["weights"], run["image_tokens"], run["peak_gb"], run["inspected_gb"],
            run["minutes_for_1000_rows"],
        )
        for run in card["runs"]
    ]  # fmt: skip


def test_the_figures_of_easy_vqa_are_what_the_benchmark_wrote():
    learnt, before = recorded("lora_easy_vqa"), recorded("lora_easy_vqa_zero_shot")
    assert f"`{learnt['command']}`" in BENCHMARKS
    assert f"in {learnt['core_minutes']} minutes of one CPU core" in BENCHMARKS
    assert learnt["core_minutes"] == round(sum(learnt["core_seconds"].values()) / 60, 2)
    for accuracy in (learnt["after_lora"]["accuracy"], before["zero_shot"]["accuracy"]):
        assert f"{100 * accuracy:.2f} %" in BENCHMARKS
    notebook = (ROOT / "notebooks/05_lora_finetuning.ipynb").read_text(encoding="utf-8")
    assert f"the model answers {100 * learnt['after_lora']['accuracy']:.2f}% (`python" in notebook


def figures(name):
    """Samples/s and GB of the plain recipe and of eight rows at a time, without and with
    checkpoints; and the recording.
    """
    result = recorded(name)
    names = ("plain, 2 at a time", "vlkit, 8 at a time", "vlkit, 8 at a time, checkpointed")
    recipes = [result["recipes"][each] for each in names]
    return [(r["samples_per_second"], r["peak_gb"]) for r in recipes], result


def test_training_within_the_plain_recipes_memory_is_what_the_benchmark_wrote():
    recipes = recorded("lora_training_h100_7b")["recipes"]
    plain = recipes["plain, same order"]
    fit = [recipe for recipe in recipes.values() if recipe["peak_gb"] <= plain["peak_gb"]]
    best = max(fit, key=lambda recipe: recipe["samples_per_second"])
    times = best["samples_per_second"] / plain["samples_per_second"]
    first = best["samples_per_second_by_epoch"][0] / plain["samples_per_second_by_epoch"][0]
    assert (
        f"{times:.2f} times its samples/s in the same order of rows ({first:.2f} times"
        in BENCHMARKS
    )


def test_training_a_4_bit_base_is_what_the_benchmark_wrote():
    (_, gpu), (speeds, small) = (figures(f"lora_training_h100_7b{bits}") for bits in ("", "_4bit"))
    assert small["quantize"] == "4bit" and small["device"] == gpu["device"]
    (plain, least), (many, most), (kept, lowest) = speeds
    assert f"`{small['command']}`" in BENCHMARKS
    assert (
        f"{plain} samples/s in {least} GB, vlkit 8 at a time {many} in {most} GB, and "
        f"checkpointed {kept} in {lowest} GB" in BENCHMARKS
    )
    for result, text in ((gpu, "and losses differ by"), (small, "with losses that differ by")):
        largest = max(result["largest_relative_difference_of_losses"].values())
        assert f"{text} {largest:.1%}".replace("%", " %") in BENCHMARKS


def test_the_notebooks_training_table_is_what_the_benchmark_wrote():
    (whole, _), (packed, small) = (figures(f"lora_training_h100_7b{b}") for b in ("", "_4bit"))
    text = (ROOT / "notebooks/05_lora_finetuning.ipynb").read_text(encoding="utf-8")
    rows = re.findall(r"\| ([\d.]+) \| ([\d.]+) GB \| ([\d.]+) \| ([\d.]+) GB \|", text)
    assert [tuple(map(float, row)) for row in rows] == [
        a + b for a, b in zip(whole, packed, strict=True)
    ]
    assert f"`{small['command']}`" in text
    many, kept, lowest = (round(peak) for _, peak in (whole[1], whole[2], packed[2]))
    assert f"7B: {many} GB in bfloat16, {kept} GB with `gradient_checkpointing=True`, " in text
    assert f"{lowest} GB with `quantize=" in text


def test_the_new_concept_is_what_the_benchmark_wrote():
    result = recorded("lora_new_concept")
    before, low, high = (
        result["right_by_learning_rate"][rate] for rate in ("before", "0.001", "0.02")
    )
    boxed, named = ("locate the new shape", "name the new shape")
    asked = result["pictures_asked"]
    assert f"`{result['command']}`" in BENCHMARKS and high[named] == high[boxed]
    for said in (
        f"in {low[boxed]:.0%} of {asked['new shape']} new pictures after LoRA on "
        f"{result['pictures']} at a rate of 1e-3, and named in {low[named]:.0%}; of seven old "
        f"skills, each asked of {asked['old skills']} other pictures, {low['old skills']:.0%} of "
        f"the answers are right, and {before['old skills']:.0%} were before.",
        f"At 2e-2, with all else the same, {high['old skills']:.0%} of the old is left and "
        f"{high[boxed]:.0%} of the new is learnt",
    ):
        assert said.replace("%", " %") in BENCHMARKS
    assert len(before) == 7 + 3 and before["old skills"] - low["old skills"] < 0.01


def test_the_rewards_are_what_the_benchmark_wrote():
    result = recorded("lora_rewards")
    grpo = result["grpo"]
    for name, shares in result["accuracy_at_iou_0.5"].items():
        cells = " | ".join(f"{share:.3f}" for share in shares.values())
        assert f"| {name} | {cells} |" in BENCHMARKS
    for said in (
        f"`{result['command']}`",
        f"{grpo['steps']} steps of {grpo['generations']} answers",
        f"of {result['rows_of_each']} new pictures",
        f"{grpo['mean_reward_first_ten_steps']} in the first ten steps and "
        f"{grpo['mean_reward_last_ten_steps']} in the last ten",
    ):
        assert said in BENCHMARKS


def test_the_serving_figures_are_what_the_benchmark_wrote():
    served = recorded("serving_cpu")
    assert f"{served['all at once']['requests_per_second']} answers a second, " in BENCHMARKS
    assert f"{served['times_one_at_a_time']} times as many as one after the other" in BENCHMARKS
    assert served["same_answers"] == 1
    gpu = recorded("serving_h100_7b")
    assert f"gets {gpu['all at once']['requests_per_second']} such requests a second" in BENCHMARKS
    assert f"{gpu['times_one_at_a_time']} times as many as one after the other" in BENCHMARKS
    assert f"`{gpu['command']}`" in BENCHMARKS


def test_the_table_of_eight_bits_is_its_benchmarks():
    import json

    file = ROOT / "benchmarks" / "results" / "eight_bits_cpu.json"
    measured = json.loads(file.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    for name, figures in measured["recipes"].items():
        name = name.replace('quantize="8bit"', '`quantize="8bit"`')
        assert f"| {name} | {figures['tokens_per_second']} | {figures['memory_gb']} GB |" in page
    shares = measured["agreement"]
    assert f"{shares['same_text']} are the same" in page
    assert f"{shares['boxes_found_again_at_iou_0.9']} of the boxes" in page


def test_the_page_of_scale_has_the_pipeline_and_what_the_benchmarks_wrote():
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    assert (ROOT / "benchmarks/ray_pipeline.py").read_text(encoding="utf-8").strip() in page
    recipe = recorded("batch_inference_h100_7b")["recipes"]["vlkit.generate_batch, 64 rows"]
    speed = round(recipe["rows_per_second"], 2)
    assert (
        f"has answered {speed} rows per second on one H100 ({recipe['tokens_per_second']:,}" in page
    )
    mixture = recorded("batch_inference_h200_3_30b_a3b")["recipes"]["vlkit.generate_batch, 64 rows"]
    assert f"active parameters {mixture['rows_per_second']:.2f} on one H200" in page
    hours = 1e6 / speed / 3600
    assert f"{hours:.1f} hours on one H100, {60 * hours / 8:.0f} minutes on eight" in page
