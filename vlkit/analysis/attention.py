"""``attention_map``: where the model looked as it wrote a token."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

import numpy as np
import PIL.Image
from PIL import ImageDraw

from vlkit.analysis.logprobs import AnswerTokens, answer_tokens, replay
from vlkit.errors import VlkitError
from vlkit.generation.reply import Reply
from vlkit.grounding.boxes import Box, Item, Items, list_items, scale_item
from vlkit.inputs import check_loaded
from vlkit.media.image import load_image
from vlkit.models.load import VLM, base_model
from vlkit.plotting.draw import draw_strokes
from vlkit.plotting.fonts import fit_text, load_font, text_height
from vlkit.plotting.html import image_html
from vlkit.settings import MAX_NEW_TOKENS

_NAME = "vlkit_watched"  # the attention function's name in transformers

Numbers = int | Sequence[int] | None


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Where on a picture the model looked as it wrote a token; it shows itself in a notebook.

    Attributes:
        values: (rows, columns) shares of all its attention, one for each image token, which covers
            2×2 patches; their sum is this picture's share.
        picture: the upright original, or the frame as the model saw it.
        token: the text of the token or tokens.
        layers, heads: whose attention this is.
        frame: the number of the sampled frame; None for a picture.
    """

    values: np.ndarray = field(repr=False)
    picture: PIL.Image.Image = field(repr=False)
    token: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    frame: int | None = None

    @property
    def peak(self) -> tuple[float, float]:
        """The centre of the strongest cell, (x, y) in pixels of ``picture``."""
        row, column = np.unravel_index(np.argmax(self.values), self.values.shape)
        width, height = self._cell
        return (float(column) + 0.5) * width, (float(row) + 0.5) * height

    def inside(self, box: Box) -> float:
        """The share of the picture's attention that is within a box, 0 to 1."""
        width, height = self._cell
        x = _cover(box.x1 / width, box.x2 / width, self.values.shape[1])
        y = _cover(box.y1 / height, box.y2 / height, self.values.shape[0])
        total = float(self.values.sum())
        return float(y @ self.values @ x) / total if total else 0.0

    def plot(self, boxes: Items = ()) -> PIL.Image.Image:
        """The picture in grey under the heat map, with boxes if there are any to compare."""
        return draw_heat(self.picture, self.values, boxes)

    @property
    def _cell(self) -> tuple[float, float]:
        rows, columns = self.values.shape
        return self.picture.width / columns, self.picture.height / rows

    def _repr_html_(self) -> str:
        return image_html(self.plot(), alt=f"attention at {self.token}")


