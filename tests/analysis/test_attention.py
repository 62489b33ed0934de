"""Where the model looked: against transformers' own attentions, and on scenes that are known."""

import numpy as np
import PIL.Image
import pytest
import tiny_models
import torch

import vlkit
from vlkit.analysis.attention import draw_heat
from vlkit.errors import VlkitError
from vlkit.inputs import prepare_inputs

QUESTION = "Where is the red circle?"


def picture(width=90, height=150):
    return PIL.Image.effect_noise((width, height), 60).convert("RGB")


def reference(folder, vlm, messages, count):
    """The ids of a greedy answer and its attentions, [step][layer] (heads, keys): plain eager."""
    from transformers import AutoModelForImageTextToText

    eager = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    inputs = prepare_inputs(vlm, [messages]).tensors
    with torch.inference_mode():
        output = eager.generate(
            **inputs,
            max_new_tokens=count,
            do_sample=False,
            output_attentions=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    length = inputs["input_ids"].shape[1]
    attentions = [
        [layer[0, :, -1] for layer in step if layer is not None] for step in output.attentions
    ]
    logits = torch.stack([step[0] for step in output.logits])
    return inputs, output.sequences[0, length:].tolist(), attentions, logits


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_equals_eager_transformers(kind, tiny_vlm, tiny_folder):
    vlm = tiny_vlm(kind)
    messages = [vlkit.user(QUESTION, picture(), picture(160, 70))]
    inputs, ids, attentions, logits = reference(tiny_folder(kind), vlm, messages, 6)
    side = vlm.model.config.vision_config.spatial_merge_size
    grids = [(h // side, w // side) for _, h, w in inputs["image_grid_thw"].tolist()]
    places = (inputs["input_ids"][0] == vlm.model.config.image_token_id).nonzero()[:, 0]
    first, second = places.split([h * w for h, w in grids])
    with_attention = range(len(attentions[0]))
    number = {0: 1} if kind.startswith(("qwen3_5", "qwen4")) else {n: n for n in with_attention}
    for step in (0, 3, len(ids) - 1):
        for image, own, grid in ((0, first, grids[0]), (1, second, grids[1])):
            for layer in with_attention:
                expected = attentions[step][layer][1:3, own].mean(0).reshape(grid)
                found = vlkit.attention_map(
                    vlm, messages, token=step, layers=number[layer], heads=[1, 2], image=image,
                    max_new_tokens=6,
                )  # fmt: skip
                assert found.values.shape == grid
                np.testing.assert_allclose(found.values, expected.numpy(), atol=1e-5)
    most = vlkit.attention_map(vlm, messages, token=1, reduce="max", max_new_tokens=6)
    expected = torch.stack(attentions[1])[..., second].amax((0, 1)).reshape(grids[1])
    np.testing.assert_allclose(most.values, expected.numpy(), atol=1e-5)
    sure = vlkit.token_logprobs(vlm, messages, max_new_tokens=6)
    assert list(sure.ids) == ids
    chosen = logits.float().log_softmax(-1)[torch.arange(len(ids)), ids]
    np.testing.assert_allclose(sure.logprobs, chosen.numpy(), atol=1e-3)


def test_steps_are_those_of_the_frames(tiny_vlm, tiny_folder):
    for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"):
        vlm = tiny_vlm(kind)
        frames = [picture(96, 96) for _ in range(6)]
        messages = [vlkit.user(QUESTION, vlkit.Video(frames, fps=2))]
        inputs, _, attentions, _ = reference(tiny_folder(kind), vlm, messages, 2)
        (t, h, w), *_ = inputs["video_grid_thw"].tolist()
        places = (inputs["input_ids"][0] == vlm.model.config.video_token_id).nonzero()[:, 0]
        expected = torch.stack(attentions[1]).mean((0, 1))[places].reshape(t, h // 2, w // 2)
        for frame in range(-1, 6):
            found = vlkit.attention_map(vlm, messages, token=1, frame=frame, max_new_tokens=2)
            np.testing.assert_allclose(found.values, expected[frame % 6 // 2], atol=1e-5)
            assert found.frame == frame % 6
        most = vlkit.attention_map(vlm, messages, token=1, max_new_tokens=2)
        assert most.frame == 2 * int(expected.sum((1, 2)).argmax())
        assert most.picture.size == prepare_inputs(vlm, [messages]).clips[0][0].frame_size


def test_a_layer_without_attention_is_refused(tiny_vlm):
    vlm = tiny_vlm("qwen3_5")
    options = {"token": 0, "max_new_tokens": 1}
    with pytest.raises(VlkitError, match=r"layers \[0\] have no attention; .* = \[1\]"):
        vlkit.attention_map(vlm, vlkit.user("Hi", picture()), layers=[0, 1], **options)
    found = vlkit.attention_map(vlm, vlkit.user("Hi", picture()), **options)
    assert found.layers == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": 9}, "token=9 does not exist; the answer has"),
        ({"token": "zebra"}, "token='zebra' is not in the generated text"),
        ({"token": ""}, "must be a number, a text or a box"),
        ({"token": True}, "must be a number, a text or a box"),
        ({"token": vlkit.Box("cat", 1, 2, 3, 4)}, "is not one of the answer's boxes"),
        ({"token": 0, "layers": 6}, "layers=6 must be numbers from 0 to"),
        ({"token": 0, "layers": []}, "layers=\\[\\] must be numbers"),
        ({"token": 0, "heads": "all"}, "heads='all' must be numbers"),
        ({"token": 0, "reduce": "sum"}, 'reduce=\'sum\' is unknown; choose "mean" or "max"'),
        ({"token": 0, "image": 1}, "image=1 does not exist; there are 1"),
        ({"token": 0, "clip": 0}, "contain no picture"),
        ({"token": 0, "answer": ""}, "the answer is empty"),
        ({"token": 0, "answer": 3}, "answer=3 must be a Reply, its raw text or None"),
    ],
)
def test_what_is_not_there_is_one_line(tiny_vlm, options, message):
    vlm = tiny_vlm("qwen2_vl")
    with pytest.raises(VlkitError, match=message):
        vlkit.attention_map(vlm, vlkit.user("Hi", picture()), **{"max_new_tokens": 3, **options})


def test_text_alone_has_no_map(tiny_vlm):
    with pytest.raises(VlkitError, match="contain no picture"):
        vlkit.attention_map(tiny_vlm("qwen2_vl"), "Hi", token=0, max_new_tokens=1)


@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_the_implementation_is_restored_also_on_errors(vlm, monkeypatch, before):
    message = vlkit.user("Locate the red circle.", vlkit.sample("red_circle"))
    vlm.model.set_attn_implementation(before)
    try:
        expected = vlkit.generate(vlm, message).raw
        vlkit.attention_map(vlm, message, token="circle")
        monkeypatch.setattr("vlkit.analysis.attention._Watch.note", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vlkit.attention_map(vlm, message, token="circle")
        config = vlm.model.config
        assert config.get_text_config()._attn_implementation == before
        assert config.vision_config._attn_implementation == before
        assert vlkit.generate(vlm, message).raw == expected
    finally:
        vlm.model.set_attn_implementation("sdpa")


MEASURE = """
import resource
import vlkit
from vlkit.inputs import prepare_inputs

vlm = vlkit.load()
words = "Locate the red circle. " * 1000
message = vlkit.user(words, vlkit.sample("three_shapes"))
ids = vlm.processor.tokenizer(words)["input_ids"]
spare = prepare_inputs(vlm, [message]).tensors["input_ids"].shape[1] - len(ids)
text = vlm.processor.tokenizer.decode(ids[: 4096 - spare])
message = vlkit.user(text, vlkit.sample("three_shapes"))
reply = vlkit.generate(vlm, message, max_new_tokens=4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = vlkit.attention_map(vlm, message, token=1, answer=reply)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = vlm.model.config.get_text_config()
whole = 4 * config.num_hidden_layers * config.num_attention_heads * 4096**2
print(reply.usage.prompt_tokens, (after - before) * 1024, whole)
"""


def test_memory_is_bounded_at_4096_tokens(warm):
    run = warm.run("-c", MEASURE, timeout=400)
    assert run.returncode == 0, run.stderr
    tokens, more, whole = map(int, run.stdout.split())
    assert abs(tokens - 4096) < 8
    assert whole > 1.5e9  # what all layers' attentions would take
    assert more < 1e8  # beyond what the answer itself took


# --- the bundled model on scenes that are known --------------------------------------------------


@pytest.fixture(scope="module")
def located(vlm):
    """Of each drawn sample's first things: the message, the reply and the true box."""
    names = ("three_shapes", "six_shapes", "portrait", "circles", "red_shapes", "diamonds")
    rows = []
    for name in names:
        sample = vlkit.samples()[name]
        for box in sample.boxes[:3]:
            message = vlkit.user(f"Locate the {box.label}.", sample.path)
            reply = vlkit.generate(vlm, message)
            if reply.boxes and vlkit.iou(reply.boxes[0], box) > 0.5:
                rows.append((message, reply, box))
    assert len(rows) > 12
    return rows


def look(vlm, row, layer):
    message, reply, box = row
    return vlkit.attention_map(vlm, message, token=box.label, layers=layer, answer=reply)


@pytest.fixture(scope="module")
def seeing_layer(vlm, located):
    """The layer whose attention at the label falls on the thing, by four answers."""
    layers = range(vlm.model.config.get_text_config().num_hidden_layers)
    rows = located[:8:2]
    return max(layers, key=lambda layer: sum(look(vlm, r, layer).inside(r[2]) for r in rows))


@pytest.mark.slow
def test_the_label_looks_at_its_thing(vlm, located, seeing_layer):
    """Judged by the answers by which the layer was not chosen."""
    inside, peaks, areas = [], [], []
    for row in located[1::2]:
        found, box = look(vlm, row, seeing_layer), row[2]
        (x, y), (width, height) = found.peak, found.picture.size
        near = 0.5 * width / found.values.shape[1]  # a cell may stand half outside
        peaks.append(box.x1 - near < x < box.x2 + near and box.y1 - near < y < box.y2 + near)
        inside.append(found.inside(box))
        areas.append(box.area / (width * height))
    assert np.mean(peaks) > 0.8
    assert np.mean(inside) > 4 * np.mean(areas)


def test_coordinates_look_at_their_own_box(vlm, seeing_layer):
    sample = vlkit.samples()["three_shapes"]
    message = vlkit.user("Generate the caption in English with grounding:", sample.path)
    reply = vlkit.generate(vlm, message)
    assert len(reply.boxes) == 3
    options = {"layers": seeing_layer, "answer": reply}
    maps = [vlkit.attention_map(vlm, message, token=box, **options) for box in reply.boxes]
    shares = np.array([[found.inside(box) for box in reply.boxes] for found in maps])
    assert (shares.argmax(1) == [0, 1, 2]).all(), shares


def test_border_cells_are_left_out_on_request(vlm, located):
    message, reply, box = located[0]
    plain = vlkit.attention_map(vlm, message, token=box.label, answer=reply)
    masked = vlkit.attention_map(vlm, message, token=box.label, answer=reply, mask_border=True)
    np.testing.assert_array_equal(masked.values[1:-1, 1:-1], plain.values[1:-1, 1:-1])
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        assert (masked.values[edge] == 0).all() and (plain.values[edge] > 0).all()


def test_a_token_is_found_by_text_number_and_box(vlm, located):
    message, reply, _ = located[0]
    by_text = vlkit.attention_map(vlm, message, token="<|box_start|>", answer=reply)
    ids = vlm.processor.tokenizer(reply.raw)["input_ids"]
    place = ids.index(vlm.processor.tokenizer.convert_tokens_to_ids("<|box_start|>"))
    by_number = vlkit.attention_map(vlm, message, token=place - len(ids), answer=reply.raw)
    np.testing.assert_array_equal(by_text.values, by_number.values)
    box = vlkit.attention_map(vlm, message, token=reply.boxes[0], answer=reply)
    assert box.token == "".join(c for c in reply.raw if c.isdigit())
    greedy = vlkit.attention_map(vlm, message, token=reply.boxes[0])
    np.testing.assert_array_equal(greedy.values, box.values)
    assert greedy.plot(reply.boxes).width >= 400 and "<img" in greedy._repr_html_()


def test_a_prefill_is_no_part_of_what_was_generated(vlm):
    begun = "<|object_ref_start|>the red circle<|object_ref_end|><|box_start|>"
    picture = vlkit.sample("three_shapes")
    message = [vlkit.user("Locate the red circle.", picture), vlkit.assistant(begun)]
    reply = vlkit.generate(vlm, message)
    for answer in (reply, reply.raw, None):
        found = vlkit.attention_map(vlm, message, token=reply.boxes[0], answer=answer)
        assert found.token == "".join(c for c in reply.raw if c.isdigit())
        sure = vlkit.token_logprobs(vlm, message, answer=answer)
        assert "".join(sure.tokens) == reply.raw.removeprefix(begun)
        assert 0 < sure.confidence(reply.boxes[0]) < 1
    with pytest.raises(VlkitError, match="token='red circle' is not in the generated text"):
        vlkit.attention_map(vlm, message, token="red circle", answer=reply)


# --- drawn: a heat map lies where its cells are, and nowhere else ---------------------------------


def is_coloured(pixel):
    return max(pixel) - min(pixel) > 30


@pytest.mark.parametrize("size", [(60, 40), (600, 400), (3000, 2000)])
def test_the_cell_that_is_hot_is_coloured_and_the_others_grey(size):
    values = np.zeros((4, 6))
    values[1, 4] = 0.25
    drawn = draw_heat(PIL.Image.new("RGB", size, (90, 140, 200)), values)
    width = min(max(size[0], 480), 960)
    assert drawn.width == width and drawn.height > width * 2 / 3  # and the bar
    cell = width / 6
    for row in range(4):
        for column in range(6):
            for at in (0.1, 0.5, 0.9):  # right up to the cell's edges
                pixel = drawn.getpixel((int((column + at) * cell), int((row + at) * cell)))
                assert is_coloured(pixel) == ((row, column) == (1, 4))


def test_no_attention_is_a_grey_picture_and_boxes_are_white():
    picture = PIL.Image.new("RGB", (480, 480), (200, 30, 30))
    drawn = draw_heat(picture, np.zeros((3, 3)), vlkit.Box("", 100, 100, 300, 300))
    assert drawn.getpixel((200, 100)) == (255, 255, 255)
    grey = drawn.getpixel((50, 50))
    assert len(set(grey)) == 1 and grey[0] < 150


def test_the_picture_itself_is_not_changed():
    picture = PIL.Image.new("RGB", (480, 480), (200, 30, 30))
    draw_heat(picture, np.ones((3, 3)))
    assert picture.getpixel((50, 50)) == (200, 30, 30)


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [[-1.0]], [[float("nan")]]])
def test_values_that_are_no_map_are_one_line(values):
    with pytest.raises(VlkitError, match=r"must be \(rows, columns\), 0 or more"):
        draw_heat(PIL.Image.new("RGB", (50, 50)), np.array(values))
