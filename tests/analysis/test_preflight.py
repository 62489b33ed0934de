"""Preflight against the real processors: sizes, tokens, prompts, memory, and what fit() returns."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from clips import write_clip
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qwen_vl_utils import vision_process
from tiny_models import KINDS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

import vlkit
from vlkit.errors import MediaError, ModelError, VlkitError
from vlkit.inputs import prepare_inputs
from vlkit.models.families import FAMILIES, published_rules, smart_resize
from vlkit.models.memory import build_config, count_cost, count_memory

FAMILY_KINDS = [kind for kind in KINDS if not kind.endswith("moe")]
IDS = {
    "qwen2_vl": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen3_5": "Qwen/Qwen3.5-9B",
}


def side_pair(low: int, high: int):
    """Two sides of at most 200:1."""
    sides = st.integers(low, high)
    return st.tuples(sides, sides).filter(lambda pair: max(pair) <= 200 * min(pair))


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


# --- sizes ---------------------------------------------------------------------------------------


def processor_of(family: str) -> Qwen2VLImageProcessor:
    """As the family's repositories configure it; Qwen3-VL's class is Qwen2-VL's."""
    low, high = FAMILIES[family].image_pixels
    size = {"shortest_edge": low, "longest_edge": high}
    return Qwen2VLImageProcessor(patch_size=FAMILIES[family].patch_size, size=size)


@pytest.mark.parametrize("family", IDS)
def test_pictures_get_the_processors_size_and_tokens(family):
    rules, processor = published_rules(family), processor_of(family)
    low, high = rules.image_pixels

    @settings(max_examples=500, deadline=None)
    @given(side_pair(1, 12_000))
    @example((1, 1))
    @example((1, 200))
    @example((14, 42))  # halves are rounded to even
    def check(size):
        width, height = rules.image_size(size)
        assert (height, width) == reference(*size[::-1], rules.side, low, high)
        patches = processor.get_number_of_image_patches(size[1], size[0], {})
        assert width * height == patches * rules.patch_size**2

    check()


@pytest.mark.parametrize("side", [28, 32])
def test_sizes_within_any_limits_are_the_processors(side):
    processor = Qwen2VLImageProcessor(patch_size=side // 2)

    @settings(max_examples=500, deadline=None)
    @given(side_pair(1, 12_000), st.integers(1, 500), st.integers(1, 20_000))
    def check(size, fewest, more):
        low, high = fewest * side**2, (fewest + more) * side**2
        width, height = smart_resize(size, side, low, high)
        assert (height, width) == reference(*size[::-1], side, low, high)
        limits = {"min_pixels": low, "max_pixels": high}
        patches = processor.get_number_of_image_patches(size[1], size[0], limits)
        assert 4 * width * height == patches * side**2

    check()


@pytest.mark.parametrize("family", IDS)
def test_a_pictures_own_limit_holds_at_any_size(family):
    rules = published_rules(family)

    @settings(max_examples=500, deadline=None)
    @given(side_pair(1, 12_000), st.integers(1, 20_000))
    def check(size, tokens):
        width, height = rules.image_size(size, vlkit.Image("unread.png", max_tokens=tokens))
        assert width * height <= tokens * rules.side**2
        assert width % rules.side == height % rules.side == 0

    check()


@pytest.mark.parametrize("family", IDS)
def test_frames_get_the_size_that_fetch_video_gives_them(family, monkeypatch):
    rules, seen = published_rules(family), []

    def read(item):
        (width, height), count = item["shape"]
        return torch.zeros(1, dtype=torch.uint8).expand(count, 3, height, width), {}, 2.0

    def resize(video, size, **options):
        seen.append(tuple(size[::-1]))
        return torch.zeros(1)

    monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "fake")
    monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, "fake", read)
    monkeypatch.setattr(vision_process.transforms.functional, "resize", resize)

    @settings(max_examples=500, deadline=None)
    @given(side_pair(16, 4000).filter(lambda p: max(p) < 20 * min(p)), st.integers(1, 384))
    def check(size, half):
        shape = (size, 2 * half)  # qwen_vl_utils samples even numbers
        vision_process.fetch_video({"video": "fake.mp4", "shape": shape}, rules.patch_size)
        assert rules.frame_size(*shape) == seen.pop()

    check()


