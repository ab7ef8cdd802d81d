"""HMDB51: 6766 clips of 51 actions from films and the web, three splits.

Paper: Kuehne et al., HMDB: A Large Video Database for Human Motion Recognition, ICCV 2011.
Where: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/
       (hmdb51_org.rar, test_train_splits.rar)
Licence: see the dataset's page for its terms.

Splits: train1, test1, train2, test2, train3, test3. Of each class 70 clips train and 30 test: 3570 and 1530.

Layout (the lists may also lie in testTrainMulti_7030_splits/, test_train_splits/ or annotations/):

    brush_hair_test_split1.txt  ... of 51 classes and three splits
    hmdb51_org/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi    or in videos/ or in root
    frames/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0/           frames in their place, 30 a second

A line of a list is a clip's name and 1 (train), 2 (test) or 0 (in neither). Class numbers are the alphabetical rank of
the classes. A segment is a whole clip. The formats and counts follow the public description.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..annotations import Segment
from .contract import Dataset, register
from .layout import LayoutError, choose_paths, unique
from .lines import text_lines

NAME = "hmdb51"
FRAMES_PER_SECOND = 30.0
_FOLDERS = ("", "testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits", "test_train_splits")
_FRAMES = "frames/{video}"
_PATHS = (
    *(f"{folder}{{video}}.{extension}" for extension in ("avi", "mp4") for folder in ("hmdb51_org/", "videos/", "")),
    _FRAMES,
)
_MARKS = {"train": "1", "test": "2"}


@register(
    NAME,
    splits=tuple(f"{part}{number}" for number in (1, 2, 3) for part in ("train", "test")),
    paper="Kuehne et al., ICCV 2011",
    source="serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database",
    licence="see the dataset's page for its terms",
    layout="""\
    testTrainMulti_7030_splits/brush_hair_test_split1.txt  ...
    hmdb51_org/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi""",
)
def read(root: Path, split: str, *, paths: Mapping[str, str] | None = None) -> Dataset:
    """One split; see the module's text.

    paths: stream -> pattern of `Dataset.paths`, where files lie elsewhere; {video} is the class, / and the clip's name
        without its extension.
    """
    part, ending = split[:-1], f"_test_split{split[-1]}.txt"
    files: list[Path] = []
    for folder in (*_FOLDERS, "annotations"):
        if files := sorted((root / folder).glob(f"*{ending}"), key=lambda path: path.name.removesuffix(ending)):
            break
    else:
        raise LayoutError(
            root,
            (f"testTrainMulti_7030_splits/brush_hair{ending}",),
            "get test_train_splits.rar from serre-lab.clps.brown.edu; one list for each class",
        )
    classes = tuple(path.name.removesuffix(ending) for path in files)
    segments = tuple(
        segment
        for number, path in enumerate(files)
        for segment in unique(_read_list(path, classes[number], number, _MARKS[part]), path)
    )
    chosen = choose_paths(root, {"rgb": _PATHS}, segments, paths)
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes={"action": classes},
        root=root,
        paths=chosen,
        frame_rates={"rgb": FRAMES_PER_SECOND} if chosen["rgb"] == _FRAMES else {},
        files=tuple(files),
        notes=() if len(classes) == 51 else (f"There are lists of {len(classes)} classes; HMDB51 has 51.",),
    )


def _read_list(path: Path, name: str, number: int, mark: str) -> Iterator[Segment]:
    for line, text in text_lines(path):
        clip, _, own_mark = text.rpartition(" ")
        if own_mark not in ("0", "1", "2") or not clip.strip().endswith((".avi", ".mp4")):
            raise ValueError(f"{path}:{line}: {text!r}; a line must be a clip and 0, 1 or 2, as in 'NAME.avi 1'")
        if own_mark == mark:
            video = f"{name}/{clip.strip()[:-4]}"
            yield Segment(video, 0.0, math.inf, video, {"action": number})
