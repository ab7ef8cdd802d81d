"""EPIC-KITCHENS-55 and -100, in the official files and in RULSTM's: times, numbers of actions, subsets, many-shot."""

import numpy as np
import pytest
from dataset_files import (
    EPIC55,
    EPIC55_ACTIONS,
    EPIC100_ACTIONS,
    EPIC100_RATES,
    EPIC100_TRAIN,
    EPIC100_VALIDATION,
    MANY_SHOT_NOUNS,
    MANY_SHOT_VERBS,
    NOUNS,
    VERBS,
    epic_rows,
    write_csv,
    write_epic55,
    write_epic100,
    write_epic_classes,
    write_rulstm_55,
    write_rulstm_100,
)
from golden_cases import FOLDER

from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.datasets import Dataset, LayoutError, load_dataset, rulstm
from actionfuse.pipeline.datasets.epic_kitchens import frame_rate


@pytest.fixture
def epic100(tmp_path):
    return write_epic100(tmp_path / "epic100")


@pytest.fixture
def epic55(tmp_path):
    return write_epic55(tmp_path / "epic55")


@pytest.mark.parametrize(("split", "rows"), [("train", EPIC100_TRAIN), ("validation", EPIC100_VALIDATION)])
def test_epic100_official(epic100, split, rows):
    dataset = load_dataset("epic_kitchens_100", epic100, split)
    assert [s.id for s in dataset.segments] == [row[0] for row in rows]
    for segment, (_, video, start, stop, verb, noun) in zip(dataset.segments, rows, strict=True):
        assert (segment.video, segment.start_seconds, segment.stop_seconds) == (video, start, stop)
        assert segment.labels == {"verb": verb, "noun": noun, "action": EPIC100_ACTIONS.index((verb, noun))}
        assert segment.extra["participant"] == video[:3]
        assert segment.extra["narration"] == f"do {verb}, then {noun}"
        assert segment.extra["all_noun_classes"] == f"{noun},0"
        assert segment.extra["frames_per_second"] == str(EPIC100_RATES[video])
    assert {task: len(names) for task, names in dataset.classes.items()} == {"verb": VERBS, "noun": NOUNS, "action": 6}
    assert dataset.classes["action"] == tuple(f"verb{verb} noun{noun}" for verb, noun in EPIC100_ACTIONS)
    assert dataset.parts["action"] == {
        "verb": tuple(verb for verb, _ in EPIC100_ACTIONS),
        "noun": tuple(noun for _, noun in EPIC100_ACTIONS),
    }
    assert dataset.notes == ()


def test_epic100_subsets_official_and_rulstm_are_the_same(epic100, tmp_path):
    official = load_dataset("epic_kitchens_100", epic100, "validation").subsets
    assert official == {
        "unseen": {"P09_102_0", "P09_102_1"},
        "tail_verb": {"P02_03_1"},
        "tail_noun": {"P09_102_0"},
        "tail_action": {"P02_03_1", "P09_102_0"},
    }
    write_rulstm_100(tmp_path / "rulstm")
    assert (
        load_dataset("epic_kitchens_100", tmp_path / "rulstm", "validation", annotations="rulstm").subsets == official
    )
    assert load_dataset("epic_kitchens_100", epic100, "train").subsets == {}


def test_epic100_test_split_has_no_labels(epic100, tmp_path):
    write_rulstm_100(tmp_path / "rulstm")
    dataset = load_dataset("epic_kitchens_100", epic100, "test")
    (segment,) = dataset.segments
    assert segment.labels == {} and (segment.start_seconds, segment.stop_seconds) == (1.5, 2.0)
    assert dataset.subsets == {"unseen": {"P33_101_0"}}
    assert len(dataset.classes["action"]) == 6
    (segment,) = load_dataset("epic_kitchens_100", tmp_path / "rulstm", "test", annotations="rulstm").segments
    assert segment.labels == {} and (segment.start_seconds, segment.stop_seconds) == (1.5, 2.0)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_epic100_in_rulstms_files_is_the_same_to_a_frame(epic100, tmp_path, split):
    write_rulstm_100(tmp_path / "rulstm")
    official = load_dataset("epic_kitchens_100", epic100, split)
    other = load_dataset("epic_kitchens_100", tmp_path / "rulstm", split, annotations="rulstm")
    assert [s.id for s in other.segments] == [s.id for s in official.segments]
    assert [s.labels for s in other.segments] == [s.labels for s in official.segments]
    assert other.classes["action"] == official.classes["action"] and other.parts == official.parts
    for ours, theirs in zip(official.segments, other.segments, strict=True):
        assert theirs.start_seconds == int(theirs.extra["start_frame"]) / 30
        assert abs(ours.start_seconds - theirs.start_seconds) <= 1 / 30 + 1e-9
        assert rulstm.start_frame(ours) == rulstm.start_frame(theirs)
    # Verbs and nouns that no action has are called by their number.
    assert other.classes["verb"] == official.classes["verb"]
    assert other.classes["noun"][2] == "noun2" and other.classes["noun"][5] == "noun 5"


