"""Boxes in time: look-up, moves, slots, arrays and the box file."""

from pathlib import Path

import numpy as np
import pytest

from actionfuse.pipeline import BoxTracks
from actionfuse.pipeline.boxes import (
    BoxRow,
    box_tracks,
    boxes_at,
    crop_boxes,
    cxcywh_to_xyxy,
    flip_boxes,
    from_pixels,
    iou,
    limit_instances,
    read_box_file,
    to_pixels,
    write_box_file,
    xyxy_to_cxcywh,
)


def two_tracks() -> BoxTracks:
    return box_tracks(
        [
            BoxRow("cup", 0.4, 0.5, 0.5, 0.7, 0.9, 2),
            BoxRow("arm", 2.0, 0.3, 0.1, 0.5, 0.4, 1),
            BoxRow("arm", 0.0, 0.1, 0.1, 0.3, 0.4, 1),
            BoxRow("arm", 0.4, 0.3, 0.1, 0.5, 0.4, 1),
        ]
    )


def same(first: BoxTracks, second: BoxTracks) -> bool:
    names = ("boxes", "present", "seconds", "categories")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names) and (
        first.track_ids == second.track_ids
    )


def random_tracks(seed: int, times: int = 6, instances: int = 5) -> BoxTracks:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.7, (times, instances, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, low.shape)], -1).astype(np.float32)
    present = rng.random((times, instances)) < 0.7
    boxes[~present] = 0
    categories = rng.integers(1, 3, instances)
    names = tuple(f"t{n}" for n in range(instances))
    return BoxTracks(boxes, present, np.arange(times) / 4, categories, names)


def test_tracks_from_rows_by_hand():
    tracks = two_tracks()
    assert tracks.track_ids == ("arm", "cup")
    assert tracks.categories.tolist() == [1, 2]
    assert tracks.seconds.tolist() == [0.0, 0.4, 2.0]
    assert tracks.present.tolist() == [[True, False], [True, True], [True, False]]
    assert tracks.boxes[1, 1].tolist() == pytest.approx([0.5, 0.5, 0.7, 0.9])
    assert not tracks.boxes[~tracks.present].any()
    assert box_tracks([]).boxes.shape == (0, 0, 4)
    reaching_out = box_tracks([BoxRow("a", 0, -0.25, 0.5, 0.5, 1.5, 1)])
    assert reaching_out.boxes[0, 0].tolist() == [0, 0.5, 0.5, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (BoxRow("arm", 0.0, 0.1, 0.1, 0.3, 0.4, 1), "two boxes at 0.0 s"),
        (BoxRow("arm", 1.0, 0.1, 0.1, 0.3, 0.4, 2), "of category 1 and, at 1.0 s, 2"),
        (BoxRow("x", 1.0, 0.3, 0.1, 0.1, 0.4, 2), "x1 < x2"),
        (BoxRow("x", 1.0, 10, 20, 30, 40, 2), "is in pixels"),
        (BoxRow("x", 1.0, 1.1, 0.1, 1.2, 0.4, 2), "outside the frame"),
        (BoxRow("x", float("nan"), 0.1, 0.1, 0.2, 0.4, 2), "finite"),
        (BoxRow("x", 1.0, 0.1, 0.1, 0.2, 0.4, 0), "category is 0"),
    ],
)
def test_faulty_rows_are_refused(row: BoxRow, message: str):
    with pytest.raises(ValueError, match=message):
        box_tracks([BoxRow("arm", 0.0, 0.1, 0.1, 0.3, 0.4, 1), row])


def test_boxes_between_sightings_by_hand():
    tracks = two_tracks()
    asked = [0.1, 0.4, 0.65, 0.66, 1.0, 1.75, 2.25, 2.26, 0.0]  # any order
    found = boxes_at(tracks, asked, max_gap_seconds=0.5)
    assert found.seconds.tolist() == asked and found.track_ids == tracks.track_ids
    assert found.present[:, 0].tolist() == [True, True, True, False, False, True, True, False, True]
    assert found.boxes[:, 0, 0].tolist() == pytest.approx([0.15, 0.3, 0.3, 0, 0, 0.3, 0.3, 0, 0.1])
    assert found.present[:, 1].tolist() == [False, True, True, False, False, False, False, False, False]
    nearest = boxes_at(tracks, [0.1, 0.2, 0.21], "nearest")
    assert nearest.boxes[:, 0, 0].tolist() == pytest.approx([0.1, 0.1, 0.3])
    wide = boxes_at(tracks, [1.2], max_gap_seconds=2)
    assert wide.boxes[0, 0].tolist() == pytest.approx([0.3, 0.1, 0.5, 0.4])


