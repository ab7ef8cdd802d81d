"""PyAV (FFmpeg): reads everything that FFmpeg reads, exactly; see `_decode_pass` for how."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np

from ..depth import scale_by_nearest
from ..types import DepthFrames, Frames
from ..video import SizeLike, VideoError, VideoInfo, VideoReader, check_batch, check_times
from ._container import Layout, file_signature, first_video_stream, open_container, probe_layout, to_seconds
from ._decode_pass import DecodePass, Shown
from ._pixels import Batch, Scaler, depth_type, read_depth

# Passes of a parent process: a forked child cannot use or free them, decoding threads were not forked.
_LEFT_TO_PARENT: list[object] = []
if hasattr(os, "register_at_fork"):
    # Nor may it collect what the parent left as garbage: freeing a decoder waits for threads that are not there.
    os.register_at_fork(after_in_child=gc.freeze)


class PyAVReader(VideoReader):
    """Any video file, by FFmpeg.

    threads: decoding threads; 0 = one per core.
    damage: what could not be decoded, in words; grows while reading. Frames around it may be missing or blemished.
    """

    decoder = "pyav"
    decoder_reason = "right for every video file, and as fast as the others or faster"

    def __init__(self, path: str, *, threads: int = 0) -> None:
        self.path = str(path)
        self._threads = threads
        self.damage: list[str] = []
        self._layout: Layout | None = None
        self._idle: DecodePass | None = None
        self._closed = False
        self._resting: tuple[int, int] | None = None  # signature of the file that a resting reader knows
        self._lay_out()

    def _lay_out(self) -> Layout:
        if self._resting is not None:
            known, self._resting = self._resting, None
            if known != file_signature(self.path):  # another file lies there by now
                self._layout, self.damage = None, []
        if self._layout is None:
            container = open_container(self.path)
            try:
                stream = first_video_stream(self.path, container)
                stream.thread_type, stream.thread_count = "AUTO", self._threads
                self._layout = probe_layout(self.path, container, stream)
                self.damage.extend(self._layout.damage)
                if len(self._layout.key_ticks) and not self.damage:  # opened once for all
                    self._idle = DecodePass(self.path, self._layout, self._threads, self.damage, container)
            finally:
                if self._idle is None:
                    container.close()
        return self._layout

    @property
    def info(self) -> VideoInfo:  # type: ignore[override]
        return self._lay_out().info

    @property
    def slack_seconds(self) -> float:  # type: ignore[override]
        return self._lay_out().slack_seconds

    @property
    def depth_bits(self) -> int:  # type: ignore[override]
        return 8 if depth_type(self.info.pixel_format) is None else 16

    def depth_at(self, seconds: Sequence[float], outside: str = "error") -> DepthFrames:
        if self.depth_bits == 8:
            return super().depth_at(seconds, outside)
        times = check_times(self, seconds, outside)
        ascending, rows = np.unique(times, return_inverse=True)
        info, base = self.info, self._lay_out().time_base
        found: list[np.ndarray] = []
        pts: list[float] = []
        with closing(self._shown(ascending.tolist())) as shown:
            for ticks, frame in shown:
                depth = read_depth(frame, info.rotation_degrees // 90)
                found.append(scale_by_nearest(depth, info.height, info.width))
                pts.append(to_seconds(ticks, base))
        if len(times) and not found:
            raise VideoError(f"{self.path}: no frame can be decoded: {'; '.join(self.damage)}")
        data = np.stack(found) if found else np.zeros((0, info.height, info.width, 1), np.uint16)
        rows = np.minimum(rows, len(found) - 1)  # where damage ends the file, the last frame that decodes
        return DepthFrames(data[rows], np.array(pts)[rows])

    @property
    def layout(self) -> Layout:
        """Where the frames lie; for other decoders of the same file."""
        return self._lay_out()

    def select(
        self, seconds: Iterable[float], short_sides: Sequence[SizeLike] = (None,), batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        check_batch(batch)
        layout = self._lay_out()
        rows = Batch([Scaler(layout.info, side, self._threads) for side in short_sides], batch)
        with closing(self._shown(seconds)) as shown:
            for ticks, frame in shown:
                rows.add(to_seconds(ticks, layout.time_base), frame)
                if rows.full:
                    yield rows.take()
        if len(rows):
            yield rows.take()

    def _shown(self, seconds: Iterable[float]) -> Generator[Shown]:
        """What is on screen at each of the ascending times, until they or the video end."""
        layout, decoding = self._lay_out(), self._begin()
        try:
            upcoming = iter(seconds)
            now, previous = next(upcoming, None), -np.inf
            while now is not None:
                if not now >= previous:
                    raise ValueError(f"times must ascend, but {now} follows {previous}")
                following = next(upcoming, None)
                if now >= layout.info.stop_seconds - layout.slack_seconds:
                    break
                shown = decoding.on_screen(
                    decoding.limit(now), None if following is None else decoding.limit(following)
                )
                if shown is None:
                    break
                yield shown
                now, previous = following, now
        finally:
            self._end(decoding)

    def all_frames(
        self, short_sides: Sequence[SizeLike] = (None,), start_seconds: float = -math.inf, batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        check_batch(batch)
        layout = self._lay_out()
        rows = Batch([Scaler(layout.info, side, self._threads) for side in short_sides], batch)
        decoding = self._begin()
        try:
            for ticks, frame in decoding.frames_from(decoding.limit(start_seconds)):
                rows.add(to_seconds(ticks, layout.time_base), frame)
                if rows.full:
                    yield rows.take()
            if len(rows):
                yield rows.take()
        finally:
            self._end(decoding)

    def rest(self) -> bool:
        self._let_go()
        self._resting = file_signature(self.path)
        if self._resting is None:
            self.close()
        return not self._closed

    def close(self) -> None:
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        if self._idle is not None and self._idle.owner == os.getpid():
            self._idle.close()
        elif self._idle is not None:
            _LEFT_TO_PARENT.append(self._idle)
        self._idle = None

    # --- one decode pass at a time is kept open; passes that run at the same time get files of their own

    def _begin(self) -> DecodePass:
        if self._closed:
            raise ValueError(f"{self.path}: the reader is closed")
        idle, self._idle = self._idle, None
        if idle is not None and idle.owner != os.getpid():
            _LEFT_TO_PARENT.append(idle)
            idle = None
        return idle or DecodePass(self.path, self._lay_out(), self._threads, self.damage)

    def _end(self, decoding: DecodePass) -> None:
        if decoding.owner != os.getpid():
            _LEFT_TO_PARENT.append(decoding)
        elif self._idle is None and not self._closed and self._resting is None:
            self._idle = decoding
        else:
            decoding.close()

    def __getstate__(self) -> dict:
        return {"path": self.path, "_threads": self._threads, "_closed": self._closed}

    def __setstate__(self, state: dict) -> None:
        self.path, self._threads, self._closed = state["path"], state["_threads"], state["_closed"]
        self.damage, self._layout, self._idle, self._resting = [], None, None, None
