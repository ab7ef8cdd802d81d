"""Malformed files, hanging decoders and dying processes cost themselves and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from extraction import TINY, spawn
from malformed import make_malformed

from actionfuse.pipeline.features import FeatureStore

PLAN = "tsn-test_resnet-rgb"


def test_malformed_files_are_each_reported(folder: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(folder, videos / "good")
    made = make_malformed(videos)
    assert len(made) >= 40
    process = spawn(videos, *made.values(), "--root", videos, "--out", out, *TINY, "--timeout", 20)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    failures = {}
    for line in (out / "failures.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert entry["reason"].strip() and entry["stage"]
        failures[entry["key"]] = entry["reason"]
    keys = set(FeatureStore.open(out / PLAN).keys())
    assert {key for key in keys if key.startswith("good/")} == {
        "good/" + p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()
    }
    # Each malformed input was read, wholly or in part, or it is in the list; none is lost in silence.
    for name, path in made.items():
        key = path.relative_to(videos).as_posix()
        assert key in keys or key in failures, f"{name}: {key} is neither there nor reported"


def test_a_hanging_input_is_cut_off(folder: Path, tmp_path: Path) -> None:
    """A pipe that nobody writes to: opening it waits for ever."""
    pipe = tmp_path / "hangs.mp4"
    os.mkfifo(pipe)
    out = tmp_path / "out"
    process = spawn(pipe, folder / "a.mp4", "--out", out, "--root", "/", *TINY, "--timeout", 2, "--workers", 1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    (entry,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    assert entry["path"] == str(pipe) and "no sign of life for 2 s" in entry["reason"]
    assert len(FeatureStore.open(out / PLAN).keys()) == 1


def test_a_decode_process_that_dies_is_replaced(folder: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for copy in range(20):
        shutil.copytree(folder, videos / str(copy))
    process = spawn(videos, "--out", out, *TINY, "--workers", 2)
    while not list(out.rglob("*.npz")) and process.poll() is None:
        time.sleep(0.05)
    killed = 0
    for child in psutil.Process(process.pid).children():
        if "worker_main" in " ".join(child.cmdline()):
            child.send_signal(signal.SIGKILL)
            killed += 1
    _, errors = process.communicate(timeout=120)
    assert killed == 2
    assert process.returncode == 0, errors
    assert len(FeatureStore.open(out / PLAN).keys()) == 120


@pytest.mark.parametrize("workers", [1, 2])
def test_decode_processes_end_with_their_parent(folder: Path, tmp_path: Path, workers: int) -> None:
    videos = tmp_path / "videos"
    for copy in range(20):
        shutil.copytree(folder, videos / str(copy))
    process = spawn(videos, "--out", tmp_path / "out", *TINY, "--workers", workers)
    while not list((tmp_path / "out").rglob("*.npz")) and process.poll() is None:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= workers
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
