"""generate, stream and Chat: transformers' answers from the engine, and what is remembered."""

from __future__ import annotations

import gc
import html
import threading
import weakref

import bare
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
import torchvision.transforms.v2.functional

import vlkit
from vlkit.engine import kernels, scheduler
from vlkit.engine.slots import Engine
from vlkit.engine.vision import Encoder
from vlkit.errors import MediaError, ModelError
from vlkit.generation import rows as rows_module

FAST = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MIXTURES_AND_STATES = ("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")  # the engine's newer ones
PICTURES = [str(vlkit.sample(name)) for name in ("three_shapes", "circles")]
CLIP = str(next(iter(vlkit.clips().values())).path)


@pytest.fixture
def prompts(monkeypatch):
    """Lengths of the prompts that the engine read, without what it remembered."""
    read, lengths = Engine._read, []

    def count(self, rows, starts, first, ends=()):
        ends = ends or [row.length for row in rows]
        lengths.extend(end - start for start, end in zip(starts, ends, strict=True))
        return read(self, rows, starts, first, ends)

    monkeypatch.setattr(Engine, "_read", count)
    return lengths


@pytest.fixture
def encoded(monkeypatch):
    """The media that went through the vision encoder."""
    run, keys = Encoder._run, []

    def count(self, media):
        keys.extend(medium.key for medium in media)
        return run(self, media)

    monkeypatch.setattr(Encoder, "_run", count)
    return keys


# --- transformers' answers -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAST + MIXTURES_AND_STATES)
def test_answers_of_each_generation_are_transformers(tiny_vlm, kind):
    vlm, rows = tiny_vlm(kind), bare.mixed_rows()
    expected = bare.answers(vlm, rows, max_new_tokens=12)
    replies = [vlkit.generate(vlm, row, max_new_tokens=12) for row in rows]
    assert [reply.raw for reply in replies] == expected
    assert not any(reply.note for reply in replies)
    for row, raw in zip(rows, expected, strict=True):
        stream = vlkit.stream(vlm, row, max_new_tokens=12)
        text = "".join(stream)
        assert stream.reply.raw == raw and stream.reply.text.endswith(text)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl", "qwen3_5"])
def test_sampled_answers_are_transformers(tiny_vlm, kind):
    vlm, rows = tiny_vlm(kind), bare.mixed_rows()[2:6]
    options = {"max_new_tokens": 10, "temperature": 1.0, "top_p": 0.9, "seed": 7}
    expected = bare.answers(vlm, rows, **options)
    assert [vlkit.generate(vlm, row, **options).raw for row in rows] == expected
    assert vlkit.stream(vlm, rows[0], **options).stop() is None


def test_without_a_seed_torchs_own_random_numbers_count(tiny_vlm):
    vlm, options = tiny_vlm("qwen2_vl"), {"max_new_tokens": 12, "temperature": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = [vlkit.generate(vlm, "Hi", **options).raw for _ in range(2)]
        torch.manual_seed(3)
        again = [vlkit.generate(vlm, "Hi", **options).raw for _ in range(2)]
    assert first == again and len(set(first)) == 2


def test_what_the_engine_does_not_know_goes_to_transformers(tiny_vlm, monkeypatch):
    vlm, row = tiny_vlm("qwen2_vl"), vlkit.user("What is this?", PICTURES[0])
    plain = vlkit.generate(vlm, row, max_new_tokens=8)
    layer, seen = vlm.model.model.language_model.layers[0], []
    hook = layer.register_forward_hook(lambda *_: seen.append(1))
    try:
        watched = vlkit.generate(vlm, row, max_new_tokens=8)
    finally:
        hook.remove()
    assert seen and watched.raw == plain.raw and "layers.0 has a forward hook" in watched.note
    monkeypatch.setattr(vlm.model.generation_config, "no_repeat_ngram_size", 1)
    other = vlkit.generate(vlm, row, max_new_tokens=8)
    assert "no_repeat_ngram_size" in other.note and html.escape(other.note) in other._repr_html_()
    assert other.raw == bare.answer(vlm, row, max_new_tokens=8)


def test_hooks_of_transformers_itself_are_no_reason(tiny_vlm):
    vlm, row = tiny_vlm("qwen2_vl"), vlkit.user("What is this?", PICTURES[0])
    tensors = vlm.processor.tokenizer("Hi", return_tensors="pt")
    vlm.model(**tensors, output_hidden_states=True)  # it leaves its hooks
    assert vlkit.generate(vlm, row, max_new_tokens=3).note == ""


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_5"])
def test_a_stopped_stream_keeps_its_beginning(tiny_vlm, monkeypatch, kind):
    vlm = tiny_vlm(kind)
    if kind == "qwen3_5":  # a stream holds the text alone, and this model would never stop thinking
        vlm = vlm.with_thinking(False)
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)
    stream = vlkit.stream(vlm, "Tell a story.", max_new_tokens=2000)
    next(iter(stream))
    stream.stop()
    assert stream.reply.finish_reason == "cancelled"
    raw, count = stream.reply.raw, stream.reply.usage.new_tokens
    assert 0 < count < 2000 and raw == bare.answer(vlm, "Tell a story.", max_new_tokens=count)


