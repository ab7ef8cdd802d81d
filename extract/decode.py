"""One video, decoded once, to the clips of every plan. Runs in decode processes: numpy and decoders, no torch."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

import numpy as np

from ..pipeline import Frames, VideoError, VideoReader, open_video
from ..pipeline.audio import SpectrogramStream
from ..pipeline.boxes import boxes_at, crop_boxes, limit_instances
from ..pipeline.transforms import centre_crop, centre_crop_geometry
from ..pipeline.types import BoxTracks
from .clips import ClipRow, Entry, FlowEntries, Windows
from .plan import ClipPlan, Task


class Stopwatch:
    """Seconds spent per stage. Stages do not nest: entering one pauses the one around it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._switch(stage)
        try:
            yield
        finally:
            self._switch(None)

    def _switch(self, stage: str | None) -> None:
        now = time.perf_counter()
        if self._stack:
            outer = self._stack[-1]
            self.seconds[outer] = self.seconds.get(outer, 0.0) + now - self._since
        self._since = now
        if stage is None:
            self._stack.pop()
        else:
            self._stack.append(stage)


@dataclass
class Outcome:
    """How a task ended. rows: clips sent per plan. notes: damage that was met on the way; the rest was read."""

    key: str
    attempt: int
    decoder: str = ""
    rows: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    stage: str = ""
    frames: int = 0
    video_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)


def decode_task(
    task: Task,
    plans: tuple[ClipPlan, ...],
    emit: Callable[[int, ClipRow], None],
    boxes: BoxTracks | None = None,
    beat: Callable[[], None] = lambda: None,
) -> Outcome:
    """Decode one task and emit(plan index, clip row) in order for each of its plans. Never raises for a broken video.

    beat: called with every batch of frames, for the watchdog.
    """
    outcome = Outcome(task.key, task.attempt)
    watch = Stopwatch()
    outcome.stage_seconds = watch.seconds
    visual = [index for index in task.plans if plans[index].stream != "audio"]
    audio = [index for index in task.plans if plans[index].stream == "audio"]
    stage = "open"
    try:
        with watch("decode"):
            reader = open_video(task.path, decoder=task.decoder)
        with reader:
            outcome.decoder = reader.decoder
            first = max(task.start_seconds or 0.0, reader.info.start_seconds)
            stop = min(np.inf if task.stop_seconds is None else task.stop_seconds, reader.info.stop_seconds)
            if stop <= first:
                raise VideoError(
                    f"the segment [{task.start_seconds}, {task.stop_seconds}) s lies outside the video, "
                    f"[{reader.info.start_seconds:.3f}, {reader.info.stop_seconds:.3f}) s"
                )
            if visual:
                stage = "decode"
                stop = _decode_frames(reader, plans, visual, first, stop, emit, boxes, beat, outcome, watch)
            outcome.video_seconds = stop - first
        if audio:
            stage = "audio"
            for index in audio:
                outcome.rows[index] = _decode_sound(task.path, plans[index], index, first, stop, emit, beat, watch)
    except (VideoError, OSError, ValueError, MemoryError) as error:
        # The path stands beside the reason wherever it is told.
        outcome.error = f"{error}".removeprefix(f"{task.path}: ") or type(error).__name__
        outcome.stage = stage
    return outcome


def _decode_frames(
    reader: VideoReader,
    plans: tuple[ClipPlan, ...],
    indices: list[int],
    first: float,
    stop: float,
    emit: Callable[[int, ClipRow], None],
    boxes: BoxTracks | None,
    beat: Callable[[], None],
    outcome: Outcome,
    watch: Stopwatch,
) -> float:
    """One decode pass for all plans that look at frames; returns where the video really ended."""
    sides = sorted({plans[index].resize_side for index in indices})
    windows = {index: Windows(plans[index]) for index in indices}
    flows = {
        index: FlowEntries(plans[index], watch)
        for index in indices
        if plans[index].stream == "flow" and not plans[index].flow_on_device
    }
    flow_entries = {index: count() for index in flows}
    tracks = {} if boxes is None else {i: limit_instances(boxes, plans[i].instances) for i in indices}
    regions: dict[int, tuple[float, float, float, float]] = {}

    def send(index: int, rows: Iterator[ClipRow]) -> None:
        for row in rows:
            if index in tracks and plans[index].instances:
                shown = [entry.on_screen_seconds for entry in row.entries]
                row = replace(row, boxes=crop_boxes(boxes_at(tracks[index], shown), regions[index]))
            emit(index, row)

    def take(taker: Taker, frame: np.ndarray, shown: float) -> None:
        index = taker.plan
        plan, window = plans[index], windows[index]
        if index not in regions:
            regions[index] = centre_crop_geometry(frame.shape[0], frame.shape[1], plan.crop).region
        if index in flows:
            for entry in flows[index].push(Entry(frame, taker.start_seconds, taker.stop_seconds, shown)):
                send(index, window.push(entry, next(flow_entries[index])))
        else:
            entry = Entry(centre_crop(frame, plan.crop), taker.start_seconds, taker.stop_seconds, shown)
            send(index, window.push(entry, taker.entry))

    # Flow runs from frame to frame: its plans take every entry of their grid. The others leave out what is in no clip.
    needed: dict[int, Callable[[int], bool]] = {i: windows[i].wants for i in indices} | {i: _all for i in flows}
    ended, broken = first, False
    try:
        for takers, pictures, shown in _shown_frames(reader, plans, needed, sides, first, stop, watch, beat):
            outcome.frames += 1
            for taker in takers:
                take(taker, pictures[sides.index(plans[taker.plan].resize_side)], shown)
                ended = max(ended, taker.stop_seconds)
    except VideoError as error:
        if not outcome.frames:
            raise
        broken = True
        outcome.notes.append(f"reading stopped at {ended:.3f} s of {stop:.3f} s: {error}")
    for index in indices:
        if index in flows:
            for entry in flows[index].finish():
                send(index, windows[index].push(entry, next(flow_entries[index])))
        send(index, windows[index].finish())
        outcome.rows[index] = windows[index].rows
    if not all(outcome.rows.values()):
        raise VideoError("no frame could be read")
    outcome.notes.extend(getattr(reader, "damage", []))
    return ended if broken else stop


