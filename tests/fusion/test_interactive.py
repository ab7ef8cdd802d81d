"""Interactive Fusion against the released network's outputs and against its equations written as loops."""

import golden_cases
import pytest
import torch
from fusion_heads import CLASSES, boxes_of, features_of, small_head
from released_maps import case_boxes, released_maps
from torch import nn
from torchvision.ops import roi_align

from actionfuse.fusion import Instances, create_head
from actionfuse.fusion.interactive import PAIR_KINDS, CompositionalReasoning, Predictor
from actionfuse.fusion.interactive_layout import from_released, released_options

CASES = golden_cases.available(
    "recognition", "car_stcr", "car_stcr_det", "car_poolt", "car_poolt_det", "car_pool", "car_pool_det"
)
VARIANTS = ("paper", "released")
TAPS = {
    "conv": "instances.appearance.narrow.rgb",
    "region_vis_embed": "instances.appearance.dropout",
    "region_coord_embed": "instances.non_appearance.boxes.second",
    "coord_category_fusion": "instances.non_appearance.fusion",
    "non_appearance_encoder": "instances.non_appearance.encoder",
    "STCR_spaital_fusion": "reasoning.fuse",
    "STCR_temporal_flow": "flow",
    "STCR_temporal_fusion": "time",
}


def tiny(variant="paper", *, streams=("rgb", "flow"), **options):
    """A small head in float64 whose running statistics are not those of a new batch norm."""
    options = {"width": 8, "dropout": 0.0, **options}
    head = small_head("interactive", streams, variant=variant, **options).double()
    for name, buffer in head.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(0.5 + torch.rand_like(buffer) if name.endswith("var") else 0.1 * torch.randn_like(buffer))
    return head


def tiny_inputs(head, batch=3, steps=4, instances=3, times=None):
    features = {name: x.double() for name, x in features_of(head, batch, steps).items()}
    boxes = boxes_of(head, batch, times or steps, instances)
    return features, Instances(boxes.boxes.double(), boxes.categories)


def outcome(head, features, boxes, masks=None):
    """Logits and the loss, with which training would begin."""
    output = head(features, boxes, masks, losses=True)
    return torch.cat([*output.logits.values()], 1), output.losses.get("prediction", torch.zeros(()))


# --- the released network


@pytest.mark.parametrize("name", CASES)
def test_matches_the_released_network(name):
    case = golden_cases.load_case(name)
    weights = case.weights()
    backbone, ours = from_released(weights)
    maps = released_maps(case, backbone)
    classes = weights["fc.weight"].shape[0]
    head = create_head("interactive", streams={"rgb": 2048}, classes={"action": classes}, **released_options(weights))
    head.load_state_dict(ours)
    known = {tap: path for tap, path in TAPS.items() if tap in case.taps}
    assert set(case.taps) - set(known) <= {"backbone.layer4", "STCR_hand_obj"}
    with torch.inference_mode(), golden_cases.Tapped(head.eval(), known) as outputs:
        output = head({"rgb": maps}, case_boxes(case), losses=True, extras=True)
    case.check_output("logits", output.logits["action"], rtol=1e-5)
    case.check_tap("backbone.layer4", maps, rtol=1e-5)
    if "pred_loss" in case.arrays:
        case.check_output("pred_loss", output.losses["prediction"][None] / 5, rtol=1e-5)
    for tap, value in outputs.items():
        if tap == "STCR_temporal_flow":
            # the reference's last call is over the last window of each of the 2 x 4 instances
            windows = value[0].unflatten(1, (2, -1, 4))
            value = windows[:, :, -1].flatten(1, 2)
        elif tap in ("region_coord_embed", "coord_category_fusion"):
            value = value.flatten(0, 2)
        elif tap == "STCR_temporal_fusion":
            value = value.flatten(0, 1)
        case.check_tap(tap, value, rtol=1e-5)
    if "STCR_hand_obj" in case.taps:
        with torch.inference_mode():
            joint = torch.cat([outputs["region_vis_embed"], outputs["non_appearance_encoder"]], -1)
            kinds = output.extras["pair_kinds"]
            messages = head.reasoning.messages(joint, kinds) * (kinds == PAIR_KINDS.index("subject_object"))[..., None]
        case.check_tap("STCR_hand_obj", messages.flatten(2, 3), rtol=1e-5)


