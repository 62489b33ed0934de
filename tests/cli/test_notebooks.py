"""Where `vlkit lab` finds the notebooks, and which pages `vlkit classroom` serves."""

import nbformat
import pytest

from vlkit.cli.notebooks import find_notebooks, write_pages
from vlkit.errors import VlkitError


def test_in_a_checkout_it_opens_the_notebooks_themselves():
    assert {"index.ipynb", "00_setup.ipynb"} <= {p.name for p in find_notebooks().iterdir()}


def test_copies_do_not_overwrite_what_somebody_wrote(tmp_path):
    folder = tmp_path / "course"
    folder.mkdir()
    (folder / "00_setup.ipynb").write_text("mine")
    assert find_notebooks(folder) == folder
    assert (folder / "00_setup.ipynb").read_text() == "mine"
    source = {path.name for path in find_notebooks().glob("*.ipynb")}
    assert {path.name for path in folder.iterdir()} == source


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VlkitError, match=r"--folder .*file cannot be written"):
        find_notebooks(tmp_path / "file")


def test_there_is_a_page_for_each_panel(tmp_path):
    assert write_pages(tmp_path, []) == tmp_path
    assert {"ask.ipynb", "batch.ipynb", "grounding.ipynb", "video.ipynb"} <= {
        path.name for path in tmp_path.iterdir()
    }
    page = nbformat.read(tmp_path / "ask.ipynb", as_version=4)
    assert page.cells[1].source.endswith("vlkit.widgets.AskPanel(vlkit.load())")


def test_one_panel_is_one_page_and_an_unknown_one_is_told(tmp_path):
    assert write_pages(tmp_path, ["video"]) == tmp_path / "video.ipynb"
    assert [path.name for path in tmp_path.iterdir()] == ["video.ipynb"]
    with pytest.raises(VlkitError, match=r"--panel film is unknown; panels = ask, .*video"):
        write_pages(tmp_path, ["film"])
