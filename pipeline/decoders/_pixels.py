"""Decoded frames to RGB rows of a numpy array, at the size asked for.

Pixels are those of FFmpeg's own `scale` filter (when shrinking, its kernel covers all pixels that fall into one, as
"antialias" elsewhere). With `flags=bilinear` bit for bit: decord and torchcodec use the same filter, so all decoders
give equal pictures. Bicubic is Pillow's kernel, which image networks learned from. Colour matrix and range are those of
the stream's tags; BT.601 limited where it has none.
"""

from __future__ import annotations

import re
from dataclasses import replace

import av
import numpy as np
from av.filter import Graph
from av.plane import Plane
from av.video.reformatter import Interpolation as Kernel
from av.video.reformatter import VideoReformatter

from ..types import Frames
from ..video import SizeLike, VideoError, VideoInfo, as_size, scaled_size

# Larger batches are written past the processor's caches into memory fresh from the system: measured, whole decoding of
# 1080p to 455x256 takes 30 % more time in batches of 22 MiB than of 11.
MAX_BATCH_BYTES = 12 << 20
# From this many source pixels on, several threads scale one picture faster than one thread does.
_MIN_PIXELS_FOR_THREADS = 1 << 20
# Where size and pixels let FFmpeg convert without scaling, the plain converter gives the filter's pixels for less.
_UNSCALED = ("yuv420p", "yuvj420p")
# FFmpeg's own bicubic has a = -0.6.
_KERNELS = {"bilinear": "flags=bilinear", "bicubic": "flags=bicubic:param0=0:param1=0.5"}


class Scaler:
    """Writes frames of one video as (height, width, 3) RGB, display rotation applied; size changes are scaled away.

    threads: for large pictures; 0 = one per core.
    """

    def __init__(self, info: VideoInfo, size: SizeLike, threads: int = 1) -> None:
        self.width, self.height = scaled_size(info.width, info.height, size)
        self._kernel = _KERNELS[as_size(size).interpolation]
        self._quarter_turns = info.rotation_degrees // 90
        turned = self._quarter_turns % 2
        self._stored = (self.height, self.width) if turned else (self.width, self.height)
        self._threads = threads if info.width * info.height >= _MIN_PIXELS_FOR_THREADS else 1
        self._shape: tuple | None = None
        self._graph: Graph | None = None
        self._reformatter: VideoReformatter | None = None
        self._in_planes = False  # the graph gives green, blue and red apart

    def write(self, frame: av.VideoFrame, row: np.ndarray) -> None:
        """row: uint8 (height, width, 3), filled with the frame."""
        shape = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if shape != self._shape:
            self._configure(*shape)
            self._shape = shape
        width, height = self._stored
        if self._graph is not None:
            self._graph.push(frame)
            picture = self._graph.pull()
        else:
            assert self._reformatter is not None
            picture = self._reformatter.reformat(
                frame,
                width=width,
                height=height,
                format="rgb24",
                interpolation=Kernel.BILINEAR,
                threads=self._threads,
            )
        if self._in_planes:
            import cv2  # here, so that opening a video does not load it

            green, blue, red = (_rows(plane, height, width) for plane in picture.planes)
            if not self._quarter_turns:
                cv2.merge((red, green, blue), row)
                return
            pixels = cv2.merge((red, green, blue))
        else:
            pixels = _rows(picture.planes[0], height, width * 3).reshape(height, width, 3)
        row[...] = np.rot90(pixels, self._quarter_turns) if self._quarter_turns else pixels

    def _configure(self, width: int, height: int, pixel_format: str, colorspace: int, color_range: int) -> None:
        self._graph = self._reformatter = None
        self._in_planes = False
        even = width % 2 == 0 and height % 2 == 0
        if (width, height) == self._stored and pixel_format in _UNSCALED and even:
            self._reformatter = VideoReformatter()
            return
        graph = Graph()
        graph.threads = self._threads
        source = graph.add(
            "buffer",
            f"video_size={width}x{height}:pix_fmt={pixel_format}:time_base=1/1000:pixel_aspect=1/1"
            f":colorspace={colorspace}:range={color_range}",
        )
        # The filter's default for 4:2:0, written out: tags that other decoders overlook must not move colours.
        chroma = ":in_v_chr_pos=128" if "420" in pixel_format else ""
        to_width, to_height = self._stored
        steps, formats = [f"{self._kernel}{chroma}"], ["rgb24"]
        rounds_alike = "bicubic" in self._kernel or height > 1.1 * to_height
        # To RGB FFmpeg scales in plain C; from planes to planes it has vector code.
        if pixel_format.startswith("yuv") and to_width % 2 and rounds_alike:
            # For odd widths it interpolates chroma for each pixel. By planes of green, blue and red numbers are equal,
            # in 0.35 to 0.5 of the time; but where two rows make one (bilinear, nearly the same height or a larger one)
            # it rounds in a way of its own.
            full = self._kernel.replace("flags=", "flags=full_chroma_int+")
            steps, formats, self._in_planes = [f"{full}{chroma}"], ["gbrp"], True
        elif pixel_format in _UNSCALED and to_width % 2 == 0 and to_width < width and to_height < height:
            # Equal to the last bit, in two thirds of the time: in one step it rounds to 8 bits at this same place.
            exact = self._kernel.replace("flags=", "flags=accurate_rnd+")
            steps, formats = [f"{exact}{chroma}", exact], [pixel_format.replace("420", "422"), "rgb24"]
        nodes = [source]
        for step, to_format in zip(steps, formats, strict=True):
            nodes.append(graph.add("scale", f"{to_width}:{to_height}:threads={self._threads or 'auto'}:{step}"))
            nodes.append(graph.add("format", to_format))
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        self._graph = graph


