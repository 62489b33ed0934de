"""To and from ``supervision.Detections``, for its annotators, trackers and zones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Box, Items, list_items


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
