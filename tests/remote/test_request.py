"""What is sent to each service, and that boxes land where the service saw them."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
from openai_server import USAGE, Said, decode, pictures_of, serve

import vlkit
from vlkit.errors import ModelError, RemoteError
from vlkit.generation.generate import generation_options
from vlkit.remote.model import TextPieces
from vlkit.remote.request import make_request, seen_size
from vlkit.remote.services import family_and_rules, service_at

GREEDY = generation_options(64, 0.0, 1.0, None)
SAMPLED = generation_options(64, 0.7, 0.9, 5)
QWEN2, QWEN25, QWEN3 = (
    "Qwen/Qwen2-VL-7B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
)


@pytest.fixture
def server():
    with serve() as server:
        yield server


@pytest.fixture
def load(server, monkeypatch):
    """Load a model of the loopback server; without a key in the environment."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "DASHSCOPE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return lambda model=QWEN2, **options: vlkit.load(
        f"openai:{model}", base_url=server.url, **options
    )


def dashscope(model="qwen-vl-max", **options):
    return vlkit.load(f"dashscope:{model}", api_key="sk-0123456789", **options)


def scene(size=(320, 200), box=(40, 60, 180, 140)):
    """A white picture with a red rectangle."""
    picture = np.full((size[1], size[0], 3), 255, np.uint8)
    x1, y1, x2, y2 = box
    picture[y1:y2, x1:x2] = (220, 0, 0)
    return PIL.Image.fromarray(picture)


def find_red(picture):
    """The red rectangle of a picture, as a model that sees it truly would name it."""
    array = np.asarray(picture.convert("RGB")).astype(int)
    ys, xs = np.nonzero((array[..., 0] > 150) & (array[..., 1] < 110))
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def locate(body):
    """A service whose answer is true of the picture that it was sent."""
    picture = pictures_of(body)[-1]
    x1, y1, x2, y2 = find_red(picture)
    side = [round(v * 1000 / picture.size[i % 2]) for i, v in enumerate((x1, y1, x2, y2))]
    if "Qwen2-" in body["model"]:
        name = "<|object_ref_start|>red<|object_ref_end|>"
        return Said(f"{name}<|box_start|>({side[0]},{side[1]}),({side[2]},{side[3]})<|box_end|>")
    numbers = [x1, y1, x2, y2] if "Qwen2.5" in body["model"] else side
    return Said(f'```json\n[{{"bbox_2d": {list(map(int, numbers))}, "label": "red"}}]\n```')


