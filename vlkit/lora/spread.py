"""One model's weights spread over processes, by FSDP or DeepSpeed under `accelerate launch`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlkit.errors import VlkitError


def is_spread(state: Any) -> bool:
    """Whether processes share the weights out.

    Args:
        state: accelerate's ``PartialState``.

    Raises:
        VlkitError: FSDP on CPUs, where accelerate would leave it out without a word.
    """
    fsdp, deepspeed = map(_asked, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
    if fsdp and state.distributed_type.value == "MULTI_CPU":
        raise VlkitError(
            "accelerate spreads weights with FSDP over GPUs only; on CPUs use --multi_gpu in place "
            "of --use_fsdp, or DeepSpeed"
        )
    return fsdp or deepspeed


def _asked(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def write_spread(trainer: Any, folder: Path) -> float:
    """Write the whole weights once; called on every process.

    Returns:
        What has changed of them, as the trainer measures it.
    """
    from accelerate.utils import broadcast_object_list

    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    return broadcast_object_list([trainer.effect])[0]
