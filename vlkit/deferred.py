"""Pictures and clips read again when they are looked at, so that many replies stay small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlkit.grounding import Size
from vlkit.media import Image
from vlkit.video import Clip, Video, load_clip


class DeferredImages(Sequence):
    """Upright originals, read from their sources at every access.

    Args:
        images: how each is read.
        sizes: (width, height) of each upright original, known without reading.
    """

    def __init__(self, images: Sequence[Image], sizes: Sequence[Size]):
        self.sources = tuple(images)
        self.sizes: tuple[Size, ...] = tuple((int(w), int(h)) for w, h in sizes)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(image.load() for image in self.sources[index])
        return self.sources[index].load()


class DeferredClips(Sequence):
    """Sampled clips, sampled again at every access.

    Args:
        videos: how each is sampled.
        sizes: of each the original's (width, height) and that of its sampled frames.
    """

    def __init__(self, videos: Sequence[Video], sizes: Sequence[tuple[Size, Size]]):
        self.sources = tuple(videos)
        self.sizes: tuple[tuple[Size, Size], ...] = tuple(
            ((int(w), int(h)), (int(a), int(b))) for (w, h), (a, b) in sizes
        )

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        frame_size = self.sizes[index][1]
        return _sample(self.sources[index], frame_size)


def _sample(video: Video, frame_size: Size) -> Clip:
    return load_clip(video, lambda size, count: frame_size)
