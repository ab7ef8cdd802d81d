"""Files of optical flow: lossless video of codes, pairs of jpgs, arrays, and a preview for people.

A flow video (`.flow.mkv`) is FFV1, grey: u on the left half and v on the right, as codes of `quantise`. It is lossless
and every picture stands alone, so `open_video` reads the codes back exactly, in any order (R = G = B = code), and
`unpack_flow` turns them into pixels. Each picture has the time of its field's first frame, in Matroska's milliseconds.

jpg pairs carry the same codes, less exactly: at quality 95 jpg adds 0.01 pixels on average and up to half a pixel at
motion boundaries (DIS, bound 20). Every kind holds the recipe it was made by, see `read_recipe`.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
from av.error import FFmpegError

from .flow import FLOW_BOUND_PIXELS, dequantise, flow_to_rgb, quantise
from .video import VideoError

FlowKind = Literal["video", "jpg", "preview", "npz"]
KINDS: tuple[FlowKind, ...] = ("video", "jpg", "preview", "npz")
SUFFIXES: dict[FlowKind, str] = {"video": ".flow.mkv", "jpg": "", "preview": ".preview.mp4", "npz": ".flow.npz"}
# Names of the jpg pairs of field k = 1, 2, ...: ours, and those of two public sets of files.
JPG_NAMES = {
    "uv": ("u/{:010d}.jpg", "v/{:010d}.jpg"),
    "tsn": ("flow_x_{:05d}.jpg", "flow_y_{:05d}.jpg"),
    "epic": ("u/frame_{:010d}.jpg", "v/frame_{:010d}.jpg"),
}
_JPG_RECIPE = "flow.json"
_TAG = "comment"  # one that both Matroska and mp4 keep


def pack_flow(flow: np.ndarray, bound: float = FLOW_BOUND_PIXELS) -> np.ndarray:
    """Flow (T, H, W, 2) in pixels -> pictures uint8 (T, H, 2 W): codes of u on the left, of v on the right."""
    codes = quantise(flow, bound)
    return np.concatenate([codes[..., 0], codes[..., 1]], axis=2)


def unpack_flow(pictures: np.ndarray, bound: float = FLOW_BOUND_PIXELS) -> np.ndarray:
    """Pictures of a flow video, uint8 (T, H, 2 W) or as RGB (T, H, 2 W, 3) -> flow float32 (T, H, W, 2) in pixels."""
    grey = pictures[..., 0] if pictures.ndim == 4 else pictures
    if grey.ndim != 3 or grey.shape[2] % 2:
        raise ValueError(f"pictures are {pictures.shape}; a flow video's are (T, H, 2 W), u beside v")
    half = grey.shape[2] // 2
    return dequantise(np.stack([grey[..., :half], grey[..., half:]], axis=-1), bound)


def read_flow_video(path: str | Path, batch: int = 64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A `.flow.mkv` from its start, `batch` fields at a time: float32 (n, H, W, 2) in pixels, float64 (n,) seconds.

    Raises: VideoError where the file is no flow video or breaks off.
    """
    bound = read_recipe(path, "video")["bound_pixels"]
    pictures: list[np.ndarray] = []
    times: list[float] = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                pictures.append(frame.to_ndarray(format="gray"))
                times.append(float((frame.pts or 0) * (frame.time_base or 0)))
                if len(pictures) == batch:
                    yield unpack_flow(np.stack(pictures), bound), np.array(times)
                    pictures, times = [], []
    except (FFmpegError, OSError) as error:
        raise VideoError(f"{path}: not a readable flow video: {error}") from error
    if pictures:
        yield unpack_flow(np.stack(pictures), bound), np.array(times)


