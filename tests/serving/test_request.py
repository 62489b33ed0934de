"""What the server takes from a request, what it refuses and why; no model is needed."""

import base64
import io
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import PIL.Image
import pytest
from pydantic import ValidationError

import vlkit
from vlkit.errors import VlkitError
from vlkit.models.families import published_rules
from vlkit.serving.app import check_key, is_loopback, model_name, open_socket
from vlkit.serving.limits import Limits
from vlkit.serving.request import (
    ChatRequest,
    MediaReader,
    RequestError,
    describe_errors,
    is_public,
)

TEXT = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OTHER_TOOL = {"type": "function", "function": {"name": "g"}}


def picture_url(size=(32, 24), kind="png"):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, "red").save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def with_part(part, role="user"):
    return [{"role": role, "content": [part, {"type": "text", "text": "What is it?"}]}]


def picture(url):
    return with_part({"type": "image_url", "image_url": {"url": url}})


def read(messages, *, fields=None, context=32_768, **limits):
    """The messages, and how many pixels they hold."""
    chat = ChatRequest.model_validate({"model": "m", "messages": messages, **(fields or {})})
    reader = MediaReader(chat, Limits(**limits), published_rules("qwen2_vl"), context)
    return reader.read(), reader.pixels


@pytest.fixture
def visited():
    """A loopback web server: (its address, the paths that were asked for)."""
    paths = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            if self.path.startswith("/redirect?"):
                self.send_response(302)
                self.send_header("Location", self.path.partition("?")[2])
                self.end_headers()
                return
            data = (
                b"aws_secret=A"
                if self.path == "/secret"
                else base64.b64decode(picture_url().partition(",")[2])
            )
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            return None

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    server.server_close()


# --- fields --------------------------------------------------------------------------------------

MALFORMED = [  # what is changed in a good request, what the reason names
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [5]}, "messages.0"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "planner", "content": "x"}]}, "messages.0.role: input should be"),
    (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        "messages.0.role: this server does not accept results of functions; send the result as",
    ),
    (
        {
            "messages": [
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "function", "content": "x", "name": "f"},
            ]
        },
        "messages.1.role: this server does not accept results of functions",
    ),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content.0.image_url"),
    ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "content.0"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}]}, "tool_calls"),
    ({"messages": with_part({"type": "image_url", "image_url": {"url": 5}})}, "image_url.url"),
    ({"messages": with_part({"type": "video", "video": [5]})}, "video.0"),
    ({"messages": with_part({"type": "video", "video": [], "fps": 0})}, "fps"),
    ({"n": 0}, "n: "),
    ({"n": True}, "n: "),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"min_p": 1.1}, "min_p"),
    ({"tools": [{"type": "function"}]}, "tools.0.function: this field is missing"),
    ({"tools": [TOOL]}, "does not let the model choose; name the function in tool_choice"),
    ({"tools": [TOOL], "tool_choice": "auto"}, "does not let the model choose"),
    (
        {"tools": [TOOL, OTHER_TOOL], "tool_choice": "required"},
        "tool_choice must name one function",
    ),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "h"}}}, "name one"),
    ({"tool_choice": "required"}, "tool_choice must name one function"),
    ({"functions": [{"name": "f"}]}, "functions=[{'name': 'f'}] is not supported"),
    ({"chat_template_kwargs": {"add_vision_id": True}}, "chat_template_kwargs.add_vision_id"),
    ({"response_format": {"type": "json_schema"}}, "response_format: type json_schema needs"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "json_schema.schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"top_k": -2}, "top_k"),
    ({"mm_processor_kwargs": {"size": 5}}, "mm_processor_kwargs.size"),
    ({"media_io_kwargs": {"video": {"frames_indices": []}}}, "frames_indices"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": "0"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"stop": [5]}, "stop.0"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"add_generation_prompt": False}, "add_generation_prompt"),
    ({"tempeature": 1}, "tempeature: this field is unknown"),
]


@pytest.mark.parametrize(("change", "named"), MALFORMED, ids=lambda value: str(value)[:60])
def test_a_malformed_request_is_refused_and_the_field_named(change, named):
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"model": "m", "messages": TEXT, **change})
    reason, param = describe_errors(caught.value.errors())
    assert named in reason and "\n" not in reason and "ChatRequest" not in reason
    assert param and param.partition(".")[0] in change


