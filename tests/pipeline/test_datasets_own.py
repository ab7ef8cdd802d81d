"""One's own videos: a folder for each class, and csv files."""

import hashlib
import math

import numpy as np
import pytest
from PIL import Image
from videos import write_counting_video

from actionfuse.pipeline.boxes import BoxRow, box_tracks, write_box_file
from actionfuse.pipeline.datasets import LayoutError, load_dataset
from actionfuse.pipeline.datasets.check import check_dataset

SPLITS = ("train", "validation", "test")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def videos(root, split, **options):
    return {s.id: s.labels["action"] for s in load_dataset("folder", root, split, **options).segments}


def test_folders_of_splits(tmp_path):
    touch(tmp_path, "train/stir/b.mp4", "train/pour/a.mp4", "train/pour/deep/{x} [1].mkv", "train/pour/notes.txt")
    touch(tmp_path, "val/pour/c.avi", "val/shake/d.mp4", "train/.hidden/e.mp4")
    dataset = load_dataset("folder", tmp_path, "train")
    assert dataset.classes == {"action": ("pour", "shake", "stir")}  # of all splits
    assert videos(tmp_path, "train") == {"train/pour/a.mp4": 0, "train/pour/deep/{x} [1].mkv": 0, "train/stir/b.mp4": 2}
    assert videos(tmp_path, "validation") == {"val/pour/c.avi": 0, "val/shake/d.mp4": 1}
    assert all(dataset.path(s).is_file() for s in dataset.segments)
    assert (dataset.segments[0].start_seconds, dataset.segments[0].stop_seconds) == (0.0, math.inf)
    with pytest.raises(LayoutError, match="holds no test/CLASS; other splits have folders there. Found there: train/"):
        load_dataset("folder", tmp_path, "test")
    touch(tmp_path, "validation/pour/f.mp4")
    with pytest.raises(ValueError, match="has validation and val, which are one split"):
        load_dataset("folder", tmp_path, "train")


def test_streams_beside_the_videos(tmp_path):
    touch(tmp_path, "train/pour/a.mp4", "depth/train/pour/a.mkv")
    dataset = load_dataset("folder", tmp_path, "train", paths={"depth": "depth/{stem}.mkv"})
    assert dataset.path(dataset.segments[0], "depth").is_file()


def test_shares(tmp_path):
    touch(tmp_path, *(f"{name}/{n}.mp4" for name, count in (("a", 40), ("b", 3), ("c", 1)) for n in range(count)))
    parts = {split: videos(tmp_path, split, shares=(0.25, 0.1)) for split in SPLITS}
    per_class = {split: [sum(c == n for c in part.values()) for n in range(3)] for split, part in parts.items()}
    # Of 3 a quarter is 0.75, which is 1, and a tenth is 0; of 1 train keeps the one.
    assert per_class == {"train": [26, 2, 1], "validation": [10, 1, 0], "test": [4, 0, 0]}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 44
    assert parts["test"] == videos(tmp_path, "test", shares=(0.25, 0.1))
    assert parts["test"] != videos(tmp_path, "test", shares=(0.25, 0.1), seed=1)
    most = {split: videos(tmp_path, split, shares=(0.09, 0.9)) for split in SPLITS}
    assert [sum(c == 2 for c in most[split].values()) for split in SPLITS] == [1, 0, 0]
    moved = tmp_path.rename(tmp_path.parent / "elsewhere")
    assert parts["train"] == videos(moved, "train", shares=(0.25, 0.1))


def test_the_order_of_shares_stays_what_it_is(tmp_path):
    # Another release must not move videos between train and test: by sha256 of "SEED/a/N.mp4", ascending.
    names = [f"a/{n}.mp4" for n in range(10)]
    touch(tmp_path, *names)
    for seed in (0, 5):
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).hexdigest())
        assert list(videos(tmp_path, "test", shares=(0.0, 0.2), seed=seed)) == sorted(ranked[:2])


