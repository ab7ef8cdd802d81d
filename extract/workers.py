"""Decode processes and the shared memory through which their clips come.

Each process decodes one task at a time (or segments of one video together) and puts clips into slots of a memory-mapped
file that it shares with the parent; only small messages travel through a pipe. A process that hangs or crashes in
native code costs one attempt at one video: the pool kills it, starts another and says so. The processes start without
torch, by `python -m`, so a notebook or a script without a `__main__` guard can use them.

Messages of a worker: ("ready",), ("span", key, Span), ("clips", plan index, attempt, slot, rows), ("done", outcomes)
and ("apart",), where tasks cannot be decoded together.
Messages to it: Setup, then ("tasks", tasks, boxes), ("free", slot), ("stop",).
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait

import numpy as np

from actionfuse._memory import anonymous_file

from ..pipeline.guard import beats_to
from ..pipeline.types import BoxTracks
from .clips import ClipRow
from .decode import Apart, Outcome, ReaderShelf, decode_together
from .plan import ClipPlan, Span, Task

# A slot holds as many clips of one plan as fit in this many bytes, at least one: enough to make messages rare.
SLOT_BYTES = 4 << 20
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
MOST_LOST_STARTS = 5  # in a row
START_SECONDS = 120.0  # for a process to import what it needs, on a slow disk
_HEADER = struct.Struct("<qq")  # beats, 1 while waiting for a free slot
_PAGE = mmap.ALLOCATIONGRANULARITY


@dataclass(frozen=True)
class Setup:
    """What a worker must know before its first task."""

    plans: tuple[ClipPlan, ...]
    slot_bytes: int
    num_slots: int


@dataclass(frozen=True)
class RowNote:
    """All of a clip row but its pixels. key: of the task that it belongs to."""

    key: str
    row: int
    start_seconds: float
    stop_seconds: float
    heard: bool = True
    boxes: BoxTracks | None = None
    real_entries: int = 0


@dataclass
class Clips:
    """Clips of one plan, as views of shared memory: valid until `Pool.free(clips)`."""

    worker: int
    plan: int
    attempt: int
    slot: int
    rows: list[RowNote]
    data: np.ndarray


@dataclass(frozen=True)
class Opened:
    """A video was opened: what of it will be decoded."""

    key: str
    span: Span


@dataclass(frozen=True)
class Decoded:
    """How the tasks of a worker ended; it is idle again."""

    outcomes: list[Outcome]


@dataclass
class Lost:
    """A worker that hung or died, and the tasks it had; or tasks that cannot be decoded together."""

    tasks: tuple[Task, ...]
    boxes: BoxTracks | None
    reason: str
    blameless: bool = False  # it was ended from outside: its machine went, or it was told to


# ---------------------------------------------------------------------------------------------- in the worker


class _Outbox:
    """Collects clip rows into slots and sends them; waits for the parent where all slots are in use."""

    def __init__(self, connection: Connection, setup: Setup, memory: mmap.mmap) -> None:
        self._connection, self._setup, self._memory = connection, setup, memory
        self._free = deque(range(setup.num_slots))
        self._open: dict[int, tuple[int, list[RowNote]]] = {}
        self._beats = 0
        self.waiting_seconds = 0.0
        self.copying_seconds = 0.0
        self.attempt = 0

    def beat(self) -> None:
        self._beats += 1
        _HEADER.pack_into(self._memory, 0, self._beats, 0)

    def emit(self, key: str, plan_index: int, row: ClipRow) -> None:
        plan = self._setup.plans[plan_index]
        if plan_index not in self._open:
            self._open[plan_index] = (self._slot(), [])
        slot, notes = self._open[plan_index]
        since = time.perf_counter()
        place = _slot_array(self._memory, self._setup, slot, plan, len(notes), 1)[0]
        for position, entry in enumerate(row.entries):
            place[position] = entry.data
        self.copying_seconds += time.perf_counter() - since
        notes.append(RowNote(key, row.row, row.start_seconds, row.stop_seconds, row.heard, row.boxes, row.real_entries))
        if (len(notes) + 1) * plan.clip_bytes > self._setup.slot_bytes:
            self._send(plan_index)

    def tell_span(self, key: str, span: Span) -> None:
        with _parent_or_exit():
            self._connection.send(("span", key, span))

    def flush(self) -> None:
        for plan_index in list(self._open):
            self._send(plan_index)

    def discard(self) -> None:
        for slot, _ in self._open.values():
            self._free.append(slot)
        self._open.clear()

    def _send(self, plan_index: int) -> None:
        slot, notes = self._open.pop(plan_index)
        with _parent_or_exit():
            self._connection.send(("clips", plan_index, self.attempt, slot, notes))

    def _slot(self) -> int:
        if not self._free:
            # Other plans may hold half-filled slots; with more slots than plans the parent always has one to give back.
            since = time.perf_counter()
            _HEADER.pack_into(self._memory, 0, self._beats, 1)
            while not self._free:
                with _parent_or_exit():
                    message = self._connection.recv()
                self.handle(message)
            self.beat()
            self.waiting_seconds += time.perf_counter() - since
        return self._free.popleft()

    def handle(self, message: tuple) -> None:
        if message[0] == "free":
            self._free.append(message[1])
        elif message[0] == "stop":
            raise SystemExit(0)


@contextmanager
def _parent_or_exit() -> Iterator[None]:
    """Ends this process where the parent is gone; no error of a video's must be taken for that, nor the reverse."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise SystemExit(0) from None


