"""What of a video a model may look at, and when: a task makes an observation of a segment, a rule places a clip in it.

Observations
    Recognition                    the segment
    EarlyRecognition(fraction)     its first part; nothing behind it is read
    Anticipation(tau_a, tau_o)     [start - tau_a - tau_o, start - tau_a); nothing at or after start - tau_a is read

Rules (`Sampling`), each in seconds on the video's clock
    segments    one entry of each equal part, random in training, the middle one in tests (TSN)
    strided     entries `stride_frames` apart; a random place in training, the middle in tests
    slowfast    strided in training; in tests `num_clips` clips as PySlowFast places them
    charades    strided in training; in tests `num_clips` clips as PySlowFast places them on Charades
    mmaction    strided in training; in tests `num_clips` clips as mmaction and Video Swin place them
    car         Something-Else (STIN, Interactive Fusion), training and validation
    tsm         TSM's uniform sampling; tsm_dense its window of 64 entries
    last        entries `stride_frames` apart, counted back from the end (AVT: 10 at 1 fps)
    ends        the end of each equal part (RULSTM's early recognition: 12.5 %, 25 %, ..., 100 %)
    rulstm      `alpha` seconds apart, the last one `alpha` before the action (RULSTM: 3.5, 3.25, ..., 0.25 s)

`last`, `ends` and `rulstm` name the end of what was seen: the entry for time t is the last one that has wholly passed
at t, as in the public loaders, whose frame numbers floor(t fps) count from 1. The others name a time inside an entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np

from . import sampling
from .annotations import Segment

WINDOW_RULES = ("segments", "strided", "slowfast", "charades", "mmaction", "car", "tsm", "tsm_dense")
CLIP_RULES = ("slowfast", "charades", "mmaction")  # of several clips in tests
END_RULES = ("last", "ends", "rulstm")
RULES = (*WINDOW_RULES, *END_RULES)
_ROUNDING_SECONDS = 1e-6  # times that are told apart by less are the same: a whole number of frames may be rounded
_FLOAT_ERROR_SECONDS = 1e-9  # more than a few sums and quotients of seconds are wrong by


class NotObserved(ValueError):
    """A video or a store has nothing of what a task wants to see of a segment; str(error) says what is there."""


@dataclass(frozen=True)
class Observation:
    """[start_seconds, stop_seconds) of a video.

    horizon_seconds: nothing at or after it may be read, whatever a rule would like to see around its entries (windows
        of sound, the next frame of a flow field): the stop where the task says so, infinite where it does not matter.
    action_seconds: when the annotated action starts.
    """

    start_seconds: float
    stop_seconds: float
    horizon_seconds: float
    action_seconds: float

    def inside(self, first_seconds: float, end_seconds: float) -> Observation:
        """What of it lies in a video that shows [first_seconds, end_seconds).

        Raises: NotObserved where nothing does.
        """
        start, stop = max(self.start_seconds, first_seconds), min(self.stop_seconds, end_seconds)
        if not stop - start > _ROUNDING_SECONDS:
            raise NotObserved(
                f"nothing to observe: [{self.start_seconds:.3f}, {self.stop_seconds:.3f}) s of a video that shows "
                f"[{first_seconds:.3f}, {end_seconds:.3f}) s"
            )
        return replace(self, start_seconds=start, stop_seconds=stop)


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The whole segment."""

    def observe(self, start_seconds: float, stop_seconds: float) -> Observation:
        return Observation(start_seconds, stop_seconds, math.inf, start_seconds)


@dataclass(frozen=True, kw_only=True)
class EarlyRecognition:
    """The first `fraction` of the segment, 0 < fraction <= 1."""

    fraction: float

    def __post_init__(self) -> None:
        sampling.early_recognition_window(0.0, 1.0, self.fraction)

    def observe(self, start_seconds: float, stop_seconds: float) -> Observation:
        start, stop = sampling.early_recognition_window(start_seconds, stop_seconds, self.fraction)
        return Observation(start, stop, stop, start_seconds)


@dataclass(frozen=True, kw_only=True)
class Anticipation:
    """What comes before the segment.

    tau_a: seconds between the end of what is seen and the action. tau_o: seconds seen.
    Source: EPIC-KITCHENS (Damen et al., ECCV 2018); AVT sees 10 s, RULSTM 3.5 s.
    """

    tau_a: float = 1.0
    tau_o: float = 10.0

    def __post_init__(self) -> None:
        sampling.anticipation_window(0.0, self.tau_a, self.tau_o)

    def observe(self, start_seconds: float, stop_seconds: float) -> Observation:
        start, stop = sampling.anticipation_window(start_seconds, self.tau_a, self.tau_o)
        return Observation(start, stop, stop, start_seconds)


Task = Recognition | EarlyRecognition | Anticipation


def rulstm_anticipation(num_steps: int = 14, alpha: float = 0.25) -> Anticipation:
    """The observation of RULSTM's rule: it ends `alpha` before the action and holds `num_steps` of `alpha` seconds."""
    return Anticipation(tau_a=alpha, tau_o=num_steps * alpha)


