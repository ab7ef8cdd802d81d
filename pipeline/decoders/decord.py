"""decord 0.6: fast on ordinary files, wrong on others; used only where its frames and pixels were found equal.

Measured against FFmpeg: with edit lists it shows hidden frames, of interlaced and AVI files and of open groups of
pictures it gives wrong ones, it cannot open MPEG-TS, GIF and raw streams, VP9 fails now and then, turned, odd-sized and
deep pictures come out with other pixels. Damaged files may hang or crash the process, and where frames are lost it
repeats others in silence, unless it is told to raise. All those are refused here.

decord is imported on first use: loaded before torch it can crash CUDA, so torch, where it is used, must come first.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..video import SizeLike, VideoError, as_size, scaled_size
from ._container import Layout, Packets
from ._indexed import IndexedReader
from ._pixels import rescale

PIXEL_FORMATS = ("yuv420p", "yuvj420p")
CODECS = ("h264", "hevc")
CONTAINERS = ("mov", "matroska")
# Share of lost frames from which decord raises; without it, it shows others in their place. (It looks for the point.)
ANY_FAULT = 1.1e-9
# Readers of a parent process: their threads do not exist in a forked child, so that freeing them would wait for ever.
_LEFT_TO_PARENT: list[object] = []


class DecordReader(IndexedReader):
    """Ordinary h264 and hevc files by decord.

    threads: decoding threads; 0 = decord's choice. Each size that is asked for is decoded by a reader of its own.
    """

    decoder = "decord"
    _open_things = ("_readers",)

    def __init__(self, path: str, *, threads: int = 0) -> None:
        if find_spec("decord") is None:
            raise ValueError("decoder='decord' needs the package decord, which is not installed; use decoder='pyav'")
        self._readers: dict[tuple[int, int], Any] = {}
        super().__init__(path, threads=threads)
        self._reader((-1, -1))

    @classmethod
    def why_not(cls, layout: Layout, packets: Packets) -> str | None:
        info = layout.info
        if info.container not in CONTAINERS:
            return f"it reads {' and '.join(CONTAINERS)} files right, not {info.container}"
        if info.codec not in CODECS:
            return f"it reads {' and '.join(CODECS)} right, not {info.codec}"
        if layout.edited:
            return "an edit list hides some of its frames, and decord shows them"
        if packets.open_groups:
            return "pictures before some of its key frames lean on ones before those, and decord jumps into the middle"
        if layout.num_video_streams > 1:
            return "it holds several video streams, and decord may take another one than the first"
        if layout.interlaced:
            return "its pictures are interlaced"
        if info.rotation_degrees or info.pixel_format not in PIXEL_FORMATS or info.width % 2 or info.height % 2:
            return (
                f"pictures of {info.width}x{info.height} {info.pixel_format}, turned by {info.rotation_degrees} "
                "degrees, get other pixels by decord than by other decoders"
            )
        if not layout.ascending or layout.damage:
            return "it is damaged or put together of several recordings"
        return None

    def _reader(self, size: tuple[int, int]) -> Any:
        if size not in self._readers:
            import decord

            try:
                reader = decord.VideoReader(
                    self.path,
                    num_threads=self._threads,
                    width=size[0],
                    height=size[1],
                    fault_tol=ANY_FAULT,  # type: ignore[arg-type]
                )
            except (decord.DECORDError, RuntimeError, AssertionError) as error:
                raise VideoError(f"{self.path}: decord cannot open it: {_first_line(error)}") from error
            if len(reader) != len(self._pts_seconds):
                raise VideoError(
                    f"{self.path}: decord counts {len(reader)} frames, its packets show {len(self._pts_seconds)}"
                )
            self._readers[size] = reader
        return self._readers[size]

    def _pictures(self, numbers: np.ndarray, short_side: SizeLike) -> np.ndarray:
        import decord

        size = scaled_size(self.info.width, self.info.height, short_side)
        bilinear = as_size(short_side).interpolation == "bilinear"  # all that it can scale by itself
        reader = self._reader((-1, -1) if size == (self.info.width, self.info.height) or not bilinear else size)
        try:
            return rescale(reader.get_batch(numbers.tolist()).asnumpy(), self.info, short_side)
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError) as error:
            raise VideoError(f"{self.path}: decord fails: {_first_line(error)}") from error

    def _forget(self) -> None:
        if self._owner != os.getpid():
            _LEFT_TO_PARENT.append(self._readers)
        self._readers = {}


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    # decord puts the place in its C++ source before the words.
    return lines[0].split("Check failed:")[-1].strip() if lines else type(error).__name__
