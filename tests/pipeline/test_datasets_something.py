"""Something-Something v2 and Something-Else: class order, splits, boxes read one video at a time."""

import json
import math
import pickle

import numpy as np
import pytest
from dataset_files import something_else_frame, write_json
from videos import write_counting_video

from actionfuse.pipeline.boxes import boxes_at, limit_instances
from actionfuse.pipeline.datasets import CARDS, LayoutError, load_dataset, something_else_boxes
from actionfuse.pipeline.datasets.something_else_boxes import SomethingElseBoxes, index_videos

# Numbers in the file are not the alphabetical rank; a capital sorts before a small letter.
LABELS = {"Moving something up": 0, "Approaching something": 2, "Zipping something": 3, "aligning something": 1}
RANKS = ("Approaching something", "Moving something up", "Zipping something", "aligning something")
ENTRIES = [
    {"id": "12", "label": "moving a cup up", "template": "Moving [something] up", "placeholders": ["a cup", "b; c"]},
    {"id": "3", "label": "aligning pens", "template": "aligning [something]", "placeholders": ["pens"]},
]


def write_v2(root, prefix="something-something-v2-"):
    write_json(root / f"labels/{prefix}labels.json", {name: str(number) for name, number in LABELS.items()})
    write_json(root / f"labels/{prefix}train.json", ENTRIES)
    write_json(root / f"labels/{prefix}validation.json", ENTRIES[1:])
    write_json(root / f"labels/{prefix}test.json", [{"id": "77"}])


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_v2(tmp_path, prefix):
    write_v2(tmp_path, prefix)
    dataset = load_dataset("something_something_v2", tmp_path, "train")
    first, second = dataset.segments
    assert (first.video, first.id, first.start_seconds, first.stop_seconds) == ("12", "12", 0.0, math.inf)
    assert dataset.classes == {"action": RANKS}
    assert first.labels == {"action": 1} and second.labels == {"action": 3}
    assert first.extra == {"narration": "moving a cup up", "placeholders": "a cup; b; c"}
    assert dataset.path(first) == tmp_path / "20bn-something-something-v2/12.webm"
    (test,) = load_dataset("something_something_v2", tmp_path, "test").segments
    assert test.id == "77" and test.labels == {}


def test_v2_folders_of_frames_count_at_12(tmp_path):
    write_v2(tmp_path)
    (tmp_path / "frames/12").mkdir(parents=True)
    dataset = load_dataset("something_something_v2", tmp_path, "train")
    assert dataset.paths["rgb"] == "frames/{video}" and dataset.frame_fps(dataset.segments[0]) == 12


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"id": "1", "template": "Throwing [something]"}], r"entry 0 \(video 1\) has the template 'Throwing"),
        ([{"template": "Moving [something] up"}], "entry 0 .* an object with an id"),
        ([ENTRIES[0], ENTRIES[0]], "two segments are called '12'"),
        ({"12": "x"}, "holds a dict; it must be a list"),
    ],
)
def test_v2_wrong_entries(tmp_path, entries, said):
    write_v2(tmp_path)
    write_json(tmp_path / "labels/something-something-v2-train.json", entries)
    with pytest.raises(ValueError, match=said):
        load_dataset("something_something_v2", tmp_path, "train")


def test_v2_not_json(tmp_path):
    write_v2(tmp_path)
    (tmp_path / "labels/something-something-v2-train.json").write_text("[{")
    with pytest.raises(ValueError, match="train.json: not a JSON file"):
        load_dataset("something_something_v2", tmp_path, "train")


# Something-Else

