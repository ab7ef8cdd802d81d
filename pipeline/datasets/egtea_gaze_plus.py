"""EGTEA Gaze+: 28 hours of meals cooked with a head camera, 106 actions, 19 verbs, 51 nouns, three splits.

Paper: Li et al., In the Eye of Beholder: Joint Learning of Gaze and Actions in First Person Video, ECCV 2018.
Where: videos, clips and action_annotation.zip: https://cbs.ic.gatech.edu/fpv/ ;
       RULSTM's form of the annotations: https://github.com/fpv-iplab/rulstm (RULSTM/data/egtea).
Licence: none is stated; for research, the paper is to be cited.

Splits: train1, test1, train2, test2, train3, test3. 8299, 2022 segments; 8299, 2022; 8300, 2021.

Layout (the annotation files may also lie in action_annotation/ or annotations/):

    train_split1.txt  test_split1.txt  ... of all three splits
    action_idx.txt  verb_idx.txt  noun_idx.txt
    videos/OP01-R01-PastaSalad.mp4                                                        whole sessions
    cropped_clips/OP01-R01-PastaSalad/OP01-R01-PastaSalad-1002316-1004005-F024051-F024101.mp4
                                                                                          with videos="clips"

A line of a split is the clip's name, then the numbers of its action, verb and nouns, counted from 1 (here from 0, as in
all public code); the first noun is the one that counts. The clip's name tells start and stop in milliseconds of the
session, and its frames (24 a second).

With annotations="rulstm": training1.csv validation1.csv ... actions.csv, at 30 frames a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from ..annotations import Segment
from . import rulstm
from .contract import Dataset, register
from .layout import choose_paths, find_file, unique

NAME = "egtea_gaze_plus"
Videos = Literal["sessions", "clips"]
_FOLDERS = ("", "action_annotation", "annotations")
_RULSTM_FOLDERS = ("", "annotations", "rulstm")
_ADVICE = "get action_annotation.zip from cbs.ic.gatech.edu/fpv"
_RULSTM_ADVICE = "get it from RULSTM/data/egtea of github.com/fpv-iplab/rulstm"
_CLIP = re.compile(r"(?P<session>.+)-(?P<start>\d+)-(?P<stop>\d+)-F(?P<first>\d+)-F(?P<last>\d+)")
_SESSIONS = tuple(
    f"{folder}{{video}}.{extension}" for folder in ("videos/", "", "session_videos/") for extension in ("mp4", "avi")
)
_CLIPS = ("cropped_clips/{session}/{video}.mp4", "{session}/{video}.mp4", "cropped_clips/{video}.mp4")


@register(
    NAME,
    splits=("train1", "test1", "train2", "test2", "train3", "test3"),
    paper="Li et al., ECCV 2018",
    source="cbs.ic.gatech.edu/fpv",
    licence="none stated; for research",
    layout="""\
    train_split1.txt  test_split1.txt  ...  action_idx.txt  verb_idx.txt  noun_idx.txt
    videos/OP01-R01-PastaSalad.mp4  or  cropped_clips/OP01-R01-PastaSalad/OP01-R01-PastaSalad-*.mp4""",
)
def read(
    root: Path,
    split: str,
    *,
    annotations: Literal["official", "rulstm"] = "official",
    videos: Videos = "sessions",
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; see the module's text.

    annotations: whose files are read.
    videos: "sessions" are whole videos, which anticipation needs. "clips" are the files that the authors cut: each is a
        video of its own that is its segment from its start to its end; official annotations only.
    paths: stream -> pattern of `Dataset.paths`, where videos lie elsewhere.
    """
    part, number = split[:-1], split[-1]
    if annotations == "rulstm":
        if videos == "clips":
            raise ValueError('videos="clips" needs annotations="official": RULSTM\'s files do not name the clips')
        name = f"{'training' if part == 'train' else 'validation'}{number}.csv"
        files = [find_file(root, (name,), _RULSTM_FOLDERS, _RULSTM_ADVICE)]
        files.append(find_file(root, ("actions.csv",), _RULSTM_FOLDERS, _RULSTM_ADVICE))
        segments, actions = rulstm.read_segments(files[0]), rulstm.read_actions(files[1])
        verbs, nouns = rulstm.part_names(actions, "_")
        classes, parts = {"verb": verbs, "noun": nouns, "action": actions.names}, rulstm.parts_of(actions)
        notes: tuple[str, ...] = ()
    else:
        files = [
            find_file(root, (f"{which}_split{number}.txt",), _FOLDERS, _ADVICE)
            for which in (part, "test" if part == "train" else "train")
        ]
        listed = {task: find_file(root, (f"{task}_idx.txt",), _FOLDERS, _ADVICE) for task in ("verb", "noun", "action")}
        classes = {task: _read_classes(path) for task, path in listed.items()}
        segments, others = (unique(_read_split(path, videos), path) for path in files)
        parts, notes = _parts((*segments, *others), len(classes["action"]))
        files += listed.values()
    candidates = {"rgb": _CLIPS if videos == "clips" else _SESSIONS}
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes=classes,
        root=root,
        paths=choose_paths(root, candidates, segments, paths),
        parts=parts,
        files=tuple(files),
        notes=notes,
    )


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a UTF-8 text file: {problem}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.split():
            yield number, words


