"""Boxes of tracked instances in time: build, look up, move with the picture, and the project's own box file.

Boxes are x1 y1 x2 y2 as shares of the frame (0..1), so they outlive every change of size. Times are seconds.

The box file is a csv (UTF-8, with a header), one box a line, in any order:

    video,seconds,x1,y1,x2,y2,track,category,score
    kitchen/a.mp4,0.5,0.10,0.20,0.30,0.60,hand-left,1,0.98

video     the key of the video: its path below the folder that is read, with `/` and with its extension
seconds   when the box was seen, on the video's own clock
x1 .. y2  shares of the displayed frame's width and height: left, top, right, bottom; they may reach past the frame
track     any name; boxes of one name in one video are one instance
category  class number, 1 or more, one for all boxes of a track (Something-Else: 1 hand, 2 object)
score     optional, 0..1; only `min_score` looks at it

A folder of such files works too: `kitchen/a.mp4.csv` holds the boxes of `kitchen/a.mp4` and has no column video.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from actionfuse._files import replacing

from .annotations import csv_rows
from .types import BoxTracks

Keep = Literal["presence", "order"]
_COLUMNS = ("seconds", "x1", "y1", "x2", "y2", "track", "category")
_ROUNDING_SECONDS = 1e-9


class BoxRow(NamedTuple):
    """One box of one instance at one time; shares of the frame."""

    track: str
    seconds: float
    x1: float
    y1: float
    x2: float
    y2: float
    category: int


# Build


def box_tracks(rows: Iterable[BoxRow]) -> BoxTracks:
    """Tracks of one video from its boxes in any order. Times ascend; instances are sorted by track name.

    Boxes are cut to the frame. Raises: ValueError for a box without area inside the frame, two boxes of one track at
    one time, or a track of two categories.
    """
    rows = list(rows)
    categories: dict[str, int] = {}
    for row in rows:
        if problem := _problem_of(row):
            raise ValueError(f"track {row.track!r} at {row.seconds} s: {problem}")
        if categories.setdefault(row.track, row.category) != row.category:
            raise ValueError(
                f"track {row.track!r} is of category {categories[row.track]} and, at {row.seconds} s, {row.category}; "
                "a track has one category"
            )
    names = sorted(categories)
    seconds = np.unique(np.array([row.seconds for row in rows], np.float64))
    instance = {name: at for at, name in enumerate(names)}
    times = np.searchsorted(seconds, [row.seconds for row in rows])
    boxes = np.zeros((len(seconds), len(names), 4), np.float32)
    present = np.zeros(boxes.shape[:2], np.bool_)
    for row, time in zip(rows, times, strict=True):
        at = time, instance[row.track]
        if present[at]:
            raise ValueError(
                f"track {row.track!r} has two boxes at {row.seconds} s; give the second a track of its own"
            )
        boxes[at], present[at] = (row.x1, row.y1, row.x2, row.y2), True
    return BoxTracks(
        boxes.clip(0, 1), present, seconds, np.array([categories[name] for name in names], np.int64), tuple(names)
    )


def _problem_of(row: BoxRow) -> str | None:
    corners = (row.x1, row.y1, row.x2, row.y2)
    if not all(map(math.isfinite, (row.seconds, *corners))):
        return "times and corners must be finite numbers"
    if not (row.x1 < row.x2 and row.y1 < row.y2):
        return f"the box {corners} must have x1 < x2 and y1 < y2"
    if max(map(abs, corners)) > 2:
        return f"the box {corners} is in pixels; divide x by the frame's width and y by its height"
    if row.x1 >= 1 or row.y1 >= 1 or row.x2 <= 0 or row.y2 <= 0:
        return f"the box {corners} lies outside the frame (0..1)"
    if row.category < 1:
        return f"the category is {row.category}; it must be 1 or more (0 stands for an empty slot)"
    return None


# Look up in time


def boxes_at(
    tracks: BoxTracks,
    seconds: Sequence[float] | np.ndarray,
    method: Literal["linear", "nearest"] = "linear",
    max_gap_seconds: float = 0.5,
) -> BoxTracks:
    """The boxes at the times asked for, in their order; instances stay.

    max_gap_seconds: two sightings of a track at most so far apart are bridged. Elsewhere (wider gaps, before the first
        and after the last sighting) a sighting holds for half as long. So an instance is present at t exactly where a
        sighting lies within max_gap_seconds / 2 of t, whatever the method.
    method: "linear" moves each corner evenly over a bridged gap; "nearest" shows the nearest sighting, of two equally
        near ones the earlier.
    """
    if method not in ("linear", "nearest"):
        raise ValueError(f'method is {method!r}; it must be "linear" or "nearest"')
    if not max_gap_seconds >= 0:
        raise ValueError(f"max_gap_seconds is {max_gap_seconds}; it must be 0 or more")
    asked = np.asarray(seconds, np.float64)
    instances = tracks.boxes.shape[1]
    boxes = np.zeros((len(asked), instances, 4), np.float32)
    present = np.zeros((len(asked), instances), np.bool_)
    for n in range(instances):
        seen = np.flatnonzero(tracks.present[:, n])
        if not len(seen):
            continue
        times, sightings = tracks.seconds[seen], tracks.boxes[seen, n].astype(np.float64)
        after = np.searchsorted(times, asked).clip(0, len(times) - 1)
        before = np.where(times[after] <= asked, after, np.maximum(after - 1, 0))
        nearer = np.where(np.abs(asked - times[before]) <= np.abs(times[after] - asked), before, after)
        present[:, n] = np.abs(asked - times[nearer]) <= max_gap_seconds / 2 + _ROUNDING_SECONDS
        moved = sightings[nearer]
        if method == "linear":
            gap = times[after] - times[before]
            bridged = (gap > 0) & (gap <= max_gap_seconds + _ROUNDING_SECONDS)
            share = ((asked - times[before]) / np.where(bridged, gap, 1))[:, None]
            between = sightings[before] + share * (sightings[after] - sightings[before])
            moved = np.where(bridged[:, None], between, moved)
        boxes[:, n] = np.where(present[:, n, None], moved, 0)
    return BoxTracks(boxes, present, asked, tracks.categories, tracks.track_ids)


# Move with the picture


def crop_boxes(
    tracks: BoxTracks, region: tuple[float, float, float, float], min_visible_share: float = 0.1
) -> BoxTracks:
    """The boxes in the frame that is left when `region` (x1 y1 x2 y2, shares of the old frame) is cut out.

    Boxes are cut to the region; one that keeps less than `min_visible_share` of its area is absent. Scaling needs no
    such function: shares stay.
    """
    left, top, right, bottom = region
    if not (left < right and top < bottom):
        raise ValueError(f"region is {region}; it must be x1 y1 x2 y2 with x1 < x2 and y1 < y2")
    if not 0 <= min_visible_share <= 1:
        raise ValueError(f"min_visible_share is {min_visible_share}; it must be 0 to 1")
    origin, extent = np.array([left, top] * 2), np.array([right - left, bottom - top] * 2)
    moved = (tracks.boxes.astype(np.float64) - origin) / extent
    cut = moved.clip(0, 1)
    visible, whole = _area(cut), _area(moved)
    present = tracks.present & (visible > 0) & (visible >= min_visible_share * whole)
    boxes = np.where(present[..., None], cut, 0).astype(np.float32)
    return BoxTracks(boxes, present, tracks.seconds, tracks.categories, tracks.track_ids)


def flip_boxes(tracks: BoxTracks) -> BoxTracks:
    """The boxes in the mirrored frame (left and right changed)."""
    boxes = tracks.boxes.copy()
    boxes[..., 0], boxes[..., 2] = 1 - tracks.boxes[..., 2], 1 - tracks.boxes[..., 0]
    boxes[~tracks.present] = 0
    return BoxTracks(boxes, tracks.present, tracks.seconds, tracks.categories, tracks.track_ids)


def limit_instances(tracks: BoxTracks, num_instances: int, keep: Keep = "presence") -> BoxTracks:
    """Exactly `num_instances` slots: the instances that are kept, in their order, then empty slots of category 0.

    keep: which ones stay where there are too many. "presence": those that are present at most times; of equals the one
        with the larger mean area, then the earlier one. "order": the first ones, as STIN and Interactive Fusion do.
    Instances that are never present are left out first.
    """
    if num_instances < 0:
        raise ValueError(f"num_instances is {num_instances}; it must be 0 or more")
    if keep not in ("presence", "order"):
        raise ValueError(f'keep is {keep!r}; it must be "presence" or "order"')
    times = tracks.present.sum(0)
    candidates = np.flatnonzero(times)
    if keep == "presence":
        area = (_area(tracks.boxes) * tracks.present).sum(0)[candidates] / times[candidates]
        candidates = candidates[np.lexsort((-area, -times[candidates]))]  # stable: the earlier of equals
    kept = np.sort(candidates[:num_instances])
    empty = num_instances - len(kept)
    names = tuple(tracks.track_ids[n] for n in kept) + ("",) * empty if tracks.track_ids else ()
    return BoxTracks(
        np.pad(tracks.boxes[:, kept], ((0, 0), (0, empty), (0, 0))),
        np.pad(tracks.present[:, kept], ((0, 0), (0, empty))),
        tracks.seconds,
        np.pad(tracks.categories[kept], (0, empty)),
        names,
    )


# Arrays of boxes (..., 4)


def to_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Shares (..., 4) to pixels of a width x height frame: edges, not pixel centres, so 1 becomes the width."""
    return boxes * np.array([width, height, width, height], boxes.dtype)


