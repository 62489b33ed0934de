"""``Reply`` and ``Failure``: an answer, its boxes, token counts, pictures."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

import PIL.Image

from vlkit.errors import VlkitError, warn_user
from vlkit.grounding.boxes import Box, Item, Point, Size, check_size
from vlkit.grounding.keys import Space
from vlkit.grounding.parse import format_of, locate_grounding
from vlkit.inputs import ModelInputs, ending_tokens
from vlkit.media.image import DeferredImages
from vlkit.media.video import Clip, DeferredClips
from vlkit.messages import as_messages, media_of, opened_thought, prefill_of, text_of
from vlkit.models.load import VLM
from vlkit.plotting.draw import draw_boxes, draw_frames
from vlkit.plotting.html import FAINT, fill_template, image_html
from vlkit.plotting.labels import label_colors

P = ParamSpec("P")
V = TypeVar("V")
_WARNING = "border-left:4px solid #D97706;padding-left:8px;margin:4px 0"


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer; ``prompt_tokens`` counts everything before it, media included.

    ``estimated``: a hosted service gave no counts, or not all of them.
    """

    image_tokens: int
    video_tokens: int
    prompt_tokens: int
    new_tokens: int
    estimated: bool = False


@dataclass(frozen=True, eq=False)
class Reply:
    """One answer.

    Attributes:
        text: the answer without special tokens and thinking; it begins with the prefill, if there
            is one.
        raw: the answer with its special tokens, as the model wrote it, thinking included; it begins
            with the prefill, or with the ``<think>`` in which the chat template ends.
        usage: token counts.
        seconds: wall time from messages to answer.
        family: of the model, which decides how ``raw`` is read.
        images: the upright originals, in the order of the conversation (for a batch, they are read
            again from their sources when they are used).
        input_sizes: (width, height) of each picture as the model saw it.
        clips: the sampled clips, their frames as the model saw them.
        finish_reason: ``"stop"``, ``"length"`` (``max_new_tokens`` reached) or ``"cancelled"``.
        cost: of a hosted model whose ``prices`` are known, in their currency; else None.
        tokens: the ids of the new tokens; empty where they are not known, as for a row read from
            a file.
        note: why transformers' own ``generate`` wrote it; empty where vlkit's engine did.
    """

    text: str
    raw: str
    usage: Usage
    seconds: float
    family: str
    images: Sequence[PIL.Image.Image] = field(default=(), repr=False)
    input_sizes: tuple[Size, ...] = ()
    clips: Sequence[Clip] = field(default=(), repr=False)
    finish_reason: str = "stop"
    cost: float | None = None
    tokens: tuple[int, ...] = field(default=(), repr=False)
    note: str = field(default="", repr=False)

    @property
    def thinking(self) -> str:
        """What the model thought before its answer; ``""`` where it did not."""
        return split_thinking(self.raw)[0]

    @property
    def image_sizes(self) -> tuple[Size, ...]:
        """(width, height) of each upright original."""
        if isinstance(self.images, DeferredImages):
            return self.images.sizes
        return tuple(image.size for image in self.images)

    @property
    def clip_sizes(self) -> tuple[tuple[Size, Size], ...]:
        """Of each clip the (width, height) of the original and of the frames as the model saw."""
        if isinstance(self.clips, DeferredClips):
            return self.clips.sizes
        return tuple((clip.info.size, clip.frame_size) for clip in self.clips)

    def grounding(
        self, image: int = -1, *, form: str | None = None, space: Space | None = None
    ) -> list[Item]:
        """Boxes, points and quads read as coordinates of one of the pictures, by default the last.

        Where there is no picture, of the last clip's frames.

        Args:
            image: the number of the picture.
            form: the family in whose form the answer is written, where a fine-tuned model does not
                write its own; ``"qwen2_vl"`` for tags.
            space: of the numbers, where it is not that of the form: ``"resized"`` for a Qwen2.5-VL
                that ms-swift trained to write tags.

        Raises:
            GroundingParseError: the answer contains coordinates that cannot be read.
        """
        items, left_out = self.read_grounding(image, form=form, space=space)
        if left_out:
            warn_user(left_out)
        return items

    @property
    def boxes(self) -> list[Box]:
        """Boxes in pixels of the last picture's upright original; see :meth:`grounding`."""
        return [item for item in self.grounding() if isinstance(item, Box)]

    @property
    def points(self) -> list[Point]:
        """Points in pixels of the last picture's upright original; see :meth:`grounding`."""
        return [item for item in self.grounding() if isinstance(item, Point)]

    def plot(self, image: int = -1, *, clip: int | None = None) -> PIL.Image.Image:
        """The picture (by default the last) with the answer's boxes and points.

        Where there is no picture, or with ``clip=`` the number of a clip: its sampled frames with
        their times, and the boxes on each frame.
        """
        if clip is not None or (self.clips and not self.images):
            frames = _pick(self.clips, -1 if clip is None else clip, "clip")
            return draw_frames(frames, [] if self.images else self.grounding())
        if not self.images:
            raise VlkitError("this reply is about no picture; pass one to vlkit.user to plot it")
        return draw_boxes(_pick(self.images, image, "image"), self.grounding(image))

    def read_grounding(
        self, image: int = -1, *, form: str | None = None, space: Space | None = None
    ) -> tuple[list[Item], str]:
        """:meth:`grounding`, without a warning: a second value names what was left out."""
        if not self.images and not self.clips:
            return [], ""
        key = image, form, space
        if key not in self._parsed:
            if self.images:
                size = _pick(self.image_sizes, image, "image")
                input_size = self.input_sizes[image] if self.input_sizes else None
            else:
                size, input_size = self.clip_sizes[-1]
            answer = self.raw, form or self.family
            self._parsed[key] = locate_grounding(*answer, size, input_size, space)
        placed, left_out = self._parsed[key]
        return [item for item, _, _ in placed], left_out

    @cached_property
    def _parsed(self) -> dict[tuple, tuple[list[tuple[Item, int, int]], str]]:
        """Answers that were read before, by the picture's number and how they were read."""
        return {}

    @property
    def parts(self) -> list[tuple[str, tuple[int, ...]]]:
        """The answer for readers: without special tokens and coordinates, boxes by their names.

        Each part is a text and the numbers of the items of :meth:`grounding` that it names; none
        for the text between names.
        """
        self.try_grounding()
        placed, _ = self._parsed.get((-1, None, None), ([], ""))
        if not placed and not _UNFINISHED.search(self.raw):
            return [(self.text, ())] if self.text else []
        return name_items(self.raw, len(self.raw) - len(split_thinking(self.raw)[1]), placed)

    def try_grounding(self) -> tuple[list[Item], str]:
        """:meth:`read_grounding` for views: the second value also names what cannot be read."""
        read = attempt(self.read_grounding)
        return ([], read.error) if isinstance(read, Failure) else read

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self, plain_picture: bool = True) -> str:
        picture: str | Failure = ""
        items, note = self.try_grounding()
        if plain_picture or items or note:
            picture = attempt(self.picture_html, items)
            if isinstance(picture, Failure):  # its file was deleted, for example
                note, picture = "; ".join(filter(None, [note, picture.error])), ""
        return fill_template(
            "vlkit.generation", "reply.html.jinja", autoescape=False, filters={"text": html.escape},
            reply=self, picture=picture, note=note, faint=FAINT, warning=_WARNING,
        )  # fmt: skip

    @property
    def text_html(self) -> str:
        """The answer as HTML without its picture, named things in the colours of their boxes."""
        items, marked = self.try_grounding()[0], []
        colors = label_colors(item.label for item in items)
        for text, numbers in self.parts:
            text = html.escape(text).replace("\n", "<br>")
            if numbers:
                color = colors[items[numbers[0]].label]
                look = f"background:{color}33;border-bottom:3px solid {color}"
                text = f'<span style="{look};padding:0 2px">{text}</span>'
            marked.append(text)
        return "".join(marked)

    def picture_html(self, items: Sequence[Item] = (), width: int = 640) -> str:
        """The last picture, or the last clip's frames, with items; ``""`` where there is none."""
        if not self.images and not self.clips:
            return ""
        if self.images:
            drawn = draw_boxes(self.images[-1], items)
        else:
            drawn = draw_frames(self.clips[-1], items)
        return image_html(drawn, width=width, alt=self.text)


