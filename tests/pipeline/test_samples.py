"""SegmentDataset: what a sample holds, that it shows nothing it may not, and that it is the same whoever reads it."""

import math
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from videos import make, read_codes, write_counting_video

from actionfuse.pipeline import (
    Anticipation,
    Augmentation,
    BoxTracks,
    EarlyRecognition,
    EpochSampler,
    FeatureSpec,
    Sampling,
    SegmentDataset,
    StreamSpec,
    collate,
    make_loader,
    open_video,
)
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.audio import AudioReader
from actionfuse.pipeline.boxes import boxes_at
from actionfuse.pipeline.clip_reader import plan_flow
from actionfuse.pipeline.datasets.contract import Dataset
from actionfuse.pipeline.decoders import pyav
from actionfuse.pipeline.decoders._container import probe_layout
from actionfuse.pipeline.decoders.frame_files import FolderOfFrames
from actionfuse.pipeline.decoders.pyav import PyAVReader
from actionfuse.pipeline.features import FeatureStore
from actionfuse.pipeline.protocols import RULES, rulstm_anticipation
from actionfuse.pipeline.samples import IGNORED

SIDE = 64
SMALL = {"resize_side": SIDE, "crop": SIDE}
RGB = StreamSpec(**SMALL)
FLOW = StreamSpec(stream="flow", frames=3, flow_stack=5, flow_method="dis_ultrafast", **SMALL)
FPS = 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a.mp4, b.mp4: 8 seconds, frame i shows i; a.mp4 has sound."""
    folder = tmp_path_factory.mktemp("videos")
    write_counting_video(folder / "a.mp4", 8 * FPS, (SIDE, SIDE), FPS, audio=True)
    write_counting_video(folder / "b.mp4", 8 * FPS, (SIDE, SIDE), FPS, bframes=2, gop=30)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    return folder


def segment(start, stop, video="a.mp4", **labels):
    return Segment(video, start, stop, f"{video}#{start}", labels)


def codes(sample, view=None):
    assert not sample.error
    pictures = sample.streams["rgb"]
    return read_codes((pictures if view is None else pictures[view]).numpy())


# --- what it shows


@pytest.mark.parametrize("video", ["a.mp4", "b.mp4"])
def test_the_middle_of_each_part(folder, video):
    dataset = SegmentDataset([segment(2.0, 6.0, video, verb=3)], [RGB], root=folder)
    sample = dataset[0]
    assert sample.streams["rgb"].shape == (8, SIDE, SIDE, 3) and sample.streams["rgb"].dtype == torch.uint8
    assert codes(sample) == [int((2 + 0.25 + 0.5 * k) * FPS) for k in range(8)]
    np.testing.assert_allclose(sample.seconds["rgb"], [k / FPS for k in codes(sample)])
    assert sample.masks["rgb"].all() and sample.labels["verb"] == 3
    assert (sample.start_seconds, sample.stop_seconds, sample.id, sample.index) == (2.0, 6.0, f"{video}#2.0", 0)


def test_strided_clips_are_of_the_grid(folder):
    def of(**options):
        sampling = Sampling(rule="strided", **{k: v for k, v in options.items() if k == "stride_frames"})
        spec = replace(RGB, **{k: v for k, v in options.items() if k != "stride_frames"})
        return codes(SegmentDataset([segment(2.0, 6.0)], [spec], root=folder, sampling=sampling)[0])

    assert of() == list(range(50 + 46, 50 + 46 + 8))
    assert of(stride_frames=4) == list(range(50 + 35, 50 + 35 + 32, 4))
    assert of(fps=5.0) == list(range(50 + 30, 50 + 30 + 40, 5))  # 20 entries, those from the 7th on


def test_a_segment_without_end_goes_to_the_end_of_the_video(folder):
    sample = SegmentDataset([segment(7.0, math.inf)], [RGB], root=folder)[0]
    assert sample.stop_seconds == 8.0 and max(codes(sample)) == int((8 - 1 / 16) * FPS)
    late = SegmentDataset([segment(9.0, math.inf)], [RGB], root=folder)[0]
    assert "video ends at 8.000 s" in late.error


def test_views(folder):
    sampling = Sampling(rule="slowfast", num_clips=2)
    wide = write_counting_video(folder / "wide.mp4", 60, (128, 64), FPS)
    dataset = SegmentDataset([segment(0.0, 2.0, wide.name)], [RGB], root=folder, sampling=sampling, num_crops=3)
    sample = dataset[0]
    assert dataset.num_views == 6 and sample.streams["rgb"].shape == (6, 8, SIDE, SIDE, 3)
    assert sample.masks["rgb"].shape == sample.seconds["rgb"].shape == (6, 8)
    seconds = sample.seconds["rgb"]
    assert torch.equal(seconds[0], seconds[2]) and not torch.equal(seconds[2], seconds[3])
    whole = SegmentDataset([segment(0.0, 2.0, wide.name)], [RGB], root=folder, sampling=sampling)[0]
    assert torch.equal(whole.streams["rgb"], sample.streams["rgb"][[1, 4]])
    left, right = sample.streams["rgb"][0], sample.streams["rgb"][2]
    assert not torch.equal(left, right)
    assert SegmentDataset([segment(0.0, 2.0)], [RGB], sampling=sampling, training=True).num_views == 1


# --- nothing at or after start - tau_a


@pytest.fixture
def read(monkeypatch):
    """Every time stamp that any decoder gave, and every end of sound that was asked for."""
    found: dict[str, list[float]] = {"frames": [], "sound": []}
    select, listen = PyAVReader.select, AudioReader.read

    def watched(self, seconds, short_sides=(None,), batch=64):
        for frames in select(self, seconds, short_sides, batch):
            found["frames"] += frames[0].pts_seconds.tolist()
            yield frames

    def heard(self, start_seconds, stop_seconds, sample_rate_hz):
        found["sound"].append(stop_seconds)
        return listen(self, start_seconds, stop_seconds, sample_rate_hz)

    monkeypatch.setattr(PyAVReader, "select", watched)
    monkeypatch.setattr(AudioReader, "read", heard)
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_nothing_of_the_future_is_read(folder, read, rule, training):
    """Frame i shows i. Also the frames behind flow, and the sound."""
    task = Anticipation(tau_a=0.4, tau_o=2.0)
    if rule == "rulstm":
        task = Anticipation(tau_a=0.25, tau_o=2.0)
    # starts on frames, between them, a hair after one, and one that leaves three frames to see
    starts = [4.0, 4.4, 4.57, 4.4 + 1e-9, 0.4 + 0.12]
    streams = [RGB, FLOW, replace(FLOW, flow_mode="rulstm"), StreamSpec(stream="audio", frames=2)]
    for spec in streams:
        dataset = SegmentDataset(
            [segment(start, start + 1.0) for start in starts], [spec], root=folder, task=task, training=training,
            sampling=Sampling(rule=rule, stride_frames=2),
        )  # fmt: skip
        for epoch in range(2 if training else 1):
            for index, start in enumerate(starts):
                read["frames"].clear()
                read["sound"].clear()
                sample = dataset[epoch, index]
                assert not sample.error
                horizon = start - task.tau_a
                if spec.stream == "audio":
                    assert read["sound"] and max(read["sound"]) <= horizon + 1e-9
                else:
                    assert read["frames"] and max(read["frames"]) < horizon
                if spec.stream == "rgb":
                    assert max(codes(sample)) / FPS < horizon


@pytest.mark.parametrize("stream", ["depth", "ir"])
@pytest.mark.parametrize("rule", RULES)
def test_nor_of_depth_and_infrared(folder, tmp_path, read, monkeypatch, rule, stream):
    """Of 8 bits: a video, and a folder of pictures."""
    (tmp_path / "frames").mkdir()
    for number in range(2 * FPS):
        Image.fromarray(np.full((SIDE, SIDE), number, np.uint8)).save(tmp_path / "frames" / f"{number:05d}.png")
    files, take = [], FolderOfFrames.read
    monkeypatch.setattr(FolderOfFrames, "read", lambda self, name: files.append(name) or take(self, name))
    task = Anticipation(tau_a=0.25, tau_o=0.7)
    for root, path in ((folder, "a.mp4"), (tmp_path, "frames")):
        for start in (1.2, 1.2 + 1e-9, 1.23):
            made = Dataset(
                name="own", split="all", segments=(segment(start, 1.9, path),), classes={}, root=root,
                paths={stream: "{video}"}, frame_rates={stream: float(FPS)},
            )  # fmt: skip
            read["frames"].clear()
            dataset = SegmentDataset(made, [StreamSpec(stream=stream, frames=3, **SMALL)], task=task,
                                     sampling=Sampling(rule=rule, alpha=0.25))  # fmt: skip
            sample = dataset[0]
            assert not sample.error and sample.streams[stream].dtype == torch.uint8
            files_read = files[1:]  # the first file's header tells the size, before anything is asked for
            shown = read["frames"] if path == "a.mp4" else [int(name[:5]) / FPS for name in files_read]
            assert shown and max(shown) < start - task.tau_a
            files.clear()


@pytest.mark.parametrize("kind", ["ntsc", "vfr", "vfr_gaps", "start_mp4", "start_ts", "bframes"])
def test_nor_of_troublesome_files(tmp_path, kind):
    made = make(kind, tmp_path)
    stamps = np.array(made.seconds)
    rng = np.random.default_rng(0)
    ends = np.concatenate([stamps[5::7], rng.uniform(stamps[4], stamps[-1], 8)])
    for rule in RULES:
        task = Anticipation(tau_a=0.25, tau_o=0.7)
        dataset = SegmentDataset(
            [segment(end + 0.25, end + 1, made.path.name) for end in ends],
            [StreamSpec(resize_side=48, crop=48, frames=5)], root=made.path.parent, task=task,
            sampling=Sampling(rule=rule),
        )  # fmt: skip
        for index, end in enumerate(ends):
            sample = dataset[index]
            assert not sample.error
            assert sample.seconds["rgb"].max() < end
            before = stamps[stamps < end - 0.001]
            if rule == "last" and not kind.startswith("vfr"):  # and it is the very last that has passed, or one before
                assert sample.seconds["rgb"][-1] >= before[-3] - 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_early_recognition_ends_at_its_fraction(folder, read, rule):
    for fraction in (0.125, 0.5):
        for spec in (RGB, FLOW):
            dataset = SegmentDataset([segment(2.0, 6.0)], [spec], root=folder, task=EarlyRecognition(fraction=fraction),
                                     sampling=Sampling(rule=rule, alpha=1.0))  # fmt: skip
            read["frames"].clear()
            if rule == "rulstm":
                dataset[0]  # looks before the action: nothing to see of it here
            else:
                assert dataset[0].stop_seconds == 2 + 4 * fraction
            assert read["frames"] and max(read["frames"]) < 2 + 4 * fraction


def test_what_lies_before_the_video_is_masked(folder):
    dataset = SegmentDataset([segment(1.0, 2.0)], [replace(RGB, frames=14)], root=folder,
                             task=rulstm_anticipation(), sampling=Sampling(rule="rulstm"))  # fmt: skip
    sample = dataset[0]
    frames = np.floor((1.0 - 0.25 * np.arange(14, 0, -1)) * FPS).astype(int) - 1  # the frame that has passed
    assert sample.masks["rgb"].tolist() == [frame >= 0 for frame in frames]
    assert codes(sample) == [max(frame, 0) for frame in frames]
    none = SegmentDataset([segment(0.2, 2.0)], [RGB], root=folder, task=rulstm_anticipation())[0]
    assert none.error.startswith("nothing to observe")


# --- flow, depth, sound


def test_flow_shows_the_motion_between_neighbours(folder):
    def picture(number):
        yy, xx = np.mgrid[:SIDE, :SIDE]
        grey = 127 + 60 * np.sin((xx - 1.5 * number) / 4) + 60 * np.sin(yy / 5)
        return np.repeat(grey[..., None], 3, -1).astype(np.uint8)

    write_counting_video(folder / "moving.mp4", 50, (SIDE, SIDE), FPS, pictures=picture)
    for mode in ("tsn", "rulstm"):
        spec = replace(FLOW, flow_mode=mode, frames=2)
        sample = SegmentDataset([segment(0.4, 1.6, "moving.mp4")], [spec], root=folder)[0]
        flow = sample.streams["flow"].numpy()
        assert flow.shape == (2, SIDE, SIDE, 10) and flow.dtype == np.uint8
        pixels = flow[:, 16:-16, 16:-16].astype(np.float64) * 40 / 255 - 20
        np.testing.assert_allclose(pixels.mean((1, 2))[:, ::2], 1.5, atol=0.3)
        np.testing.assert_allclose(pixels.mean((1, 2))[:, 1::2], 0.0, atol=0.3)
    slower = SegmentDataset([segment(0.4, 1.6, "moving.mp4")], [replace(FLOW, fps=12.5)], root=folder)[0]
    pixels = slower.streams["flow"].numpy()[:, 16:-16, 16:-16, ::2].astype(np.float64) * 40 / 255 - 20
    np.testing.assert_allclose(pixels.mean(), 3.0, atol=0.5)


def test_flow_files_and_computed_flow_agree(folder):
    from actionfuse.pipeline.flow import FlowComputer
    from actionfuse.pipeline.flow_files import create_writer
    from actionfuse.pipeline.video import open_video

    def picture(number):
        yy, xx = np.mgrid[:SIDE, :SIDE]
        return np.repeat((127 + 90 * np.sin((xx - 2 * number) / 5 + yy / 9))[..., None], 3, -1).astype(np.uint8)

    write_counting_video(folder / "wave.mp4", 30, (SIDE, SIDE), FPS, pictures=picture)
    with open_video(folder / "wave.mp4") as reader:
        frames = reader.frames_at(np.arange(30) / FPS)
    fields = FlowComputer("dis_ultrafast").pairs(frames.data)
    writer = create_writer("video", folder / "wave.flow.mkv", {"bound_pixels": 20.0})
    writer.add(frames.data[:-1], fields, frames.pts_seconds[:-1])
    writer.close()
    dataset = Dataset(name="own", split="all", segments=(segment(0.2, 1.2, "wave.mp4"),), classes={}, root=folder,
                      paths={"rgb": "{video}", "flow": "wave.flow.mkv"})  # fmt: skip
    for streams in ([FLOW], [replace(RGB, frames=3), FLOW]):
        stored = SegmentDataset(dataset, streams)[0].streams["flow"]
        computed = SegmentDataset(replace(dataset, paths={"rgb": "{video}"}), streams)[0].streams["flow"]
        assert stored.shape == computed.shape and stored.float().std() > 1
        assert (stored.int() - computed.int()).abs().max() <= 1  # codes of codes


@pytest.mark.parametrize("mode", ["tsn", "rulstm"])
def test_both_frames_of_a_field_lie_in_what_may_be_seen(mode):
    rng = np.random.default_rng(0)
    for _ in range(100):
        low = rng.uniform(0, 5)
        high = low + rng.choice([0.01, 0.05, 0.1, 0.5, 3.0])
        times = np.sort(rng.uniform(low, high, (1, 4)))
        plan = plan_flow(times, 0.04, (low, high), replace(FLOW, flow_mode=mode))
        assert plan.pairs.min() >= low - 1e-6 and plan.pairs.max() <= high + 1e-6
        for t, stack in zip(times[0], plan.stacks[0], strict=True):
            offsets = np.arange(5) - (5 if mode == "rulstm" else 0)
            # those fields t + j step .. t + (j + 1) step that fit; the nearest that does, for the others
            fit = [j for j in range(-100, 100) if t + j * 0.04 >= low - 1e-7 and t + (j + 1) * 0.04 <= high + 1e-7]
            wanted = [t + min(max(j, fit[0]), fit[-1]) * 0.04 if fit else t for j in offsets]
            np.testing.assert_allclose(plan.pairs[stack, 0], wanted, atol=1e-6)
            np.testing.assert_allclose(np.diff(plan.pairs[stack])[:, 0], 0.04 if fit else 0.0, atol=1e-6)


def test_sound_around_each_entry(folder):
    from actionfuse.pipeline.audio import SpectrogramStream

    spec = StreamSpec(stream="audio", frames=3)
    sample = SegmentDataset([segment(1.0, 7.0)], [spec], root=folder)[0]
    assert sample.streams["audio"].shape == (3, 256, 256, 1) and sample.streams["audio"].dtype == torch.float32
    for segment_of in (segment(1.0, 7.0), segment(0.0, 0.5), segment(7.5, 8.0)):  # inside, and at both ends
        sample = SegmentDataset([segment_of], [spec], root=folder)[0]
        stream = SpectrogramStream(folder / "a.mp4", "tbn", sample.seconds["audio"].tolist())
        for cells, window in zip(sample.streams["audio"], stream, strict=True):
            np.testing.assert_allclose(cells[..., 0], window.cells, atol=2e-3)
    silent = SegmentDataset([segment(1.0, 7.0, "b.mp4")], [spec], root=folder)[0]
    assert not silent.masks["audio"].any() and sample.masks["audio"].all()


def test_depth_and_infrared_lie_beside(folder):
    paths = {"rgb": "{video}", "depth": "b.mp4", "ir": "b.mp4"}
    dataset = Dataset(name="own", split="all", segments=(segment(2.0, 6.0),), classes={}, root=folder, paths=paths)
    streams = [RGB, StreamSpec(stream="depth", **SMALL), StreamSpec(stream="ir", **SMALL)]
    sample = SegmentDataset(dataset, streams)[0]
    assert list(sample.streams) == ["rgb", "depth", "ir"]
    for name in ("depth", "ir"):
        assert sample.streams[name].shape == (8, SIDE, SIDE, 1) and sample.streams[name].dtype == torch.uint8
        red = sample.streams["rgb"][..., :1]
        assert (sample.streams[name].int() - red.int()).abs().float().mean() < 3  # the same frames, coded twice


# --- cut alike


def square(number):
    """Where the marker is in frame `number`: left, top, right, bottom of 128 x 96 pixels."""
    left, top = 10 + number, 20 + number // 2
    return left, top, left + 32, top + 32


def marker_video(folder, frames=60):
    def picture(number):
        rng = np.random.default_rng(0)
        shown = rng.integers(0, 50, (96, 128, 3)).astype(np.uint8)
        left, top, right, bottom = square(number)
        shown[top:bottom, left:right] = 200 + rng.integers(0, 50, (32, 32, 1))
        return shown

    return write_counting_video(folder / "marker.mp4", frames, (128, 96), FPS, pictures=picture)


def marker_boxes(frames=60):
    corners = np.array([square(k) for k in range(frames)], np.float32) / [128, 96, 128, 96]
    return BoxTracks(corners[:, None].astype(np.float32), np.ones((frames, 1), bool), np.arange(frames) / FPS,
                     np.array([2]), ("marker",))  # fmt: skip


AUGMENTATIONS = {
    "random_resized": Augmentation(area=(0.5, 1.0), flip=0.5),
    "multi_scale": Augmentation(crop="multi_scale"),
    "scale_jitter": Augmentation(crop="scale_jitter", short_side=(90, 120)),
    "centre": Augmentation(crop="centre", flip=1.0),
    "coloured": Augmentation(crop="scale_jitter", short_side=(90, 120), colour_jitter=(0.2, 0.2, 0.2, 0.05), flip=0.5),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_markers_stay_in_their_boxes_and_flow_points_where_they_go(folder, name):
    if not (folder / "marker.mp4").exists():
        marker_video(folder)
    paths = {"rgb": "{video}", "ir": "{video}"}
    dataset = Dataset(name="own", split="all", segments=(segment(0.2, 2.0, "marker.mp4"),), classes={}, root=folder,
                      paths=paths, boxes={"marker.mp4": marker_boxes()})  # fmt: skip
    sizes = {"resize_side": 96, "crop": 80}
    streams = [
        StreamSpec(frames=4, **sizes),
        StreamSpec(stream="ir", frames=4, **sizes),
        StreamSpec(stream="flow", frames=4, **sizes),
    ]
    samples = SegmentDataset(dataset, streams, training=True, augmentation=AUGMENTATIONS[name], instances=2, seed=1)
    plain = SegmentDataset(dataset, streams, training=True, instances=2, seed=1)
    looked, flipped = 0, set()
    for epoch in range(5):
        sample = samples[epoch, 0]
        assert not sample.error
        assert torch.equal(sample.seconds["rgb"], plain[epoch, 0].seconds["rgb"])  # cutting changes no times
        assert sample.boxes["boxes"].shape == (4, 2, 4) and sample.boxes["categories"].tolist() in ([2, 0], [0, 0])
        flow = sample.streams["flow"].numpy().astype(np.float64) * 40 / 255 - 20
        light = {stream: sample.streams[stream].numpy().astype(np.float64).mean(-1) for stream in ("rgb", "ir")}
        for t in np.flatnonzero(sample.boxes["present"][:, 0]):
            x1, y1, x2, y2 = (sample.boxes["boxes"][t, 0].numpy() * 80).round().astype(int)
            if min(x2 - x1, y2 - y1) < 16:
                continue
            looked += 1
            for picture in light.values():
                inside = picture[t, y1 + 3 : y2 - 3, x1 + 3 : x2 - 3]
                outside = picture[t].copy()
                outside[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3] = np.nan
                assert inside.mean() > np.nanmax(outside[np.isfinite(outside)]) * 0.8
                assert inside.mean() > 2 * np.nanmean(outside)
            u = np.median(flow[t, y1 + 4 : y2 - 4, x1 + 4 : x2 - 4, 0])
            assert abs(u) > 0.1
            flipped.add(u < 0)
            # mirrored pictures: the marker itself tells, it moves to the right in the video
            later = np.flatnonzero(sample.boxes["present"][:, 0])[-1]
            if later != t and sample.seconds["rgb"][later] > sample.seconds["rgb"][t] + 0.2:
                centre = sample.boxes["boxes"][:, 0, [0, 2]].mean(1)
                if (
                    0 < sample.boxes["boxes"][later, 0, 0]
                    and sample.boxes["boxes"][later, 0, 2] < 1
                    and 0 < x1
                    and x2 < 80
                ):
                    assert (centre[later] < centre[t]) == (u < 0)
    assert looked >= 8
    assert name != "centre" or flipped == {True}


def test_boxes_of_the_future_are_not_looked_at(folder):
    """The sighting after the end would pull the box along if it were bridged to."""
    if not (folder / "marker.mp4").exists():
        marker_video(folder)
    tracks = marker_boxes()
    late = replace(tracks, boxes=np.where(tracks.seconds[:, None, None] >= 1.0, np.float32(0.0), tracks.boxes))
    late.boxes[tracks.seconds >= 1.0, :, 2:] = 0.01
    sparse = [0, 10, 20, 30, 40]
    for whole in (tracks, late):
        thin = replace(whole, boxes=whole.boxes[sparse], present=whole.present[sparse], seconds=whole.seconds[sparse])
        dataset = Dataset(name="own", split="all", segments=(segment(1.1, 2.0, "marker.mp4"),), classes={},
                          root=folder, paths={"rgb": "{video}"}, boxes={"marker.mp4": thin})  # fmt: skip
        spec = StreamSpec(resize_side=96, crop=96)
        sample = SegmentDataset(dataset, [spec], task=Anticipation(tau_a=0.1, tau_o=0.8), instances=1)[0]
        # 20 / 25 = 0.8 s is the last sighting that may be seen; it holds, and is not drawn towards 30
        after = sample.seconds["rgb"] > 0.8
        assert after.any() and sample.boxes["present"][after].all()
        shown = sample.boxes["boxes"][after, 0, 1]
        assert torch.allclose(shown, shown[:1].expand_as(shown))
    seen = boxes_at(marker_boxes(), [0.5])
    assert seen.present.all()


# --- stored features


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Row i of a.mp4 is i and saw [i / 10, i / 10 + 0.3)."""
    store = FeatureStore.open(tmp_path_factory.mktemp("store") / "rgb", recipe={"identity": {}})
    rows = 78
    with store.writer("a.mp4", row_shape=(2,)) as writer:
        starts = np.arange(rows) / 10
        writer.write(0, np.stack([np.arange(rows), -np.arange(rows)], 1).astype(np.float32))
        writer.commit(starts, starts + 0.3, {})
    return store


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", [*RULES, None])
def test_no_row_of_the_future_is_read(store, rule, training):
    task = Anticipation(tau_a=0.25, tau_o=2.0)
    starts = [4.0, 4.05, 4.2, 1.0]
    spec = FeatureSpec(stream="rgb", store=store, frames=None if rule is None else 6, fps=10.0)
    dataset = SegmentDataset([segment(start, start + 1) for start in starts], [spec], task=task, training=training,
                             sampling=Sampling(rule=rule or "segments"))  # fmt: skip
    for index, start in enumerate(starts):
        sample = dataset[3, index]
        assert not sample.error
        ends = sample.streams["rgb"][:, 0] / 10 + 0.3
        assert ends.max() <= start - 0.25 + 1e-6
        np.testing.assert_allclose(sample.seconds["rgb"], ends, atol=1e-6)
        if rule in ("last", "ends", "rulstm"):
            assert ends[-1] > start - 0.25 - 0.1 - 1e-6  # the very last that has ended
        if rule is None and start > 3:
            assert len(ends) >= 19


