"""One's own videos, annotated in csv files.

Paper: none.
Where: your own files.
Licence: yours.

Splits: train, validation, test.

Layout:

    train.csv  validation.csv (or val.csv)  test.csv         those that you have
    verb.txt  noun.txt                                       optional: names of classes, one a line
    kitchen/a.mp4                                            as the column path says; or in videos/

The csv files are those of `pipeline.annotations`: path,start_seconds,stop_seconds,id and columns of labels. A label
cell holds a class number or a class name, or several of them with `;`. Names are numbered by TASK.txt where it is
there, by alphabetical rank over all csv files otherwise. A column of numbers without names has the classes "0", "1" and
so on, up to the largest in all csv files. A test csv may leave the labels out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..annotations import Label, Segment, read_segments
from ..boxes import read_box_file
from ..inputs import VIDEO_EXTENSIONS
from .contract import Dataset, register
from .layout import choose_paths, find_file, find_optional
from .lines import text_lines

NAME = "csv"
_FILES = {"train": ("train.csv",), "validation": ("validation.csv", "val.csv"), "test": ("test.csv",)}


@register(
    NAME,
    splits=tuple(_FILES),
    paper="none: your own videos",
    source="your own files",
    licence="yours",
    layout="""\
    train.csv  validation.csv  test.csv     path,start_seconds,stop_seconds,id,LABEL,...
    LABEL.txt                               optional: names of classes, one a line
    a.mp4                                   as the column path says; or in videos/""",
)
def read(
    root: Path,
    split: str,
    *,
    labels: Sequence[str] | str | None = None,
    classes: Mapping[str, str] | None = None,
    boxes: str | Path | None = None,
    frames_per_second: float = 30.0,
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; see the module's text.

    labels: which columns are labels, the others become `Segment.extra`. None: every column but path, start_seconds,
        stop_seconds and id is one.
    classes: task -> text file of its class names, relative to root; default TASK.txt where that is there.
    boxes: a box file or a folder of such (`pipeline.boxes`), relative to root.
    frames_per_second: what folders of frames count by.
    paths: stream -> pattern of `Dataset.paths`, where files lie elsewhere; {video} is the column path.
    """
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second is {frames_per_second}; it must be positive")
    chosen = (labels,) if isinstance(labels, str) else None if labels is None else tuple(labels)
    files = [find_file(root, _FILES[split], advice="a csv with the columns path,start_seconds,stop_seconds,id,LABEL")]
    files += [p for other in _FILES if other != split and (p := find_optional(root, _FILES[other]))]
    tables = [read_segments(path, label_columns=()) for path in files]
    columns = list(dict.fromkeys(name for table in tables for segment in table for name in segment.extra))
    if missing := sorted({*(chosen or ()), *(classes or {})} - set(columns)):
        raise ValueError(
            f"no label in a column {', '.join(missing)} of {', '.join(path.name for path in files)}; the columns with "
            f"any are {', '.join(columns) or 'none'}"
        )
    tasks = columns if chosen is None else list(chosen)
    listed = {task: path for task in tasks if (path := _class_file(root, task, classes or {}))}
    names = {task: _names(task, tables, listed.get(task)) for task in tasks}
    segments = tuple(_labelled(files[0], segment, names) for segment in tables[0])
    found = choose_paths(root, {"rgb": ("{video}", "videos/{video}")}, segments, paths)
    tracks = read_box_file(root / boxes) if boxes is not None else None
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes={task: tuple(numbers) for task, numbers in names.items()},
        root=root,
        paths=found,
        frame_rates={"rgb": frames_per_second} if _has_frames(root, segments) else {},
        boxes=tracks,
        files=(*files, *listed.values(), *([root / boxes] if boxes is not None else [])),
    )


def _has_frames(root: Path, segments: Sequence[Segment]) -> bool:
    others = {s.video for s in segments if Path(s.video).suffix.lower() not in VIDEO_EXTENSIONS}
    return any((root / folder / video).is_dir() for video in others for folder in ("", "videos"))


def _class_file(root: Path, task: str, given: Mapping[str, str]) -> Path | None:
    if task in given:
        return find_file(root, (given[task],), advice=f"classes names it for {task}")
    return find_optional(root, (f"{task}.txt",))


def _cells(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _names(task: str, tables: Sequence[Sequence[Segment]], listed: Path | None) -> dict[str, int]:
    """Class name -> number, in the order of the numbers."""
    used = {cell for table in tables for segment in table for cell in _cells(segment.extra.get(task, ""))}
    if listed is not None:
        names = [line for _, line in text_lines(listed)]
        if len(set(names)) != len(names):
            raise ValueError(f"{listed}: two classes of {task} have one name; every line needs a name of its own")
        return {name: number for number, name in enumerate(names)}
    if used and all(map(_is_number, used)):
        return {str(number): number for number in range(1 + max(map(int, used)))}
    if mixed := sorted(filter(_is_number, used)):
        raise ValueError(
            f"labels of {task} are names, such as {min(used - set(mixed))!r}, and numbers, such as {mixed[0]!r}; use "
            f"one kind, or list the names in {task}.txt, one a line"
        )
    return {name: number for number, name in enumerate(sorted(used))}


def _labelled(path: Path, segment: Segment, names: Mapping[str, Mapping[str, int]]) -> Segment:
    labels: dict[str, Label] = {}
    for task, numbers in names.items():
        if not (text := segment.extra.get(task, "")):
            continue
        found = []
        for cell in _cells(text):
            if cell in numbers:
                found.append(numbers[cell])
            elif _is_number(cell) and int(cell) < len(numbers):
                found.append(int(cell))
            else:
                raise ValueError(
                    f"{path}: segment {segment.id!r} has {task}={cell!r}, which is none of the {len(numbers)} classes "
                    f"({', '.join(list(numbers)[:5])}{', ...' if len(numbers) > 5 else ''})"
                )
        if found:
            labels[task] = tuple(found) if ";" in text else found[0]
    return replace(segment, labels=labels, extra={k: text for k, text in segment.extra.items() if k not in names})
