"""The shell commands: in process with a model, as processes where exit codes count."""

import json
import subprocess
import sys

import PIL.Image
import pytest
from typer.testing import CliRunner

import vlkit
from vlkit.cli.app import app
from vlkit.errors import VlkitError

RED_CIRCLE = str(vlkit.sample("red_circle"))


def run(*arguments, input=None):
    return CliRunner().invoke(app, arguments, input=input, catch_exceptions=False)


def test_predict_prints_json_and_writes_the_picture(tmp_path):
    result = run(
        "predict", "--prompt", "Locate the red circle.", "--image", RED_CIRCLE, "--json",
        "--output-dir", str(tmp_path / "new" / "out"), "--seed", "3", "--max-new-tokens", "64",
        "--dtype", "float32",
    )  # fmt: skip
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    truth = vlkit.samples()["red_circle"].boxes[0]
    assert vlkit.iou(vlkit.Box(**record["boxes"][0]), truth) > 0.5
    assert record["prompt"] == "Locate the red circle." and record["seed"] == 3
    folder = tmp_path / "new" / "out"
    assert json.loads((folder / "answer.json").read_text(encoding="utf-8")) == record
    assert PIL.Image.open(folder / "picture_1.png").size == (224, 224)


def test_predict_shows_the_answer_and_a_table(capsys):
    result = run("predict", "--prompt", "框出图中红色圆形的位置", "--image", RED_CIRCLE)
    assert result.exit_code == 0
    assert "红色圆形" in result.stdout and "x1" in result.stdout


def test_predict_without_a_picture():
    result = run("predict", "--prompt", "Hello!")
    assert result.exit_code == 0 and "new, " in result.stdout


def test_the_version(warm):
    assert warm.run("-m", "vlkit", "--version").stdout == f"vlkit {vlkit.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--prompt", "x", "--image", "nope.png"], "nope.png does not exist"),
        (["predict", "--prompt", "x", "--model", "nowhere"], "'nowhere' is neither a folder"),
        (["predict", "--prompt", "x", "--dtype", "float7"], "dtype='float7' is unknown"),
        (["predict", "--prompt", "x", "--output-dir", __file__], "is a file; name a folder"),
        (["predict", "--prompt", "x", "--output-dir", "/proc/x"], "/proc/x cannot be written"),
        (["chat", "--image", "nope.png"], "nope.png does not exist"),
        (
            ["evaluate-grounding", "tiny", "samples", "--out", "/proc/x"],
            "/proc/x cannot be written",
        ),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_1(warm, arguments, message):
    done = warm.run("-m", "vlkit", *arguments)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.strip().startswith("Error:")
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_is_quick_and_needs_no_torch():
    code = (
        "import sys; from vlkit.cli import app; from typer.testing import CliRunner\n"
        "out = CliRunner().invoke(app, ['predict', '--help']).output\n"
        "assert '--image' in out and '--seed' in out; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_chat_keeps_the_picture_and_survives_mistakes():
    talk = f"/image nope.png\n/image {RED_CIRCLE}\nDescribe this image.\n"
    talk += "Locate the red circle.\n/new\nHello!\n/quit\n"
    result = run("chat", input=talk)
    assert result.exit_code == 0
    assert "224×224 picture added" in result.stdout
    assert "the red circle(" in result.stdout


def test_doctor_finds_this_machine_ready():
    result = run("doctor")
    assert result.exit_code == 0 and "Ready." in result.stdout and "tiny" in result.stdout


@pytest.mark.parametrize(("language", "found"), [("en", "red circle"), ("zh", "红色圆形")])
def test_predict_locates_in_the_words_of_the_models_generation(language, found):
    options = ["--locate", found, "--language", language, "--image", RED_CIRCLE, "--json"]
    record = json.loads(run("predict", *options).stdout)
    assert record["prompt"] == vlkit.locate_prompt(found, family="qwen2_vl", language=language)
    truth = vlkit.samples()["red_circle"].boxes[0]
    assert vlkit.iou(vlkit.Box(**record["boxes"][0]), truth) > 0.5 and found in record["text"]


@pytest.mark.parametrize("options", [[], ["--prompt", "x", "--locate", "y"]])
def test_predict_takes_a_question_or_an_object(options):
    with pytest.raises(VlkitError, match="either --prompt, a question, or --locate, an object"):
        run("predict", *options)


def test_predict_with_and_without_thinking(tiny_folder):
    options = ["--prompt", "Hi", "--model", str(tiny_folder("qwen3_5")), "--json"]
    options += ["--max-new-tokens", "3"]
    quick = json.loads(run("predict", *options, "--no-thinking").stdout)
    assert quick["text"] and "thinking" not in quick
    for thinks in (["--thinking"], []):  # as its template does by default
        record = json.loads(run("predict", *options, *thinks).stdout)
        assert record["thinking"] and not record["text"]
    with pytest.raises(VlkitError, match="no switch for thinking"):
        run("predict", "--prompt", "Hi", "--no-thinking")


def test_evaluate_grounding_asks_in_chinese(tmp_path):
    out = tmp_path / "out"
    run("evaluate-grounding", "tiny", "samples", "--out", str(out), "--limit", "2",
        "--language", "zh", "--max-new-tokens", "4")  # fmt: skip
    assert "框出图中" in (out / "rows.csv").read_text(encoding="utf-8")
