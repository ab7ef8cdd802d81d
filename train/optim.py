"""Optimisers, schedules and averaged weights; the learning rate is a pure function of how far a run is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..backbones import Backbone
from .model import ActionModel
from .recipe import Optim, StreamRecipe
from .shard import copy_whole

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def scaled_lr(optim: Optim) -> float:
    """Linear rule (Goyal et al., "Accurate, Large Minibatch SGD", 2017): lr is meant for `lr_batch` segments a step."""
    return optim.lr if optim.lr_batch is None else optim.lr * optim.batch / optim.lr_batch


def lr_factor(optim: Optim, epochs: float, epoch: float) -> float:
    """What the learning rate is multiplied by at `epoch`, a real number in [0, epochs].

    "cosine" goes from the end of the warm-up to the end of the run, "step" counts its milestones from the start.
    """
    if epoch < optim.warmup_epochs:
        return epoch / optim.warmup_epochs
    if optim.schedule == "cosine":
        floor = optim.min_lr / scaled_lr(optim)
        share = (epoch - optim.warmup_epochs) / max(epochs - optim.warmup_epochs, 1e-9)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if optim.schedule == "step":
        return optim.gamma ** sum(epoch >= milestone for milestone in optim.milestones)
    return 1.0


def param_groups(model: ActionModel, optim: Optim, streams: Mapping[str, StreamRecipe]) -> list[dict]:
    """Parameters that train, in groups of one learning rate and one weight decay each.

    A backbone's stage k of n learns with lr * lr_scale * layer_decay ** (n - 1 - k) (Bao et al., "BEiT", 2022); stages
    are those of `Backbone.stages`, the head has the full rate. Frozen parameters are in no group.
    """
    if optim.schedule == "step" and sorted(optim.milestones) != list(optim.milestones):
        raise ValueError(f"optim.milestones are {optim.milestones}; they must ascend")
    without_decay: set[int] = set()
    if optim.no_decay_norms:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, NORMS) or name.endswith("bias"):
                    without_decay.add(id(parameter))
    scales: dict[int, float] = {}
    for stream, backbone in model.backbones.items():
        assert isinstance(backbone, Backbone)
        recipe = streams.get(stream, StreamRecipe())
        stages = backbone.stages()
        for k, modules in enumerate(stages):
            for module in modules:
                for parameter in module.parameters():
                    scales[id(parameter)] = recipe.lr_scale * recipe.layer_decay ** (len(stages) - 1 - k)
        for parameter in backbone.parameters():
            scales.setdefault(id(parameter), recipe.lr_scale)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = 0.0 if id(parameter) in without_decay else optim.weight_decay
            groups.setdefault((scales.get(id(parameter), 1.0), decay), []).append(parameter)
    if not groups:
        raise ValueError("nothing trains: every parameter is frozen")
    base = scaled_lr(optim)
    return [
        {"params": parameters, "lr": base * scale, "base_lr": base * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def build_optimizer(groups: list[dict], optim: Optim) -> torch.optim.Optimizer:
    """The recipe's optimiser over `param_groups`."""
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov)
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=optim.lr, betas=optim.betas)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Each group's learning rate = its base * factor; returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)


class Ema:
    """Averaged weights: after each step average = decay * average + (1 - decay) * weights; buffers are copied.

    Early on the decay is (1 + steps) / (10 + steps) where that is less, so that the first weights are forgotten
    (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema is {decay}; it must be in (0, 1), or 0 for none")
        self.decay, self.steps = decay, 0
        self.average = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        for key, value in model.state_dict(keep_vars=True).items():
            if id(value) in trained:
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        own = {key: value.detach().clone() for key, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"steps": self.steps, **{f"average.{key}": value for key, value in self.average.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        self.steps = int(state["steps"])
        for key, value in self.average.items():
            copy_whole(value, torch.as_tensor(state[f"average.{key}"]))
