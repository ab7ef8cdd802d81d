"""Temporal relations against loops over relations and against EPIC-KITCHENS' networks."""

from itertools import combinations

import golden_cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from actionfuse.backbones import create_backbone, pool_space
from actionfuse.backbones.convert import install

CASES = golden_cases.available("recognition", "epic_trn_rgb", "epic_trn_flow", "epic_mtrn_rgb", "epic_mtrn_flow")


@pytest.mark.parametrize("name", CASES)
def test_matches_the_public_networks(name):
    case = golden_cases.load_case(name)
    made = case.meta["constructor_args"]
    kind = "mtrn" if "mtrn" in name else "trn"
    draws = {"random_test": True} if kind == "mtrn" else {}
    network = create_backbone(f"{kind}:{made['base_model']}", stream=made["modality"].lower(), **draws)
    weights = case.weights()
    layout = next(layout for layout in network.layouts if layout.recognises(weights))
    install(network, layout.convert(weights), what=name)
    assert network.num_classes == made["num_class"]
    random = np.random.RandomState(0)
    network.head.relations.choose = lambda count, wanted: random.choice(count, wanted, replace=False).tolist()
    clips = case.input("frames").transpose(1, 2)
    paths = {tap: tap.replace("base_model.", "network.").replace("new_fc", "head.project") for tap in case.taps}
    with torch.inference_mode(), golden_cases.Tapped(network, paths) as outputs:
        _, logits = network.forward_and_classify(clips)
    case.check_output("logits", logits, rtol=1e-5)
    for tap in case.taps:
        case.check_tap(tap, outputs[tap], rtol=1e-5)


def published_state(network, classes: int, scales: list[nn.Sequential]) -> dict[str, torch.Tensor]:
    state = {}
    for key, tensor in network.state_dict().items():
        if key.startswith("network."):
            state[f"base_model.{key.removeprefix('network.')}"] = tensor
        elif key.startswith("head.project."):
            state[f"new_fc.{key.removeprefix('head.project.')}"] = tensor
    for number, scale in enumerate(scales):
        state |= {f"consensus.fc_fusion_scales.{number}.{key}": x for key, x in scale.state_dict().items()}
    return state


def relation(features: int, length: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Linear(length * features, 256), nn.ReLU(), nn.Linear(256, classes))


