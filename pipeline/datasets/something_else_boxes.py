"""Boxes of Something-Else: hands and objects in every frame of a video, read one video at a time.

The annotation is one json, or four parts, of about 25 kB a video and 4 GB in all:

    {"151201": [{"name": "151201/0001.jpg", "labels": [
        {"box2d": {"x1": 16.6, "y1": 95.5, "x2": 137.2, "y2": 178.6}, "category": "bottle",
         "gt_annotation": "object 0", "standard_category": "0000"}, ...]}, ...], ...}

What is kept in memory is where in its file each video's list begins and ends (24 bytes a video and its name), found in
one pass over the bytes; a list is parsed when it is asked for. Other processes get that table and read on their own.

A box becomes x1 y1 x2 y2 as shares of the frame. Frame n (of the name "151201/0001.jpg", from 1) is at (n - 1) / 12
seconds. An instance is a `standard_category`: "0000", "0001", ... and "hand", sorted, so that the hand is last; its
category is 1 for "hand" and "person", 2 for anything else. `boxes_at(...)` followed by
`limit_instances(..., 4, keep="order")` is the slots of the public code: of the categories seen at the sampled times,
sorted, the first four.

Source: Materzynska et al., CVPR 2020 (joaanna/something_else, MIT), and the slots and categories of Yan et al., 2020
(ruiyan1995/Interactive_Fusion_for_CAR).
Differs: the frame is the one in the name, where the public code takes the position in the list (the same where no frame
is missing). Boxes without area in the frame are absent, where the public code makes boxes of no size of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..boxes import BoxRow, Keep, box_tracks, limit_instances
from ..types import BoxTracks
from ..video import open_video

HAND, OBJECT = 1, 2
_PEOPLE = ("hand", "person")
_CHUNK_BYTES = 1 << 24
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_OPENING, _CLOSING = (ord("["), ord("{")), (ord("]"), ord("}"))
_BETWEEN = re.compile(rb'\s*([{,])\s*("(?:[^"\\]|\\.)*")\s*:\s*')
# Boxes may reach a little past the frame; further means that they are not of this frame's size.
_MOST_PAST_FRAME = 1.1
Repeated = Literal["last", "separate"]


class SomethingElseBoxes(Mapping[str, BoxTracks]):
    """Video -> its tracks, as the module's text tells; can be pickled.

    files: the annotation, whole or in parts.
    sizes: width and height of videos in pixels where known; those of others are read from the video.
    video_path: pattern of a video's path, with {video}; where it holds folders of frames, they do too.
    frames_per_second: how fast the annotated frames are counted.
    repeated: what a second box of one standard_category in one frame is (a second hand). "last": it takes the place of
        the first, as in the public code. "separate": a further instance, "hand 2".
    max_instances: at most so many instances a video (the public code: 4), or None for all. keep says which ones, see
        `limit_instances`; with "order" it is the hand that goes first. Videos with fewer have fewer.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        video_path: str,
        sizes: Mapping[str, tuple[int, int]] | None = None,
        frames_per_second: float = 12.0,
        repeated: Repeated = "last",
        max_instances: int | None = None,
        keep: Keep = "order",
    ) -> None:
        if repeated not in ("last", "separate"):
            raise ValueError(f'repeated is {repeated!r}; it must be "last" or "separate"')
        if max_instances is not None and max_instances < 1:
            raise ValueError(f"max_instances is {max_instances}; it must be 1 or more, or None for all")
        if keep not in ("presence", "order"):
            raise ValueError(f'keep is {keep!r}; it must be "presence" or "order"')
        if not frames_per_second > 0:
            raise ValueError(f"frames_per_second is {frames_per_second}; it must be positive")
        self.files = tuple(files)
        self._video_path = video_path
        self._sizes = dict(sizes or {})
        self._frames_per_second = frames_per_second
        self._repeated, self._max_instances = repeated, max_instances
        self._keep: Keep = keep
        names: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for number, path in enumerate(self.files):
            found, spans = index_videos(path)
            names.append(found)
            places.append(np.column_stack([np.full(len(spans), number), spans]))
        all_names, all_places = np.concatenate(names), np.concatenate(places)
        order = np.argsort(all_names, kind="stable")
        self._names, self._places = all_names[order], all_places[order]
        twins = np.flatnonzero(self._names[1:] == self._names[:-1])
        if len(twins):
            raise ValueError(
                f"video {bytes(self._names[twins[0]]).decode()!r} is annotated twice in "
                f"{', '.join(map(str, self.files))}; leave one file out"
            )

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self._names)

    def __contains__(self, video: object) -> bool:
        return isinstance(video, str) and self._position(video) is not None

    def __getitem__(self, video: str) -> BoxTracks:
        position = self._position(video)
        if position is None:
            raise KeyError(f"{video} has no boxes in {', '.join(map(str, self.files))}")
        tracks = box_tracks(self._rows(video, self.annotation(video)))
        if self._max_instances is not None and tracks.boxes.shape[1] > self._max_instances:
            tracks = limit_instances(tracks, self._max_instances, self._keep)
        return tracks

    def annotation(self, video: str) -> list[dict[str, Any]]:
        """The frames of a video as the file has them."""
        position = self._position(video)
        if position is None:
            raise KeyError(video)
        number, start, stop = map(int, self._places[position])
        with open(self.files[number], "rb") as file:
            file.seek(start)
            text = file.read(stop - start)
        try:
            return json.loads(text)
        except json.JSONDecodeError as problem:
            raise ValueError(f"{self.files[number]}: video {video!r}, bytes {start} to {stop}: {problem}") from None

    def _position(self, video: str) -> int | None:
        name = video.encode()
        position = int(np.searchsorted(self._names, np.array(name, self._names.dtype.type)))
        return position if position < len(self._names) and self._names[position] == name else None

    def _rows(self, video: str, frames: list[dict[str, Any]]) -> list[BoxRow]:
        width, height = self._size(video)
        rows: dict[tuple[int, str], BoxRow] = {}
        for at, frame in enumerate(frames):
            number = _frame_number(frame, at)
            for label in frame.get("labels", ()):
                try:
                    track = str(label["standard_category"])
                    corners = [float(label["box2d"][name]) for name in ("x1", "y1", "x2", "y2")]
                except (KeyError, TypeError, ValueError):
                    raise ValueError(
                        f"boxes of {video!r}, frame {number}: {str(label)[:160]}; a label must have standard_category "
                        "and box2d with x1, y1, x2, y2"
                    ) from None
                x1, y1, x2, y2 = corners[0] / width, corners[1] / height, corners[2] / width, corners[3] / height
                if max(x1, y1, x2, y2) > _MOST_PAST_FRAME:
                    raise ValueError(
                        f"boxes of {video!r} reach to {max(corners[::2]):g}, {max(corners[1::2]):g} pixels and its "
                        f"frames are {width} x {height}; boxes are in pixels of the original videos. Where videos were "
                        "scaled, give the sizes of the originals with frame_sizes"
                    )
                if not (max(x1, 0) < min(x2, 1) and max(y1, 0) < min(y2, 1)):
                    continue
                category = HAND if track in _PEOPLE else OBJECT
                copy = 1
                while self._repeated == "separate" and (number, track) in rows:
                    copy += 1
                    track = f"{label['standard_category']} {copy}"
                seconds = (number - 1) / self._frames_per_second
                rows[number, track] = BoxRow(track, seconds, x1, y1, x2, y2, category)
        return list(rows.values())

    def _size(self, video: str) -> tuple[int, int]:
        if video not in self._sizes:
            with open_video(self._video_path.format(video=video)) as reader:
                self._sizes[video] = reader.info.width, reader.info.height
        return self._sizes[video]


