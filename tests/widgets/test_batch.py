"""The BatchPanel driven by its traits and buttons, on the bundled model and pictures."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import vlkit
from vlkit.batch import answering
from vlkit.media.image import Image
from vlkit.widgets.batch import BatchPanel

LONG = 120  # seconds that no test should need
HOSTILE = "<img src=x onerror=alert(1)>{evil} & <|im_end|>"


@pytest.fixture
def folder(tmp_path):
    """Three pictures of known content, and a file that is none."""
    for name in ("red_circle", "three_shapes", "hello"):
        shutil.copy(vlkit.sample(name), tmp_path)
    (tmp_path / "torn.png").write_bytes(vlkit.sample("hello").read_bytes()[:300])
    return tmp_path


@pytest.fixture
def make(vlm):
    """``make(source, prompt)``: a panel of few tokens, waited for at the end."""
    panels = []

    def panel(*arguments):
        panels.append(BatchPanel(vlm, *map(str, arguments)))
        panels[-1].max_new_tokens.value = 32
        return panels[-1]

    yield panel
    assert all(panel.wait(LONG) for panel in panels)


def run(panel):
    panel.start_button.click()
    assert panel.wait(LONG)
    return panel.results


def rows(panel):
    """The rows in view, as the browser gets them."""
    assert panel.wait(LONG)
    return panel.view["rows"]


def answer(row):
    return "".join(text for text, _ in row["parts"])


def test_a_row_that_was_cut_off_says_so_and_shows_no_half_box(make, folder):
    panel = make(folder, "Detect all objects.")
    panel.max_new_tokens.value = 38  # two shapes need more
    run(panel)
    _, circle, shapes, _ = rows(panel)
    assert (circle["cut"], shapes["cut"]) == (False, True)
    assert answer(shapes).endswith(" …") and "(" not in answer(shapes)


def test_a_folder_is_answered_row_by_row(make, folder):
    panel = make(folder, "Locate the red circle.")
    assert [row["state"] for row in rows(panel)] == ["new"] * 4
    assert [row["number"] for row in rows(panel)] == [1, 2, 3, 4]
    assert (panel.view["total"], panel.view["columns"]) == (4, "{image} {name}")
    assert set(panel.pictures) == {"0", "1", "2"}  # the fourth cannot be read
    hello, circle, _, torn = run(panel)
    truth = vlkit.samples()["red_circle"].boxes[0]
    assert vlkit.iou(circle.boxes[0], truth) > 0.5 and hello.text
    assert isinstance(torn, vlkit.Failure)
    assert "Done in" in panel.status.value
    counts = panel.view["counts"]
    assert (counts["done"], counts["failed"], counts["waiting"]) == (3, 1, 0)
    assert answer(rows(panel)[1]) == "the red circle"
    assert "torn.png is truncated" in rows(panel)[3]["problem"]
    assert not panel.start_button.disabled and panel.stop_button.disabled


def test_answers_stay_until_the_next_start(make, folder):
    panel = make(folder, "Locate the red circle.")
    answers = list(run(panel))
    asked = panel.conversations
    panel.prompt.value = "Locate the {nothing}."
    panel.start_button.click()  # it cannot: there is no such column
    assert "is not a column" in panel.status.value
    assert panel.results == answers and panel.conversations is asked
    panel.prompt.value, panel.source.value = "What is this?", "samples"
    assert panel.results == [] and len(panel.conversations) > 4
    panel.source.value = str(folder)
    assert panel.results == answers and answer(rows(panel)[1]) == "the red circle"
    assert panel.conversations is asked  # so what is saved has the question that was asked
    assert panel.view["answered"] == (str(folder), "Locate the red circle.")
    assert run(panel)[1].text != answers[1].text
    assert panel.view["answered"] == (str(folder), "What is this?")


def test_only_failures_and_pages(make, folder):
    panel = make(folder, "What is this?")
    run(panel)
    panel.shown.value = "failures"
    assert [row["name"] for row in rows(panel)] == ["torn.png"]
    many = folder / "many.csv"
    pd.DataFrame({"prompt": [f"Question {i}" for i in range(20)]}).to_csv(many, index=False)
    panel.shown.value, panel.source.value = "all rows", str(many)
    panel.prompt.value = ""
    assert rows(panel)[0]["question"] == "Question 0"
    assert panel.view["total"] == 20 and panel.page.look["max"] == 3
    panel.page.value = 3
    assert [row["question"] for row in rows(panel)] == [f"Question {i}" for i in range(16, 20)]
    panel.search.value = "question 1"  # 1, and 10 to 19, on two pages
    panel.page.value = 1
    assert [row["number"] for row in rows(panel)] == [2, 11, 12, 13, 14, 15, 16, 17]
    panel.page.value = 2
    assert [row["number"] for row in rows(panel)] == [18, 19, 20]


def test_the_view_shows_the_boxes_on_a_picture_that_is_read_once(make, folder, monkeypatch):
    read = []
    load = Image.load
    monkeypatch.setattr(Image, "load", lambda image: read.append(image.source) or load(image))
    panel = make(folder, "Locate the red circle.")
    assert rows(panel)[1]["items"] == []
    before, thumbnails = panel.pictures["1"], len(read)
    run(panel)
    (item,) = rows(panel)[1]["items"]
    truth = vlkit.samples()["red_circle"].boxes[0]
    (x1, y1), (x2, y2) = item["points"]
    assert vlkit.iou(vlkit.Box("", x1, y1, x2, y2), truth) > 0.5
    assert panel.pictures["1"] is before
    after = len(read)
    panel.shown.value = "done"
    assert len(rows(panel)) == 3
    panel.shown.value = "all rows"
    assert len(rows(panel)) == 4
    assert thumbnails == 4 and len(read) == after  # what is drawn again is not read again


def test_sorted_and_filtered_by_state(make, folder):
    panel = make(folder, "Locate the red circle.")
    results = run(panel)
    panel.order.value = "state"
    assert [row["state"] for row in rows(panel)] == ["done", "done", "done", "failed"]
    panel.order.value = "slowest first"
    slowest = max(range(3), key=lambda i: results[i].seconds)
    assert rows(panel)[0]["index"] == slowest
    panel.shown.value = "done"
    panel.search.value = "RED CIRCLE.png"
    assert rows(panel) == []
    panel.search.value = "red_circle.PNG"
    assert [row["name"] for row in rows(panel)] == ["red_circle.png"]


def test_rows_that_wait_run_and_are_stopped_are_told_apart(make, folder, monkeypatch):
    seen = []

    def answers(vlm, conversations, *, on_start, on_result, stopped, **_):
        on_start(0)
        on_start(1)
        on_result(0, vlkit.Failure("broken", "MediaError"))
        panel._draw()
        seen.append([row["state"] for row in panel.view["rows"]])
        panel.save()
        seen.append(panel.view["saved"])
        return SimpleNamespace(report=SimpleNamespace(stopped=True))

    panel = make(folder, "What?")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("vlkit.batch.answering.generate_batch", answers)
    run(panel)
    assert seen[0] == ["failed", "running", "waiting", "waiting"]
    assert seen[1] == "0 of 4 answered, 1 failed, saved to answers.csv"
    assert [row["state"] for row in rows(panel)] == ["failed", "stopped", "stopped", "stopped"]
    assert "Stopped." in panel.status.value  # saving has not replaced it


def test_an_uploaded_table_with_its_pictures_becomes_the_source(make, folder):
    panel = make(folder, "Locate the {what}.")
    table = b"image,what\nred_circle.png,red circle\n"
    picture = vlkit.sample("red_circle").read_bytes()
    half = len(picture) // 2
    for part, name, last in [
        (picture[:half], "red_circle.png", False), (picture[half:], "red_circle.png", True),
        (table, "../q.csv", True),
    ]:  # fmt: skip
        place = {"group": "7", "final": part is table}
        panel._receive({"do": "chunk", "id": name, "name": name, "last": last} | place, [part])
    assert Path(panel.source.value).read_bytes() == table
    assert Path(panel.source.value).parts[-2:] == ("7", "q.csv")
    assert [row["name"] for row in rows(panel)] == ["red_circle.png"]
    assert set(panel.pictures) == {"0"}
    (result,) = run(panel)
    assert vlkit.iou(result.boxes[0], vlkit.samples()["red_circle"].boxes[0]) > 0.5


def test_folders_can_be_browsed(make, folder):
    (folder / "inner").mkdir()
    (folder / "q.csv").write_text("prompt\n?\n")
    panel = make(folder, "What?")
    panel._receive({"do": "browse", "path": str(folder)}, [])
    assert panel.listing["entries"] == [
        ("inner", str(folder / "inner"), True), ("q.csv", str(folder / "q.csv"), False)
    ]  # fmt: skip
    assert panel.listing["pictures"] == 4 and panel.listing["up"] == str(folder.parent)
    panel._receive({"do": "browse", "path": str(folder / "nowhere")}, [])
    assert "nowhere" in panel.status.value and 'role="alert"' in panel.status.value


def test_saved_as_a_table(make, folder, monkeypatch):
    panel = make(folder, "What is this?")
    monkeypatch.chdir(folder)
    panel.save_button.click()
    assert "there are no answers yet" in panel.view["saved"] and panel.view["saved_failed"]
    results = run(panel)
    panel.save_button.click()
    assert panel.view["saved"] == "3 of 4 answered, 1 failed, saved to answers.csv"
    assert "Done in" in panel.status.value
    saved = vlkit.read_conversations("answers.csv", "?").table
    assert list(saved["text"][:3]) == [reply.text for reply in results[:3]]
    panel.save_as.value = "answers.jsonl"
    panel.save_button.click()
    records = [json.loads(line) for line in open("answers.jsonl", encoding="utf-8")]
    assert records[3]["error"].startswith("MediaError: ") and records[3]["image"] == "torn.png"
    panel.save_as.value = "answers.txt"
    panel.save_button.click()
    assert "is not one of .csv, .jsonl, .parquet" in panel.view["saved"]


def test_stopped_with_a_journal_it_goes_on(make, vlm, folder, monkeypatch):
    monkeypatch.chdir(folder)
    pd.DataFrame({"prompt": [f"Count to {i}." for i in range(64)]}).to_csv("q.csv", index=False)
    panel = make("q.csv", "")
    panel.out.value = "journal.jsonl"
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)  # so Stop has time
    panel.max_new_tokens.value = 64
    generate_batch = answering.generate_batch

    def stop_after_a_row(vlm, conversations, on_result, **options):
        take = lambda *row: (on_result(*row), panel.stop_button.click())  # noqa: E731
        return generate_batch(vlm, conversations, on_result=take, **options)

    monkeypatch.setattr(answering, "generate_batch", stop_after_a_row)
    run(panel)
    done = sum(result is not None for result in panel.results)
    assert 0 < done < 64 and "Stopped." in panel.status.value
    assert panel.frame["error"].str.startswith("Waiting").sum() == 64 - done
    monkeypatch.setattr(answering, "generate_batch", generate_batch)
    panel.start()
    assert panel.wait(LONG) and all(panel.results)
    assert len((folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()) == 64


def test_code_gives_the_same_answers(make, vlm, folder):
    panel = make(folder, 'Is this "{name}"? It\'s {image}.')
    results = run(panel)
    names = {"vlm": vlm}
    exec(panel.code, names)
    assert list(map(str, names["results"])) == list(map(str, results))
    samples = make()
    exec(samples.code.partition("results =")[0], names)
    assert len(names["conversations"]) == len(samples.conversations)


def test_content_is_data(make, folder):
    table = {
        "image": ["red_circle.png", HOSTILE],
        "evil": ["{prompt}", "</div>"],
        HOSTILE: ["", ""],
    }
    pd.DataFrame(table).to_csv(folder / "q.csv", index=False)
    panel = make(folder / "q.csv", HOSTILE)
    run(panel)
    assert "<img src=x" not in panel.status.value
    assert "{prompt} & <|im_end|>" in rows(panel)[0]["question"]  # the browser sets it as text


@pytest.mark.parametrize(
    ("source", "prompt", "message"),
    [
        ("nowhere", "?", "nowhere does not exist"),
        ("", "?", "no source; name a folder"),
        ("{folder}", "{nothing}", "is not a column"),
        ("{folder}", "", "there is no column prompt"),
    ],
)
def test_mistakes_are_one_line_in_the_panel(make, folder, source, prompt, message):
    panel = make(source.replace("{folder}", str(folder)), prompt)
    assert message in panel.status.value and 'role="alert"' in panel.status.value
    panel.start_button.click()
    assert panel.wait(LONG) and panel.results == [] and not panel.start_button.disabled
    panel.source.value, panel.prompt.value = str(folder), "What?"
    assert "alert" not in panel.status.value


def test_an_error_of_the_run_is_shown(make, folder):
    panel = make(folder, "What?")
    panel.out.value = str(folder / "nowhere" / "out.jsonl")
    run(panel)
    assert "nowhere does not exist; create it" in panel.status.value
