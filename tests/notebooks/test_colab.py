"""A notebook as Colab has it: alone in a folder, in a kernel without vlkit and with google.colab.

A wheel beside the notebook is all that pip can find; what vlkit needs is there already, as most of
it is on Colab. The stand-in for ``google.colab`` has what widgets meet of it: a manager that loads
widgets' own code is named in the metadata of what ``display`` shows, not of a cell's last value.
"""

import json
import os
import shutil
import sysconfig
import textwrap
import venv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from notebook_cases import FOLDER

MANAGER = "https://example.org/manager.min.js"
VIEW = "application/vnd.jupyter.widget-view+json"
COLAB = {
    "__init__.py": """
        from google.colab import output

        def load_ipython_extension(shell):
            pass
    """,
    "output/__init__.py": """
        from google.colab.output import _widgets
        from google.colab.output._widgets import enable_custom_widget_manager
    """,
    "output/_widgets.py": f"""
        import IPython

        _installed_url = None

        def enable_custom_widget_manager():
            global _installed_url
            _installed_url = "{MANAGER}"
            IPython.get_ipython().display_pub.register_hook(_name_manager)

        def _name_manager(message):
            content = message["content"]
            if "{VIEW}" in content.get("data", {{}}):
                manager = {{"custom_widget_manager": {{"url": _installed_url}}}}
                content["metadata"]["{VIEW}"] = {{"colab": manager}}
            return message
    """,
}
WHEEL_HERE = "%env PIP_FIND_LINKS=."  # as docs/howto.md has it
CHECKS = """
import sys
from pathlib import Path

assert Path(vlkit.__file__).is_relative_to(sys.prefix)
assert Path(vlm.folder.path).is_relative_to(sys.prefix)
assert all(sample.path.is_relative_to(sys.prefix) for sample in samples.values())
assert all(clip.path.is_relative_to(sys.prefix) for clip in vlkit.clips().values())
"""


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """The name of a kernel whose Python has every package but vlkit."""
    python = tmp_path / "venv" / "bin" / "python"
    launch = [str(python), "-m", "ipykernel_launcher", "--ext=google.colab"]
    stand_in = write_stand_in(tmp_path / "stand_in")
    environment = {"PIP_NO_INDEX": "1", "PYTHONPATH": str(stand_in)}
    make_environment(tmp_path / "venv")
    spec = {
        "argv": [*launch, "-f", "{connection_file}"],
        "env": environment,
        "display_name": "Colab",
    }
    folder = tmp_path / "kernels" / "colab"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path), prepend=os.pathsep)
    return folder.name


def write_stand_in(folder):
    for name, source in COLAB.items():
        file = folder / "google" / "colab" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source), encoding="utf-8")
    return folder


def make_environment(folder):
    venv.create(folder)
    own = next((folder / "lib").glob("python*/site-packages"))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "vlkit" not in entry.name:
            (own / entry.name).symlink_to(entry)


@pytest.mark.slow
def test_a_notebook_alone_on_colab_installs_vlkit_once_and_answers(colab, tmp_path, wheel):
    """The cells up to the first boxes; test_notebooks.py runs the rest."""
    notebook = nbformat.read(FOLDER / "01_image_inference.ipynb", as_version=4)
    install = notebook.cells[1]
    sources = WHEEL_HERE, install.source, CHECKS, "vlkit.widgets.GroundingPanel(vlm)"
    here, again, checks, panel = map(nbformat.v4.new_code_cell, sources)
    notebook.cells = [here, *notebook.cells[:2], again, *notebook.cells[2:10], checks, panel]
    assert "box.xyxy" in notebook.cells[-3].source
    content = tmp_path / "content"
    content.mkdir()
    shutil.copy(wheel, content)
    where = {"metadata": {"path": str(content)}}
    NotebookClient(notebook, kernel_name=colab, timeout=300, resources=where).execute()
    assert "restart the kernel" in install.outputs[0].text  # %pip's word where it installed
    assert again.outputs == []
    shown = panel.outputs[-1]  # the one before it holds the last answer, without widgets
    assert shown.metadata[VIEW]["colab"]["custom_widget_manager"]["url"] == MANAGER
