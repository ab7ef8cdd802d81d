"""One training step's forward pass: the model and all that it is fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .distance import distance_loss, embedding, task_of
from .losses import total_loss
from .model import ActionModel
from .recipe import Recipe


class Step(nn.Module):
    """Model and loss as one module, so that wrappers of parallel training see plain tensors come out. The model lies on
    its device already."""

    def __init__(self, model: ActionModel, recipe: Recipe, class_weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        device = next(model.parameters()).device
        self.model, self.recipe = model, recipe
        self.class_weights = {task: weight.to(device) for task, weight in class_weights.items()}

    def forward(self, inputs: dict, boxes: Any, masks: dict, targets: dict, past: dict | None = None) -> dict[str, Any]:
        distance = self.recipe.loss.distance
        output = self.model(inputs, boxes, masks, losses=True, pooled=distance.weight > 0)
        loss, parts = total_loss(
            output,
            targets,
            self.recipe.loss,
            smoothing=self.recipe.optim.label_smoothing,
            auxiliary_weights=self.model.head.auxiliary_weights,
            main_weight=self.model.head.main_weight,
            class_weights=self.class_weights,
            past=past,
        )
        if distance.weight:
            labels = targets[task_of(distance, list(self.model.head.classes))]
            apart = distance.weight * distance_loss(embedding(output.pooled), labels, distance)
            loss, parts = loss + apart, {**parts, "distance": apart.detach()}
        return {"loss": loss, "parts": parts}