@pytest.mark.parametrize("kind", FAMILY_KINDS)
def test_pictures_on_real_pixels(tiny_vlm, kind):
    vlm = tiny_vlm(kind)
    random = np.random.default_rng(7)
    for limit in (None, 9, 30):
        limited = replace(vlm, max_image_tokens=limit)
        sizes = [tuple(map(int, random.integers(8, 600, 2))) for _ in range(8)]
        pictures = [noise(*size, seed) for seed, size in enumerate(sizes)]
        pictures[3] = vlkit.Image(pictures[3], max_tokens=5)
        pictures[4] = vlkit.Image(pictures[4], min_tokens=12)
        message = vlkit.user("Which?", *pictures)
        plan, real = vlkit.preflight(limited, message), prepare_inputs(limited, [message])
        assert [view.grid for view in plan.pictures] == grids(real, "image_grid_thw")
        assert [view.input_size for view in plan.pictures] == real.input_sizes[0]
        assert [view.size for view in plan.pictures] == sizes


@pytest.mark.parametrize("kind", FAMILY_KINDS)
def test_clips_on_real_frames(tiny_vlm, tmp_path, kind):
    vlm = tiny_vlm(kind)
    path = write_clip(tmp_path / "turned.mp4", frames=70, fps=20, rotation=90)
    clips = [
        vlkit.Video(path, fps=1),
        vlkit.Video(path, fps=4, start=0.6, end=2.1),
        vlkit.Video(path, frames=7),
        vlkit.Video(np.zeros((1, 40, 90, 3), np.uint8)),
        vlkit.Video(np.zeros((9, 300, 33, 3), np.uint8), source_fps=5, max_frame_tokens=3),
    ]
    for clip in clips:
        message = vlkit.user("What moves?", clip)
        plan, real = vlkit.preflight(vlm, message), prepare_inputs(vlm, [message])
        [view], [sampled] = plan.clips, real.clips[0]
        assert [view.grid] == grids(real, "video_grid_thw")
        assert (view.indices, view.timestamps) == (sampled.indices, sampled.timestamps)
        assert (view.size, view.input_size) == (sampled.info.size, sampled.frame_size)
        assert plan.usage.prompt_tokens == real.tensors["input_ids"].shape[1]


def grids(inputs, name: str) -> list[tuple]:
    return [tuple(row) for row in inputs.tensors[name].tolist()]


# --- prompts -------------------------------------------------------------------------------------


def mixed_messages() -> dict:
    clip = vlkit.Video(np.zeros((6, 84, 84, 3), np.uint8), source_fps=3)
    return {
        "text": "Hello, 你好 <|im_end|> <|image_pad|>",
        "pictures": vlkit.user(
            "Which?", noise(120, 90), vlkit.Image(noise(300, 200), max_tokens=9)
        ),
        "everything": [
            vlkit.system("Be terse."),
            vlkit.user("What moves?", clip, noise(64, 64), clip),
            vlkit.assistant("A circle."),
            vlkit.user("And here?", noise(70, 50)),
        ],
        "prefill": [vlkit.user("Describe.", noise(64, 64)), vlkit.assistant("It is a")],
    }


@pytest.mark.parametrize("kind", ["tiny", *FAMILY_KINDS])
@pytest.mark.parametrize("case", mixed_messages())
def test_usage_is_that_of_the_reply(vlm, tiny_vlm, tiny_folder, kind, case):
    loaded = vlm if kind == "tiny" else tiny_vlm(kind)
    messages = mixed_messages()[case]
    usage = vlkit.generate(loaded, messages, max_new_tokens=1).usage
    for model in (loaded, "tiny" if kind == "tiny" else tiny_folder(kind)):
        plan = vlkit.preflight(model, messages, max_new_tokens=1)
        assert plan.usage == usage and plan.prompt_tokens_exact
        assert plan.total_tokens == usage.prompt_tokens + 1
        assert plan.context_length == loaded.context_length


