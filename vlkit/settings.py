"""Defaults: the model of vlkit.load(), the length of answers; the file that remembers them."""

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from vlkit.errors import ModelError, VlkitError
from vlkit.files import write_whole

MODEL_VARIABLE = "VLKIT_MODEL"  # a model for this process, whatever the file says
FILE_VARIABLE = "VLKIT_SETTINGS"  # another file; empty: none
MAX_NEW_TOKENS = 256  # the longest answer where none is chosen
_SECRET = "api_key"
# the options of load(); a test compares them with its signature
LOAD_OPTIONS = (
    "hub", "revision", "device", "dtype", "attn", "quantize", "adapter", "max_image_tokens",
)  # fmt: skip
HOSTED_OPTIONS = (
    "base_url", "api_key", "region", "family", "prices", "timeout", "retries", "concurrency",
    "extra_body", "thinking",
)  # fmt: skip
_REMEMBERED = tuple(name for name in (*LOAD_OPTIONS, *HOSTED_OPTIONS) if name != _SECRET)
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Choice:
    """The model that ``load()`` takes when it is given none.

    Attributes:
        model: as :func:`vlkit.load` takes it.
        options: keyword arguments of :func:`vlkit.load`.
        source: who chose it: ``VLKIT_MODEL`` or the settings file.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    source: str = ""


def settings_path() -> Path | None:
    """The settings file, which may not exist; None where ``VLKIT_SETTINGS`` is empty."""
    named = os.environ.get(FILE_VARIABLE)
    if named is not None:
        return Path(named).expanduser() if named.strip() else None
    import typer

    return Path(typer.get_app_dir("vlkit")) / "settings.json"


def chosen_model() -> Choice | None:
    """What ``VLKIT_MODEL`` or else the settings file chooses; None is the bundled model.

    Raises:
        ModelError: the file is broken.
    """
    if model := os.environ.get(MODEL_VARIABLE, "").strip():
        return Choice(model, source=MODEL_VARIABLE)
    path = settings_path()
    if path is None or not path.exists():
        return None
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")), short_path(path))
    except (OSError, ValueError, ModelError) as error:  # a JSONDecodeError is a ValueError
        raise ModelError(
            f"the settings file {short_path(path)} is broken ({error}); choose the model again in "
            "index.ipynb, or delete the file"
        ) from error


def remember_model(model: str | os.PathLike, **options: Any) -> Path:
    """Write the model, and options of :func:`vlkit.load`, to the settings file.

    Raises:
        ModelError: an option that ``load`` does not have, a secret, or a file that cannot be
            written.
    """
    path = settings_path()
    if path is None:
        raise ModelError(f"{FILE_VARIABLE} is empty, so no choice is remembered; unset it first")
    model = os.fspath(model) if isinstance(model, os.PathLike) else model
    content = {"model": model, **options}
    _checked(content, "")
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, text, kind=ModelError)
    return path


def forget_model() -> None:
    """Delete the settings file: ``load()`` takes the bundled model again."""
    if path := settings_path():
        path.unlink(missing_ok=True)


def honours_choice(load: F) -> F:
    """Let ``load`` without a model load the chosen one; its arguments take precedence."""

    @functools.wraps(load)
    def load_chosen(model: Any = None, **options: Any) -> Any:
        choice = chosen_model() if model is None else None
        if choice is None:
            return load("tiny" if model is None else model, **options)
        try:
            vlm = load(choice.model, **choice.options | options)
        except VlkitError as error:
            raise type(error)(f"{error} (chosen by {choice.source})") from error
        return replace(vlm, chosen_by=choice.source)

    return cast(F, load_chosen)


def short_path(path: Path) -> str:
    """The path with ``~`` for the home folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _checked(content: Any, source: str) -> Choice:
    if not isinstance(content, dict):
        raise ModelError("it contains no JSON object")
    model, options = content.get("model"), {k: v for k, v in content.items() if k != "model"}
    if not isinstance(model, str) or not model.strip():
        raise ModelError(f"model={model!r} is not the name of a model")
    for name, value in options.items():
        if name == _SECRET:
            raise ModelError(f"{_SECRET} does not belong there; keep keys in the environment")
        if name not in _REMEMBERED:
            raise ModelError(f"load() has no option {name!r}; it has {', '.join(_REMEMBERED)}")
        if not isinstance(value, str | int | float | None):
            raise ModelError(f"{name}={value!r} is neither text nor a number")
    return Choice(model, options, source)
