"""tsn:NETWORK: any timm network on every frame; what it eats, how it classifies, which checkpoints it holds."""

from __future__ import annotations

import pytest
import timm
import torch
from golden_cases import load_case
from safetensors.torch import save_file

from actionfuse.backbones import InputSpec, create_backbone, list_backbones
from actionfuse.backbones.contract import IMAGENET_MEAN, IMAGENET_STD


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_each_frame_is_what_timm_gives_for_it(name):
    crop = {"crop": 64} if name.startswith("swin") else {}
    backbone = create_backbone(f"tsn:{name}", num_classes=5, **crop)
    clips = backbone.input_spec.example(2, torch.Generator().manual_seed(0))[:, :, :3]
    theirs = timm.create_model(name, num_classes=5, **({"img_size": 64} if crop else {})).eval()
    theirs.load_state_dict({key.removeprefix("network."): each for key, each in backbone.state_dict().items()})
    with torch.inference_mode():
        maps, logits = backbone.forward_and_classify(clips)
        for b in range(2):
            per_frame = []
            for t in range(3):
                features = theirs.forward_features(clips[b, :, t][None])
                per_frame.append(theirs.forward_head(features))
                if name == "test_vit":  # one class token, then the patches row by row
                    rows = features[0, theirs.num_prefix_tokens :].T.unflatten(1, tuple(maps.shape[3:]))
                elif name.startswith("swin"):
                    rows = features[0].permute(2, 0, 1)
                else:
                    rows = features[0]
                torch.testing.assert_close(maps[b, :, t], rows, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(logits[b], torch.cat(per_frame).mean(0), rtol=1e-4, atol=1e-4)


def test_classifying_maps_is_classifying_clips():
    for name in ("test_resnet", "test_convnext", "test_vit2"):  # the last has a class token but averages
        backbone = create_backbone(f"tsn:{name}", num_classes=5, crop=64)
        clips = backbone.input_spec.example(2)[:, :, :2]
        with torch.inference_mode():
            maps, logits = backbone.forward_and_classify(clips)
            torch.testing.assert_close(backbone.classify(maps), logits)


def test_class_token_networks_say_that_maps_lack_it():
    backbone = create_backbone("tsn:test_vit", num_classes=5)
    with pytest.raises(ValueError, match="forward_and_classify"):
        backbone.classify(torch.zeros(1, backbone.feature_dim, 2, 10, 10))


def test_token_grids_follow_the_frame():
    backbone = create_backbone("tsn:test_vit")
    patch = backbone.network.patch_embed.patch_size[0]
    clips = torch.randn(1, 3, 2, 6 * patch, 3 * patch)
    assert backbone(clips).shape[2:] == backbone.output_size(2, 6 * patch, 3 * patch) == (2, 6, 3)
    with pytest.raises(ValueError, match="patches"):
        backbone(clips[..., :-1])


@pytest.mark.parametrize(
    "name",
    [
        "xcit_nano_12_p16_224",  # its patch size is a number
        "lambda_resnet26t",  # has a 3-D kernel among the 2-D ones
        "hiera_tiny_224",
        "volo_d1_224",  # a class token that it does not tell of
        "vit_small_patch16_dinov3",  # five tokens that are no patches
        "levit_128s",
        "vit_so400m_patch14_siglip_384",  # 384 is no multiple of 14
        "maxvit_nano_rw_256",
    ],
)
def test_networks_of_every_build_give_maps(name):
    with torch.device("meta"):
        backbone = create_backbone(f"tsn:{name}", num_classes=5)
        maps, logits = backbone.forward_and_classify(backbone.input_spec.example(2)[:, :, :3])
    assert maps.shape == (2, backbone.feature_dim, *backbone.output_size(3, *[backbone.input_spec.crop] * 2))
    assert logits.shape == (2, 5)


def test_input_spec_is_timms():
    config = timm.get_pretrained_cfg("convnext_atto.d2_in1k")
    spec = create_backbone("tsn:convnext_atto.d2_in1k").input_spec
    assert (spec.crop, spec.mean, spec.std, spec.interpolation) == (224, config.mean, config.std, config.interpolation)
    assert spec.resize_side == int(224 / config.crop_pct)
    assert create_backbone("tsn:test_resnet", frames=3, crop=96).input_spec.frames == 3
    assert create_backbone("tsn:swin_tiny_patch4_window7_224", crop=64).input_spec.crop == 64


@pytest.mark.parametrize(
    ("stream", "channels", "mean", "std", "scale"),
    [
        ("flow", 10, 0.5, 0.226, 1 / 255),
        ("audio", 1, 0.0, 1.0, 1.0),
        ("depth", 1, 0.0, 1.0, 1.0),
        ("ir", 1, 0.449, 0.226, 1 / 255),
    ],
)
def test_other_streams_start_from_the_mean_of_the_rgb_kernels(stream, channels, mean, std, scale, tmp_path):
    rgb = timm.create_model("resnet18", num_classes=5)
    save_file(rgb.state_dict(), tmp_path / "rgb.safetensors")
    backbone = create_backbone("tsn:resnet18", stream=stream, weights=tmp_path / "rgb.safetensors")
    spec = backbone.input_spec
    assert spec.mean == pytest.approx((mean,) * channels, abs=1e-3)
    assert spec.std == pytest.approx((std,) * channels, abs=1e-3)
    assert (spec.stream, spec.scale) == (stream, scale)
    assert spec.crop == (256 if stream == "audio" else 224)
    assert spec.flow_stack == (5 if stream == "flow" else 1)
    kernel = backbone.network.conv1.weight
    assert kernel.shape == (64, channels, 7, 7)
    for channel in range(channels):
        torch.testing.assert_close(kernel[:, channel], rgb.conv1.weight.mean(1))
    torch.testing.assert_close(backbone.network.layer4[1].conv2.weight, rgb.layer4[1].conv2.weight)


def test_flow_checkpoints_stay_as_they_are(tmp_path):
    flow = timm.create_model("resnet18", in_chans=10, num_classes=5)
    torch.save({"state_dict": {f"module.{key}": each for key, each in flow.state_dict().items()}}, tmp_path / "f.pth")
    backbone = create_backbone("tsn:resnet18", stream="flow", weights=tmp_path / "f.pth")
    assert torch.equal(backbone.network.conv1.weight, flow.conv1.weight)
    with pytest.raises(ValueError, match="conv1.weight"):
        create_backbone("tsn:resnet18", stream="audio", weights=tmp_path / "f.pth")


def test_classifier_of_a_file_is_kept_or_replaced(tmp_path):
    network = timm.create_model("resnet18", num_classes=5)
    torch.save(network.state_dict(), tmp_path / "five.pth")
    kept = create_backbone("tsn:resnet18", weights=tmp_path / "five.pth")
    assert kept.num_classes == 5 and torch.equal(kept.network.fc.weight, network.fc.weight)
    fresh = create_backbone("tsn:resnet18", weights=tmp_path / "five.pth", num_classes=3)
    assert fresh.num_classes == 3 and fresh.network.fc.weight.shape == (3, 512)
    assert torch.equal(fresh.network.conv1.weight, network.conv1.weight)


def test_keys_that_do_not_fit_are_listed(tmp_path):
    state = timm.create_model("resnet18", num_classes=5).state_dict()
    del state["layer2.0.bn1.weight"]
    state["layer9.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"network\.layer2\.0\.bn1\.weight.*network\.layer9\.weight"):
        create_backbone("tsn:resnet18", weights=tmp_path / "odd.pth")


@pytest.mark.parametrize(("case", "wrapped"), [("tsn_resnet50", False), ("epic_tsn_rgb", True)])
def test_published_tsn_gives_the_same_logits(case, wrapped, tmp_path):
    golden = load_case(case)
    state = golden.weights()
    if wrapped:  # as Lightning saves it
        state = {"state_dict": {f"model.{key}": each for key, each in state.items()}, "hyper_parameters": {}}
    torch.save(state, tmp_path / "tsn.pth")
    backbone = create_backbone("tsn:resnet50", weights=tmp_path / "tsn.pth")
    frames = golden.input("frames")
    if frames.ndim == 4:  # (B, T * C, H, W)
        frames = frames.unflatten(1, (-1, 3))
    with torch.inference_mode():
        logits = backbone.forward_and_classify(frames.transpose(1, 2))[1]
    golden.check_output("logits", logits, rtol=1e-4)
    # The public rgb configurations for EPIC-KITCHENS give the mean as std, and the weights were trained so.
    assert backbone.input_spec.std == (IMAGENET_MEAN if case == "epic_tsn_rgb" else IMAGENET_STD)
    assert (backbone.input_spec.resize_side, backbone.input_spec.crop) == (256, 224)


def test_flow_weights_bring_the_size_of_their_frames(tmp_path):
    """timm's view of a ResNet-50 takes 95 % of the frame, by bicubic scaling; the published networks saw 224 of 256."""
    case = load_case("tsn_resnet50")
    state = case.weights()
    state["base_model.conv1.weight"] = torch.zeros(64, 10, 7, 7)
    torch.save({"state_dict": {f"module.{key}": x for key, x in state.items()}}, tmp_path / "flow.pth")
    before = create_backbone("tsn:resnet50", stream="flow").input_spec
    spec = create_backbone("tsn:resnet50", stream="flow", weights=tmp_path / "flow.pth").input_spec
    assert (spec.resize_side, spec.crop, spec.interpolation) == (256, 224, "bilinear")
    assert (spec.mean, spec.std, spec.scale) == (before.mean, before.std, before.scale)


def test_crop_outlives_the_weights_own(tmp_path):
    torch.save({f"base_model.{key}": each for key, each in _tsn_state().items()}, tmp_path / "tsn.pth")
    spec = create_backbone("tsn:resnet18", weights=tmp_path / "tsn.pth", crop=112).input_spec
    assert (spec.crop, spec.resize_side, spec.interpolation) == (112, 128, "bilinear")


def _tsn_state():
    return {key: each for key, each in timm.create_model("resnet18").state_dict().items() if not key.startswith("fc.")}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tsn:resnet5", {}, "did you mean 'resnet50'"),
        ("tsn:resnet50.no_such_tag", {}, "a1_in1k"),
        ("tsn", {}, "tsn:NETWORK"),
        ("tsn:", {}, "tsn:NETWORK"),
        ("tsx:resnet50", {}, "no backbone is named 'tsx'"),
        ("resnet50", {}, "for pictures.*tsm:resnet50 or tsn:resnet50"),
        ("i3d:resnet50", {}, "'i3d' alone"),
        ("tsn:resnet18", {"frame": 3}, "did you mean 'frames'"),
        ("tsn:resnet18", {"stream": "smell"}, "rgb, flow"),
        ("tsn:resnet18", {"num_classes": -1}, "num_classes"),
        ("tsn:resnet18", {"weights": "bundled"}, "tf_efficientnet_lite0"),
        ("tsn:test_vit", {"crop": 0, "weights": "nowhere.pth"}, "nowhere.pth"),
        ("tsn:crossvit_tiny_240", {}, "no map"),
    ],
)
def test_wrong_calls_say_what_there_is(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_backbone(name, **options)


def test_frames_of_another_size_are_refused_by_networks_of_one_size():
    backbone = create_backbone("tsn:swin_tiny_patch4_window7_224", crop=64)
    with pytest.raises(ValueError, match="crop=96"):
        backbone(torch.zeros(1, 3, 1, 96, 96))
    with pytest.raises(ValueError, match="eats"):
        backbone(torch.zeros(1, 2, 1, 64, 64))


def test_names_and_networks_are_listed():
    assert "tsn:NETWORK" in list_backbones() and "tsn:NETWORK" in list_backbones("tsn")
    assert set(list_backbones("tsn:resnet*")) >= {"tsn:resnet18", "tsn:resnet50"}
    assert list_backbones("i3d") == ["i3d"]


def test_normalised_clips_reach_convolutions_channels_last_without_a_copy():
    spec = InputSpec()
    clips = spec.normalise(torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8))
    assert clips.is_contiguous(memory_format=torch.channels_last_3d)
    frames = clips.transpose(1, 2).flatten(0, 1)
    assert frames.is_contiguous(memory_format=torch.channels_last)
    assert frames.data_ptr() == clips.data_ptr()


