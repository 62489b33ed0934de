"""The BatchPanel driven by its traits and buttons, on the bundled model and pictures."""

import json
import re
import shutil

import pandas as pd
import pytest

import vlkit
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


def seen(panel):
    assert panel.wait(LONG)
    return "".join(row.value for row in panel.rows)


def test_a_folder_is_answered_row_by_row(make, folder):
    panel = make(folder, "Locate the red circle.")
    assert panel.columns_line.value == "4 rows; columns {image} {name}"
    assert seen(panel).count("<img") == 3 and seen(panel).count("…</div>") == 4
    hello, circle, _, torn = run(panel)
    truth = vlkit.samples()["red_circle"].boxes[0]
    assert vlkit.iou(circle.boxes[0], truth) > 0.5 and hello.text
    assert isinstance(torn, vlkit.Failure)
    assert "Done in" in panel.status.value
    assert panel.counts.value.startswith("4 of 4 rows, 1 failed") and panel.bar.value == 4
    assert circle.text in seen(panel) and "torn.png is truncated" in seen(panel)
    assert not panel.start_button.disabled and panel.stop_button.disabled


def test_only_failures_and_pages(make, folder):
    panel = make(folder, "What is this?")
    run(panel)
    panel.shown.value = "failures"
    assert seen(panel).count("vlkit-row-grid") == 1 and "torn.png" in seen(panel)
    many = folder / "many.csv"
    pd.DataFrame({"prompt": [f"Question {i}" for i in range(20)]}).to_csv(many, index=False)
    panel.shown.value, panel.source.value = "all rows", str(many)
    panel.prompt.value = ""
    assert "20 rows" in panel.columns_line.value
    assert "Question 0" in seen(panel) and panel.page.max == 3
    panel.page.value = 3
    assert re.findall(r"Question (\d+)", seen(panel)) == ["16", "17", "18", "19"]


def test_the_view_shows_the_boxes(make, folder):
    panel = make(folder, "Locate the red circle.")
    assert seen(panel)
    before = panel.rows[1].value
    run(panel)
    picture = re.compile(r'src="([^"]+)"')
    assert picture.search(panel.rows[1].value)[1] != picture.search(before)[1]


def test_saved_as_a_table(make, folder, monkeypatch):
    panel = make(folder, "What is this?")
    monkeypatch.chdir(folder)
    panel.save_button.click()
    assert "there are no answers yet" in panel.status.value
    results = run(panel)
    panel.save_button.click()
    assert "4 rows saved to answers.csv" in panel.status.value
    saved = vlkit.read_conversations("answers.csv", "?").table
    assert list(saved["text"][:3]) == [reply.text for reply in results[:3]]
    panel.save_as.value = "answers.jsonl"
    panel.save_button.click()
    records = [json.loads(line) for line in open("answers.jsonl", encoding="utf-8")]
    assert records[3]["error"].startswith("MediaError: ") and records[3]["image"] == "torn.png"
    panel.save_as.value = "answers.txt"
    panel.save_button.click()
    assert "is not one of .csv, .jsonl, .parquet" in panel.status.value


def test_stopped_with_a_journal_it_goes_on(make, vlm, folder, monkeypatch):
    monkeypatch.chdir(folder)
    pd.DataFrame({"prompt": [f"Count to {i}." for i in range(64)]}).to_csv("q.csv", index=False)
    panel = make("q.csv", "")
    panel.out.value = "journal.jsonl"
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)  # so Stop has time
    panel.max_new_tokens.value = 64
    take = panel._take
    panel._take = lambda *row: (take(*row), panel.stop_button.click())
    run(panel)
    done = sum(result is not None for result in panel.results)
    assert 0 < done < 64 and "Stopped." in panel.status.value
    assert panel.frame["error"].str.startswith("Waiting").sum() == 64 - done
    panel._take = take
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
    rows = {"image": ["red_circle.png", HOSTILE], "evil": ["{prompt}", "</div>"], HOSTILE: ["", ""]}
    pd.DataFrame(rows).to_csv(folder / "q.csv", index=False)
    panel = make(folder / "q.csv", HOSTILE)
    run(panel)
    for view in (*panel.rows, panel.columns_line, panel.status, panel._code_view):
        assert "<img src=x" not in view.value
    assert "{prompt} &amp; &lt;|im_end|&gt;" in panel.rows[0].value


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
