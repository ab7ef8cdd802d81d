from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The networks here are too small to share out, and results then do not hang on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The test's `create_backbone` makes networks without memory; loading makes them hold the file's own tensors."""
    plain, build = nn.Module.load_state_dict, request.module.create_backbone

    def create(*names, **options):
        with torch.device("meta"):
            return build(*names, **options)

    monkeypatch.setattr(request.module, "create_backbone", create)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state, **_: plain(self, state, assign=True))
