"""Videos to look at: frames with text and boxes drawn on them, coded by FFmpeg."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from actionfuse._files import put_in_place
from actionfuse.heartbeat import beat

from ..pipeline.boxes import boxes_at
from ..pipeline.running import Arrived
from ..pipeline.types import BoxTracks
from ..pipeline.video import open_video
from .predictions import Prediction

_TICKS = 90_000  # a second, on the clock of what is written
_COLOURS = ((255, 190, 60), (90, 200, 250), (150, 230, 120), (240, 130, 190), (190, 160, 250), (250, 240, 120))


def write_overlay(
    video: str | Path,
    out: str | Path,
    predictions: Sequence[Prediction],
    *,
    boxes: BoxTracks | None = None,
    short_side: int = 480,
    decoder: str = "auto",
) -> None:
    """The video with what was predicted written into each frame: h264 in mp4, without sound, whole or not at all.

    short_side: pixels at most; small videos are drawn at 240.
    A frame shows the window whose middle is nearest; with anticipation what was told last, at or before the frame.
    """
    rows = sorted(predictions, key=lambda row: row.stop_seconds)
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open_video(video, decoder) as reader:
            side = _readable(min(reader.info.width, reader.info.height), short_side)

            with VideoWriter(temporary, reader.info.average_fps or 30.0) as writer:
                for batch in reader.stream(short_side=side):
                    beat()
                    for picture, pts in zip(batch.data, batch.pts_seconds.tolist(), strict=True):
                        writer.add(drawn(picture, pts, shown_at(rows, pts), boxes), pts)
        put_in_place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _readable(shorter: int, most: int) -> int:
    """The shorter side to draw at: text needs some pixels, and more than `most` only cost time."""
    return min(most, max(240, shorter))


def shown_at(rows: Sequence[Prediction], seconds: float) -> Prediction | None:
    """What is told of this moment; rows in the order of their ends."""
    if rows and rows[0].action_seconds is not None:
        past = [row for row in rows if row.stop_seconds <= seconds]
        return past[-1] if past else None
    here = [row for row in rows if row.start_seconds <= seconds < row.stop_seconds]
    return min(here, key=lambda row: abs((row.start_seconds + row.stop_seconds) / 2 - seconds)) if here else None


def drawn(picture: np.ndarray, seconds: float, told: Prediction | None, boxes: BoxTracks | None = None) -> np.ndarray:
    """A copy of uint8 (H, W, 3) RGB with boxes, the time and the best classes with bars for their scores."""
    picture = np.ascontiguousarray(picture).copy()
    if boxes is not None and len(boxes.seconds):
        draw_boxes(picture, boxes_at(boxes, np.array([seconds])))
    lines: list[tuple[str, float | None]] = [(f"{seconds:.2f} s", None)]
    if told is not None:
        if told.tau_a is not None:
            lines.append((f"in {told.tau_a:g} s, from {told.stop_seconds:.2f} s", None))
        shown = [task for task in ("action", "verb+noun") if task in told.top] or list(told.top)
        for task in shown:
            each = told.top[task][: 3 if len(shown) == 1 else 2]
            lines += [(f"{one['name']}", one["score"]) for one in each]
    draw_text(picture, lines)
    return picture


def draw_text(picture: np.ndarray, lines: Sequence[tuple[str, float | None]]) -> None:
    """Lines on a darkened panel in the upper left corner; a score is a bar behind its line."""
    height, width = picture.shape[:2]
    scale = max(0.3, height / 700)
    step = max(11, round(34 * scale))
    panel = picture[: min(height, step * len(lines) + step // 3), : max(width // 2, min(width, round(420 * scale)))]
    panel[:] = panel // 3
    for n, (text, score) in enumerate(lines):
        low = n * step + step // 6
        if score is not None:
            reach = max(1, round(score * panel.shape[1]))
            panel[low : low + step - 2, :reach] = np.array([40, 110, 160], np.uint8)
            text = f"{text} {score:.2f}"
        # OpenCV's letters are those of ASCII
        plain = text.encode("ascii", "replace").decode()
        cv2.putText(
            picture, plain, (4, low + round(step * 0.72)), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255),
            1 if scale < 0.8 else 2, cv2.LINE_AA,
        )  # fmt: skip


def draw_boxes(picture: np.ndarray, tracks: BoxTracks) -> None:
    """Rectangles of the boxes at the first of the tracks' times, a colour for each instance."""
    height, width = picture.shape[:2]
    thick = max(1, height // 200)
    for n in range(tracks.boxes.shape[1]):
        if tracks.present[0, n]:
            x1, y1, x2, y2 = (tracks.boxes[0, n] * [width, height, width, height]).round().astype(int).tolist()
            cv2.rectangle(picture, (x1, y1), (x2, y2), _COLOURS[n % len(_COLOURS)], thick)


class VideoWriter:
    """Codes uint8 (H, W, 3) RGB pictures as h264, from time 0 on. Without a frame nothing is written.

    Sides that are odd lose their last pixel: h264 stores colours for pairs.
    """

    def __init__(self, out: str | Path | io.BytesIO, fps: float, *, format: str = "mp4", crf: int = 23) -> None:
        if isinstance(out, io.BytesIO):
            self._container = av.open(out, "w", format=format)
        else:  # the index in front takes a second pass over a file with a name
            self._container = av.open(str(out), "w", format=format, options={"movflags": "faststart"})
        self._rate, self._crf = Fraction(fps).limit_denominator(1001), crf
        self._stream: Any = None
        self._first, self._last = 0.0, -1
        self.count = 0

    def add(self, picture: np.ndarray, seconds: float) -> None:
        height, width = (side - side % 2 for side in picture.shape[:2])
        if self._stream is None:
            options = {"preset": "veryfast", "crf": str(self._crf)}
            self._stream = self._container.add_stream("libx264", rate=self._rate, options=options)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, _TICKS)
            self._first = seconds
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), "rgb24")
        self._last = max(self._last + 1, round((seconds - self._first) * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))
        self.count += 1

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LiveOverlay:
    """The overlay of a stream that runs. told: what is drawn from now on."""

    def __init__(self, out: str | Path, fps: float, short_side: int = 480) -> None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        self.told: Prediction | None = None
        self._writer, self._short_side = VideoWriter(out, fps), short_side

    def show(self, item: Arrived) -> None:
        picture = np.rot90(item.frame.to_ndarray(format="rgb24"), round(item.frame.rotation / 90) % 4)
        shorter = min(picture.shape[:2])
        ratio = _readable(shorter, self._short_side) / shorter
        if ratio != 1:
            width, height = (round(side * ratio) for side in picture.shape[1::-1])
            picture = cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=cv2.INTER_AREA)
        self._writer.add(drawn(picture, item.pts_seconds, self.told), item.pts_seconds)

    def close(self) -> None:
        self._writer.close()
