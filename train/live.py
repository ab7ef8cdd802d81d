"""Predictions on a stream that runs: bounded memory, measured latency, nothing waits for what is late.

Frames are read in a thread as they come. The last window is kept as a `RingReader`, so what a model gets of a moment is
what it would get of the recorded video. A moment is told as soon as the first frame at or after it has come. Where the
model is slower than the stream, moments that are over are skipped and frames that nobody could take are dropped; both
are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from ..pipeline.annotations import Segment
from ..pipeline.clip_spec import StreamSpec, decode_size, evaluation_geometries
from ..pipeline.running import Arrived, LiveSource, RingReader
from ..pipeline.samples import SegmentDataset, collate
from ..pipeline.video import Size, VideoInfo
from .batches import to_device
from .build import stream_specs
from .predictions import Prediction, View, choose_view, dataset_of, moment_at, prediction_of, task_of_moments
from .runs import TrainedRun
from .testing import predict

NAME = "live"


@dataclass
class LiveReport:
    """What a stream gave. latency_seconds: of each told moment, from the arrival of the frame that completed it until
    it was told. broken: reasons of moments that could not be read. ring_bytes: the most that was kept of pictures.
    """

    predictions: list[Prediction] = field(default_factory=list)
    latency_seconds: list[float] = field(default_factory=list)
    frames: int = 0
    dropped_frames: int = 0
    skipped_moments: int = 0
    ring_frames: int = 0
    ring_bytes: int = 0
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
    tell: Callable[[Prediction, float], None] = lambda row, latency: None,
    show: Callable[[Arrived], None] = lambda frame: None,
) -> LiveReport:
    """Predict every `stride` seconds of the stream until it ends, or for `seconds` of it.

    keep: how many predictions and latencies the report holds, the last ones; None = all.
    tell: called with each prediction and its latency in seconds. show: called with each frame.
    Raises: ValueError for runs that look at sound or boxes.
    """
    report = LiveReport()
    live: _Live | None = None
    first = 0.0
    for item in source:
        if live is None:
            live, first = _Live(run, source, item, window, stride), item.pts_seconds
        if seconds is not None and item.pts_seconds >= first + seconds:
            break
        live.ring.add(item.frame, item.pts_seconds)
        report.frames += 1
        report.ring_frames = max(report.ring_frames, len(live.ring))
        report.ring_bytes = max(report.ring_bytes, live.ring.nbytes)
        show(item)
        while live.next_seconds <= item.pts_seconds + 1e-6:
            if source.keep_up and live.next_seconds + live.view.stride <= source.newest_seconds:
                report.skipped_moments += 1  # the moment after it is over as well
                live.advance()
                continue
            _one(live, item.arrived, top, report, tell, keep)
    if live is not None and seconds is None and live.next_seconds <= live.ring.info.stop_seconds + 1e-6:
        _one(live, time.monotonic(), top, report, tell, keep)  # the stream ends with the window
    report.dropped_frames, report.error = source.dropped, source.error
    return report


class _Live:
    """A run, its ring and the moment that comes next."""

    def __init__(
        self, run: TrainedRun, source: LiveSource, item: Arrived, window: float | None, stride: float | None
    ) -> None:
        specs = [s for s in stream_specs(run.recipe, run.model.input_specs) if isinstance(s, StreamSpec)]
        if deaf := [spec.stream for spec in specs if spec.stream not in ("rgb", "flow")]:
            raise ValueError(f"{run.path} looks at {', '.join(deaf)}; live is for pictures, rgb and flow, alone")
        if run.model.head.needs_boxes:
            raise ValueError(f"{run.path} looks at boxes of hands and objects, which a live stream does not have")
        self.run, self.task = run, task_of_moments(run)
        turned = round(item.frame.rotation / 90) % 2
        width, height = (item.frame.height, item.frame.width) if turned else (item.frame.width, item.frame.height)
        info = VideoInfo(
            path=source.source, container=NAME, codec="", pixel_format="", width=width, height=height,
            rotation_degrees=0, num_frames=0, start_seconds=item.pts_seconds, duration_seconds=0.0,
            average_fps=source.fps, variable_frame_rate=False, has_audio=False,
        )  # fmt: skip
        self.view: View = choose_view(run, info, window, stride)
        reach = self.view.window if self.view.window is not None else run.recipe.task.tau_o
        for spec in specs:  # rules that count back from the end may reach before the window
            step = 1 / spec.fps if spec.fps else 1 / source.fps
            reach = max(reach, spec.frames * run.recipe.sampling.stride_frames * step)
        sizes = [_size(spec, height, width) for spec in specs]
        self.ring = RingReader(NAME, source.fps, reach + self.view.stride + 2 / source.fps, sizes)
        self.whole = Segment(NAME, max(0.0, item.pts_seconds), float("inf"), NAME)
        self.dataset: SegmentDataset = dataset_of(run, [self.whole], self.task)
        self.dataset.lend(NAME, self.ring)
        self.k = 0 if self.view.window is not None else 1

    @property
    def next_seconds(self) -> float:
        """When the next moment is over."""
        return self.whole.start_seconds + self.k * self.view.stride + (self.view.window or 0.0)

    def advance(self) -> None:
        self.k += 1

    def moment(self) -> Segment:
        if self.view.window is None:
            return moment_at(self.whole, self.k, self.next_seconds, self.run.recipe.task.tau_a, self.view)
        start = self.whole.start_seconds + self.k * self.view.stride
        return Segment(NAME, start, start + self.view.window, f"{NAME}@{self.k}", {}, {"segment": NAME})


def _size(spec: StreamSpec, height: int, width: int) -> Size:
    """What the pipeline will ask frames for."""
    if spec.stream == "flow" and not spec.flow_on_device:
        return spec.size
    return decode_size(height, width, evaluation_geometries(height, width, spec, 1)[0], spec)


def _one(
    live: _Live,
    arrived: float,
    top: int,
    report: LiveReport,
    tell: Callable[[Prediction, float], None],
    keep: int | None,
) -> None:
    """Tell the next moment and go on to the one after it."""
    segment, run = live.moment(), live.run
    live.advance()
    batch = collate([live.dataset.sample(segment)])
    report.broken += batch["broken"]
    if not batch["id"]:
        return
    moved = to_device(batch, run.device, "cross_entropy", run.model.head.classes)
    logits = predict(run.model, moved, precision=run.recipe.run.precision)
    scores = {task: x[0].to(torch.float32).cpu().numpy() for task, x in logits.items()}
    row = prediction_of(run, segment, NAME, live.task, scores, top)
    latency = time.monotonic() - arrived
    report.predictions.append(row)
    report.latency_seconds.append(latency)
    if keep is not None:
        del report.predictions[:-keep], report.latency_seconds[:-keep]
    tell(row, latency)
