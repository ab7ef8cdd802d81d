"""On-the-fly gradient modulation, against one step of the public code and against its equations."""

import math

import pytest
import torch
from fusion_heads import features_of, small_head
from golden_cases import available, load_case
from torch import nn
from torch.nn import functional as F

from actionfuse.fusion import create_head
from actionfuse.fusion.ogm import OGM, logits_alone, unimodal_logits

STEPS = available("anticipation", "ogm_step_concat", "ogm_step_sum")


@pytest.mark.parametrize("name", STEPS)
def test_one_step_of_the_public_code(name):
    case = load_case(name, "anticipation")
    made, weights = case.meta["constructor_args"], case.weights()
    nets = {"audio": nn.Conv2d(1, 8, 3, padding=1), "visual": nn.Conv2d(3, 8, 3, padding=1)}
    for stream, net in nets.items():
        net.load_state_dict({leaf: weights[f"{stream}_net.{leaf}"] for leaf in ("weight", "bias")})
    kind = made["fusion_method"]
    head = create_head(kind, streams={"audio": 8, "visual": 8}, classes={"action": 5})
    names = {"fc_out": "classifiers.action", "fc_x": "classifiers.action.audio", "fc_y": "classifiers.action.visual"}
    fusion = {k.removeprefix("fusion_module."): x for k, x in weights.items() if k.startswith("fusion_module.")}
    head.load_state_dict({f"{names[k.split('.')[0]]}.{k.split('.')[1]}": x for k, x in fusion.items()})
    frames = case.input("image")
    maps = {
        "audio": nets["audio"](case.input("spec")[:, None])[:, :, None],
        "visual": nets["visual"](frames.transpose(1, 2).flatten(0, 1)).unflatten(0, (4, -1)).transpose(1, 2),
    }
    output = head.train()(maps)
    labels = {"action": case.arrays["label"]}
    loss = F.cross_entropy(output.logits["action"], labels["action"])
    loss.backward()
    alone = unimodal_logits(output)
    found = OGM(nets, alpha=made["alpha"], tasks=("action",)).step(alone, labels, epoch=0)
    assert found.applied
    case.check_output("loss", loss, rtol=1e-5)
    case.check_output("loss_audio", F.cross_entropy(alone["audio"]["action"], labels["action"]), rtol=1e-5)
    case.check_output("loss_visual", F.cross_entropy(alone["visual"]["action"], labels["action"]), rtol=1e-5)
    case.check_output("ratio_v", found.ratios["visual"], rtol=1e-5)
    case.check_output("coeff_v", found.coefficients["visual"], rtol=1e-5)
    case.check_output("coeff_a", found.coefficients["audio"], rtol=1e-5)
    for stream, net in nets.items():
        for leaf, parameter in net.named_parameters():
            case.check_output(f"grad_{stream}_net_{leaf}", parameter.grad, rtol=1e-4)
    own = {f"classifiers.action.{leaf}": f"fc_out_{leaf}" for leaf in ("weight", "bias")}
    for key, parameter in head.named_parameters():
        if kind == "concat":
            case.check_output(f"grad_fusion_module_{own[key]}", parameter.grad, rtol=1e-4)


def encoders(*streams):
    torch.manual_seed(0)
    made = {}
    for stream in streams:
        made[stream] = nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.Conv2d(2, 2, 1), nn.Linear(3, 2))
        for p in made[stream].parameters():
            p.grad = torch.randn_like(p)
    return made


def grads(made):
    return {stream: [p.grad.clone() for p in net.parameters()] for stream, net in made.items()}