def test_times_from_frame_numbers_of_each_rate(epic100):
    dataset = load_dataset("epic_kitchens_100", epic100, "train", times="frames")
    for segment, (_, video, start, stop, *_) in zip(dataset.segments, EPIC100_TRAIN, strict=True):
        rate = EPIC100_RATES[video]
        assert segment.start_seconds == int(start * rate) / rate
        assert segment.stop_seconds == int(stop * rate) / rate
        assert segment.extra["start_frame"] == str(int(start * rate))


def test_frame_numbers_of_2018_count_at_60_whatever_the_video_does():
    assert frame_rate("P01_01", {"P01_01": 29.97}) == 60
    assert frame_rate("P01_101") == 50 and frame_rate("P01_101", {"P01_101": 25.0}) == 25


def test_frame_numbers_of_other_frames_are_told(epic100):
    rows = epic_rows(EPIC100_TRAIN, id_column="narration_id", rates=dict.fromkeys(EPIC100_RATES, 30))
    write_csv(epic100 / "EPIC_100_train.csv", rows)
    (note,) = load_dataset("epic_kitchens_100", epic100, "train").notes
    assert "EPIC_100_train.csv" in note and "4 of 4" in note


def test_actions_csv_stands_in_for_the_other_split(epic100, tmp_path):
    whole = load_dataset("epic_kitchens_100", epic100, "validation")
    (epic100 / "EPIC_100_train.csv").unlink()
    with pytest.raises(LayoutError, match="EPIC_100_train.csv") as caught:
        load_dataset("epic_kitchens_100", epic100, "validation")
    assert caught.value.missing == ("EPIC_100_train.csv",) and "EPIC_100_validation.csv" in str(caught.value)
    write_rulstm_100(tmp_path / "rulstm")
    (tmp_path / "rulstm/actions.csv").rename(epic100 / "actions.csv")
    alone = load_dataset("epic_kitchens_100", epic100, "validation")
    assert alone.segments == whole.segments
    assert [s.labels for s in alone.segments] == [s.labels for s in whole.segments]


def test_small_datasets_need_no_optional_file(epic100):
    for name in ("tail_verbs", "tail_nouns", "unseen_participant_ids_validation", "video_info"):
        (epic100 / f"EPIC_100_{name}.csv").unlink()
    dataset = load_dataset("epic_kitchens_100", epic100, "validation")
    assert len(dataset.segments) == 4 and dataset.subsets == {}


def test_epic55_official(epic55):
    expected = {
        "train": ["0", "1", "7"],
        "validation": ["2", "3"],
        "train_validation": ["0", "1", "2", "3", "7"],
        "test_seen": ["5"],
        "test_unseen": ["9"],
    }
    rows = {row[0]: row for row in EPIC55}
    for split, ids in expected.items():
        dataset = load_dataset("epic_kitchens_55", epic55, split)
        assert [s.id for s in dataset.segments] == ids
        assert dataset.classes["action"] == tuple(f"verb{verb} noun{noun}" for verb, noun in EPIC55_ACTIONS)
        for segment in dataset.segments:
            if split.startswith("test"):
                assert segment.labels == {}
                continue
            _, video, start, stop, verb, noun = rows[segment.id]
            assert (segment.video, segment.start_seconds, segment.stop_seconds) == (video, start, stop)
            assert segment.labels == {"verb": verb, "noun": noun, "action": EPIC55_ACTIONS.index((verb, noun))}


