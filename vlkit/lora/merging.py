"""An adapter merged into its base: a plain model folder."""

from __future__ import annotations

import os
from pathlib import Path

from vlkit.adapters import check_name
from vlkit.datasets.files import whole_folder
from vlkit.models import load_here


def merge(
    adapter: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    model: str | os.PathLike = "tiny",
    dtype: str = "auto",
    device: str = "cpu",
) -> Path:
    """Write a model with an adapter's changes in its weights, for AutoModel, vLLM or ``load``.

    Args:
        adapter: folder or hub id.
        folder: a new or empty one; it appears whole or not at all.
        model: the base that the adapter was made for, as for :func:`vlkit.load`.
        dtype: of the weights written, as for :func:`vlkit.load`.
        device: where they are merged.

    Returns:
        The folder.

    Raises:
        ModelError: the adapter was made for another model.
        VlkitError: the folder is in use.
    """
    for argument, name in {"adapter": adapter, "folder": folder, "model": model}.items():
        check_name(name, argument)
    target = Path(folder).expanduser()
    with whole_folder(target) as written:
        vlm = load_here(model, adapter=adapter, dtype=dtype, device=device)
        vlm.model.merge_and_unload().save_pretrained(written)
        vlm.processor.save_pretrained(written)
    return target
