"""Tasks to clips of every plan and to outcomes. Runs in decode processes: numpy and decoders, no torch."""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..pipeline import VideoError, VideoReader, open_video
from ..pipeline.audio import SpectrogramStream, sound_seconds
from ..pipeline.remote import is_url
from ..pipeline.types import BoxTracks
from .clips import ClipRow, Entry, Windows
from .one_pass import Track, decode_frames
from .plan import ClipPlan, Span, Task
from .stopwatch import Stopwatch


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


class Apart(Exception):
    """Tasks that were decoded together must be decoded one by one."""


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
    visual = _visual(task, plans)
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
                tracks = {i: Track(0, plans[i], span, partial(emit, i), boxes, watch) for i in visual}
                span = _decode_alone(reader, tracks, outcome, span, watch, beat)
        outcome.video_seconds = span.stop_seconds - span.start_seconds
        stage = "audio"
        _decode_sounds(task, plans, span, emit, outcome, beat, watch)
    except Exception as error:
        # The path stands beside the reason wherever it is told.
        outcome.error = f"{error}".removeprefix(f"{task.path}: ") or type(error).__name__
        outcome.stage = stage
        if not isinstance(error, (VideoError, OSError, ValueError, MemoryError)):
            # No error that readers tell of a file: say where it came from.
            place = traceback.extract_tb(error.__traceback__)[-1]
            outcome.error += f" ({type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno})"
    return outcome


def decode_together(
    tasks: Sequence[Task],
    plans: tuple[ClipPlan, ...],
    emit: Callable[[str, int, ClipRow], None],
    boxes: BoxTracks | None = None,
    beat: Callable[[], None] = lambda: None,
    open_reader: Callable[[Task], AbstractContextManager[VideoReader]] = open_task,
    tell_span: Callable[[str, Span], None] = lambda key, span: None,
) -> list[Outcome]:
    """Decode segments of one video in one pass, each frame once, and emit(key, plan index, clip row).

    Clips and outcomes are those of `decode_task` for each. Raises: Apart where something is wrong with any of them, so
    that each can tell what it met by itself; what was emitted until then is void.
    """
    if len(tasks) == 1:
        (task,) = tasks
        emit_row, tell = partial(emit, task.key), partial(tell_span, task.key)
        return [decode_task(task, plans, emit_row, boxes, beat, open_reader, tell)]
    watch = Stopwatch()
    try:
        with ExitStack() as stack:
            with watch("decode"):
                reader = stack.enter_context(open_reader(tasks[0]))
                spans = [Span.of(reader, task.start_seconds, task.stop_seconds) for task in tasks]
            known_damage = len(reader.damage)
            for task, span in zip(tasks, spans, strict=True):
                tell_span(task.key, span)
            tracks = {
                (number, i): Track(number, plans[i], spans[number], partial(emit, task.key, i), boxes, watch)
                for number, task in enumerate(tasks)
                for i in _visual(task, plans)
            }
            frames: Counter[int] = Counter()
            if tracks:
                decode_frames(reader, list(tracks.values()), frames, watch, beat)
            outcomes = []
            for number, (task, span) in enumerate(zip(tasks, spans, strict=True)):
                outcome = Outcome(task.key, task.attempt, reader.decoder, frames=frames[number])
                outcome.rows = {i: tracks[number, i].finish() for i in _visual(task, plans)}
                outcome.notes.extend(reader.damage if outcome.rows else ())
                outcome.video_seconds = span.stop_seconds - span.start_seconds
                outcomes.append(outcome)
            if len(reader.damage) != known_damage or not all(rows for each in outcomes for rows in each.rows.values()):
                raise Apart
        for task, span, outcome in zip(tasks, spans, outcomes, strict=True):
            sound = partial(emit, task.key)
            _decode_sounds(task, plans, span, sound, outcome, beat, watch)
    except Exception as error:
        raise Apart from error
    outcomes[0].stage_seconds = watch.seconds
    return outcomes


def _visual(task: Task, plans: tuple[ClipPlan, ...]) -> list[int]:
    return [index for index in task.plans if plans[index].stream != "audio"]


def _decode_alone(
    reader: VideoReader,
    tracks: dict[int, Track],
    outcome: Outcome,
    span: Span,
    watch: Stopwatch,
    beat: Callable[[], None],
) -> Span:
    """The frames of one task; returns the span up to where the video really ended. Damage costs what lies behind it."""
    frames: Counter[int] = Counter()
    broken = False
    ended = span.start_seconds
    try:
        decode_frames(reader, list(tracks.values()), frames, watch, beat)
    except VideoError as error:
        if not frames:
            raise
        broken = True
        ended = max(track.ended_seconds for track in tracks.values())
        outcome.notes.append(f"reading stopped at {ended:.3f} s of {span.stop_seconds:.3f} s: {error}")
    outcome.frames = frames.total()
    for index, track in tracks.items():
        outcome.rows[index] = track.finish()
    if not all(outcome.rows.values()):
        raise VideoError("; ".join(["no frame could be read", *reader.damage]))
    outcome.notes.extend(reader.damage)
    if not broken:
        return span
    return Span(span.start_seconds, ended, min(span.grid_seconds, ended - span.start_seconds))


def _decode_sounds(
    task: Task,
    plans: tuple[ClipPlan, ...],
    span: Span,
    emit: Callable[[int, ClipRow], None],
    outcome: Outcome,
    beat: Callable[[], None],
    watch: Stopwatch,
) -> None:
    visual = _visual(task, plans)
    for index in task.plans:
        if index in visual:
            continue
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
