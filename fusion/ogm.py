"""On-the-fly gradient modulation: the encoder of the stream that is ahead learns slower, so that the others catch up.

Source: Peng, Wei, Deng, Wang and Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022,
equation 10 and what goes with it in the public code GeWu-Lab/OGM-GE_CVPR2022. Table 3 of the MIMO paper (Hou et al.)
uses it with the ratio taken from verbs, OGM (v), or from nouns, OGM (n).

With s_i = sum over the batch of softmax(logits of stream i alone)[label],
rho_i = s_i / s_j   and   k_i = 1 - tanh(alpha rho_i) where rho_i > 1, else 1:
gradients of encoder i are multiplied by k_i; with noise (GE), N(0, std of the unscaled gradient + 1e-8) is added to the
gradients of every encoder, a standard deviation for each parameter. As in the public code only convolutions change.

What we had to choose: with more than two streams s_j is the mean over the others. With several tasks rho is the
geometric mean over the tasks, so that each counts the same however many classes it has. Under torch.distributed the
sums run over all processes and the noise is the same in all of them, or their weights would drift apart.
Differs: a ratio of exactly 1 leaves both streams alone, where the public code slows the first.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._modes import testing
from .contract import FusionHead, Output


@dataclass(frozen=True)
class Modulation:
    """What one step of OGM found. scores, ratios, coefficients: stream -> scalar tensor (s_i, rho_i, k_i).

    Scores are means over the samples (of all processes) and, with several tasks, geometric means over these.
    applied: False outside the epochs in which gradients are changed.
    """

    scores: dict[str, Tensor]
    ratios: dict[str, Tensor]
    coefficients: dict[str, Tensor]
    applied: bool


class OGM:
    """Call `step` between `loss.backward()` and `optimizer.step()`; it changes `.grad` in place and knows no head.

    encoders: stream -> its network, or parameters. Two streams or more.
    alpha: strength; the authors used 0.1 (VGGSound) and 0.8 (CREMA-D) and there is no value for all data.
    tasks: whose logits tell which stream is ahead: ("verb",), ("noun",) or both.
    noise: also add the noise of OGM-GE.
    first_epoch, last_epoch: gradients are changed in these epochs and between them, counted from 0.
    min_ndim: only parameters with so many dimensions or more: 4 are convolutions, over time as well; networks without
        convolutions need 2.
    seed: the noise is a function of it, of `index` and of nothing else.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module | Iterable[Tensor]],
        *,
        alpha: float,
        tasks: Sequence[str],
        noise: bool = False,
        first_epoch: int = 0,
        last_epoch: int = 50,
        min_ndim: int = 4,
        seed: int = 0,
    ) -> None:
        if len(encoders) < 2:
            raise ValueError(f"OGM balances two streams or more; it got {', '.join(encoders) or 'none'}")
        if isinstance(tasks, str) or not tasks:
            raise ValueError(f"tasks is {tasks!r}; it must be a sequence of tasks, for instance ('verb',)")
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha}; it must be positive (the authors used 0.1 and 0.8)")
        self.parameters: dict[str, list[Tensor]] = {}
        for stream, encoder in encoders.items():
            all_of_them = list(encoder.parameters() if isinstance(encoder, nn.Module) else encoder)
            chosen = [p for p in all_of_them if p.ndim >= min_ndim]
            if not chosen:
                most = max((p.ndim for p in all_of_them), default=0)
                raise ValueError(
                    f"no parameter of the encoder of {stream!r} has {min_ndim} dimensions or more (most: {most}): "
                    "nothing would be modulated; lower min_ndim"
                )
            self.parameters[stream] = chosen
        self.alpha, self.tasks, self.noise = alpha, tuple(tasks), noise
        self.first_epoch, self.last_epoch, self.seed = first_epoch, last_epoch, seed

    def step(
        self,
        unimodal_logits: Mapping[str, Mapping[str, Tensor]],
        labels: Mapping[str, Tensor],
        *,
        epoch: int,
        index: int = 0,
    ) -> Modulation:
        """Modulate the gradients that are there.

        unimodal_logits: stream -> task -> (B, classes), what each stream alone says: `unimodal_logits(output)` for
            heads that report it, `logits_alone(head, features)` for others. labels: task -> int64 (B,), below 0 where
            unknown: such samples do not count.
        epoch: counted from 0. index: number of this step in the whole run; only the noise depends on it.
        """
        found = self.measure(unimodal_logits, labels, applied=self.first_epoch <= epoch <= self.last_epoch)
        if not found.applied:
            return found
        generators: dict[torch.device, torch.Generator] = {}
        # mixed, as the CPU's generator looks at the lowest 32 bits only
        seed = random.Random(f"{self.seed},{index}").getrandbits(63)
        for stream, parameters in self.parameters.items():
            for parameter in parameters:
                grad = parameter.grad
                if grad is None:
                    continue
                # before scaling
                deviation = grad.std(correction=min(1, grad.numel() - 1)) + 1e-8 if self.noise else None
                grad.mul_(found.coefficients[stream].to(grad))
                if deviation is not None:
                    if grad.device not in generators:
                        generators[grad.device] = torch.Generator(grad.device).manual_seed(seed)
                    draws = torch.empty_like(grad).normal_(generator=generators[grad.device])
                    grad.addcmul_(draws, deviation)
        return found

    @torch.no_grad()
    def measure(
        self,
        unimodal_logits: Mapping[str, Mapping[str, Tensor]],
        labels: Mapping[str, Tensor],
        *,
        applied: bool = False,
    ) -> Modulation:
        """Scores, ratios and coefficients alone; arguments as those of `step`."""
        streams = list(self.parameters)
        if set(unimodal_logits) != set(streams):
            raise ValueError(f"logits are of {', '.join(unimodal_logits)}; the encoders are of {', '.join(streams)}")
        per_task = []
        for task in self.tasks:
            for what, given in (("labels", labels), *((f"logits of {s!r}", unimodal_logits[s]) for s in streams)):
                if task not in given:
                    raise ValueError(f"{what} are given for {', '.join(given) or 'no task'} and not for {task!r}")
            logits = torch.stack([unimodal_logits[s][task].float() for s in streams])
            truth = labels[task].to(logits.device)
            known = truth >= 0
            right = logits.softmax(-1)[:, torch.arange(len(truth), device=truth.device), truth.clamp(min=0)]
            per_task.append(torch.cat([(right * known).sum(1), known.sum()[None].to(right)]))
        sums = torch.stack(per_task)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        tiny = torch.finfo(sums.dtype).tiny
        scores = (sums[:, :-1] / sums[:, -1:].clamp(min=1)).clamp(min=tiny)  # (tasks, streams)
        others = (scores.sum(1, keepdim=True) - scores) / (len(streams) - 1)
        ratios = (scores / others.clamp(min=tiny)).log().mean(0).exp()
        coefficients = torch.where(ratios > 1, 1 - (self.alpha * ratios).tanh(), torch.ones_like(ratios))
        named = [dict(zip(streams, x, strict=True)) for x in (scores.log().mean(0).exp(), ratios, coefficients)]
        return Modulation(named[0], named[1], named[2], applied)


