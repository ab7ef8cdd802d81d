"""C3D and P3D against their references, and the table that shows what C3D's convolutions cost."""

import golden_cases
import pytest
import torch
from torch import nn

from actionfuse.backbones import create_backbone
from actionfuse.backbones.catalog import count_macs
from actionfuse.backbones.convert import install, recognise


def load(case, name, **options):
    network = create_backbone(name, **options)
    weights = case.weights()
    install(network, recognise(weights, network.layouts, what=case.name).convert(weights), what=case.name)
    return network


def test_c3d_matches_the_reference():
    """Both cases have the same 80 million numbers, times a gain: they are made once."""
    plain, gained = (golden_cases.load_case(name) for name in ("c3d", "c3d_gain"))
    assert plain.meta["keys"] == gained.meta["keys"] and "weight_gain" not in plain.meta
    network = load(plain, "c3d")
    outputs = {}
    for tap in plain.taps:
        # a copy: the ReLU that follows works in place
        network.get_submodule(tap).register_forward_hook(
            lambda _m, _i, out, tap=tap: outputs.update({tap: out.clone()})
        )
    for case in (plain, gained):
        with torch.inference_mode():
            if case is gained:
                for weight in network.parameters():
                    weight.mul_(case.meta["weight_gain"] if weight.ndim > 1 else 1)
            maps = network(case.input("video"))
            logits = network.classify(maps)
        for tap in case.taps:
            case.check_tap(tap, outputs[tap], rtol=1e-4, atol=2e-6)
        case.check_output("logits", logits, rtol=1e-4, atol=2e-6)
        case.check_output("probs", logits.softmax(1), rtol=1e-4)


@pytest.mark.parametrize("name", golden_cases.available("recognition", "p3d63", "p3d199"))
def test_p3d_matches_the_reference(name):
    case = golden_cases.load_case(name)
    network = load(case, name)
    with torch.inference_mode(), golden_cases.Tapped(network, {tap: tap for tap in case.taps}) as outputs:
        logits = network.classify(network(case.input("video")))
    for tap in case.taps:
        case.check_tap(tap, outputs[tap], rtol=1e-5)
    case.check_output("logits", logits, rtol=1e-5)


# "C3D: The VGG of 3D CNNs", the table of a talk: its column says MFLOPs, its numbers are 1e9 multiplications. It counts
# 27 for every weight of the fully connected layers too, and 3 x 3 places in pool5.
TABLE = {"conv1": 1.04, "conv2": 11.10, "conv3a": 5.55, "conv3b": 11.10, "conv4a": 2.77, "conv4b": 5.55}
TABLE |= {"conv5a": 0.69, "conv5b": 0.69, "fc6": 0.51, "fc7": 0.45, "fc8": 0.05}
SIZES = {"pool1": (64, 16, 56, 56), "pool2": (128, 8, 28, 28), "pool3": (256, 4, 14, 14), "pool4": (512, 2, 7, 7)}


def test_c3d_costs_what_the_table_says_layer_by_layer():
    with torch.device("meta"):
        network = create_backbone("c3d", num_classes=487)
    sizes, counted = {}, {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _m, _i, out, name=name: sizes.update({name: tuple(out.shape[1:])}))
    with torch.inference_mode():
        network.classify(network(torch.empty(1, 3, 16, 112, 112, device="meta")))
    for name, module in network.named_children():
        if isinstance(module, nn.Conv3d):
            counted[name] = module.weight.numel() * torch.Size(sizes[name][1:]).numel()
        elif isinstance(module, nn.Linear):
            inputs = 512 * 3 * 3 if name == "fc6" else module.in_features
            counted[name] = 27 * inputs * module.out_features
    assert {name: sizes[name] for name in SIZES} == SIZES
    assert list(counted) == list(TABLE)
    assert {name: count / 1e9 for name, count in counted.items()} == pytest.approx(TABLE, abs=0.006)
    # 39.6 in all; the rows add up to 39.5
    assert sum(counted.values()) / 1e9 == pytest.approx(39.6, rel=0.003)
    # and what is really multiplied
    assert count_macs(network, 16, 112, 112) / 1e9 == pytest.approx(38.5, rel=0.001)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(80.0, rel=0.001)


@pytest.mark.parametrize(
    "layer, shape", [("conv5b", (512, 2, 2, 2)), ("pool5", (512, 1, 2, 2)), ("fc7", (4096, 1, 1, 1))]
)
def test_c3d_classifies_alike_from_every_layer(layer, shape):
    torch.manual_seed(0)
    plain = create_backbone("c3d", crop=32, num_classes=5)
    with torch.device("meta"):
        network = create_backbone("c3d", crop=32, num_classes=5, layer=layer)
    network.load_state_dict(plain.state_dict(), assign=True)
    clips = torch.randn(2, 3, 16, 32, 32)
    with torch.inference_mode():
        maps = network(clips)
        assert maps.shape[1:] == shape == (network.feature_dim, *network.output_size(16, 32, 32))
        torch.testing.assert_close(network.classify(maps), plain.classify(plain(clips)))


def test_c3d_sees_blue_first_less_the_mean_of_its_videos():
    spec = create_backbone("c3d", crop=32).input_spec
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(1, 1, 1, 1, 3)
    assert spec.normalise(red).flatten().tolist() == [-90.0, -98.0, 255.0 - 102.0]


def test_p3d_arranges_space_and_time_in_turn():
    network = create_backbone("p3d63")
    held = [[block.arrangement for block in network.get_submodule(f"layer{k}")] for k in (1, 2, 3, 4)]
    assert held == [list("ABC"), list("ABCA"), list("BCABCA"), [None] * 3]


def test_p3d_sees_every_step_of_a_long_clip_by_itself_in_res5():
    torch.manual_seed(0)
    network = create_backbone("p3d63")
    maps = torch.randn(2, 1024, 3, 4, 4)
    seen = network.layer4(maps.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 3))
    with torch.inference_mode():
        for step in range(3):
            torch.testing.assert_close(seen[:, step], network.layer4(maps[:, :, step]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, million, gmacs", [("p3d63", 25.7, 8.4), ("p3d131", None, None), ("p3d199", 66.5, 18.4)])
def test_p3d_parameters_and_operations(name, million, gmacs):
    with torch.device("meta"):
        network = create_backbone(name, num_classes=400)
    if million:
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(million, rel=0.005)
        assert count_macs(network, 16, 160, 160) / 1e9 == pytest.approx(gmacs, rel=0.006)
    maps = network(torch.empty(1, 3, 33, 90, 70, device="meta"))
    assert maps.shape == (1, 2048, *network.output_size(33, 90, 70))


@pytest.mark.parametrize("options, says", [({"layer": "fc8"}, "conv5b, pool5, fc6, fc7"), ({"frames": 8}, "16 frames")])
def test_c3d_says_what_is_wrong(options, says):
    with pytest.raises(ValueError, match=says):
        create_backbone("c3d", **options)
    with pytest.raises(ValueError, match="crop=32"):
        create_backbone("c3d", crop=64)(torch.zeros(1, 3, 16, 32, 32))
