"""Networks of torchvision and pytorchvideo: reference outputs, the tables of their papers, published layouts."""

import golden_cases
import pytest
import torch
from torch import nn
from torchvision.models import video as tv

from actionfuse.backbones import create_backbone
from actionfuse.backbones.catalog import count_macs
from actionfuse.backbones.convert import install, recognise
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
    ],
)
def test_parameters_and_operations(name, million, gmacs):
    with torch.device("meta"):
        network = create_backbone(name, num_classes=400)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(million, rel=0.005)
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


def slowfast_names(key: str, blocks: dict[str, int], *, x3d: bool) -> str:
    """Our key in PySlowFast's words, piece by piece: the converter goes the other way, by patterns."""
    if key.startswith("head."):
        return (
            {"head.post_conv": "head.lin_5"}.get(key.rpartition(".")[0], "head.projection") + "." + key.split(".")[-1]
        )
    parts = key.split(".")
    stage = next(s for s, block in {**blocks, "conv_5": 5 if x3d else -1}.items() if str(block) == parts[1])
    rest = parts[2:]
    if stage == "conv_5":
        return f"head.conv_5{'_bn' if rest[0] == 'norm' else ''}.{rest[1]}"
    if rest[0] == "multipathway_fusion":
        return f"{stage}_fuse.{'conv_f2s' if rest[1] == 'conv_fast_to_slow' else 'bn'}.{rest[2]}"
    path = 0
    if rest[0] == "multipathway_blocks":
        path, rest = int(rest[1]), rest[2:]
    if rest[0] != "res_blocks":
        conv = {("conv", "conv_t"): "conv_xy", ("conv", "conv_xy"): "conv"}.get((rest[0], rest[1]), rest[0])
        return f"{stage}.pathway{path}_stem.{'bn' if rest[0] == 'norm' else conv}.{rest[-1]}"
    head, leaf = f"{stage}.pathway{path}_res{rest[1]}", rest[-1]
    if rest[2].startswith("branch1"):
        return f"{head}.branch1{'_bn' if 'norm' in rest[2] else ''}.{leaf}"
    kind, letter = rest[3].split("_")
    if x3d and kind == "norm" and letter == "b" and rest[4] == "1":
        return f"{head}.branch2.se.fc{1 if rest[6] == '0' else 2}.{leaf}"
    return f"{head}.branch2.{letter}{'_bn' if kind == 'norm' else ''}.{leaf}"