def _read_classes(path: Path) -> tuple[str, ...]:
    """Names by class number, of lines "name number"; the numbers count from 1."""
    names: dict[int, str] = {}
    for line, words in _lines(path):
        if len(words) < 2 or not words[-1].isdigit():
            raise ValueError(f"{path}:{line}: {' '.join(words)!r}; a line must be a name and its number")
        names[int(words[-1]) - 1] = " ".join(words[:-1])
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{path}: class numbers must be 1 to {len(names)}, each once")
    return tuple(names[number] for number in range(len(names)))


def _read_split(path: Path, videos: Videos) -> Iterator[Segment]:
    for line, (clip, *numbers) in _lines(path):
        parsed = _CLIP.fullmatch(clip)
        if parsed is None or len(numbers) < 3 or not all(n.isdigit() and int(n) >= 1 for n in numbers):
            raise ValueError(
                f"{path}:{line}: {' '.join((clip, *numbers))!r}; a line must be "
                "session-start-stop-Ffirst-Flast, then the numbers of its action, verb and nouns, 1 or more"
            )
        action, verb, *nouns = (int(number) - 1 for number in numbers)
        session = parsed["session"]
        extra = {
            "session": session,
            "participant": rulstm.participant_of(session),
            "start_frame": str(int(parsed["first"])),
            "stop_frame": str(int(parsed["last"])),
            "frames_per_second": "24",
            "all_noun_classes": ",".join(map(str, nouns)),
        }
        start, stop = int(parsed["start"]) / 1000, int(parsed["stop"]) / 1000
        try:
            yield Segment(
                clip if videos == "clips" else session,
                0.0 if videos == "clips" else start,
                math.inf if videos == "clips" else stop,
                clip,
                {"verb": verb, "noun": nouns[0], "action": action},
                extra,
            )
        except ValueError as problem:
            raise ValueError(f"{path}:{line}: {problem}") from None


def _parts(
    segments: tuple[Segment, ...], num_actions: int
) -> tuple[dict[str, dict[str, tuple[int, ...]]], tuple[str, ...]]:
    """Verb and noun of each action, as its first segment has them; nothing where an action has no segment."""
    pairs: dict[int, tuple[int, int]] = {}
    for segment in segments:
        verb, noun, action = (segment.labels[task] for task in ("verb", "noun", "action"))
        pairs.setdefault(action, (verb, noun))  # type: ignore[arg-type]
    if missing := num_actions - len(pairs):
        return {}, (f"{missing} of {num_actions} actions have no segment, so their verbs and nouns are not known.",)
    verbs, nouns = zip(*(pairs[action] for action in range(num_actions)), strict=True)
    return {"action": {"verb": verbs, "noun": nouns}}, ()
