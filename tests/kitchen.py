"""A tiny synthetic kitchen on disk, made once for all test processes of a run."""

import os
from pathlib import Path

import pytest

from actionfuse.pipeline.synth.make import make_kitchen, plan_kitchen


def tiny_kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the kitchen of size "tiny" and seed 0: 9 videos, 36 actions, all streams and annotations; read only.

    For a fixture: `@pytest.fixture(scope="module") def root(tmp_path_factory): return tiny_kitchen(tmp_path_factory)`.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # one for all of them: whoever comes second waits for the first and finds it made
    root = base / "kitchen"
    *_, progress = make_kitchen(root, plan_kitchen("tiny", seed=0), workers=2)
    assert not progress.lost
    return root
