"""Counts of the public annotation files, where ACTIONFUSE_TEST_DATA names a folder that holds them; none are shipped.

Folders below it, each where its files are to be had: rulstm_ek55, rulstm_ek100, rulstm_egtea, epic100_official,
afft_ek55_ori (EPIC-KITCHENS-55's class lists and many-shot lists), epic55_official, something_else.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from golden_cases import FOLDER

from actionfuse.pipeline.boxes import boxes_at, limit_instances
from actionfuse.pipeline.datasets import load_dataset, rulstm
from actionfuse.pipeline.datasets.something_else_boxes import SomethingElseBoxes

DATA = Path(os.environ.get("ACTIONFUSE_TEST_DATA", "."))
pytestmark = pytest.mark.skipif("ACTIONFUSE_TEST_DATA" not in os.environ, reason="ACTIONFUSE_TEST_DATA is not set")


def folder(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"there is no {name}")
    return DATA / name


GOLDEN_COUNTS = json.loads((FOLDER / "anticipation/rulstm_dataset_counts.json").read_text())
SPLITS = {
    "ek55_train": ("epic_kitchens_55", "rulstm_ek55", "train"),
    "ek55_val": ("epic_kitchens_55", "rulstm_ek55", "validation"),
    "ek55_test_seen": ("epic_kitchens_55", "rulstm_ek55", "test_seen"),
    "ek100_train": ("epic_kitchens_100", "rulstm_ek100", "train"),
    "ek100_val": ("epic_kitchens_100", "rulstm_ek100", "validation"),
    "ek100_test": ("epic_kitchens_100", "rulstm_ek100", "test"),
    "egtea_val1": ("egtea_gaze_plus", "rulstm_egtea", "test1"),
}
NUM_CLASSES = {
    "epic_kitchens_55": (125, 352, 2513),
    "epic_kitchens_100": (97, 300, 3806),
    "egtea_gaze_plus": (19, 51, 106),
}


@pytest.mark.parametrize("case", GOLDEN_COUNTS)
def test_rows_that_rulstm_keeps(case):
    dataset, root, split = SPLITS[case]
    loaded = load_dataset(dataset, folder(root), split, annotations="rulstm")
    rows, kept = len(loaded.segments), len(rulstm.kept_ids(loaded.segments))
    assert {"rows": rows, "kept": kept, "discarded": rows - kept} == GOLDEN_COUNTS[case]
    assert tuple(len(loaded.classes[task]) for task in ("verb", "noun", "action")) == NUM_CLASSES[dataset]


def test_the_three_splits_of_egtea():
    counts = {"train1": 8299, "test1": 2022, "train2": 8299, "test2": 2022, "train3": 8300, "test3": 2021}
    for split, rows in counts.items():
        loaded = load_dataset("egtea_gaze_plus", folder("rulstm_egtea"), split, annotations="rulstm")
        assert len(loaded.segments) == rows


def test_discarded_ids_of_epic55():
    loaded = load_dataset("epic_kitchens_55", folder("rulstm_ek55"), "validation", annotations="rulstm")
    discarded = {segment.id for segment in loaded.segments} - rulstm.kept_ids(loaded.segments)
    assert discarded == {"0", "13204", "14006", "15869", "22002", "29205", "32334"}


def test_many_shot_of_epic55(tmp_path):
    for source in (folder("rulstm_ek55"), folder("afft_ek55_ori")):
        for path in source.glob("*.csv"):
            if not (tmp_path / path.name).exists():
                (tmp_path / path.name).symlink_to(path.resolve())
    loaded = load_dataset("epic_kitchens_55", tmp_path, "validation", annotations="rulstm")
    with np.load(FOLDER / "anticipation/rulstm_manyshot_ek55.npz") as golden:
        expected = {task: set(golden[f"{task}s"].tolist()) for task in ("verb", "noun", "action")}
    assert loaded.many_shot["rulstm"] == expected
    assert {task: len(classes) for task, classes in loaded.many_shot["rulstm"].items()} == {
        "verb": 26,
        "noun": 71,
        "action": 2265,
    }
    assert len(loaded.many_shot["epic"]["action"]) == 819
    # The authors' list is the verb AND noun rule.
    (tmp_path / "EPIC_many_shot_actions.csv").unlink()
    by_rule = load_dataset("epic_kitchens_55", tmp_path, "validation", annotations="rulstm")
    assert by_rule.many_shot == loaded.many_shot
    assert loaded.classes["verb"][6] == "mix" and loaded.classes["noun"][0] == "Nothing"


def test_official_epic100_agrees_with_rulstm(tmp_path):
    for path in folder("epic100_official").glob("*.csv"):
        (tmp_path / path.name).symlink_to(path.resolve())
    (tmp_path / "actions.csv").symlink_to((folder("rulstm_ek100") / "actions.csv").resolve())
    official = load_dataset("epic_kitchens_100", tmp_path, "validation")
    other = load_dataset("epic_kitchens_100", folder("rulstm_ek100"), "validation", annotations="rulstm")
    assert [s.id for s in official.segments] == [s.id for s in other.segments]
    assert [s.labels for s in official.segments] == [s.labels for s in other.segments]
    assert official.subsets == other.subsets
    assert {name: len(ids) for name, ids in official.subsets.items()} == {
        "unseen": 1065,
        "tail_verb": 1760,
        "tail_noun": 1900,
        "tail_action": 3105,
    }
    assert [rulstm.start_frame(s) for s in official.segments] == [rulstm.start_frame(s) for s in other.segments]
    for split in ("validation", "test"):
        stamps = load_dataset("epic_kitchens_100", tmp_path, split)
        frames = load_dataset("epic_kitchens_100", tmp_path, split, times="frames")
        assert stamps.notes == ()  # every frame number fits its time stamp
        ours, theirs = (np.array([s.start_seconds for s in d.segments]) for d in (stamps, frames))
        assert np.abs(ours - theirs).max() <= 1 / 50 + 1e-9
    assert len(stamps.segments) == 13092 and all(not s.labels for s in stamps.segments)


def test_official_epic55_agrees_with_rulstm(tmp_path):
    for path in folder("epic55_official").glob("*.csv"):
        (tmp_path / path.name).symlink_to(path.resolve())
    (tmp_path / "validation_videos.csv").symlink_to((folder("rulstm_ek55") / "validation_videos.csv").resolve())
    for split in ("train", "validation", "test_seen", "test_unseen"):
        official = load_dataset("epic_kitchens_55", tmp_path, split)
        other = load_dataset("epic_kitchens_55", folder("rulstm_ek55"), split, annotations="rulstm")
        assert [s.id for s in official.segments] == [s.id for s in other.segments]
        assert [s.labels for s in official.segments] == [s.labels for s in other.segments]
        assert [rulstm.start_frame(s) for s in official.segments] == [rulstm.start_frame(s) for s in other.segments]
        assert official.parts == other.parts and official.notes == ()
    by_participants = load_dataset("epic_kitchens_55", tmp_path, "validation", validation="participants")
    assert len(by_participants.segments) == 5281


def test_action_numbers_from_pairs_are_rulstms():
    # What the official reader does without actions.csv, on all pairs of training and validation rows.
    from actionfuse.pipeline.datasets.epic_kitchens import number_actions

    for dataset, root in (("epic_kitchens_55", "rulstm_ek55"), ("epic_kitchens_100", "rulstm_ek100")):
        train, validation = (
            load_dataset(dataset, folder(root), split, annotations="rulstm") for split in ("train", "validation")
        )
        numbered = number_actions((*train.segments, *validation.segments), train.classes["verb"], train.classes["noun"])
        assert {"verb": numbered.verbs, "noun": numbered.nouns} == train.parts["action"]


def test_something_else_splits_and_boxes():
    root = folder("something_else")
    for split, videos, classes in (
        ("one_object_train", 6560, 166),
        ("few_shot_base_validation", 12467, 88),
        ("few_shot_5_train", 430, 86),
        ("few_shot_10_train", 860, 86),
    ):
        loaded = load_dataset("something_else", root, split, boxes=False)
        assert (len(loaded.segments), len(loaded.classes["action"])) == (videos, classes)
        assert sorted(loaded.classes["action"]) == list(loaded.classes["action"])
    boxes = SomethingElseBoxes(
        [root / "annotations.json"], video_path="", sizes=dict.fromkeys(("4", "77005"), (427, 240))
    )
    assert len(boxes) == 13
    tracks = boxes["4"]
    assert tracks.track_ids == ("0000", "0001", "0002", "hand") and tracks.categories.tolist() == [2, 2, 2, 1]
    assert tracks.boxes.shape == (42, 4, 4) and tracks.present.all()
    seen = limit_instances(boxes_at(boxes["77005"], np.arange(8) / 2), 4, keep="order")
    assert seen.track_ids == ("0000", "0001", "hand", "")
