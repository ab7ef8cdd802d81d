"""Networks of torchvision and pytorchvideo: reference outputs, the tables of their papers, published layouts."""

import golden_cases
import pytest
import torch
from torch import nn
from torchvision.models import video as tv

from actionfuse.backbones import create_backbone, load_backbone, save_backbone
from actionfuse.backbones._stage_net import pytorchvideo
from actionfuse.backbones.catalog import count_macs
from actionfuse.backbones.convert import install, recognise
from actionfuse.backbones.i3d_resnet import NonLocal
from actionfuse.backbones.slowfast import slow_frames

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
        ("mvit_v1_b_32x3", 52.9, 236),  # of the paper
        ("mvit_v2_b", 51.2, 225),  # of mmaction2, which ported these, as the next
        ("mvit_v2_l", 213, 2828),
    ],
)
def test_parameters_and_operations(name, million, gmacs):
    with torch.device("meta"):
        network = create_backbone(name, num_classes=400)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(million, rel=0.006)
    if gmacs:
        spec = network.input_spec
        assert count_macs(network, spec.frames, spec.crop, spec.crop) / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_mvit_is_torchvisions_network(monkeypatch):
    # torchvision's functions fix the clip's size; its own table of blocks at a smaller one is what is compared.
    made = tv.mvit._mvit
    small = {"spatial_size": (64, 64), "temporal_size": 4}
    monkeypatch.setattr(tv.mvit, "_mvit", lambda **options: made(**{**options, **small}))
    for name in ("mvit_v1_b", "mvit_v2_s"):
        torch.manual_seed(0)
        theirs = getattr(tv, name)(num_classes=5).eval()
        ours = create_backbone(name, frames=4, crop=64, num_classes=5)
        weights = theirs.state_dict()
        install(ours, recognise(weights, ours.layouts, what=name).convert(weights), what=name)
        clips = torch.randn(1, 3, 4, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(ours.forward_and_classify(clips)[1], theirs(clips), rtol=1e-5, atol=1e-5)
            with pytest.raises(ValueError, match="class token"):
                ours.classify(ours(clips))
            with pytest.raises(ValueError, match="frames=8, crop=32"):
                ours(torch.zeros(1, 3, 8, 32, 32))


def test_s3d_is_torchvisions_network():
    torch.manual_seed(0)
    theirs = tv.s3d(num_classes=5).eval()
    ours = create_backbone("s3d", num_classes=5)
    weights = theirs.state_dict()
    install(ours, recognise(weights, ours.layouts, what="s3d").convert(weights), what="s3d")
    clips = torch.randn(1, 3, 16, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours.classify(ours(clips)), theirs(clips), rtol=1e-4, atol=1e-5)


def test_slow_pathway_sees_the_published_frames():
    for alpha in (2, 4, 8):
        for frames in range(alpha, 129, alpha):
            want = torch.linspace(0, frames - 1, frames // alpha).long().tolist()
            assert slow_frames(frames, alpha) == want
    assert slow_frames(32, 4) == [0, 4, 8, 13, 17, 22, 26, 31]
    assert slow_frames(1, 4) == [0] and slow_frames(9, 4) == [0, 4, 8]


def test_slowfast_map_is_both_pathways_at_the_slow_ones_steps():
    torch.manual_seed(0)
    network = create_backbone("slowfast_r50", num_classes=3)
    clips = torch.randn(1, 3, 16, 64, 64)
    with torch.inference_mode():
        slow, fast = network.trunk([clips[:, :, [0, 5, 10, 15]], clips])
        maps, logits = network.forward_and_classify(clips)
        assert torch.equal(maps[:, :2048], slow)
        torch.testing.assert_close(maps[:, 2048:], fast.unflatten(2, (4, 4)).mean(3))
        pooled = torch.cat((slow.mean((2, 3, 4)), fast.mean((2, 3, 4))), 1)
        torch.testing.assert_close(logits, network.head(pooled))


def test_the_wrong_number_of_pathways_is_told(tmp_path):
    torch.save(
        {"s1_fuse.conv_f2s.weight": torch.ones(1), "s2.pathway0_res0.branch2.a.weight": torch.ones(1)},
        tmp_path / "2.pth",
    )
    with pytest.raises(ValueError, match=r"looks like a file of facebookresearch/SlowFast \(slowfast_\*\)"):
        create_backbone("slow_r50", weights=tmp_path / "2.pth")


def test_csn_of_152_layers_adds_what_its_weights_were_trained_with():
    with torch.device("meta"):
        for name, eps in (("csn_r101", 1e-5), ("csn_r152", 1e-3)):
            norms = [m for m in create_backbone(name).modules() if isinstance(m, nn.BatchNorm3d)]
            assert {norm.eps for norm in norms} == {eps}


def test_detection_is_pytorchvideos_network_with_the_frame_for_a_box():
    theirs = pytorchvideo("hub").slow_r50_detection(pretrained=False).eval()
    with torch.device("meta"):
        network = create_backbone("slow_r50", num_classes=80, detection=True)
    network.load_state_dict(network.layouts[0].convert(theirs.state_dict()), assign=True)
    clips = torch.randn(1, 3, 4, 48, 64)
    with torch.inference_mode():
        maps = theirs.model(clips)
        torch.testing.assert_close(network(clips), maps)
        assert maps.shape[2:] == network.output_size(4, 48, 64) == (4, 3, 4)
        box = maps.mean(2).amax((2, 3))
        torch.testing.assert_close(network.classify(maps), theirs.detection_head.proj(box))


def test_nonlocal_blocks_of_slowfast_stand_on_the_slow_pathway_and_start_as_identity():
    with torch.device("meta"):
        network = create_backbone("slowfast_r101_50_50_nln")
    found = [name for name, module in network.named_modules() if isinstance(module, NonLocal)]
    assert found == [f"trunk.3.multipathway_blocks.0.res_blocks.{k}.nonlocal" for k in (6, 13, 20)]
    block = network.get_submodule(found[0]).to_empty(device="cpu").eval()
    for name, tensor in block.state_dict().items():
        tensor.fill_(0.0 if name == "norm.weight" else 0.5)
    maps = torch.randn(1, 1024, 2, 2, 2)
    with torch.inference_mode():
        torch.testing.assert_close(block(maps), maps + 0.5)  # the norm's offset alone


def test_c2d_without_its_pooling_keeps_all_frames():
    with torch.device("meta"):
        plain, pooled = create_backbone("c2d_r50", temporal_pool=False), create_backbone("c2d_r50")
    assert set(plain.state_dict()) == set(pooled.state_dict())
    clips = torch.empty(1, 3, 5, 32, 32, device="meta")
    assert plain(clips).shape[2:] == plain.output_size(5, 32, 32) == (5, 1, 1)
    assert pooled(clips).shape[2] == 2


def test_mvit_without_pooled_keys_in_its_last_blocks():
    with torch.device("meta"):
        network = create_backbone("mvit_v1_b", frames=4, crop=64, pool_last_keys=False)
    pooled = [number for number, block in enumerate(network.blocks) if block.attn.pool_k is not None]
    assert pooled == list(range(14))
    assert network(torch.empty(1, 3, 4, 64, 64, device="meta")).shape[2:] == network.output_size(4, 64, 64)


def test_x3d_norms_its_first_shortcut_where_the_weights_do(tmp_path):
    """SlowFast's networks do, pytorchvideo's do not; what was found is kept with the network."""
    torch.manual_seed(0)
    normed = create_backbone("x3d_xs", shortcut_norm=True)
    block = normed.get_submodule("trunk.1.res_blocks.0")
    block.branch1_norm.running_mean.normal_()
    clip = torch.randn(1, 3, 2, 32, 32)
    seen = {}
    block.branch1_conv.register_forward_hook(lambda _m, inputs, output: seen.update(before=inputs[0], after=output))
    block.branch2.register_forward_hook(lambda _m, _i, output: seen.update(branch=output))
    block.register_forward_hook(lambda _m, _i, output: seen.update(block=output))
    with torch.inference_mode():
        maps = normed(clip)
        norm = block.branch1_norm
        shifted = (seen["after"] - norm.running_mean.view(-1, 1, 1, 1)) / (1 + norm.eps) ** 0.5
        torch.testing.assert_close(seen["block"], (shifted + seen["branch"]).relu())
    save_backbone(normed, tmp_path / "x3d.safetensors")
    for again in (
        create_backbone("x3d_xs", weights=tmp_path / "x3d.safetensors"),
        load_backbone(tmp_path / "x3d.safetensors"),
    ):
        assert again.options == {"shortcut_norm": True}
        with torch.inference_mode():
            torch.testing.assert_close(again(clip), maps)
    plain = create_backbone("x3d_xs")
    assert plain.options == {} and plain.get_submodule("trunk.1.res_blocks.0").branch1_norm is None


@pytest.mark.parametrize("frames, fps, options", [(8, 3.75, {}), (4, 1.875, {}), (4, 1.875, {"detection": True})])
def test_slow_networks_of_four_frames_see_every_sixteenth(frames, fps, options):
    with torch.device("meta"):
        spec = create_backbone("slow_r50", frames=frames, **options).input_spec
    assert (spec.frames, spec.fps) == (frames, fps)
