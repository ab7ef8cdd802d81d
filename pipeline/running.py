"""Streams that still run: a camera, a url or a file is read in a thread; the last seconds are a video to others.

`LiveSource` decodes as frames come and drops the oldest where nobody takes them in time; sound goes to a `RingSound` at
once. `RingReader` holds the frames of the last seconds, scaled, as a `VideoReader`: what reads recorded videos reads it
alike.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Discard

from .decoders._container import first_video_stream, reason
from .decoders._pixels import Scaler
from .running_sound import RingSound
from .types import Frames
from .video import Size, SizeLike, VideoError, VideoInfo, VideoReader, as_size, check_batch, scaled_size

_SOUND_SECONDS = 30.0  # held until whoever reads it says what is needed


class Arrived(NamedTuple):
    """A decoded frame, when it is shown by the stream's clock, and when it came by `time.monotonic`."""

    frame: av.VideoFrame
    pts_seconds: float
    arrived: float


class LiveSource:
    """Iterates over the frames of a source that FFmpeg opens, in the order in which they are shown.

    source: a file, a url (rtsp, http, udp, ...), or a camera such as /dev/video0 (format v4l2).
    format, options: as FFmpeg's -f and its further options; None = what the source says.
    keep_up: frames that wait behind `queue_frames` others are dropped, oldest first, and counted in `dropped`: what a
        camera needs. False: the source waits, nothing is lost.
    timeout_seconds: a source that says nothing for so long is given up.
    pace: hand frames over no faster than they are shown, which makes a file a camera.
    listen: decode sound as well, into `sound`; it is None where the source has none, or was not asked.
    Raises: VideoError where the source cannot be opened or shows no frame.
    """

    def __init__(
        self,
        source: str,
        *,
        format: str | None = None,
        options: dict[str, str] | None = None,
        keep_up: bool = True,
        pace: bool = False,
        queue_frames: int = 64,
        timeout_seconds: float = 20.0,
        listen: bool = False,
    ) -> None:
        self.source, self.keep_up, self.pace, self.queue_frames = source, keep_up, pace, queue_frames
        self.dropped = 0
        self.error: str | None = None
        if format is None and source.startswith("/dev/video"):
            format = "v4l2"
        try:
            self._container = av.open(source, format=format, options=options or {}, timeout=timeout_seconds)
            stream = first_video_stream(source, self._container)
        except (FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{source}: cannot be opened as a stream: {reason(error)}") from error
        stream.thread_type = "SLICE"  # threads over frames would hold back as many frames as there are threads
        self._streams: list[av.VideoStream | av.AudioStream] = [stream]
        self.sound: RingSound | None = None
        if listen and self._container.streams.audio:
            heard = self._container.streams.best("audio") or self._container.streams.audio[0]
            assert isinstance(heard, av.AudioStream)
            heard.discard = Discard.default  # pyright: ignore[reportAttributeAccessIssue]
            self.sound = RingSound(source, heard, _SOUND_SECONDS)
            self._streams.append(heard)
        self.fps = float(stream.average_rate or stream.guessed_rate or 30)
        self._waiting: deque[Arrived] = deque()
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._thread = threading.Thread(target=self._read, name="live", daemon=True)
        self._thread.start()

    @property
    def newest_seconds(self) -> float:
        """When the newest frame that has come is shown; of those that wait as well."""
        with self._changed:
            return self._waiting[-1].pts_seconds if self._waiting else -math.inf

    @property
    def heard_seconds(self) -> float:
        """Up to when sound has come; infinite where none will come any more."""
        with self._changed:
            return math.inf if self.sound is None or self._ended else self.sound.stop_seconds

    def __iter__(self) -> Iterator[Arrived]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    return
                item = self._waiting.popleft()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> LiveSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        last, count, began = -math.inf, 0, 0.0
        try:
            for packet in self._container.demux(self._streams):
                try:
                    frames = packet.decode()
                except FFmpegError:
                    continue  # a damaged packet of a stream: the next one may be whole
                for frame in frames:
                    if isinstance(frame, av.AudioFrame):
                        assert self.sound is not None
                        self.sound.add(frame)
                        continue
                    assert isinstance(frame, av.VideoFrame)
                    pts = frame.time if frame.time is not None else count / self.fps
                    count += 1
                    if pts <= last:
                        continue  # clocks of cameras jump; what is shown goes forward
                    if self.pace:
                        began = began or time.monotonic() - pts
                        time.sleep(max(0.0, began + pts - time.monotonic()))
                    last = pts
                    if not self._give(Arrived(frame, pts, time.monotonic())):
                        return
        except (FFmpegError, OSError) as error:
            self.error = reason(error)
        finally:
            if not count and self.error is None:
                self.error = "not a single frame can be decoded"
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._container.close()

    def _give(self, item: Arrived) -> bool:
        """False where nobody wants more."""
        with self._changed:
            if not self.keep_up:
                self._changed.wait_for(lambda: len(self._waiting) < self.queue_frames or self._stopped)
            elif len(self._waiting) >= self.queue_frames:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(item)
            self._changed.notify_all()
            return not self._stopped


class RingReader(VideoReader):
    """The last `seconds` of a stream: add frames in the order in which they are shown, read them as of any video.

    sizes: at which frames are kept; no other can be read.
    info: start_seconds is that of the stream's first frame, stop_seconds where the last frame that came ends.
    """

    decoder = "live"

    def __init__(self, path: str, fps: float, seconds: float, sizes: Sequence[Size] = (Size(),)) -> None:
        self.path, self.seconds, self.sizes = path, seconds, tuple(dict.fromkeys(sizes))
        self.damage: list[str] = []
        self._fps = fps
        self._held: deque[tuple[float, dict[Size, np.ndarray]]] = deque()
        self._scalers: dict[Size, Scaler] = {}
        self._info: VideoInfo | None = None

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        return sum(picture.nbytes for _, pictures in self._held for picture in pictures.values())

    @property
    def info(self) -> VideoInfo:  # type: ignore[override]
        if self._info is None:
            raise VideoError(f"{self.path}: no frame has come yet")
        return self._info

    def add(self, frame: av.VideoFrame, pts_seconds: float) -> None:
        """The next frame. What is no longer on screen in the last `seconds` is let go."""
        if self._info is None:
            turned = round(frame.rotation / 90) * 90 % 360
            width, height = (frame.height, frame.width) if turned % 180 else (frame.width, frame.height)
            self._info = VideoInfo(
                path=self.path, container="live", codec="", pixel_format=frame.format.name, width=width, height=height,
                rotation_degrees=turned, num_frames=0, start_seconds=pts_seconds, duration_seconds=0.0,
                average_fps=self._fps, variable_frame_rate=False, has_audio=False,
            )  # fmt: skip
            self._scalers = {size: Scaler(self._info, size) for size in self.sizes}
        pictures = {}
        for size, scaler in self._scalers.items():
            pictures[size] = np.empty((scaler.height, scaler.width, 3), np.uint8)
            scaler.write(frame, pictures[size])
        self._held.append((pts_seconds, pictures))
        stop = pts_seconds + 1 / self._fps
        self._info = replace(
            self._info, num_frames=self._info.num_frames + 1, duration_seconds=stop - self._info.start_seconds
        )
        while len(self._held) > 1 and self._held[1][0] <= stop - self.seconds:
            self._held.popleft()

    def select(
        self, seconds: Iterable[float], short_sides: Sequence[SizeLike] = (None,), batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        """As of any video; times before the frames that are held show the oldest of them."""
        check_batch(batch)
        sizes = [self._known(side) for side in short_sides]
        stamps = np.array([pts for pts, _ in self._held])
        rows: list[int] = []
        previous = -math.inf
        for now in seconds:
            if not now >= previous:
                raise ValueError(f"times must ascend, but {now} follows {previous}")
            if now >= self.info.stop_seconds:
                break
            previous = now
            rows.append(max(0, int(np.searchsorted(stamps, now + 1e-6, side="right")) - 1))
            if len(rows) == batch:
                yield self._frames(rows, sizes)
                rows = []
        if rows:
            yield self._frames(rows, sizes)

    def all_frames(
        self, short_sides: Sequence[SizeLike] = (None,), start_seconds: float = -math.inf, batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        """The frames that are held."""
        check_batch(batch)
        sizes = [self._known(side) for side in short_sides]
        stamps = np.array([pts for pts, _ in self._held])
        first = max(0, int(np.searchsorted(stamps, start_seconds + 1e-6, side="right")) - 1)
        for low in range(first, len(stamps), batch):
            yield self._frames(list(range(low, min(low + batch, len(stamps)))), sizes)

    def close(self) -> None:
        """Nothing is open; the frames stay."""

    def _known(self, side: SizeLike) -> Size:
        size = as_size(side)
        if size in self.sizes:
            return size
        wanted = scaled_size(self.info.width, self.info.height, size)
        for kept in self.sizes:  # a size that says the same in other words
            if scaled_size(self.info.width, self.info.height, kept) == wanted and kept[1] == size[1]:
                return kept
        raise ValueError(f"{self.path}: frames are kept at {', '.join(map(str, self.sizes))}, not at {size}")

    def _frames(self, rows: list[int], sizes: Sequence[Size]) -> tuple[Frames, ...]:
        held = [self._held[row] for row in rows]
        pts = np.array([each[0] for each in held], np.float64)
        return tuple(Frames(np.stack([each[1][size] for each in held]), pts) for size in sizes)


def is_file(source: str) -> bool:
    """Whether a source is a recording, which can wait, and no camera or url, which cannot."""
    return Path(source).is_file()
