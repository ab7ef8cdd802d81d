"""Flow, sound, boxes and inner layers come out as the plain use of their parts gives them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from videos import ffmpeg, write_counting_video

from actionfuse.backbones import create_backbone, pool_clip
from actionfuse.backbones.roi import roi_features
from actionfuse.extract import extract_features
from actionfuse.pipeline import open_video
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.audio import read_audio, spectrogram
from actionfuse.pipeline.boxes import BoxRow, box_tracks, boxes_at
from actionfuse.pipeline.clip_spec import StreamSpec
from actionfuse.pipeline.datasets.contract import Dataset
from actionfuse.pipeline.features import FeatureStore
from actionfuse.pipeline.flow import FlowComputer, quantise
from actionfuse.pipeline.protocols import Sampling
from actionfuse.pipeline.samples import SegmentDataset
from actionfuse.pipeline.spectrogram import PRESETS
from actionfuse.pipeline.transforms import centre_crop


def frames_of(path: Path, fps: float, side: int) -> np.ndarray:
    with open_video(path) as reader:
        return np.concatenate([frames.data for frames in reader.stream(fps=fps, short_side=side)])


def features_of(backbone, clips: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return pool_clip(backbone(backbone.input_spec.normalise(torch.from_numpy(clips)))).numpy()


@pytest.mark.parametrize("stack", [1, 3])
def test_flow(folder: Path, stack: int) -> None:
    backbone = create_backbone("tsn:test_resnet", stream="flow", flow_stack=stack)
    options = dict(fps=10, clip_frames=2, clip_stride=2, side=48, crop=40)
    ((_, outputs),) = extract_features(folder / "a.mp4", backbone=backbone, **options)
    (found,) = outputs.values()

    frames = frames_of(folder / "a.mp4", 10, 48)
    fields = FlowComputer("dis_fast").pairs(frames)
    fields = np.concatenate([fields, fields[-1:].repeat(stack, 0)])
    codes = quantise(centre_crop(fields, 40))
    entries = [np.concatenate([codes[t + k] for k in range(stack)], -1) for t in range(len(frames))]
    clips = np.stack([np.stack(entries[t : t + 2]) for t in range(0, len(frames), 2)])
    np.testing.assert_allclose(found.data, features_of(backbone, clips), rtol=1e-4, atol=1e-5)


def test_raft_where_the_model_runs(folder: Path) -> None:
    """Flow on the device sees the same frames, after the crop; past the end the last field stands."""
    backbone = create_backbone("tsn:test_resnet", stream="flow", flow_stack=2)
    options = dict(fps=5, clip_frames=4, side=128, crop=128, flow_method="raft_small", flow_weights="random")
    ((_, outputs),) = extract_features(folder / "a.mp4", backbone=backbone, **options)
    (found,) = outputs.values()

    flow = FlowComputer("raft_small", weights="random")
    fields = flow.pairs(centre_crop(frames_of(folder / "a.mp4", 5, 128), 128))
    assert len(fields) == 5
    codes = quantise(np.concatenate([fields, fields[-1:].repeat(4, 0)]))
    entries = np.concatenate([codes[:8], codes[1:]], -1)
    clips = np.stack([entries[:4], entries[4:]])
    np.testing.assert_allclose(found.data, features_of(backbone, clips), rtol=1e-2, atol=1e-2)
    sampling = found.metadata["recipe"]["identity"]["sampling"]
    assert len(sampling["flow_weights_sha256"]) == 64


def test_sound(folder: Path) -> None:
    backbone = create_backbone("tsn:test_resnet", stream="audio")
    ((_, outputs),) = extract_features(folder / "a.mp4", backbone=backbone, fps=5, clip_frames=1)
    (found,) = outputs.values()
    assert len(found) == 6 and found.extra["heard"].all()

    preset = PRESETS["tbn"]
    with open_video(folder / "a.mp4") as reader:
        stop = reader.info.stop_seconds
    rows = []
    for k in range(6):
        # 1.2 s of sound are less than the preset's window: it begins with the sound
        sound = read_audio(folder / "a.mp4", 0.0, preset.window_samples / preset.sample_rate_hz, preset.sample_rate_hz)
        rows.append(spectrogram(sound.samples, preset)[None, ..., None])
        assert found.start_seconds[k] <= (k + 0.5) / 5 < max(stop, found.stop_seconds[k])
    np.testing.assert_allclose(found.data, features_of(backbone, np.stack(rows)), rtol=1e-3, atol=1e-4)


def test_no_sound_is_said(folder: Path) -> None:
    backbone = create_backbone("tsn:test_resnet", stream="audio")
    ((_, outputs),) = extract_features(folder / "b.mkv", backbone=backbone, fps=5, clip_frames=1)
    (found,) = outputs.values()
    assert len(found) == 10 and not found.extra["heard"].any()


def test_streams_have_the_same_number_of_rows(folder: Path) -> None:
    options = dict(weights="random", fps=5, clip_frames=2, clip_stride=1, side=48, crop=32)
    for _, outputs in extract_features(folder, backbone="tsn:test_resnet", streams=["rgb", "flow", "audio"], **options):
        assert len({len(features) for features in outputs.values()}) == 1
        starts = [features.start_seconds for name, features in outputs.items() if not name.endswith("audio")]
        np.testing.assert_array_equal(*starts)


@pytest.mark.parametrize("stream", ["depth", "ir"])
def test_grey_streams_are_cut_as_in_training(folder: Path, stream: str) -> None:
    backbone = create_backbone("tsn:test_resnet", stream=stream)
    options = dict(fps=10, clip_frames=2, clip_stride=2, side=48, crop=40)
    ((_, outputs),) = extract_features(folder / "a.mp4", backbone=backbone, **options)
    (found,) = outputs.values()

    spec = StreamSpec(stream=stream, frames=2, fps=10, resize_side=48, crop=40)
    whole = Dataset(
        name="one",
        split="all",
        segments=tuple(
            Segment(id=str(k), video="a.mp4", start_seconds=start, stop_seconds=start + 0.2, labels={})
            for k, start in enumerate(found.start_seconds)
        ),
        classes={},
        root=folder,
        paths={stream: "{video}"},
    )
    samples = SegmentDataset(whole, [spec], sampling=Sampling(rule="strided"))
    clips = np.stack([samples[k].streams[stream].numpy() for k in range(len(samples))])
    assert clips.shape[1:] == (2, 40, 40, 1)
    np.testing.assert_allclose(found.data, features_of(backbone, clips), rtol=0, atol=2e-2 * np.abs(found.data).max())


@pytest.mark.parametrize("depth_range", [None, (500.0, 4500.0)])
def test_depth_of_16_bits_is_that_of_training(tmp_path: Path, depth_range: tuple[float, float] | None) -> None:
    numbers = np.random.default_rng(0).integers(0, 5000, (6, 48, 64)).astype(np.uint16)
    (tmp_path / "d").mkdir()
    for n, picture in enumerate(numbers):
        assert cv2.imwrite(str(tmp_path / f"d/MDepth-{n + 1:08d}.png"), picture)
    backbone = create_backbone("tsn:test_resnet", stream="depth")
    options = dict(fps=30, clip_frames=2, side=48, crop=32, depth_range=depth_range)
    ((_, outputs),) = extract_features(tmp_path / "d", backbone=backbone, **options)
    (found,) = outputs.values()

    spec = StreamSpec(stream="depth", frames=2, fps=30, resize_side=48, crop=32, depth_range=depth_range)
    segments = tuple(Segment("d", k / 15, (k + 1) / 15, str(k), {}) for k in range(3))
    whole = Dataset(name="one", split="all", segments=segments, classes={}, root=tmp_path, paths={"depth": "{video}"})
    samples = SegmentDataset(whole, [spec], sampling=Sampling(rule="strided"))
    clips = np.stack([samples[k].streams["depth"].numpy() for k in range(3)])
    assert clips.dtype == np.float32 and found.data.shape[0] == 3
    naive = features_of(backbone, clips)
    np.testing.assert_allclose(found.data, naive, rtol=0, atol=1e-5 * np.abs(naive).max())
    of_8_bits = features_of(backbone, np.floor(clips))
    assert np.abs(of_8_bits - naive).max() > 1e-3 * np.abs(naive).max()


def test_boxes(tmp_path: Path) -> None:
    write_counting_video(tmp_path / "v.mp4", 20, (96, 64), 10)
    rows = [BoxRow("cup", t / 10, 0.3, 0.2 + t / 100, 0.6, 0.7 + t / 100, 2) for t in range(20)]
    rows += [BoxRow("hand", t / 10, 0.1, 0.1, 0.4, 0.5, 1) for t in range(8)]
    tracks = box_tracks(rows)
    backbone = create_backbone("tsn:test_resnet")
    options = dict(fps=10, clip_frames=4, side=64, crop=64, instances=3, pool="none")
    ((_, outputs),) = extract_features(tmp_path, backbone=backbone, boxes={"v.mp4": tracks}, **options)
    maps, instances = outputs["tsn-test_resnet-rgb"], outputs["tsn-test_resnet-rgb-roi"]
    assert instances.data.shape == (5, 3, backbone.feature_dim)
    np.testing.assert_array_equal(instances.extra["present"][:, 2], False)
    np.testing.assert_array_equal(instances.extra["present"][:, 0], True)
    np.testing.assert_array_equal(instances.extra["present"][:, 1], [True, True, True, False, False])
    np.testing.assert_array_equal(instances.data[:, 2], 0)

    for clip in range(5):
        seconds = np.arange(4 * clip, 4 * clip + 4) / 10
        at = boxes_at(tracks, seconds)
        # the crop takes the middle two thirds of the width
        boxes = at.boxes.copy()
        boxes[..., [0, 2]] = ((boxes[..., [0, 2]] * 96 - 16) / 64).clip(0, 1)
        per_map = torch.from_numpy(np.array(maps.data[clip]))[None]
        cells = roi_features(per_map, torch.from_numpy(boxes)[None])[0].mean((-2, -1)).numpy()
        for n in range(2):
            there = at.present[:, n]
            if there.any():
                np.testing.assert_allclose(instances.data[clip, n], cells[there, n].mean(0), rtol=1e-3, atol=1e-4)


def test_inner_layer(folder: Path) -> None:
    """Threads that run the same module at the same time must not see one another's maps."""
    backbone = create_backbone("tsn:test_resnet")
    layer = next(name for name, _ in backbone.named_modules() if name.endswith("layer2"))
    seen = []
    options = dict(fps=10, clip_frames=2, side=40, crop=32)
    hook = dict(backbone.named_modules())[layer].register_forward_hook(lambda _m, _i, output: seen.append(output))
    found = {key: out for key, out in extract_features(folder, backbone=backbone, layer=layer, batch=1, **options)}
    hook.remove()
    for key, outputs in found.items():
        (features,) = outputs.values()
        frames = frames_of(folder / key, 10, 40)
        frames = centre_crop(frames, 32)
        if len(frames) % 2:
            frames = np.concatenate([frames, frames[-1:]])
        for row in range(len(features)):
            caught = []
            handle = dict(backbone.named_modules())[layer].register_forward_hook(
                lambda _m, _i, o, c=caught: c.append(o)
            )
            with torch.inference_mode():
                backbone(backbone.input_spec.normalise(torch.from_numpy(frames[None, 2 * row : 2 * row + 2])))
            handle.remove()
            np.testing.assert_allclose(features.data[row], caught[0].mean((0, 2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_pictures_are_kept_where_the_sound_cannot_be_read(tmp_path: Path, extract) -> None:
    (tmp_path / "videos").mkdir()
    video = tmp_path / "videos" / "a.mov"
    ffmpeg("-i", write_counting_video(tmp_path / "a.mp4", 30, (64, 48), 25, audio=True), "-c:a", "pcm_s16le", video)
    packed = video.read_bytes()
    assert packed.count(b"sowt") == 1
    video.write_bytes(packed.replace(b"sowt", b"zzzz"))  # a codec that nobody knows
    words = [video.parent, "--out", tmp_path / "out", "--backbone", "tsn:test_resnet", "--weights", "random"]
    words += ["--stream", "rgb", "--stream", "audio", "--fps", 5, "--clip-frames", 1, "--side", 48, "--crop", 48]
    for _ in range(2):  # the second call finds the pictures done, and the sound still broken
        assert extract(*words) == 1
        rgb = FeatureStore.open(tmp_path / "out" / "tsn-test_resnet-rgb")
        assert rgb.keys() == ["a.mov"] and len(rgb.read("a.mov").data) == 6
        assert FeatureStore.open(tmp_path / "out" / "tsn-test_resnet-audio").keys() == []
        (failure,) = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
        assert failure["key"] == "a.mov" and "sound" in failure["reason"]
