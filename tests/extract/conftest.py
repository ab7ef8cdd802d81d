"""Small real videos, and a way to run `actionfuse extract` as a user would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from videos import write_counting_video


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips in several containers and sub-folders; two share a name. One has sound."""
    top = tmp_path_factory.mktemp("videos")
    (top / "sub" / "deep").mkdir(parents=True)
    write_counting_video(top / "a.mp4", 30, (64, 48), 25, audio=True)
    write_counting_video(top / "b.mkv", 47, (64, 48), 25, bframes=2)
    write_counting_video(top / "sub" / "a.mp4", 12, (96, 54), 30)
    write_counting_video(top / "sub" / "a.avi", 20, (64, 48), 25, codec="mpeg4")
    write_counting_video(top / "sub" / "deep" / "one.mp4", 1, (64, 48), 25)
    write_counting_video(top / "tall.webm", 25, (48, 64), 25, codec="libvpx-vp9")
    return top


@pytest.fixture
def extract() -> Callable[..., int]:
    """`actionfuse extract ...` in this process; returns the exit code."""
    from actionfuse.cli import main

    return lambda *words: main(["extract", *map(str, words)])
