"""STIN against the released networks' outputs and against its layers written as loops."""

import math

import golden_cases
import pytest
import torch
from fusion_heads import CLASSES, boxes_of, features_of, small_head
from released_maps import case_boxes, released_maps
from torch import nn

from actionfuse.fusion import Instances, create_head
from actionfuse.fusion.instances import CountedBatchNorm, centre_size
from actionfuse.fusion.slots import mean_of_others, mean_of_slots
from actionfuse.fusion.stin import Interaction
from actionfuse.fusion.stin_layout import from_released, released_options

CASES = golden_cases.available(
    "recognition",
    "stin_coord",
    "stin_coord_latent",
    "stin_coord_latent_full",
    "stin_coord_latent_nl",
    "stin_coord_latent_nl_full",
    "stin_global_i3d",
    "stin_global_coord",
    "stin_global_coord_latent",
    "stin_global_coord_latent_nl",
)
INPUTS = ("boxes", "boxes+categories", "maps", "maps+boxes", "maps+boxes+categories", "joint")
ON_BOXES = tuple(inputs for inputs in INPUTS if inputs != "maps")


def tiny(inputs="boxes+categories", *, streams=("rgb", "flow"), **options):
    """A small head in float64 whose running statistics are not those of a new batch norm."""
    options = {"width": 8, "steps": 4, "dropout": 0.0, **options}
    head = small_head("stin", streams, inputs=inputs, **options).double()
    for name, buffer in head.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(0.5 + torch.rand_like(buffer) if name.endswith("var") else 0.1 * torch.randn_like(buffer))
    return head


def tiny_inputs(head, batch=3, steps=4, instances=3):
    """Features and boxes in float64; an instance comes and goes, a slot of the last sample is always empty."""
    features = {name: x.double() for name, x in features_of(head, batch, steps).items()}
    boxes = boxes_of(head, batch, steps, instances)
    if boxes is None:
        return features, None
    boxes.categories[0, -1, 1] = boxes.categories[1, 0, 0] = 0
    return features, Instances(boxes.boxes.double(), boxes.categories)


def logits_of(head, features, boxes, masks=None):
    return torch.cat([*head(features, boxes, masks).logits.values()], 1)


def rearranged(boxes, order, junk=0.3):
    """Slots in another order; -1 is an empty one, with something in its boxes that nobody should look at."""
    size = boxes.boxes.shape[2]
    order = torch.tensor([size if slot < 0 else slot for slot in order])
    corners = torch.nn.functional.pad(boxes.boxes, (0, 0, 0, 1), value=junk)
    categories = torch.nn.functional.pad(boxes.categories, (0, 1))
    return Instances(corners[:, :, order], categories[:, :, order])


# --- the released networks


@pytest.mark.parametrize("name", CASES)
def test_matches_the_released_network(name):
    case = golden_cases.load_case(name)
    weights = case.weights()
    backbone, ours = from_released(weights)
    assert len(backbone) + len(ours) == len(weights)
    last = next(x for key, x in weights.items() if key in ("classifier.4.weight", "fc.weight"))
    options = released_options(weights)
    head = create_head(
        "stin", streams={"rgb": 2048} if backbone else {}, classes={"action": len(last)}, **options
    ).eval()
    head.load_state_dict(ours)
    maps = {"rgb": released_maps(case, backbone)} if backbone else {}
    paths = {
        "coord_to_feature": "tracks.positions",
        "coord_category_fusion": "tracks.fusion",
        "spatial_node_fusion": "interaction.spatial",
        "box_feature_fusion": "interaction.temporal",
    }
    paths |= {f"nonlocal_fusion.{block}": f"interaction.nonlocals.{block}" for block in range(3)}
    known = {tap: paths[tap.removeprefix("c_")] for tap in case.taps if tap.removeprefix("c_") in paths}
    assert set(case.taps) - set(known) <= {"i3D.layer4", "conv"}
    with torch.inference_mode(), golden_cases.Tapped(head, known) as outputs:
        output = head(maps, case_boxes(case) if head.needs_boxes else None)
        if "conv" in case.taps:
            narrow = head.get_submodule("maps.narrow.rgb")
            case.check_tap("conv", narrow(maps["rgb"].movedim(1, -1)).movedim(-1, 1), rtol=1e-5)
    for tap, value in outputs.items():
        if "nonlocal" in tap:
            value = value[0].transpose(1, 2)
        else:  # theirs go over samples, instances and steps, in this order
            value = value.transpose(1, 2).flatten(0, 2) if value.ndim == 4 else value.flatten(0, 1)
        case.check_tap(tap, value, rtol=1e-5)
    case.check_output("logits", output.logits["action"], rtol=1e-5)


