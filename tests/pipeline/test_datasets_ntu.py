"""NTU RGB+D 60 and 120 and Northwestern-UCLA: names, splits, streams."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actionfuse.pipeline import Sampling, SegmentDataset, StreamSpec, VideoError, open_video
from actionfuse.pipeline.datasets import LayoutError, load_dataset, ntu_rgbd
from actionfuse.pipeline.datasets.check import check_dataset

# Split by hand, with the protocols of the papers: one subject, camera and setup of each kind.
SAMPLES = {
    "S001C001P001R001A001": {"cross_subject": True, "cross_view": False, "cross_setup": False},
    "S002C002P003R002A060": {"cross_subject": False, "cross_view": True, "cross_setup": True},
    "S017C003P040R001A013": {"cross_subject": False, "cross_view": True, "cross_setup": False},
    "S017C003P038R001A013": {"cross_subject": True, "cross_view": True, "cross_setup": False},
    "S018C001P041R001A061": {"cross_subject": False, "cross_setup": True},
    "S031C002P103R002A120": {"cross_subject": True, "cross_setup": False},
    "S032C003P106R001A119": {"cross_subject": False, "cross_setup": True},
}
OF_60 = [name for name in SAMPLES if "cross_view" in SAMPLES[name]]


@pytest.fixture
def ntu(tmp_path):
    for name in SAMPLES:
        for path in (f"nturgb+d_rgb/{name}_rgb.avi", f"nturgb+d_ir/{name}_ir.avi"):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).touch()
        (tmp_path / "nturgb+d_depth_masked" / name).mkdir(parents=True)
    (tmp_path / "nturgb+d_rgb/readme.txt").touch()
    return tmp_path


@pytest.mark.parametrize("split", ["cross_subject", "cross_view", "cross_setup"])
@pytest.mark.parametrize("size", [60, 120])
def test_splits(ntu, size, split):
    names = OF_60 if size == 60 else list(SAMPLES)
    if (size, split) in ((60, "cross_setup"), (120, "cross_view")):
        with pytest.raises(ValueError, match="has no split"):
            load_dataset(f"ntu_rgbd_{size}", ntu, f"{split}_train")
        return
    for part, train in (("train", True), ("test", False)):
        dataset = load_dataset(f"ntu_rgbd_{size}", ntu, f"{split}_{part}")
        expected = sorted(name for name in names if SAMPLES[name][split] == train)
        assert [segment.id for segment in dataset.segments] == expected
        assert dataset.notes == () and len(dataset.classes["action"]) == size
        assert all(s.labels["action"] == int(s.id[-3:]) - 1 for s in dataset.segments)


def test_sizes_of_the_protocols():
    assert len(ntu_rgbd.SUBJECTS_60) == 20 and max(ntu_rgbd.SUBJECTS_60) <= 40
    assert len(ntu_rgbd.SUBJECTS_120) == 53 and max(ntu_rgbd.SUBJECTS_120) == 103
    assert {s for s in ntu_rgbd.SUBJECTS_120 if s <= 40} == ntu_rgbd.SUBJECTS_60
    assert len(ntu_rgbd.ACTIONS) == len(set(ntu_rgbd.ACTIONS)) == 120 and all(ntu_rgbd.ACTIONS)
    # The first and last of both halves, and those in the facts' order: 43 falling, 60 walking apart.
    assert ntu_rgbd.ACTIONS[0] == "drink water" and ntu_rgbd.ACTIONS[42] == "falling down"
    assert ntu_rgbd.ACTIONS[59] == "walking apart" and ntu_rgbd.ACTIONS[60] == "put on headphone"
    assert ntu_rgbd.ACTIONS[119] == "rock-paper-scissors"


def test_segments_and_streams(ntu):
    dataset = load_dataset("ntu_rgbd_60", ntu, "cross_view_test")
    (segment,) = dataset.segments
    assert (segment.video, segment.start_seconds, segment.stop_seconds) == ("S001C001P001R001A001", 0.0, math.inf)
    assert segment.extra == {"participant": "P001", "setup": "001", "camera": "001", "repetition": "001"}
    found = {stream: dataset.path(segment, stream).relative_to(ntu).as_posix() for stream in dataset.paths}
    assert found == {
        "rgb": "nturgb+d_rgb/S001C001P001R001A001_rgb.avi",
        "depth": "nturgb+d_depth_masked/S001C001P001R001A001",
        "ir": "nturgb+d_ir/S001C001P001R001A001_ir.avi",
    }
    assert [dataset.frame_fps(segment, stream) for stream in ("rgb", "depth", "ir")] == [None, 30, None]
    (split,) = check_dataset("ntu_rgbd_60", ntu, ["cross_view_test"])
    assert split.is_whole and set(split.streams) == {"rgb", "depth", "ir"}


def test_samples_that_not_all_streams_have(ntu):
    (ntu / "nturgb+d_ir/S001C001P001R001A001_ir.avi").unlink()
    dataset = load_dataset("ntu_rgbd_120", ntu, "cross_setup_test")
    assert len(dataset.segments) == 4 and dataset.notes[0].startswith("1 samples are not in all of rgb, depth, ir;")
    (split,) = check_dataset("ntu_rgbd_120", ntu, ["cross_setup_test"])
    assert split.streams["ir"].missing == ["nturgb+d_ir/S001C001P001R001A001_ir.avi"] and not split.is_whole
    dataset = load_dataset("ntu_rgbd_120", ntu, "cross_setup_test", samples="complete")
    assert len(dataset.segments) == 3 and dataset.notes[0].startswith("1 samples that not all of rgb, depth, ir have")


MISSING = """302 of the captured samples in the "NTU RGB+D" dataset have missing or incomplete skeleton data.
Please ignore S001 files.

