"""ego-rnn's trunk against a slow version of its forward, and its checkpoints."""

import pytest
import torch
import torch.nn.functional as F

from actionfuse.backbones import create_backbone


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    trunk = create_backbone("ego_rnn", num_classes=9)
    for name, tensor in trunk.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif "bn" in name and name.endswith(("weight", "running_var")):
            tensor.uniform_(0.5, 1.0)
    return trunk


def test_one_frame_at_a_time(trunk):
    net, clips = trunk.network, torch.randn(2, 3, 3, 64, 96)
    with torch.inference_mode():
        found = trunk.attend(clips)
        for b in range(2):
            for t in range(3):
                x = net.maxpool(net.bn1(net.conv1(clips[b : b + 1, :, t])).relu())
                x = net.layer4[1](net.layer4[0](net.layer3(net.layer2(net.layer1(x)))))
                block = net.layer4[2]
                inner = F.conv2d(block.bn1(block.conv1(x)).relu(), block.conv2.weight, padding=1)
                raw, final = inner + x, (block.bn2(inner) + x).relu()
                logits = net.fc.weight @ final[0].mean((1, 2)) + net.fc.bias
                cam = sum(w * final[0, d] for d, w in enumerate(net.fc.weight[logits.argmax()]))
                for got, want in (
                    (found.logits[b, t], logits),
                    (found.maps[b, :, t], final[0]),
                    (found.raw_maps[b, :, t], raw[0]),
                    (found.cam[b, 0, t], cam),
                ):
                    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert found.raw_maps.min() < 0 <= found.maps.min()
        torch.testing.assert_close(found.maps, trunk(clips))
        torch.testing.assert_close(found.logits.mean(1), trunk.classify(found.maps))


def of_two_streams(state):
    beside = {"flowModel.conv1.weight": torch.zeros(64, 10, 7, 7), "fc2.weight": torch.zeros(61, 1024)}
    return {f"frameModel.{key}": x for key, x in state.items()} | beside


@pytest.mark.parametrize("wrap", [dict, lambda state: {"model_state_dict": state, "epoch": 3}, of_two_streams])
def test_of_a_whole_model_the_trunk_is_taken(tmp_path, trunk, wrap):
    state = {f"resNet.{key.removeprefix('network.')}": x for key, x in trunk.state_dict().items()}
    state["weight_softmax"] = state["resNet.fc.weight"]
    state |= {"lstm_cell.conv_i_xx.weight": torch.zeros(3), "fc.weight": torch.zeros(61, 512)}
    state["classifier.1.weight"] = state["fc.weight"]
    torch.save(wrap(state), tmp_path / "model_rgb_state_dict.pth")
    loaded = create_backbone("ego_rnn", weights=tmp_path / "model_rgb_state_dict.pth")
    assert loaded.num_classes == 9
    for key, tensor in trunk.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert (loaded.input_spec.resize_side, loaded.input_spec.crop, loaded.input_spec.frames) == (256, 224, 25)


def test_without_a_classifier_there_is_no_activation_map():
    trunk = create_backbone("ego_rnn")
    assert trunk.num_classes == 1000
    trunk.reset_classifier(0)
    with pytest.raises(ValueError, match="need a classifier"):
        trunk.attend(torch.zeros(1, 3, 1, 32, 32))