def _rows(plane: Plane, height: int, length: int) -> np.ndarray:
    """uint8 (height, length), a view."""
    return np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, :length]  # type: ignore[arg-type]


class Batch:
    """Collects shown frames at several sizes and hands them over as one `Frames` per size."""

    def __init__(self, scalers: list[Scaler], size: int) -> None:
        self._scalers = scalers
        bytes_per_row = sum(s.width * s.height * 3 for s in scalers)
        # Batches may be smaller than asked for, never larger.
        self._rows = max(1, min(size, MAX_BATCH_BYTES // max(1, bytes_per_row)))
        self._data: list[np.ndarray] = []
        self._times: list[float] = []
        self._last: av.VideoFrame | None = None

    def __len__(self) -> int:
        return len(self._times)

    @property
    def full(self) -> bool:
        return len(self._times) >= self._rows

    def add(self, pts_seconds: float, frame: av.VideoFrame) -> None:
        if not self._times:
            self._data = [np.empty((self._rows, s.height, s.width, 3), np.uint8) for s in self._scalers]
        k = len(self._times)
        for scaler, data in zip(self._scalers, self._data, strict=True):
            if k and frame is self._last:
                data[k] = data[k - 1]
            else:
                scaler.write(frame, data[k])
        self._times.append(pts_seconds)
        self._last = frame

    def take(self) -> tuple[Frames, ...]:
        times = np.array(self._times, np.float64)
        given = tuple(Frames(data[: len(times)], times) for data in self._data)
        self._data, self._times, self._last = [], [], None
        return given


def depth_type(pixel_format: str) -> np.dtype | None:
    """The numbers of grey pictures of more than 8 bits, as FFmpeg lays them out; None for all other pictures."""
    found = re.fullmatch(r"gray(?:9|10|12|14|16)(le|be)", pixel_format)
    return None if found is None else np.dtype("<u2" if found[1] == "le" else ">u2")


def read_depth(frame: av.VideoFrame, quarter_turns: int) -> np.ndarray:
    """uint16 (H, W, 1) of a grey frame of more than 8 bits, as stored, display rotation applied.

    Raises: VideoError for any other frame.
    """
    kind = depth_type(frame.format.name)
    if kind is None:
        raise VideoError(f"a frame of {frame.format.name} among those of more than 8 grey bits")
    plane = frame.planes[0]
    numbers = np.frombuffer(plane, kind).reshape(frame.height, -1)[:, : frame.width]  # type: ignore[arg-type]
    return np.rot90(numbers, quarter_turns)[..., None].astype(np.uint16)


def rescale(pictures: np.ndarray, info: VideoInfo, size: SizeLike) -> np.ndarray:
    """uint8 (N, H, W, 3) RGB that is turned already, at the size asked for; the same array where that is its size."""
    scaler = Scaler(replace(info, rotation_degrees=0), size)
    if pictures.shape[1:3] == (scaler.height, scaler.width):
        return pictures
    scaled = np.empty((len(pictures), scaler.height, scaler.width, 3), np.uint8)
    for picture, row in zip(pictures, scaled, strict=True):
        scaler.write(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24"), row)
    return scaled
