"""The panel that chooses the model once for all notebooks, and `load()` that honours it."""

import json

import pytest

import vlkit
from vlkit.widgets import ModelChooser

LONG = 120


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "settings.json"
    monkeypatch.setenv("VLKIT_SETTINGS", str(path))
    return path


def test_load_takes_the_chosen_model_and_its_repr_says_so(file, tiny_folder):
    assert "chosen by" not in repr(vlkit.load("tiny"))
    vlkit.settings.remember_model(tiny_folder("qwen2_5_vl"), max_image_tokens=64)
    vlm = vlkit.load()
    assert (vlm.family, vlm.max_image_tokens) == ("qwen2_5_vl", 64)
    assert repr(vlm).endswith(f"chosen by {file})")


def test_remember_writes_what_the_controls_hold_and_forget_deletes_it(file, tiny_folder):
    panel = ModelChooser()
    assert panel.view["chosen"] == {"call": "vlkit.load('tiny')", "source": ""}
    panel.model.value = f" {tiny_folder('qwen3_vl')} "
    panel.dtype.value, panel.max_image_tokens.value = "float64", 200
    panel.remember_button.click()
    assert json.loads(file.read_text()) == {
        "model": str(tiny_folder("qwen3_vl")),
        "dtype": "float64",
        "max_image_tokens": 200,
    }
    assert "Remembered in" in panel.status.value and "qwen3_vl" in panel.view["chosen"]["call"]
    vlm = vlkit.load()
    assert vlm.family == "qwen3_vl" and str(vlm.model.dtype) == "torch.float64"

    again = ModelChooser()
    assert again.options == panel.options and again.model.value == panel.model.value.strip()
    again.forget_button.click()
    assert not file.exists() and again.view["chosen"]["source"] == ""


def test_the_code_does_the_same(file, tiny_folder):
    panel = ModelChooser()
    panel.model.value, panel.device.value = str(tiny_folder("qwen2_vl")), "cpu"
    names = {}
    exec(panel.code, names)
    assert names["vlm"].name == str(tiny_folder("qwen2_vl")) and names["vlm"].chosen_by == str(file)
    assert json.loads(file.read_text())["device"] == "cpu"


def test_try_asks_in_a_process_of_its_own(file):
    panel = ModelChooser()
    panel.try_button.click()
    assert panel.try_button.disabled and not panel.stop_button.disabled
    assert panel.wait(LONG) and panel.status.value.count("It works")
    truth = next(b for b in vlkit.samples()["three_shapes"].boxes if b.label == "blue square")
    (box,) = panel.answer["boxes"]
    assert vlkit.iou(vlkit.Box(**box), truth) > 0.5
    assert "<img" in panel.view["tried"] and panel._process.returncode == 0
    assert not file.exists()  # tried is not chosen


def test_what_does_not_load_is_one_line_and_the_panel_goes_on(file, tmp_path):
    panel = ModelChooser()
    panel.model.value = str(tmp_path / "<b>none")
    panel.try_button.click()
    assert panel.wait(LONG)
    assert 'role="alert"' in panel.status.value and "&lt;b&gt;none" in panel.status.value
    assert panel.answer is None and not panel.try_button.disabled and panel.stop_button.disabled
    panel.model.value = " "
    for button in (panel.try_button, panel.remember_button):
        button.click()
        assert "no model is chosen" in panel.status.value
    assert not file.exists()


def test_stop_ends_the_process(file):
    panel = ModelChooser()
    panel.try_button.click()
    panel.stop_button.click()
    assert panel.wait(120) and panel._process.poll() is not None
    assert "Stopped." in panel.status.value and panel.answer is None
    assert not panel.try_button.disabled


def test_the_process_ends_with_its_parent(file):
    panel = ModelChooser()
    panel.try_button.click()
    panel._process.stdin.close()  # what the parent's death does
    assert panel.wait(120) and panel._process.returncode == 1


def test_a_broken_file_is_told_and_can_be_written_anew(file):
    file.write_text("{")
    panel = ModelChooser()
    assert 'role="alert"' in panel.status.value and "is broken" in panel.status.value
    panel.remember_button.click()
    assert json.loads(file.read_text()) == {"model": "tiny"}


def test_a_variable_is_said_to_come_first(file, monkeypatch):
    monkeypatch.setenv("VLKIT_MODEL", "models/other")
    panel = ModelChooser()
    assert panel.view["chosen"] == {"call": "vlkit.load('models/other')", "source": "VLKIT_MODEL"}


def test_a_typo_is_not_remembered(file):
    panel = ModelChooser()
    panel.model.value = "Qwen/Qwen2-VL-2B-Instruc"
    panel.remember_button.click()
    assert "did you mean Qwen/Qwen2-VL-2B-Instruct?" in panel.status.text and not file.exists()
    panel.model.value = "/no/such/folder"
    panel.remember_button.click()
    assert "is neither a folder here nor a hub id" in panel.status.text and not file.exists()
    panel.model.value = "Qwen/Qwen2-VL-2B-Instruct"
    panel.remember_button.click()
    assert json.loads(file.read_text()) == {"model": "Qwen/Qwen2-VL-2B-Instruct"}


def test_an_error_goes_with_the_model_that_it_is_about(file):
    panel = ModelChooser()
    panel.model.value = "/no/such/folder"
    panel.remember()
    assert "neither a folder" in panel.status.value
    panel.model.value = "Qwen/Qwen2-VL-2B-Instruct"
    assert panel.status.text == ""
    panel.try_out()
    assert panel.view["question"]
    panel.model.value = "tiny"
    assert panel.view["question"] is None and panel.view["tried"] == ""


def test_a_download_begins_only_after_a_question_that_says_how_large_it_is(file):
    panel = ModelChooser()
    panel.model.value = "Qwen/Qwen2-VL-2B-Instruct"
    panel.try_button.click()
    assert panel._process is None and not panel.try_button.disabled
    question = panel.view["question"]
    assert question["name"] == "Qwen/Qwen2-VL-2B-Instruct"
    assert 4.3e9 < question["bytes"] < 4.6e9  # 2.2 billion parameters of two bytes


def test_errors_have_no_escape_codes(file, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as ipykernel sets it
    panel = ModelChooser()
    panel.model.value = "/no/such/folder"
    panel.try_button.click()
    assert panel.wait(LONG)
    assert panel.status.text.startswith("'/no/such/folder' is neither a folder here nor a hub id")


def test_known_models_with_what_they_need_here(file, monkeypatch):
    monkeypatch.setattr("vlkit.widgets.chooser.available_memory", lambda: (20_000_000_000, "GPU"))
    panel = ModelChooser()
    assert panel.wait(LONG)
    models = {model["name"]: model for model in panel.view["models"]}
    assert models["tiny"]["here"] and models["tiny"]["fits"] == "yes"
    fits = {name.rpartition("/")[2]: model["fits"] for name, model in models.items()}
    assert fits["Qwen2-VL-7B-Instruct"] == "yes"  # 16.6 GB
    assert fits["Qwen2.5-VL-32B-Instruct"] == "no"  # 67 GB, 20 GB with 4bit
    assert fits["Qwen3-VL-32B-Instruct"] == "no" and fits["Qwen3.5-27B"] in ("4bit", "no")
