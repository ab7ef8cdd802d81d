"""NTU RGB+D 60 and 120: single actions before three Kinect v2 cameras, in colour, depth and infrared.

Paper: 60: Shahroudy et al., NTU RGB+D: A Large Scale Dataset for 3D Human Activity Analysis, CVPR 2016;
       120: Liu et al., NTU RGB+D 120: A Large-Scale Benchmark for 3D Human Activity Understanding, TPAMI 2020.
Where: https://rose1.ntu.edu.sg/dataset/actionRecognition/ (on request);
       lists of samples without skeletons: https://github.com/shahroudy/NTURGB-D (Matlab/).
Licence: see the dataset's page for its terms (on request, for research).

Datasets: ntu_rgbd_60 (56880 samples) and ntu_rgbd_120 (114480; it holds those of 60). Splits, each with _train and
_test: cross_subject (60: 20 of 40 subjects train; 120: 53 of 106), cross_view (60 only: cameras 2 and 3 train, 1
tests), cross_setup (120 only: even setups train).

Layout (none of the streams has to be there but one; `rgb/`, `depth/`, `ir/` may stand for the long names):

    nturgb+d_rgb/S001C001P001R001A001_rgb.avi                        or a folder of frames in its place
    nturgb+d_depth_masked/S001C001P001R001A001/MDepth-00000001.png   or nturgb+d_depth/.../Depth-00000001.png
    nturgb+d_ir/S001C001P001R001A001_ir.avi                          or a folder of frames in its place

There is no list of samples: they are the names that lie in the folders of all streams that are there. A name tells
setup (S), camera (C), subject (P), repetition (R) and action (A), counted from 1; the class number is one less. With
one folder for each setup name the place: paths={"rgb": "nturgb+d_rgb_s{setup}/{video}_rgb.avi"}.

A segment is a whole video. Folders of frames count at 30 a second. Depth and infrared are one channel. Depth is 16 bit
in millimetres, all of which are read; 0 is nothing measured, or in masked depth nobody. A Kinect v2 sees from 500 to
4500 (Corti et al., A metrological characterization of the Kinect V2 time-of-flight camera, 2016):
`StreamSpec(stream="depth", depth_range=(500, 4500))` spreads these over the scale, and colour_map="jet" paints them,
which is what public code that fuses depth with rgb trains on.

The names of the classes and the layout of the folders follow the public description.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..annotations import Segment
from .contract import Dataset, register
from .layout import LayoutError, find_file
from .lines import text_lines

FRAMES_PER_SECOND = 30.0
SUBJECTS_60 = frozenset((1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38))
SUBJECTS_120 = SUBJECTS_60 | frozenset(
    (45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95)
    + (97, 98, 100, 103)
)
CAMERAS_60 = frozenset((2, 3))
_NAME = re.compile(r"S(?P<setup>\d{3})C(?P<camera>\d{3})P(?P<subject>\d{3})R(?P<repetition>\d{3})A(?P<action>\d{3})")
# Largest setup, camera, subject, repetition and action.
_LIMITS = {60: (17, 3, 40, 2, 60), 120: (32, 3, 106, 2, 120)}
_MISSING = {
    60: "NTU_RGBD_samples_with_missing_skeletons.txt",
    120: "NTU_RGBD120_samples_with_missing_skeletons.txt",
}
_LAYOUT = """\
    nturgb+d_rgb/S001C001P001R001A001_rgb.avi
    nturgb+d_depth_masked/S001C001P001R001A001/MDepth-00000001.png
    nturgb+d_ir/S001C001P001R001A001_ir.avi"""


def _patterns(folders: tuple[str, ...], stream: str) -> tuple[str, ...]:
    names = (f"{{video}}_{stream}.avi", f"{{video}}_{stream}.mp4", "{video}.avi", "{video}.mp4")
    return tuple(f"{folder}/{name}" for folder in folders for name in (*names, f"{{video}}_{stream}", "{video}"))


PATHS: Mapping[str, tuple[str, ...]] = {
    "rgb": _patterns(("nturgb+d_rgb", "rgb"), "rgb"),
    "depth": (
        "nturgb+d_depth_masked/{video}",
        *_patterns(("nturgb+d_depth_masked", "nturgb+d_depth", "depth"), "depth"),
    ),
    "ir": _patterns(("nturgb+d_ir", "ir"), "ir"),
}

# In the order of the class numbers.
ACTIONS = tuple(
    name.strip()
    for name in """
    drink water; eat meal; brush teeth; brush hair; drop; pick up; throw; sit down; stand up; clap; reading;
    writing; tear up paper; put on jacket; take off jacket; put on a shoe; take off a shoe; put on glasses; take off
    glasses; put on a hat/cap; take off a hat/cap; cheer up; hand waving; kicking something; reach into pocket;
    hopping; jump up; phone call; play with phone/tablet; type on a keyboard; point to something; taking a selfie;
    check time (from watch); rub two hands; nod head/bow; shake head; wipe face; salute; put palms together; cross
    hands in front; sneeze/cough; staggering; falling down; headache; chest pain; back pain; neck pain;
    nausea/vomiting; fan self; punch/slap; kicking; pushing; pat on back; point finger; hugging; giving object;
    touch pocket; shaking hands; walking towards; walking apart; put on headphone; take off headphone; shoot at
    basket; bounce ball; tennis bat swing; juggle table tennis ball; hush; flick hair; thumb up; thumb down; make OK
    sign; make victory sign; staple book; counting money; cutting nails; cutting paper; snap fingers; open bottle;
    sniff/smell; squat down; toss a coin; fold paper; ball up paper; play magic cube; apply cream on face; apply
    cream on hand; put on bag; take off bag; put object into bag; take object out of bag; open a box; move heavy
    objects; shake fist; throw up cap/hat; capitulate; cross arms; arm circles; arm swings; run on the spot; butt
    kicks; cross toe touch; side kick; yawn; stretch oneself; blow nose; hit with object; wield knife; knock over;
    grab stuff; shoot with gun; step on foot; high-five; cheers and drink; carry object; take a photo; follow;
    whisper; exchange things; support somebody; rock-paper-scissors
    """.split(";")
)


@register(
    "ntu_rgbd_60",
    splits=tuple(f"{split}_{part}" for split in ("cross_subject", "cross_view") for part in ("train", "test")),
    paper="Shahroudy et al., CVPR 2016",
    source="rose1.ntu.edu.sg/dataset/actionRecognition",
    licence="see the dataset's page for its terms (on request, for research)",
    layout=_LAYOUT,
)
def read_60(
    root: Path,
    split: str,
    *,
    samples: Literal["all", "complete"] = "all",
    missing_skeletons: Literal["keep", "drop"] = "keep",
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split of 60; see the module's text. A folder that holds 120 will do: its samples of 60 are taken.

    samples: "complete" takes those alone that all streams have; "all" those that any has.
    missing_skeletons: "drop" leaves out the samples whose skeleton is missing or incomplete, as work that compares with
        skeletons does; their list (NTU_RGBD_samples_with_missing_skeletons.txt, 302 names; 535 in
        NTU_RGBD120_samples_with_missing_skeletons.txt for 120) must lie in root.
    paths: stream -> pattern of `Dataset.paths`, where files lie elsewhere; it may use {setup} too.
    """
    return _read(60, root, split, samples == "complete", missing_skeletons == "drop", paths)