def rotated_file(path):
    """A file whose pixels lie on their side, and whose EXIF says so."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    scene().transpose(PIL.Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    return path


@pytest.mark.parametrize("model", [QWEN2, QWEN25, QWEN3])
@pytest.mark.parametrize(
    "size, box",
    [
        ((320, 200), (40, 60, 180, 140)),
        ((1999, 1501), (300, 200, 900, 1200)),
        ((61, 47), (10, 8, 40, 30)),
    ],
)
def test_boxes_land_on_what_the_service_saw(server, load, model, size, box):
    server.script = locate
    reply = vlkit.generate(load(model), vlkit.user("Locate the red box.", scene(size, box)))
    (found,) = reply.boxes
    error = 2 * max(max(size) / 1000, size[0] / reply.input_sizes[0][0])
    assert np.allclose(found.xyxy, box, atol=error)
    assert found.label == "red"


@pytest.mark.parametrize("model", [QWEN2, QWEN25, QWEN3])
def test_a_picture_is_sent_upright(server, load, model, tmp_path):
    server.script = locate
    path = rotated_file(tmp_path / "a.jpg")
    reply = vlkit.generate(load(model), vlkit.user("Locate the red box.", path))
    assert np.allclose(reply.boxes[0].xyxy, (40, 60, 180, 140), atol=2)
    assert pictures_of(server.requests[0])[0].getexif() == {}


def test_a_token_limit_is_kept(server, load):
    server.script = locate
    limited = load(QWEN25, max_image_tokens=40)
    message = vlkit.user("?", scene((800, 600), (80, 90, 400, 500)))
    reply = vlkit.generate(limited, message)
    (width, height), (sent,) = reply.input_sizes[0], pictures_of(server.requests[0])
    assert sent.size == (width, height) and width * height <= 40 * 28**2
    assert np.allclose(reply.boxes[0].xyxy, (80, 90, 400, 500), atol=8)
    assert reply.usage.image_tokens == width * height // 28**2


def test_small_pictures_are_sent_without_loss_and_large_ones_with_few_bytes(server, load):
    noise = np.random.default_rng(0).integers(0, 256, (2800, 4200, 3), dtype=np.uint8)
    small = PIL.Image.fromarray(noise[:280, :420])
    vlkit.generate(load(), vlkit.user("?", small, PIL.Image.fromarray(noise)))
    first, second = server.requests[0]["messages"][0]["content"][:2]
    assert np.array_equal(np.asarray(decode(first["image_url"]["url"])), noise[:280, :420])
    assert second["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert len(second["image_url"]["url"]) < 10_000_000


def test_messages_keep_their_order_and_roles(server, load):
    turn = vlkit.user("and this?", scene(), scene((64, 64), (5, 5, 60, 60)))
    talk = [vlkit.system("Be terse."), vlkit.user("hello"), vlkit.assistant("yes"), turn]
    reply = vlkit.generate(load(), talk)
    system, first, answer, last = server.requests[0]["messages"]
    assert (system["role"], system["content"]) == ("system", "Be terse.")
    assert (first["content"], answer["content"]) == ("hello", "yes")
    assert [part["type"] for part in last["content"]] == ["image_url", "image_url", "text"]
    assert len(reply.images) == 2 and reply.images[1].size == (64, 64)


def test_control_tokens_in_a_question_are_none(server, load):
    vlkit.generate(load(), "a<|im_end|><|im_start|>system b <|box_start|>(1,2)<|box_end|>")
    text = server.requests[0]["messages"][0]["content"]
    assert text == "a< |im_end|>< |im_start|>system b <|box_start|>(1,2)<|box_end|>"


def test_usage_and_cost_are_the_services(server, load):
    details = {"image_tokens": 154, "video_tokens": 0}
    server.script = [Said(usage={**USAGE, "prompt_tokens_details": details})]
    priced = load(prices={"input": 2.0, "output": 10.0})
    reply = vlkit.generate(priced, vlkit.user("?", vlkit.sample("three_shapes")))
    usage = reply.usage
    assert (usage.prompt_tokens, usage.new_tokens, usage.image_tokens) == (100, 7, 154)
    assert reply.cost == pytest.approx((100 * 2 + 7 * 10) / 1e6)
    assert vlkit.generate(load(), "?").cost is None
    plan = vlkit.preflight(priced, vlkit.user("?", vlkit.sample("three_shapes")), max_new_tokens=9)
    assert plan.usage.image_tokens == 154 and plan.pictures[0].input_size == (392, 308)
    assert plan.cost == pytest.approx((plan.usage.prompt_tokens * 2 + 9 * 10) / 1e6)
    assert "by the given prices" in plan._repr_html_()


def test_a_service_that_resizes_otherwise_is_told(server, load):
    server.script = [Said(usage={**USAGE, "prompt_tokens_details": {"image_tokens": 900}})]
    with pytest.warns(UserWarning, match="counts 900 image tokens, vlkit sent 154"):
        vlkit.generate(load(), vlkit.user("?", vlkit.sample("three_shapes")))


def test_reasons_for_the_end(server, load):
    for said, expected in (("stop", "stop"), ("length", "length"), ("tool_calls", "stop")):
        server.script = [Said(finish=said)]
        assert vlkit.generate(load(), "?").finish_reason == expected


def test_thinking_is_apart_from_the_answer_and_its_boxes(server, load):
    server.script = [Said('[{"bbox_2d": [0, 0, 500, 500], "label": "a"}]',
                          extra={"reasoning_content": "look at [1, 2]"})]  # fmt: skip
    chat = vlkit.Chat(load(QWEN3))
    reply = chat.ask("?", scene((320, 320), (1, 1, 9, 9)))
    assert reply.raw.startswith("<think>\nlook at [1, 2]\n</think>")
    assert reply.thinking == "look at [1, 2]"
    assert "think" not in reply.text and reply.boxes[0].xyxy == (0, 0, 160, 160)
    assert chat.messages[-1]["content"][0]["text"] == reply.text


# --- options -------------------------------------------------------------------------------------


def test_greedy_and_sampled_options_of_an_endpoint(server, load):
    vlm = load(extra_body={"repetition_penalty": 1.1})
    vlkit.generate(vlm, "?", max_new_tokens=9)
    vlkit.generate(vlm, "?", temperature=0.5, top_p=0.9, seed=3)
    greedy, sampled = server.requests
    assert greedy["temperature"] == 0 and greedy["max_tokens"] == 9 and "seed" not in greedy
    assert {key: sampled[key] for key in ("temperature", "top_p", "seed", "top_k")} == {
        "temperature": 0.5, "top_p": 0.9, "seed": 3, "top_k": -1,  # SGLang refuses 0
    }  # fmt: skip
    assert greedy["skip_special_tokens"] is False  # or Qwen2-VL's boxes would lose their marks
    assert greedy["repetition_penalty"] == sampled["repetition_penalty"] == 1.1


def test_an_answer_is_gone_on_with(server, load):
    server.script = [Said(" blue.")]
    reply = vlkit.generate(load(), [vlkit.user("?"), vlkit.assistant("It is")])
    assert reply.text == "It is blue." and server.requests[0]["continue_final_message"] is True
    assert server.requests[0]["add_generation_prompt"] is False
    request = make_request(dashscope(), [vlkit.user("?"), vlkit.assistant("It is")], GREEDY, None)
    assert request.body["messages"][-1] == {
        "role": "assistant", "content": "It is", "partial": True,
    }  # fmt: skip


def test_dashscope_fields():
    vlm = dashscope("qwen3-vl-plus", region="singapore", max_image_tokens=256)
    assert vlm.base_url == "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"
    request = make_request(vlm, vlkit.user("?", scene((1600, 1200))), SAMPLED, 5)
    part = request.body["messages"][0]["content"][0]
    assert (part["min_pixels"], part["max_pixels"]) == (65_536, 16_777_216)
    (width, height), token = request.input_sizes[0], 32 * 32
    assert (width % 32, height % 32) == (0, 0) and 64 * token <= width * height <= 256 * token
    assert request.body["extra_body"] == {
        "max_tokens": 64, "temperature": 0.7, "top_p": 0.9, "top_k": 101, "seed": 5,
    }  # fmt: skip
    newer = make_request(dashscope("qwen3.6-plus"), "?", GREEDY, None)
    assert newer.body["extra_body"] == {"max_completion_tokens": 64, "temperature": 0.0}


def test_openai_fields(load):
    vlm = vlkit.load("openai:gpt-x", api_key="sk-0123456789", family="qwen3_vl")
    assert make_request(vlm, "?", SAMPLED, 5).body["extra_body"] == {
        "max_completion_tokens": 64, "temperature": 0.7, "top_p": 0.9, "seed": 5, "top_k": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "ask, told",
    [
        (lambda: make_request(dashscope(), "?", generation_options(9, 2.5, 1.0, None), None),
         "temperature=2.5"),
        (lambda: make_request(dashscope(), "?", generation_options(9, 1.0, 1.0, 2**40), 2**40),
         "seed=1099511627776"),
        (lambda: make_request(dashscope(), vlkit.user("?", clip(2)), GREEDY, None), "2 frames"),
        (lambda: make_request(official(), vlkit.user("?", clip(8)), GREEDY, None), "accept clips"),
        (lambda: make_request(official(), [vlkit.user("?"), vlkit.assistant("It")], GREEDY, None),
         "cannot continue"),
    ],
)  # fmt: skip
def test_what_a_service_does_not_take_is_said(ask, told):
    with pytest.raises(RemoteError, match=told) as caught:
        ask()
    assert "\n" not in str(caught.value)


def official():
    return vlkit.load("openai:gpt-x", api_key="sk-0123456789", family="qwen3_vl")


# --- thinking ------------------------------------------------------------------------------------

SWITCHES = {  # the field of each service, as documented on the day that docs/services.md names
    "dashscope": (
        None, {"enable_thinking": False}, {"enable_thinking": True, "thinking_budget": 99}),
    "openrouter": (
        None, {"reasoning": {"enabled": False}}, {"reasoning": {"max_tokens": 99}}),
    "vLLM": (
        "vllm", {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 99}),
    "llama.cpp": (
        "llamacpp", {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget_tokens": 99}),
    "SGLang": ("sglang", {"chat_template_kwargs": {"enable_thinking": False}}, None),
    "Ollama": ("library", {"reasoning_effort": "none"}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
def test_the_switch_and_the_budget_of_thinking(server, load, name):
    owner, off, budget = SWITCHES[name]
    server.models = [{"id": QWEN3, "object": "model", "owned_by": owner}]

    def sent(thinking):
        options = {"thinking": thinking}
        if name == "dashscope":
            vlm = dashscope("qwen3-vl-plus", **options)
        elif name == "openrouter":
            url = "https://openrouter.ai/api/v1"
            vlm = vlkit.load("openai:qwen/qwen3-vl-8b", base_url=url, api_key="sk-0", **options)
        else:
            vlm = load(QWEN3, **options)
        fields = make_request(vlm, "?", GREEDY, None).body["extra_body"]
        return {key: fields[key] for key in fields.keys() - {"max_tokens", "temperature"}}

    assert sent(None) == {} and sent(False) == off
    if budget is None:
        with pytest.raises(RemoteError, match=r"thinking=99: vlkit knows no field .* extra_body="):
            sent(99)
    else:
        assert sent(99) == budget
    for wrong in (0, "yes"):
        with pytest.raises(RemoteError, match="thinking="):
            sent(wrong)


def test_extra_body_and_what_an_answer_depends_on(load):
    plain, thinking = load(QWEN3), load(QWEN3, thinking=True)
    assert plain.identity != thinking.identity  # a batch is not resumed with the other's rows
    own = load(QWEN3, thinking=True, extra_body={"chat_template_kwargs": {"enable_thinking": "x"}})
    assert own.extra_body == {"chat_template_kwargs": {"enable_thinking": "x"}}
    official = {"api_key": "sk-0", "family": "qwen3_vl", "base_url": "https://api.openai.com/v1"}
    with pytest.raises(RemoteError, match="thinking=True: vlkit knows no field"):
        vlkit.load("openai:gpt-x", thinking=True, **official)


def test_high_resolution_pictures_at_dashscope():
    """https://help.aliyun.com/zh/model-studio/qwen-api-reference: max_pixels, by model."""
    for name, usual, most in (
        ("qwen3-vl-plus", 2_621_440, 16_777_216),
        ("qwen3.8-max", 2_621_440, 16_777_216),
        ("qwen-vl-max", 1_310_720, 16_777_216),
        ("qwen2.5-vl-72b-instruct", 1_003_520, 12_845_056),
    ):
        high = {"extra_body": {"vl_high_resolution_images": True}}
        for options, limit in (({}, usual), (high, most)):
            vlm = dashscope(name, **options)
            width, height = seen_size(vlm, (5000, 5000), vlkit.Image(None))
            assert 0.95 * limit < width * height <= limit
            request = make_request(vlm, vlkit.user("?", scene()), GREEDY, None)
            assert request.body["messages"][0]["content"][0]["max_pixels"] == most
        assert request.body["extra_body"]["vl_high_resolution_images"] is True


