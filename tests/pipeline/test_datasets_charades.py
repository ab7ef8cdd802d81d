"""Charades in its official files, PySlowFast's and CAR's lists; boxes of Action Genome; pickles that must not run."""

import json
import math
import os
import pickle
import subprocess

import numpy as np
import pytest
from dataset_files import write_csv, write_json
from videos import write_counting_video

from actionfuse.pipeline.datasets import LayoutError, load_dataset
from actionfuse.pipeline.datasets.check import check_dataset
from actionfuse.pipeline.datasets.plain_pickle import load_plain_pickle

HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length".split(",")


def row(video, actions, length=30.0):
    return [video, "HR43", "Kitchen", 6, 7, "Yes", 'He said "no", then left.', "bag;door", "a; b", actions, length]


@pytest.fixture
def charades(tmp_path):
    names = ["Holding some clothes", "Putting clothes somewhere", "Closing a door"]
    (tmp_path / "Charades_v1_classes.txt").write_text("".join(f"c{n:03d} {name}\n" for n, name in enumerate(names)))
    train = [row("AO8RW", "c002 11.90 21.20;c000 0.00 12.60;c002 11.90 21.20;c002 25 31"), row("ZZ9ZZ", "")]
    write_csv(tmp_path / "Charades_v1_train.csv", [HEADER, *train, row("B1B1B", "c001 5.00 5.00;c001 1.5 2")])
    write_csv(tmp_path / "Charades_v1_test.csv", [HEADER, row("TEST1", "c001 0.00 3.00")])
    return tmp_path


def test_a_video_has_all_its_actions(charades):
    dataset = load_dataset("charades", charades, "train")
    assert dataset.classes["action"][2] == "Closing a door" and dataset.boxes is None
    first, second = dataset.segments
    assert (first.video, first.id, first.start_seconds, first.stop_seconds) == ("AO8RW", "AO8RW", 0.0, math.inf)
    assert first.labels == {"action": (0, 2)} and second.labels == {"action": (1,)}
    assert first.extra == {"participant": "HR43", "scene": "Kitchen", "length_seconds": "30.0"}
    assert dataset.notes == ("1 videos of Charades_v1_train.csv have no action and no segment.",)
    assert dataset.path(first) == charades / "Charades_v1_480/AO8RW.mp4" and dataset.frame_fps(first) is None
    (test,) = load_dataset("charades", charades, "test").segments
    assert test.labels == {"action": (1,)}


def test_every_action_by_itself(charades):
    dataset = load_dataset("charades", charades, "train", segments="actions")
    assert [(s.video, s.start_seconds, s.stop_seconds, s.labels["action"]) for s in dataset.segments] == [
        ("AO8RW", 11.9, 21.2, 2),
        ("AO8RW", 0.0, 12.6, 0),
        ("AO8RW", 25.0, 31.0, 2),
        ("B1B1B", 1.5, 2.0, 1),
    ]
    assert dataset.segments[0].id == "AO8RW-c002-11.9-21.2"
    assert dataset.notes[1] == "1 actions of Charades_v1_train.csv that do not stop after they start are left out."


def test_folders_of_frames_count_at_24(charades):
    (charades / "Charades_v1_rgb/AO8RW").mkdir(parents=True)
    dataset = load_dataset("charades", charades, "train")
    assert dataset.path(dataset.segments[0]).name == "AO8RW" and dataset.frame_fps(dataset.segments[0]) == 24


@pytest.mark.parametrize("actions", ["c000 1.0", "c003 1.0 2.0", "000 a 2.0"])
def test_a_wrong_action_is_named(charades, actions):
    write_csv(charades / "Charades_v1_train.csv", [HEADER, row("A", actions)])
    with pytest.raises(ValueError, match=rf"Charades_v1_train.csv:2: the action '{actions}'"):
        load_dataset("charades", charades, "train")


def test_classes_out_of_order(charades):
    (charades / "Charades_v1_classes.txt").write_text("c000 a\nc002 b\n")
    with pytest.raises(ValueError, match="Charades_v1_classes.txt:2: 'c002 b'; it must be c001"):
        load_dataset("charades", charades, "train")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "readme.txt").touch()
    with pytest.raises(LayoutError, match="no Charades_v1_classes.txt; looked for in .*Found there: readme.txt"):
        load_dataset("charades", tmp_path, "train")


# PySlowFast's lists


def frame_list(*frames):
    """frames: (video, frame, labels)"""
    lines = ["original_vido_id video_id frame_id path labels"]
    lines += [f'{video} 0 {n} {video}/{video}-{n + 1:06d}.jpg "{labels}"' for video, n, labels in frames]
    return "\n".join(lines) + "\n"


