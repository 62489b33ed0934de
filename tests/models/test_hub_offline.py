"""Finding models without a network: caches laid out as both hubs do, and hubs that say nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlkit.errors import ModelError
from vlkit.models import hub as hubs

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def write_model(folder: Path, *, model_type: str = "qwen2_vl", shards: int = 2) -> Path:
    """As much of a model as the hubs' side of vlkit looks at."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({f"w{i}": np.zeros(4, np.float32)}, folder / name)
        weight_map[f"w{i}"] = name
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of both hubs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "scope"))
    return tmp_path


def in_huggingface(caches: Path, name: str, commit: str = COMMIT, ref: str | None = "main", **kind):
    """As huggingface_hub lays it out: files in blobs, links to them in a snapshot."""
    repo = caches / "hf" / f"models--{name.replace('/', '--')}"
    snapshot = write_model(repo / "snapshots" / commit, **kind)
    (repo / "blobs").mkdir(exist_ok=True)
    for file in snapshot.iterdir():
        blob = repo / "blobs" / f"{commit[:4]}-{file.name}"
        file.rename(blob)
        file.symlink_to(f"../../blobs/{blob.name}")
    if ref:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    return snapshot


def in_modelscope(caches: Path, name: str, revision: str = "master", **kind):
    folder = f"models/{name.replace('/', '--')}/snapshots/{revision}"
    return write_model(caches / "scope" / folder, **kind)


