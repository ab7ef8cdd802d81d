"""EPIC-KITCHENS-100: 100 hours of unscripted actions in 45 kitchens, 97 verbs, 300 nouns, 3806 actions.

Paper: Damen et al., Rescaling Egocentric Vision, IJCV 2022.
Where: videos, frames: https://github.com/epic-kitchens/epic-kitchens-download-scripts ;
       annotations: https://github.com/epic-kitchens/epic-kitchens-100-annotations ;
       RULSTM's form of them: https://github.com/fpv-iplab/rulstm (RULSTM/data/ek100).
Licence: CC BY-NC 4.0.

Splits: train, validation, test (without labels). 67217, 9668 and 13092 segments.

Layout (the annotation files may also lie in annotations/ or epic-kitchens-100-annotations/):

    EPIC_100_train.csv  EPIC_100_validation.csv  EPIC_100_test_timestamps.csv
    EPIC_100_verb_classes.csv  EPIC_100_noun_classes.csv
    EPIC_100_tail_verbs.csv  EPIC_100_tail_nouns.csv                             optional: subsets
    EPIC_100_unseen_participant_ids_validation.csv  ..._test.csv                 optional: subsets
    EPIC_100_video_info.csv                                                      optional: frame rates
    P01/videos/P01_101.MP4                         as the download scripts leave them; or videos/P01_101.mp4
    P01/rgb_frames/P01_101/frame_0000000001.jpg    frames in the place of videos
    P01/flow_frames/P01_101/{u,v}/frame_0000000001.jpg    optional: flow; or P01_101.tar of either

With annotations="rulstm": training.csv validation.csv test_timestamps.csv actions.csv validation_*_ids.csv.

Subsets: "unseen" (participants without training videos), "tail_verb", "tail_noun", "tail_action" (instances whose verb
or noun is a tail class). They are sets of segments: a class-mean is taken inside of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..annotations import Segment
from . import epic_kitchens as epic
from . import rulstm
from .contract import Dataset, register
from .layout import choose_paths, find_file, find_optional, read_table, whole_number

NAME = "epic_kitchens_100"
_FILES = {
    "train": "EPIC_100_train.csv",
    "validation": "EPIC_100_validation.csv",
    "test": "EPIC_100_test_timestamps.csv",
}
_RULSTM_FILES = {"train": "training.csv", "validation": "validation.csv", "test": "test_timestamps.csv"}
_RULSTM_SUBSETS = {
    "unseen": "validation_unseen_participants_ids.csv",
    "tail_verb": "validation_tail_verbs_ids.csv",
    "tail_noun": "validation_tail_nouns_ids.csv",
    "tail_action": "validation_tail_actions_ids.csv",
}
_ADVICE = "get it from github.com/epic-kitchens/epic-kitchens-100-annotations"
_RULSTM_ADVICE = "get it from RULSTM/data/ek100 of github.com/fpv-iplab/rulstm"


@register(
    NAME,
    splits=("train", "validation", "test"),
    paper="Damen et al., IJCV 2022",
    source="github.com/epic-kitchens/epic-kitchens-download-scripts and epic-kitchens-100-annotations",
    licence=epic.LICENCE,
    layout="""\
    EPIC_100_train.csv  EPIC_100_validation.csv  EPIC_100_test_timestamps.csv
    EPIC_100_verb_classes.csv  EPIC_100_noun_classes.csv
    P01/videos/P01_101.MP4""",
)
def read(
    root: Path,
    split: str,
    *,
    annotations: epic.Annotations = "official",
    times: epic.Times = "timestamps",
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; see the module's text.

    annotations: whose files are read. times: what the seconds come from, official time stamps (to 0.01 s) or official
        frame numbers; RULSTM's files have frame numbers only.
    paths: stream -> pattern of `Dataset.paths`, where videos lie elsewhere.
    """
    if annotations == "official":
        return _read_official(root, split, times, paths)
    return _read_rulstm(root, split, paths)


