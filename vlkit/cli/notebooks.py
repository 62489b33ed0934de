"""``vlkit lab``, ``classroom``, ``run``: notebooks opened, served, run."""

import ast
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer
from typer import Argument, Option

import vlkit
from vlkit.cli.options import console, error_console, print_plain
from vlkit.errors import VlkitError
from vlkit.files import parse_yaml
from vlkit.hooks import RUN_VARIABLE

# of a command whose further options are those of the program that it starts
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
COPY = "vlkit-notebooks"  # the folder into which an installed vlkit copies the notebooks

# tornado's limit of 10 MiB would close the connection to the kernel when a larger file is uploaded
_WEBSOCKET = {"websocket_max_message_size": 2**29}
# without a network, a page must not wait for style sheets from other hosts
_HEADERS = {"Content-Security-Policy": "style-src 'self' 'unsafe-inline'"}
_TEMPLATES = Path(__file__).with_name("classroom")  # of the home page, and around each panel
_VOILA = (
    "--MappingKernelManager.cull_idle_timeout=900",  # ends the kernels of visitors who have left
    "--MappingKernelManager.cull_interval=60",
    f"--Voila.tornado_settings={ {'headers': _HEADERS, **_WEBSOCKET} }",
)


def lab(
    context: typer.Context,
    folder: Path | None = Option(None, help="Copy the notebooks here first, and open the copies."),
) -> None:
    """Open JupyterLab on the notebooks; further options are jupyter lab's, such as --port 9000."""
    from jupyterlab.labapp import main

    options = [
        f"--ServerApp.root_dir={find_notebooks(folder).resolve()}",
        f"--ServerApp.tornado_settings={_WEBSOCKET}",
        "--LabApp.default_url=/lab/tree/index.ipynb",
    ]
    sys.exit(main([*options, *context.args]))


def classroom(
    context: typer.Context,
    panel: list[str] | None = Option(None, help="Only this panel, such as ask; may be repeated."),
) -> None:
    """Serve each panel as a page, for a class; further options are voila's, such as --port 8866.

    All visitors share one model: their pages ask a local server, which answers them together. The
    lora panel, which changes the weights, is served only if you name it; each of its visitors
    loads a model.
    """
    pages = Path(tempfile.mkdtemp(prefix="vlkit-"))
    names = panel or [name for name in _panels() if name != "lora"]
    home = write_pages(pages, names)  # refuses a wrong name before a large model is loaded
    try:
        from voila.app import Voila
    except ImportError as error:
        raise VlkitError('vlkit classroom needs voila: pip install "vlkit[class]"') from error
    from vlkit.widgets.panel import call_code

    vlm = vlkit.load()

    class Classroom(Voila):
        def setup_template_dirs(self) -> None:
            super().setup_template_dirs()
            self.template_paths.insert(0, str(_TEMPLATES))

        def init_settings(self) -> dict:
            settings = super().init_settings()
            settings["voila_jinja2_env"].globals["model_name"] = vlm.name
            return settings

    with ExitStack() as stack:
        if vlm.scores_tokens:  # its weights are on this machine
            key = os.environ["OPENAI_API_KEY"] = secrets.token_hex(16)
            server = stack.enter_context(vlkit.serving.start(vlm, api_key=key, new_tokens=2048))
            options = {"base_url": server.url, "family": vlm.family}
            served = call_code("vlkit.load", repr(f"openai:{server.name}"), **options)
            write_pages(pages, names, served)
        for picture in _TEMPLATES.glob("*.jpg"):
            shutil.copy(picture, pages)
        sys.argv = ["voila"]  # voila reads options from there, too
        Classroom.launch_instance([str(home), *_VOILA, *context.args])


def _panels() -> dict[str, str]:
    """The panels' class names by the names of their pages."""
    panels = [name for name in vlkit.widgets.__all__ if name.endswith("Panel") and name != "Panel"]
    return {name.removesuffix("Panel").lower(): name for name in panels}


def find_notebooks(folder: Path | None = None) -> Path:
    """The folder of the checkout's notebooks, or of copies; files that exist are not overwritten.

    Raises:
        VlkitError: they are missing, or the folder cannot be written.
    """
    package = Path(str(files("vlkit")))
    checkout, installed = package.parent / "notebooks", package / "notebooks"
    source = checkout if (checkout / "index.ipynb").is_file() else installed
    if not (source / "index.ipynb").is_file():
        raise VlkitError(f"vlkit's notebooks are missing next to {package}; reinstall vlkit")
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


