"""Boxes in an answer to pixels of the upright original, and back."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence

from vlkit.errors import GroundingParseError, VlkitError, check_choice, counted
from vlkit.grounding.boxes import (
    Box,
    Item,
    Items,
    Point,
    Quad,
    Size,
    check_size,
    coordinates_of,
    is_share,
    list_items,
)
from vlkit.grounding.formats import FORMATS, GroundingFormat, read_answer, write_answer
from vlkit.grounding.keys import SPACES, Found, Reading, Space

Segment = str | list[Item]  # of a text: text, or items that follow each other in it


def parse_grounding(
    text: str,
    *,
    family: str,
    image_size: Size,
    input_size: Size | None = None,
    space: Space | None = None,
    clip: bool = True,
    labelled: bool = False,
) -> list[Item]:
    """Read the boxes, points and quads of a model's raw answer.

    Args:
        text: the answer with its special tokens (``reply.raw``).
        family: ``qwen_vl``, ``qwen2_vl``, ``qwen2_5_vl``, ``qwen3_vl`` or ``qwen3_5``.
        image_size: (width, height) of the upright original, in pixels.
        input_size: (width, height) of the picture as the model saw it; needed for
            ``qwen2_5_vl`` alone, whose coordinates are pixels of that size.
        space: where the numbers are known to be in another space than the family's own:
            ``0-1000``, ``0-999`` (as some hosted models say), ``0-100`` (percent), ``0-1``,
            ``resized`` or ``original``. By default fractions (0.1, 0.2, 0.5, 0.6) are read as
            ``0-1``, and a warning says so: no family writes parts of a pixel or thousandth.
        clip: cut at the picture's edges; False keeps the model's numbers.
        labelled: leave out items without a label. With this and ``clip=False`` the result is that
            of ``supervision.Detections.from_vlm``.

    Returns:
        In pixels of the upright original, a box's corners in order; an empty list
        where the answer contains none. If only parts of the answer can be read, those are
        returned, and a warning names the rest.

    Raises:
        GroundingParseError: the text contains coordinates, but none that this format can read.
    """
    placed, left_out = locate_grounding(text, family, image_size, input_size, space, clip=clip)
    if left_out:
        warnings.warn(left_out, stacklevel=2)
    return [item for item, _, _ in placed if item.label or not labelled]


def locate_grounding(
    text: str, family: str, image_size: Size, input_size: Size | None = None,
    space: Space | None = None, *, clip: bool = True, rewritable: bool = False,
) -> tuple[list[tuple[Item, int, int]], str]:  # fmt: skip
    """:func:`parse_grounding`, with the start and end of each item, and its warning as a value.

    The warning is empty where all was read; ``rewritable`` is that of :func:`find_numbers`.
    """
    if not isinstance(text, str):
        raise VlkitError(f"expected the raw answer (reply.raw), not {type(text).__name__}")
    form = format_of(family)
    own_space = space or form.space
    span = span_of(own_space, image_size, input_size)
    try:
        items, problems, notes = find_numbers(text, family, rewritable=rewritable)
        placed = []
        for item in items:
            at = span
            if item.space and not space and (own_space != "resized" or item.space == "0-1"):
                at = span_of(item.space, image_size)
            shape = to_pixels(item.label, item.numbers, at, image_size, clip)
            placed.append((shape, item.start, item.end))
        notes = [*notes, *_doubts(items, family, space, own_space, span)]
    except Exception as error:  # the promise for every answer: it is read, or raises this error
        placed, problems = [], [f"the reader failed ({type(error).__name__}: {error!s:.100})"]
    if problems and not placed:
        advice = "; raise max_new_tokens" if " ends " in problems[0] else ""
        raise GroundingParseError(
            f"{problems[0]}{advice} (read with family={family!r}; the answer is in .text)", text
        )
    left_out = f"{len(placed)} read, {len(problems)} left out: " + "; ".join(problems[:3])
    return placed, "; ".join([*([left_out] if problems else []), *notes])


def _doubts(
    items: Sequence[Found], family: str, said: Space | None, space: Space, span: Size
) -> list[str]:
    """How the numbers were understood, where they may mean something else."""
    notes = []
    key = next((item.key for item in items if item.key), "")
    unsure = [item.numbers for item in items if item.key]
    fits = all(x1 + x2 <= span[0] and y1 + y2 <= span[1] for x1, y1, x2, y2 in unsure)
    if key and (fits or any(x2 < x1 or y2 < y1 for x1, y1, x2, y2 in unsure)):
        notes.append(
            f"the numbers of {key} are read as x1, y1, x2, y2; if the model means x, y, width, "
            "height, the boxes are wrong"
        )
    numbers = [n for item in items for n in item.numbers]
    shares = sum(item.space == "0-1" for item in items)
    if shares and not said:
        notes.append(
            f"the numbers of {counted(shares, 'item')} are read as fractions of the picture (0-1), "
            f'not as {space}; if that is wrong, pass space="{space}"'
        )
    elif not said and numbers and max(map(abs, numbers)) == 1:
        notes.append(f'all numbers are 0 or 1, read as {space}; for fractions, pass space="0-1"')
    elif not said and not all(map(float.is_integer, numbers)) and max(map(abs, numbers)) <= 100:
        notes.append(f'the numbers are not whole, read as {space}; for percent, pass space="0-100"')
    own = own_form(family)
    beyond = [item.numbers for item in items if not said and item.space != "0-1"]
    farthest = max((n / span[i % 2] for row in beyond for i, n in enumerate(row[:4])), default=0)
    if farthest > 1.1:
        notes.append(
            f"some numbers are {farthest:.1f} times as large as {space} allows; if in pixels, "
            'pass space="original" or "resized"'
        )
    for form in dict.fromkeys(item.form for item in items):
        if form not in (own, "markup", "call"):
            name = "JSON" if form == "json" else f"{form}'s tags"
            notes.append(
                f"the answer is in {name}, not in the form of {family}; its numbers are read as "
                f"{space}, the space of {family}; if that is wrong, pass form= to reply.grounding"
            )
    return notes


def own_form(family: str) -> str:
    return "json" if format_of(family).style == "json" else family


def find_numbers(text: str, family: str, *, rewritable: bool = False) -> Reading:
    """Labels with their numbers after a text's ``</think>``, and what could not be read.

    Args:
        text: the answer.
        family: of the model.
        rewritable: only what can be written again in another form is an item; coordinates in
            other forms than the family's are problems.
    """
    answer = text.rpartition("</think>")[2]
    before = len(text) - len(answer)
    for token in ("<|endoftext|>", "<|im_end|>"):
        answer = answer.rstrip().removesuffix(token)
    if answer.lstrip().startswith("<think>"):
        return Reading([], ["the answer ends inside its <think>"], [])
    items, problems, notes = read_answer(answer, family)
    items = [f._replace(start=before + f.start, end=before + f.end) for f in items]
    if shares := [f for f in items if is_share(f.numbers)]:
        every = max(max(map(abs, f.numbers)) for f in items) < 2  # also the picture's 0 and 1
        items = [f._replace(space="0-1") if every or is_share(f.numbers) else f for f in items]
    if rewritable:
        own = [f for f in items if f.form == own_form(family) and f.space != "0-1"]
        others = [text[f.start : f.end][:60] for f in items if f.form != own_form(family)]
        others += [f"{text[f.start : f.end][:60]} (fractions)" for f in shares]
        problems += [f"{part} is not in the form of {family}" for part in others]
        items = [f for f in own if f.certain]
    return Reading(items, problems, notes)


def format_grounding(
    boxes: Items,
    *,
    family: str,
    image_size: Size,
    input_size: Size | None = None,
    space: Space | None = None,
) -> str:
    """Write what :func:`parse_grounding` reads, as the family writes it.

    Coordinates are rounded to the format's whole numbers. Successive boxes with the same label
    share its tag.

    Args:
        boxes: one or many, in pixels of the upright original.
        family, image_size, input_size, space: as in :func:`parse_grounding`.

    Raises:
        VlkitError: a label that the format cannot contain.
    """
    form = format_of(family)
    span = span_of(space or form.space, image_size, input_size)
    if space == "0-1":
        raise VlkitError('space="0-1" cannot be written, only read: coordinates are whole numbers')
    pairs = [(str(item.label), _from_pixels(item, span, image_size)) for item in list_items(boxes)]
    return write_answer(pairs, form)


def format_of(family: str) -> GroundingFormat:
    """The family's format. Raises VlkitError for an unknown family."""
    check_choice("family", family, FORMATS)
    return FORMATS[family]