@register(
    "ntu_rgbd_120",
    splits=tuple(f"{split}_{part}" for split in ("cross_subject", "cross_setup") for part in ("train", "test")),
    paper="Liu et al., TPAMI 2020",
    source="rose1.ntu.edu.sg/dataset/actionRecognition",
    licence="see the dataset's page for its terms (on request, for research)",
    layout=_LAYOUT,
)
def read_120(
    root: Path,
    split: str,
    *,
    samples: Literal["all", "complete"] = "all",
    missing_skeletons: Literal["keep", "drop"] = "keep",
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split of 120; options as in `read_60`."""
    return _read(120, root, split, samples == "complete", missing_skeletons == "drop", paths)


def is_training(size: int, split: str, name: str) -> bool:
    """Whether a sample of this name is in the training part; size: 60 or 120; split: cross_subject and so on."""
    setup, camera, subject = (int(name[at + 1 : at + 4]) for at in (0, 4, 8))
    if split == "cross_subject":
        return subject in (SUBJECTS_60 if size == 60 else SUBJECTS_120)
    return camera in CAMERAS_60 if split == "cross_view" else setup % 2 == 0


def _read(size: int, root: Path, split: str, complete: bool, drop: bool, paths: Mapping[str, str] | None) -> Dataset:
    kind, part = split.rsplit("_", 1)
    chosen, names = _find(size, root, paths)
    union = set().union(*names.values())
    found = set.intersection(*names.values()) if complete else union
    notes: list[str] = []
    if len(found) < len(union):
        notes.append(f"{len(union) - len(found)} samples that not all of {', '.join(chosen)} have are left out.")
    elif torn := len(union) - len(set.intersection(*names.values())):
        notes.append(f'{torn} samples are not in all of {", ".join(chosen)}; samples="complete" leaves them out.')
    files: tuple[Path, ...] = ()
    if drop:
        advice = "get it from Matlab/ of github.com/shahroudy/NTURGB-D"
        files = (find_file(root, (_MISSING[size],), ("", "annotations", "nturgb+d_skeletons"), advice),)
        without = read_missing(files[0])
        notes.append(f"{len(found & without)} samples without whole skeletons are left out.")
        found -= without
    train = part == "train"
    segments = tuple(_segment(name) for name in sorted(found) if is_training(size, kind, name) == train)
    return Dataset(
        name=f"ntu_rgbd_{size}",
        split=split,
        segments=segments,
        classes={"action": ACTIONS[:size]},
        root=root,
        paths=chosen,
        frame_rates={
            stream: FRAMES_PER_SECOND for stream, pattern in chosen.items() if not pattern.endswith((".avi", ".mp4"))
        },
        files=files,
        notes=tuple(notes),
    )


def read_missing(path: Path) -> frozenset[str]:
    """Names of the samples in a list of those with missing skeletons; its first lines are text.

    Raises ValueError where it has none.
    """
    if not (names := frozenset(line for _, line in text_lines(path) if _NAME.fullmatch(line))):
        raise ValueError(f"{path}: holds no sample such as S001C002P005R002A008")
    return names


def _segment(name: str) -> Segment:
    parsed = _NAME.fullmatch(name)
    assert parsed is not None
    extra = {"participant": f"P{parsed['subject']}"} | {k: parsed[k] for k in ("setup", "camera", "repetition")}
    return Segment(name, 0.0, math.inf, name, {"action": int(parsed["action"]) - 1}, extra)


def _find(size: int, root: Path, given: Mapping[str, str] | None) -> tuple[dict[str, str], dict[str, set[str]]]:
    """For each stream that is there the pattern that most samples lie under, and the samples."""
    candidates = {**PATHS, **{stream: (pattern,) for stream, pattern in (given or {}).items()}}
    chosen: dict[str, str] = {}
    names: dict[str, set[str]] = {}
    listed: dict[str, list[str]] = {}
    for stream, patterns in candidates.items():
        found = {pattern: _samples(size, root, pattern, listed) for pattern in patterns}
        best = max(patterns, key=lambda pattern: len(found[pattern]))  # of equals the first
        if found[best] or (given and stream in given):
            chosen[stream], names[stream] = best, found[best]
    if not any(names.values()):
        expected = [patterns[0].format(video="S001C001P001R001A001", setup="001") for patterns in candidates.values()]
        raise LayoutError(root, expected, f"no sample of ntu_rgbd_{size} is in any of their folders")
    return chosen, names


def _samples(size: int, root: Path, pattern: str, listed: dict[str, list[str]]) -> set[str]:
    """The samples of which a file or folder lies under the pattern."""
    before, video, after = pattern.partition("{video}")
    if not video:
        raise ValueError(f"the path {pattern!r} must have {{video}}, which stands for the sample's name")
    folder, _, start = before.rpartition("/")
    end = after.partition("/")[0]  # what follows lies in a folder of the sample's own
    fits = re.compile(re.escape(start) + f"({_NAME.pattern})" + re.escape(end).replace(r"\*", ".*"))
    setups = range(1, _LIMITS[120][0] + 1) if "{setup}" in folder else (1,)
    found = set()
    for place in (folder.format(setup=f"{setup:03d}") for setup in setups):
        if place not in listed:
            listed[place] = os.listdir(root / place) if (root / place).is_dir() else []
        for entry in listed[place]:
            if (parsed := fits.fullmatch(entry)) and _is_of(size, root / place / entry, parsed):
                found.add(parsed[1])
    return found


def _is_of(size: int, path: Path, parsed: re.Match[str]) -> bool:
    numbers = [int(text) for text in parsed.groups()[1:]]
    if any(not 1 <= number <= limit for number, limit in zip(numbers, _LIMITS[120], strict=True)):
        raise ValueError(
            f"{path} has the name of no sample: setup, camera, subject, repetition and action go from 1 to "
            f"{', '.join(map(str, _LIMITS[120]))}"
        )
    return all(number <= limit for number, limit in zip(numbers, _LIMITS[size], strict=True))
