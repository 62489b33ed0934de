"""`vlkit run`: a notebook with other parameters, executed into a recorded run."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from vlkit.commands.options import console, errors
from vlkit.errors import VlkitError
from vlkit.recording import RUN_VARIABLE


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
