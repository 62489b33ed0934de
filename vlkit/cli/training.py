"""``vlkit train``: fine-tuning from a YAML file, in many processes."""

import inspect
import os
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from typer import Argument, Option

import vlkit
from vlkit.cli.options import print_plain, with_process_device
from vlkit.errors import VlkitError
from vlkit.files import parse_yaml, read_text

_DATA = ("image_dir", "format", "boxes", "strict")  # arguments of load_conversations
_NUMBERS = ("epochs", "learning_rate", "alpha")


def train(
    config: Path = Argument(help="YAML: arguments of lora.train and of load."),
    resume: bool = Option(False, help="Continue from the last checkpoint."),
) -> None:
    """Train adapters as CONFIG.yaml says. Its keys are arguments of lora.train and of load.

    `accelerate launch --multi_gpu --num_processes 4 -m vlkit train CONFIG.yaml` shares the rows
    among processes, on GPUs or CPUs; each takes batch_size of them at a time.
    """
    keys = read_config(config)
    load_names, train_names = _names(vlkit.load), _names(vlkit.lora.train)
    data_options = {name: keys.pop(name) for name in _DATA if name in keys}
    load_options = {name: keys.pop(name) for name in load_names & keys.keys()}
    _check_keys(config, keys, train_names, {*load_names, *train_names, *_DATA})
    data, held_out = _read_data(keys, data_options)
    vlm = vlkit.load(**with_process_device(load_options))
    keys |= {"resume": True} if resume else {}
    result = vlkit.lora.train(vlm, data, eval_data=held_out, **keys)
    if int(os.environ.get("RANK", "0")) == 0:
        print_plain(str(result))


def read_config(path: Path) -> dict[str, Any]:
    """The keys of a YAML file. Raises VlkitError where it has none."""
    keys = parse_yaml(read_text(path), str(path))
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise VlkitError(f'{path} has no keys; write lines such as "learning_rate: 0.0002"')
    for name in _NUMBERS:  # YAML reads 2e-4 as text
        if isinstance(keys.get(name), str):
            try:
                keys[name] = float(keys[name])
            except ValueError:
                raise VlkitError(f"{path}: {name}={keys[name]!r} is not a number") from None
    return keys


def _names(function: Callable) -> set[str]:
    return set(inspect.signature(function).parameters) - {"vlm", "callbacks"}


def _check_keys(path: Path, keys: dict, allowed: set[str], known: set[str]) -> None:
    for name in keys.keys() - allowed:
        similar = get_close_matches(name, known, 2)
        advice = f"did you mean {' or '.join(similar)}?" if similar else f"keys = {sorted(known)}"
        raise VlkitError(f"{path}: {name!r} is not an argument of lora.train or load; {advice}")
    if missing := [name for name in ("data", "output_dir") if name not in keys]:
        raise VlkitError(f"{path} has no {' and no '.join(missing)}; add a line for it")


def _read_data(keys: dict, options: dict) -> tuple[Any, Any]:
    """The rows to train on, and the held-out ones: of a file, or a share of the first."""
    load = partial(vlkit.lora.load_conversations, **options)
    data, held_out = load(keys.pop("data")), keys.pop("eval_data", None)
    if isinstance(held_out, float | int) and not isinstance(held_out, bool):
        return data.split(held_out, seed=keys.get("seed", 0))
    return data, None if held_out is None else load(held_out)
