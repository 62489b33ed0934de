"""``Record``: a run read back; its answers; the table of ``runs``."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastjsonschema
import PIL.Image

from vlkit.errors import VlkitError, counted, is_number, warn_user
from vlkit.files import json_lines, read_json
from vlkit.grounding.boxes import Box, Item, Point, scale_item
from vlkit.media.image import load_image
from vlkit.messages import text_of
from vlkit.plotting.comparing import draw_comparison
from vlkit.plotting.draw import draw_boxes
from vlkit.records.media import MediaStore, inside

if TYPE_CHECKING:
    import pandas


VERSION = 1


MANIFEST, LINES = "manifest.json", "records.jsonl"


@cache
def _schema(part: str) -> Callable[[Any], Any]:
    """Checks a manifest or a line for what the rest of the room relies on: they may be edited."""
    definitions = read_json(Path(__file__).with_name("schema.json"))
    return fastjsonschema.compile({"$ref": f"#/definitions/{part}", **definitions})


def _is_whole(line: Any) -> bool:
    """Whether a line has what its kind needs."""
    try:
        _schema("line")(line)
        if line["record"] != "answer":
            return True
        items_of(line)
    except (fastjsonschema.JsonSchemaException, TypeError, VlkitError):
        return False
    count = len(line["media"])
    content = [item for message in line["messages"] for item in message.get("content") or ()]
    return all("text" in item or item["media"] in range(count) for item in content)


@dataclass(frozen=True, eq=False)
class Record:
    """A run as it is on the disk.

    Attributes:
        path: its folder.
        manifest: facts known at its start, and how it ended.
        lines: everything recorded, in order; ``line["record"]`` is the kind of each.
        torn: the number of lines that cannot be read, such as one half written at a kill.
    """

    path: Path
    manifest: dict[str, Any]
    lines: list[dict[str, Any]] = field(repr=False)
    torn: int = 0

    @property
    def name(self) -> str:
        """The name that the user gave."""
        return self.manifest["name"]

    @property
    def status(self) -> str:
        """``"finished"``, ``"failed"`` (by an error) or ``"unfinished"`` (running, or killed)."""
        if not self.manifest.get("ended"):
            return "unfinished"
        return "failed" if self.manifest.get("error") else "finished"

    @property
    def seconds(self) -> float:
        """From the start to the end, or to the last line."""
        last = self.lines[-1]["seconds_in"] if self.lines else 0.0
        return self.manifest.get("seconds") or last

    @cached_property
    def answers(self) -> list[dict[str, Any]]:
        """A line for each question: the answer, or why there is none."""
        return self.of("answer")

    @cached_property
    def models(self) -> dict[str, dict[str, Any]]:
        """The models by the id that the answers name."""
        return {line["id"]: line for line in self.of("model")}

    @cached_property
    def values(self) -> dict[str, Any]:
        """The logged values; the last of those logged twice."""
        return {name: v for line in self.of("values") for name, v in line["values"].items()}

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """Logged numbers, and the metrics of evaluations as ``metric`` or ``metric (2)`` …"""
        metrics: dict[str, float | None] = {}
        for number, line in enumerate(self.of("evaluation"), 1):
            for name, row in line["evaluation"]["overall"].items():
                metrics[name if number == 1 else f"{name} ({number})"] = row.get("value")
        return metrics | {name: v for name, v in self.values.items() if is_number(v)}

    @property
    def trainings(self) -> int:
        """How many trainings were started."""
        return sum(line["state"] == "begun" for line in self.of("training"))

    @property
    def gap(self) -> str:
        """What is missing, in words; "" if nothing is known to be missing."""
        count = self.manifest.get("lines")  # when it ended; values may be logged after that
        lost = (count if isinstance(count, int) else 0) - len(self.lines) - self.torn
        parts = []
        if self.torn:
            parts.append(f"{counted(self.torn, 'line')} of {LINES} cut off or broken, and left out")
        if lost > 0:
            parts.append(f"{counted(lost, 'line')} of {LINES} gone since the run ended")
        return "; ".join(parts)

    def model_of(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The facts of the model that gave an answer; only its id if its line is lost."""
        return self.models.get(answer["model"], {"name": f"{answer['model']} (its line is lost)"})

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All lines of one kind: model, answer, training, evaluation, values, exhibit."""
        return [line for line in self.lines if line["record"] == kind]


def read_run(run: Any) -> Record:
    """A run from its folder, a file in it, a :class:`Run` or a :class:`Record`.

    Raises:
        VlkitError: there is no run, or a newer version wrote it.
    """
    if isinstance(run, Record):
        return run
    place = getattr(run, "path", run)
    if not isinstance(place, str | os.PathLike):
        raise VlkitError(f"{run!r:.60} is not a run; pass a Run or its folder")
    path = Path(place).expanduser()
    path = path.parent if path.name in (MANIFEST, LINES) else path
    if not (path / MANIFEST).is_file():
        raise VlkitError(
            f"{path} is not a run of vlkit (it has no {MANIFEST}); vlkit.records.runs() lists runs"
        )
    manifest = _read_manifest(path / MANIFEST)
    if manifest["vlkit_run"] > VERSION:
        raise VlkitError(f"{path} was written by a newer vlkit; update: pip install -U vlkit")
    every = [line for _, line in json_lines(path / LINES)]
    whole = [line for line in every if _is_whole(line)]
    return Record(path, manifest, whole, torn=len(every) - len(whole))


def runs(directory: str | os.PathLike = "runs") -> "pandas.DataFrame":
    """The runs of a folder, oldest first; logged values have their own columns.

    Raises:
        VlkitError: the folder does not exist.
    """
    import pandas

    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise VlkitError(f"{folder} is not a folder; pass the directory= of your Run calls")
    records = []
    for path in sorted(folder.glob(f"[!.]*/{MANIFEST}")):
        try:
            records.append(read_run(path))
        except VlkitError as error:
            warn_user(f"{error}; it is not in the table")
    rows = [_row(record) for record in sorted(records, key=lambda r: r.manifest["started"])]
    return pandas.DataFrame(rows, columns=None if rows else list(_COLUMNS))


_COLUMNS = (
    "name", "started", "status", "seconds", "answers", "failures", "models", "adapters",
    "new_tokens", "commit", "dirty", "path",
)  # fmt: skip


def _row(record: Record) -> dict[str, Any]:
    answers, models = record.answers, record.models.values()
    adapters = [model["adapter"]["name"] for model in models if model.get("adapter")]
    git = record.manifest.get("git") or {}
    row: dict[str, Any] = {
        "name": record.name,
        "started": record.manifest["started"],
        "status": record.status,
        "seconds": round(record.seconds, 1),
        "answers": sum("raw" in line for line in answers),
        "failures": sum("error" in line for line in answers),
        "models": ", ".join(dict.fromkeys(model["name"] for model in models)),
        "adapters": ", ".join(dict.fromkeys(adapters)),
        "new_tokens": sum(line["usage"]["new_tokens"] for line in answers if "raw" in line),
        "commit": (git.get("commit") or "")[:10],
        "dirty": git.get("dirty"),
        "path": str(record.path),
    }
    return row | {name: v for name, v in record.metrics.items() if name not in row}


def _read_manifest(file: Path) -> dict[str, Any]:
    with suppress(VlkitError, ValueError):  # a JsonSchemaException is a ValueError
        manifest = _schema("manifest")(read_json(file))
        datetime.fromisoformat(manifest["started"])
        return manifest
    raise VlkitError(f"{file} is damaged, or not of vlkit; restore it from a copy")


_TURN_ENDS = re.compile(r"(<\|im_end\|>|<\|endoftext\|>)+$")  # services leave them out


def question_of(answer: dict) -> str:
    """The text of the user's last turn."""
    if "malformed" in answer["messages"][0]:
        return answer["messages"][0]["malformed"]
    questions = [m for m in answer["messages"] if m.get("role") == "user"]
    return text_of(questions[-1], " ") if questions else ""


