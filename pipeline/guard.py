"""Calls that may hang or crash in native code, made in processes that can be killed.

`guarded_map` runs a function over items in child processes. One that crashes, or that gives no sign of life for too
long, costs its item and nothing else: the process is replaced and the item's result is a `Lost`. Children are started
by `python -m`, without a fork and without importing `__main__`, so that scripts and notebooks can use it as they are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_LEAST_BEAT_SECONDS = 0.2
_LOOKS = 8  # a wait takes at most this share of the patience, so a stop costs no more of it
_hook: Callable[[], None] | None = None
_parent: Connection | None = None  # set in children only
_last_beat = 0.0


@dataclass(frozen=True)
class Lost:
    """What stands in the place of a result that never came. reason: for people."""

    reason: str


def beat() -> None:
    """A sign of life: called by guarded functions while they get on, and by readers with every packet. Does nothing
    elsewhere; cheap.
    """
    global _last_beat
    if _hook is not None:
        _hook()
    if _parent is not None and time.monotonic() - _last_beat > _LEAST_BEAT_SECONDS:
        _last_beat = time.monotonic()
        _parent.send(("beat", None))


def beats_to(hook: Callable[[], None] | None) -> None:
    """Have `beat` call this in this process: for other watchdogs than `guarded_map`."""
    global _hook
    _hook = hook


def guarded_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int = 1, silence_seconds: float = 60.0
) -> Iterator[tuple[Item, Result | Lost]]:
    """`function(item)` for each item, in the items' order, by `workers` processes.

    function: of a module that children can import; its results must pickle. An exception that it raises is raised here.
    silence_seconds: a process that neither finishes nor calls `beat` for so long is killed.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    if not silence_seconds > 0:
        raise ValueError(f"silence_seconds is {silence_seconds}; it must be positive")
    numbered = enumerate(items)
    pool: list[_Child] = []
    done: dict[int, tuple[Item, Any]] = {}
    next_out = 0
    try:
        while True:
            # Results wait for their turn: no more than a few dozen per process, however slow the next one is.
            while len(done) < 64 * workers and (idle := _idle(pool, workers, function)) is not None:
                number, item = next(numbered, (None, None))
                if number is None:
                    break
                idle.give(number, item)
            busy = [child for child in pool if child.number is not None]
            if not busy:
                return
            # Only watched silence counts, in short waits: where this process and its children were stopped together
            # (SIGSTOP, a suspended machine), they have all been silent, and nothing hangs.
            patience = min(child.patience_seconds(silence_seconds) for child in busy)
            asked = max(0.0, min(patience, silence_seconds / _LOOKS))
            began = time.monotonic()
            ready = wait([child.connection for child in busy], asked)
            watched = min(time.monotonic() - began, asked)
            for child in busy:
                child.silent_seconds += watched
                if child.connection in ready:
                    kind, result = child.receive()
                elif child.patience_seconds(silence_seconds) <= 0:
                    kind, result = "lost", Lost(f"no sign of life for {silence_seconds:g} s: given up")
                else:
                    continue
                if kind == "error":
                    assert isinstance(result, Exception)
                    raise result
                if kind != "beat":
                    assert child.number is not None
                    done[child.number] = (child.item, result)
                    child.number = None
                if kind == "lost":
                    child.kill()
                    pool.remove(child)
            while next_out in done:
                yield done.pop(next_out)
                next_out += 1
    finally:
        for child in pool:
            child.kill()


def _idle(pool: list[_Child], workers: int, function: Callable) -> _Child | None:
    for child in pool:
        if child.number is None:
            return child
    if len(pool) < workers:
        pool.append(_Child(function))
        return pool[-1]
    return None


class _Child:
    def __init__(self, function: Callable) -> None:
        self.number: int | None = None
        self.item: Any = None
        self.silent_seconds = 0.0
        self._started = False
        self.connection, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.connection.send(sys.path)  # first: the function's module may be found only there
        self.connection.send(function)

    def patience_seconds(self, silence_seconds: float) -> float:
        """How much longer it may be silent."""
        # Starting Python on a busy machine is not the item's fault.
        return (silence_seconds if self._started else max(60.0, silence_seconds)) - self.silent_seconds

    def give(self, number: int, item: Any) -> None:
        self.number, self.item, self.silent_seconds = number, item, 0.0
        try:
            self.connection.send(item)
        except BrokenPipeError:
            pass  # it died before it read: receive says so

    def receive(self) -> tuple[str, Any]:
        self.silent_seconds = 0.0
        try:
            message = self.connection.recv()
            self._started = True
            return message
        except (EOFError, ConnectionError):
            code = self.process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            if not self._started:
                return "error", RuntimeError(f"a reading process {how} before it could start; its own words are above")
            return "lost", Lost(f"the process that read it {how}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _serve(descriptor: int) -> None:
    global _parent, _last_beat
    connection = Connection(descriptor)
    # Ctrl-C goes to the whole process group: only the parent acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Native libraries write to standard output, which is the parent's answer to its user.
    os.dup2(2, 1)
    sys.path = connection.recv()
    function = connection.recv()
    _parent = connection
    connection.send(("beat", None))
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = ("done", function(item))
        except Exception as error:  # raised again in the parent
            answer = ("error", error)
        connection.send(answer)


if __name__ == "__main__":
    from actionfuse.pipeline import guard  # this module under its own name, where `beat` is called

    guard._serve(int(sys.argv[1]))
