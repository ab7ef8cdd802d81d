"""EPIC-KITCHENS-55: 55 hours of unscripted actions in 32 kitchens, 125 verbs, 352 nouns, 2513 actions.

Paper: Damen et al., Scaling Egocentric Vision: The EPIC-KITCHENS Dataset, ECCV 2018.
Where: videos, frames: https://github.com/epic-kitchens/epic-kitchens-download-scripts (--epic55-only);
       annotations: https://github.com/epic-kitchens/epic-kitchens-55-annotations ;
       RULSTM's form of them: https://github.com/fpv-iplab/rulstm (RULSTM/data/ek55).
Licence: CC BY-NC 4.0.

Splits: train, validation, train_validation (all 28472 public labels), test_seen (S1, 8047) and test_unseen (S2, 2929)
without labels. The authors give no validation set; two are in use, see `validation` of `read`.

Layout (the annotation files may also lie in annotations/ or epic-kitchens-55-annotations/):

    EPIC_train_action_labels.csv  EPIC_test_s1_timestamps.csv  EPIC_test_s2_timestamps.csv
    EPIC_verb_classes.csv  EPIC_noun_classes.csv
    validation_videos.csv                            RULSTM's list of 40 videos, for validation="videos"
    EPIC_many_shot_{verbs,nouns,actions}.csv         optional: many-shot classes
    P01/videos/P01_01.MP4                            as the download scripts leave them; or videos/train/P01/P01_01.MP4
    P01/rgb_frames/P01_01/frame_0000000001.jpg       frames in the place of videos
    P01/flow_frames/P01_01/{u,v}/frame_0000000001.jpg    optional: flow; or P01_01.tar of either

With annotations="rulstm": training.csv validation.csv test_seen.csv test_unseen.csv actions.csv, and the three lists of
many-shot classes. Verbs and nouns are named by EPIC_{verb,noun}_classes.csv where these are there, else by the most
frequent narration in actions.csv.

Many-shot classes (more than 100 training instances, as listed), by two rules that differ for actions:

    "rulstm"    an action is many-shot where its verb OR its noun is: 2265 of 2513. Published mean top-5 recalls of
                anticipation on this dataset are of this rule.
    "epic"      the authors' own list, which is verb AND noun: 819. Taken as verb AND noun where the list is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..annotations import Segment, csv_rows
from . import epic_kitchens as epic
from . import rulstm
from .contract import Dataset, register
from .layout import choose_paths, find_file, find_optional, read_table, whole_number

NAME = "epic_kitchens_55"
_TESTS = {"test_seen": "EPIC_test_s1_timestamps.csv", "test_unseen": "EPIC_test_s2_timestamps.csv"}
_VALIDATION_PARTICIPANTS = frozenset(f"P{number}" for number in range(26, 32))
_FOLDERS = (*epic.ANNOTATION_FOLDERS, *epic.RULSTM_FOLDERS[1:])
_ADVICE = "get it from github.com/epic-kitchens/epic-kitchens-55-annotations"
_RULSTM_ADVICE = "get it from RULSTM/data/ek55 of github.com/fpv-iplab/rulstm"


@register(
    NAME,
    splits=("train", "validation", "train_validation", "test_seen", "test_unseen"),
    paper="Damen et al., ECCV 2018",
    source="github.com/epic-kitchens/epic-kitchens-download-scripts and epic-kitchens-55-annotations",
    licence=epic.LICENCE,
    layout="""\
    EPIC_train_action_labels.csv  EPIC_test_s1_timestamps.csv  EPIC_test_s2_timestamps.csv
    EPIC_verb_classes.csv  EPIC_noun_classes.csv  validation_videos.csv
    P01/videos/P01_01.MP4""",
)
def read(
    root: Path,
    split: str,
    *,
    annotations: epic.Annotations = "official",
    validation: Literal["videos", "participants"] = "videos",
    times: epic.Times = "timestamps",
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; see the module's text.

    annotations: whose files are read.
    validation: which labelled segments are the validation split. "videos": those of 40 videos (Furnari and Farinella,
        ICCV 2019; action anticipation). "participants": those of P26 to P31 (Baradel et al., ECCV 2018; recognition).
    times: what the seconds come from, official time stamps (to 0.01 s) or official frame numbers (60 a second).
        RULSTM's files have frame numbers only.
    paths: stream -> pattern of `Dataset.paths`, where videos lie elsewhere.
    """
    files: list[Path] = []
    notes: tuple[str, ...] = ()
    if annotations == "official":
        actions, segments, verbs, nouns, notes = _official(root, split, validation, times, files)
    else:
        actions, segments, verbs, nouns = _rulstm(root, split, validation, files)
    many_shot = _many_shot(root, actions, files)
    if not many_shot:
        notes += ("There are no EPIC_many_shot_verbs.csv and EPIC_many_shot_nouns.csv, so no many-shot classes.",)
    chosen = choose_paths(root, epic.PATHS, segments, paths)
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes={"verb": verbs, "noun": nouns, "action": actions.names},
        root=root,
        paths=chosen,
        frame_rates=epic.frame_rates_of(chosen) if annotations == "official" else {},
        parts=rulstm.parts_of(actions),
        many_shot=many_shot,
        files=tuple(dict.fromkeys(files)),
        notes=notes,
    )