def test_rows_of_rulstm(store):
    spec = FeatureSpec(stream="rgb", store=store.folder, frames=14)
    dataset = SegmentDataset(
        [segment(5.0, 6.0), segment(1.0, 2.0), segment(0.4, 1.0), segment(2.0, 3.0, "z.mp4")], [spec],
        task=rulstm_anticipation(), sampling=Sampling(rule="rulstm"),
    )  # fmt: skip
    wanted = np.floor((5.0 - 0.25 * np.arange(14, 0, -1) - 0.3) * 10 + 1e-6)
    assert dataset[0].streams["rgb"][:, 0].tolist() == wanted.tolist()
    early = dataset[1]  # as the public loader has it: the first row that is there fills up
    assert early.streams["rgb"][:, 0].tolist() == [2] * 13 + [4]
    assert early.masks["rgb"].tolist() == [False] * 12 + [True] * 2
    assert "no row has ended by 0.150 s" in dataset[2].error
    assert "z.mp4" in dataset[3].error
    batch = collate([dataset[index] for index in range(4)])
    assert batch["streams"]["rgb"].shape == (2, 14, 2) and [each["id"] for each in batch["broken"]] == [
        "a.mp4#0.4", "z.mp4#2.0",
    ]  # fmt: skip


def test_features_and_pixels_side_by_side(folder, store):
    dataset = SegmentDataset(
        [segment(2.0, 4.0)], [RGB, FeatureSpec(stream="stored", store=store, frames=8)], root=folder
    )
    sample = dataset[0]
    assert list(sample.streams) == ["rgb", "stored"]
    # the row whose middle is nearest to the time: row i is at (i + 1.5) / 10
    times = 2 + 0.125 + 0.25 * np.arange(8)
    assert np.abs((sample.streams["stored"][:, 0].numpy() + 1.5) / 10 - times).max() <= 0.05 + 1e-6
    open_end = SegmentDataset([segment(7.0, math.inf)], [FeatureSpec(stream="x", store=store, frames=4)])[0]
    assert open_end.stop_seconds == pytest.approx(8.0)