def test_pretrained_weights_come_with_their_class_names(monkeypatch):
    fetched = []
    create_model = timm.create_model

    def offline(name, *, pretrained=False, **options):
        network = create_model(name, **options)
        if pretrained:
            fetched.append(network)
        return network

    monkeypatch.setattr(timm, "create_model", offline)
    backbone = create_backbone("tsn:test_resnet.r160_in1k", weights="pretrained")
    assert torch.equal(backbone.network.fc.weight, fetched[0].fc.weight)
    assert len(backbone.class_names) == 1000 and "goldfish" in backbone.class_names[1]
    tuned = create_backbone("tsn:test_resnet", weights="pretrained", num_classes=4, stream="flow")
    assert (tuned.num_classes, tuned.class_names) == (4, ())
    averaged = fetched[1].conv1[0].weight.mean(1, keepdim=True)
    torch.testing.assert_close(tuned.network.conv1[0].weight, averaged.repeat(1, 10, 1, 1))


def test_networks_without_published_weights_say_so():
    published = {name.partition(".")[0] for name in timm.list_pretrained()}
    without = next(name for name in timm.list_models("resnet*") if name not in published)
    with pytest.raises(ValueError, match="no pretrained weights"):
        create_backbone(f"tsn:{without}", weights="pretrained")