FRAMES = [("A", 0, "1"), ("A", 1, "1,2"), ("A", 2, "2"), ("A", 3, "1"), ("A", 7, "1"), ("B", 0, ""), ("C", 0, "0")]


def test_slowfast_lists(charades):
    (charades / "frame_lists").mkdir()
    (charades / "frame_lists/train.csv").write_text(frame_list(*FRAMES))
    (charades / "frame_lists/val.csv").write_text(frame_list(("V", 0, "2,0")))
    dataset = load_dataset("charades", charades, "train", annotations="slowfast")
    assert {s.video: s.labels["action"] for s in dataset.segments} == {"A": (1, 2), "C": (0,)}
    assert dataset.notes == ("1 videos of train.csv have no action and no segment.",)
    (test,) = load_dataset("charades", charades, "test", annotations="slowfast").segments
    assert test.labels == {"action": (0, 2)}


def test_slowfast_stretches_of_frames(charades):
    (charades / "train.csv").write_text(frame_list(*FRAMES))
    dataset = load_dataset("charades", charades, "train", annotations="slowfast", segments="actions")
    found = [(s.video, s.labels["action"], s.start_seconds * 24, s.stop_seconds * 24) for s in dataset.segments]
    # Class 1 of A in frames 0 to 1, 3 and 7: a frame without it, and frames that are not listed, end a stretch.
    expected = [("A", 1, 0, 2), ("A", 1, 3, 4), ("A", 1, 7, 8), ("A", 2, 1, 3), ("C", 0, 0, 1)]
    assert [(v, a) for v, a, *_ in found] == [(v, a) for v, a, *_ in expected]
    np.testing.assert_allclose([f[2:] for f in found], [e[2:] for e in expected])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n", "train.csv:1: the header is 'a,b'"),
        (frame_list(("A", 1, "0"), ("A", 0, "0")), "train.csv:3: frame 0 of A comes after frame 1"),
        (frame_list(("A", 1, "0")) + "A 0 x path 1\n", "train.csv:3: 'A 0 x path 1'; a line must be"),
        (frame_list(("A", 1, "0"), ("B", 1, "0"), ("A", 2, "0")), "two segments are called 'A'"),
        (frame_list(("A", 1, "9")), "segment 'A' has action=.*there are 3 classes"),
    ],
)
def test_wrong_slowfast_lists(charades, text, said):
    (charades / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        load_dataset("charades", charades, "train", annotations="slowfast")


# CAR's split


@pytest.fixture
def car(tmp_path):
    write_json(tmp_path / "COM/labels.json", ["hold", "Close", "drop"])
    write_json(tmp_path / "COM/train.json", [{"id": "AO8RW.mp4", "label": ["hold", "Close"]}])
    write_json(tmp_path / "COM/val.json", [{"id": "B1B1B", "label": ["drop"]}, {"id": "C", "label": []}])
    info = {"AO8RW.mp4": {"cnt": 3, "res": [270, 480], "frame_ids": [1, 5, 89]}}
    write_json(tmp_path / "COM/video_info.json", info)
    return tmp_path


def test_car_split(car):
    dataset = load_dataset("charades", car, "train", annotations="car")
    (segment,) = dataset.segments
    assert dataset.classes == {"action": ("Close", "drop", "hold")}
    assert (segment.video, segment.labels) == ("AO8RW", {"action": (0, 2)})
    assert segment.extra == {"frame_ids": "1,5,89"}
    test = load_dataset("charades", car, "test", annotations="car")
    assert [s.labels for s in test.segments] == [{"action": (1,)}]
    assert test.notes == ("1 videos of val.json have no action and no segment.",)
    with pytest.raises(ValueError, match='segments="actions" needs'):
        load_dataset("charades", car, "train", annotations="car", segments="actions")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": "A", "label": "hold"}], "entry 0 is"),
        ([{"id": "A", "label": ["grab"]}], r"entry 0 \(A\) has the action 'grab'"),
        ({"A": ["hold"]}, "holds a dict"),
    ],
)
def test_wrong_car_lists(car, rows, said):
    write_json(car / "COM/train.json", rows)
    with pytest.raises(ValueError, match=said):
        load_dataset("charades", car, "train", annotations="car")


# Boxes

WIDTH, HEIGHT = 64, 48


def thing(name, box, visible=True):
    return {"class": name, "bbox": box, "visible": visible, "metadata": {"set": "train"}}


