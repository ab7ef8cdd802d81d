"""Public folders of flow pictures as stream "flow": which field is shown when, with what codes, and what is refused."""

import json
import pickle
import tarfile
from dataclasses import replace

import cv2
import numpy as np
import pytest

from actionfuse.pipeline import Anticipation, Sampling, SegmentDataset, StreamSpec, VideoError
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.datasets.contract import Dataset
from actionfuse.pipeline.datasets.epic_kitchens import PATHS, flow_stride, frame_rate, frame_rates_of
from actionfuse.pipeline.datasets.layout import choose_paths
from actionfuse.pipeline.decoders.flow_folder import FlowFolderReader, open_flow
from actionfuse.pipeline.flow import dequantise, quantise

HEIGHT, WIDTH = 24, 40
RGB = StreamSpec(frames=5, resize_side=24, crop=24)
FLOW = StreamSpec(stream="flow", frames=5, flow_stack=2, resize_side=24, crop=24)


def write_grey(path, code, shape=(HEIGHT, WIDTH)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(shape, code, np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])


def u_code(number):
    return number % 200 + 20


def v_code(number):
    return 250 - number % 200


def write_pairs(folder, count, names=("u/frame_{:010d}.jpg", "v/frame_{:010d}.jpg"), first=1):
    for number in range(first, first + count):
        for name, code in zip(names, (u_code(number), v_code(number)), strict=True):
            write_grey(folder / name.format(number), code)
    return folder


def pack(folder, path, prefix=""):
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=prefix or ".")
    return path


def fields(reader, numbers, fps=30.0):
    """Codes (u, v) of the fields on screen at the times of these numbers, which count from 1."""
    found = reader.frames_at([(number - 1) / fps for number in numbers]).data
    assert found.shape[1:] == (HEIGHT, 2 * WIDTH, 3)
    return [(int(np.median(f[:, :WIDTH])), int(np.median(f[:, WIDTH:]))) for f in found]


EPIC = ("u/frame_{:010d}.jpg", "v/frame_{:010d}.jpg")
TSN = ("flow_x_{:05d}.jpg", "flow_y_{:05d}.jpg")