def test_what_says_nothing_is_taken():
    """Clients write out their defaults, and send answers back as they came."""
    given = {
        "n": 1, "logprobs": False, "top_logprobs": None, "frequency_penalty": 0.0, "tools": [],
        "presence_penalty": 0, "response_format": {"type": "text"}, "tool_choice": "auto",
        "user": "someone", "metadata": {"a": "b"}, "logit_bias": {}, "parallel_tool_calls": True,
        "top_k": 0, "repetition_penalty": 1.0, "stop": None, "max_tokens": None, "min_p": 0,
        "media_io_kwargs": None, "mm_processor_kwargs": {},
    }  # fmt: skip
    answer = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None}
    chat = ChatRequest.model_validate({"model": "m", "messages": [*TEXT, answer, *TEXT], **given})
    assert (chat.temperature, chat.top_p, chat.seed, chat.stops) == (0.0, 1.0, None, [])
    assert chat.new_tokens is None and chat.answer_schema is None and chat.noted == []


def test_hints_without_effect_are_named():
    content = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]
    answer = {"role": "assistant", "content": "a", "reasoning_content": "because"}
    messages = [{"role": "user", "content": content}, answer, *TEXT]
    given = {"model": "m", "messages": messages, "reasoning_effort": "low", "user": "someone"}
    noted = ChatRequest.model_validate(given).noted
    assert noted == ["cache_control", "reasoning_content", "reasoning_effort"]


def test_a_refused_field_is_the_param_and_a_decode_error_has_its_position():
    for change, param in (({"functions": [1]}, "functions"), ({"messages": [5]}, "messages.0")):
        with pytest.raises(ValidationError) as caught:
            ChatRequest.model_validate({"model": "m", "messages": TEXT, **change})
        assert describe_errors(caught.value.errors())[1] == param
    broken = {"type": "json_invalid", "loc": ("body", 12), "ctx": {"error": "Expecting value"}}
    assert describe_errors([broken]) == (
        "the body is not valid JSON: Expecting value at character 12",
        "",
    )


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, SCHEMA),
    ],
)
def test_the_schema_of_an_answer(given, schema):
    chat = ChatRequest.model_validate({"model": "m", "messages": TEXT, "response_format": given})
    assert chat.answer_schema == schema


def test_the_newer_name_of_a_limit_counts():
    both = {"max_tokens": 9, "max_completion_tokens": 5}
    assert ChatRequest.model_validate({"model": "m", "messages": TEXT, **both}).new_tokens == 5


# --- media ---------------------------------------------------------------------------------------


def test_pictures_come_as_bytes_in_their_order_and_are_counted():
    red, wide = picture_url(), picture_url((64, 10), "jpeg")
    parts = [{"type": "image_url", "image_url": url} for url in (red, wide)]
    messages, pixels = read([{"role": "user", "content": parts}])
    sizes = [vlkit.load_image(item["image"]).size for item in messages[0]["content"]]
    assert sizes == [(32, 24), (64, 10)] and pixels == 32 * 24 + 64 * 10


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": [picture_url()] * 6, "fps": 4},
        {
            "type": "video_url",
            "fps": 4,
            "video_url": {
                "url": "data:video/jpeg;base64,"
                + ",".join([picture_url().partition(",")[2]] * 6)  # as vLLM's clients send frames
            },
        },
    ],
    ids=["Model Studio", "vLLM"],
)
def test_frames_that_are_taken_already_are_all_seen_at_their_times(part):
    (message,), _ = read(with_part(part))
    clip = message["content"][0]["video"].load()
    assert clip.indices == (0, 1, 2, 3, 4, 5)
    assert clip.timestamps == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.25])


def test_a_clip_in_a_data_url():
    data = vlkit.clips()["moves_right"].path.read_bytes()
    url = "data:video/mp4;base64," + base64.b64encode(data).decode()
    (message,), _ = read(with_part({"type": "video_url", "video_url": {"url": url}}))
    clip = message["content"][0]["video"].load()
    assert clip.timestamps == vlkit.Video(vlkit.clips()["moves_right"].path).load().timestamps


