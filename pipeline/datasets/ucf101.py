"""UCF101: 13320 clips of 101 actions from the web, three splits.

Paper: Soomro et al., UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild, 2012.
Where: https://www.crcv.ucf.edu/data/UCF101.php (UCF101.rar; UCF101TrainTestSplits-RecognitionTask.zip)
Licence: see the dataset's page for its terms.

Splits: train1, test1, train2, test2, train3, test3. 9537, 3783 clips; 9586, 3734; 9624, 3696.

Layout (the lists may also lie in ucfTrainTestlist/ or annotations/):

    classInd.txt  trainlist01.txt  testlist01.txt  ... of all three splits
    UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi    or in videos/ or in root
    frames/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01/        frames in their place, 25 a second

A line of classInd.txt is "1 ApplyEyeMakeup", of a list "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", without the
number in test lists: the class is the folder. Class numbers are those of classInd.txt less one. A segment is a whole
clip; clips of one group (g08) are cut from one video. The formats and counts follow the public description.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..annotations import Segment
from .contract import Dataset, register
from .layout import choose_paths, find_file, unique
from .lines import text_lines

NAME = "ucf101"
FRAMES_PER_SECOND = 25.0
_FOLDERS = ("", "ucfTrainTestlist", "annotations")
_ADVICE = "it is in UCF101TrainTestSplits-RecognitionTask.zip of crcv.ucf.edu/data/UCF101.php"
_FRAMES = "frames/{video}"
_PATHS = (
    *(f"{folder}{{video}}.{extension}" for extension in ("avi", "mp4") for folder in ("UCF-101/", "videos/", "")),
    _FRAMES,
)
_CLIP = re.compile(r"(?P<video>(?P<name>[^/]+)/[^/]+?_(?P<group>g\d+)_c\d+)\.\w+")


@register(
    NAME,
    splits=tuple(f"{part}{number}" for number in (1, 2, 3) for part in ("train", "test")),
    paper="Soomro et al., 2012",
    source="crcv.ucf.edu/data/UCF101.php",
    licence="see the dataset's page for its terms",
    layout="""\
    classInd.txt  trainlist01.txt  testlist01.txt  ...
    UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi""",
)
def read(root: Path, split: str, *, paths: Mapping[str, str] | None = None) -> Dataset:
    """One split; see the module's text.

    paths: stream -> pattern of `Dataset.paths`, where files lie elsewhere; {video} is the class, / and the clip's name
        without its extension.
    """
    file = find_file(root, (f"{split[:-1]}list0{split[-1]}.txt",), _FOLDERS, _ADVICE)
    listed = find_file(root, ("classInd.txt",), _FOLDERS, _ADVICE)
    classes = _read_classes(listed)
    segments = unique(_read_list(file, classes), file)
    chosen = choose_paths(root, {"rgb": _PATHS}, segments, paths)
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes={"action": classes},
        root=root,
        paths=chosen,
        frame_rates={"rgb": FRAMES_PER_SECOND} if chosen["rgb"] == _FRAMES else {},
        files=(file, listed),
    )


def _read_classes(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for line, text in text_lines(path):
        words = text.split()
        if len(words) != 2 or words[0] != str(len(names) + 1):
            raise ValueError(f"{path}:{line}: {text!r}; it must be {len(names) + 1} and a name: classes in their order")
        names.append(words[1])
    return tuple(names)


def _read_list(path: Path, classes: tuple[str, ...]) -> Iterator[Segment]:
    numbers = {name: number for number, name in enumerate(classes)}
    for line, text in text_lines(path):
        words = text.split()
        parsed = _CLIP.fullmatch(words[0])
        if parsed is None or len(words) > 2 or parsed["name"] not in numbers:
            raise ValueError(
                f"{path}:{line}: {text!r}; a line must be CLASS/v_CLASS_g01_c01.avi, with a class of classInd.txt, and "
                "in training lists its number"
            )
        number = numbers[parsed["name"]]
        if len(words) == 2 and words[1] != str(number + 1):
            raise ValueError(
                f"{path}:{line}: {words[0]} has the class {words[1]}; in classInd.txt {parsed['name']} is {number + 1}"
            )
        video = parsed["video"]
        yield Segment(video, 0.0, math.inf, video, {"action": number}, {"group": f"{parsed['name']}_{parsed['group']}"})
