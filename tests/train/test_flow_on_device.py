"""RAFT in training: frames come from the workers, fields from the model's device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models import optical_flow
from toy_videos import video_recipe, write_videos

from actionfuse.pipeline import raft
from actionfuse.pipeline.clip_spec import StreamSpec
from actionfuse.pipeline.flow import FlowComputer, quantise
from actionfuse.pipeline.samples import collate
from actionfuse.train.batches import to_device
from actionfuse.train.build import build_dataset, build_model, load_split, make_task
from actionfuse.train.engine import Trainer
from actionfuse.train.log import read_metrics

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_updates(monkeypatch):
    monkeypatch.setattr(raft, "_UPDATES", 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("raft") / "small.pth"
    torch.save(optical_flow.raft_small(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


def flow_recipe(root, weights, **changes):
    recipe = video_recipe(
        root,
        streams={
            "flow": {
                "backbone": "tsn:test_resnet",
                "weights": "random",
                "options": {"flow_stack": 2},
                "clip": {"frames": 3, "fps": 8, "side": 32, "crop": 32},
            }
        },
        streams__flow__clip__flow_method="raft_small",
        streams__flow__clip__flow_weights=str(weights),
        data__limit=4,
        **changes,
    )
    return recipe


@pytest.mark.parametrize("crops", [1, 3])
def test_codes_are_those_of_raft_on_the_frames_of_the_sample(root, weights, crops):
    recipe = flow_recipe(root, weights)
    split = load_split(recipe, "train")
    model = build_model(recipe, split.classes)
    dataset = build_dataset(recipe, split, model, make_task(recipe.task), training=False, num_crops=crops)
    batch = collate([dataset[n] for n in range(2)])
    frames, pairs = batch["streams"]["flow"], batch["pairs"]["flow"]
    assert frames.dtype == torch.uint8 and frames.shape[-3:] == (32, 32, 3)
    codes = to_device(batch, CPU, "cross_entropy", model.head.classes).inputs["flow"]
    views = () if crops == 1 else (3,)
    assert codes.shape == (2, *views, 3, 32, 32, 4) and codes.dtype == torch.uint8
    computer = FlowComputer("raft_small", weights=str(weights), device="cpu")
    frames, pairs, codes = (x.reshape(-1, *x.shape[1 + len(views) :]).numpy() for x in (frames, pairs, codes))
    moved = 0
    for clip, places, stacks in zip(frames, pairs, codes, strict=True):
        for t, stack in enumerate(places):
            for k, (first, second) in enumerate(stack):
                field = computer.pairs(clip[[first, second]])[0]
                if (clip[first] == clip[second]).all():
                    field[:] = 0
                wanted = quantise(field).astype(int)
                assert np.abs(stacks[t, ..., 2 * k : 2 * k + 2] - wanted).max() <= 1
                moved += (wanted != 128).any()
    assert moved


def test_frames_are_those_of_rgb_at_the_same_times(root, weights):
    """Also mirrored and cut alike, in training."""
    recipe = flow_recipe(root, weights, augment={"crop": "random_resized", "flip": 1.0})
    split = load_split(recipe, "train")
    dataset = build_dataset(recipe, split, build_model(recipe, split.classes), make_task(recipe.task), training=True)
    (spec,) = dataset.streams
    assert isinstance(spec, StreamSpec)
    rgb = replace(spec, stream="rgb", flow_method="dis_fast", flow_weights=None)
    both = type(dataset)(
        split, [rgb, spec], training=True, augmentation=dataset._pixels.augmentation, sampling=dataset.sampling
    )
    sample = both[1]
    first = sample.pairs["flow"][:, 0, 0]
    # the stack of the last entry begins earlier: both frames of its fields must lie in the segment
    assert torch.equal(sample.streams["flow"][first][:2], sample.streams["rgb"][:2])
    assert torch.equal(sample.pairs["flow"], dataset[1].pairs["flow"])
    assert torch.equal(sample.streams["flow"], dataset[1].streams["flow"])


def test_a_run_trains_with_workers_and_leaves_random_numbers_alone(root, weights, tmp_path):
    Trainer(flow_recipe(root, weights, run__workers=1), tmp_path / "one", quiet=True).run()
    raft.shared_raft.cache_clear()
    state = torch.random.get_rng_state()
    raft.shared_raft("raft_small", str(weights), CPU)
    assert torch.equal(torch.random.get_rng_state(), state)
    Trainer(flow_recipe(root, weights, run__workers=0), tmp_path / "two", quiet=True).run()
    one, two = ([row for row in read_metrics(tmp_path / name) if "loss" in row] for name in ("one", "two"))
    assert one and [row["loss"] for row in one] == [row["loss"] for row in two]


def test_weights_belong_to_raft_alone(weights):
    with pytest.raises(ValueError, match="need weights"):
        StreamSpec(stream="flow", flow_method="raft_large")
    with pytest.raises(ValueError, match="other methods have none"):
        StreamSpec(stream="flow", flow_weights=str(weights))
