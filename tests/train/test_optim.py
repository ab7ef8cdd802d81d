"""Learning rates, groups and averaged weights against hand-computed values."""

import pytest
import torch

from actionfuse.backbones import create_backbone
from actionfuse.fusion import create_head
from actionfuse.train.model import ActionModel
from actionfuse.train.optim import Ema, build_optimizer, lr_factor, param_groups, scaled_lr, set_lr
from actionfuse.train.recipe import Optim, StreamRecipe


@pytest.fixture
def model():
    torch.manual_seed(0)
    backbone = create_backbone("tsn:test_resnet")
    head = create_head("concat", streams={"rgb": backbone.feature_dim, "flow": 8}, classes={"verb": 3})
    return ActionModel({"rgb": backbone}, head)


@pytest.mark.parametrize(
    ("options", "epoch", "factor"),
    [
        ({}, 7.0, 1.0),
        ({"warmup_epochs": 2.0}, 0.5, 0.25),
        ({"schedule": "step", "milestones": [5.0, 8.0]}, 4.99, 1.0),
        ({"schedule": "step", "milestones": [5.0, 8.0]}, 5.0, 0.1),
        ({"schedule": "step", "milestones": [5.0, 8.0], "gamma": 0.5}, 9.0, 0.25),
        ({"schedule": "cosine"}, 0.0, 1.0),
        ({"schedule": "cosine"}, 5.0, 0.5),
        ({"schedule": "cosine", "lr": 0.1, "min_lr": 0.01}, 10.0, 0.1),
        ({"schedule": "cosine", "warmup_epochs": 2.0}, 6.0, 0.5),
    ],
)
def test_schedules(options, epoch, factor):
    assert lr_factor(Optim(**options), 10, epoch) == pytest.approx(factor)


def test_the_linear_rule_scales_by_the_whole_batch():
    assert scaled_lr(Optim(lr=0.1, batch=64, lr_batch=256)) == pytest.approx(0.025)
    assert scaled_lr(Optim(lr=0.1, batch=64)) == 0.1


def test_groups_hold_every_trained_parameter_once(model):
    optim = Optim(lr=1.0, weight_decay=0.1, no_decay_norms=True)
    streams = {"rgb": StreamRecipe(backbone="tsn:test_resnet", lr_scale=0.5, layer_decay=0.5)}
    model.backbones["rgb"].freeze_stages(1)
    groups = param_groups(model, optim, streams)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    stages = model.backbones["rgb"].stages()
    for k, modules in enumerate(stages[1:], 1):
        for module in modules:
            assert {rates[id(p)] for p in module.parameters()} == {0.5 * 0.5 ** (len(stages) - 1 - k)}
    assert {rates[id(p)] for p in model.head.parameters()} == {1.0}
    for group in groups:
        for p in group["params"]:
            assert (group["weight_decay"] == 0) == (p.ndim == 1)
    set_lr(build_optimizer(groups, optim), 0.1)
    assert rates[held[0]] * 0.1 == pytest.approx(groups[0]["lr"])


def test_frozen_backbones_are_in_no_group_and_stay_in_eval(model):
    model.freeze("rgb")
    model.train()
    assert not model.backbones["rgb"].training and model.head.training
    trained = {id(p) for group in param_groups(model, Optim(), {}) for p in group["params"]}
    assert trained == {id(p) for p in model.head.parameters()}
    model.head.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing trains"):
        param_groups(model, Optim(), {})


def test_partial_bn_keeps_all_norms_but_the_first(model):
    model.partial_bn("rgb")
    model.train()
    norms = [m for m in model.backbones["rgb"].modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.training for m in norms] == [True] + [False] * (len(norms) - 1)
    assert [m.weight.requires_grad for m in norms] == [True] + [False] * (len(norms) - 1)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_go_downhill(model, name):
    optim = Optim(name=name, lr=0.01)
    optimizer = build_optimizer(param_groups(model, optim, {}), optim)
    features, target = {"rgb": torch.rand(4, 2, 32, 32, 3), "flow": torch.randn(4, 2, 8)}, torch.tensor([0, 1, 2, 0])
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(features).logits["verb"], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_ema_is_the_average_and_gives_the_weights_back():
    layer = torch.nn.BatchNorm1d(1)
    ema = Ema(layer, 0.5)
    values = []
    average = 1.0
    for step in range(1, 6):
        with torch.no_grad():
            layer.weight.fill_(step)
            layer.running_mean.fill_(step)
        ema.update(layer)
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * step
        values.append(average)
    with ema.applied(layer):
        assert layer.weight.item() == pytest.approx(values[-1]) and layer.running_mean.item() == 5
    assert layer.weight.item() == 5
    other = Ema(torch.nn.BatchNorm1d(1), 0.5)
    other.load_state_dict(ema.state_dict())
    assert other.steps == 5 and other.average["weight"].item() == pytest.approx(values[-1])
