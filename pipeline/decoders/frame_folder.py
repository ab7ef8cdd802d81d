"""Folders and tar files of frames (jpg, png, ...), read as videos.

Frames are numbered by the last digits of their names (`0000000001.jpg`, `frame_0000000001.jpg`, `img_00001.png`,
`00001_rgb.jpg`). The numbers are the clock: frame n is on screen at (n - first) / frame_fps seconds, whether counting
begins at 0, at 1 or later. Where numbers are missing, times and annotated frame numbers therefore stay right, and the
frame before the gap stays on screen, as in any video of variable frame rate. Names without numbers are taken in
natural order, one step each. A file `timestamps.txt` beside the frames (one number a line: seconds, ascending, one per
frame) takes the place of numbers and frame_fps.

In a folder that holds several series (`img_%05d.jpg`, `flow_x_%05d.jpg`, `flow_y_%05d.jpg`) flow series are left out;
of others one must be named by a pattern: `open_video("folder/img_%05d.jpg")`. Of several fields in a pattern the first
counts, and the others stand for any number: `frame_%d_tc_%d_rgb.jpg`. Tar files are read in place at their members'
offsets, so they must not be compressed.

Pictures are 8-bit RGB (16 bits are cut to 8, transparency is dropped), turned as their EXIF orientation says, scaled
to the size of the first one where sizes differ. JPEGs asked for at a quarter of their size or less are decoded at a
half, a quarter or an eighth of it, never below twice the size asked for: 2 to 3 times faster, 0.3 grey levels apart on
average.

Pictures of 16 bits (png, tiff, pgm), as depth cameras write them, keep all bits in `depth_at`: `depth_bits` is 16 where
the first picture is one, and `info.pixel_format` "gray16" or, with several channels (of which depth is the first),
"rgb48" or "rgba64".
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..depth import scale_by_nearest
from ..types import DepthFrames, Frames
from ..video import (
    SizeLike,
    VideoError,
    VideoInfo,
    VideoReader,
    as_size,
    check_batch,
    check_times,
    scaled_size,
)
from ._pixels import MAX_BATCH_BYTES
from .frame_files import (
    FLOW,
    IMAGE_EXTENSIONS,
    FolderOfFrames,
    TarOfFrames,
    extension_of,
    fitting,
    frame_series,
    is_frame_pattern,
    natural_order,
)

TIMESTAMPS = "timestamps.txt"
_KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PIXEL_FORMATS = {"1": "monob", "L": "gray", "LA": "ya8", "P": "pal8", "RGB": "rgb24", "RGBA": "rgba"}
_GREY16 = "gray16"
_WIDE = {"RGB": "rgb48", "RGBA": "rgba64"}  # Pillow's mode -> what it is where samples have 16 bits
_TURNS = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}  # EXIF orientation -> counter-clockwise degrees


# Frame number -> the frame at each size that is wanted, or the reason why it cannot be read.
_Read = Callable[[int], tuple[np.ndarray, ...] | str]


@dataclass(frozen=True)
class _Header:
    width: int  # as displayed
    height: int
    rotation_degrees: int
    codec: str
    pixel_format: str


def _read_header(data: bytes) -> _Header:
    with Image.open(BytesIO(data)) as image:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), 0)
        width, height = image.size if turn % 180 == 0 else image.size[::-1]
        codec = (image.format or "unknown").lower()
        pixel_format = _PIXEL_FORMATS.get(image.mode, image.mode.lower())
        # Pillow's names of 16 grey bits differ by byte order, format and release; of these formats "I" is nothing else.
        if image.mode.startswith("I;16") or (image.mode == "I" and codec in ("png", "ppm")):
            pixel_format = _GREY16
        elif image.mode in _WIDE and _has_16_bits(data, codec):  # Pillow cuts them, and says nothing
            pixel_format = _WIDE[image.mode]
        sampling = {(1, 1): "444", (2, 1): "422", (2, 2): "420"}
        if codec == "jpeg" and image.mode == "RGB":  # layer: (component, horizontal, vertical, table) by Pillow
            pixel_format = f"yuvj{sampling.get(tuple(getattr(image, 'layer', [()])[0][1:3]), '')}p"
    return _Header(width, height, turn, codec, pixel_format)


def _has_16_bits(data: bytes, codec: str) -> bool:
    if codec == "png":
        return data[24] == 16  # the header's bits of a sample
    if codec not in ("tiff", "ppm"):
        return False
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return picture is not None and picture.dtype == np.uint16


class FrameFolderReader(VideoReader):
    """Frames of a folder, of a tar file or of a pattern such as `folder/img_%05d.jpg`; see the module's text.

    frame_fps: how fast the frames' numbers run, in numbers a second.
    damage: reasons why frames that were asked for could not be shown; the last good one before (at the start: the first
        good one) stood in.
    """

    decoder = "frame_folder"
    decoder_reason = "frames, no video file"
    # Times that are computed another way than ours (start + k / fps) may fall short of a frame's by a rounding.
    slack_seconds = 1e-6

    def __init__(self, path: str | Path, *, frame_fps: float = 30.0) -> None:
        self.path = str(path)
        if not (frame_fps > 0 and np.isfinite(frame_fps)):
            raise ValueError(f"frame_fps is {frame_fps}; it must be a positive number of frames a second")
        self.frame_fps = float(frame_fps)
        self.damage: list[str] = []
        self._stand_ins: dict[int, int] = {}  # broken frame -> the frame that is shown for it
        self._deep: dict[int, np.ndarray] = {}  # 16-bit pictures shown last: `depth_at` is asked for them next
        container, pattern = self.path, None
        if is_frame_pattern(container) and not os.path.exists(container):
            container, pattern = os.path.split(container)
        self._source = (
            FolderOfFrames(container or ".") if pattern or os.path.isdir(container) else TarOfFrames(container)
        )
        try:
            self._names, self._times, self._end = self._order(pattern)
            self.info = self._look()
            self.depth_bits = 16 if self.info.pixel_format in (_GREY16, *_WIDE.values()) else 8
        except BaseException:
            self._source.close()
            raise
        if self._source.damage:
            self.damage.append(self._source.damage)

    # --- what there is

    def _order(self, pattern: str | None) -> tuple[list[str], np.ndarray, float]:
        """Names in order, float64 (N,) seconds when each comes on screen, and when the last one goes."""
        series = frame_series(self._source.names)
        if pattern is not None:
            chosen = fitting(pattern, self._source.names)
            if not chosen:
                raise VideoError(f"{self.path}: no file fits the pattern {pattern!r}")
        else:
            shown = {key: files for key, files in series.items() if not FLOW.match(key[0])} or series
            several = {key: files for key, files in shown.items() if len(files) > 1}
            if len(several) > 1:
                patterns = sorted(
                    f"{before}%d{after}{extension_of(files[0][1])}" for (before, after), files in several.items()
                )
                raise VideoError(
                    f"{self.path}: holds {len(patterns)} series of frames ({', '.join(patterns[:4])}); "
                    f"name one by its pattern, for instance {os.path.join(self.path, patterns[0])}"
                )
            chosen = next(iter((several or shown).values())) if len(several or shown) == 1 else None
        if chosen is not None:
            chosen.sort()
            names, numbers = [name for _, name in chosen], np.array([number for number, _ in chosen], np.int64)
            same = np.flatnonzero(np.diff(numbers) == 0)
            if len(same):
                raise VideoError(
                    f"{self.path}: {names[same[0]]} and {names[same[0] + 1]} have one number; remove one of the two, "
                    "or name one kind by a pattern such as %05d.png"
                )
        else:
            images = (name for name in self._source.names if extension_of(name) in IMAGE_EXTENSIONS)
            names = sorted(images, key=natural_order)
            numbers = np.arange(len(names), dtype=np.int64)
        if not names:
            raise VideoError(f"{self.path}: holds no frames ({', '.join(sorted(IMAGE_EXTENSIONS))})")
        if TIMESTAMPS in self._source.names:
            times = self._read_timestamps(len(names))
        else:
            if numbers[-1] - numbers[0] > 1000 * len(numbers):
                raise VideoError(
                    f"{self.path}: {len(names)} frames are numbered from {numbers[0]} to {numbers[-1]}: these look "
                    f"like times, not like counts; write each frame's seconds into {TIMESTAMPS} beside them"
                )
            times = (numbers - numbers[0]) / self.frame_fps
        last_step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / self.frame_fps
        return names, times, float(times[-1]) + last_step

    def _read_timestamps(self, num_frames: int) -> np.ndarray:
        try:
            times = np.loadtxt(BytesIO(self._source.read(TIMESTAMPS)), dtype=np.float64, ndmin=1)
        except (OSError, ValueError) as error:
            raise VideoError(f"{self.path}: {TIMESTAMPS} cannot be read: {error}") from error
        if times.shape != (num_frames,) or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise VideoError(
                f"{self.path}: {TIMESTAMPS} holds an array of shape {times.shape} for {num_frames} frames; "
                "it must be one number of seconds per line and frame, each greater than the one before"
            )
        return times

    def _look(self) -> VideoInfo:
        header = reason = None
        for name in self._names:
            try:
                header = _read_header(self._source.read(name))
                break
            except UnidentifiedImageError:
                reason = reason or f"{name}: no picture that can be decoded"
            except Exception as error:  # Pillow's plugins raise whatever they stumble over
                reason = reason or f"{name}: {error}"
        if header is None:
            raise VideoError(f"{self.path}: none of the {len(self._names)} frames can be read ({reason})")
        steps = np.diff(self._times)
        span = self._end - float(self._times[0])
        return VideoInfo(
            path=self.path,
            container="tar" if isinstance(self._source, TarOfFrames) else "folder",
            codec=header.codec,
            pixel_format=header.pixel_format,
            width=header.width,
            height=header.height,
            rotation_degrees=header.rotation_degrees,
            num_frames=len(self._names),
            start_seconds=float(self._times[0]),
            duration_seconds=span,
            average_fps=len(self._names) / span,
            variable_frame_rate=bool(len(steps) and (np.abs(steps - np.median(steps)) > 1e-6).any()),
            has_audio=False,
        )

    # --- pictures

    def _bytes(self, index: int) -> np.ndarray | str:
        """The file of frame `index`, uint8 (bytes,), or the reason why it cannot be read."""
        try:
            data = np.frombuffer(self._source.read(self._names[index]), np.uint8)
        except OSError as error:
            return f"{self._names[index]}: {error.strerror or error}"
        return data if len(data) else f"{self._names[index]}: the file is empty (0 bytes)"

    def _depth(self, index: int) -> tuple[np.ndarray] | str:
        """Frame `index` as uint16 (H, W, 1), or the reason why it cannot be read."""
        depth = self._deep.get(index)
        if depth is None:
            data = self._bytes(index)
            depth = data if isinstance(data, str) else self._decoded(index, data, cv2.IMREAD_UNCHANGED)
        if isinstance(depth, str):
            return depth
        if depth.dtype != np.uint16:  # another unit: no number of it may stand among the others
            return f"{self._names[index]}: {depth.dtype} depth among frames of 16 bits"
        # the first channel, where there are several: OpenCV's order is blue, green, red
        depth = depth[..., 2:3] if depth.ndim == 3 else depth[..., None]
        return (scale_by_nearest(depth, self.info.height, self.info.width),)

    def _decoded(self, index: int, data: np.ndarray, flag: int) -> np.ndarray | str:
        """The picture in a file's bytes, or the reason why there is none."""
        try:
            picture = cv2.imdecode(data, flag)
        except cv2.error as error:
            return f"{self._names[index]}: {error.err or error}"
        return f"{self._names[index]}: no picture that can be decoded" if picture is None else picture

    def _colours(self, index: int, data: np.ndarray, flag: int) -> np.ndarray | str:
        """RGB of a file's bytes, uint8 (H, W, 3), or the reason why there is none."""
        if self.depth_bits == 16 and not self.info.rotation_degrees:
            deep = self._decoded(index, data, cv2.IMREAD_UNCHANGED)
            if isinstance(deep, str):
                return deep
            if deep.dtype == np.uint16:
                self._deep[index] = deep
                upper = np.atleast_3d((deep >> 8).astype(np.uint8))
                return upper.repeat(3, 2) if upper.shape[2] == 1 else np.ascontiguousarray(upper[..., 2::-1])
        picture = self._decoded(index, data, flag)
        return picture if isinstance(picture, str) else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=picture)

    def _picture(self, index: int, short_sides: Sequence[SizeLike]) -> tuple[np.ndarray, ...] | str:
        """Frame `index` as uint8 (H, W, 3) RGB at each size, or the reason why it cannot be read."""
        data = self._bytes(index)
        if isinstance(data, str):
            return data
        is_jpeg = data[:2].tobytes() == b"\xff\xd8"
        if is_jpeg and (packed := data.tobytes()).rfind(b"\xff\xd9") < packed.rfind(b"\xff\xda"):
            return f"{self._names[index]}: the JPEG is cut off"  # decoders fill the rest with grey and say nothing
        decoded: dict[int, np.ndarray] = {}
        pictures = []
        for short_side in short_sides:
            width, height = scaled_size(self.info.width, self.info.height, short_side)
            side, interpolation = as_size(short_side)
            divisor = 1
            if is_jpeg and side is not None:
                while divisor < 8 and min(self.info.width, self.info.height) >= 4 * divisor * side:
                    divisor *= 2
            if divisor not in decoded:
                flag = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}.get(
                    divisor, cv2.IMREAD_REDUCED_COLOR_8
                )
                colours = self._colours(index, data, flag)
                if isinstance(colours, str):
                    return colours
                decoded[divisor] = colours
            picture = decoded[divisor]
            if picture.shape[:2] != (height, width):
                # The same kernel as the other decoders' (see _pixels.py): equal pictures from frames and from video.
                scaled = Image.fromarray(picture).resize((width, height), _KERNELS[interpolation])
                picture = np.asarray(scaled)
            pictures.append(picture)
        return tuple(pictures)

    def _readable(self, index: int, read: _Read) -> int:
        """The frame that stands in for the broken frame `index`."""
        before = index - 1
        while before >= 0:
            if before in self._stand_ins:  # everything between is broken too
                return self._stand_ins[before]
            if not isinstance(read(before), str):
                return before
            before -= 1
        for after in range(index + 1, len(self._names)):
            if after not in self._stand_ins and not isinstance(read(after), str):
                return after
        raise VideoError(f"{self.path}: none of the {len(self._names)} frames can be read ({self.damage[-1]})")

    def _load(
        self, indices: np.ndarray, read: _Read, *, skip_broken: bool = False
    ) -> tuple[np.ndarray, dict[int, tuple[np.ndarray, ...]]]:
        """Which frames are shown for `indices`, and what `read` gives of each. Broken ones are replaced by their
        stand-in, or left out.
        """
        wanted = list(dict.fromkeys(indices.tolist()))
        # Threads of one call: nothing to carry over a fork or into a pickle. OpenCV decodes outside of the GIL.
        with ThreadPoolExecutor(max(1, min(len(wanted), 8, os.cpu_count() or 1))) as pool:
            pictures = dict(zip(wanted, pool.map(read, wanted), strict=True))
        shown: dict[int, tuple[np.ndarray, ...]] = {}
        stand_in_for = {}
        for index in wanted:
            picture = pictures[index]
            if not isinstance(picture, str):
                shown[index] = picture
                continue
            if index not in self._stand_ins:
                self.damage.append(picture)
                self._stand_ins[index] = self._readable(index, read)
            stand_in_for[index] = self._stand_ins[index]
        if skip_broken:
            indices = indices[[index in shown for index in indices.tolist()]]
        else:
            indices = np.array([stand_in_for.get(index, index) for index in indices.tolist()], np.int64)
            for index in set(stand_in_for.values()) - shown.keys():
                picture = read(index)
                if isinstance(picture, str):
                    raise VideoError(f"{self.path}: {picture}")
                shown[index] = picture
        return indices, shown

    def _show(
        self, indices: np.ndarray, short_sides: Sequence[SizeLike], *, skip_broken: bool = False
    ) -> tuple[Frames, ...]:
        """Frames `indices` at each size."""
        self._deep.clear()
        read = partial(self._picture, short_sides=short_sides)
        indices, shown = self._load(indices, read, skip_broken=skip_broken)
        frames = []
        for number, short_side in enumerate(short_sides):
            width, height = scaled_size(self.info.width, self.info.height, short_side)
            data = np.empty((len(indices), height, width, 3), np.uint8)
            for row, index in enumerate(indices.tolist()):
                data[row] = shown[index][number]
            frames.append(Frames(data, self._times[indices]))
        return tuple(frames)

    def depth_at(self, seconds: Sequence[float], outside: str = "error") -> DepthFrames:
        if self.depth_bits == 8:
            return super().depth_at(seconds, outside)
        indices, shown = self._load(self._on_screen(check_times(self, seconds, outside)), self._depth)
        data = np.empty((len(indices), self.info.height, self.info.width, 1), np.uint16)
        for row, index in enumerate(indices.tolist()):
            data[row] = shown[index][0]
        return DepthFrames(data, self._times[indices])

    def _rows(self, batch: int, short_sides: Sequence[SizeLike]) -> int:
        check_batch(batch)
        sizes = [scaled_size(self.info.width, self.info.height, short_side) for short_side in short_sides]
        return max(1, min(batch, MAX_BATCH_BYTES // sum(3 * width * height for width, height in sizes)))

    def _on_screen(self, seconds: np.ndarray) -> np.ndarray:
        return np.clip(np.searchsorted(self._times, seconds + self.slack_seconds, side="right") - 1, 0, None)

    def select(
        self, seconds: Iterable[float], short_sides: Sequence[SizeLike] = (None,), batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        rows = self._rows(batch, short_sides)
        times, latest = iter(seconds), -np.inf
        while True:
            asked = np.fromiter(islice(times, rows), np.float64)
            if not len(asked):
                return
            if not (np.diff(asked, prepend=latest) >= 0).all():
                raise ValueError(f"{self.path}: select wants ascending times; use frames_at for any order")
            latest = asked[-1]
            inside = asked[asked < self._end - self.slack_seconds]
            if len(inside):
                yield self._show(self._on_screen(inside), short_sides)
            if len(inside) < len(asked):
                return

    def all_frames(
        self, short_sides: Sequence[SizeLike] = (None,), start_seconds: float = -math.inf, batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        rows = self._rows(batch, short_sides)
        if start_seconds >= self._end:
            return
        first = int(self._on_screen(np.array([start_seconds]))[0])
        for start in range(first, len(self._names), rows):
            indices = np.arange(start, min(start + rows, len(self._names)))
            shown = self._show(indices, short_sides, skip_broken=True)
            if len(shown[0]):
                yield shown

    def close(self) -> None:
        self._source.close()

    def __reduce__(self) -> tuple:
        return _reopen, (self.path, self.frame_fps)


def _reopen(path: str, frame_fps: float) -> FrameFolderReader:
    return FrameFolderReader(path, frame_fps=frame_fps)