def unimodal_logits(output: Output) -> dict[str, dict[str, Tensor]]:
    """stream -> task -> (B, classes) from the head's own reports, `auxiliary["unimodal/STREAM"]`.

    `concat`, `sum` and `mimo` make them in training mode. Raises ValueError where there are none.
    """
    start = "unimodal/"
    found = {name.removeprefix(start): x for name, x in output.auxiliary.items() if name.startswith(start)}
    if not found:
        raise ValueError(
            "this output has no logits of single streams (auxiliary['unimodal/...']): call the head in training mode "
            "or with losses=True, or use logits_alone(head, features)"
        )
    return found


@torch.no_grad()
def logits_alone(
    head: FusionHead, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
) -> dict[str, dict[str, Tensor]]:
    """stream -> task -> (B, classes): the head's logits from that stream alone, all others missing.

    For heads that fuse deeper than a sum of linear layers; one forward pass for each stream, in testing mode.
    Raises ValueError for a head that needs all its streams.
    """
    if not head.optional_streams:
        raise ValueError(
            f"{type(head).__name__} needs all its streams, so that none can be asked alone; "
            "give OGM the logits of classifiers of single streams instead"
        )
    with testing(head):
        return {
            stream: head({stream: x}, masks={s: m for s, m in (masks or {}).items() if s == stream}).logits
            for stream, x in features.items()
        }
