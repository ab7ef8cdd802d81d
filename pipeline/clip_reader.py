"""One observation of a video, read as the streams that were asked for: numpy and decoders, no torch.

Nothing at or after `Observation.horizon_seconds` is read: no frame, no second frame of a flow field, no sound, no
sighting of a box, no row of features. Frames of recognition come from inside the observation as well; only windows of
sound may reach past it, as in Temporal Binding Network.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from .audio import AudioReader
from .boxes import boxes_at
from .clip_spec import FeatureSpec, StreamSpec
from .decoders.flow_folder import FlowFolderReader, open_flow
from .features import FeatureStore
from .flow import FlowComputer
from .flow_files import read_recipe, unpack_flow
from .protocols import NotObserved, Observation, Sampling
from .spectrogram import SpectrogramPreset, spectrogram
from .types import BoxTracks
from .video import Size, VideoError, VideoInfo, VideoReader, check_times, open_video

Reader = TypeVar("Reader", VideoReader, AudioReader)
# Readers of a parent process: a child may neither use them nor close them (their decoding threads were not forked).
_LEFT_TO_PARENT: list[object] = []
_GUARD_SECONDS = 1e-5
MAX_RESTING = 4096  # a few KB each, and 8 bytes for each key frame
_ONE_READ_SECONDS = 60.0  # windows of sound that span no more than this are read at once


@dataclass(frozen=True)
class Entries:
    """The entries of one stream in all clips of a sample.

    data: (clips, T, ...). seconds: float64 (clips, T), when each was, by the file's own clock (rows of features: when
    they ended). mask: bool (clips, T), False where there is nothing real: before the video began, no sound, no row.
    pairs: of flow yet to be computed, int64 (clips, T, flow_stack, 2), places in data, frames (clips, F, H, W, 3).
    """

    data: np.ndarray
    seconds: np.ndarray
    mask: np.ndarray
    pairs: np.ndarray | None = None


class Shelf:
    """Open files, at most `limit` of each kind. What was used longest ago gives up its file first, but what is known of
    the file stays, for MAX_RESTING readers: opening it again costs a small part of looking it through.

    It pickles empty, and after a fork the child starts with an empty one.
    """

    def __init__(self, limit: int, decoder: str = "auto", frame_fps: float | None = None) -> None:
        if limit < 1:
            raise ValueError(f"open_readers is {limit}; it must be at least 1")
        self.limit, self.decoder, self.frame_fps = limit, decoder, frame_fps
        self._open: OrderedDict[tuple[str, str], VideoReader | AudioReader] = OrderedDict()
        self._resting: OrderedDict[tuple[str, str], VideoReader] = OrderedDict()
        self._flow: dict[str, FlowComputer] = {}
        self._lent: set[tuple[str, str]] = set()
        self._owner = os.getpid()

    def video(self, path: str, frame_fps: float | None = None) -> VideoReader:
        """frame_fps: what the dataset says of this folder of frames; the shelf's own, where it has one, goes first."""
        found = self._find("video", path)
        if not isinstance(found, VideoReader):
            found = open_video(path, self.decoder, threads=1, frame_fps=self.frame_fps or frame_fps or 30.0)
            self._keep("video", path, found)
        return found

    def flow_file(self, path: str, frame_fps: float | None = None) -> VideoReader:
        """The reader of a file, folder or tar of flow: its pictures are u beside v."""
        found = self._find("flow", path)
        if not isinstance(found, VideoReader):
            found = open_flow(path, self.decoder, frame_fps=self.frame_fps or frame_fps or 30.0)
            self._keep("flow", path, found)
        return found

    def sound(self, path: str) -> AudioReader:
        found = self._find("sound", path)
        if not isinstance(found, AudioReader):
            found = AudioReader(path)
            self._keep("sound", path, found)
        return found

    def flow(self, method: str) -> FlowComputer:
        self._mine()
        if method not in self._flow:
            self._flow[method] = FlowComputer(method, device="cpu")
        return self._flow[method]

    def put(self, path: str, reader: VideoReader | AudioReader) -> None:
        """From now on `video(path)`, or `sound(path)`, is this reader, which takes no room from those opened here."""
        self._mine()
        kind = "sound" if isinstance(reader, AudioReader) else "video"
        self._lent.add((kind, path))
        self._keep(kind, path, reader)

    def drop(self, path: str) -> None:
        """Close what is open of this file, so that it starts anew."""
        for kind in ("video", "flow", "sound"):
            if (reader := self._open.pop((kind, path), None)) is not None:
                reader.close()
            self._resting.pop((kind, path), None)
            self._lent.discard((kind, path))

    def close(self) -> None:
        self._mine()
        for reader in self._open.values():
            reader.close()
        self._open.clear()
        self._resting.clear()
        self._lent.clear()

    def _mine(self) -> None:
        if self._owner != os.getpid():
            _LEFT_TO_PARENT.append((self._open, self._flow))
            self._open, self._resting, self._flow, self._owner = OrderedDict(), OrderedDict(), {}, os.getpid()
            self._lent = set()

    def _find(self, kind: str, path: str) -> VideoReader | AudioReader | None:
        self._mine()
        if (kind, path) in self._open:
            self._open.move_to_end((kind, path))
        elif (reader := self._resting.pop((kind, path), None)) is not None:
            self._keep(kind, path, reader)
        return self._open.get((kind, path))

    def _keep(self, kind: str, path: str, reader: VideoReader | AudioReader) -> None:
        same = [key for key in self._open if key[0] == kind and key not in self._lent]
        if (kind, path) not in self._lent and len(same) >= self.limit:
            oldest = self._open.pop(same[0])
            if isinstance(oldest, AudioReader):
                oldest.close()
            elif oldest.rest():
                self._resting[same[0]] = oldest
        if len(self._resting) > MAX_RESTING:
            self._resting.popitem(last=False)
        self._resting.pop((kind, path), None)
        self._open[(kind, path)] = reader

    def __getstate__(self) -> dict:
        return {"limit": self.limit, "decoder": self.decoder, "frame_fps": self.frame_fps}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


