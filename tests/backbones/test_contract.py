"""Every backbone keeps the contract: each registered name, and networks of several kinds for library families."""

from __future__ import annotations

import copy
import pickle
import shutil
from dataclasses import replace
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save

from actionfuse.backbones import (
    Backbone,
    create_backbone,
    list_backbones,
    load_backbone,
    own,
    pool_clip,
    pool_space,
    save_backbone,
)
from actionfuse.backbones.contract import CARDS

LIBRARY_NETWORKS: dict[str, dict[str, object]] = {
    "tsn:resnet18": {},
    "tsn:tf_efficientnet_lite0": {},
    "tsn:vit_tiny_patch16_224": {},  # tokens, one of them the class token
    "tsn:swin_tiny_patch4_window7_224": {"crop": 64},  # channels last, of a fixed size
    "tsn:convnext_atto": {},
    "trn:resnet18": {"frames": 3},
    "mtrn:vit_tiny_patch16_224": {"frames": 4},
    "karpathy:resnet18": {},
    "karpathy:convnext_atto": {"fusion": "slow_fusion"},
    "karpathy:test_vit": {"fusion": "early_fusion", "frames": 3},
    "karpathy:tf_efficientnet_lite0": {"fusion": "late_fusion", "frames": 3},
    "tsm:resnet18": {},
    "gsf:resnet18": {},
    "gsm:bninception": {},
    "mtrn:bninception": {"frames": 4},
    "gsf:inception_v3": {"percent": 50},
    "tsm:resnet26": {"place": "block", "temporal_pool": True, "non_local": True},
}
NAMES: dict[str, dict[str, object]] = {name: {} for name in list_backbones() if ":" not in name} | LIBRARY_NETWORKS
# Networks of one size of clip, made small.
NAMES |= {"c3d": {"crop": 32}, "mvit_v1_b": {"frames": 4, "crop": 64}, "mvit_v2_s": {"frames": 4, "crop": 64}}
NAMES |= {name: {"frames": 4, "crop": 64} for name in ("mvit_v1_b_32x3", "mvit_v2_b", "mvit_v2_l")}
# Variants of other names in numbers only: written and read by the same code, only slowly.
VARIANTS = ("omnivore_swin_b", "omnivore_swin_b_epic", "omnivore_swin_l", "omnivore_swin_s", "swin3d_b", "swin3d_s")
VARIANTS += ("swin3d_l",)
VARIANTS += ("i3d_r50_c2_32x2", "i3d_r50_c2_nln_32x2", "i3d_r50_c2_nln")
VARIANTS += (
    "csn_r152",
    "mc3_18",
    "mvit_v1_b",
    "mvit_v1_b_32x3",
    "mvit_v2_b",
    "mvit_v2_l",
    "p3d131",
    "p3d199",
    "r2plus1d_18",
    "slowfast_16x8_r101_50_50",
    "slowfast_r101",
    "slowfast_r101_50_50_nln",
)
VARIANTS += ("r2plus1d_r50", "slow_r50", "x3d_l", "x3d_m", "x3d_s")
CLASSES = 7
not_variants = pytest.mark.parametrize("backbone", [name for name in NAMES if name not in VARIANTS], indirect=True)