_BETWEEN = re.compile(r"(?:<\|\w+\|>|```(?:json)?|[\s,\[\]{}])*")  # of boxes in tags or JSON
# a box in which an answer was cut off, at its end
_UNFINISHED = re.compile(r"""(?:<\|?box(?:_start\|)?>|\{\s*"(?:bbox|point)_2d")[^<{}]*$""")
_FENCE = re.compile(r"[\s\]]*```(?:json)?[\s\[]*")


def name_items(
    raw: str, start: int, placed: Sequence[tuple[Item, int, int]]
) -> list[tuple[str, tuple[int, ...]]]:
    """:attr:`Reply.parts` of a raw answer that begins at ``start``."""
    parts: list[tuple[str, tuple[int, ...]]] = []
    at = start
    for number, (item, begin, end) in enumerate(placed):
        name = item.label or f"#{number + 1}"
        if parts and begin <= at and parts[-1][0] == name:  # one name with several boxes
            parts[-1] = name, (*parts[-1][1], number)
        else:
            parts.append((_readable(raw[at:begin], ", " if parts else ""), ()))
            parts.append((name, (number,)))
        closing = f"{name}</points>"  # written a second time in the element
        at = max(at, end + len(closing) if raw.startswith(closing, end) else end)
    rest, *cut = _UNFINISHED.split(raw[at:])
    rest = re.sub("</?ref>", "", rest) + " …" if cut and not _BETWEEN.fullmatch(rest) else rest
    parts.append((_readable(rest, " …" if cut else ""), ()))
    return [part for part in parts if part[0]]


