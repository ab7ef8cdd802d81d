import golden_cases
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from actionfuse.backbones import create_backbone
from actionfuse.backbones._conv_norm import conv_norm
from actionfuse.backbones.convert import install
from actionfuse.backbones.i3d import I3D, PIERGIAJ, SameMaxPool3d, Unit3d

CASES = golden_cases.available(
    "recognition",
    "i3d_inception_rgb",
    "i3d_inception_rgb_gain",
    "i3d_inception_flow",
    "i3d_inception_flow_gain",
    "i3d_inception_odd",
)


def gmacs(network: nn.Module, *shape: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("name", CASES)
def test_matches_the_reference(name):
    case = golden_cases.load_case(name)
    clips = case.input("video")
    network = create_backbone("i3d", stream="rgb" if clips.shape[1] == 3 else "flow")
    install(network, PIERGIAJ.convert(case.weights()), what=name)
    taps = {tap: tap for tap in case.taps if tap != "avg_pool"}
    with torch.inference_mode(), golden_cases.Tapped(network, taps) as outputs:
        maps = network(clips)
        logits = network.dense_logits(maps)
    for tap, output in outputs.items():
        case.check_tap(tap, output, rtol=1e-5)
    assert set(outputs) == set(taps)
    if "avg_pool" in case.taps:
        case.check_tap("avg_pool", F.avg_pool3d(maps, (2, 7, 7), 1), rtol=1e-5)
    if case.arrays["logits"].ndim == 5:  # maps larger than 7 x 7: the reference keeps a space, ours is its mean
        case.arrays["logits"] = case.arrays["logits"].mean((3, 4))
    case.check_output("logits", logits, rtol=1e-5)


def same(clips: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """TensorFlow's rule, one dimension after the other: ceil(n / s) windows, the padding's odd place at the end."""
    sides = []
    for n, k, s in zip(clips.shape[2:], kernel, stride, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        sides.append((total // 2, total - total // 2))
    return F.pad(clips, [*sides[2], *sides[1], *sides[0]])


@pytest.mark.parametrize("size", [(8, 12, 16), (7, 9, 11), (5, 10, 13), (1, 3, 2), (2, 1, 4)])
def test_padding_is_tensorflows_same_padding_with_zeros(size):
    clips = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0)).relu()
    for kernel, stride in (
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (2, 2, 2)),
        ((2, 2, 2), (2, 2, 2)),
        ((3, 3, 3), (1, 1, 1)),
    ):
        want = F.max_pool3d(same(clips, kernel, stride), kernel, stride)
        torch.testing.assert_close(SameMaxPool3d(kernel, stride)(clips), want, rtol=0, atol=0)
    for kernel, stride in ((7, 2), (3, 1), (1, 1)):
        unit = Unit3d(4, 6, kernel, stride).eval()
        nn.init.uniform_(unit.bn.running_var, 0.5, 2.0)
        nn.init.normal_(unit.bn.running_mean)
        padded = same(clips, (kernel,) * 3, (stride,) * 3)
        want = unit.bn(F.conv3d(padded, unit.conv3d.weight, stride=stride)).relu()
        torch.testing.assert_close(unit(clips), want, rtol=1e-5, atol=1e-5)


def test_norm_inside_the_convolution_is_the_norm_after_it():
    torch.manual_seed(0)
    conv, norm = nn.Conv3d(3, 5, 3, padding=1, bias=False), nn.BatchNorm3d(5, eps=1e-3)
    clips = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    norm(conv(clips))  # the statistics move away from 0 and 1
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    want = norm.eval()(conv(clips))
    got = conv_norm(clips, conv, norm)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    inputs = (clips, conv.weight, norm.weight, norm.bias)
    for mine, theirs in zip(
        torch.autograd.grad(got.square().sum(), inputs), torch.autograd.grad(want.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
    before = norm.train().running_mean.clone()
    torch.testing.assert_close(conv_norm(clips, conv, norm), norm(conv(clips)), rtol=1e-5, atol=1e-5)
    assert not torch.equal(norm.running_mean, before)


def test_sizes_parameters_and_operations():
    with torch.device("meta"):
        network = I3D(num_classes=400).eval()
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(12.70e6, rel=1e-3)
    assert gmacs(network, 1, 3, 16, 224, 224) == pytest.approx(27.8, rel=0.01)
    for size in ((64, 224, 224), (1, 32, 32), (17, 97, 130), (9, 33, 64)):
        maps = network(torch.empty(1, 3, *size, device="meta"))
        assert maps.shape == (1, network.feature_dim, *network.output_size(*size))


@pytest.mark.parametrize("size", [(3, 7, 7), (1, 7, 7), (4, 9, 8), (2, 2, 3)])
def test_logits_are_of_the_mean_of_two_steps_then_of_time(size):
    network = create_backbone("i3d", num_classes=5)
    maps = torch.randn(2, 1024, *size, generator=torch.Generator().manual_seed(0))
    weight, bias = network.logits.conv3d.weight.flatten(1), network.logits.conv3d.bias
    t, h, w = (min(have, most) for have, most in zip(size, (2, 7, 7), strict=True))
    steps = []
    for start in range(size[0] - t + 1):
        places = [
            maps[:, :, start : start + t, y : y + h, x : x + w].mean((2, 3, 4))
            for y in range(size[1] - h + 1)
            for x in range(size[2] - w + 1)
        ]
        steps.append(torch.stack(places).mean(0) @ weight.T + bias)
    with torch.inference_mode():
        torch.testing.assert_close(network.dense_logits(maps), torch.stack(steps, 2), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.classify(maps), torch.stack(steps).mean(0), rtol=1e-4, atol=1e-5)


def test_no_classifier_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="has no classifier"):
        create_backbone("i3d").classify(torch.zeros(1, 1024, 1, 1, 1))


@pytest.mark.parametrize("stream, channels", [("rgb", 3), ("flow", 2)])
def test_pixels_go_from_minus_one_to_one(stream, channels):
    spec = create_backbone("i3d", stream=stream).input_spec
    ends = torch.tensor([0, 255], dtype=torch.uint8)[None, :, None, None, None].expand(1, 2, 1, 1, channels)
    normal = spec.normalise(ends)
    torch.testing.assert_close(normal[:, :, 0], torch.full((1, channels, 1, 1), -1.0))
    torch.testing.assert_close(normal[:, :, 1], torch.full((1, channels, 1, 1), 1.0))
