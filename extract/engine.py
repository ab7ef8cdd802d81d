"""The one extraction loop: decode processes, batches over videos, compute threads, one writer.

    pool of decode processes --clips--> batches (this thread) --> compute threads --> writer thread --> store

Every arrow is bounded, so the slowest stage sets the pace and memory does not grow with the length of the videos. A
batch is made of clips of whatever videos are being decoded and always has the same size (the last one is padded), so
that a clip's features do not depend on what else happened to be in flight: a run that was killed and started again
writes the same bytes.
"""

from __future__ import annotations

import queue
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..pipeline.inputs import VideoInput
from ..pipeline.types import BoxTracks
from .decode import Outcome
from .events import Failed, Finished, RowWriter, Sink, Skipped, Underway
from .passes import MOST_TOGETHER, decode_passes
from .plan import ClipPlan, Span, Task, cores
from .runner import Batch, Runner, clips_before, run_in_parts
from .workers import Clips, Decoded, Lost, Opened, Pool, RowNote

STOP_SECONDS = 10.0  # for what is being computed or written when a run is stopped
BLAMELESS_ATTEMPTS = 5  # at a video whose decoders were ended from outside
TELL_SECONDS = 1.0  # at most so often is it told how far a video is

# What a runner gives that is stored along with features, not as features.
ALONG = {"top_classes", "top_scores", "present"}


@dataclass
class _BatchItem:
    key: str
    attempt: int
    note: RowNote


@dataclass
class _FillingBatch:
    clips: np.ndarray
    items: list[_BatchItem]


class _RowNotes:
    """What belongs to the rows of one output besides features, in arrays that grow: a few bytes a row."""

    def __init__(self) -> None:
        self.count = 0
        self._arrays: dict[str, np.ndarray] = {}

    def put(self, name: str, row: int, given: ArrayLike) -> None:
        value = np.asarray(given)
        array = self._arrays.get(name)
        if array is None or row >= len(array):
            grown = np.zeros((max(64, 2 * row), *value.shape), value.dtype)
            if array is not None:
                grown[: len(array)] = array
            array = self._arrays[name] = grown
        array[row] = value

    def take(self, name: str, rows: int) -> np.ndarray:
        return self._arrays[name][:rows]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays


@dataclass
class _Open:
    """A video on its way, as the writer thread sees it."""

    attempt: int
    writers: dict[tuple[int, str], RowWriter] = field(default_factory=dict)
    notes: dict[int, _RowNotes] = field(default_factory=dict)
    outcome: Outcome | None = None
    failure: str = ""
    failed_stage: str = "model"