def test_an_error_in_a_step_is_raised_by_generate_and_where_a_stream_is_read(tiny_vlm, monkeypatch):
    vlm, run = tiny_vlm("qwen2_vl"), Engine._run

    def fail(self, rows, span):
        raise RuntimeError("broken")

    monkeypatch.setattr(Engine, "_run", fail)
    with pytest.raises(RuntimeError, match="broken"):
        vlkit.generate(vlm, "Hi")
    with pytest.raises(RuntimeError, match="broken"):
        list(vlkit.stream(vlm, "Hi"))
    monkeypatch.setattr(Engine, "_run", run)
    assert vlkit.generate(vlm, "Hi", max_new_tokens=3).tokens


def test_out_of_memory_drops_what_is_remembered_and_tries_again(tiny_vlm, monkeypatch):
    vlm, prefill, row = tiny_vlm("qwen2_vl"), Engine._prefill, vlkit.user("What?", PICTURES[0])
    expected = vlkit.generate(vlm, row, max_new_tokens=4).raw
    assert vlm.cache.bytes
    failures = [1]

    def cramped(self, *arguments):
        if failures:
            failures.pop()
            raise torch.cuda.OutOfMemoryError("out of memory")
        return prefill(self, *arguments)

    monkeypatch.setattr(Engine, "_prefill", cramped)
    assert vlkit.generate(vlm, row, max_new_tokens=4).raw == expected
    failures += [1, 1]
    with pytest.raises(ModelError, match=r"out of memory at \d+ prompt tokens"):
        vlkit.generate(vlm, row, max_new_tokens=4)


