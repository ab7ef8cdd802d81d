"""One video, decoded once, to the clips of every plan. Runs in decode processes: numpy and decoders, no torch."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from ..pipeline import VideoError, VideoReader, open_video
from ..pipeline.boxes import boxes_at, crop_boxes, limit_instances
from ..pipeline.transforms import centre_crop, centre_crop_geometry
from ..pipeline.types import BoxTracks
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


@dataclass(frozen=True)
class Entry:
    """One entry of a clip: its pixels (H, W, C) and the half-open interval of the video that it looks at."""

    data: np.ndarray
    start_seconds: float
    stop_seconds: float
    on_screen_seconds: float = 0.0
    heard: bool = True


@dataclass(frozen=True)
class ClipRow:
    """One row of an output before the model: the clip's entries and the interval they look at."""

    row: int
    entries: list[Entry]
    start_seconds: float
    stop_seconds: float
    boxes: BoxTracks | None = None

    @property
    def heard(self) -> bool:
        """False where the clip's sound is silence that was made up: no audio stream there."""
        return any(entry.heard for entry in self.entries)


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


class Windows:
    """Cuts a row of entries into clips of T entries, S apart; holds no more than T entries."""

    def __init__(self, plan: ClipPlan) -> None:
        self._plan = plan
        self._held: deque[Entry] = deque()
        self._first = 0  # index of _held[0]
        self._row = 0
        self._seen = 0

    def push(self, entry: Entry) -> Iterator[ClipRow]:
        plan = self._plan
        if self._seen >= self._row * plan.stride:  # with stride > frames, entries between clips are not held
            if not self._held:
                self._first = self._seen
            self._held.append(entry)
        self._seen += 1
        if self._held and len(self._held) == plan.entries:
            yield self._clip(list(self._held))

    def finish(self) -> Iterator[ClipRow]:
        """The padded clips at the end."""
        wanted = self._plan.num_clips(self._seen) if self._seen else 0
        while self._row < wanted and self._held:
            entries = list(self._held)
            entries += [entries[-1]] * (self._plan.entries - len(entries))
            yield self._clip(entries)

    def _clip(self, entries: list[Entry]) -> ClipRow:
        row = ClipRow(self._row, entries, entries[0].start_seconds, max(entry.stop_seconds for entry in entries))
        self._row += 1
        while self._held and self._first < self._row * self._plan.stride:
            self._held.popleft()
            self._first += 1
        return row

    @property
    def rows(self) -> int:
        return self._row


class FlowEntries:
    """Turns frames into stacks of L flow fields: entry k has the fields k to k+1, ..., k+L-1 to k+L.

    The entries at the end repeat the last field; a single frame has no motion: zero. So there are as many entries as
    frames, and rows of rgb and flow fall on the same grid.
    """

    def __init__(self, plan: ClipPlan, watch: Stopwatch) -> None:
        from ..pipeline.flow import FlowComputer, quantise

        self._stream = FlowComputer(plan.flow_method).stream()
        self._quantise = quantise
        self._crop = plan.crop
        self._stack = plan.flow_stack
        self._watch = watch
        self._frames: deque[Entry] = deque()  # frames whose stack is not complete
        self._fields: deque[np.ndarray] = deque()
        self._last = quantise(np.zeros((plan.crop, plan.crop, 2), np.float32))

    def push(self, frame: Entry) -> Iterator[Entry]:
        with self._watch("flow"):
            for flow in self._stream.push(frame.data[None]):
                self._last = self._quantise(centre_crop(flow, self._crop))
                self._fields.append(self._last)
        self._frames.append(frame)
        if len(self._fields) == self._stack:
            yield self._entry(frame.stop_seconds)

    def finish(self) -> Iterator[Entry]:
        stop_seconds = self._frames[-1].stop_seconds if self._frames else 0.0
        while self._frames:
            self._fields.extend([self._last] * (self._stack - len(self._fields)))
            yield self._entry(stop_seconds)

    def _entry(self, stop_seconds: float) -> Entry:
        frame = self._frames.popleft()
        data = np.concatenate(self._fields, axis=-1) if self._stack > 1 else self._fields[0]
        self._fields.popleft()
        return Entry(data, frame.start_seconds, stop_seconds, frame.on_screen_seconds)


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

    tracks = {} if boxes is None else {i: limit_instances(boxes, plans[i].instances) for i in indices}
    regions: dict[int, tuple[float, float, float, float]] = {}

    def send(index: int, rows: Iterator[ClipRow]) -> None:
        for row in rows:
            if index in tracks and plans[index].instances:
                shown = [entry.on_screen_seconds for entry in row.entries]
                row = replace(row, boxes=crop_boxes(boxes_at(tracks[index], shown), regions[index]))
            emit(index, row)

    def take(index: int, frame: np.ndarray, start: float, end: float, shown: float) -> None:
        plan = plans[index]
        if index not in regions:
            regions[index] = centre_crop_geometry(frame.shape[0], frame.shape[1], plan.crop).region
        if index in flows:
            for entry in flows[index].push(Entry(frame, start, end, shown)):
                send(index, windows[index].push(entry))
        else:
            send(index, windows[index].push(Entry(centre_crop(frame, plan.crop), start, end, shown)))

    ended = first
    frames = _shown_frames(reader, plans, indices, sides, first, stop, watch, beat)
    try:
        for wanted, pictures, start, end, shown in frames:
            outcome.frames += 1
            for index in wanted:
                take(index, pictures[sides.index(plans[index].resize_side)], start[index], end[index], shown)
            ended = max(ended, *end.values())
    except VideoError as error:
        if not outcome.frames:
            raise
        outcome.notes.append(f"reading stopped at {ended:.3f} s of {stop:.3f} s: {error}")
    for index in indices:
        if index in flows:
            for entry in flows[index].finish():
                send(index, windows[index].push(entry))
        send(index, windows[index].finish())
        outcome.rows[index] = windows[index].rows
    if not all(outcome.rows.values()):
        raise VideoError("no frame could be read")
    outcome.notes.extend(getattr(reader, "damage", []))
    return ended


