"""What comes next, told by what was seen last: P(next) = sum over last of P(last) P(next | last).

Source: the transitional model of Miech, Laptev, Sivic, Wang, Torresani and Tran, "Leveraging the Present to Anticipate
the Future in Videos", CVPR Workshops 2019: a classifier names the action that is seen, and a learned linear map leads
from there to the one that follows.
Differs: the map is a table of probabilities, so that it is the Markov chain of the actions; it is learned with the
classifier, at once, and not after it; there is no second, direct prediction to average with.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Adam moves a number by about the learning rate a step; logarithms of probabilities are several nats apart.
_GAIN = 10.0
_LEAST = 1e-9


class Transitions(nn.Module):
    """Logits of what was seen last -> logarithms of the probabilities of what comes next, (B, classes) of every task.

    What is seen last is taken as told: no gradient reaches its logits. The label of the next action, which is never
    certain, teaches the table alone, and not by heart those who look. State: table.TASK (classes, classes).
    """

    def __init__(self, classes: Mapping[str, int]) -> None:
        super().__init__()
        self.table = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(count, count)) for task, count in classes.items()}
        )

    def forward(self, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {task: self.following(task, logits) for task, logits in last.items()}

    def following(self, task: str, last: Tensor) -> Tensor:
        """One task's: last (B, classes)."""
        # float16 has no number as small as _LEAST: the logarithm of its 0 would be infinite
        with torch.autocast(last.device.type, enabled=False):
            given = last.detach().float().softmax(-1)
            return (given @ (_GAIN * self.table[task].float()).softmax(-1)).clamp(min=_LEAST).log()
