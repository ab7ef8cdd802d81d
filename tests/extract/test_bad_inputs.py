"""Malformed files, hanging decoders and dying processes cost themselves and nothing else."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from extraction import TINY, spawn
from malformed import make_malformed
from videos import write_counting_video

from actionfuse.pipeline.features import FeatureStore

PLAN = "tsn-test_resnet-rgb"


def test_malformed_files_are_each_reported(folder: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(folder, videos / "mine")
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
    assert {key for key in keys if key.startswith("mine/")} == {
        "mine/" + p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()
    }
    # Each malformed input was read, wholly or in part, or it is in the list; none is lost in silence.
    for name, path in made.items():
        if name == "folder_named":
            continue  # an empty folder called x.mp4 is a folder without videos
        key = path.relative_to(videos).as_posix()
        assert key in keys or key in failures, f"{name}: {key} is neither there nor reported"


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [child for child in children if "worker_main" in " ".join(child.cmdline())]


def spooled(out: Path) -> bool:
    return any(path.is_file() and path.stat().st_size > 4096 for path in out.rglob("*"))


@pytest.fixture(scope="module")
def long_and_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos = tmp_path_factory.mktemp("long")
    write_counting_video(videos / "long.mp4", 2400, (320, 240), 25)
    write_counting_video(videos / "short.mp4", 30, (64, 48), 25)
    return videos


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_decoder_that_hangs_is_cut_off(long_and_short: Path, tmp_path: Path, decoder: str) -> None:
    """The decode process is stopped in the middle of a video. `auto` tries once more; else it failed."""
    videos, out = long_and_short, tmp_path / "out"
    words = [*TINY, "--timeout", 2, "--workers", 1, "--decoder", decoder, "--fps", "native"]
    process = spawn(videos, "--out", out, *words)
    while not spooled(out) and process.poll() is None:  # then rows of the long video have been written
        time.sleep(0.02)
    (worker,) = workers_of(process)
    worker.send_signal(signal.SIGSTOP)
    _, errors = process.communicate(timeout=120)
    store = FeatureStore.open(out / PLAN)
    if decoder == "auto":
        assert process.returncode == 0, errors
        assert store.keys() == ["long.mp4", "short.mp4"] and len(store.read("long.mp4")) == 300
    else:
        assert process.returncode == 1, errors
        (entry,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
        assert entry["key"] == "long.mp4" and "no sign of life for 2 s" in entry["reason"]
        assert store.keys() == ["short.mp4"]


def test_a_decode_process_that_dies_is_replaced(folder: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for copy in range(20):
        shutil.copytree(folder, videos / str(copy))
    process = spawn(videos, "--out", out, *TINY, "--workers", 2)
    while not list(out.rglob("*.npz")) and process.poll() is None:
        time.sleep(0.05)
    workers = workers_of(process)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert len(workers) == 2
    assert process.returncode == 0, errors
    assert len(FeatureStore.open(out / PLAN).keys()) == 120


def test_decode_processes_end_with_their_parent(folder: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for copy in range(20):
        shutil.copytree(folder, videos / str(copy))
    process = spawn(videos, "--out", tmp_path / "out", *TINY, "--workers", 2)
    while not list((tmp_path / "out").rglob("*.npz")) and process.poll() is None:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
