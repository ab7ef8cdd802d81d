"""Charades: 9848 videos of people at home who act out scripts, 157 actions, several at a time; boxes of Action Genome.

Paper: Sigurdsson et al., Hollywood in Homes: Crowdsourcing Data Collection for Activity Understanding, ECCV 2016;
       boxes: Ji et al., Action Genome: Actions as Compositions of Spatio-temporal Scene Graphs, CVPR 2020.
Where: https://prior.allenai.org/projects/charades (annotations; videos scaled to 480p, which the boxes are of);
       boxes: https://github.com/JingweiJ/ActionGenome.
Licence: see the datasets' pages for their terms.

Splits: train, test. A segment is a whole video and its label the tuple of all its actions (`segments="videos"`), or one
annotated action each (`segments="actions"`). Videos without any action have no segment: the official mean average
precision ranks them last, which is the same.

Layout (the annotation files may also lie in Charades/ or annotations/; boxes in annotations/ or
action_genome_v1.0/ too):

    Charades_v1_train.csv  Charades_v1_test.csv  Charades_v1_classes.txt
    object_bbox_and_relationship.pkl  person_bbox.pkl                  with boxes=True
    Charades_v1_480/AO8RW.mp4           or in Charades_v1/ or videos/
    Charades_v1_rgb/AO8RW/AO8RW-000001.jpg                             in their place, 24 a second

The csv files, the class list ("c000 Holding some clothes") and the folder of frames follow the public description.

With annotations="slowfast": train.csv and val.csv (split test) of PySlowFast, also in frame_lists/: a line for each
frame with `original_vido_id video_id frame_id path labels`, separated by blanks, labels as "1,2"; 24 frames a second.

With annotations="car", the compositional split of Yan et al., Interactive Fusion of Multi-level Features for
Compositional Activity Recognition: train.json and validation.json (or val.json, test.json; split test) are lists of
{"id": video, "label": [names of actions]}, labels.json names the classes, and video_info.json, where it is there, tells
{id: {"cnt": frames, "res": [height, width], "frame_ids": [...]}}. The files may lie in annotations/, COM/ or
dataset_splits/. Class numbers are the alphabetical rank of the names, as in that paper's code. The lists were not
released with the code; their form is that which the code reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ..annotations import Segment
from .action_genome import ActionGenomeBoxes, People
from .contract import Dataset, register
from .layout import choose_paths, find_file, find_optional, read_table, unique
from .lines import text_lines

NAME = "charades"
FRAMES_PER_SECOND = 24.0  # of the frames that the authors give, and of PySlowFast's lists; not of the videos
Granularity = Literal["videos", "actions"]
_FOLDERS = ("", "Charades", "annotations")
_SLOWFAST_FOLDERS = ("", "frame_lists", "annotations")
_CAR_FOLDERS = ("", "annotations", "COM", "dataset_splits", "dataset_splits/COM")
_BOX_FOLDERS = ("", "annotations", "action_genome_v1.0")
_ADVICE = "get the annotations from prior.allenai.org/projects/charades"
_BOX_ADVICE = "get it where github.com/JingweiJ/ActionGenome says, or leave the boxes out with boxes=False"
_VIDEOS = tuple(f"{folder}{{video}}.mp4" for folder in ("Charades_v1_480/", "Charades_v1/", "videos/", ""))
_FRAMES = "Charades_v1_rgb/{video}"


@register(
    NAME,
    splits=("train", "test"),
    paper="Sigurdsson et al., ECCV 2016; boxes: Ji et al., CVPR 2020",
    source="prior.allenai.org/projects/charades; boxes: github.com/JingweiJ/ActionGenome",
    licence="see the datasets' pages for their terms",
    layout="""\
    Charades_v1_train.csv  Charades_v1_test.csv  Charades_v1_classes.txt
    object_bbox_and_relationship.pkl  person_bbox.pkl
    Charades_v1_480/AO8RW.mp4""",
)
def read(
    root: Path,
    split: str,
    *,
    annotations: Literal["official", "slowfast", "car"] = "official",
    segments: Granularity = "videos",
    boxes: bool = False,
    people: People = "first",
    frames_per_second: float | None = None,
    frame_sizes: str | Path | None = None,
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; see the module's text and that of action_genome.

    annotations: whose files are read.
    segments: "videos" or "actions"; the lists of "car" have videos only.
    boxes: True reads those of Action Genome; videos without any are told in the notes.
    people: "first" or "all" of the persons that were detected in a frame.
    frames_per_second: how fast the annotated frames of boxes count; None takes it from each video.
    frame_sizes: a json as video_info.json, relative to root, that tells in which size the boxes are; None: what is told
        with the boxes, else the video's.
    paths: stream -> pattern of `Dataset.paths`, where videos lie elsewhere.
    """
    notes: list[str] = []
    if annotations == "car":
        if segments == "actions":
            raise ValueError('segments="actions" needs annotations="official" or "slowfast": these lists have no times')
        found, classes, files, info = _read_car(root, split, notes)
        frame_sizes = frame_sizes if frame_sizes is not None else info
    else:
        listed = find_file(root, ("Charades_v1_classes.txt",), _FOLDERS, _ADVICE)
        classes = read_classes(listed)
        if annotations == "official":
            file = find_file(root, (f"Charades_v1_{split}.csv",), _FOLDERS, _ADVICE)
            found = unique(_read_official(file, segments, len(classes), notes), file)
        else:
            name = "train.csv" if split == "train" else "val.csv"
            file = find_file(root, (name,), _SLOWFAST_FOLDERS, "it is PySlowFast's list of frames of Charades")
            found = unique(_read_frame_list(file, segments, notes), file)
        files = [file, listed]
    chosen = choose_paths(root, {"rgb": (*_VIDEOS, _FRAMES)}, found, paths)
    tracks = None
    if boxes:
        pickles = [
            find_file(root, (name,), _BOX_FOLDERS, _BOX_ADVICE)
            for name in ("object_bbox_and_relationship.pkl", "person_bbox.pkl")
        ]
        tracks = ActionGenomeBoxes(
            *pickles,
            video_path=str(root / chosen["rgb"]),
            frames_per_second=frames_per_second,
            sizes=_read_sizes(root / frame_sizes) if frame_sizes is not None else None,
            people=people,
        )
        files += pickles
        videos = {segment.video for segment in found}
        if missing := sum(video not in tracks for video in videos):
            notes.append(f"{missing} of {len(videos)} videos have no boxes.")
    return Dataset(
        name=NAME,
        split=split,
        segments=found,
        classes={"action": classes},
        root=root,
        paths=chosen,
        frame_rates={"rgb": FRAMES_PER_SECOND} if chosen["rgb"] == _FRAMES else {},
        boxes=tracks,
        files=tuple(files),
        notes=tuple(notes),
    )