def test_presence_does_not_depend_on_the_method():
    for seed in range(30):
        tracks = random_tracks(seed)
        asked = np.random.default_rng(seed).uniform(-0.5, 2, 50)
        for gap in (0.0, 0.2, 0.25, 0.5, 5.0):
            linear, nearest = boxes_at(tracks, asked, "linear", gap), boxes_at(tracks, asked, "nearest", gap)
            assert np.array_equal(linear.present, nearest.present)
            for n in range(5):
                times = tracks.seconds[tracks.present[:, n]]
                distance = np.abs(asked[:, None] - times).min(1, initial=np.inf)
                assert np.array_equal(linear.present[:, n], distance <= gap / 2 + 1e-9)


def test_sightings_come_back_unchanged():
    tracks = random_tracks(0)
    for method in ("linear", "nearest"):
        assert same(boxes_at(tracks, tracks.seconds, method, max_gap_seconds=0), tracks)
    with pytest.raises(ValueError, match="method is 'cubic'"):
        boxes_at(tracks, [0.0], "cubic")  # type: ignore[arg-type]


def test_crop_by_hand():
    tracks = box_tracks([BoxRow("a", 0, 0.2, 0.2, 0.4, 0.4, 1), BoxRow("b", 0, 0.45, 0.2, 0.95, 0.4, 1)])
    cropped = crop_boxes(tracks, (0.0, 0.0, 0.5, 0.5), min_visible_share=0.1)
    assert cropped.boxes[0].tolist() == [pytest.approx([0.4, 0.4, 0.8, 0.8]), pytest.approx([0.9, 0.4, 1.0, 0.8])]
    assert crop_boxes(tracks, (0.0, 0.0, 0.5, 0.5), 0.11).present.tolist() == [[True, False]]  # 0.1 of b is seen
    assert crop_boxes(tracks, (0.0, 0.0, 0.2, 0.2), 0.0).present.tolist() == [[False, False]]  # touching is not seen
    with pytest.raises(ValueError, match="region"):
        crop_boxes(tracks, (0.5, 0.0, 0.5, 1.0))


def test_moves_undo_and_keep_absent_boxes_empty():
    for seed in range(10):
        tracks = random_tracks(seed)
        twice = flip_boxes(flip_boxes(tracks))
        assert np.allclose(twice.boxes, tracks.boxes, atol=1e-6) and np.array_equal(twice.present, tracks.present)
        assert same(crop_boxes(tracks, (0, 0, 1, 1), 1.0), tracks)
        for moved in (flip_boxes(tracks), crop_boxes(tracks, (0.2, 0.1, 0.7, 0.9))):
            assert not moved.boxes[~moved.present].any()
            corners = moved.boxes[moved.present]
            assert corners.min() >= 0 and corners.max() <= 1 and (corners[:, 2:] > corners[:, :2]).all()


def test_limit_by_hand():
    boxes = np.zeros((3, 4, 4), np.float32)
    boxes[..., 2:] = np.array([0.1, 0.2, 0.3, 0.4], np.float32)[:, None]
    present = np.array([[1, 1, 0, 1], [1, 1, 0, 0], [0, 1, 1, 1]], bool)
    tracks = BoxTracks(
        boxes * present[..., None], present, np.arange(3.0), np.array([1, 2, 2, 2]), ("a", "b", "c", "d")
    )
    kept = limit_instances(tracks, 2)  # b: 3 times; a and d: 2 times, d is larger
    assert kept.track_ids == ("b", "d") and kept.categories.tolist() == [2, 2]
    assert limit_instances(tracks, 2, "order").track_ids == ("a", "b")
    padded = limit_instances(tracks, 6)
    assert padded.track_ids == ("a", "b", "c", "d", "", "")
    assert padded.categories.tolist() == [1, 2, 2, 2, 0, 0] and not padded.present[:, 4:].any()
    assert padded.boxes.shape == (3, 6, 4) and padded.boxes.dtype == np.float32
    nobody = BoxTracks(boxes * 0, present & False, np.arange(3.0), np.array([1, 2, 2, 2]))
    assert limit_instances(nobody, 2).categories.tolist() == [0, 0]
    assert limit_instances(box_tracks([]), 3).boxes.shape == (0, 3, 4)


def test_array_forms_by_hand_and_back():
    boxes = np.array([[0.1, 0.2, 0.5, 0.8]], np.float32)
    assert to_pixels(boxes, 200, 100).tolist() == [pytest.approx([20, 20, 100, 80])]
    assert xyxy_to_cxcywh(boxes).tolist() == [pytest.approx([0.3, 0.5, 0.4, 0.6])]
    assert from_pixels(np.array([20, 20, 100, 80]), 200, 100) == pytest.approx(boxes[0])
    many = random_tracks(3).boxes
    assert np.allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(many)), many, atol=1e-6)
    assert np.allclose(from_pixels(to_pixels(many, 340, 256), 340, 256), many, atol=1e-6)


