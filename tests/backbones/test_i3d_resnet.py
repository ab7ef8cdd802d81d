import golden_cases
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from actionfuse.backbones import create_backbone
from actionfuse.backbones.convert import install
from actionfuse.backbones.i3d_resnet import Bottleneck, NonLocal
from actionfuse.backbones.i3d_resnet_layouts import PYTORCHVIDEO, STIN

NAMES = (
    "i3d_r50",
    "i3d_r50_stin",
    "i3d_r50_nln",
    "i3d_r50_c2",
    "i3d_r50_c2_nln",
    "i3d_r50_c2_32x2",
    "i3d_r50_c2_nln_32x2",
)
NONLOCAL = golden_cases.available(
    "recognition",
    "nonlocal_softmax_pool",
    "nonlocal_softmax_nopool",
    "nonlocal_dot_product_pool",
    "nonlocal_dot_product_nopool",
)


def test_matches_pytorchvideo():
    case = golden_cases.load_case("ptv_i3d_r50")
    network = create_backbone("i3d_r50")
    install(network, PYTORCHVIDEO.convert(case.weights()), what=case.name)
    taps = {"blocks.0": "pool1", "blocks.2": "pool2"}
    taps |= {"blocks.1": "res2", "blocks.3": "res3", "blocks.4": "res4", "blocks.5": "res5"}
    assert set(taps) == set(case.taps)
    with torch.inference_mode(), golden_cases.Tapped(network, taps) as outputs:
        logits = network.classify(network(case.input("video")))
    for tap in case.taps:
        case.check_tap(tap, outputs[tap], rtol=1e-5)
    case.check_output("out", logits, rtol=1e-5)


def test_matches_something_else():
    # The case is a whole model: its I3D, a projection and a classifier of its own.
    case = golden_cases.load_case("stin_global_i3d")
    weights = case.weights()
    network = create_backbone("i3d_r50_stin")
    install(network, STIN.convert(weights), what=case.name)
    with torch.inference_mode():
        maps = network(case.input("video"))
        projected = F.conv3d(maps, weights["conv.weight"], weights["conv.bias"])
        logits = projected.mean((2, 3, 4)) @ weights["fc.weight"].T + weights["fc.bias"]
    case.check_tap("i3D.layer4", maps, rtol=1e-5)
    case.check_tap("conv", projected, rtol=1e-5)
    case.check_output("logits", logits, rtol=1e-5)


@pytest.mark.parametrize("name", NONLOCAL)
def test_nonlocal_block_matches_slowfast(name):
    case = golden_cases.load_case(name)
    made_with = case.meta["constructor_args"]
    attention, pool = made_with["instantiation"], made_with["pool_size"] is not None
    window = (1, 2, 2) if pool else None
    block = NonLocal(made_with["dim"], made_with["dim_inner"], attention=attention, pool=window).eval()
    ours = {key.removeprefix("conv_").replace("bn.", "norm."): tensor for key, tensor in case.weights().items()}
    block.load_state_dict(ours)
    with torch.inference_mode():
        case.check_output("y", block(case.input("x")), rtol=1e-5)


@pytest.mark.parametrize("attention", ["softmax", "dot_product"])
@pytest.mark.parametrize("pool", [True, False])
def test_nonlocal_block_is_a_weighted_sum_over_places(attention, pool):
    torch.manual_seed(0)
    block = NonLocal(6, 3, attention=attention, pool=(1, 2, 2) if pool else None)
    for weight in block.parameters():
        nn.init.normal_(weight)
    block.eval()
    maps = torch.randn(2, 6, 2, 4, 5)
    seen = F.max_pool3d(maps, (1, 2, 2)) if pool else maps
    theta, phi, g = block.theta(maps), block.phi(seen), block.g(seen)
    summed = torch.zeros(2, 3, 2, 4, 5)
    for b, t, y, x in torch.cartesian_prod(*map(torch.arange, (2, 2, 4, 5))):
        affinity = torch.einsum("c,cthw->thw", theta[b, :, t, y, x], phi[b])
        share = (affinity.flatten() / 3**0.5).softmax(0).view_as(affinity)
        share = share if attention == "softmax" else affinity / affinity.numel()
        summed[b, :, t, y, x] = torch.einsum("thw,cthw->c", share, g[b])
    torch.testing.assert_close(block(maps), maps + block.norm(block.out(summed)), rtol=1e-4, atol=1e-4)