@pytest.fixture(scope="module", params=NAMES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Variants without memory: what they compute is what the networks compute that they are variants of."""
    with torch.random.fork_rng(), torch.device("meta" if request.param in VARIANTS else "cpu"):
        torch.manual_seed(0)
        return create_backbone(request.param, num_classes=CLASSES, **NAMES[request.param])


def small_size(backbone: Backbone) -> tuple[int, int, int]:
    """(T, H, W) that is quick to compute."""
    frames, height, width = backbone.min_size
    if backbone.fixed_size:
        return max(frames, 2), backbone.input_spec.crop, backbone.input_spec.crop
    return max(frames, 2), max(height, 32), max(width, 48)


def small_clips(backbone: Backbone, batch: int, seed: int = 0) -> torch.Tensor:
    frames, height, width = small_size(backbone)
    shape = (batch, backbone.input_spec.channels, frames, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_describes_itself(backbone: Backbone) -> None:
    assert not backbone.training
    assert backbone.name in NAMES
    assert backbone.num_classes == CLASSES
    assert len(backbone.state_dict()[backbone.classifier_weight]) == CLASSES
    card = CARDS[backbone.name.partition(":")[0]]
    assert card.paper and card.weights_from and "rgb" in card.streams


@not_variants
def test_forward_gives_the_promised_map(backbone: Backbone) -> None:
    clips = small_clips(backbone, 2)
    with torch.inference_mode():
        maps, logits = backbone.forward_and_classify(clips)
        assert torch.equal(maps, backbone(clips)), "two runs differ"
    assert maps.shape == (2, backbone.feature_dim, *backbone.output_size(*clips.shape[2:]))
    assert logits.shape == (2, CLASSES)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all() and maps.std() > 0
    assert pool_space(maps).shape == (2, maps.shape[2], backbone.feature_dim)
    torch.testing.assert_close(pool_clip(maps), pool_space(maps).mean(1))


@pytest.mark.parametrize("name", NAMES)
def test_promised_sizes_hold_for_every_stream(name: str) -> None:
    # On the meta device shapes are real and numbers are not, so that large networks and clips cost little.
    streams = CARDS[name.partition(":")[0]].streams
    # depth and ir have one channel, as audio has
    for stream in ("rgb",) if name in VARIANTS else [each for each in streams if each not in ("depth", "ir")]:
        with torch.device("meta"):
            backbone = create_backbone(name, stream=stream, **NAMES[name])
        frames, height, width = small_size(backbone)
        sizes = [(frames, height, width)]
        if stream == "rgb" and not backbone.fixed_size:
            sizes += [(frames + 1, height, width + 32), (16, 2 * height, height)]
        for size in sizes:
            clips = torch.empty(1, backbone.input_spec.channels, *size, device="meta")
            assert backbone(clips).shape == (1, backbone.feature_dim, *backbone.output_size(*size)), (stream, size)


def test_frame_by_frame_is_told_of_those_that_mix_nothing(backbone: Backbone) -> None:
    assert backbone.frame_by_frame == (backbone.name.partition(":")[0] in ("tsn", "bninception"))
    if backbone.frame_by_frame:
        clips = small_clips(backbone, 1)
        with torch.inference_mode():
            steps = [backbone(clips[:, :, t : t + 1]) for t in range(clips.shape[2])]
            maps = backbone(clips)
            torch.testing.assert_close(torch.cat(steps, 2), maps, rtol=0, atol=1e-5 * float(maps.abs().max()))


@not_variants
def test_every_parameter_learns(backbone: Backbone) -> None:
    # In train mode a random deep network keeps its signal, since batch norm then rescales it.
    backbone.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        maps, logits = backbone.forward_and_classify(small_clips(backbone, 2))
        (maps.square().mean() + logits.square().mean()).backward()
    backbone.eval()
    lost = [name for name, each in backbone.named_parameters() if each.grad is None]
    broken = [
        name for name, each in backbone.named_parameters() if each.grad is not None and not each.grad.isfinite().all()
    ]
    backbone.zero_grad(set_to_none=True)
    assert not lost and not broken


@not_variants
def test_uint8_clips_go_in_through_the_spec(backbone: Backbone) -> None:
    spec = backbone.input_spec
    frames, height, width = small_size(backbone)
    pixels = torch.randint(0, 256, (1, frames, height, width, spec.channels), dtype=torch.uint8)
    clips = spec.normalise(pixels)
    with torch.inference_mode():
        # The same numbers laid out channels first in memory give the same features.
        torch.testing.assert_close(backbone(clips), backbone(clips.contiguous()), rtol=1e-4, atol=1e-4)


@not_variants
def test_bfloat16_autocast(backbone: Backbone) -> None:
    clips = small_clips(backbone, 1)
    with torch.inference_mode():
        exact = backbone(clips).flatten()
        with torch.autocast("cpu", torch.bfloat16):
            coarse = backbone(clips).flatten().float()
    assert coarse.isfinite().all()
    assert torch.cosine_similarity(exact, coarse, 0) > 0.98


@not_variants
def test_clips_do_not_feel_their_neighbours(backbone: Backbone) -> None:
    # Extraction that was interrupted batches the remaining clips anew and must write the same bytes.
    one, other = small_clips(backbone, 4, seed=1), small_clips(backbone, 4, seed=2)
    other[3] = one[0]
    with torch.inference_mode():
        assert torch.equal(backbone(one)[0], backbone(other)[3])


@not_variants
def test_saves_and_loads(backbone: Backbone, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built anew by its file's header, strictly. Tensors of large networks stay in memory: disks are slow."""
    path = tmp_path / "own.safetensors"
    kept: dict[str, torch.Tensor] = {}
    if sum(each.numel() for each in backbone.parameters()) > 5e6:
        monkeypatch.setattr(own, "save", lambda state, metadata: kept.update(state) or save({}, metadata=metadata))
        monkeypatch.setattr(own, "load_file", lambda _path: kept)
    backbone.input_spec = replace(backbone.input_spec, fps=12.5)
    backbone.tasks, backbone.several = {"verb": 3, "noun": 4}, True
    save_backbone(backbone, path)
    again = load_backbone(path)
    assert again.input_spec == backbone.input_spec
    assert (again.name, again.options, again.num_classes) == (backbone.name, backbone.options, CLASSES)
    assert (again.tasks, again.several, again.training) == (backbone.tasks, True, False)
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    again.reset_classifier(5)
    assert (again.num_classes, again.tasks, again.several) == (5, {}, False)


def test_scores_sum_to_one_over_each_task() -> None:
    with torch.device("meta"):
        backbone = create_backbone("tsn:test_resnet", num_classes=7)
    logits = torch.randn(2, 7)
    torch.testing.assert_close(backbone.scores(logits), logits.softmax(1))
    backbone.tasks = {"verb": 3, "noun": 4}
    scores = backbone.scores(logits)
    torch.testing.assert_close(scores[:, :3], logits[:, :3].softmax(1))
    torch.testing.assert_close(scores[:, 3:].sum(1), torch.ones(2))
    backbone.several = True
    torch.testing.assert_close(backbone.scores(logits), logits.sigmoid())


def test_stages_cover_the_network_in_order(backbone: Backbone) -> None:
    groups = backbone.stages()
    held = [id(p) for modules in groups for module in modules for p in module.parameters()]
    assert len(groups) > 2 and len(held) == len(set(held))
    trunk = {id(p): name for name, p in backbone.named_parameters()}
    outside = {name for key, name in trunk.items() if key not in set(held)}
    # Beside the classifier only embeddings of positions and tokens belong to no module.
    assert all(any(word in name for word in ("head", "fc", "classif", "logits", "pos", "token")) for name in outside)


@not_variants
def test_maps_of_stages_end_with_what_the_stage_gives(backbone: Backbone) -> None:
    clips = small_clips(backbone, batch=2)
    with torch.inference_mode():
        maps = backbone.eval().forward_intermediates(clips)
        (last,) = backbone.forward_intermediates(clips, stages=[-1])
        final = backbone(clips)
    assert len(maps) == len(backbone.stages()) and all(x.ndim == 5 and len(x) == 2 for x in maps)
    sizes = [x.shape[3] * x.shape[4] for x in maps]
    assert sizes == sorted(sizes, reverse=True)
    assert torch.equal(last, maps[-1]) and last.shape[2:] == final.shape[2:]
    with pytest.raises(ValueError, match="counted from 0"):
        backbone.forward_intermediates(clips, stages=[99])


@not_variants
def test_recomputed_activations_change_no_gradient_and_no_statistics(backbone: Backbone) -> None:
    found = []
    for enabled in (False, True):
        copied = copy.deepcopy(backbone).train()
        for module in copied.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
                module.momentum = 0.5
        copied.set_grad_checkpointing(enabled)
        torch.manual_seed(0)
        copied(small_clips(backbone, batch=2)).square().mean().backward()
        grads = {name: p.grad for name, p in copied.named_parameters() if p.grad is not None}
        found.append((grads, dict(copied.named_buffers())))
        copied.set_grad_checkpointing(False)
        assert "forward" not in {key for module in copied.modules() for key in module.__dict__}
    assert found[0][0].keys() == found[1][0].keys()
    for first, second in zip(found[0], found[1], strict=True):
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)