def _read_official(root: Path, split: str, times: epic.Times, paths: Mapping[str, str] | None) -> Dataset:
    def file(name: str) -> Path:
        return find_file(root, (name,), epic.ANNOTATION_FOLDERS, _ADVICE)

    info = find_optional(root, ("EPIC_100_video_info.csv",), epic.ANNOTATION_FOLDERS)
    rates = epic.read_rates(info) if info else None
    files = [file(_FILES[split]), file("EPIC_100_verb_classes.csv"), file("EPIC_100_noun_classes.csv")]
    verbs, nouns = (epic.read_classes(path) for path in files[1:])

    def rows(path: Path, labelled: bool) -> epic.OfficialRows:
        return epic.read_official(path, id_column="narration_id", labelled=labelled, times=times, rates=rates)

    own = rows(files[0], split != "test")
    listed = find_optional(root, ("actions.csv",), (*epic.ANNOTATION_FOLDERS, *epic.RULSTM_FOLDERS))
    if listed is not None:
        # The list of the same classes that RULSTM gives: then one split can be read without the other.
        actions = rulstm.read_actions(listed)
        files.append(listed)
    else:
        others = [file(_FILES[other]) for other in ("train", "validation") if other != split]
        labelled = [*(own.segments if split != "test" else ()), *(s for p in others for s in rows(p, True).segments)]
        actions = epic.number_actions(labelled, verbs, nouns)
        files += others
    segments = own.segments if split == "test" else tuple(epic.with_actions(own.segments, actions))
    subsets, subset_files = _official_subsets(root, split, segments)
    chosen = choose_paths(root, epic.PATHS, segments, paths)
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes={"verb": verbs, "noun": nouns, "action": actions.names},
        root=root,
        paths=chosen,
        frame_rates=epic.frame_rates_of(chosen),
        parts=rulstm.parts_of(actions),
        subsets=subsets,
        files=(*files, *([info] if info else []), *subset_files),
        notes=epic.strange_note(files[0], own),
    )


def _official_subsets(
    root: Path, split: str, segments: tuple[Segment, ...]
) -> tuple[dict[str, frozenset[str]], list[Path]]:
    subsets: dict[str, frozenset[str]] = {}
    files: list[Path] = []
    name = f"EPIC_100_unseen_participant_ids_{split}.csv"
    if split != "train" and (path := find_optional(root, (name,), epic.ANNOTATION_FOLDERS)):
        unseen = {row["participant_id"] for _, row in read_table(path, ("participant_id",))}
        subsets["unseen"] = frozenset(s.id for s in segments if s.extra["participant"] in unseen)
        files.append(path)
    if split == "validation":
        for task in ("verb", "noun"):
            if path := find_optional(root, (f"EPIC_100_tail_{task}s.csv",), epic.ANNOTATION_FOLDERS):
                tail = {whole_number(row[task], f"{path}:{line}: {task}") for line, row in read_table(path, (task,))}
                subsets[f"tail_{task}"] = frozenset(s.id for s in segments if s.labels[task] in tail)
                files.append(path)
        if "tail_verb" in subsets and "tail_noun" in subsets:
            subsets["tail_action"] = subsets["tail_verb"] | subsets["tail_noun"]
    return subsets, files


def _read_rulstm(root: Path, split: str, paths: Mapping[str, str] | None) -> Dataset:
    def file(name: str) -> Path:
        return find_file(root, (name,), epic.RULSTM_FOLDERS, _RULSTM_ADVICE)

    files = [file(_RULSTM_FILES[split]), file("actions.csv")]
    segments, actions = rulstm.read_segments(files[0]), rulstm.read_actions(files[1])
    verbs, nouns = rulstm.part_names(actions, " ")
    subsets: dict[str, frozenset[str]] = {}
    if split == "validation":
        known = {segment.id for segment in segments}
        for subset, name in _RULSTM_SUBSETS.items():
            if path := find_optional(root, (name,), epic.RULSTM_FOLDERS):
                subsets[subset] = rulstm.read_ids(path) & known
                files.append(path)
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes={"verb": verbs, "noun": nouns, "action": actions.names},
        root=root,
        paths=choose_paths(root, epic.PATHS, segments, paths),
        parts=rulstm.parts_of(actions),
        subsets=subsets,
        files=tuple(files),
    )
