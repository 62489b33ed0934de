"""Answers that follow a JSON schema: the logits processor, in transformers' own loop."""

import json
import sys

import pytest
import torch
from transformers import LogitsProcessorList

import vlkit
from vlkit.engine.sampling import SchemaProcessor
from vlkit.errors import VlkitError
from vlkit.inputs import ending_tokens, prepare_inputs

QUESTION = vlkit.user("Describe this image.", vlkit.sample("circles"))
COLOURS = ["red", "绿色"]
SCHEMA = {
    "type": "object",
    "properties": {
        "colours": {"type": "array", "items": {"enum": COLOURS}, "minItems": 1, "maxItems": 2},
        "inside": {"type": "boolean"},
    },
    "required": ["colours", "inside"],
    "additionalProperties": False,
}


def make(vlm, *arguments):
    return SchemaProcessor(vlm.processor.tokenizer, ending_tokens(vlm), *arguments)


def generate(vlm, schema, limit=40, **options):
    tensors = prepare_inputs(vlm, [[QUESTION]]).tensors
    processors = LogitsProcessorList([make(vlm, schema)])
    output = vlm.model.generate(
        **tensors, max_new_tokens=limit, logits_processor=processors, **options
    )
    return output[0, tensors["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["tiny", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("temperature", [None, 5.0])
def test_every_answer_follows_it_and_ends(vlm, tiny_vlm, kind, temperature):
    """Random models, of which any token is as likely as another, too."""
    vlm = vlm if kind == "tiny" else tiny_vlm(kind)
    torch.manual_seed(3)
    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    tokens = generate(vlm, SCHEMA, **sampled)
    assert tokens[-1] == vlm.processor.tokenizer.eos_token_id
    text = vlm.processor.tokenizer.decode(tokens[:-1])
    answer = json.loads(text)
    assert set(answer) == {"colours", "inside"} and isinstance(answer["inside"], bool)
    assert 1 <= len(answer["colours"]) <= 2 and set(answer["colours"]) <= set(COLOURS)
    assert text == json.dumps(answer, ensure_ascii=False)  # one line, as Python writes it


def test_a_step_that_is_repeated_and_an_answer_that_starts_again(vlm):
    process, prompt = make(vlm, SCHEMA), torch.zeros(1, 7).long()
    ids = vlm.processor.tokenizer.encode('{"colours": ["red"', add_special_tokens=False)
    logits = torch.zeros(1, 4000)

    def allowed(count):
        written = torch.tensor([ids[:count]]).long()
        return process(torch.cat([prompt, written], 1), logits)[0].isfinite()

    first = [allowed(count) for count in range(len(ids) + 1)]
    assert all(bool(first[i][token]) for i, token in enumerate(ids))
    assert all(0 < int(mask.sum()) < 100 for mask in first)
    assert torch.equal(allowed(len(ids)), first[-1])
    for count in (3, 0, 5):
        assert torch.equal(allowed(count), first[count])


def test_thinking_is_free_up_to_its_end(vlm, monkeypatch):
    tokenizer = vlm.processor.tokenizer
    end = tokenizer.encode(".", add_special_tokens=False)[-1]
    monkeypatch.setattr(type(tokenizer), "convert_tokens_to_ids", lambda self, text: end)
    process = make(vlm, SCHEMA, "<|im_start|>assistant\n<think>\n")
    prompt, logits = torch.zeros(1, 4).long(), torch.zeros(1, 4000)
    assert process(prompt, logits).isfinite().all()
    thinking = torch.tensor([tokenizer.encode("a b c.", add_special_tokens=False)])
    assert process(torch.cat([prompt, thinking[:, :-1]], 1), logits).isfinite().all()
    allowed = process(torch.cat([prompt, thinking], 1), logits)[0].isfinite().nonzero()
    assert all(tokenizer.decode(token)[0] == "{" for token in allowed)


def test_objects_have_no_other_properties_unless_the_schema_says_so(vlm):
    """What pydantic and most people write does not close its objects."""
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    decode = vlm.processor.tokenizer.decode
    assert decode(generate(vlm, schema)[:-1]) == '{"a": 1}'
    inner = {"type": "array", "items": {"$ref": "#/$defs/s"}, "minItems": 1, "maxItems": 1}
    nested = {"$defs": {"s": schema}, **inner}
    assert decode(generate(vlm, nested)[:-1]) == '[{"a": 1}]'
    tokens = generate(vlm, schema | {"additionalProperties": {"enum": [2]}}, 12)
    assert decode(tokens).startswith('{"a": 1, "')


@pytest.mark.parametrize("kind", ["tiny", "qwen3_vl"])
def test_generate_stream_and_chat_follow_it(vlm, tiny_vlm, kind):
    vlm = vlm if kind == "tiny" else tiny_vlm(kind)
    reply = vlkit.generate(vlm, QUESTION, schema=SCHEMA)
    assert set(json.loads(reply.text)) == {"colours", "inside"} and reply.finish_reason == "stop"
    assert "".join(vlkit.stream(vlm, QUESTION, schema=SCHEMA)) == reply.text
    chat = vlkit.Chat(vlm, schema=SCHEMA)
    assert chat.ask("Describe this image.", vlkit.sample("circles")).text == reply.text
    assert set(json.loads(chat.ask("And now?").text)) == {"colours", "inside"}
    cut = vlkit.generate(vlm, QUESTION, schema=SCHEMA, max_new_tokens=3)
    assert cut.finish_reason == "length" and reply.text.startswith(cut.text)
    with pytest.raises(VlkitError, match="not supported"):
        vlkit.generate(vlm, QUESTION, schema={"not": {}})


def test_a_served_model_follows_it_and_a_run_repeats_it(vlm, tmp_path):
    expected = vlkit.generate(vlm, QUESTION, schema=SCHEMA)
    with vlkit.serving.start(vlm) as server:
        hosted = vlkit.load("openai:tiny", base_url=server.url)
        assert vlkit.generate(hosted, QUESTION, schema=SCHEMA).text == expected.text
    with vlkit.records.Run("schema", directory=tmp_path) as run:
        vlkit.generate(vlm, QUESTION, schema=SCHEMA)
    assert vlkit.records.replay(run.path, vlm).identical == 1


UNSUPPORTED = [
    ({"not": {"type": "string"}}, "not"),
    ({"type": "shape"}, "Invalid type: shape"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "Unsatisfiable"),
    ({"$ref": "#/$defs/a"}, "does not exist"),
    ({"$ref": "https://example.org/schema"}, "example.org"),
    ({"enum": [f"value {i}" for i in range(100_000)]}, "too big"),
    ({"const": float("nan")}, "expected value"),
    ({"const": object()}, "not JSON serializable"),
    (5, "object"),
]


@pytest.mark.parametrize(
    ("schema", "reason"), UNSUPPORTED, ids=[reason for _, reason in UNSUPPORTED]
)
def test_what_is_not_supported_is_refused_at_once(vlm, schema, reason):
    with pytest.raises(VlkitError, match=r"^the JSON schema is not supported: ") as caught:
        make(vlm, schema)
    assert reason in str(caught.value) and len(str(caught.value)) < 300


def test_without_the_extra_one_line_says_what_to_install(vlm, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(VlkitError, match=r'pip install "vlkit\[schema\]"'):
        make(vlm, SCHEMA)