MOVES = (
    "data:video/mp4;base64,"
    + base64.b64encode(vlkit.clips()["moves_right"].path.read_bytes()).decode()
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mm_processor_kwargs": {"fps": 1, "do_sample_frames": True}}, {"fps": 1}),
        ({"media_io_kwargs": {"video": {"num_frames": 6}}}, {"frames": 6}),
        ({"media_io_kwargs": {"video": {"num_frames": -1, "fps": 4}}}, {"fps": 4}),
        ({"mm_processor_kwargs": {"max_pixels": 28 * 28 * 20}}, {"max_frame_tokens": 20}),
        ({"url": {"fps": 1, "max_pixels": 28 * 28 * 20}}, {"fps": 1, "max_frame_tokens": 20}),
        ({"url": {"nframes": 6}}, {"frames": 6}),
        ({"url": {"fps": 4, "max_frames": 4}}, {"fps": 4, "max_frames": 4}),
        ({"part": {"fps": 1, "total_pixels": 10**7}, "url": {"fps": 4}}, {"fps": 1}),
    ],
    ids=str,
)
def test_a_clip_is_sampled_as_the_clients_of_vllm_and_lmdeploy_ask(fields, expected):
    fields = dict(fields)
    url = {"url": MOVES, **fields.pop("url", {})}
    part = {"type": "video_url", "video_url": url, **fields.pop("part", {})}
    (message,), _ = read(with_part(part), fields=fields)
    video = message["content"][0]["video"]
    theirs = vlkit.Video(vlkit.clips()["moves_right"].path, **expected)
    assert video.load().timestamps == theirs.load().timestamps
    assert video.max_frame_tokens == theirs.max_frame_tokens


def test_a_pictures_own_limits_take_precedence():
    fields = {"mm_processor_kwargs": {"min_pixels": 900, "max_pixels": 1800}}
    url = {"url": picture_url(), "max_pixels": 1700}
    part = {"type": "image_url", "image_url": url, "min_pixels": 800}
    (message,), _ = read(with_part(part), fields=fields)
    item = message["content"][0]
    assert (item["min_pixels"], item["max_pixels"]) == (800, 1700)


def test_media_that_exceed_the_context_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr("vlkit.media.video.FileReader.read", None)
    part = {"type": "video_url", "video_url": {"url": MOVES}}
    message = [{"role": "user", "content": [part] * 3}]
    frames = vlkit.Video(vlkit.clips()["moves_right"].path)
    info = vlkit.media.video.probe_clip(frames)
    count = len(vlkit.media.video.sample_indices(frames, info)[0])
    width, height = published_rules("qwen2_vl").frame_size(info.size, count, None)
    tokens = count // 2 * width * height // 28**2
    assert read(message, context=3 * tokens)[1] == 3 * count * width * height
    with pytest.raises(RequestError, match=f"{3 * tokens:,} tokens of pictures") as caught:
        read(message, context=3 * tokens - 1)
    assert caught.value.code == "context_length_exceeded"
    large = with_part({"type": "image_url", "image_url": picture_url((280, 280))})
    assert read(large, context=100)
    with pytest.raises(RequestError, match="100 tokens of pictures and clips exceed"):
        read(large, context=99)


BAD_MEDIA = [  # a picture's address, what the reason says
    ("data:image/png;base64,!!!", "cannot be decoded"),
    ("data:image/png;base64,", "not a whole PNG"),
    ("data:text/plain,hello", "not a whole PNG"),
    ("data:image/png;base64,iVBORw0", "cannot be decoded"),
    ("data:image/png;base64,iVBORw0K", "not a whole PNG"),
    ("data:", "cannot be decoded"),
    ("data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>", "not a whole PNG"),
    ("data:application/postscript,%25!PS-Adobe-3.0 EPSF-3.0", "not a whole PNG"),
    ("", "does not read files"),
    ("/etc/passwd", "does not read files"),
    ("~/.ssh/id_rsa", "does not read files"),
    ("file:///etc/passwd", "does not read files"),
    ("FILE://localhost/etc/passwd", "does not read files"),
    ("ftp://127.0.0.1/x.png", "does not read files"),
    ("http://127.0.0.1:1/x.png", "does not fetch URLs"),
    ("HTTPS://example.org/x.png", "does not fetch URLs"),
]


