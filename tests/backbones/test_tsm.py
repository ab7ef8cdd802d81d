"""Temporal shift against loops and against the public networks; its checkpoints, which say where they shift."""

import golden_cases
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from actionfuse.backbones import create_backbone, list_backbones
from actionfuse.backbones.convert import install
from actionfuse.backbones.tsm import NonLocal, temporal_pool, temporal_shift

CASES = golden_cases.available(
    "recognition",
    "tsm_resnet50",
    "tsm_resnet50_block",
    "tsm_resnet50_nl",
    "tsm_resnet50_tpool",
    "tsm_resnet50_flow",
    "tsm_resnet101",
    "tsn_resnet50",
    "epic_tsm_rgb",
    "epic_tsn_rgb",
    "epic_tsn_flow",
)


def build(case: golden_cases.Case):
    """The backbone that the case's constructor arguments describe, with its weights, and T."""
    made = case.meta["constructor_args"]
    shifts = case.meta["class"].endswith("TSM") or made.get("is_shift", False)
    options = {}
    if shifts:
        options = {
            "place": made.get("shift_place", "blockres"),
            "fold_div": made.get("shift_div", 8),
            "temporal_pool": made.get("temporal_pool", False),
            "non_local": made.get("non_local", False),
        }
    stream = made["modality"].lower()
    network = create_backbone(f"{'tsm' if shifts else 'tsn'}:{made['base_model']}", stream=stream, **options)
    weights = case.weights()
    layout = next(layout for layout in network.layouts if layout.recognises(weights))
    install(network, layout.convert(weights), what=case.name)
    return network, made["num_segments"]


def laid_out(frames: torch.Tensor, steps: int) -> torch.Tensor:
    """(B, T * C, H, W) or (B, T, C, H, W) -> (B, C, T, H, W)."""
    return (frames.unflatten(1, (steps, -1)) if frames.ndim == 4 else frames).transpose(1, 2)