@pytest.mark.parametrize("family", IDS)
def test_known_ids_need_no_network(family, blocked_network, tiny_vlm):
    messages = mixed_messages()["everything"]
    plan = vlkit.preflight(IDS[family], messages)
    assert plan.family == family and not blocked_network
    assert plan.context_length == FAMILIES[family].context_length
    assert not plan.prompt_tokens_exact
    # 2 × 64 pixels side by side: 2 × 2 tokens of 28 pixels; 64 tokens at least from Qwen3-VL on
    assert plan.pictures[0].tokens == (4 if FAMILIES[family].patch_size == 14 else 64)
    usage = plan.usage
    text = usage.prompt_tokens - usage.image_tokens - usage.video_tokens
    exact = vlkit.preflight(tiny_vlm(family), messages).usage
    real = exact.prompt_tokens - exact.image_tokens - exact.video_tokens
    assert 0.5 * real < text < 2 * real


def test_a_cached_id_is_counted_with_its_own_tokenizer(
    tiny_folder, tmp_path, monkeypatch, blocked_network
):
    name = "someone/renamed"
    cached = tmp_path / "models--someone--renamed"
    copy_without_weights(tiny_folder("qwen3_vl"), cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    plan = vlkit.preflight(name, mixed_messages()["everything"])
    expected = vlkit.preflight(tiny_folder("qwen3_vl"), mixed_messages()["everything"])
    assert plan.usage == expected.usage and plan.prompt_tokens_exact
    assert plan.memory is None and plan.fits is None  # no weights there, and an unknown name
    assert not blocked_network


def copy_without_weights(source, target):
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))


def test_a_folder_without_tokenizer_keeps_its_limits(tiny_folder, tmp_path):
    folder = copy_without_weights(tiny_folder("qwen2_5_vl"), tmp_path / "model")
    for file in folder.glob("*token*"):
        file.unlink()
    plan = vlkit.preflight(folder, vlkit.user("What?", noise(900, 900)))
    exact = vlkit.preflight(tiny_folder("qwen2_5_vl"), vlkit.user("What?", noise(900, 900)))
    assert not plan.prompt_tokens_exact
    assert plan.usage.image_tokens == exact.usage.image_tokens <= 64


@pytest.mark.parametrize(
    ("model", "messages", "error", "match"),
    [
        ("llava-hf/llava-1.5-7b", "Hi", ModelError, "does not show the model family"),
        (7, "Hi", ModelError, "a VLM, a folder or an id, not int"),
        ("tiny", [], VlkitError, "non-empty list"),
        ("tiny", vlkit.user("Hi", "nowhere.png"), MediaError, "nowhere.png does not exist"),
    ],
)
def test_what_cannot_be_counted(model, messages, error, match):
    with pytest.raises(error, match=match):
        vlkit.preflight(model, messages)


def test_folders_of_no_use(tmp_path):
    with pytest.raises(ModelError, match=r"contains no config\.json"):
        vlkit.preflight(tmp_path, "Hi")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="not a vision model of this family"):
        vlkit.preflight(tmp_path, "Hi")
    with pytest.raises(VlkitError, match="max_new_tokens=-1"):
        vlkit.preflight("tiny", "Hi", max_new_tokens=-1)


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"])
def test_a_known_ids_memory(name):
    memory = vlkit.preflight(name, vlkit.user("Hi", noise(560, 560)), max_new_tokens=500).memory
    usage = vlkit.preflight(name, vlkit.user("Hi", noise(560, 560))).usage
    counted = count_memory(name)
    assert memory.weights == counted.bfloat16
    assert memory.cache == counted.cache_per_token * (usage.prompt_tokens + 500)


@pytest.mark.parametrize("kind", FAMILY_KINDS)
def test_weights_and_cache_are_those_really_held(tiny_vlm, tiny_folder, kind):
    vlm = tiny_vlm(kind)
    held = sum(p.nbytes for p in (*vlm.model.parameters(), *vlm.model.buffers()))
    plan = vlkit.preflight(vlm, "Hello there")
    assert plan.memory.weights == held and plan.fits
    with torch.inference_mode():
        tensors = prepare_inputs(vlm, ["Hello there"]).tensors
        cache = vlm.model(**tensors, use_cache=True).past_key_values
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    tokens = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    states = [layer for layer in cache.layers if hasattr(layer, "recurrent_states")]
    each = [(*s.recurrent_states.values(), *s.conv_states.values()) for s in states]
    assert plan.memory.cache == tokens + sum(part.nbytes for parts in each for part in parts)
    files = sum(file.stat().st_size for file in tiny_folder(kind).glob("*.safetensors"))
    assert vlkit.preflight(tiny_folder(kind), "Hello there").memory.weights == files


