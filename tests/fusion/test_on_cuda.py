"""Heads keep to the GPU: every registered head on a CUDA device that computes nothing (see fake_cuda.py), and on a real
one where there is one (`make test-gpu`)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import pytest
import torch
from fake_cuda import GPU, autocast, backward, devices, fake_cuda, no_gpu, waiting_for_nothing
from fusion_heads import CLASSES, boxes_of, features_of, small_head
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from actionfuse.fusion import FusionHead, Instances, Output, list_heads

STREAMS, STEPS = ("rgb", "flow"), 2
RELEASED: dict[str, object] = {"variant": "released"}
# Options that take another path through a head than its defaults do.
OPTIONS: dict[str, list[dict[str, object]]] = {
    "afft_ca": [{"past": True, "mapping": "gated", "pool": "mean"}],
    "afft_sa": [{"past": True, "frame_tokens": STEPS, "modal_encoding": True}],
    "early_fusion": [{"positions": "learned", "pool": "last"}],
    "gating": [{"rule": "independent"}],
    "interactive": [RELEASED, {"interaction": False}, {"appearance": False}],
    "late_fusion": [{"training": "separate", "average": "probabilities"}],
    "mid_level": [{"gating": "context"}, {"gating": "multimodal"}],
    "mif_parallel": [{"pairing": "diff_all"}, {"positions": "learned", "second_position": "query_key"}],
    "mimo": [{"block": "encoder"}],
    "mmixer": [{"unit": "gru"}, {"aso": "gru"}, {"aso": "max", "mix": False, "layer_norm": False}],
    "nonlocal": [RELEASED, {"attention": "softmax", "global_feature": True}],
    "rulstm": [{"sequence_completion": True}],
    "stin": [{"inputs": "maps+boxes+categories"}, *(RELEASED | {"inputs": x} for x in ("maps+boxes", "joint"))],
    "strg": [RELEASED | {"graphs": "both"}],
}
CASES = [(name, options) for name in list_heads() for options in ({}, *OPTIONS.get(name, []))]
cases = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=["-".join(map(str, (name, *options.values()))) for name, options in CASES]
)
# Other heads compute the same in float32 as under autocast; these have a gradient of our own, or numbers that stay so.
IN_FLOAT32 = ("interactive", "mmixer", "strg")
# Released networks that look whether a step is padded, which they refuse, and so wait for the GPU.
REFUSE_PADDING = (("nonlocal", None), ("stin", "maps+boxes"))


def made(name: str, options: Mapping[str, object]) -> FusionHead:
    """To be given to `fake_cuda`."""
    streams = (*STREAMS, "objects") if options.get("pairing") == "diff_all" else STREAMS
    with torch.device("meta"):
        return small_head(name, streams, **options)


def computing(name: str, options: Mapping[str, object]) -> FusionHead:
    return small_head(name, ("rgb", "flow", "objects"), **options)


def given(head: FusionHead, *, maps: bool) -> tuple[dict[str, Tensor], Instances | None]:
    features = {
        name: torch.rand((2, width, STEPS, 3, 3) if maps else (2, STEPS, width), device="cuda")
        for name, width in head.streams.items()
    }
    boxes = torch.rand(2, STEPS, 3, 4, device="cuda"), torch.ones(2, STEPS, 3, dtype=torch.int64, device="cuda")
    return features, Instances(*boxes) if head.needs_boxes else None


def masks_of(head: FusionHead, features: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    if head.options.get("variant") == "released" and (head.name, head.options.get("inputs")) in REFUSE_PADDING:
        return None
    return {name: torch.ones(x.shape[:2], dtype=torch.bool, device="cuda") for name, x in features.items()}


def devices_of(output: Output) -> set[str]:
    return devices(output.logits, output.losses, output.auxiliary, output.extras)


def loss_of(output: Output) -> Tensor:
    """What training does with an output: the head's own losses, and cross-entropy for all the logits."""
    loss = torch.stack([torch.zeros((), device="cuda"), *output.losses.values()]).sum()
    for logits in (output.logits, *output.auxiliary.values()):
        for task, scores in logits.items():
            flat = scores.flatten(0, -2).float()
            loss = loss + F.cross_entropy(flat, torch.arange(len(flat), device="cuda") % CLASSES[task])
    return loss


@cases
def test_training(name: str, options: Mapping[str, object]) -> None:
    head = made(name, options).train()
    with fake_cuda(head) as copies:
        features, boxes = given(head, maps=True)
        for x in features.values():
            x.requires_grad_()
        for dtype in (torch.bfloat16, torch.float32) if name in IN_FLOAT32 else (torch.bfloat16,):
            with autocast(dtype):
                output = head(features, boxes)
            assert devices_of(output) == {"cuda"}
            gradients = backward(loss_of(output))
            assert {id(p) for p in head.parameters() if p.requires_grad} <= gradients.keys()
            assert devices(gradients, list(head.buffers())) == {"cuda"}
        assert copies.found == []


@cases
def test_testing_with_masks_and_missing_streams(name: str, options: Mapping[str, object]) -> None:
    head = made(name, options)
    with fake_cuda(head) as copies, torch.no_grad():
        features, boxes = given(head, maps=False)
        some = {"rgb": features["rgb"]} if head.optional_streams else features
        for dtype in (torch.bfloat16, torch.float32) if name in IN_FLOAT32 else (torch.bfloat16,):
            with autocast(dtype):
                output = head(features, boxes, masks_of(head, features), losses=True, extras=True)
                assert devices_of(output) == {"cuda"}
                assert devices_of(head(some, boxes, masks_of(head, some))) == {"cuda"}
        assert copies.found == []


@pytest.mark.parametrize("unit", ["lstm", "gru"])
def test_stepping(unit: str) -> None:
    head = made("mmixer", {"unit": unit})
    assert head.recurrent
    with fake_cuda(head) as copies, torch.no_grad():
        state = None
        for dtype in (torch.float32, torch.bfloat16):
            for masked in (False, True):
                features, _ = given(head, maps=False)
                with autocast(dtype):
                    output, state = head.step(features, state, masks_of(head, features) if masked else None)
                assert devices(output.logits, state) == {"cuda"}
        assert copies.found == []


@pytest.mark.gpu
@no_gpu
@cases
def test_logits_are_those_of_a_cpu(name: str, options: Mapping[str, object]) -> None:
    """In float64, so that nothing but the order of sums may tell; boxes are float32."""
    head = computing(name, options).double()
    features, boxes = features_of(head, steps=STEPS), boxes_of(head, steps=STEPS)
    found = []
    for device in (torch.device("cpu"), GPU):
        there = boxes and Instances(boxes.boxes.to(device), boxes.categories.to(device))
        with torch.no_grad():
            output = head.to(device)({k: x.double().to(device) for k, x in features.items()}, there, losses=True)
        found.append(tree_map(Tensor.cpu, [output.logits, output.auxiliary, output.losses]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@no_gpu
@cases
def test_training_waits_for_nothing(name: str, options: Mapping[str, object]) -> None:
    head = computing(name, options).to(GPU).train()
    features, boxes = features_of(head, steps=STEPS), boxes_of(head, steps=STEPS)
    inputs = {k: x.to(GPU) for k, x in features.items()}
    there = boxes and Instances(boxes.boxes.to(GPU), boxes.categories.to(GPU))
    for watched in (nullcontext, waiting_for_nothing):  # the first pass loads kernels
        with watched():
            with autocast(torch.bfloat16):
                output = head(inputs, there)
            loss_of(output).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