S002C002P003R002A060
S099
S017C003P040R001A013
"""


def test_samples_with_missing_skeletons(ntu):
    with pytest.raises(LayoutError, match="no NTU_RGBD_samples_with_missing_skeletons.txt.*shahroudy/NTURGB-D"):
        load_dataset("ntu_rgbd_60", ntu, "cross_subject_test", missing_skeletons="drop")
    path = ntu / "NTU_RGBD_samples_with_missing_skeletons.txt"
    path.write_text(MISSING)
    assert ntu_rgbd.read_missing(path) == {"S002C002P003R002A060", "S017C003P040R001A013"}
    dataset = load_dataset("ntu_rgbd_60", ntu, "cross_subject_test", missing_skeletons="drop")
    assert dataset.segments == () and dataset.files == (path,)
    assert dataset.notes == ("2 samples without whole skeletons are left out.",)
    assert len(load_dataset("ntu_rgbd_60", ntu, "cross_subject_test").segments) == 2
    with pytest.raises(LayoutError, match="no NTU_RGBD120_samples"):
        load_dataset("ntu_rgbd_120", ntu, "cross_subject_test", missing_skeletons="drop")
    path.write_text("nothing")
    with pytest.raises(ValueError, match="holds no sample"):
        load_dataset("ntu_rgbd_60", ntu, "cross_subject_test", missing_skeletons="drop")


@pytest.mark.parametrize(
    ("places", "pattern", "rate"),
    [
        (["rgb/NAME_rgb.mp4"], "rgb/{video}_rgb.mp4", None),
        (["rgb/NAME.avi"], "rgb/{video}.avi", None),
        (["nturgb+d_rgb/NAME_rgb/output0001.png"], "nturgb+d_rgb/{video}_rgb", 30),
        (["rgb/NAME/1.jpg"], "rgb/{video}", 30),
    ],
)
def test_other_places(tmp_path, places, pattern, rate):
    for place in places:
        path = tmp_path / place.replace("NAME", OF_60[0])
        path.parent.mkdir(parents=True)
        path.touch()
    dataset = load_dataset("ntu_rgbd_60", tmp_path, "cross_subject_train")
    assert dataset.paths == {"rgb": pattern} and dataset.frame_fps(dataset.segments[0]) == rate
    assert dataset.path(dataset.segments[0]).exists()


def test_a_folder_for_each_setup(tmp_path):
    for name in SAMPLES:
        path = tmp_path / f"raw/nturgb+d_rgb_s{name[1:4]}/{name}_rgb.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(
        LayoutError, match=r"holds no nturgb\+d_rgb/S001C001P001R001A001_rgb.avi or .*Found there: raw/"
    ):
        load_dataset("ntu_rgbd_120", tmp_path, "cross_subject_train")
    paths = {"rgb": "raw/nturgb+d_rgb_s{setup}/{video}*.avi"}
    dataset = load_dataset("ntu_rgbd_120", tmp_path, "cross_subject_train", paths=paths)
    assert len(dataset.segments) == 3 and all(dataset.path(s).exists() for s in dataset.segments)
    with pytest.raises(ValueError, match="must have {video}"):
        load_dataset("ntu_rgbd_120", tmp_path, "cross_subject_train", paths={"rgb": "all.avi"})


def test_names_that_cannot_be(ntu):
    (ntu / "nturgb+d_rgb/S033C001P001R001A001_rgb.avi").touch()
    with pytest.raises(ValueError, match="S033C001P001R001A001_rgb.avi has the name of no sample"):
        load_dataset("ntu_rgbd_60", ntu, "cross_subject_train")


@pytest.mark.skipif("ACTIONFUSE_TEST_DATA" not in os.environ, reason="ACTIONFUSE_TEST_DATA is not set")
def test_the_real_list_of_missing_skeletons():
    path = Path(os.environ["ACTIONFUSE_TEST_DATA"], "ntu/NTU_RGBD_samples_with_missing_skeletons.txt")
    if not path.exists():
        pytest.skip("there is no ntu")
    names = ntu_rgbd.read_missing(path)
    assert len(names) == 302 and "S001C002P005R002A008" in names and max(names) < "S018"


# Northwestern-UCLA


def write_episode(folder, frames=4):
    folder.mkdir(parents=True)
    for n in range(frames):
        # The second number ascends too, and differs from stream to stream.
        for kind, value, tick in (("rgb.jpg", 40 * n, 0), ("depth.png", 7, 32), ("depth_vis.jpg", 200, 32)):
            picture = np.full((24, 32, 3), value, np.uint8)
            Image.fromarray(picture).save(folder / f"frame_{n + 9}_tc_{90467000 - 33 * n + tick}_{kind}")
        (folder / f"frame_{n + 9}_tc_{90467000 + 33 * n}_skeletons.txt").touch()


@pytest.fixture
def ucla(tmp_path):
    for episode in ("view_1/a01_s01_e00", "view_2/a12_s10_e03", "view_3/a08_s02_e01", "view_3/a11_s02_e01"):
        write_episode(tmp_path / "multiview_action" / episode)
    (tmp_path / "multiview_action/view_1/notes").mkdir()
    return tmp_path


def test_views(ucla):
    train, test = (load_dataset("nw_ucla", ucla, split) for split in ("train", "test"))
    assert [(s.id, s.labels["action"]) for s in train.segments] == [
        ("view_1/a01_s01_e00", 0),
        ("view_2/a12_s10_e03", 9),
    ]
    assert [s.labels["action"] for s in test.segments] == [6, 8]
    assert [test.classes["action"][n] for n in (6, 8)] == ["donning", "throw"] and len(test.classes["action"]) == 10
    assert train.segments[1].extra == {"participant": "s10", "view": "2", "episode": "03"}
    other = load_dataset("nw_ucla", ucla, "test", test_view=1)
    assert [s.id for s in other.segments] == ["view_1/a01_s01_e00"]
    other = load_dataset("nw_ucla", ucla, "train", test_view=1)
    assert {s.extra["view"] for s in other.segments} == {"2", "3"}
    with pytest.raises(ValueError, match="test_view of dataset 'nw_ucla' is 4; it must be one of 1, 2, 3"):
        load_dataset("nw_ucla", ucla, "test", test_view=4)


@pytest.mark.parametrize("above", ["multiview_action", "."])
def test_frames_of_ucla_are_read_where_they_lie(ucla, above):
    if above == ".":
        for view in (1, 2, 3):
            (ucla / f"multiview_action/view_{view}").rename(ucla / f"view_{view}")
        (ucla / "multiview_action").rmdir()
    assert check_dataset("nw_ucla", ucla, ["train"], decode=2)[0].is_whole
    dataset = load_dataset("nw_ucla", ucla, "train")
    assert dataset.notes == () and list(dataset.paths) == ["rgb", "depth", "depth_vis"]
    segment = dataset.segments[0]
    with open_video(dataset.path(segment), frame_fps=dataset.frame_fps(segment) or 0) as reader:
        frames = reader.frames_at([0, 1 / 30, 2 / 30, 3 / 30])
        assert reader.info.num_frames == 4
    np.testing.assert_allclose(frames.data.mean((1, 2, 3)), [0, 40, 80, 120], atol=3)
    with open_video(dataset.path(segment, "depth_vis")) as reader:
        np.testing.assert_allclose(reader.frames_at([0.0]).data, 200, atol=3)
    spec = StreamSpec(frames=2, resize_side=24, crop=24)
    with_depth = StreamSpec(stream="depth", frames=2, resize_side=24, crop=24)
    samples = SegmentDataset(dataset, [spec, with_depth], sampling=Sampling(rule="segments"))
    sample = samples[0]
    assert not sample.error and sample.streams["depth"].shape == (2, 24, 24, 1)
    assert (sample.streams["depth"] == 7).all()
    np.testing.assert_allclose(sample.streams["rgb"].float().mean((1, 2, 3)), [40, 120], atol=3)


def test_missing_and_repeated_frames_of_ucla(ucla):
    episode = ucla / "multiview_action/view_1/a01_s01_e00"
    for file in episode.glob("*_depth_vis.jpg"):
        file.unlink()
    (split,) = check_dataset("nw_ucla", ucla, ["train"])
    assert split.streams["depth_vis"].missing == ["multiview_action/view_1/a01_s01_e00/frame_%d_tc_%d_depth_vis.jpg"]
    assert not split.streams["rgb"].missing
    (episode / "frame_9_tc_1_rgb.jpg").touch()
    with pytest.raises(VideoError, match="frame_9_tc_1_rgb.jpg and frame_9_tc_90467000_rgb.jpg have one number"):
        open_video(episode / "frame_%d_tc_%d_rgb.jpg")


def test_samples_count_folders_of_frames_as_the_dataset_says(ucla):
    dataset = load_dataset("nw_ucla", ucla, "train")
    specs = [StreamSpec(frames=4, resize_side=24, crop=24)]
    for rates, given, seconds in (({"rgb": 2.0}, None, 2.0), ({}, None, 4 / 30), ({"rgb": 2.0}, 8.0, 0.5)):
        samples = SegmentDataset(replace(dataset, frame_rates=rates), specs, frame_fps=given, open_readers=1)
        assert samples[0].stop_seconds == pytest.approx(seconds)


def test_wrong_folders_of_ucla(ucla, tmp_path_factory):
    (ucla / "multiview_action/view_1/a07_s01_e00").mkdir()
    with pytest.raises(ValueError, match="a07_s01_e00 has the action 7; there are 1, 2, 3"):
        load_dataset("nw_ucla", ucla, "train")
    empty = tmp_path_factory.mktemp("empty")
    (empty / "view_3").mkdir()
    with pytest.raises(LayoutError, match="holds no view_1/a01_s01_e00"):
        load_dataset("nw_ucla", empty, "train")
    (empty / "view_3").rename(empty / "camera_3")
    with pytest.raises(LayoutError, match="holds no view_1/.* or view_3/.*multiview_action/. Found there: camera_3/"):
        load_dataset("nw_ucla", empty, "train")
