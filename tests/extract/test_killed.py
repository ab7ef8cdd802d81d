"""Killed at any moment and started again: the same files, byte for byte. Several processes: nothing doubled or lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from extraction import TINY, contents, spawn

# Imports everything once, then runs the command in forked children that are killed after the given times: what would
# take a start of torch per kill takes one in all.
KILLER = """
import os, signal, sys, time
import actionfuse.extract.run, actionfuse.backbones
from actionfuse.cli import main
*words, delays = sys.argv[1:]
for delay in map(float, delays.split(",")):
    child = os.fork()
    if child == 0:
        os.setsid()  # its decode processes die with it or are killed with its group
        os._exit(main(["extract", *words]))
    time.sleep(delay)
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
sys.exit(main(["extract", *words]))
"""


@pytest.fixture(scope="module")
def videos(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("many")
    for copy in range(12):
        shutil.copytree(folder, top / f"{copy:02d}")
    return top


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    process = spawn(videos, "--out", out, *TINY)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return contents(out)


def test_killed_twenty_times(videos: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw = random.Random(0)
    # A child needs about a second until its first output; kills fall before, between and after outputs.
    delays = ",".join(f"{draw.uniform(0.05, 2.0):.3f}" for _ in range(20))
    words = [str(videos), "--out", str(out), *TINY, "--quiet", "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", KILLER, *words, delays], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed") >= 5, done.stdout  # the rest ended before they could be killed
    found = contents(out)
    found.pop("failures.jsonl", None)
    assert found.keys() == undisturbed.keys()
    assert {name for name in found if found[name] != undisturbed[name]} == set()


def test_processes_share_the_work(videos: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """--processes 2, and a third one beside them that is killed half-way."""
    out = tmp_path / "out"
    first = spawn(videos, "--out", out, *TINY, "--processes", 2, "--workers", 1)
    second = spawn(videos, "--out", out, *TINY, "--workers", 1)
    while len(list(out.rglob("*.npz"))) < 5 and second.poll() is None:
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    second.communicate(timeout=30)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    # What the killed one had taken on may have been passed by while it lived: a last call finds it.
    last = spawn(videos, "--out", out, *TINY)
    _, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    found = contents(out)
    assert found.keys() == undisturbed.keys()
    assert {name for name in found if found[name] != undisturbed[name]} == set()


def test_launched_ranks_split_by_size(videos: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """As accelerate launch and torchrun start it: by RANK and WORLD_SIZE."""
    out = tmp_path / "out"
    ranks = [
        spawn(
            videos,
            "--out",
            out,
            *TINY,
            "--workers",
            1,
            env=dict(os.environ, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)),
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    assert contents(out) == undisturbed
    for rank, text in enumerate(told):
        summary = next(line for line in text.splitlines() if " extracted" in line)
        count = int(summary.removeprefix(f"[{rank}/2] ").split()[0])
        assert count >= 15, summary  # each took a fair part of the 72
