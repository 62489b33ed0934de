"""Notebooks 00 to 04 run to their ends with models whose answers are noise: no cell may break."""

import os

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from notebook_cases import FOLDER

import vlkit
from vlkit.evaluation import ask_grounding

SMALLER = {  # parameters
    "00_setup": "",
    "01_image_inference": "BUDGETS = [36]; LOG_PICTURES = 1",
    "02_video_inference": "RATES = [1]",
    "03_batch_inference": "ROWS = 12; BATCH_SIZES = [6]",
    "04_grounding": "QUESTIONS = 2; WORST = 1",
}
ASKS = (
    vlkit.generate, vlkit.stream, vlkit.generate_batch, vlkit.attention_map, vlkit.token_logprobs,
    ask_grounding,
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Answers of 4 tokens, figures that nobody looks at, and a folder of one's own."""
    import pandas
    import transformers

    for ask in ASKS:
        monkeypatch.setitem(ask.__kwdefaults__, "max_new_tokens", 4)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    level, width = transformers.logging.get_verbosity(), pandas.get_option("display.max_colwidth")
    yield
    transformers.logging.set_verbosity(level)
    pandas.set_option("display.max_colwidth", width)


def run_cells(name, model):
    """Run a notebook's cells with another model; the model that it then has."""
    chosen = f"\n{SMALLER[name]}\nMAX_NEW_TOKENS = 4; MODEL = {model!r}"
    shell, done = InteractiveShell(), 0
    for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            tagged = "parameters" in cell.metadata.get("tags", [])
            result = shell.run_cell(cell.source + chosen * tagged)
            assert result.success, f"{cell.source}\n{result.error_in_exec}"
            done += 1
    assert done > 10
    return shell.user_ns["vlm"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the notebooks' own are checked with the bundled model
@pytest.mark.parametrize("name", SMALLER)
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_every_cell_runs(kind, name, tiny_folder, quick, capsys):
    assert run_cells(name, os.fspath(tiny_folder(kind))).family == kind


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["02_video_inference", "04_grounding"])
def test_every_cell_runs_with_a_hosted_model(name, quick, capsys, monkeypatch):
    with vlkit.serving.start(vlkit.load("tiny")) as server:  # as in a class with one model
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "learn-together")
        assert not run_cells(name, f"openai:{server.name}").scores_tokens