def answer_of(answer: dict) -> str:
    """The text of the answer, or why there is none."""
    return answer["text"] if "raw" in answer else f"{answer['error_kind']}: {answer['error']}"


def items_of(answer: dict) -> list[Item]:
    """Boxes and points in pixels of the upright original."""
    boxes: list[Item] = [Box(**box) for box in answer.get("boxes", ())]
    return boxes + [Point(**point) for point in answer.get("points", ())]


def messages_of(record: Record, answer: dict) -> tuple[list[dict] | None, str]:
    """The conversation with its media, or None and the reason."""
    if answer.get("secrets_left_out"):
        return None, "a secret in the question was left out"
    if any("malformed" in message for message in answer["messages"]):
        return None, "the messages were malformed"
    store = MediaStore(record.path, keep=False)
    media: list[dict] = []
    for facts in answer["media"]:
        source, reason = store.find(facts)
        if source is None:
            return None, f"media missing: {reason}"
        media.append({"type": facts["kind"], facts["kind"]: source, **facts.get("options", {})})
    messages = []
    for message in answer["messages"]:
        content = [media[i["media"]] if "media" in i else dict(i) for i in message["content"]]
        messages.append({"role": message["role"], "content": content})
    return messages, ""


def first_difference(then: dict, now: dict) -> int | None:
    """The index of the first token that differs, or character if tokens are not known; or None."""
    a, b = then.get("tokens"), now.get("tokens")
    if a is None or b is None:
        a, b = (_TURN_ENDS.sub("", answer["raw"]) for answer in (then, now))
    if a == b:
        return None
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def differences(then: dict, now: dict) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, other value) of what differs."""
    for name in then | now:
        if then.get(name) != now.get(name):
            yield name, then.get(name), now.get(name)


def flat(facts: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) pairs of nested facts; names of inner ones are joined by spaces."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


WIDTH = 840  # of a picture on a page


def draw_answer(
    record: Record,
    answer: dict,
    items: Sequence[Item],
    truth: Sequence[Item] = (),
    names: tuple[str, str] = ("answer", "truth"),
) -> PIL.Image.Image | None:
    """The last picture of a conversation with the answer's boxes; None where there is none.

    With ``truth``, or boxes of another answer, these are dashed, and a legend has both names.
    """
    picture, scale = _picture(record, answer)
    if picture is None:
        return None
    boxes, others = ([scale_item(item, scale) for item in of_one] for of_one in (items, truth))
    if not truth:
        return draw_boxes(picture, boxes)
    return draw_comparison(picture, boxes, others, names=names)


def _picture(record: Record, answer: dict) -> tuple[PIL.Image.Image | None, float]:
    """The picture, or None, and the scale by which boxes of the original fit it."""
    if not answer["media"]:
        return None, 1.0
    images = [medium for medium in answer["media"] if medium["kind"] == "image"]
    facts = (images or answer["media"])[-1]
    source = MediaStore(record.path, keep=False).find(facts)[0] if images else None
    with suppress(VlkitError):  # another picture is there now
        if source is not None:
            return load_image(source), 1.0
    with suppress(VlkitError):  # the thumbnail is lost
        if thumbnail := inside(record.path, facts.get("thumbnail")):
            picture, sizes = load_image(thumbnail), answer.get("image_sizes")
            return picture, picture.width / sizes[-1][0] if images and sizes else 0.0
    return None, 1.0
