"""The streams of one sample that come from video files: planned for all streams, decoded once a file, cut alike.

numpy and decoders; torch is loaded when a clip is cut (`transforms`), not before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import clip_reader
from .annotations import Segment
from .boxes import limit_instances
from .clip_reader import Entries, FlowPlan, Shelf
from .clip_spec import Augmentation, StreamSpec, decode_size, evaluation_geometries
from .datasets.contract import Dataset
from .depth import paint_jet, scale_depth
from .flow import quantise
from .protocols import Observation, Sampling
from .spectrogram import SpectrogramPreset
from .transforms import Geometry, apply_geometry, apply_photometric
from .types import BoxTracks, Clip
from .video import Size, VideoError, VideoReader

TIME, GEOMETRY, COLOUR = 0, 1, 2  # parts of a sample's draw; each stream has a colour part of its own
Draw = Callable[[int], np.random.Generator]  # part -> its generator


@dataclass(frozen=True)
class PixelStreams:
    """What was read. entries: by stream, (views, T, ...). boxes: boxes (views, T, N, 4), present (views, T, N),
    categories (views, N); empty where none were asked for. damage: in words. flip: left and right have changed places.
    """

    entries: dict[str, Entries]
    boxes: dict[str, np.ndarray]
    damage: str
    flip: bool


@dataclass(frozen=True)
class _Plan:
    """One stream of pictures of one sample: its file, the times of its entries, which are real, what may be read."""

    spec: StreamSpec
    path: str
    frame_fps: float | None
    times: np.ndarray
    real: np.ndarray
    span: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PixelReader:
    """Reads the streams of `specs`; see SegmentDataset for what the rest means. It pickles without its open files."""

    dataset: Dataset
    specs: tuple[StreamSpec, ...]
    sampling: Sampling
    training: bool
    augmentation: Augmentation | None
    num_crops: int
    instances: int | None
    shelf: Shelf

    @property
    def pictures(self) -> tuple[StreamSpec, ...]:
        return tuple(spec for spec in self.specs if spec.stream != "audio")

    def path(self, segment: Segment, spec: StreamSpec) -> str:
        """The file that this stream of the segment is read from: its own, or that of rgb."""
        return str(self.dataset.path(segment, self._source(spec)))

    def _source(self, spec: StreamSpec) -> str:
        return spec.stream if spec.stream in self.dataset.paths else "rgb"

    def _frame_fps(self, segment: Segment, spec: StreamSpec) -> float | None:
        return self.dataset.frame_fps(segment, self._source(spec))

    def _open(self, segment: Segment, spec: StreamSpec) -> VideoReader:
        return self._reader(self.path(segment, spec), self._frame_fps(segment, spec), spec)

    def _reader(self, path: str, frame_fps: float | None, spec: StreamSpec) -> VideoReader:
        return (self.shelf.flow_file if self._has_flow_files(spec) else self.shelf.video)(path, frame_fps)

    def end_seconds(self, segment: Segment) -> float | None:
        """When the pictures of the segment's video end; None without a stream of pictures."""
        return self._open(segment, self.pictures[0]).info.stop_seconds if self.pictures else None

    def read(self, segment: Segment, observation: Observation, draw: Draw) -> PixelStreams:
        """Raises: VideoError and OSError where a file cannot be read, NotObserved where it shows nothing of it."""
        damage: list[str] = []
        found: dict[str, Entries] = {}
        boxes: dict[str, np.ndarray] = {}
        geometries: tuple[Geometry, ...] = ()
        if self.pictures:
            geometries = self._geometries(segment, draw)
            plans = [self._plan(segment, spec, observation, draw) for spec in self.pictures]
            clips: dict[str, Entries] = {}
            files: dict[tuple[str, bool], list[_Plan]] = {}  # one folder may hold both frames and flow
            for plan in plans:
                files.setdefault((plan.path, self._has_flow_files(plan.spec)), []).append(plan)
            for (path, _), same in files.items():
                clips |= self._file(path, same, geometries[0], observation, damage)
            found, boxes = self._cut(segment, observation, clips, geometries, draw)
        for spec in self.specs:
            if spec.stream == "audio":
                sound, crops = self._sound(segment, spec, observation, draw), max(1, len(geometries))
                found["audio"] = Entries(*(np.repeat(a, crops, 0) for a in (sound.data, sound.seconds, sound.mask)))
        return PixelStreams(found, boxes, "; ".join(damage), bool(geometries) and geometries[0].flip)

    # --- when and where

    def _time(self, draw: Draw) -> np.random.Generator | None:
        # One generator a stream, all the same: streams of one grid show the same times.
        return draw(TIME) if self.training else None

    def _geometries(self, segment: Segment, draw: Draw) -> tuple[Geometry, ...]:
        lead = self.pictures[0]
        info = self._open(segment, lead).info
        width = info.width // 2 if self._has_flow_files(lead) else info.width  # v lies beside u
        if self.augmentation is not None:
            return (self.augmentation.geometry(info.height, width, lead, draw(GEOMETRY)),)
        return evaluation_geometries(info.height, width, lead, self.num_crops)

    def _has_flow_files(self, spec: StreamSpec) -> bool:
        return spec.stream == "flow" and "flow" in self.dataset.paths

    def _plan(self, segment: Segment, spec: StreamSpec, observation: Observation, draw: Draw) -> _Plan:
        reader, rng = self._open(segment, spec), self._time(draw)
        times = clip_reader.entry_times(reader, observation, self.sampling, spec, rng, self._has_flow_files(spec))
        return _Plan(spec, self.path(segment, spec), self._frame_fps(segment, spec), *times)

    # --- one file

    def _file(
        self, path: str, plans: Sequence[_Plan], geometry: Geometry, observation: Observation, damage: list[str]
    ) -> dict[str, Entries]:
        """Streams of one file before they are cut: uint8 frames, flow in float32, depth of 16 bits in uint16. One
        decode pass.
        """
        reader = self._reader(path, plans[0].frame_fps, plans[0].spec)
        known, info = len(reader.damage), reader.info
        found: dict[str, Entries] = {}
        wanted: list[tuple[_Plan, np.ndarray, Size, FlowPlan | None]] = []
        for plan in plans:
            spec = plan.spec
            if self._has_flow_files(spec):
                stacks = clip_reader.stored_flow(reader, plan.times, plan.span, spec)
                found["flow"] = Entries(stacks, plan.times, plan.real)
            elif spec.stream == "depth" and reader.depth_bits == 16:
                depth, pts = clip_reader.decode_depth(reader, plan.times)
                _guard(pts, observation.horizon_seconds)
                found["depth"] = Entries(depth, pts, plan.real)
            elif spec.stream == "flow":
                step = 1 / spec.fps if spec.fps else clip_reader.frame_seconds(info)
                fields = clip_reader.plan_flow(plan.times, step, plan.span, spec)
                if spec.flow_on_device:
                    size = decode_size(info.height, info.width, geometry, spec)
                    wanted.append((plan, clip_reader.plan_frames(fields)[0], size, fields))
                else:
                    wanted.append((plan, fields.pairs, spec.size, fields))
            else:
                # Depth is scaled by the nearest pixel, when it is cut.
                size = Size() if spec.stream == "depth" else decode_size(info.height, info.width, geometry, spec)
                wanted.append((plan, plan.times, size, None))
        if wanted:
            sizes = list(dict.fromkeys(size for _, _, size, _ in wanted))
            every = wanted[0][1] if len(wanted) == 1 else np.concatenate([times.ravel() for _, times, _, _ in wanted])
            pictures, pts = clip_reader.decode(reader, every, sizes)
            _guard(pts, observation.horizon_seconds)
            place = 0
            for plan, times, size, fields in wanted:
                part, place = slice(place, place + times.size), place + times.size
                frames = pictures[sizes.index(size)]
                if len(wanted) > 1:
                    frames = frames[part].reshape(*times.shape, *frames.shape[1:])
                found[plan.spec.name] = self._entries(plan, frames, pts.ravel()[part].reshape(times.shape), fields)
        if len(reader.damage) > known:
            damage += reader.damage[known:]
            self.shelf.drop(path)  # the next segment that meets this damage is told as well
        return found

    def _entries(self, plan: _Plan, frames: np.ndarray, pts: np.ndarray, fields: FlowPlan | None) -> Entries:
        if fields is not None and plan.spec.flow_on_device:
            return Entries(frames, plan.times, plan.real, clip_reader.plan_frames(fields)[1])
        if fields is not None:
            flow = clip_reader.compute_flow(self.shelf.flow(plan.spec.flow_method), frames)
            return Entries(clip_reader.stack_fields(flow, fields), plan.times, plan.real)
        return Entries(frames[..., :1] if plan.spec.stream in ("ir", "depth") else frames, pts, plan.real)

    # --- from frames to views

    def _cut(
        self,
        segment: Segment,
        observation: Observation,
        clips: dict[str, Entries],
        geometries: Sequence[Geometry],
        draw: Draw,
    ) -> tuple[dict[str, Entries], dict[str, np.ndarray]]:
        """All clips through all geometries, with colours, codes of flow and the scale of depth."""
        sizes = {spec.name: (spec.crop, spec.crop) for spec in self.pictures}
        # Frames of flow to come are cut like pictures; their colours stay, and so does every stream's draw.
        later = {name for name, each in clips.items() if each.pairs is not None}
        own = {name: size for name, size in sizes.items() if name not in later}
        painted = {spec.name for spec in self.pictures if spec.colour_map is not None}
        ranges = {spec.name: spec.depth_range for spec in self.pictures}
        colours = {}
        if self.augmentation is not None:
            for place, spec in enumerate(self.pictures):
                if spec.stream in ("rgb", "ir") and spec.colour_map is None:
                    change = self.augmentation.colours(draw(COLOUR + place))
                    colours |= {spec.name: change} if change.steps else {}
        views: dict[str, list[np.ndarray]] = {name: [] for name in clips}
        boxes: list[BoxTracks] = []
        lead = clips[self.pictures[0].name]
        for number in range(len(lead.data)):
            tracks = self._boxes(segment, observation, lead.seconds[number])
            data = {name: each.data[number] for name, each in clips.items() if name not in later}
            streams = data or {"left as it is": lead.data[number]}  # a Clip must have one
            whole = Clip(streams, observation.start_seconds, observation.stop_seconds, tracks)
            for geometry in geometries:
                for name in later:
                    frames = replace(whole, streams={"rgb": clips[name].data[number]}, boxes=None)
                    views[name].append(apply_geometry(frames, geometry, {"rgb": sizes[name]}).streams["rgb"])
                clip = apply_geometry(whole, geometry, own)
                clip = apply_photometric(clip, colours) if colours else clip
                for name in data:
                    view = clip.streams[name]
                    view = quantise(view) if name == "flow" else view
                    view = scale_depth(view, ranges[name]) if name == "depth" else view
                    views[name].append(paint_jet(view) if name in painted else view)
                if clip.boxes is not None:
                    limit = self.instances
                    boxes.append(clip.boxes if limit is None else limit_instances(clip.boxes, limit))
        crops = len(geometries)
        found = {
            name: Entries(
                _stack(data),
                np.repeat(clips[name].seconds, crops, 0),
                np.repeat(clips[name].mask, crops, 0),
                None if (pairs := clips[name].pairs) is None else np.repeat(pairs, crops, 0),
            )
            for name, data in views.items()
        }
        if not boxes:
            return found, {}
        return found, {
            "boxes": np.stack([each.boxes for each in boxes]),
            "present": np.stack([each.present for each in boxes]),
            "categories": np.stack([each.categories for each in boxes]),
        }

    def _boxes(self, segment: Segment, observation: Observation, seconds: np.ndarray) -> BoxTracks | None:
        if self.instances == 0:
            return None
        tracks = (self.dataset.boxes or {}).get(segment.video)
        return clip_reader.read_boxes(tracks, seconds, observation.horizon_seconds)

    def _sound(self, segment: Segment, spec: StreamSpec, observation: Observation, draw: Draw) -> Entries:
        if not self.sampling.names_ends:
            observation = observation.inside(0.0, math.inf)
        times = self.sampling.times(observation, spec.frames, 1 / (spec.fps or 30.0), rng=self._time(draw))
        preset = SpectrogramPreset.named(spec.audio_preset)
        reader = self.shelf.sound(self.path(segment, spec))
        return clip_reader.read_sound(reader, times, preset, observation.horizon_seconds)


def _guard(pts: np.ndarray, horizon_seconds: float) -> None:
    """The last guard of the protocol, on the stamps of what was read."""
    if pts.max(initial=-math.inf) >= horizon_seconds:
        raise VideoError(
            f"the frame at {pts.max():.6f} s was read, but nothing at or after {horizon_seconds:.6f} s may be; "
            "the file's time stamps contradict themselves"
        )


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