# --- labels, batches, broken files


def test_labels(folder):
    segments = [segment(1, 2, verb=1, action=(0, 3)), segment(2, 3, action=(2,)), segment(3, 4, verb=0)]
    dataset = SegmentDataset(segments, [RGB], root=folder, classes={"action": 5})
    assert [int(dataset[i].labels["verb"]) for i in range(3)] == [1, IGNORED, 0]
    assert [dataset[i].labels["action"].tolist() for i in range(3)] == [
        [True, False, False, True, False], [False, False, True, False, False], [False] * 5,
    ]  # fmt: skip
    assert SegmentDataset(segments, [RGB])[0].error  # not in this folder
    with pytest.raises(ValueError, match="action has 3 classes"):
        SegmentDataset(segments, [RGB], classes={"action": 3})
    swapped = SegmentDataset(segments, [RGB], root=folder, training=True, augmentation=Augmentation(flip=1.0),
                             flipped_labels={"verb": {1: 7}, "action": {3: 4}}, classes={"action": 5})  # fmt: skip
    assert [int(swapped[i].labels["verb"]) for i in range(3)] == [7, IGNORED, 0]
    assert swapped[0].labels["action"].tolist() == [True, False, False, False, True]


def test_a_broken_video_is_told_and_not_replaced(folder):
    segments = [
        segment(1, 2),
        segment(1, 2, "broken.mp4"),
        segment(1, 2, "nowhere.mp4"),
        segment(20, 21),
        segment(2, 3),
    ]
    dataset = SegmentDataset(segments, [RGB], root=folder)
    batch = collate([dataset[index] for index in range(5)])
    assert batch["id"] == ["a.mp4#1", "a.mp4#2"] and batch["index"].tolist() == [0, 4]
    assert batch["streams"]["rgb"].shape == (2, 8, SIDE, SIDE, 3)
    assert [each["index"] for each in batch["broken"]] == [1, 2, 3]
    reasons = [each["reason"] for each in batch["broken"]]
    assert "broken.mp4" in reasons[0] and "nowhere.mp4" in reasons[1] and "nothing to observe" in reasons[2]
    nothing = collate([dataset[1]])
    assert nothing["streams"] == {} and len(nothing["index"]) == 0 and len(nothing["broken"]) == 1


