"""Testing mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def testing(module: nn.Module) -> Iterator[None]:
    """eval() inside; afterwards every sub-module is in the mode that it was in (frozen ones stay frozen)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
