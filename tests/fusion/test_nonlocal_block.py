"""Non-local blocks and the head `nonlocal` against released networks' outputs and against loops."""

import math

import golden_cases
import pytest
import torch
from fusion_heads import CLASSES, boxes_of, features_of, small_head
from released_maps import case_boxes, released_maps

from actionfuse.fusion import Instances, create_head
from actionfuse.fusion.joint_layout import from_released, released_head
from actionfuse.fusion.nonlocal_block import NonLocalBlock, norm_of_sample

BLOCKS = golden_cases.available("recognition", "nonlocal_alexhex7_dot2d", "nonlocal_stin1d")
HEADS = golden_cases.available("recognition", "car_stnl", "car_stnl_det")


def block_of(attention="dot_product", norm="batch", width=6, inner=3, **options):
    """A block in float64 that does not begin as the identity."""
    torch.manual_seed(0)
    block = NonLocalBlock(width, inner, attention=attention, norm=norm, **options).double().eval()
    if block.norm is not None:
        torch.nn.init.normal_(block.norm.weight)
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 1.5)
    return block


def tiny(streams=("rgb", "flow"), **options):
    head = small_head("nonlocal", streams, **{"width": 8, "dropout": 0.0, **options}).double()
    torch.nn.init.normal_(head.reasoning.block.norm.weight)  # zeros at first, which would leave the block out
    return head


def tiny_inputs(head):
    features = {name: x.double() for name, x in features_of(head).items()}
    boxes = boxes_of(head)
    boxes.categories[0, -1, 1] = boxes.categories[1, 0, 0] = 0
    return features, Instances(boxes.boxes.double(), boxes.categories)


def logits_of(head, features, boxes, masks=None):
    return torch.cat([*head(features, boxes, masks).logits.values()], 1)


