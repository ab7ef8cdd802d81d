"""MECCANO: 20 people build a toy motorbike before a head camera, in colour and depth; 61 actions.

Paper: Ragusa et al., The MECCANO Dataset: Understanding Human-Object Interactions from Egocentric Videos in an
       Industrial-like Domain, WACV 2021; with depth and gaze: CVIU 2023.
Where: https://iplab.dmi.unict.it/MECCANO/ ; code: https://github.com/fpv-iplab/MECCANO
Licence: see the dataset's page for its terms.

Splits: train, validation, test.

Layout (the csv files may also lie in annotations/ or action_annotations/):

    MECCANO_train_actions.csv  MECCANO_val_actions.csv  MECCANO_test_actions.csv    or train.csv  val.csv  test.csv
    MECCANO_RGB_Videos/0001.mp4    or videos/, or frames/0001/00001.jpg
    depth/0001.mp4                 or depth/0001/00001.png

A line of a csv is `video,action_id,action_name,first.jpg,last.jpg`, five cells and as a rule no header. Frames count
from 1 at 12 a second and both are in the action: it is [(first - 1) / 12, last / 12) seconds. A line that is there
twice is two segments, as in the public code.

Which files are named how in the downloads follows the public description; where yours differ, rename the csv files and
name the places of the streams with `paths`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..annotations import Segment, csv_rows
from .contract import Dataset, register
from .layout import choose_paths, find_file, find_optional, unique, whole_number

NAME = "meccano"
NUM_ACTIONS = 61
_FILES = {
    split: (f"MECCANO_{short}_actions.csv", f"{short}.csv", *((f"{split}.csv",) if short != split else ()))
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test"))
}
_FOLDERS = ("", "annotations", "action_annotations")
_ADVICE = "get the action annotations from iplab.dmi.unict.it/MECCANO"
_FRAME = re.compile(r"(?P<number>\d+)\.(?:jpg|png)", re.IGNORECASE)
_PATHS = {
    stream: tuple(f"{folder}/{{video}}{ending}" for ending in (".mp4", ".avi", ".mkv", "") for folder in (folders))
    for stream, folders in (
        ("rgb", ("MECCANO_RGB_Videos", "videos", "rgb", "frames", "MECCANO_RGB_frames")),
        ("depth", ("depth", "MECCANO_Depth_Videos", "MECCANO_Depth_frames")),
    )
}


@register(
    NAME,
    splits=("train", "validation", "test"),
    paper="Ragusa et al., WACV 2021",
    source="iplab.dmi.unict.it/MECCANO",
    licence="see the dataset's page for its terms",
    layout="""\
    MECCANO_train_actions.csv  MECCANO_val_actions.csv  MECCANO_test_actions.csv
    MECCANO_RGB_Videos/0001.mp4  or  frames/0001/00001.jpg
    depth/0001.mp4  or  depth/0001/00001.png""",
)
def read(
    root: Path,
    split: str,
    *,
    frames_per_second: float = 12.0,
    first_frame: int = 1,
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; see the module's text.

    frames_per_second: what frame numbers count by, in the csv files and in folders of frames.
    first_frame: the number of a video's first frame.
    paths: stream -> pattern of `Dataset.paths`, where files lie elsewhere.
    """
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second is {frames_per_second}; it must be positive")
    files = [find_file(root, _FILES[split], _FOLDERS, _ADVICE)]
    # A class may be in one split and not in another: names are taken from all files that are there.
    for other in _FILES:
        if other != split and (path := find_optional(root, _FILES[other], _FOLDERS)):
            files.append(path)
    names: dict[int, str] = {}
    rows = [unique(_read(path, names, frames_per_second, first_frame), path) for path in files]
    segments = rows[0]
    missing = [number for number in range(NUM_ACTIONS) if number not in names]
    chosen = choose_paths(root, _PATHS, segments, paths)
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes={"action": tuple(names.get(number, f"action {number}") for number in range(NUM_ACTIONS))},
        root=root,
        paths=chosen,
        frame_rates={stream: frames_per_second for stream, pattern in chosen.items() if not Path(pattern).suffix},
        files=tuple(files),
        notes=(f"{len(missing)} of {NUM_ACTIONS} actions are in no csv, so their names are not known.",)
        if missing
        else (),
    )


def _read(path: Path, names: dict[int, str], frames_per_second: float, first_frame: int) -> Iterator[Segment]:
    counts: Counter[str] = Counter()
    for row, (line, cells) in enumerate(csv_rows(path)):
        if row == 0 and len(cells) == 5 and not any(digit in "".join(cells[1:]) for digit in "0123456789"):
            continue  # a header
        frames = [_FRAME.fullmatch(cell) for cell in cells[3:]]
        if len(cells) != 5 or None in frames:
            raise ValueError(
                f"{path}:{line}: {','.join(cells)!r}; a line must be video,action_id,action_name,first.jpg,last.jpg"
            )
        video, name = cells[0], cells[2]
        first, last = (int(frame["number"]) for frame in frames if frame is not None)
        action = whole_number(cells[1], f"{path}:{line}: action_id")
        if names.setdefault(action, name) != name:
            raise ValueError(f"{path}:{line}: action {action} is called {name!r} here and {names[action]!r} elsewhere")
        if not first_frame <= first <= last:
            raise ValueError(
                f"{path}:{line}: frames {first} to {last}; they must ascend from {first_frame}, the first of a video. "
                "Where yours count from another number, say so with first_frame"
            )
        extra = {
            "start_frame": str(first),
            "stop_frame": str(last),
            "frames_per_second": f"{frames_per_second:g}",
        }
        start, stop = (first - first_frame) / frames_per_second, (last + 1 - first_frame) / frames_per_second
        segment_id = f"{video}-{first}-{last}-{action}"
        counts[segment_id] += 1
        if (copy := counts[segment_id]) > 1:
            segment_id += f"#{copy}"
        yield Segment(video, start, stop, segment_id, {"action": action}, extra)
