"""The four fusions of frames: what each sees, and what an image network's weights make of them."""

import pytest
import timm
import torch

from actionfuse.backbones import create_backbone, load_backbone, save_backbone
from actionfuse.backbones.karpathy import FUSIONS

NETWORK = "resnet18"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An image network with weights that keep the signal, and their file."""
    torch.manual_seed(0)
    network = timm.create_model(NETWORK, num_classes=5).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    path = tmp_path_factory.mktemp("image") / "image.pth"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_still_clip_is_answered_as_its_frame(image, fusion):
    network, path = image
    frame = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    ours = create_backbone(f"karpathy:{NETWORK}", fusion=fusion, weights=path)
    with torch.inference_mode():
        maps, logits = ours.forward_and_classify(frame[:, :, None].expand(-1, -1, 10, -1, -1))
        torch.testing.assert_close(logits, network(frame), rtol=1e-4, atol=1e-4)
        want = network.forward_features(frame)
    assert maps.shape[2] == {"early_fusion": 1, "slow_fusion": 1}.get(fusion, 10)
    torch.testing.assert_close(maps, want[:, :, None].expand_as(maps), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion, ordered", [("single_frame", False), ("late_fusion", True), ("early_fusion", True)])
def test_who_knows_the_order_of_frames(image, fusion, ordered):
    ours = create_backbone(f"karpathy:{NETWORK}", fusion=fusion, weights=image[1])
    torch.manual_seed(0)
    for name, weight in ours.named_parameters():
        if name in ("head.weight", "network.conv1.weight"):
            torch.nn.init.normal_(weight, std=0.1)
    clips = torch.randn(1, 3, 10, 64, 64)
    with torch.inference_mode():
        forwards, backwards = (ours.forward_and_classify(x)[1] for x in (clips, clips.flip(2)))
    assert torch.allclose(forwards, backwards, rtol=1e-3, atol=1e-3) != ordered


def test_slow_fusion_sees_four_frames_and_joins_twice(image):
    ours = create_backbone(f"karpathy:{NETWORK}", fusion="slow_fusion", weights=image[1])
    torch.manual_seed(0)
    for joint in ours.joints:
        torch.nn.init.normal_(joint.mix.weight, std=0.1)
    clips = torch.randn(2, 3, 10, 64, 64)
    network = ours.network
    with torch.inference_mode():
        # a naive re-writing: every window by itself, the hooks taken off
        hooks = [(stage, dict(network.get_submodule(stage)._forward_hooks)) for stage, _ in ours.joined]
        maps = ours(clips)
        for stage, _ in hooks:
            network.get_submodule(stage)._forward_hooks.clear()
        steps = []
        for start in (0, 2, 4, 6):
            window = torch.cat([clips[:, :, start + k] for k in range(4)], 1)
            steps.append(network.layer1(network.maxpool(network.act1(network.bn1(network.conv1(window))))))
        for layer, joint in ((network.layer2, ours.joints[0]), (network.layer3, ours.joints[1])):
            weight = joint.mix.weight
            pairs = [torch.cat(pair, 1) for pair in zip(steps[::2], steps[1::2], strict=True)]
            steps = [layer(torch.einsum("oc,bchw->bohw", weight, pair)) for pair in pairs]
        (last,) = [network.layer4(step) for step in steps]
    torch.testing.assert_close(maps[:, :, 0], last, rtol=1e-3, atol=1e-3)
    assert ours.output_size(10, 64, 64)[0] == 1 and ours.output_size(18, 64, 64)[0] == 2


def test_flow_and_our_own_files_go_in(image, tmp_path):
    network = create_backbone(f"karpathy:{NETWORK}", fusion="early_fusion", stream="flow", frames=3, weights=image[1])
    rgb = image[0].conv1.weight.detach()
    kernel = network.network.conv1.weight.detach().unflatten(1, (3, 10))
    torch.testing.assert_close(kernel, rgb.mean(1)[:, None, None].expand_as(kernel) / 3)
    save_backbone(network, tmp_path / "own.safetensors")
    again = load_backbone(tmp_path / "own.safetensors")
    assert torch.equal(again.network.conv1.weight, network.network.conv1.weight)


def test_what_is_wrong_is_said(image):
    with pytest.raises(ValueError, match="single_frame, late_fusion"):
        create_backbone(f"karpathy:{NETWORK}", fusion="middle")
    with pytest.raises(ValueError, match="10 frames or more, not 8"):
        create_backbone(f"karpathy:{NETWORK}", frames=8)
    late = create_backbone(f"karpathy:{NETWORK}", fusion="late_fusion", weights=image[1])
    with pytest.raises(ValueError, match="build it with frames=4"):
        late.forward_and_classify(torch.zeros(1, 3, 4, 32, 32))
