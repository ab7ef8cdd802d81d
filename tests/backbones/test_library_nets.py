"""Networks of torchvision and pytorchvideo: reference outputs, the tables of their papers, published layouts."""

import golden_cases
import pytest
import torch

from actionfuse.backbones import create_backbone
from actionfuse.backbones.catalog import count_macs
from actionfuse.backbones.convert import install, recognise

# Golden case -> our name, and whether its published head ends in a softmax.
CASES = {
    "tv_r3d_18": ("r3d_18", False),
    "tv_mc3_18": ("mc3_18", False),
    "tv_r2plus1d_18": ("r2plus1d_18", False),
    "ptv_r2plus1d_r50": ("r2plus1d_r50", True),
    "ptv_slow_r50": ("slow_r50", False),
    "ptv_c2d_r50": ("c2d_r50", False),
    "ptv_x3d_s": ("x3d_s", True),
    "ptv_csn_r101": ("csn_r101", False),
    "ptv_slowfast_r50": ("slowfast_r50", False),
}


@pytest.mark.parametrize("name", golden_cases.available("recognition", *CASES))
def test_matches_the_published_network(name):
    case = golden_cases.load_case(name)
    ours, softmax = CASES[name]
    network = create_backbone(ours)
    weights = case.weights()
    install(network, recognise(weights, network.layouts, what=name).convert(weights), what=name)
    paths = {tap: f"trunk.{tap.removeprefix('blocks.')}" for tap in case.taps if not tap.endswith(".proj")}
    held = {tap: path for tap, path in paths.items() if path in dict(network.named_modules())}
    (video, *others) = case.meta["inputs"]
    clip = case.input(video if not others else next(k for k in case.meta["inputs"] if "fast" in k))
    with torch.inference_mode(), golden_cases.Tapped(network, held) as outputs:
        if others:  # the published network takes both pathways apart
            slow = case.input(next(k for k in case.meta["inputs"] if "slow" in k and k != "slowfast"))
            maps = network.join(network.trunk([slow, clip]))
        else:
            maps = network(clip)
        logits = network.classify(maps)
    assert len(held) >= 4
    for tap in held:
        if isinstance(outputs[tap], torch.Tensor):
            case.check_tap(tap, outputs[tap], rtol=1e-5)
    (out,) = case.meta["outputs"]
    case.check_output(out, logits.softmax(1) if softmax else logits, rtol=1e-5)


@pytest.mark.parametrize(
    "name, million, gmacs",
    [
        ("r3d_18", 33.37, 40.7),
        ("mc3_18", 11.70, 43.34),
        ("r2plus1d_18", 31.51, 40.52),
        ("r2plus1d_r50", 28.11, 57.5),
        ("slow_r50", 32.45, 41.7),
        ("c2d_r50", 24.3, 19.5),
        ("csn_r101", 22.2, 56.5),
        ("csn_r152", 29.7, None),
        ("x3d_s", 3.79, 2.73),
        ("x3d_l", 6.15, None),
        ("slowfast_r50", 34.57, 65.7),
        ("slowfast_r101", 62.8, None),
        ("s3d", 8.32, 4 * 17.979),  # torchvision counts 16 frames
        ("mvit_v1_b", 36.61, 70.6),
        ("mvit_v2_s", 34.54, 64.2),
    ],
)
def test_parameters_and_operations(name, million, gmacs):
    with torch.device("meta"):
        network = create_backbone(name, num_classes=400)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(million, rel=0.005)
    if gmacs:
        spec = network.input_spec
        assert count_macs(network, spec.frames, spec.crop, spec.crop) / 1e9 == pytest.approx(gmacs, rel=0.01)
