"""Mid-level fusion of TBN, its gating units, and its published layout."""

import pytest
import torch
from fusion_heads import CLASSES, WIDTHS, features_of, small_head
from golden_cases import available, load_case

from actionfuse.fusion import create_head
from actionfuse.fusion.gating import GatedMultimodalUnit
from actionfuse.fusion.tbn import ContextGating, load_published, unit_weights

TRIPLE = ("rgb", "flow", "audio")
GATING = {"concat": "none", "context_gating": "context", "multimodal_gating": "multimodal"}
HEADS = available(
    "recognition", *(f"tbn_head_{kind}" for kind in (*GATING, "single", "rgb", "action", "concat_action"))
)


@pytest.mark.parametrize("name", HEADS)
def test_goldens(name):
    case = load_case(name)
    made = case.meta["constructor_args"]
    inputs = list(case.meta["inputs"])
    count = made["num_class"]
    classes = dict(zip(("verb", "noun"), count, strict=True)) if isinstance(count, list) else {"action": count}
    gating = GATING[made["midfusion"]] if len(inputs) > 1 else "none"
    head = create_head(
        "mid_level", streams=dict.fromkeys(inputs, made["feature_dim"]), classes=classes, gating=gating
    ).eval()
    load_published(head, case.weights(), tasks=tuple(classes))
    features = {stream: case.input(stream).unflatten(0, (-1, made["num_segments"])) for stream in inputs}
    for task, logits in head(features).logits.items():
        case.check_output(task, logits, rtol=1e-5)


@pytest.mark.parametrize("name", available("recognition", "gmu3_mode0", "gmu3_mode1"))
def test_gated_units(name):
    case = load_case(name)
    made = case.meta["constructor_args"]
    inputs = [case.input(stream) for stream in case.meta["inputs"]]
    rule = "mixed" if made.get("mode") else "independent"
    unit = GatedMultimodalUnit([made["input_dimension"]] * len(inputs), made["output_dimension"], rule=rule)
    unit.load_state_dict(unit_weights(case.weights()))
    case.check_output("y", unit(inputs)[0], rtol=1e-5)


def test_mode_1_of_the_public_code_is_recognised():
    state = {f"fc_{part}{i}.{leaf}": torch.zeros(()) for part in "hz" for i in (1, 2, 3) for leaf in ("weight", "bias")}
    shapes = {"h": (4, 6), "z": (4, 12)}
    state = {k: torch.full(shapes[k[3]] if k.endswith("weight") else (4,), int(k[4])).float() for k in state}
    unit = GatedMultimodalUnit([6, 6, 6], 4, rule="mixed")
    unit.load_state_dict(unit_weights(state))
    assert [layer.weight[0, 0].item() for layer in unit.gates] == [1, 2, 3]
    with pytest.raises(ValueError, match="fc_h1"):
        unit_weights({k: x for k, x in state.items() if k != "fc_z3.bias"})


@pytest.mark.parametrize("name", available("recognition", "context_gating"))
def test_context_gating(name):
    case = load_case(name)
    weights = case.weights()
    gating = ContextGating(case.meta["constructor_args"]["dimension"])
    gating.gate.load_state_dict({k.removeprefix("fc."): x for k, x in weights.items() if k.startswith("fc.")})
    case.check_output("y", gating(case.input("a")), rtol=1e-5)


@pytest.mark.parametrize("gating", ["none", "context", "multimodal"])
def test_steps_one_by_one(gating):
    """Naive: a step is fused from what is there, zeros for the rest; logits are averaged over steps that have any."""
    head = small_head("mid_level", TRIPLE, gating=gating, init_std=0.3).double()
    features = {s: x.double() for s, x in features_of(head, maps=False).items()}
    masks = {s: torch.ones(3, 4, dtype=torch.bool) for s in TRIPLE}
    masks["flow"][0, 2] = masks["audio"][0, 2:] = masks["rgb"][1] = False
    for mask in masks.values():
        mask[2, 3] = False
    output = head(features, masks=masks, extras=True)
    for b in range(3):
        totals, steps, gates = {task: 0 for task in CLASSES}, 0, 0
        for t in range(4):
            there = [bool(masks[s][b, t]) for s in TRIPLE]
            if not any(there):
                continue
            vectors = [features[s][b, t] * here for s, here in zip(TRIPLE, there, strict=True)]
            joined = torch.cat(vectors)
            if gating == "multimodal":
                z = head.unit.gates(joined).sigmoid().unflatten(0, (3, -1))
                z = torch.stack([row * here for row, here in zip(z, there, strict=True)])
                x = sum(row * layer(v).tanh() for row, layer, v in zip(z, head.unit.values, vectors, strict=True))
                gates = gates + z.mean(1)
            else:
                x = head.joint(joined).clamp(min=0)
            if gating == "context":
                x = x * head.context_gating.gate(x).sigmoid()
            totals = {task: totals[task] + layer(x) for task, layer in head.classifiers.items()}
            steps += 1
        for task, total in totals.items():
            torch.testing.assert_close(output.logits[task][b], total / steps, rtol=1e-6, atol=1e-9)
        if gating == "multimodal":
            torch.testing.assert_close(output.extras["modality_weights"][b], (gates / steps).detach())


def published(head):
    """The head's weights as the authors' checkpoint holds them, trunks and all."""
    start = "module.fusion_classification_net."
    names = {"joint": "fc1", "classifiers.verb": "fc_verb", "classifiers.noun": "fc_noun"}
    state = {f"{start}{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": x for k, x in head.state_dict().items()}
    return {"module.rgb.conv1_7x7_s2.weight": torch.zeros(1), **state}


def test_a_whole_checkpoint():
    head, other = small_head("mid_level", TRIPLE), small_head("mid_level", TRIPLE)
    torch.nn.init.normal_(other.joint.weight)
    load_published(other, published(head))
    assert all(torch.equal(x, other.state_dict()[k]) for k, x in head.state_dict().items())


def test_weights_of_another_network_are_refused():
    head = small_head("mid_level", TRIPLE)
    state = published(head)
    narrow = create_head("mid_level", streams=dict.fromkeys(TRIPLE, 9), classes=CLASSES, width=32)
    with pytest.raises(ValueError, match=r"joint.weight \(32, 52\), not \(32, 27\)"):
        load_published(narrow, state)
    with pytest.raises(ValueError, match="context_gating.gate.weight None"):
        load_published(small_head("mid_level", TRIPLE, gating="context"), state)
    with pytest.raises(ValueError, match="'fc2.weight' is no key"):
        load_published(head, {"fc2.weight": torch.zeros(1)})


def test_one_stream_goes_to_the_classifiers_as_it_is():
    head = small_head("mid_level", ("rgb",), init_std=0.1)
    assert set(head.state_dict()) == {f"classifiers.{task}.{leaf}" for task in CLASSES for leaf in ("weight", "bias")}
    features = features_of(head, maps=False)
    expected = head.classifiers["verb"](features["rgb"].mean(1))
    torch.testing.assert_close(head(features).logits["verb"], expected)


@pytest.mark.parametrize("streams, gating", [(TRIPLE, "x"), (("rgb",), "context")])
def test_wrong_options_are_refused(streams, gating):
    with pytest.raises(ValueError, match=f"gating.*{gating}"):
        create_head("mid_level", streams={s: WIDTHS[s] for s in streams}, classes=CLASSES, gating=gating)
