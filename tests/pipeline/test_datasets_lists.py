"""UCF101, HMDB51, Kinetics and MECCANO: their lists of clips and rows of frames."""

import math

import pytest
from dataset_files import write_csv
from videos import write_counting_video

from actionfuse.pipeline.datasets import LayoutError, load_dataset
from actionfuse.pipeline.datasets.check import check_dataset

# UCF101


@pytest.fixture
def ucf(tmp_path):
    folder = tmp_path / "ucfTrainTestlist"
    folder.mkdir()
    (folder / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 HandstandPushups\r\n3 YoYo\n\n")
    train = ["YoYo/v_YoYo_g08_c01.avi 3", "HandstandPushups/v_HandStandPushups_g08_c02.avi 2"]
    (folder / "trainlist01.txt").write_text("\r\n".join(train) + "\r\n")
    (folder / "testlist01.txt").write_text("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n")
    return tmp_path


def test_ucf101(ucf):
    dataset = load_dataset("ucf101", ucf, "train1")
    first, second = dataset.segments
    assert dataset.classes == {"action": ("ApplyEyeMakeup", "HandstandPushups", "YoYo")}
    assert (first.id, first.start_seconds, first.stop_seconds) == ("YoYo/v_YoYo_g08_c01", 0.0, math.inf)
    assert first.labels == {"action": 2} and first.extra == {"group": "YoYo_g08"}
    # The clips of one class are spelt otherwise than their folder; the folder counts.
    assert second.labels == {"action": 1} and second.extra == {"group": "HandstandPushups_g08"}
    assert dataset.path(second) == ucf / "UCF-101/HandstandPushups/v_HandStandPushups_g08_c02.avi"
    (test,) = load_dataset("ucf101", ucf, "test1").segments
    assert test.labels == {"action": 0}


def test_ucf101_frames(ucf):
    (ucf / "frames/YoYo/v_YoYo_g08_c01").mkdir(parents=True)
    dataset = load_dataset("ucf101", ucf, "train1")
    assert dataset.paths["rgb"] == "frames/{video}" and dataset.frame_fps(dataset.segments[0]) == 25


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("YoYo/v_YoYo_g08_c01.avi 2", "has the class 2; in classInd.txt YoYo is 3"),
        ("Yoga/v_Yoga_g08_c01.avi 2", "a line must be CLASS"),
        ("v_YoYo_g08_c01.avi 3", "a line must be CLASS"),
        ("YoYo/v_YoYo_g08_c01.avi 3 4", "a line must be CLASS"),
    ],
)
def test_ucf101_wrong_lines(ucf, line, said):
    (ucf / "ucfTrainTestlist/trainlist01.txt").write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"trainlist01.txt:2: .*{said}"):
        load_dataset("ucf101", ucf, "train1")


def test_ucf101_not_utf8(ucf):
    (ucf / "ucfTrainTestlist/trainlist01.txt").write_bytes(b"YoYo/v_\xff_g08_c01.avi 3")
    with pytest.raises(ValueError, match="trainlist01.txt: not a UTF-8 text file"):
        load_dataset("ucf101", ucf, "train1")


def test_ucf101_wrong_layout(ucf):
    with pytest.raises(LayoutError, match="no trainlist02.txt; looked for in ., ucfTrainTestlist.*Found there: ucfT"):
        load_dataset("ucf101", ucf, "train2")
    (ucf / "ucfTrainTestlist/classInd.txt").write_text("0 ApplyEyeMakeup\n")
    with pytest.raises(ValueError, match="classInd.txt:1: '0 ApplyEyeMakeup'; it must be 1 and a name"):
        load_dataset("ucf101", ucf, "train1")


# HMDB51