def _slot_array(memory: mmap.mmap, setup: Setup, slot: int, plan: ClipPlan, first: int, clips: int) -> np.ndarray:
    offset = _PAGE + slot * setup.slot_bytes + first * plan.clip_bytes
    count = clips * int(np.prod(plan.clip_shape))
    return np.frombuffer(memory, plan.dtype, count, offset).reshape(clips, *plan.clip_shape)


def worker_main(descriptor: int, memory_descriptor: int) -> None:
    """A decode process: tasks in, clips out, until told to stop or the parent is gone."""
    # Ctrl-C and batch systems signal the whole group: the parent decides (see `_start`, which blocks them until here).
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)  # what native libraries print is no part of the command's answer
    connection = Connection(descriptor)
    with _parent_or_exit():
        setup: Setup = connection.recv()
        memory = mmap.mmap(memory_descriptor, 0)
        connection.send(("ready",))
    import cv2

    cv2.setNumThreads(1)  # the pool has a process per core; threads inside would only queue
    outbox = _Outbox(connection, setup, memory)
    beats_to(outbox.beat)
    readers = ReaderShelf()
    while True:
        with _parent_or_exit():
            message = connection.recv()
        if message[0] != "tasks":
            outbox.handle(message)
            continue
        tasks, boxes = message[1:]
        outbox.attempt, outbox.waiting_seconds, outbox.copying_seconds = tasks[0].attempt, 0.0, 0.0
        outbox.beat()
        try:
            outcomes = decode_together(tasks, setup.plans, outbox.emit, boxes, outbox.beat, readers, outbox.tell_span)
        except Apart:
            outbox.discard()
            with _parent_or_exit():
                connection.send(("apart",))
            continue
        if any(outcome.error for outcome in outcomes):  # of a task by itself
            outbox.discard()
        else:
            outbox.flush()
        outcomes[0].stage_seconds["transform"] = outbox.copying_seconds
        outcomes[0].stage_seconds["decoder waiting"] = outbox.waiting_seconds
        with _parent_or_exit():
            connection.send(("done", outcomes))


# ---------------------------------------------------------------------------------------------- in the parent


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: Connection
    memory: mmap.mmap
    ready: bool = False
    tasks: tuple[Task, ...] = ()
    boxes: BoxTracks | None = None
    beats: tuple[int, int] = (-1, 0)
    changed_at: float = field(default_factory=time.monotonic)


@dataclass
class _Started:
    """A process that imports what it needs, then waits for its Setup. Its memory has no size yet."""

    process: subprocess.Popen
    connection: Connection
    memory_descriptor: int


def _spawn() -> _Started:
    parent, child = Pipe(duplex=True)
    shared = anonymous_file()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    # One thread per process in every library that would otherwise start one per core.
    environment.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    code = f"from actionfuse.extract.workers import worker_main; worker_main({child.fileno()}, {shared})"
    # The child inherits what this thread blocks: a Ctrl-C while it imports would end it with a traceback.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[child.fileno(), shared],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    child.close()
    return _Started(process, parent, shared)


class Standby:
    """Decode processes that start on the other cores while this one imports torch. For Pools; closing ends the rest."""

    def __init__(self, processes: int) -> None:
        self._started = [_spawn() for _ in range(processes)]

    def take(self) -> _Started | None:
        """The next one, None where there is none left."""
        return self._started.pop(0) if self._started else None

    def __enter__(self) -> Standby:
        return self

    def __exit__(self, *_: object) -> None:
        for started in self._started:
            started.process.kill()
            started.process.wait()
            started.connection.close()
            os.close(started.memory_descriptor)
        self._started.clear()