def read_recipe(path: str | Path, kind: FlowKind) -> dict[str, Any]:
    """How an output was made: method, bound_pixels, ... VideoError where it does not say (so it is none of ours)."""
    try:
        if kind == "jpg":
            text = (Path(path) / _JPG_RECIPE).read_text(encoding="utf-8")
        elif kind == "npz":
            with np.load(path) as arrays:
                text = str(arrays["recipe"])
        else:
            with av.open(str(path)) as container:
                text = {key.lower(): value for key, value in container.metadata.items()}[_TAG]
        return json.loads(text)["flow"]
    except (FFmpegError, OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise VideoError(f"{path}: no recipe of flow can be read from it: {error}") from error


class FlowWriter(ABC):
    """Writes the fields of one video to `path`, as they come. The caller renames the whole into place."""

    @abstractmethod
    def add(self, frames: np.ndarray, flow: np.ndarray, pts_seconds: np.ndarray) -> None:
        """n fields: first frames uint8 (n, H, W, 3) RGB, flow (n, H, W, 2), times of the first frames (n,)."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""


def create_writer(
    kind: FlowKind,
    path: Path,
    recipe: dict[str, Any],
    *,
    bound: float = FLOW_BOUND_PIXELS,
    jpg_names: str = "uv",
    jpeg_quality: int = 95,
    preview_max_pixels: float = 8.0,
    npz_dtype: str = "float16",
) -> FlowWriter:
    """The writer of that kind; `recipe` must serialise to json."""
    if kind == "video":
        return _VideoWriter(path, recipe, bound)
    if kind == "jpg":
        return _JpgWriter(path, recipe, bound, jpg_names, jpeg_quality)
    if kind == "preview":
        return _PreviewWriter(path, recipe, preview_max_pixels)
    if kind == "npz":
        return _NpzWriter(path, recipe, np.dtype(npz_dtype))
    raise ValueError(f"no kind of flow file is named {kind!r}; there are {', '.join(KINDS)}")


class _Encoder(FlowWriter):
    """Common to both videos: pictures with times of their own."""

    codec: str
    options: dict[str, str]
    encoded_format: str
    ticks_per_second: int

    def __init__(self, path: Path, recipe: dict[str, Any], container: str) -> None:
        self._container = av.open(str(path), "w", format=container)
        self._container.metadata[_TAG] = json.dumps({"flow": recipe})
        self._stream: av.VideoStream | None = None
        self._last = -(1 << 62)

    def _encode(self, pictures: np.ndarray, picture_format: str, pts_seconds: np.ndarray) -> None:
        stream = self._stream = self._stream or self._add_stream(pictures, pts_seconds)
        for picture, seconds in zip(pictures, pts_seconds, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format=picture_format)
            frame.time_base = Fraction(1, self.ticks_per_second)
            # Two frames within one tick keep their order.
            self._last = frame.pts = max(self._last + 1, round(float(seconds) * self.ticks_per_second))
            self._container.mux(stream.encode(frame))

    def _add_stream(self, pictures: np.ndarray, pts_seconds: np.ndarray) -> av.VideoStream:
        span = pts_seconds[-1] - pts_seconds[0]
        rate = round((len(pts_seconds) - 1) / span) if span > 0 else 25  # what players show; times are what counts
        stream = self._container.add_stream(self.codec, rate=max(1, rate), options=self.options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = self.encoded_format
        stream.codec_context.time_base = Fraction(1, self.ticks_per_second)
        return stream

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


class _VideoWriter(_Encoder):
    codec = "ffv1"
    options = {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"}  # every picture stands alone, and is checked
    encoded_format = "gray"
    ticks_per_second = 1000  # Matroska's

    def __init__(self, path: Path, recipe: dict[str, Any], bound: float) -> None:
        super().__init__(path, recipe, "matroska")
        self._bound = bound

    def add(self, frames: np.ndarray, flow: np.ndarray, pts_seconds: np.ndarray) -> None:
        self._encode(pack_flow(flow, self._bound), "gray", pts_seconds)


class _PreviewWriter(_Encoder):
    codec = "libx264" if "libx264" in av.codecs_available else "h264"
    options = {"crf": "18", "preset": "veryfast"}
    encoded_format = "yuv420p"
    ticks_per_second = 90_000

    def __init__(self, path: Path, recipe: dict[str, Any], max_pixels: float) -> None:
        super().__init__(path, recipe, "mp4")
        self._max_pixels = max_pixels

    def add(self, frames: np.ndarray, flow: np.ndarray, pts_seconds: np.ndarray) -> None:
        pictures = np.concatenate([frames, flow_to_rgb(flow, self._max_pixels)], axis=2)
        # yuv420p has even sides; twice the width is even.
        pictures = np.pad(pictures, ((0, 0), (0, pictures.shape[1] % 2), (0, 0), (0, 0)), mode="edge")
        self._encode(pictures, "rgb24", pts_seconds)


class _JpgWriter(FlowWriter):
    def __init__(self, path: Path, recipe: dict[str, Any], bound: float, names: str, quality: int) -> None:
        if names not in JPG_NAMES:
            raise ValueError(f"jpg names are {names!r}; there are {', '.join(JPG_NAMES)}")
        self._path, self._recipe, self._bound, self._names = path, recipe, bound, JPG_NAMES[names]
        self._quality = [cv2.IMWRITE_JPEG_QUALITY, quality]
        self._times: list[float] = []
        for name in self._names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)

    def add(self, frames: np.ndarray, flow: np.ndarray, pts_seconds: np.ndarray) -> None:
        for codes, seconds in zip(quantise(flow, self._bound), pts_seconds, strict=True):
            self._times.append(float(seconds))
            for channel, name in enumerate(self._names):
                target = self._path / name.format(len(self._times))
                _, data = cv2.imencode(".jpg", np.ascontiguousarray(codes[..., channel]), self._quality)
                target.write_bytes(data.tobytes())  # cv2.imwrite would only return False on a full disk

    def close(self) -> None:
        content = json.dumps({"flow": self._recipe, "pts_seconds": self._times})
        (self._path / _JPG_RECIPE).write_text(content, encoding="utf-8")


class _NpzWriter(FlowWriter):
    """`flow` (T, H, W, 2) in pixels, not quantised; `pts_seconds` (T,); `recipe`, json. Not compressed."""

    def __init__(self, path: Path, recipe: dict[str, Any], dtype: np.dtype) -> None:
        self._path, self._recipe, self._dtype = path, recipe, dtype
        self._spool_path = path.with_name(path.name + ".spool")
        self._spool = open(self._spool_path, "wb")
        self._times: list[float] = []
        self._shape: tuple[int, ...] = (0, 0, 2)

    def add(self, frames: np.ndarray, flow: np.ndarray, pts_seconds: np.ndarray) -> None:
        self._spool.write(flow.astype(self._dtype).tobytes())
        self._times.extend(map(float, pts_seconds))
        self._shape = flow.shape[1:]

    def close(self) -> None:
        self._spool.close()
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False}
        try:
            with zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED) as archive:
                # The header holds the number of fields, which is known only now: memory stays small this way.
                with archive.open("flow.npy", "w", force_zip64=True) as member, open(self._spool_path, "rb") as spool:
                    shape = (len(self._times), *self._shape)
                    np.lib.format.write_array_header_1_0(member, {**header, "shape": shape})
                    shutil.copyfileobj(spool, member, 1 << 20)
                for name, value in (("pts_seconds", self._times), ("recipe", json.dumps({"flow": self._recipe}))):
                    with archive.open(f"{name}.npy", "w") as member:
                        np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
        finally:
            self._spool_path.unlink()