@pytest.mark.parametrize(("url", "reason"), BAD_MEDIA, ids=lambda value: value[:40])
@pytest.mark.parametrize("kind", ["image_url", "frames"])
def test_media_that_are_none_or_lie_elsewhere_are_refused(url, reason, kind):
    part = {"type": "video", "video": [url] * 4} if kind == "frames" else None
    with pytest.raises(RequestError, match=reason) as caught:
        read(with_part(part) if part else picture(url))
    assert caught.value.param == "messages.0.content.0"


def test_no_address_is_visited_unless_it_is_allowed(visited):
    address, paths = visited
    with pytest.raises(RequestError, match="--allow-urls"):
        read(picture(f"{address}/a.png"))
    assert paths == []
    with pytest.raises(RequestError, match="internal network"):
        read(picture(f"{address}/a.png"), urls=True)
    assert paths == []
    messages, _ = read(picture(f"{address}/a.png"), urls=True, hosts=("127.0.0.1",))
    assert vlkit.load_image(messages[0]["content"][0]["image"]).size == (32, 24)
    assert paths == ["/a.png"]


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1"])
def test_a_redirect_into_an_internal_network_is_not_followed(visited, host):
    address, paths = visited
    target = f"http://{host}:{address.rpartition(':')[2]}/inner.png"
    url = f"{address}/redirect?{target}"
    with pytest.raises(RequestError, match="internal network"):
        read(picture(url), urls=True, hosts=("127.0.0.1",))
    assert all("inner" not in path.partition("?")[0] for path in paths) and len(paths) == 1


INTERNAL = """127.0.0.1 10.0.0.1 169.254.169.254 100.100.100.200 0.0.0.0 224.0.0.1 ::1 :: fe80::1
fe80::1%lo fec0::1 fd00:ec2::254 ff02::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::127.0.0.1
64:ff9b::7f00:1 64:ff9b:1::7f00:1 2002:7f00:1:: 2001:0:7f00:1::""".split()


def test_internal_addresses_are_not_public_however_they_are_written():
    assert not any(map(is_public, INTERNAL))
    assert all(map(is_public, ["8.8.8.8", "2606:4700:4700::1111", "2001:4860:4860::8888"]))