def test_nonlocal_blocks_stand_where_the_paper_has_them_and_start_as_identity():
    network = create_backbone("i3d_r50_c2_nln")
    assert {name for name, module in network.named_modules() if isinstance(module, NonLocal)} == {
        "res3.nonlocals.1",
        "res3.nonlocals.3",
        "res4.nonlocals.1",
        "res4.nonlocals.3",
        "res4.nonlocals.5",
    }
    plain = create_backbone("i3d_r50_c2")
    plain.load_state_dict({key: weight for key, weight in network.state_dict().items() if "nonlocals" not in key})
    clips = torch.randn(1, 3, 8, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(clips), plain(clips))


@pytest.mark.parametrize("place", ["3x3", "1x1"])
def test_block_strides_in_the_named_convolution(place):
    torch.manual_seed(0)
    block = Bottleneck(8, 4, 3, 2, place)
    for unit in (block.a, block.b, block.c, block.shortcut):
        nn.init.uniform_(unit.norm.weight, 0.5, 1.5)
        nn.init.normal_(unit.norm.bias)
    block.eval()
    maps = torch.randn(2, 8, 3, 7, 6)
    step, still = (1, 2, 2), 1

    def unit(x, module, stride, padding=0):
        return module.norm(F.conv3d(x, module.conv.weight, stride=stride, padding=padding))

    y = unit(maps, block.a, step if place == "1x1" else still, (1, 0, 0)).relu()
    y = unit(y, block.b, step if place == "3x3" else still, (0, 1, 1)).relu()
    want = (unit(y, block.c, still) + unit(maps, block.shortcut, step)).relu()
    with torch.inference_mode():
        torch.testing.assert_close(block(maps), want, rtol=1e-4, atol=1e-5)


def test_temporal_kernels_are_the_published_ones():
    network = create_backbone("i3d_r50")
    kernels = [
        [block.a.conv.kernel_size[0] for block in stage.blocks]
        for stage in (network.res2, network.res3, network.res4, network.res5)
    ]
    assert kernels == [[3, 3, 3], [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]


def test_long_networks_stride_over_time_in_conv1_and_pool1():
    network = create_backbone("i3d_r50_c2_32x2")
    clips = torch.randn(1, 3, 10, 38, 34, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = F.conv3d(clips, network.stem.conv.weight, stride=(2, 2, 2), padding=(2, 3, 3))
        want = F.max_pool3d(network.stem.norm(want).relu(), (2, 3, 3), (2, 2, 2))
        torch.testing.assert_close(network.pool1(network.stem(clips)), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_output_size_is_the_size_of_the_output(name):
    with torch.device("meta"):
        network = create_backbone(name)
    for size in (network.min_size, (8, 224, 224), (32, 128, 171), (9, 65, 66)):
        maps = network(torch.empty(1, 3, *size, device="meta"))
        assert maps.shape == (1, 2048, *network.output_size(*size))


@pytest.mark.parametrize(
    "name, classes, shape, million, gmacs",
    [
        ("i3d_r50_stin", 174, (8, 224, 224), 27.58, 38.0),
        ("i3d_r50_stin", 174, (32, 224, 224), 27.58, 151.8),
        ("i3d_r50", 400, (8, 224, 224), 28.0, 28.4),
    ],
)
def test_parameters_and_operations(name, classes, shape, million, gmacs):
    with torch.device("meta"):
        network = create_backbone(name, num_classes=classes)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(million, abs=0.05)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty(1, 3, *shape, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"stride_place": "2x2"}, "'3x3' or '1x1'"),
        ({"res5_stride": 3}, "it is 1 or 2"),
    ],
)
def test_wrong_options_say_what_is_allowed(options, says):
    with pytest.raises(ValueError, match=says):
        create_backbone("i3d_r50", **options)
    with pytest.raises(ValueError, match="'softmax' or 'dot_product'"):
        create_backbone("i3d_r50_nln", attention="gaussian")