def test_epic55_validation_by_participants(epic55, tmp_path):
    write_rulstm_55(tmp_path / "rulstm")
    (epic55 / "validation_videos.csv").unlink()
    for root, annotations in ((epic55, "official"), (tmp_path / "rulstm", "rulstm")):
        options = {"annotations": annotations, "validation": "participants"}
        held_out = load_dataset("epic_kitchens_55", root, "validation", **options)
        assert [s.id for s in held_out.segments] == ["7"]
        kept = load_dataset("epic_kitchens_55", root, "train", **options)
        assert [s.id for s in kept.segments] == ["0", "1", "2", "3"]
    with pytest.raises(LayoutError, match='validation_videos.csv.*validation="participants"'):
        load_dataset("epic_kitchens_55", epic55, "train")


def test_epic55_rulstm_padded_numbers_and_column_order(tmp_path, epic55):
    root = write_rulstm_55(tmp_path / "rulstm")
    for split in ("train", "validation", "train_validation", "test_seen", "test_unseen"):
        ours = load_dataset("epic_kitchens_55", epic55, split)
        theirs = load_dataset("epic_kitchens_55", root, split, annotations="rulstm")
        assert [s.id for s in theirs.segments] == [s.id for s in ours.segments]
        assert [s.labels for s in theirs.segments] == [s.labels for s in ours.segments]
        assert theirs.parts == ours.parts
    assert theirs.classes["action"][0] == "take_cup"
    # The most frequent narration, of equals the first: take and grab for verb 0, pan twice for noun 10.
    assert theirs.classes["verb"] == ("take", "put", "open", "close")
    assert theirs.classes["noun"][10] == "pan" and theirs.classes["noun"][0] == "noun 0"
    # EPIC's own names where they are there.
    write_epic_classes(root, "EPIC_{}_classes.csv", ("TASK_id", "class_key", "TASKs"))
    named = load_dataset("epic_kitchens_55", root, "train", annotations="rulstm")
    assert named.classes["verb"] == ours.classes["verb"] and named.classes["noun"] == ours.classes["noun"]


def test_many_shot_by_both_rules(epic55):
    either = {n for n, (v, o) in enumerate(EPIC55_ACTIONS) if v in MANY_SHOT_VERBS or o in MANY_SHOT_NOUNS}
    both = {n for n, (v, o) in enumerate(EPIC55_ACTIONS) if v in MANY_SHOT_VERBS and o in MANY_SHOT_NOUNS}
    assert either == {0, 1, 2, 3} and both == {1, 3}
    expected = {
        "rulstm": {"verb": set(MANY_SHOT_VERBS), "noun": set(MANY_SHOT_NOUNS), "action": either},
        "epic": {"verb": set(MANY_SHOT_VERBS), "noun": set(MANY_SHOT_NOUNS), "action": both},
    }
    assert load_dataset("epic_kitchens_55", epic55, "train").many_shot == expected
    (epic55 / "EPIC_many_shot_actions.csv").unlink()
    assert load_dataset("epic_kitchens_55", epic55, "train").many_shot == expected
    (epic55 / "EPIC_many_shot_nouns.csv").unlink()
    dataset = load_dataset("epic_kitchens_55", epic55, "train")
    assert dataset.many_shot == {} and "many-shot" in dataset.notes[0]


def test_epics_own_list_of_many_shot_actions_is_believed(epic55):
    write_csv(epic55 / "EPIC_many_shot_actions.csv", [["verb_class", "noun_class"], [3, 3]])
    assert load_dataset("epic_kitchens_55", epic55, "train").many_shot["epic"]["action"] == {4}
    write_csv(epic55 / "EPIC_many_shot_actions.csv", [["verb_class", "noun_class"], [3, 9]])
    with pytest.raises(ValueError, match=r"1 of 1 pairs are no action class, such as verb 3, noun 9"):
        load_dataset("epic_kitchens_55", epic55, "train")


# RULSTM's protocol


def naive_kept(start: int) -> bool:
    """The public rule, one time step at a time: discarded where no frame is 1 or more."""
    frames = [int(np.floor((start / 30 - tau) * 30)) for tau in np.arange(0.25, 0.25 * 15, 0.25)[:14]]
    return any(frame >= 1 for frame in frames)