def some_logits(streams, batch=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = {
        s: {"verb": torch.randn(batch, 5, generator=generator), "noun": torch.randn(batch, 7, generator=generator)}
        for s in streams
    }
    labels = {"verb": torch.arange(batch) % 5, "noun": torch.arange(batch) % 7}
    return logits, labels


def naive(logits, labels, tasks, alpha):
    """Ratio and coefficient of each stream, in Python."""
    ratios = {}
    for stream in logits:
        product = 1.0
        for task in tasks:
            scores = {
                s: sum(float(logits[s][task][b].double().softmax(0)[y]) for b, y in enumerate(labels[task]))
                for s in logits
            }
            others = [x for s, x in scores.items() if s != stream]
            product *= scores[stream] / (sum(others) / len(others))
        ratios[stream] = product ** (1 / len(tasks))
    return ratios, {s: 1 - math.tanh(alpha * rho) if rho > 1 else 1.0 for s, rho in ratios.items()}


@pytest.mark.parametrize("streams", [("a", "v"), ("rgb", "flow", "audio")])
@pytest.mark.parametrize("tasks", [("verb",), ("noun",), ("verb", "noun")])
def test_equations(streams, tasks):
    made = encoders(*streams)
    before = grads(made)
    logits, labels = some_logits(streams)
    found = OGM(made, alpha=0.4, tasks=tasks).step(logits, labels, epoch=50)
    ratios, coefficients = naive(logits, labels, tasks, 0.4)
    assert {s: float(x) for s, x in found.ratios.items()} == pytest.approx(ratios, rel=1e-5)
    assert {s: float(x) for s, x in found.coefficients.items()} == pytest.approx(coefficients, rel=1e-5)
    assert min(coefficients.values()) < 1
    for stream, net in made.items():
        for p, was in zip(net.parameters(), before[stream], strict=True):
            scale = coefficients[stream] if p.ndim >= 4 else 1.0
            torch.testing.assert_close(p.grad, was * scale)


def test_epochs_and_parameters_that_are_left_alone():
    made = encoders("a", "v")
    made["a"][0].weight.grad = None
    before = [p.grad for net in made.values() for p in net.parameters()]
    logits, labels = some_logits(made)
    ogm = OGM(made, alpha=0.4, tasks=("verb",), first_epoch=2, last_epoch=3)
    for epoch in (0, 1, 4):
        found = ogm.step(logits, labels, epoch=epoch)
        assert not found.applied and min(map(float, found.coefficients.values())) < 1
    after = [p.grad for net in made.values() for p in net.parameters()]
    assert all(x is y for x, y in zip(before, after, strict=True))
    assert ogm.step(logits, labels, epoch=3).applied
    linear = encoders("a", "v")
    was = linear["a"][3].weight.grad.clone()
    found = OGM({s: list(net[3].parameters()) for s, net in linear.items()}, alpha=9, tasks=("noun",), min_ndim=2)
    scale = found.step(logits, labels, epoch=0).coefficients["a"]
    torch.testing.assert_close(linear["a"][3].weight.grad, was * scale)


def test_noise_is_of_the_gradients_size_and_repeatable():
    logits, labels = some_logits(("a", "v"))

    def noise(index, seed=0):
        nets = {s: nn.Conv2d(40, 50, 3) for s in ("a", "v")}
        torch.manual_seed(3)
        for net in nets.values():
            net.weight.grad = 7 * torch.randn_like(net.weight)
            net.bias.grad = torch.ones_like(net.bias)
        before = {s: net.weight.grad.clone() for s, net in nets.items()}
        ogm = OGM(nets, alpha=0.4, tasks=("verb",), noise=True, seed=seed)
        found = ogm.step(logits, labels, epoch=0, index=index)
        assert all(torch.equal(net.bias.grad, torch.ones(50)) for net in nets.values())
        return [net.weight.grad - found.coefficients[s] * before[s] for s, net in nets.items()]

    first = noise(5)
    for added in first:
        assert float(added.std()) == pytest.approx(7, rel=0.05) and abs(float(added.mean())) < 0.3
    assert all(torch.equal(x, y) for x, y in zip(first, noise(5), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], noise(6)[0]) and not torch.equal(first[0], noise(5, seed=1)[0])


def test_a_gradient_of_one_number_gets_no_noise():
    nets = {s: nn.Conv2d(1, 1, 1) for s in ("a", "v")}
    for net in nets.values():
        net.weight.grad = torch.ones_like(net.weight)
    logits, labels = some_logits(nets)
    found = OGM(nets, alpha=0.4, tasks=("verb",), noise=True).step(logits, labels, epoch=0)
    for stream, net in nets.items():
        assert float(net.weight.grad) == pytest.approx(float(found.coefficients[stream]), abs=1e-6)


def test_all_processes_count(monkeypatch):
    """Two processes with a part of the batch each find what one finds with all of it."""
    logits, labels = some_logits(("a", "v"), batch=9)
    ogm = OGM(encoders("a", "v"), alpha=0.4, tasks=("verb", "noun"))
    whole = ogm.measure(logits, labels)
    parts = [
        (
            {s: {t: x[part] for t, x in per.items()} for s, per in logits.items()},
            {t: y[part] for t, y in labels.items()},
        )
        for part in (slice(0, 2), slice(2, 9))
    ]
    sent = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sent.append(sums.clone()))
    ogm.measure(*parts[0])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.add_(sent[0]))
    together = ogm.measure(*parts[1])
    for part in ("scores", "ratios", "coefficients"):
        for stream, x in getattr(whole, part).items():
            torch.testing.assert_close(getattr(together, part)[stream], x)