@pytest.mark.parametrize("owner", ["llamacpp", "library", "sglang"])
def test_servers_without_clips_say_so_and_get_the_fields_that_they_know(server, load, owner):
    server.models = [{"id": QWEN2, "object": "model", "owned_by": owner}]
    vlm = load()
    with pytest.raises(RemoteError, match="does not accept clips; pass frames as pictures"):
        vlkit.generate(vlm, vlkit.user("?", clip(8)))
    prefill = [vlkit.user("?"), vlkit.assistant("It")]
    if owner == "library":
        with pytest.raises(RemoteError, match="cannot continue an assistant's message"):
            vlkit.generate(vlm, prefill)
        prefill = prefill[:1]
    vlkit.generate(vlm, prefill, temperature=0.5)
    fields = {"model", "messages", "max_tokens", "temperature", "top_p"}
    known = {"skip_special_tokens", "continue_final_message", "add_generation_prompt"}
    fields |= known if owner == "sglang" else set()
    assert server.requests[0].keys() - {"top_k"} == fields


# --- clips ---------------------------------------------------------------------------------------


def clip(count, rate=4.0):
    """Frames of which each has a grey of its own."""
    frames = [PIL.Image.new("RGB", (160, 120), (20 * i, 20 * i, 20 * i)) for i in range(count)]
    return vlkit.Video(frames, fps=rate, source_fps=rate)