def read_classes(path: Path) -> tuple[str, ...]:
    """Names by class number, of lines "c000 name"."""
    names: list[str] = []
    for line, text in text_lines(path):
        code, _, name = text.partition(" ")
        if code != f"c{len(names):03d}" or not name.strip():
            raise ValueError(f"{path}:{line}: {text!r}; it must be c{len(names):03d} and a name")
        names.append(name.strip())
    return tuple(names)


def _whole_video(video: str, actions: set[int], extra: Mapping[str, str]) -> Segment:
    return Segment(video, 0.0, math.inf, video, {"action": tuple(sorted(actions))}, extra)


def _read_official(path: Path, segments: Granularity, num_classes: int, notes: list[str]) -> Iterator[Segment]:
    empty = backward = 0
    for line, row in read_table(path, ("id", "actions")):
        extra = {
            name: row[column]
            for column, name in (("subject", "participant"), ("scene", "scene"), ("length", "length_seconds"))
            if row.get(column)
        }
        actions: list[tuple[int, float, float]] = []
        for text in filter(None, row["actions"].split(";")):
            try:
                code, start, stop = text.split()
                action = (int(code.removeprefix("c")), float(start), float(stop))
            except ValueError:
                raise ValueError(
                    f"{path}:{line}: the action {text!r} must be a class, a start and a stop in seconds, as in "
                    "'c092 11.90 21.20'"
                ) from None
            if not 0 <= action[0] < num_classes:
                raise ValueError(f"{path}:{line}: the action {text!r} is none of the {num_classes} classes")
            actions.append(action)
        empty += not actions
        if segments == "videos":
            if actions:
                yield _whole_video(row["id"], {action for action, _, _ in actions}, extra)
            continue
        seen: set[str] = set()
        for action, start, stop in actions:
            segment_id = f"{row['id']}-c{action:03d}-{start:g}-{stop:g}"
            if not 0 <= start < stop:
                backward += 1
            elif segment_id not in seen:  # the same action, twice in one cell
                seen.add(segment_id)
                yield Segment(row["id"], start, stop, segment_id, {"action": action}, extra)
    if empty:
        notes.append(f"{empty} videos of {path.name} have no action and no segment.")
    if backward:
        notes.append(f"{backward} actions of {path.name} that do not stop after they start are left out.")


