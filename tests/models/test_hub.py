"""Downloads from a loopback server that speaks as both hubs do, and the wheel's own model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hub_server import COMMIT, serve

import vlkit
from vlkit.errors import ModelError
from vlkit.models import hub as hubs

BOTH = pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
SHARD = "model.safetensors"


@pytest.fixture(scope="module")
def one_server(tiny_folder):
    """One address for all tests, for modelscope remembers the first that it is given."""
    with serve(tiny_folder("qwen2_vl"), "me/mine") as server:
        yield server


@pytest.fixture
def server(one_server, tmp_path, monkeypatch):
    """Both hubs, holding the one model ``me/mine``; caches empty."""
    one_server.reset()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", one_server.url)
    template = one_server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "scope"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", one_server.url)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS", 0)
    return one_server


def refusal(name: str = "me/mine", *args, **options) -> str:
    with pytest.raises(ModelError) as caught:
        hubs.download_model(name, *args, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and name in message
    print(message)
    return message


def assert_same_files(folder: Path, files: dict[str, bytes]) -> None:
    found = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert {name: found.get(name) for name in files} == files


@BOTH
def test_load_downloads_once(server, hub):
    vlm = vlkit.load("me/mine", hub=hub)
    assert (vlm.name, vlm.folder.hub, vlm.family) == ("me/mine", hub, "qwen2_vl")
    assert_same_files(vlm.folder.path, server.files)
    assert vlm.folder.path == hubs.cached_folder("me/mine", hub)
    server.requests.clear()
    server.refuse = 500
    assert vlkit.load("me/mine").folder.path == vlm.folder.path
    assert not server.requests


@BOTH
def test_download_to_a_folder(server, hub, tmp_path):
    path = hubs.download_model("me/mine", hub=hub, local_dir=tmp_path / "here")
    assert path.resolve() == (tmp_path / "here").resolve()
    assert_same_files(path, server.files)
    assert vlkit.load(path).family == "qwen2_vl"


@BOTH
def test_chosen_files_only(server, hub, tmp_path):
    options = {"hub": hub, "local_dir": tmp_path / "here"}
    path = hubs.download_model("me/mine", ["config.json", "tok*"], **options)
    expected = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in path.iterdir() if p.is_file()} - {".gitignore"} <= expected | {".msc"}
    assert_same_files(path, {name: server.files[name] for name in expected})
    assert "'weights.*'" in refusal(patterns=["config.json", "weights.*"], **options)


@BOTH
def test_pickled_weights_are_left_out(server, hub, tmp_path):
    server.files["pytorch_model.bin"] = b"pickle"
    path = hubs.download_model("me/mine", hub=hub, local_dir=tmp_path / "here")
    assert (path / SHARD).is_file() and not (path / "pytorch_model.bin").exists()


@BOTH
def test_a_broken_transfer_goes_on_where_it_stopped(server, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    server.cut = {SHARD: 100_000}
    options = {"hub": hub, "local_dir": tmp_path / "here"}
    try:
        hubs.download_model("me/mine", **options)
    except ModelError as error:  # the library gave up; the next call goes on
        assert "try again" in str(error)
    path = hubs.download_model("me/mine", **options)
    assert not server.cut
    assert_same_files(path, server.files)
    ranges = [wanted for _, url, wanted in server.requests if SHARD in url and wanted]
    assert any(not wanted.startswith("bytes=0-") for wanted in ranges)


@BOTH
def test_load_finishes_a_half_finished_download(server, hub):
    path = hubs.download_model("me/mine", hub=hub)
    shard = path / SHARD
    shard.resolve().unlink()
    shard.unlink(missing_ok=True)
    assert vlkit.load("me/mine", hub=hub).family == "qwen2_vl"
    assert_same_files(path, server.files)


@BOTH
def test_shards_are_checked_after_the_download(server, hub, tmp_path):
    server.files[SHARD] = server.files[SHARD][:-1000]  # cut off on the hub itself
    message = refusal(hub=hub, local_dir=tmp_path / SHARD.split(".")[0] / "me/mine")
    assert SHARD in message and "bytes" in message


@BOTH
def test_pinned_revision(server, hub):
    server.revisions |= {"v1"}
    path = hubs.download_model("me/mine", hub=hub, revision="v1")
    assert path == hubs.cached_folder("me/mine", hub, "v1")
    assert path.name == (COMMIT if hub == "huggingface" else "v1")
    found = hubs.find_model("me/mine", hub=hub, revision="v1")
    assert (found.path, found.revision) == (path, "v1")
    assert "'v9'" in refusal(hub=hub, revision="v9") or hub == "modelscope"


@BOTH
@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (401, "RepoNotFound", "check the id"),
        (401, "", "log in"),
        (403, "GatedRepo", "licence"),
        (403, "", "licence"),
        (404, "RepoNotFound", "check the id"),
        (500, "", "try again"),
    ],
)
def test_refusals(server, hub, status, code, advice):
    server.refuse, server.refuse_code = status, code
    message = refusal("me/secret", hub=hub)
    assert advice in message and str(status) in message


def test_unknown_everywhere(server):
    assert "check the id" in refusal("me/other")


def test_auto_takes_the_hub_that_has_the_model(server, monkeypatch, tiny_folder):
    with serve(tiny_folder("qwen2_vl"), "me/elsewhere") as empty:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", empty.url)
        assert hubs.find_model("me/mine").hub == "modelscope"


def test_auto_takes_the_hub_that_has_the_revision(server, monkeypatch, tiny_folder):
    server.revisions |= {"v1"}
    with serve(tiny_folder("qwen2_vl"), "me/mine") as other:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", other.url)
        assert hubs.find_model("me/mine", revision="v1").hub == "huggingface"
    with serve(tiny_folder("qwen2_vl"), "me/mine") as other:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", other.url)
        shutil.rmtree(hubs.cached_folder("me/mine", "huggingface", "v1").parents[1])
        assert hubs.find_model("me/mine", revision="v1").hub == "modelscope"


def test_adapter_from_a_hub(server, tiny_folder, tmp_path):
    from adapter_files import save_adapter

    saved = save_adapter(tiny_folder("qwen2_vl"), tmp_path / "adapter")
    server.files = {p.name: p.read_bytes() for p in saved.iterdir()} | {"other.bin": b"0"}
    vlm = vlkit.load(tiny_folder("qwen2_vl"), adapter="me/mine")
    assert vlm.adapter == "me/mine"
    assert not any("other.bin" in path for _, path, _ in server.requests)


def test_installed_wheel_brings_its_model(tmp_path, wheel):
    """Built, installed elsewhere, and loaded from another directory with the network blocked."""
    target = tmp_path / "target"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True)
    script = """
        import socket

        def refuse(*args, **kwargs):
            raise AssertionError("the network was used")

        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
        import vlkit
        vlm = vlkit.load("tiny")
        reply = vlkit.generate(vlm, vlkit.user("Hello", vlkit.sample("red_circle")))
        print(vlkit.__file__, vlm.folder.path, bool(reply.text), sep="\\n")
    """
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    environment = {k: v for k, v in os.environ.items() if k not in offline}
    environment |= {"PYTHONPATH": str(target), "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        str(target / "vlkit" / "__init__.py"),
        str(target / "vlkit" / "data" / "tiny-qwen2-vl"),
        "True",
    ]
    scripts = [target / "vlkit" / "widgets" / f"canvas.{kind}" for kind in ("js", "css")]
    assert all(script.is_file() for script in scripts)
