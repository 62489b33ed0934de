"""`vlkit lab` and `vlkit classroom`: the notebooks in JupyterLab, the panels as pages."""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from vlkit.errors import VlkitError

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
COPY = "vlkit-notebooks"  # where an installed vlkit puts the notebooks, to be changed at will
# tornado's own limit, 10 MiB, ends the connection to the kernel where a larger file is uploaded
_SOCKET = {"websocket_max_message_size": 2**29}
# kernels of visitors who have left end after a while; a room without a network waits for no style
_VOILA = [f"--MappingKernelManager.cull_{name}" for name in ("idle_timeout=900", "interval=60")]
_POLICY = {"Content-Security-Policy": "style-src 'self' 'unsafe-inline'"}
_VOILA.append(f"--Voila.tornado_settings={ {'headers': _POLICY, **_SOCKET} }")


def lab(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Option(help="Copy the notebooks there first, and open the copies.")
    ] = None,
) -> None:
    """Open JupyterLab on the notebooks; further options are jupyter lab's, such as --port 9000."""
    from jupyterlab.labapp import main

    options = [
        f"--ServerApp.root_dir={find_notebooks(folder).resolve()}",
        f"--ServerApp.tornado_settings={_SOCKET}",
        "--LabApp.default_url=/lab/tree/index.ipynb",
    ]
    sys.exit(main([*options, *context.args]))


def classroom(
    context: typer.Context,
    panel: Annotated[
        list[str] | None, typer.Option(help="Only this panel, such as ask; may be repeated.")
    ] = None,
) -> None:
    """Serve each panel as a page, for a class; further options are voila's, such as --port 8866."""
    pages = write_pages(Path(tempfile.mkdtemp(prefix="vlkit-")), panel or [])
    try:
        from voila.app import main
    except ImportError as error:
        raise VlkitError('vlkit classroom needs voila: pip install "vlkit[class]"') from error
    sys.argv = ["voila"]  # it looks for options there, too
    sys.exit(main([str(pages), *_VOILA, *context.args]))


def find_notebooks(folder: Path | None = None) -> Path:
    """The checkout's notebooks, or copies of them; what is there already is left as it is.

    Raises:
        VlkitError: they are missing, or the folder cannot be written.
    """
    package = Path(str(files("vlkit")))
    checkout, installed = package.parent / "notebooks", package / "notebooks"
    source = checkout if (checkout / "index.ipynb").is_file() else installed
    if not (source / "index.ipynb").is_file():
        raise VlkitError(f"vlkit's notebooks are missing beside {package}; reinstall vlkit")
    if folder is None and source == checkout:
        return source
    target = folder or Path(COPY)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path in source.glob("*.ipynb"):
            if not (target / path.name).exists():
                shutil.copy(path, target)
    except OSError as error:
        raise VlkitError(f"--folder {target} cannot be written: {error.strerror}") from error
    return target


def write_pages(folder: Path, names: list[str]) -> Path:
    """A notebook for each panel; the folder, or the one notebook where there is but one.

    Raises:
        VlkitError: a panel that there is not.
    """
    import nbformat

    from vlkit import widgets

    panels = [name for name in widgets.__all__ if name.endswith("Panel") and name != "Panel"]
    known = {name.removesuffix("Panel").lower(): name for name in panels}
    if unknown := [name for name in names if name not in known]:
        raise VlkitError(f"--panel {unknown[0]} is unknown; panels = {', '.join(known)}")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name in names or known:
        code = f"import vlkit\n\nvlkit.widgets.{known[name]}(vlkit.load())"
        page = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell(code)],
            metadata={"kernelspec": kernel, "title": f"vlkit {name}"},
        )
        nbformat.write(page, folder / f"{name}.ipynb")
    return folder / f"{names[0]}.ipynb" if len(names) == 1 else folder
