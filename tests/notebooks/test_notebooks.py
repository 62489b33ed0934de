"""Every notebook runs from top to bottom, and its key results are right."""

import pytest
from nbclient import NotebookClient
from notebook_cases import CASES, FOLDER, WARNINGS, prepare


def test_every_notebook_has_a_case():
    assert {path.stem for path in FOLDER.glob("[0-9]*.ipynb")} == set(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_runs_to_its_end_with_right_results(name, tmp_path, warm_kernels, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(warm_kernels))
    client = NotebookClient(
        prepare(name, tmp_path),
        timeout=600,
        resources={"metadata": {"path": str(tmp_path)}},
        extra_arguments=["--log-level=ERROR"],
    )
    client.execute()
    errors = [
        output
        for cell in client.nb.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    ]
    expected = WARNINGS.get(name, [])
    assert len(errors) == len(expected), errors
    assert all(text in error.text for text, error in zip(expected, errors, strict=True))
