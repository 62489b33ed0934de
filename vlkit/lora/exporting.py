"""``lora.export``, ``export_adapter``, ``merge``: for other tools."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlkit.datasets.conversations import SWIFT
from vlkit.datasets.formats.chats import Writer, input_size_for
from vlkit.datasets.pictures import copy_picture
from vlkit.errors import MediaError, ModelError, VlkitError, check_choice, check_whole
from vlkit.files import whole_folder, write_rows, write_whole
from vlkit.grounding.formats import FORMATS as FAMILIES
from vlkit.lora.arguments import as_folder
from vlkit.lora.data import Example, as_data, naming_row, source_key
from vlkit.media.image import load_image
from vlkit.media.sources import is_remote, local_path
from vlkit.messages import read_media_item
from vlkit.models.adapters import WEIGHTS, check_name, family_of_adapter, find_marks
from vlkit.models.hub import check_shard, read_model_file
from vlkit.models.load import hide_small_bar, load_here

CONFIG = "adapter_config.json"


def export_adapter(
    adapter: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
) -> Path:
    """Write an adapter alone, as PEFT, vLLM and ms-swift read it (docs/howto.md has the commands).

    Besides PEFT's two files it writes ``args.json``, which names the base model for ms-swift, and,
    from a run of :func:`vlkit.lora.train`, ``adapter_base.json``, by which ``load`` recognises the
    base. Checkpoints and the state of the training are left out.

    Args:
        adapter: the folder of an adapter, such as the ``output_dir`` of a run.
        folder: a new or empty one; it appears whole or not at all.
        model: the base's name for other programs, such as ``Qwen/Qwen2-VL-2B-Instruct``; by default
            the name in the adapter.

    Returns:
        The folder.

    Raises:
        ModelError: the adapter is incomplete, its base is unknown, or ``model`` is of another
            generation.
        VlkitError: the folder is in use.
    """
    check_name(adapter, "adapter")
    check_name(folder, "folder")
    if model is not None:
        check_name(model, "model")
    source, target = Path(adapter).expanduser(), Path(folder).expanduser()
    config = _read_config(source)
    base, family = _base_of(source, config, model)
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    with whole_folder(target) as written:
        for file in (source / WEIGHTS, find_marks(source)):
            if file is not None:
                shutil.copyfile(file, written / file.name)
        _write(written / CONFIG, config)
        _write(written / "args.json", _swift_arguments(base, family))
    return target


def _read_config(source: Path) -> dict:
    if not (source / CONFIG).is_file() or not (source / WEIGHTS).is_file():
        raise ModelError(f"{source} has no adapter: {CONFIG} and {WEIGHTS} are needed")
    check_shard(source / WEIGHTS)
    config = read_model_file(source / CONFIG)
    for name in ("r", "lora_alpha"):
        if not isinstance(value := config.get(name), int | float):
            raise ModelError(f"{source / CONFIG} is not of a LoRA adapter: {name} is {value!r}")
    return config


def _base_of(source: Path, config: dict, model: str | os.PathLike | None) -> tuple[str, str]:
    """The base's name for other programs, and its family. Raises ModelError."""
    trained_on = str(config.get("base_model_name_or_path") or "")
    base = trained_on if model is None else os.fspath(model)
    base_family = family_of_adapter({"base_model_name_or_path": base})
    family = family_of_adapter(config) or base_family
    if base in ("", "tiny") or family is None:
        unknown = f"{base!r}, a name that other programs do not know"
        raise ModelError(f"{source} was made for {unknown}; pass model=, a folder or hub id")
    if base_family not in (None, family):
        other = f"{trained_on!r} ({family}), not for {base!r} ({base_family})"
        raise ModelError(f"{source} was made for {other}; pass another name of the same model")
    return base, family


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _swift_arguments(base: str, family: str) -> dict[str, Any]:
    """What ``swift infer --adapters`` reads from a training by ms-swift."""
    return {
        "model": base, "model_type": family, "template": family, "task_type": "causal_lm",
        "train_type": "lora",  # before version 4
        "tuner_type": "lora",
        "swift_version": "4.0.0",  # without it model_type is not read
    }  # fmt: skip