def test_damage_is_told_every_time(tmp_path):
    made = make("damaged_middle", tmp_path)
    dataset = SegmentDataset([segment(1.6, 2.4, made.path.name)], [StreamSpec(frames=20, resize_side=48, crop=48)],
                             root=made.path.parent)  # fmt: skip
    for _ in range(2):
        batch = collate([dataset[0]])
        assert len(batch["id"]) == 1
        assert [each["id"] for each in batch["damaged"]] == batch["id"] and batch["damaged"][0]["reason"]


def test_batches_are_padded(store, folder):
    spec = FeatureSpec(stream="rgb", store=store, frames=None)
    samples = [SegmentDataset([segment(*span)], [spec])[0] for span in ((1.0, 1.5), (2.0, 4.0))]
    batch = collate(samples)
    lengths = [len(sample.streams["rgb"]) for sample in samples]
    assert lengths[0] < lengths[1] and batch["streams"]["rgb"].shape == (2, lengths[1], 2)
    assert batch["masks"]["rgb"].sum(1).tolist() == lengths
    assert not batch["streams"]["rgb"][0, lengths[0] :].any()
    if not (folder / "marker.mp4").exists():
        marker_video(folder)
    one = marker_boxes()
    two = BoxTracks(np.repeat(one.boxes, 2, 1), np.repeat(one.present, 2, 1), one.seconds, np.array([1, 2]), ("a", "b"))
    found = []
    for tracks in (one, two):
        dataset = Dataset(name="own", split="all", segments=(segment(0.2, 2.0, "marker.mp4"),), classes={}, root=folder,
                          paths={"rgb": "{video}"}, boxes={"marker.mp4": tracks})  # fmt: skip
        found.append(SegmentDataset(dataset, [StreamSpec(resize_side=96, crop=96)], instances=None)[0])
    boxes = collate(found)["boxes"]
    assert boxes["boxes"].shape == (2, 8, 2, 4) and boxes["categories"].tolist() == [[2, 0], [1, 2]]
    assert boxes["present"][0, :, 0].all() and not boxes["present"][0, :, 1].any()