class Peak(TorchDispatchMode):
    """The most bytes of tensors alive at once that were made under it."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in (t for t in tree_iter(output) if isinstance(t, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
                self.peak = max(self.peak, sum(self.sizes.values()))
        return output


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"])
def test_activations_are_about_those_of_real_layers(name):
    """Real widths with one layer: more layers hold no more at once."""
    config = build_config(name)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.layer_types, text.vocab_size = 1, ["full_attention"], 500
    vision.depth, vision.deepstack_visual_indexes = 1, []
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
    model.to_empty(device="cpu")  # what the weights say does not matter here
    cost = count_cost(config, 0)
    patches, tokens = 16 * 16, 256
    pixels = torch.randn(patches, 3 * 2 * vision.patch_size**2, dtype=torch.bfloat16)
    with torch.inference_mode(), Peak() as seeing:
        model.model.visual(pixels, grid_thw=torch.tensor([[1, 16, 16]]))
    assert 0.95 < cost.vision_per_patch * patches / seeing.peak < 1.3
    with torch.inference_mode(), Peak() as reading:
        model(input_ids=torch.randint(0, 400, (1, tokens)), logits_to_keep=1)
    assert 0.95 < cost.language_per_token * tokens / reading.peak < 1.3


def test_a_download_under_way_counts_whole(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("qwen2_vl"), tmp_path / "model")
    index = {"metadata": {"total_size": 123_456_789}, "weight_map": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert vlkit.preflight(folder, "Hi").memory.weights == 123_456_789


def test_a_72b_model_does_not_fit_a_laptop(monkeypatch):
    monkeypatch.setattr("vlkit.models.memory.available_memory", lambda: (24 * 10**9, "GPU"))
    assert vlkit.preflight(IDS["qwen2_5_vl"], "Hi").fits is True  # 16.6 GB of weights
    assert vlkit.preflight("Qwen/Qwen2.5-VL-72B-Instruct", "Hi").fits is False
    monkeypatch.setattr("vlkit.models.memory.available_memory", lambda: (24 * 10**9, "RAM"))
    assert vlkit.preflight(IDS["qwen2_5_vl"], "Hi").fits is False  # float32 on a CPU


# --- fit -----------------------------------------------------------------------------------------


def album(clip=True):
    media = [noise(1600, 1200), noise(300, 200), vlkit.Image(noise(800, 800), max_tokens=400)]
    frames = np.zeros((40, 240, 320, 3), np.uint8)
    return vlkit.user("What?", *media, *([vlkit.Video(frames, source_fps=2)] if clip else []))


@pytest.mark.parametrize("model", ["tiny", *IDS.values()])
@pytest.mark.parametrize("tokens", [200, 700, 2000, 10_000])
def test_fitted_messages_keep_within_the_tokens(model, tokens):
    plan = vlkit.preflight(model, album(), max_new_tokens=32)
    fitted = plan.fit(tokens=tokens)
    again = vlkit.preflight(model, fitted.messages, max_new_tokens=32)
    assert again.usage == fitted.preflight.usage
    assert again.total_tokens <= tokens
    assert again.total_tokens >= min(0.6 * tokens, plan.total_tokens)  # the budget is used
    media = vlkit.user("What?", *fitted.media)
    assert vlkit.preflight(model, media).usage.prompt_tokens == again.usage.prompt_tokens


@pytest.mark.parametrize("kind", FAMILY_KINDS)
def test_fitted_messages_reach_the_model_as_planned(tiny_vlm, kind):
    vlm = tiny_vlm(kind)
    fitted = vlkit.preflight(vlm, album()).fit(tokens=150)
    usage = vlkit.generate(vlm, fitted.messages, max_new_tokens=1).usage
    assert usage.prompt_tokens == fitted.preflight.usage.prompt_tokens <= 150


def test_what_fits_already_stays_as_it_is():
    plan = vlkit.preflight(IDS["qwen2_vl"], album())
    fitted = plan.fit()
    assert fitted.preflight.usage == plan.usage and plan.fits_context
    assert fitted.messages == plan.messages


def test_small_pictures_and_minimums_are_not_touched():
    message = vlkit.user("?", noise(56, 56), vlkit.Image(noise(900, 900), min_tokens=300))
    fitted = vlkit.preflight(IDS["qwen2_vl"], message).fit(tokens=400)
    small, large = fitted.media
    assert small.max_tokens is None and large.min_tokens == 300
    assert 300 <= fitted.preflight.pictures[1].tokens <= 380


def test_clips_give_up_frames_before_their_frames_get_tiny():
    plan = vlkit.preflight(IDS["qwen2_5_vl"], album())
    [clip] = plan.fit(tokens=500).preflight.clips
    assert len(clip.indices) < 40 and clip.frame_tokens >= 20
    assert clip.timestamps[0] == 0 and clip.timestamps[-1] == 19.5  # still the whole clip


def test_fit_by_memory():
    plan = vlkit.preflight("Qwen/Qwen2-VL-2B-Instruct", album(clip=False))
    limit = plan.memory.weights + 0.3 * (plan.memory.total - plan.memory.weights)
    fitted = plan.fit(memory=limit)
    again = vlkit.preflight("Qwen/Qwen2-VL-2B-Instruct", fitted.messages)
    assert plan.memory.weights < again.memory.total <= limit < plan.memory.total
    with pytest.raises(VlkitError, match=r"too small: .*GB in all"):
        plan.fit(memory=1e6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"tokens": 5},
            r"too small: .* of text, 0 new ones and at least \d+ for 3 pictures",
        ),
        ({"tokens": 0}, "tokens=0"),
        ({"memory": -1}, "memory=-1"),
    ],
)
def test_budgets_that_cannot_be_kept(options, match):
    with pytest.raises(VlkitError, match=match):
        vlkit.preflight("tiny", album(clip=False)).fit(**options)


def test_memory_of_an_unknown_shape():
    plan = vlkit.preflight("Qwen/Qwen3.7-2B", "Hi")
    assert plan.memory is None and plan.fits is None
    with pytest.raises(VlkitError, match="is unknown; pass tokens="):
        plan.fit(memory=1e9)


# --- the card ------------------------------------------------------------------------------------


def test_the_card(tmp_path):
    path = tmp_path / "<script>.png"
    noise(120, 90).save(path)
    plan = vlkit.preflight("tiny", vlkit.user("?", path, vlkit.Video([noise(56, 56)] * 4)))
    card = plan._repr_html_()
    assert "<script>" not in card and "&lt;script&gt;.png" in card
    assert card.count("data:image/png;base64,") == 2 and str(tmp_path) not in card
    assert "background" not in card and "color:black" not in card  # it takes the theme's own
    assert f"{plan.usage.prompt_tokens:,} prompt tokens" in card
    _, down, across = plan.pictures[0].grid
    assert f"{down} × {across}" in card


def test_the_card_of_a_picture_damaged_behind_its_header(tmp_path):
    path = tmp_path / "cut.jpg"
    noise(300, 200).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    assert "truncated" in vlkit.preflight("tiny", vlkit.user("?", path))._repr_html_()


def test_the_patch_grid_is_drawn_on_the_resized_picture():
    picture = vlkit.Image(PIL.Image.new("RGB", (112, 84)), max_tokens=12)
    view = vlkit.preflight("tiny", vlkit.user("?", picture)).pictures[0]
    drawn = np.asarray(view.draw()).astype(int)
    assert drawn.shape == (84, 112, 3) and view.grid == (1, 6, 8)
    red, _, blue = drawn[7].T  # a row between the lines
    assert np.flatnonzero(red - blue > 100).tolist() == [0, 28, 56, 84, 111]  # tokens: orange
    assert np.flatnonzero(blue > 50).tolist() == [14, 42, 70, 98]  # patches: grey
