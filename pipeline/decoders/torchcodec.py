"""torchcodec (optional): PyTorch's decoder, taken only when asked for by name.

Native pixels of 8-bit video equal those of the other decoders bit for bit; those of deep and of odd-sized video lie
less than one grey level off on average. It hands over RGB only, so scaled pictures are made from RGB, by the same
kernel: 1 to 1.5 grey levels from those of the other decoders, which scale before they convert. So `auto` passes it by.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from ..video import SizeLike, VideoError
from ._container import Layout, Packets
from ._indexed import IndexedReader
from ._pixels import rescale

CONTAINERS = ("mov", "matroska", "gif")


class TorchCodecReader(IndexedReader):
    """Files of ordinary containers by torchcodec, on the CPU. threads: decoding threads; 0 = one per core."""

    decoder = "torchcodec"

    def __init__(self, path: str, *, threads: int = 0) -> None:
        if find_spec("torchcodec") is None:
            raise ValueError(
                "decoder='torchcodec' needs the package torchcodec: pip install 'actionfuse[torchcodec]' "
                "(and FFmpeg's shared libraries), or use decoder='pyav'"
            )
        self._decoders: dict[str, Any] = {}
        super().__init__(path, threads=threads)
        self._opened()

    @classmethod
    def why_not(cls, layout: Layout, packets: Packets) -> str | None:
        if layout.info.container not in CONTAINERS:
            return f"it reads {', '.join(CONTAINERS)} files right, not {layout.info.container}"
        if layout.interlaced:
            return "its pictures are interlaced"
        info = layout.info
        if (info.width % 2 or info.height % 2) and "420" in info.pixel_format:
            return f"its colours would be placed otherwise at the odd size {info.width}x{info.height}"
        if layout.num_video_streams > 1:
            return "it holds several video streams, and torchcodec may take another one than the first"
        if not layout.ascending or layout.damage:
            return "it is damaged or put together of several recordings"
        return None

    def _opened(self) -> Any:
        if "decoder" not in self._decoders:
            try:
                from torchcodec.decoders import VideoDecoder
            except (ImportError, RuntimeError, OSError) as error:
                raise ValueError(f"torchcodec does not load here (FFmpeg's libraries are missing?): {error}") from error
            try:
                decoder = VideoDecoder(
                    self.path, dimension_order="NHWC", num_ffmpeg_threads=self._threads, seek_mode="exact"
                )
            except (RuntimeError, ValueError) as error:
                raise VideoError(f"{self.path}: torchcodec cannot open it: {_last_line(error)}") from error
            if decoder.metadata.num_frames != len(self._pts_seconds):
                raise VideoError(
                    f"{self.path}: torchcodec counts {decoder.metadata.num_frames} frames, "
                    f"its packets show {len(self._pts_seconds)}"
                )
            self._decoders["decoder"] = decoder
        return self._decoders["decoder"]

    def _pictures(self, numbers: np.ndarray, short_side: SizeLike) -> np.ndarray:
        try:
            native = self._opened().get_frames_at(numbers.tolist()).data.numpy()
        except (RuntimeError, IndexError) as error:
            raise VideoError(f"{self.path}: torchcodec fails: {_last_line(error)}") from error
        return rescale(native, self.info, short_side)  # it turns pictures by itself

    def _forget(self) -> None:
        self._decoders = {}

    _open_things = ("_decoders",)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
