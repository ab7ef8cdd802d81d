"""A Ray cluster of two raylets on this machine: actors, a raylet and the driver are killed, the bytes stay the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from daemons import Daemons, call, free_port, wait_until
from videos import write_counting_video

MODEL = ("--weights", "random", "--side", "64", "--crop", "64", "--fps", "25", "--clip-frames", "1", "--device", "cpu")
PROGRAM = [sys.executable, "-m", "actionfuse.cli"]
VIDEOS, SHARDS = 24, 6


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        write_counting_video(folder / f"{i:02d}.mp4", 40 + i, (64, 48), 25)
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def local(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local")
    call([*PROGRAM, "extract", videos, "--out", out, *MODEL, "--quiet"], code=1)
    found = outputs(out)
    assert len(found) == VIDEOS
    return found


def outputs(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.npz")}


class Cluster:
    """Raylets of one cluster, all on this machine. node: the one beside the head."""

    node: subprocess.Popen

    def __init__(self, daemons: Daemons, scratch: Path) -> None:
        self.daemons, self.port, self.count = daemons, free_port(), 0
        self.env = {"RAY_ADDRESS": f"127.0.0.1:{self.port}", "RAY_AUTH_MODE": "disabled", "RAY_DISABLE_DASHBOARD": "1"}
        self.env |= {"RAY_TMPDIR": str(scratch), "TMPDIR": str(scratch)}

    def start(self, *words: str, cpus: int) -> subprocess.Popen:
        self.count += 1
        name = f"ray{self.count}"
        ray = Path(sys.executable).with_name("ray")
        command = [ray, "start", *words, "--block", f"--num-cpus={cpus}", "--object-store-memory=100000000",
                   "--disable-usage-stats"]  # fmt: skip
        log = self.daemons.folder / f"{name}.log"
        return self.daemons.start(
            name, command, lambda: "Ray runtime started" in log.read_text(), within_seconds=90, env=self.env
        )

    def raylets(self) -> list[int]:
        port = f":{self.port}".encode()
        return [
            pid
            for pid, words in processes()
            if words[0].endswith(b"/raylet")
            and any(word.startswith(b"--gcs-address=") and word.endswith(port) for word in words)
        ]

    def actors(self, name: str) -> list[int]:
        """Processes of the living actors of a class; Ray writes it into their command line."""
        return [pid for pid, words in processes() if words[0].startswith(b"ray::" + name.encode())]

    def extract(self, videos: Path, out: Path) -> subprocess.Popen:
        words = [*PROGRAM, "extract", videos, "--out", out, *MODEL, "--engine", "ray", "--shard-videos", "5"]
        return subprocess.Popen(
            [str(word) for word in [*words, "--models", "1", "--decoders", "2"]],
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def processes() -> Iterator[tuple[int, list[bytes]]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended while we looked
            yield int(path.parent.name), path.read_bytes().rstrip(b"\0").split(b"\0")


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """What processes that are killed leave behind; its name is short, as the path of a socket has 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="af-ray-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster(scratch: Path, daemons: Daemons) -> Iterator[Cluster]:
    cluster = Cluster(daemons, scratch)
    cluster.start("--head", f"--port={cluster.port}", "--include-dashboard=false", cpus=2)
    cluster.node = cluster.start(f"--address=127.0.0.1:{cluster.port}", cpus=2)
    yield cluster


def finish(process: subprocess.Popen, code: int = 1) -> str:
    said, _ = process.communicate(timeout=200)
    assert process.returncode == code, said[-4000:]
    return said


def done(out: Path) -> int:
    folder = out / "shards" / "done"
    return len(list(folder.glob("*.jsonl"))) if folder.is_dir() else 0


def assert_whole(out: Path, local: dict[str, bytes], said: str) -> None:
    assert outputs(out) == local
    assert f"{VIDEOS} videos are there exactly once; 1 failed" in said
    problems = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [(problem["kind"], problem["key"]) for problem in problems] == [("failed", "bad.mp4")]


def test_the_driver_is_killed_and_started_again(cluster, videos, local, tmp_path):
    out = tmp_path / "out"
    process = cluster.extract(videos, out)
    wait_until(lambda: done(out) >= 1, "a shard is done", within_seconds=120)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in (out / "shards" / "done").glob("*.jsonl")}
    assert len(before) < SHARDS
    assert_whole(out, local, finish(cluster.extract(videos, out)))
    assert {path: path.stat().st_mtime_ns for path in before} == before  # not done again


def test_actors_and_a_raylet_are_killed(cluster, videos, local, tmp_path):
    assert len(cluster.raylets()) == 2
    out = tmp_path / "out"
    process = cluster.extract(videos, out)
    for name in ("_Decoder", "_Model"):
        had = len(outputs(out))
        wait_until(lambda had=had: len(outputs(out)) > had, "outputs", within_seconds=120)
        actors = cluster.actors(name)
        assert actors, f"no process of {name}"
        os.kill(actors[0], signal.SIGKILL)
    had = len(outputs(out))
    wait_until(lambda: len(outputs(out)) > had, "outputs after the actors were killed", within_seconds=120)
    assert process.poll() is None and done(out) < SHARDS
    cluster.daemons.kill(cluster.node)
    wait_until(lambda: len(cluster.raylets()) == 1, "the raylet ends with its machine", within_seconds=10)
    assert_whole(out, local, finish(process))


def test_a_cluster_without_room_is_refused_at_once(cluster, videos, tmp_path):
    words = [*PROGRAM, "extract", videos, "--out", tmp_path / "out", *MODEL, "--engine", "ray", "--decoders", "99"]
    said = call(words, code=2, env=cluster.env, within_seconds=60)
    assert "would wait for CPUs for ever" in said
