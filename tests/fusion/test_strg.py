"""Graphs over instances and the head `strg` against released networks' outputs and against loops; checkpoints of the
released networks with reasoning module STRG and STIN."""

import math

import golden
import golden_cases
import pytest
import torch
from fusion_heads import CLASSES, boxes_of, features_of, small_head
from released_maps import case_boxes, released_maps

from actionfuse.fusion import Instances, create_head
from actionfuse.fusion.joint_layout import from_released, graph_from_released, released_head
from actionfuse.fusion.strg import RegionGraph, space_time_graphs

HEADS = golden_cases.available("recognition", "car_strg", "car_strg_det", "car_stin", "car_stin_det")


def tiny(streams=("rgb", "flow"), **options):
    return small_head("strg", streams, **{"width": 8, "dropout": 0.0, **options}).double()


def tiny_inputs(head):
    features = {name: x.double() for name, x in features_of(head).items()}
    boxes = boxes_of(head)
    boxes.categories[0, -1, 1] = boxes.categories[1, 0, 0] = 0
    return features, Instances(boxes.boxes.double(), boxes.categories)


def logits_of(head, features, boxes, masks=None):
    return torch.cat([*head(features, boxes, masks).logits.values()], 1)


# --- released networks


@pytest.mark.skipif(not golden_cases.available("recognition", "strg_rgcn"), reason="the case is not given")
def test_matches_the_released_graph():
    case = golden_cases.load_case("strg_rgcn")
    weights = case.weights()
    x, rois = case.input("x"), case.input("rois")
    both = RegionGraph(16, graphs="both", variant="released")
    both.load_state_dict(graph_from_released(weights, graphs="both"))
    _, graphs = both(x, rois / 224, None, with_graphs=True)
    case.check_output("sim_graph", graphs["similarity_graph"], rtol=1e-5)
    case.check_output("front", graphs["front_graph"], rtol=1e-5)
    case.check_output("back", graphs["back_graph"], rtol=1e-5)
    for kind, name in (("similarity", "y"), ("space_time", "st_y")):
        one = RegionGraph(16, graphs=kind, variant="released")
        one.load_state_dict(graph_from_released(weights, graphs=kind))
        y, _ = one(x, rois / 224, None)
        case.check_output(name, y if name == "y" else y.flatten(1, 2), rtol=1e-5)
    total = case.arrays["y"].flatten(1, 2) + case.arrays["st_y"]
    torch.testing.assert_close(both(x, rois / 224, None)[0].flatten(1, 2), total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_matches_the_released_network(name):
    case = golden_cases.load_case(name)
    weights = case.weights()
    backbone, ours = from_released(weights)
    kind, options = released_head(weights)
    head = create_head(kind, streams={"rgb": 2048}, classes={"action": len(weights["fc.weight"])}, **options).eval()
    head.load_state_dict(ours)
    with torch.inference_mode():
        output = head({"rgb": released_maps(case, backbone)}, case_boxes(case))
    case.check_output("logits", output.logits["action"], rtol=1e-4)


def released_state(reasoning, *, width=6, steps=4, classes=5, whole=False):
    """A state_dict with the keys of the released network and small sizes."""
    joint, shapes = 2 * width, {}

    def norm(name, size):
        shapes.update({f"{name}.{leaf}": (size,) for leaf in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes |= {"backbone.conv1.weight": (2, 3, 5, 7, 7), "conv.weight": (3, 24, 1, 1, 1), "conv.bias": (3,)}
    shapes |= {"region_vis_embed.0.weight": (width, 27), "region_vis_embed.0.bias": (width,)}
    shapes |= {"region_coord_embed.0.weight": (width // 2, 4), "region_coord_embed.3.weight": (width, width // 2)}
    shapes |= {"category_embed_layer.weight": (3, width // 2)}
    shapes |= {"coord_category_fusion.0.weight": (width, width + width // 2)}
    for name, size in (("region_coord_embed.1", width // 2), ("region_coord_embed.4", width)):
        norm(name, size)
    norm("coord_category_fusion.1", width)
    for layer in (0, 2):
        shapes |= {f"non_appearance_encoder.{layer}.weight": (width, width)}
        shapes |= {f"non_appearance_encoder.{layer}.bias": (width,)}
    found = joint if reasoning == "STRG" else width
    if reasoning == "STRG":
        kinds = ["sim_embed1", "sim_embed2", *(f"sim_gc{n}" for n in (1, 2, 3))]
        kinds += [f"st_gc{n}{side}" for n in (1, 2, 3) for side in ("", "_back")]
        shapes |= {f"rgcn.{kind}.weight": (joint, joint) for kind in kinds}
        shapes |= {"navie_temp.0.weight": (joint, steps * joint)}
    else:
        for part, inputs in (("spatial", 2 * joint), ("temporal", steps * width)):
            shapes |= {f"{part}_node_fusion_list.0.weight": (width, inputs)}
            shapes |= {f"{part}_node_fusion_list.3.weight": (width, width)}
            norm(f"{part}_node_fusion_list.1", width)
            norm(f"{part}_node_fusion_list.4", width)
    shapes |= {"fc.weight": (classes, found + 3 * whole), "fc.bias": (classes,)}
    return {f"module.{key}": golden.tensor_for(key, shape).double() for key, shape in shapes.items()}


@pytest.mark.parametrize("reasoning", ["STRG", "STIN"])
@pytest.mark.parametrize("whole", [False, True])
def test_released_reasoning_equals_loops(reasoning, whole):
    state = released_state(reasoning, whole=whole)
    backbone, ours = from_released(state)
    assert [*backbone] == ["backbone.conv1.weight"]
    name, options = released_head(state)
    assert options["global_feature"] == whole and options["steps"] == 4 and options["width"] == 6
    head = create_head(name, streams={"rgb": 24}, classes={"action": 5}, **options).double().eval()
    head.load_state_dict(ours)
    features, boxes = tiny_inputs(head)
    joint = head.instances(features, boxes, {}, steps=4)
    logits = head(features, boxes).logits["action"]
    plain = {key.removeprefix("module."): x for key, x in state.items()}
    for i in range(3):
        x = joint.features[i]
        if reasoning == "STIN":
            videos = []
            for n in range(3):
                steps = []
                for t in range(4):
                    message = sum(x[t, other] for other in range(3) if other != n) / 2
                    steps.append(plain["spatial_node_fusion_list.0.weight"] @ torch.cat([x[t, n], message]))
                videos.append(plain["temporal_node_fusion_list.0.weight"] @ torch.cat(steps))
            video = sum(videos) / 3
        else:
            nodes = list(x.flatten(0, 1))
            graph = naive_similarity(plain["rgcn.sim_embed1.weight"], plain["rgcn.sim_embed2.weight"], nodes)
            y = nodes
            for layer in (1, 2, 3):
                y = convolve([(graph, plain[f"rgcn.sim_gc{layer}.weight"].T)], y, torch.relu)
            y = [a + b for a, b in zip(y, nodes, strict=True)]
            by_step = [sum(y[3 * t : 3 * t + 3]) / 3 for t in range(4)]
            video = torch.relu(plain["navie_temp.0.weight"] @ torch.cat(by_step))
        if whole:
            video = torch.cat([video, joint.whole[i]])
        torch.testing.assert_close(logits[i], plain["fc.weight"] @ video + plain["fc.bias"])


def test_files_with_other_keys_are_refused():
    state = released_state("STRG")
    with pytest.raises(ValueError, match="unknown keys.*sim_gc4"):
        from_released({**state, "rgcn.sim_gc4.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="lacks.*sim_gc2"):
        from_released({key: x for key, x in state.items() if "sim_gc2" not in key})
    with pytest.raises(ValueError, match="belong to no part of this head: other.weight"):
        from_released({**state, "other.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="graphs is 'all'"):
        from_released(state, graphs="all")
    both = create_head(
        "strg", streams={"rgb": 24}, classes={"action": 5}, **{**released_head(state)[1], "graphs": "both"}
    )
    both.load_state_dict(from_released(state, graphs="both")[1])


# --- loops


def naive_similarity(theta, phi, nodes):
    rows = []
    for x in nodes:
        scores = [((theta @ x) @ (phi @ y)).item() for y in nodes]
        total = sum(math.exp(score - max(scores)) for score in scores)
        rows.append([math.exp(score - max(scores)) / total for score in scores])
    return rows


def convolve(pairs, nodes, activate):
    """A layer over (graph, matrix) pairs: activate(sum over graphs of G X W), row by row."""
    out = []
    for i in range(len(nodes)):
        total = 0
        for graph, matrix in pairs:
            total = total + sum(graph[i][j] * (matrix @ nodes[j]) for j in range(len(nodes)))
        out.append(activate(total))
    return out


def naive_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def naive_space_time(boxes, places):
    """Front graph of one sample's boxes (T, N, 4) among `places`, pairs (step, instance), and the back graph."""
    weights = [
        [naive_iou(boxes[p].tolist(), boxes[q].tolist()) if q[0] == p[0] + 1 else 0.0 for q in places] for p in places
    ]
    transposed = [list(column) for column in zip(*weights, strict=True)]
    return tuple([[x / sum(row) if sum(row) else 0.0 for x in row] for row in graph] for graph in (weights, transposed))


def normed(norm):
    def activate(x):
        mean = sum(x) / len(x)
        var = sum((x - mean) ** 2) / len(x)
        return torch.relu((x - mean) / torch.sqrt(var + norm.eps) * norm.weight + norm.bias)

    return activate


def naive(graph, x, boxes, present):
    """RegionGraph, the paper's variant: one sample (T, N, D) -> place -> vector."""
    places = [(t, n) for t in range(x.shape[0]) for n in range(x.shape[1]) if present[t, n]]
    nodes = [x[place] for place in places]
    total = [torch.zeros_like(y) for y in nodes]
    if graph.theta is not None:
        similar = naive_similarity(graph.theta.weight, graph.phi.weight, nodes)
        y = nodes
        for layer, norm in zip(graph.similar, graph.similar_norms, strict=True):
            y = convolve([(similar, layer.weight)], y, normed(norm))
        total = [a + b + c for a, b, c in zip(total, y, nodes, strict=True)]
    if len(graph.front):
        front, back = naive_space_time(boxes, places)
        y = nodes
        for ahead, behind, norm in zip(graph.front, graph.back, graph.moving_norms, strict=True):
            y = convolve([(front, ahead.weight), (back, behind.weight)], y, normed(norm))
        total = [a + b for a, b in zip(total, y, strict=True)]
    return dict(zip(places, total, strict=True))


@pytest.mark.parametrize("graphs", ["similarity", "space_time", "both"])
def test_equals_loops(graphs):
    head = tiny(graphs=graphs, steps=5)
    for parameter in head.reasoning.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    features, boxes = tiny_inputs(head)
    joint = head.instances(features, boxes, {}, steps=5)
    logits = logits_of(head, features, boxes)
    for i in range(3):
        found = naive(head.reasoning.graph, joint.features[i], boxes.boxes[i], boxes.categories[i] > 0)
        by_step = []
        for t in range(5):
            there = [y for place, y in found.items() if place[0] == t]
            by_step.append(sum(there) / len(there) if there else torch.zeros(16, dtype=torch.float64))
        video = torch.relu(head.reasoning.time.weight @ torch.cat(by_step))
        alone = torch.cat([classify(video) for classify in head.classifiers.values()])
        torch.testing.assert_close(logits[i], alone)


def test_space_time_graphs():
    still, right, elsewhere = [0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5], [0.8, 0.8, 1.0, 1.0]
    boxes = torch.tensor([[[still, elsewhere], [still, right]]], dtype=torch.float64)
    front, back = space_time_graphs(boxes)
    # IoU 1 and 1/3; whoever overlaps with nothing has no edge
    torch.testing.assert_close(front[0, 0], torch.tensor([0, 0, 0.75, 0.25], dtype=torch.float64))
    assert not front[0, 1:].any()
    torch.testing.assert_close(back[0, 2:, 0], torch.ones(2, dtype=torch.float64))
    assert not back[0, :2].any() and not back[0, :, 1:].any()
    kept = torch.tensor([[[True, True], [True, False]]])
    assert space_time_graphs(boxes, kept)[0][0, 0].tolist() == [0, 0, 1, 0]
    # empty boxes: nothing in common with anything, but one pixel where the last pixel counts
    empty = torch.zeros(1, 2, 1, 4)
    assert not space_time_graphs(empty)[0].any()
    assert space_time_graphs(empty, pixel=1.0)[0][0, 0, 1] == 1
    assert not space_time_graphs(boxes[:, :1])[0].any()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_gradients(variant):
    torch.manual_seed(0)
    graph = RegionGraph(3, graphs="both", variant=variant).double()
    x = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([0.0, 0.0, 0.5, 0.5]).expand(2, 2, 2, 4) + 0.3 * torch.rand(2, 2, 2, 1)
    present = torch.tensor([[[True, True], [True, False]], [[True, True], [True, True]]])
    if variant == "paper":
        assert torch.autograd.gradcheck(lambda y: graph(y, boxes.double(), present)[0], (x,))
        assert all(p.requires_grad for p in graph.parameters())
    else:
        y, graphs = graph(x, boxes.double(), None, with_graphs=True)
        (through,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        y.sum().backward()
        assert [name for name, p in graph.named_parameters() if p.grad is None] == ["theta.weight", "phi.weight"]
        # features learn through the graph's nodes alone
        nodes, similar = x.flatten(1, 2), graphs["similarity_graph"].detach()
        fixed = graph.over_similarity(nodes, similar)
        fixed = fixed + graph.over_space_time(nodes, graphs["front_graph"], graphs["back_graph"])
        torch.testing.assert_close(through, torch.autograd.grad(fixed.sum(), x)[0])


# --- empty slots


@pytest.mark.parametrize("training", [False, True])
def test_empty_slots_change_nothing(training):
    head = tiny(graphs="both").train(training)
    features, boxes = tiny_inputs(head)
    before = {name: x.clone() for name, x in head.state_dict().items()}
    expected = logits_of(head, features, boxes)
    corners = torch.nn.functional.pad(boxes.boxes, (0, 0, 0, 1), value=0.3)
    categories = torch.nn.functional.pad(boxes.categories, (0, 1))
    for order in ([0, 1, 2, 3], [3, 2, 3, 0, 1]):
        head.load_state_dict(before)
        more = Instances(corners[:, :, order], categories[:, :, order])
        torch.testing.assert_close(logits_of(head, features, more), expected)
    released = tiny(variant="released")
    more = Instances(corners, categories)
    assert (logits_of(released, features, boxes) - logits_of(released, features, more)).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_padded_steps_change_nothing(variant):
    head = tiny(graphs="both", variant=variant)
    features, boxes = tiny_inputs(head)
    real = torch.tensor([[True] * 4, [True, False, True, False], [False, True, True, True]])
    padded = {stream: x.masked_fill(~real[:, None, :, None, None], torch.nan) for stream, x in features.items()}
    together = logits_of(head, padded, boxes, dict.fromkeys(head.streams, real))
    for i in range(3):
        alone = {stream: x[i : i + 1, :, real[i]] for stream, x in features.items()}
        own = Instances(boxes.boxes[i : i + 1, real[i]], boxes.categories[i : i + 1, real[i]])
        torch.testing.assert_close(together[i : i + 1], logits_of(head, alone, own))


def test_extras_and_calls():
    head = tiny(graphs="both")
    features, boxes = tiny_inputs(head)
    extras = head(features, boxes, extras=True).extras
    assert {name: x.shape for name, x in extras.items()} == dict.fromkeys(
        ("similarity_graph", "front_graph", "back_graph"), (3, 12, 12)
    )
    sums = extras["similarity_graph"].sum(-1)
    torch.testing.assert_close(sums, (boxes.categories > 0).flatten(1).double())
    assert [*tiny()(features, boxes, extras=True).extras] == ["similarity_graph"]
    with pytest.raises(ValueError, match="graphs is 'iou'"):
        tiny(graphs="iou")
    with pytest.raises(ValueError, match="variant is 'fixed'"):
        tiny(variant="fixed")
    with pytest.raises(ValueError, match="needs streams"):
        create_head("strg", streams={}, classes=CLASSES)
    boxes.categories.zero_()
    assert logits_of(head, features, boxes).isfinite().all()
