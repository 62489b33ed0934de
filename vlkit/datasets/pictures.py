"""``Scene``: a picture with its boxes; sizes, copies; supervision."""

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
from PIL.ExifTags import Base as ExifTag

from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Box, Item, Items, Size, list_items
from vlkit.media.image import load_image, picture_size


def to_detections(boxes: Items, *, classes: Iterable[str] | None = None) -> Any:
    """Boxes as ``supervision.Detections``; points and quads are left out.

    Args:
        boxes: in pixels of the upright original.
        classes: the labels in the order of their ``class_id``; by default the sorted labels.

    Raises:
        VlkitError: supervision is not installed, or a label is not among the classes.
    """
    try:
        import supervision
    except ImportError:
        raise VlkitError("supervision is not installed; pip install 'vlkit[eval]'") from None
    import numpy as np

    kept = [item for item in list_items(boxes) if isinstance(item, Box)]
    names = list(classes) if classes is not None else sorted({box.label for box in kept})
    if unknown := {box.label for box in kept} - set(names):
        raise VlkitError(f"labels {sorted(unknown)} are not among the classes {names}")
    return supervision.Detections(
        xyxy=np.array([box.xyxy for box in kept], dtype=float).reshape(-1, 4),
        class_id=np.array([names.index(box.label) for box in kept], dtype=int),
        data={"class_name": np.array([box.label for box in kept], dtype=str)},
    )


def from_detections(detections: Any, *, classes: Iterable[str] | None = None) -> list[Box]:
    """The boxes of ``supervision.Detections``, labelled by ``class_name`` or by ``classes``.

    Raises:
        VlkitError: there are class numbers without names; pass ``classes``.
    """
    labels = detections.data.get("class_name")
    if labels is None and detections.class_id is not None:
        names = list(classes or ())
        if any(not 0 <= number < len(names) for number in detections.class_id):
            raise VlkitError("the detections have class numbers without names; pass classes=[…]")
        labels = [names[number] for number in detections.class_id]
    labels = [""] * len(detections.xyxy) if labels is None else labels
    rows = zip(labels, detections.xyxy, strict=True)
    return [Box(str(label), *(float(n) for n in xyxy)) for label, xyxy in rows]


@dataclass(frozen=True)
class Scene:
    """One picture and what is in it.

    Attributes:
        image: its file, which may be missing where ``size`` is known.
        size: (width, height) of the upright picture.
        items: boxes, points and quads in its pixels.
        prompt: the question to which the items are the answer, or "".
    """

    image: Path
    size: Size
    items: tuple[Item, ...] = ()
    prompt: str = ""


# --- reading -------------------------------------------------------------------------------------


def picture_folder(images: str | os.PathLike | None) -> Path | None:
    """The argument ``images`` as a Path, or None. Raises VlkitError where it is not a folder."""
    if images is None:
        return None
    if not Path(images).is_dir():
        raise VlkitError(f"images={str(images)!r} is not a folder; check the path")
    return Path(images)


def find_picture(name: str, places: Iterable[Path]) -> Path:
    """Where a picture that a data set names is; in the first place where it is missing."""
    paths = [place / part for place in places for part in dict.fromkeys((name, Path(name).name))]
    return next((path for path in paths if os.path.isfile(path)), paths[0])


def upright_size(path: Path, stated: tuple[Any, Any] | None = None) -> Size:
    """A picture's upright (width, height): from its file or, where that is missing, as stated.

    Args:
        path: the picture.
        stated: the (width, height) in the data set, where it has them.

    Raises:
        VlkitError: neither is known, or they contradict each other.
    """
    known = _as_size(path, stated) if stated and None not in stated else None
    if not os.path.isfile(path):
        if known is None:
            raise VlkitError(f"{path} is missing, and the data set states no size; pass images=")
        return known
    size = picture_size(path)
    if known is None or known == size:
        return size
    why = "the boxes are for another size"
    if known == size[::-1]:
        why = "the boxes were drawn before its EXIF rotation"
    raise VlkitError(
        f"{path} is {size[0]}×{size[1]} upright, the data set says {known[0]}×{known[1]}: {why}; "
        "correct the boxes, or the size where only that is wrong"
    )


def _as_size(path: Path, stated: tuple[Any, Any]) -> Size:
    match [int(side) for side in finite_numbers(stated)]:
        case [width, height] if width > 0 < height:
            return width, height
    raise VlkitError(f"{path}: the data set says its size is {stated!r}; expected (width, height)")