SIZE = (64, 48)
# Of video 12: frame 2 is missing; two hands in frame 3; an object that appears late; one outside the frame; one of no
# size. In pixels of 64 x 48.
FRAMES = [
    something_else_frame("12", 1, {"hand": (0, 0, 32, 24), "0001": (16, 12, 48, 36)}),
    something_else_frame("12", 3, {"hand": (0, 0, 16, 12), "hand#2": (32, 24, 64, 48), "0001": (16, 12, 32, 24)}),
    something_else_frame("12", 4, {"0000": (-8, -6, 32, 49), "0002": (64, 0, 70, 48), "0003": (5, 5, 5, 9)}),
    something_else_frame("12", 5, {}),
]
BOXES = {"12": FRAMES, "3": [something_else_frame("3", 1, {"0000": (0, 0, 64, 48)})], "900": []}


def write_else(root):
    for folder, classes in (("compositional", 4), ("compositional_oneobject", 3), ("compositional_shuffled", 4)):
        names = {name: LABELS[name] for name in list(LABELS)[-classes:]}
        entries = [entry for entry in ENTRIES if entry["template"].replace("[", "").replace("]", "") in names]
        write_json(root / folder / "labels.json", names)
        write_json(root / folder / "train.json", entries)
        write_json(root / folder / "validation.json", entries[::-1])
    write_json(root / "fewshot/base_labels.json", {"Moving something up": 5})
    write_json(root / "fewshot/finetune_labels.json", {"aligning something": 5})
    for name in ("base_training_set", "base_validation_set"):
        write_json(root / f"fewshot/{name}.json", ENTRIES[:1])
    # Copies differ in how they call these.
    for name in ("5shot_training", "5shot_validation", "10shot_train", "10shot_validation"):
        write_json(root / f"fewshot/finetune_{name}.json", ENTRIES[1:])
    write_json(root / "annotations.json", BOXES)
    return root


@pytest.fixture
def something_else(tmp_path):
    return write_else(tmp_path / "else")


def tracks_of(root, **options):
    sizes = write_json(root / "video_info.json", {"12": {"cnt": 5, "res": SIZE[::-1]}, "3": list(SIZE[::-1])})
    return load_dataset("something_else", root, "compositional_train", frame_sizes=sizes.name, **options).boxes


def test_every_split_of_something_else(something_else):
    counts = {"compositional": 2, "one_object": 1, "shuffled": 2, "few_shot_base": 1, "few_shot_5": 1, "few_shot_10": 1}
    for split in CARDS["something_else"].splits:
        dataset = load_dataset("something_else", something_else, split)
        assert len(dataset.segments) == counts[split.rsplit("_", 1)[0]], split
        assert dataset.boxes is not None and set(dataset.boxes) == set(BOXES)
    assert load_dataset("something_else", something_else, "compositional_train").classes["action"] == RANKS
    assert load_dataset("something_else", something_else, "one_object_train").classes["action"] == (
        RANKS[0],
        *RANKS[2:],
    )
    nested = something_else.rename(something_else.parent / "dataset_splits")
    (nested / "annotations.json").rename(nested.parent / "annotations.json")
    assert len(load_dataset("something_else", nested.parent, "shuffled_validation").segments) == 2