def test_frozen_stages_do_not_learn(backbone: Backbone) -> None:
    copied = copy.deepcopy(backbone)
    copied.freeze_stages(2)
    groups = copied.stages()
    assert not any(p.requires_grad for modules in groups[:2] for m in modules for p in m.parameters())
    assert all(p.requires_grad for modules in groups[2:] for m in modules for p in m.parameters())
    with pytest.raises(ValueError, match="has .* stages"):
        copied.freeze_stages(len(groups) + 1)


@pytest.mark.parametrize("name", ["i3d", "bninception", "tsn:test_resnet", "x3d_xs", "swin3d_t", "p3d63"])
def test_streams_of_one_channel_build_the_same_network(name: str) -> None:
    with torch.device("meta"):
        networks = [create_backbone(name, stream=stream) for stream in ("audio", "depth", "ir")]
    shapes = [{key: tensor.shape for key, tensor in network.state_dict().items()} for network in networks]
    assert shapes[0] == shapes[1] == shapes[2]
    assert [network.input_spec.stream for network in networks] == ["audio", "depth", "ir"]


def test_copies_and_pickles() -> None:
    # What averaging of weights and processes that are spawned need.
    for name in ("tsn:test_vit", "i3d", "swin3d_t"):
        with torch.device("meta"):
            backbone = create_backbone(name)
        for copied in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert copied.input_spec == backbone.input_spec
            assert copied.output_size(2, 32, 32) == backbone.output_size(2, 32, 32)