@pytest.fixture
def hmdb(tmp_path):
    folder = tmp_path / "testTrainMulti_7030_splits"
    folder.mkdir()
    (folder / "wave_test_split2.txt").write_text("20060723sfjffbart{1}_wave_f_cm_0.avi 1 \nb_wave_u.avi 2 \n")
    (folder / "brush_hair_test_split2.txt").write_text("April #1 (2)_goo_0.avi 0 \nMay_goo_1.avi 1\nJune.avi 2\n")
    (folder / "brush_hair_test_split1.txt").write_text("May_goo_1.avi 2\n")
    return tmp_path


def test_hmdb51(hmdb):
    train, test = (load_dataset("hmdb51", hmdb, split) for split in ("train2", "test2"))
    assert train.classes == {"action": ("brush_hair", "wave")}
    assert [(s.id, s.labels["action"]) for s in train.segments] == [
        ("brush_hair/May_goo_1", 0),
        ("wave/20060723sfjffbart{1}_wave_f_cm_0", 1),
    ]
    assert [s.id for s in test.segments] == ["brush_hair/June", "wave/b_wave_u"]
    assert train.path(train.segments[1]) == hmdb / "hmdb51_org/wave/20060723sfjffbart{1}_wave_f_cm_0.avi"
    assert train.notes == ("There are lists of 2 classes; HMDB51 has 51.",)
    assert [s.id for s in load_dataset("hmdb51", hmdb, "test1").segments] == ["brush_hair/May_goo_1"]


@pytest.mark.parametrize("line", ["May_goo_1.avi 3", "May_goo_1.avi", "May_goo_1 1"])
def test_hmdb51_wrong_lines(hmdb, line):
    (hmdb / "testTrainMulti_7030_splits/wave_test_split2.txt").write_text(line)
    with pytest.raises(ValueError, match="wave_test_split2.txt:1: .*a line must be a clip and 0, 1 or 2"):
        load_dataset("hmdb51", hmdb, "train2")


def test_hmdb51_wrong_layout(hmdb):
    with pytest.raises(LayoutError, match="no testTrainMulti_7030_splits/brush_hair_test_split3.txt"):
        load_dataset("hmdb51", hmdb, "train3")


# Kinetics

HEADER = ["label", "youtube_id", "time_start", "time_end", "split"]


def label(n):
    return f'class {n:03d}, "quoted"'


@pytest.fixture
def kinetics(tmp_path):
    rows = [[label(n), f"-id_{n:06d}", n, n + 10, "train"] for n in range(400)]
    write_csv(tmp_path / "annotations/train.csv", [HEADER, *reversed(rows)])
    validation = [[label(7), "abc-defghij", 12.0, 22.0, "val", 0], [label(3), "0" * 11, 1234567, 1234577, "val", 0]]
    write_csv(tmp_path / "annotations/validate.csv", [[*HEADER, "is_cc"], *validation, validation[0]])
    write_csv(tmp_path / "annotations/test.csv", [HEADER[1:], ["zzzzzzzzzzz", 0, 10, "test"]])
    return tmp_path


def test_kinetics(kinetics):
    train = load_dataset("kinetics_400", kinetics, "train")
    assert train.classes["action"] == tuple(label(n) for n in range(400))
    assert [s.labels["action"] for s in train.segments] == list(reversed(range(400)))
    dataset = load_dataset("kinetics_400", kinetics, "validation")
    first, second = dataset.segments
    assert (first.id, first.start_seconds, first.stop_seconds) == ("abc-defghij_000012_000022", 0.0, math.inf)
    assert first.labels == {"action": 7} and second.id == "00000000000_1234567_1234577"
    assert first.extra["youtube_id"] == "abc-defghij" and first.extra["label"] == label(7)
    assert dataset.notes == ("1 clips of validate.csv are in it already; the first line counts.",)
    test = load_dataset("kinetics_400", kinetics, "test")
    assert test.segments[0].labels == {} and len(test.classes["action"]) == 400
    assert test.path(test.segments[0]) == kinetics / "test/zzzzzzzzzzz_000000_000010.mp4"