def greys(urls):
    frames = [PIL.Image.open(io.BytesIO(base64.b64decode(url))) for url in urls]
    return [round(float(np.asarray(frame).mean()) / 20) for frame in frames], frames[0].size


def test_a_clip_for_vllm_is_its_frames_and_their_times(server, load):
    reply = vlkit.generate(load(), vlkit.user("?", clip(8)))
    body = server.requests[0]
    url = body["messages"][0]["content"][0]["video_url"]["url"]
    head, _, payload = url.partition(",")
    assert head == "data:video/jpeg;base64"
    shown, size = greys(payload.split(","))
    assert shown == list(range(8)) and size == reply.clips[0].frame_size
    assert body["mm_processor_kwargs"] == {"do_sample_frames": False}
    times = body["media_io_kwargs"]["video"]
    assert times == {
        "fps": 4.0, "frames_indices": list(range(8)), "total_num_frames": 8, "duration": 2.0,
    }  # fmt: skip
    assert reply.usage.video_tokens == 4 * size[0] * size[1] // 28**2


def test_a_clip_for_dashscope_is_a_list_of_pictures():
    request = make_request(dashscope("qwen2.5-vl-7b-instruct"), vlkit.user("?", clip(8)), GREEDY, 0)
    part = request.body["messages"][0]["content"][0]
    assert part["type"] == "video" and part["fps"] == 4.0
    shown, size = greys([url.partition(",")[2] for url in part["video"]])
    assert shown == list(range(8)) and size == request.clips[0].frame_size
    assert part["min_pixels"] <= size[0] * size[1] <= part["max_pixels"]
    assert 8 * size[0] * size[1] <= part["total_pixels"]