def test_tracks_by_standard_category(something_else):
    tracks = tracks_of(something_else)["12"]
    assert tracks.track_ids == ("0000", "0001", "hand")  # the hand is last
    assert tracks.categories.tolist() == [2, 2, 1]
    np.testing.assert_array_equal(tracks.seconds, [0, 2 / 12, 3 / 12])  # by the number in the name
    assert tracks.present.tolist() == [[False, True, True], [False, True, True], [True, False, False]]
    np.testing.assert_allclose(tracks.boxes[0, 2], [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(tracks.boxes[1, 2], [0.5, 0.5, 1, 1])  # of two hands the last
    np.testing.assert_allclose(tracks.boxes[2, 0], [0, 0, 0.5, 1])  # cut to the frame
    boxes = SomethingElseBoxes([something_else / "annotations.json"], video_path="", sizes={"900": SIZE})
    empty = boxes["900"]
    assert empty.boxes.shape == (0, 0, 4)


def test_a_second_hand_of_its_own(something_else):
    tracks = tracks_of(something_else, repeated="separate")["12"]
    assert tracks.track_ids == ("0000", "0001", "hand", "hand 2")
    assert tracks.categories.tolist() == [2, 2, 1, 1]
    np.testing.assert_allclose(tracks.boxes[1, 2:], [[0, 0, 0.25, 0.25], [0.5, 0.5, 1, 1]])


def test_more_instances_than_slots(something_else):
    # By order the hand goes first, as in the public code; by presence the object that is seen once.
    assert tracks_of(something_else, max_instances=2)["12"].track_ids == ("0000", "0001")
    assert tracks_of(something_else, max_instances=2, keep="presence")["12"].track_ids == ("0001", "hand")
    assert tracks_of(something_else, max_instances=4)["12"].track_ids == ("0000", "0001", "hand")
    with pytest.raises(ValueError, match="max_instances is 0"):
        tracks_of(something_else, max_instances=0)


def public_slots(frames, sampled):
    """Boxes and categories of the public code, (T, 4, 4) shares and (T, 4), one box at a time."""
    labels = {frame["name"]: frame["labels"] for frame in frames}
    of = [labels.get(f"12/{n + 1:04d}.jpg", []) for n in sampled]
    names = sorted({label["standard_category"] for found in of for label in found})
    boxes, categories = np.zeros((len(sampled), 4, 4)), np.zeros((len(sampled), 4), int)
    for t, found in enumerate(of):
        for label in found:
            slot = names.index(label["standard_category"])
            if slot < 4:
                corners = [label["box2d"][k] for k in ("x1", "y1", "x2", "y2")]
                boxes[t, slot] = np.clip(np.array(corners) / [*SIZE, *SIZE], 0, 1)
                categories[t, slot] = 1 if label["standard_category"] == "hand" else 2
    return boxes, categories


@pytest.mark.parametrize("sampled", [[0, 2], [0, 1, 2, 3], [3], [2, 3]])
def test_slots_of_the_public_code(something_else, sampled):
    frames = json.loads(json.dumps(FRAMES))
    for frame in frames:  # its boxes without area are boxes; ours are absent
        frame["labels"] = [label for label in frame["labels"] if label["standard_category"] not in ("0002", "0003")]
    tracks = boxes_at(tracks_of(something_else)["12"], np.array(sampled) / 12, max_gap_seconds=1e-3)
    slots = limit_instances(tracks, 4, keep="order")
    boxes, categories = public_slots(frames, sampled)
    np.testing.assert_allclose(slots.boxes, boxes, atol=1e-6)
    np.testing.assert_array_equal(slots.categories * slots.present, categories)


def test_sizes_are_read_from_the_videos(something_else):
    (something_else / "videos").mkdir()
    write_counting_video(something_else / "videos/12.mp4", num_frames=3, size=SIZE)
    dataset = load_dataset("something_else", something_else, "compositional_train")
    assert dataset.paths["rgb"] == "videos/{video}.mp4"
    copy = pickle.loads(pickle.dumps(dataset)).boxes
    np.testing.assert_array_equal(copy["12"].boxes, tracks_of(something_else)["12"].boxes)
    with pytest.raises(Exception, match="3.mp4"):
        copy["3"]


def test_boxes_of_other_sizes_are_refused(something_else):
    boxes = SomethingElseBoxes([something_else / "annotations.json"], video_path="", sizes={"12": (40, 30)})
    with pytest.raises(ValueError, match=r"reach to .* pixels and its frames are 40 x 30; .* frame_sizes"):
        boxes["12"]
    write_json(something_else / "sizes.json", {"12": 5})
    with pytest.raises(ValueError, match=r"sizes.json: must be a json object of video"):
        load_dataset("something_else", something_else, "compositional_train", frame_sizes="sizes.json")


def test_videos_without_boxes_are_told(something_else):
    write_json(something_else / "annotations.json", {"3": BOXES["3"]})
    dataset = load_dataset("something_else", something_else, "compositional_train")
    assert dataset.notes == ("1 of 2 videos have no boxes.",)
    assert "12" not in dataset.boxes and dataset.boxes.get("12") is None
    with pytest.raises(KeyError, match="12 has no boxes in .*annotations.json"):
        dataset.boxes["12"]


def test_boxes_in_four_parts(something_else):
    (something_else / "annotations.json").unlink()
    with pytest.raises(LayoutError, match=r"annotations.json or bounding_box_smthsmth_part1.json to _part4.json"):
        load_dataset("something_else", something_else, "compositional_train")
    assert load_dataset("something_else", something_else, "compositional_train", boxes=False).boxes is None
    parts = [{"12": BOXES["12"]}, {}, {"900": []}, {"3": BOXES["3"]}]
    for number, part in enumerate(parts[:3], 1):
        write_json(something_else / f"annotations/bounding_box_smthsmth_part{number}.json", part)
    with pytest.raises(LayoutError, match=r"no bounding_box_smthsmth_part4.json; the other parts"):
        load_dataset("something_else", something_else, "compositional_train")
    write_json(something_else / "annotations/bounding_box_smthsmth_part4.json", parts[3])
    boxes = load_dataset("something_else", something_else, "compositional_train").boxes
    assert len(boxes) == 3 and all(boxes.annotation(video) == BOXES[video] for video in BOXES)
    write_json(something_else / "annotations/bounding_box_smthsmth_part2.json", {"12": []})
    with pytest.raises(ValueError, match="video '12' is annotated twice"):
        load_dataset("something_else", something_else, "compositional_train")


# The table of where videos lie in the file


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk_bytes", [1 << 24, 97, 1])
def test_index_finds_what_json_finds(tmp_path, monkeypatch, chunk_bytes, indent):
    monkeypatch.setattr(something_else_boxes, "_CHUNK_BYTES", chunk_bytes)
    nasty = ['a "b" ] {', "back\\", '\\"', "]]}}", "é", "\\\\", ""]
    content = {
        "7": [{"labels": [{"category": text, "deep": [[{}], []]} for text in nasty]}],
        "empty": [],
        'odd "name" \\': [[1, 2]],
        "é": [{}],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=indent is None))
    boxes = SomethingElseBoxes([path], video_path="")
    assert set(boxes) == set(content) and len(boxes) == len(content)
    assert {video: boxes.annotation(video) for video in boxes} == content


def test_index_is_made_once_for_a_file(tmp_path, monkeypatch):
    path = write_json(tmp_path / "boxes.json", {"1": []})
    names, _ = index_videos(path)
    monkeypatch.setattr(something_else_boxes, "_scan", lambda path: pytest.fail("read again"))
    assert index_videos(path)[0] is names
    write_json(path, {"1": [], "22": []})
    with pytest.raises(pytest.fail.Exception):
        index_videos(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ('{"1": [{"a": 1}', "ends in the middle"),
        ('{"1": ["a', "ends in the middle"),
        ('{"1": []}]', "closes too much"),
        ('{"1": {"a": []}}', "must be a json object of lists"),
        ('{"1": 5, "2": []}', "must be a json object of lists"),
        ("[[], []]", "must be a json object of lists"),
        ('{"1": [], "2": 7}', "must be a json object of lists"),
        ('{"1": [] "2": []}', "must be a json object of lists"),
        ("7", "must be a json object of lists"),
    ],
)
def test_index_of_other_files(tmp_path, text, said):
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        index_videos(path)


def test_no_video_at_all(tmp_path):
    path = write_json(tmp_path / "boxes.json", {})
    boxes = SomethingElseBoxes([path], video_path="")
    assert len(boxes) == 0 and list(boxes) == [] and "1" not in boxes


def test_a_label_without_corners_is_named(something_else):
    frame = something_else_frame("3", 1, {"0000": (0, 0, 5, 5)})
    del frame["labels"][0]["box2d"]["y2"]
    write_json(something_else / "annotations.json", {"3": [frame]})
    with pytest.raises(ValueError, match="boxes of '3', frame 1: .* must have standard_category"):
        tracks_of(something_else)["3"]
