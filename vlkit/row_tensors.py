"""A group's tensors taken apart into rows."""

from __future__ import annotations

from typing import Any

from vlkit.deferred import DeferredClips, DeferredImages
from vlkit.inputs import LoadedMessages, ModelInputs


def describe_row(loaded: LoadedMessages, tensors: dict, sizes: list) -> ModelInputs:
    """What a Reply needs to know of its row; the media are read again when they are looked at."""
    images = DeferredImages(loaded.pictures, [image.size for image in loaded.images])
    clip_sizes = [(clip.info.size, clip.frame_size) for clip in loaded.clips]
    clips = DeferredClips(loaded.videos, clip_sizes)
    ids = {"input_ids": tensors["input_ids"]}
    return ModelInputs(ids, [images], [sizes], [clips], [loaded.prompt])


def split_rows(inputs: ModelInputs) -> list[dict[str, Any]]:
    """The tensors of each row alone, without padding."""
    tensors = dict(inputs.tensors)
    masks = tensors["attention_mask"].bool()
    counts = {"image": [len(row) for row in inputs.images], "video": [len(c) for c in inputs.clips]}
    rows: list[dict[str, Any]] = [{} for _ in masks]
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        for row, values, mask in zip(rows, tensors[name], masks, strict=True):
            row[name] = values[mask][None]
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if (grid := tensors.get(f"{kind}_grid_thw")) is None:
            continue
        grids = grid.cpu().split(counts[kind])
        patches = tensors[pixels].split([int(each.prod(-1).sum()) for each in grids])
        for row, its_grid, its_patches in zip(rows, grids, patches, strict=True):
            if len(its_grid):
                row |= {f"{kind}_grid_thw": its_grid, pixels: its_patches}
    if (seconds := tensors.get("second_per_grid_ts")) is not None:
        import torch

        parts = torch.as_tensor(seconds).split(counts["video"])
        for row, part in zip(rows, parts, strict=True):
            if len(part):
                row["second_per_grid_ts"] = part
    return rows
