"""`actionfuse shards` under whatever starts processes: the same bytes, each video once. Ray has a file of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from daemons import call
from videos import write_counting_video

MODEL = ("--weights", "random", "--side", "64", "--crop", "64", "--fps", "4", "--clip-frames", "1", "--device", "cpu")
PROGRAM = [sys.executable, "-m", "actionfuse.cli"]
RUN = ("--device", "cpu", "--workers", "1", "--quiet")
VIDEOS, SHARDS = 12, 6


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        write_counting_video(folder / f"{i:02d}.mp4", 20 + i, (64, 48), 25)
    return folder


@pytest.fixture(scope="module")
def local(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local")
    call([*PROGRAM, "extract", videos, "--out", out, *MODEL, "--quiet"])
    return outputs(out)


def outputs(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.npz")}


def processes(out: Path, environments: list[dict[str, str]], *words: str) -> None:
    """`shards run` once for each environment, all at a time."""
    started = [
        subprocess.Popen([*PROGRAM, "shards", "run", str(out), *RUN, *words], env={**os.environ, **environment})
        for environment in environments
    ]
    try:
        assert [process.wait(timeout=120) for process in started] == [0] * len(started)
    finally:
        for process in started:
            process.kill()


def torchrun(out: Path) -> None:
    command = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node=2", "-m", "actionfuse.cli"]
    call([*command, "shards", "run", out, *RUN])


def array(out: Path) -> None:
    """Task 0 of two never runs: the other helps."""
    processes(out, [{"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}], "--help-others")


def job(out: Path) -> None:
    processes(out, [{"JOB_COMPLETION_INDEX": str(i)} for i in range(2)], "--parts", "2")


def alone_and_together(out: Path) -> None:
    processes(out, [{}, {}])


@pytest.mark.parametrize("start", [alone_and_together, torchrun, array, job])
def test_the_same_bytes_whoever_starts_it(start, videos, local, tmp_path):
    out = tmp_path / "out"
    said = call([*PROGRAM, "shards", "plan", videos, "--out", out, *MODEL, "--shards", str(SHARDS)])
    assert f"{VIDEOS} videos in " in said
    start(out)
    assert f"{VIDEOS} videos are there exactly once" in call([*PROGRAM, "shards", "verify", out, "--deep"])
    assert outputs(out) == local and len(local) == VIDEOS