@not_variants
def test_classifier_comes_and_goes(backbone: Backbone) -> None:
    backbone.reset_classifier(0)
    assert backbone.num_classes == 0
    clips = small_clips(backbone, 1)
    with torch.inference_mode():
        maps = backbone(clips)
        with pytest.raises(ValueError, match="classifier"):
            backbone.classify(maps)
        backbone.reset_classifier(3)
        assert backbone.forward_and_classify(clips)[1].shape == (1, 3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiles() -> None:
    backbone = create_backbone("tsn:test_vit")
    clips = backbone.input_spec.example(1)[:, :, :2]
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(backbone)(clips), backbone(clips), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    ["tsn:test_vit", "tsn:test_convnext", *[name for name in NAMES if name in ("i3d", "i3d_r50_nln", "swin3d_t")]],
)
def test_traces_as_one_graph(name: str) -> None:
    """torch.compile without its code generator, which is the part that is slow: no graph breaks, same shapes."""
    torch._dynamo.reset()
    with torch.device("meta"):
        backbone = create_backbone(name)
    clips = torch.empty(1, backbone.input_spec.channels, *small_size(backbone), device="meta")
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    assert compiled(clips).shape == backbone(clips).shape


def test_pretrained_weights_that_cannot_be_fetched(monkeypatch, tmp_path):
    def no_network(*_args, **_options):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(ValueError, match="'i3d_r50' cannot be fetched .*no route to host.*give the file's path"):
        create_backbone("i3d_r50", weights="pretrained")