def test_streams_alone_of_any_head():
    head = small_head("gating", ("rgb", "flow")).train()
    head.classifiers.eval()
    features = features_of(head)
    masks = {"flow": torch.tensor([[True, True, False, False]] * 3)}
    alone = logits_alone(head, features, masks)
    assert head.training and not head.classifiers.training
    head.eval()
    for task, x in head({"flow": features["flow"][:, :, :2]}).logits.items():
        torch.testing.assert_close(alone["flow"][task], x)
        assert not alone["flow"][task].requires_grad
    mimo = small_head("mimo").train()
    own = unimodal_logits(mimo(features))
    assert set(own) == {"rgb", "flow"} and own["rgb"]["verb"].shape == (3, 5)
    with pytest.raises(ValueError, match="logits_alone"):
        unimodal_logits(head(features))
    head.optional_streams = False
    with pytest.raises(ValueError, match="needs all its streams"):
        logits_alone(head, features)


def test_wrong_calls_say_what_is_wrong():
    made = encoders("a", "v")
    logits, labels = some_logits(made)
    with pytest.raises(ValueError, match="two streams"):
        OGM({"a": made["a"]}, alpha=0.1, tasks=("verb",))
    with pytest.raises(ValueError, match="alpha is 0"):
        OGM(made, alpha=0, tasks=("verb",))
    with pytest.raises(ValueError, match="tasks is 'verb'"):
        OGM(made, alpha=0.1, tasks="verb")
    with pytest.raises(ValueError, match="'v' has 4 dimensions.*most: 2"):
        OGM({"a": made["a"], "v": nn.Linear(2, 2)}, alpha=0.1, tasks=("verb",))
    ogm = OGM(made, alpha=0.1, tasks=("verb",))
    with pytest.raises(ValueError, match="logits are of a; the encoders are of a, v"):
        ogm.step({"a": logits["a"]}, labels, epoch=0)
    with pytest.raises(ValueError, match="labels are given for noun and not for 'verb'"):
        ogm.step(logits, {"noun": labels["noun"]}, epoch=0)


def test_samples_of_unknown_labels_do_not_count():
    logits, labels = some_logits(("a", "v"))
    ogm = OGM(encoders("a", "v"), alpha=0.4, tasks=("verb",))
    kept = torch.arange(len(labels["verb"])) % 3 > 0
    part = {s: {"verb": x["verb"][kept]} for s, x in logits.items()}
    wanted = ogm.measure(part, {"verb": labels["verb"][kept]})
    found = ogm.measure(logits, {"verb": labels["verb"].where(kept, -100)})
    for stream in ("a", "v"):
        torch.testing.assert_close(found.scores[stream], wanted.scores[stream])
        torch.testing.assert_close(found.coefficients[stream], wanted.coefficients[stream])
    nothing = ogm.measure(logits, {"verb": torch.full_like(labels["verb"], -100)})
    assert all(float(k) == 1 for k in nothing.coefficients.values())
