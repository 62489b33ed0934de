"""The vision encoder: each picture once, in fewer steps than transformers."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from vlkit.engine.kernels import quick_gelu, rotate
from vlkit.inputs import TensorCache
from vlkit.threads import compute_each

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
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


def split_media(tensors: Mapping[str, Any], digests: Iterable[Hashable]) -> list[Medium]:
    """A row's pictures, then its clips.

    Args:
        tensors: the processor's output for one row.
        digests: of the content of each.
    """
    media, of_each = [], iter(digests)
    for kind, name in PIXELS.items():
        if name in tensors:
            grids = tensors[f"{kind}_grid_thw"].cpu()
            parts = tensors[name].split(grids.prod(-1).tolist())
            for pixels, grid in zip(parts, grids.split(1), strict=True):
                key = kind, next(of_each), tuple(grid[0].tolist())
                media.append(Medium(kind, key, pixels, grid))
    return media


class Encoder:
    """A vision encoder that keeps its latest features; for several threads at once.

    Args:
        model: the transformers model.
        cache: where features are kept, by default in a cache of its own.
    """

    def __init__(self, model: Any, cache: TensorCache | None = None):
        self.visual = model.model.visual
        self.cache = TensorCache() if cache is None else cache

    def encode(self, media: Sequence[Medium]) -> list[tuple]:
        """The features of each medium: (tokens, width) of the last layer, then of deeper ones."""
        known = self.cache.find({medium.key for medium in media})
        known |= {medium.key: medium.features for medium in media if medium.features is not None}
        new = {medium.key: medium for medium in media if medium.key not in known}
        by_size = sorted(new.values(), key=lambda medium: -len(medium.pixels))
        groups = list(_groups(by_size, PATCHES[self._place]))
        for group, features in zip(groups, self._run_all(groups), strict=True):
            known |= zip([medium.key for medium in group], features, strict=True)
        self.cache.keep({key: known[key] for key in new})
        return [known[medium.key] for medium in media]

    def encode_ahead(self, rows: Sequence[Any]) -> None:
        """Encode the media of rows before their prefill; features replace their pixels."""
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
        device, dtype = self.visual.device, self.visual.dtype
        pixels = torch.cat([medium.pixels.to(device, dtype, non_blocking=True) for medium in media])
        grid = torch.cat([medium.grid for medium in media])
        with fast_tower(self.visual):
            output = self.visual(pixels, grid_thw=grid.to(device), return_dict=True)
        layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        sizes = (grid.prod(-1) // self.visual.spatial_merge_size**2).tolist()
        return list(zip(*(layer.split(sizes) for layer in layers), strict=True))


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
    from transformers.activations import QuickGELUActivation

    if not hasattr(visual, "patch_embed"):  # Qwen-VL's
        yield
        return
    projection = visual.patch_embed.proj  # a convolution whose stride is its size
    weight, bias = projection.weight.flatten(1), projection.bias
    changed = {visual.patch_embed: partial(linear, weight=weight, bias=bias)}
    if visual.config._attn_implementation == "sdpa":  # otherwise the user chose another
        changed |= {block.attn: partial(_attend, block.attn) for block in visual.blocks}
    changed |= {
        module: quick_gelu for module in visual.modules() if type(module) is QuickGELUActivation
    }
    with replaced_forwards(changed):
        yield


_changing = Lock()
_users: dict[Any, tuple[int, Any]] = {}  # threads that replace a module's forward; its own one


@contextmanager
def replaced_forwards(changed: Mapping[Any, Callable]) -> Iterator[None]:
    """Replace the ``forward`` of modules; one of their own (accelerate's) returns on exit.

    Several threads may replace the same ones, in the same way.
    """
    with _changing:
        for module, forward in changed.items():
            users, own = _users.get(module) or (0, vars(module).get("forward"))
            _users[module], module.forward = (users + 1, own), forward
    try:
        yield
    finally:
        with _changing:
            for module in changed:
                users, own = _users.pop(module)
                if users > 1:
                    _users[module] = users - 1, own
                elif own is None:
                    del module.forward
                else:
                    module.forward = own


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
        longest = max(places.shape[1] for places in segments)
        borders = cu_seqlens.int()
        output = kernel(query, key, value, borders, borders, longest, longest)
    else:
        output = query.new_empty(query.shape)
        for places in segments:  # (segments of one length, length): their patches
            parts = [part[places].transpose(1, 2) for part in (query, key, value)]
            output[places] = scaled_dot_product_attention(*parts).transpose(1, 2)
    return attention.proj(output.reshape(len(hidden), -1))


def _same_length_segments(borders) -> list:
    """The places of the segments' patches, (segments, length) for each length; kept with them."""
    if not hasattr(borders, "vlkit_segments"):  # the same tensor goes through every block
        starts = defaultdict(list)
        for start, end in itertools.pairwise(borders.tolist()):
            starts[end - start].append(start)
        borders.vlkit_segments = [
            torch.tensor(places, device=borders.device)[:, None]
            + torch.arange(length, device=borders.device)
            for length, places in starts.items()
        ]
    return borders.vlkit_segments


def _varlen_kernel():
    """torch's attention over packed sequences (from 2.10 on), or None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn
