"""What bench_decode.py compares: actionfuse's decoders, a plain PyAV loop, cv2.VideoCapture, decoding alone.

Each opens a video and has `frames(short_side)`, every frame once, and `at(times, numbers, short_side)`, the frames with
these ascending times and numbers; pictures are RGB, uint8 (H, W, 3), None where nothing is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from actionfuse.pipeline import VideoError, open_video
from actionfuse.pipeline.video import scaled_size

# The plain loop reads straight on to the next frame it wants unless that is further away: most groups are shorter.
SEEK_AGAIN_SECONDS = 10.0


class PlainLoop:
    """PyAV as its documentation shows it, with decoding threads; convert=False is the raw limit."""

    def __init__(self, path: Path, *, convert: bool = True) -> None:
        self._container = av.open(str(path))
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._convert = convert

    def _picture(self, frame: av.VideoFrame, short_side: int | None) -> np.ndarray | None:
        if not self._convert:
            return None
        width, height = scaled_size(frame.width, frame.height, short_side)
        return frame.to_ndarray(format="rgb24", width=width, height=height)

    def frames(self, short_side: int | None) -> Iterator[np.ndarray | None]:
        for frame in self._container.decode(self._stream):
            yield self._picture(frame, short_side)

    def at(self, times: np.ndarray, numbers: np.ndarray, short_side: int | None) -> list[np.ndarray | None]:
        found, last = [], -np.inf
        decoding: Iterator[Any] = iter(())
        for seconds in times:
            if seconds - last > SEEK_AGAIN_SECONDS:
                self._container.seek(int((seconds + 1e-4) / self._stream.time_base), stream=self._stream)
                decoding = iter(self._container.decode(self._stream))
            frame = next(frame for frame in decoding if frame.time > seconds - 1e-4)
            last = frame.time
            found.append(self._picture(frame, short_side))
        return found

    def close(self) -> None:
        self._container.close()


class OpenCV:
    """cv2.VideoCapture, scaled by cv2.resize (area), colours in RGB order."""

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))

    def _picture(self, picture: np.ndarray, short_side: int | None) -> np.ndarray:
        size = scaled_size(picture.shape[1], picture.shape[0], short_side)
        if size != (picture.shape[1], picture.shape[0]):
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    def frames(self, short_side: int | None) -> Iterator[np.ndarray]:
        while True:
            there, picture = self._capture.read()
            if not there:
                return
            yield self._picture(picture, short_side)

    def at(self, times: np.ndarray, numbers: np.ndarray, short_side: int | None) -> list[np.ndarray]:
        found, upcoming, last = [], -1, -np.inf
        for number, seconds in zip(numbers, times, strict=True):
            if seconds - last > SEEK_AGAIN_SECONDS:
                self._capture.set(cv2.CAP_PROP_POS_FRAMES, int(number))
                upcoming = int(number)
            last = seconds
            for _ in range(int(number) - upcoming):
                self._capture.grab()
            there, picture = self._capture.read()
            if not there:
                raise VideoError(f"no frame {number}")
            upcoming = int(number) + 1
            found.append(self._picture(picture, short_side))
        return found

    def close(self) -> None:
        self._capture.release()


class Ours:
    """A decoder of actionfuse."""

    def __init__(self, path: Path, decoder: str) -> None:
        self._reader = open_video(path, decoder=decoder)

    def frames(self, short_side: int | None) -> Iterator[np.ndarray]:
        for frames in self._reader.stream(short_side=short_side):
            yield from frames.data

    def at(self, times: np.ndarray, numbers: np.ndarray, short_side: int | None) -> np.ndarray:
        return self._reader.frames_at(list(times), short_side=short_side).data

    def close(self) -> None:
        self._reader.close()


Program = Callable[[Path], Any]
RAW, PLAIN, CV2, AUTO = "raw limit", "plain PyAV loop", "cv2.VideoCapture", "actionfuse auto"


def programs(picked: str) -> dict[str, Program]:
    """By name; picked: what `auto` takes for the file, which is then not measured a second time."""

    def ours(decoder: str) -> Program:
        return lambda path: Ours(path, decoder)

    installed = [name for name in ("decord", "torchcodec") if find_spec(name)]
    others = [name for name in ("pyav", *installed) if name != picked]
    named = {AUTO: ours("auto")} | {f"actionfuse {name}": ours(name) for name in others}
    return {RAW: lambda path: PlainLoop(path, convert=False), PLAIN: PlainLoop, CV2: OpenCV, **named}
