"""One video, decoded once, to the clips of every plan. Runs in decode processes: numpy and decoders, no torch."""

from __future__ import annotations

import heapq
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

import cv2
import numpy as np

from ..pipeline import Frames, VideoError, VideoReader, open_video
from ..pipeline.audio import SpectrogramStream, sound_seconds
from ..pipeline.boxes import boxes_at, crop_boxes, limit_instances
from ..pipeline.depth import scale_depth
from ..pipeline.remote import is_url
from ..pipeline.transforms import centre_crop, centre_crop_geometry
from ..pipeline.types import BoxTracks
from ..pipeline.video import Size, scaled_size
from .clips import ClipRow, Entry, FlowEntries, Windows
from .plan import ClipPlan, Span, Task


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
    """How a task ended. rows: clips sent per plan. notes: damage that was met on the way; the rest was read.

    void: plans of which nothing is to be kept, though clips were sent: their stream broke while others were read.
    """

    key: str
    attempt: int
    decoder: str = ""
    rows: dict[int, int] = field(default_factory=dict)
    void: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    stage: str = ""
    frames: int = 0
    video_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)


def open_task(task: Task) -> VideoReader:
    return open_video(task.path, decoder=task.decoder, threads=task.threads, frame_fps=task.frame_fps)


def sound_span(task: Task) -> Span | None:
    """The span of a file that has sound and no pictures; None for all others."""
    if not is_url(task.path) and not os.path.isfile(task.path):
        return None
    seconds = sound_seconds(task.path)
    return None if seconds is None else Span.within(0.0, seconds, task.start_seconds, task.stop_seconds)


class ReaderShelf:
    """Opens readers and keeps the last one for the next segment of the same video: surveying a long file costs more
    than decoding a few seconds of it.
    """

    def __init__(self) -> None:
        self._reader: VideoReader | None = None
        self._key: tuple | None = None

    @contextmanager
    def __call__(self, task: Task) -> Iterator[VideoReader]:
        key = (task.path, task.decoder, task.frame_fps)
        kept, self._reader = self._reader, None
        if kept is not None and self._key != key:
            kept.close()
            kept = None
        reader = kept or open_task(task)
        known_damage = len(reader.damage)
        try:
            yield reader
        except BaseException:
            reader.close()
            raise
        # Damage is told to the segment that met it: a reader that met some starts anew.
        if task.start_seconds is task.stop_seconds is None or len(reader.damage) != known_damage:
            reader.close()
        else:
            self._reader, self._key = reader, key

    def __enter__(self) -> ReaderShelf:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def decode_task(
    task: Task,
    plans: tuple[ClipPlan, ...],
    emit: Callable[[int, ClipRow], None],
    boxes: BoxTracks | None = None,
    beat: Callable[[], None] = lambda: None,
    open_reader: Callable[[Task], AbstractContextManager[VideoReader]] = open_task,
    tell_span: Callable[[Span], None] = lambda span: None,
) -> Outcome:
    """Decode one task and emit(plan index, clip row) in order for each of its plans. Never raises for a broken video.

    beat: called while it gets on, for the watchdog. tell_span: called once it is known how long the video is.
    """
    outcome = Outcome(task.key, task.attempt)
    watch = Stopwatch()
    outcome.stage_seconds = watch.seconds
    visual = [index for index in task.plans if plans[index].stream != "audio"]
    audio = [index for index in task.plans if plans[index].stream == "audio"]
    stage = "open"
    try:
        with ExitStack() as stack:
            with watch("decode"):
                reader = None
                span = None if visual else sound_span(task)
                if span is None:
                    reader = stack.enter_context(open_reader(task))
                    span = Span.of(reader, task.start_seconds, task.stop_seconds)
            outcome.decoder = "pyav" if reader is None else reader.decoder
            tell_span(span)
            if reader is not None and visual:
                stage = "decode"
                span = _decode_frames(reader, plans, visual, span, emit, boxes, beat, outcome, watch)
        outcome.video_seconds = span.stop_seconds - span.start_seconds
        stage = "audio"
        for index in audio:
            windows = Windows(plans[index])
            try:
                _decode_sound(task.path, windows, index, span, emit, beat, watch)
            except VideoError as error:
                if not visual:
                    raise
                # The pictures are good: they are kept, and the file is told as damaged.
                outcome.void.add(index)
                outcome.notes.append(f"no {plans[index].name}: {error}".replace(f"{task.path}: ", ""))
            outcome.rows[index] = windows.rows
    except Exception as error:
        # The path stands beside the reason wherever it is told.
        outcome.error = f"{error}".removeprefix(f"{task.path}: ") or type(error).__name__
        outcome.stage = stage
        if not isinstance(error, (VideoError, OSError, ValueError, MemoryError)):
            # No error that readers tell of a file: say where it came from.
            place = traceback.extract_tb(error.__traceback__)[-1]
            outcome.error += f" ({type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno})"
    return outcome


