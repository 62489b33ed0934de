"""Every generation, asked in every way: the cells of docs/generations.md, tried on tiny models."""

import re
import shutil
from pathlib import Path

import openai_server
import PIL.Image
import pytest

import vlkit
from vlkit.grounding import FORMATS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "generations.md").read_text(encoding="utf-8")
ASK = {"max_new_tokens": 3}
PICTURE = PIL.Image.effect_noise((90, 60), 60).convert("RGB")
QUESTION = vlkit.user("Which?", PICTURE)
SIZES = {"image_size": (800, 600), "input_size": (448, 336)}
BOX = vlkit.Box("cat", 80, 60, 400, 300)


def read_table(text):
    """Rows of the table of generations: each by the name in its first cell."""
    lines = text.partition("\n| generation |")[2].partition("\n\n")[0].splitlines()
    heads, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    return {row[0]: dict(zip(heads, row[1:], strict=True)) for row in rows}


TABLE = read_table(PAGE)
KINDS = {  # the tiny model of each row, and a name on the hubs
    "Qwen-VL": ("qwen_vl_base", "Qwen/Qwen-VL"),
    "Qwen-VL-Chat": ("qwen_vl", "Qwen/Qwen-VL-Chat"),
    "Qwen2-VL": ("qwen2_vl", "Qwen/Qwen2-VL-7B-Instruct"),
    "Qwen2.5-VL": ("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct"),
    "Qwen3-VL": ("qwen3_vl", "Qwen/Qwen3-VL-8B-Instruct"),
    "Qwen3-VL, experts": ("qwen3_vl_moe", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
    "Qwen3.5, 3.6, 3.8": ("qwen3_5", "Qwen/Qwen3.8-27B"),
    "Qwen3.5, 3.6, experts": ("qwen3_5_moe", "Qwen/Qwen3.6-35B-A3B"),
    "Qwen4-Exp": ("qwen4_exp", "Qwen/Qwen4-Exp"),
}


# --- how a cell is found: what it says, or an error ----------------------------------------------


def load(vlm, name, folder, tmp_path):
    return "yes" if vlm.name == str(folder) and vlm.model.num_parameters() > 10_000 else "no"


def generate(vlm, name, folder, tmp_path):
    reply = vlkit.generate(vlm, QUESTION, **ASK)
    return "yes" if reply.usage.new_tokens and reply.usage.image_tokens else "no"


def stream(vlm, name, folder, tmp_path):
    pieces = vlkit.stream(vlm, QUESTION, **ASK)
    return "yes" if "".join(pieces) == vlkit.generate(vlm, QUESTION, **ASK).text else "no"


def chat(vlm, name, folder, tmp_path):
    talk = vlkit.Chat(vlm, **ASK)
    talk.ask("Which?", PICTURE)
    second = talk.ask("And now?")
    turns = [vlkit.user("Which?", PICTURE), talk.messages[1], vlkit.user("And now?")]
    return "yes" if second.raw == vlkit.generate(vlm, turns, **ASK).raw else "no"


def batch(vlm, name, folder, tmp_path):
    questions = [QUESTION, vlkit.user("A longer question without one")]
    rows = vlkit.generate_batch(vlm, questions, progress=False, **ASK)
    alone = [vlkit.generate(vlm, question, **ASK).raw for question in questions]
    return vlm.answer_path()[0] if [row.raw for row in rows] == alone else "no"


def boxes(vlm, name, folder, tmp_path):
    form = FORMATS[vlm.family]
    written = vlkit.format_grounding(BOX, family=vlm.family, **SIZES)
    (read,) = vlkit.parse_grounding(written, family=vlm.family, **SIZES)
    assert read.label == "cat" and vlkit.iou(read, BOX) > 0.99
    spaces = {"0-1000": "0–1000", "resized": "pixels as the model sees it"}
    style = f"`{form.box_tags[0].strip('<|>')}` tags" if form.style == "tags" else "JSON"
    return f"{style}, {spaces[form.space]}"


def clips(vlm, name, folder, tmp_path):
    clip = vlkit.Video([PICTURE] * 4, frames=4)
    try:
        usage = vlkit.generate(vlm, vlkit.user("What moves?", clip), **ASK).usage
    except vlkit.errors.ModelError as error:
        return "no" if "reads pictures, but no clips" in str(error) else str(error)
    return "yes" if usage.video_tokens else "no"


def thinking(vlm, name, folder, tmp_path):
    try:
        vlkit.generate(vlm, "Hi", thinking=False, **ASK)
    except vlkit.errors.ModelError as error:
        return "no" if "no switch" in str(error) else str(error)
    return "on or off"


def lora(vlm, name, folder, tmp_path):
    rows = [{"messages": [QUESTION, vlkit.assistant("A cat.")]}]
    data = vlkit.lora.load_conversations(rows)
    options = {"epochs": 1, "learning_rate": 0.1, "output_dir": tmp_path / "run"}
    try:
        run = vlkit.lora.train(vlm, data, **options)
    except vlkit.errors.VlkitError as error:
        return "no" if "0 of 1 answers" in str(error) else str(error)
    tuned = vlkit.load(folder, adapter=run.output_dir)
    return "yes" if run.effect > 0 and tuned.adapter else "no"


def four_bit(vlm, name, folder, tmp_path):
    small = vlkit.load(folder, quantize="4bit")
    assert vlkit.generate(small, QUESTION, **ASK).usage.new_tokens
    kinds = {type(module).__name__ for module in small.model.modules()}
    return "yes" if "Linear4bit" in kinds else "no"


def preflight(vlm, name, folder, tmp_path):
    without = Path(shutil.copytree(folder, tmp_path / "small"))
    usage = vlkit.generate(vlm, QUESTION, **ASK).usage
    plans = [vlkit.preflight(model, QUESTION) for model in (vlm, without)]
    exact = {plan.usage.prompt_tokens for plan in plans} == {usage.prompt_tokens}
    far = vlkit.preflight(name, QUESTION)
    return "yes" if exact and far.family == vlm.family and far.usage.image_tokens else "no"


def hosted(vlm, name, folder, tmp_path):
    written = vlkit.format_grounding(vlkit.Box("cat", 9, 6, 45, 30), family=vlm.family,
                                     image_size=(90, 60), input_size=(90, 60))  # fmt: skip
    with openai_server.serve() as server:
        server.script = lambda asked: openai_server.Said(written)
        far = vlkit.load(f"openai:{name}", base_url=server.url, api_key=openai_server.KEY)
        reply = vlkit.generate(far, QUESTION)
    return "yes" if far.family == vlm.family and [b.label for b in reply.boxes] == ["cat"] else "no"


COLUMNS = {
    "load": load, "generate": generate, "stream": stream, "chat": chat, "batch": batch,
    "boxes": boxes, "clips": clips, "thinking": thinking, "LoRA": lora, "4-bit": four_bit,
    "preflight": preflight, "hosted": hosted,
}  # fmt: skip


def test_the_table_has_every_generation_and_every_way():
    assert list(TABLE) == list(KINDS)
    assert all(list(row) == list(COLUMNS) for row in TABLE.values())


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", KINDS)
def test_the_cell_says_what_is_so(row, column, tiny_folder, tiny_vlm, tmp_path):
    kind, name = KINDS[row]
    found = COLUMNS[column](tiny_vlm(kind), name, tiny_folder(kind), tmp_path)
    assert TABLE[row][column] == found


def test_the_readmes_table_is_a_part_of_it():
    short = read_table((ROOT / "README.md").read_text(encoding="utf-8"))
    assert list(short) == list(TABLE)
    for name, row in short.items():
        assert row.items() <= TABLE[name].items()


def test_each_generation_is_asked_in_the_words_that_the_page_shows():
    shown = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", PAGE, re.MULTILINE))
    assert set(shown) == set(FORMATS)
    for family, words in shown.items():
        assert words.strip() == vlkit.locate_prompt("公交车", family=family, language="zh")