def test_files_are_kept_open_in_bounds(folder):
    dataset = SegmentDataset([segment(1, 2), segment(1, 2, "b.mp4"), segment(2, 3)], [RGB], root=folder, open_readers=1)
    shelf = dataset._pixels.shelf
    dataset[0]
    first = shelf.video(str(folder / "a.mp4"))
    dataset[2]
    assert shelf.video(str(folder / "a.mp4")) is first
    dataset[1]
    assert [path for _, path in shelf._open] == [str(folder / "b.mp4")]
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._pixels.shelf._open
    assert torch.equal(copy[0].streams["rgb"], dataset[0].streams["rgb"])
    dataset.close()
    assert not shelf._open and not dataset[0].error


def test_readers_that_are_lent_take_no_room(folder):
    dataset = SegmentDataset([segment(1, 2), segment(1, 2, "b.mp4")], [RGB], root=folder, open_readers=1)
    paths = [str(folder / name) for name in ("a.mp4", "b.mp4")]
    lent = [open_video(path) for path in reversed(paths)]  # each in the place of the other
    plain = [dataset[index].streams["rgb"] for index in (1, 0)]
    for path, reader in zip(paths, lent, strict=True):
        dataset.lend(path, reader)
    for _ in range(2):
        for index in (0, 1):
            assert torch.equal(dataset[index].streams["rgb"], plain[index])
    dataset.close()
    assert torch.equal(dataset[0].streams["rgb"], plain[1])


