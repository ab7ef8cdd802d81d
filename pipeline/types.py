"""What the pipeline hands over: small frozen data classes that check themselves and print shapes, not pixels.

Arrays are numpy: decoding processes then start without torch. Seconds (float64) are the only clock; intervals are half
open.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


def _shape(array: np.ndarray | None) -> str:
    return "None" if array is None else f"{array.dtype} {tuple(array.shape)}"


@dataclass(frozen=True, repr=False)
class Frames:
    """Decoded frames of one video.

    data: uint8 (T, H, W, 3), RGB, display rotation applied.
    pts_seconds: float64 (T,), when each frame comes on screen, by the stream's own time stamps. Requests may repeat
        frames or ask for them in any order, so the times need not ascend.
    """

    data: np.ndarray
    pts_seconds: np.ndarray

    def __post_init__(self) -> None:
        if self.data.dtype != np.uint8 or self.data.ndim != 4 or self.data.shape[-1] != 3:
            raise ValueError(f"Frames.data is {_shape(self.data)}; it must be uint8 (T, H, W, 3)")
        if self.pts_seconds.dtype != np.float64 or self.pts_seconds.shape != self.data.shape[:1]:
            raise ValueError(
                f"Frames.pts_seconds is {_shape(self.pts_seconds)}; "
                f"it must be float64 ({len(self.data)},): one time per frame"
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> Frames:
        return Frames(self.data[rows], self.pts_seconds[rows])

    def __repr__(self) -> str:
        span = f"{self.pts_seconds.min():.3f}..{self.pts_seconds.max():.3f} s" if len(self) else "empty"
        return f"Frames(data={_shape(self.data)}, {span})"


@dataclass(frozen=True, repr=False)
class DepthFrames:
    """Decoded frames of one channel that are no pictures but measurements, in the file's own unit.

    data: uint8 or uint16 (T, H, W, 1), the bits that the file has.
    pts_seconds: float64 (T,), as in Frames.
    """

    data: np.ndarray
    pts_seconds: np.ndarray

    def __post_init__(self) -> None:
        if self.data.dtype not in (np.uint8, np.uint16) or self.data.ndim != 4 or self.data.shape[-1] != 1:
            raise ValueError(f"DepthFrames.data is {_shape(self.data)}; it must be uint8 or uint16 (T, H, W, 1)")
        if self.pts_seconds.dtype != np.float64 or self.pts_seconds.shape != self.data.shape[:1]:
            raise ValueError(
                f"DepthFrames.pts_seconds is {_shape(self.pts_seconds)}; "
                f"it must be float64 ({len(self.data)},): one time per frame"
            )

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"DepthFrames(data={_shape(self.data)})"


@dataclass(frozen=True, repr=False)
class Waveform:
    """Mono sound.

    samples: float32 (N,), nominally in -1..1.
    valid: bool (N,), False where there was no sound to read (before the start, past the end, no audio stream at all)
        and samples are zero.
    start_seconds: the time of samples[0].
    """

    samples: np.ndarray
    sample_rate_hz: int
    start_seconds: float
    valid: np.ndarray

    def __post_init__(self) -> None:
        if self.samples.dtype != np.float32 or self.samples.ndim != 1:
            raise ValueError(f"Waveform.samples is {_shape(self.samples)}; it must be float32 (N,), mono")
        if self.valid.dtype != np.bool_ or self.valid.shape != self.samples.shape:
            raise ValueError(f"Waveform.valid is {_shape(self.valid)}; it must be bool {self.samples.shape}")
        if self.sample_rate_hz <= 0:
            raise ValueError(f"Waveform.sample_rate_hz is {self.sample_rate_hz}; it must be positive")

    @property
    def duration_seconds(self) -> float:
        return len(self.samples) / self.sample_rate_hz

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        heard = f"{int(self.valid.sum())} of {len(self)} samples heard"
        span = f"{self.duration_seconds:.3f} s from {self.start_seconds:.3f} s"
        return f"Waveform({span} at {self.sample_rate_hz} Hz, {heard})"


@dataclass(frozen=True, repr=False)
class BoxTracks:
    """Boxes of N instances over T times.

    boxes: float32 (T, N, 4), x1 y1 x2 y2 as shares of the frame's width and height (0..1).
    present: bool (T, N); boxes of absent instances are zero.
    seconds: float64 (T,).
    categories: int64 (N,), 0 = empty slot.
    track_ids: one name per instance.
    """

    boxes: np.ndarray
    present: np.ndarray
    seconds: np.ndarray
    categories: np.ndarray
    track_ids: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.boxes.dtype != np.float32 or self.boxes.ndim != 3 or self.boxes.shape[-1] != 4:
            raise ValueError(f"BoxTracks.boxes is {_shape(self.boxes)}; it must be float32 (T, N, 4)")
        if self.present.dtype != np.bool_ or self.present.shape != self.boxes.shape[:2]:
            raise ValueError(f"BoxTracks.present is {_shape(self.present)}; it must be bool {self.boxes.shape[:2]}")
        if self.seconds.dtype != np.float64 or self.seconds.shape != self.boxes.shape[:1]:
            raise ValueError(f"BoxTracks.seconds is {_shape(self.seconds)}; it must be float64 ({len(self.boxes)},)")
        if self.categories.dtype != np.int64 or self.categories.shape != self.boxes.shape[1:2]:
            raise ValueError(
                f"BoxTracks.categories is {_shape(self.categories)}; must be int64 ({self.boxes.shape[1]},)"
            )
        if self.track_ids and len(self.track_ids) != self.boxes.shape[1]:
            raise ValueError(f"BoxTracks.track_ids has {len(self.track_ids)} names for {self.boxes.shape[1]} instances")

    def __repr__(self) -> str:
        times, instances = self.present.shape
        return f"BoxTracks({times} times, {instances} instances, {int(self.present.sum())} boxes present)"


@dataclass(frozen=True, repr=False)
class Clip:
    """The decoded streams of one observation.

    streams: name -> array, channels last: rgb uint8 (T, H, W, 3), flow float32 (T, H, W, 2) in pixels per frame step,
        audio float32 (T, frequency, time, 1), depth and ir (T, H, W, 1).
    start_seconds, stop_seconds: the half-open interval that was observed.
    masks: name -> bool (T,), False where a stream has nothing real to show.
    """

    streams: dict[str, np.ndarray]
    start_seconds: float
    stop_seconds: float
    boxes: BoxTracks | None = None
    masks: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.streams:
            raise ValueError("a Clip needs at least one stream")
        for name, data in self.streams.items():
            if data.ndim != 4:
                raise ValueError(f"Clip stream {name!r} is {_shape(data)}; it must be (T, H, W, C)")
        for name, mask in self.masks.items():
            if name not in self.streams or mask.dtype != np.bool_ or mask.shape != self.streams[name].shape[:1]:
                raise ValueError(
                    f"Clip mask {name!r} is {_shape(mask)}; it must be bool (T,) of a stream that is there"
                )
        if not self.stop_seconds >= self.start_seconds:
            raise ValueError(f"Clip interval [{self.start_seconds}, {self.stop_seconds}) ends before it starts")

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={_shape(data)}" for name, data in self.streams.items())
        return f"Clip([{self.start_seconds:.3f}, {self.stop_seconds:.3f}) s, {shapes})"