@pytest.mark.parametrize(
    "place", ["val/NAME.mp4", "validation/NAME.mp4", "val/LABEL/NAME.mp4", "videos/NAME.mp4", "NAME.mp4"]
)
def test_kinetics_places(kinetics, place):
    path = kinetics / place.replace("NAME", "abc-defghij_000012_000022").replace("LABEL", label(7))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    dataset = load_dataset("kinetics_400", kinetics, "validation")
    assert dataset.path(dataset.segments[0]) == path
    assert len(check_dataset("kinetics_400", kinetics, ["validation"])[0].streams["rgb"].missing) == 1
    present = load_dataset("kinetics_400", kinetics, "validation", missing="drop")
    assert [s.id for s in present.segments] == ["abc-defghij_000012_000022"]
    assert present.notes[-1] == "1 of 2 clips are not there and left out."


def test_kinetics_without_any_clip(kinetics):
    with pytest.raises(LayoutError, match=r"holds no val/{label}/{video}.mp4; no clip of validation is there"):
        load_dataset("kinetics_400", kinetics, "validation", missing="drop")
    with pytest.raises(ValueError, match=r"the path 'val/{video}\*.mp4' may have no \*"):
        load_dataset("kinetics_400", kinetics, "validation", missing="drop", paths={"rgb": "val/{video}*.mp4"})


def test_kinetics_of_some_classes(kinetics):
    with pytest.raises(ValueError, match="have 400 labels; Kinetics-600 has 600"):
        load_dataset("kinetics_600", kinetics, "validation")
    (kinetics / "annotations/train.csv").unlink()
    with pytest.raises(ValueError, match=r"validate.csv, test.csv have 2 labels; Kinetics-400 has 400"):
        load_dataset("kinetics_400", kinetics, "validation")
    (kinetics / "mini.txt").write_text(f"{label(9)}\n{label(7)}\n{label(3)}\n")
    dataset = load_dataset("kinetics_700", kinetics, "validation", classes="mini.txt")
    assert [s.labels["action"] for s in dataset.segments] == [1, 2]
    (kinetics / "mini.txt").write_text(f"{label(9)}\n")
    with pytest.raises(ValueError, match="abc-defghij_000012_000022 has the label 'class 007.*mini.txt has not"):
        load_dataset("kinetics_400", kinetics, "validation", classes="mini.txt")


@pytest.mark.parametrize("start", ["a", "-1", "1.5", "nan", "inf"])
def test_kinetics_wrong_times(kinetics, start):
    write_csv(kinetics / "annotations/validate.csv", [HEADER, [label(0), "x", start, 10, "val"]])
    with pytest.raises(ValueError, match=rf"validate.csv:2: time_start is '{start}'; it must be whole seconds"):
        load_dataset("kinetics_400", kinetics, "validation")


# MECCANO

ROWS = [
    ["0001", 4, "take_bolt", "00001.jpg", "00012.jpg"],
    ["0001", 60, "align_objects", "00020.jpg", "00020.jpg"],
    ["0002", 4, "take_bolt", "100000.jpg", "100011.jpg"],
    ["0002", 4, "take_bolt", "100000.jpg", "100011.jpg"],
]


@pytest.fixture
def meccano(tmp_path):
    write_csv(tmp_path / "MECCANO_train_actions.csv", ROWS)
    header = ["video_id", "action_id", "action_name", "start_frame", "end_frame"]
    write_csv(tmp_path / "MECCANO_val_actions.csv", [header, ["0003", 0, "check_booklet", "00013.jpg", "00024.jpg"]])
    return tmp_path


