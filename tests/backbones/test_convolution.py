"""Convolutions on a CPU: the numbers of torch's own, by other kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from actionfuse.backbones import create_backbone
from actionfuse.backbones._conv_norm import conv_norm
from actionfuse.backbones._convolution import _ONEDNN, Conv2d, convolve, use_onednn
from actionfuse.backbones.contract import channels_last


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("batch", "size", "kernel", "options"),
    [
        (1, (4, 9, 8), (1, 1, 1), {}),
        (3, (4, 9, 8), (1, 1, 1), {"stride": (1, 2, 2)}),
        (2, (5, 6, 7), (3, 1, 1), {"padding": (1, 0, 0)}),
        (2, (9, 6, 7), (3, 1, 1), {"padding": (2, 0, 0), "dilation": (2, 1, 1), "stride": (2, 1, 1)}),
        (1, (4, 9, 8), (1, 3, 3), {"padding": (0, 1, 1), "groups": 2}),
        (1, (9, 8), (1, 1), {}),
        (2, (9, 8), (3, 3), {"padding": (1, 1), "dilation": (2, 2)}),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_numbers_and_gradients_are_those_of_torch(batch, size, kernel, options, channels_last):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(batch, 4, *size, generator=generator)
    weight = torch.randn(6, 4 // options.get("groups", 1), *kernel, generator=generator)
    bias = torch.randn(6, generator=generator)
    if channels_last:
        memory_format = torch.channels_last_3d if len(size) == 3 else torch.channels_last
        maps, weight = (x.contiguous(memory_format=memory_format) for x in (maps, weight))
    inputs = [x.requires_grad_() for x in (maps, weight, bias)]

    def plain(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (F.conv3d if len(size) == 3 else F.conv2d)(maps, weight, bias, **options)

    exact = plain(*(x.detach().double() for x in inputs))
    got = convolve(*inputs, **options)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(got.square().sum(), inputs)
    theirs = torch.autograd.grad(plain(*inputs).square().sum(), inputs)
    for mine, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not _ONEDNN, reason="no oneDNN for this processor")
@pytest.mark.parametrize(
    ("name", "frames", "size"), [("slow_r50", 2, 32), ("i3d", 8, 32), ("tsn:resnet26", 2, 32), ("r3d_18", 2, 16)]
)
def test_no_layer_of_a_single_clip_goes_through_im2col(name, frames, size):
    backbone = create_backbone(name)
    clips = torch.randn(1, 3, frames, size, size)
    with profile(activities=[ProfilerActivity.CPU]) as seen, torch.inference_mode():
        backbone(clips)
    operators = {event.key for event in seen.key_averages()}
    assert "aten::mkldnn_convolution" in operators
    assert not [name for name in operators if "slow_conv" in name or "thnn" in name]


def test_large_kernels_and_their_gradients_stay_channels_first():
    """A channels-last gradient of theirs is copied twice; small kernels are laid out as the maps."""
    large, small = nn.Conv3d(640, 176, 3, padding=1), nn.Conv3d(176, 8, 3, padding=1)
    layers = nn.Sequential(large, small)
    channels_last(layers)
    use_onednn(layers)
    assert large.weight.is_contiguous() and not small.weight.is_contiguous()
    assert small.weight.is_contiguous(memory_format=torch.channels_last_3d)
    maps = torch.randn(1, 640, 1, 3, 3).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        layers(maps).square().mean().backward()
    turned = [event for event in seen.events() or () if event.name == "aten::copy_"]
    assert not [event for event in turned if list(large.weight.shape) in event.input_shapes]
    ours = [maps.grad, *(weight.grad for weight in layers.parameters())]
    exact = nn.Sequential(nn.Conv3d(640, 176, 3, padding=1), nn.Conv3d(176, 8, 3, padding=1)).double()
    exact.load_state_dict(layers.state_dict())
    double = maps.detach().double().requires_grad_()
    exact(double).square().mean().backward()
    for mine, want in zip(ours, [double.grad, *(weight.grad for weight in exact.parameters())], strict=True):
        torch.testing.assert_close(mine.double(), want, rtol=1e-4, atol=1e-6)


def test_kinds_of_convolutions_that_compute_something_else_stay():
    class Doubled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Named(nn.Conv2d):
        pass

    layers = nn.Sequential(Doubled(2, 2, 1), Named(2, 2, 1))
    use_onednn(layers)
    assert [type(layer) for layer in layers] == [Doubled, Conv2d]


@pytest.mark.parametrize(("size", "inside"), [(2, False), (4, True), (12, True)])
def test_norms_go_into_the_convolution_by_the_size_of_a_map_alone(size, inside):
    torch.manual_seed(0)
    conv, norm = nn.Conv3d(16, 8, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(8).eval()
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.normal_(norm.running_mean)
    clips = torch.randn(40, 16, 2, size, size)
    want, calls = norm(conv(clips)), []
    norm.register_forward_hook(lambda *_: calls.append(1))
    for each in (clips, clips[:1]):
        torch.testing.assert_close(conv_norm(each, conv, norm), want[: len(each)], rtol=1e-5, atol=1e-5)
    assert len(calls) == (0 if inside else 2)


def test_whoever_counts_or_traces_sees_convolutions():
    layers = nn.Sequential(nn.Conv3d(4, 6, 1), nn.Conv3d(6, 2, (1, 3, 3)))
    clips = torch.randn(1, 4, 2, 5, 5)
    counts, graphs = [], []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layers(clips)
        counts.append(counter.get_total_flops())
        graphs.append({node.kind() for node in torch.jit.trace(layers, clips).inlined_graph.nodes()})
        use_onednn(layers)
    assert counts[0] == counts[1] > 0
    assert "aten::_convolution" in graphs[1] == graphs[0]


def test_padding_of_other_kinds_stays_torchs():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(4, 6, 3, padding="same"), nn.Conv2d(6, 2, 3, padding=1, padding_mode="reflect"))
    maps = torch.randn(2, 4, 6, 7)
    want = layers(maps)
    use_onednn(layers)
    torch.testing.assert_close(layers(maps), want)