def refusal(*args, **options) -> str:
    with pytest.raises(ModelError) as caught:
        hubs.find_model(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    print(message)
    return message


# --- what is cached needs no network -------------------------------------------------------------


def test_cached_in_hugging_face(caches, blocked_network):
    snapshot = in_huggingface(caches, "Qwen/Qwen2-VL-2B-Instruct")
    for hub in ("auto", "huggingface"):
        found = hubs.find_model("Qwen/Qwen2-VL-2B-Instruct", hub=hub)
        assert (found.path, found.hub, found.revision) == (snapshot, "huggingface", None)
        assert found.config == {"model_type": "qwen2_vl"}
    assert not blocked_network


def test_cached_in_modelscope(caches, blocked_network):
    snapshot = in_modelscope(caches, "Qwen/Qwen2.5-VL-3B-Instruct")
    for hub in ("auto", "modelscope"):
        found = hubs.find_model("Qwen/Qwen2.5-VL-3B-Instruct", hub=hub)
        assert (found.path, found.hub) == (snapshot, "modelscope")
    assert not blocked_network


@pytest.mark.parametrize("root", ["scope/models", "scope/hub/models"])
def test_cached_by_an_older_modelscope(caches, blocked_network, root):
    folder = write_model(caches / root / "Qwen" / "Qwen2___5-VL-3B-Instruct")
    found = hubs.find_model("Qwen/Qwen2.5-VL-3B-Instruct")
    assert (found.path, found.hub) == (folder, "modelscope")
    assert "Qwen/Qwen2.5-VL-3B-Instruct" in hubs.available_models()
    assert not blocked_network


def test_looking_into_the_caches_imports_no_hub_library(caches):
    in_modelscope(caches, "a/b")
    script = """
        import sys
        from vlkit.models import hub as hubs
        assert hubs.find_model("a/b").hub == "modelscope"
        assert set(hubs.available_models()) == {"tiny", "a/b"}
        slow = {"modelscope", "modelscope_hub", "torch", "transformers", "requests"}
        assert not slow & set(sys.modules), slow & set(sys.modules)
    """
    environment = {"MODELSCOPE_CACHE": str(caches / "scope"), "HF_HOME": str(caches)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, env=environment, check=True, timeout=60)


def test_hubs_are_not_mixed_up(caches, blocked_network):
    in_huggingface(caches, "a/b")
    assert "ModelScope did not answer" in refusal("a/b", hub="modelscope")


def test_the_same_model_whole_in_one_and_unfinished_in_the_other(caches, blocked_network):
    snapshot = in_huggingface(caches, "a/b")
    next(snapshot.glob("model-00002*")).unlink()
    whole = in_modelscope(caches, "a/b")
    assert hubs.find_model("a/b").path == whole
    assert not blocked_network


@pytest.mark.parametrize(
    ("revision", "expected"), [(None, COMMIT), (COMMIT, COMMIT), (OTHER, OTHER), ("v2", OTHER)]
)
def test_revision_in_hugging_face(caches, blocked_network, revision, expected):
    in_huggingface(caches, "a/b", COMMIT, "main")
    in_huggingface(caches, "a/b", OTHER, "v2")
    found = hubs.find_model("a/b", revision=revision)
    assert found.path.name == expected and found.revision == revision
    assert not blocked_network


@pytest.mark.parametrize(("revision", "expected"), [(None, "master"), ("v1.0", "v1.0")])
def test_revision_in_modelscope(caches, blocked_network, revision, expected):
    in_modelscope(caches, "a/b", "master")
    in_modelscope(caches, "a/b", "v1.0")
    assert hubs.find_model("a/b", revision=revision).path.name == expected
    assert not blocked_network


def test_another_revision_than_the_cached_one_is_not_taken(caches, blocked_network):
    in_huggingface(caches, "a/b", COMMIT, "main")
    in_modelscope(caches, "a/b", "master")
    write_model(caches / "scope" / "models" / "a" / "c")  # an older layout, of unknown revision
    assert "vlkit download" in refusal("a/b", revision=OTHER)
    assert "vlkit download" in refusal("a/c", revision="v1")


def test_files_that_were_left_out_on_purpose_do_not_make_it_unfinished(caches, blocked_network):
    """huggingface_hub lists all files of a commit, pickled weights too, and calls it incomplete."""
    snapshot = in_huggingface(caches, "a/b")
    trees = snapshot.parent.parent / "trees"
    trees.mkdir()
    tree = {name: {"size": 9, "blob_id": "0"} for name in ("config.json", "pytorch_model.bin")}
    (trees / f"{COMMIT}.json").write_text(json.dumps(tree))
    assert hubs.find_model("a/b").path == snapshot
    assert not blocked_network


@pytest.mark.parametrize("place", [in_huggingface, in_modelscope])
def test_unfinished_snapshot(caches, blocked_network, place):
    snapshot = place(caches, "a/b")
    next(snapshot.glob("model-00002*")).unlink()
    message = refusal("a/b")
    assert "unfinished" in message and "model-00002-of-00002" in message
    assert "vlkit download a/b" in message


def test_dangling_link_in_a_snapshot(caches, blocked_network):
    snapshot = in_huggingface(caches, "a/b")
    next(snapshot.glob("model-00001*")).resolve().unlink()
    assert "model-00001-of-00002" in refusal("a/b")


def test_available_models(caches, blocked_network):
    hugging_face = in_huggingface(caches, "Qwen/Qwen2-VL-2B-Instruct")
    scope = in_modelscope(caches, "Qwen/Qwen3-VL-4B-Instruct", model_type="qwen3_vl")
    both = in_huggingface(caches, "x/both--dashes")
    in_modelscope(caches, "x/both--dashes")
    in_huggingface(caches, "meta/llava", model_type="llava")  # of another family
    in_huggingface(caches, "x/pinned", ref=None)  # no name alone finds it
    unfinished = in_modelscope(caches, "x/unfinished")
    next(unfinished.glob("model-00001*")).unlink()
    found = hubs.available_models()
    tiny = found.pop("tiny")
    assert found == {
        "Qwen/Qwen2-VL-2B-Instruct": hugging_face,
        "Qwen/Qwen3-VL-4B-Instruct": scope,
        "x/both--dashes": both,
    }
    assert (tiny / "config.json").is_file()
    for name, path in found.items():
        assert hubs.find_model(name).path == path
    assert not blocked_network


def test_no_caches_at_all(caches, blocked_network):
    assert list(hubs.available_models()) == ["tiny"]


# --- what is not cached, and nobody answers ------------------------------------------------------


def set_endpoints(monkeypatch, url: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)


def assert_refused_in_time(limit: float = 2.0) -> None:
    start = time.monotonic()
    for hub in ("auto", "huggingface", "modelscope"):
        message = refusal("Qwen/Qwen2-VL-2B-Instruct", hub=hub)
        assert "vlkit download Qwen/Qwen2-VL-2B-Instruct" in message
    with pytest.raises(ModelError, match="did not answer"):
        hubs.download_model("Qwen/Qwen2-VL-2B-Instruct")
    assert time.monotonic() - start < 4 * limit


def test_the_waiting_time_leaves_room_within_ten_seconds():
    assert 2 <= hubs.PROBE_SECONDS <= 7


@pytest.mark.serial
def test_no_network(caches, blocked_network):
    assert_refused_in_time()
    assert blocked_network


@pytest.mark.serial
def test_hubs_that_accept_and_never_answer(caches, monkeypatch):
    monkeypatch.setattr(hubs, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_endpoints(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert_refused_in_time()


@pytest.mark.serial
def test_hubs_that_refuse_the_connection(caches, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    set_endpoints(monkeypatch, f"http://127.0.0.1:{port}")
    assert_refused_in_time()


@pytest.mark.serial
@pytest.mark.parametrize("endpoint", ["http://hub.invalid", "http://[", "nonsense", "ftp:/x"])
def test_endpoints_that_lead_nowhere(caches, monkeypatch, endpoint):
    def unknown(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    set_endpoints(monkeypatch, endpoint)
    assert_refused_in_time()


def test_a_name_server_that_never_answers_holds_up_neither_call_nor_exit(caches):
    script = """
        import socket, time
        socket.getaddrinfo = lambda *a, **k: time.sleep(300)
        from vlkit.models import hub as hubs
        hubs.PROBE_SECONDS = 0.3
        try:
            hubs.find_model("a/b")
        except hubs.ModelError as error:
            assert "vlkit download a/b" in str(error)
            print("refused")
    """
    environment = {"MODELSCOPE_CACHE": str(caches / "scope"), "HF_HOME": str(caches)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(command, env=environment, timeout=100, capture_output=True, text=True)
    assert result.stdout == "refused\n", result.stderr


def test_offline_variable_of_hugging_face(caches, monkeypatch):
    """Then it is not even asked; ModelScope has no such variable."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("asked"))
    assert "Hugging Face did not answer" in refusal("a/b", hub="huggingface")


@pytest.mark.parametrize(
    "name", ["a/b/c", "a b/c", "a", "", ".", "..", "../b", "a/b?c", "http://x/y"]
)
def test_names_that_are_no_ids(caches, blocked_network, name, monkeypatch):
    monkeypatch.chdir(caches)
    refusal(name)
    with pytest.raises(ModelError):
        hubs.download_model(name)
    assert not blocked_network