def test_iou_by_hand_and_against_torchvision():
    a = np.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]], np.float32)
    b = np.array([[0.25, 0.0, 0.75, 0.5], [0.6, 0.6, 0.7, 0.7], [0.0, 0.0, 0.5, 0.5]], np.float32)
    assert iou(a, b).tolist() == [pytest.approx([1 / 3, 0.0, 1.0]), [0.0, 0.0, 0.0]]
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    first, second = random_tracks(1, 1, 7), random_tracks(2, 1, 9)
    theirs = ops.box_iou(torch.from_numpy(first.boxes[0]), torch.from_numpy(second.boxes[0])).nan_to_num().numpy()
    assert np.allclose(iou(first.boxes[0], second.boxes[0]), theirs, atol=1e-6)


def test_box_file_by_hand(tmp_path: Path):
    path = tmp_path / "boxes.csv"
    path.write_text(
        "video,seconds,x1,y1,x2,y2,track,category,score\n"
        "k/a.mp4,0.5,0.1,0.2,0.3,0.6,left,1,0.98\n"
        "b.mp4,0,0,0,1,1,cup,2,\n"
        "k/a.mp4,0.25,0.1,0.2,0.3,0.6,left,1,0.40\n"
    )
    found = read_box_file(path)
    assert list(found) == ["k/a.mp4", "b.mp4"]
    assert found["k/a.mp4"].seconds.tolist() == [0.25, 0.5] and found["b.mp4"].categories.tolist() == [2]
    sure = read_box_file(path, min_score=0.5)
    assert sure["k/a.mp4"].seconds.tolist() == [0.5] and len(sure["b.mp4"].seconds) == 1
    assert read_box_file(path, min_score=0.99)["k/a.mp4"].boxes.shape == (0, 0, 4)


def test_a_folder_of_box_files(tmp_path: Path):
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "a.mp4.csv").write_text("x1,y1,x2,y2,seconds,track,category\n0.1,0.2,0.3,0.6,0.5,left,1\n")
    (tmp_path / "empty.avi.csv").write_text("seconds,x1,y1,x2,y2,track,category\n")
    found = read_box_file(tmp_path)
    assert sorted(found) == ["empty.avi", "k/a.mp4"]
    assert found["k/a.mp4"].boxes[0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.6])
    assert found["empty.avi"].boxes.shape == (0, 0, 4)


def test_written_boxes_are_read_back(tmp_path: Path):
    tracks = {"a, b.mp4": random_tracks(1), "ü.mp4": random_tracks(2)}
    write_box_file(tmp_path / "boxes.csv", tracks)
    found = read_box_file(tmp_path / "boxes.csv")
    assert list(found) == list(tracks) and all(same(found[key], tracks[key]) for key in tracks)


HEADER = "video,seconds,x1,y1,x2,y2,track,category,score\n"
GOOD = "a.mp4,0.5,0.1,0.2,0.3,0.6,left,1,\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"boxes.csv:1: no column video, seconds"),
        ("video,seconds,x1\n", r"boxes.csv:1: no column y1, x2, y2, track, category; the header must be video,seconds"),
        ("label," + HEADER + "x," + GOOD, r"boxes.csv:1: label is not of this format"),
        (HEADER + GOOD + "a.mp4,0.5\n", r"boxes.csv:3: 2 cells where the header has 9"),
        (HEADER + GOOD.replace("0.2", "wide"), r"boxes.csv:2: y1 is 'wide'; it must be a number"),
        (HEADER + GOOD.replace("0.6", "60"), r"boxes.csv:2: the box .* is in pixels; divide"),
        (HEADER + GOOD.replace("0.6", "0.1"), r"boxes.csv:2: the box .* must have x1 < x2 and y1 < y2"),
        (HEADER + GOOD.replace("1,\n", "hand,\n"), r"boxes.csv:2: category is 'hand'"),
        (HEADER + GOOD.replace("1,\n", "0,\n"), r"boxes.csv:2: the category is 0"),
        (HEADER + GOOD.replace(",\n", ",80\n"), r"boxes.csv:2: score is 80.0"),
        (HEADER + GOOD.replace("left", ""), r"boxes.csv:2: the track is empty"),
        (HEADER + GOOD.replace("a.mp4", ""), r"boxes.csv:2: the video is empty"),
        (HEADER + GOOD + "\n" + GOOD, r"boxes.csv:4: track 'left' has a box at 0.5 s in line 2 already"),
        (
            HEADER + GOOD + GOOD.replace("0.5,", "0.6,").replace("1,\n", "2,\n"),
            r"boxes.csv:3: .* category 2 here and 1 in",
        ),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_box_file(path)


def test_an_empty_folder_and_a_missing_file_are_said(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no .csv"):
        read_box_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_box_file(tmp_path / "none.csv")
