"""Processes that a test needs beside itself: started in a group of their own, awaited, stopped by their id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class Daemons:
    """Starts daemons and stops them all, in reverse order, when left.

    folder: where each daemon's output goes, as NAME.log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[tuple[str, subprocess.Popen, float]] = []

    def __enter__(self) -> Daemons:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._running:
            name, process, grace_seconds = self._running.pop()
            stop(process, grace_seconds)

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        ready: Callable[[], bool],
        *,
        within_seconds: float = 60.0,
        grace_seconds: float = 20.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen:
        """Start `command` and return once `ready()` is true.

        env: added to this process's environment. grace_seconds: from SIGTERM to SIGKILL when it is stopped.
        Raises: RuntimeError with the end of its log where it ends, or does not answer, before `within_seconds`.
        """
        log = self.folder / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
        self._running.append((name, process, grace_seconds))
        end = time.monotonic() + within_seconds
        while not ready():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with code {process.returncode}:\n{tail(log)}")
            if time.monotonic() > end:
                raise RuntimeError(f"{name} does not answer after {within_seconds:g} s:\n{tail(log)}")
            time.sleep(0.1)
        return process

    def kill(self, process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
        """End a daemon's whole group at once, as a lost machine does."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.wait(timeout=30)


def stop(process: subprocess.Popen, grace_seconds: float = 20.0) -> None:
    """SIGTERM to the process, SIGKILL to whatever is left of its group after `grace_seconds`."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def call(command: Sequence[str | Path], *, within_seconds: float = 120.0, code: int = 0, **options) -> str:
    """Output (stdout and stderr together) of a command that must end with `code` in time; env adds to ours.

    Raises: AssertionError with the output where the code is another; subprocess.TimeoutExpired.
    """
    options["env"] = {**os.environ, **(options.get("env") or {})}
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        output, _ = process.communicate(timeout=within_seconds)
    finally:  # whatever it started ends with it, also where this test ran out of time
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, f"{' '.join(words)} ended with {process.returncode}:\n{output[-8000:]}"
    return output


def wait_until(met: Callable[[], bool], what: str, *, within_seconds: float) -> None:
    """Raises: AssertionError where `met()` is not true before `within_seconds`."""
    end = time.monotonic() + within_seconds
    while not met():
        assert time.monotonic() < end, f"{what}: not within {within_seconds:g} s"
        time.sleep(0.1)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something listens on the TCP port."""
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tail(log: Path, characters: int = 4000) -> str:
    return log.read_text(errors="replace")[-characters:]