def test_two_threads_that_ask_one_model_get_their_own_answers(tiny_vlm):
    vlm, rows = tiny_vlm("qwen2_vl"), bare.mixed_rows()
    expected, found = bare.answers(vlm, rows, max_new_tokens=12), {}

    def ask(numbers):
        for number in numbers:
            found[number] = vlkit.generate(vlm, rows[number], max_new_tokens=12).raw

    both = [threading.Thread(target=ask, args=(range(start, 9, 2),)) for start in (0, 1)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [found[number] for number in range(9)] == expected


# --- a chat remembers ----------------------------------------------------------------------------


def assert_answer(chat, reply):
    """The last answer is transformers' to the conversation before it."""
    count = reply.usage.new_tokens
    expected = bare.answer(chat.vlm, chat.messages[:-1], max_new_tokens=count)
    assert reply.raw == expected


@pytest.mark.parametrize("kind", FAST + MIXTURES_AND_STATES)
def test_a_later_turn_reads_its_own_words_alone(tiny_vlm, prompts, kind):
    chat = vlkit.Chat(tiny_vlm(kind), system="Be brief.", max_new_tokens=6)
    turns = [
        ("What is this?", PICTURES[0]), ("Are you sure?",), ("And this?", PICTURES[1]),
        ("What moves?", vlkit.Video(CLIP, frames=4)), ("Where?",),
    ]  # fmt: skip
    for text, *media in turns:
        before = len(chat.messages)
        reply = chat.ask(text, *media)
        assert_answer(chat, reply)
        own = prompts.pop()
        if kind in FAST:
            assert (own == reply.usage.prompt_tokens) == (before == 1)
            assert media or own < 30
        elif not media:  # a layer's state is kept behind the last picture
            assert own < reply.usage.prompt_tokens - 60


def test_a_later_turn_prepares_no_picture_again_unless_it_was_painted_on(tiny_vlm, monkeypatch):
    vlm, done = tiny_vlm("qwen2_vl"), []

    def count(owner, name):
        work = getattr(owner, name)

        def counted(*arguments, **options):
            done.append(name)
            return work(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    count(rows_module, "pixel_hash")
    count(type(vlm.processor.image_processor), "preprocess")
    count(torchvision.transforms.v2.functional, "pil_to_tensor")
    chat = vlkit.Chat(vlm, max_new_tokens=4)
    chat.ask("What are these?", PICTURES[1], vlkit.Image(PICTURES[0], max_tokens=8))
    assert {"preprocess", "pil_to_tensor"} <= set(done)
    for text in ("Why?", "Where?"):
        done.clear()
        chat.ask(text)
        assert not done
    picture = chat.messages[0]["content"][1]["image"]
    PIL.ImageDraw.Draw(picture).rectangle((0, 0, 150, 150), "red")
    assert_answer(chat, chat.ask("And now?"))
    assert {"pixel_hash", "preprocess", "pil_to_tensor"} <= set(done)


@pytest.mark.parametrize("kind", FAST)
def test_a_short_turn_is_read_by_one_step_as_on_a_gpu(tiny_vlm, monkeypatch, prompts, kind):
    def store_one_by_one(states, heads, kv_heads, angles, cache, lengths):
        kernels.rotate(states, heads + kv_heads, *angles)
        for row, (state, place) in enumerate(zip(states, lengths.tolist(), strict=True)):
            cache[row, place] = state[heads:]

    steps = []

    def predict(engine, rows, span):
        steps.append(rows)
        return engine._predict(rows, span)

    monkeypatch.setattr(kernels, "rotate_and_store", store_one_by_one)
    monkeypatch.setattr(Engine, "_captures", True)
    monkeypatch.setattr(Engine, "_replay", predict)
    chat = vlkit.Chat(tiny_vlm(kind), system="Be brief.", max_new_tokens=6)
    turns = [("?", PICTURES[0]), ("Why?",), ("And " * 40,), ("",), ("Or this?", PICTURES[1])]
    for number, (text, *media) in enumerate(turns):
        steps.clear()
        prompts.clear()
        assert_answer(chat, chat.ask(text, *media))
        short = number in (1, 3)
        assert bool(prompts) != short and (steps[0] in (16, 32)) == short


@pytest.mark.parametrize("kind", FAST + MIXTURES_AND_STATES)
def test_changed_turns_are_read_again(tiny_vlm, prompts, kind):
    chat = vlkit.Chat(tiny_vlm(kind), max_new_tokens=6)
    chat.ask("What is this?", PICTURES[0])
    chat.ask("Are you sure?")
    first = chat.messages[0]["content"]
    place = next(i for i, item in enumerate(first) if item["type"] == "image")
    whole = first[place]["image"]
    first[place]["image"] = PIL.Image.new("RGB", whole.size, "red")  # as many tokens
    prompts.clear()
    assert_answer(chat, chat.ask("And now?"))
    read = sum(prompts)
    first[place]["image"] = whole
    prompts.clear()
    assert_answer(chat, chat.ask("And now?"))
    assert sum(prompts) > 60 < read  # the picture is among what was read
    del chat.messages[2:4]
    assert_answer(chat, chat.ask("Who?"))
    chat.messages[1]["content"][0]["text"] = "Something else."
    assert_answer(chat, chat.ask("Why?"))
    chat.messages.clear()
    assert_answer(chat, chat.ask("Hello?"))


def test_a_clip_with_other_times_is_read_again(tiny_vlm, prompts):
    """Equal frames, but another rate: on Qwen2.5-VL their positions differ."""
    frames = [PIL.Image.new("RGB", (112, 112), "blue")] * 8
    chat = vlkit.Chat(tiny_vlm("qwen2_5_vl"), max_new_tokens=6)
    chat.ask("What is this?", vlkit.Video(frames, fps=1))
    item = next(i for i in chat.messages[0]["content"] if i["type"] == "video")
    item["video"], item["fps"] = [PIL.Image.new("RGB", (112, 112), "blue")] * 8, 4
    assert_answer(chat, chat.ask("And now?"))


def test_a_stopped_or_failed_turn_leaves_what_was_valid(tiny_vlm, monkeypatch, prompts):
    vlm = tiny_vlm("qwen2_vl")
    chat = vlkit.Chat(vlm, max_new_tokens=6)
    chat.ask("What is this?", PICTURES[0])
    run = Engine._run
    monkeypatch.setattr(Engine, "_run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        chat.ask("Are you sure?")
    monkeypatch.setattr(Engine, "_run", run)
    with pytest.raises(MediaError):
        chat.ask("And this?", "nope.png")
    prompts.clear()
    assert_answer(chat, chat.ask("Who?"))
    assert prompts.pop() < 30
    pieces = chat.stream("Tell a story.", max_new_tokens=500)
    next(pieces)
    pieces.close()
    reply = chat.ask("Why?")
    assert_answer(chat, reply)
    assert prompts.pop() < reply.usage.prompt_tokens - 60  # the picture is not among what was read


def test_two_chats_do_not_mix_and_a_lost_one_is_forgotten(tiny_vlm):
    vlm = tiny_vlm("qwen2_vl")
    vlm.cache.clear()
    chats = [vlkit.Chat(vlm, max_new_tokens=6) for _ in range(2)]
    for text in ("What is this?", "Are you sure?", "Who?"):
        for chat, path in zip(chats, PICTURES, strict=True):
            assert_answer(chat, chat.ask(text, *([path] if text[0] == "W" else [])))
    held = vlm.cache.bytes
    del chat, chats
    gc.collect()
    assert vlm.cache.bytes < held


def test_changed_weights_are_noticed(tiny_folder):
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    chat = vlkit.Chat(vlm, max_new_tokens=6)
    chat.ask("What is this?", PICTURES[0])
    assert vlm.cache.bytes
    with torch.no_grad():
        vlm.model.model.visual.merger.mlp[0].weight.mul_(0.5)
        vlm.model.model.language_model.layers[0].self_attn.q_proj.weight.mul_(0.5)
    assert vlm.cache.bytes == 0
    assert_answer(chat, chat.ask("Are you sure?"))


def test_adapters_that_are_switched_are_noticed(tiny_folder):
    from peft import LoraConfig, get_peft_model

    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    config = LoraConfig(target_modules=["q_proj", "v_proj", "qkv"], init_lora_weights=False)
    network = get_peft_model(vlm.model, config).eval()
    adapted = type(vlm)(network, vlm.processor, vlm.family, vlm.folder, "adapter")
    chat = vlkit.Chat(adapted, max_new_tokens=6)
    with_it = chat.ask("What is this?", PICTURES[0])
    assert_answer(chat, with_it)
    with network.disable_adapter():
        assert_answer(chat, chat.ask("Are you sure?"))
        row = vlkit.user("What is this?", PICTURES[0])
        assert vlkit.generate(adapted, row, max_new_tokens=6).raw != with_it.raw
    assert_answer(chat, chat.ask("Who?"))
    chat.vlm = vlkit.load(tiny_folder("qwen2_vl"))
    assert_answer(chat, chat.ask("Why?"))


# --- pictures and clips that were seen -----------------------------------------------------------


@pytest.mark.parametrize("kind", FAST)
def test_a_picture_or_clip_is_encoded_once(tiny_vlm, encoded, kind, tmp_path):
    vlm = tiny_vlm(kind)
    vlm.cache.clear()
    media = PICTURES[0], vlkit.Video(CLIP, frames=4)
    replies = [vlkit.generate(vlm, vlkit.user(text, *media), max_new_tokens=6) for text in "ab"]
    assert len(encoded) == 2 and replies[0].usage.video_tokens
    copy = tmp_path / "copy.png"  # known by its pixels
    copy.write_bytes(open(PICTURES[0], "rb").read())
    row = vlkit.user("What is this?", copy)
    assert vlkit.generate(vlm, row, max_new_tokens=6).raw == bare.answer(vlm, row, max_new_tokens=6)
    assert len(encoded) == 2
    copy.write_bytes(open(PICTURES[1], "rb").read())
    assert vlkit.generate(vlm, row, max_new_tokens=6).raw == bare.answer(vlm, row, max_new_tokens=6)
    assert len(encoded) == 3


def test_the_cache_is_seen_limited_and_cleared(tiny_folder, encoded):
    vlm, row = vlkit.load(tiny_folder("qwen2_vl")), vlkit.user("What is this?", PICTURES[0])
    assert vlm.cache.bytes == 0 and "0 entries, 0.0 of at most" in repr(vlm.cache)
    vlkit.generate(vlm, row, max_new_tokens=2)
    assert 0 < vlm.cache.bytes < vlm.cache.most_bytes
    vlm.cache.clear()
    assert vlm.cache.bytes == 0
    vlm.cache.most_bytes = 1
    for text in ("a", "b"):
        vlkit.generate(vlm, vlkit.user(text, PICTURES[0]), max_new_tokens=2)
    assert vlm.cache.bytes == 0 and len(encoded) == 3


def test_what_was_used_longest_ago_is_dropped_first(tiny_folder, encoded):
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    vlkit.generate(vlm, vlkit.user("a", PICTURES[0]), max_new_tokens=2)
    vlm.cache.most_bytes = int(vlm.cache.bytes * 1.5)
    for path in (PICTURES[0], PICTURES[1], PICTURES[0]):
        vlkit.generate(vlm, vlkit.user("b", path), max_new_tokens=2)
        assert vlm.cache.bytes <= vlm.cache.most_bytes
    assert len(encoded) == 3


# --- engines that are kept for the next question, as on a GPU ------------------------------------


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(Engine, "is_cheap", lambda self: not self.rows)


def test_a_kept_engine_gives_the_same_answers_as_questions_grow(tiny_folder, kept):
    vlm, rows = vlkit.load(tiny_folder("qwen2_vl")), ["a", "long " * 300, "b", "longer " * 700, "c"]
    for limit in (3, 40):
        expected = bare.answers(vlm, rows, max_new_tokens=limit)
        assert [vlkit.generate(vlm, row, max_new_tokens=limit).raw for row in rows] == expected
    with torch.no_grad():
        vlm.model.model.language_model.layers[0].self_attn.q_proj.weight.mul_(0.5)
    assert vlkit.generate(vlm, "a", max_new_tokens=8).raw == bare.answer(vlm, "a", max_new_tokens=8)


def test_an_answer_that_outgrows_its_cache_goes_on(tiny_folder, kept, monkeypatch):
    monkeypatch.setattr(scheduler, "ANSWER_TOKENS", 8)
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    vlm.model.generation_config.eos_token_id = None
    expected = bare.answer(vlm, "Tell a story.", max_new_tokens=600)
    assert vlkit.generate(vlm, "Tell a story.", max_new_tokens=600).raw == expected


def test_a_model_that_is_deleted_leaves_no_engine_behind(tiny_folder, kept):
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    vlkit.generate(vlm, vlkit.user("What is this?", PICTURES[0]), max_new_tokens=3)
    network = weakref.ref(vlm.model)
    del vlm
    gc.collect()
    assert network() is None
