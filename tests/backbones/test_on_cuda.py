"""Backbones keep to the GPU: networks of every family on a CUDA device that computes nothing (see fake_cuda.py), and on
a real one where there is one (`make test-gpu`)."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from fake_cuda import GPU, autocast, backward, devices, fake_cuda, no_gpu, waiting_for_nothing
from torch import Tensor

from actionfuse.backbones import create_backbone
from actionfuse.backbones.contract import BACKBONES, Backbone, _gain_and_shift
from actionfuse.backbones.ego_rnn import EgoRNNTrunk

# One of each kind, and the options that take another path through it.
NETWORKS: dict[str, dict[str, object]] = {
    "bninception": {},
    "c2d_r50": {},
    "c3d": {"crop": 32},
    "csn_r101": {},
    "ego_rnn": {},
    "gsf:test_resnet": {},
    "gsm:test_resnet": {},
    "i3d": {},
    "i3d_r50_nln": {},
    "i3d_r50_stin": {},
    "karpathy:test_resnet": {"fusion": "slow_fusion"},
    "mtrn:test_resnet": {"frames": 4},
    "mvit_v2_s": {"frames": 4, "crop": 64},
    "omnivore_swin_t": {"stream": "rgbd"},
    "p3d63": {},
    "r2plus1d_18": {},
    "r3d_18": {},
    "s3d": {},
    "slowfast_r50": {"detection": True},
    "tsm:test_resnet": {"place": "block", "temporal_pool": True, "non_local": True},
    "tsn:test_resnet": {},
    "tsn:test_vit": {},
    "x3d_xs": {},
}
# Their activations are, in training.
COMPUTED_TWICE = ("gsf:test_resnet", "mvit_v2_s", "r3d_18", "slowfast_r50", "tsm:test_resnet")
# Other networks compute the same in float32 as under autocast; these have gradients or layouts of our own.
IN_FLOAT32 = ("gsm:test_resnet", "r3d_18", "tsm:test_resnet")
networks = pytest.mark.parametrize("name", NETWORKS)


def made(name: str) -> Backbone:
    """To be given to `fake_cuda`."""
    with torch.device("meta"):
        return create_backbone(name, num_classes=7, **NETWORKS[name])  # pyright: ignore[reportArgumentType]


def clips_of(backbone: Backbone, device: torch.device = GPU) -> Tensor:
    frames, height, width = backbone.min_size
    side = backbone.input_spec.crop if backbone.fixed_size else max(height, width, 32)
    clips = torch.rand(2, max(frames, 4), side, side, backbone.input_spec.channels, device=device)
    return clips.permute(0, 4, 1, 2, 3)


def file_of(name: str) -> str:
    make = BACKBONES[name]
    return (make.func if isinstance(make, partial) else make).__module__


def test_every_file_of_networks_has_one_here() -> None:
    assert {file_of(name) for name in BACKBONES} == {file_of(name.partition(":")[0]) for name in NETWORKS}


@networks
def test_training(name: str) -> None:
    backbone = made(name).train()
    backbone.set_grad_checkpointing(name in COMPUTED_TWICE)
    draws_on_the_host(backbone)
    with fake_cuda(backbone) as copies:
        clips = clips_of(backbone)
        for dtype in (torch.bfloat16, torch.float32) if name in IN_FLOAT32 else (torch.bfloat16,):
            with autocast(dtype):
                maps, logits = backbone.forward_and_classify(clips)
            gradients = backward(maps.float().mean() + logits.float().mean())
            assert {id(p) for p in backbone.parameters()} == gradients.keys()
            assert devices(maps, logits, gradients, list(backbone.buffers())) == {"cuda"}
        assert copies.found == []


@networks
def test_testing(name: str) -> None:
    backbone = made(name)
    with fake_cuda(backbone) as copies, torch.inference_mode():
        clips = clips_of(backbone)
        for dtype in (torch.bfloat16, torch.float32) if name in IN_FLOAT32 else (torch.bfloat16,):
            with autocast(dtype):
                assert devices(backbone.forward_intermediates(clips)) == {"cuda"}
        assert copies.found == []


def draws_on_the_host(backbone: Backbone) -> None:
    """Numbers that TRN draws on the host are none here."""
    if backbone.name.startswith("mtrn"):
        backbone.head.relations.choose = lambda count, wanted: range(wanted)  # pyright: ignore


def test_attention_of_ego_rnn() -> None:
    backbone = made("ego_rnn")
    assert isinstance(backbone, EgoRNNTrunk)
    with fake_cuda(backbone) as copies, torch.no_grad():
        assert devices(backbone.attend(clips_of(backbone))) == {"cuda"}
        assert copies.found == []


def test_means_are_sent_to_the_gpu_once() -> None:
    _gain_and_shift.cache_clear()
    backbone = made("bninception")
    spec = backbone.input_spec
    with fake_cuda(backbone) as copies:
        clips = torch.empty(1, 2, 32, 32, 3, dtype=torch.uint8, device="cuda")
        assert devices(spec.normalise(clips)) == {"cuda"}
        assert len(copies.found) == 2
        spec.normalise(clips)
        assert len(copies.found) == 2
    _gain_and_shift.cache_clear()


@pytest.mark.gpu
@no_gpu
@networks
def test_maps_and_gradients_are_those_of_a_cpu(name: str) -> None:
    """In float64, so that nothing but the order of sums may tell."""
    torch.manual_seed(0)
    backbone = create_backbone(name, num_classes=7, **NETWORKS[name]).double()  # pyright: ignore[reportArgumentType]
    clips = clips_of(backbone, torch.device("cpu")).double()
    found: list[list[Tensor]] = []
    for device in (torch.device("cpu"), GPU):
        backbone.to(device).zero_grad()
        maps, logits = backbone.forward_and_classify(clips.to(device))
        (maps.square().mean() + logits.square().mean()).backward()
        gradients = [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]
        found.append([x.detach().cpu() for x in (maps, logits, *gradients)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.gpu
@no_gpu
@networks
def test_training_waits_for_nothing(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, num_classes=7, **NETWORKS[name])  # pyright: ignore[reportArgumentType]
    backbone.to(GPU).train()
    clips = clips_of(backbone)
    for watched in (nullcontext, waiting_for_nothing):  # the first pass loads kernels
        with watched():
            with autocast(torch.bfloat16):
                maps, logits = backbone.forward_and_classify(clips)
            (maps.float().square().mean() + logits.float().square().mean()).backward()
    assert {p.grad is not None and p.grad.device.type for p in backbone.parameters()} == {"cuda"}