def from_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels of a width x height frame (..., 4) to shares, in float32 or the boxes' own floating type."""
    boxes = np.asarray(boxes)
    floats = boxes if np.issubdtype(boxes.dtype, np.floating) else boxes.astype(np.float32)
    return floats / np.array([width, height, width, height], floats.dtype)


def xyxy_to_cxcywh(boxes: np.ndarray) -> np.ndarray:
    """Corners (..., 4) to centre, width and height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=-1)


def cxcywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Centre, width and height (..., 4) to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of corners (..., N, 4) and (..., M, 4), each with each: (..., N, M); 0 where empty."""
    a, b = first[..., :, None, :], second[..., None, :, :]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    shared = np.prod((high - low).clip(0), axis=-1)
    union = _area(a) + _area(b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


# The box file


def read_box_file(path: str | Path, min_score: float = 0.0) -> dict[str, BoxTracks]:
    """Video key -> its tracks, from a box file or a folder of box files (see above).

    min_score: boxes with a lower score are left out; boxes without one stay.
    Raises: ValueError that names the file and the line of the first fault, and FileNotFoundError.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no box file {path}")
    if not path.is_dir():
        return _read(path, None, min_score)
    files = sorted(path.rglob("*.csv"))
    if not files:
        raise ValueError(f"{path} holds no .csv; a folder of boxes has one for each video, such as a.mp4.csv for a.mp4")
    found: dict[str, BoxTracks] = {}
    for file in files:
        found.update(_read(file, file.relative_to(path).as_posix().removesuffix(".csv"), min_score))
    return found


def _read(path: Path, key: str | None, min_score: float) -> dict[str, BoxTracks]:
    lines = csv_rows(path)
    line, header = next(lines, (1, []))
    needed = _COLUMNS if key is not None else ("video", *_COLUMNS)
    unknown = set(header) - {*needed, "score"}
    if missing := [name for name in needed if name not in header]:
        raise ValueError(
            f"{path}:{line}: no column {', '.join(missing)}; the header must be {','.join(needed)}[,score]"
        )
    if unknown or len(set(header)) != len(header):
        raise ValueError(
            f"{path}:{line}: {', '.join(sorted(unknown)) or 'a repeated column'} is not of this format; "
            f"the header must be {','.join(needed)}[,score]"
        )
    rows: dict[str, list[BoxRow]] = {} if key is None else {key: []}
    categories: dict[tuple[str, str], tuple[int, int]] = {}
    seen: dict[tuple[str, str, float], int] = {}
    for line, cells in lines:
        try:
            video, row, score = _parse(header, cells, key)
            category, first = categories.setdefault((video, row.track), (row.category, line))
            if category != row.category:
                raise ValueError(
                    f"track {row.track!r} is of category {row.category} here and {category} in line {first}; "
                    "a track has one category"
                )
            twin = seen.setdefault((video, row.track, row.seconds), line)
            if twin != line:
                raise ValueError(
                    f"track {row.track!r} has a box at {row.seconds} s in line {twin} already; "
                    "give the other one a track of its own"
                )
        except ValueError as problem:
            raise ValueError(f"{path}:{line}: {problem}") from None
        of_video = rows.setdefault(video, [])
        if score is None or score >= min_score:
            of_video.append(row)
    return {video: box_tracks(found) for video, found in rows.items()}


def _parse(header: list[str], cells: list[str], key: str | None) -> tuple[str, BoxRow, float | None]:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells where the header has {len(header)}; quote cells that hold commas")
    cell = dict(zip(header, cells, strict=True))
    video = cell["video"] if key is None else key
    if not video or not cell["track"]:
        raise ValueError(f"the {'track' if video else 'video'} is empty; every box needs one")
    values: dict[str, float] = {}
    for name in ("seconds", "x1", "y1", "x2", "y2", *(["score"] if cell.get("score") else [])):
        try:
            values[name] = float(cell[name])
        except ValueError:
            raise ValueError(f"{name} is {cell[name]!r}; it must be a number") from None
    try:
        category = int(cell["category"])
    except ValueError:
        raise ValueError(f"category is {cell['category']!r}; it must be a whole number, 1 or more") from None
    score = values.pop("score", None)
    if score is not None and not 0 <= score <= 1:
        raise ValueError(f"score is {score}; it must be 0 to 1")
    row = BoxRow(cell["track"], category=category, **values)
    if problem := _problem_of(row):
        raise ValueError(problem)
    return video, row, score


def write_box_file(path: str | Path, tracks: Mapping[str, BoxTracks]) -> None:
    """Write one box file for all videos; `read_box_file` reads the same boxes back. Times without a box are lost."""
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["video", *_COLUMNS])
        for video, found in tracks.items():
            names = found.track_ids or tuple(f"{n:04d}" for n in range(found.boxes.shape[1]))
            for time, instance in np.argwhere(found.present):
                corners = map(str, found.boxes[time, instance])
                row = [video, repr(float(found.seconds[time])), *corners, names[instance], found.categories[instance]]
                writer.writerow(row)