def _read_frame_list(path: Path, segments: Granularity, notes: list[str]) -> Iterator[Segment]:
    """The segments of one video after the other; millions of lines, of which only one video's are held."""
    video, last, empty = "", -1, 0
    runs: dict[int, list[list[int]]] = {}  # class -> [first frame, last frame] of each stretch
    parsed: dict[str, tuple[int, ...]] = {}

    def done() -> Iterator[Segment]:
        nonlocal empty
        if video and not runs:
            empty += 1
        elif video and segments == "videos":
            yield _whole_video(video, set(runs), {})
        elif video:
            for action, first, final in sorted((a, *run) for a, stretches in runs.items() for run in stretches):
                start, stop = first / FRAMES_PER_SECOND, (final + 1) / FRAMES_PER_SECOND
                yield Segment(video, start, stop, f"{video}-c{action:03d}-{first}-{final}", {"action": action})

    with open(path, encoding="utf-8-sig") as file:
        header = file.readline().split()
        if header[:1] != ["original_vido_id"] or len(header) != 5:
            raise ValueError(
                f"{path}:1: the header is {' '.join(header)!r}; it must be "
                "'original_vido_id video_id frame_id path labels'"
            )
        for line, text in enumerate(file, 2):
            words = text.split()
            try:
                name, _, number, _, labels = words
                frame = int(number)
                if labels not in parsed:
                    parsed[labels] = tuple(int(label) for label in filter(None, labels.strip('"').split(",")))
            except ValueError:
                if not words:
                    continue
                raise ValueError(
                    f'{path}:{line}: {text.strip()!r}; a line must be a video, its number, a frame, a path and "labels"'
                ) from None
            if name != video:
                yield from done()
                video, last = name, -1
                runs = {}
            if frame <= last:
                raise ValueError(f"{path}:{line}: frame {frame} of {video} comes after frame {last}; sort the list")
            for label in parsed[labels]:
                stretches = runs.setdefault(label, [])
                if stretches and stretches[-1][1] == last and frame == last + 1:
                    stretches[-1][1] = frame
                else:
                    stretches.append([frame, frame])
            last = frame
        yield from done()
    if empty:
        notes.append(f"{empty} videos of {path.name} have no action and no segment.")


# The compositional split


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ValueError(f"{path}: not a JSON file: {problem}") from None


def _video_of(name: object) -> str:
    """Action Genome calls videos AO8RW.mp4, Charades AO8RW."""
    return str(name).removesuffix(".mp4")


def _read_car(
    root: Path, split: str, notes: list[str]
) -> tuple[tuple[Segment, ...], tuple[str, ...], list[Path], Path | None]:
    """Segments, class names, the files that were read, and video_info.json where it is there."""
    advice = "it is the list of videos and actions that the code of Yan et al. reads"
    names = ("train.json",) if split == "train" else ("validation.json", "val.json", "test.json")
    files = [find_file(root, either, _CAR_FOLDERS, advice) for either in (names, ("labels.json",))]
    listed = _read_json(files[1])
    if not isinstance(listed, (list, dict)) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{files[1]}: must be a list of class names, or an object that has them as its keys")
    classes = tuple(sorted(listed))
    info_path = find_optional(root, ("video_info.json",), _CAR_FOLDERS)
    info = {_video_of(name): entry for name, entry in _read_json(info_path).items()} if info_path else {}
    segments = unique(_car_segments(files[0], classes, info, notes), files[0])
    return segments, classes, [*files, *([info_path] if info_path else [])], info_path


def _car_segments(path: Path, classes: tuple[str, ...], info: Mapping[str, Any], notes: list[str]) -> Iterator[Segment]:
    numbers = {name: number for number, name in enumerate(classes)}
    rows, empty = _read_json(path), 0
    if not isinstance(rows, list):
        raise ValueError(f'{path}: holds a {type(rows).__name__}; it must be a list of {{"id": ..., "label": [...]}}')
    for entry, row in enumerate(rows):
        if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("label"), list):
            raise ValueError(f'{path}: entry {entry} is {str(row)[:80]}; it must be {{"id": ..., "label": [names]}}')
        if unknown := [name for name in row["label"] if name not in numbers]:
            raise ValueError(
                f"{path}: entry {entry} ({row['id']}) has the action {unknown[0]!r}, which is none of the "
                f"{len(classes)} of labels.json"
            )
        video = _video_of(row["id"])
        frames = info.get(video, {}).get("frame_ids", ())
        extra = {"frame_ids": ",".join(map(str, frames))} if frames else {}
        if not row["label"]:
            empty += 1
            continue
        yield _whole_video(video, {numbers[name] for name in row["label"]}, extra)
    if empty:
        notes.append(f"{empty} videos of {path.name} have no action and no segment.")


def _read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Video -> (width, height)."""
    try:
        return {
            _video_of(video): (int(entry["res"][1]), int(entry["res"][0])) for video, entry in _read_json(path).items()
        }
    except (KeyError, TypeError, IndexError, AttributeError) as problem:
        raise ValueError(f'{path}: must be an object of video -> {{"res": [height, width]}}: {problem!r}') from None
