"""`vlkit train CONFIG.yaml`, on one process and on two."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from lora_talks import noise
from safetensors.torch import load_file
from typer.testing import CliRunner

import vlkit
from vlkit.cli import app
from vlkit.errors import VlkitError

LINES = {"batch_size": 4, "epochs": 2, "learning_rate": "1e-2", "seed": 1, "max_image_tokens": 9}


@pytest.fixture
def write(tmp_path, tiny_folder):
    """``write(name, **lines)``: the path of a config for eight rows."""
    rows = []
    for i in range(8):
        noise(84 + 28 * (i % 3), 84, i).save(tmp_path / f"{i}.png")
        said = [f"<image>What {i}?", "word " * (1 + i % 4)]
        turns = [
            {"from": who, "value": text} for who, text in zip(("human", "gpt"), said, strict=True)
        ]
        rows.append({"conversations": turns, "image": f"{i}.png"})
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def config(name, **lines):
        own = {"model": tiny_folder("qwen2_vl"), "data": tmp_path / "rows.json"}
        lines = own | {"output_dir": tmp_path / name} | LINES | lines
        path = tmp_path / f"{name}.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
        return path

    return config


def losses(folder):
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2VLDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


@pytest.mark.parametrize("environment", [{}, SHARDED], ids=["data parallel", "FSDP"])
def test_two_processes_learn_as_one_with_twice_the_batch(write, tmp_path, tiny_folder, environment):
    """As ``accelerate launch`` starts them, once with every layer's weights spread over both."""
    alone = CliRunner().invoke(app, ["train", str(write("one"))])
    assert alone.exit_code == 0, alone.output
    assert "4 steps, " in alone.stdout and str(tmp_path / "one") in alone.stdout.replace("\n", "")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), "-m", "vlkit", "train"]
    done = subprocess.run(
        [*command, str(write("two", batch_size=2))],
        capture_output=True, text=True, timeout=400, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("4 steps, ") == 1  # the first process alone tells
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    adapters = [load_file(tmp_path / n / "adapter_model.safetensors") for n in ("one", "two")]
    assert all(torch.allclose(w, adapters[1][n], atol=1e-3) for n, w in adapters[0].items())
    assert vlkit.load(tiny_folder("qwen2_vl"), adapter=tmp_path / "two").adapter


def test_a_share_is_held_out_and_a_run_is_gone_on_with(write, tmp_path):
    config = write("run", eval_data=2, metric="exact")
    done = CliRunner().invoke(app, ["train", str(config)])
    assert done.exit_code == 0 and "of held-out answers right" in done.stdout
    again = CliRunner().invoke(app, ["train", str(config)])
    assert isinstance(again.exception, VlkitError) and "is not empty" in str(again.exception)
    resumed = CliRunner().invoke(app, ["train", str(config), "--resume"])
    assert resumed.exit_code == 0 and "4 steps, " in resumed.stdout


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"learning_rates": 1}, r"'learning_rates' is no argument .*did you mean learning_rate"),
        ({"callbacks": 1}, "'callbacks' is no argument"),
        ({"learning_rate": "high"}, "learning_rate='high' is no number"),
        ({"data": "nowhere.json"}, r"nowhere\.json"),
        ({"rank": 0}, "rank=0 must be"),
    ],
)
def test_wrong_configs(write, tmp_path, lines, message):
    result = CliRunner().invoke(app, ["train", str(write("run", **lines))])
    assert isinstance(result.exception, VlkitError)
    assert re.search(message, str(result.exception))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: tiny\n", "has no data and no output_dir"),
        ("- a list\n", "holds no keys"),
        ("a: [1\n", "cannot be read as YAML"),
        (None, "cannot be read as YAML"),
    ],
)
def test_files_that_are_no_configs(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    result = CliRunner().invoke(app, ["train", str(path)])
    assert isinstance(result.exception, VlkitError) and message in str(result.exception)
