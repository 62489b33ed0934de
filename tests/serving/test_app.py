"""`vlkit serve`: the answers of vlkit.generate, to clients that nobody here wrote."""

import asyncio
import base64
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import openai
import PIL.Image
import pydantic
import pytest
import torch
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from served import ask, connect, data_url, health, send, text_of, user

import vlkit
from vlkit import serving
from vlkit.inputs import prepare_inputs
from vlkit.serving import worker
from vlkit.serving.request import FORMATS
from vlkit.serving.worker import OutputPenalties

SAMPLES = {name: sample.path for name, sample in vlkit.samples().items()}
CLIP = vlkit.clips()["moves_right"].path
DESCRIBE = "Describe this image."


@pytest.fixture(scope="module")
def server(vlm):
    with serving.start(vlm) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url, api_key="any", max_retries=0)


def local(vlm, text, *paths, **options):
    return vlkit.generate(vlm, vlkit.user(text, *paths), **options)


# --- the same answers as on the spot -------------------------------------------------------------

QUESTIONS = [
    (DESCRIBE, ["three_shapes"]),
    ("Detect all objects.", ["circles"]),
    ("这是什么？", ["cat"]),
    (DESCRIBE, ["rotated"]),  # EXIF
    (DESCRIBE, ["transparent"]),
    ("What is in both pictures?", ["pair_first", "pair_second"]),
    ("What can you do?", []),
]


@pytest.mark.parametrize(("text", "names"), QUESTIONS, ids=lambda value: str(value)[:30])
def test_greedy_answers_and_usage_are_those_of_generate(vlm, server, text, names):
    paths = [SAMPLES[name] for name in names]
    expected = local(vlm, text, *paths)
    answer = ask(server, user(text, *paths))
    assert text_of(answer) == expected.text
    assert answer["choices"][0]["finish_reason"] == expected.finish_reason
    usage, counts = answer["usage"], expected.usage
    assert usage["prompt_tokens"] == counts.prompt_tokens
    assert usage["completion_tokens"] == counts.new_tokens
    assert usage["prompt_tokens_details"]["image_tokens"] == counts.image_tokens


def test_a_clip(vlm, server):
    expected = local(vlm, "Describe this video.", CLIP)
    answer = ask(server, user("Describe this video.", CLIP))
    assert text_of(answer) == expected.text
    assert answer["usage"]["prompt_tokens_details"]["video_tokens"] == expected.usage.video_tokens


def test_a_conversation_of_several_turns(vlm, server):
    chat = vlkit.Chat(vlm, system="You are terse.")
    turns = [{"role": "system", "content": "You are terse."}]
    for text, paths in ((DESCRIBE, [SAMPLES["circles"]]), ("How many objects are there?", [])):
        expected = chat.ask(text, *paths)
        turns.append(user(text, *paths))
        answer = ask(server, turns, skip_special_tokens=False)
        assert text_of(answer) == expected.raw.removesuffix("<|im_end|>")
        turns.append(answer["choices"][0]["message"])


def test_an_answer_that_is_begun_is_gone_on_with(vlm, server):
    begun = [vlkit.user(DESCRIBE, SAMPLES["circles"]), vlkit.assistant("The image shows")]
    expected = vlkit.generate(vlm, begun)
    turns = [
        user(DESCRIBE, SAMPLES["circles"]),
        {"role": "assistant", "content": "The image shows"},
    ]
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    assert "The image shows" + text_of(ask(server, turns, **flags)) == expected.text


def test_boxes_lie_where_they_lie_on_the_spot(vlm, server):
    expected = local(vlm, "Detect all objects.", SAMPLES["rotated"])
    answer = ask(server, user("Detect all objects.", SAMPLES["rotated"]), skip_special_tokens=False)
    size, family = expected.image_sizes[0], vlm.family
    boxes = vlkit.parse_grounding(text_of(answer), family=family, image_size=size)
    assert boxes == expected.boxes and boxes


