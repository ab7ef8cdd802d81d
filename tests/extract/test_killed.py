"""Killed at any moment and started again: the same files, byte for byte. Several processes: nothing doubled or lost."""

from __future__ import annotations

import json
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

from actionfuse.cli import main

# Imports everything once, then runs the command in forked children that are killed: one start of torch for all kills.
# A kill falls some milliseconds after so many more outputs, however fast the machine is. What is done before its kill
# falls begins anew.
KILLER = """
import json, os, shutil, signal, sys, time
from pathlib import Path
import actionfuse.extract.run, actionfuse.backbones
from actionfuse.cli import main
out, kills, *words = sys.argv[1:]
outputs = lambda: sum(1 for _ in Path(out).rglob("*.npz"))
for more, delay in json.loads(kills):
    wanted = outputs() + more
    child = os.fork()
    if child == 0:
        os._exit(main(["extract", *words]))
    while outputs() < wanted and os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)  # also where it has ended: it stays until it is waited for
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
    if not os.WIFSIGNALED(status):
        shutil.rmtree(out)
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
    assert main(["extract", str(videos), "--out", str(out), *TINY]) == 0
    return contents(out)


def test_killed_twenty_times(videos: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw = random.Random(0)
    # Before the first output of a run (0 more), between outputs, while one is written.
    kills = [(draw.randrange(4), draw.uniform(0, 0.4 if k % 4 == 0 else 0.02)) for k in range(20)]
    words = [str(videos), "--out", str(out), *TINY, "--quiet", "--workers", "1"]
    command = [sys.executable, "-c", KILLER, str(out), json.dumps(kills), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed") >= 12 and "ended 1" not in done.stdout, done.stdout
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
    # What the killed one had taken on was passed by while it lived, and found again in the end.
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