def test_a_resting_file_is_not_looked_through_again(folder, tmp_path, monkeypatch):
    for name, source in (("one.mp4", "a.mp4"), ("two.mp4", "b.mp4")):
        shutil.copy(folder / source, tmp_path / name)
    dataset = SegmentDataset([segment(1, 2, "one.mp4"), segment(1, 2, "two.mp4")], [RGB], root=tmp_path, open_readers=1)
    before = [dataset[0], dataset[1]]
    looked = []
    monkeypatch.setattr(pyav, "probe_layout", lambda *a: looked.append(a[0]) or probe_layout(*a))
    for _ in range(2):
        for number, sample in enumerate(before):
            assert torch.equal(dataset[number].streams["rgb"], sample.streams["rgb"])
    assert not looked and len(dataset._pixels.shelf._open) == 1
    dataset[0]  # two.mp4 rests; another file takes its place
    shutil.copy(folder / "a.mp4", tmp_path / "two.mp4")
    assert torch.equal(dataset[1].streams["rgb"], before[0].streams["rgb"])
    assert looked == [str(tmp_path / "two.mp4")]


# --- the same whoever reads it


def fingerprint(batches):
    return [
        (batch["id"], batch["epoch"].tolist(), batch["streams"]["rgb"].sum((1, 2, 3, 4)).tolist(),
         batch["seconds"]["rgb"].tolist(), [each["id"] for each in batch["broken"]])
        for batch in batches
    ]  # fmt: skip


