"""Folders and tar files of flow pictures, a grey picture for u and one for v of every field, read as flow videos.

What is read, as it is and without conversion, in a folder or an uncompressed tar (extensions and digits do not matter):
    u/frame_0000000001.jpg  v/frame_0000000001.jpg    EPIC-KITCHENS' flow_frames
    flow_x_00001.jpg  flow_y_00001.jpg                TSN, denseflow, mmaction; img_00001.jpg may lie beside them
    x_00001.jpg  y_00001.jpg;  u_... v_...            others that tell the two apart by a part of the name
    u/0000000001.jpg  v/0000000001.jpg  flow.json     `actionfuse flow --kind jpg`

Codes: grey 0..255 is -20..20 pixels, round((v + 20) * 255 / 40) (wanglimin/dense_flow and the tool that made EPIC's;
`flow.quantise`), or what flow.json says.

Clock: field n is at (n - first) / frame_fps seconds, like frames of a folder (frame_folder.py), or as flow.json says.
It may be read where one more step, 1 / frame_fps, has passed: denseflow's field n goes from frame n to n + 1. EPIC's
2018 videos have a field for every second one of 60 frames a second, so frame_fps is 30 and frame f of rgb belongs to
field (f - 1) // 2 + 1; those of 2020 one for each of 50 (C1-Action-Recognition-TSN-TRN-TSM,
src/convert_rgb_to_flow_frame_idxs.py). EPIC's tool takes flow over three steps of 2018 (stride 2, dilation 3, against
flicker): by its public text on pairs (furnari-flow, issue 1) field n ends one step after its time, so nothing later
than the rule says is seen.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..flow import FLOW_BOUND_PIXELS
from ..types import Frames
from ..video import SizeLike, VideoError, VideoInfo, VideoReader, as_size, check_batch, open_video, scaled_size
from ._pixels import MAX_BATCH_BYTES
from .frame_files import FolderOfFrames, TarOfFrames, frame_series

RECIPE = "flow.json"
_OTHER = {"u": "v", "x": "y", "U": "V", "X": "Y"}
_FIRST_OF_PAIR = re.compile(r"(?P<before>|.*[/_.-])(?P<axis>[uxUX])(?P<after>[/_.-].*|)", re.DOTALL)
_KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SLACK_SECONDS = 1e-6  # as of frame folders: times computed another way may fall short by a rounding


def open_flow(path: str | Path, decoder: str = "auto", *, frame_fps: float = 30.0) -> VideoReader:
    """Open a stream of flow: a video of `actionfuse flow` by the decoder, a folder or a tar of pictures by this file.

    Its pictures are (H, 2 W), u beside v. Raises VideoError where there is no flow to read.
    """
    if os.path.isdir(path) or str(path).lower().endswith(".tar"):
        return FlowFolderReader(path, frame_fps=frame_fps)
    return open_video(path, decoder, threads=1, frame_fps=frame_fps)


def _source(path: str) -> FolderOfFrames | TarOfFrames:
    """Files of the folder or tar; those of its folders u and v are named u/NAME and v/NAME."""
    if not os.path.isdir(path):
        return TarOfFrames(path, parents=("u", "v", "x", "y"))
    source = FolderOfFrames(path)
    for axis in ("u", "v", "x", "y"):
        if os.path.isdir(os.path.join(path, axis)):
            source.names += [f"{axis}/{name}" for name in FolderOfFrames(os.path.join(path, axis)).names]
    return source


class FlowFolderReader(VideoReader):
    """Fields of a folder or a tar, as pictures (H, 2 W) whose R = G = B = code, u on the left; see the module's text.

    bound_pixels: the flow of codes 0 and 255. damage: fields that could not be read; the last good one before (at the
    start: the first good one) stands in, u and v together.
    """

    decoder = "flow_folder"
    decoder_reason = "pictures of flow, no video file"
    slack_seconds = _SLACK_SECONDS

    def __init__(self, path: str | Path, *, frame_fps: float = 30.0) -> None:
        self.path = str(path)
        if not (frame_fps > 0 and np.isfinite(frame_fps)):
            raise ValueError(f"frame_fps is {frame_fps}; it must be a positive number of fields a second")
        self.frame_fps = float(frame_fps)
        self.bound_pixels = FLOW_BOUND_PIXELS
        self.damage: list[str] = []
        self._source = _source(self.path)
        try:
            if self._source.damage:
                self.damage.append(self._source.damage)
            self._pairs, self._times = self._fields()
            self.info = self._look()
        except BaseException:
            self._source.close()
            raise

    # --- what there is

    def _fields(self) -> tuple[list[tuple[str, str]], np.ndarray]:
        """Names of u and v of each field in order, and float64 (N,) seconds."""
        series = frame_series(self._source.names)
        pairs = []
        for (before, after), files in series.items():
            if found := _FIRST_OF_PAIR.fullmatch(before):
                other = found["before"] + _OTHER[found["axis"]] + found["after"]
                if (other, after) in series:
                    pairs.append((before, dict(sorted(files)), dict(sorted(series[other, after]))))
        if len(pairs) != 1:
            some = ", ".join(sorted(f"{before}*{after}" for before, after in series)[:6]) or "no numbered pictures"
            raise VideoError(
                f"{self.path}: holds {len(pairs)} pairs of numbered pictures of flow; expected one, u/frame_%010d.jpg "
                f"and v/frame_%010d.jpg, or flow_x_%05d.jpg and flow_y_%05d.jpg. Found: {some}"
            )
        _, us, vs = pairs[0]
        numbers = sorted(us.keys() & vs.keys())
        if alone := sorted(us.keys() ^ vs.keys()):
            self.damage.append(f"field {alone[0]} and {len(alone) - 1} more have only one of u and v")
        if not numbers:
            raise VideoError(f"{self.path}: no number has both u and v")
        names = [(us[number], vs[number]) for number in numbers]
        if RECIPE in self._source.names:
            return names, self._told(len(names))
        return names, (np.array(numbers, np.float64) - numbers[0]) / self.frame_fps

    def _told(self, count: int) -> np.ndarray:
        """Times of the fields by flow.json; it also says the bound."""
        try:
            told = json.loads(self._source.read(RECIPE))
            self.bound_pixels = float(told["flow"]["bound_pixels"])
            times = np.asarray(told["pts_seconds"], np.float64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VideoError(f"{self.path}: {RECIPE} cannot be read: {error!r}") from error
        if times.shape != (count,) or (np.diff(times) <= 0).any():
            raise VideoError(f"{self.path}: {RECIPE} has times {times.shape} for {count} fields; write the flow anew")
        return times

    def _look(self) -> VideoInfo:
        shapes = (None if isinstance(found := self._decode(n), str) else found.shape for n in range(len(self._pairs)))
        shape = next((each for each in shapes if each is not None), None)
        if shape is None:
            raise VideoError(f"{self.path}: none of the {len(self._pairs)} fields can be read: {self._decode(0)}")
        steps = np.diff(self._times)
        step = float(np.median(steps)) if len(steps) else 1 / self.frame_fps
        span = float(self._times[-1] - self._times[0]) + step
        return VideoInfo(
            path=self.path,
            container="tar" if isinstance(self._source, TarOfFrames) else "folder",
            codec=os.path.splitext(self._pairs[0][0])[1].lower().lstrip("."),
            pixel_format="gray",
            width=shape[1],
            height=shape[0],
            rotation_degrees=0,
            num_frames=len(self._pairs),
            start_seconds=float(self._times[0]),
            duration_seconds=span,
            average_fps=len(self._pairs) / span,
            variable_frame_rate=bool(len(steps) and (np.abs(steps - step) > 1e-6).any()),
            has_audio=False,
        )

    # --- pictures

    def _decode(self, index: int) -> np.ndarray | str:
        """Field `index` as uint8 (H, 2 W), or why it cannot be read."""
        halves = []
        for name in self._pairs[index]:
            try:
                data = self._source.read(name)
            except OSError as error:
                return f"{name}: {error.strerror or error}"
            if data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
                return f"{name}: the JPEG is cut off"
            grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
            if grey is None:
                return f"{name}: no picture that can be decoded"
            halves.append(grey)
        if halves[0].shape != halves[1].shape:
            return f"{self._pairs[index]}: u is {halves[0].shape} and v {halves[1].shape}"
        return np.concatenate(halves, axis=1)

    def _picture(self, index: int) -> np.ndarray | str:
        picture = self._decode(index)
        if isinstance(picture, str) or picture.shape == (self.info.height, self.info.width):
            return picture
        return f"{self._pairs[index]}: {picture.shape}, the first field is {(self.info.height, self.info.width)}"

    def _stand_in(self, index: int) -> np.ndarray:
        for other in (*range(index - 1, -1, -1), *range(index + 1, len(self._pairs))):
            if not isinstance(picture := self._picture(other), str):
                return picture
        raise VideoError(f"{self.path}: none of the {len(self._pairs)} fields can be read")

    def _show(self, indices: np.ndarray, short_sides: Sequence[SizeLike]) -> tuple[Frames, ...]:
        wanted = list(dict.fromkeys(indices.tolist()))
        with ThreadPoolExecutor(max(1, min(len(wanted), 8, os.cpu_count() or 1))) as pool:
            pictures = dict(zip(wanted, pool.map(self._picture, wanted), strict=True))
        shown: dict[int, np.ndarray] = {}
        for index, picture in pictures.items():
            if isinstance(picture, str):
                if picture not in self.damage:
                    self.damage.append(picture)
                picture = self._stand_in(index)
            shown[index] = picture
        frames = []
        for size in short_sides:
            width, height = scaled_size(self.info.width, self.info.height, size)
            data = np.empty((len(indices), height, width, 3), np.uint8)
            for row, index in enumerate(indices.tolist()):
                grey = shown[index]
                if grey.shape != (height, width):
                    kernel = _KERNELS[as_size(size).interpolation]
                    grey = np.asarray(Image.fromarray(grey).resize((width, height), kernel))
                data[row] = grey[..., None]
            frames.append(Frames(data, self._times[indices]))
        return tuple(frames)

    def _rows(self, batch: int, short_sides: Sequence[SizeLike]) -> int:
        check_batch(batch)
        sizes = [scaled_size(self.info.width, self.info.height, size) for size in short_sides]
        return max(1, min(batch, MAX_BATCH_BYTES // sum(3 * width * height for width, height in sizes)))

    def select(
        self, seconds: Iterable[float], short_sides: Sequence[SizeLike] = (None,), batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        rows = self._rows(batch, short_sides)
        times, latest = iter(seconds), -np.inf
        while len(asked := np.fromiter(islice(times, rows), np.float64)):
            if not (np.diff(asked, prepend=latest) >= 0).all():
                raise ValueError(f"{self.path}: select wants ascending times; use frames_at for any order")
            latest = asked[-1]
            inside = asked[asked < self.info.stop_seconds - self.slack_seconds]
            if len(inside):
                found = np.searchsorted(self._times, inside + self.slack_seconds, side="right") - 1
                yield self._show(found.clip(0), short_sides)
            if len(inside) < len(asked):
                return

    def all_frames(
        self, short_sides: Sequence[SizeLike] = (None,), start_seconds: float = -math.inf, batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        if start_seconds < self.info.stop_seconds:
            first = np.searchsorted(self._times, start_seconds + self.slack_seconds, side="right") - 1
            yield from self.select(self._times[max(0, first) :].tolist(), short_sides, batch)

    def close(self) -> None:
        self._source.close()

    def __reduce__(self) -> tuple:
        return _reopen, (self.path, self.frame_fps)


def _reopen(path: str, frame_fps: float) -> FlowFolderReader:
    return FlowFolderReader(path, frame_fps=frame_fps)
