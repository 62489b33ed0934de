"""The vision encoder, each picture once; CPU cores shared by threads."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from vlkit.engine.kernels import quick_gelu, rotate
from vlkit.inputs import TensorCache

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cores:
    """Shares the CPU's cores among the threads that compute: torch's threads for each of them.

    Without it each of them has as many of torch's threads as there are cores; in every step it
    waits for the slowest, which waits for a core.

    Attributes:
        busy: how many threads compute.
    """

    def __init__(self) -> None:
        import torch

        self._all, self.busy, self._counting = torch.get_num_threads(), 0, Lock()

    @contextmanager
    def share(self) -> Iterator[None]:
        """Compute in the calling thread."""
        import torch

        torch.get_num_threads()  # otherwise a new thread's first step would set all threads' start
        with self._counting:
            self.busy += 1
            torch.set_num_threads(max(1, self._all // self.busy))
        try:
            yield
        finally:
            with self._counting:
                self.busy -= 1
                torch.set_num_threads(self._all)  # other threads of the process start with this


def compute_each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Work on all items, several at once, each on a share of the cores.

    Two pictures on one core each are faster than one after the other on both cores.
    """
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2:
        return [work(item) for item in items]

    def begin() -> None:
        torch.get_num_threads()  # otherwise the first step would set what torch starts with
        torch.set_num_threads(threads // workers)

    def run(item: Item) -> Result:
        with torch.inference_mode():
            return work(item)

    pool = ThreadPoolExecutor(workers, "vlkit-cores", begin)
    try:
        return list(pool.map(run, items))
    finally:  # after Ctrl-C, or an item that fails, no other is started
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


PATCHES = {"cuda": 65_536, "cpu": 1024}  # at once; on a CPU per thread


@dataclass(frozen=True, eq=False)
class Medium:
    """A picture or clip as the processor returned it.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        key: equal for equal content.
        pixels: (patches, values of a patch), or None once it has features.
        grid: (1, 3), its patches along time, height and width.
        features: (tokens, width) of the last layer, then of deeper ones, once it is encoded.
    """

    kind: str
    key: Hashable
    pixels: Any
    grid: Any
    features: tuple | None = None


def split_media(tensors: Mapping[str, Any], digests: Sequence[Hashable]) -> list[Medium]:
    """A row's pictures, then its clips.

    Args:
        tensors: the processor's output for one row.
        digests: of the content of each.
    """
    media: list[Medium] = []
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if (grid := tensors.get(f"{kind}_grid_thw")) is None:
            continue
        grid = grid.cpu()
        for pixels, size in zip(
            tensors[name].split(grid.prod(-1).tolist()), grid.split(1), strict=True
        ):
            key = kind, digests[len(media)], tuple(size[0].tolist())
            media.append(Medium(kind, key, pixels, size))
    return media


class Encoder:
    """A vision encoder that keeps its latest features; for several threads at once.

    Args:
        model: the transformers model.
    """

    def __init__(self, model: Any):
        self.visual = model.model.visual
        self._cache = TensorCache()

    def encode(self, media: Sequence[Medium]) -> list[tuple]:
        """The features of each medium: (tokens, width) of the last layer, then of deeper ones."""
        known = self._cache.find({medium.key for medium in media})
        known |= {medium.key: medium.features for medium in media if medium.features is not None}
        new = {medium.key: medium for medium in media if medium.key not in known}
        by_size = sorted(new.values(), key=lambda medium: -len(medium.pixels))
        groups = list(_groups(by_size, PATCHES[self._place]))
        for group, features in zip(groups, self._run_all(groups), strict=True):
            known |= zip([medium.key for medium in group], features, strict=True)
        self._cache.keep({key: known[key] for key in new})
        return [known[medium.key] for medium in media]

    def encode_ahead(self, rows: Sequence[Any]) -> None:
        """Encode the media of rows before their prefill; features replace their pixels."""
        import torch

        with torch.inference_mode():
            features = iter(self.encode([medium for row in rows for medium in row.media]))
        for row in rows:
            row.media = [replace(m, pixels=None, features=next(features)) for m in row.media]

    @property
    def _place(self) -> str:
        return "cuda" if self.visual.device.type == "cuda" else "cpu"

    def _run_all(self, groups: list[list[Medium]]) -> list[list[tuple]]:
        if self._place == "cuda":
            return [self._run(group) for group in groups]
        return compute_each(self._run, groups)

    def _run(self, media: Sequence[Medium]) -> list[tuple]:
        import torch

        device, dtype = self.visual.device, self.visual.dtype
        pixels = torch.cat([medium.pixels for medium in media]).to(device, dtype)
        grid = torch.cat([medium.grid for medium in media])
        with fast_tower(self.visual):
            output = self.visual(pixels, grid_thw=grid.to(device), return_dict=True)
        layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        sizes = (grid.prod(-1) // self.visual.spatial_merge_size**2).tolist()
        return list(zip(*(layer.split(sizes) for layer in layers), strict=True))

    def forget(self) -> None:
        """Drop all features."""
        self._cache.clear()


def _groups(media: list[Medium], most: int) -> Iterator[list[Medium]]:
    """Neighbouring media with at most this many patches together."""
    group: list[Medium] = []
    patches = 0
    for medium in media:
        if group and patches + len(medium.pixels) > most:
            yield group
            group, patches = [], 0
        group.append(medium)
        patches += len(medium.pixels)
    if group:
        yield group


@contextmanager
def fast_tower(visual: Any) -> Iterator[None]:
    """Let a vision encoder's layers do the same in fewer steps; restored on exit."""
    import torch
    from transformers.activations import QuickGELUActivation

    projection = visual.patch_embed.proj  # a convolution whose stride is its size
    weight, bias = projection.weight.flatten(1), projection.bias
    changed = {visual.patch_embed: partial(torch.nn.functional.linear, weight=weight, bias=bias)}
    if visual.config._attn_implementation == "sdpa":  # otherwise the user chose another
        changed |= {block.attn: partial(_attend, block.attn) for block in visual.blocks}
    changed |= {
        module: quick_gelu for module in visual.modules() if type(module) is QuickGELUActivation
    }
    with replaced_forwards(changed):
        yield


_changing = Lock()
_users: Counter[Any] = Counter()  # threads in which a module's forward is replaced


@contextmanager
def replaced_forwards(changed: Mapping[Any, Any]) -> Iterator[None]:
    """Replace the ``forward`` of modules; restored on exit.

    Several threads may replace the same ones, in the same way.
    """
    with _changing:
        _users.update(list(changed))
        for module, forward in changed.items():
            module.forward = forward
    try:
        yield
    finally:
        with _changing:
            _users.subtract(list(changed))
            for module in changed:
                if not _users[module]:
                    del module.forward, _users[module]


def _attend(attention: Any, hidden, cu_seqlens, position_embeddings, **_):
    """A block's attention within all segments at once.

    Args:
        attention: the block's module.
        hidden: (patches, width), of all segments one after the other.
        cu_seqlens: the segments' borders.
        position_embeddings: cosines and sines, (patches, head size).
    """
    heads = attention.num_heads
    states = attention.qkv(hidden).view(len(hidden), 3 * heads, -1)
    rotate(states, 2 * heads, *(angle.contiguous() for angle in position_embeddings))
    query, key, value = states.split(heads, 1)
    segments = _same_length_segments(cu_seqlens)
    kernel = _varlen_kernel() if states.is_cuda and states.element_size() == 2 else None
    if kernel:
        longest = max(part.length for part in segments)
        borders = cu_seqlens.int()
        output = kernel(query, key, value, borders, borders, longest, longest)
    else:
        output = query.new_empty(query.shape)
        for part in segments:
            _attend_equal(query, key, value, part, output)
    return attention.proj(output.reshape(len(hidden), -1))


def _attend_equal(query, key, value, segments: _Segments, output) -> None:
    import torch

    shape = (segments.count, segments.length, *query.shape[1:])
    parts = [part[segments.place].view(shape).transpose(1, 2) for part in (query, key, value)]
    result = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2)
    if isinstance(segments.place, slice):
        output[segments.place].view(shape).copy_(result)
    else:
        output[segments.place] = result.flatten(0, 1)


@dataclass(frozen=True)
class _Segments:
    """Segments of one length; ``place`` is the indices of their patches, or a slice."""

    place: Any
    count: int
    length: int


def _same_length_segments(borders) -> list[_Segments]:
    """The segments by their length; kept with the borders."""
    if not hasattr(borders, "vlkit_segments"):  # the same tensor goes through every block
        starts = defaultdict(list)
        for start, end in itertools.pairwise(borders.tolist()):
            starts[end - start].append(start)
        borders.vlkit_segments = [
            _Segments(_place(places, length, borders.device), len(places), length)
            for length, places in starts.items()
        ]
    return borders.vlkit_segments


def _place(starts: list[int], length: int, device: Any) -> Any:
    import torch

    end = starts[0] + length * len(starts)
    if starts == list(range(starts[0], end, length)):
        return slice(starts[0], end)
    within = torch.arange(length, device=device)
    return (torch.tensor(starts, device=device)[:, None] + within).flatten()


def _varlen_kernel():
    """torch's attention over packed sequences (from 2.10 on), or None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn
