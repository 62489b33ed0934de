"""The LoraPanel driven by its knobs and buttons: it does what its code says."""

from __future__ import annotations

import inspect
import json
import time
from types import SimpleNamespace

import pytest
from lora_talks import noise

import vlkit
from vlkit.lora import train
from vlkit.lora.callbacks import Steering
from vlkit.widgets.lora import DEFAULTS, LoraPanel, knob_values, list_runs, read_run
from vlkit.widgets.panel import make_controls

LONG = 240  # seconds that no test should need
HOSTILE = "<b>&evil</b>"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder: twenty pictures, and meta.json about them."""
    rows = []
    for i in range(20):
        noise(64, 64, i).save(tmp_path / f"{i}.png")
        said = [f"<img>{i}.png</img>{HOSTILE} {i}?", f"It is {i}."]
        talk = [
            {"from": role, "value": text}
            for role, text in zip(("user", "assistant"), said, strict=True)
        ]
        rows.append({"id": str(i), "conversations": talk})
    (tmp_path / "meta.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def panel(tiny_folder, folder):
    made = LoraPanel(vlkit.load(tiny_folder("qwen2_vl")), "meta.json")
    yield made
    made.stop()
    assert made.wait(LONG)


def test_every_knob_is_an_argument_of_train():
    values = knob_values(make_controls(None, "train"))
    arguments = set(inspect.signature(train).parameters)
    others = {"vlm", "data", "eval_data", "callbacks", "report_to"}
    assert set(values) == arguments - others
    same = {name for name, value in values.items() if value == DEFAULTS[name]}
    assert same == set(values) - {"output_dir"}


def test_cost_is_that_of_inspect(panel):
    assert panel.wait(LONG)
    assert panel.xray.rows == 18 and panel.view["cost"]["rows"] == 18
    before = panel.xray
    panel.knobs["rank"].value, panel.knobs["target"].value = 32, "all"
    panel.held_out.value = 0.0
    assert panel.wait(LONG)
    learnt = vlkit.lora.load_conversations("meta.json")
    whole = vlkit.lora.inspect(panel.vlm, learnt, rank=32, target="all")
    assert panel.xray.trained == whole.trained > before.trained
    assert (panel.xray.rows, panel.xray.steps) == (20, whole.steps)


def test_it_opens_with_an_invitation_and_then_shows_the_rows(tiny_folder, folder):
    panel = LoraPanel(vlkit.load(tiny_folder("qwen2_vl")))
    assert panel.wait(LONG)
    assert panel.view["invited"] and panel.view["rows"] == []
    assert panel.status.text == "" and panel.status.kind == ""
    panel.source.value = "nowhere.json"
    assert panel.wait(LONG) and panel.status.kind == "error"
    panel.source.value = "meta.json"
    assert panel.status.kind == "busy" and "nowhere" not in panel.status.text
    assert panel.wait(LONG) and panel.status.text == ""
    row = panel.view["rows"][2]
    assert (row["question"], row["answer"]) == (f"{HOSTILE} 2?", "It is 2.")
    assert tuple(row["picture"]["size"]) == (64, 64)
    assert not panel.view["invited"] and len(panel.view["rows"]) == 6


def test_the_cost_is_never_that_of_other_knobs(panel):
    assert panel.wait(LONG) and panel.view["cost"]["steps"] > 0
    panel.knobs["epochs"].value = 5.0
    assert panel.view["cost"] is None  # until it is computed again
    assert panel.wait(LONG)
    assert panel.view["cost"]["steps"] == panel.xray.steps


def test_tried_compared_merged_and_exported_after_the_run(panel):
    panel.ask_button.click()
    assert panel.wait(LONG)
    assert "there is no adapter yet" in panel.status.text
    panel.knobs["batch_size"].value, panel.knobs["learning_rate"].value = 8, 1e-2
    panel.start_button.click()
    assert panel.wait(LONG)
    panel.row.value = 3
    panel.question.value = "What is this?"
    panel.ask_button.click()
    assert panel.wait(LONG)
    message = vlkit.user("What is this?", "3.png")
    with vlkit.lora.use_adapter(panel.vlm, panel.run.output_dir) as tuned:
        assert panel.view["tried"]["after"] == vlkit.generate(tuned, message).text
    assert panel.view["tried"]["before"] == vlkit.generate(panel.vlm, message).text
    panel.compare_button.click()
    assert panel.wait(LONG)
    assert list(panel.comparison.scores) == ["base", "after"]
    assert len(panel.view["comparison"]["rows"]) == 2  # those held out
    for button, name in ((panel.merge_button, "merged"), (panel.export_button, "export")):
        button.click()
        assert panel.wait(LONG)
        assert panel.status.text == f"Written to runs/lora-1-{name}-1."
    merged = vlkit.load("runs/lora-1-merged-1")
    assert vlkit.generate(merged, message).text == panel.view["tried"]["after"]
    assert {path.name for path in (panel.run.output_dir.parent / "lora-1-export-1").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_what_cannot_be_used_is_told(panel):
    panel.knobs["target"].value = "no_such_layer"
    assert panel.wait(LONG)
    assert "matches no linear layer" in panel.status.value and panel.xray is None
    panel.knobs["target"].value, panel.source.value = "language", "nowhere.json"
    assert panel.wait(LONG)
    assert "nowhere.json" in panel.status.value
    panel.start_button.click()
    assert panel.wait(LONG)
    assert "nowhere.json" in panel.status.value and panel.run is None
    assert not panel.start_button.disabled and panel.stop_button.disabled


def test_train_as_the_code_says(panel):
    panel.knobs["batch_size"].value, panel.knobs["learning_rate"].value = 8, 1e-2
    assert panel.wait(LONG)
    code = panel.code
    panel.start_button.click()
    assert panel.wait(LONG)
    run = panel.run
    assert run.finished and "Done: 3 steps" in panel.status.value
    assert [tuple(point) for point in panel.curves["losses"]] == list(run.losses)
    assert [tuple(point) for point in panel.curves["metrics"]] == list(run.metrics)
    assert HOSTILE in panel.curves["samples"][0][0]  # the browser sets it as text
    assert (panel.progress["step"], panel.progress["steps"]) == (3, 3)
    assert panel.progress["memory"] > 0
    assert panel.knobs["output_dir"].value == "runs/lora-2"
    assert panel.saved.look["options"] == ["runs/lora-1"]
    names = {"vlm": panel.vlm, "data": vlkit.lora.load_conversations("meta.json")}
    exec(code.replace("lora-1", "again"), names)
    assert names["run"].losses == run.losses and names["run"].evaluations == run.evaluations


def test_saved_runs_beside_each_other(panel):
    for rank in (2, 4):
        panel.knobs["rank"].value, panel.knobs["batch_size"].value = rank, 16
        panel.start_button.click()
        assert panel.wait(LONG)
    panel.saved.value = tuple(panel.saved.look["options"])
    saved = panel.view["saved"]
    assert [run["name"] for run in saved] == ["lora-1", "lora-2"]
    assert [run["arguments"]["rank"] for run in saved] == ["2", "4"]
    assert len({run["arguments"]["epochs"] for run in saved}) == 1
    assert [tuple(p) for p in saved[1]["curves"]["losses"]] == list(panel.run.losses)
    runs = list_runs(panel.run.output_dir.parent)
    assert [read_run(run)[0]["rank"] for run in runs] == [2, 4]
    assert read_run(runs[1])[1].losses == panel.run.losses
    panel.knobs["output_dir"].value = "elsewhere/lora-1"
    assert panel.saved.look["options"] == []
    panel.knobs["output_dir"].value = "runs/lora-9"
    assert panel.saved.look["options"] == list(map(str, runs))


def test_pause_stop_and_resume(panel, monkeypatch):
    panel.knobs["batch_size"].value, panel.knobs["epochs"].value = 1, 20.0
    step_end = Steering.on_step_end
    waits = []

    def slowly(self, args, state, control, **more):
        waits.append(state.global_step)
        if len(waits) == 3:
            panel.pause_button.click()
        step_end(self, args, state, control, **more)

    monkeypatch.setattr(Steering, "on_step_end", slowly)
    panel.start_button.click()
    deadline = time.monotonic() + LONG
    while "Paused." not in panel.status.value and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    assert waits[-1] == 3 and panel.pause_button.label == "Continue"
    panel.pause_button.click()
    panel.stop_button.click()
    assert panel.wait(LONG)
    stopped = panel.run
    assert not stopped.finished and "Stopped: " in panel.status.value
    assert panel.knobs["output_dir"].value == "runs/lora-1"
    panel.knobs["resume"].value, panel.knobs["epochs"].value = True, 20.0
    panel.start_button.click()
    deadline = time.monotonic() + LONG
    while waits[-1] <= stopped.steps and time.monotonic() < deadline:
        time.sleep(0.01)
    panel.stop_button.click()
    assert panel.wait(LONG)
    assert panel.run.steps > stopped.steps
    assert panel.run.losses[: len(stopped.losses)] == stopped.losses


def test_the_cost_is_never_reckoned_while_the_model_is_trained(panel, monkeypatch):
    """A knob was turned just before Train was clicked."""
    assert panel.wait(LONG)
    busy, together, xray = [], [], panel.xray

    def work(result):
        def done(*_, **__):
            busy.append(1)
            time.sleep(0.4)
            together.append(len(busy))
            busy.pop()
            return result

        return done

    monkeypatch.setattr("vlkit.lora.inspect", work(xray))
    run = SimpleNamespace(
        finished=False, metrics=(), steps=1, seconds=1.0, output_dir="runs/lora-1"
    )
    monkeypatch.setattr("vlkit.lora.train", work(run))
    panel.knobs["rank"].value = 32
    while not busy:
        time.sleep(0.01)
    panel.start()
    assert panel.wait(LONG)
    assert together == [1, 1] and panel.run is run and "Stopped" in panel.status.value


def test_a_new_panel_proposes_a_folder_that_is_free(tiny_folder, folder):
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    assert LoraPanel(vlm).knobs["output_dir"].value == "runs/lora-1"
    for number in (1, 2):
        (folder / "runs" / f"lora-{number}").mkdir(parents=True)
    assert LoraPanel(vlm).knobs["output_dir"].value == "runs/lora-3"