def test_default_shares_and_empty_splits(tmp_path):
    touch(tmp_path, *(f"a/{n}.mp4" for n in range(20)))
    assert [len(videos(tmp_path, split)) for split in SPLITS] == [14, 3, 3]
    with pytest.raises(ValueError, match=r"has no videos for test; make a folder test/CLASS, or give a share"):
        load_dataset("folder", tmp_path, "test", shares=(0.1, 0))
    touch(tmp_path, "test/b.mp4")  # with shares a folder is a class whatever it is called
    assert load_dataset("folder", tmp_path, "train", shares=(0.1, 0.1)).classes["action"] == ("a", "test")


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.1,), 0.3, ("a", "b")])
def test_wrong_shares(tmp_path, shares):
    touch(tmp_path, "a/1.mp4")
    with pytest.raises(ValueError, match="it must be two numbers, 0 or more and together below 1"):
        load_dataset("folder", tmp_path, "train", shares=shares)


def test_folders_without_videos(tmp_path):
    touch(tmp_path, "a/readme.txt")
    with pytest.raises(LayoutError, match="it must have a folder for each class, with videos in it. Found there: a/"):
        load_dataset("folder", tmp_path, "train")


def test_check_decodes_videos_and_folders_of_frames(tmp_path):
    (tmp_path / "train/pour/frames").mkdir(parents=True)
    for n in range(3):
        Image.fromarray(np.full((24, 32, 3), 80 * n, np.uint8)).save(tmp_path / f"train/pour/frames/{n:04d}.png")
    write_counting_video(tmp_path / "train/pour/v.mp4", num_frames=5)
    dataset = load_dataset("folder", tmp_path, "train", frames_per_second=10)
    assert [s.id for s in dataset.segments] == ["train/pour/frames", "train/pour/v.mp4"]
    assert dataset.frame_fps(dataset.segments[0]) == 10
    (split,) = check_dataset("folder", tmp_path, ["train"], decode=2)
    assert split.is_whole and split.streams["rgb"].decoded == 2


# csv

TRAIN = """path,start_seconds,stop_seconds,id,verb,noun,note
kitchen/a.mp4,12.5,00:00:14.25,a-0,take,3,first
kitchen/a.mp4,20,,,put;take,0;1,
b.mp4,,,b,Wash;,,
"""
VALIDATION = "path,verb,noun\nc.mp4,shake,5\nd.mp4,,\n"


@pytest.fixture
def own(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "val.csv").write_text(VALIDATION)
    (tmp_path / "test.csv").write_text("path\ne.mp4\n")
    return tmp_path


def test_names_and_numbers(own):
    dataset = load_dataset("csv", own, "train", labels=("verb", "noun"))
    # Names by rank over all files, capitals first; numbers up to the largest of all files.
    assert dataset.classes == {"verb": ("Wash", "put", "shake", "take"), "noun": ("0", "1", "2", "3", "4", "5")}
    first, second, third = dataset.segments
    assert (first.video, first.start_seconds, first.stop_seconds, first.id) == ("kitchen/a.mp4", 12.5, 14.25, "a-0")
    assert first.labels == {"verb": 3, "noun": 3} and first.extra == {"note": "first"}
    assert second.labels == {"verb": (1, 3), "noun": (0, 1)} and second.id == "kitchen/a.mp4#20-inf"
    assert third.labels == {"verb": (0,)} and (third.start_seconds, third.stop_seconds) == (0.0, math.inf)
    validation = load_dataset("csv", own, "validation", labels=("verb", "noun"))
    assert [s.labels for s in validation.segments] == [{"verb": 2, "noun": 5}, {}]
    assert validation.classes == dataset.classes
    (test,) = load_dataset("csv", own, "test", labels=["verb"]).segments
    assert test.labels == {}


