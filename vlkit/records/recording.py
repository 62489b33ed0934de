"""``Run``: writes every answer, training and evaluation to a folder."""

import json
import os
import re
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

import PIL.Image

from vlkit import hooks
from vlkit.errors import VlkitError, check_whole, failure_line
from vlkit.files import digest, json_line, json_lines, whole_folder, write_whole
from vlkit.generation.reply import Failure, Reply, record_of
from vlkit.messages import as_messages
from vlkit.records.facts import (
    LEFT_OUT,
    SECRET_FIELD,
    adapter_facts,
    environment,
    git_state,
    memory_facts,
    model_facts,
    without_secrets,
)
from vlkit.records.media import MediaStore
from vlkit.records.reading import LINES, MANIFEST, VERSION, Record, read_run

FIGURES = "figures"
KEEP_MEDIA = 64  # megabytes of pictures and clips that are not files

MOST_ROWS = 500  # of an added table; further rows are not recorded


def exhibit_facts(exhibit: Any, folder: Path) -> dict[str, Any]:
    """The record of what a user adds; figures and pictures are written to a file.

    Raises:
        VlkitError: something that cannot be shown on a page.
    """
    if isinstance(exhibit, str):
        return {"exhibit": "text", "text": exhibit}
    if hasattr(exhibit, "savefig"):
        look = {"format": "png", "dpi": 160, "bbox_inches": "tight", "facecolor": "white"}
        return {"exhibit": "figure", "file": _save(folder, partial(exhibit.savefig, **look))}
    if isinstance(exhibit, PIL.Image.Image):
        return {"exhibit": "figure", "file": _save(folder, partial(exhibit.save, format="PNG"))}
    if hasattr(exhibit, "to_frame") and hasattr(exhibit, "index"):
        exhibit = exhibit.to_frame()
    if hasattr(exhibit, "columns") and hasattr(exhibit, "itertuples"):
        return {"exhibit": "table", **_table_facts(exhibit)}
    raise VlkitError(
        f"a {type(exhibit).__name__} cannot be added; pass a figure of matplotlib, a DataFrame, a "
        "PIL image or a text"
    )


def _save(folder: Path, write: Any) -> str:
    (folder / FIGURES).mkdir(exist_ok=True)
    names = (f"{FIGURES}/{number:03d}.png" for number in count(1))
    name = next(name for name in names if not (folder / name).exists())
    write(folder / name)
    return name


def _table_facts(frame: Any) -> dict[str, Any]:
    index = frame.index
    numbered = index.name is None and list(index[:3]) == list(range(min(3, len(index))))
    shown = frame if numbered else frame.reset_index()
    rows = shown.head(MOST_ROWS)
    rows = rows.astype(object).where(rows.notna(), None)
    for name in rows.columns:  # a column "token" may well hold an answer's tokens
        if (field := SECRET_FIELD.search(str(name))) and "token" not in field[0].lower():
            rows[name] = LEFT_OUT
    columns = ["" if str(name) == "index" and not numbered else str(name) for name in shown.columns]
    return {"columns": columns, "rows": rows.values.tolist(), "of_rows": len(frame)}


# of a LoraRun
_TRAINED = "steps finished effect seconds losses evaluations metrics samples".split()


def answer_facts(result: Any) -> dict[str, Any]:
    """The part of an answer's line that comes from the Reply, Failure or error."""
    if isinstance(result, BaseException):
        text = str(result) or "it was interrupted"
        result = Failure(text.splitlines()[0], type(result).__name__)
    if isinstance(result, Failure):
        return {"error": result.error, "error_kind": result.kind}
    return record_of(result) | {"tokens": list(result.tokens) or None}


def plain_value(value: Any) -> Any:
    """An argument as a JSON value; for other objects, their type and number of rows."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not hasattr(value, "__len__"):
        return type(value).__name__
    return f"{type(value).__name__} of {len(value):,} rows" if len(value) else None


def plain(value: Any) -> Any:
    """A copy for JSON: NaN and infinity become None, other types their text."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    return plain(value.item()) if hasattr(value, "item") else str(value)


