"""What decoders that count frames have in common: from times to frame numbers, by the packets' own time stamps."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..types import Frames
from ..video import SizeLike, VideoReader, check_batch, scaled_size
from ._container import (
    Layout,
    Packets,
    first_video_stream,
    open_container,
    probe_layout,
    read_packets,
    ticks_to_seconds,
)
from ._pixels import MAX_BATCH_BYTES


class IndexedReader(VideoReader):
    """A reader of files for which the n-th frame in order of time is the decoder's frame n."""

    def __init__(self, path: str, *, threads: int = 0) -> None:
        self.path = str(path)
        self.damage: list[str] = []
        self._threads = threads
        self._closed = False
        self._owner = os.getpid()
        with open_container(self.path) as container:
            stream = first_video_stream(self.path, container)
            self._layout: Layout = probe_layout(self.path, container, stream)
        with open_container(self.path) as container:
            packets = read_packets(container, first_video_stream(self.path, container))
        if why := self.why_not(self._layout, packets):
            raise ValueError(f"{self.path}: {self.decoder} cannot be trusted with this file: {why}; use decoder='pyav'")
        self.info = self._layout.info
        self.slack_seconds = self._layout.slack_seconds
        self._pts_seconds = ticks_to_seconds(np.sort(packets.pts[packets.shown]), self._layout.time_base)

    @classmethod
    @abstractmethod
    def why_not(cls, layout: Layout, packets: Packets) -> str | None:
        """Why this decoder would not give the right frames of such a file; None: it does."""

    @abstractmethod
    def _pictures(self, numbers: np.ndarray, short_side: SizeLike) -> np.ndarray:
        """uint8 (N, H, W, 3) of frames with ascending numbers int64 (N,). Raises VideoError."""

    @abstractmethod
    def _forget(self) -> None:
        """Let go of everything that is open."""

    def _use(self) -> None:
        if self._closed:
            raise ValueError(f"{self.path}: the reader is closed")
        if self._owner != os.getpid():
            self._forget()
            self._owner = os.getpid()

    def _rows(self, short_sides: Sequence[SizeLike], batch: int) -> int:
        check_batch(batch)
        sizes = [scaled_size(self.info.width, self.info.height, side) for side in short_sides]
        return max(1, min(batch, MAX_BATCH_BYTES // max(1, sum(w * h * 3 for w, h in sizes))))

    def _give(self, numbers: Sequence[int] | np.ndarray, short_sides: Sequence[SizeLike]) -> tuple[Frames, ...]:
        self._use()
        once, rows = np.unique(np.asarray(numbers, np.int64), return_inverse=True)
        times = self._pts_seconds[np.asarray(numbers, np.int64)]
        data = [self._pictures(once, side) for side in short_sides]
        if len(once) != len(rows):
            data = [pictures[rows] for pictures in data]
        return tuple(Frames(pictures, times) for pictures in data)

    def select(
        self, seconds: Iterable[float], short_sides: Sequence[SizeLike] = (None,), batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        size = self._rows(short_sides, batch)
        numbers: list[int] = []
        previous = -np.inf
        for now in seconds:
            if not now >= previous:
                raise ValueError(f"times must ascend, but {now} follows {previous}")
            if now >= self.info.stop_seconds - self.slack_seconds:
                break
            numbers.append(max(0, int(np.searchsorted(self._pts_seconds, now + self.slack_seconds, "right")) - 1))
            previous = now
            if len(numbers) == size:
                yield self._give(numbers, short_sides)
                numbers = []
        if numbers:
            yield self._give(numbers, short_sides)

    def all_frames(
        self, short_sides: Sequence[SizeLike] = (None,), start_seconds: float = -math.inf, batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        size = self._rows(short_sides, batch)
        first = max(0, int(np.searchsorted(self._pts_seconds, start_seconds + self.slack_seconds, "right")) - 1)
        for begin in range(first, len(self._pts_seconds), size):
            yield self._give(range(begin, min(begin + size, len(self._pts_seconds))), short_sides)

    def close(self) -> None:
        self._closed = True
        self._forget()

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        for name in self._open_things:
            state[name] = {}
        return state

    # Names of attributes (dicts) that hold what is open: they stay behind when the reader is pickled.
    _open_things: tuple[str, ...] = ()