def _readable(text: str, between: str) -> str:
    if _BETWEEN.fullmatch(text):
        return between
    return _FENCE.sub("\n", SPECIAL.sub("", text))


def conversation_html(messages: Sequence[dict], replies: Sequence[Reply]) -> str:
    """A conversation's questions and answers as HTML; of turns without a Reply the text.

    A picture is shown with the question that brings it, and where an answer has boxes on it.
    """
    answers = iter(replies)
    shown, brings_media = [], False
    for message in messages:
        text = html.escape(text_of(message)).replace("\n", "<br>")
        if message["role"] == "assistant":
            reply = next(answers, None)
            shown.append(reply._repr_html_(brings_media) if reply else f"<p>{text}</p>")
        else:
            brings_media = any(media_of([message]))
            shown.append(f'<p style="margin:12px 0 4px"><b>{text}</b></p>')
    return f'<div style="max-width:640px">{"".join(shown) or "an empty conversation"}</div>'


def split_thinking(raw: str) -> tuple[str, str]:
    """(thinking, answer) of an answer as the model wrote it.

    Thinking stands before ``</think>``; its ``<think>`` may be the prompt's end instead of the
    answer's beginning. An answer that was cut off within it is all thinking.
    """
    thinking, end, answer = raw.rpartition("</think>")
    if end:
        return thinking.strip().removeprefix("<think>").strip(), answer.lstrip("\n")
    if raw.lstrip().startswith("<think>"):
        return raw.strip().removeprefix("<think>").strip(), ""
    return "", raw


SPECIAL = re.compile(r"<\|\w+\|>")
_SPECIAL_START = re.compile(r"<(\|\w*\|?)?$")  # at the end of a piece


class Thinking:
    """Splits an answer into what the model thinks, up to ``</think>``, and its answer.

    Args:
        begun: whether the prompt opens the thinking; otherwise ``<think>`` may.
    """

    def __init__(self, begun: str | bool):
        self._held, self.awaits = "", "</think>" if begun else "<think>"

    def split(self, piece: str, *, last: bool) -> tuple[str, str]:
        """What the next piece of text adds to the thinking and to the answer."""
        thought, text, self._held = "", self._held + piece, ""
        if self.awaits == "<think>":
            start = text.lstrip()
            if len(start) < 7 and "<think>".startswith(start) and not last:
                self._held = text
                return "", ""
            self.awaits = "</think>" if start.startswith("<think>") else ""
            text = start[7:] if self.awaits else text
        if self.awaits == "</think>":
            thought, end, text = text.partition("</think>")
            self.awaits = "\n" if end else self.awaits
            if not end and not last:  # what may become the tag waits
                ends = (thought[-size:] for size in range(7, 0, -1))
                self._held = next((e for e in ends if "</think>".startswith(e)), "")
                thought = thought.removesuffix(self._held)
        if self.awaits == "\n":
            text = text.lstrip("\n")
            self.awaits = "" if text else "\n"
        return thought, text


class TextPieces:
    """Passes text on without thinking and special tokens, wherever a piece is cut.

    Args:
        put: receives the text.
        begun: the beginning of the thinking, if the prompt has it; see
            :func:`vlkit.messages.opened_thought`.
        thinks: whether the prompt may have it, so that only its end is in the answer.
        special: whether there may be special tokens.
    """

    def __init__(self, put: Callable[[str], None], begun: str = "", *, thinks=False, special=True):
        self._put, self._held, self._special = put, "", special
        self._thinking, self._thoughts, self._thinks = Thinking(begun or thinks), "", thinks

    def __call__(self, piece: str, *, last: bool = False) -> None:
        thought, text = self._thinking.split(piece, last=last)
        self._thoughts += thought if self._thinks else ""
        if last and self._thinking.awaits == "</think>":  # nothing says that it was thinking
            text = self._thoughts
        text = self._held + text
        if self._special:
            text = SPECIAL.sub("", text)
        token_start = None if last or not self._special else _SPECIAL_START.search(text)
        end = token_start.start() if token_start else len(text)
        self._held = text[end:]
        if end:
            self._put(text[:end])

    def end(self) -> None:
        """Pass on what was held back."""
        self("", last=True)


