"""Annotation files in the form of RULSTM's repository, which most work on action anticipation reads, and its protocol.

They count frames at 30 a second, to which RULSTM converts all videos. No file of segments has a header:

    training.csv, validation.csv     uid, video, start_frame, stop_frame, verb, noun, action
    test files                       uid, video, start_frame, stop_frame
    actions.csv                      EPIC-KITCHENS-55 `id,action,verb,noun`; EPIC-KITCHENS-100 `id,verb,noun,action`;
                                     EGTEA Gaze+ without a header: id, verb_noun, name
    validation_*_ids.csv             one uid a line

A time is frame / 30 s, the clock of the public code. Ids that are numbers lose their zero padding (`00330` is 330, as
in EPIC's own files).

Source: Furnari and Farinella, ICCV 2019; fpv-iplab/rulstm (no licence).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..annotations import Segment, csv_rows
from ..sampling import rulstm_past_frames
from .layout import unique, whole_number

FRAMES_PER_SECOND = 30


@dataclass(frozen=True)
class Actions:
    """Action classes in the order of their numbers, and the verb and noun of each."""

    names: tuple[str, ...]
    verbs: tuple[int, ...]
    nouns: tuple[int, ...]

    def numbers(self) -> dict[tuple[int, int], int]:
        return {pair: number for number, pair in enumerate(zip(self.verbs, self.nouns, strict=True))}


def read_segments(path: Path, tasks: Sequence[str] = ("verb", "noun", "action")) -> tuple[Segment, ...]:
    """Segments of training.csv and the like; rows of four cells have no labels. Raises ValueError."""
    found: list[Segment] = []
    for line, cells in csv_rows(path):
        try:
            if len(cells) not in (4, 4 + len(tasks)):
                raise ValueError(f"{len(cells)} cells; there must be uid, video, start, stop[, {', '.join(tasks)}]")
            uid, video, *numbers = cells
            start, stop, *labels = (whole_number(text, "a frame or class") for text in numbers)
            extra = {
                "participant": participant_of(video),
                "start_frame": str(start),
                "stop_frame": str(stop),
                "frames_per_second": str(FRAMES_PER_SECOND),
            }
            start_seconds, stop_seconds = start / FRAMES_PER_SECOND, stop / FRAMES_PER_SECOND
            names = dict(zip(tasks, labels, strict=False))
            found.append(Segment(video, start_seconds, stop_seconds, plain_id(uid), names, extra))
        except ValueError as problem:
            raise ValueError(f"{path}:{line}: {problem}") from None
    return unique(found, path)


def plain_id(uid: str) -> str:
    return str(int(uid)) if uid.isascii() and uid.isdigit() else uid


def participant_of(video: str) -> str:
    """P01 of P01_11 (EPIC-KITCHENS) and of P01-R02-TurkeySandwich (EGTEA Gaze+)."""
    return video.replace("-", "_").split("_")[0]


def read_actions(path: Path) -> Actions:
    """actions.csv in any of its three forms. Raises ValueError."""
    names: list[str] = []
    verbs: list[int] = []
    nouns: list[int] = []
    header: list[str] | None = None
    for line, cells in csv_rows(path):
        if line == 1 and cells[0] == "id":
            if sorted(cells) != ["action", "id", "noun", "verb"]:
                raise ValueError(f"{path}:1: the header is {','.join(cells)!r}; it must name id, verb, noun and action")
            header = cells
            continue
        try:
            if len(cells) != (4 if header else 3):
                raise ValueError(f"{len(cells)} cells; there must be {','.join(header or ('id', 'verb_noun', 'name'))}")
            row = dict(zip(header or ("id", "pair", "action"), cells, strict=True))
            verb, noun = (row["verb"], row["noun"]) if header else row["pair"].split("_", 1)
            if whole_number(row["id"], "id") != len(names):
                raise ValueError(f"id is {row['id']}; ids must count 0, 1, 2, ... and {len(names)} is next")
            names.append(row["action"])
            verbs.append(whole_number(verb, "verb"))
            nouns.append(whole_number(noun, "noun"))
        except ValueError as problem:
            raise ValueError(f"{path}:{line}: {problem}") from None
    return Actions(tuple(names), tuple(verbs), tuple(nouns))


def parts_of(actions: Actions) -> dict[str, dict[str, tuple[int, ...]]]:
    """As in `Dataset.parts`."""
    return {"action": {"verb": actions.verbs, "noun": actions.nouns}}


def part_names(actions: Actions, separator: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of verbs and nouns from those of the actions they are in: the most frequent one, of equals the first.

    There are as many as the greatest number tells, as in the public code; one that no action has is called by its
    number.
    """
    verb_names: dict[int, Counter[str]] = {}
    noun_names: dict[int, Counter[str]] = {}
    for name, verb, noun in zip(actions.names, actions.verbs, actions.nouns, strict=True):
        verb_text, _, noun_text = name.partition(separator)
        verb_names.setdefault(verb, Counter())[verb_text] += 1
        noun_names.setdefault(noun, Counter())[noun_text or verb_text] += 1
    return _most_common(verb_names, "verb"), _most_common(noun_names, "noun")


def _most_common(names: dict[int, Counter[str]], task: str) -> tuple[str, ...]:
    count = max(names, default=-1) + 1
    return tuple(names[n].most_common(1)[0][0] if n in names else f"{task} {n}" for n in range(count))


def read_ids(path: Path) -> frozenset[str]:
    """Ids of a list with one a line."""
    return frozenset(plain_id(cells[0]) for _, cells in csv_rows(path))


def start_frame(segment: Segment) -> int:
    """The 1-based frame at 30 a second at which RULSTM lets the action start.

    From RULSTM's own files it is the annotated number. From official time stamps it is max(1, floor(30 seconds)), which
    gives that number for every row of EPIC-KITCHENS.
    """
    if segment.extra.get("frames_per_second") == str(FRAMES_PER_SECOND) and "start_frame" in segment.extra:
        return int(segment.extra["start_frame"])
    return max(1, math.floor(segment.start_seconds * FRAMES_PER_SECOND))


def kept_ids(segments: Iterable[Segment], num_steps: int = 14, alpha: float = 0.25) -> frozenset[str]:
    """Ids of the segments that RULSTM's protocol predicts: those with a frame to see before they start.

    num_steps, alpha: as in `sampling.rulstm_past_frames`. On EPIC-KITCHENS-100 the public code gives the others
    zeros as scores and counts them in every metric; on EPIC-KITCHENS-55 and EGTEA Gaze+ it leaves them out.
    """
    seen: dict[int, bool] = {}
    kept = set()
    for segment in segments:
        frame = start_frame(segment)
        if frame not in seen:
            seen[frame] = rulstm_past_frames(frame, num_steps, alpha) is not None
        if seen[frame]:
            kept.add(segment.id)
    return frozenset(kept)