def write_pages(folder: Path, names: list[str], load: str = "vlkit.load()") -> Path:
    """Write a notebook for each panel.

    Args:
        folder: where.
        names: the panels; all if empty.
        load: Python that loads the model; the lora panel always loads one of its own.

    Returns:
        The folder; the notebook itself if only one panel is named.

    Raises:
        VlkitError: a panel is unknown.
    """
    import nbformat

    known = _panels()
    if unknown := [name for name in names if name not in known]:
        raise VlkitError(f"--panel {unknown[0]} is unknown; panels = {', '.join(known)}")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name in names or known:
        model = "vlkit.load()" if name == "lora" else load
        code = f"import vlkit\n\nvlkit.widgets.{known[name]}({model})"
        page = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell(code)],
            metadata={"kernelspec": kernel, "title": f"vlkit {name}"},
        )
        nbformat.write(page, folder / f"{name}.ipynb")
    return folder / f"{names[0]}.ipynb" if len(names) == 1 else folder


def run(
    arguments: list[str] = Argument(
        metavar="NOTEBOOK", help="A notebook with a cell tagged parameters."
    ),
    parameter: list[str] | None = Option(None, "-p", metavar="NAME VALUE", help="May be repeated."),
    directory: Path = Option(Path("runs"), help="Where the run's folder is made."),
    keep_media: bool = Option(
        False,
        "--keep-media",
        help="Keep all pictures that are asked about; else those without a file.",
    ),
) -> None:
    """Run a notebook; saves the executed copy and a record of all answers in a dated folder."""
    notebook, parameters = split_arguments(arguments, parameter or [])
    path = run_notebook(notebook, parameters, directory=directory, keep_media=keep_media)
    print_plain(f"written to {path}")


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
    _check_parameters(notebook, parameters)
    options = {"keep_media": True} if keep_media else {}
    with vlkit.records.Run(notebook.stem, directory=directory, **options) as record:
        copy = record.path / notebook.name
        record.log(**parameters)
        try:
            # the notebook's kernel, a process of its own, records into the same run
            with patch.dict(os.environ, {RUN_VARIABLE: str(record.path.absolute())}):
                execute_notebook(
                    str(notebook), str(copy), dict(parameters),
                    kernel_name="python3", language="python", progress_bar=console.is_terminal,
                )  # fmt: skip
        except PapermillExecutionError as error:
            reason = f"{error.ename}: {error.evalue}".splitlines()[0]
            text = f"{notebook.name} failed: {reason}; the copy is {copy}"
            raise VlkitError(text) from None
        except KeyboardInterrupt:
            text = f"Stopped. What was run and asked so far is in {record.path}."
            print_plain(text, error_console)
            raise
    return copy


def _check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    if notebook.suffix != ".ipynb" or not notebook.is_file():
        raise VlkitError(f"{notebook} is not a notebook; name a .ipynb file")
    known = _read_parameter_names(notebook)
    for name in parameters:
        if name not in known:
            raise VlkitError(f"{notebook.name} has no parameter {name!r}; it has {known}")


def _read_parameter_names(notebook: Path) -> list[str]:
    """The names that the cell tagged parameters assigns."""
    import nbformat

    try:
        cells = nbformat.read(notebook, as_version=4).cells
        tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        nodes = [node for cell in tagged for node in ast.parse(cell.source).body]
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, SyntaxError) as error:
        reason = str(error).splitlines()[0]
        raise VlkitError(f"{notebook} cannot be read as a notebook: {reason:.120}") from None
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def split_arguments(arguments: Sequence[str], names: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The notebook and its parameters, from ``NOTEBOOK -p NAME VALUE -p NAME VALUE``.

    Typer has no repeated option with two values. Here ``-p`` takes the name only, so that the
    values are among the positional arguments, in the order of the names.

    Args:
        arguments: the notebook and the values.
        names: the parameters that ``-p`` named.

    Returns:
        The notebook's path, and the values by name. A value is read as YAML: ``3`` is a number,
        ``[1, 2]`` a list, anything else a text.

    Raises:
        VlkitError: a name without a value, or the reverse.
    """
    notebook = next((word for word in arguments if word.endswith(".ipynb")), arguments[0])
    values = list(arguments)
    values.remove(notebook)
    if len(values) != len(names):
        raise VlkitError(
            f"{len(names)} names and {len(values)} values; write: vlkit run {notebook} "
            "-p NAME VALUE -p NAME VALUE"
        )
    return Path(notebook), dict(zip(names, map(_read_value, values), strict=True))


def _read_value(text: str) -> Any:
    with suppress(VlkitError):
        return parse_yaml(text, "-p")
    return text