@pytest.mark.parametrize("address", ["127.0.0.1", "64:ff9b::7f00:1"])
def test_a_name_that_means_an_internal_address_is_not_visited(visited, monkeypatch, address):
    port = int(visited[0].rpartition(":")[2])
    found = [(socket.AF_INET, 1, 6, "", ("8.8.8.8", port)), (2, 1, 6, "", (address, port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(RequestError, match=r"harmless\.example is in an internal network"):
        read(picture(f"http://harmless.example:{port}/a.png"), urls=True)
    assert visited[1] == []


def test_a_redirect_leads_to_no_file_and_no_ftp(visited):
    address, _ = visited
    for target in ("file:///etc/passwd", f"ftp://{address.partition('://')[2]}/a.png"):
        with pytest.raises(RequestError, match=r"redirect|could not be downloaded"):
            read(picture(f"{address}/redirect?{target}"), urls=True, hosts=("127.0.0.1",))


def test_no_byte_of_what_is_no_picture_is_shown(visited):
    address, _ = visited
    with pytest.raises(RequestError, match="not a whole PNG") as caught:
        read(picture(f"{address}/secret"), urls=True, hosts=("127.0.0.1",))
    assert "aws" not in str(caught.value)


@pytest.mark.parametrize("kind", ["m3u8", "ffconcat", "sdp"])
def test_a_playlist_in_a_data_url_makes_ffmpeg_visit_nothing(visited, kind, tmp_path):
    address, paths = visited
    texts = {
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}/a.ts\n#EXT-X-ENDLIST\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{vlkit.clips()['moves_right'].path}'\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }
    url = "data:video/mp4;base64," + base64.b64encode(texts[kind].encode()).decode()
    with pytest.raises(RequestError, match="is not a clip"):
        read(with_part({"type": "video_url", "video_url": url}))
    assert paths == []


def test_files_are_read_in_the_allowed_folder_and_nowhere_else(tmp_path):
    inside, outside = tmp_path / "open", tmp_path / "closed.png"
    inside.mkdir()
    PIL.Image.new("RGB", (8, 8)).save(inside / "a b.png")
    PIL.Image.new("RGB", (8, 8)).save(outside)
    (inside / "link.png").symlink_to(outside)
    for url in ("a b.png", str(inside / "a b.png"), (inside / "a b.png").as_uri()):
        messages, _ = read(picture(url), local=inside)
        assert vlkit.load_image(messages[0]["content"][0]["image"]).size == (8, 8)
    reasons = set()
    for url in (str(outside), "../closed.png", "link.png", "missing.png", "/missing", "", "\0"):
        with pytest.raises(RequestError, match="not a file in the folder") as caught:
            read(picture(url), local=inside)
        reasons.add(str(caught.value).partition(" is not a file")[2])
    assert len(reasons) == 1  # whether it is there cannot be told


def test_a_large_file_is_not_read(tmp_path):
    PIL.Image.effect_noise((99, 99), 90).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match="more than 2,000 bytes"):
        read(picture("a.png"), local=tmp_path, body_bytes=2000)


def test_limits_of_pictures_pixels_and_frames():
    two = [{"role": "user", "content": [picture(picture_url())[0]["content"][0]] * 2}]
    assert read(two, pictures=2, pixels=2 * 32 * 24)[1] == 2 * 32 * 24
    with pytest.raises(RequestError, match="may have 1 pictures"):
        read(two, pictures=1)
    with pytest.raises(RequestError, match="more than 1,535 pixels"):
        read(two, pixels=2 * 32 * 24 - 1)
    with pytest.raises(RequestError, match="5 frames; send 1 to 4"):
        read(with_part({"type": "video", "video": [picture_url()] * 5}), frames=4)
    with pytest.raises(RequestError, match="0 frames; send 1 to 128"):
        read(with_part({"type": "video", "video": []}))


def test_a_small_file_of_many_pixels_is_not_decoded():
    buffer = io.BytesIO()
    PIL.Image.new("1", (20_000, 9_000)).save(buffer, "png", optimize=True)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert len(url) < 100_000
    with pytest.raises(RequestError, match="pixels"):
        read(picture(url))


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_media_belong_to_the_user(role):
    part = {"type": "image_url", "image_url": {"url": picture_url()}}
    with pytest.raises(RequestError, match="belong to the user"):
        read(with_part(part, role))


# --- addresses and keys --------------------------------------------------------------------------


def test_which_addresses_are_this_machines_alone():
    mine = ["127.0.0.1", "127.8.9.1", "::1", "localhost"]
    others = ["0.0.0.0", "::", "192.168.1.2", "example.org", ""]
    assert all(map(is_loopback, mine)) and not any(map(is_loopback, others))


@pytest.mark.parametrize(
    ("host", "key", "reason"),
    [
        ("0.0.0.0", None, "set VLKIT_API_KEY"),
        ("127.0.0.1", "", "at least 8"),
        ("127.0.0.1", "short", "at least 8"),
        ("127.0.0.1", "with a space in it", "without spaces"),
        ("127.0.0.1", "schlüsselschlüssel", "ASCII"),
    ],
)
def test_keys_that_are_none_and_addresses_that_need_one(host, key, reason):
    with pytest.raises(VlkitError, match=reason):
        check_key(host, key)


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(VlkitError, match=f"cannot listen on 127.0.0.1 port {port}"):
            open_socket("127.0.0.1", port, None)


@pytest.mark.parametrize("port", ["8000", -1, 65_536, 8.5, None])
def test_a_port_that_is_none_is_told(port):
    with pytest.raises(VlkitError, match=r"port=.* must be a whole number, 0 \(any\) to 65,535"):
        open_socket("127.0.0.1", port, None)


def test_a_folders_place_is_not_told(tmp_path):
    assert model_name(str(tmp_path)) == tmp_path.name
    assert model_name("Qwen/Qwen2-VL-7B-Instruct") == "Qwen/Qwen2-VL-7B-Instruct"


def test_refusals_have_openais_form():
    error = RequestError("no\nroom", status=429, code="rate_limit_exceeded")
    assert json.loads(json.dumps(error.body)) == {
        "error": {
            "message": "no room",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }
