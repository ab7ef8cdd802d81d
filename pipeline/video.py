"""One contract for everything that can be read as a video, and the function that opens it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from .types import DepthFrames, Frames

Interpolation = Literal["bilinear", "bicubic"]
DECODERS = ("auto", "decord", "pyav", "torchcodec", "frame_folder")


class Size(NamedTuple):
    """A size that frames are asked for in.

    short_side: pixels of the shorter side; None = as they are stored.
    interpolation: the kernel that scales, wide enough to cover all pixels that fall into one ("antialias" elsewhere).
        "bicubic" is Catmull-Rom's (a = -0.5), which Pillow has.
    """

    short_side: int | None = None
    interpolation: Interpolation = "bilinear"


SizeLike = int | Size | None


def as_size(size: SizeLike) -> Size:
    """A number is a shorter side, scaled bilinearly."""
    size = size if isinstance(size, Size) else Size(size)
    if size.interpolation not in get_args(Interpolation):
        raise ValueError(
            f"interpolation is {size.interpolation!r}; it must be one of {', '.join(get_args(Interpolation))}"
        )
    return size


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
    Used after a fork, it opens the file anew as well.
    `short_side` scales the frame so that its shorter side has that many pixels (both sides rounded to whole pixels,
    the longer one by `scaled_size`); None keeps the size, a `Size` also names the interpolation. A video whose size
    changes is scaled to its first size.

    decoder: the name of what reads the file; with `auto` the one that was picked, and after a fall-back the one in use.
    decoder_reason: why `auto` picks this decoder for this file, in a few words.
    damage: what of the file could not be read, in words; grows while reading. What can be read is given, with frames
        missing or blemished near the damage; a file without a single frame to show raises VideoError.
    depth_bits: 8 or 16, the bits that `depth_at` gives.
    slack_seconds: a frame counts as on screen from this long before its time stamp (at most half a tick of the
        container's clock and at most 0.5 ms). Containers round time stamps, so the frame k of a 30 fps video may be
        stamped just after k / 30; with the slack the times k / fps show the frames k.
    """

    path: str
    decoder: str
    decoder_reason: str = ""
    info: VideoInfo
    damage: list[str]
    slack_seconds: float = 0.0
    depth_bits: int = 8

    @abstractmethod
    def select(
        self, seconds: Iterable[float], short_sides: Sequence[SizeLike] = (None,), batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        """One decode pass: the frame on screen at each of the ascending times, until the times or the video end.

        Yields tuples with one Frames per entry of `short_sides`, all of the same up to `batch` times (fewer where that
        many large frames would take more than 12 MiB). `seconds` may be endless (`itertools.count`) and is read one
        time ahead: times at or after the end of the last frame end the iteration. `seconds` times before the first
        frame show the first frame. The pts_seconds are those of the frames shown. Where the distance to the next time
        is longer than a group of pictures, the frames between are not decoded.

        Raises: ValueError where times descend; VideoError where not a single frame can be read (see `damage`).
        """

    def frames_at(self, seconds: Sequence[float], short_side: SizeLike = None, outside: str = "error") -> Frames:
        """The frame on screen at each time: any order, repeats allowed, found by seeking.

        Times are sorted, so that each group of pictures is decoded once at most.
        outside: "error" raises a ValueError for a time before the first frame or at or after the end of the last one
            (half a frame of slack at the start, for time stamps that were rounded); "clamp" shows the nearest frame.
        Raises: VideoError where damage leaves no frame to show.
        """
        times = check_times(self, seconds, outside)
        if not len(times):
            width, height = scaled_size(self.info.width, self.info.height, short_side)
            return Frames(np.zeros((0, height, width, 3), np.uint8), np.zeros(0))
        ascending, rows = np.unique(times, return_inverse=True)
        found = [frames for (frames,) in self.select(ascending.tolist(), (short_side,))]
        if not found:
            raise VideoError(f"{self.path}: no frame can be decoded: {'; '.join(self.damage)}")
        # Damage may end the file before its promised end: the last frame that decodes stands for the rest.
        rows = np.minimum(rows, sum(map(len, found)) - 1)
        if len(found) == 1:
            frames = found[0]
            return frames if np.array_equal(rows, np.arange(len(frames))) else frames[rows]
        pts = np.concatenate([frames.pts_seconds for frames in found])[rows]
        return Frames(np.concatenate([frames.data for frames in found])[rows], pts)

    def depth_at(self, seconds: Sequence[float], outside: str = "error") -> DepthFrames:
        """`frames_at` for files that hold measurements: one channel, as stored, unscaled, with all of `depth_bits`.

        16 bits are those of pictures of 16 bits in folders and tars of frames, and of grey video of 9 to 16 bits by
        `pyav`, whose numbers are not spread over 16; of anything else this is the first of three channels of 8 bits.
        """
        frames = self.frames_at(seconds, None, outside)
        return DepthFrames(np.ascontiguousarray(frames.data[..., :1]), frames.pts_seconds)

    @abstractmethod
    def close(self) -> None: ...

    def rest(self) -> bool:
        """Let go of what is open of the file and keep what is known of it: the next call opens it again, for much less.

        False: this reader cannot, and is closed instead.
        """
        self.close()
        return False

    @abstractmethod
    def all_frames(
        self, short_sides: Sequence[SizeLike] = (None,), start_seconds: float = -math.inf, batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        """Every frame that is on screen at or after `start_seconds`, each once, in one decode pass.

        Batches and errors are those of `select`.
        """

    def stream(
        self,
        fps: float | None = None,
        start_seconds: float = -math.inf,
        stop_seconds: float | None = None,
        short_side: SizeLike = None,
        batch: int = 64,
    ) -> Iterator[Frames]:
        """One decode pass over [start_seconds, stop_seconds) at `fps` frames a second; None = every frame once.

        With fps the times are `first + k / fps`, k = 0, 1, ..., first = max(start_seconds, info.start_seconds); a few
        videos start before 0.
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


def check_batch(batch: int) -> None:
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1 frame")


def check_times(reader: VideoReader, seconds: Sequence[float], outside: str) -> np.ndarray:
    """float64 (N,) times that all have a frame on screen, as `VideoReader.frames_at` defines it."""
    info = reader.info
    if outside not in ("error", "clamp"):
        raise ValueError(f"outside is {outside!r}; it must be 'error' or 'clamp'")
    times = np.asarray(seconds, np.float64).reshape(-1)
    if not np.isfinite(times).all():
        raise ValueError(f"{reader.path}: times must be finite numbers of seconds")
    slack = 0.5 / info.average_fps if info.average_fps > 0 else 0.0
    wrong = (times < info.start_seconds - slack) | (times >= info.stop_seconds)
    if outside == "error" and wrong.any():
        raise ValueError(
            f"{reader.path}: no frame is on screen at {times[wrong][0]:.6f} s; the video shows frames in "
            f'[{info.start_seconds:.6f}, {info.stop_seconds:.6f}) s. Ask inside it, or pass outside="clamp"'
        )
    last = max(info.start_seconds, info.stop_seconds - 2 * reader.slack_seconds - 1e-9)
    return np.clip(times, info.start_seconds, last)


def scaled_size(width: int, height: int, short_side: SizeLike) -> tuple[int, int]:
    """(width, height) scaled so that the shorter side is `short_side`; the longer becomes the nearest even number.

    Even, as FFmpeg's `scale=-2:256` has it: 16:9 at 256 is 456x256, the size of EPIC-KITCHENS' frames. Video colours
    are stored for pairs of pixels.
    """
    short_side = as_size(short_side).short_side
    if short_side is None or min(width, height) == short_side:
        return width, height
    if short_side < 1:
        raise ValueError(f"short_side is {short_side}; it must be at least 1 pixel")
    if width == height:
        return short_side, short_side
    shorter, longer = sorted((width, height))
    even = max(short_side, 2 * int(longer * short_side / shorter / 2 + 0.5))
    return (short_side, even) if width < height else (even, short_side)


def open_video(path: str | Path, decoder: str = "auto", *, threads: int = 0, frame_fps: float = 30.0) -> VideoReader:
    """Open a video file, a folder of frames or a tar of frames. See pipeline/decoders for what `auto` picks and why.

    decoder: "auto", "decord", "pyav", "torchcodec" or "frame_folder".
    threads: decoding threads; 0 = one per core. With many readers at work (one per process, say) 1 is fastest.
    frame_fps: how fast the numbers of frames run, for folders and tars of frames.
    Raises: VideoError where there is nothing to show, with the reason; ValueError for an unknown decoder, and for one
        that would read this file wrong.
    """
    from .decoders import open_with

    return open_with(str(path), decoder, threads=threads, frame_fps=frame_fps)