class AnswerText:
    """An answer's text as its tokens come; what may become a stop text is held back.

    Args:
        tokenizer: of transformers, or of the ``tokenizers`` library.
        endings: tokens that end an answer and are never text.
        stops: texts that end it; they are not part of it.
        skip_special: leave out special tokens.

    Attributes:
        has_stops: whether a stop text may end it.
        read: how many tokens were added.
        ended: an ending token or a stop text has come.
        stopped: a stop text has come.
    """

    def __init__(
        self, tokenizer: Any, endings: Collection[int], stops: Sequence[str], skip_special: bool
    ):
        self._tokenizer, self._endings, self._stops = tokenizer, endings, stops
        self._skip_special = skip_special
        self._undecoded: list[int] = []  # the last tokens, while their bytes are half a character
        self._text, self._returned = "", 0  # the whole text, and how much of it was returned
        self._longest_stop = max(map(len, stops), default=1)
        self.has_stops, self.stopped, self.ended, self.read = bool(stops), False, False, 0

    def push(self, tokens: Sequence[int]) -> str:
        """Add tokens; returns the new text that is certain now."""
        self.read += len(tokens)
        for token in tokens:
            self.ended = self.ended or token in self._endings
            if self.ended:
                break
            self._undecoded.append(token)
            piece = self._decode()
            if not piece.endswith("\ufffd"):
                self._add(piece)
        held_back = 0 if self.stopped else self._count_held_back()
        return self._return_until(len(self._text) - held_back)

    def finish(self) -> str:
        """The rest: what was held back, and bytes that are not a whole character."""
        if not self.stopped:
            self._add(self._decode())
        return self._return_until(len(self._text))

    def _decode(self) -> str:
        return self._tokenizer.decode(self._undecoded, skip_special_tokens=self._skip_special)

    def _add(self, piece: str) -> None:
        self._undecoded.clear()
        start = max(0, len(self._text) - self._longest_stop + 1)
        self._text += piece
        places = [(self._text.find(stop, start), len(stop)) for stop in self._stops]
        spans = [(place + length, place) for place, length in places if place >= 0]
        if spans:  # the stop text that is complete first counts, however the tokens cut it
            _, place = min(spans)
            self._text, self.stopped, self.ended = self._text[:place], True, True

    def _count_held_back(self) -> int:
        """Length of the longest end of the text with which a stop text begins."""
        most = min(self._longest_stop - 1, len(self._text) - self._returned)
        ends = (self._text[-size:] for size in range(most, 0, -1))
        return next((len(e) for e in ends if any(s.startswith(e) for s in self._stops)), 0)

    def _return_until(self, end: int) -> str:
        piece = self._text[self._returned : end]
        self._returned = max(self._returned, end)
        return piece


@dataclass(frozen=True)
class Failure:
    """A row of a batch that got no answer.

    Attributes:
        error: what was wrong and what to do, in one line.
        kind: the error's class, such as ``"MediaError"``.
    """

    error: str
    kind: str = "VlkitError"

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The Failure of a row that raised this error."""
        return cls((str(error) or repr(error)).splitlines()[0], type(error).__name__)

    def __str__(self) -> str:
        return f"{self.kind}: {self.error}"

    def _repr_html_(self) -> str:
        return f'<p style="{_WARNING}">{html.escape(str(self))}</p>'


Result = Reply | Failure


def attempt(function: Callable[P, V], *args: P.args, **kwargs: P.kwargs) -> V | Failure:
    """The function's result for one row, or a Failure for whatever it raises.

    All work on a single row of a batch goes through here: no row ends the others.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:  # parsers, processors, models and callbacks raise any exception
        return Failure.of(error)


def _pick(media: Sequence, index: int, name: str) -> Any:
    if not -len(media) <= index < len(media):
        raise VlkitError(f"{name}={index} does not exist; this reply is about {len(media)}")
    return media[index]


