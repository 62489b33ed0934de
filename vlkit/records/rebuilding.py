"""From a record back to what can be asked and drawn: messages, boxes, names."""

from __future__ import annotations

import re

from vlkit.grounding import Box, Item, Point
from vlkit.records.media import MediaStore
from vlkit.records.reading import Record

_TURN_ENDS = re.compile(r"(<\|im_end\|>|<\|endoftext\|>)+$")  # a service keeps them to itself


def question_of(answer: dict) -> str:
    """The text of the last turn that asks."""
    if "malformed" in answer["messages"][0]:
        return answer["messages"][0]["malformed"]
    asked = [m for m in answer["messages"] if m.get("role") == "user"]
    content = asked[-1]["content"] if asked else []
    return " ".join(item["text"] for item in content if item["type"] == "text")


def answer_of(answer: dict) -> str:
    """The text of the answer, or why there is none."""
    return answer["text"] if "raw" in answer else f"{answer['error_kind']}: {answer['error']}"


def items_of(answer: dict) -> list[Item]:
    """Boxes and points in pixels of the upright original."""
    boxes: list[Item] = [Box(**box) for box in answer.get("boxes", ())]
    return boxes + [Point(**point) for point in answer.get("points", ())]


def messages_of(record: Record, answer: dict) -> tuple[list[dict] | None, str]:
    """The conversation with its media, or None and why it cannot be had."""
    if answer.get("secrets_left_out"):
        return None, "a secret in the question was left out"
    if any("malformed" in message for message in answer["messages"]):
        return None, "the messages were malformed"
    store = MediaStore(record.path, keep=False)
    found: list[dict] = []
    for facts in answer["media"]:
        source, reason = store.find(facts)
        if source is None:
            return None, f"media missing: {reason}"
        found.append({"type": facts["kind"], facts["kind"]: source, **facts.get("options", {})})
    return [
        {
            "role": message["role"],
            "content": [
                dict(item) if item["type"] == "text" else found[item["media"]]
                for item in message["content"]
            ],
        }
        for message in answer["messages"]
    ], ""


def first_difference(then: dict, now: dict) -> int | None:
    """The first token (or, where tokens are not known, letter) that differs; None if none does."""
    a, b = then.get("tokens"), now.get("tokens")
    if a is None or b is None:
        a, b = (_TURN_ENDS.sub("", each["raw"]) for each in (then, now))
    if a == b:
        return None
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
