"""The bundled EfficientNet-Lite0: every key has its place, and the network computes what the weights were made for."""

from __future__ import annotations

from importlib import metadata

import pytest
import timm
import torch
from torch.nn import functional as F

from actionfuse.backbones import create_backbone
from actionfuse.backbones.bundled import _weights_file, bundled_state, convert_lite0

# Stages of EfficientNet-B0 (Tan and Le, ICML 2019, table 1): blocks, kernel, stride, expansion, width.
STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112)]
STAGES += [(4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    return torch.load(_weights_file(), weights_only=True)


def test_keys_map_one_to_one_with_equal_shapes(original):
    converted = convert_lite0(original)
    theirs = timm.create_model("tf_efficientnet_lite0").state_dict()
    counted = {key for key in theirs if not key.endswith("num_batches_tracked")}
    assert len(original) == len(converted), "two keys became one"
    assert {key for key in converted if not key.endswith("num_batches_tracked")} == counted and len(counted) == 247
    assert all(converted[key].shape == theirs[key].shape for key in converted)


def test_unknown_keys_are_errors(original):
    for key in ("_blocks.16._bn0.weight", "_blocks.0._expand_conv.weight", "_blocks.3._se_reduce.weight", "head.bias"):
        with pytest.raises(ValueError, match=key.replace(".", r"\.")):
            convert_lite0({**original, key: torch.zeros(1)})


def lite0(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite0 by its description, on the package's names: ReLU6, no squeeze, TensorFlow's SAME padding."""

    def conv(x, name, kernel, stride=1, groups=1):
        size = x.shape[-1]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        return F.conv2d(x, weights[f"{name}.weight"], stride=stride, groups=groups)

    def norm(x, name):
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-3)

    x = F.relu6(norm(conv(images, "_conv_stem", 3, 2), "_bn0"))
    index = 0
    for blocks, kernel, stride, expansion, width in STAGES:
        for block in range(blocks):
            name, shortcut, step = f"_blocks.{index}", x, stride if block == 0 else 1
            if expansion > 1:
                x = F.relu6(norm(conv(x, f"{name}._expand_conv", 1), f"{name}._bn0"))
            x = F.relu6(norm(conv(x, f"{name}._depthwise_conv", kernel, step, x.shape[1]), f"{name}._bn1"))
            x = norm(conv(x, f"{name}._project_conv", 1), f"{name}._bn2")
            if step == 1 and shortcut.shape[1] == width:
                x = x + shortcut
            index += 1
    x = F.relu6(norm(conv(x, "_conv_head", 1), "_bn1"))
    return x.mean((2, 3)) @ weights["_fc.weight"].T + weights["_fc.bias"]


def test_computes_what_the_description_says(original):
    backbone = create_backbone("tsn:tf_efficientnet_lite0", weights="bundled")
    frames = backbone.input_spec.example(1, torch.Generator().manual_seed(0))[:, :, :2]
    with torch.inference_mode():
        maps, logits = backbone.forward_and_classify(frames)
        want = lite0(original, frames[0].transpose(0, 1)).mean(0)
    torch.testing.assert_close(logits[0], want, rtol=1e-3, atol=1e-3)
    assert maps.shape == (1, 1280, 2, 7, 7)


def test_recognises_a_traffic_light():
    # Drawn, not photographed: a dark box with three round lights is enough for trained weights, hopeless for others.
    y, x = torch.meshgrid(torch.arange(224), torch.arange(224), indexing="ij")
    picture = torch.tensor([135, 190, 235]).expand(224, 224, 3).clone()
    picture[(x > 75) & (x < 149) & (y > 10) & (y < 205)] = torch.tensor([25, 28, 25])
    for row, colour in ((48, (230, 30, 30)), (108, (240, 180, 30)), (168, (30, 200, 80))):
        picture[(x - 112) ** 2 + (y - row) ** 2 < 26**2] = torch.tensor(colour)
    backbone = create_backbone("tsn:tf_efficientnet_lite0", weights="bundled")
    clip = backbone.input_spec.normalise(picture.to(torch.uint8)[None, None])
    with torch.inference_mode():
        best = backbone.forward_and_classify(clip)[1].argmax().item()
    assert "traffic light" in backbone.class_names[int(best)]


def test_class_names_come_with_the_classifier_only():
    assert len(create_backbone("tsn:tf_efficientnet_lite0", weights="bundled").class_names) == 1000
    assert create_backbone("tsn:tf_efficientnet_lite0", weights="bundled", num_classes=3).class_names == ()
    assert create_backbone("tsn:tf_efficientnet_lite0").class_names == ()


def test_spec_is_the_weights_own():
    spec = create_backbone("tsn:tf_efficientnet_lite0", weights="bundled").input_spec
    assert (spec.mean, spec.std, spec.crop, spec.resize_side) == ((0.5,) * 3, (0.5,) * 3, 224, 256)


def test_other_streams_hold_them_too():
    state = bundled_state()
    for stream, channels in (("flow", 10), ("audio", 1)):
        backbone = create_backbone("tsn:tf_efficientnet_lite0", weights="bundled", stream=stream)
        kernel = backbone.state_dict()["network.conv_stem.weight"]
        torch.testing.assert_close(kernel, state["conv_stem.weight"].mean(1, keepdim=True).repeat(1, channels, 1, 1))


def test_a_missing_package_is_named(monkeypatch):
    def missing(_name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(ValueError, match=r"actionfuse\[bundled\]"):
        create_backbone("tsn:tf_efficientnet_lite0", weights="bundled")
