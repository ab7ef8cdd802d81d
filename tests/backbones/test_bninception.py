"""BNInception against the public networks it stands for, its checkpoints and its input."""

import golden_cases
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from actionfuse.backbones import create_backbone, pool_space
from actionfuse.backbones.bninception import from_published
from actionfuse.backbones.convert import install
from actionfuse.fusion import create_head
from actionfuse.fusion.tbn import load_published

TBN_STREAMS = {"rgb": ("RGB", "rgb"), "flow": ("Flow", "flow"), "audio": ("Spec", "spec")}
TBN = golden_cases.available("recognition", "tbn_epic55", "tbn_epic55_gain")


@pytest.fixture(scope="module")
def trunk_state():
    """Published names and shapes of the rgb trunk, without prefix and classifier."""
    keys = golden_cases.load_case("tbn_epic55").meta["keys"]
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape, dtype in keys:
        if key.startswith("rgb."):
            tensor = torch.randn(shape, generator=generator) if dtype == "float32" else torch.zeros(shape).long()
            state[key.removeprefix("rgb.")] = tensor.abs() if key.endswith("running_var") else tensor
    return state


@pytest.mark.parametrize("name", TBN)
def test_temporal_binding_network_end_to_end(name, tmp_path):
    """One checkpoint, three trunks by `weights=` and the fusion head: verbs and nouns of the public code."""
    case = golden_cases.load_case(name)
    path = tmp_path / "tbn.pth.tar"
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in case.weights().items()}}, path)
    features = {}
    for stream, (modality, part) in TBN_STREAMS.items():
        trunk = create_backbone("bninception", stream=stream, weights=path)
        # segments are laid into the channels there
        clips = case.input(modality).unflatten(1, (3, -1)).transpose(1, 2)
        with torch.inference_mode():
            features[stream] = pool_space(trunk(clips))
        case.check_tap(f"{part}.global_pool", features[stream][0, :, :, None, None], rtol=1e-5)
    head = create_head("mid_level", streams=dict.fromkeys(features, 1024), classes={"verb": 125, "noun": 352})
    load_published(head.eval(), case.weights())
    with torch.inference_mode():
        logits = head(features).logits
    case.check_output("verb", logits["verb"], rtol=1e-5)
    case.check_output("noun", logits["noun"], rtol=1e-5)
    path.unlink()


