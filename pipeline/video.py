"""One contract for everything that can be read as a video, and the function that opens it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from .types import Frames

DECODERS = ("auto", "decord", "pyav", "torchcodec", "frame_folder")


class VideoError(Exception):
    """A file that cannot be read, wholly or from some point on. str(error) is the reason, for people."""


@dataclass(frozen=True)
class VideoInfo:
    """What the container says, corrected by its packets; times are the stream's own.

    start_seconds: when the first frame comes on screen (0 in most files).
    duration_seconds: from the first frame's start to the last frame's end.
    num_frames: frames that are shown (after edit lists).
    width, height: as displayed, after rotation.
    rotation_degrees: 0, 90, 180 or 270, counter-clockwise turn that the display applies to the stored picture.
    """

    path: str
    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation_degrees: int
    num_frames: int
    start_seconds: float
    duration_seconds: float
    average_fps: float
    variable_frame_rate: bool
    has_audio: bool

    @property
    def stop_seconds(self) -> float:
        return self.start_seconds + self.duration_seconds


class VideoReader(ABC):
    """Reads one video. Every decoder answers alike: same frames, same times, RGB, display rotation applied.

    A reader is a context manager and it pickles: the copy opens the file anew, so it can be sent to worker processes.
    `short_side` scales the frame so that its shorter side has that many pixels (both sides rounded to whole pixels,
    the longer one by `scaled_size`); None keeps the size.
    """

    path: str
    decoder: str
    info: VideoInfo

    @abstractmethod
    def select(
        self, seconds: Iterable[float], short_sides: Sequence[int | None] = (None,), batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        """One decode pass: the frame on screen at each of the ascending times, until the times or the video end.

        Yields tuples with one Frames per entry of `short_sides`, all of the same up to `batch` times. `seconds` may be
        endless (`itertools.count`): times at or after the end of the last frame end the iteration. `seconds` times before
        the first frame show the first frame. The pts_seconds are those of the frames shown.

        Raises: ValueError where times descend; VideoError where the file breaks (after what could be read was yielded).
        """

    @abstractmethod
    def frames_at(
        self, seconds: Sequence[float], short_side: int | None = None, outside: str = "error"
    ) -> Frames:
        """The frame on screen at each time: any order, repeats allowed, found by seeking.

        outside: "error" raises a ValueError for a time before the first frame or at or after the end of the last one
            (half a frame of slack at the start, for time stamps that were rounded); "clamp" shows the nearest frame.
        """

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def all_frames(
        self, short_sides: Sequence[int | None] = (None,), start_seconds: float = 0.0, batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        """Every frame that is on screen at or after `start_seconds`, each once, in one decode pass."""

    def stream(
        self,
        fps: float | None = None,
        start_seconds: float = 0.0,
        stop_seconds: float | None = None,
        short_side: int | None = None,
        batch: int = 64,
    ) -> Iterator[Frames]:
        """One decode pass over [start_seconds, stop_seconds) at `fps` frames a second; None = every frame once.

        With fps the times are `first + k / fps`, k = 0, 1, ..., first = max(start_seconds, info.start_seconds).
        """
        if fps is not None and not fps > 0:
            raise ValueError(f"fps is {fps}; it must be positive, or None for every frame")
        first = max(start_seconds, self.info.start_seconds)
        stop = float("inf") if stop_seconds is None else stop_seconds
        if fps is None:
            for (frames,) in self.all_frames((short_side,), first, batch):
                inside = frames.pts_seconds < stop
                if inside.all():
                    yield frames
                    continue
                if inside.any():
                    yield frames[inside]
                return
        else:
            times = _grid(first, fps, stop)
            for (frames,) in self.select(times, (short_side,), batch):
                yield frames

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _grid(first_seconds: float, fps: float, stop_seconds: float) -> Iterator[float]:
    # k / fps and not a running sum: the same k is the same time however long the video is.
    for k in count():
        time = first_seconds + k / fps
        if time >= stop_seconds:
            return
        yield time


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """(width, height) scaled so that the shorter side is `short_side`; the longer is rounded to the nearest pixel."""
    if short_side is None or min(width, height) == short_side:
        return width, height
    if short_side < 1:
        raise ValueError(f"short_side is {short_side}; it must be at least 1 pixel")
    if width <= height:
        return short_side, max(1, int(height * short_side / width + 0.5))
    return max(1, int(width * short_side / height + 0.5)), short_side


def open_video(path: str | Path, decoder: str = "auto") -> VideoReader:
    """Open a video file, a folder of frames or a tar of frames. See pipeline/decoders for what `auto` picks and why."""
    from .decoders import open_with

    return open_with(str(path), decoder)
