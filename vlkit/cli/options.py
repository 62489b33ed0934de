"""Options that several commands share, and where commands print."""

import os
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer
from rich.console import Console

from vlkit.models.hub import Hub
from vlkit.settings import MAX_NEW_TOKENS

console = Console()
error_console = Console(stderr=True)


def print_plain(text: str, where: Console = console) -> None:
    """Print a line as it is: no markup, no colors, no line breaks added."""
    where.print(text, markup=False, highlight=False, soft_wrap=True)


TokensOption = Annotated[int, typer.Option(help="The longest answer, in tokens.")]


def _option(kind: Any, help: str, default: Any = None) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(help=help)], default


LOAD_OPTIONS = {  # of `vlkit.load`, in the order of --help: (type, help text, default)
    "model": _option(
        str | None,
        '"tiny" (bundled), a folder, a hub id, "openai:…" or "dashscope:…". By default what '
        'VLKIT_MODEL or the settings file names, else "tiny".',
    ),
    "hub": _option(Hub, "The hub that has the model.", "auto"),
    "revision": _option(str | None, "Commit, branch or tag on the hub."),
    "dtype": _option(str, "auto, float32, bfloat16 or float16.", "auto"),
    "device": _option(str, "auto, cpu, cuda:0 or mps.", "auto"),
    "quantize": _option(str | None, "4bit or 8bit (vlkit[quant])."),
    "adapter": _option(str | None, "Folder or hub id of an adapter."),
    "base_url": _option(str | None, "Endpoint of an openai: model; the key is in OPENAI_API_KEY."),
    "region": _option(
        str | None, "Of a dashscope: model: beijing, singapore …; the key is in DASHSCOPE_API_KEY."
    ),
    "family": _option(
        str | None, "Of a hosted model whose name does not show it: qwen2-vl, qwen2.5-vl …"
    ),
    "max_image_tokens": _option(int | None, "Shrink pictures to this many tokens."),
    "thinking": _option(bool | None, "Of a model that can think first: whether it does."),
}
ANSWER_OPTIONS = {  # of `vlkit.generate`
    "max_new_tokens": (TokensOption, MAX_NEW_TOKENS),
    "temperature": _option(float, "0 is greedy, so repeatable.", 0.0),
    "seed": _option(int | None, "Makes sampled answers repeatable."),
}

Command = Callable[..., None]


def with_load_options(names: Iterable[str] = tuple(LOAD_OPTIONS)) -> Callable[[Command], Command]:
    """Add options of `vlkit.load` to a command, in place of its parameter ``load_options``.

    Where it has a parameter ``answer_options``, ``ANSWER_OPTIONS`` are added in place of that, and
    it receives their values by name.

    In ``load_options``, the command receives only what the user typed, for
    ``load(**load_options)``: load knows the defaults, also those of the settings file. A parameter
    that the command declares itself, such as an argument MODEL, is not added again, but is in
    ``load_options``, too.

    Args:
        names: keys of ``LOAD_OPTIONS``, in the order of ``--help``.
    """

    def decorate(command: Command) -> Command:
        declared = signature(command, eval_str=True).parameters
        added = {name: LOAD_OPTIONS[name] for name in names if name not in declared}
        groups = {"load_options": added, "answer_options": ANSWER_OPTIONS}
        parameters = [_parameter("context", typer.Context)]
        for name, parameter in declared.items():
            if name in groups:
                parameters += [_parameter(name, *option) for name, option in groups[name].items()]
            else:
                parameters.append(parameter)

        @wraps(command)
        def run(context: typer.Context, **values: Any) -> None:
            for name in added:
                del values[name]
            if "answer_options" in declared:
                values["answer_options"] = {name: values.pop(name) for name in ANSWER_OPTIONS}
            command(**values, load_options=_typed_options(context))

        run.__annotations__ = {option.name: option.annotation for option in parameters}
        vars(run)["__signature__"] = Signature(parameters)  # from which typer makes the options
        return run

    return decorate


def _parameter(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _typed_options(context: typer.Context) -> dict[str, Any]:
    """Those of `vlkit.load`'s arguments that the user typed."""
    typed = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if name in LOAD_OPTIONS and source is not None and source.name == "COMMANDLINE":
            typed[name] = value
    if "family" in typed:  # qwen2.5-vl, as models are called
        typed["family"] = typed["family"].lower().translate(str.maketrans("-.", "__"))
    return typed


def with_process_device(load_options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `vlkit.load` with another GPU for each process of `accelerate launch`.

    They stay as they are where the user chose a device, and where there is one process or no GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or load_options.get("device", "auto") != "auto":
        return load_options
    import torch

    if not (gpus := torch.cuda.device_count()):
        return load_options
    number = int(os.environ.get("LOCAL_RANK", "0")) % gpus
    torch.cuda.set_device(number)  # kernels are launched on the current one
    return load_options | {"device": f"cuda:{number}"}
