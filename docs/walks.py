"""The two walks of architecture.md as SVG, drawn from the steps below: ``python docs/walks.py``.

The figures have a background of their own and follow the reader's light or dark theme.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent / "figures"
WIDTH, MARGIN, BOX, NOTE = 868, 10, 545, 569  # pixels; a note begins at NOTE
LINE, PASSED = 19, 30  # height of a line of text, and of an arrow with what passes along it
STYLE = """
  svg { background: #ffffff }
  .page { fill: #ffffff } .box { fill: #f4f6f8; stroke: #c3cad2 } .step { fill: #0b6e99 }
  .note { fill: #fff7e6; stroke: #e2c27a } .arrow, .link { stroke: #5b6670; fill: none }
  .head { fill: #5b6670 } .link { stroke-dasharray: 4 4 }
  text { font: 14px system-ui, "Noto Sans", "DejaVu Sans", sans-serif; fill: #1b1f24 }
  .title { font-weight: 600 } .number { fill: #ffffff; font-weight: 600; text-anchor: middle }
  .code { font: 12.5px ui-monospace, "DejaVu Sans Mono", monospace; fill: #24485c }
  .passed { font-style: italic; fill: #4a545e } .small { font-size: 12.5px }
  @media (prefers-color-scheme: dark) {
    svg { background: #14181c }
    .page { fill: #14181c } .box { fill: #20262c; stroke: #46505a } .step { fill: #2a8fbd }
    .note { fill: #352c17; stroke: #7d6630 } .arrow, .link { stroke: #a3adb7 }
    .head { fill: #a3adb7 } text { fill: #e8ecf0 } .code { fill: #9fd0e8 } .passed { fill: #b9c2cb }
  }
"""


class Step(NamedTuple):
    """One box of a walk.

    Attributes:
        title: what happens.
        code: the files of vlkit and the functions in them that do it, in order.
        result: what is passed to the next step.
        note: lines next to the box; code is in backquotes.
    """

    title: str
    code: list[tuple[str, list[str]]]
    result: str
    note: tuple[str, ...] = ()


ANSWER = [
    Step(
        "Write the message",
        [("messages.py", ["user"])],
        "a plain dict: role and content",
    ),
    Step(
        "Check options and messages, once",
        [
            ("generation/generate.py", ["generate", "generation_options"]),
            ("messages.py", ["as_messages"]),
        ],
        "CheckedMessages and options",
        ("stream and Chat start here as well:", "`generation/generate.py` `Stream` `Chat`"),
    ),
    Step(
        "Ask the model, wherever it runs",
        [("models/load.py", ["VLM.answer"]), ("generation/rows.py", ["answer_here"])],
        "the same, for a model on this machine",
        (
            "A hosted model has the same method:",
            "`remote/model.py` `RemoteVLM.answer`",
            "`remote/model.py` `RemoteVLM.answer`",
        ),
    ),
    Step(
        "Read pictures upright, sample clips, render the template",
        [
            ("inputs.py", ["load_messages", "render_prompt"]),
            ("media/image.py", ["Image.load"]),
            ("media/video.py", ["load_clip"]),
        ],
        "LoadedMessages",
    ),
    Step(
        "Resize pictures, cut them into patches, tokenize",
        [("inputs.py", ["make_inputs"]), ("models/families.py", ["SizeRules.image_size"])],
        "ModelInputs: tensors, original pictures, sizes that the model sees",
    ),
    Step(
        "Generate tokens with the engine",
        [
            ("engine/scheduler.py", ["Scheduler.admit"]),
            ("engine/slots.py", ["Engine.advance"]),
        ],
        "ids of the new tokens",
        (
            "What the engine cannot do, and many rows:",
            "`generation/rows.py` `Library.admit`",
            "`batch/answering.py` `generate_batch`",
            "`generation/rows.py` `answer_rows_here`",
        ),
    ),
    Step(
        "Make the Reply",
        [("generation/reply.py", ["make_reply", "count_usage"])],
        "Reply: text, raw, usage, pictures, sizes",
        ("Rows of a batch arrive here as well.",),
    ),
    Step(
        "reply.boxes: read the raw answer in its family's format",
        [
            ("generation/reply.py", ["Reply.read_grounding"]),
            ("grounding/parse.py", ["locate_grounding", "find_numbers"]),
            ("grounding/formats.py", ["read_answer"]),
        ],
        "labels with numbers in the format's coordinate space",
    ),
    Step(
        "Scale the numbers to the original picture",
        [("grounding/parse.py", ["span_of", "to_pixels"])],
        "Box, Point, Quad in pixels of the upright original",
    ),
    Step(
        "reply.plot(): draw them",
        [
            ("generation/reply.py", ["Reply.plot"]),
            ("plotting/draw.py", ["draw_boxes"]),
            ("plotting/labels.py", ["label_styles", "place_labels"]),
        ],
        "",
    ),
]

TRAINING = [
    Step(
        "Open the source: a file, a table or rows",
        [("lora/data.py", ["load_conversations", "open_rows"])],
        "raw rows, numbered",
        ("From a shell: `cli/training.py` `train`", "In a panel: `widgets/lora.py` `LoraPanel`"),
    ),
    Step(
        "Read each row in its format; check roles, files and boxes",
        [
            ("lora/data.py", ["RowReader.read"]),
            ("lora/data.py", ["detect_format", "read_turns"]),
            ("lora/data.py", ["place_coordinates", "find_damaged"]),
        ],
        "Example (together: TrainingData)",
        (
            "All problems of all rows are",
            "reported together:",
            "`lora/data.py` `DataError`",
        ),
    ),
    Step(
        "Check the arguments, choose layers and batch size",
        [
            ("lora/training.py", ["train"]),
            ("lora/arguments.py", ["check_arguments"]),
            ("lora/networks.py", ["plan_parts"]),
            ("lora/costs.py", ["choose_batch"]),
        ],
        "Task",
        ("The same, shown before training:", "`lora/inspection.py` `inspect`"),
    ),
    Step(
        "Add the adapters, note which weights they belong to",
        [
            ("lora/training.py", ["_run_once"]),
            ("models/adapters.py", ["write_marks"]),
            ("lora/networks.py", ["trainable", "lean_layers"]),
        ],
        "the network with its LoRA layers",
    ),
    Step(
        "Order the rows, prepare each when it is needed",
        [("lora/batches.py", ["LengthSampler.order", "Examples.prepare"])],
        "an Example at a time",
    ),
    Step(
        "Render and tokenize, label the tokens of the answers",
        [
            ("lora/data.py", ["Example.messages_for"]),
            ("lora/batches.py", ["read_example", "label_pieces", "truncate"]),
            ("inputs.py", ["render_prompt", "make_inputs"]),
        ],
        "Labelled: tensors and labels",
        ("Boxes are written as the family", "of the trained model writes them."),
    ),
    Step(
        "Make batches; a frozen encoder encodes each picture once",
        [("lora/batches.py", ["Collator", "FrozenTower.encode"])],
        "batches with labels",
    ),
    Step(
        "Train, evaluate, write checkpoints",
        [
            ("lora/training.py", ["VisionTrainer.compute_loss"]),
            ("lora/training.py", ["VisionTrainer.evaluate"]),
            ("lora/evaluating.py", ["Examiner"]),
        ],
        "trained weights and the log",
        ("Trainer itself is transformers'.", "Live curve: `lora/callbacks.py` `LiveCurve`"),
    ),
    Step(
        "Write the adapter; compare before, after and merged",
        [
            ("lora/training.py", ["_run_once"]),
            ("lora/run_folder.py", ["Prover.check", "summarize"]),
        ],
        "LoraRun, and the adapter's folder",
    ),
    Step(
        "vlkit.load(adapter=…): check the base, attach the adapter",
        [
            ("models/load.py", ["load_here"]),
            ("models/adapters.py", ["find_adapter", "attach_adapter"]),
        ],
        "",
    ),
]

WALKS = {
    "walk_answer": ("A question to an answer with boxes", ANSWER),
    "walk_training": ("A row to a trained adapter", TRAINING),
}


def draw_walk(title: str, steps: list[Step]) -> str:
    """The SVG of a walk, top to bottom."""
    parts, y = [], MARGIN
    for number, step in enumerate(steps, 1):
        parts += draw_step(number, step, y)
        y += height_of(step)
        if step.result:
            parts += draw_arrow(step.result, y)
            y += PASSED
    height = y + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">\n<title>{escape(title)}</title>\n'
        f'<style>{STYLE}</style>\n<rect class="page" width="{WIDTH}" height="{height}"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def height_of(step: Step) -> int:
    """Pixels of a step's box, its note included."""
    return 16 + LINE * max(1 + len(step.code), len(step.note))


def draw_step(number: int, step: Step, y: int) -> list[str]:
    """The box of a step, and the note next to it."""
    height, x = height_of(step), MARGIN + 52
    parts = [
        f'<rect class="box" x="{MARGIN}" y="{y}" width="{BOX}" height="{height}" rx="6"/>',
        f'<circle class="step" cx="{MARGIN + 26}" cy="{y + 20}" r="13"/>',
        f'<text class="number" x="{MARGIN + 26}" y="{y + 25}">{number}</text>',
        f'<text class="title" x="{x}" y="{y + 23}">{escape(step.title)}</text>',
    ]
    for i, (file, names) in enumerate(step.code, 1):
        code = escape(f"{file}  {', '.join(names)}")
        parts.append(
            f'<text class="code" x="{x}" y="{y + 23 + LINE * i}" xml:space="preserve">{code}</text>'
        )
    if step.note:
        note = 16 + LINE * len(step.note)
        left = WIDTH - MARGIN - NOTE
        parts += [
            f'<path class="link" d="M{MARGIN + BOX} {y + 20}H{NOTE}"/>',
            f'<rect class="note" x="{NOTE}" y="{y}" width="{left}" height="{note}" rx="6"/>',
        ]
        for i, line in enumerate(step.note):
            kind = "code" if line.startswith("`") else "small"
            words = escape(line.replace("`", ""))
            parts.append(
                f'<text class="{kind}" x="{NOTE + 10}" y="{y + 23 + LINE * i}">{words}</text>'
            )
    return parts


def draw_arrow(result: str, y: int) -> list[str]:
    """The arrow to the next step, with what is passed."""
    x, end = MARGIN + 26, y + PASSED
    return [
        f'<path class="arrow" d="M{x} {y}V{end - 6}"/>',
        f'<path class="head" d="M{x - 5} {end - 8}h10l-5 8z"/>',
        f'<text class="passed small" x="{MARGIN + 52}" y="{y + 20}">{escape(result)}</text>',
    ]


def main(folder: Path = FOLDER) -> None:
    for name, (title, steps) in WALKS.items():
        (folder / f"{name}.svg").write_text(draw_walk(title, steps), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
