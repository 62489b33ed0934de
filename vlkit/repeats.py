"""Pictures that several rows ask about are resized and cut into patches once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def each_once(processor: Any, keys: Sequence[Hashable]) -> Iterator[None]:
    """A processor that works on pictures of one key once; as it was afterwards.

    Args:
        processor: a Qwen-VL processor, used by one thread at a time.
        keys: of the pictures of the next call, in order; equal only where the result will be.
    """
    whole = processor.image_processor
    if len(set(keys)) < len(keys):
        processor.image_processor = _EachOnce(whole, keys)
    try:
        yield
    finally:
        processor.image_processor = whole


class _EachOnce:
    """An image processor that repeats what it made of a picture that comes again."""

    def __init__(self, whole: Any, keys: Sequence[Hashable]):
        self._whole = whole
        self._first = {key: index for index, key in reversed(list(enumerate(keys)))}
        self._keys = keys

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def __call__(self, images: Sequence[Any], **options: Any) -> Any:
        import torch

        first = sorted(self._first.values())
        output = self._whole([images[index] for index in first], **options)
        grid = torch.as_tensor(output["image_grid_thw"])
        parts = torch.as_tensor(output["pixel_values"]).split(grid.prod(-1).tolist())
        places = [first.index(self._first[key]) for key in self._keys]
        output["image_grid_thw"] = grid[places]
        output["pixel_values"] = torch.cat([parts[place] for place in places])
        return output