def merge(
    adapter: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    model: str | os.PathLike = "tiny",
    dtype: str = "auto",
    device: str = "cpu",
) -> Path:
    """Write a model with an adapter's changes in its weights, for AutoModel, vLLM or ``load``.

    Args:
        adapter: folder or hub id.
        folder: a new or empty one; it appears whole or not at all.
        model: the base that the adapter was made for, as for :func:`vlkit.load`.
        dtype: of the weights written, as for :func:`vlkit.load`.
        device: where they are merged.

    Returns:
        The folder.

    Raises:
        ModelError: the adapter was made for another model.
        VlkitError: the folder is in use.
    """
    for argument, name in {"adapter": adapter, "folder": folder, "model": model}.items():
        check_name(name, argument)
    target = Path(folder).expanduser()
    with whole_folder(target) as written:
        vlm = load_here(model, adapter=adapter, dtype=dtype, device=device)
        network = vlm.model.merge_and_unload()
        with hide_small_bar(network.get_memory_footprint()):
            network.save_pretrained(written)
        vlm.processor.save_pretrained(written)
    return target


class MediaFolder:
    """Writes media into a folder; the same file or object only once.

    Args:
        folder: made when the first one is added.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # names with their sources: an id is unique only while its object lives
        self._written: dict[Any, tuple[str, Any]] = {}

    def add(self, item: dict) -> str:
        """The path of a content item's file from the folder's parent; a URL is kept.

        Raises:
            MediaError: it cannot be read.
        """
        source = item[item["type"]]
        if is_remote(source):
            return source
        key = source_key(source)
        if key not in self._written:
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f"{len(self._written) + 1:06d}"
            write = _write_clip if item["type"] == "video" else _write_picture
            file = write(read_media_item(item), path)
            self._written[key] = f"{self.folder.name}/{file.name}", source
        return self._written[key][0]


def _write_picture(image: Any, path: Path) -> Path:
    source = image.source
    if isinstance(source, str | os.PathLike) and not os.fspath(source).startswith("data:"):
        return copy_picture(Path(local_path(source)), path)
    path = path.with_suffix(".png")
    load_image(image).save(path)
    return path


def _write_clip(video: Any, path: Path) -> Path:
    source = video.source
    if isinstance(source, str | os.PathLike):
        file = Path(local_path(source))
        if file.is_dir():
            return Path(shutil.copytree(file, path))
        try:
            return Path(shutil.copyfile(file, path.with_suffix(file.suffix.lower())))
        except OSError as error:
            raise MediaError(f"{file} cannot be copied: {error.strerror}") from None
    if isinstance(source, bytes):
        path = path.with_suffix(".mp4")
        path.write_bytes(source)
        return path
    path.mkdir()
    for number, frame in enumerate(source):
        load_image(frame).save(path / f"{number:05d}.png")
    return path


_LINES = "data.jsonl"
FILES = {"pai": "meta.json", "llava": "data.json", "ms-swift": _LINES, "messages": _LINES}
_SPEAKERS = {"user": "human", "assistant": "gpt"}  # of LLaVA
_TAGS = {  # a text with one of these would be read as a picture or box
    "pai": ("<img>", "</img>", "<video>", "</video>"),
    "llava": ("<image>", "<video>", "<img>", "</img>", "</video>"),
    "ms-swift": ("<image>", "<video>", "<audio>", "<bbox>", "<ref-object>"),
    "messages": (),
}


def export(
    data: Any,
    folder: str | os.PathLike,
    *,
    format: str = "pai",
    family: str | None = None,
    max_image_tokens: int | None = None,
) -> Path:
    """Write training data and its media into one folder, as other trainers read them.

    | format | file | read by |
    |---|---|---|
    | ``pai`` | ``meta.json``, ``<img>media/…</img>`` in the text | PAI, Qwen-VL |
    | ``llava`` | ``data.json``, ``<image>`` in the text | LLaVA, many trainers of Qwen2-VL |
    | ``ms-swift`` | ``data.jsonl``, boxes as ``objects`` | ms-swift |
    | ``messages`` | ``data.jsonl`` in transformers' chat format | TRL, transformers |

    Paths are relative to the file; set ``ROOT_IMAGE_DIR`` to the folder for ms-swift. Pictures that
    other readers would show rotated, or with another background, are written upright and opaque;
    all others are copied. :func:`load_conversations` reads each format back. In ``llava`` a system
    prompt is the row's ``system``, as LLaMA-Factory has it; QwenLM's own fine-tuning ignores it (as
    a turn it would learn it as an answer).

    Args:
        data: from :func:`load_conversations`, or what that reads.
        folder: a new or empty one; it appears whole or not at all.
        format: of the table above.
        family: whose convention the boxes in the texts get, such as ``qwen2_5_vl``; by default that
            of the source. Not used for ``ms-swift``, which converts boxes itself.
        max_image_tokens: to which the model to train will be limited; only ``qwen2_5_vl`` uses it.

    Returns:
        The file.

    Raises:
        VlkitError: a row that the format cannot represent; the folder is in use.
        MediaError: a picture that cannot be read.
    """
    check_choice("format", format, FILES)
    check_choice("family", family, (None, *FAMILIES))
    check_whole("max_image_tokens", max_image_tokens, 1, optional=True)
    data, target = as_data(data), as_folder("folder", folder)
    with whole_folder(target) as written:
        media = MediaFolder(written / "media")
        rows = []
        for example in data:
            with naming_row(example):
                rows.append(_row(example, format, family, max_image_tokens, media))
        file = written / FILES[format]
        if file.suffix == ".jsonl":
            write_rows(file, rows)
        else:
            write_whole(file, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return target / FILES[format]


def _row(
    example: Example, format: str, family: str | None, limit: int | None, media: MediaFolder
) -> dict:
    """One example in one format; its media are copied on the way."""
    writer = _writer(example, SWIFT if format == SWIFT else family, limit)
    texts = iter(_texts(example, format, writer))
    files: dict[str, list[str]] = {"image": [], "video": []}

    def as_part(item: dict) -> Any:
        kind = item["type"]
        if format == "messages":
            return item | {kind: next(texts) if kind == "text" else media.add(item)}
        if kind == "text":
            return next(texts)
        if options := sorted(item.keys() - {"type", kind}):
            raise _refusal(format, f"it has no field for {options[0]}={item[options[0]]!r}")
        files[kind].append(media.add(item))
        tag = "img" if kind == "image" else kind
        return f"<{tag}>{files[kind][-1]}</{tag}>" if format == "pai" else f"<{kind}>"

    turns = [(m["role"], list(map(as_part, m["content"]))) for m in example.messages]
    losses: list[dict] = [{"loss": False} if "loss" in m else {} for m in example.messages]
    if format in ("messages", SWIFT):  # no newline after a picture: ms-swift would keep it
        row: dict[str, Any] = {
            "messages": [
                {"role": role, "content": parts if format == "messages" else "".join(parts)} | loss
                for (role, parts), loss in zip(turns, losses, strict=True)
            ]
        }
        row |= {f"{kind}s": names for kind, names in files.items() if names}
        return row | (writer.objects() if writer and format == SWIFT else {})
    if any(losses):
        raise _refusal(format, "some of its answers are not learnt (loss)")
    conversation = [
        {"from": _SPEAKERS.get(role, role) if format == "llava" else role,
         "value": "".join(_add_newlines(parts))}
        for role, parts in turns
    ]  # fmt: skip
    row = {"id": f"row-{example.row}", "conversations": conversation}
    if format == "llava":
        if turns[0][0] == "system":  # QwenLM's reader learns any turn that is not human's
            row["system"] = conversation.pop(0)["value"]
        row |= {kind: n[0] if len(n) == 1 else n for kind, n in files.items() if n}
    return row


def _texts(example: Example, format: str, writer: Writer | None) -> Iterator[str]:
    for text, segments in zip(example.texts, example.segments, strict=True):
        for plain in [s for s in segments if isinstance(s, str)] if writer else [text]:
            if tags := [tag for tag in _TAGS[format] if tag in plain]:
                why = f"{tags[0]} in {plain!r:.60} would be read as a picture or box"
                raise _refusal(format, why)
        yield example.coordinates.write(segments, writer) if writer else text


def _refusal(format: str, why: str) -> VlkitError:
    return VlkitError(f'format="{format}" cannot represent it: {why}; use format="messages"')


def _writer(example: Example, family: str | None, limit: int | None) -> Writer | None:
    coordinates = example.coordinates
    if family == SWIFT and coordinates.convention:
        if coordinates.size is None:
            raise VlkitError("ms-swift writes pixels, but the row has pictures of several sizes")
        return Writer(SWIFT, coordinates.size, None)
    if family in (None, SWIFT):
        if coordinates.convention == SWIFT:
            raise VlkitError("its boxes are ms-swift's; for another format pass family=")
        return None
    size = coordinates.size
    return coordinates.writer(family, input_size_for(family, size, limit) if size else None)


def _add_newlines(parts: list[str]) -> Iterator[str]:
    """A newline between a picture and the text behind it; reading removes it."""
    for before, part in zip(["", *parts], parts, strict=False):
        tagged = before.startswith("<") and before.endswith(">") and not part.startswith("<")
        yield "\n" + part if tagged else part
