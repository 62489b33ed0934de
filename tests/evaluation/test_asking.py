"""`vlkit evaluate-grounding` and `vlkit convert`: a model's boxes measured, whole or not at all."""

import json
import re
import signal
import time

import pandas as pd
import PIL.Image
import pytest
from typer.testing import CliRunner

import vlkit
from vlkit import Box
from vlkit.cli.app import app
from vlkit.datasets.conversations import locate_prompt
from vlkit.datasets.pictures import Scene
from vlkit.datasets.scenes import read_scenes, write_scenes
from vlkit.errors import VlkitError
from vlkit.evaluation.asking import ask_grounding, read_questions

KNOWN = ("red_circle", "three_shapes")  # drawn, and the bundled model gets them right


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def known_scenes():
    samples = [vlkit.samples()[name] for name in KNOWN]
    return [Scene(s.path, PIL.Image.open(s.path).size, s.boxes) for s in samples]


def hungry(labels=("zebra",)):
    """A question whose answer the bundled model cannot know."""
    path = vlkit.sample("cat")
    return Scene(path, PIL.Image.open(path).size, tuple(Box(n, 1, 1, 9, 9) for n in labels))


@pytest.mark.parametrize("name", ["coco", "refcoco", "ms-swift", "label-studio", "qwen2_vl"])
def test_the_shell_command_on_files(name, tmp_path):
    data = tmp_path / ("data.json" if name in ("coco", "label-studio") else "data.jsonl")
    scenes = known_scenes()
    if name in ("ms-swift", "qwen2_vl"):  # those carry their own question
        scenes = [
            Scene(s.image, s.size, (box,), f"Locate the {box.label}.")
            for s in scenes
            for box in s.items
        ]
    write_scenes(scenes, data, format=name)
    out = tmp_path / "new" / "out"
    result = run("evaluate-grounding", "tiny", data, "--output-dir", out, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "accuracy@0.5" in result.output and "4 questions, 0 answers unreadable" in result.output
    names = sorted(path.name for path in out.iterdir())
    assert names == ["gallery.html", "metrics.json", "rows.csv"]
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["overall"]["accuracy@0.5"]["value"] == 1
    assert (metrics["questions"], metrics["model"], metrics["family"]) == (4, "tiny", "qwen2_vl")
    rows = pd.read_csv(out / "rows.csv")
    assert len(rows) == 4 and set(rows["kind"]) == {"found"}
    assert rows["image"].tolist() == ["red_circle.png"] + ["three_shapes.png"] * 3
    truth = known_scenes()[0].items[0]
    answer = Box("", *rows.loc[0, ["answer_x1", "answer_y1", "answer_x2", "answer_y2"]])
    overlap = rows.loc[0, "iou"]  # with the truth as the format could hold it
    assert vlkit.iou(answer, truth) == pytest.approx(overlap, abs=0.01) and overlap > 0.8
    assert (out / "gallery.html").read_text(encoding="utf-8").count("<figure>") == 4
    assert [path.name for path in tmp_path.glob("**/.*")] == []


@pytest.mark.parametrize("source", ["samples", vlkit.sample("cat").parent])
def test_the_samples_themselves(source, tmp_path):
    questions = read_questions(source, prompt="Locate the {label}.")
    samples = vlkit.samples().values()
    assert len(questions) == sum(len({b.label for b in s.boxes}) for s in samples)
    assert sum(len(q.truth) for q in questions) == sum(len(s.boxes) for s in samples)
    out = tmp_path / "out"
    result = run("evaluate-grounding", "tiny", source, "--out", out, "--limit", 3, "--worst", 1)
    assert result.exit_code == 0 and "3 questions" in result.output
    assert (out / "gallery.html").read_text(encoding="utf-8").count("<figure>") == 1


def test_a_wrong_answer_is_missed_and_shown(vlm, tmp_path):
    data = tmp_path / "d.json"
    write_scenes([*known_scenes(), hungry()], data, format="coco")
    questions = read_questions(data, prompt=locate_prompt("{label}", family="qwen2_vl"))
    result = ask_grounding(vlm, questions, data="d", progress=False, bootstrap=100)
    assert result.evaluation.accuracy == pytest.approx(4 / 5)
    assert result.evaluation.worst(1) == [4]
    shown = result.gallery(1)
    assert shown.pictures == (4,) and "zebra" in shown.page
    assert result.rows["question"].iloc[-1] == "Locate the zebra."


def test_the_gallery_has_the_models_own_words(vlm, monkeypatch):
    """Its box counts for the label that was asked for, and is drawn with the one it wrote."""
    (question,) = read_questions("samples", prompt="Locate the {label}.")[:1]
    reply = vlkit.generate(vlm, vlkit.user(question.prompt, question.image))
    assert "the red circle" in reply.raw
    object.__setattr__(reply, "raw", reply.raw.replace("the red circle", "a soccer ball"))
    monkeypatch.setattr("vlkit.evaluation.asking.answer_all", lambda *a, **k: [reply])
    drawn = []
    monkeypatch.setattr(
        "vlkit.evaluation.gallery.draw_comparison",
        lambda picture, boxes, truth: drawn.extend(boxes) or picture,
    )
    result = ask_grounding(vlm, [question], bootstrap=10)
    result.gallery()
    assert [box.label for box in drawn] == ["a soccer ball"]
    assert result.boxes[0][0].label == question.truth[0].label and result.evaluation.accuracy == 1


def test_failures_and_unreadable_answers_count_as_missed(vlm, tmp_path, monkeypatch):
    from vlkit.generation.reply import Failure

    questions = read_questions("samples", prompt="Locate the {label}.")[:3]
    good = vlkit.generate(vlm, vlkit.user(questions[0].prompt, questions[0].image))
    bad = vlkit.generate(vlm, vlkit.user(questions[2].prompt, questions[2].image))
    object.__setattr__(bad, "raw", "<|box_start|>(1,2),(3<|box_end|>")
    answers = [good, Failure("no picture <here>", "MediaError"), bad]
    monkeypatch.setattr("vlkit.evaluation.asking.answer_all", lambda *a, **k: answers)
    result = ask_grounding(vlm, questions, bootstrap=10)
    assert result.boxes[1:] == [None, None] and result.to_dict()["unreadable"] == 2
    assert result.evaluation.accuracy == pytest.approx(1 / 3)
    page = result.gallery().page
    assert "no picture &lt;here&gt;" in page and "neither a box nor a point" in page


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_a_model_that_knows_nothing_scores_nothing(kind, tiny_vlm):
    vlm = tiny_vlm(kind)
    questions = read_questions("samples", prompt=locate_prompt("{label}", family=vlm.family))[:3]
    assert "JSON" in questions[0].prompt
    result = ask_grounding(vlm, questions, max_new_tokens=8, bootstrap=10, progress=False)
    assert result.evaluation.accuracy == 0 and len(result.gallery().pictures) == 3


def test_an_answer_read_in_part_says_so(vlm, monkeypatch):
    (question, *_) = read_questions("samples", prompt="Locate the {label}.")
    reply = vlkit.generate(vlm, vlkit.user(question.prompt, question.image))
    object.__setattr__(reply, "raw", reply.raw + "<|box_start|>(1,2),(3")
    monkeypatch.setattr("vlkit.evaluation.asking.answer_all", lambda *a, **k: [reply])
    result = ask_grounding(vlm, [question], bootstrap=0)
    assert result.evaluation.accuracy == 1 and result.to_dict()["unreadable"] == 0
    assert "1 read, 1 left out" in result.rows["answer"].iloc[0]


def test_nothing_is_left_of_a_run_that_breaks_off(vlm, tmp_path, monkeypatch):
    result = ask_grounding(vlm, read_questions("samples", prompt="Locate the {label}.")[:1])
    monkeypatch.setattr(type(result), "gallery", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(VlkitError, match="already exists and is not empty"):
        result.save(tmp_path / "out")


def test_killed_while_asking_leaves_no_folder(warm, tmp_path):
    command = ["-m", "vlkit", "evaluate-grounding", "tiny", "samples"]
    process = warm.start(*command, "--output-dir", tmp_path / "out")
    while "| 1/" not in process.stderr():  # the first answer is there
        assert process.poll() is None, process.stderr()
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tiny", "nothing.json"], "nothing.json does not exist"),
        (["tiny", "samples", "--prompt", "Where is it?"], '"{label}"'),
        (["tiny", "samples", "--output-dir", "full"], "already exists and is not empty"),
        (["nowhere", "samples", "--output-dir", "x"], "'nowhere' is neither a folder"),
        (["tiny", "empty.json"], "has no boxes to ask for"),
    ],
)
def test_user_errors_are_one_line_before_a_model_is_loaded(arguments, message, warm, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty.json").write_text('{"images": [], "annotations": [], "categories": []}')
    done = warm.run("-m", "vlkit", "evaluate-grounding", *arguments, cwd=tmp_path)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr and done.stderr.startswith("Error:")
    assert not (tmp_path / "evaluation").exists()


def test_convert_in_the_shell(tmp_path):
    folder = vlkit.sample("cat").parent
    result = run("convert", folder, tmp_path / "coco.json", "--to", "coco")
    assert result.exit_code == 0 and "samples → coco: 30 rows" in result.output
    assert len(read_scenes(tmp_path / "coco.json")) == 30
    result = run(
        "convert", tmp_path / "coco.json", tmp_path / "chat.jsonl", "--to", "qwen2_5_vl",
        "--prompt", "Locate everything.",
    )  # fmt: skip
    assert result.exit_code == 0
    back = read_scenes(tmp_path / "chat.jsonl", format="qwen2_5_vl")
    assert [len(s.items) for s in back] == [len(s.boxes) for s in vlkit.samples().values()]
    with pytest.raises(VlkitError, match="'pdf' is unknown"):
        run("convert", folder, tmp_path / "x", "--to", "pdf")


def test_the_limit_in_tokens_is_the_processors_own(tmp_path):
    """What convert takes for the resized size is the grid of transformers' own processor."""
    from transformers import Qwen2VLImageProcessor

    picture = PIL.Image.new("RGB", (1000, 500))
    picture.save(tmp_path / "a.png")
    scene = Scene(tmp_path / "a.png", (1000, 500), (Box("cat", 100, 100, 300, 200),))
    write_scenes([scene], tmp_path / "d.jsonl", format="qwen2_5_vl", max_image_tokens=64)
    text = json.loads((tmp_path / "d.jsonl").read_text())["messages"][1]["content"]
    limits = {"shortest_edge": 4 * 28**2, "longest_edge": 64 * 28**2}
    grid = Qwen2VLImageProcessor(size=limits)(picture, return_tensors="pt")["image_grid_thw"][0]
    seen = (int(grid[2]) * 14, int(grid[1]) * 14)
    (box,) = vlkit.parse_grounding(
        text, family="qwen2_5_vl", image_size=(1000, 500), input_size=seen
    )
    for i, (value, true) in enumerate(zip(box.xyxy, (100, 100, 300, 200), strict=True)):
        assert abs(value - true) <= (1000, 500)[i % 2] / seen[i % 2] / 2 + 1e-9


@pytest.mark.slow
def test_the_pages_table_is_what_the_command_says(vlm):
    from pathlib import Path

    page = Path(__file__).resolve().parents[2] / "docs" / "grounding.md"
    shown_there = page.read_text(encoding="utf-8")
    questions = read_questions("samples", prompt=locate_prompt("{label}", family=vlm.family))
    result = ask_grounding(vlm, questions, progress=False)
    shown = {
        "accuracy at IoU 0.5": "accuracy@0.5",
        "accuracy at IoU 0.75": "accuracy@0.75",
        "mean IoU": "mean_iou",
        "precision at IoU 0.5": "precision@0.5",
        "recall at IoU 0.5": "recall@0.5",
        "COCO mAP": "map",
    }
    for name, metric in shown.items():
        row = re.search(rf"^\| {name} \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", shown_there, re.M)
        counted = result.evaluation.overall.loc[metric]
        for text, column in zip(row.groups(), ("value", "low", "high"), strict=True):
            # another machine's rounding may move a box over the threshold
            assert float(text) == pytest.approx(counted[column], abs=0.025), (name, column)
    missed = result.rows[result.rows["kind"] == "missed"]
    source = {sample.path.name: sample.source for sample in vlkit.samples().values()}
    untrained = missed["image"].map(source).str.startswith("scikit")
    assert untrained.all()
    assert len(missed) == 12 and "The twelve boxes that it misses" in shown_there
    boxed = missed[~missed["answer"].str.match(r"There (is|are) no ")]
    assert list(boxed["label"]) == ["saucer"] and "for a saucer it gives a wrong box" in shown_there
    extra = result.rows[result.rows["true_x1"].isna()]
    assert list(extra["image"]) == ["city_street.jpg"]


@pytest.mark.parametrize("option, status", [("--iou", 1), ("--limit", 2), ("--worst", 2)])
def test_wrong_options_are_told_before_a_model_is_loaded(warm, tmp_path, option, status):
    command = ["-m", "vlkit", "evaluate-grounding", "nowhere/model", "samples"]
    done = warm.run(*command, "--out", tmp_path / "e", option, "-1")
    assert done.returncode == status and option.strip("-") in done.stderr
    assert not (tmp_path / "e").exists()


def test_no_questions_are_no_evaluation(vlm):
    with pytest.raises(VlkitError, match="questions is empty"):
        ask_grounding(vlm, [])