# --- released networks


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("with_weights", [False, True])
def test_matches_the_released_block(name, with_weights):
    case = golden_cases.load_case(name)
    names = {"phi.0": "phi", "g.0": "g", "W.0": "out", "W.1": "norm", "theta": "theta"}
    names |= {f"conv_{part}": part for part in ("theta", "phi", "g", "out")}
    x = case.input("x")
    plane = x.ndim == 4
    pooled = {"attention": "dot_product", "pool": True} if plane else {"attention": "softmax", "norm": "layer"}
    block = NonLocalBlock(x.shape[1], x.shape[1] // 2, **pooled).eval()
    weights = {}
    for key, tensor in case.weights().items():
        module, _, leaf = key.rpartition(".")
        weights[f"{names[module]}.{leaf}"] = tensor.flatten(1) if tensor.ndim > 2 else tensor
    block.load_state_dict(weights)
    y, affinity = block((x if plane else x[:, :, None]).permute(0, 2, 3, 1), with_weights=with_weights)
    case.check_output("y", y.permute(0, 3, 1, 2).reshape(x.shape), rtol=1e-5)
    assert (affinity is not None) == with_weights


@pytest.mark.parametrize("name", HEADS)
def test_matches_the_released_network(name):
    case = golden_cases.load_case(name)
    weights = case.weights()
    backbone, ours = from_released(weights)
    assert len(backbone) + len(ours) == len(weights)
    kind, options = released_head(weights)
    assert kind == "nonlocal"
    head = create_head(kind, streams={"rgb": 2048}, classes={"action": len(weights["fc.weight"])}, **options).eval()
    head.load_state_dict(ours)
    taps = {
        "conv": "instances.appearance.narrow.rgb",
        "region_vis_embed": "instances.appearance.dropout",
        "non_appearance_encoder": "instances.non_appearance.encoder",
    }
    with torch.inference_mode(), golden_cases.Tapped(head, taps) as outputs:
        maps = released_maps(case, backbone)
        output = head({"rgb": maps}, case_boxes(case))
    case.check_output("logits", output.logits["action"], rtol=1e-4)
    for tap, value in outputs.items():
        case.check_tap(tap, value, rtol=1e-4)
    case.check_tap("backbone.layer4", maps, rtol=1e-4)


def test_released_head_refuses_padded_steps():
    head = tiny(variant="released")
    features, boxes = tiny_inputs(head)
    masks = {stream: torch.ones(3, 4, dtype=torch.bool) for stream in head.streams}
    torch.testing.assert_close(logits_of(head, features, boxes, masks), logits_of(head, features, boxes))
    masks["rgb"][0, 3] = masks["flow"][0, 3] = False
    with pytest.raises(ValueError, match="pools over steps"):
        head(features, boxes, masks)
    one = Instances(boxes.boxes[:, :, :1], boxes.categories[:, :, :1])
    with pytest.raises(ValueError, match="4 steps and 1 instances cannot be pooled"):
        head(features, one)


def test_other_files_are_refused():
    with pytest.raises(ValueError, match="no state_dict.*STIN, STNL or STRG"):
        from_released({"fc.weight": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="belong to no part of this head: STNL_more.weight"):
        from_released({"STNL_reduce.weight": torch.zeros(2, 3), "STNL_more.weight": torch.zeros(1)})


# --- loops


def naive(block, x, present):
    """One sample (T, N, D), place by place."""
    places = [(t, n) for t in range(x.shape[0]) for n in range(x.shape[1]) if present[t, n]]
    out = {}
    for place in places:
        scores = [(block.theta(x[place]) @ block.phi(x[other])).item() for other in places]
        if block.attention == "softmax":
            exponents = [math.exp(score / math.sqrt(block.theta.out_features)) for score in scores]
            shares = [exponent / sum(exponents) for exponent in exponents]
        else:
            shares = [score / len(places) for score in scores]
        out[place] = block.out(sum(s * block.g(x[other]) for s, other in zip(shares, places, strict=True)))
    if block.norm is not None:
        for place, y in out.items():
            norm = block.norm
            out[place] = (y - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias
    else:
        numbers = torch.cat([*out.values()])
        mean = sum(numbers) / len(numbers)
        deviation = torch.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers) + 1e-5)
        out = {place: (y - mean) / deviation for place, y in out.items()}
    result = torch.zeros_like(x)
    for place, y in out.items():
        result[place] = x[place] + y
    return result


@pytest.mark.parametrize("attention", ["dot_product", "softmax"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("with_weights", [False, True])
def test_block_equals_loops(attention, norm, with_weights):
    block = block_of(attention, norm)
    x = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    present = torch.rand(3, 2, 4) > 0.3
    y, weights = block(x, present, with_weights=with_weights)
    everything, _ = block(x)
    for i in range(3):
        torch.testing.assert_close(y[i], naive(block, x[i], present[i]))
        torch.testing.assert_close(everything[i], naive(block, x[i], torch.ones(2, 4, dtype=torch.bool)))
    if weights is not None:
        assert weights.shape == (3, 8, 8)
        assert not weights.masked_select(~present.flatten(1)[:, None].expand_as(weights)).any()


def test_head_equals_loops():
    head = tiny()
    features, boxes = tiny_inputs(head)
    joint = head.instances(features, boxes, {}, steps=4)
    logits = logits_of(head, features, boxes)
    reasoning = head.reasoning
    for i in range(3):
        present = boxes.categories[i] > 0
        x = naive(reasoning.block, joint.features[i], present)
        slots = []
        for n in range(3):
            if present[:, n].any():
                zeros = torch.zeros(8, dtype=torch.float64)
                steps = [reasoning.reduce(x[t, n]) if present[t, n] else zeros for t in range(4)]
                slots.append(reasoning.time(torch.cat(steps)))
        video = sum(slots) / len(slots)
        alone = torch.cat([classify(video) for classify in head.classifiers.values()])
        torch.testing.assert_close(logits[i], alone)


@pytest.mark.parametrize("attention", ["dot_product", "softmax"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_gradients(attention, norm):
    block = block_of(attention, norm, width=4, inner=2).train()
    if block.norm is not None:
        block.norm.momentum = 0.0
    x = torch.randn(2, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[[True, True], [True, False]], [[True, True], [True, True]]])
    assert torch.autograd.gradcheck(lambda y: block(y, present)[0], (x,))


def test_norm_of_sample_is_group_norm_with_one_group():
    x = torch.randn(2, 3, 4, 5)
    wanted = torch.nn.functional.group_norm(x.permute(0, 3, 1, 2), 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(norm_of_sample(x), wanted)


# --- empty slots


@pytest.mark.parametrize("attention", ["dot_product", "softmax"])
@pytest.mark.parametrize("training", [False, True])
def test_empty_slots_change_nothing(attention, training):
    head = tiny(attention=attention).train(training)
    features, boxes = tiny_inputs(head)
    before = {name: x.clone() for name, x in head.state_dict().items()}
    expected = logits_of(head, features, boxes)
    after = {name: x.clone() for name, x in head.state_dict().items()}
    corners = torch.nn.functional.pad(boxes.boxes, (0, 0, 0, 1), value=0.3)
    categories = torch.nn.functional.pad(boxes.categories, (0, 1))
    for order in ([0, 1, 2, 3], [3, 2, 3, 0, 1]):
        head.load_state_dict(before)
        more = Instances(corners[:, :, order], categories[:, :, order])
        torch.testing.assert_close(logits_of(head, features, more), expected)
        for name, x in head.state_dict().items():
            torch.testing.assert_close(x, after[name], msg=name)
    released = tiny(variant="released")
    more = Instances(corners, categories)
    assert (logits_of(released, features, boxes) - logits_of(released, features, more)).abs().max() > 1e-3


def test_padded_steps_change_nothing():
    head = tiny()
    features, boxes = tiny_inputs(head)
    real = torch.tensor([[True] * 4, [True, False, True, False], [False, True, True, True]])
    padded = {stream: x.masked_fill(~real[:, None, :, None, None], torch.nan) for stream, x in features.items()}
    together = logits_of(head, padded, boxes, dict.fromkeys(head.streams, real))
    for i in range(3):
        alone = {stream: x[i : i + 1, :, real[i]] for stream, x in features.items()}
        own = Instances(boxes.boxes[i : i + 1, real[i]], boxes.categories[i : i + 1, real[i]])
        torch.testing.assert_close(together[i : i + 1], logits_of(head, alone, own))


def test_extras_and_calls():
    head = tiny()
    features, boxes = tiny_inputs(head)
    output = head(features, boxes, extras=True)
    assert output.extras["affinity"].shape == (3, 12, 12)
    torch.testing.assert_close(torch.cat([*output.logits.values()], 1), logits_of(head, features, boxes))
    assert tiny(variant="released")(features, boxes, extras=True).extras["affinity"].shape == (3, 12, 2)
    with pytest.raises(ValueError, match="attention is 'gaussian'"):
        tiny(attention="gaussian")
    with pytest.raises(ValueError, match="global_feature=True needs appearance"):
        create_head("nonlocal", streams={}, classes=CLASSES, appearance=False, global_feature=True)
    boxes_only = tiny(streams=(), appearance=False)
    assert boxes_only({}, boxes).logits["verb"].shape == (3, 5)