def _frame_number(frame: dict[str, Any], at: int) -> int:
    """1-based number of a frame: that of its name, or its place in the list where it has none."""
    digits = str(frame.get("name", "")).rpartition("/")[2].partition(".")[0]
    return int(digits) if digits.isdigit() and int(digits) > 0 else at + 1


@lru_cache(maxsize=8)
def _index(path: Path, file_bytes: int, modified_ns: int) -> tuple[np.ndarray, np.ndarray]:
    return _scan(path)


def index_videos(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of a json object of lists: its keys, bytes (n,), and where each list begins and ends, int64 (n, 2) in bytes.

    One pass over the bytes in pieces, without parsing: brackets outside of strings tell how deep a byte lies. What was
    found is kept for the next call in this process as long as the file stays the same.
    Raises ValueError where the file is no such object.
    """
    status = path.stat()
    return _index(path, status.st_size, status.st_mtime_ns)


def _scan(path: Path) -> tuple[np.ndarray, np.ndarray]:
    wrong = f"{path}: must be a json object of lists of frames, one for each video"
    if not path.stat().st_size:
        raise ValueError(f"{wrong}; it is empty")
    data = np.memmap(path, np.uint8, "r")
    kinds = np.zeros(256, np.uint8)
    kinds[[_QUOTE]], kinds[list(_OPENING)], kinds[list(_CLOSING)] = 1, 2, 3
    depth, in_string = 0, 0
    starts: list[np.ndarray] = []
    stops: list[np.ndarray] = []
    for begin in range(0, len(data), _CHUNK_BYTES):
        piece = np.asarray(data[begin : begin + _CHUNK_BYTES])
        kind = kinds[piece]
        at = np.flatnonzero(kind != 0)  # four times faster on bool than on uint8
        kind = kind[at]
        is_quote = kind == 1
        is_quote[_escaped(data, begin + at, is_quote)] = False
        inside = (np.cumsum(is_quote, dtype=np.int32) + in_string) & 1  # after this byte
        brackets = np.flatnonzero((kind > 1) & (inside == 0))
        opens = kind[brackets] == 2
        depths = depth + np.cumsum(np.where(opens, 1, -1))
        where = begin + at[brackets]
        if np.any(depths < 0):
            raise ValueError(f"{wrong}; at byte {int(where[np.argmax(depths < 0)])} a bracket closes too much")
        starts.append(where[opens & (depths == 2)])
        stops.append(where[~opens & (depths == 1)] + 1)
        depth = int(depths[-1]) if len(depths) else depth
        in_string = int(inside[-1]) if len(inside) else in_string
    if depth or in_string:
        raise ValueError(f"{wrong}; it ends in the middle, as a copy or download that was cut off")
    spans = np.column_stack([np.concatenate(starts), np.concatenate(stops)]).astype(np.int64)
    return np.array(list(_keys(data, spans, wrong)) or [b""], np.bytes_)[: len(spans)], spans


def _keys(data: np.ndarray, spans: np.ndarray, wrong: str) -> Iterator[bytes]:
    """The keys before the lists. Raises ValueError where anything else stands between, before or after them."""
    end = 0
    for start, stop in spans.tolist():
        between = _BETWEEN.fullmatch(data[end:start].tobytes())
        if between is None or data[start] != _OPENING[0] or (between[1] == b"{") != (end == 0):
            raise ValueError(f"{wrong}; byte {end} is followed by {data[end : end + 40].tobytes()!r}")
        yield json.loads(between[2]).encode()
        end = stop
    rest = data[end:].tobytes().split()
    if b"".join(rest) != (b"}" if len(spans) else b"{}"):
        raise ValueError(f"{wrong}; byte {end} is followed by {data[end : end + 40].tobytes()!r}")


def _escaped(data: np.ndarray, where: np.ndarray, is_quote: np.ndarray) -> list[int]:
    """Which of the marked bytes are quotes that a backslash makes part of their string."""
    suspects = np.flatnonzero(is_quote)
    suspects = suspects[data[np.maximum(where[suspects] - 1, 0)] == _BACKSLASH]
    escaped = []
    for suspect in suspects.tolist():  # rare: a quote inside of a name
        run = int(where[suspect]) - 1
        while run >= 0 and data[run] == _BACKSLASH:
            run -= 1
        if (int(where[suspect]) - 1 - run) % 2:
            escaped.append(suspect)
    return escaped