def test_meccano_frames_are_seconds(meccano):
    dataset = load_dataset("meccano", meccano, "train")
    assert [(s.video, s.labels["action"]) for s in dataset.segments] == [
        ("0001", 4),
        ("0001", 60),
        ("0002", 4),
        ("0002", 4),
    ]
    # 12 frames from the first on are one second; a single frame is one twelfth.
    times = [(s.start_seconds, s.stop_seconds) for s in dataset.segments]
    assert times[:2] == [(0.0, 1.0), (19 / 12, 20 / 12)] and times[2] == times[3] == (99999 / 12, 100011 / 12)
    assert [s.id for s in dataset.segments[1:]] == ["0001-20-20-60", "0002-100000-100011-4", "0002-100000-100011-4#2"]
    assert dataset.segments[0].extra == {"start_frame": "1", "stop_frame": "12", "frames_per_second": "12"}
    names = dataset.classes["action"]
    assert len(names) == 61 and (names[0], names[4], names[60]) == ("check_booklet", "take_bolt", "align_objects")
    assert names[1] == "action 1" and dataset.notes == (
        "58 of 61 actions are in no csv, so their names are not known.",
    )
    (validation,) = load_dataset("meccano", meccano, "validation").segments
    assert (validation.start_seconds, validation.stop_seconds) == (1.0, 2.0)
    other = load_dataset("meccano", meccano, "train", frames_per_second=24, first_frame=0).segments[0]
    assert (other.start_seconds, other.stop_seconds) == (1 / 24, 13 / 24)


def test_meccano_streams(meccano):
    dataset = load_dataset("meccano", meccano, "train")
    assert dataset.paths == {"rgb": "MECCANO_RGB_Videos/{video}.mp4"}
    (meccano / "frames/0001").mkdir(parents=True)
    (meccano / "depth/0001").mkdir(parents=True)
    dataset = load_dataset("meccano", meccano, "train", frames_per_second=10)
    assert dataset.paths == {"rgb": "frames/{video}", "depth": "depth/{video}"}
    assert [dataset.frame_fps(dataset.segments[0], stream) for stream in ("rgb", "depth")] == [10, 10]


def test_meccano_is_checked_by_decoding(meccano):
    (meccano / "MECCANO_RGB_Videos").mkdir()
    write_csv(meccano / "MECCANO_train_actions.csv", ROWS[:2])
    write_counting_video(meccano / "MECCANO_RGB_Videos/0001.mp4", num_frames=24, fps=12)
    (split,) = check_dataset("meccano", meccano, ["train"], decode=1)
    assert split.is_whole and split.streams["rgb"].decoded == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["0001", 4, "take_bolt", "00009.jpg", "00003.jpg"], "frames 9 to 3; they must ascend from 1"),
        (["0001", 4, "take_bolt", "00000.jpg", "00003.jpg"], "frames 0 to 3; .*first_frame"),
        (["0001", 4, "put_bolt", "00001.jpg", "00003.jpg"], "action 4 is called 'put_bolt' here and 'take_bolt' else"),
        (["0001", 4, "take_bolt", "1", "3"], "a line must be video,action_id"),
        (["0001", 4, "take_bolt", "00001.jpg"], "a line must be video,action_id"),
        (["0001", "x", "take_bolt", "00001.jpg", "00003.jpg"], "action_id is 'x'"),
    ],
)
def test_meccano_wrong_rows(meccano, row, said):
    write_csv(meccano / "MECCANO_train_actions.csv", [ROWS[0], row])
    with pytest.raises(ValueError, match=rf"MECCANO_train_actions.csv:2: .*{said}"):
        load_dataset("meccano", meccano, "train")


def test_meccano_actions_beyond_the_last(meccano):
    write_csv(meccano / "MECCANO_train_actions.csv", [["0001", 61, "new", "00001.jpg", "00003.jpg"]])
    with pytest.raises(ValueError, match="has action=61; there are 61 classes"):
        load_dataset("meccano", meccano, "train")
    with pytest.raises(
        LayoutError, match="no MECCANO_test_actions.csv or test.csv.*Found there: MECCANO_train_actions"
    ):
        load_dataset("meccano", meccano, "test")
