"""Where windows overlap, networks that look at frames one by one compute each frame once: less work, equal features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actionfuse.backbones import create_backbone
from actionfuse.extract.plan import ClipPlan
from actionfuse.extract.runner import FRAMES_AT_ONCE, Batch, Runner, clips_before
from actionfuse.extract.settings import batch_clips
from actionfuse.pipeline.features import FeatureStore

NETWORK = "tsn:test_resnet"


def runner_of(entries: int, stride: int, **options) -> Runner:
    torch.manual_seed(0)
    backbone = create_backbone(options.pop("network", NETWORK), frames=entries, crop=32)
    plan = ClipPlan(name="x", stream="rgb", frames=entries, stride=stride, fps=8.0, resize_side=32, crop=32)
    return Runner(plan, backbone, device=torch.device("cpu"), **options)


def windows(entries: int, stride: int) -> tuple[np.ndarray, list[tuple[str, int, int]]]:
    """Clips of two videos as they come from two decode processes, the last of each padded."""
    random = np.random.default_rng(3)
    clips, names = [], []
    for video, length in (("a", 5 * stride + entries - 1), ("b", 3 * stride + entries)):
        frames = random.integers(0, 256, (length, 32, 32, 3), np.uint8)
        for row, first in enumerate(range(0, length - entries + stride, stride)):
            clips.append(frames[np.minimum(np.arange(first, first + entries), length - 1)])
            names.append((video, 0, row))
    order = sorted(range(len(names)), key=lambda place: (names[place][2], names[place][0]))  # a 0, b 0, a 1, b 1, ...
    return np.stack([clips[place] for place in order]), [names[place] for place in order]


@pytest.mark.parametrize("pool", ["clip", "space"])
@pytest.mark.parametrize(("entries", "stride"), [(4, 2), (4, 1), (5, 3), (16, 8)])
def test_features_are_those_of_whole_clips_for_fewer_frames(pool, entries, stride):
    runner = runner_of(entries, stride, pool=pool)
    clips, names = windows(entries, stride)
    seen = []
    runner.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0] * inputs[0].shape[2]))
    whole = runner(Batch(clips))["features"]
    once = runner(Batch(clips, before=clips_before(names)))["features"]
    assert once.shape == whole.shape == ((len(clips), 96) if pool == "clip" else (len(clips), entries, 96))
    assert np.abs(once - whole).max() <= 1e-5 * np.abs(whole).max()
    different = 2 * entries + (len(clips) - 2) * stride
    piece = FRAMES_AT_ONCE[0]
    assert seen[0] == clips.shape[0] * entries and sum(seen[1:]) == -(-different // piece) * piece


def test_batches_change_no_bit():
    runner, (clips, names) = runner_of(4, 2), windows(4, 2)
    whole = runner(Batch(clips, before=clips_before(names)))["features"]
    for size in (1, 3):
        parts = [
            runner(Batch(clips[first : first + size], before=clips_before(names[first : first + size])))["features"]
            for first in range(0, len(clips), size)
        ]
        assert np.array_equal(np.concatenate(parts), whole)


def test_clips_are_told_by_video_attempt_and_row():
    names = [("a", 0, 0), ("b", 0, 1), ("a", 0, 1), ("a", 1, 2), ("b", 0, 2), ("a", 0, 0)]
    assert clips_before(names).tolist() == [-1, -1, 0, -1, 1, -1]


def test_frames_are_shared_only_where_that_is_exact():
    assert runner_of(4, 2).shares_frames and batch_clips(None, runner_of(4, 2)) == 16
    assert batch_clips(None, runner_of(16, 8)) == 7 and batch_clips(None, runner_of(16, 16)) == 1
    assert not runner_of(4, 4).shares_frames and not runner_of(4, 5).shares_frames
    assert not runner_of(4, 2, pool="none").shares_frames
    assert not runner_of(4, 2, layer="network.layer1").shares_frames
    assert not runner_of(4, 2, network="tsm:test_resnet").shares_frames, "it mixes frames"
    part = Batch(np.zeros((4, 4, 2, 2, 3)), before=np.arange(4) - 1)[2:]
    assert part.before is None and len(part.clips) == 2


def test_the_command_gives_the_same_whatever_the_batch(folder, extract, tmp_path):
    options = ["--backbone", NETWORK, "--weights", "random", "--crop", 32, "--side", 32, "--clip-frames", 4]
    found = {}
    for name, more in (("shared", []), ("three", ["--batch", 3, "--workers", 1]), ("frames", [])):
        stride, frames = (1, 1) if name == "frames" else (2, 4)
        out = tmp_path / name
        assert extract(folder, "--out", out, *options, "--clip-stride", stride, "--clip-frames", frames, *more) == 0
        store = FeatureStore.open(next(out.iterdir()))
        found[name] = {key: store.read(key).data for key in store.keys()}
    for key, features in found["shared"].items():
        assert np.array_equal(features, found["three"][key])
        frames = found["frames"][key]
        for row, mean in enumerate(features):
            places = np.minimum(np.arange(2 * row, 2 * row + 4), len(frames) - 1)
            assert np.abs(frames[places].mean(0) - mean).max() <= 1e-5 * np.abs(mean).max()
