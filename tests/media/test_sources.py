"""Downloads from a loopback server: what arrives, what is refused, and that nothing hangs."""

import io
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import PIL.Image
import pytest

import vlkit
from vlkit.errors import MediaError
from vlkit.media import sources

pytestmark = pytest.mark.timeout(60)


def png():
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), (200, 40, 40)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


class Handler(BaseHTTPRequestHandler):
    """Good and bad manners by path."""

    def do_GET(self):
        name = unquote(self.path).strip("/").partition("?")[0]
        try:
            getattr(self, name.partition(".")[0], self.missing)()
        except OSError:  # the client left
            self.close_connection = True

    def log_message(self, *args):
        pass

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def missing(self):
        self.answer(b"not here", 404)

    def good(self):
        self.answer(PNG, Content_Length=str(len(PNG)))

    def 图片(self):
        self.good()

    def chunked(self):
        self.protocol_version = "HTTP/1.1"
        self.answer(b"%x\r\n%s\r\n0\r\n\r\n" % (len(PNG), PNG), Transfer_Encoding="chunked")

    def moved(self):
        self.answer(b"", 302, Location="/good.png")

    def circle(self):
        self.answer(b"", 302, Location="/circle")

    def to_file(self):
        self.answer(b"", 302, Location="file:///etc/hostname")

    def broken(self):
        self.answer(b"oops", 500)

    def page(self):
        self.answer(b"<html>Please log in</html>")

    def empty(self):
        self.answer(b"")

    def short(self):
        self.answer(PNG[:-20], Content_Length=str(len(PNG)))

    def nonsense(self):
        self.wfile.write(b"\x00\x01 this is not HTTP\r\n\r\n")

    def silent(self):
        self.server.left.wait(60)

    def drip_headers(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        self.drip()

    def drip_body(self):
        self.answer(PNG[:20], Content_Length=str(len(PNG)))
        self.drip()

    def drip(self):
        while not self.server.left.wait(0.05):
            self.wfile.write(b"x")

    def endless(self):
        self.answer(b"")
        while not self.server.left.is_set():
            self.wfile.write(bytes(1 << 16))


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.left = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.left.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def address(server, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.parametrize(
    "path",
    [
        "good.png",
        "good.png?size=9&name=a b",
        "图片.png",
        "%E5%9B%BE%E7%89%87.png",
        "chunked",
        "moved",
    ],
)
def test_download(address, path):
    assert vlkit.load_image(f"{address}/{path}").getpixel((5, 5)) == (200, 40, 40)


def test_scheme_in_capitals(address):
    assert vlkit.load_image(address.replace("http", "HTTP") + "/good.png").size == (40, 30)


@pytest.mark.parametrize(
    "path, words",
    [
        ("missing.png", ("answered HTTP 404 Not Found", "check the address", "local file")),
        ("broken", ("answered HTTP 500", "check the address")),
        ("circle", ("circle", "check the address")),
        ("to_file", ("could not be downloaded|answered HTTP 302", "check the address")),
        ("page", ("is not a picture", "<html>Pleas")),
        ("empty", ("is empty (0 bytes)", "again")),
        ("short", (f"short was cut off after {len(PNG) - 20} of {len(PNG)} bytes", "try again")),
        ("nonsense", ("could not be downloaded", "check the address")),
    ],
)
def test_refused(address, path, words):
    text = refusal(f"{address}/{path}")
    assert f"{address}/{path}" in text
    for word in words:
        assert any(choice in text for choice in word.split("|")), text


def refusal(url):
    with pytest.raises(MediaError) as caught:
        vlkit.load_image(url)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_closed_port(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    text = refusal(f"http://127.0.0.1:{port}/a.png")
    assert "could not be downloaded" in text and "refused" in text and "local file" in text


@pytest.mark.parametrize("path", ["silent", "drip_headers", "drip_body"])
def test_time_limit_holds_for_every_part(address, monkeypatch, path):
    monkeypatch.setattr(sources, "DOWNLOAD_TIMEOUT", 0.5)
    start = time.monotonic()
    text = refusal(f"{address}/{path}")
    assert time.monotonic() - start < 10
    assert f"{path} did not arrive within 0.5 s; download it" in text


def test_size_limit(address, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", 1 << 20)
    assert "endless is larger than 1,048,576 bytes; download and shrink" in refusal(
        f"{address}/endless"
    )
    assert vlkit.load_image(f"{address}/good.png").size == (40, 30)


def test_size_limit_is_not_reached_by_its_own_size(address, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", len(PNG))
    assert vlkit.load_image(f"{address}/good.png").size == (40, 30)


def test_no_network(blocked_network):
    text = refusal("http://example.org/a.png")
    assert "example.org/a.png could not be downloaded" in text and "the network" in text
    assert blocked_network


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://u:S3cret1@127.0.0.1:9/p.png", "http://127.0.0.1:9/p.png: an address with a user"),
        ("http://127.0.0.1:9/p.png?x=1&Token=S3cret1", "http://127.0.0.1:9/p.png?…"),
        ("http://127.0.0.1:9/p.png?api-key=S3cret1", "http://127.0.0.1:9/p.png?…"),
        ("http://127.0.0.1:9/p.png?page=2", "http://127.0.0.1:9/p.png?page=2"),
    ],
)
def test_errors_name_an_address_without_its_password(address, shown):
    with pytest.raises(MediaError) as caught:
        vlkit.load_image(address)
    assert str(caught.value).startswith(shown) and "S3cret1" not in str(caught.value)