def checked_box(label: Any, numbers: Any, where: str) -> Box:
    """A box of four finite numbers, its corners put in order. Raises VlkitError with ``where``."""
    match finite_numbers(numbers):
        case [x1, y1, x2, y2]:
            return Box(str(label), min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    raise VlkitError(f"{where}: {numbers!r:.80} are not the four numbers of a box")


def finite_numbers(values: Any) -> list[float]:
    """Numbers, or texts of numbers, as floats; empty where one is not a number below 10⁹."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return []
    return numbers if all(abs(number) < 1e9 for number in numbers) else []


def questions_of(scene: Scene, prompt: str) -> list[tuple[str, list[Item]]]:
    """A picture's questions with their answers: its own, or one for each label.

    Args:
        scene: the picture.
        prompt: for a picture without a question of its own. Without ``{label}`` in it there is one
            question, about all items.
    """
    if scene.prompt or "{label}" not in prompt:
        return [(scene.prompt or prompt, list(scene.items))]
    by_label: dict[str, list[Item]] = {}
    for item in scene.items:
        by_label.setdefault(item.label, []).append(item)
    return [(prompt.replace("{label}", name or "object"), of) for name, of in by_label.items()]


# --- writing -------------------------------------------------------------------------------------


def boxes_of(items: Iterable[Item], format: str) -> list[Box]:
    """The boxes alone, with a warning where a format cannot hold the rest."""
    items = list(items)
    boxes = [item for item in items if isinstance(item, Box)]
    if left_out := len(items) - len(boxes):
        warnings.warn(f"{left_out} points or quads left out: {format} has none", stacklevel=4)
    return boxes


class PictureFolder:
    """Copies pictures into a folder, each once, under a name of its own, upright and opaque.

    Other tools (the COCO, YOLO and VOC readers of torchvision and supervision, ms-swift) do not
    rotate a picture by its EXIF tag, so that upright boxes would be in the wrong place on it.

    Args:
        folder: made when the first one is copied.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._copies: dict[Path, Path] = {}
        self._stems: set[str] = set()

    def add(self, image: Path) -> Path:
        """The copy of a picture. Raises VlkitError where it is missing."""
        key = image.absolute()
        if key not in self._copies:
            if not image.is_file():
                raise VlkitError(f"{image} is missing, so it cannot be copied; pass images=")
            stem, count = image.stem, 1
            while stem in self._stems:  # two folders may have a 1.jpg each
                count += 1
                stem = f"{image.stem}_{count}"
            self._stems.add(stem)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._copies[key] = copy_picture(image, self.folder / stem)
        return self._copies[key]


def copy_picture(image: Path, stem: Path) -> Path:
    """Copy a picture under a name without its suffix, as every reader shows it as vlkit does.

    One that is turned by EXIF, transparent or animated, or not of 8 bits becomes a PNG.
    """
    try:
        with PIL.Image.open(image) as picture:
            plain = picture.mode in ("RGB", "L") and getattr(picture, "n_frames", 1) == 1
            plain = plain and "transparency" not in picture.info and not is_turned(image)
    except (OSError, SyntaxError):
        plain = False  # load_image raises the error
    copy = stem.with_name(f"{stem.name}{image.suffix.lower() if plain else '.png'}")
    if plain:
        shutil.copyfile(image, copy)
    else:
        load_image(image).save(copy)
    return copy


def is_turned(image: Path) -> bool:
    """Whether a picture's EXIF tag rotates or mirrors it."""
    try:
        with PIL.Image.open(image) as picture:
            return picture.getexif().get(ExifTag.Orientation, 1) in range(2, 9)
    except Exception:  # missing or damaged, which whoever reads the pixels reports
        return False


def copy_pictures(
    scenes: list[Scene], boxes: list[list[Box]], path: Path, folder: str
) -> Iterator[tuple[str, Scene, list[Box]]]:
    """Copy each picture once; yields its new name, a scene of it, and the boxes of all of them."""
    pictures: dict[Path, tuple[Scene, list[Box]]] = {}
    for scene, row in zip(scenes, boxes, strict=True):
        pictures.setdefault(scene.image.absolute(), (scene, []))[1].extend(row)
    copies = PictureFolder(path / folder)
    for image, (scene, row) in pictures.items():
        yield copies.add(image).name, scene, row
