"""Boxes of Action Genome: one person and the objects it handles, in some frames of the videos of Charades.

Two pickles, of the objects and of the detected people, keyed by video and frame:

    {"AO8RW.mp4/000089.png": [{"class": "book", "bbox": (x, y, w, h) or None, "visible": True, ...}, ...]}
    {"AO8RW.mp4/000089.png": {"bbox": array (people, 4) of x1 y1 x2 y2, "bbox_size": (width, height), ...}}

A pickle runs code when it is loaded; these are read by `load_plain_pickle`, which does not. Both are read once a
process and kept as plain arrays (about 30 bytes a box); a video's tracks are made when they are asked for.

A box becomes x1 y1 x2 y2 as shares of the frame. Frame n (of the name, from 1) is at (n - 1) / rate seconds, where rate
is that of the video: frames were written by ffmpeg at the video's own rate. The person is track "person", category 1
(further people are "person 2", ... in the file's order, where people="all"); an object's track is its class, category
2: a class is annotated once a frame. Objects that are not visible have no box.

Source: Ji et al., CVPR 2020 (JingweiJ/ActionGenome, README and tools/dump_frames.py). The keys of person_bbox.pkl
follow the public description.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..boxes import BoxRow, box_tracks
from ..types import BoxTracks
from ..video import open_video
from .plain_pickle import load_plain_pickle

PERSON, OBJECT = 1, 2
People = Literal["first", "all"]
_MOST_PAST_FRAME = 1.1
_MOST_SHAPE_APART = 0.05


# Boxes of one file, as arrays


class _Table(NamedTuple):
    """Boxes sorted by video; those of video v are rows starts[v] to starts[v + 1]."""

    videos: dict[str, int]
    starts: np.ndarray
    frames: np.ndarray  # int32 (n,)
    tracks: np.ndarray  # int32 (n,): number in names
    boxes: np.ndarray  # float32 (n, 4): x1 y1 x2 y2 in pixels
    names: tuple[str, ...]
    sizes: dict[str, tuple[int, int]]  # video -> (width, height), where told


@lru_cache(maxsize=4)
def _read(path: Path, of_people: bool, file_bytes: int, modified_ns: int) -> _Table:
    content = load_plain_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; it must be a dict of frames")
    numbers: dict[str, int] = {}
    names: dict[str, int] = {}
    sizes: dict[str, tuple[int, int]] = {}
    rows: list[tuple[int, int, int]] = []
    corners: list[Sequence[float]] = []
    for key, entry in content.items():
        video, frame = _frame_of(path, key)
        number = numbers.setdefault(video, len(numbers))
        try:
            if of_people and entry.get("bbox_size") is not None:
                width, height = entry["bbox_size"]
                sizes.setdefault(video, (int(width), int(height)))
            for name, box in _people(entry) if of_people else _objects(entry):
                if len(box) != 4:
                    raise ValueError("a box has four numbers")
                rows.append((number, frame, names.setdefault(name, len(names))))
                corners.append(box)
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise ValueError(f"{path}: {key!r} is {str(entry)[:160]}: {problem!r}") from None
    table = np.array(rows, np.int32).reshape(-1, 3)
    order = np.argsort(table[:, 0], kind="stable")
    table, boxes = table[order], np.array(corners, np.float32).reshape(-1, 4)[order]
    starts = np.searchsorted(table[:, 0], np.arange(len(numbers) + 1))
    return _Table(numbers, starts, table[:, 1].copy(), table[:, 2].copy(), boxes, tuple(names), sizes)


def _frame_of(path: Path, key: object) -> tuple[str, int]:
    video, slash, name = str(key).rpartition("/")
    digits = name.partition(".")[0]
    if not (slash and video and digits.isascii() and digits.isdigit() and 0 < int(digits) < 1 << 31):
        raise ValueError(f"{path}: the key {key!r} must be a video and a frame from 1 on, as 'AO8RW.mp4/000089.png'")
    return video.removesuffix(".mp4"), int(digits)


def _objects(entry: list[dict[str, Any]]) -> Iterator[tuple[str, Sequence[float]]]:
    for thing in entry:
        if thing.get("visible", True) and thing["bbox"] is not None:
            x, y, width, height = map(float, thing["bbox"])
            yield str(thing["class"]), (x, y, x + width, y + height)


def _people(entry: dict[str, Any]) -> Iterator[tuple[str, Sequence[float]]]:
    found = entry["bbox"]
    for number, box in enumerate([] if found is None else np.asarray(found, np.float64).reshape(-1, 4), 1):
        yield "person" if number == 1 else f"person {number}", box.tolist()


# Tracks


class ActionGenomeBoxes(Mapping[str, BoxTracks]):
    """Video, without .mp4, -> its tracks, as the module's text tells; can be pickled.

    objects, people_file: the two pickles.
    video_path: pattern of a video's path, with {video}: its rate is read where frames_per_second is None, and its shape
        is compared with that of the boxes.
    sizes: width and height in pixels that boxes of a video are in; else what person_bbox.pkl tells, else the video's.
    """

    def __init__(
        self,
        objects: Path,
        people_file: Path,
        *,
        video_path: str,
        frames_per_second: float | None = None,
        sizes: Mapping[str, tuple[int, int]] | None = None,
        people: People = "first",
    ) -> None:
        if people not in ("first", "all"):
            raise ValueError(f'people is {people!r}; it must be "first" or "all"')
        if frames_per_second is not None and not frames_per_second > 0:
            raise ValueError(f"frames_per_second is {frames_per_second}; it must be positive, or None")
        self._tables = tuple(
            _read(path, of_people, path.stat().st_size, path.stat().st_mtime_ns)
            for path, of_people in ((objects, False), (people_file, True))
        )
        self._videos = tuple(dict.fromkeys(video for table in self._tables for video in table.videos))
        self._video_path, self._frames_per_second = video_path, frames_per_second
        self._sizes, self._people = dict(sizes or {}), people
        self._frames: dict[str, tuple[int, int, float]] = {}

    def __len__(self) -> int:
        return len(self._videos)

    def __iter__(self) -> Iterator[str]:
        return iter(self._videos)

    def __contains__(self, video: object) -> bool:
        return any(video in table.videos for table in self._tables)

    def __getitem__(self, video: str) -> BoxTracks:
        if video not in self:
            raise KeyError(f"{video} has no boxes in Action Genome's files")
        if video not in self._frames:
            self._frames[video] = self._frame(video)
        width, height, rate = self._frames[video]
        rows: dict[tuple[int, str], BoxRow] = {}
        for table, category in zip(self._tables, (OBJECT, PERSON), strict=True):
            if (number := table.videos.get(video)) is None:
                continue
            for at in range(int(table.starts[number]), int(table.starts[number + 1])):
                name, frame = table.names[table.tracks[at]], int(table.frames[at])
                if category == PERSON and name != "person" and self._people == "first":
                    continue
                x1, y1, x2, y2 = (table.boxes[at].astype(np.float64) / (width, height, width, height)).tolist()
                if max(x2, y2) > _MOST_PAST_FRAME:
                    raise ValueError(
                        f"boxes of {video!r} reach to {table.boxes[at][2]:g}, {table.boxes[at][3]:g} pixels and its "
                        f"frames are {width} x {height}; boxes are in pixels of the videos scaled to 480p. Tell their "
                        "sizes with frame_sizes"
                    )
                if max(x1, 0) < min(x2, 1) and max(y1, 0) < min(y2, 1):
                    rows[frame, name] = BoxRow(name, (frame - 1) / rate, x1, y1, x2, y2, category)
        return box_tracks(rows.values())

    def _frame(self, video: str) -> tuple[int, int, float]:
        """Width and height in pixels that the boxes are in, and frames a second."""
        size = self._sizes.get(video) or self._tables[1].sizes.get(video)
        if size is not None and self._frames_per_second is not None:
            return *size, self._frames_per_second
        with open_video(self._video_path.format(video=video)) as reader:
            info = reader.info
        size = size or (info.width, info.height)
        if abs(size[0] / size[1] * info.height / info.width - 1) > _MOST_SHAPE_APART:
            raise ValueError(
                f"boxes of {video!r} are in frames of {size[0]} x {size[1]} and the video is {info.width} x "
                f"{info.height}, of another shape; tell the sizes with frame_sizes"
            )
        return *size, self._frames_per_second or info.average_fps