OBJECTS = {
    "AO8RW.mp4/000006.png": [thing("book", (16, 12, 32, 12)), thing("door", None, False)],
    "AO8RW.mp4/000001.png": [thing("book", (0.0, 0.0, 32.0, 24.0)), thing("cup/glass/bottle", (48, 0, 20, 48))],
    "OTHER.mp4/000001.png": [thing("door", (0, 0, 8, 8))],
}
PEOPLE = {
    "AO8RW.mp4/000001.png": {
        "bbox": np.array([[32, 0, 64, 48], [0, 0, 16, 48]], np.float32),
        "bbox_score": np.array([0.99, 0.9], np.float32),
        "bbox_size": (WIDTH, HEIGHT),
        "bbox_mode": "xyxy",
    },
    "AO8RW.mp4/000006.png": {"bbox": np.zeros((0, 4), np.float32), "bbox_size": (WIDTH, HEIGHT)},
    "OTHER.mp4/000001.png": {"bbox": None, "bbox_size": None},
}


def write_boxes(root, objects=OBJECTS, people=PEOPLE, protocol=2):
    folder = root / "annotations"
    folder.mkdir(exist_ok=True)
    (folder / "object_bbox_and_relationship.pkl").write_bytes(pickle.dumps(objects, protocol))
    (folder / "person_bbox.pkl").write_bytes(pickle.dumps(people, protocol))


@pytest.fixture
def boxed(charades):
    write_boxes(charades)
    (charades / "videos").mkdir()
    write_counting_video(charades / "videos/AO8RW.mp4", num_frames=12, size=(2 * WIDTH, 2 * HEIGHT), fps=10)
    return charades


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_tracks_of_a_person_and_objects(boxed, protocol):
    write_boxes(boxed, protocol=protocol)
    dataset = load_dataset("charades", boxed, "train", boxes=True)
    assert dataset.notes[-1] == "1 of 2 videos have no boxes."
    assert dataset.boxes is not None and set(dataset.boxes) == {"AO8RW", "OTHER"} and "B1B1B" not in dataset.boxes
    tracks = dataset.boxes["AO8RW"]
    assert tracks.track_ids == ("book", "cup/glass/bottle", "person")
    assert tracks.categories.tolist() == [2, 2, 1]
    np.testing.assert_allclose(tracks.seconds, [0, 0.5])  # frames 1 and 6 of a video of 10 a second
    assert tracks.present.tolist() == [[True, True, True], [True, False, False]]
    np.testing.assert_allclose(tracks.boxes[0], [[0, 0, 0.5, 0.5], [0.75, 0, 1, 1], [0.5, 0, 1, 1]])
    np.testing.assert_allclose(tracks.boxes[1, 0], [0.25, 0.25, 0.75, 0.5])
    again = pickle.loads(pickle.dumps(dataset.boxes))["AO8RW"]
    np.testing.assert_array_equal(again.boxes, tracks.boxes)


def test_all_people(boxed):
    boxes = load_dataset("charades", boxed, "train", boxes=True, people="all").boxes
    assert boxes["AO8RW"].track_ids == ("book", "cup/glass/bottle", "person", "person 2")
    np.testing.assert_allclose(boxes["AO8RW"].boxes[0, 3], [0, 0, 0.25, 1])


def test_a_given_rate_and_size_need_no_video(boxed):
    info = write_json(boxed / "video_info.json", {"AO8RW": {"cnt": 3, "res": [96, 128]}})
    (boxed / "videos/AO8RW.mp4").unlink()
    options = {"boxes": True, "frames_per_second": 25.0, "frame_sizes": info.name}
    tracks = load_dataset("charades", boxed, "train", **options).boxes["AO8RW"]
    np.testing.assert_allclose(tracks.seconds, [0, 0.2])
    np.testing.assert_allclose(tracks.boxes[0, 0], [0, 0, 0.25, 0.25])


def test_sizes_that_do_not_fit(boxed):
    people = {key: {**entry, "bbox_size": (HEIGHT, WIDTH)} for key, entry in PEOPLE.items()}
    write_boxes(boxed, people=people)
    boxes = load_dataset("charades", boxed, "train", boxes=True).boxes
    with pytest.raises(ValueError, match="frames of 48 x 64 and the video is 128 x 96, of another shape"):
        boxes["AO8RW"]
    options = {"boxes": True, "frames_per_second": 25.0}
    with pytest.raises(ValueError, match=r"reach to 68, 48 pixels and its frames are 48 x 64; .* frame_sizes"):
        load_dataset("charades", boxed, "train", **options).boxes["AO8RW"]


def test_the_video_tells_the_size_where_nothing_else_does(boxed):
    write_boxes(boxed, people={key: {"bbox": None} for key in PEOPLE})
    tracks = load_dataset("charades", boxed, "train", boxes=True).boxes["AO8RW"]
    assert tracks.track_ids == ("book", "cup/glass/bottle")
    np.testing.assert_allclose(tracks.boxes[0, 0], [0, 0, 0.25, 0.25])  # of 128 x 96