def _decode_frames(
    reader: VideoReader,
    plans: tuple[ClipPlan, ...],
    indices: list[int],
    span: Span,
    emit: Callable[[int, ClipRow], None],
    boxes: BoxTracks | None,
    beat: Callable[[], None],
    outcome: Outcome,
    watch: Stopwatch,
) -> Span:
    """One decode pass for all plans that look at frames; returns the span up to where the video really ended."""
    sizes = list(dict.fromkeys(plans[index].size for index in indices))
    windows = {index: Windows(plans[index]) for index in indices}
    flows = {
        index: FlowEntries(plans[index], watch)
        for index in indices
        if plans[index].stream == "flow" and not plans[index].flow_on_device
    }
    flow_entries = {index: count() for index in flows}
    tracks = {} if boxes is None else {i: limit_instances(boxes, plans[i].instances) for i in indices}
    regions: dict[int, tuple[float, float, float, float]] = {}
    alone = len(indices) == 1

    def send(index: int, rows: Iterator[ClipRow]) -> None:
        for row in rows:
            if index in tracks and plans[index].instances:
                shown = [entry.on_screen_seconds for entry in row.entries]
                row = replace(row, boxes=crop_boxes(boxes_at(tracks[index], shown), regions[index]))
            emit(index, row)

    def take(taker: Taker, frame: np.ndarray, shown: float) -> None:
        index = taker.plan
        plan, window = plans[index], windows[index]
        if plan.stream == "depth":
            # Depth of 16 bits is no picture: it is read beside them, the frame that is shown.
            frame = reader.depth_at([shown], "clamp").data[0] if reader.depth_bits == 16 else frame[..., :1]
            frame = _by_nearest(frame, plan.resize_side)
        if index not in regions:
            regions[index] = centre_crop_geometry(frame.shape[0], frame.shape[1], plan.crop).region
        if index in flows:
            for entry in flows[index].push(Entry(frame, taker.start_seconds, taker.stop_seconds, shown)):
                send(index, window.push(entry, next(flow_entries[index])))
        else:
            picture = centre_crop(frame, plan.crop)[..., : plan.clip_shape[-1]]
            if plan.stream == "depth":
                picture = scale_depth(picture, plan.depth_range).astype(np.float32)
            # Held as a view, one frame a second would keep all that another plan was given in between.
            entry = Entry(picture if alone else picture.copy(), taker.start_seconds, taker.stop_seconds, shown)
            send(index, window.push(entry, taker.entry))

    # Flow runs from frame to frame: its plans take every entry of their grid. The others leave out what is in no clip.
    needed: dict[int, Callable[[int], bool]] = {i: windows[i].wants for i in indices} | {i: _all for i in flows}
    ended, broken = span.start_seconds, False
    try:
        for takers, pictures, shown in _shown_frames(reader, plans, needed, sizes, span, watch, beat):
            outcome.frames += 1
            for taker in takers:
                take(taker, pictures[sizes.index(plans[taker.plan].size)], shown)
                ended = max(ended, taker.stop_seconds)
    except VideoError as error:
        if not outcome.frames:
            raise
        broken = True
        outcome.notes.append(f"reading stopped at {ended:.3f} s of {span.stop_seconds:.3f} s: {error}")
    for index in indices:
        if index in flows:
            for entry in flows[index].finish():
                send(index, windows[index].push(entry, next(flow_entries[index])))
        send(index, windows[index].finish())
        outcome.rows[index] = windows[index].rows
    if not all(outcome.rows.values()):
        raise VideoError("; ".join(["no frame could be read", *reader.damage]))
    outcome.notes.extend(reader.damage)
    if not broken:
        return span
    return Span(span.start_seconds, ended, min(span.grid_seconds, ended - span.start_seconds))


