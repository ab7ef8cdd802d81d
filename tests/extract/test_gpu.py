"""Extraction on a GPU: the CPU's features, within the rounding of the precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from actionfuse.backbones import create_backbone
from actionfuse.extract import extract_features

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

OPTIONS = dict(fps=10, clip_frames=3, clip_stride=2, side=176, crop=160)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("bf16", 6e-2), ("fp16", 2e-2)])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_gpu_and_cpu_agree(folder: Path, stream: str, precision: str, tolerance: float) -> None:
    # fp32 on a GPU may round products to TF32 in convolutions: hence its tolerance
    torch.manual_seed(0)
    backbone = create_backbone("tsn:resnet18", stream=stream)
    on_cpu = dict(extract_features(folder, backbone=backbone, device="cpu", **OPTIONS))
    on_gpu = dict(extract_features(folder, backbone=backbone, device="cuda", precision=precision, batch=5, **OPTIONS))
    for key, outputs in on_cpu.items():
        (name,) = outputs
        here, there = outputs[name].data, on_gpu[key][name].data
        assert np.linalg.norm(here - there) <= tolerance * np.linalg.norm(here)


def test_a_batch_too_large_for_the_gpu_is_halved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = create_backbone("tsn:resnet18")
    whole = dict(extract_features(folder, backbone=backbone, device="cuda", batch=8, **OPTIONS))
    forward = type(backbone).forward

    def small_batches_only(self, clips):
        if len(clips) > 2:
            raise torch.OutOfMemoryError("as if")
        return forward(self, clips)

    monkeypatch.setattr(type(backbone), "forward", small_batches_only)
    halved = dict(extract_features(folder, backbone=backbone, device="cuda", batch=8, **OPTIONS))
    for key, outputs in whole.items():
        (name,) = outputs
        np.testing.assert_allclose(halved[key][name].data, outputs[name].data, rtol=1e-2, atol=1e-3)
