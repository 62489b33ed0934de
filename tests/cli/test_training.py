"""`vlkit train CONFIG.yaml`, on one process and on two."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import DistributedType
from lora_talks import noise
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import vlkit
from vlkit.cli.app import app
from vlkit.errors import VlkitError
from vlkit.lora.run_folder import last_checkpoint
from vlkit.lora.training import is_spread

HELPERS = Path(__file__).parents[1] / "helpers"
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


def learn_alone(config):
    alone = CliRunner().invoke(app, ["train", str(config)])
    assert alone.exit_code == 0, alone.output
    assert "4 steps, " in alone.stdout and str(config.stem) in alone.stdout


def check_same(one, two):
    """That losses and adapters of two runs are the same, up to the order of additions."""
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    assert all(torch.allclose(weight, second[name], atol=1e-3) for name, weight in first.items())
    return max(weight.abs().max().item() for name, weight in second.items() if "lora_B" in name)


FSDP = (
    "--use_fsdp", "--fsdp_version", "2", "--fsdp_state_dict_type", "SHARDED_STATE_DICT",
    "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP",
    "--fsdp_transformer_layer_cls_to_wrap", "Qwen2VLDecoderLayer",
)  # fmt: skip


@pytest.mark.slow
def test_two_processes_learn_as_one_with_twice_the_batch(write, tmp_path, tiny_folder, warm):
    """Also where an update's rows are too few for the second (six in an epoch); and with FSDP,
    whose checkpoints are in two parts, are resumed, and end in a whole adapter.
    """
    write("plain", eval_data=2, batch_size=2), write("fsdp", batch_size=2)
    write("resumed", batch_size=2)
    command = ["-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--num_processes", "2", "--main_process_port", "0", *FSDP]
    command += [str(HELPERS / "two_processes.py"), str(tmp_path)]
    done = warm.run(*command, env=os.environ | {"PYTHON_EXEC": warm.python}, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    learn_alone(write("one", eval_data=2))
    check_same(tmp_path / "one", tmp_path / "plain")
    learn_alone(write("all"))
    largest = check_same(tmp_path / "all", tmp_path / "fsdp")
    check_same(tmp_path / "all", tmp_path / "resumed")
    parts = sorted(tmp_path.glob("fsdp/checkpoint-4/pytorch_model_fsdp_0/*.distcp"))
    assert len(parts) == 2 and all(part.stat().st_size for part in parts)
    for name in ("plain", "fsdp", "resumed"):
        assert vlkit.load(tiny_folder("qwen2_vl"), adapter=tmp_path / name).adapter
        first, second = (
            (tmp_path / f"{name}-{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)
        )
        assert first.count("4 steps, ") == 1 and "steps" not in second  # the first alone says it
        if name == "fsdp":
            effects = [float(re.search("effect (.*)", said)[1]) for said in (first, second)]
            assert effects == pytest.approx([largest] * 2)


def test_fsdp_on_cpus_is_refused(monkeypatch):
    """accelerate would leave it out without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert is_spread(SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))
    with pytest.raises(VlkitError, match="on GPUs only; on CPUs use --multi_gpu"):
        is_spread(SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))


WHOLE = ("trainer_state.json", "scheduler.pt")


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        (("adapter_model.safetensors", "optimizer.pt", *WHOLE), True),
        (("model-00001-of-00002.safetensors", "optimizer.pt", *WHOLE), True),
        (("adapter_model.safetensors", "optimizer.bin", *WHOLE), True),  # FSDP, FULL_STATE_DICT
        (("pytorch_model_fsdp_0", "optimizer_0", *WHOLE), True),  # FSDP, SHARDED_STATE_DICT
        (("adapter_model.safetensors", "latest", "trainer_state.json"), True),  # DeepSpeed
        (("adapter_model.safetensors", *WHOLE), False),
        (("adapter_model.safetensors", "optimizer.pt", "scheduler.pt"), False),
        (("adapter_model.safetensors", "latest"), False),
        (("optimizer.pt", *WHOLE), False),
    ],
)
def test_checkpoints_are_gone_on_from_if_they_are_whole(tmp_path, files, whole):
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    for name in files:
        if name.endswith(".safetensors"):
            save_file({"weight": torch.zeros(2)}, checkpoint / name)
        elif name.endswith((".pt", ".bin")):
            torch.save({}, checkpoint / name)
        else:
            (checkpoint / name).write_text("{}")
    assert last_checkpoint(tmp_path, None) == (tmp_path / "checkpoint-3" if whole else None)


def test_killed_and_gone_on_with_it_loses_nothing(write, warm, tmp_path):
    """Killed as soon as a checkpoint appears, which is maybe half written then."""
    few = {"batch_size": 1, "epochs": 3}
    learnt = CliRunner().invoke(app, ["train", str(write("whole", **few))])
    assert learnt.exit_code == 0
    killed, config = tmp_path / "killed", str(write("killed", **few))
    process = warm.start("-m", "vlkit", "train", config)
    while len(list(killed.glob("checkpoint-*"))) < 2:
        assert process.poll() is None, process.stderr()
        time.sleep(0.002)
    process.kill()
    process.wait()
    before = last_checkpoint(killed, True)
    resumed = CliRunner().invoke(app, ["train", config, "--resume"])
    assert resumed.exit_code == 0 and 0 < int(before.name[11:]) < 24
    assert losses(killed) == losses(tmp_path / "whole")


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
        ({"learning_rates": 1}, r"'learning_rates' is not an .*did you mean learning_rate"),
        ({"callbacks": 1}, "'callbacks' is not an argument"),
        ({"learning_rate": "high"}, "learning_rate='high' is not a number"),
        ({"data": "nowhere.json"}, r"nowhere\.json"),
        ({"rank": 0}, "rank=0 must be"),
    ],
)
def test_wrong_configs(write, tmp_path, lines, message):
    result = CliRunner().invoke(app, ["train", str(write("run", **lines))])
    assert isinstance(result.exception, VlkitError)
    assert re.search(message, str(result.exception))
    assert not (tmp_path / "run").exists()


ALIASES = "a0: &a0 [x]\n" + "".join(  # each level is nine times as large as the one before
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: tiny\n", "has no data and no output_dir"),
        ("- a list\n", "has no keys"),
        ("a: [1\n", "cannot be read as YAML"),
        (ALIASES, "cannot be read as YAML: its aliases stand for more than 1,000,000 values"),
        ("<<: *z".join([ALIASES, "\n"]), "cannot be read as YAML"),
        ("a: " + "[" * 5000, "cannot be read as YAML: it is nested too deeply"),
        ("seed: 2026-99-99\n", "cannot be read as YAML"),
        (None, "c.yaml cannot be read (No such file"),
    ],
)
def test_files_that_are_no_configs(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    result = CliRunner().invoke(app, ["train", str(path)])
    assert isinstance(result.exception, VlkitError) and message in str(result.exception)