class Engine:
    """Runs the plans over the videos; `run()` yields what became of each.

    videos: segments that follow one another and overlap are decoded together (`passes`).
    runners: one per plan, in the same order. batch_clips: clips per batch and plan.
    """

    def __init__(
        self,
        videos: Iterable[VideoInput],
        runners: list[Runner],
        sink: Sink,
        *,
        batch_clips: list[int],
        workers: int,
        compute_threads: int,
        threads_per_compute: int = 1,
        timeout_seconds: float = 60.0,
        decoder: str = "auto",
        frame_fps: float = 30.0,
        boxes: dict[str, BoxTracks] | None = None,
        make_pool: Callable[..., Any] | None = None,
    ) -> None:
        self._passes = decode_passes(videos)
        self._runners, self._sink = runners, sink
        self._plans: tuple[ClipPlan, ...] = tuple(runner.plan for runner in runners)
        bicubic = [plan.name for plan in self._plans if plan.stream != "audio" and plan.size.interpolation == "bicubic"]
        if decoder in ("decord", "torchcodec") and bicubic:
            raise ValueError(
                f"decoder is {decoder!r}, without a bicubic kernel, and {', '.join(bicubic)} learned from one: "
                "features would differ from those of other decoders; take pyav or auto"
            )
        self._batch_clips, self._workers = batch_clips, workers
        self._compute_threads, self._threads_per_compute = compute_threads, threads_per_compute
        if not timeout_seconds > 0:
            raise ValueError(f"timeout is {timeout_seconds}; it must be a positive number of seconds")
        self._timeout_seconds, self._decoder, self._boxes = timeout_seconds, decoder, boxes or {}
        self._frame_fps = frame_fps
        self._make_pool = make_pool or Pool
        self._most_open = max(workers + 1, _most_open_videos(len(runners)) - MOST_TOGETHER)
        self._filling: dict[int, _FillingBatch] = {}
        self._spare: dict[int, queue.SimpleQueue[np.ndarray]] = {i: queue.SimpleQueue() for i in range(len(runners))}
        self._to_compute: queue.Queue = queue.Queue(maxsize=compute_threads)
        self._to_writer: queue.Queue = queue.Queue(maxsize=4 * compute_threads + 4)
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._stop = threading.Event()
        self._broken: BaseException | None = None
        self._over: dict[str, int] = {}  # attempts that failed: what still comes of them is dropped
        self._lock = threading.Lock()
        self.stage_seconds: dict[str, float] = {}

    def stop(self) -> None:
        """Make `run` end soon: what is in flight is dropped, what is written stays. Safe in a signal handler."""
        self._stop.set()

    def run(self) -> Generator[Finished | Failed | Skipped | Underway]:
        """Do the work. Closing the iterator early stops everything."""
        threads = [
            threading.Thread(target=self._guard(self._compute), daemon=True) for _ in range(self._compute_threads)
        ]
        writer = threading.Thread(target=self._guard(self._write), daemon=True)
        open_videos: dict[str, VideoInput] = {}
        with self._make_pool(self._plans, self._workers, self._timeout_seconds) as pool:
            for thread in (*threads, writer):
                thread.start()
            try:
                yield from self._dispatch(pool, open_videos)
                if not self._stop.is_set():
                    self._flush()
                    self._drain(threads, writer)
                    yield from self._pending_events(open_videos)
            finally:
                self._stop.set()
                # Nothing runs on behind the caller's back, and a claim is let go of only when nobody writes any more.
                patience = time.monotonic() + STOP_SECONDS
                for thread in (*threads, writer):
                    thread.join(max(0.0, patience - time.monotonic()))
                for key in open_videos:
                    self._sink.end(key)
        if self._broken is not None:
            raise self._broken

    # ------------------------------------------------------------------------------------------ this thread

    def _dispatch(
        self, pool: Pool, open_videos: dict[str, VideoInput]
    ) -> Iterator[Finished | Failed | Skipped | Underway]:
        spans: dict[str, Span] = {}
        told = time.monotonic()
        ready: deque[tuple[tuple[Task, ...], BoxTracks | None]] = deque()
        more = True
        while not self._stop.is_set():
            while (number := pool.idle()) is not None and (ready or more):
                if ready:
                    pool.submit(number, *ready.popleft())
                    continue
                if len(open_videos) >= self._most_open:
                    self._flush()  # many short videos: their rows wait in batches that are not full
                    break
                videos = next(self._passes, None)
                if videos is None:
                    more = False
                    break
                tasks: dict[str, Task] = {}
                for video in videos:
                    missing = self._sink.begin(video.key)
                    if not missing:
                        yield Skipped(video.key, elsewhere=missing is None)
                        continue
                    open_videos[video.key] = video
                    tasks[video.key] = self._task(video, missing)
                boxes = self._boxes.get(video_key(videos[0]))
                # What is there already may have been the bridge between the others.
                left = decode_passes(video for video in videos if video.key in tasks)
                ready.extend((tuple(tasks[video.key] for video in together), boxes) for together in left)
            if not pool.busy and not ready and not more:
                return
            for event in pool.events(timeout_seconds=0.2):
                if isinstance(event, Clips):
                    try:
                        self._collect(event)
                    finally:
                        pool.free(event)
                    if time.monotonic() - told > TELL_SECONDS and (span := spans.get(event.rows[-1].key)):
                        told = time.monotonic()
                        yield _underway(event, span)
                elif isinstance(event, Opened):
                    spans[event.key] = event.span
                elif isinstance(event, Decoded):
                    for outcome in event.outcomes:
                        spans.pop(outcome.key, None)
                        self._put(self._to_writer, ("outcome", outcome))
                else:
                    yield from self._lost(event, ready, open_videos)
            yield from self._pending_events(open_videos)

    def _task(self, video: VideoInput, missing: tuple[str, ...]) -> Task:
        indices = tuple(i for i, plan in enumerate(self._plans) if plan.name in missing)
        task = task_of(video, self._decoder, self._frame_fps, indices)
        return replace(task, threads=max(1, cores() // self._workers))

    def _lost(self, lost: Lost, ready: deque, open_videos: dict[str, VideoInput]) -> Iterator[Failed]:
        """What was lost is tried once more: segments one by one, so that each fails for its own reasons only."""
        for task in lost.tasks:
            self._put(self._to_writer, ("drop", task.key, task.attempt))
            again = task.attempt == 0 and (task.decoder == "auto" or len(lost.tasks) > 1)
            if again or (lost.blameless and task.attempt < BLAMELESS_ATTEMPTS):
                ready.append(((replace(task, attempt=task.attempt + 1),), lost.boxes))
                continue
            video = open_videos.pop(task.key)
            self._sink.end(task.key)
            yield Failed(task.key, video.path, "decode", lost.reason)

    def _collect(self, clips: Clips) -> None:
        done = 0
        size = self._batch_clips[clips.plan]
        while done < len(clips.rows):
            filling = self._filling.get(clips.plan)
            if filling is None:
                filling = self._filling[clips.plan] = _FillingBatch(self._buffer(clips.plan), [])
            used = len(filling.items)
            taken = min(size - used, len(clips.rows) - done)
            filling.clips[used : used + taken] = clips.data[done : done + taken]
            filling.items += [_BatchItem(note.key, clips.attempt, note) for note in clips.rows[done : done + taken]]
            done += taken
            if len(filling.items) == size:
                self._submit(clips.plan)

    def _buffer(self, plan_index: int) -> np.ndarray:
        try:
            return self._spare[plan_index].get_nowait()
        except queue.Empty:
            plan = self._plans[plan_index]
            shape = (self._batch_clips[plan_index], *plan.clip_shape)
            kind = torch.float32 if plan.dtype == np.float32 else torch.uint8
            pinned = self._runners[plan_index].device.type == "cuda"
            return torch.zeros(shape, dtype=kind, pin_memory=pinned).numpy()

    def _flush(self) -> None:
        for plan_index in list(self._filling):
            self._submit(plan_index)

    def _submit(self, plan_index: int) -> None:
        filling = self._filling.pop(plan_index)
        filling.clips[len(filling.items) :] = filling.clips[len(filling.items) - 1]
        self._put(self._to_compute, (plan_index, filling))

    def _put(self, where: queue.Queue, what: object) -> None:
        """Wait for room, but not after a stop."""
        while not self._stop.is_set():
            try:
                where.put(what, timeout=0.2)
                return
            except queue.Full:
                continue

    def _drain(self, threads: list[threading.Thread], writer: threading.Thread) -> None:
        for _ in threads:
            self._put(self._to_compute, None)
        for thread in threads:
            while thread.is_alive() and not self._stop.is_set():
                thread.join(timeout=0.2)
        self._put(self._to_writer, None)
        while writer.is_alive() and not self._stop.is_set():
            writer.join(timeout=0.2)

    def _pending_events(self, open_videos: dict[str, VideoInput]) -> Iterator[Finished | Failed]:
        while not self._events.empty():
            event = self._events.get()
            video = open_videos.pop(event.key)
            self._sink.end(event.key)
            if isinstance(event, Failed):
                event = Failed(event.key, video.path, event.stage, event.reason)
            yield event

    def _guard(self, work: Callable[[], None]) -> Callable[[], None]:
        """A thread that fails stops the run with its error; it must not die in silence."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self._broken = self._broken or error
                self._stop.set()

        return guarded

    def _spent(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds

    # ------------------------------------------------------------------------------------------ compute threads

    def _compute(self) -> None:
        torch.set_num_threads(self._threads_per_compute)
        stream = None
        device = self._runners[0].device
        if device.type == "cuda":
            # A stream of its own per thread: one copies its batch while the other computes.
            stream = torch.cuda.Stream(device)
        while not self._stop.is_set():
            since = time.perf_counter()
            try:
                work = self._to_compute.get(timeout=0.2)
            except queue.Empty:
                self._spent("model waiting", time.perf_counter() - since)
                continue
            self._spent("model waiting", time.perf_counter() - since)
            if work is None:
                return
            plan_index, filling = work
            since = time.perf_counter()
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                outputs = self._rows(plan_index, filling)
            self._spent("model", time.perf_counter() - since)
            self._spare[plan_index].put(filling.clips)
            self._put(self._to_writer, ("rows", plan_index, filling.items, outputs))

    def _rows(self, plan_index: int, filling: _FillingBatch) -> dict[str, np.ndarray]:
        runner, plan = self._runners[plan_index], self._plans[plan_index]
        boxes = present = None
        if plan.instances:
            boxes, present = _box_arrays(plan, filling.items, len(filling.clips))
        if runner.shares_frames:
            before = clips_before([(item.key, item.attempt, item.note.row) for item in filling.items])
            return run_in_parts(runner, Batch(filling.clips, before=before))
        real = np.array([item.note.real_entries for item in filling.items])
        real = np.pad(real, (0, len(filling.clips) - len(real)), mode="edge")
        return run_in_parts(runner, Batch(filling.clips, boxes, present, real))

    # ------------------------------------------------------------------------------------------ writer thread

    def _write(self) -> None:
        open_keys: dict[str, _Open] = {}
        try:
            while not self._stop.is_set():
                try:
                    message = self._to_writer.get(timeout=0.2)
                except queue.Empty:
                    continue
                if message is None:
                    return
                since = time.perf_counter()
                self._handle(message, open_keys)
                self._spent("write", time.perf_counter() - since)
        finally:
            for entry in open_keys.values():
                for row_writer in entry.writers.values():
                    row_writer.close()

    def _handle(self, message: tuple, open_keys: dict[str, _Open]) -> None:
        if message[0] == "rows":
            _, plan_index, items, outputs = message
            for key in dict.fromkeys(item.key for item in items):
                self._take_rows(key, plan_index, items, outputs, open_keys)
        elif message[0] == "outcome":
            outcome: Outcome = message[1]
            entry = self._entry(open_keys, outcome.key, outcome.attempt)
            if entry is not None:
                entry.outcome = outcome
                for stage, seconds in outcome.stage_seconds.items():
                    self._spent(stage, seconds)
                self._finish_if_complete(outcome.key, open_keys)
        else:  # "drop": the attempt is void; later ones have a higher number
            self._drop(message[1], message[2], open_keys)

    def _drop(self, key: str, attempt: int, open_keys: dict[str, _Open]) -> None:
        self._over[key] = attempt
        dropped = open_keys.pop(key, None)
        for row_writer in dropped.writers.values() if dropped else ():
            row_writer.close()

    def _entry(self, open_keys: dict[str, _Open], key: str, attempt: int) -> _Open | None:
        return None if attempt <= self._over.get(key, -1) else open_keys.setdefault(key, _Open(attempt))

    def _take_rows(
        self,
        key: str,
        plan_index: int,
        items: list[_BatchItem],
        outputs: dict[str, np.ndarray],
        open_keys: dict[str, _Open],
    ) -> None:
        positions = [at for at, item in enumerate(items) if item.key == key]
        entry = self._entry(open_keys, key, items[positions[0]].attempt)
        if entry is None:
            return
        plan = self._plans[plan_index]
        for name, rows in outputs.items():
            if name in ALONG or entry.failure:
                continue
            if not np.isfinite(rows[positions]).all():
                entry.failure = f"{plan.name}: the model gave NaN or infinite features"
                continue
            try:
                writer = entry.writers.get((plan_index, name))
                if writer is None:
                    writer = self._sink.writer(key, plan.name, name, rows.shape[1:])
                    entry.writers[plan_index, name] = writer
                for first, last in _runs(positions, items):
                    writer.write(items[first].note.row, rows[first : last + 1])
            except ValueError as error:  # a key or a number that the store cannot hold
                entry.failure, entry.failed_stage = f"{plan.name}: {error}", "write"
        notes = entry.notes.setdefault(plan_index, _RowNotes())
        notes.count += len(positions)
        for at in positions:
            note = items[at].note
            notes.put("start_seconds", note.row, note.start_seconds)
            notes.put("stop_seconds", note.row, note.stop_seconds)
            if plan.stream == "audio":
                notes.put("heard", note.row, note.heard)
            for name in ALONG & outputs.keys():
                notes.put(name, note.row, outputs[name][at])
        self._finish_if_complete(key, open_keys)

    def _finish_if_complete(self, key: str, open_keys: dict[str, _Open]) -> None:
        entry = open_keys[key]
        outcome = entry.outcome
        if outcome is None:
            return
        if not outcome.error:
            if any(rows and _count(entry, plan) < rows for plan, rows in outcome.rows.items()):
                return
            if not entry.failure:
                try:
                    self._events.put(self._commit(entry, outcome))
                    del open_keys[key]
                    return
                except ValueError as error:  # such as two rows for one frame number of an LMDB
                    entry.failure, entry.failed_stage = str(error), "write"
        self._drop(key, outcome.attempt, open_keys)
        stage, reason = (outcome.stage, outcome.error) if outcome.error else (entry.failed_stage, entry.failure)
        self._events.put(Failed(key, "", stage, reason))

    def _commit(self, entry: _Open, outcome: Outcome) -> Finished:
        predictions: dict[str, list[tuple[int, float]]] = {}
        for (plan_index, output), row_writer in entry.writers.items():
            if plan_index in outcome.void:
                row_writer.close()
                continue
            notes, count = entry.notes[plan_index], outcome.rows[plan_index]
            along = ("present",) if output == "roi" else ("heard", "top_classes", "top_scores")
            extra = {name: notes.take(name, count) for name in along if name in notes}
            row_writer.commit(
                notes.take("start_seconds", count),
                notes.take("stop_seconds", count),
                {"decoder": outcome.decoder, "damage": outcome.notes},
                extra,
            )
            if "top_classes" in extra:
                predictions[self._plans[plan_index].name] = _video_prediction(extra["top_classes"], extra["top_scores"])
        rows = {self._plans[plan].name: count for plan, count in outcome.rows.items() if plan not in outcome.void}
        notes = tuple(outcome.notes)
        return Finished(outcome.key, outcome.decoder, rows, outcome.video_seconds, outcome.frames, notes, predictions)


def _count(entry: _Open, plan: int) -> int:
    return entry.notes[plan].count if plan in entry.notes else 0


def task_of(video: VideoInput, decoder: str, frame_fps: float, plans: tuple[int, ...] = ()) -> Task:
    return Task(video.key, video.path, video.start_seconds, video.stop_seconds, decoder, 0, plans, frame_fps)


def video_key(video: VideoInput) -> str:
    """The key of the whole video that a segment is of: boxes are given for it."""
    return video.key if video.id is None else video.key.removesuffix(f"#{video.id}")


def _underway(clips: Clips, span: Span) -> Underway:
    latest = clips.rows[-1]
    seconds = max(0.0, latest.stop_seconds - span.start_seconds)
    return Underway(latest.key, seconds, min(1.0, seconds / max(1e-9, span.stop_seconds - span.start_seconds)))


def _most_open_videos(plans: int) -> int:
    """How many videos may be on their way: each holds open a claim and for each output a file of rows."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return 4096
    return max(1, min(4096, (files - 96) // (1 + 2 * plans)))


def _runs(positions: list[int], items: list[_BatchItem]) -> Iterator[tuple[int, int]]:
    """(first, last) positions of items that follow one another in the batch and in the video."""
    first = last = positions[0]
    for at in positions[1:]:
        if at != last + 1 or items[at].note.row != items[last].note.row + 1:
            yield first, last
            first = at
        last = at
    yield first, last


def _box_arrays(plan: ClipPlan, items: list[_BatchItem], size: int) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.zeros((size, plan.entries, plan.instances, 4), np.float32)
    present = np.zeros((size, plan.entries, plan.instances), bool)
    for at, item in enumerate(items):
        tracks = item.note.boxes
        if tracks is not None:
            boxes[at], present[at] = tracks.boxes, tracks.present
    return boxes, present


def _video_prediction(classes: np.ndarray, scores: np.ndarray) -> list[tuple[int, float]]:
    """Classes by mean score over the rows, one task after another; in a row that does not have a class among its top
    it counts as 0.
    """
    if classes.ndim == 3:
        tasks = zip(classes.swapaxes(0, 1), scores.swapaxes(0, 1), strict=True)
        return [pair for task in tasks for pair in _video_prediction(*task)]
    totals: dict[int, float] = {}
    for row_classes, row_scores in zip(classes.tolist(), scores.tolist(), strict=True):
        for name, score in zip(row_classes, row_scores, strict=True):
            totals[name] = totals.get(name, 0.0) + score / len(classes)
    return sorted(totals.items(), key=lambda pair: -pair[1])[: classes.shape[1]]
