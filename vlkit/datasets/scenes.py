"""``read_scenes``, ``write_scenes``, ``convert``; the table of formats."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vlkit.datasets.conversations import AMBIGUOUS, SWIFT, detect_convention, json_families
from vlkit.datasets.formats.chats import pictures_of, read_chats, rewrite_row, write_chats
from vlkit.datasets.formats.coco import read_coco, read_refcoco, write_coco, write_refcoco
from vlkit.datasets.formats.label_studio import read_label_studio, write_label_studio
from vlkit.datasets.formats.voc import read_voc, write_voc
from vlkit.datasets.formats.yolo import read_yolo, write_yolo
from vlkit.datasets.pictures import (
    PictureFolder,
    Scene,
    checked_box,
    is_turned,
    picture_folder,
    upright_size,
)
from vlkit.errors import VlkitError, check_whole, warn_user
from vlkit.files import first_json, read_rows, read_text, relative, whole_folder, write_rows
from vlkit.grounding.formats import FORMATS


def read_samples(path: Path, images: Path | None) -> list[Scene]:
    """The pictures of ``samples.json`` with the boxes of what is in them."""
    file = path / "samples.json" if path.is_dir() else path
    scenes = []
    for row in read_rows(file):
        if row.get("kind") == "clip":
            continue
        try:
            image, size = (images or file.parent) / row["file"], (row["width"], row["height"])
            items = [
                checked_box(thing["label"], thing["box"], f"{file}, {row['name']}")
                for thing in row["objects"]
                if thing.get("box")
            ]
        except (KeyError, TypeError) as error:
            why = f"{type(error).__name__} {error}"
            raise VlkitError(f"{file} is not a samples.json of vlkit: {why}") from None
        scenes.append(Scene(image, upright_size(image, size), tuple(items)))
    return scenes


_READERS = {
    "coco": read_coco,
    "label-studio": read_label_studio,
    "refcoco": read_refcoco,
    "samples": read_samples,
    "yolo": read_yolo,
    "voc": read_voc,
}
_WRITERS = {"coco": write_coco, "label-studio": write_label_studio, "refcoco": write_refcoco}
_FOLDER_WRITERS = {"yolo": write_yolo, "voc": write_voc}
CHATS = (*FORMATS, SWIFT)  # conversations, with their coordinates in one of these conventions
NAMES = (*_READERS, *CHATS)


def read_scenes(
    path: str | os.PathLike,
    *,
    format: str = "auto",
    images: str | os.PathLike | None = None,
    max_image_tokens: int | None = None,
) -> list[Scene]:
    """Read a data set.

    Args:
        path: the file or folder.
        format: a name in the table of :mod:`vlkit.datasets`; ``auto`` finds it by the content.
        images: the folder with the pictures, where the data set does not contain them.
        max_image_tokens: to which a family that writes pixels of the resized picture was limited.

    Raises:
        VlkitError: something is malformed, or a picture has another size than the data set
            states, for example because its boxes were drawn before its EXIF rotation.
    """
    path = Path(path)
    name = detect_format(path) if format == "auto" else check_format(format)
    folder = picture_folder(images)
    if name in CHATS:
        return read_chats(path, name, folder, max_image_tokens)
    return _READERS[name](path, folder)


def write_scenes(
    scenes: Iterable[Scene],
    path: str | os.PathLike,
    *,
    format: str,
    max_image_tokens: int | None = None,
    prompt: str | None = None,
    copy_pictures: bool = False,
) -> None:
    """Write a data set, whole or not at all.

    ``yolo`` and ``voc`` copy the pictures into their folder; the others refer to them. A picture
    that its EXIF tag rotates is always copied, upright, since other tools do not rotate it.

    Args:
        scenes: what to write.
        path: the file or folder; a folder must be new or empty.
        format: a name in the table of :mod:`vlkit.datasets`.
        max_image_tokens: to which a family that writes pixels of the resized picture is limited.
        prompt: the question of a conversation, with ``{label}`` for one about each label; by
            default the one with which ``evaluate-grounding`` asks.
        copy_pictures: copy all pictures next to the file, into a folder of its name.

    Raises:
        VlkitError: what the format cannot hold.
    """
    name, path, rows = check_format(format), Path(path), list(scenes)
    if prompt is not None and name not in CHATS:
        raise VlkitError(f"prompt={prompt!r:.60} is for conversations; {name} has no questions")
    if name == "samples":
        raise VlkitError(f"{name} can only be read; write another format")
    if name in _FOLDER_WRITERS:
        with whole_folder(path) as folder:
            return _FOLDER_WRITERS[name](rows, folder)
    place = _placing(path, copy_pictures)
    rows = [replace(scene, image=place(scene.image)) for scene in rows]
    if name in CHATS:
        return write_chats(rows, path, name, max_image_tokens, prompt)
    _WRITERS[name](rows, path)


def _placing(target: Path, copy_all: bool) -> Callable[[Path], Path]:
    """A function from a picture to the file that the target names: itself, or an upright copy."""
    copies = PictureFolder(target.with_name(f"{target.stem}_pictures"))

    def place(image: Path) -> Path:
        if not copy_all and not is_turned(image):
            return image
        if not copy_all:
            warn_user(
                f"{image} is rotated by its EXIF tag, which other tools ignore; an upright copy "
                f"is in {copies.folder}"
            )
        return copies.add(image)

    return place


def check_format(name: str) -> str:
    """The name itself. Raises VlkitError for an unknown one."""
    if name not in NAMES:
        raise VlkitError(f"format {name!r} is unknown; formats = {list(NAMES)}")
    return name


def detect_format(path: Path) -> str:
    """The format of a file or folder.

    Raises:
        VlkitError: it does not exist, or its format cannot be determined.
    """
    if not path.exists():
        raise VlkitError(f"{path} does not exist; name a data set's file or folder")
    if path.is_dir():
        known = {"samples": "samples.json", "voc": "**/*.xml", "yolo": "labels/**/*.txt"}
        for name, pattern in known.items():
            if next(path.glob(pattern), None):
                return name
        raise VlkitError(f"{path} has no Annotations/*.xml and no labels/*.txt; pass its format")
    return _detect_rows(path)


def _detect_rows(path: Path) -> str:
    row = first_json(path)
    if isinstance(row, dict):
        if {"images", "annotations"} <= row.keys():
            return "coco"
        for key, name in (("objects", "ms-swift"), ("sent", "refcoco"), ("data", "label-studio")):
            if key in row:
                return name
        if row.keys() & {"messages", "conversations"}:
            return _detect_family(path)
    raise VlkitError(
        f"cannot tell the format of {path} from its content; pass source_format (in the shell "
        f"--from), one of {NAMES}"
    )


def _detect_family(path: Path) -> str:
    name = detect_convention({}, [read_text(path)])
    if name and name != AMBIGUOUS:
        return name
    raise VlkitError(
        f"cannot tell which family wrote the coordinates in {path}; pass one of {json_families()}"
    )


@dataclass(frozen=True)
class Conversion:
    """What was converted: both formats, the number of rows (or pictures), of boxes and points."""

    source_format: str
    target_format: str
    rows: int
    items: int

    def __str__(self) -> str:
        way = f"{self.source_format} → {self.target_format}"
        return f"{way}: {self.rows:,} rows, {self.items:,} boxes and points"


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    to: str,
    source_format: str = "auto",
    images: str | os.PathLike | None = None,
    max_image_tokens: int | None = None,
    prompt: str | None = None,
    copy_pictures: bool = False,
) -> Conversion:
    """Convert a data set with boxes.

    Between two generations' conventions, or from and to ms-swift's, the conversations stay as they
    are and only the coordinates in them are rewritten, in questions as in answers.

    Args:
        source: a file or folder in one of the formats of :mod:`vlkit.datasets`.
        target: the file or folder to write; a file is replaced at once, a folder must be new.
        to: the target's format: ``coco``, ``yolo``, ``voc``, ``refcoco``, ``label-studio``,
            ``ms-swift``, or a family such as ``qwen2_5_vl``.
        source_format: the source's, where it cannot be found by the content.
        images: the folder with the pictures, where the source's paths do not lead to them.
        max_image_tokens: to which pictures are limited in training, or by the model that wrote the
            source; used for ``qwen2_5_vl``, whose coordinates are pixels of the resized picture.
        prompt, copy_pictures: as for :func:`vlkit.datasets.write_scenes`.

    Raises:
        VlkitError: naming the row that is malformed or whose picture has another size; or
            ``images`` is not a folder.
    """
    check_whole("max_image_tokens", max_image_tokens, 1, optional=True)
    source, target = Path(source), Path(target)
    name = detect_format(source) if source_format == "auto" else check_format(source_format)
    if name in CHATS and check_format(to) in CHATS:
        if prompt is not None:
            raise VlkitError(f"prompt={prompt!r:.60}, but {source} has its own questions")
        folder, place = picture_folder(images) or source.parent, _placing(target, copy_pictures)
        rows, items = [], 0
        for number, row in enumerate(read_rows(source), start=1):
            try:
                pictures, size = pictures_of(row, folder)
                new, count = rewrite_row(row, name, to, size, max_image_tokens)
            except VlkitError as error:
                raise VlkitError(f"{source}, row {number}: {error}") from None
            if pictures:
                key = "images" if "images" in row else "image"
                names = [relative(place(picture), target) for picture in pictures]
                new = new | {key: names[0] if isinstance(row[key], str) else names}
            rows.append(new)
            items += count
        write_rows(target, rows)
        return Conversion(name, to, len(rows), items)
    scenes = read_scenes(source, format=name, images=images, max_image_tokens=max_image_tokens)
    write_scenes(
        scenes, target, format=to, max_image_tokens=max_image_tokens, prompt=prompt,
        copy_pictures=copy_pictures,
    )  # fmt: skip
    return Conversion(name, to, len(scenes), sum(len(scene.items) for scene in scenes))
