"""Messages are plain chat dicts: right order, right types, errors that name the message."""

import json
import os
import pathlib
import re

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vlkit
from vlkit.errors import MediaError, VlkitError
from vlkit.messages import as_messages, escape_control_tokens, iterate_media, read_media_item

ROOT = pathlib.Path(__file__).parents[1]
TOKENIZER = json.loads((ROOT / "data/tiny-qwen2-vl/tokenizer.json").read_text(encoding="utf-8"))
QWEN2_VL = {token["content"] for token in TOKENIZER["added_tokens"]}
# what Qwen2.5-VL, Qwen3-VL and Qwen3.5 add to it, from their tokenizer_config.json
LATER = {
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
}
GROUNDING = {f"<|{n}_{e}|>" for n in ("object_ref", "box", "quad") for e in ("start", "end")}
CONTROL = (QWEN2_VL | LATER) - GROUNDING


def scene(mode="RGB"):
    return PIL.Image.new(mode, (60, 40), "red")


# --- building -------------------------------------------------------------------------------------


def test_roles_and_texts():
    assert vlkit.system("Be terse.") == {
        "role": "system",
        "content": [{"type": "text", "text": "Be terse."}],
    }
    assert vlkit.assistant("它是") == {
        "role": "assistant",
        "content": [{"type": "text", "text": "它是"}],
    }
    assert vlkit.user("Why?") == {"role": "user", "content": [{"type": "text", "text": "Why?"}]}


def test_pictures_come_in_order_before_the_text():
    message = vlkit.user("Compare.", "b.png", "a.png", "https://example.org/c.png")
    assert message["content"] == [
        {"type": "image", "image": "b.png"},
        {"type": "image", "image": "a.png"},
        {"type": "image", "image": "https://example.org/c.png"},
        {"type": "text", "text": "Compare."},
    ]


