"""Predictions on a stream that runs: bounded memory, measured latency, nothing waits for what is late.

Frames are read in a thread as they come. The last window is kept as a `RingReader`, and the sound as a `RingSound`, so
what a model gets of a moment is what it would get of the recorded video. A moment is told as soon as the first frame at
or after it has come, and the sound that its spectrograms take: of recognition up to half a spectrogram behind the
moment. Where the model is slower than the stream, moments that are over are skipped and frames that nobody could take
are dropped; both are counted.

A recurrent head carries its hidden state (`carry.py`): what it tells at t is what it says of all entries since the
stream began, and a moment that is skipped is missing from its state. Other heads look at the last window.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from actionfuse.heartbeat import beat

from ..pipeline.annotations import Segment
from ..pipeline.clip_spec import StreamSpec, decode_size, evaluation_geometries
from ..pipeline.running import Arrived, LiveSource, RingReader
from ..pipeline.running_sound import Silence
from ..pipeline.samples import SegmentDataset, collate
from ..pipeline.spectrogram import SpectrogramPreset
from ..pipeline.video import Size, VideoInfo
from .batches import to_device
from .build import stream_specs
from .carry import Carried, pace_of
from .predictions import Prediction, View, choose_view, dataset_of, moment_at, prediction_of, task_of_moments
from .runs import TrainedRun
from .stepwise import told_task
from .testing import predict

NAME = "live"
StateKind = Literal["auto", "carry", "window"]
_LATE_SECONDS = 2.0  # sound that is later than this behind the pictures is not waited for
_RESAMPLED_SECONDS = 0.05  # what a resampler wants to know behind a sample


@dataclass
class LiveReport:
    """What a stream gave. latency_seconds: of each told moment, from the arrival of the frame that completed it until
    it was told. broken: reasons of moments that could not be read. ring_bytes: the most that was kept of pictures and
    sound. carried: whether a hidden state went on from moment to moment.
    """

    predictions: list[Prediction] = field(default_factory=list)
    latency_seconds: list[float] = field(default_factory=list)
    frames: int = 0
    dropped_frames: int = 0
    skipped_moments: int = 0
    ring_frames: int = 0
    ring_bytes: int = 0
    carried: bool = False
    broken: list[dict] = field(default_factory=list)
    error: str | None = None

    def summary(self) -> str:
        words = [f"{self.frames} frames, {len(self.latency_seconds)} moments"]
        if self.latency_seconds:
            ms = np.array(self.latency_seconds) * 1000
            half, most = np.percentile(ms, [50, 95])
            words.append(f"latency {half:.0f} ms (median), {most:.0f} ms (95 %), {ms.max():.0f} ms (longest)")
        words.append(f"{self.dropped_frames} late frames dropped, {self.skipped_moments} late moments skipped")
        words.append(f"at most {self.ring_frames} frames kept, {self.ring_bytes / 2**20:.1f} MiB")
        return "; ".join(words)


def run_live(
    run: TrainedRun,
    source: LiveSource,
    *,
    window: float | None = None,
    stride: float | None = None,
    top: int = 5,
    seconds: float | None = None,
    keep: int | None = None,
    state: StateKind = "auto",
    tell: Callable[[Prediction, float], None] = lambda row, latency: None,
    show: Callable[[Arrived], None] = lambda frame: None,
    say: Callable[[str], None] = lambda line: None,
) -> LiveReport:
    """Predict every `stride` seconds of the stream until it ends, or for `seconds` of it.

    keep: how many predictions, latencies and broken moments the report holds, the last ones; None = all.
    state: "carry" the head's hidden state, look at the last "window" alone, or "auto": carry it where that is exact.
    tell: called with each prediction and its latency in seconds. show: called with each frame. say: called with how the
    stream is looked at, once it has begun.
    Raises: ValueError for runs that look at boxes or at files beside the video, and where state "carry" cannot be.
    """
    report = LiveReport()
    live: _Live | None = None
    first = 0.0
    for item in source:
        beat()
        if live is None:
            live, first = _Live(run, source, item, window, stride, state), item.pts_seconds
            report.carried = live.carried is not None
            say(live.how)
        if seconds is not None and item.pts_seconds >= first + seconds:
            break
        live.add(item)
        report.frames += 1
        report.ring_frames = max(report.ring_frames, len(live.ring))
        report.ring_bytes = max(report.ring_bytes, live.nbytes)
        show(item)
        while live.complete(item.pts_seconds):
            if source.keep_up and live.next_seconds + live.view.stride + live.behind <= source.newest_seconds:
                report.skipped_moments += 1  # the moment after it is over as well
                live.advance()
                continue
            _one(live, top, report, tell, keep)
    while live is not None and seconds is None and live.next_seconds <= live.ring.info.stop_seconds + 1e-6:
        _one(live, top, report, tell, keep)  # what the stream ends with, and what waited for sound
    report.dropped_frames, report.error = source.dropped, source.error
    return report


class _Live:
    """A run, its rings and the moment that comes next.

    behind: seconds of sound behind a moment that it takes. how: in words, for people.
    """

    def __init__(
        self,
        run: TrainedRun,
        source: LiveSource,
        item: Arrived,
        window: float | None,
        stride: float | None,
        state: StateKind,
    ) -> None:
        specs = [s for s in stream_specs(run.recipe, run.model.input_specs) if isinstance(s, StreamSpec)]
        if beside := [spec.stream for spec in specs if spec.stream not in ("rgb", "flow", "audio")]:
            raise ValueError(f"{run.path} looks at {', '.join(beside)}, which a live stream does not have")
        if run.model.head.needs_boxes:
            raise ValueError(f"{run.path} looks at boxes of hands and objects, which a live stream does not have")
        self.run, self.task, self.source = run, task_of_moments(run), source
        turned = round(item.frame.rotation / 90) % 2
        width, height = (item.frame.height, item.frame.width) if turned else (item.frame.width, item.frame.height)
        info = VideoInfo(
            path=source.source, container=NAME, codec="", pixel_format="", width=width, height=height,
            rotation_degrees=0, num_frames=0, start_seconds=item.pts_seconds, duration_seconds=0.0,
            average_fps=source.fps, variable_frame_rate=False, has_audio=source.sound is not None,
        )  # fmt: skip
        self.view, self.carried, self.how = _view(run, info, window, stride, state)
        self.whole = Segment(NAME, max(0.0, item.pts_seconds), float("inf"), NAME)
        frame = 1 / source.fps
        steps = [1 / spec.fps if spec.fps else frame for spec in specs]
        if self.carried is not None:
            reach = max((spec.flow_stack + 1) * step for spec, step in zip(specs, steps, strict=True))
            self.dataset: SegmentDataset = self.carried.dataset(self.whole, self.task)
        else:
            reach = self.view.window if self.view.window is not None else run.recipe.task.tau_o
            for spec, step in zip(specs, steps, strict=True):  # rules that count back may reach before the window
                reach = max(reach, spec.frames * run.recipe.sampling.stride_frames * step)
            self.dataset = dataset_of(run, [self.whole], self.task)
        reach += self.view.stride + 2 * frame
        heard = [SpectrogramPreset.named(s.audio_preset).window_seconds for s in specs if s.stream == "audio"]
        self.behind = 0.0
        if heard and source.sound is not None:
            self.behind = (max(heard) / 2 if self.view.window is not None else 0.0) + _RESAMPLED_SECONDS
            reach += self.behind + _LATE_SECONDS
            # the frames that wait are behind the sound
            source.sound.seconds = reach + 2 * max(heard) + 1 + source.queue_frames * frame
            self.dataset.lend(NAME, source.sound)
        elif heard:
            self.how += "; the source has no sound, so audio counts as missing"
            self.dataset.lend(NAME, Silence(NAME))
        self.ring = RingReader(NAME, source.fps, reach, [_size(s, height, width) for s in specs if s.stream != "audio"])
        self.dataset.lend(NAME, self.ring)
        self._arrivals: deque[tuple[float, float]] = deque()
        self.k = 0 if self.view.window is not None and self.carried is None else 1

    @property
    def nbytes(self) -> int:
        """Of pictures and sound that are held."""
        return self.ring.nbytes + (self.source.sound.nbytes if self.behind and self.source.sound is not None else 0)

    @property
    def next_seconds(self) -> float:
        """When the next moment is over."""
        window = self.view.window if self.carried is None else None
        return self.whole.start_seconds + self.k * self.view.stride + (window or 0.0)

    def add(self, item: Arrived) -> None:
        self.ring.add(item.frame, item.pts_seconds)
        self._arrivals.append((item.pts_seconds, item.arrived))
        while len(self._arrivals) > 1 and self._arrivals[0][0] < self.next_seconds - 1e-6:
            self._arrivals.popleft()

    def complete(self, newest_seconds: float) -> bool:
        """Whether all has come that the next moment looks at, or is too late."""
        over = self.next_seconds
        if over > newest_seconds + 1e-6:
            return False
        if not self.behind or self.source.heard_seconds >= over + self.behind:
            return True
        return newest_seconds > over + self.behind + _LATE_SECONDS

    def arrived(self) -> float:
        """When the frame came with which the next moment was over; now, where the stream ended with it."""
        over = self.next_seconds - 1e-6
        return next((arrived for pts, arrived in self._arrivals if pts >= over), time.monotonic())

    def advance(self) -> None:
        self.k += 1

    def moment(self) -> Segment:
        over, first = self.next_seconds, self.whole.start_seconds
        if self.view.window is None:
            return moment_at(self.whole, self.k, over, self.run.recipe.task.tau_a, self.view)
        start = over - self.view.window if self.carried is None else max(first, over - self.view.window)
        return Segment(NAME, start, over, f"{NAME}@{self.k}", {}, {"segment": NAME})


def _view(
    run: TrainedRun, info: VideoInfo, window: float | None, stride: float | None, state: StateKind
) -> tuple[View, Carried | None, str]:
    """How the stream is looked at, with the state where one is carried, and in words."""
    view = choose_view(run, info, window, stride)
    reason = "as asked"
    if state != "window":
        try:
            pace = pace_of(run, info, window, stride)
        except ValueError as error:
            # a wrong stride is the caller's error wherever a state could be carried
            if state == "carry" or run.model.head.recurrent:
                raise ValueError(f"no hidden state can be carried: {error}") from None
            reason = str(error)
        else:
            seen = None if view.window is None else pace.seconds
            words = f"the hidden state of {run.recipe.head.name} goes on, every {pace.stride:g} s"
            return replace(view, window=seen, stride=pace.stride), Carried(run, pace), words
    seconds = view.window if view.window is not None else run.recipe.task.tau_o
    return view, None, f"the last {seconds:g} s are looked at, every {view.stride:g} s: {reason}"


def _size(spec: StreamSpec, height: int, width: int) -> Size:
    """What the pipeline will ask frames for."""
    if spec.stream == "flow" and not spec.flow_on_device:
        return spec.size
    return decode_size(height, width, evaluation_geometries(height, width, spec, 1)[0], spec)


def _one(
    live: _Live,
    top: int,
    report: LiveReport,
    tell: Callable[[Prediction, float], None],
    keep: int | None,
) -> None:
    """Tell the next moment and go on to the one after it."""
    segment, run, arrived = live.moment(), live.run, live.arrived()
    live.advance()
    batch = collate([live.dataset.sample(segment)])
    report.broken += batch["broken"]
    if keep is not None:
        del report.broken[:-keep]
    if not batch["id"]:
        return
    moved = to_device(batch, run.device, "cross_entropy", run.model.head.classes)
    if live.carried is not None:
        logits = live.carried.step(moved)
    else:
        logits = predict(run.model, moved, precision=run.recipe.run.precision)
    scores = {task: x[0].to(torch.float32).cpu().numpy() for task, x in logits.items()}
    row = prediction_of(run, segment, NAME, told_task(run.recipe, run.model.head, live.task), scores, top)
    if live.carried is not None:
        row = replace(row, start_seconds=live.whole.start_seconds)
    latency = time.monotonic() - arrived
    report.predictions.append(row)
    report.latency_seconds.append(latency)
    if keep is not None:
        del report.predictions[:-keep], report.latency_seconds[:-keep]
    tell(row, latency)