def caffe2_name(key: str) -> str:
    """A PySlowFast name in Caffe2's words."""
    module, _, leaf = key.rpartition(".")
    norm = module.endswith("bn")
    leaf = {"weight": "s" if norm else "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}[leaf]
    last = {"1": "pool1", "2": "res2_2", "3": "res3_3", "4": "res4_5"}
    if "_fuse." in module:
        stage = module[1]
        base = f"t_{last[stage]}" + ("" if stage == "1" else "_branch2c_bn") + "_subsample"
        return f"{base}_bn_{leaf}" if norm else f"{base}_{leaf}"
    if module == "head.projection":
        return f"pred_{leaf}"
    stage, rest = module.split(".", 1)
    t = "t_" if rest.startswith("pathway1") else ""
    rest = rest.removeprefix("pathway0_").removeprefix("pathway1_")
    if rest.startswith("stem"):
        return f"{t}res_conv1_bn_{leaf}" if norm else f"{t}conv1_{leaf}"
    block, _, branch = rest.partition(".")
    branch = branch.replace("branch2.", "branch2")
    return f"{t}res{stage[1]}_{block.removeprefix('res')}_{branch}_{leaf}"


def vmz_name(key: str) -> str:
    """Our key of a CSN in VMZ's words."""
    if key.startswith("head."):
        return key.replace("head", "fc")
    parts = key.split(".")
    if parts[1] == "0":
        return f"stem.{0 if parts[2] == 'conv' else 1}.{parts[-1]}"
    head = f"layer{parts[1]}.{parts[3]}"
    if parts[4].startswith("branch1"):
        return f"{head}.downsample.{int('norm' in parts[4])}.{parts[-1]}"
    kind, letter = parts[5].split("_")
    return f"{head}.conv{'abc'.index(letter) + 1}.{int(kind == 'norm')}.{parts[-1]}"


STAGES = {"s1": 0, "s2": 1, "s3": 2, "s4": 3, "s5": 4}
POOLED = {"s1": 0, "s2": 1, "s3": 3, "s4": 4, "s5": 5}


@pytest.mark.parametrize(
    "name, style",
    [
        ("slowfast_r50", "slowfast"),
        ("slowfast_r50", "caffe2"),
        ("slow_r50", "slowfast"),
        ("slow_r50", "caffe2"),
        ("c2d_r50", "slowfast"),
        ("c2d_r50", "caffe2"),
        ("x3d_s", "slowfast"),
        ("csn_r152", "vmz"),
    ],
)
def test_published_names_find_their_places(name, style):
    with torch.device("meta"):
        network = create_backbone(name, num_classes=4)
    own = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    state = {}
    for key, tensor in own.items():
        blocks = POOLED if name == "c2d_r50" else STAGES
        theirs = vmz_name(key) if style == "vmz" else slowfast_names(key, blocks, x3d=name == "x3d_s")
        theirs = caffe2_name(theirs) if style == "caffe2" else theirs
        assert theirs not in state
        state[theirs] = tensor
    layout = recognise(state, network.layouts, what=name)
    assert {"slowfast": "SlowFast", "caffe2": "Caffe2", "vmz": "VMZ"}[style] in layout.name
    converted = layout.convert(state)
    assert set(converted) == set(own)
    assert all(converted[key] is own[key] or converted[key].shape == own[key].shape for key in own)
    assert sum(converted[key] is own[key] for key in own) >= len(own) - 1  # the classifier of Caffe2 is flattened


def test_model_state_files_load_and_the_wrong_number_of_pathways_is_told(tmp_path):
    with torch.device("meta"):
        shapes = create_backbone("x3d_xs", num_classes=4).state_dict()
    ours = {key: torch.rand(tensor.shape) for key, tensor in shapes.items() if tensor.is_floating_point()}
    state = {slowfast_names(key, STAGES, x3d=True): tensor for key, tensor in ours.items()}
    torch.save({"epoch": 3, "model_state": state, "cfg": "TRAIN: ..."}, tmp_path / "X3D_XS.pyth")
    network = create_backbone("x3d_xs", weights=tmp_path / "X3D_XS.pyth")
    assert network.num_classes == 4
    for key, tensor in ours.items():
        assert torch.equal(network.state_dict()[key], tensor), key
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


def mvit_name(key: str) -> str:
    """Our key of an MViT in PySlowFast's words."""
    if key.startswith("pos_encoding."):
        return {
            "class_token": "cls_token",
            "spatial_pos": "pos_embed_spatial",
            "temporal_pos": "pos_embed_temporal",
            "class_pos": "pos_embed_class",
        }[key.split(".")[1]]
    first, *rest = key.split(".")
    if first == "head":
        return f"head.projection.{rest[-1]}"
    if first == "conv_proj":
        return f"patch_embed.proj.{rest[-1]}"
    if first != "blocks" or rest[1].startswith("norm"):
        return key
    block, leaf = f"blocks.{rest[0]}", rest[-1]
    if rest[1] == "project":
        return f"{block}.proj.{leaf}"
    if rest[1] == "mlp":
        return f"{block}.mlp.fc{1 if rest[2] == '0' else 2}.{leaf}"
    if rest[2] == "project":
        return f"{block}.attn.proj.{leaf}"
    if rest[2].startswith("pool_"):
        return f"{block}.attn.{rest[2] if rest[3] == 'pool' else rest[2].replace('pool', 'norm')}.{leaf}"
    return key  # qkv and tables of relative positions


@pytest.mark.parametrize("name, apart", [("mvit_v1_b", False), ("mvit_v1_b", True), ("mvit_v2_s", False)])
def test_mvit_of_slowfast(tmp_path, name, apart):
    small = {"frames": 4, "crop": 64}
    with torch.device("meta"):
        source = create_backbone(name, num_classes=5, **small).to_empty(device="cpu")
    with torch.no_grad():
        for number, weight in enumerate(source.parameters()):
            weight.copy_((torch.arange(weight.numel()) + number).view(weight.shape))
    state = {}
    for key, tensor in source.state_dict().items():
        theirs = mvit_name(key)
        tensor = tensor[None] if theirs.startswith("pos_embed") else tensor
        tensor = tensor[None, None] if theirs == "cls_token" else tensor
        tensor = tensor[None] if theirs == "pos_embed_class" else tensor
        if apart and ".attn.qkv." in theirs:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                state[theirs.replace("qkv", part)] = third
        else:
            state[theirs] = tensor
    assert not set(state) & {"conv_proj.weight", "head.weight"}
    torch.save({"epoch": 200, "model_state": state, "cfg": "TRAIN: ..."}, tmp_path / "k400.pyth")
    loaded = create_backbone(name, weights=tmp_path / "k400.pyth", **small)
    assert loaded.num_classes == 5 and loaded.input_spec.mean == (0.45,) * 3
    for key, tensor in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    del state["blocks.3.norm1.weight"]
    torch.save({"model_state": state}, tmp_path / "k400.pyth")
    with pytest.raises(ValueError, match=r"1 missing: blocks\.3\.norm1\.weight"):
        create_backbone(name, weights=tmp_path / "k400.pyth", **small)