@pytest.mark.parametrize("frames", [2, 5])
def test_many_scales_one_relation_at_a_time(tmp_path, frames):
    """A published file of several lengths; drawn relations, and the expectation that stands for them."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = create_backbone("mtrn:resnet18", frames=frames)
    source = create_backbone("mtrn:resnet18", frames=frames)
    assert set(shapes.state_dict()) == set(source.state_dict())
    lengths = list(range(frames, 1, -1))
    scales = [relation(256, length, 7) for length in lengths]
    path = tmp_path / "trn_rgb.ckpt"
    state = {f"model.{key}": x for key, x in published_state(source, 7, scales).items()}
    torch.save({"state_dict": state, "hyper_parameters": {}}, path)
    network = create_backbone("mtrn:resnet18", frames=frames, weights=path)
    assert network.num_classes == 7
    clips = torch.randn(2, 3, frames, 32, 32)
    with torch.inference_mode():
        features = network.head.project(network(clips).mean((3, 4)).transpose(1, 2))
        expected = torch.zeros(2, 7)
        drawn = torch.zeros(2, 7)
        for length, scale in zip(lengths, scales, strict=True):
            every = [scale(features[:, each].flatten(1)) for each in combinations(range(frames), length)]
            wanted = min(3, len(every))
            expected += wanted * sum(every) / len(every)
            drawn += sum(every[-wanted:])
        torch.testing.assert_close(network.classify(network(clips)), expected, rtol=1e-4, atol=1e-5)
        network.head.relations.random_test = True
        network.head.relations.choose = lambda count, wanted: range(count - wanted, count)
        torch.testing.assert_close(network.classify(network(clips)), drawn, rtol=1e-4, atol=1e-5)


def test_training_draws_from_torchs_generator_and_tests_draw_nothing():
    torch.manual_seed(0)
    network = create_backbone("mtrn:resnet18", frames=6, num_classes=3, dropout=0.0)
    features = torch.randn(2, 6, 256)
    relations = network.head.relations
    assert torch.equal(relations.eval()(features), relations(features))
    relations.train()
    torch.manual_seed(1)
    first = relations(features)
    assert not torch.equal(first, relations(features))
    torch.manual_seed(1)
    assert torch.equal(first, relations(features))
    with torch.no_grad():
        mean = torch.stack([relations(features) for _ in range(400)]).mean(0)
        torch.testing.assert_close(mean, relations.eval()(features), rtol=0.1, atol=0.1)


def test_the_order_of_frames_matters():
    torch.manual_seed(0)
    network = create_backbone("trn:resnet18", frames=3, num_classes=4)
    nn.init.normal_(network.head.project.weight)
    clips = torch.randn(1, 3, 3, 32, 32)
    with torch.inference_mode():
        there, back = network.forward_and_classify(clips)[1], network.forward_and_classify(clips.flip(2))[1]
    assert F.mse_loss(there, back) > 1e-6


def test_wrong_lengths_and_kinds_say_what_to_do(tmp_path):
    network = create_backbone("trn:resnet18", frames=3, num_classes=4)
    with pytest.raises(ValueError, match="build it with frames=5"):
        network.forward_and_classify(torch.zeros(1, 3, 5, 32, 32))
    with pytest.raises(ValueError, match="at most 16"):
        create_backbone("mtrn:resnet18", frames=17)
    with pytest.raises(ValueError, match="at least 2"):
        create_backbone("trn:resnet18", frames=1)
    state = published_state(network, 4, [relation(256, length, 4) for length in (3, 2)])
    torch.save(state, tmp_path / "trn.pth")
    with pytest.raises(ValueError, match="weights of mtrn:NETWORK, and this is trn:NETWORK"):
        create_backbone("trn:resnet18", frames=3, weights=tmp_path / "trn.pth")
    with pytest.raises(ValueError, match="looks like a file of TRN-pytorch"):
        create_backbone("tsn:resnet18", weights=tmp_path / "trn.pth")


def test_epic_weights_bring_their_std():
    case = golden_cases.load_case("epic_trn_rgb")
    network = create_backbone("trn:resnet50")
    layout = next(layout for layout in network.layouts if layout.recognises(dict(case.weights())))
    assert layout.spec["std"] == (0.485, 0.456, 0.406)


def test_the_published_trunk_is_bninception(tmp_path):
    """Files of TRN-pytorch: three frames one by one through the trunk, then the relation of three and all of two."""
    torch.manual_seed(0)
    trunk = {k.removeprefix("rgb."): x for k, x in golden_cases.load_case("tbn_epic55").weights().items()}
    trunk = {k: x for k, x in trunk.items() if "." in k and not k.startswith(("flow.", "spec.", "fusion", "class"))}
    project, scales = nn.Linear(1024, 256), [relation(256, length, 5) for length in (3, 2)]
    state = {f"base_model.{key}": x for key, x in trunk.items()}
    state |= {f"new_fc.{key}": x for key, x in project.state_dict().items()}
    for number, scale in enumerate(scales):
        state |= {f"consensus.fc_fusion_scales.{number}.{key}": x for key, x in scale.state_dict().items()}
    torch.save({"state_dict": {f"module.{key}": x for key, x in state.items()}, "epoch": 9}, tmp_path / "trn.pth.tar")
    torch.save(trunk, tmp_path / "trunk.pth")
    network = create_backbone("mtrn:bninception", frames=3, weights=tmp_path / "trn.pth.tar")
    plain = create_backbone("bninception", frames=3, weights=tmp_path / "trunk.pth")
    clips = 50 * torch.randn(1, 3, 3, 64, 64)
    with torch.inference_mode():
        maps, logits = network.forward_and_classify(clips)
        torch.testing.assert_close(maps, plain(clips))
        features = project(pool_space(maps))[0]
        want = scales[0](features.flatten())
        for pair in combinations(range(3), 2):
            want = want + scales[1](features[list(pair)].flatten())
    torch.testing.assert_close(logits[0], want)
    assert network.num_classes == 5
    assert network.input_spec == plain.input_spec
    with pytest.raises(ValueError, match="weights of mtrn:NETWORK, and this is trn:NETWORK"):
        create_backbone("trn:bninception", frames=3, weights=tmp_path / "trn.pth.tar")


def test_inception_v3_sees_299_pixels():
    with torch.device("meta"):
        network = create_backbone("trn:inception_v3", num_classes=4)
    assert (network.input_spec.crop, network.input_spec.resize_side, network.input_spec.channel_order) == (
        299,
        341,
        "bgr",
    )
    _, logits = network.forward_and_classify(torch.empty(2, 3, 8, 75, 75, device="meta"))
    assert logits.shape == (2, 4)
    network.reset_classifier(0)
    with pytest.raises(ValueError, match="no classifier"):
        network.classify(torch.empty(2, 2048, 8, 1, 1, device="meta"))
