"""One's own videos, a folder for each class.

Paper: none.
Where: your own files.
Licence: yours.

Splits: train, validation, test.

Layout, either

    train/pour/a.mp4  train/stir/b.mp4  validation/pour/c.mp4  test/...       also training; val, valid; testing
or
    pour/a.mp4  pour/c.mp4  stir/b.mp4                                        split by shares

Classes are the names of the folders, in alphabetical order over all splits. A class's folder is searched with its
sub-folders for videos (files by their extension, folders and tar files of frames). A segment is a whole video, its
name the path below root.

By shares: in each class videos are ordered by a hash of seed, class and name, and the first go to test, the next to
validation, the others to train; a share of n videos is rounded to the nearest whole number, and train keeps at least
one. The same files give the same split on every machine; new files of a class may move others of it. Clips that are cut
from one video may so come into two splits: put such into split folders.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..annotations import Segment
from ..inputs import VIDEO_EXTENSIONS, find_videos
from .contract import Dataset, register
from .layout import LayoutError

NAME = "folder"
SHARES = (0.15, 0.15)
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}


@register(
    NAME,
    splits=tuple(_SPLITS),
    paper="none: your own videos",
    source="your own files",
    licence="yours",
    layout="""\
    train/CLASS/a.mp4  validation/CLASS/b.mp4  test/CLASS/c.mp4
    or  CLASS/a.mp4  CLASS/b.mp4, split by shares""",
)
def read(
    root: Path,
    split: str,
    *,
    shares: tuple[float, float] | None = None,
    seed: int = 0,
    frames_per_second: float = 30.0,
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; see the module's text.

    shares: of each class, for validation and for test; the folders in root are then classes, whatever they are called.
        None: the folders are splits where one is called as one, else classes with (0.15, 0.15).
    seed: of the order that shares are taken in.
    frames_per_second: what folders of frames count by.
    paths: stream -> pattern of `Dataset.paths`, for further streams; {video} has its extension, {stem} has not.
    """
    _check(shares, frames_per_second)
    by_class = _videos(root, split) if shares is None else None
    if by_class is None:
        by_class = _share(_classes(root, root), shares or SHARES, seed, split)
    segments = tuple(
        Segment(video, 0.0, math.inf, video, {"action": number}, {"stem": _stem(video)})
        for number, videos in enumerate(by_class.values())
        for video in videos
    )
    if not segments:
        raise ValueError(
            f"{root} has no videos for {split}; make a folder {split}/CLASS, or give a share to it: "
            "shares=(VALIDATION, TEST)"
        )
    has_frames = any(_stem(segment.video) == segment.video for segment in segments)
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes={"action": tuple(by_class)},
        root=root,
        paths={"rgb": "{video}", **(paths or {})},
        frame_rates={"rgb": frames_per_second} if has_frames else {},
    )


def _check(shares: object, frames_per_second: float) -> None:
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second is {frames_per_second}; it must be positive")
    if shares is None:
        return
    numbers = list(shares) if isinstance(shares, (tuple, list)) else []
    if len(numbers) != 2 or not all(isinstance(n, (int, float)) and n >= 0 for n in numbers) or sum(numbers) >= 1:
        raise ValueError(f"shares is {shares!r}; it must be two numbers, 0 or more and together below 1")


def _stem(video: str) -> str:
    stem, extension = os.path.splitext(video)
    return stem if extension.lower() in VIDEO_EXTENSIONS else video


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _classes(root: Path, folder: Path) -> dict[str, list[str]]:
    """Class -> its videos, as paths below root."""
    names = _folders(folder)
    found = {name: [video.key for video in find_videos(folder / name, root)] for name in names}
    if not any(found.values()):
        raise LayoutError(folder, ("CLASS/*.mp4",), "it must have a folder for each class, with videos in it")
    return found


def _videos(root: Path, split: str) -> dict[str, list[str]] | None:
    """Class -> videos of the split by its folder; None where no folder is called as a split is."""
    there = {which: [name for name in names if (root / name).is_dir()] for which, names in _SPLITS.items()}
    if not any(there.values()):
        return None
    if several := [names for names in there.values() if len(names) > 1]:
        raise ValueError(
            f"{root} has {' and '.join(several[0])}, which are one split; move the videos of one to the other"
        )
    if not there[split]:
        raise LayoutError(root, (f"{split}/CLASS",), "other splits have folders there")
    found = {which: _classes(root, root / names[0]) for which, names in there.items() if names}
    names = sorted(set().union(*found.values()))
    return {name: found[split].get(name, []) for name in names}


def _share(found: Mapping[str, list[str]], shares: tuple[float, float], seed: int, split: str) -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = {}
    for name, videos in found.items():
        order = sorted(videos, key=lambda video: (hashlib.sha256(f"{seed}/{video}".encode()).digest(), video))
        validation, test = (math.floor(share * len(order) + 0.5) for share in shares)
        test = min(test, max(0, len(order) - 1))
        validation = min(validation, max(0, len(order) - 1 - test))
        parts = {
            "test": order[:test],
            "validation": order[test : test + validation],
            "train": order[test + validation :],
        }
        chosen[name] = sorted(parts[split])
    return chosen