# --- frames


def frame_seconds(info: VideoInfo) -> float:
    """How long a frame is on screen, on average; a single frame without a rate counts as one of 30 a second."""
    return 1 / info.average_fps if info.average_fps > 0 else 1 / 30


def entry_times(
    reader: VideoReader,
    observation: Observation,
    sampling: Sampling,
    spec: StreamSpec,
    rng: np.random.Generator | None,
    fields: bool = False,
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Times to ask the reader for, float64 (clips, T); bool (clips, T), False before the video; and [low, high] between
    which any frame may be read.

    fields: the file holds flow: one field less than its video has frames, each stamped with the first of its two.

    Raises: NotObserved where the video shows nothing of the observation.
    """
    info = reader.info
    frame_step = frame_seconds(info)
    seen = observation.inside(info.start_seconds, info.stop_seconds + (frame_step if fields else 0.0))
    # A frame is on screen from slack_seconds before its stamp on, so the last time to ask for is that much earlier.
    high = seen.stop_seconds - reader.slack_seconds - _GUARD_SECONDS
    low = min(seen.start_seconds, high)
    if sampling.names_ends:
        ends = sampling.times(observation, spec.frames, 1 / spec.fps if spec.fps else frame_step, rng=rng)
        times = ends - frame_step  # the frame that has passed by then
    else:
        step, first = (1 / spec.fps, None) if spec.fps else (frame_step, info.start_seconds)
        times = sampling.times(seen, spec.frames, step, first_seconds=first, rng=rng)
    real = times >= info.start_seconds - reader.slack_seconds - _GUARD_SECONDS
    return np.minimum(times, high), real, (low, high)


def decode(reader: VideoReader, times: np.ndarray, sizes: Sequence[Size]) -> tuple[list[np.ndarray], np.ndarray]:
    """The frame on screen at each time (any shape), once for each size: uint8 (*times.shape, H, W, 3), and their time
    stamps, float64 (*times.shape). One decode pass; times before the video show its first frame.
    """
    ascending, rows = np.unique(check_times(reader, times.ravel().tolist(), "clamp"), return_inverse=True)
    found = list(reader.select(ascending.tolist(), sizes))
    if not found:
        raise VideoError(f"{reader.path}: no frame can be decoded: {'; '.join(reader.damage) or 'nothing was read'}")
    pts = np.concatenate([frames[0].pts_seconds for frames in found])
    # where damage ends the file: the last frame that decodes
    rows = np.minimum(rows, len(pts) - 1).reshape(times.shape)
    straight = times.ndim and np.array_equal(rows.ravel(), np.arange(len(pts)))
    pictures = []
    for which in range(len(sizes)):
        parts = [frames[which].data for frames in found]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        pictures.append(whole.reshape(*times.shape, *whole.shape[1:]) if straight else whole[rows])
    return pictures, pts[rows]


def decode_depth(reader: VideoReader, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`decode` of one channel with all bits of the file (`VideoReader.depth_at`), unscaled: (*times.shape, H, W, 1)."""
    ascending, rows = np.unique(check_times(reader, times.ravel().tolist(), "clamp"), return_inverse=True)
    found, rows = reader.depth_at(ascending.tolist(), "clamp"), rows.reshape(times.shape)
    return found.data[rows], found.pts_seconds[rows]


# --- flow


@dataclass(frozen=True)
class FlowPlan:
    """Which fields the entries of a clip need. pairs: float64 (P, 2), times of the two frames of each field.
    stacks: int64 (clips, T, flow_stack), the field of each place in a stack.
    """

    pairs: np.ndarray
    stacks: np.ndarray


def plan_flow(times: np.ndarray, step_seconds: float, span: tuple[float, float], spec: StreamSpec) -> FlowPlan:
    """Fields go from t + j step to t + (j + 1) step, j by `flow_mode`; both frames lie in the span. Where it ends, the
    last (or first) field that it holds is repeated; a span of one frame has no motion.
    """
    low, high = span
    wanted = np.arange(spec.flow_stack) - (spec.flow_stack if spec.flow_mode == "rulstm" else 0)
    first = np.ceil((low - times) / step_seconds - 1e-6)
    last = np.floor((high - times) / step_seconds + 1e-6) - 1
    moves = last >= first
    offsets = np.clip(wanted, first[..., None], np.maximum(last, first)[..., None])
    begins = times[..., None] + offsets * step_seconds
    begins = np.where(moves[..., None], begins, times[..., None])
    ends = np.where(moves[..., None], begins + step_seconds, begins)
    both = np.stack([begins, ends], axis=-1).clip(low, high).round(7)  # so that equal times are equal
    pairs, stacks = np.unique(both.reshape(-1, 2), axis=0, return_inverse=True)
    return FlowPlan(pairs, stacks.reshape(both.shape[:-1]))


def plan_frames(plan: FlowPlan) -> tuple[np.ndarray, np.ndarray]:
    """The frames of a FlowPlan, each once: times float64 (clips, F), ascending, the last repeated where a clip has
    fewer; int64 (clips, T, flow_stack, 2), which two of them make each field.
    """
    needed = plan.pairs[plan.stacks]
    kept = [np.unique(clip) for clip in needed]
    longest = max(map(len, kept))
    times = np.stack([np.pad(clip, (0, longest - len(clip)), mode="edge") for clip in kept])
    return times, np.stack([np.searchsorted(clip, pairs) for clip, pairs in zip(kept, needed, strict=True)])


def compute_flow(computer: FlowComputer, frames: np.ndarray) -> np.ndarray:
    """uint8 (P, 2, H, W, 3) -> float32 (P, H, W, 2). A field between a frame and itself is zero."""
    flow = np.zeros((*frames.shape[:1], *frames.shape[2:4], 2), np.float32)
    low = 0
    while low < len(frames):
        # fields that follow one another share frames: each is prepared once
        stop = low + 1
        while stop < len(frames) and np.array_equal(frames[stop, 0], frames[stop - 1, 1]):
            stop += 1
        chain = np.concatenate([frames[low:stop, 0], frames[stop - 1 : stop, 1]])
        flow[low:stop] = computer.pairs(chain)
        low = stop
    still = [np.array_equal(pair[0], pair[1]) for pair in frames]
    flow[still] = 0
    return flow


def stored_flow(reader: VideoReader, times: np.ndarray, span: tuple[float, float], spec: StreamSpec) -> np.ndarray:
    """Stacks of a file of flow (`flow_files`, decoders/flow_folder.py), whose field k is stamped with its first frame:
    float32 (clips, T, H, W, 2 flow_stack). The field at a time may be read only where its second frame lies in the
    span.
    """
    plan = plan_flow(times, frame_seconds(reader.info), span, spec)
    folder = isinstance(reader, FlowFolderReader)
    bound = reader.bound_pixels if folder else read_recipe(reader.path, "video")["bound_pixels"]
    (pictures,), _ = decode(reader, plan.pairs[:, 0], [Size()])
    flow = unpack_flow(pictures, bound)
    flow[plan.pairs[:, 0] == plan.pairs[:, 1]] = 0
    return stack_fields(flow, plan)


def stack_fields(flow: np.ndarray, plan: FlowPlan) -> np.ndarray:
    """(P, H, W, 2) -> (clips, T, H, W, 2 flow_stack), u, v, u, v, ..."""
    stacked = np.moveaxis(flow[plan.stacks], -4, -2)
    return stacked.reshape(*stacked.shape[:-2], -1)


# --- sound


def read_sound(
    reader: AudioReader, centres: np.ndarray, preset: SpectrogramPreset, horizon_seconds: float = math.inf
) -> Entries:
    """A spectrogram around each time: float32 (clips, T, frequency, time, 1).

    A window that reaches past an end of the sound is moved to lie wholly in it (TBN's rule), and one that reaches past
    the horizon to end there; where both cannot be, what is missing is silence.
    """
    rate, length = preset.sample_rate_hz, preset.window_samples
    limit = math.inf if math.isinf(horizon_seconds) else math.floor(horizon_seconds * rate)
    flat = centres.ravel()
    starts = np.rint(flat * rate - length / 2).astype(np.int64)
    starts = np.maximum(starts, 0) if length <= limit else starts
    starts = np.minimum(starts, limit - length).astype(np.int64)
    samples, valid = np.zeros((len(flat), length), np.float32), np.zeros((len(flat), length), bool)
    groups = [np.arange(len(flat))]
    if starts.max() - starts.min() > _ONE_READ_SECONDS * rate:
        groups = [np.array([n]) for n in range(len(flat))]
    for group in groups:
        low, high = int(starts[group].min()) - length, int(min(starts[group].max() + 2 * length, limit))
        wave = reader.read(low / rate, high / rate, rate)
        heard = np.flatnonzero(wave.valid)
        first, end = (low + int(heard[0]), low + int(heard[-1]) + 1) if len(heard) else (low, low)
        for n in group:
            start = int(starts[n])
            if end < min(start + length, high) and flat[n] * rate <= end:
                start = max(first, end - length)
            have = wave.samples[start - low : start - low + length]
            samples[n, : len(have)] = have
            valid[n, : len(have)] = wave.valid[start - low : start - low + length]
    cells = spectrogram(samples, preset)
    heard = np.asarray(valid.any(axis=1)).reshape(centres.shape)
    return Entries(cells.reshape(*centres.shape, *cells.shape[1:], 1), centres, heard)


# --- boxes and features


def read_boxes(tracks: BoxTracks | None, seconds: np.ndarray, horizon_seconds: float = math.inf) -> BoxTracks:
    """The boxes at each time (T,), from sightings before the horizon alone."""
    if tracks is None:
        return BoxTracks(
            np.zeros((len(seconds), 0, 4), np.float32),
            np.zeros((len(seconds), 0), bool),
            seconds,
            np.zeros(0, np.int64),
        )
    if math.isfinite(horizon_seconds):
        seen = tracks.seconds < horizon_seconds - _GUARD_SECONDS
        tracks = replace(tracks, boxes=tracks.boxes[seen], present=tracks.present[seen], seconds=tracks.seconds[seen])
    return boxes_at(tracks, seconds)


def read_features(
    store: FeatureStore,
    key: str,
    spec: FeatureSpec,
    observation: Observation,
    sampling: Sampling,
    rng: np.random.Generator | None,
) -> Entries:
    """Rows of the store, (clips, T, ...). Rows that end after the horizon are not taken.

    Raises: NotObserved where the store has nothing of the observation, or nothing of the video.
    """
    horizon = observation.horizon_seconds
    if spec.frames is None:
        try:
            rows = store.read_between(key, observation.start_seconds, observation.stop_seconds)
        except ValueError as error:
            raise NotObserved(str(error)) from error
        kept = rows.stop_seconds <= horizon + _GUARD_SECONDS
        if not kept.any():
            raise NotObserved(f"{key}: no row lies in what may be seen, up to {observation.stop_seconds:.3f} s")
        data, stops = (rows.data, rows.stop_seconds) if kept.all() else (rows.data[kept], rows.stop_seconds[kept])
        return Entries(np.asarray(data)[None], stops[None], np.ones((1, len(stops)), bool))
    step = 1 / (spec.fps or 30.0)
    if not sampling.names_ends:
        observation = observation.inside(0.0, math.inf)
    times = sampling.times(observation, spec.frames, step, rng=rng)
    try:
        rows, found = store.lookup(key, times.ravel(), causal=sampling.names_ends, horizon_seconds=horizon)
    except ValueError as error:
        raise NotObserved(str(error)) from error
    shape = times.shape
    return Entries(
        np.asarray(rows.data).reshape(*shape, *rows.data.shape[1:]),
        rows.stop_seconds.reshape(shape),
        found.reshape(shape),
    )


def store_of(spec: FeatureSpec) -> FeatureStore:
    """The opened store of a spec."""
    return spec.store if isinstance(spec.store, FeatureStore) else FeatureStore.open(Path(spec.store))
