"""What each of two processes does: ``accelerate launch --use_fsdp … two_processes.py FOLDER``.

It trains by three configs of FOLDER, one after the other: ``plain.yaml`` as `--multi_gpu` does,
``fsdp.yaml`` with the weights spread by FSDP, and that again with `--resume`. What a process prints
goes to a file of its own, for the lines of two processes may mix in one stream. accelerate leaves
FSDP out on CPUs; here it takes them for GPUs.
"""

import contextlib
import os
import shutil
import sys
from functools import wraps
from pathlib import Path

import torch.distributed
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState

import vlkit
from vlkit.cli.app import app

FOLDER, RANK = Path(sys.argv[1]), os.environ["RANK"]
begin, train = PartialState.__init__, vlkit.lora.train


def begin_as_on_gpus(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


@wraps(train)
def train_and_note(*args, **kwargs):
    run = train(*args, **kwargs)
    print("effect", run.effect)
    return run


def run(name, *arguments):
    """`vlkit train`, with what it prints in NAME-RANK.txt."""
    said = (FOLDER / f"{name}-{RANK}.txt").open("w", encoding="utf-8")
    with said, contextlib.redirect_stdout(said):
        app(["train", *arguments], standalone_mode=False)
    torch.distributed.barrier()


def forget_state():
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()


fsdp = {name: os.environ.pop(name) for name in list(os.environ) if "FSDP" in name}
run("plain", str(FOLDER / "plain.yaml"))
forget_state()
os.environ.update(fsdp)
PartialState.__init__ = begin_as_on_gpus
vlkit.lora.train = train_and_note
run("fsdp", str(FOLDER / "fsdp.yaml"))
if RANK == "0":
    shutil.copytree(FOLDER / "fsdp", FOLDER / "resumed")
    shutil.rmtree(FOLDER / "resumed" / "checkpoint-4")
    (FOLDER / "resumed" / "adapter_model.safetensors").unlink()
torch.distributed.barrier()
forget_state()
run("resumed", str(FOLDER / "resumed.yaml"), "--resume")