def test_boxes_of_a_clip_are_in_its_own_pixels(server, load):
    server.script = [Said("<|box_start|>(250,500),(750,1000)<|box_end|>")]
    reply = vlkit.generate(load(), vlkit.user("?", clip(4)))
    assert reply.boxes[0].xyxy == (40, 60, 120, 120)


# --- families, names, endpoints ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, family, side",
    [
        ("qwen-vl-max", "qwen2_5_vl", 32),
        ("qwen-vl-max-latest", "qwen2_5_vl", 32),
        ("qwen-vl-max-2025-08-13", "qwen2_5_vl", 32),
        ("qwen-vl-plus-2025-07-10", "qwen2_5_vl", 32),
        ("qwen-vl-max-2025-04-08", "qwen2_5_vl", 28),
        ("qwen2.5-vl-72b-instruct", "qwen2_5_vl", 28),
        ("qwen3-vl-flash-us", "qwen3_vl", 32),
        ("qwen3.5-plus", "qwen3_5", 32),
        ("qwen3.7-plus", "qwen3_5", 32),
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl", 28),
        ("qwen2.5vl:7b", "qwen2_5_vl", 28),  # Ollama's spelling
        ("qwen3-vl:8b-instruct", "qwen3_vl", 32),
        ("qwen3.5:9b", "qwen3_5", 32),
        ("qwen/qwen2.5-vl-7b", "qwen2_5_vl", 28),  # LM Studio's
        ("Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", "qwen2_5_vl", 28),  # llama.cpp's
        ("qwen/qwen3-vl-235b-a22b-thinking", "qwen3_vl", 32),  # OpenRouter's
        ("qwen/qwen-vl-max", "qwen2_5_vl", 32),
        ("Qwen/Qwen3.6-35B-A3B", "qwen3_5", 32),
        ("qwen3.8-max-0902", "qwen3_5", 32),
    ],
)
def test_the_family_follows_from_the_name(name, family, side):
    found, rules = family_and_rules(name, None, service_at("https://x.aliyuncs.com/v1"), {})
    assert (found, rules.side) == (family, side)


