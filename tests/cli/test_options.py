"""Which model the shell commands ask: the one that is named, else the chosen one, as load()."""

import json
from inspect import signature

import pytest
from openai_server import KEY, serve
from typer.testing import CliRunner

import vlkit
from vlkit.cli.app import app
from vlkit.cli.options import LOAD_OPTIONS
from vlkit.errors import VlkitError
from vlkit.remote.model import HostedOptions
from vlkit.serving.limits import Limits
from vlkit.settings import MAX_NEW_TOKENS

MODEL = "Qwen/Qwen2-VL-2B-Instruct"
COMMANDS = ("predict", "chat", "batch")


@pytest.fixture
def server(monkeypatch):
    with serve() as server:
        server.key = KEY
        server.models += [{"id": "mystery", "object": "model"}]
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        yield server


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """The settings file."""
    monkeypatch.delenv("VLKIT_MODEL", raising=False)
    monkeypatch.setenv("VLKIT_SETTINGS", str(tmp_path / "settings.json"))
    return tmp_path / "settings.json"


def run(command, folder, *options):
    (folder / "rows.csv").write_text("prompt\nHello!\n")
    own = {
        "predict": ["--prompt", "Hello!", "--json"],
        "chat": [],
        "batch": [str(folder / "rows.csv"), "--out", str(folder / "answers.jsonl")],
    }
    words = [command, *own[command], *options]
    result = CliRunner().invoke(app, words, input="Hello!\n/quit\n", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def written(command, folder):
    return json.loads(run("predict", folder, *command))


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_name_it_is_the_environments_model(server, tmp_path, monkeypatch, command):
    monkeypatch.setenv("VLKIT_MODEL", f"openai:{MODEL}")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    run(command, tmp_path)
    assert [request["model"] for request in server.requests] == [MODEL]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_settings_file_names_model_and_options(server, settings, tmp_path, command):
    vlkit.settings.remember_model("openai:mystery", base_url=server.url, family="qwen3_vl")
    run(command, tmp_path)
    assert [request["model"] for request in server.requests] == ["mystery"]


def test_what_is_written_comes_before_what_was_chosen(server, settings, tmp_path, monkeypatch):
    vlkit.settings.remember_model("openai:mystery", base_url=server.url, family="qwen3_vl")
    assert written([], tmp_path)["family"] == "qwen3_vl"
    assert written(["--family", "qwen2_5_vl"], tmp_path)["family"] == "qwen2_5_vl"
    monkeypatch.setenv("VLKIT_MODEL", "nowhere")
    named = ["--model", f"openai:{MODEL}", "--base-url", server.url]
    assert written(named, tmp_path)["model"] == f"openai:{MODEL}"
    for command in COMMANDS:
        with pytest.raises(VlkitError, match=r"nowhere.*\(chosen by VLKIT_MODEL\)"):
            run(command, tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_says_so(command):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).output
    assert "VLKIT_MODEL" in shown and "settings file" in shown and "--family" in shown


@pytest.mark.parametrize("spelling", ["qwen2_5_vl", "qwen2.5-vl", "Qwen2.5-VL"])
def test_a_hosted_models_family_can_be_told(server, tmp_path, spelling):
    where = ["--model", "openai:mystery", "--base-url", server.url]
    assert written([*where, "--family", spelling], tmp_path)["family"] == "qwen2_5_vl"
    with pytest.raises(VlkitError, match="pass family="):
        run("batch", tmp_path, *where)
    with pytest.raises(VlkitError, match="family='qwen9'"):
        run("chat", tmp_path, *where, "--family", "qwen9")


def test_one_row_is_one_row_and_numbers_begin_at_one(server, tmp_path):
    where = ["--model", f"openai:{MODEL}", "--base-url", server.url]
    assert run("batch", tmp_path, *where).startswith("1 row, 0 failed")
    frame = vlkit.read_conversations(tmp_path / "rows.csv")
    assert repr(frame) == "Conversations(1 row, columns=['prompt'])"
    vlm = vlkit.load(f"openai:{MODEL}", base_url=server.url)
    report = vlkit.generate_batch(vlm, frame, progress=False).report
    assert str(report).startswith("1 row, 0 failed")
    table, out = tmp_path / "two.csv", tmp_path / "answers.csv"
    table.write_text("prompt,n\nHello!,1\n,2\n")
    words = ["batch", str(table), "--out", str(out), *where]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert (
        f"row 2 of {table}: VlkitError: " in result.stderr and "2 rows, 1 failed" in result.stdout
    )


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("nowhere/a.csv", [], r"nowhere/a\.csv: the folder .*nowhere does not exist; create"),
        ("old.jsonl", ["--no-resume"], r"--out .*old\.jsonl: it already contains rows; delete it"),
        ("old.csv", ["--no-resume"], r"old\.csv: .*old\.jsonl next to it already contains rows"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_as_it_was_given(tmp_path, out, options, message):
    (tmp_path / "old.jsonl").write_text('{"key": "a"}\n')
    with pytest.raises(VlkitError, match=message):
        run("batch", tmp_path, "--out", str(tmp_path / out), *options)


def test_the_table_of_options_has_options_of_load_only():
    hosted = HostedOptions.__annotations__
    assert LOAD_OPTIONS.keys() <= {*signature(vlkit.load).parameters, *hosted}


def test_defaults_are_the_same_everywhere():
    functions = (vlkit.generate, vlkit.stream, vlkit.generate_batch, vlkit.attention_map)
    for function in functions:
        assert signature(function).parameters["max_new_tokens"].default == MAX_NEW_TOKENS
    words = " ".join(CliRunner().invoke(app, ["serve", "--help"]).output.split())
    sizes = (Limits.body_bytes >> 20, Limits.pixels // 10**6)
    for default in (*sizes, Limits.pictures, Limits.new_tokens, Limits.waiting):
        assert f"[default: {default}; x>=1]" in words
