"""Kinetics-400, -600 and -700: ten-second clips of actions from YouTube.

Paper: 400: Kay et al., The Kinetics Human Action Video Dataset, 2017; 600: Carreira et al., A Short Note about
       Kinetics-600, 2018; 700: Carreira et al., A Short Note on the Kinetics-700 Human Action Dataset, 2019.
Where: https://github.com/cvdfoundation/kinetics-dataset (annotations, clips)
Licence: see the datasets' pages for their terms; the clips are their uploaders'.

Datasets: kinetics_400, kinetics_600, kinetics_700. Splits: train, validation, test (without labels in some releases).

Layout (the csv files may also lie in annotations/ or in a folder named kinetics400/ and the like):

    train.csv  val.csv  test.csv     or validate.csv, validation.csv; or kinetics_400_train.csv, kinetics-400_train.csv
    train/abseiling/0347ZoDXyP0_000095_000105.mp4    or train/0347ZoDXyP0_000095_000105.mp4, or in videos/;
                                                     the split validation in val/, validate/ or validation/

A csv has the columns label, youtube_id, time_start, time_end, split; a clip's file is called by its id and both times
in seconds, six digits each. A segment is a whole clip: from its start to its end. Class numbers are the alphabetical
rank of the labels of all csv files that are there; they must be as many as the dataset has, or be named by `classes`.
Clips vanish from YouTube, so copies differ: `missing="drop"` leaves out those that are not there, and scores are to be
quoted with how many those were. The formats follow the public description.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..annotations import Segment
from .contract import Dataset, register
from .layout import LayoutError, choose_paths, find_file, find_optional, read_table
from .lines import text_lines

_SHORT = {"train": ("train",), "validation": ("val", "validate", "validation"), "test": ("test",)}
_ADVICE = "get the annotations from github.com/cvdfoundation/kinetics-dataset"
_SOURCE = "github.com/cvdfoundation/kinetics-dataset"
_LICENCE = "see the dataset's page for its terms; the clips are their uploaders'"
_LAYOUT = """\
    train.csv  val.csv  test.csv
    train/abseiling/0347ZoDXyP0_000095_000105.mp4  or  train/0347ZoDXyP0_000095_000105.mp4"""
Missing = Literal["keep", "drop"]


@register(
    "kinetics_400",
    splits=tuple(_SHORT),
    paper="Kay et al., 2017",
    source=_SOURCE,
    licence=_LICENCE,
    layout=_LAYOUT,
)
def read_400(
    root: Path,
    split: str,
    *,
    missing: Missing = "keep",
    classes: str | Path | None = None,
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; see the module's text.

    missing: "drop" leaves out clips whose rgb file is not there.
    classes: a text file, relative to root, with a label a line in the order of the class numbers; needed where only a
        part of the classes is there.
    paths: stream -> pattern of `Dataset.paths`, where files lie elsewhere; it may use {label} and {youtube_id}.
    """
    return _read(400, root, split, missing == "drop", classes, paths)