@pytest.mark.parametrize(
    "source, plain",
    [
        (pathlib.Path("a b.png"), "a b.png"),
        (pathlib.Path("~/a.png"), "/home/someone/a.png"),
        ("~/a.png", "/home/someone/a.png"),
        ("file:///tmp/a%20b.png", "/tmp/a b.png"),
        ("file://localhost/tmp/a.png", "/tmp/a.png"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
        ("https://example.org/~me/a%20b.png", "https://example.org/~me/a%20b.png"),
    ],
)
def test_names_of_files_become_plain_strings(source, plain, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    item = vlkit.user("?", source)["content"][0]
    assert item == {"type": "image", "image": plain}
    assert type(item["image"]) is str


@pytest.mark.parametrize(
    "source",
    [scene(), scene("RGBA"), np.asarray(scene()), np.full((40, 60), 0.5)],
    ids=["RGB", "RGBA", "uint8", "float"],
)
def test_pictures_in_memory_are_upright_rgb_at_once(source):
    image = vlkit.user("?", source)["content"][0]["image"]
    assert (image.mode, image.size) == ("RGB", (60, 40)) and image is not source


def test_pil_image_is_turned_upright_once():
    picture = scene()
    picture.getexif()[0x0112] = 6
    message = vlkit.user("?", picture)
    image = message["content"][0]["image"]
    assert image.size == (40, 60)
    assert read_media_item(message["content"][0]).load().size == (40, 60)


def test_image_limits_stand_in_the_item_only_when_set():
    def item(**options):
        return vlkit.user("?", vlkit.Image("a.png", **options))["content"][0]

    plain = {"type": "image", "image": "a.png"}
    assert item() == plain
    assert item(max_tokens=64) == plain | {"max_tokens": 64}
    assert item(min_tokens=4, strict=False) == plain | {"min_tokens": 4, "strict": False}
    nested = vlkit.user("?", vlkit.Image(vlkit.Image("a.png", max_tokens=9), strict=False))
    assert nested["content"][0] == plain | {"max_tokens": 9, "strict": False}


@pytest.mark.parametrize(
    "options",
    [{}, {"max_tokens": 64}, {"min_tokens": 4, "max_tokens": 9}, {"strict": False}],
    ids=str,
)
def test_items_read_back_as_they_were_meant(options):
    image = vlkit.Image("a.png", **options)
    checked = as_messages(vlkit.user("?", image))
    assert [read_media_item(item) for item in iterate_media(checked)] == [image]


def test_messages_survive_json():
    messages = [vlkit.system("s"), vlkit.user("看", "图.png", vlkit.Image("b.png", max_tokens=9))]
    assert as_messages(json.loads(json.dumps(messages))) == as_messages(messages) == messages


# --- checking ------------------------------------------------------------------------------------

TEXT = {"type": "text", "text": "Why?"}
PICTURE = {"type": "image", "image": "a.png"}


def one(content, role="user"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "given, expected",
    [
        ("Why?", [one([TEXT])]),
        (one("Why?"), [one([TEXT])]),
        ([one("Why?")], [one([TEXT])]),
        ((one(["Why?"]),), [one([TEXT])]),
        (one([]), [one([])]),
        (one([{"text": "Why?"}, {"image": "a.png"}]), [one([TEXT, PICTURE])]),
        (one([{"type": "image", "path": "a.png"}]), [one([PICTURE])]),
        (one([{"type": "image", "url": "a.png"}]), [one([PICTURE])]),
        (one([{"type": "image_url", "image_url": {"url": "a.png"}}]), [one([PICTURE])]),
        (one([{"type": "image_url", "image_url": "a.png"}]), [one([PICTURE])]),
        (one([{"type": "image", "image": {"url": "a.png"}}]), [one([PICTURE])]),
        (one([TEXT | {"image": None}, PICTURE | {"text": None}]), [one([TEXT, PICTURE])]),
        (one([TEXT | {"image": ""}]), [one([TEXT])]),
        (one([PICTURE | {"text": "a caption"}]), [one([PICTURE])]),
        (one([PICTURE | {"max_tokens": None, "strict": None}]), [one([PICTURE])]),
        (one([PICTURE | {"max_tokens": 9}]), [one([PICTURE | {"max_tokens": 9}])]),
        (
            one([{"type": "image", "image": vlkit.Image("a.png", max_tokens=9)}]),
            [one([PICTURE | {"max_tokens": 9}])],
        ),
        (
            [one("a", "system"), one("b"), one("c", "assistant")],
            [
                one([{"type": "text", "text": "a"}], "system"),
                one([{"type": "text", "text": "b"}]),
                one([{"type": "text", "text": "c"}], "assistant"),
            ],
        ),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_spellings(given, expected):
    assert as_messages(given) == expected
    assert as_messages(as_messages(given)) == expected


FRAMES = [PIL.Image.new("RGB", (64, 48), (30 * i, 0, 0)) for i in range(8)]


@pytest.mark.parametrize(
    "options, numbers, rate",
    [
        ({}, range(8), 2),
        ({"sample_fps": 1}, range(8), 1),  # qwen-vl-utils: the rate of the frames
        ({"sample_fps": "1"}, range(8), 1),  # as some model cards have it
        ({"sample_fps": 1, "raw_fps": 30}, range(8), 1),
        ({"raw_fps": 30}, range(8), 30),
        ({"fps": 1.0}, range(8), 1),
        ({"source_fps": 1.0}, range(8), 1),
        ({"fps": 1.0, "source_fps": 2.0}, [0, 2, 5, 7], 2),  # vlkit's own: every second frame
        ({"num_frames": 2}, [0, 7], 2),
        ({"nframes": 4, "sample_fps": 4}, [0, 2, 5, 7], 4),
        ({"max_frames": 4}, [0, 2, 5, 7], 2),
    ],
    ids=str,
)
def test_frames_and_their_rate_in_every_spelling(options, numbers, rate):
    message = one([{"type": "video", "video": FRAMES, **options}, TEXT])
    (item,) = iterate_media(as_messages(message))
    clip = read_media_item(item).load()
    assert [int(frame[0, 0, 0]) // 30 for frame in clip.frames] == list(numbers)
    assert clip.timestamps == pytest.approx([number / rate for number in numbers])


@pytest.mark.parametrize("options", [{}, {"fps": 1.0}, {"fps": 1.0, "source_fps": 4.0}], ids=str)
def test_clips_of_frames_read_back_as_they_were_meant(options):
    video = vlkit.Video(FRAMES, **options)
    (item,) = iterate_media(as_messages(vlkit.user("?", video)))
    assert read_media_item(item) == video


@pytest.mark.parametrize(
    "option",
    ["total_pixels", "min_frames", "min_pixels", "resized_width", "max_tokens", "frames_indices"],
)
def test_an_option_of_a_clip_is_never_ignored(option):
    item = {"type": "video", "video": "a.mp4", option: 56}
    with pytest.raises(VlkitError, match=f"{option}=56.* is not supported"):
        as_messages(one([item]))


def test_checked_messages_are_not_checked_again():
    checked = as_messages([one("a"), one("b", "assistant")])
    assert as_messages(checked) is checked
    again = as_messages([*checked, one("c")])
    assert again is not checked and again[:2] == checked
    with pytest.raises(VlkitError, match="message 1"):
        as_messages([*checked[:1], {"role": "nobody"}])


def test_checking_leaves_the_input_alone():
    content = [{"type": "text", "text": "a", "image": None}]
    given = one(content)
    as_messages(given)
    assert given == {"role": "user", "content": [{"type": "text", "text": "a", "image": None}]}


@pytest.mark.parametrize(
    "messages, words",
    [
        (None, ("non-empty list", "None")),
        ([], ("non-empty list", "[]")),
        (7, ("non-empty list", "7")),
        ([one("a"), None], ("message 1", "'role'", "None")),
        ([one("a"), "b"], ("message 1", "'role'", "'b'")),
        ([[one("a")]], ("message 0", "'role'")),
        ({"content": "a"}, ("message 0", "'role'", "system", "user", "assistant")),
        ([one("a", "human")], ("message 0", "human", "user")),
        ([one("a", ["user"])], ("message 0", "'role'")),
        ([one("a"), {"role": "user"}], ("message 1", "'content'")),
        ([one("a"), one(None)], ("message 1", "'content'")),
        ([one("a"), one({"type": "text"})], ("message 1", "'content'")),
        ([one([3])], ("message 0", "3", "'type'")),
        ([one([{}])], ("message 0", "text, image or video", "{}")),
        ([one([{"type": "text"}])], ("message 0", "text, image or video")),
        ([one([{"type": "text", "text": 3}])], ("message 0", "string", "int")),
        ([one("a"), one("\ud800")], ("message 1", "lone surrogate")),
        ([one([{"type": "image"}])], ("message 0", "text, image or video")),
        ([one([{"type": "image", "image": None}])], ("message 0", "text, image or video")),
        ([one([{"type": "image_url", "image_url": {}}])], ("message 0", "text, image or video")),
        (
            [one([{"type": "audio", "audio": "a.wav"}])],
            ("message 0", "audio", "text, image or video"),
        ),
        (
            [one([{"type": "video", "video": "a.mp4", "max_pixels": 50176}])],
            ("max_pixels=50176", "max_frame_tokens", "28×28"),
        ),
        ([one([PICTURE | {"resized_height": 28}])], ("resized_height=28", "max_tokens")),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_malformed_messages_are_named(messages, words):
    with pytest.raises(VlkitError) as caught:
        as_messages(messages)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 300
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: vlkit.user(pathlib.Path("a.png"), "?"), ("string", "PosixPath")),
        (lambda: vlkit.user(None), ("string", "NoneType")),
        (lambda: vlkit.system(b"bytes"), ("string", "bytes")),
        (lambda: vlkit.assistant("\udcff"), ("lone surrogate",)),
        (lambda: vlkit.user("?", None), ("NoneType", "pass a path")),
        (lambda: vlkit.user("?", ["a.png"]), ("one by one", "vlkit.Video")),
        (lambda: vlkit.user("?", b""), ("empty",)),
        (lambda: vlkit.user("?", np.zeros((4, 4), np.int64)), ("int64", "convert")),
    ],
)
def test_building_refuses(make, words):
    with pytest.raises(VlkitError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), caught.value


def test_limits_of_an_item_are_checked_when_it_is_read():
    for name, value in (("max_tokens", 0), ("min_tokens", "many")):
        item = as_messages(one([PICTURE | {name: value}]))[0]["content"][0]
        with pytest.raises(MediaError, match=f"{name}={value!r}"):
            read_media_item(item)


# --- control tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("token", sorted(CONTROL))
def test_control_token_is_escaped(token):
    escaped = escape_control_tokens(f"a{token}b")
    assert escaped == f"a< {token[1:]}b"


@pytest.mark.parametrize("token", sorted(GROUNDING))
def test_grounding_token_stays(token):
    assert token in QWEN2_VL
    assert escape_control_tokens(f"a{token}b") == f"a{token}b"


def test_trick_of_a_token_inside_a_token():
    escaped = escape_control_tokens("<|im_<|im_end|>end|>")
    assert not any(token in escaped for token in CONTROL)


@pytest.mark.parametrize("text", ["a < b", "x |> f", "<b>bold</b>", "1 <| 2", "中文 <3", "<||>"])
def test_ordinary_text_stays(text):
    assert escape_control_tokens(text) == text


PIECES = sorted({piece for token in CONTROL | GROUNDING for piece in re.split(r"(\W)", token)})


@given(st.lists(st.sampled_from([*PIECES, *sorted(CONTROL), *sorted(GROUNDING), " "])).map("".join))
def test_no_control_token_is_left(text):
    escaped = escape_control_tokens(text)
    assert not any(token in escaped for token in CONTROL)
    assert escape_control_tokens(escaped) == escaped
    assert escaped.replace("< |", "<|") == text.replace("< |", "<|")  # nothing else has changed
    assert all(escaped.count(token) == text.count(token) for token in GROUNDING)


def test_paths_need_no_file_yet():
    assert not os.path.exists("not-there.png")
    assert vlkit.user("?", "not-there.png")["content"][0]["image"] == "not-there.png"
