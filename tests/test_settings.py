"""The model chosen once: who chooses it, what comes first, what a broken file says."""

import inspect
import json
from dataclasses import dataclass

import pytest

import vlkit
from vlkit import settings
from vlkit.errors import ModelError
from vlkit.remote.model import HostedOptions


@dataclass(frozen=True)
class Loaded:
    model: str
    options: dict
    chosen_by: str | None = None


@settings.honours_choice
def load(model=None, **options):
    if model == "gone":
        raise ModelError("'gone' is neither a folder here nor a hub id")
    return Loaded(model, options)


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "settings.json"
    monkeypatch.setenv("VLKIT_SETTINGS", str(path))
    monkeypatch.delenv("VLKIT_MODEL", raising=False)
    return path


def test_without_a_choice_it_is_the_bundled_model(file):
    assert load() == load(None) == Loaded("tiny", {})


def test_what_is_remembered_is_loaded_and_said(file):
    assert settings.remember_model("models/a", dtype="bfloat16", max_image_tokens=64) == file
    assert load() == Loaded("models/a", {"dtype": "bfloat16", "max_image_tokens": 64}, str(file))
    assert [each.name for each in file.parent.iterdir()] == ["settings.json"]


def test_arguments_come_before_the_variable_and_the_variable_before_the_file(file, monkeypatch):
    settings.remember_model("models/a", dtype="bfloat16")
    assert load(dtype="float32").options == {"dtype": "float32"}
    assert load("models/c") == load(model="models/c") == Loaded("models/c", {})
    monkeypatch.setenv("VLKIT_MODEL", "models/b")
    assert load() == Loaded("models/b", {}, "VLKIT_MODEL")


def test_forgotten_it_is_the_bundled_model_again(file):
    settings.remember_model("models/a")
    settings.forget_model()
    settings.forget_model()
    assert load().model == "tiny" and not file.exists()


def test_an_empty_variable_means_no_settings(file, monkeypatch):
    settings.remember_model("models/a")
    monkeypatch.setenv("VLKIT_SETTINGS", "")
    assert settings.settings_path() is None and load().model == "tiny"
    with pytest.raises(ModelError, match="VLKIT_SETTINGS is empty"):
        settings.remember_model("models/a")


def test_without_variables_it_is_the_platform_s_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("VLKIT_SETTINGS")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = settings.settings_path()
    assert path.name == "settings.json" and path.parent.name.lower() == "vlkit"
    assert path.is_relative_to(tmp_path) and settings.short_path(path).startswith("~/")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("{'model': 1}", "Expecting property name"),
        ("[]", "no JSON object"),
        ("{}", "model=None is not the name"),
        ('{"model": " "}', "model=' ' is not the name"),
        ('{"model": "a", "colour": "red"}', "no option 'colour'; it has hub,"),
        ('{"model": "a", "dtype": ["x"]}', r"dtype=\['x'\] is neither"),
        ('{"model": "a", "api_key": "k"}', "api_key does not belong there"),
    ],
)
def test_a_broken_file_is_one_line_that_says_what_to_do(file, content, reason):
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(ModelError, match=reason) as error:
        load()
    assert "\n" not in str(error.value)
    assert "settings.json is broken" in str(error.value) and "delete the file" in str(error.value)
    assert load("models/c").model == "models/c"  # who names a model is not kept from it


def test_bytes_that_are_no_text_and_a_folder(file):
    file.parent.mkdir()
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="is broken"):
        load()
    file.unlink()
    file.mkdir()
    with pytest.raises(ModelError, match="is broken"):
        load()
    with pytest.raises(ModelError, match="cannot be written"):
        settings.remember_model("a")


def test_what_load_does_not_have_is_not_written(file):
    for wrong in ({"colour": 1}, {"api_key": "k"}):
        with pytest.raises(ModelError):
            settings.remember_model("a", **wrong)
    for wrong in (None, 3, " "):
        with pytest.raises(ModelError, match="is not the name of a model"):
            settings.remember_model(wrong)
    assert not file.exists()


def test_a_chosen_model_that_is_gone_says_who_chose_it(file):
    settings.remember_model("gone")
    with pytest.raises(ModelError, match=r"neither a folder.*chosen by .*settings\.json"):
        load()


def test_the_file_is_plain_json(file):
    settings.remember_model("Qwen/Qwen2-VL-2B-Instruct", hub="modelscope")
    assert json.loads(file.read_text()) == {
        "model": "Qwen/Qwen2-VL-2B-Instruct",
        "hub": "modelscope",
    }


def test_load_says_what_it_returns():
    assert inspect.signature(vlkit.load).return_annotation == "VLM | RemoteVLM"


def test_the_options_that_settings_know_are_those_of_load():
    signature = inspect.signature(vlkit.load)
    named = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert named == list(settings.LOAD_OPTIONS)
    assert list(HostedOptions.__annotations__) == list(settings.HOSTED_OPTIONS)