@pytest.mark.parametrize("name", CASES)
def test_matches_the_public_networks(name):
    case = golden_cases.load_case(name)
    network, steps = build(case)
    frames = case.input("frames")
    with torch.inference_mode():
        logits = network.classify(network(laid_out(frames, steps)))
    # attention without a scale is sharp: rounding moves it more
    case.check_output("logits", logits, rtol=1e-4 if case.name.endswith("_nl") else 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_taps_of_the_public_networks(name):
    case = golden_cases.load_case(name)
    if not case.taps:
        return
    network, steps = build(case)
    # Where a tap has other sizes than the input gives, it is of the last run there, that counted operations: one clip
    # of zeros, 224 x 224.
    counted = case.meta["taps"]["base_model.layer4"]["shape"][-1] == 7
    frames = case.input("frames")
    clips = torch.zeros(1, steps * (frames.shape[1] // steps), 224, 224) if counted else frames
    paths = {tap: tap.replace("base_model.", "network.") for tap in case.taps if tap.startswith("base_model.layer")}
    with torch.inference_mode(), golden_cases.Tapped(network, paths) as outputs:
        maps = network(laid_out(clips, steps))
    for tap, output in outputs.items():
        case.check_tap(tap, output, rtol=1e-5)
    pooled = maps.transpose(1, 2).flatten(0, 1).mean((2, 3), keepdim=True)
    if "base_model.avgpool" in case.taps:
        case.check_tap("base_model.avgpool", pooled, rtol=1e-5)
    if "new_fc" in case.taps:
        shape = case.meta["taps"]["new_fc"]["shape"]
        case.check_tap("new_fc", network.network.fc(pooled.flatten(1)).view(shape), rtol=1e-5)


def test_shift_matches_the_public_operator():
    case = golden_cases.load_case("temporal_shift_op")
    clips = case.input("shift").unflatten(0, (-1, case.meta["constructor_args"]["n_segment"]))
    case.check_output("y", temporal_shift(clips, case.meta["constructor_args"]["fold_div"]).flatten(0, 1), rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_shift_one_channel_at_a_time(frames):
    torch.manual_seed(0)
    clips = torch.randn(2, frames, 9, 3, 2, dtype=torch.float64, requires_grad=True)
    shifted = temporal_shift(clips, 4)
    for t in range(frames):
        for channel in range(9):
            source = t + 1 if channel < 2 else t - 1 if channel < 4 else t
            want = clips[:, source, channel] if 0 <= source < frames else torch.zeros(2, 3, 2).double()
            assert torch.equal(shifted[:, t, channel], want)
    assert torch.autograd.gradcheck(lambda x: temporal_shift(x, 4), clips)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_what_compilers_see_is_the_same_shift(frames):
    clips = torch.randn(2, frames, 16, 3, 3)
    compiled = torch.compile(temporal_shift, backend="eager", fullgraph=True)
    ours, theirs = (clips.clone().requires_grad_() for _ in range(2))
    shifted = temporal_shift(ours)
    assert torch.equal(shifted, compiled(theirs))
    gradient = torch.randn_like(shifted)
    shifted.backward(gradient)
    compiled(theirs).backward(gradient)
    assert torch.equal(ours.grad, theirs.grad)


def test_shift_keeps_channels_last():
    maps = torch.randn(4, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    shifted = temporal_shift(maps.unflatten(0, (2, 2))).flatten(0, 1)
    assert shifted.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 9])
def test_temporal_pool_is_a_max_of_three(frames):
    clips = torch.randn(2, frames, 3, 4, 4)
    want = F.max_pool3d(clips.transpose(1, 2), (3, 1, 1), (2, 1, 1), (1, 0, 0)).transpose(1, 2)
    assert torch.equal(temporal_pool(clips), want)


def test_non_local_one_place_at_a_time():
    torch.manual_seed(0)
    block = NonLocal(4).eval()
    torch.nn.init.normal_(block.norm.weight)
    maps = torch.randn(2, 4, 3, 4, 5)
    phi, g = F.max_pool3d(block.phi(maps), (1, 2, 2)), F.max_pool3d(block.g(maps), (1, 2, 2))
    theta, seen = block.theta(maps), torch.zeros(2, 2, 3, 4, 5)
    for b, t, y, x in torch.cartesian_prod(*map(torch.arange, (2, 3, 4, 5))):
        share = torch.einsum("c,cthw->thw", theta[b, :, t, y, x], phi[b]).flatten().softmax(0)
        seen[b, :, t, y, x] = g[b].flatten(1) @ share
    torch.testing.assert_close(block(maps), maps + block.norm(block.out(seen)), rtol=1e-4, atol=1e-5)


def test_where_it_shifts():
    with torch.device("meta"):
        shallow, deep = create_backbone("tsm:resnet50"), create_backbone("tsm:resnet101")
        blocks = create_backbone("tsm:resnet18", place="block")
    hooked = [[bool(b.conv1._forward_pre_hooks) for b in net.blocks("layer3")] for net in (shallow, deep)]
    assert hooked[0] == [True] * 6 and hooked[1] == [True, False] * 11 + [True]
    assert all(b._forward_pre_hooks and not b.conv1._forward_pre_hooks for b in blocks.blocks("layer4"))
    with torch.device("meta"):
        plain = create_backbone("tsn:resnet50")
    assert set(shallow.state_dict()) == set(plain.state_dict())


def test_a_shift_of_still_frames_only_loses_the_ends():
    """Every frame equal and far from the ends: the network sees what the plain ResNet sees, but for the zeros."""
    torch.manual_seed(0)
    shifted = create_backbone("tsm:resnet18")
    for name, weight in shifted.named_parameters():
        if name.endswith("bn2.weight"):
            torch.nn.init.ones_(weight)  # blocks start as their shortcuts, and those are not shifted
    plain = create_backbone("tsn:resnet18")
    plain.load_state_dict(shifted.state_dict())
    still = torch.randn(1, 3, 1, 64, 64).expand(-1, -1, 33, -1, -1)
    with torch.inference_mode():
        ours, theirs = shifted(still), plain(still)
    torch.testing.assert_close(ours[:, :, 16], theirs[:, :, 16], rtol=1e-4, atol=1e-4)
    assert (ours[:, :, 0] - theirs[:, :, 0]).abs().max() > 0.01


def test_a_forward_of_another_length_between_forward_and_backward_changes_nothing():
    torch.manual_seed(0)
    network = create_backbone("tsm:resnet18").train()
    network.eval()  # norms that do not learn, so that runs are comparable
    clips = torch.randn(1, 3, 4, 32, 32)
    gradients = []
    for between in (False, True):
        network.zero_grad()
        loss = network(clips).square().mean()
        if between:
            network(clips[:, :, :2])
        loss.backward()
        gradients.append(network.network.conv1.weight.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    "options, wrong, says",
    [
        ({}, {"place": "block"}, "place='blockres'"),
        ({"place": "block"}, {}, "place='block'"),
        ({"non_local": True}, {}, "non_local=True"),
        ({"temporal_pool": True}, {}, "temporal_pool=True"),
    ],
)
def test_checkpoints_say_where_they_shift(tmp_path, options, wrong, says):
    """Written as the public code names its wrappers, loaded by create_backbone(weights=PATH)."""
    torch.manual_seed(0)
    source = create_backbone("tsm:resnet50" if options.get("non_local") else "tsm:resnet18", num_classes=5, **options)
    state = {}
    for key, tensor in source.state_dict().items():
        name = key.removeprefix("network.").replace("fc.", "new_fc.") if ".fc." in key else key[len("network.") :]
        parts = name.split(".")
        if parts[0].startswith("layer"):
            if "nl" in parts:
                names = {"out": ["W", "0"], "norm": ["W", "1"], "g": ["g", "0"], "phi": ["phi", "0"]}
                parts[3:4] = names.get(parts[3], parts[3:4])
            elif options.get("non_local") and f"{parts[0]}.{parts[1]}" in (
                "layer2.0", "layer2.2", "layer3.0", "layer3.2", "layer3.4"
            ):  # fmt: skip
                parts.insert(2, "block")
            if options.get("place") == "block":
                parts.insert(2, "net")
            elif "nl" not in parts and "conv1" in parts:
                parts.insert(parts.index("conv1") + 1, "net")
            if options.get("temporal_pool") and parts[0] == "layer2":
                parts.insert(1, "net")
        state["module." + ("" if name.startswith("new_fc") else "base_model.") + ".".join(parts)] = tensor
    path = tmp_path / "TSM_something_RGB_resnet50_shift8_blockres_avg_segment8_e45.pth"
    torch.save({"state_dict": state, "epoch": 45}, path)
    loaded = create_backbone(source.name, weights=path, **options)
    assert loaded.num_classes == 5
    for key, tensor in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert loaded.input_spec.interpolation == "bilinear" and loaded.input_spec.resize_side == 256
    with pytest.raises(ValueError, match=says):
        create_backbone(source.name, weights=path, **wrong)
    with pytest.raises(ValueError, match="looks like a file of mit-han-lab/temporal-shift-module .TSM."):
        create_backbone(source.name.replace("tsm", "tsn"), weights=path)


def test_epic_networks_were_trained_with_the_mean_for_the_std(tmp_path):
    with torch.device("meta"):
        keys = {key: x.shape for key, x in create_backbone("tsm:resnet18", num_classes=397).state_dict().items()}
    state = {}
    for key, shape in keys.items():
        name = "new_fc." + key.removeprefix("network.fc.") if ".fc." in key else "base_model." + key[len("network.") :]
        state["model." + name.replace("conv1.weight", "conv1.net.weight" if "layer" in name else "conv1.weight")] = (
            torch.zeros(shape)
        )
    path = tmp_path / "tsm_rgb.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"modality": "RGB"}}, path)
    spec = create_backbone("tsm:resnet18", weights=path).input_spec
    assert spec.std == spec.mean == (0.485, 0.456, 0.406)
    white = torch.full((1, 1, 1, 1, 3), 255, dtype=torch.uint8)
    torch.testing.assert_close(spec.normalise(white).flatten()[0], torch.tensor((1 - 0.485) / 0.485))
    flow = create_backbone("tsm:resnet18", weights=path, stream="flow").input_spec
    assert flow.std == (0.226,) * 10


@pytest.mark.parametrize(
    "name, options, million, gmacs",
    [
        ("tsm:resnet50", {}, 23.5, 32.9),
        ("tsm:resnet50", {"stream": "flow"}, 23.5, 35.1),
        ("tsm:resnet50", {"non_local": True}, 30.9, 61.3),
        ("tsm:resnet101", {}, 42.5, None),
    ],
)
def test_parameters_and_operations(name, options, million, gmacs):
    with torch.device("meta"):
        network = create_backbone(name, num_classes=10, **options)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(million, rel=0.01)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty(1, network.input_spec.channels, 8, 224, 224, device="meta"))
    assert gmacs is None or counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_wrong_options_say_what_is_allowed():
    with pytest.raises(ValueError, match="'blockres' or 'block'"):
        create_backbone("tsm:resnet18", place="residual")
    with pytest.raises(ValueError, match="at least 2"):
        create_backbone("tsm:resnet18", fold_div=1)
    with pytest.raises(ValueError, match="is no ResNet"):
        create_backbone("tsm:vit_tiny_patch16_224")
    assert "tsm:resnet50" in list_backbones("tsm:resnet5*")
