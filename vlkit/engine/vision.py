"""The vision encoder, each picture once; CPU cores shared by threads."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from vlkit.engine.kernels import quick_gelu, rotate

Item = TypeVar("Item")


Result = TypeVar("Result")


class Cores:
    """As many of torch's threads for each of those who compute as there are cores for them.

    Otherwise every one has as many threads as there are cores, and each waits in every step for
    the slowest of its own, which waits for a core.

    Attributes:
        busy: how many compute.
    """

    def __init__(self) -> None:
        import torch

        self._all, self.busy, self._counting = torch.get_num_threads(), 0, Lock()

    @contextmanager
    def share(self) -> Iterator[None]:
        """Compute in the calling thread."""
        import torch

        torch.get_num_threads()  # else a new thread's first step would set what all begin with
        with self._counting:
            self.busy += 1
            torch.set_num_threads(max(1, self._all // self.busy))
        try:
            yield
        finally:
            with self._counting:
                self.busy -= 1
                torch.set_num_threads(self._all)  # what other threads of the process begin with


def compute_each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Work on every item, several at once with a share of the cores each.

    Two pictures on a core each are seen sooner than one after the other on both.
    """
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2:
        return [work(item) for item in items]

    def begin() -> None:
        torch.get_num_threads()  # else the first step would set what torch begins with
        torch.set_num_threads(threads // workers)

    def run(item: Item) -> Result:
        with torch.inference_mode():
            return work(item)

    pool = ThreadPoolExecutor(workers, "vlkit-cores", begin)
    try:
        return list(pool.map(run, items))
    finally:  # after Ctrl-C, or an item that fails, no other is begun
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


PATCHES = {"cuda": 65_536, "cpu": 1024}  # at once; on a CPU for each of the threads


KEPT_BYTES = 2**28  # of features, for the next rows that ask about the same picture


@dataclass(frozen=True, eq=False)
class Medium:
    """A picture or clip as the processor left it.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        key: the same for the same content.
        pixels: (patches, values of a patch), or None where the features are there.
        grid: (1, 3), its patches along time, height and width.
        features: (tokens, width) of the last layer, then of the deeper ones, if it was seen.
    """

    kind: str
    key: Hashable
    pixels: Any
    grid: Any
    features: tuple | None = None


class Encoder:
    """A vision tower that remembers what it saw last; for several threads at once.

    Args:
        model: the transformers model.
    """

    def __init__(self, model: Any):
        self.visual = model.model.visual
        self._kept: OrderedDict[Hashable, tuple] = OrderedDict()
        self._keeping = Lock()

    def encode(self, media: Sequence[Medium]) -> list[tuple]:
        """For each medium its features, (tokens, width), those of deeper layers behind them."""
        found = self._recall(media)
        new = {medium.key: medium for medium in media if medium.key not in found}
        by_size = sorted(new.values(), key=lambda medium: -len(medium.pixels))
        groups = list(_groups(by_size, PATCHES[self._place]))
        for group, features in zip(groups, self._run_all(groups), strict=True):
            found |= zip([medium.key for medium in group], features, strict=True)
        with self._keeping:
            self._kept |= {key: found[key] for key in new}
            self._trim()
        return [found[medium.key] for medium in media]

    def encode_ahead(self, rows: Sequence[Any]) -> None:
        """Encode the media of rows before their turn; features take the place of their pixels."""
        import torch

        with torch.inference_mode():
            features = iter(self.encode([medium for row in rows for medium in row.media]))
        for row in rows:
            row.media = [replace(each, pixels=None, features=next(features)) for each in row.media]

    def _recall(self, media: Sequence[Medium]) -> dict[Hashable, tuple]:
        found = {medium.key: medium.features for medium in media if medium.features is not None}
        with self._keeping:
            for key in {medium.key for medium in media} & self._kept.keys():
                self._kept.move_to_end(key)
                found[key] = self._kept[key]
        return found

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
        """Let go all features."""
        with self._keeping:
            self._kept.clear()

    def _trim(self) -> None:
        """Let go what was used longest ago, over the limit."""
        total = 0
        for key in reversed(list(self._kept)):
            total += sum(layer.nbytes for layer in self._kept[key])
            if total > KEPT_BYTES:
                del self._kept[key]


def _groups(media: list[Medium], most: int) -> Iterator[list[Medium]]:
    """Runs of media with at most so many patches together."""
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
    """A vision tower whose layers do the same in fewer steps; as it was afterwards."""
    import torch
    from transformers.activations import QuickGELUActivation

    projection = visual.patch_embed.proj  # a convolution whose stride is its size
    weight, bias = projection.weight.flatten(1), projection.bias
    changed = {visual.patch_embed: partial(torch.nn.functional.linear, weight=weight, bias=bias)}
    if visual.config._attn_implementation == "sdpa":  # else something else was asked for
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
    """Modules that do their work in another way, given by module; as they were afterwards.

    Several threads may replace the same modules' in the same way.
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
        longest = max(each.length for each in segments)
        borders = cu_seqlens.int()
        output = kernel(query, key, value, borders, borders, longest, longest)
    else:
        output = query.new_empty(query.shape)
        for each in segments:
            _attend_equal(query, key, value, each, output)
    return attention.proj(output.reshape(len(hidden), -1))


def _attend_equal(query, key, value, segments: _Segments, output) -> None:
    import torch

    shape = (segments.count, segments.length, *query.shape[1:])
    parts = [each[segments.place].view(shape).transpose(1, 2) for each in (query, key, value)]
    result = torch.nn.functional.scaled_dot_product_attention(*parts)
    result = result.transpose(1, 2)
    if isinstance(segments.place, slice):
        output[segments.place].view(shape).copy_(result)
    else:
        output[segments.place] = result.flatten(0, 1)


@dataclass(frozen=True)
class _Segments:
    """Segments of one length; their place is indices of patches, or a slice of neighbours."""

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
            _Segments(_place(each, length, borders.device), len(each), length)
            for length, each in starts.items()
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
