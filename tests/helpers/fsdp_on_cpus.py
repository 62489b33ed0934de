"""`vlkit`, for `accelerate launch --use_fsdp` on CPUs, where accelerate itself leaves FSDP out."""

from functools import wraps

from accelerate.state import DistributedType, PartialState

import vlkit
from vlkit.cli.app import main

begin, train = PartialState.__init__, vlkit.lora.train


def begin_as_on_gpus(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


@wraps(train)
def train_and_tell(*args, **kwargs):
    run = train(*args, **kwargs)
    print("effect", run.effect, flush=True)
    return run


PartialState.__init__ = begin_as_on_gpus
vlkit.lora.train = train_and_tell
main()