@pytest.fixture(scope="module")
def mixed(folder):
    starts = [0.3, 1.1, 1.9, 2.7, 3.5, 4.3]
    segments = [segment(s, s + 2, video) for s in starts for video in ("a.mp4", "b.mp4")] + [
        segment(1, 2, "broken.mp4")
    ]
    return SegmentDataset(segments, [replace(RGB, frames=3)], root=folder, training=True, augmentation=Augmentation(),
                          seed=5, open_readers=1)  # fmt: skip


@pytest.fixture(scope="module")
def expected(mixed):
    """Two epochs, read in this process."""
    sampler = EpochSampler(len(mixed), seed=2)
    found = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        found.append(fingerprint(make_loader(mixed, batch_size=4, sampler=sampler)))
    assert found[0] != found[1] and sum(len(ids) for ids, *_ in found[0]) == 12
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (3, "fork"), (1, "spawn")])
def test_samples_do_not_depend_on_workers(mixed, expected, workers, method):
    mixed[0]  # a reader is open here: a forked worker must not use it
    sampler = EpochSampler(len(mixed), seed=2)
    loader = make_loader(mixed, batch_size=4, sampler=sampler, num_workers=workers, start_method=method)
    for epoch in range(2):  # the same workers for both
        sampler.set_epoch(epoch)
        assert fingerprint(loader) == expected[epoch]
    sampler.set_epoch(1, start_index=4)
    assert fingerprint(loader) == expected[1][1:]
    del loader


