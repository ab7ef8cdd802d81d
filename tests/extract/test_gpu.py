"""Extraction on a GPU: the CPU's features, within the rounding of the precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actionfuse.backbones import create_backbone
from actionfuse.extract import extract_features

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or not -m gpu")]

OPTIONS = dict(fps=10, clip_frames=3, clip_stride=2, side=176, crop=160)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("bf16", 6e-2), ("fp16", 2e-2)])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_gpu_and_cpu_agree(folder: Path, stream: str, precision: str, tolerance: float) -> None:
    # fp32 on a GPU may round products to TF32 in convolutions: hence its tolerance
    torch.manual_seed(0)
    backbone = create_backbone("tsn:resnet18", stream=stream)
    on_cpu = dict(extract_features(folder, backbone=backbone, device="cpu", **OPTIONS))
    on_gpu = dict(extract_features(folder, backbone=backbone, device="cuda", precision=precision, batch=5, **OPTIONS))
    assert nearly(on_gpu, on_cpu, tolerance)


@pytest.mark.parametrize("network", ["gsm:test_resnet", "p3d63"])
def test_networks_with_kernels_of_both_kinds(folder: Path, network: str) -> None:
    """Two- and three-dimensional kernels, each in the layout of its own kind."""
    torch.manual_seed(0)
    backbone = create_backbone(network)
    options = dict(fps=10, clip_frames=16, side=176, crop=160)
    on_cpu = dict(extract_features(folder / "b.mkv", backbone=backbone, device="cpu", **options))
    on_gpu = dict(extract_features(folder / "b.mkv", backbone=backbone, device="cuda", **options))
    assert nearly(on_gpu, on_cpu, 1e-2)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-2), ("bf16", 1e-1)])
def test_flow_of_raft_is_computed_on_the_gpu(folder: Path, precision: str, tolerance: float) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("tsn:resnet18", stream="flow", flow_stack=2)
    options = dict(fps=10, clip_frames=3, side=128, crop=128, flow_method="raft_small", flow_weights="random")
    on_cpu = dict(extract_features(folder / "b.mkv", backbone=backbone, device="cpu", **options))
    on_gpu = dict(extract_features(folder / "b.mkv", backbone=backbone, device="cuda", precision=precision, **options))
    assert nearly(on_gpu, on_cpu, tolerance)


def test_a_batch_too_large_for_the_gpu_is_halved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = create_backbone("tsn:resnet18")
    options = dict(device="cuda", batch=8, pool="none", **OPTIONS)  # maps, of which no frame is computed for two clips
    whole = dict(extract_features(folder, backbone=backbone, **options))
    forward, sizes = type(backbone).forward, []

    def small_batches_only(self, clips):
        sizes.append(len(clips))
        if len(clips) > 2:
            raise torch.OutOfMemoryError("as if")
        return forward(self, clips)

    monkeypatch.setattr(type(backbone), "forward", small_batches_only)
    halved = dict(extract_features(folder, backbone=backbone, **options))
    assert {8, 4, 2} <= set(sizes)
    assert nearly(halved, whole, 1e-2)


def nearly(some: Mapping[str, Any], others: Mapping[str, Any], tolerance: float) -> bool:
    """Whether all features differ by no more than this share of their size."""
    pairs = [(some[key][name].data, of[name].data) for key, of in others.items() for name in of]
    return bool(pairs) and all(np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y) for x, y in pairs)