def test_rulstm_checkpoint(tmp_path, trunk_state):
    """Names of pretrainedmodels below `module.base_model.`, the action classifier beside them."""
    head = {"weight": torch.randn(2513, 1024), "bias": torch.randn(2513)}
    state = {f"base_model.{key}": tensor for key, tensor in trunk_state.items()}
    state |= {f"new_fc.{key}": tensor for key, tensor in head.items()}
    # not trained and not used any more: ImageNet's classifier
    state |= {
        "base_model.last_linear.weight": torch.zeros(1000, 1024),
        "base_model.last_linear.bias": torch.zeros(1000),
    }
    path = tmp_path / "TSN-rgb.pth.tar"
    torch.save({"state_dict": {f"module.{key}": x for key, x in state.items()}, "epoch": 3}, path)
    backbone = create_backbone("bninception", weights=path)
    assert backbone.num_classes == 2513
    assert torch.equal(backbone.head.weight, head["weight"])
    own = backbone.state_dict()
    assert torch.equal(own["body.inception_4e.units.double_3x3_2.conv.weight"],
                       trunk_state["inception_4e_double_3x3_2.weight"])  # fmt: skip
    assert torch.equal(own["body.inception_4e.units.double_3x3_2.norm.running_var"],
                       trunk_state["inception_4e_double_3x3_2_bn.running_var"])  # fmt: skip
    torch.save({"state_dict": state | {"base_model.inception_6a_1x1.weight": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"1 left over: body\.inception_6a|1 left over: inception_6a"):
        create_backbone("bninception", weights=path)
    del state["base_model.inception_3a_1x1.bias"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(ValueError, match=r"1 missing: body\.inception_3a\.units\.1x1\.conv\.bias"):
        create_backbone("bninception", weights=path)


def test_norms_of_files_from_caffe_have_a_first_dimension_of_one(trunk_state):
    state = {key: x[None] if "_bn." in key and x.ndim == 1 else x for key, x in trunk_state.items()}
    backbone = create_backbone("bninception")
    install(backbone, from_published(state | {"fc.weight": torch.zeros(9, 1024), "fc.bias": torch.zeros(9)}), what="x")
    assert backbone.num_classes == 9
    assert torch.equal(backbone.body["conv1_7x7_s2"].norm.weight, trunk_state["conv1_7x7_s2_bn.weight"])


def test_flow_takes_flow_weights_as_they_are_and_rgb_ones_by_their_mean(tmp_path, trunk_state):
    first = "conv1_7x7_s2.weight"
    path = tmp_path / "TSN.pth.tar"
    flow = trunk_state | {first: torch.randn(64, 10, 7, 7)}
    for state, want in (
        (flow, flow[first]),
        (trunk_state, trunk_state[first].mean(1, keepdim=True).expand(-1, 10, -1, -1)),
    ):
        torch.save({f"base_model.{key}": tensor for key, tensor in state.items()}, path)
        backbone = create_backbone("bninception", stream="flow", weights=path)
        torch.testing.assert_close(backbone.body["conv1_7x7_s2"].conv.weight.detach(), want)
        assert backbone.input_spec.mean == (128.0,) * 10


def test_a_file_without_the_stream_says_what_it_has(tmp_path, trunk_state):
    path = tmp_path / "tbn.pth.tar"
    torch.save({f"module.rgb.{key}": tensor for key, tensor in trunk_state.items()}, path)
    with pytest.raises(ValueError, match="trunks rgb but none named 'spec'"):
        create_backbone("bninception", stream="audio", weights=path)


def test_input_is_bgr_of_0_to_255_less_its_mean():
    spec = create_backbone("bninception").input_spec
    pixel = torch.tensor([10, 20, 30], dtype=torch.uint8).expand(1, 1, 1, 1, 3)  # r, g, b
    assert spec.normalise(pixel).flatten().tolist() == [30 - 104, 20 - 117, 10 - 128]
    flow = create_backbone("bninception", stream="flow").input_spec
    assert flow.channels == 10 and flow.flow_stack == 5
    assert flow.normalise(torch.full((1, 1, 1, 1, 10), 130, dtype=torch.uint8)).unique().tolist() == [2.0]
    audio = create_backbone("bninception", stream="audio").input_spec
    assert audio.crop == 256
    assert audio.normalise(torch.full((1, 1, 1, 1, 1), -3.5)).item() == -3.5
    ir = create_backbone("bninception", stream="ir").input_spec
    assert ir.normalise(torch.full((1, 1, 1, 1, 1), 255, dtype=torch.uint8)).item() == pytest.approx(255 - 349 / 3)


def test_units_fold_the_norm_into_the_convolution_only_where_it_does_not_learn():
    torch.manual_seed(0)
    unit = create_backbone("bninception").body["conv2_3x3"]
    torch.nn.init.normal_(unit.conv.bias)
    torch.nn.init.uniform_(unit.norm.running_var, 0.5, 2)
    torch.nn.init.normal_(unit.norm.running_mean)
    maps = torch.randn(2, 64, 9, 9)
    plain = F.conv2d(maps, unit.conv.weight, unit.conv.bias, padding=1)
    with torch.no_grad():
        torch.testing.assert_close(unit(maps), unit.norm(plain).relu(), rtol=1e-4, atol=1e-4)
        unit.train()
        want = F.batch_norm(plain, None, None, unit.norm.weight, unit.norm.bias, training=True).relu()
        torch.testing.assert_close(unit(maps), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 33), (256, 454), (225, 227), (63, 100)])
def test_any_size_goes_through(size):
    with torch.device("meta"):
        backbone = create_backbone("bninception")
    assert backbone(torch.empty(1, 3, 2, *size, device="meta")).shape[2:] == backbone.output_size(2, *size)


def test_parameters_and_operations():
    with torch.device("meta"):
        backbone = create_backbone("bninception", num_classes=1000)
        # Ioffe and Szegedy's network in pretrainedmodels: 11.29 million
    assert sum(weight.numel() for weight in backbone.parameters()) / 1e6 == pytest.approx(11.295, rel=0.001)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        backbone(torch.empty(1, 3, 1, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(2.03, rel=0.01)


def test_stages_cover_every_parameter_once():
    backbone = create_backbone("bninception")
    stages = backbone.stages()
    assert len(stages) == 1 + 10
    counted = [weight for stage in stages for module in stage for weight in module.parameters()]
    assert {id(weight) for weight in counted} == {id(weight) for weight in backbone.parameters()}
    assert len(counted) == len(list(backbone.parameters()))
