"""Weights, gradients and optimiser state shared out over the processes: FSDP2 (`torch.distributed.fsdp.fully_shard`).

`run.shard: true` in a recipe. The same on CPUs (gloo) and GPUs; Accelerate's own FSDP plugin is not used, because on a
CPU it trains whole copies and does not say so. What is saved are whole weights, which any number of processes loads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .model import ActionModel


def check_sharding(shard: bool, precision: str) -> None:
    """Refuse settings under which weights would not be sharded although it was asked for.

    Raises: ValueError for an FSDP or DeepSpeed setting of Accelerate, and for fp16 with `run.shard`.
    """
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise ValueError(
                f"{variable} is {os.environ[variable]!r}: Accelerate's {name} plugin is not used here; leave it out "
                "of Accelerate's configuration and set run.shard=true in the recipe"
            )
    if shard and precision == "fp16":
        raise ValueError("run.shard is true and run.precision fp16: losses are not scaled over shards; take bf16")


def shard_model(model: ActionModel) -> None:
    """Share out every backbone, the head and what is left, in place; each is gathered while it is used.

    Raises: ValueError in one process, where nothing would be sharded.
    """
    if not distributed.is_initialized() or distributed.get_world_size() < 2:
        raise ValueError(
            "run.shard is true, but there is one process: nothing would be sharded; start several (torchrun, or "
            "accelerate launch on GPUs), or set run.shard=false"
        )
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no channels-last weights, as frame networks have
    device = next(iter([*model.parameters(), *model.buffers()])).device
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for part in (*model.backbones.values(), model.head, model):
        fully_shard(part, mesh=mesh)


def parts_of(model: nn.Module) -> list[FSDPModule]:
    """The modules that were sharded as a whole, outermost first; none without sharding."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def sync_gradients(model: nn.Module, sync: bool) -> None:
    """Whether the next backward pass sums gradients over the processes; the last of accumulated ones does."""
    for part in parts_of(model)[:1]:
        part.set_requires_gradient_sync(sync)


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Process 0's buffers (statistics of batch norms) everywhere, as DDP does before each step."""
    if parts_of(model):
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process has the whole weights: tests need not call the model equally often everywhere."""
    parts = parts_of(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def whole(state: Mapping[str, Tensor | int]) -> dict[str, Tensor | int]:
    """Sharded tensors put together again. Every process must call it."""
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in state.items()}


@torch.no_grad()
def copy_whole(target: Tensor, value: Tensor) -> None:
    """target.copy_(value), also where the target is a share of the whole value."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