Shown = tuple[list[int], list[np.ndarray], dict[int, float], dict[int, float], float]


def _shown_frames(
    reader: VideoReader,
    plans: tuple[ClipPlan, ...],
    indices: list[int],
    sides: list[int],
    first: float,
    stop: float,
    watch: Stopwatch,
    beat: Callable[[], None],
) -> Iterator[Shown]:
    """(plans that take it, the frame at each side, entry start and stop per plan, time on screen), in order of time."""

    def timed(batches: Iterator[tuple]) -> Iterator[tuple]:
        while True:
            with watch("decode"):
                batch = next(batches, None)
            beat()
            if batch is None:
                return
            yield batch

    native = [index for index in indices if plans[index].fps is None]
    gridded = [index for index in indices if plans[index].fps is not None]

    def grid(index: int) -> Iterator[tuple[float, int, int]]:
        fps = plans[index].fps or 1.0
        for k in count():
            moment = first + k / fps
            if moment >= stop - 1e-6 / fps and k:
                return
            yield moment, index, k

    def ends(index: int, k: int) -> float:
        return min(first + (k + 1) / (plans[index].fps or 1.0), stop)

    wanted = heapq.merge(*[grid(index) for index in gridded])
    if not native:
        # Only the frames on the grids are converted; plans that want the same time share the frame.
        pending: deque[tuple[float, list[tuple[int, int]]]] = deque()

        def moments() -> Iterator[float]:
            for moment, index, k in wanted:
                if pending and pending[-1][0] == moment:
                    pending[-1][1].append((index, k))
                    continue
                pending.append((moment, [(index, k)]))
                # `heapq.merge` gives equal times in a row, but a consumer may read the queue between them: hold one
                # back.
                if len(pending) > 1:
                    yield pending[-2][0]
            if pending:
                yield pending[-1][0]

        for sized in timed(iter(reader.select(moments(), sides))):
            for position, shown in enumerate(sized[0].pts_seconds):
                moment, takers = pending.popleft()
                start = {index: moment for index, _ in takers}
                end = {index: ends(index, k) for index, k in takers}
                yield (
                    [index for index, _ in takers],
                    [frames.data[position] for frames in sized],
                    start,
                    end,
                    float(shown),
                )
        return

    # Every frame is wanted by some plan; the grids of the others choose among them the frame that is on screen.
    upcoming = next(wanted, None)
    held: tuple[float, list[np.ndarray]] | None = None

    def give(pictures: list[np.ndarray], pts: float, end_seconds: float) -> Iterator[Shown]:
        nonlocal upcoming
        yield native, pictures, dict.fromkeys(native, pts), dict.fromkeys(native, end_seconds), pts
        while upcoming is not None and upcoming[0] < end_seconds:
            moment, index, k = upcoming
            yield [index], pictures, {index: moment}, {index: ends(index, k)}, pts
            upcoming = next(wanted, None)

    for sized in timed(iter(reader.all_frames(sides, first))):
        for position, pts in enumerate(sized[0].pts_seconds):
            pictures = [frames.data[position] for frames in sized]
            if held is not None:
                if held[0] >= stop:
                    return
                yield from give(held[1], held[0], min(float(pts), stop))
            held = (float(pts), pictures)
    if held is not None and held[0] < stop:
        yield from give(held[1], held[0], stop)


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
    from ..pipeline.audio import SpectrogramStream

    assert plan.fps is not None
    windows = Windows(plan)
    step = 1 / plan.fps
    centres = [first + (k + 0.5) * step for k in range(plan.num_entries(stop - first, 0))]
    with watch("decode"):
        spectrograms = iter(SpectrogramStream(path, plan.audio_preset, centres))
    for _ in centres:
        with watch("decode"):
            cells, heard_start, heard_stop, heard = next(spectrograms)
        beat()
        entry = Entry(cells[..., None], heard_start, heard_stop, heard=heard)
        for row in windows.push(entry):
            emit(index, row)
    for row in windows.finish():
        emit(index, row)
    return windows.rows