def attention_map(
    vlm: VLM,
    messages: str | Mapping | list,
    *,
    token: int | str | Item,
    layers: Numbers = None,
    heads: Numbers = None,
    reduce: Literal["mean", "max"] = "mean",
    mask_border: bool = False,
    image: int = -1,
    clip: int | None = None,
    frame: int | None = None,
    answer: Reply | str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> AttentionMap:
    """See where on a picture the model looked as it wrote a token of its answer.

    The model answers as usual; then one pass over prompt and answer keeps, for the chosen layers,
    only the attention of the chosen step to the chosen picture. That step is the one in which the
    token was predicted: it looks from the token before.

    Args:
        vlm: from :func:`vlkit.load`.
        messages: as for :func:`vlkit.generate`.
        token: its number in the answer, its text (the first place where it occurs), or one of the
            answer's boxes, which stands for the tokens of its coordinates. Several are averaged.
        layers, heads: numbers, from the end if negative; None is all that have attention.
        reduce: the ``"mean"`` or the ``"max"`` over layers and heads.
        mask_border: leave out the outermost cells, which are often attention sinks.
        image: the number of the picture, by default the last.
        clip: the number of a clip instead, by default the last where there is no picture.
        frame: the number of the clip's sampled frame; two frames share their tokens. By default
            the most attended one.
        answer: the Reply to these messages, or its raw text; None asks, greedily.
        max_new_tokens: the longest answer.

    Raises:
        VlkitError: no such token, layer, head, picture or frame.
    """
    if reduce not in ("mean", "max"):
        raise VlkitError(f'reduce={reduce!r} is unknown; choose "mean" or "max"')
    check_loaded(vlm)
    config = base_model(vlm).config.get_text_config()
    chosen = _choose_layers(config, layers)
    of_heads = _choose("heads", heads, config.num_attention_heads)
    answered = answer_tokens(vlm, messages, answer, max_new_tokens, image, clip)
    steps = answered.find(token)
    kind, number, pictures = _find_medium(answered, image, clip)
    if frame is not None and kind == "video":
        frame = _check("frame", frame, len(pictures))
    places, shape = _tokens(vlm, answered, kind, number)
    start = answered.inputs.tensors["input_ids"].shape[1]
    watch = _Watch(chosen, of_heads, [start + step - 1 for step in steps], places)
    with _watching(vlm, watch):
        replay(vlm, answered, max(steps))
    kept = np.stack([watch.kept[layer] for layer in chosen])  # (layers, heads, tokens)
    values = (kept.mean((0, 1)) if reduce == "mean" else kept.max((0, 1))).reshape(shape)
    if mask_border:
        values[:, [0, -1], :] = values[:, :, [0, -1]] = 0.0
    if frame is None or kind == "image":  # frames come in pairs: the first of the most attended
        frame = 2 * int(np.argmax(values.sum((1, 2))))
    text = "".join(answered.text[slice(*answered.spans[step])] for step in steps)
    shown = frame if kind == "video" else None
    return AttentionMap(values[frame // 2], pictures[frame], text, chosen, of_heads, shown)


# --- which layers, heads and tokens -------------------------------------------------------------


def _choose_layers(config: Any, layers: Numbers) -> tuple[int, ...]:
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    with_attention = [number for number, kind in enumerate(kinds) if "linear" not in kind]
    chosen = _choose("layers", with_attention if layers is None else layers, len(kinds))
    if without := sorted(set(chosen) - set(with_attention)):
        raise VlkitError(f"layers {without} have no attention; layers with it = {with_attention}")
    return chosen


def _choose(name: str, numbers: Numbers, count: int) -> tuple[int, ...]:
    if numbers is None:
        return tuple(range(count))
    chosen: list[Any] = list(numbers) if isinstance(numbers, Iterable) else [numbers]
    if not chosen or not all(isinstance(n, Integral) and -count <= int(n) < count for n in chosen):
        raise VlkitError(f"{name}={numbers!r} must be numbers from 0 to {count - 1}")
    return tuple(sorted({int(n) % count for n in chosen}))


def _find_medium(answered: AnswerTokens, image: int, clip: int | None) -> tuple[str, int, Sequence]:
    """Kind and number of the chosen picture or clip, and its one picture or its frames."""
    pictures, clips = answered.inputs.images[0], answered.inputs.clips[0]
    if clip is None and pictures:
        number = _check("image", image, len(pictures))
        return "image", number, [pictures[number]]
    if not clips:
        raise VlkitError("these messages contain no picture; pass one to vlkit.user")
    number = _check("clip", -1 if clip is None else clip, len(clips))
    return "video", number, clips[number].pictures


def _check(name: str, number: int, count: int) -> int:
    if not -count <= number < count:
        raise VlkitError(f"{name}={number} does not exist; there are {count}")
    return number % count


def _tokens(
    vlm: VLM, answered: AnswerTokens, kind: str, number: int
) -> tuple[list[int], tuple[int, int, int]]:
    tensors, config = answered.inputs.tensors, base_model(vlm).config
    side = config.vision_config.spatial_merge_size
    grids = [(t, h // side, w // side) for t, h, w in tensors[f"{kind}_grid_thw"].tolist()]
    counts = [t * h * w for t, h, w in grids]
    ids = tensors["input_ids"][0]
    places = (ids == getattr(config, f"{kind}_token_id")).nonzero()[:, 0].tolist()
    start = sum(counts[:number])
    return places[start : start + counts[number]], grids[number]


def _cover(low: float, high: float, count: int) -> np.ndarray:
    """The share of each of ``count`` cells between two positions, 0 to 1."""
    cells = np.arange(count)
    return np.clip(np.minimum(cells + 1, high) - np.maximum(cells, low), 0, 1)


# --- the pass that keeps it ---------------------------------------------------------------------


class _Watch:
    """Keeps the attention of some rows to some places; (heads, places) for each layer."""

    def __init__(self, layers: Sequence[int], heads: Sequence[int], rows: list[int], places: list):
        self.layers, self.heads, self.rows, self.places = set(layers), list(heads), rows, places
        self.kept: dict[int, np.ndarray] = {}

    def note(self, layer: int, query, key, mask, scaling: float) -> None:
        import torch

        groups, size = key.shape[1], query.shape[-1]
        queries = query[0][:, self.rows].float()  # (heads, rows, size)
        keys = key[0].float().transpose(1, 2)  # one for each group of heads
        scores = (queries.reshape(groups, -1, size) @ keys).view(*queries.shape[:2], -1) * scaling
        if mask is None:
            rows = torch.tensor(self.rows, device=key.device)
            mask = torch.arange(key.shape[2], device=key.device) <= rows[:, None]
        else:
            mask = mask[0][:, self.rows]
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, float("-inf"))
        else:
            scores = scores + mask.float()
        shares = scores.softmax(-1)[self.heads][..., self.places].mean(1)
        self.kept[layer] = shares.cpu().numpy()


_watch: ContextVar[_Watch | None] = ContextVar("vlkit_watch", default=None)


def _attend(module, query, key, value, attention_mask, **options):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    watch = _watch.get()
    if watch is not None and module.layer_idx in watch.layers:
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        watch.note(module.layer_idx, query, key, attention_mask, scaling)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


@contextmanager
def _watching(vlm: VLM, watch: _Watch) -> Iterator[None]:
    """Let the language model attend through ``_attend``; restored on exit."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model = base_model(vlm)
    before = model.config.get_text_config()._attn_implementation
    mark = _watch.set(watch)
    try:
        model.set_attn_implementation({"text_config": _NAME})
        yield
    finally:
        _watch.reset(mark)
        model.set_attn_implementation({"text_config": before})


# --- drawn over the picture ----------------------------------------------------------------------

_SIDES = 480, 960  # fewest and most pixels of the longer side, so that letters have room
_BOX = "#FFFFFF"


def draw_heat(image: Any, values: np.ndarray, boxes: Items = ()) -> PIL.Image.Image:
    """The picture in grey under the cells of a heat map; a bar says what the colours mean.

    Args:
        image: anything that ``vlkit.Image`` takes.
        values: (rows, columns), not negative; each cell covers the same part of the picture.
        boxes: to draw over it in white, in pixels of the upright original.

    Returns:
        A new picture of 480 to 960 pixels, higher by the bar.
    """
    values = np.asarray(values, dtype=np.float32)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise VlkitError(f"values of shape {values.shape} must be (rows, columns), 0 or more")
    picture = load_image(image)
    longer = max(picture.size)
    scale = min(max(longer, _SIDES[0]), _SIDES[1]) / longer
    size = (round(picture.width * scale), round(picture.height * scale))
    most = float(values.max())
    shares = values / most if most else values
    base = picture.convert("L").convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)
    heat = PIL.Image.fromarray(_colors(shares)).resize(size, PIL.Image.Resampling.NEAREST)
    alpha = PIL.Image.fromarray(np.round(220 * np.sqrt(shares)).astype(np.uint8))
    base.paste(heat, mask=alpha.resize(size, PIL.Image.Resampling.NEAREST))
    draw_strokes(base, [(scale_item(item, scale), _BOX, 0) for item in list_items(boxes)])
    return _add_bar(base, f"{most:.2%} of all attention" if most else "no attention")


def _colors(shares: np.ndarray) -> np.ndarray:
    """(rows, columns, 3) uint8: the colours of matplotlib's inferno, which every eye can order."""
    import matplotlib

    return np.round(255 * matplotlib.colormaps["inferno"](shares)[..., :3]).astype(np.uint8)


def _add_bar(picture: PIL.Image.Image, most: str) -> PIL.Image.Image:
    font, gap = load_font(15), 8
    top, high = text_height(font)
    sheet = PIL.Image.new("RGB", (picture.width, picture.height + round(high) + 2 * gap), "white")
    sheet.paste(picture)
    draw, y = ImageDraw.Draw(sheet), picture.height + gap
    text = fit_text(f"{most} in the brightest cell", font, max(40, picture.width - 140))
    bar = PIL.Image.fromarray(_colors(np.linspace(0, 1, 90)[None])).resize((90, round(high)))
    draw.text((gap, y - top), "0", "black", font)
    sheet.paste(bar, (gap + 14, y))
    draw.text((gap + 112, y - top), text, "black", font)
    return sheet