def seed_everything(seed: int) -> int:
    """Seed Python, numpy and torch on all devices; an open run records the seed.

    An answer with a ``seed=`` does not need this. The same seed on the same machine gives the same
    answers, also sampled ones and those of a batch. That cannot be promised across machines: other
    GPUs, drivers, torch versions or thread counts sum in another order, so one of two nearly equal
    tokens may win instead of the other, and all that follows differs. On a GPU in bfloat16 another
    batch size has the same effect, and torch's random numbers differ between GPU and CPU.
    :func:`vlkit.records.replay` shows which answers are the same here.

    Returns:
        The seed.

    Raises:
        VlkitError: not a whole number from 0 to 2³² - 1.
    """
    check_whole("seed", seed, 0, 2**32 - 1)
    from transformers import set_seed

    set_seed(seed)
    hooks.notify(hooks.open_runs(), "log", seed_everything=seed)
    return seed


class Run:
    """Records every answer, batch, training and evaluation inside its ``with`` block.

    A run inside another records into both. A run that the main thread opened also records what
    other threads ask, unless they open runs themselves. An answer that starts inside the block is
    recorded even if it ends later. In a notebook, call :meth:`open` and :meth:`close` instead of
    ``with`` to record over several cells.

    Args:
        name: for people; the folder's name has it and the time.
        directory: where the run's folder is made.
        keep_media: which originals of pictures and clips are kept, besides thumbnails. By default
            those that have no file to come back to (PIL images, arrays, bytes), each once, up to
            64 MB; another number changes the limit. True keeps all, False none.
        notes: what the run is about, for the report.

    Attributes:
        path: the run's folder.
        closed: whether the block was left.

    Raises:
        VlkitError: an empty name, or a folder that cannot be written.
    """

    def __init__(
        self,
        name: str,
        *,
        directory: str | os.PathLike = "runs",
        keep_media: bool | int = KEEP_MEDIA,
        notes: str = "",
    ):
        if not isinstance(name, str) or not name.strip():
            raise VlkitError(f"name={name!r} must be a text; it names the run's folder")
        if not isinstance(keep_media, bool):
            check_whole("keep_media", keep_media, 0)
        self.name, self.notes, self.keep_media = name, notes, keep_media
        self.path = Path(directory).expanduser() / _folder_name(name)
        self.closed = True
        self._lock = threading.RLock()
        self._models: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._secrets: set[str] = set()
        self._count = 0
        self._started = time.time()
        self._manifest: dict[str, Any] = {}

    @classmethod
    def attach(cls, path: str | os.PathLike) -> Self:
        """Continue to record into an existing run, such as that of another process."""
        record = read_run(path)
        facts = record.manifest
        notes, keep_media = facts.get("notes", ""), facts.get("keep_media", False)
        run = cls(record.name, notes=notes, keep_media=keep_media)
        run.path, run._manifest, run._count = record.path, facts, len(record.models)
        run._started = datetime.fromisoformat(facts["started"]).timestamp()
        run._store, run.closed = MediaStore(run.path, run.keep_media), False
        _end_torn_line(run.path / LINES)
        return run

    def open(self) -> Self:
        """Begin to record."""
        if self._manifest:
            raise VlkitError(f"the run {self.name!r} was opened before; make a new Run")
        self._started = time.time()
        self._manifest = {
            "vlkit_run": VERSION, "name": self.name, "notes": self.notes, "started": _now(),
            "ended": None, "keep_media": self.keep_media, "environment": environment(),
            "git": git_state(),
        }  # fmt: skip
        self.path = _free_place(self.path)
        with whole_folder(self.path) as made:
            (made / MANIFEST).write_text(self._manifest_text(), encoding="utf-8")
        self._store, self.closed = MediaStore(self.path, self.keep_media), False
        hooks.enter(self)
        return self

    def close(self, error: BaseException | None = None) -> None:
        """End it; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        hooks.leave(self)
        self._manifest |= {"ended": _now(), "seconds": round(time.time() - self._started, 3)}
        self._manifest["lines"] = sum(1 for _ in json_lines(self.path / LINES))
        if error is not None:
            self._manifest["error"] = failure_line(error)
        write_whole(self.path / MANIFEST, self._manifest_text())

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.close(error)

    def __repr__(self) -> str:
        return f"Run({self.name!r}, path={str(self.path)!r})"

    @property
    def record(self) -> Record:
        """What has been recorded so far."""
        return read_run(self.path)

    def log(self, **values: Any) -> None:
        """Record values such as numbers, texts and lists; also after the end."""
        self._write("values", values=values)

    def add(self, exhibit: Any, caption: str = "") -> None:
        """Add a figure of matplotlib, a DataFrame, a picture or a text to the report.

        Raises:
            VlkitError: something that cannot be shown on a page.
        """
        with self._lock:
            self._write("exhibit", caption=caption, **exhibit_facts(exhibit, self.path))

    # --- called by vlkit.hooks --------------------------------------------------------------------

    def add_answer(
        self, kind: str, vlm: Any, messages: Any, options: Mapping, result: Any, **facts: Any
    ) -> None:
        """Record a Reply, a Failure or the error that ended the call."""
        recorded, media = self._conversation(messages, result)
        with self._lock:
            model = self._model(vlm)
        question = {"messages": recorded, "media": media, "options": dict(options)}
        answer = answer_facts(result)
        shown = without_secrets({"messages": recorded, "answer": answer}, self._secrets)
        if shown["messages"] != recorded:
            facts["secrets_left_out"] = True
        if shown["answer"].get("raw") != answer.get("raw"):
            answer["tokens"] = None  # they would spell the secret
        key = digest([shown["messages"], [[m["of"], m["sha256"], m.get("options")] for m in media]])
        memory = memory_facts(vlm)
        self._write(
            "answer", kind=kind, model=model, key=key, **facts, **question, **answer, memory=memory
        )

    def add_training(self, arguments: Mapping[str, Any], result: Any) -> None:
        """Record a training's start (``result`` None), its LoraRun, or the error that ended it."""
        values = {name: plain_value(value) for name, value in arguments.items() if name != "vlm"}
        facts: dict[str, Any] = {"state": "begun" if result is None else "ended"}
        if isinstance(result, BaseException):
            facts |= {"error": failure_line(result)}
        elif result is not None:
            facts |= {name: getattr(result, name) for name in _TRAINED}
            facts["adapter"] = adapter_facts(str(result.output_dir))
        with self._lock:
            self._write("training", model=self._model(arguments["vlm"]), arguments=values, **facts)

    def add_evaluation(self, evaluation: Any, title: str = "") -> None:
        """Record the metrics of an Evaluation."""
        self._write("evaluation", title=title, evaluation=evaluation.to_dict())

    def _model(self, vlm: Any) -> str:
        if vlm not in self._models:
            self._secrets.update(vlm.secrets)
            self._count += 1
            name = f"model {self._count}"
            self._write("model", id=name, **model_facts(vlm))
            self._models[vlm] = name
        return self._models[vlm]

    def _conversation(self, messages: Any, result: Any) -> tuple[list, list]:
        try:
            checked = as_messages(messages)
        except VlkitError:
            return [{"malformed": f"{messages!r:.200}"}], []
        media: list[dict] = []
        recorded = []
        for message in checked:
            content = [self._item(item, media, result) for item in message["content"]]
            recorded.append({"role": message["role"], "content": content})
        return recorded, media

    def _item(self, item: dict, media: list[dict], result: Any) -> dict:
        if item["type"] == "text":
            return dict(item)
        loaded: Any = ()
        if isinstance(result, Reply):
            loaded = result.images if item["type"] == "image" else result.clips
        index = sum(facts["kind"] == item["type"] for facts in media)
        media.append(self._store.describe(item, loaded, index))
        return {"type": item["type"], "media": len(media) - 1}

    def _write(self, record: str, **facts: Any) -> None:
        seconds = round(time.time() - self._started, 3)
        line = {"record": record, "time": _now(), "seconds_in": seconds, **facts}
        content = json_line(plain(without_secrets(line, self._secrets)))
        # one write at the file's end: other processes may record into this run, too
        with self._lock, (self.path / LINES).open("ab", buffering=0) as file:
            if file.write(content) != len(content):
                raise OSError("the disk is full")

    def _manifest_text(self) -> str:
        facts = plain(without_secrets(self._manifest, self._secrets))
        return json.dumps(facts, ensure_ascii=False, indent=1) + "\n"


@lru_cache(maxsize=8)
def process_run(path: str) -> Run:
    """The run in a folder that ``VLKIT_RUN`` names for this process."""
    return Run.attach(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _folder_name(name: str) -> str:
    plain = re.sub(r"[^\w.-]+", "-", without_secrets(name)).strip("-.")[:60] or "run"
    return f"{datetime.now():%Y-%m-%d_%H%M%S}_{plain}"


def _free_place(path: Path) -> Path:
    """The path, with a number appended if it exists: two runs may start in the same second."""
    names = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(place for place in chain([path], names) if not place.exists())


def _end_torn_line(path: Path) -> None:
    if path.exists() and path.stat().st_size:
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