def test_kept_ids_are_those_with_a_frame_to_see():
    segments = [
        Segment("v", f / 30, f / 30 + 1, str(f), {}, {"start_frame": str(f), "frames_per_second": "30"})
        for f in range(1, 60)
    ]
    kept = rulstm.kept_ids(segments)
    assert kept == {str(f) for f in range(1, 60) if naive_kept(f)}
    assert "8" not in kept and "9" in kept  # floor((8 / 30 - 0.25) 30) = 0, floor((9 / 30 - 0.25) 30) = 1


def test_kept_ids_of_official_files_are_those_of_rulstms(epic100, tmp_path):
    root = write_rulstm_100(tmp_path / "rulstm")
    for split in ("train", "validation"):
        ours = load_dataset("epic_kitchens_100", epic100, split).segments
        theirs = load_dataset("epic_kitchens_100", root, split, annotations="rulstm").segments
        assert rulstm.kept_ids(ours) == rulstm.kept_ids(theirs)
    assert "P02_03_0" not in rulstm.kept_ids(ours) and len(rulstm.kept_ids(ours)) == 3


def test_kept_rows_of_the_golden_frames():
    with np.load(FOLDER / "anticipation/rulstm_frames_ek55_val.npz") as golden:
        starts = golden["start"]
    segments = [
        Segment("v", f / 30, f / 30 + 1, f"{n}", {}, {"start_frame": f"{f}", "frames_per_second": "30"})
        for n, f in enumerate(starts.tolist())
    ]
    assert len(rulstm.kept_ids(segments)) == len(starts) == 1500


# Wrong files


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"verb_class": "x"}, "verb_class is 'x'"),
        ({"stop_timestamp": "00:00:01.00"}, "must stop after its start"),
        ({"start_timestamp": "soon"}, "is no time"),
        ({"start_frame": "-3"}, "start_frame is '-3'"),
    ],
)
def test_a_wrong_row_is_named(epic100, row, said):
    rows = epic_rows(EPIC100_TRAIN, id_column="narration_id", rates=EPIC100_RATES)
    for column, text in row.items():
        rows[2][rows[0].index(column)] = text
    write_csv(epic100 / "EPIC_100_train.csv", rows)
    with pytest.raises(ValueError, match=r"EPIC_100_train.csv:3: ") as caught:
        load_dataset("epic_kitchens_100", epic100, "train")
    assert said in str(caught.value)


def test_wrong_headers_and_double_ids(epic100):
    rows = epic_rows(EPIC100_TRAIN, id_column="narration_id", rates=EPIC100_RATES)
    write_csv(epic100 / "EPIC_100_train.csv", [rows[0], rows[1], rows[1]])
    with pytest.raises(ValueError, match="two segments are called 'P01_01_0'"):
        load_dataset("epic_kitchens_100", epic100, "train")
    write_csv(epic100 / "EPIC_100_train.csv", rows[1:])
    with pytest.raises(ValueError, match="no column narration_id, video_id"):
        load_dataset("epic_kitchens_100", epic100, "train")


def test_class_lists_of_another_release(epic100):
    write_csv(epic100 / "EPIC_100_noun_classes.csv", [["id", "key"], [0, "a"], [1, "b"]])
    with pytest.raises(ValueError, match="4 verbs and 2 nouns"):
        load_dataset("epic_kitchens_100", epic100, "train")
    write_csv(epic100 / "EPIC_100_noun_classes.csv", [["id", "key"], [0, "a"], [2, "b"]])
    with pytest.raises(ValueError, match="must be 0 to 1, each once"):
        load_dataset("epic_kitchens_100", epic100, "train")


def test_rulstm_rows_and_actions_that_do_not_fit(tmp_path):
    root = write_rulstm_100(tmp_path)
    write_csv(root / "training.csv", [["a", "P01_01", 1, 9, 0, 1, 77]])
    with pytest.raises(ValueError, match="segment 'a' has action=77; there are 6"):
        load_dataset("epic_kitchens_100", root, "train", annotations="rulstm")
    write_csv(root / "training.csv", [["a", "P01_01", 1, 9, 0]])
    with pytest.raises(ValueError, match=r"training.csv:1: 5 cells"):
        load_dataset("epic_kitchens_100", root, "train", annotations="rulstm")
    write_csv(root / "actions.csv", [["id", "verb", "noun", "action"], [1, 0, 0, "x y"]])
    with pytest.raises(ValueError, match=r"actions.csv:2: id is 1; ids must count"):
        load_dataset("epic_kitchens_100", root, "validation", annotations="rulstm")


