"""Recurrent heads on a stream: every entry is encoded once, a hidden state stands for all that has passed.

A clip of a run has T entries of each stream over `seconds`. On a stream the clip slides on by whole entries, only the
new ones are read and encoded, and the head's state takes them in; so what is told at t is what the model says of all
entries since the stream began, in memory and time that do not grow. Backbones that mix the entries of a clip (3-D
networks) get whole clips, one behind the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..fusion import State
from ..pipeline.annotations import Segment
from ..pipeline.clip_reader import frame_seconds
from ..pipeline.clip_spec import StreamSpec
from ..pipeline.protocols import Observation, Sampling, Task
from ..pipeline.samples import SegmentDataset
from ..pipeline.video import VideoInfo
from .batches import Batch
from .build import stream_specs
from .predictions import clip_seconds, dataset_of
from .runs import TrainedRun
from .testing import autocast

_PARTS = ("segments", "ends")  # rules that divide what is observed, however long it is
_STEPS = ("last", "rulstm", "strided")  # rules whose entries are a set time apart


@dataclass(frozen=True, kw_only=True)
class Newest(Sampling):
    """The newest entries of a clip of `seconds` that ends where the observation does.

    share: how much of the clip they are; `times` is asked for so many frames as are new.
    """

    seconds: float
    share: float = 1.0

    def times(
        self,
        observation: Observation,
        frames: int,
        step_seconds: float,
        *,
        first_seconds: float | None = None,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        clip = replace(observation, start_seconds=observation.stop_seconds - self.seconds)
        whole = round(frames / self.share)
        return super().times(clip, whole, step_seconds, first_seconds=first_seconds, rng=rng)[:, -frames:]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a state goes on. seconds: of a clip. share: of a clip, what is new at each moment."""

    seconds: float
    share: float

    @property
    def stride(self) -> float:
        """Seconds between moments."""
        return self.seconds * self.share


class Carried:
    """The state of one stream that runs."""

    def __init__(self, run: TrainedRun, pace: Pace) -> None:
        self.run, self.pace = run, pace
        self.state: State | None = None

    def dataset(self, whole: Segment, task: Task) -> SegmentDataset:
        """Samples that hold the new entries of each moment."""
        made = dataset_of(self.run, [whole], task)
        specs = [
            replace(spec, frames=round(spec.frames * self.pace.share)) if isinstance(spec, StreamSpec) else spec
            for spec in made.streams
        ]
        places = made.sampling
        newest = Newest(
            rule=places.rule, stride_frames=places.stride_frames, window_frames=places.window_frames,
            alpha=places.alpha, seconds=self.pace.seconds, share=self.pace.share,
        )  # fmt: skip
        return SegmentDataset(
            made.dataset, specs, task=task, sampling=newest, decoder=self.run.recipe.data.decoder, seed=made.seed
        )

    @torch.inference_mode()
    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """task -> logits (1, C) after the entries of this batch of one."""
        with autocast(self.run.device, self.run.recipe.run.precision):
            output, self.state = self.run.model.step(batch.inputs, self.state, batch.masks)
        return {task: scores.float() for task, scores in output.logits.items()}


def pace_of(run: TrainedRun, info: VideoInfo, window: float | None, stride: float | None) -> Pace:
    """How this run's state goes on in a stream. window, stride: seconds; None = what a clip spans, an entry.

    Raises: ValueError where no state can be carried, with the reason, and for a stride of no whole number of entries.
    """
    recipe, head = run.recipe, run.model.head
    if not head.recurrent:
        raise ValueError(f"{recipe.head.name} looks at whole sequences, so no state can stand for what has passed")
    specs = [spec for spec in stream_specs(recipe, run.model.input_specs) if isinstance(spec, StreamSpec)]
    places, ahead = recipe.sampling, recipe.task.kind == "anticipation"
    if places.num_clips > 1:
        raise ValueError(f"sampling.num_clips is {places.num_clips}; a state follows one clip")
    seen = recipe.task.tau_o if ahead else window or clip_seconds(run, info)
    spans = set()
    for spec in specs:
        step = places.stride_frames / spec.fps if spec.fps else places.stride_frames * frame_seconds(info)
        step = places.alpha if places.rule == "rulstm" else step
        spans.add(round(seen if places.rule not in _STEPS else spec.frames * step, 6))
    if len(spans) > 1:
        raise ValueError(f"clips of the streams span {', '.join(f'{s:g}' for s in sorted(spans))} s: no common pace")
    seconds = spans.pop()
    if window is not None and not ahead and places.rule in _STEPS and abs(window - seconds) > 1e-3:
        raise ValueError(f"a clip of the rule {places.rule!r} spans {seconds:g} s; --window {window:g} leaves gaps")
    single = all(backbone.frame_by_frame for _, backbone in run.model._backbones())
    parts = math.gcd(*(spec.frames for spec in specs)) if single and places.rule in (*_PARTS, *_STEPS) else 1
    count = 1 if stride is None else stride / seconds * parts
    if not (1 <= round(count) <= parts and abs(count - round(count)) < 1e-3):
        raise ValueError(
            f"--stride is {stride}; a state goes on by whole entries: take a multiple of {seconds / parts:g} s, "
            f"up to {seconds:g} s, or --state window"
        )
    return Pace(seconds=seconds, share=round(count) / parts)