class Pool:
    """`workers` decode processes for these plans.

    timeout_seconds: a worker that has shown no sign of life for this long while it decodes is killed.
    standby: processes that were started before, to be taken first.
    """

    def __init__(
        self,
        plans: tuple[ClipPlan, ...],
        workers: int,
        timeout_seconds: float = 60.0,
        standby: Standby | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; at least one process must decode")
        self._plans, self._standby = plans, standby
        self._timeout_seconds = timeout_seconds
        slot_bytes = max(SLOT_BYTES, max(plan.clip_bytes for plan in plans))
        slot_bytes = -(-slot_bytes // _PAGE) * _PAGE
        self._slot_bytes, self._num_slots = slot_bytes, len(plans) + 2
        self._most_workers = workers
        self._workers: list[_Worker] = []  # started with their first task: there may be nothing to do
        self._lost_starts = 0

    def _start(self) -> _Worker:
        started = (self._standby and self._standby.take()) or _spawn()
        os.ftruncate(started.memory_descriptor, _PAGE + self._num_slots * self._slot_bytes)
        memory = mmap.mmap(started.memory_descriptor, 0)
        os.close(started.memory_descriptor)
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: `events` finds out
            started.connection.send(Setup(self._plans, self._slot_bytes, self._num_slots))
        return _Worker(started.process, started.connection, memory)

    def idle(self) -> int | None:
        """The number of a worker without a task, or None."""
        waiting = (number for number, worker in enumerate(self._workers) if not worker.tasks)
        return next(waiting, len(self._workers) if len(self._workers) < self._most_workers else None)

    @property
    def busy(self) -> bool:
        return any(worker.tasks for worker in self._workers)

    def submit(self, number: int, tasks: tuple[Task, ...], boxes: BoxTracks | None = None) -> None:
        """Give an idle worker a task, or segments of one video to be decoded together."""
        if number == len(self._workers):
            self._workers.append(self._start())
        worker = self._workers[number]
        worker.tasks, worker.boxes, worker.changed_at = tasks, boxes, time.monotonic()
        try:
            worker.connection.send(("tasks", tasks, boxes))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died: `events` reports the tasks lost

    def free(self, clips: Clips) -> None:
        """Give the slot of these clips back to the worker; their data must not be used any more."""
        worker = self._workers[clips.worker]
        try:
            worker.connection.send(("free", clips.slot))
        except (BrokenPipeError, ConnectionResetError, OSError):
            pass

    def events(self, timeout_seconds: float) -> Iterator[Clips | Opened | Decoded | Lost]:
        """What the workers sent, as it comes, for up to one wait of `timeout_seconds`."""
        ready = wait([worker.connection for worker in self._workers], timeout_seconds)
        for number, worker in enumerate(self._workers):
            if worker.connection in ready:
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionResetError, pickle.UnpicklingError):
                    yield from self._replace(number, _death(worker.process))
                    continue
                worker.changed_at = time.monotonic()
                if message[0] == "ready":
                    worker.ready = True
                    self._lost_starts = 0
                elif message[0] == "span":
                    yield Opened(*message[1:])
                elif message[0] == "clips":
                    _, plan, attempt, slot, notes = message
                    setup = Setup(self._plans, self._slot_bytes, self._num_slots)
                    data = _slot_array(worker.memory, setup, slot, self._plans[plan], 0, len(notes))
                    yield Clips(number, plan, attempt, slot, notes, data)
                elif message[0] == "apart":
                    lost, worker.tasks = worker.tasks, ()
                    yield Lost(lost, worker.boxes, "its segments could not be decoded together")
                else:
                    worker.tasks = ()
                    yield Decoded(message[1])
            elif worker.tasks and self._hangs(worker):
                worker.process.kill()
                yield from self._replace(number, f"the decoder gave no sign of life for {self._timeout_seconds:g} s")

    def _hangs(self, worker: _Worker) -> bool:
        beats = _HEADER.unpack_from(worker.memory, 0)
        now = time.monotonic()
        if beats != worker.beats or beats[1]:  # it moved on, or it waits for the parent
            worker.beats, worker.changed_at = beats, now
        patience = self._timeout_seconds if worker.ready else max(self._timeout_seconds, START_SECONDS)
        return now - worker.changed_at > patience

    def _replace(self, number: int, reason: str) -> Iterator[Lost]:
        worker = self._workers[number]
        code = worker.process.wait()
        worker.connection.close()
        if not worker.ready:
            # It failed by itself, and would again; or it was killed from outside, for want of memory say.
            self._lost_starts += 1
            if code >= 0 or self._lost_starts > MOST_LOST_STARTS:
                raise RuntimeError(f"decode process ended before it was ready ({reason}); its message stands above")
        self._workers[number] = self._start()
        if not worker.tasks:
            return
        if worker.ready:
            yield Lost(worker.tasks, worker.boxes, reason)
        else:  # the video is not to blame
            self.submit(number, worker.tasks, worker.boxes)

    def close(self) -> None:
        """Stop all workers at once."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.connection.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _death(process: subprocess.Popen) -> str:
    code = process.wait()
    if code < 0:
        return f"the decode process died of {signal.Signals(-code).name}"
    return f"the decode process ended with code {code}"