def test_options_and_splits_are_checked(epic100):
    with pytest.raises(ValueError, match="annotations of dataset 'epic_kitchens_100' is 'rulst'; .*'rulstm'"):
        load_dataset("epic_kitchens_100", epic100, "train", annotations="rulst")
    with pytest.raises(ValueError, match="no option 'annotation'; did you mean 'annotations'"):
        load_dataset("epic_kitchens_100", epic100, "train", annotation="rulstm")
    with pytest.raises(ValueError, match="did you mean 'validation'"):
        load_dataset("epic_kitchens_100", epic100, "validatoin")
    with pytest.raises(ValueError, match="did you mean 'epic_kitchens_100'"):
        load_dataset("epic_kitchens100", epic100, "train")
    with pytest.raises(ValueError, match="is no folder"):
        load_dataset("epic_kitchens_100", epic100 / "nowhere", "train")


# Where videos lie


@pytest.mark.parametrize(
    ("lies", "pattern"),
    [
        ("P01/videos/P01_01.MP4", "{participant}/videos/{video}.MP4"),
        ("EPIC-KITCHENS/P01/videos/P01_01.MP4", "EPIC-KITCHENS/{participant}/videos/{video}.MP4"),
        ("videos/P01_01.mp4", "videos/{video}.mp4"),
        ("videos/train/P01/P01_01.MP4", "videos/train/{participant}/{video}.MP4"),
        (None, "{participant}/videos/{video}.MP4"),
    ],
)
def test_the_layout_that_is_there_is_found(epic100, lies, pattern):
    if lies:
        (epic100 / lies).parent.mkdir(parents=True)
        (epic100 / lies).touch()
    dataset = load_dataset("epic_kitchens_100", epic100, "train")
    assert dataset.paths == {"rgb": pattern}
    assert dataset.path(dataset.segments[0]) == epic100 / (lies or "P01/videos/P01_01.MP4")
    assert dataset.frame_fps(dataset.segments[0]) is None


def test_folders_of_frames_tell_their_rate(epic100):
    (epic100 / "P01/rgb_frames/P01_101").mkdir(parents=True)
    (epic100 / "P01/flow_frames/P01_101").mkdir(parents=True)
    dataset = load_dataset("epic_kitchens_100", epic100, "train")
    assert dataset.paths == {
        "rgb": "{participant}/rgb_frames/{video}",
        "flow": "{participant}/flow_frames/{video}",
    }
    assert [dataset.frame_fps(s) for s in dataset.segments] == [60, 60, 50, 50]


def test_paths_of_the_users_own(epic100, tmp_path):
    own = {"rgb": str(tmp_path / "elsewhere/{video}*.mkv"), "audio": "sound/{id}.wav"}
    dataset = load_dataset("epic_kitchens_100", epic100, "train", paths=own)
    segment = dataset.segments[0]
    assert dataset.path(segment, "audio") == epic100 / "sound/P01_01_0.wav"
    with pytest.raises(FileNotFoundError, match="there are 0"):
        dataset.path(segment)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/P01_01 [cut].mkv").touch()
    assert dataset.path(segment) == tmp_path / "elsewhere/P01_01 [cut].mkv"
    with pytest.raises(ValueError, match="no stream 'depth'; it has rgb, audio"):
        dataset.path(segment, "depth")
    dataset = load_dataset("epic_kitchens_100", epic100, "train", paths={"rgb": "{camera}/{video}.mp4"})
    with pytest.raises(ValueError, match="has no 'camera'; it has .*participant"):
        dataset.path(segment)


def test_names_are_no_patterns(tmp_path):
    for name in ("take [1].mp4", "take 1.mp4"):
        (tmp_path / name).touch()
    segment = Segment("take [1]", 0.0, 1.0, "x")
    paths = {"rgb": "{video}.*"}
    dataset = Dataset(name="own", split="all", segments=(segment,), classes={}, root=tmp_path, paths=paths)
    assert dataset.path(segment) == tmp_path / "take [1].mp4"
