"""The synthetic kitchen: scripted hands and objects, 37 actions of 8 verbs and 12 nouns, best possible scores known.

Paper: none; the law it is drawn from is in synth/law.py, and ceilings.json tells the best scores that any model can
       reach with each set of streams.
Where: `actionfuse synth ROOT` writes it.
Licence: that of this package.

Splits: train, validation; compositional_train, compositional_validation (no verb-noun pair is in both);
few_shot_base_train, few_shot_base_validation (4 of the verbs), few_shot_5_train, few_shot_10_train (5 or 10 segments of
each of the other 4), few_shot_5_validation, few_shot_10_validation. Classes have the same numbers in all of them.
Segments of a train split are from training videos, those of the others from validation videos.

Streams: rgb, depth and ir are files of their own; sound is in the file of rgb, and flow is computed from it. Boxes of
hand and object (categories 1 and 2) are those of the clips in something_else/, on the clock of the whole video.

Layout: EPIC_100_*.csv and actions.csv as epic_kitchens_100 reads them, and

    splits.json  kitchen.json  something_else/annotations.json
    videos/P01_101.mp4  depth/P01_101.mp4  ir/P01_101.mp4
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations import Segment
from ..boxes import BoxRow, box_tracks
from ..types import BoxTracks
from . import epic_kitchens_100
from .contract import Dataset, register
from .layout import find_file
from .something_else_boxes import SomethingElseBoxes

NAME = "kitchen"
_WHOLE = ("train", "validation")
_PARTS = ("compositional", "few_shot_base", "few_shot_5", "few_shot_10")
_ADVICE = "it is written by 'actionfuse synth'"


@register(
    NAME,
    splits=(*_WHOLE, *(f"{part}_{whole}" for part in _PARTS for whole in _WHOLE)),
    paper="none: made by 'actionfuse synth'",
    source="actionfuse synth ROOT",
    licence="that of this package",
    layout="""\
    EPIC_100_train.csv  EPIC_100_validation.csv  EPIC_100_verb_classes.csv  EPIC_100_noun_classes.csv  actions.csv
    splits.json  kitchen.json  something_else/annotations.json
    videos/P01_101.mp4  depth/P01_101.mp4  ir/P01_101.mp4""",
)
def read(root: Path, split: str, *, boxes: bool = True, paths: Mapping[str, str] | None = None) -> Dataset:
    """One split; see the module's text.

    boxes: False leaves them out; their file need not be there then.
    paths: stream -> pattern of `Dataset.paths`, where files lie elsewhere.
    """
    listed = find_file(root, ("splits.json",), advice=_ADVICE)
    whole = epic_kitchens_100.read(root, split.rsplit("_")[-1], paths=paths)
    content = _read_json(listed)
    tracks, files = None, [*whole.files, listed]
    if boxes:
        recipe = find_file(root, ("kitchen.json",), advice=_ADVICE)
        annotation = find_file(root / "something_else", ("annotations.json",), advice=_ADVICE)
        tracks = KitchenBoxes(annotation, whole.segments, _at(content, "clips", listed), _frame_size(recipe))
        files += [recipe, annotation]
    segments = whole.segments
    if split not in _WHOLE:
        ids = frozenset(_at(_at(content, "splits", listed), split, listed))
        segments = tuple(segment for segment in segments if segment.id in ids)
        if len(segments) != len(ids):
            missing, name = len(ids) - len(segments), f"EPIC_100_{split.rsplit('_')[-1]}.csv"
            raise ValueError(f"{listed}: {missing} segments of {split} are not in {name}")
    kept = {segment.id for segment in segments}
    return replace(
        whole,
        name=NAME,
        split=split,
        segments=segments,
        subsets={name: ids & kept for name, ids in whole.subsets.items()},
        boxes=tracks,
        files=tuple(files),
    )


class KitchenBoxes(Mapping[str, BoxTracks]):
    """Video -> tracks "0000" (the object in hand) and "hand" of all its actions; can be pickled.

    segments: all of the videos. clips: segment id -> its clip. size: width and height of the frames, in pixels.
    """

    def __init__(
        self, annotation: Path, segments: Iterable[Segment], clips: Mapping[str, str], size: tuple[int, int]
    ) -> None:
        self._clips: dict[str, list[tuple[str, float]]] = {}
        for segment in segments:
            clip = _at(clips, segment.id, annotation)
            self._clips.setdefault(segment.video, []).append((clip, segment.start_seconds))
        sizes = {clip: size for found in self._clips.values() for clip, _ in found}
        self._boxes = SomethingElseBoxes([annotation], video_path="{video}", sizes=sizes)

    def __len__(self) -> int:
        return len(self._clips)

    def __iter__(self) -> Iterator[str]:
        return iter(self._clips)

    def __getitem__(self, video: str) -> BoxTracks:
        rows = []
        for clip, start_seconds in self._clips[video]:
            tracks = self._boxes[clip]
            for (time, n), corners in zip(np.argwhere(tracks.present), tracks.boxes[tracks.present], strict=True):
                seconds = start_seconds + float(tracks.seconds[time])
                x1, y1, x2, y2 = map(float, corners)
                rows.append(BoxRow(tracks.track_ids[n], seconds, x1, y1, x2, y2, int(tracks.categories[n])))
        return box_tracks(rows)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ValueError(f"{path}: not a JSON file: {problem}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; it must be an object")
    return content


def _at(content: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in content:
        raise ValueError(f"{path} tells nothing of {name!r}; make the kitchen again with 'actionfuse synth'")
    return content[name]


def _frame_size(recipe: Path) -> tuple[int, int]:
    width, height = _at(_read_json(recipe), "frame", recipe)
    return int(width), int(height)