def _by_nearest(frame: np.ndarray, short_side: int) -> np.ndarray:
    """The frame (H, W, 1) scaled so that its shorter side is `short_side`; every pixel is one that was there: no depth
    is made up between an object and what is behind it.
    """
    width, height = scaled_size(frame.shape[1], frame.shape[0], short_side)
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_NEAREST_EXACT).reshape(height, width, 1)


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
    sizes: list[Size],
    span: Span,
    watch: Stopwatch,
    beat: Callable[[], None],
) -> Iterator[Shown]:
    """(who takes it, the frame at each size, when it came on screen), in order of time.

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

    first, stop = span.start_seconds, span.stop_seconds

    def grid(index: int, fps: float) -> Iterator[tuple[float, Taker]]:
        for k in range(plans[index].num_entries(span.grid_seconds, 0)):
            if needed[index](k):
                moment = first + k / fps
                yield moment, Taker(index, k, moment, min(first + (k + 1) / fps, stop))

    native = [index for index in needed if plans[index].fps is None]
    wanted = heapq.merge(*[grid(index, plans[index].fps or 1.0) for index in needed if plans[index].fps is not None])
    if native:
        batches = timed(iter(reader.all_frames(sizes, first)))
        yield from _every_frame(batches, native, needed, wanted, stop, reader.slack_seconds)
    else:
        # Only the frames on the grids are converted; plans that want the same time share the frame.
        pending: deque[tuple[float, list[Taker]]] = deque()
        for sized in timed(iter(reader.select(_moments(wanted, pending, beat), sizes))):
            for position, shown in enumerate(sized[0].pts_seconds):
                yield pending.popleft()[1], [frames.data[position] for frames in sized], float(shown)


def _moments(
    wanted: Iterator[tuple[float, Taker]], pending: deque[tuple[float, list[Taker]]], beat: Callable[[], None]
) -> Iterator[float]:
    """Each time once; who wants it is put at the end of `pending` before the time is given."""
    for moment, taker in wanted:
        beat()  # one frame a second of a large video: a batch may take minutes
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
    slack_seconds: float,
) -> Iterator[Shown]:
    """Where some plans want every frame, the grids of the others choose among them the one that is on screen."""
    upcoming = next(wanted, None)
    frame_number = count()

    def on_grids(pictures: list[np.ndarray], pts: float, before: float) -> Iterator[Shown]:
        nonlocal upcoming
        while upcoming is not None and upcoming[0] < before:
            yield [upcoming[1]], pictures, pts
            upcoming = next(wanted, None)

    def give(pictures: list[np.ndarray], pts: float, end_seconds: float) -> Iterator[Shown]:
        k = next(frame_number)
        takers = [Taker(index, k, pts, min(end_seconds, stop)) for index in native if needed[index](k)]
        if takers:
            yield takers, pictures, pts
        # The next frame counts as on screen a little before its time stamp, as it does for `VideoReader.select`.
        yield from on_grids(pictures, pts, end_seconds - slack_seconds)

    held: tuple[list[np.ndarray], float] | None = None
    for sized in batches:
        for position, pts in enumerate(sized[0].pts_seconds.tolist()):
            if held is not None:
                yield from give(*held, pts)
            held = [frames.data[position] for frames in sized], pts
            if pts >= stop:
                yield from on_grids(*held, np.inf)
                return
    if held is not None:
        yield from give(*held, stop)
        yield from on_grids(*held, np.inf)


def _decode_sound(
    path: str,
    windows: Windows,
    index: int,
    span: Span,
    emit: Callable[[int, ClipRow], None],
    beat: Callable[[], None],
    watch: Stopwatch,
) -> None:
    """Spectrograms centred on the grid's entries, put into windows."""
    plan = windows.plan
    assert plan.fps is not None
    entries = [k for k in range(plan.num_entries(span.grid_seconds, 0)) if windows.wants(k)]
    centres = span.start_seconds + (np.array(entries) + 0.5) / plan.fps
    spectrograms = iter(SpectrogramStream(path, plan.audio_preset, centres.tolist()))
    for k in entries:
        with watch("decode"):
            cells, heard_start, heard_stop, heard = next(spectrograms)
        beat()
        entry = Entry(cells[..., None], heard_start, heard_stop, heard=heard)
        for row in windows.push(entry, k):
            emit(index, row)
    for row in windows.finish():
        emit(index, row)
