"""EGTEA Gaze+, in the official files and in RULSTM's."""

import math

import pytest
from dataset_files import write_csv

from actionfuse.pipeline.datasets import load_dataset, rulstm

TRAIN = [
    "OP01-R01-PastaSalad-1500-4250-F000036-F000102 2 1 2 3",
    "P02-R03-BaconAndEggs-61000-62040-F001464-F001488 1 2 1",
]
TEST = ["P05-R01-PastaSalad-583261-586055-F013998-F014065 3 1 1"]
IDS = {
    "action": ["Inspect/Read recipe 1", "Open fridge 2", "Open recipe 3"],
    "verb": ["Open 1", "Inspect/Read 2"],
    "noun": ["recipe 1", "fridge 2", "eating utensil 3"],
}


@pytest.fixture
def egtea(tmp_path):
    folder = tmp_path / "action_annotation"
    folder.mkdir()
    (folder / "train_split1.txt").write_text("\n".join(TRAIN) + "\n")
    (folder / "test_split1.txt").write_text("\n".join(TEST) + "\n\n")
    for task, lines in IDS.items():
        (folder / f"{task}_idx.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_official(egtea):
    dataset = load_dataset("egtea_gaze_plus", egtea, "train1")
    first, second = dataset.segments
    assert (first.video, first.start_seconds, first.stop_seconds) == ("OP01-R01-PastaSalad", 1.5, 4.25)
    assert first.id == "OP01-R01-PastaSalad-1500-4250-F000036-F000102"
    assert first.labels == {"action": 1, "verb": 0, "noun": 1}
    assert first.extra["all_noun_classes"] == "1,2" and first.extra["participant"] == "OP01"
    assert (first.extra["start_frame"], first.extra["frames_per_second"]) == ("36", "24")
    assert second.labels == {"action": 0, "verb": 1, "noun": 0}
    assert dataset.classes == {
        "verb": ("Open", "Inspect/Read"),
        "noun": ("recipe", "fridge", "eating utensil"),
        "action": ("Inspect/Read recipe", "Open fridge", "Open recipe"),
    }
    assert dataset.parts == {"action": {"verb": (1, 0, 0), "noun": (0, 1, 0)}}
    assert dataset.path(first) == egtea / "videos/OP01-R01-PastaSalad.mp4"
    (test,) = load_dataset("egtea_gaze_plus", egtea, "test1").segments
    assert test.labels == {"action": 2, "verb": 0, "noun": 0}
    assert rulstm.start_frame(test) == math.floor(583.261 * 30)


def test_clips_are_videos_of_their_own(egtea):
    clip = "OP01-R01-PastaSalad-1500-4250-F000036-F000102"
    dataset = load_dataset("egtea_gaze_plus", egtea, "train1", videos="clips")
    segment = dataset.segments[0]
    assert (segment.video, segment.start_seconds, segment.stop_seconds) == (clip, 0.0, math.inf)
    assert dataset.path(segment) == egtea / f"cropped_clips/OP01-R01-PastaSalad/{clip}.mp4"
    with pytest.raises(ValueError, match='needs annotations="official"'):
        load_dataset("egtea_gaze_plus", egtea, "train1", videos="clips", annotations="rulstm")


def test_an_action_without_segments_leaves_no_parts(egtea):
    (egtea / "action_annotation/action_idx.txt").write_text("\n".join([*IDS["action"], "Cut fridge 4"]))
    dataset = load_dataset("egtea_gaze_plus", egtea, "train1")
    assert dataset.parts == {} and "1 of 4 actions have no segment" in dataset.notes[0]


@pytest.mark.parametrize("line", ["OP01-R01-PastaSalad 1 1 1", "A-R-B-10-20-F1-F2 1 1", "A-R-B-10-20-F1-F2 0 1 1"])
def test_a_wrong_line_is_named(egtea, line):
    (egtea / "action_annotation/train_split1.txt").write_text(f"{TRAIN[0]}\n{line}\n")
    with pytest.raises(ValueError, match=r"train_split1.txt:2: .* a line must be"):
        load_dataset("egtea_gaze_plus", egtea, "train1")


def test_split_files_that_are_not_there(egtea):
    with pytest.raises(ValueError, match="train_split2.txt; looked for in .*Found there: action_annotation/"):
        load_dataset("egtea_gaze_plus", egtea, "train2")


def test_rulstm_without_a_header_of_actions(tmp_path):
    write_csv(tmp_path / "training3.csv", [[14, "P01-R02-TurkeySandwich", 45, 90, 1, 0, 1]])
    write_csv(tmp_path / "validation3.csv", [["07", "OP03-R01-PastaSalad", 6, 9, 0, 1, 0]])
    write_csv(tmp_path / "actions.csv", [[0, "0_1", "Inspect/Read_eating:utensil"], [1, "1_0", "Open_pan"]], ", ")
    train, test = (
        load_dataset("egtea_gaze_plus", tmp_path, split, annotations="rulstm") for split in ("train3", "test3")
    )
    (segment,) = train.segments
    assert (segment.id, segment.start_seconds, segment.stop_seconds) == ("14", 1.5, 3.0)
    assert segment.labels == {"verb": 1, "noun": 0, "action": 1}
    assert train.classes["verb"] == ("Inspect/Read", "Open")
    assert train.classes["noun"] == ("pan", "eating:utensil")
    assert train.parts == {"action": {"verb": (0, 1), "noun": (1, 0)}}
    (segment,) = test.segments
    assert segment.id == "7" and segment.extra["participant"] == "OP03"
    assert rulstm.kept_ids(test.segments) == frozenset() and rulstm.kept_ids(train.segments) == {"14"}