def sliding_windows(
    segments: Iterable[Segment], window_seconds: float, stride_seconds: float, duration_seconds: float | None = None
) -> list[Segment]:
    """Long segments (whole videos) as overlapping ones, for dense prediction: `id@0`, `id@1`, ... in order of time.

    Windows start every `stride_seconds` until one reaches the segment's end; the last one is cut there. A segment
    shorter than a window gives one. Labels stay, and `extra["segment"]` is the id of the long one.

    duration_seconds: where segments without an end stop.
    """
    if not (window_seconds > 0 and stride_seconds > 0):
        raise ValueError(f"windows of {window_seconds} s every {stride_seconds} s: both must be positive")
    found = []
    for segment in segments:
        stop = segment.stop_seconds
        if math.isinf(stop):
            if duration_seconds is None:
                raise ValueError(f"segment {segment.id!r} has no end; give duration_seconds, or segments that have one")
            stop = duration_seconds
        beyond = stop - segment.start_seconds - window_seconds
        count = 1 + max(0, math.ceil(beyond / stride_seconds - _ROUNDING_SECONDS))
        count = min(count, max(1, math.ceil((stop - segment.start_seconds) / stride_seconds - _ROUNDING_SECONDS)))
        for k in range(count):
            start = segment.start_seconds + k * stride_seconds
            found.append(
                replace(
                    segment,
                    start_seconds=start,
                    stop_seconds=min(start + window_seconds, stop),
                    id=f"{segment.id}@{k}",
                    extra={**segment.extra, "segment": segment.id},
                )
            )
    return found


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Where the entries of a clip lie in an observation: one of RULES, described above.

    stride_frames: entries from one to the next, for strided clips and `last`.
    num_clips: clips of a test, for `slowfast`, `charades` and `mmaction`.
    window_frames: entries of `tsm_dense`'s window. alpha: seconds between entries, for `rulstm`.
    """

    rule: str = "segments"
    stride_frames: int = 1
    num_clips: int = 1
    window_frames: int = 64
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            near = get_close_matches(self.rule, RULES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"no sampling rule is named {self.rule!r}; {hint}there are {', '.join(RULES)}")
        if min(self.stride_frames, self.num_clips, self.window_frames) < 1 or not self.alpha > 0:
            raise ValueError(f"stride_frames, num_clips, window_frames and alpha must be positive: {self}")
        if self.num_clips > 1 and self.rule not in CLIP_RULES:
            raise ValueError(
                f"num_clips is {self.num_clips}, but the rule {self.rule!r} makes one clip; {', '.join(CLIP_RULES)} "
                "make more"
            )

    @property
    def names_ends(self) -> bool:
        """Whether times are ends of what was seen (`last`, `ends`, `rulstm`) and not times inside an entry."""
        return self.rule in END_RULES

    def times(
        self,
        observation: Observation,
        frames: int,
        step_seconds: float,
        *,
        first_seconds: float | None = None,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Seconds of each entry, float64 (clips, frames); at or before the observation's stop (to 1e-9 s), before it
        where a rule names times inside an entry.

        observation: inside the video for rules of a window; END_RULES may reach back before the video.
        step_seconds: how long an entry lasts: 1 / fps.
        first_seconds: a time where some entry begins (the video's first frame, where every frame is one); None: the
            observation's start.
        rng: training; None: the rule's test.
        """
        if frames < 1 or not step_seconds > 0:
            raise ValueError(f"{frames} frames, {step_seconds} s apart: both must be positive")
        start, stop = observation.start_seconds, observation.stop_seconds
        if self.rule == "segments":
            if rng is None:
                return sampling.segment_centres_seconds(start, stop, frames)[None]
            return sampling.segment_jitter_seconds(start, stop, frames, rng)[None]
        if self.rule == "ends":
            # A part that ends with a frame must hold that frame, which floor(t fps) loses where t is rounded down.
            return (start + np.arange(1, frames + 1) * (stop - start) / frames + _FLOAT_ERROR_SECONDS)[None]
        if self.rule == "last":
            return (stop - np.arange(frames)[::-1] * self.stride_frames * step_seconds)[None]
        if self.rule == "rulstm":
            times = observation.action_seconds - sampling.rulstm_seconds_before_action(frames, self.alpha)
            if times[-1] > stop + _ROUNDING_SECONDS:
                raise ValueError(
                    f"RULSTM's last step is {self.alpha} s before the action, but the observation ends earlier, at "
                    f"{stop:.3f} s; take rulstm_anticipation(num_steps, alpha) as the task"
                )
            return times[None]
        grid = _grid(start, stop, step_seconds, first_seconds)
        return grid[self._entries(len(grid), frames, rng)]

    def _entries(self, count: int, frames: int, rng: np.random.Generator | None) -> np.ndarray:
        """Which of `count` entries: int64 (clips, frames)."""
        stride = self.stride_frames
        if rng is not None:
            match self.rule:
                case "car":
                    rows = sampling.car_train(count, frames, rng)
                case "tsm":
                    rows = sampling.tsm_uniform_train(count, frames, rng) - 1
                case "tsm_dense":
                    rows = sampling.tsm_dense(count, frames, rng, self.window_frames) - 1
                case _:
                    rows = sampling.random_clip(count, frames, stride, rng)
        else:
            match self.rule:
                case "car":
                    rows = sampling.car_val(count, frames)
                case "tsm":
                    rows = sampling.tsm_uniform_val(count, frames) - 1
                case "tsm_dense":
                    rows = sampling.tsm_dense_test(count, frames, 1, self.window_frames) - 1
                case "slowfast":
                    rows = sampling.pyslowfast_clips(count, frames, stride, self.num_clips)
                case "charades":
                    rows = sampling.charades_clips(count, frames, stride, self.num_clips)
                case "mmaction":
                    rows = sampling.mmaction_clips(count, frames, stride, self.num_clips)
                case _:
                    rows = sampling.centre_clip(count, frames, stride)
        return rows.reshape(-1, frames)


def _grid(start: float, stop: float, step: float, first: float | None) -> np.ndarray:
    """Where entries of [start, stop) begin, at least one: first + k step, or start + k step."""
    origin = start if first is None else first
    low = math.ceil((start - origin) / step - _ROUNDING_SECONDS)
    high = math.ceil((stop - origin) / step - _ROUNDING_SECONDS)
    if high <= low:  # shorter than an entry: the one that is there at the start
        return np.array([start])
    return origin + np.arange(low, high) * step