def test_released_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        head = create_head("interactive", streams={"rgb": 2048}, classes={"action": 174}, variant="released")
        detected = create_head(
            "interactive", streams={"rgb": 2048}, classes={"action": 174}, variant="released", global_feature=True
        )
    million = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (head, detected)]
    # 62.44 and 62.48 with the I3D, which has 27.58 with a classifier of 174 classes
    assert [round(number + 27.58, 2) for number in million] == [62.44, 62.48]


def released_state(*, appearance=True, boxes=True, reasoning="STCR", predicts=True, steps=4, width=8, whole=False):
    """A state_dict with the released network's keys and a small width."""
    joint, state = width * (appearance + boxes), {}

    def linear(name, outputs, inputs, bias=False):
        state[f"{name}.weight"] = torch.randn(outputs, inputs)
        if bias:
            state[f"{name}.bias"] = torch.randn(outputs)

    def norm(name, size):
        state.update({f"{name}.{key}": tensor for key, tensor in nn.BatchNorm1d(size).state_dict().items()})

    if appearance:
        state["backbone.layer1.0.conv1.0.weight"] = torch.randn(64, 64, 3, 1, 1)
        state["conv.weight"], state["conv.bias"] = torch.randn(width // 2, 24, 1, 1, 1), torch.randn(width // 2)
        linear("region_vis_embed.0", width, 9 * width // 2, bias=True)
    if boxes:
        for number, (inputs, outputs) in enumerate(((4, width // 2), (width // 2, width))):
            linear(f"region_coord_embed.{3 * number}", outputs, inputs)
            norm(f"region_coord_embed.{3 * number + 1}", outputs)
        linear("category_embed_layer", 3, width // 2)
        linear("coord_category_fusion.0", width, width + width // 2)
        norm("coord_category_fusion.1", width)
    for number in (0, 2):
        linear(f"non_appearance_encoder.{number}", width, width, bias=True)
    video = joint
    if reasoning == "STCR":
        for kind in ("empty_other", "hand_hand", "obj_obj", "hand_obj"):
            linear(f"STCR_{kind}.0", joint, 2 * joint)
        linear("STCR_fea_embed", joint, joint)
        linear("STCR_spaital_fusion", joint, joint)
        linear("STCR_temporal_fusion.0", joint, steps * joint)
        norm("STCR_temporal_fusion.1", joint)
        linear("STCR_temporal_fusion.3", width, joint)
        norm("STCR_temporal_fusion.4", width)
        lstm = nn.LSTM(joint, joint, num_layers=2).state_dict()
        state.update({f"STCR_temporal_flow.{key}": tensor for key, tensor in lstm.items()})
        if predicts:
            state.update({f"pred_LSTM.{key}": tensor for key, tensor in lstm.items()})
            linear("pos_decoder", 4, joint, bias=True)
            linear("offset_decoder", 2, joint, bias=True)
        video = width
    elif reasoning == "pool_T":
        linear("navie_temp.0", joint, steps * joint)
    linear("fc", 11, video + (width // 2 if whole else 0), bias=True)
    return state


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"steps": 8, "whole": True},
        {"predicts": False},
        {"reasoning": "pool_T", "predicts": False},
        {"reasoning": "pool_T", "predicts": False, "whole": True},
        {"reasoning": "pool", "predicts": False},
        {"reasoning": "pool_T", "predicts": False, "boxes": False},
        {"reasoning": "pool_T", "predicts": False, "appearance": False, "steps": 8},
    ],
)
def test_released_files_tell_their_options_and_load_strictly(parts):
    state = {f"module.{key}": tensor for key, tensor in released_state(**parts).items()}
    streams = {"video": 24} if parts.get("appearance", True) else {}
    head = create_head("interactive", streams=streams, classes={"act": 11}, **released_options(state)).eval()
    backbone, ours = from_released(state, stream="video", task="act")
    head.load_state_dict(ours)
    assert list(backbone) == ["backbone.layer1.0.conv1.0.weight"] * bool(streams)
    steps = parts.get("steps", 4)
    logits = head(features_of(head, steps=steps), boxes_of(head, steps=steps)).logits
    assert logits["act"].shape == (3, 11)


def test_keys_of_no_part_are_an_error_that_lists_them():
    state = released_state()
    with pytest.raises(ValueError, match=r"2 keys.*STIN_x\.bias, STIN_x\.weight"):
        from_released({**state, "STIN_x.weight": torch.zeros(1), "STIN_x.bias": torch.zeros(1)})
    del state["STCR_obj_obj.0.weight"]
    with pytest.raises(ValueError, match="STCR_hand_obj.*but not all of.*STCR_obj_obj"):
        from_released(state)
    with pytest.raises(ValueError, match="fc.weight"):
        released_options({"conv1.weight": torch.zeros(1)})


def test_of_the_lstms_two_names_the_second_counts():
    state = dict(reversed(released_state().items()))
    state["STCR_temporal_flow.bias_ih_l0"] = state["STCR_temporal_flow.bias_ih_l0"] + 1
    assert from_released(state)[1]["flow.bias_ih_l0"].equal(state["pred_LSTM.bias_ih_l0"])


# --- the equations, naively


def naive_linear(layer, x):
    return layer.weight @ x + (0 if layer.bias is None else layer.bias)


def naive_norm(norm, x):
    return (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias


def naive_joint(instances, maps, box, category):
    """One instance at one step: maps of this step (D, H, W) by stream, box x1 y1 x2 y2."""
    cut = []
    for name, x in maps.items():
        conv = instances.appearance.narrow[name]
        narrow = torch.einsum("od,dhw->ohw", conv.weight[:, :, 0, 0, 0], x) + conv.bias[:, None, None]
        side = torch.tensor([x.shape[2], x.shape[1]] * 2)
        roi = roi_align(narrow[None], [(box * side)[None]], 3, sampling_ratio=2, aligned=True)
        cut.append(roi.flatten())
    looks = naive_linear(instances.appearance.embed, torch.cat(cut))
    where = torch.stack([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]])
    encoder = instances.non_appearance
    x = where
    for layer in (encoder.boxes.first, encoder.boxes.second):
        x = naive_norm(layer.norm, naive_linear(layer.linear, x)).relu()
    x = torch.cat([x, encoder.boxes.category.weight[category]])
    for layer in (encoder.encoder[0], encoder.encoder[2]):
        x = naive_linear(layer, x).relu()
    return torch.cat([looks, x]), where


def naive_lstm(lstm, xs):
    """Outputs of the two layers after xs, from zeros."""
    for layer in range(2):
        w_i, w_h, b_i, b_h = (
            getattr(lstm, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = torch.zeros(w_h.shape[1], dtype=torch.float64)
        outputs = []
        for x in xs:
            i, f, g, o = (w_i @ x + b_i + w_h @ h + b_h).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        xs = outputs
    return xs


def naive_pair(reasoning, f_i, f_j, category_i, category_j):
    kind = {(1, 1): "subject_subject", (2, 2): "object_object"}.get((category_i, category_j), "subject_object")
    number = PAIR_KINDS.index(kind) - 1
    width = len(f_i)
    first = reasoning.pairs.weight.view(2, 3, width, width)
    weight = torch.cat([first[0, number], first[1, number]], 1)  # of the Linear on [f_i, f_j]
    return (weight @ torch.cat([f_i, f_j]) + reasoning.bias[number]).relu()


def naive_paper(head, features, boxes, sample):
    """Logits by task and the prediction's loss of one sample, equations 2 to 5, for the paper's variant."""
    steps, slots = boxes.categories.shape[1:]
    categories = boxes.categories[sample].tolist()
    joint, where = {}, {}
    for t in range(steps):
        for i in range(slots):
            if categories[t][i]:
                maps = {name: x[sample, :, t] for name, x in features.items()}
                joint[t, i], where[t, i] = naive_joint(
                    head.instances, maps, boxes.boxes[sample, t, i], categories[t][i]
                )
    width = 2 * 8
    nothing = torch.zeros(width, dtype=torch.float64)
    semantic = {}
    for t, i in joint:
        total = joint[t, i]
        for j in range(slots):
            if j != i and (t, j) in joint:
                total = total + naive_pair(head.reasoning, joint[t, i], joint[t, j], categories[t][i], categories[t][j])
        semantic[t, i] = naive_linear(head.reasoning.fuse, total)
    pooled, loss = [], 0.0
    for i in range(slots):
        seen = [t for t in range(steps) if (t, i) in joint]
        if not seen:
            continue
        states = naive_lstm(head.flow, [semantic.get((t, i), nothing) for t in range(steps)])
        flat = torch.cat([states[t] if t in seen else nothing for t in range(steps)] + [nothing] * (4 - steps))
        z = naive_linear(head.time.layers[0], flat).relu()
        pooled.append(naive_linear(head.time.layers[2], z).relu())
        for t in range(max(steps // 2, 1), steps):
            if t not in seen or seen[0] >= t:
                continue
            state = naive_lstm(head.flow, [semantic.get((s, i), nothing) for s in range(t)])[-1]
            loss += (naive_linear(head.predictor.position, state) - where[t, i]).square().sum()
            if t - 1 in seen:
                moved = (where[t, i] - where[t - 1, i])[:2]
                loss += (naive_linear(head.predictor.offset, state) - moved).square().sum()
    video = torch.stack(pooled).mean(0)
    return {task: naive_linear(layer, video) for task, layer in head.classifiers.items()}, loss


@pytest.mark.parametrize("steps", [4, 3, 2])
def test_paper_is_its_equations(steps):
    head = tiny()
    features, boxes = tiny_inputs(head, steps=steps)
    categories = boxes.categories.clone()
    categories[0, :, 1] = 1  # two subjects
    categories[1, 0, 2] = 0  # appears later
    categories[1, 1, 1] = 0  # hidden for a step
    boxes = Instances(boxes.boxes, categories)
    with torch.no_grad():
        output = head(features, boxes, losses=True)
        naive = [naive_paper(head, features, boxes, sample) for sample in range(3)]
    for task, logits in output.logits.items():
        torch.testing.assert_close(logits, torch.stack([own[task] for own, _ in naive]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.losses["prediction"], 5 * sum(loss for _, loss in naive) / 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pairs_are_those_of_a_linear_for_each_kind_over_every_pair(variant):
    torch.manual_seed(0)
    reasoning = CompositionalReasoning(6, variant=variant).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    categories = torch.randint(0, 3, (2, 3, 5))
    got = reasoning.messages(x, reasoning.kinds_of(categories))
    halves = reasoning.pairs.weight.view(2, -1, 6, 6)
    for b in range(2):
        for t in range(3):
            for i in range(5):
                for j in range(5):
                    product = 0 if i == j else int(categories[b, t, i] * categories[b, t, j])
                    number = {0: 0, 1: 1, 2: 2, 4: 3}[product] - (variant == "paper")
                    want = torch.zeros(6, dtype=torch.float64)
                    if number >= 0:
                        want = halves[0, number] @ x[b, t, i] + halves[1, number] @ x[b, t, j]
                        want = (want if reasoning.bias is None else want + reasoning.bias[number]).relu()
                    torch.testing.assert_close(got[b, t, i, j], want)
    parameters = list(reasoning.parameters())
    assert torch.autograd.gradcheck(
        lambda x, *_: reasoning(x, reasoning.messages(x, reasoning.kinds_of(categories[:1, :1, :3]))),
        (x[:1, :1, :3].detach().requires_grad_(), *parameters),
        fast_mode=True,
    )


@pytest.mark.parametrize("lengths", [(5, 5), (8, 8), (6, 3), (7, 1)])
def test_released_prediction_is_of_the_steps_just_before(lengths):
    torch.manual_seed(0)
    predictor, lstm = Predictor(4, variant="released").double(), nn.LSTM(4, 4, num_layers=2).double()
    steps = max(lengths)
    semantic = torch.randn(2, steps, 3, 4, dtype=torch.float64)
    real = torch.arange(steps) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        positions, offsets, predicted = predictor(semantic, torch.zeros_like(semantic), lstm, real)
        for sample, length in enumerate(lengths):
            observed = length // 2
            want = [length > 1 and observed <= t < length for t in range(steps)]
            assert predicted[sample].tolist() == want
            for t in range(observed, length if observed else 0):
                for i in range(3):
                    state = naive_lstm(lstm, semantic[sample, t - observed : t, i])[-1]
                    torch.testing.assert_close(positions[sample, t, i], naive_linear(predictor.position, state))
                    torch.testing.assert_close(offsets[sample, t, i], naive_linear(predictor.offset, state))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_logits_and_loss(variant):
    head = tiny(variant, streams=("rgb",), width=2, roi_size=1, map_width=2, steps=3)
    features, boxes = tiny_inputs(head, batch=1, steps=3, instances=2)
    # without the categories' embedding, whose gradient the released network scales on purpose
    trained = {
        name: p.detach().clone().requires_grad_() for name, p in head.named_parameters() if "category" not in name
    }

    def run(x, *values):
        output = torch.func.functional_call(
            head, dict(zip(trained, values, strict=True)), ({"rgb": x}, boxes), {"losses": True}
        )
        return (*output.logits.values(), output.losses["prediction"])

    assert torch.autograd.gradcheck(
        run, (features["rgb"][..., :2, :2].requires_grad_(), *trained.values()), fast_mode=True
    )


# --- empty slots, padding, boxes at other times


@pytest.mark.parametrize("training", [False, True])
def test_empty_slots_change_nothing(training):
    results = []
    for padded in (False, True):
        head = tiny().train(training)
        features, boxes = tiny_inputs(head)
        if padded:
            # three more slots: in front, between and behind; what stands in them is no number
            order = [3, 0, 4, 1, 2, 5]
            nan = torch.full((3, 4, 3, 4), torch.nan, dtype=torch.float64)
            empty = torch.zeros(3, 4, 3, dtype=torch.int64)
            boxes = Instances(
                torch.cat([boxes.boxes, nan], 2)[:, :, order], torch.cat([boxes.categories, empty], 2)[:, :, order]
            )
        logits, loss = outcome(head, features, boxes)
        (logits.square().sum() + loss).backward()
        grads = [p.grad for p in head.parameters()]
        results.append([logits, loss, *grads, *head.buffers()])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("options", [{"interaction": False}, {"interaction": False, "base": "mean"}])
def test_empty_slots_change_nothing_in_the_base(options):
    head = tiny(**options)
    features, boxes = tiny_inputs(head)
    more = Instances(torch.cat([boxes.boxes, boxes.boxes], 2), torch.cat([boxes.categories, 0 * boxes.categories], 2))
    torch.testing.assert_close(outcome(head, features, boxes), outcome(head, features, more))


def test_the_released_network_counts_empty_slots():
    head = tiny("released")
    features, boxes = tiny_inputs(head)
    more = Instances(
        torch.cat([boxes.boxes, 0 * boxes.boxes], 2), torch.cat([boxes.categories, 0 * boxes.categories], 2)
    )
    assert not outcome(head, features, boxes)[0].allclose(outcome(head, features, more)[0])


OPTIONS = [{}, {"interaction": False}, {"interaction": False, "base": "mean"}, {"global_feature": True}]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mask", ["1110", "1011", "0110", "1000"])
def test_missing_steps_are_as_if_they_never_were(variant, options, mask):
    head = tiny(variant, **options)
    features, boxes = tiny_inputs(head, batch=1)
    kept = torch.tensor([letter == "1" for letter in mask])
    alone = outcome(
        head,
        {name: x[:, :, kept] for name, x in features.items()},
        Instances(boxes.boxes[:, kept], boxes.categories[:, kept]),
    )
    features = {name: torch.where(kept[:, None, None], x, torch.nan) for name, x in features.items()}
    boxes.boxes[:, ~kept] = torch.nan
    torch.testing.assert_close(outcome(head, features, boxes, dict.fromkeys(features, kept[None])), alone)


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_boxes_at_more_times_the_first_of_each_step_counts(variant):
    head = tiny(variant)
    features, boxes = tiny_inputs(head, times=8)
    fewer = Instances(boxes.boxes[:, ::2], boxes.categories[:, ::2])
    torch.testing.assert_close(outcome(head, features, boxes), outcome(head, features, fewer))


# --- inputs, ablations, what comes out


@pytest.mark.parametrize("variant", VARIANTS)
def test_roi_features_do_instead_of_maps(variant):
    head = tiny(variant)
    features, boxes = tiny_inputs(head)
    inside = Instances(boxes.boxes.clamp(0.2, 0.8), boxes.categories)  # where the narrowing's bias is that of a cell
    cut = {}
    for name, x in features.items():
        rois = inside.boxes.flatten(0, 1) * 3
        kind = {"sampling_ratio": 2, "aligned": True} if variant == "paper" else {}
        features_of_rois = roi_align(x.transpose(1, 2).flatten(0, 1), list(rois), 3, **kind)
        cut[name] = features_of_rois.unflatten(0, (3, 4, 3))
    torch.testing.assert_close(outcome(head, features, inside), outcome(head, cut, inside))
    mixed = {**features, "flow": cut["flow"]}
    torch.testing.assert_close(outcome(head, features, inside), outcome(head, mixed, inside))


def test_boxes_suffice_without_appearance():
    head = create_head(
        "interactive", streams={}, classes=CLASSES, appearance=False, width=8, steps=8, dropout=0.0
    ).eval()
    boxes = boxes_of(head, steps=6)
    output = head({}, boxes, losses=True)
    assert {task: x.shape[1] for task, x in output.logits.items()} == CLASSES
    # boxes that end earlier are as good as shorter ones
    late = Instances(boxes.boxes, boxes.categories.clone())
    late.categories[:, 4:] = 0
    shorter = Instances(boxes.boxes[:, :4], boxes.categories[:, :4])
    torch.testing.assert_close(outcome(head, {}, late), outcome(head, {}, shorter))
    twice = boxes_of(head, steps=16)
    half = Instances(twice.boxes[:, ::2], twice.categories[:, ::2])
    torch.testing.assert_close(outcome(head, {}, twice), outcome(head, {}, half))


@pytest.mark.parametrize("variant", VARIANTS)
def test_ablations_look_at_what_they_are_named_after(variant):
    looks = tiny(variant, non_appearance=False, interaction=False)
    features, boxes = tiny_inputs(looks)
    classes = Instances(boxes.boxes, boxes.categories.clamp(max=1))  # another category of the same boxes
    torch.testing.assert_close(outcome(looks, features, boxes), outcome(looks, features, classes))
    places = tiny(variant, appearance=False)
    other = {name: x + 1 for name, x in features.items()}
    torch.testing.assert_close(outcome(places, features, boxes), outcome(places, other, boxes))
    assert not outcome(places, features, boxes)[0].allclose(outcome(places, features, classes)[0])
    assert "prediction" not in tiny(variant, prediction=False)(features, boxes, losses=True).losses


def test_no_instances_at_all_still_give_logits():
    for options in OPTIONS[:3]:
        head = tiny(**options).train()
        features, boxes = tiny_inputs(head)
        logits, loss = outcome(head, features, Instances(boxes.boxes, 0 * boxes.categories))
        (logits.sum() + loss).backward()
        assert logits.isfinite().all() and loss == 0
        assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_extras_tell_pairs_and_predicted_boxes():
    head = tiny()
    features, boxes = tiny_inputs(head, batch=2)
    extras = head(features, boxes, extras=True).extras
    # a hand and two objects; in the last sample a hand and one
    assert extras["pair_counts"].tolist() == [[[3, 0, 4, 2]] * 4, [[7, 0, 2, 0]] * 4]
    assert extras["pair_kinds"][0, 0].tolist() == [[0, 2, 2], [2, 0, 3], [2, 3, 0]]
    assert (extras["interactions"] > 0).sum() > 0
    assert (extras["interactions"][1, :, :, 2] == 0).all() and (extras["interactions"][1, :, 2] == 0).all()
    assert extras["predicted"].tolist() == [[False, False, True, True]] * 2
    assert (extras["predicted_boxes"][:, :2] == 0).all() and (extras["predicted_boxes"][:, 2:] != 0).all()
    assert extras["predicted_offsets"].shape == (2, 4, 3, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_learns_to_predict_boxes(variant):
    torch.manual_seed(0)
    head = small_head("interactive", ("rgb",), variant=variant, appearance=False, prediction_weight=1.0).train()
    begin, speed = 0.5 * torch.rand(16, 1, 3, 2), 0.05 * torch.rand(16, 1, 3, 2)
    corner = begin + speed * torch.arange(4)[:, None, None]
    boxes = Instances(torch.cat([corner, corner + 0.2], -1), torch.tensor([1, 2, 2]).expand(16, 4, 3).clone())
    optimiser = torch.optim.AdamW(head.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = head({}, boxes).losses["prediction"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_wrong_calls_and_options_say_what_is_wrong():
    head = tiny()
    features, boxes = tiny_inputs(head, steps=6)
    with pytest.raises(ValueError, match="6 steps and this head takes 4; make it with steps=6"):
        head(features, boxes)
    features, boxes = tiny_inputs(head, times=7)
    with pytest.raises(ValueError, match=r"\(3, 7, 3, 4\).*4 or a multiple"):
        head(features, boxes)
    rois = {"rgb": torch.randn(3, 4, 3, 24, 3, 3), "flow": torch.randn(3, 4, 2, 16, 3, 3)}
    with pytest.raises(ValueError, match="'flow'.*the same instances"):
        head({name: x.double() for name, x in rois.items()}, tiny_inputs(head)[1])
    with pytest.raises(ValueError, match=r"'rgb'.*3 x 3 \(option roi_size\)"):
        head({name: torch.randn(3, 4, 3, d, 7, 7).double() for name, d in head.streams.items()}, tiny_inputs(head)[1])
    whole = tiny(global_feature=True)
    rois["flow"] = torch.randn(3, 4, 3, 16, 3, 3)
    with pytest.raises(ValueError, match="global_feature=True needs maps"):
        whole({name: x.double() for name, x in rois.items()}, tiny_inputs(whole)[1])
    with pytest.raises(ValueError, match="go from 0 to 3"):
        Instances(torch.zeros(1, 1, 2, 4), torch.tensor([[[0, 3]]]))
    for options, says in (
        ({"variant": "published"}, "'paper' or 'released'"),
        ({"appearance": False, "non_appearance": False}, "both False"),
        ({"interaction": False, "prediction": True}, "needs interaction=True"),
        ({"appearance": False, "global_feature": True}, "needs appearance=True"),
        ({"base": "max"}, "'steps' or 'mean'"),
        ({"steps": 0}, "steps is 0"),
        ({"width": 7}, "width is 7"),
    ):
        with pytest.raises(ValueError, match=says):
            create_head("interactive", streams={"rgb": 24}, classes=CLASSES, **options)