@pytest.mark.parametrize("names", [EPIC, TSN, ("x_{:04d}.jpg", "y_{:04d}.jpg"), ("u/{:010d}.png", "v/{:010d}.png")])
@pytest.mark.parametrize("kind", ["folder", "tar", "tar of a folder"])
def test_pairs_are_read_by_number(tmp_path, names, kind):
    folder = write_pairs(tmp_path / "P01_01", 12, names)
    path = folder if kind == "folder" else pack(folder, tmp_path / "P01_01.tar", "P01_01" * (kind != "tar"))
    with open_flow(path, frame_fps=30.0) as reader:
        assert (reader.info.num_frames, reader.info.width, reader.info.average_fps) == (
            12,
            2 * WIDTH,
            pytest.approx(30),
        )
        assert fields(reader, [1, 7, 12, 2]) == [(u_code(n), v_code(n)) for n in (1, 7, 12, 2)]
        assert fields(pickle.loads(pickle.dumps(reader)), [5]) == [(u_code(5), v_code(5))]
        (half,) = zip(*reader.all_frames((12,), start_seconds=9 / 30), strict=True)
        assert half[0].data.shape == (3, 12, 2 * WIDTH // 2, 3) and not reader.damage


def test_own_jpgs_keep_their_clock_and_bound(tmp_path):
    folder = write_pairs(tmp_path / "own", 3, ("u/{:010d}.jpg", "v/{:010d}.jpg"))
    told = {"flow": {"bound_pixels": 8.0}, "pts_seconds": [0.5, 0.6, 0.9]}
    (folder / "flow.json").write_text(json.dumps(told))
    for path in (folder, pack(folder, tmp_path / "own.tar")):
        with FlowFolderReader(path) as reader:
            assert reader.bound_pixels == 8.0
            shown = reader.frames_at([0.5, 0.89, 0.9])
            np.testing.assert_allclose(shown.pts_seconds, [0.5, 0.6, 0.9])
    (folder / "flow.json").write_text("{}")
    with pytest.raises(VideoError, match=r"flow.json cannot be read"):
        FlowFolderReader(folder)


def test_gaps_and_broken_pictures(tmp_path):
    folder = write_pairs(tmp_path / "broken", 6)
    (folder / "u/frame_0000000003.jpg").unlink()
    (folder / "v/frame_0000000005.jpg").write_bytes(b"")
    with open_flow(folder) as reader:
        # number 3 is missing: 2 stays on screen; of 5 only u can be read, so that 4 stands in as a whole
        assert fields(reader, range(1, 7)) == [(u_code(n), v_code(n)) for n in (1, 2, 2, 4, 4, 6)]
        assert "field 3 and 0 more" in reader.damage[0] and "frame_0000000005.jpg" in reader.damage[1]


def test_what_is_no_flow_is_refused(tmp_path):
    write_grey(tmp_path / "frames/img_00001.jpg", 3)
    with pytest.raises(VideoError, match=r"0 pairs .* expected one, u/frame_.*Found: img_\*"):
        open_flow(tmp_path / "frames")
    write_pairs(tmp_path / "two", 2)
    write_pairs(tmp_path / "two", 2, TSN)
    with pytest.raises(VideoError, match="2 pairs"):
        open_flow(tmp_path / "two")
    write_grey(tmp_path / "apart/u/1.jpg", 3)
    write_grey(tmp_path / "apart/v/2.jpg", 3)
    with pytest.raises(VideoError, match="no number has both"):
        open_flow(tmp_path / "apart")
    with pytest.raises(ValueError, match="frame_fps is 0"):
        open_flow(tmp_path / "two", frame_fps=0)


# --- as streams of a dataset


def epic(root, video, start, stop):
    rate = frame_rate(video)
    extra = {
        "participant": video[:3],
        "frames_per_second": f"{rate:g}",
        "flow_frames_per_second": f"{rate / flow_stride(video):g}",
    }
    segments = (Segment(video, start, stop, "s", {"verb": 1}, extra),)
    paths = choose_paths(root, PATHS, segments)
    return Dataset(name="epic", split="all", segments=segments, classes={}, root=root, paths=paths,
                   frame_rates=frame_rates_of(paths))  # fmt: skip


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """Two seconds of a video of 2018 (60 frames, 30 fields a second) and of one of 2020 (50 of both)."""
    root = tmp_path_factory.mktemp("epic")
    for video, frames, flows in (("P01_01", 120, 60), ("P01_101", 100, 100)):
        for number in range(1, frames + 1):
            write_grey(root / f"P01/rgb_frames/{video}/frame_{number:010d}.jpg", number)
        write_pairs(root / f"P01/flow_frames/{video}", flows)
    return root


def shown(sample):
    """Numbers of the rgb frames, and (T, stack, 2) numbers of the fields by u and by v."""
    assert not sample.error and not sample.damage
    rgb = np.median(sample.streams["rgb"].numpy(), axis=(1, 2, 3)).astype(int)
    flow = np.median(sample.streams["flow"].numpy(), axis=(1, 2)).astype(int).reshape(len(rgb), -1, 2)
    return rgb, np.stack([flow[..., 0] - 20, 250 - flow[..., 1]], -1)


@pytest.mark.parametrize("video", ["P01_01", "P01_101"])
@pytest.mark.parametrize("training", [False, True])
def test_rgb_and_flow_of_one_moment(kitchen, video, training):
    dataset = epic(kitchen, video, 0.4, 1.6)
    assert set(dataset.paths) == {"rgb", "flow"}
    samples = SegmentDataset(dataset, [RGB, FLOW], training=training)
    sample = samples[0]
    rgb, flow = shown(sample)
    first = flow[:, 0, 0]
    assert sample.streams["flow"].shape == (5, 24, 24, 4)
    step = flow[:, 1, 0] - first
    # where a field would end after the segment, the one before it is repeated
    assert (flow[..., 0] == flow[..., 1]).all() and (step[:-1] == 1).all() and step[-1] in (0, 1)
    # the authors' rule from frames to fields
    behind = (rgb - 1) // flow_stride(video) + 1 - first
    assert not behind[:-1].any() and behind[-1] in (0, 1 if training else 0)


@pytest.mark.parametrize("video", ["P01_01", "P01_101"])
@pytest.mark.parametrize("mode", ["tsn", "rulstm"])
def test_no_field_ends_after_what_may_be_seen(kitchen, video, mode):
    rate = frame_rate(video) / flow_stride(video)
    for start in (1.5, 1.51, 1.527, 1.6):
        dataset = epic(kitchen, video, start, start + 0.3)
        task = Anticipation(tau_a=0.5, tau_o=1.0)
        streams = [RGB, replace(FLOW, flow_mode=mode, flow_stack=5)]
        sample = SegmentDataset(dataset, streams, task=task, sampling=Sampling(rule="last", stride_frames=4))[0]
        rgb, flow = shown(sample)
        assert flow.max() / rate < start - 0.5 + 1e-6  # field n ends with frame n, which counts from 0
        assert flow.max() / rate > start - 0.5 - 2 / rate
        assert (rgb - 1).max() / frame_rate(video) < start - 0.5


def test_frames_and_flow_in_one_folder(tmp_path):
    folder = write_pairs(tmp_path / "clip", 39, TSN)
    for number in range(1, 41):
        write_grey(folder / f"img_{number:05d}.jpg", number)
    dataset = Dataset(name="own", split="all", segments=(Segment("clip", 0.2, 1.4, "s", {}),), classes={},
                      root=tmp_path, paths={"rgb": "{video}", "flow": "{video}"},
                      frame_rates={"rgb": 25.0, "flow": 25.0})  # fmt: skip
    for streams in ([RGB, FLOW], [FLOW, RGB]):
        rgb, flow = shown(SegmentDataset(dataset, streams)[0])
        assert (flow[:, 0, 0] == rgb).all()  # field n goes from frame n to frame n + 1


def test_codes_are_grey_levels():
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(dequantise(codes)[[0, 255]], [-20, 20])
    np.testing.assert_array_equal(quantise(dequantise(codes)), codes)


@pytest.mark.parametrize(
    "lies",
    ["P01/flow_frames/P01_01.tar", "EPIC-KITCHENS/P01/flow_frames/P01_01.tar",
     "frames_rgb_flow/flow/train/P01/P01_01.tar", "frames_rgb_flow/flow/test/P01/P01_01"],
)  # fmt: skip
def test_places_of_official_flow(tmp_path, lies):
    folder = write_pairs(tmp_path / (lies if not lies.endswith(".tar") else "made"), 4)
    if lies.endswith(".tar"):
        (tmp_path / lies).parent.mkdir(parents=True)
        pack(folder, tmp_path / lies)
    dataset = epic(tmp_path, "P01_01", 0.0, 0.1)
    assert dataset.path(dataset.segments[0], "flow") == tmp_path / lies
    assert dataset.frame_fps(dataset.segments[0], "flow") == 30
    sample = SegmentDataset(dataset, [replace(FLOW, frames=2, flow_stack=1)])[0]
    assert not sample.error
    assert sample.streams["flow"][:, 0, 0].tolist() == [[u_code(n), v_code(n)] for n in (1, 2)]  # 3 ends after 0.1 s
