"""A group's tensors taken apart into rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from vlkit.batching.encoding import Medium
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
    """The tensors of each row alone, without padding and pixels."""
    tensors = dict(inputs.tensors)
    masks = tensors["attention_mask"].bool()
    counts = {"image": [len(row) for row in inputs.images], "video": [len(c) for c in inputs.clips]}
    rows: list[dict[str, Any]] = [{} for _ in masks]
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        for row, values, mask in zip(rows, tensors[name], masks, strict=True):
            row[name] = values[mask][None]
    for kind in ("image", "video"):
        if (grid := tensors.get(f"{kind}_grid_thw")) is not None:
            for row, its_grid in zip(rows, grid.cpu().split(counts[kind]), strict=True):
                row |= {f"{kind}_grid_thw": its_grid} if len(its_grid) else {}
    if (seconds := tensors.get("second_per_grid_ts")) is not None:
        import torch

        parts = torch.as_tensor(seconds).split(counts["video"])
        for row, part in zip(rows, parts, strict=True):
            if len(part):
                row["second_per_grid_ts"] = part
    return rows


def split_media(inputs: ModelInputs, digests: Sequence[Sequence[Hashable]]) -> list[list[Medium]]:
    """The pixels of each row's pictures, then of its clips.

    Args:
        inputs: of a group of rows.
        digests: per row, of the content of its pictures, then of its clips.
    """
    rows: list[list[Medium]] = [[] for _ in digests]
    counts = {"image": inputs.images, "video": inputs.clips}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if (grid := inputs.tensors.get(f"{kind}_grid_thw")) is None:
            continue
        grid = grid.cpu()
        parts = iter(inputs.tensors[pixels].split(grid.prod(-1).tolist()))
        grids = iter(grid.split(1))
        for row, digest, its_media in zip(rows, digests, counts[kind], strict=True):
            for _ in its_media:
                size = next(grids)
                key = kind, digest[len(row)], tuple(size[0].tolist())
                row.append(Medium(kind, key, next(parts), size))
    return rows