@pytest.mark.parametrize(("name", "width", "million"), [("stin", 512, 4.29), ("stin_nl", 256, 1.80)])
def test_published_numbers_of_parameters(name, width, million):
    with torch.device("meta"):
        head = create_head(name, streams={}, classes={"action": 174}, width=width, steps=8, variant="released")
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, 2) == million


@pytest.mark.parametrize("inputs", INPUTS[:-1])
@pytest.mark.parametrize("nonlocal_layers", [0, 3])
def test_released_batch_norms_are_trained_where_the_code_trains_them(inputs, nonlocal_layers):
    if inputs == "maps":
        nonlocal_layers = 0
    head = tiny(inputs, streams=("rgb",), variant="released", nonlocal_layers=nonlocal_layers).train()
    norms = [module for module in head.modules() if isinstance(module, CountedBatchNorm)]
    frozen = (inputs, nonlocal_layers) in (("boxes+categories", 3), ("maps+boxes+categories", 0))
    assert {norm.training for norm in norms} <= {not frozen}
    assert {p.requires_grad for norm in norms for p in norm.parameters()} <= {not frozen}
    paper = tiny(inputs, streams=("rgb",), nonlocal_layers=nonlocal_layers).train()
    assert all(module.training for module in paper.modules())


def test_released_network_mixes_steps_and_channels_of_maps():
    paper, released = (tiny("maps+boxes+categories", streams=("rgb",), variant=v) for v in ("paper", "released"))
    released.load_state_dict(paper.state_dict())
    features, boxes = tiny_inputs(paper)
    boxes = Instances(boxes.boxes, boxes.categories.clamp(min=1))  # nothing is empty
    narrowed = paper.maps.narrow["rgb"](features["rgb"].mean((3, 4)).transpose(1, 2))
    torch.testing.assert_close(paper.maps({"rgb": features["rgb"].mean((3, 4)).transpose(1, 2)}, {}), narrowed.mean(1))
    mixed = narrowed.transpose(1, 2).reshape(3, -1).unflatten(1, (4, 512)).mean(1)
    torch.testing.assert_close(released.maps({"rgb": features["rgb"].mean((3, 4)).transpose(1, 2)}, {}), mixed)
    assert (logits_of(paper, features, boxes) - logits_of(released, features, boxes)).abs().max() > 1e-3
    masks = {"rgb": torch.tensor([[True] * 4, [True] * 4, [True, True, False, False]])}
    with pytest.raises(ValueError, match="masks of rgb.*mixes steps with channels"):
        released(features, boxes, masks)
    logits_of(released, features, boxes, {"rgb": torch.ones_like(masks["rgb"])})


def test_released_network_sees_empty_slots():
    head = tiny(variant="released")
    features, boxes = tiny_inputs(head)
    more = rearranged(boxes, [0, 1, 2, -1])
    assert (logits_of(head, features, boxes) - logits_of(head, features, more)).abs().max() > 1e-5
    # but no padded steps
    masks = {stream: torch.tensor([[True] * 3 + [False]] * 3) for stream in head.streams}
    shorter = Instances(boxes.boxes[:, :3], boxes.categories[:, :3])
    torch.testing.assert_close(
        logits_of(head, features, boxes, masks),
        logits_of(head, {stream: x[:, :, :3] for stream, x in features.items()}, shorter),
    )


# --- the layers, as loops


