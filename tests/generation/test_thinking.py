"""Thinking of a model on this machine stays apart from its answer, on every way to ask."""

import json

import pytest
import torch

import vlkit
from vlkit.errors import ModelError, VlkitError
from vlkit.generation import rows
from vlkit.generation.reply import TextPieces
from vlkit.messages import opened_thought

QUESTION = [vlkit.user("Where is it?", vlkit.sample("three_shapes"))]
BOX = '{"bbox_2d": [100, 200, 300, 400], "label": "cat"}'
THOUGHT = f"Perhaps {BOX.replace('100', '150')}?"
WRITTEN = f"{THOUGHT}\n</think>\n\n{BOX}"


@pytest.fixture
def vlm(tiny_vlm):
    return tiny_vlm("qwen4_exp")  # answers by transformers' generate, which a test can replace


@pytest.fixture
def writes(vlm, monkeypatch):
    """``writes(text)``: whatever it is asked, the model writes this."""

    def install(text, ending="<|im_end|>"):
        tokens = vlm.processor.tokenizer(text + ending, add_special_tokens=False)["input_ids"]

        def generate(input_ids, stopping_criteria=(), **_):
            for count in range(1, len(tokens) + 1):
                new = torch.tensor([tokens[:count]] * len(input_ids))
                ids = torch.cat([input_ids, new], dim=1)
                for look in stopping_criteria:
                    look(ids, None)
            return ids

        monkeypatch.setattr(vlm.model, "generate", generate)
        monkeypatch.setattr(rows, "choose_path", lambda vlm: ("library", ""))

    return install


def test_every_way_to_ask(vlm, writes, tmp_path):
    writes(WRITTEN)
    pieces = vlkit.stream(vlm, QUESTION)
    assert "".join(pieces) == BOX
    chat = vlkit.Chat(vlm)
    rows = vlkit.generate_batch(vlm, [QUESTION], out=tmp_path / "out.jsonl", progress=False)
    answers = [vlkit.generate(vlm, QUESTION), pieces.reply, chat.ask("Where?", picture()), *rows]
    for reply in answers:
        assert (reply.thinking, reply.text) == (THOUGHT, BOX)
        assert reply.raw == f"<think>\n{WRITTEN}<|im_end|>"
        assert [box.xyxy for box in reply.boxes] == [(40, 60, 120, 120)]
    assert chat.messages[-1] == vlkit.assistant(BOX)
    (line,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()[-1:])
    assert (line["text"], line["thinking"]) == (BOX, THOUGHT)
    assert "<summary>thinking</summary>" in answers[0]._repr_html_()


def picture():
    return vlkit.sample("three_shapes")


def test_an_answer_that_is_cut_off_while_it_thinks_has_no_text_and_no_boxes(vlm, writes):
    writes(THOUGHT, ending="")
    pieces = vlkit.stream(vlm, QUESTION)
    assert list(pieces) == []
    assert (pieces.reply.thinking, pieces.reply.text) == (THOUGHT, "")
    items, note = pieces.reply.try_grounding()
    assert items == [] and "<think>" in note


def test_without_thinking_the_prompt_closes_it(vlm, writes):
    writes(BOX)
    quick = vlm.with_thinking(False)
    pieces = vlkit.stream(vlm, QUESTION, thinking=False)
    assert "".join(pieces) == BOX
    rows = vlkit.generate_batch(vlm, [QUESTION], thinking=False, progress=False)
    asked = [vlkit.generate(vlm, QUESTION, thinking=False), vlkit.generate(quick, QUESTION)]
    for reply in (*asked, pieces.reply, *rows):
        assert (reply.thinking, reply.text, reply.raw) == ("", BOX, f"{BOX}<|im_end|>")
    assert quick.load_options == {"thinking": False} and vlm.load_options == {}
    assert quick.identity != vlm.identity


def test_loaded_without_thinking(tiny_folder):
    quick = vlkit.load(tiny_folder("qwen3_5"), thinking=False)
    assert vlkit.inputs.load_messages(quick, "Hi").prompt.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_a_template_without_the_switch(tiny_vlm, kind):
    with pytest.raises(ModelError, match="no switch for thinking"):
        vlkit.generate(tiny_vlm(kind), "Hi", thinking=False)


def test_a_number_of_tokens_is_for_hosted_models(vlm):
    with pytest.raises(VlkitError, match="thinking=99 is unknown"):
        vlkit.stream(vlm, "Hi", thinking=99)


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        ("<|im_start|>user\n<think>\n<|im_end|>\n<|im_start|>assistant\n", ""),  # the user's
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\n<think>\nHm", "<think>\nHm"),  # a prefill
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>assistant\nThe <think>", ""),
    ],
)
def test_thinking_that_a_prompt_begins(prompt, begun):
    assert opened_thought(prompt) == begun


@pytest.mark.parametrize("step", range(1, 30))
def test_pieces_of_an_answer_whose_prompt_begins_the_thought(step):
    got, written = [], "Hm.\n</think>\n\nA <|x|> cat"
    pieces = TextPieces(got.append, "<think>\n", special=False)
    for start in range(0, len(written), step):
        pieces(written[start : start + step])
    pieces.end()
    assert "".join(got) == "A <|x|> cat"


@pytest.mark.parametrize("ask", [vlkit.generate, vlkit.Chat, vlkit.stream])
def test_an_answer_with_a_schema_is_written_without_thinking(vlm, ask):
    pytest.importorskip("llguidance")
    asked = {"schema": {"type": "object"}, "max_new_tokens": 4}

    def answer(**options):
        if ask is vlkit.Chat:
            return vlkit.Chat(vlm, **asked, **options).ask("Where is it?")
        said = ask(vlm, vlkit.user("Where is it?"), **asked, **options)
        return said if ask is vlkit.generate else (list(said), said.reply)[1]

    quick, off, on = answer(), answer(thinking=False), answer(thinking=True)
    assert (quick.raw, quick.usage) == (off.raw, off.usage)
    assert quick.text.lstrip().startswith("{") and not quick.thinking
    assert on.raw.startswith("<think>")
    kept = vlkit.generate(vlm, vlkit.user("Where is it?"), max_new_tokens=4)
    assert kept.raw.startswith("<think>")  # without a schema the template decides
