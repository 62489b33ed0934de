"""`vlkit lab` and `vlkit classroom`: the notebooks in JupyterLab, the panels as pages."""

from __future__ import annotations

import ast
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from vlkit.cli.options import console, errors
from vlkit.errors import VlkitError
from vlkit.hooks import RUN_VARIABLE

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


def run(
    words: Annotated[
        list[str],
        typer.Argument(metavar="NOTEBOOK", help="One with a cell tagged parameters."),
    ],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", metavar="NAME VALUE", help="May be repeated.")
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where the run's folder is made.")] = Path("runs"),
    keep_media: Annotated[
        bool, typer.Option("--keep-media", help="Keep the pictures that are asked about.")
    ] = False,
) -> None:
    """Run a notebook. Its executed copy and a record of all answers lie in a dated folder."""
    notebook, given = _sort_out(words, parameter or [])
    path = run_notebook(notebook, given, directory=directory, keep_media=keep_media)
    console.print(f"written to {path}", markup=False, highlight=False, soft_wrap=True)


def run_notebook(
    notebook: Path,
    parameters: Mapping[str, Any],
    *,
    directory: str | os.PathLike = "runs",
    keep_media: bool = False,
) -> Path:
    """Execute a notebook with papermill; what it asks is recorded.

    Returns:
        The executed copy, in the run's folder.

    Raises:
        VlkitError: papermill is missing, there is no such notebook or parameter, or a cell failed.
    """
    try:
        from papermill import execute_notebook
        from papermill.exceptions import PapermillExecutionError
    except ImportError:
        raise VlkitError('vlkit run needs papermill: pip install "vlkit[notebooks]"') from None
    _check(notebook, parameters)
    from vlkit.records import Run

    record = Run(notebook.stem, directory=directory, keep_media=keep_media)
    with record:
        copy = record.path / notebook.name
        record.log(**parameters)
        try:
            with _told_to_kernel(record.path):
                execute_notebook(
                    str(notebook), str(copy), dict(parameters),
                    kernel_name="python3", language="python", progress_bar=console.is_terminal,
                )  # fmt: skip
        except PapermillExecutionError as error:
            reason = f"{error.ename}: {error.evalue}".splitlines()[0]
            text = f"{notebook.name} failed: {reason}; the copy is {copy}"
            raise VlkitError(text) from None
        except KeyboardInterrupt:
            text = f"Stopped. What was run and asked so far lies in {record.path}."
            errors.print(text, markup=False, highlight=False, soft_wrap=True)
            raise
    return copy


def _check(notebook: Path, parameters: Mapping[str, Any]) -> None:
    if notebook.suffix != ".ipynb" or not notebook.is_file():
        raise VlkitError(f"{notebook} is no notebook; name a .ipynb file")
    known = _parameters_of(notebook)
    for name in parameters:
        if name not in known:
            raise VlkitError(f"{notebook.name} has no parameter {name!r}; it has {known}")


def _parameters_of(notebook: Path) -> list[str]:
    """The names that the cell tagged parameters assigns."""
    import nbformat

    try:
        cells = nbformat.read(notebook, as_version=4).cells
        tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        nodes = [node for cell in tagged for node in ast.parse(cell.source).body]
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, SyntaxError) as error:
        reason = str(error).splitlines()[0]
        raise VlkitError(f"{notebook} cannot be read as a notebook: {reason:.120}") from None
    targets = [t for node in nodes if isinstance(node, ast.Assign) for t in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


@contextmanager
def _told_to_kernel(path: Path) -> Iterator[None]:
    before = os.environ.get(RUN_VARIABLE)
    os.environ[RUN_VARIABLE] = str(path.absolute())
    try:
        yield
    finally:
        os.environ.pop(RUN_VARIABLE)
        if before is not None:
            os.environ[RUN_VARIABLE] = before


def _sort_out(words: Sequence[str], names: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The notebook, and the values: ``-p NAME VALUE`` leaves its value among the other words.

    A value is read as YAML: 3 is a number, [1, 2] a list, anything else a text.
    """
    values = list(words)
    notebook = next((word for word in values if word.endswith(".ipynb")), values[0])
    values.remove(notebook)
    if len(values) != len(names):
        raise VlkitError(
            f"{len(names)} names and {len(values)} values; write: vlkit run {notebook} "
            "-p NAME VALUE -p NAME VALUE"
        )
    return Path(notebook), {n: _read_value(v) for n, v in zip(names, values, strict=True)}


def _read_value(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