def test_workers_give_way_to_a_network_on_the_same_cpu(mixed):
    for device, more in ((None, 0), (torch.device("cpu"), 10)):
        sampler = EpochSampler(len(mixed), seed=0)
        loader = make_loader(mixed, batch_size=4, sampler=sampler, num_workers=1, device=device)
        batches = iter(loader)
        next(batches)
        (worker,) = batches._workers
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == os.getpriority(os.PRIO_PROCESS, 0) + more
        del batches, loader


def test_a_program_may_end_while_its_loader_lives(folder):
    """Workers ignore a first SIGTERM, and a second one that comes at once is the same one."""
    code = f"""
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.samples import EpochSampler, SegmentDataset, StreamSpec, make_loader
segments = [Segment("a.mp4", 0.0, 1.0, str(k)) for k in range(8)]
dataset = SegmentDataset(segments, [StreamSpec(stream="rgb", frames=2)], root={str(folder)!r})
loader = make_loader(dataset, batch_size=1, sampler=EpochSampler(8, seed=0), num_workers=2)
batches = iter(loader)
print(next(batches)["index"].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


def test_plain_indices_are_of_the_epoch_that_was_set(mixed):
    mixed.set_epoch(3)
    assert mixed.epoch == 3 and torch.equal(mixed[0].streams["rgb"], mixed[3, 0].streams["rgb"])
    assert not torch.equal(mixed[0].streams["rgb"], mixed[4, 0].streams["rgb"])
    mixed.set_epoch(0)
    assert mixed[-1].index == len(mixed) - 1


def test_wrong_calls_are_told(folder, store):
    segments = [segment(1, 2)]
    wrong = [
        ({"streams": []}, "streams are none"),
        ({"streams": [RGB, RGB]}, "each once"),
        ({"streams": [StreamSpec(stream="depth")]}, "no stream depth; it has rgb"),
        ({"num_crops": 2}, "num_crops is 2"),
        ({"augmentation": Augmentation()}, "training is False"),
        ({"streams": [FeatureSpec(stream="x", store=store)], "instances": 2}, "boxes belong to pictures"),
        ({"streams": [RGB, FeatureSpec(stream="x", store=store)], "num_crops": 3}, "one view"),
        ({"open_readers": 0}, "open_readers is 0"),
    ]
    for change, said in wrong:
        with pytest.raises(ValueError, match=said):
            SegmentDataset(segments, **{"streams": [RGB], **change})
    for change in ({"stream": "smell"}, {"frames": 0}, {"crop": 300}, {"fps": 0}, {"flow_mode": "x"},
                   {"interpolation": "x"}, {"stream": "audio", "audio_preset": "tnb"}):  # fmt: skip
        with pytest.raises(ValueError):
            StreamSpec(**change)
    for change in (
        {"crop": "x"}, {"flip": 2.0}, {"area": (2.0, 3.0)}, {"aspect": (2.0, 1.0)}, {"scales": ()}, {"scales": (1.5,)},
        {"short_side": (300, 200)}, {"colour_jitter": (0.0, 0.0, 0.0, 0.7)}, {"rand_augment": (2, 99)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(change))):
            Augmentation(**change)