def _all(_entry: int) -> bool:
    return True


class Taker(NamedTuple):
    """A plan that takes a frame, as which entry of its grid, and the interval that the entry stands for."""

    plan: int
    entry: int
    start_seconds: float
    stop_seconds: float


Shown = tuple[list[Taker], list[np.ndarray], float]


def _shown_frames(
    reader: VideoReader,
    plans: tuple[ClipPlan, ...],
    needed: dict[int, Callable[[int], bool]],
    sides: list[int],
    first: float,
    stop: float,
    watch: Stopwatch,
    beat: Callable[[], None],
) -> Iterator[Shown]:
    """(who takes it, the frame at each side, when it came on screen), in order of time.

    needed: per plan, which entries of its grid it takes.
    """

    def timed(batches: Iterator[tuple[Frames, ...]]) -> Iterator[tuple[Frames, ...]]:
        while True:
            with watch("decode"):
                batch = next(batches, None)
            beat()
            if batch is None:
                return
            yield batch

    def grid(index: int, fps: float) -> Iterator[tuple[float, Taker]]:
        for k in count():
            moment = first + k / fps
            if moment >= stop - 1e-6 / fps and k:
                return
            if needed[index](k):
                yield moment, Taker(index, k, moment, min(first + (k + 1) / fps, stop))

    native = [index for index in needed if plans[index].fps is None]
    wanted = heapq.merge(*[grid(index, plans[index].fps or 1.0) for index in needed if plans[index].fps is not None])
    if native:
        yield from _every_frame(timed(iter(reader.all_frames(sides, first))), native, needed, wanted, stop)
    else:
        # Only the frames on the grids are converted; plans that want the same time share the frame.
        pending: deque[tuple[float, list[Taker]]] = deque()
        for sized in timed(iter(reader.select(_moments(wanted, pending), sides))):
            for position, shown in enumerate(sized[0].pts_seconds):
                yield pending.popleft()[1], [frames.data[position] for frames in sized], float(shown)


def _moments(wanted: Iterator[tuple[float, Taker]], pending: deque[tuple[float, list[Taker]]]) -> Iterator[float]:
    """Each time once; who wants it is put at the end of `pending` before the time is given."""
    for moment, taker in wanted:
        if pending and pending[-1][0] == moment:
            pending[-1][1].append(taker)
            continue
        pending.append((moment, [taker]))
        # Others may want the same time: it is given only when a later one is known.
        if len(pending) > 1:
            yield pending[-2][0]
    if pending:
        yield pending[-1][0]


def _every_frame(
    batches: Iterator[tuple[Frames, ...]],
    native: list[int],
    needed: dict[int, Callable[[int], bool]],
    wanted: Iterator[tuple[float, Taker]],
    stop: float,
) -> Iterator[Shown]:
    """Where some plans want every frame, the grids of the others choose among them the one that is on screen."""
    upcoming = next(wanted, None)
    frame_number = count()

    def give(pictures: list[np.ndarray], pts: float, end_seconds: float) -> Iterator[Shown]:
        nonlocal upcoming
        k = next(frame_number)
        takers = [Taker(index, k, pts, end_seconds) for index in native if needed[index](k)]
        if takers:
            yield takers, pictures, pts
        while upcoming is not None and upcoming[0] < end_seconds:
            yield [upcoming[1]], pictures, pts
            upcoming = next(wanted, None)

    held: tuple[list[np.ndarray], float] | None = None
    for sized in batches:
        for position, pts in enumerate(sized[0].pts_seconds.tolist()):
            if held is not None:
                yield from give(*held, min(pts, stop))
            if pts >= stop:
                return
            held = [frames.data[position] for frames in sized], pts
    if held is not None:
        yield from give(*held, stop)


def _decode_sound(
    path: str,
    plan: ClipPlan,
    index: int,
    first: float,
    stop: float,
    emit: Callable[[int, ClipRow], None],
    beat: Callable[[], None],
    watch: Stopwatch,
) -> int:
    """Spectrograms centred on the grid's entries; returns the number of clips."""
    assert plan.fps is not None
    windows = Windows(plan)
    step = 1 / plan.fps
    centres = [first + (k + 0.5) * step for k in range(plan.num_entries(stop - first, 0))]
    with watch("decode"):
        spectrograms = iter(SpectrogramStream(path, plan.audio_preset, centres))
    for k in range(len(centres)):
        with watch("decode"):
            cells, heard_start, heard_stop, heard = next(spectrograms)
        beat()
        entry = Entry(cells[..., None], heard_start, heard_stop, heard=heard)
        for row in windows.push(entry, k):
            emit(index, row)
    for row in windows.finish():
        emit(index, row)
    return windows.rows
