"""GSM and GSF against loops over gates and channels and against the public networks; their checkpoints."""

import golden_cases
import pytest
import torch
import torch.nn.functional as F
from published_names import inception_v3_name
from torch.utils.flop_counter import FlopCounterMode

from actionfuse.backbones import create_backbone, list_backbones, pool_space
from actionfuse.backbones.convert import install
from actionfuse.backbones.gate_shift import GSF, GSM

_FOUND = {
    "recognition": golden_cases.available("recognition", "gsm_module", "gsf_module_25", "gsf_module_100"),
    "anticipation": golden_cases.available("anticipation", "gsm_module", "gsf_module_r100"),
}
MODULES = [(area, name) for area, names in _FOUND.items() for name in names]
NETWORKS = {
    "gsm_bninception": "gsm:bninception",
    "gsm_bninception_gain": "gsm:bninception",
    "gsm_inceptionv3": "gsm:inception_v3",
    "gsm_inceptionv3_gain": "gsm:inception_v3",
    "gsf_bninception": "gsf:bninception",
    "gsf_inceptionv3": "gsf:inception_v3",
    "gsf_resnet50": "gsf:resnet50",
}
CASES = [
    *(("recognition", name) for name in golden_cases.available("recognition", *NETWORKS)),
    *(("anticipation", name) for name in golden_cases.available("anticipation", "gsm_bninception")),
]


@pytest.mark.parametrize("area, name", MODULES)
def test_gates_match_the_public_modules(area, name):
    case = golden_cases.load_case(name, area)
    made = case.meta["constructor_args"]
    gate = GSF(made["fPlane"], made["gsf_ch_ratio"]) if name.startswith("gsf") else GSM(made["fPlane"])
    gate.load_state_dict(case.weights())
    maps = case.input("x").unflatten(0, (-1, made["num_segments"]))
    with torch.inference_mode():
        case.check_output("y", gate.eval()(maps).flatten(0, 1), rtol=1e-5)
        if "gate" in case.arrays:
            case.check_output("gate", gate.gates(maps).transpose(1, 2), rtol=1e-5)


@pytest.mark.parametrize("area, name", CASES)
def test_networks_match_the_public_ones(area, name):
    case = golden_cases.load_case(name, area)
    made = case.meta["constructor_args"]
    percent = {"percent": made["gsf_ch_ratio"]} if "gsf_ch_ratio" in made else {}
    network = create_backbone(NETWORKS[name], **percent)
    weights = case.weights()
    install(network, network.layouts[0].convert(weights), what=name)
    assert network.layouts[0].recognises(weights)
    frames = case.input(next(iter(case.meta["inputs"])))
    frames = frames * (50 if case.meta["notes"].startswith("x = 50*input_for") else 1)
    clips = frames.unflatten(0, (-1, made["num_segments"])).transpose(1, 2)
    head = network.get_submodule(network.classifier_weight.removesuffix(".weight"))
    with torch.inference_mode():
        logits = head(pool_space(network(clips)).flatten(0, 1))
    want = case.arrays["y"]
    if not name.endswith("_gain"):
        case.check_output("y", logits[:, : want.shape[1]], rtol=1e-5)
        return
    # The weights of the gain cases make gates steep, and rounding grows through them. The same network in float64 tells
    # by how much: stored float32 results are themselves 5e-5 to 4e-4 away from it, and ours 4e-5 to 5e-4 by the order
    # in which the machine adds. Another network would be away by 1e-2 or more.
    double = network.double()
    with torch.inference_mode():
        exact = double.get_submodule("head")(pool_space(double(clips.double())).flatten(0, 1))[:, : want.shape[1]]
    span = exact.abs().max()
    stored, ours = ((x.double() - exact).abs().max() / span for x in (want, logits[:, : want.shape[1]]))
    assert stored < 6e-4
    assert ours < max(1.5 * stored, 3e-4)


