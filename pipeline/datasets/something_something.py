"""Something-Something v2: 220847 short videos of 174 template actions ("Moving something up").

Paper: Goyal et al., The "something something" video database, ICCV 2017; v2 of 2018.
Where: https://www.qualcomm.com/developer/software/something-something-v-2-dataset (videos in parts, labels in a zip).
Licence: a data licence agreement that the site shows; research only.

Splits: train, validation, test (without labels). 168913, 24777 and 27157 videos; a segment is a whole video.

Layout (the json files may also lie in labels/ or annotations/):

    labels.json  train.json  validation.json  test.json
        or something-something-v2-labels.json, something-something-v2-train.json, ...
    20bn-something-something-v2/1.webm            or videos/1.webm, or frames/1/0001.jpg at 12 frames a second

Class numbers are the alphabetical rank of the template (of its text, capitals before small letters), as in the public
code for Something-Else; for the official labels.json that is the number it gives. The brackets of "[something]" in
templates are dropped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..annotations import Segment
from .contract import Dataset, register
from .layout import choose_paths, find_file, unique

NAME = "something_something_v2"
LICENCE = "data licence agreement of the site; research only"
FRAMES_PER_SECOND = 12.0  # of the videos, and of the frames and boxes that public code takes from them
_FOLDERS = ("", "labels", "annotations")
PATHS: Mapping[str, Sequence[str]] = {
    "rgb": (
        "20bn-something-something-v2/{video}.webm",
        *(
            f"{folder}{{video}}.{extension}"
            for folder in ("videos/", "20bn-something-something-v2/", "")
            for extension in ("webm", "mp4", "mkv", "avi")
        ),
        "frames/{video}",
    ),
    **{
        stream: tuple(f"{stream}/{{video}}.{extension}" for extension in ("mkv", "mp4", "avi"))
        for stream in ("flow", "depth", "ir")
    },
}


@register(
    NAME,
    splits=("train", "validation", "test"),
    paper="Goyal et al., ICCV 2017",
    source="qualcomm.com/developer/software/something-something-v-2-dataset",
    licence=LICENCE,
    layout="""\
    labels.json  train.json  validation.json  test.json
    20bn-something-something-v2/1.webm""",
)
def read(root: Path, split: str, *, paths: Mapping[str, str] | None = None) -> Dataset:
    """One split; see the module's text.

    paths: stream -> pattern of `Dataset.paths`, where videos lie elsewhere.
    """
    names = [(f"something-something-v2-{which}.json", f"{which}.json") for which in ("labels", split)]
    labels, videos = (find_file(root, either, _FOLDERS, "it comes with the labels of the dataset") for either in names)
    classes = read_classes(labels)
    segments = read_videos(videos, classes)
    chosen = choose_paths(root, PATHS, segments, paths)
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes={"action": classes},
        root=root,
        paths=chosen,
        frame_rates=frame_rates_of(chosen),
        files=(videos, labels),
    )


def frame_rates_of(paths: Mapping[str, str]) -> dict[str, float | str]:
    """As in `Dataset.frame_rates`."""
    return {"rgb": FRAMES_PER_SECOND} if paths.get("rgb", "").startswith("frames/") else {}


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ValueError(f"{path}: not a JSON file: {problem}") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path}: holds a {type(content).__name__}; it must be a {kind.__name__}")
    return content


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of the classes of a labels.json, in alphabetical order; the numbers that stand there are not used."""
    return tuple(sorted(_read_json(path, dict)))


def read_videos(path: Path, classes: Sequence[str]) -> tuple[Segment, ...]:
    """A segment for each entry of a train.json and the like; entries without a template have no label.

    Raises ValueError that names the file and the entry.
    """
    return unique(_segments(path, classes), path)


def _segments(path: Path, classes: Sequence[str]) -> Iterator[Segment]:
    numbers = {name: number for number, name in enumerate(classes)}
    for entry, row in enumerate(_read_json(path, list)):
        if not isinstance(row, dict) or "id" not in row:
            raise ValueError(f"{path}: entry {entry} is {str(row)[:80]}; it must be an object with an id")
        video, labels, extra = str(row["id"]), {}, {}
        if template := row.get("template"):
            name = template.replace("[", "").replace("]", "")
            if name not in numbers:
                raise ValueError(
                    f"{path}: entry {entry} (video {video}) has the template {template!r}, which is none of the "
                    f"{len(classes)} classes of the labels"
                )
            labels = {"action": numbers[name]}
        if row.get("label"):
            extra["narration"] = row["label"]
        if row.get("placeholders"):
            extra["placeholders"] = "; ".join(row["placeholders"])
        yield Segment(video, 0.0, math.inf, video, labels, extra)