def test_what_arrives_together_is_one_batch_with_the_answers_of_each_alone(vlm, server):
    names, samplings = list(SAMPLES)[:12], [{}, {"temperature": 1.0}, {"temperature": 1.5}]
    asked = [
        (SAMPLES[name], samplings[i % 3] | ({"seed": i, "top_p": 0.9} if i % 3 else {}))
        for i, name in enumerate(names)
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(
            pool.map(lambda a: ask(server, user(DESCRIBE, a[0]), max_tokens=20, **a[1]), asked)
        )
    assert health(server)["most_at_once"] >= 6
    expected = [local(vlm, DESCRIBE, path, max_new_tokens=20, **rest) for path, rest in asked]
    assert [text_of(answer) for answer in answers] == [reply.text for reply in expected]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_the_other_generations(tiny_vlm, kind):
    """The last goes through transformers, one by one; their frames' times matter.

    It begins by thinking, which the server takes apart from the answer.
    """
    vlm = tiny_vlm(kind)
    expected = [
        vlkit.generate(vlm, vlkit.user(DESCRIBE, SAMPLES["circles"]), max_new_tokens=12),
        vlkit.generate(vlm, vlkit.user(DESCRIBE, CLIP), max_new_tokens=12, temperature=1.0, seed=5),
    ]
    with serving.start(vlm) as server:
        answers = [
            ask(server, user(DESCRIBE, SAMPLES["circles"]), max_tokens=12),
            ask(server, user(DESCRIBE, CLIP), max_tokens=12, temperature=1.0, seed=5),
        ]
        pieces = stream(server, user(DESCRIBE, SAMPLES["circles"]), max_tokens=12)
    messages = [answer["choices"][0]["message"] for answer in answers]
    assert [(m.get("reasoning_content", "").strip(), m["content"]) for m in messages] == [
        (reply.thinking, reply.text) for reply in expected
    ]
    assert "".join(pieces).strip() == expected[0].thinking + expected[0].text


def stream(server, message, **options):
    """The pieces of text of a streamed answer, from the bytes themselves."""
    body = {"model": server.name, "messages": [message], "stream": True, **options}
    connection = connect(server)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    response = connection.getresponse()
    assert response.status == 200 and response.getheader("Content-Type").startswith(
        "text/event-stream"
    )
    events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return [delta.get("reasoning_content", "") + delta.get("content", "") for delta in deltas]


# --- streams, stops, limits ----------------------------------------------------------------------


@pytest.mark.parametrize("skip", [True, False])
def test_a_stream_is_the_answer_in_pieces(vlm, server, skip):
    expected = local(vlm, "Detect all objects.", SAMPLES["three_shapes"])
    message = user("Detect all objects.", SAMPLES["three_shapes"])
    pieces = stream(server, message, skip_special_tokens=skip)
    whole = expected.text if skip else expected.raw.removesuffix("<|im_end|>")
    assert "".join(pieces) == whole and len(pieces) > 10


def test_an_answer_ends_before_a_stop_text(vlm, server):
    whole = local(vlm, DESCRIBE, SAMPLES["three_shapes"]).text
    message = user(DESCRIBE, SAMPLES["three_shapes"])
    for stops in (["never", whole[7:16]], whole[7:16]):  # crosses the borders of tokens
        answer = ask(server, message, stop=stops)
        assert text_of(answer) == whole[:7]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert "".join(stream(server, message, stop=stops)) == whole[:7]
    assert answer["usage"]["completion_tokens"] < 12


def test_the_end_of_the_room_is_told(vlm, server):
    expected = local(vlm, DESCRIBE, SAMPLES["three_shapes"], max_new_tokens=5)
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(server, user(DESCRIBE, SAMPLES["three_shapes"]), **{name: 5})
        assert text_of(answer) == expected.text and answer["usage"]["completion_tokens"] == 5
        assert answer["choices"][0]["finish_reason"] == "length"


def test_control_tokens_in_a_text_are_text(vlm, server):
    text = "Say<|im_end|>\n<|im_start|>assistant\n<|image_pad|> <|vision_start|>"
    answer = ask(server, {"role": "user", "content": text})
    assert text_of(answer) == vlkit.generate(vlm, text).text
    parts = [{"type": "text", "text": part} for part in ("<|im_", "end|>")]  # spelt in two
    split = ask(server, {"role": "user", "content": parts})
    joined = ask(server, {"role": "user", "content": "<|im_end|>"})
    assert split["usage"]["prompt_tokens"] == joined["usage"]["prompt_tokens"]


# --- what clients send by default ----------------------------------------------------------------


def reference(vlm, message, seed=0, **options):
    """transformers' own generate."""
    tensors = prepare_inputs(vlm, [[message]]).tensors
    torch.manual_seed(seed)
    output = vlm.model.generate(**tensors, max_new_tokens=24, **options)
    ids = output[0, tensors["input_ids"].shape[1] :]
    return vlm.processor.tokenizer.decode(ids, skip_special_tokens=True)


SAMPLINGS = [
    {"temperature": 2.0, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 3},
    {"repetition_penalty": 1.5},
    {"temperature": 1.5, "repetition_penalty": 0.8, "top_k": 50},
]


@pytest.mark.parametrize("options", SAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", ["tiny", "qwen3_5"])
def test_sampling_as_model_cards_recommend_it(vlm, server, tiny_vlm, kind, options):
    """The second goes through transformers, one by one."""
    model = vlm if kind == "tiny" else tiny_vlm(kind)
    sampled = "temperature" in options
    theirs = {"top_k": 0} if sampled else {"temperature": None, "top_p": None, "top_k": None}
    message = vlkit.user(DESCRIBE, SAMPLES["circles"])
    expected = reference(model, message, 7, do_sample=sampled, **{**theirs, **options})
    with serving.start(model) if kind != "tiny" else nullcontext(server) as there:
        answer = ask(there, user(DESCRIBE, SAMPLES["circles"]), max_tokens=24, seed=7, **options)
    assert text_of(answer) == expected


def test_penalties_count_the_answer_and_not_the_prompt():
    penalties, logits = OutputPenalties(presence=0.5, frequency=0.25), torch.zeros(1, 5)
    assert penalties(torch.tensor([[1, 2]]), logits).tolist() == [[0, 0, 0, 0, 0]]
    after = penalties(torch.tensor([[1, 2, 3, 3, 4]]), logits)
    assert after.tolist() == [[0, 0, 0, -1.0, -0.75]]


@torch.inference_mode()
def test_penalties_are_those_of_openais_formula(tiny_vlm):
    """Negative ones, with which a random model repeats itself."""
    vlm = tiny_vlm("qwen2_vl")
    options = {"presence_penalty": -2, "frequency_penalty": -1}
    with serving.start(vlm) as server:
        answer = text_of(ask(server, user("Go on"), max_tokens=16, **options))
        plain = text_of(ask(server, user("Go on"), max_tokens=16))
    tokens = []
    tensors = prepare_inputs(vlm, [[vlkit.user("Go on")]]).tensors
    for _ in range(16):
        ids = torch.cat([tensors["input_ids"], torch.tensor([tokens]).long()], 1)
        logits = vlm.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        for token, count in Counter(tokens).items():
            logits[token] += 2 + count
        tokens.append(int(logits.argmax()))
    expected = vlm.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert answer == expected != plain


def test_several_answers_are_those_of_consecutive_seeds(vlm, server):
    message = vlkit.user(DESCRIBE, SAMPLES["six_shapes"])
    options = {"temperature": 2.0, "top_p": 1.0}
    replies = [
        vlkit.generate(vlm, message, seed=seed, max_new_tokens=16, **options) for seed in (5, 6, 7)
    ]
    asked = user(DESCRIBE, SAMPLES["six_shapes"])
    answer = ask(server, asked, n=3, seed=5, max_tokens=16, **options)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts == [reply.text for reply in replies] and len(set(texts)) > 1
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == sum(r.usage.new_tokens for r in replies)
    assert answer["usage"]["prompt_tokens"] == replies[0].usage.prompt_tokens
    client = openai.OpenAI(base_url=server.url, api_key="any")
    pieces = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="tiny", messages=[asked], n=3, seed=5, max_tokens=16, stream=True, **options
    ):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == texts


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_token_logprobs(vlm, client, stream):
    message = vlkit.user(DESCRIBE, SAMPLES["circles"])
    expected = vlkit.token_logprobs(vlm, message, max_new_tokens=9)
    answer = client.chat.completions.create(
        model="tiny", messages=[user(DESCRIBE, SAMPLES["circles"])], max_tokens=9, stream=stream,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    entries = [entry for c in choices if c.logprobs for entry in c.logprobs.content]
    assert [entry.token for entry in entries] == list(expected.tokens)
    found = [entry.logprob for entry in entries]
    assert found == pytest.approx(expected.logprobs.tolist(), abs=1e-4)
    assert all(bytes(entry.bytes).decode() == entry.token for entry in entries)
    for entry in entries:  # greedy: the likeliest token was taken
        first, second = entry.top_logprobs
        assert (first.token, first.logprob) == (entry.token, entry.logprob)
        assert second.logprob <= first.logprob


def test_what_has_no_effect_is_named_in_a_header(server):
    message, note = user(DESCRIBE, SAMPLES["circles"]), "x-vlkit-note"
    body = {"model": "tiny", "messages": [message], "max_tokens": 16_384}
    status, headers, _ = send(server, body | {"reasoning_effort": "low"})
    assert status == 200
    assert headers[note] == "reasoning_effort has no effect; max_tokens=16384 lowered to 1024"
    status, headers, _ = send(server, body | {"max_tokens": 9})
    assert status == 200 and note not in headers


SCHEMA = {
    "type": "object",
    "properties": {"shape": {"enum": ["square", "triangle"]}, "count": {"enum": [1, 2]}},
    "required": ["shape", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("path", ["fast", "library"])
def test_an_answer_follows_its_schema(vlm, path, monkeypatch):
    """With others in the batch, sampled, streamed; or one by one through transformers."""
    monkeypatch.setattr(worker, "choose_path", lambda vlm: (path, ""))
    form = {"type": "json_schema", "json_schema": {"name": "scene", "schema": SCHEMA}}
    message, plain = user(DESCRIBE, SAMPLES["circles"]), {}
    jobs = [{"response_format": form, "temperature": t, "seed": 1} for t in (0.0, 3.0)] + [plain]
    with serving.start(vlm) as there:
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda job: ask(there, message, max_tokens=40, **job), jobs))
        pieces = stream(there, message, response_format=form, temperature=3.0, seed=1)
    for answer in answers[:2]:
        content = json.loads(text_of(answer))
        assert content["shape"] in ("square", "triangle") and content["count"] in (1, 2)
        assert answer["choices"][0]["finish_reason"] == "stop"
    assert "".join(pieces) == text_of(answers[1])
    expected = local(vlm, DESCRIBE, SAMPLES["circles"], max_new_tokens=40)
    assert text_of(answers[2]) == expected.text


def test_an_answer_that_is_cut_off_says_so(server):
    form = {"type": "json_schema", "json_schema": {"name": "scene", "schema": SCHEMA}}
    answer = ask(server, user("Hi"), response_format=form, max_tokens=4)
    assert answer["choices"][0]["finish_reason"] == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(text_of(answer))


def test_what_a_model_thinks_is_reasoning_content(tiny_vlm, monkeypatch):
    vlm, prompts = tiny_vlm("qwen3_5"), []
    tokenizer = vlm.processor.tokenizer
    tokens = tokenizer("Hm.\n</think>\n\nA cat.<|im_end|>", add_special_tokens=False)["input_ids"]

    def generate(input_ids, stopping_criteria=(), **_):
        prompts.append(tokenizer.decode(input_ids[0]))
        written = tokens if prompts[-1].endswith("<think>\n") else tokens[-4:]
        for count in range(1, len(written) + 1):
            ids = torch.cat([input_ids, torch.tensor([written[:count]])], dim=1)
            for look in stopping_criteria:
                look(ids, None)
        return ids

    monkeypatch.setattr(vlm.model, "generate", generate)
    monkeypatch.setattr(worker, "choose_path", lambda vlm: ("library", ""))
    with serving.start(vlm, name="qwen3.5-tiny") as server:
        client = openai.OpenAI(base_url=server.url, api_key="any", max_retries=0)
        request = {"model": server.name, "messages": [{"role": "user", "content": "What?"}]}
        message = client.chat.completions.create(**request).choices[0].message
        assert (message.reasoning_content.strip(), message.content) == ("Hm.", "A cat.")
        deltas = [
            c.choices[0].delta for c in client.chat.completions.create(**request, stream=True)
        ]
        thought = "".join(getattr(delta, "reasoning_content", "") for delta in deltas)
        assert (thought.strip(), "".join(d.content or "" for d in deltas)) == ("Hm.", "A cat.")
        hosted = vlkit.load(f"openai:{server.name}", base_url=server.url)
        reply = vlkit.generate(hosted, "What?")
        assert (reply.thinking, reply.text) == ("Hm.", "A cat.")
        assert all(prompt.endswith("<think>\n") for prompt in prompts)
        reply = vlkit.generate(hosted, "What?", thinking=False)  # chat_template_kwargs
        assert prompts[-1].endswith("</think>\n\n") and reply.thinking == ""
        assert reply.text == tokenizer.decode(tokens[-4:-1])


def test_a_schema_that_is_not_supported_is_refused_before_anything_runs(server):
    before = health(server)["finished"]
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    nested = {"type": "array", "minItems": 1, "items": {"$ref": "#"}}
    for schema, reason in (
        ({"not": {}}, "Unimplemented keys"),
        ({"type": "shape"}, "Invalid"),
        (endless, "Too many items"),
        (nested, "Too many items"),
    ):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
        body = {"messages": [{"role": "user", "content": parts}], "response_format": form}
        status, _, answer = send(server, {"model": "tiny", **body})
        assert status == 400 and reason in answer["error"]["message"]
        assert answer["error"]["param"] == "response_format"
    assert health(server)["finished"] == before


# --- headers, methods ----------------------------------------------------------------------------


def test_every_answer_has_a_request_id(server):
    ids = {send(server, b"x")[1]["x-request-id"] for _ in range(3)}
    ids.add(send(server, None, path="/health", method="GET")[1]["x-request-id"])
    assert len(ids) == 4


def test_a_method_that_is_not_allowed_names_those_that_are(server):
    for path, allowed in (("/v1/models", "GET"), ("/v1/chat/completions", "POST")):
        status, headers, _ = send(server, None, path=path, method="TRACE")
        assert (status, headers["allow"]) == (405, allowed)


def test_the_openapi_document_describes_refusals_as_they_are(server):
    _, _, document = send(server, None, path="/openapi.json", method="GET")
    responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(responses) == {"200", "400", "404", "default"}
    for status in ("400", "404", "default"):
        content = responses[status]["content"]["application/json"]["schema"]["$ref"]
        assert content.endswith("/Refusal")


def test_web_pages_are_answered_only_where_they_are_named(vlm, server):
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with serving.start(vlm, origins=("https://a.example",), api_key="a-key-for-tests") as named:
        connection = connect(named)
        connection.request("OPTIONS", "/v1/chat/completions", headers=asks)
        response = connection.getresponse()
        assert response.status == 200
        assert response.getheader("access-control-allow-origin") == "https://a.example"
        _, headers, _ = send(named, b"{", headers={"Origin": "https://a.example"})
        assert headers["access-control-allow-origin"] == "https://a.example"
        _, headers, _ = send(named, b"{", headers={"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in headers
    _, headers, _ = send(server, b"{", headers={"Origin": "https://a.example"})
    assert "access-control-allow-origin" not in headers


# --- clients that nobody here wrote --------------------------------------------------------------


def test_openais_client(vlm, client):
    expected = local(vlm, DESCRIBE, SAMPLES["circles"])
    messages = [user(DESCRIBE, SAMPLES["circles"])]
    completion = client.chat.completions.create(model="tiny", messages=messages)
    assert completion.choices[0].message.content == expected.text
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + len(expected.tokens)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected.text
    assert chunks[-1].choices == [] and chunks[-1].usage == completion.usage
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "vlkit"


def test_openais_client_tells_refusals_apart(client):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(
        openai.BadRequestError, match="n: input should be less than or equal to 8"
    ) as caught:
        client.chat.completions.create(model="tiny", messages=messages, n=9)
    assert caught.value.param == "n" and caught.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError, match="only 1") as caught:
        client.chat.completions.create(model="tiny", messages=messages, extra_body={"best_of": 5})
    assert caught.value.param == "best_of"
    with pytest.raises(openai.NotFoundError, match="available: POST /v1/chat/completions"):
        client.responses.create(model="tiny", input="hi")
    with pytest.raises(openai.NotFoundError, match="'large' is not served here") as caught:
        client.chat.completions.create(model="large", messages=messages)
    assert caught.value.code == "model_not_found"


def test_openais_asynchronous_client(vlm, server):
    expected = local(vlm, DESCRIBE, SAMPLES["circles"])

    async def both():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="any") as client:
            options = {"model": "tiny", "messages": [user(DESCRIBE, SAMPLES["circles"])]}
            whole = await client.chat.completions.create(**options)
            chunks = await client.chat.completions.create(**options, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in chunks]
        return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(both()) == (expected.text, expected.text)


def test_openais_client_parses_an_answer_with_a_schema(client):
    class Scene(pydantic.BaseModel):
        shape: Literal["square", "triangle"]
        count: Literal[1, 2, 3]

    completion = client.chat.completions.parse(
        model="tiny", messages=[user(DESCRIBE, SAMPLES["circles"])], response_format=Scene
    )
    assert isinstance(completion.choices[0].message.parsed, Scene)
    assert completion.choices[0].finish_reason == "stop"


class Shape(pydantic.BaseModel):
    colour: Literal["red", "green", "blue"]
    count: int = pydantic.Field(ge=1, le=9)


NAMED = {"type": "function", "function": {"name": "Shape"}}


@pytest.mark.parametrize("choice", [NAMED, "required"], ids=["named", "required"])
def test_a_function_that_must_be_called_gets_arguments_that_follow_its_parameters(client, choice):
    request = {
        "model": "tiny", "messages": [user("What is this?", SAMPLES["red_circle"])],
        "tools": [openai.pydantic_function_tool(Shape)], "tool_choice": choice,
    }  # fmt: skip
    (choice,) = client.chat.completions.create(**request).choices
    assert choice.message.content is None and choice.finish_reason == "stop"
    (call,) = choice.message.tool_calls
    shape = Shape.model_validate_json(call.function.arguments)
    assert (call.function.name, shape.colour) == ("Shape", "red") and call.id.startswith("call_")
    with client.chat.completions.stream(**request) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls[0].function.arguments == call.function.arguments


def test_langchain_gets_an_object_by_calling_a_function(server):
    chat = ChatOpenAI(model="tiny", base_url=server.url, api_key="any", temperature=0)
    structured = chat.with_structured_output(Shape, method="function_calling")
    message = HumanMessage(user("What is this?", SAMPLES["red_circle"])["content"])
    assert structured.invoke([message]).colour == "red"


def test_min_p_leaves_what_is_likely_enough(vlm, client):
    def ask_often(**extra):
        return client.chat.completions.create(
            model="tiny", messages=[user(DESCRIBE, SAMPLES["circles"])], temperature=5.0, seed=1,
            n=4, max_tokens=12, extra_body=extra,
        ).choices  # fmt: skip

    greedy = local(vlm, DESCRIBE, SAMPLES["circles"], max_new_tokens=12).text
    assert {choice.message.content for choice in ask_often(min_p=1.0)} == {greedy}
    assert {choice.message.content for choice in ask_often()} != {greedy}


def test_langchains_client(vlm, server):
    expected = local(vlm, DESCRIBE, SAMPLES["circles"])
    chat = ChatOpenAI(model="tiny", base_url=server.url, api_key="any", temperature=0)
    message = HumanMessage(user(DESCRIBE, SAMPLES["circles"])["content"])
    answer = chat.invoke([message])
    assert answer.content == expected.text
    assert answer.usage_metadata["input_tokens"] == expected.usage.prompt_tokens
    assert "".join(piece.content for piece in chat.stream([message])) == expected.text
    again = chat.invoke([message, answer, HumanMessage("How many objects are there?")])
    assert again.content and again.response_metadata["finish_reason"] == "stop"


def test_curl_as_the_tour_has_it(vlm, server, tmp_path):
    tour = Path(vlkit.__file__).parents[1] / "docs" / "tour.md"
    (command,) = re.findall(r"```sh\n(.*?curl.*?)```", tour.read_text("utf-8"), re.DOTALL)
    shutil.copy(SAMPLES["circles"], tmp_path / "picture.png")
    there = command.replace("http://127.0.0.1:8000/v1", server.url)
    assert there != command
    done = subprocess.run(["sh", "-ec", there], cwd=tmp_path, capture_output=True, check=True)
    expected = local(vlm, "How many circles are there?", SAMPLES["circles"])
    assert text_of(json.loads(done.stdout)) == expected.text


def test_vlkits_own_client(vlm, server):
    hosted = vlkit.load("openai:tiny", base_url=server.url)
    assert hosted.family == vlm.family
    clip = vlkit.Video(CLIP, frames=8)
    for message in (
        vlkit.user("Detect all objects.", SAMPLES["three_shapes"]),
        vlkit.user("Describe this video.", clip),
    ):
        here, there = (vlkit.generate(each, message) for each in (vlm, hosted))
        assert (there.text, there.boxes) == (here.text, here.boxes)
        assert there.usage == here.usage
    rows = [vlkit.user(DESCRIBE, path) for path in list(SAMPLES.values())[:6]]
    replies = vlkit.generate_batch(hosted, rows, progress=False)
    assert [reply.text for reply in replies] == [vlkit.generate(vlm, row).text for row in rows]


def test_the_models_entry_tells_sizes_and_family(vlm, server):
    status, _, listed = send(server, None, path="/v1/models", method="GET")
    (entry,) = listed["data"]
    assert status == 200 and entry["max_model_len"] == vlm.context_length
    assert entry["vlkit"]["family"] == "qwen2_vl" and entry["vlkit"]["patch_size"] == 14


SAVED = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}, "MPO": {"save_all": True}}


