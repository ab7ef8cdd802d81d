"""One decode pass for all plans and segments that look at the frames of one video."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np

from ..pipeline import Frames, VideoReader
from ..pipeline.boxes import boxes_at, crop_boxes, limit_instances
from ..pipeline.depth import scale_by_nearest, scale_depth
from ..pipeline.transforms import centre_crop, centre_crop_geometry
from ..pipeline.types import BoxTracks
from ..pipeline.video import scaled_size
from .clips import ClipRow, Entry, FlowEntries, Windows
from .plan import ClipPlan, Span
from .stopwatch import Stopwatch

DepthAt = Callable[[float], np.ndarray]  # seconds when a frame came on screen -> uint16 (H, W, 1)


class Track:
    """One plan over one segment: from the frames that it takes to its clips.

    task: number of the segment among those of the pass.
    """

    def __init__(
        self,
        task: int,
        plan: ClipPlan,
        span: Span,
        emit: Callable[[ClipRow], None],
        boxes: BoxTracks | None,
        watch: Stopwatch,
    ) -> None:
        self.task, self.plan, self.span = task, plan, span
        self.ended_seconds = span.start_seconds  # how far its frames reach
        self._emit = emit
        self._windows = Windows(plan)
        computes_flow = plan.stream == "flow" and not plan.flow_on_device
        self._flow = FlowEntries(plan, watch) if computes_flow else None
        self._flow_numbers = count()
        self._boxes = limit_instances(boxes, plan.instances) if boxes is not None and plan.instances else None
        self._region: tuple[float, float, float, float] | None = None

    def wants(self, entry: int) -> bool:
        """Flow runs from frame to frame: it takes every entry of its grid. Others leave out what is in no clip."""
        return self._flow is not None or self._windows.wants(entry)

    def take(self, taker: Taker, frame: np.ndarray, shown: float, depth_at: DepthAt | None, copy: bool) -> None:
        """frame (H, W, 3): what came on screen at `shown`. depth_at: its depth of 16 bits. copy: it is others' too."""
        plan = self.plan
        self.ended_seconds = max(self.ended_seconds, taker.stop_seconds)
        if plan.stream == "depth":
            # Depth of 16 bits is no picture: it is read beside them, the frame that is shown.
            frame = depth_at(shown) if depth_at is not None else frame[..., :1]
            width, height = scaled_size(frame.shape[1], frame.shape[0], plan.resize_side)
            frame = scale_by_nearest(frame, height, width)
        if self._region is None:
            self._region = centre_crop_geometry(frame.shape[0], frame.shape[1], plan.crop).region
        if self._flow is not None:
            for entry in self._flow.push(Entry(frame, taker.start_seconds, taker.stop_seconds, shown)):
                self._send(self._windows.push(entry, next(self._flow_numbers)))
            return
        picture = centre_crop(frame, plan.crop)[..., : plan.clip_shape[-1]]
        if plan.stream == "depth":
            picture = scale_depth(picture, plan.depth_range).astype(np.float32)
        # Held as a view, one frame a second would keep all that another track was given in between.
        entry = Entry(picture.copy() if copy else picture, taker.start_seconds, taker.stop_seconds, shown)
        self._send(self._windows.push(entry, taker.entry))

    def finish(self) -> int:
        """The clips at the end; returns how many there were in all."""
        if self._flow is not None:
            for entry in self._flow.finish():
                self._send(self._windows.push(entry, next(self._flow_numbers)))
        self._send(self._windows.finish())
        return self._windows.rows

    def _send(self, rows: Iterator[ClipRow]) -> None:
        for row in rows:
            if self._boxes is not None and self._region is not None:
                shown = [entry.on_screen_seconds for entry in row.entries]
                row = replace(row, boxes=crop_boxes(boxes_at(self._boxes, shown), self._region))
            self._emit(row)