def test_boxes_that_are_not_there(charades):
    with pytest.raises(LayoutError, match="no object_bbox_and_relationship.pkl.*boxes=False"):
        load_dataset("charades", charades, "train", boxes=True)


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([1], "holds a list"),
        ({"AO8RW.mp4": []}, "the key 'AO8RW.mp4' must be a video and a frame"),
        ({"A.mp4/000000.png": []}, "must be a video and a frame from 1 on"),
        ({"A.mp4/000001.png": [{"class": "book"}]}, "'A.mp4/000001.png' is"),
        ({"A.mp4/000001.png": [thing("book", (1, 2, 3))]}, "'A.mp4/000001.png' is"),
    ],
)
def test_wrong_boxes(charades, objects, said):
    write_boxes(charades, objects)
    with pytest.raises(ValueError, match=said):
        load_dataset("charades", charades, "train", boxes=True)


def test_check_tells_videos_without_boxes(boxed):
    (split,) = check_dataset("charades", boxed, ["train"], options={"boxes": True}, decode=1)
    assert split.error is None and split.without_boxes == ["B1B1B"]
    assert split.streams["rgb"].missing == ["videos/B1B1B.mp4"] and split.streams["rgb"].problems == []


# Pickles


class _Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch {}"),
        (eval, "open('{}', 'w')"),
        (exec, "open('{}', 'w')"),
        (getattr, "x", "upper"),
        (subprocess.run, ["touch", "{}"]),
        (np.load, "{}"),
        (np.dtype, {"names": ["a"], "formats": ["O"]}),
        (np.dtype, "O"),
        (np.ndarray, (2,), np.dtype("f8")),
    ],
    ids=lambda call: call[0].__name__,
)
def test_a_pickle_runs_nothing(tmp_path, call, protocol):
    mark = tmp_path / "ran"
    function, *arguments = call
    filled = [a.format(mark) if isinstance(a, str) else a for a in arguments]
    filled = [[str(mark) if word == "{}" else word for word in a] if isinstance(a, list) else a for a in filled]
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"a": _Runs(function, *filled)}, protocol))
    with pytest.raises(ValueError, match="evil.pkl: cannot be read as a pickle"):
        load_plain_pickle(path)
    assert not mark.exists()


def test_a_pickle_that_asks_for_code_says_so(charades):
    write_boxes(charades, {"A.mp4/000001.png": _Runs(os.system, "true")})
    with pytest.raises(ValueError, match=r"asks for posix.system; only numbers, texts, containers and arrays"):
        load_dataset("charades", charades, "train", boxes=True)


def test_attributes_of_allowed_names_are_not_reached(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")
    with pytest.raises(ValueError, match="numpy.ndarray.tofile"):
        load_plain_pickle(path)


@pytest.mark.parametrize(
    ("dtype", "data"),
    [("f8", b"\0" * 8), ("O", b"\0" * 16), ("V8", b"\0" * 16), ("f8", b"\0" * 24), ("f8", 7)],
)
def test_arrays_of_other_bytes_are_refused(tmp_path, dtype, data):
    # (2,) numbers of eight bytes are 16 bytes; objects and raw records are none.
    class Array:
        def __reduce__(self):
            function, arguments, _ = np.zeros(2).__reduce__()
            return function, arguments, (1, (2,), np.dtype(dtype), False, data)

    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Array(), 4))
    with pytest.raises(ValueError, match="cannot be read as a pickle"):
        load_plain_pickle(path)


def test_scalars_of_other_bytes_are_refused(tmp_path):
    function, (dtype, data) = np.float64(1).__reduce__()
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(_Runs(function, dtype, data * 2), 4))
    with pytest.raises(ValueError, match=r"an array of shape \(\) has 16 bytes, not 8"):
        load_plain_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read_back(tmp_path, protocol):
    content = {
        "arrays": [
            np.arange(6, dtype=np.float32).reshape(2, 3),
            np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
            np.zeros((0, 4)),
            np.array(["a", "bc"]),
            np.array(True),
        ],
        "scalars": [np.float32(1.5), np.int64(-3), 2**80, 1.25, None, True],
        "others": [(1, "é", b"\xff\0", b""), {3, 4}, frozenset("a")],
    }
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = load_plain_pickle(path)
    for own, read in zip(content["arrays"], found["arrays"], strict=True):
        np.testing.assert_array_equal(read, own)
        assert read.shape == own.shape and read.dtype.newbyteorder("=") == own.dtype.newbyteorder("=")
    assert found["scalars"] == content["scalars"] and found["others"] == content["others"]


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps([1, 2, 3])[:-2], json.dumps([1]).encode()])
def test_damaged_pickles(tmp_path, data):
    path = tmp_path / "damaged.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged.pkl: cannot be read as a pickle"):
        load_plain_pickle(path)