def span_of(space: Space, image_size: Size, input_size: Size | None = None) -> Size:
    """The (width, height) that the numbers of a space run over."""
    check_size("image_size", image_size)
    check_choice("space", space, SPACES)
    if space[:2] == "0-":
        return int(space[2:]), int(space[2:])
    if space == "original":
        return image_size
    if input_size is None:
        raise VlkitError(
            "this family writes pixels of the resized picture; pass input_size=(width, height), "
            "which is image_grid_thw[2] and [1] times the patch size (reply.input_sizes)"
        )
    check_size("input_size", input_size)
    return input_size


def to_pixels(
    label: str, numbers: Sequence[float], span: Size, size: Size, clip: bool = True
) -> Item:
    """The box, point or quad of 4, 2 or 8 numbers over ``span``, on a picture of ``size``."""
    width, height = size
    if len(numbers) == 5:
        return _rotated(label, numbers, span, size, clip)
    xs = [x * width / span[0] for x in numbers[::2]]
    ys = [y * height / span[1] for y in numbers[1::2]]
    if clip:
        right, bottom = float(width), float(height)
        xs = [0.0 if x < 0 else right if x > right else x for x in xs]
        ys = [0.0 if y < 0 else bottom if y > bottom else y for y in ys]
    if len(xs) == 2:
        (x1, x2), (y1, y2) = sorted(xs), sorted(ys)
        return Box(label, x1, y1, x2, y2)
    pixels = [value for pair in zip(xs, ys, strict=True) for value in pair]
    return Point(label, *pixels) if len(pixels) == 2 else Quad(label, *pixels)