def decode_frames(
    reader: VideoReader, tracks: list[Track], frames: Counter[int], watch: Stopwatch, beat: Callable[[], None]
) -> None:
    """One decode pass that gives every track its frames; counts in `frames` those of each task."""
    sizes = list(dict.fromkeys(track.plan.size for track in tracks))
    depth_at: DepthAt | None = None
    if reader.depth_bits == 16:
        depth_at = lru_cache(maxsize=1)(lambda shown: reader.depth_at([shown], "clamp").data[0])
    for takers, pictures, shown in _shown_frames(reader, tracks, sizes, watch, beat):
        frames.update({tracks[taker.track].task for taker in takers})
        for taker in takers:
            beat()  # TV-L1 takes many seconds a field
            track = tracks[taker.track]
            track.take(taker, pictures[sizes.index(track.plan.size)], shown, depth_at, copy=len(tracks) > 1)


class Taker(NamedTuple):
    """A track that takes a frame, as which entry of its grid, and the interval that the entry stands for."""

    track: int
    entry: int
    start_seconds: float
    stop_seconds: float


Shown = tuple[list[Taker], list[np.ndarray], float]


def _shown_frames(
    reader: VideoReader, tracks: list[Track], sizes: list, watch: Stopwatch, beat: Callable[[], None]
) -> Iterator[Shown]:
    """(who takes it, the frame at each size, when it came on screen), in order of time."""

    def timed(batches: Iterator[tuple[Frames, ...]]) -> Iterator[tuple[Frames, ...]]:
        while True:
            with watch("decode"):
                batch = next(batches, None)
            beat()
            if batch is None:
                return
            yield batch

    def grid(number: int, track: Track, fps: float) -> Iterator[tuple[float, Taker]]:
        first, stop = track.span.start_seconds, track.span.stop_seconds
        for k in range(track.plan.num_entries(track.span.grid_seconds, 0)):
            if track.wants(k):
                moment = first + k / fps
                yield moment, Taker(number, k, moment, min(first + (k + 1) / fps, stop))

    native = [number for number, track in enumerate(tracks) if track.plan.fps is None]
    on_grids = [(number, track, track.plan.fps) for number, track in enumerate(tracks) if track.plan.fps is not None]
    wanted = heapq.merge(*[grid(number, track, fps) for number, track, fps in on_grids])
    if native:
        first = min(track.span.start_seconds for track in tracks)
        batches = timed(iter(reader.all_frames(sizes, first)))
        yield from _every_frame(batches, tracks, native, wanted, reader.slack_seconds)
    else:
        # Only the frames on the grids are converted; tracks that want the same time share the frame.
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
    tracks: list[Track],
    native: list[int],
    wanted: Iterator[tuple[float, Taker]],
    slack_seconds: float,
) -> Iterator[Shown]:
    """Where some tracks want every frame, the grids of the others choose among them the one that is on screen."""
    first = min(track.span.start_seconds for track in tracks)
    last = max(track.span.stop_seconds for track in tracks)
    upcoming = next(wanted, None)
    numbers = [count() for _ in tracks]

    def on_grids(pictures: list[np.ndarray], pts: float, before: float) -> Iterator[Shown]:
        nonlocal upcoming
        while upcoming is not None and upcoming[0] < before:
            yield [upcoming[1]], pictures, pts
            upcoming = next(wanted, None)

    def give(pictures: list[np.ndarray], pts: float, end_seconds: float) -> Iterator[Shown]:
        takers = []
        for number in native:
            start, stop = tracks[number].span.start_seconds, tracks[number].span.stop_seconds
            # The next frame counts as on screen a little before its time stamp, as it does for `VideoReader.select`.
            if pts < stop and (start == first or end_seconds > start + slack_seconds):
                k = next(numbers[number])
                if tracks[number].wants(k):
                    takers.append(Taker(number, k, pts, min(end_seconds, stop)))
        if takers:
            yield takers, pictures, pts
        yield from on_grids(pictures, pts, end_seconds - slack_seconds)

    held: tuple[list[np.ndarray], float] | None = None
    for sized in batches:
        for position, pts in enumerate(sized[0].pts_seconds.tolist()):
            if held is not None:
                yield from give(*held, pts)
            held = [frames.data[position] for frames in sized], pts
            if pts >= last:
                yield from on_grids(*held, np.inf)
                return
    if held is not None:
        yield from give(*held, np.inf)
