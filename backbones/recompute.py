"""Activations that are computed twice instead of kept (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
2016): what `Backbone.set_grad_checkpointing` does to a module.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, enabled: bool = True) -> None:
    """Keep only the module's inputs in training, and compute the rest again on the way back.

    Random layers draw the same numbers again, and batch norms do not count the batch a second time.
    """
    if enabled:
        module.forward = types.MethodType(_forward, module)
    else:
        module.__dict__.pop("forward", None)


def _forward(module: nn.Module, *args: Any, **options: Any) -> Any:
    plain = types.MethodType(type(module).forward, module)
    if not (module.training and torch.is_grad_enabled()):
        return plain(*args, **options)
    return checkpoint(
        plain, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _counted_once(module)), **options
    )


@contextmanager
def _counted_once(module: nn.Module) -> Iterator[None]:
    """Inside, running statistics stay as they are."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted
