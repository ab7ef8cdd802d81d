"""What extraction does on GPUs alone, as far as it can be shown without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from actionfuse.backbones import create_backbone
from actionfuse.backbones.contract import channels_last
from actionfuse.cli import main
from actionfuse.extract import extract_features, runner, settings
from actionfuse.extract.plan import ClipPlan
from actionfuse.extract.runner import Batch, Runner, run_in_parts
from actionfuse.pipeline.flow import FlowComputer

CPU = torch.device("cpu")


def plan_of(entries: int = 4, **options) -> ClipPlan:
    return ClipPlan(name="x", stream="rgb", frames=entries, stride=entries, fps=8.0, resize_side=32, crop=32, **options)


@pytest.mark.parametrize("network", ["p3d63", "gsm:test_resnet", "tsn:test_resnet", "swin3d_t"])
def test_kernels_of_both_kinds_are_laid_out(network, monkeypatch):
    """P3D and gates have 2-D and 3-D kernels, and `Module.to(memory_format=...)` takes one kind."""
    with torch.device("meta"):
        backbone = create_backbone(network)
    shapes = {name: weight.shape for name, weight in backbone.named_parameters()}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    to = nn.Module.to
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **options: to(self, **options) if options else self)
    Runner(plan_of(16), backbone, device=torch.device("cuda"))
    kinds = set()
    for name, weight in backbone.named_parameters():
        assert weight.shape == shapes[name]
        if weight.ndim in (4, 5):
            kinds.add(weight.ndim)
            form = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
            assert weight.is_contiguous(memory_format=form)
    assert kinds == ({4, 5} if network.startswith(("p3d", "gsm")) else {4} if network.startswith("tsn") else {5})


def test_the_layout_changes_no_feature():
    torch.manual_seed(0)
    backbone = create_backbone("gsm:test_resnet").eval()
    clips = torch.randn(2, 3, 8, 32, 32)
    with torch.inference_mode():
        before = backbone(clips)
        channels_last(backbone, large=True)
        torch.testing.assert_close(backbone(clips), before, rtol=1e-4, atol=1e-5)


def test_correlations_of_raft_stay_in_float32(monkeypatch):
    """The network's autocast would reach them where flow is computed within it."""
    torch.manual_seed(0)
    backbone = create_backbone("tsn:test_resnet", stream="flow", flow_stack=2)
    computer = FlowComputer("raft_small", weights="random", device="cpu", precision="bf16")
    types = []
    build = computer.network.corr_block.build_pyramid

    def watched(first, second):
        build(first, second)
        types.append((torch.is_autocast_enabled("cpu"), computer.network.corr_block.corr_pyramid[0].dtype))

    monkeypatch.setattr(computer.network.corr_block, "build_pyramid", watched)
    plan = plan_of(2, flow_method="raft_small", flow_stack=2, flow_on_device=True)
    made = Runner(plan, backbone, device=CPU, precision="bf16", flow=computer)
    clips = np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3), np.uint8)
    assert made(Batch(clips))["features"].shape == (1, 96)
    assert types == [(False, torch.float32)] * 1


def test_a_batch_that_does_not_fit_is_halved_until_it_does(monkeypatch):
    torch.manual_seed(0)
    made = Runner(plan_of(), create_backbone("tsn:test_resnet"), device=CPU)
    clips = np.random.default_rng(0).integers(0, 256, (7, 4, 32, 32, 3), np.uint8)
    whole = run_in_parts(made, Batch(clips))["features"]
    sizes, emptied = [], []
    forward = made.backbone.forward

    def crowded(x):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("as if")
        return forward(x)

    monkeypatch.setattr(made.backbone, "forward", crowded)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    parts = run_in_parts(made, Batch(clips))["features"]
    assert sizes == [7, 3, 1, 2, 4, 2, 2] and len(emptied) == 3
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(made.backbone, "forward", lambda x: (_ for _ in ()).throw(torch.OutOfMemoryError("still")))
    with pytest.raises(torch.OutOfMemoryError, match="still"):  # one clip is the least
        run_in_parts(made, Batch(clips[:2]))


def test_processes_on_gpus_agree_on_what_flow_auto_is(folder: Path, tmp_path: Path, monkeypatch):
    """The launching process computes nothing and stays on the CPU, but the recipe that it writes is its children's."""
    pick = settings.pick_device
    monkeypatch.setattr(settings, "pick_device", lambda name: torch.device("cuda", 0) if name == "auto" else pick(name))
    made = []
    monkeypatch.setattr(settings, "FlowComputer", lambda *args, **options: made.append((args, options)) or Flow())
    monkeypatch.setattr("actionfuse.extract.command._launch", lambda words, processes: 0)
    words = ["--stream", "flow", "--flow-method", "auto", "--processes", "2", "--backbone", "tsn:test_resnet"]
    assert main(["extract", str(folder), "--out", str(tmp_path), "--weights", "random", *words]) == 0
    ((name,), options) = made[0]
    assert (name, options["weights"], options["device"]) == ("raft_large", "pretrained", "cpu")


class Flow:
    network = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("name", "rank", "index"), [("auto", "0", 0), ("auto", "3", 1), ("cuda", "5", 1), ("cuda:1", "0", 1)]
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, name, rank, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert settings.pick_device(name) == torch.device("cuda", index)
    with pytest.raises(ValueError, match="there are 2 GPUs"):
        settings.pick_device("cuda:2")


def test_pinned_buffers_are_used_again_only_when_their_rows_are_here(folder: Path, monkeypatch):
    """A buffer that goes back before its batch is computed would be filled while a GPU still reads it."""
    computing = []
    call = Runner.__call__

    def slow(self, batch):
        address = batch.clips.__array_interface__["data"][0]
        assert address not in computing
        computing.append(address)
        before = batch.clips.copy()
        rows = call(self, batch)
        assert np.array_equal(batch.clips, before)
        computing.remove(address)
        return rows

    monkeypatch.setattr(runner.Runner, "__call__", slow)
    found = dict(extract_features(folder, backbone="tsn:test_resnet", weights="random", fps=25, clip_frames=1,
                                  side=40, crop=32, batch=2))  # fmt: skip
    assert len(found) == 6 and not computing