def dense(layer, x):
    """Linear, batch norm in testing mode, ReLU: of one vector."""
    norm, y = layer.norm, layer.linear.weight @ x
    y = (y - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias
    return torch.stack([value if value > 0 else 0 * value for value in y])


def through(layers, x):
    for layer in layers:
        x = dense(layer, x)
    return x


def attend(block, slots):
    """A non-local block over a list of vectors, with its norm over all of them."""
    out = []
    for x in slots:
        scores = [(block.theta(x) @ block.phi(y)).item() / math.sqrt(block.theta.out_features) for y in slots]
        total = sum(math.exp(score) for score in scores)
        out.append(
            block.out(sum((math.exp(score) / total) * block.g(y) for score, y in zip(scores, slots, strict=True)))
        )
    numbers = [value.item() for y in out for value in y]
    mean = sum(numbers) / len(numbers)
    var = sum((number - mean) ** 2 for number in numbers) / len(numbers)
    return [x + (y - mean) / math.sqrt(var + 1e-5) for x, y in zip(slots, out, strict=True)]


def interact(interaction, instances):
    """instances: for every step slot -> vector of those that are there."""
    spatial = []
    for there in instances:
        told = {}
        for slot, x in there.items():
            others = [y for other, y in there.items() if other != slot]
            message = sum(others) / len(others) if others else torch.zeros_like(x)
            told[slot] = through(interaction.spatial, torch.cat([x, message]))
        spatial.append(told)
    slots = sorted({slot for there in instances for slot in there})
    zeros = torch.zeros(interaction.spatial[-1].linear.out_features, dtype=torch.float64)
    found = []
    for slot in slots:
        steps = [there.get(slot, zeros) for there in spatial] + [zeros] * (interaction.steps - len(spatial))
        found.append(through(interaction.temporal, torch.cat(steps)))
    for layer in interaction.nonlocals:
        found = [dense(layer.layer, x) for x in attend(layer.block, found)]
    return sum(found) / len(found) if found else zeros


def naive(head, features, boxes):
    """Logits of one sample, without padding."""
    found = []
    if head.maps is not None:
        for stream, x in features.items():
            steps = []
            for t in range(x.shape[2]):
                cells = [x[0, :, t, i, j] for i in range(x.shape[3]) for j in range(x.shape[4])]
                narrowed = head.maps.narrow[stream](sum(cells) / len(cells))
                steps.append(through(head.maps.layer[stream], narrowed) if stream in head.maps.layer else narrowed)
            found.append(sum(steps) / len(steps))
    if boxes is not None:
        instances = []
        for t in range(boxes.boxes.shape[1]):
            there = {}
            for slot in range(boxes.boxes.shape[2]):
                category = boxes.categories[0, t, slot].item()
                if not category:
                    continue
                x1, y1, x2, y2 = boxes.boxes[0, t, slot]
                centre = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
                x = through(head.tracks.positions, centre)
                if head.tracks.category is not None:
                    x = through(head.tracks.fusion, torch.cat([x, head.tracks.category.weight[category]]))
                there[slot] = x
            instances.append(there)
        found.append(interact(head.interaction, instances))
    x = torch.cat(found)
    if boxes is not None:
        x = torch.relu(head.hidden[2](torch.relu(head.hidden[0](x))))
    return torch.cat([classify(x) for classify in head.classifiers.values()])


@pytest.mark.parametrize("inputs", INPUTS[:-1])
@pytest.mark.parametrize("nonlocal_layers", [0, 2])
def test_equals_the_layers_written_as_loops(inputs, nonlocal_layers):
    head = tiny(inputs, steps=5, nonlocal_layers=0 if inputs == "maps" else nonlocal_layers)
    features, boxes = tiny_inputs(head)
    logits = logits_of(head, features, boxes)
    for i in range(3):
        own = boxes and Instances(boxes.boxes[i : i + 1], boxes.categories[i : i + 1])
        alone = naive(head, {stream: x[i : i + 1] for stream, x in features.items()}, own)
        torch.testing.assert_close(logits[i], alone, rtol=1e-9, atol=1e-9)


def test_on_joint_features_equals_loops():
    head = tiny("joint", nonlocal_layers=1)
    features, boxes = tiny_inputs(head)
    joint = head.instances(features, boxes, {}, steps=4)
    logits = logits_of(head, features, boxes)
    for i in range(3):
        there = [{n: joint.features[i, t, n] for n in range(3) if boxes.categories[i, t, n]} for t in range(4)]
        x = interact(head.reasoning.interaction, there)
        alone = torch.cat([classify(x) for classify in head.classifiers.values()])
        torch.testing.assert_close(logits[i], alone, rtol=1e-9, atol=1e-9)


def test_means_of_others_and_of_slots():
    x = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    assert mean_of_others(x, None).flatten().tolist() == [4.0, 3.5, 1.5]
    assert mean_of_others(x, torch.tensor([True, False, True]))[::2].flatten().tolist() == [6.0, 1.0]
    assert mean_of_others(x, torch.tensor([False, False, True]))[2].item() == 0
    assert mean_of_others(x[:1], None).item() == 0  # the public code divides by zero
    assert mean_of_slots(x, torch.tensor([True, False, True])).item() == 3.5
    assert mean_of_slots(x, torch.tensor([False] * 3)).item() == 0


@pytest.mark.parametrize("training", [False, True])
def test_gradients(training):
    torch.manual_seed(0)
    interaction = Interaction(3, 4, steps=3, nonlocal_layers=1).double().train(training)
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    kept = torch.rand(2, 3, 3) > 0.3
    kept[:, 0] = True
    # statistics of training do not depend on how often they were gathered
    for norm in interaction.modules():
        if isinstance(norm, CountedBatchNorm):
            norm.momentum = 0.0
    assert torch.autograd.gradcheck(lambda y: interaction(y, kept)[0], (x,))


# --- empty slots, padded steps, missing streams


@pytest.mark.parametrize("inputs", ON_BOXES)
@pytest.mark.parametrize("training", [False, True])
def test_empty_slots_change_nothing(inputs, training):
    head = tiny(inputs, nonlocal_layers=2).train(training)
    features, boxes = tiny_inputs(head)
    before = {name: x.clone() for name, x in head.state_dict().items()}
    expected = logits_of(head, features, boxes)
    after = {name: x.clone() for name, x in head.state_dict().items()}
    for order in ([0, 1, 2, -1], [-1, 0, -1, 1, 2, -1]):
        head.load_state_dict(before)
        torch.testing.assert_close(logits_of(head, features, rearranged(boxes, order)), expected)
        for name, x in head.state_dict().items():
            torch.testing.assert_close(x, after[name], msg=name)
    head.load_state_dict(before)
    # which slot an instance has is nobody's business either
    torch.testing.assert_close(logits_of(head, features, rearranged(boxes, [2, 0, 1])), expected)


@pytest.mark.parametrize("inputs", INPUTS)
def test_padded_steps_change_nothing(inputs):
    head = tiny(inputs, nonlocal_layers=0 if inputs == "maps" else 1)
    features, boxes = tiny_inputs(head)
    real = torch.tensor([[True] * 4, [True, False, True, False], [False, True, True, True]])
    padded = {stream: x.masked_fill(~real[:, None, :, None, None], torch.nan) for stream, x in features.items()}
    dirty = boxes and Instances(boxes.boxes.masked_fill(~real[:, :, None, None], torch.nan), boxes.categories)
    together = logits_of(head, padded, dirty, dict.fromkeys(head.streams, real))
    for i in range(3):
        alone = {stream: x[i : i + 1, :, real[i]] for stream, x in features.items()}
        own = boxes and Instances(boxes.boxes[i : i + 1, real[i]], boxes.categories[i : i + 1, real[i]])
        torch.testing.assert_close(together[i : i + 1], logits_of(head, alone, own))


@pytest.mark.parametrize("inputs", INPUTS)
def test_samples_without_anything_give_finite_results(inputs):
    head = tiny(inputs, nonlocal_layers=0 if inputs == "maps" else 1).train()
    features, boxes = tiny_inputs(head)
    features = {stream: x.requires_grad_() for stream, x in features.items()}
    if boxes is not None:
        boxes.categories.zero_()
    logits = logits_of(head, features, boxes)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("inputs", ["boxes", "boxes+categories"])
def test_heads_on_boxes_need_no_streams(inputs):
    head = tiny(inputs, streams=())
    with_streams = tiny(inputs)
    features, boxes = tiny_inputs(with_streams)
    head.load_state_dict(with_streams.state_dict())
    expected = logits_of(with_streams, features, boxes)
    torch.testing.assert_close(logits_of(head, {}, boxes), expected, rtol=0, atol=0)
    torch.testing.assert_close(logits_of(with_streams, {}, boxes), expected, rtol=0, atol=0)
    # twice as many boxes as steps: the first of each step counts
    twice = Instances(boxes.boxes.repeat_interleave(2, 1), boxes.categories.repeat_interleave(2, 1))
    twice.boxes[:, 1::2] = 0.5
    torch.testing.assert_close(logits_of(with_streams, features, twice), expected, rtol=0, atol=0)


def test_every_kind_of_input_learns():
    for inputs in INPUTS:
        head = tiny(inputs, nonlocal_layers=0 if inputs == "maps" else 1).train()
        logits_of(head, *tiny_inputs(head)).square().sum().backward()
        assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == [], inputs


def test_nonlocal_weights_are_shares_of_the_instances_there():
    head = tiny(nonlocal_layers=2)
    features, boxes = tiny_inputs(head)
    plain = logits_of(head, features, boxes)
    output = head(features, boxes, extras=True)
    torch.testing.assert_close(torch.cat([*output.logits.values()], 1), plain)
    weights = output.extras["nonlocal_weights"]
    assert weights.shape == (3, 2, 3, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert not weights[2, :, :, 2].any()
    assert weights[:2].all()


# --- calls


def test_nl_is_stin_with_three_blocks():
    first = create_head("stin", streams={}, classes=CLASSES, nonlocal_layers=3, width=8)
    second = create_head("stin_nl", streams={}, classes=CLASSES, width=8)
    assert [*first.state_dict()] == [*second.state_dict()]
    assert isinstance(first.get_submodule("interaction.nonlocals.2.block"), nn.Module)


def test_wrong_calls():
    def make(**options):
        return create_head("stin", **{"streams": {"rgb": 24}, "classes": CLASSES, **options})

    with pytest.raises(ValueError, match="inputs is 'coords'; it is 'boxes' or"):
        make(inputs="coords")
    with pytest.raises(ValueError, match="variant is 'fixed'"):
        make(variant="fixed")
    with pytest.raises(ValueError, match="steps is 0"):
        make(steps=0)
    with pytest.raises(ValueError, match="width is 7"):
        make(width=7)
    with pytest.raises(ValueError, match="nonlocal_layers is 1.*inputs='maps'"):
        make(inputs="maps", nonlocal_layers=1)
    with pytest.raises(ValueError, match="global_feature=True is for inputs='joint'"):
        make(global_feature=True)
    for inputs in ("maps+boxes", "joint"):
        with pytest.raises(ValueError, match="needs streams"):
            make(inputs=inputs, streams={})
    head = tiny(steps=2)
    with pytest.raises(ValueError, match="steps=4"):
        head(*tiny_inputs(head))
    with pytest.raises(ValueError, match="needs boxes"):
        head({})


def test_files_of_something_else():
    head = create_head("stin", streams={}, classes={"action": 5}, width=8, steps=3, variant="released")
    released = {
        "module.coord_to_feature.0.weight": torch.randn(4, 4),
        "module.classifier.4.bias": torch.randn(5),
    }
    backbone, ours = from_released(released, task="verb")
    assert not backbone and sorted(ours) == ["classifiers.verb.bias", "tracks.positions.0.linear.weight"]
    assert set(from_released(released)[1]) < set(head.state_dict())
    with pytest.raises(ValueError, match="1 keys of the released state_dict.*coord_to_feature.9.weight"):
        from_released({**released, "coord_to_feature.9.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="neither conv nor coord_to_feature"):
        released_options({"fc.weight": torch.zeros(1)})


def test_joint_features_may_have_the_whole_maps_beside_them():
    head = tiny("joint", global_feature=True)
    features, boxes = tiny_inputs(head)
    seen = head.instances(features, boxes, {}, steps=4).whole
    without = tiny("joint")
    whole = head.classifiers["verb"].weight[:, 8:] @ seen.T
    without.load_state_dict(
        {
            key: x[:, :8] if key in ("classifiers.verb.weight", "classifiers.noun.weight") else x
            for key, x in head.state_dict().items()
        }
    )
    torch.testing.assert_close(head(features, boxes).logits["verb"], without(features, boxes).logits["verb"] + whole.T)


def test_centre_size():
    assert centre_size(torch.tensor([0.25, 0.5, 0.75, 0.625])).tolist() == [0.5, 0.5625, 0.5, 0.125]