def _official(
    root: Path, split: str, validation: str, times: epic.Times, files: list[Path]
) -> tuple[rulstm.Actions, tuple[Segment, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    def file(name: str) -> Path:
        files.append(find_file(root, (name,), epic.ANNOTATION_FOLDERS, _ADVICE))
        return files[-1]

    verbs, nouns = (epic.read_classes(file(f"EPIC_{task}_classes.csv")) for task in ("verb", "noun"))
    path = file("EPIC_train_action_labels.csv")
    rows = epic.read_official(path, id_column="uid", labelled=True, times=times)
    actions = epic.number_actions(rows.segments, verbs, nouns)
    if split in _TESTS:
        path = file(_TESTS[split])
        rows = epic.read_official(path, id_column="uid", labelled=False, times=times)
        segments = rows.segments
    else:
        labelled = tuple(epic.with_actions(rows.segments, actions))
        segments = _part(root, labelled, split, validation, files)
    return actions, segments, verbs, nouns, epic.strange_note(path, rows)


def _rulstm(
    root: Path, split: str, validation: str, files: list[Path]
) -> tuple[rulstm.Actions, tuple[Segment, ...], tuple[str, ...], tuple[str, ...]]:
    def file(name: str) -> Path:
        files.append(find_file(root, (name,), epic.RULSTM_FOLDERS, _RULSTM_ADVICE))
        return files[-1]

    actions = rulstm.read_actions(file("actions.csv"))
    verbs, nouns = rulstm.part_names(actions, "_")
    if listed := find_optional(root, ("EPIC_verb_classes.csv",), _FOLDERS):
        files.append(listed)
        verbs = epic.read_classes(listed)
    if listed := find_optional(root, ("EPIC_noun_classes.csv",), _FOLDERS):
        files.append(listed)
        nouns = epic.read_classes(listed)
    own = {"train": "training", "validation": "validation", "train_validation": ""}.get(split, split)
    if own and (split in _TESTS or validation == "videos"):
        return actions, rulstm.read_segments(file(f"{own}.csv")), verbs, nouns
    both = [*rulstm.read_segments(file("training.csv")), *rulstm.read_segments(file("validation.csv"))]
    both.sort(key=lambda segment: int(segment.id) if segment.id.isdigit() else -1)  # as the official file has them
    return actions, _part(root, tuple(both), split, validation, files), verbs, nouns


def _part(
    root: Path, labelled: tuple[Segment, ...], split: str, validation: str, files: list[Path]
) -> tuple[Segment, ...]:
    if split == "train_validation":
        return labelled
    if validation == "participants":
        held_out = {s.video for s in labelled if s.extra["participant"] in _VALIDATION_PARTICIPANTS}
    else:
        advice = f'{_RULSTM_ADVICE}, or choose validation="participants"'
        files.append(find_file(root, ("validation_videos.csv",), _FOLDERS, advice))
        held_out = {cells[0] for _, cells in csv_rows(files[-1])}
    return tuple(s for s in labelled if (s.video in held_out) == (split == "validation"))


def _many_shot(root: Path, actions: rulstm.Actions, files: list[Path]) -> dict[str, dict[str, frozenset[int]]]:
    lists: dict[str, frozenset[int]] = {}
    for task in ("verb", "noun"):
        path = find_optional(root, (f"EPIC_many_shot_{task}s.csv",), _FOLDERS)
        if path is None:
            return {}
        files.append(path)
        column = f"{task}_class"
        lists[task] = frozenset(
            whole_number(row[column], f"{path}:{line}: {column}") for line, row in read_table(path, (column,))
        )
    numbers = actions.numbers()
    either = {n for (verb, noun), n in numbers.items() if verb in lists["verb"] or noun in lists["noun"]}
    both = {n for (verb, noun), n in numbers.items() if verb in lists["verb"] and noun in lists["noun"]}
    if path := find_optional(root, ("EPIC_many_shot_actions.csv",), _FOLDERS):
        files.append(path)
        pairs = {
            (whole_number(row["verb_class"], f"{path}:{line}"), whole_number(row["noun_class"], f"{path}:{line}"))
            for line, row in read_table(path, ("verb_class", "noun_class"))
        }
        if unknown := sorted(pairs - set(numbers)):
            verb, noun = unknown[0]
            raise ValueError(
                f"{path}: {len(unknown)} of {len(pairs)} pairs are no action class, such as verb {verb}, noun {noun}; "
                "are the files of one release?"
            )
        both = {numbers[pair] for pair in pairs}
    return {
        "rulstm": {**lists, "action": frozenset(either)},
        "epic": {**lists, "action": frozenset(both)},
    }
