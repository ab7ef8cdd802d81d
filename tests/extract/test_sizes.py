"""--crop and --clip-frames for networks that are built for one size of clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from actionfuse.backbones import create_backbone, save_backbone
from actionfuse.extract.runner import Batch
from actionfuse.extract.settings import Settings, build_runners, wrap

FIXED = "tsn:swin_tiny_patch4_window7_224"  # windows and their masks are cut for one size of frames


def test_a_network_of_a_fixed_size_is_built_for_the_crop() -> None:
    settings = Settings(backbones=(FIXED,), weights=("random",), crop=64, side=72, clip_frames=1, device="cpu")
    (runner,), (recipe,) = build_runners(settings)
    assert runner.plan.clip_shape == (1, 64, 64, 3) and recipe["identity"]["backbone"]["options"]["crop"] == 64
    rows = runner(Batch(np.zeros((1, 1, 64, 64, 3), np.uint8)))
    assert rows["features"].shape == (1, 768) and runner.backbone.output_size(1, 64, 64) == (1, 2, 2)


def test_positions_that_stretch_need_no_other_network() -> None:
    settings = Settings(backbones=("tsn:test_vit",), weights=("random",), crop=96, clip_frames=1, device="cpu")
    (runner,), (recipe,) = build_runners(settings)
    assert "crop" not in recipe["identity"]["backbone"]["options"]
    assert runner(Batch(np.zeros((1, 1, 96, 96, 3), np.uint8)))["features"].shape == (1, 64)


def test_weights_of_another_size_are_told(tmp_path: Path) -> None:
    """fc6 of C3D reads the map place by place: its weights fit one size of clips."""
    path = tmp_path / "c3d.safetensors"
    backbone = create_backbone("c3d", frames=16, crop=32, layer="fc6")
    save_backbone(backbone, path)
    common = dict(backbones=("c3d",), weights=(str(path),), device="cpu")
    (runner,), _ = build_runners(Settings(**common))
    assert runner.plan.clip_shape == (16, 32, 32, 3)
    with pytest.raises(ValueError, match=r"16 frames of 32 x 32 pixels only; leave --clip-frames and --crop out"):
        build_runners(Settings(**common, crop=64))
    for other in (dict(crop=64), dict(clip_frames=32)):
        with pytest.raises(ValueError, match=r"was built for clips of 16 frames of 32 x 32 pixels and cannot take"):
            wrap(Settings(**common, **other), backbone, "c3d", "given", torch.device("cpu"))


def test_tables_of_positions_of_another_size_are_told(tmp_path: Path) -> None:
    """Only those of ViTs are resampled."""
    name, path = "tsn:levit_128s", tmp_path / "levit.safetensors"
    save_backbone(create_backbone(name), path)
    common = dict(backbones=(name,), weights=(str(path),), device="cpu")
    with pytest.raises(ValueError, match=r"takes 224 x 224 pixels only; leave --crop out. Built for 160 x 160: "):
        build_runners(Settings(**common, crop=160))
    build_runners(Settings(**common, clip_frames=3))
