"""What one output of an extraction is made of, as plain numbers: what decode processes need, and how many rows come
out.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pipeline.depth import check_depth_range
from ..pipeline.sampling import LastClip, num_windows
from ..pipeline.video import Interpolation, Size, VideoError, VideoInfo, VideoReader


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """How clips are cut from a video for one backbone and one stream. Picklable, no torch.

    A video becomes a row of entries (frames, flow stacks or spectrograms) at `fps` a second (None: every frame); clip i
    is the `frames` entries from `i * stride` on. The last clip repeats its last entry where the video ends ("pad") or
    is left out ("drop"); a video shorter than one clip always gives one, padded.

    name: name of the output folder. instances: box slots per clip, 0 without boxes.
    depth_range: as in `pipeline.clip_spec.StreamSpec`; 16 bits of depth are kept.
    flow_on_device: the clip carries RGB frames (frames + flow_stack of them) and flow is computed where the model runs.
    """

    name: str
    stream: str
    frames: int
    stride: int
    fps: float | None
    resize_side: int
    crop: int
    interpolation: Interpolation = "bilinear"
    last_clip: LastClip = "pad"
    flow_method: str = "dis_fast"
    flow_stack: int = 1
    flow_on_device: bool = False
    audio_preset: str = "tbn"
    audio_cells: tuple[int, int] = (256, 256)
    instances: int = 0
    depth_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if min(self.frames, self.stride, self.crop, self.flow_stack) < 1:
            raise ValueError(
                f"{self.name}: clip frames {self.frames}, stride {self.stride} and crop {self.crop} must be >= 1"
            )
        if self.last_clip not in ("pad", "drop"):
            raise ValueError(f"{self.name}: last_clip is {self.last_clip!r}; it is 'pad' or 'drop'")
        if self.depth_range is not None:
            check_depth_range(self.depth_range)
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"{self.name}: fps is {self.fps}; it must be positive, or 'native' for every frame")
        if self.stream == "audio" and self.fps is None:
            raise ValueError(f"{self.name}: sound has no frames of its own: give fps, spectrograms a second")
        if self.stream != "audio" and self.resize_side < self.crop:
            raise ValueError(f"{self.name}: side {self.resize_side} is smaller than the crop {self.crop}; raise --side")

    @property
    def size(self) -> Size:
        """The size that frames are decoded to. Depth is scaled later, by the nearest pixel, as in training."""
        return Size() if self.stream == "depth" else Size(self.resize_side, self.interpolation)

    @property
    def entries(self) -> int:
        """Entries a clip carries on its way to the model."""
        return self.frames + self.flow_stack if self.flow_on_device else self.frames

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of one clip on its way to the model."""
        if self.stream == "audio":
            return (self.frames, *self.audio_cells, 1)
        flow = 3 if self.flow_on_device else 2 * self.flow_stack
        channels = {"rgb": 3, "flow": flow, "depth": 1, "ir": 1}[self.stream]
        return (self.entries, self.crop, self.crop, channels)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32 if self.stream in ("audio", "depth") else np.uint8)

    @property
    def clip_bytes(self) -> int:
        return int(np.prod(self.clip_shape)) * self.dtype.itemsize

    def num_entries(self, grid_seconds: float, num_frames: int) -> int:
        """Entries of a video (or segment) whose grids run so long (`Span.grid_seconds`) and that has so many frames."""
        if self.fps is None:
            return num_frames
        # Times k / fps below the duration; a millionth of a step absorbs rounding.
        return max(1, int(np.ceil(grid_seconds * self.fps - 1e-6)))

    def num_clips(self, num_entries: int) -> int:
        """Rows of the output; see `pipeline.sampling.num_windows`."""
        return num_windows(num_entries, self.frames, self.stride, self.last_clip)


@dataclass(frozen=True)
class Span:
    """The piece of a video that is extracted, [start_seconds, stop_seconds).

    grid_seconds: how long the grids of `ClipPlan.fps` run. At the end of a video they stop by the container's rounding
        of time stamps (`VideoReader.slack_seconds`) earlier: 20 frames at 30 a second that Matroska says end at 0.667 s
        give 2 entries at 3 a second, as they should.
    """

    start_seconds: float
    stop_seconds: float
    grid_seconds: float

    @classmethod
    def of(cls, reader: VideoReader, start_seconds: float | None, stop_seconds: float | None) -> Span:
        """The segment of a video, None = from its start, to its end. Raises: VideoError where it lies outside."""
        info = reader.info
        return cls.within(info.start_seconds, info.stop_seconds, start_seconds, stop_seconds, reader.slack_seconds)

    @classmethod
    def within(
        cls,
        first_seconds: float,
        last_seconds: float,
        start_seconds: float | None,
        stop_seconds: float | None,
        slack_seconds: float = 0.0,
    ) -> Span:
        """The segment of something that lasts from first_seconds to last_seconds."""
        first = first_seconds if start_seconds is None else max(start_seconds, first_seconds)
        stop = last_seconds if stop_seconds is None else min(stop_seconds, last_seconds)
        grid = min(stop, last_seconds - slack_seconds) - first
        if grid <= 0:
            raise VideoError(
                f"the segment [{start_seconds}, {stop_seconds}) s lies outside the video, "
                f"[{first_seconds:.3f}, {last_seconds:.3f}) s"
            )
        return cls(first, stop, grid)

    def num_frames(self, info: VideoInfo) -> int:
        """Frames on screen in it; of a segment of a video with a variable frame rate only about so many."""
        if (self.start_seconds, self.stop_seconds) == (info.start_seconds, info.stop_seconds):
            return info.num_frames
        first, stop = ((t - info.start_seconds) * info.average_fps for t in (self.start_seconds, self.stop_seconds))
        return min(int(np.ceil(stop - 1e-3)), info.num_frames) - int(first + 1e-3)


@dataclass(frozen=True)
class Task:
    """One video, or one segment of one, to be decoded for some of the plans. threads: of its decoder, 0 = all cores."""

    key: str
    path: str
    start_seconds: float | None
    stop_seconds: float | None
    decoder: str
    attempt: int
    plans: tuple[int, ...]
    frame_fps: float = 30.0
    threads: int = 0


def cores() -> int:
    """Processor cores that this process may use; containers and job schedulers often give fewer than there are."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores(Path("/sys/fs/cgroup"))
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota - 0.05)))


def num_workers(requested: int | None, local_processes: int = 1) -> int:
    """Decode processes: one per core that this process may use, shared among the processes on this machine."""
    if requested is not None:
        if requested < 1:
            raise ValueError(f"workers is {requested}; at least one process must decode")
        return requested
    return max(1, min(16, cores() // local_processes))


def cgroup_cores(folder: Path) -> float | None:
    """Cores' worth of time that the control group allows (`docker run --cpus 1.5`, Kubernetes limits); None = all.

    folder: where the group's files lie, version 2 (cpu.max) or 1 (cpu/cpu.cfs_quota_us).
    """
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:  # "max", -1: no limit
        return None
    return int(quota) / int(period)