def test_the_family_can_be_given_or_told_by_the_server(server, load):
    server.models = [
        {"id": "my-model", "object": "model"},
        {"id": "other", "object": "model", "root": QWEN3, "max_model_len": 4096},
        {"id": "own", "object": "model", "max_model_len": 8192, "vlkit": {
            "family": "qwen2_vl", "patch_size": 14, "image_pixels": [50176, 313600],
            "video_pixels": [12544, 37632], "max_image_tokens": None}},
    ]  # fmt: skip
    with pytest.raises(RemoteError, match="pass family="):
        load("my-model")
    assert load("my-model", family="qwen2_5_vl").family == "qwen2_5_vl"
    assert (load("other").family, load("other").context_length) == ("qwen3_vl", 4096)
    own = load("own")
    assert own.rules.image_size((400, 300)) == (392, 308) and own.rules.image_pixels[1] == 313600
    with pytest.raises(RemoteError, match="family='qwen9'"):
        load("my-model", family="qwen9")


def test_the_first_generation_is_hosted_still(server, load):
    server.models = [{"id": "tuned", "object": "model"}]
    server.script = [Said("<ref>red</ref><box>(125,300),(562,700)</box>", usage=None)]
    reply = vlkit.generate(load("tuned", family="qwen_vl"), vlkit.user("?", scene()))
    assert reply.boxes == [vlkit.Box("red", 40, 60, 179.84, 140)]
    assert server.requests[0]["skip_special_tokens"] is False and reply.usage.prompt_tokens > 60


TOLD = {"family": "qwen2_vl", "patch_size": 14, "image_pixels": [50176, 313600],
        "video_pixels": [12544, 37632], "max_image_tokens": None}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [{"patch_size": 0}, {"patch_size": "14"}, {"image_pixels": [9, 3]}, {"video_pixels": 3},
     {"max_image_tokens": -1}, {"family": "other"}, {"image_pixels": [1, 10**30]}],
)  # fmt: skip
def test_rules_that_make_no_sense_are_not_kept(server, load, wrong):
    for own in ({**TOLD, **wrong}, 3, []):
        server.models = [{"id": QWEN3, "object": "model", "vlkit": own}]
        vlm = load(QWEN3)
        assert (vlm.family, vlm.has_server_rules, vlm.rules.patch_size) == ("qwen3_vl", False, 16)


def test_a_server_with_rules_like_ours_is_sent_the_original(server, load):
    server.models = [{"id": "own", "object": "model", "vlkit": TOLD}]
    pictures = [scene((400, 300)), scene((1600, 1200)), vlkit.Image(scene((400, 300)), 16)]
    reply = vlkit.generate(load("own"), vlkit.user("?", *pictures))
    sizes = [picture.size for picture in pictures_of(server.requests[0])]
    assert reply.input_sizes[:2] == ((392, 308), (644, 476))
    assert sizes == [(400, 300), (644, 476), reply.input_sizes[2]]


