"""Which entries of a video make a clip: pure arithmetic, from numbers to numbers, no decoder in sight.

Entries are whatever a clip is made of (frames, flow fields, spectrograms), counted from 0 and returned as int64 arrays,
except in the `tsm_*` and `rulstm_*`, `avt_*` functions, which keep the 1-based frame numbers of the published code.
Seconds are float64. Every random choice is made by the generator that is handed in; `draw` makes one that depends on
nothing but (seed, epoch, index), so that the order of work, the number of workers or a restart cannot change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

LastClip = Literal["pad", "drop"]
ShortVideo = Literal["repeat_last", "wrap", "error"]


def draw(seed: int, epoch: int, index: int, part: int = 0) -> np.random.Generator:
    """The generator for sample `index` of `epoch`: a pure function of its arguments.

    part: independent streams of one sample (for example 0 time, 1 geometry, 2 colour), so that one more number drawn
        for one does not change the others.
    """
    if min(seed, epoch, index, part) < 0:
        raise ValueError(f"draw got seed={seed}, epoch={epoch}, index={index}, part={part}; all must be 0 or more")
    # spawn_key keeps (seed, epoch, index, part) apart whatever their size; a plain list of integers would not.
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(epoch, index, part))
    return np.random.Generator(np.random.PCG64(sequence))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")


def _truncate(values: np.ndarray) -> np.ndarray:
    return np.trunc(values).astype(np.int64)


# Short videos: what an index past the last entry becomes.


def repeat_last(indices: np.ndarray, num_entries: int) -> np.ndarray:
    """Indices past the end show the last entry again."""
    _check_positive(num_entries=num_entries)
    return np.minimum(indices, num_entries - 1)


def wrap(indices: np.ndarray, num_entries: int) -> np.ndarray:
    """Indices past the end start over from the first entry (`loop` in mmaction2)."""
    _check_positive(num_entries=num_entries)
    return indices % num_entries


def error(indices: np.ndarray, num_entries: int) -> np.ndarray:
    """Indices past the end are a ValueError."""
    if len(indices) and int(np.max(indices)) >= num_entries:
        raise ValueError(
            f"the clip needs entry {int(np.max(indices))} but there are only {num_entries}; take fewer frames or a "
            f'smaller stride, or choose short_video="repeat_last" or "wrap"'
        )
    return indices


SHORT_VIDEO: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "repeat_last": repeat_last,
    "wrap": wrap,
    "error": error,
}


def _short(policy: str) -> Callable[[np.ndarray, int], np.ndarray]:
    if policy not in SHORT_VIDEO:
        raise ValueError(f"short_video is {policy!r}; it must be one of {', '.join(SHORT_VIDEO)}")
    return SHORT_VIDEO[policy]


# TSN: one entry from each of `num_segments` equal parts.


def segment_centres(num_entries: int, num_segments: int) -> np.ndarray:
    """The entry in the middle of each equal part, (num_segments,): int((i + 0.5) n / S).

    Source: Temporal Segment Networks (Wang et al., ECCV 2016), test sampling. Short videos repeat entries in order.
    """
    _check_positive(num_entries=num_entries, num_segments=num_segments)
    return _truncate((np.arange(num_segments) + 0.5) * num_entries / num_segments)


def segment_jitter(num_entries: int, num_segments: int, rng: np.random.Generator) -> np.ndarray:
    """One random entry of each equal part, (num_segments,), ascending: floor((i + U[0, 1)) n / S).

    Source: Temporal Segment Networks (Wang et al., ECCV 2016), training.
    """
    _check_positive(num_entries=num_entries, num_segments=num_segments)
    positions = (np.arange(num_segments) + rng.random(num_segments)) * num_entries / num_segments
    return np.minimum(np.floor(positions).astype(np.int64), num_entries - 1)


def _check_interval(start_seconds: float, stop_seconds: float) -> None:
    if not (math.isfinite(start_seconds) and math.isfinite(stop_seconds) and start_seconds < stop_seconds):
        raise ValueError(f"[{start_seconds}, {stop_seconds}) seconds is empty or endless; start must lie before stop")


def segment_centres_seconds(start_seconds: float, stop_seconds: float, num_segments: int) -> np.ndarray:
    """The middle of each of `num_segments` equal parts of [start, stop), float64 (num_segments,).

    TSN test sampling in seconds: right for any frame rate, also a variable one.
    """
    _check_interval(start_seconds, stop_seconds)
    _check_positive(num_segments=num_segments)
    return start_seconds + (np.arange(num_segments) + 0.5) * ((stop_seconds - start_seconds) / num_segments)


def segment_jitter_seconds(
    start_seconds: float, stop_seconds: float, num_segments: int, rng: np.random.Generator
) -> np.ndarray:
    """A random time in each of `num_segments` equal parts of [start, stop), float64 (num_segments,), ascending."""
    _check_interval(start_seconds, stop_seconds)
    _check_positive(num_segments=num_segments)
    shares = np.arange(num_segments) + rng.random(num_segments)
    times = start_seconds + shares * ((stop_seconds - start_seconds) / num_segments)
    return np.minimum(times, np.nextafter(stop_seconds, -np.inf))  # rounding must not reach the open end


def car_train(num_frames: int, num_segments: int, rng: np.random.Generator) -> np.ndarray:
    """Interactive Fusion / STIN training: floor(i n / S + U[0, n / S)), n = num_frames - 1, 0-based (num_segments,).

    Source: joaanna/something_else and ruiyan1995/Interactive_Fusion_for_CAR, `_sample_indices`; S = 8 there. The public
    code takes n = number of frame files - 1, so the last frame is never read.
    """
    _check_positive(num_frames=num_frames, num_segments=num_segments)
    n = num_frames - 1
    return segment_jitter(n, num_segments, rng) if n > 0 else np.zeros(num_segments, np.int64)


def car_val(num_frames: int, num_segments: int) -> np.ndarray:
    """Interactive Fusion / STIN validation: int(n / 2S + i n / S) with n = num_frames - 1; all 0 where n <= S.

    Source: as `car_train`, `_get_val_indices`. 0-based (num_segments,).
    """
    _check_positive(num_frames=num_frames, num_segments=num_segments)
    n = num_frames - 1
    if n <= num_segments:
        return np.zeros(num_segments, np.int64)
    tick = n / num_segments
    return _truncate(tick / 2.0 + tick * np.arange(num_segments))


# TSM: the rules of mit-han-lab/temporal-shift-module (ops/dataset.py), 1-based frame numbers.


def tsm_uniform_train(
    num_frames: int, num_segments: int, rng: np.random.Generator, frames_per_segment: int = 1
) -> np.ndarray:
    """First frame of each segment in training, 1-based (num_segments,).

    With L = frames_per_segment (5 for stacks of 5 flow fields) and a = (n - L + 1) // S: i a + randint(a) where a > 0;
    else S sorted draws from n - L + 1 frames where n > S; else all 1.
    Source: Temporal Shift Module (Lin et al., ICCV 2019), public code.
    """
    _check_positive(num_frames=num_frames, num_segments=num_segments, frames_per_segment=frames_per_segment)
    usable = num_frames - frames_per_segment + 1
    average = usable // num_segments
    if average > 0:
        return np.arange(num_segments) * average + rng.integers(average, size=num_segments) + 1
    if num_frames > num_segments and usable > 0:
        return np.sort(rng.integers(usable, size=num_segments)) + 1
    return np.ones(num_segments, np.int64)


def tsm_uniform_val(num_frames: int, num_segments: int, frames_per_segment: int = 1) -> np.ndarray:
    """First frame of each segment in validation, 1-based (num_segments,): int(t / 2 + i t) + 1, t = (n - L + 1) / S;
    all 1 where n <= S + L - 1. Source: as `tsm_uniform_train`."""
    _check_positive(num_frames=num_frames, num_segments=num_segments, frames_per_segment=frames_per_segment)
    if num_frames <= num_segments + frames_per_segment - 1:
        return np.ones(num_segments, np.int64)
    return tsm_uniform_test(num_frames, num_segments, frames_per_segment)


def tsm_uniform_test(
    num_frames: int, num_segments: int, frames_per_segment: int = 1, twice_sample: bool = False
) -> np.ndarray:
    """First frame of each segment in testing, 1-based (num_segments,), or (2 num_segments,) with `twice_sample`:
    int(t / 2 + i t) + 1, then int(i t) + 1, with t = (n - L + 1) / S.

    Source: as `tsm_uniform_train`. Differs: numbers below 1, which the public code makes of a video shorter than
    `frames_per_segment`, are 1.
    """
    _check_positive(num_frames=num_frames, num_segments=num_segments, frames_per_segment=frames_per_segment)
    tick = (num_frames - frames_per_segment + 1) / float(num_segments)
    steps = np.arange(num_segments)
    frames = _truncate(tick / 2.0 + tick * steps)
    if twice_sample:
        frames = np.concatenate([frames, _truncate(tick * steps)])
    return np.maximum(frames + 1, 1)


def tsm_dense(num_frames: int, num_segments: int, rng: np.random.Generator, window_frames: int = 64) -> np.ndarray:
    """Frames of one random window, 1-based (num_segments,): (start + i (W // S)) mod n + 1.

    The public code uses it in training and in validation (which is therefore random), and never draws the last start.
    Source: as `tsm_uniform_train`, `dense_sample`.
    """
    _check_positive(num_frames=num_frames, num_segments=num_segments, window_frames=window_frames)
    starts = max(1, 1 + num_frames - window_frames)
    start = 0 if starts == 1 else int(rng.integers(0, starts - 1))
    return (np.arange(num_segments) * (window_frames // num_segments) + start) % num_frames + 1


def tsm_dense_test(num_frames: int, num_segments: int, num_starts: int = 10, window_frames: int = 64) -> np.ndarray:
    """Frames of `num_starts` evenly spread windows, 1-based (num_starts, num_segments). Source: as `tsm_dense`."""
    _check_positive(num_frames=num_frames, num_segments=num_segments, num_starts=num_starts)
    _check_positive(window_frames=window_frames)
    starts = np.linspace(0, max(1, 1 + num_frames - window_frames) - 1, num=num_starts, dtype=np.int64)
    return (np.arange(num_segments) * (window_frames // num_segments) + starts[:, None]) % num_frames + 1


# Dense windows: T entries, a new window every S entries.


def num_windows(num_entries: int, clip_frames: int, stride_frames: int, last_clip: LastClip = "pad") -> int:
    """How many windows of `clip_frames` (T) entries, one every `stride_frames` (S), n = `num_entries` give.

    "pad":  1 + ceil(max(0, n - T) / S): windows start at 0, S, 2S, ... until one holds the last entry; where it runs
            out of entries it repeats the last one. With S > T the last window may start after the end: it is not
            made, so there are never more than ceil(n / S).
    "drop": 1 + floor(max(0, n - T) / S): a window that runs out of entries is left out.
    Either way a video shorter than one window gives one, padded: no video is without a row. No entries, no windows.
    """
    _check_positive(clip_frames=clip_frames, stride_frames=stride_frames)
    if num_entries < 0:
        raise ValueError(f"num_entries is {num_entries}; it must be 0 or more")
    if last_clip not in ("pad", "drop"):
        raise ValueError(f'last_clip is {last_clip!r}; it must be "pad" or "drop"')
    if num_entries == 0:
        return 0
    beyond = max(0, num_entries - clip_frames)
    if last_clip == "drop":
        return 1 + beyond // stride_frames
    return min(1 - (-beyond // stride_frames), -(-num_entries // stride_frames))


def window(
    index: int, num_entries: int, clip_frames: int, stride_frames: int, last_clip: LastClip = "pad"
) -> np.ndarray:
    """Entries of window `index`, (clip_frames,); past the end the last entry is repeated."""
    count = num_windows(num_entries, clip_frames, stride_frames, last_clip)
    if not 0 <= index < count:
        raise ValueError(f"window {index} was asked for; {num_entries} entries give windows 0 to {count - 1}")
    return np.minimum(index * stride_frames + np.arange(clip_frames), num_entries - 1)


def windows(num_entries: int, clip_frames: int, stride_frames: int, last_clip: LastClip = "pad") -> np.ndarray:
    """Entries of all windows, (num_windows, clip_frames); past the end the last entry is repeated."""
    count = num_windows(num_entries, clip_frames, stride_frames, last_clip)
    entries = np.arange(count)[:, None] * stride_frames + np.arange(clip_frames)
    return np.minimum(entries, num_entries - 1)


def window_seconds(
    entry_seconds: np.ndarray,
    stop_seconds: float,
    clip_frames: int,
    stride_frames: int,
    last_clip: LastClip = "pad",
) -> np.ndarray:
    """[start, stop) of every window, float64 (num_windows, 2).

    entry_seconds: (n,), when each entry begins, ascending. stop_seconds: when the last one ends.
    A window starts with its first entry and stops where its last real entry ends, that is where the next one begins.
    """
    count = num_windows(len(entry_seconds), clip_frames, stride_frames, last_clip)
    first = np.arange(count) * stride_frames
    after = np.minimum(first + clip_frames, len(entry_seconds))
    edges = np.append(np.asarray(entry_seconds, np.float64), stop_seconds)
    return np.stack([edges[first], edges[after]], axis=1)


# Strided clips: T entries, every `stride_frames`-th one.


def clip_span(clip_frames: int, stride_frames: int) -> int:
    """Entries from the first to the last of a strided clip, both counted: (T - 1) stride + 1."""
    _check_positive(clip_frames=clip_frames, stride_frames=stride_frames)
    return (clip_frames - 1) * stride_frames + 1


def strided_clip(
    start: int, num_entries: int, clip_frames: int, stride_frames: int, short_video: ShortVideo = "repeat_last"
) -> np.ndarray:
    """Entries start, start + stride, ..., (clip_frames,); `short_video` says what entries past the end become."""
    _check_positive(num_entries=num_entries, clip_frames=clip_frames, stride_frames=stride_frames)
    if not 0 <= start < num_entries:
        raise ValueError(f"start is {start}; it must be one of the {num_entries} entries")
    return _short(short_video)(start + np.arange(clip_frames) * stride_frames, num_entries)


def random_clip(
    num_entries: int,
    clip_frames: int,
    stride_frames: int,
    rng: np.random.Generator,
    short_video: ShortVideo = "repeat_last",
) -> np.ndarray:
    """A strided clip (clip_frames,) with a random start, all starts that fit being equally likely."""
    last_start = max(0, num_entries - clip_span(clip_frames, stride_frames))
    start = int(rng.integers(last_start + 1))
    return strided_clip(start, num_entries, clip_frames, stride_frames, short_video)


def centre_clip(
    num_entries: int, clip_frames: int, stride_frames: int, short_video: ShortVideo = "repeat_last"
) -> np.ndarray:
    """The strided clip (clip_frames,) in the middle; with an odd rest the earlier of the two."""
    start = max(0, num_entries - clip_span(clip_frames, stride_frames)) // 2
    return strided_clip(start, num_entries, clip_frames, stride_frames, short_video)


# Multi-view tests: n clips in time x 3 crops in space.


def multi_views(num_clips: int, num_crops: int = 3) -> np.ndarray:
    """(clip, crop) of each view, (num_clips * num_crops, 2), all crops of a clip together.

    Source: PySlowFast's order (temporal = view // crops, spatial = view % crops).
    """
    _check_positive(num_clips=num_clips, num_crops=num_crops)
    views = np.arange(num_clips * num_crops)
    return np.stack([views // num_crops, views % num_crops], axis=1)


def pyslowfast_clips(
    num_frames: int, clip_frames: int, stride_frames: int, num_clips: int, use_offset: bool = False
) -> np.ndarray:
    """Frames of `num_clips` test clips, (num_clips, clip_frames).

    With clip length L = T stride and d = max(n - L, 0), clip i starts at i d / num_clips, or with `use_offset` at
    i floor(d / (num_clips - 1)) (a single clip: floor(d / 2)); its T frames are spread evenly from the start to
    start + L - 1 (so their distance is (L - 1) / (T - 1), a little more than the stride), cut to whole numbers and to
    the last frame.
    Source: facebookresearch/SlowFast, `get_start_end_idx` and `temporal_sampling`, for videos at the target frame rate.
    Differs: float64, where the public code spreads the frames in float32 and can be off by one by rounding.
    """
    _check_positive(num_frames=num_frames, clip_frames=clip_frames, stride_frames=stride_frames, num_clips=num_clips)
    length = clip_frames * stride_frames
    rest = max(num_frames - length, 0)
    clip = np.arange(num_clips)
    if not use_offset:
        starts = rest * clip / num_clips
    elif num_clips == 1:
        starts = np.array([rest // 2])
    else:
        starts = clip * (rest // (num_clips - 1))
    frames = np.linspace(starts, starts + length - 1, clip_frames, axis=1)
    return _truncate(np.clip(frames, 0, num_frames - 1))


def charades_clips(num_frames: int, clip_frames: int, stride_frames: int, num_clips: int) -> np.ndarray:
    """Frames of `num_clips` test clips, (num_clips, clip_frames), the first at the start, the last at the end.

    With d = max(n - ((T - 1) stride + 1), 0), clip i starts at i d / (num_clips - 1), rounded to the nearest (of two
    the even one); frames past the end show the last one.
    Source: facebookresearch/SlowFast, `get_seq_frames` of its Charades, with 10 clips x 3 crops and the maximum over
    these views. Differs: a single clip, for which the public code divides by zero, lies in the middle.
    """
    _check_positive(num_frames=num_frames, num_clips=num_clips)
    rest = max(num_frames - clip_span(clip_frames, stride_frames), 0)
    starts = np.arange(num_clips) * (rest / (num_clips - 1)) if num_clips > 1 else np.array([rest // 2])
    frames = np.rint(starts).astype(np.int64)[:, None] + np.arange(clip_frames) * stride_frames
    return np.minimum(frames, num_frames - 1)


def mmaction_clips(
    num_frames: int, clip_frames: int, stride_frames: int, num_clips: int, short_video: ShortVideo = "wrap"
) -> np.ndarray:
    """Frames of `num_clips` test clips, (num_clips, clip_frames), each in the middle of its part of the video.

    With L = T stride and a = (n - L + 1) / num_clips, clip i starts at int(i a + a / 2), or at 0 where n < L.
    Source: mmaction's SampleFrames in test mode, as Video Swin (Liu et al., CVPR 2022) uses it with 4 clips.
    """
    _check_positive(num_frames=num_frames, clip_frames=clip_frames, stride_frames=stride_frames, num_clips=num_clips)
    length = clip_frames * stride_frames
    starts = np.zeros(num_clips, np.int64)
    if num_frames >= length:
        average = (num_frames - length + 1) / num_clips
        starts = _truncate(np.arange(num_clips) * average + average / 2.0)
    return _short(short_video)(starts[:, None] + np.arange(clip_frames) * stride_frames, num_frames)


def omnivore_clips(num_frames: int, clip_frames: int, stride_frames: int, frame_stride: int = 1) -> np.ndarray:
    """Every whole clip from the first frame on, one each `stride_frames`, (num_clips, clip_frames).

    160 frames, clip_frames = stride_frames = 32 give the published 5 clips. A video shorter than
    clip_frames * frame_stride gives none.
    Source: Omnivore (Girdhar et al., CVPR 2022), `TemporalCrop` of facebookresearch/omnivore.
    """
    _check_positive(num_frames=num_frames, clip_frames=clip_frames, stride_frames=stride_frames)
    _check_positive(frame_stride=frame_stride)
    starts = np.arange(0, num_frames - clip_frames * frame_stride + 1, stride_frames)
    return starts[:, None] + np.arange(clip_frames) * frame_stride


# Anticipation and early recognition.


def anticipation_window(start_seconds: float, tau_a: float, tau_o: float) -> tuple[float, float]:
    """What may be seen before an action that starts at `start_seconds`: [start - tau_a - tau_o, start - tau_a).

    tau_a: anticipation time, seconds between the end of what is seen and the action. tau_o: seconds seen.
    The window may begin, or lie wholly, before the video: the caller clips or discards.
    Source: EPIC-KITCHENS (Damen et al., ECCV 2018), action anticipation.
    """
    _check_positive(tau_o=tau_o)
    if tau_a < 0:
        raise ValueError(f"tau_a is {tau_a} seconds; it must be 0 or more: the action itself may not be seen")
    return start_seconds - tau_a - tau_o, start_seconds - tau_a


def early_recognition_window(start_seconds: float, stop_seconds: float, fraction: float) -> tuple[float, float]:
    """The first `fraction` (0 < fraction <= 1) of a segment: [start, start + fraction (stop - start))."""
    _check_interval(start_seconds, stop_seconds)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must be above 0 and at most 1")
    # At 1 the segment's own end, not its rounded re-computation.
    stop = stop_seconds if fraction == 1 else start_seconds + fraction * (stop_seconds - start_seconds)
    return start_seconds, stop


def early_recognition_fractions(num_steps: int = 8) -> np.ndarray:
    """1/n, 2/n, ..., 1, float64 (num_steps,): 12.5 % to 100 % for the usual 8."""
    _check_positive(num_steps=num_steps)
    return np.arange(1, num_steps + 1) / num_steps


def rulstm_seconds_before_action(num_steps: int = 14, alpha: float = 0.25) -> np.ndarray:
    """tau of RULSTM's steps, descending to alpha, float64 (num_steps,): 3.5, 3.25, ..., 0.25. tau = 1 s is index -4."""
    _check_positive(num_steps=num_steps, alpha=alpha)
    # numpy.arange with a float step, cut where rounding gives one element too many: the public code's own numbers.
    return np.arange(alpha, alpha * (num_steps + 1), alpha)[:num_steps][::-1]


def rulstm_past_frames(
    start_frame: int, num_steps: int = 14, alpha: float = 0.25, frames_per_second: float = 30
) -> np.ndarray | None:
    """1-based frames that RULSTM reads before an action that starts at frame `start_frame`, (num_steps,).

    floor((start / fps - tau) fps) in float64. Where rounding puts a product just below a whole number the frame is one
    earlier (offset 31 instead of 30 at tau = 1 s); that is kept. Frames below 1 become the smallest frame that is
    at least 1. None where there is no such frame: the public code discards the segment.
    Source: RULSTM (Furnari and Farinella, ICCV 2019), fpv-iplab/rulstm RULSTM/dataset.py.
    """
    _check_positive(frames_per_second=frames_per_second)
    seconds = start_frame / frames_per_second - rulstm_seconds_before_action(num_steps, alpha)
    frames = np.floor(seconds * frames_per_second).astype(np.int64)
    if frames.max() < 1:
        return None
    frames[frames < 1] = frames[frames >= 1].min()
    return frames


def rulstm_action_frames(start_frame: int, stop_frame: int, num_samples: int = 8) -> np.ndarray:
    """1-based frames that RULSTM reads inside an action, (num_samples,): at 1/n, 2/n, ..., 1 (early recognition).

    Source: as `rulstm_past_frames`.
    """
    _check_positive(num_samples=num_samples)
    return np.linspace(start_frame, stop_frame, num_samples + 1, dtype=np.int64)[1:]


def avt_frames(
    action_start_seconds: float,
    tau_a: float = 1.0,
    tau_o: float = 10.0,
    num_frames: int = 10,
    frames_per_second: float = 1.0,
    stored_frames_per_second: float = 30.0,
) -> tuple[np.ndarray, np.ndarray] | None:
    """1-based stored frames that AVT reads before an action, int64 (num_frames,), and times, float64 (num_frames,).

    All stored frames in (floor(start fps), floor(stop fps)] of the observation, every round(stored / asked)-th of them
    counted from the back; too few are filled up in front with the first one. The times are the public code's own,
    spread evenly from the start to the stop of the observation: they select past labels and are not the frames' real
    times. None where no stored frame falls into the observation: the public code drops the segment.
    Source: AVT (Girdhar and Grauman, ICCV 2021), facebookresearch/AVT `_sample` ("last_clip") and
    `EpicRULSTMFeatsReader` ("normal").
    """
    _check_positive(num_frames=num_frames, frames_per_second=frames_per_second)
    _check_positive(stored_frames_per_second=stored_frames_per_second)
    fps = stored_frames_per_second
    stop = action_start_seconds - tau_a
    start = max(stop - tau_o, 0)
    wanted = int(round(num_frames * (fps / frames_per_second)))
    skipped = max(int(fps * (stop - start)) - wanted, 0)
    last = max(min(stop, start + (skipped + wanted) / fps), 0)
    first = min(start + skipped / fps, last)
    stored = np.arange(np.floor(last * fps), np.floor(first * fps), -1).astype(np.int64)[::-1]
    if not len(stored):
        return None
    stored[stored < 1] = stored[stored >= 1].min()
    seconds = np.linspace(first, last, len(stored))
    kept = np.arange(len(stored))[:: -max(int(round(fps / frames_per_second)), 1)][::-1][-num_frames:]
    kept = np.concatenate([np.full(num_frames - len(kept), kept[0]), kept])
    return stored[kept], seconds[kept]