def record_of(result: Reply | Failure) -> dict[str, Any]:
    """A result as written to a file; boxes and points in pixels of the upright original."""
    if isinstance(result, Failure):
        return asdict(result)
    items, note = result.try_grounding()
    return {
        "text": result.text,
        "raw": result.raw,
        **({"thinking": result.thinking} if result.thinking else {}),
        "boxes": [asdict(item) for item in items if isinstance(item, Box)],
        "points": [asdict(item) for item in items if isinstance(item, Point)],
        **({"grounding_note": note} if note else {}),
        "finish_reason": result.finish_reason,
        "usage": asdict(result.usage),
        "seconds": round(result.seconds, 4),
        **({} if result.cost is None else {"cost": result.cost}),
        "family": result.family,
        "image_sizes": result.image_sizes,
        "input_sizes": result.input_sizes,
        "clip_sizes": result.clip_sizes,
    }


def result_of(record: dict[str, Any], messages: Any) -> Reply | Failure:
    """The row of a record; pictures and clips are read from the messages when they are used.

    Args:
        record: from ``Journal.finished`` or a line of the file.
        messages: the row's conversation.

    Raises:
        VlkitError: the record was not made from a Reply to these messages; other errors where a
            field is missing.
    """
    if "error" in record:
        return Failure(record["error"], record["kind"])
    images, videos = media_of(as_messages(messages))
    _check_reply(record, len(images), len(videos))
    return Reply(
        text=record["text"],
        raw=record["raw"],
        usage=Usage(**record["usage"]),
        seconds=record["seconds"],
        family=record["family"],
        images=DeferredImages(images, record["image_sizes"]),
        input_sizes=tuple((w, h) for w, h in record["input_sizes"]),
        clips=DeferredClips(videos, record["clip_sizes"]),
        finish_reason=record["finish_reason"],
        cost=record.get("cost"),
    )


def _check_reply(record: dict[str, Any], images: int, videos: int) -> None:
    """Refuse here what would only fail when it is shown: a file may have been edited by hand."""
    *counts, estimated = vars(Usage(**record["usage"])).values()
    valid = {
        **{name: isinstance(record[name], str) for name in ("text", "raw", "finish_reason")},
        "usage": all(type(n) is int for n in counts) and estimated in (True, False),
        "seconds": isinstance(record["seconds"], int | float),
        "cost": isinstance(record.get("cost", 0.0), int | float),
        "image_sizes": len(record["image_sizes"]) == images,
        "input_sizes": len(record["input_sizes"]) in (0, images),
        "clip_sizes": len(record["clip_sizes"]) == videos,
    }
    if wrong := [name for name, is_valid in valid.items() if not is_valid]:
        raise VlkitError(f"its {wrong[0]} is {record[wrong[0]]!r:.60}")
    format_of(record["family"])
    pairs = [pair for clip in record["clip_sizes"] for pair in clip]
    for size in [*record["image_sizes"], *record["input_sizes"], *pairs]:
        check_size("size", size)


def make_reply(
    vlm, messages, inputs: ModelInputs, tokens: list[int], limit: int, start, note: str = ""
) -> Reply:
    """The Reply of one row's new tokens; ``start``: the time of the question, by perf_counter."""
    tokenizer = vlm.processor.tokenizer
    begun = opened_thought(inputs.prompts[0]) or prefill_of(messages)
    ended = bool(tokens) and tokens[-1] in ending_tokens(vlm)
    visible = tokenizer(begun, add_special_tokens=False)["input_ids"] if begun else []
    text = "".join(tokenizer.decode(ids, skip_special_tokens=True) for ids in (visible, tokens))
    return Reply(
        text=split_thinking(text)[1],
        raw=begun + tokenizer.decode(tokens, skip_special_tokens=False),
        usage=count_usage(vlm, inputs, len(tokens)),
        seconds=time.perf_counter() - start,
        family=vlm.family,
        images=_as_sequence(inputs.images[0]),
        input_sizes=tuple(inputs.input_sizes[0]),
        clips=_as_sequence(inputs.clips[0]),
        tokens=tuple(tokens),
        finish_reason="stop" if ended else "length" if len(tokens) >= limit else "cancelled",
        note=note,
    )


def _as_sequence(media: Any) -> Any:
    """A tuple; deferred media stay deferred."""
    return tuple(media) if isinstance(media, list) else media


def count_usage(vlm: VLM, inputs: ModelInputs, new_tokens: int) -> Usage:
    """The tokens of the first row."""
    ids = inputs.tensors["input_ids"][0]
    config = vlm.model.config
    image_tokens = int((ids == config.image_token_id).sum())
    video_tokens = int((ids == config.video_token_id).sum())
    return Usage(image_tokens, video_tokens, len(ids), new_tokens)