@register(
    "kinetics_600",
    splits=tuple(_SHORT),
    paper="Carreira et al., 2018",
    source=_SOURCE,
    licence=_LICENCE,
    layout=_LAYOUT,
)
def read_600(
    root: Path,
    split: str,
    *,
    missing: Missing = "keep",
    classes: str | Path | None = None,
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; options as in `read_400`."""
    return _read(600, root, split, missing == "drop", classes, paths)


@register(
    "kinetics_700",
    splits=tuple(_SHORT),
    paper="Carreira et al., 2019",
    source=_SOURCE,
    licence=_LICENCE,
    layout=_LAYOUT,
)
def read_700(
    root: Path,
    split: str,
    *,
    missing: Missing = "keep",
    classes: str | Path | None = None,
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; options as in `read_400`."""
    return _read(700, root, split, missing == "drop", classes, paths)


def _read(
    size: int, root: Path, split: str, drop: bool, classes: str | Path | None, paths: Mapping[str, str] | None
) -> Dataset:
    folders = ("", "annotations", f"kinetics{size}", f"kinetics{size}_2020")

    def names(which: str) -> tuple[str, ...]:
        prefixes = ("", f"kinetics_{size}_", f"kinetics-{size}_", f"kinetics{size}_")
        return tuple(f"{prefix}{short}.csv" for prefix in prefixes for short in _SHORT[which])

    files = [find_file(root, names(split), folders, _ADVICE)]
    notes: list[str] = []
    segments = _read_rows(files[0], notes)
    if classes is not None:
        files.append(root / classes)
        labels = tuple(label for _, label in text_lines(find_file(root, (str(classes),), advice="classes names it")))
    else:
        files += [p for other in _SHORT if other != split and (p := find_optional(root, names(other), folders))]
        found = {segment.extra.get("label", "") for segment in segments}
        for path in files[1:]:
            found |= {row.get("label", "") for _, row in read_table(path, ("youtube_id",))}
        labels = tuple(sorted(found - {""}))
        if len(labels) != size:
            raise ValueError(
                f"{', '.join(path.name for path in files)} have {len(labels)} labels; Kinetics-{size} has {size}, and "
                "with others missing the class numbers would be wrong. Add the csv files of the other splits, or name "
                "a list of all labels with classes"
            )
    numbers = {label: number for number, label in enumerate(labels)}
    for segment in segments:
        if segment.extra.get("label", labels[0]) not in numbers:
            raise ValueError(
                f"{files[0]}: {segment.id} has the label {segment.extra['label']!r}, which {files[1]} has not"
            )
    segments = [
        replace(segment, labels={"action": numbers[segment.extra["label"]]}) if "label" in segment.extra else segment
        for segment in segments
    ]
    tops = (*_SHORT[split], split, "videos", f"videos/{_SHORT[split][0]}")
    candidates = [f"{top}/{{label}}/{{video}}.mp4" for top in tops if all("label" in s.extra for s in segments)]
    candidates += [f"{top}/{{video}}.mp4" for top in tops] + ["{video}.mp4"]
    chosen = choose_paths(root, {"rgb": tuple(candidates)}, segments, paths)
    if drop:
        present = _present(root, chosen["rgb"], segments)
        if not present:
            raise LayoutError(root, (chosen["rgb"],), f"no clip of {split} is there")
        notes.append(f"{len(segments) - len(present)} of {len(segments)} clips are not there and left out.")
        segments = present
    return Dataset(
        name=f"kinetics_{size}",
        split=split,
        segments=tuple(segments),
        classes={"action": labels},
        root=root,
        paths=chosen,
        files=tuple(files),
        notes=tuple(notes),
    )


def _seconds(text: str, where: str) -> int:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not (seconds >= 0 and seconds.is_integer()):
        raise ValueError(f"{where} is {text!r}; it must be whole seconds, 0 or more")
    return int(seconds)


def _read_rows(path: Path, notes: list[str]) -> list[Segment]:
    found: dict[str, Segment] = {}
    twice = 0
    for line, row in read_table(path, ("youtube_id", "time_start", "time_end")):
        start, stop = (_seconds(row[name], f"{path}:{line}: {name}") for name in ("time_start", "time_end"))
        video = f"{row['youtube_id']}_{start:06d}_{stop:06d}"
        extra = {"youtube_id": row["youtube_id"], "time_start": str(start), "time_end": str(stop)}
        if row.get("label"):
            extra["label"] = row["label"]
        twice += video in found
        found.setdefault(video, Segment(video, 0.0, math.inf, video, {}, extra))
    if twice:
        notes.append(f"{twice} clips of {path.name} are in it already; the first line counts.")
    return list(found.values())


def _present(root: Path, pattern: str, segments: list[Segment]) -> list[Segment]:
    """Those whose file is there, by one look at each folder."""
    listed: dict[Path, frozenset[str]] = {}
    if "*" in pattern:
        raise ValueError(f'missing="drop" looks names up as they are; the path {pattern!r} may have no *')

    def is_there(path: Path) -> bool:
        if path.parent not in listed:
            listed[path.parent] = frozenset(os.listdir(path.parent)) if path.parent.is_dir() else frozenset()
        return path.name in listed[path.parent]

    return [s for s in segments if is_there(root / pattern.format_map({**s.extra, "video": s.video, "id": s.id}))]