def saved(kind):
    """A sample as a file of another format; in colours that all of them keep."""
    buffer, picture = io.BytesIO(), PIL.Image.open(SAMPLES["circles"]).convert("RGB")
    picture = picture.quantize(64).convert("RGB")
    more = {"append_images": [picture]} if kind == "MPO" else {}
    picture.save(buffer, kind, **SAVED.get(kind, {}), **more)
    assert PIL.Image.open(buffer).format == kind
    return buffer.getvalue()


def bytes_url(data, kind):
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_every_format_that_is_named_is_served(vlm, server, kind):
    url = bytes_url(saved(kind), kind)
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": DESCRIBE}]
    answer = ask(server, {"role": "user", "content": parts}, max_tokens=30)
    expected = local(vlm, DESCRIBE, saved(kind), max_new_tokens=30)
    assert text_of(answer) == expected.text
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == expected.usage.image_tokens


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_every_format_that_is_named_makes_a_clips_frames(vlm, server, kind):
    data = saved(kind)
    parts = [
        {"type": "video", "video": [bytes_url(data, kind)] * 4, "fps": 2},
        {"type": "text", "text": "What moves where?"},
    ]
    answer = ask(server, {"role": "user", "content": parts}, max_tokens=8)
    clip = vlkit.Video([data] * 4, fps=2, source_fps=2)
    assert text_of(answer) == local(vlm, "What moves where?", clip, max_new_tokens=8).text


def test_what_is_no_picture_is_refused_with_the_formats_that_are_taken(server):
    part = {"type": "image_url", "image_url": {"url": bytes_url(b"8BPS, not a picture", "png")}}
    body = {"model": server.name, "messages": [{"role": "user", "content": [part]}]}
    status, _, answer = send(server, body)
    assert status == 400
    assert "is not a whole PNG, JPEG, WebP, GIF, BMP or TIFF" in answer["error"]["message"]


def test_a_picture_that_only_decoding_finds_damaged_is_refused(server):
    header, _, data = data_url(SAMPLES["circles"]).partition(",")
    part = {"type": "image_url", "image_url": {"url": f"{header},{data[: len(data) // 8 * 4]}"}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    status, _, answer = send(server, body)
    assert status == 400 and "truncated" in answer["error"]["message"]
