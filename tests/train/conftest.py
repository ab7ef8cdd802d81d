"""Small data sets that many tests train on."""

from __future__ import annotations

import pytest
from toy_training import write_toy
from toy_videos import write_videos


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))