def _from_pixels(item: Item, span: Size, size: Size) -> list[int]:
    numbers = enumerate(coordinates_of(item))
    scaled = [round(value * span[i % 2] / size[i % 2]) for i, value in numbers]
    return [min(max(value, 0), span[i % 2]) for i, value in enumerate(scaled)]


def _rotated(label: str, numbers: Sequence[float], span: Size, size: Size, clip: bool) -> Item:
    """The corners of a centre, width, height and degrees clockwise, as OpenCV's RotatedRect."""
    x, y, w, h = (n * size[i % 2] / span[i % 2] for i, n in enumerate(numbers[:4]))
    c, s = math.cos(math.radians(numbers[4])), math.sin(math.radians(numbers[4]))
    sides = [(a * w / 2, b * h / 2) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    corners = [v for dx, dy in sides for v in (x + dx * c - dy * s, y + dx * s + dy * c)]
    return to_pixels(label, corners, size, size, clip)


# --- a text and the items in it -------------------------------------------------------------------

# what belongs to a group of boxes: the separators in it, and the brackets, fences and tags around
_SEPARATOR = re.compile(r"[\s,]*")
_OPENING = re.compile(r"(?:```(?:json|xml)?\s*)?\[?\s*\Z")
_CLOSING = re.compile(r"(?:[^<>]{0,200}</points?>)?(?:\s*\])?(?:\s*```)?")
_LONGEST_OPENING = 40  # characters


def group_items(text: str, placed: Sequence[tuple[Item, int, int]]) -> Iterator[Segment]:
    """A text as segments: text, and lists of the items that follow each other in it.

    Args:
        text: the whole text.
        placed: its items in order, each with its place in the text (start, end).
    """
    groups: list[tuple[list[Item], int, int]] = []
    for item, start, end in placed:
        if groups:
            items, group_start, group_end = groups[-1]
            if start < group_end or _SEPARATOR.fullmatch(text, group_end, start):
                items.append(item)
                groups[-1] = items, group_start, end
                continue
        groups.append(([item], start, end))
    done = 0
    for items, start, end in groups:
        opening = _OPENING.search(text[max(done, start - _LONGEST_OPENING) : start])
        yield text[done : start - len(opening[0]) if opening and opening[0].strip() else start]
        yield items
        closing = _CLOSING.match(text, end)
        done = closing.end() if closing and closing[0].strip() else end
    yield text[done:]