def test_all_columns_are_labels_unless_told(own):
    assert list(load_dataset("csv", own, "train").classes) == ["verb", "noun", "note"]
    assert list(load_dataset("csv", own, "train", labels="noun").classes) == ["noun"]
    with pytest.raises(ValueError, match="no label in a column adverb of train.csv, val.csv, test.csv; .* verb, noun"):
        load_dataset("csv", own, "train", labels=["adverb"])


def test_lists_of_class_names(own):
    (own / "verb.txt").write_text("take\nput\n\nshake\nWash\npeel\n")
    (own / "things.txt").write_text("".join(f"thing {n}\n" for n in range(7)))
    options = {"labels": ("verb", "noun"), "classes": {"noun": "things.txt"}}
    dataset = load_dataset("csv", own, "train", **options)
    assert dataset.classes["verb"] == ("take", "put", "shake", "Wash", "peel") and len(dataset.classes["noun"]) == 7
    assert dataset.segments[0].labels == {"verb": 0, "noun": 3}
    assert [path.name for path in dataset.files] == ["train.csv", "val.csv", "test.csv", "verb.txt", "things.txt"]
    (own / "verb.txt").write_text("take\nput\n")
    with pytest.raises(ValueError, match=r"segment 'b' has verb='Wash', which is none of the 2 classes \(take, put\)"):
        load_dataset("csv", own, "train", **options)
    (own / "verb.txt").write_text("take\ntake\n")
    with pytest.raises(ValueError, match="verb.txt: two classes of verb have one name"):
        load_dataset("csv", own, "train", **options)
    with pytest.raises(LayoutError, match="holds no nouns.txt; classes names it for noun"):
        load_dataset("csv", own, "train", labels="noun", classes={"noun": "nouns.txt"})


def test_names_mixed_with_numbers(own):
    (own / "val.csv").write_text("path,verb\nc.mp4,3\n")
    with pytest.raises(ValueError, match="labels of verb are names, such as 'Wash', and numbers, such as '3'"):
        load_dataset("csv", own, "train", labels=["verb"])
    (own / "verb.txt").write_text("take\nput\nshake\nWash\n")
    assert load_dataset("csv", own, "validation", labels=["verb"]).segments[0].labels == {"verb": 3}


def test_errors_name_file_and_line(own):
    (own / "train.csv").write_text("path,start_seconds,verb\na.mp4,x,take\n")
    with pytest.raises(ValueError, match="train.csv:2: 'x' is no time"):
        load_dataset("csv", own, "train")
    (own / "train.csv").unlink()
    with pytest.raises(LayoutError, match="holds no train.csv; a csv with the columns path.*Found there: test.csv"):
        load_dataset("csv", own, "train")


def test_places_boxes_and_check(own):
    (own / "videos/kitchen").mkdir(parents=True)
    write_counting_video(own / "videos/kitchen/a.mp4", num_frames=60, fps=2)
    write_counting_video(own / "videos/b.mp4", num_frames=4)
    write_box_file(own / "boxes.csv", {"b.mp4": box_tracks([BoxRow("hand", 0.0, 0.1, 0.1, 0.5, 0.5, 1)])})
    dataset = load_dataset("csv", own, "train", boxes="boxes.csv")
    assert dataset.path(dataset.segments[0]) == own / "videos/kitchen/a.mp4" and dataset.frame_rates == {}
    assert dataset.boxes is not None and dataset.boxes["b.mp4"].track_ids == ("hand",)
    (split,) = check_dataset("csv", own, ["train"], decode=2)
    assert split.is_whole and split.videos == split.streams["rgb"].decoded == 2


def test_folders_of_frames_in_a_csv(own):
    (own / "train.csv").write_text("path,verb\nclips/a,take\n")
    (own / "clips/a").mkdir(parents=True)
    dataset = load_dataset("csv", own, "train", frames_per_second=12.0)
    assert dataset.frame_fps(dataset.segments[0]) == 12