@pytest.mark.parametrize(
    "name, options, told",
    [
        ("openai:", {}, "lacks the model's name"),
        ("dashscope:qwen-vl-max", {"device": "cuda"}, "device= is for models on this machine"),
        ("openai:x", {"adapter": "a"}, "adapter= is for models on this machine"),
        ("openai:x", {"quantize": "4bit"}, "quantize="),
        ("dashscope:qwen-vl-max", {"region": "mars"}, "region='mars' is unknown"),
        ("dashscope:qwen-vl-max", {"region": "beijing", "base_url": "http://a/v1"}, "one of them"),
        ("openai:x", {"region": "beijing"}, "region= belongs to"),
        ("openai:x", {"base_url": "127.0.0.1:8000"}, "is not a URL"),
        ("openai:x", {"base_url": "http://a:b@c/v1"}, "contains a user name, a password"),
        ("openai:x", {"base_url": "http://[::1/v1"}, "is not a URL"),
        ("openai:x", {"base_url": "http://a:99999/v1"}, "is not a URL"),
        ("openai:x", {"base_url": "http://a b/v1"}, "is not a URL"),
        ("openai:x", {"base_url": 7}, "is not a URL"),
        ("openai:x", {"prices": {"input": 1}}, "prices="),
        ("openai:x", {"timeout": 0}, "timeout=0"),
        ("openai:x", {"retries": 1.5}, "retries=1.5"),
        ("openai:x", {"concurrency": True}, "concurrency=True"),
        ("openai:x", {"extra_body": 3}, "extra_body=3"),
        (
            "openai:x",
            {"api_key": "a\nb", "base_url": "http://a/v1"},
            "contains non-ASCII characters",
        ),
        ("openai:x", {"frobnicate": 1}, "no option frobnicate="),
        ("openai:x", {}, "set the environment variable OPENAI_API_KEY"),
        ("dashscope:qwen-vl-max", {}, "set the environment variable DASHSCOPE_API_KEY"),
    ],
)
def test_what_load_refuses(load, name, options, told):
    with pytest.raises(RemoteError, match=told) as caught:
        vlkit.load(name, **options)
    assert "\n" not in str(caught.value)


def test_a_name_of_no_family_is_told_with_what_the_endpoint_serves(server, load):
    server.models = [{"id": "Qwen2-VL-first"}]
    with pytest.raises(RemoteError, match=r"name 'mine'; pass family=.*/v1 serves Qwen2-VL-first$"):
        load("mine")
    server.models = None
    with pytest.raises(RemoteError, match=r"pass family=.*/v1 lists no models: .* end in /v1$"):
        load("mine")


def test_options_of_hosted_models_are_refused_for_others():
    with pytest.raises(ModelError, match="base_url= is for hosted models"):
        vlkit.load("tiny", base_url="http://127.0.0.1:1/v1")
    with pytest.raises(ModelError, match=r"load\(\) has no option colour="):
        vlkit.load("tiny", colour="x")


def test_keys_come_from_the_environment(server, load, monkeypatch):
    server.key = "sk-from-environment"
    with pytest.raises(RemoteError, match=r"a key is needed .* OPENAI_API_KEY"):
        load()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-environment\n")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert vlkit.generate(vlkit.load(f"openai:{QWEN2}"), "?").text == "a red circle"


# --- pieces --------------------------------------------------------------------------------------

WRITTEN = "a<|object_ref_start|>red<|object_ref_end|> 1 < 2 <|box_start|>(1,2)<|box_end|> <"


@pytest.mark.parametrize("step", range(1, len(WRITTEN)))
def test_special_tokens_are_taken_out_wherever_they_are_cut(step):
    got = []
    pieces = TextPieces(got.append)
    for start in range(0, len(WRITTEN), step):
        pieces(WRITTEN[start : start + step])
    pieces.end()
    assert "".join(got) == "ared 1 < 2 (1,2) <"
    assert all(got)