@pytest.mark.parametrize("name", golden_cases.available("recognition", "gsf_resnet50"))
def test_taps_of_the_public_resnet(name):
    case = golden_cases.load_case(name)
    network = create_backbone("gsf:resnet50")
    install(network, network.layouts[0].convert(case.weights()), what=name)
    # of the last run there, that counted operations: a clip of zeros, 224 x 224
    frames, side = case.meta["taps"]["layer4"]["shape"][0], 32 * case.meta["taps"]["layer4"]["shape"][-1]
    clips = torch.zeros(1, 3, frames, side, side)
    with torch.inference_mode(), golden_cases.Tapped(network, {x: f"network.{x}" for x in case.taps}) as outputs:
        network(clips)
    for tap in case.taps:
        case.check_tap(tap, outputs[tap], rtol=1e-4)


def test_a_small_published_resnet():
    """The public class with one block a layer; timm's smallest with bottlenecks has two."""
    case = golden_cases.load_case("gsf_resnet_tiny", "anticipation")
    network = create_backbone("gsf:resnet26", num_classes=5)
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        del network.network.get_submodule(layer)[1]
    install(network, network.layouts[0].convert(case.weights()), what=case.name)
    clips = case.input("x").unflatten(0, (-1, 4)).transpose(1, 2)
    with torch.inference_mode():
        logits = network.network.fc(pool_space(network(clips)).flatten(0, 1))
    case.check_output("y", logits, rtol=1e-5)


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_one_channel_at_a_time(percent):
    """Gated parts move and the rest stays, in GSF weighted by their means; percent 0 stands for GSM."""
    torch.manual_seed(0)
    channels = 16 if percent == 50 else 8
    gate = (GSF(channels, percent) if percent else GSM(channels)).double().eval()
    for weight in gate.parameters():
        torch.nn.init.normal_(weight)
    maps = torch.randn(2, 3, channels, 4, 5, dtype=torch.float64)
    taken, half, quarter = maps[:, :, :8], 4, 2
    normed = gate.bn(taken.transpose(1, 2)).relu()
    want = maps.clone()
    for group in (0, 1):
        seen = normed[:, group * half : (group + 1) * half]
        values = F.conv3d(seen, gate.conv3D.weight[group : group + 1], gate.conv3D.bias[group : group + 1], padding=1)
        alpha = values.tanh()[:, 0]  # (B, T, H, W)
        moves, stays = torch.zeros(2, 3, half, 4, 5).double(), torch.zeros(2, 3, half, 4, 5).double()
        for t in range(3):
            source = t + 1 if group == 0 else t - 1
            for c in range(half):
                stays[:, t, c] = (1 - alpha[:, t]) * taken[:, t, group * half + c]
                if 0 <= source < 3:
                    moves[:, t, c] = alpha[:, source] * taken[:, source, group * half + c]
        joined = moves + stays
        if percent:
            conv = gate.channel_conv1 if group == 0 else gate.channel_conv2
            means = torch.stack([moves.mean((3, 4)), stays.mean((3, 4))], 1).transpose(2, 3)  # (B, 2, C, T)
            weight = conv(means).sigmoid()[:, 0].transpose(1, 2)[..., None, None]
            joined = weight * moves + (1 - weight) * stays
        for c in range(half):
            want[:, :, group * half + 2 * (c % quarter) + c // quarter] = joined[:, :, c]
    torch.testing.assert_close(gate(maps), want)


def test_a_new_gsm_is_a_shuffle_of_channels():
    maps = torch.randn(1, 3, 8, 4, 4)
    assert torch.equal(GSM(8).eval()(maps), maps[:, :, [0, 2, 1, 3, 4, 6, 5, 7]])


def test_gates_stand_where_the_public_networks_have_them():
    with torch.device("meta"):
        v3 = create_backbone("gsm:inception_v3"), create_backbone("gsf:inception_v3")
    gated = [{name.removesuffix(".gate") for name, _ in net.named_modules() if name.endswith(".gate")} for net in v3]
    every = {f"body.mixed{suffix}.units.conv.conv" for suffix in ("", *(f"_{i}" for i in range(1, 11)))}
    every = every - {"body.mixed_8.units.conv.conv"} | {"body.mixed_8.units.tower_conv.conv"}
    assert gated[1] == every
    moved = {"body.mixed_3.units.conv.conv", "body.mixed_6.units.conv.conv"}
    assert gated[0] == every - moved | {"body.mixed_3.units.tower_conv.conv"}


def test_names_and_input_of_inception_v3():
    with torch.device("meta"):
        network = create_backbone("gsm:inception_v3")
    state = {inception_v3_name(key, "gsm"): tensor for key, tensor in network.state_dict().items()}
    assert "base_model.gsm_mixed_8_tower_conv_Conv2D.conv3D.weight" in state
    assert "base_model.mixed_10_tower_1_mixed_conv_1_batchnorm.running_var" in state
    assert state["base_model.mixed_4_tower_conv_1_Conv2D.weight"].shape == (128, 128, 7, 1)
    assert (network.input_spec.crop, network.input_spec.resize_side) == (229, 261)


def test_training_starts_from_image_weights_without_gates(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "plain.pth"
    whole = create_backbone("gsm:inception_v3").state_dict()
    plain = {inception_v3_name(key, "gsm"): tensor for key, tensor in whole.items() if ".gate." not in key}
    torch.save({key.removeprefix("base_model."): tensor for key, tensor in plain.items()}, path)
    network = create_backbone("gsm:inception_v3", weights=path)
    assert torch.equal(
        network.body["mixed_9"].units["conv"].conv.weight, plain["base_model.mixed_9_conv_Conv2D.weight"]
    )
    assert network.body["mixed_9"].units["conv"].conv.gate.conv3D.weight.abs().sum() == 0
    images = create_backbone("tsn:resnet18").network.state_dict()
    torch.save(images, path)
    network = create_backbone("gsf:resnet18", weights=path)
    assert torch.equal(network.network.layer4[1].conv2.weight, images["layer4.1.conv2.weight"])


def test_a_gated_file_is_called_by_its_name_elsewhere(tmp_path):
    torch.save({"base_model.layer1.0.gsf.conv3D.weight": torch.zeros(1)}, tmp_path / "gsf.pth.tar")
    with pytest.raises(ValueError, match="looks like a file of swathikirans/GSF"):
        create_backbone("tsn:resnet18", weights=tmp_path / "gsf.pth.tar")


@pytest.mark.parametrize(
    "name, classes, million, gmacs",
    [
        ("gsm:bninception", 1000, 11.35, 16.4),
        ("gsm:inception_v3", 1000, 23.9, 26.8),
        ("gsf:resnet50", 1000, 25.7, 33.2),
    ],
)
def test_parameters_and_operations(name, classes, million, gmacs):
    with torch.device("meta"):
        network = create_backbone(name, num_classes=classes)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(million, rel=0.01)
    side = network.input_spec.crop
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty(1, 3, 8, side, side, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize("size", [(75, 76), (229, 229), (256, 454), (299, 130), (98, 97)])
def test_inception_v3_takes_any_size(size):
    with torch.device("meta"):
        network = create_backbone("gsm:inception_v3")
    assert network(torch.empty(1, 3, 2, *size, device="meta")).shape[2:] == network.output_size(2, *size)


@pytest.mark.parametrize("name, percent", [("gsf:resnet18", 50), ("gsf:resnet18", 25), ("gsf:inception_v3", 40)])
def test_the_share_of_channels_is_that_of_the_weights(name, percent, tmp_path):
    made = create_backbone(name, percent=percent, num_classes=3)
    if name == "gsf:inception_v3":
        state = {inception_v3_name(key, "gsf"): tensor for key, tensor in made.state_dict().items()}
    else:
        state = {f"base_model.{key}": tensor for key, tensor in made.network.state_dict().items()}
        state = {key.replace("conv2.gate.", "gsf."): tensor for key, tensor in state.items()}
        state |= {"new_fc.weight": state.pop("base_model.fc.weight"), "new_fc.bias": state.pop("base_model.fc.bias")}
    torch.save(state, tmp_path / "published.pth")
    loaded = create_backbone(name, weights=tmp_path / "published.pth")
    for key, tensor in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert loaded.options.get("percent", 25) == percent


def test_wrong_options_say_what_is_allowed():
    with pytest.raises(ValueError, match="1 to 100"):
        create_backbone("gsf:resnet18", percent=101)
    with pytest.raises(ValueError, match="4 does not divide 6"):
        GSM(6)
    assert {"gsm:bninception", "gsm:inception_v3", "gsm:resnet50"} <= set(list_backbones("gsm:*"))
    assert GSF(10, 25).channels == 4
