"""STRG, graph convolutions over the instances of all steps; head `strg`.

Source: Wang and Gupta, "Videos as Space-Time Region Graphs", ECCV 2018; on joint features it is Ours-STRG of Yan et al.
(arXiv:2012.05689, tables 2 to 4), as in ruiyan1995/Interactive_Fusion_for_CAR at 3c5e7bf (reasoning module STRG).

Similarity graph: softmax over j of theta(x_i) . phi(x_j), of all steps' instances. Space-time graph: an edge from an
instance to one of the next step weighs their IoU, rows sum to 1 (front); its transpose, with its own rows (back). A
layer is sum over graphs of G X W; three layers; the similarity branch adds its input at the end; both branches are
added. Then the mean of a step's instances, the steps beside one another, a Linear without bias and ReLU.

                    paper                                          released
after each layer    LayerNorm and ReLU; front and back are added   ReLU; front and back are added after theirs
                    before that
similarity graph    learned                                        cut off from gradients: theta and phi stay as they
                                                                   began, and are not trained here either
IoU                 of the boxes as shares of the frame            of pixels at 224 x 224, a box's last pixel being part
                                                                   of it: two empty slots have IoU 1
empty slots         have no edges and are in no mean               are nodes like any other
The released forward uses the similarity graph alone, and so does the head unless told otherwise; the space-time graph
stands in its code and in its checkpoints (fusion/joint_layout.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import one_of, register
from .instances import Joint, Variant
from .slots import JointHead, Reasoning, beside_one_another, mean_of_slots, only

Graphs = Literal["similarity", "space_time", "both"]
LAYERS = 3
RELEASED_SIDE = 224.0  # pixels


def space_time_graphs(boxes: Tensor, kept: Tensor | None = None, *, pixel: float = 0.0) -> tuple[Tensor, Tensor]:
    """Boxes (B, T, N, 4) x1 y1 x2 y2 -> front and back graph, both (B, T * N, T * N).

    Row i of the front graph: IoU of instance i with those of the next step, their sum 1; zeros where none overlaps and
    at the last step. Back: the same with the step before. kept: bool (B, T, N), others have no edges; None = all have.
    pixel: what is added to every width and height, 1 where the last pixel is part of a box.
    """
    batch, steps, instances = boxes.shape[:3]
    now, then = boxes[:, :-1, :, None], boxes[:, 1:, None]  # pairs (B, T - 1, N, N, 4)
    sides = (torch.minimum(now, then)[..., 2:] - torch.maximum(now, then)[..., :2] + pixel).clamp(min=0)
    shared = sides.prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2] + pixel).prod(-1)
    union = areas[:, :-1, :, None] + areas[:, 1:, None] - shared
    iou = torch.where(union > 0, shared / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)
    if kept is not None:
        iou = torch.where(kept[:, :-1, :, None] & kept[:, 1:, None], iou, 0.0)
    graph = iou.new_zeros(batch, steps, instances, steps, instances)
    step = torch.arange(steps - 1, device=boxes.device)
    graph[:, step, :, step + 1] = iou.transpose(0, 1)
    graph = graph.view(batch, steps * instances, steps * instances)
    return _rows_of_one(graph), _rows_of_one(graph.transpose(1, 2))


def _rows_of_one(graph: Tensor) -> Tensor:
    total = graph.sum(-1, keepdim=True)
    return torch.where(total > 0, graph / total.where(total > 0, 1.0), 0.0)


class RegionGraph(nn.Module):
    """Features of instances (B, T, N, D) -> the same, by three layers over one graph or in two branches over both."""

    def __init__(self, width: int, *, graphs: Graphs, variant: Variant) -> None:
        super().__init__()
        one_of("graphs", graphs, get_args(Graphs))
        self.released = variant == "released"
        self.theta = self.phi = None
        if graphs != "space_time":
            self.theta, self.phi = (nn.Linear(width, width, bias=False) for _ in range(2))
            if self.released:
                self.theta.requires_grad_(False)
                self.phi.requires_grad_(False)
        self.similar = self._layers(width) if graphs != "space_time" else nn.ModuleList()
        self.front, self.back = (self._layers(width) if graphs != "similarity" else nn.ModuleList() for _ in range(2))
        self.similar_norms, self.moving_norms = (
            nn.ModuleList(nn.Identity() if self.released else nn.LayerNorm(width) for _ in layers)
            for layers in (self.similar, self.front)
        )

    @staticmethod
    def _layers(width: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(LAYERS))

    def similarity(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """Nodes (B, M, D) -> the similarity graph (B, M, M); kept (B, M): rows and columns of others are zeros."""
        assert self.theta is not None and self.phi is not None
        scores = self.theta(x) @ self.phi(x).transpose(1, 2)
        if kept is None:
            return scores.softmax(-1)
        scores = scores.masked_fill(~kept[:, None], torch.finfo(scores.dtype).min)
        return torch.where(kept[:, None] & kept[..., None], scores.softmax(-1), scores.new_zeros(()))

    def forward(
        self, x: Tensor, boxes: Tensor, kept: Tensor | None, *, with_graphs: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """boxes (B, T, N, 4) x1 y1 x2 y2 as shares of the frame; the second result are the graphs (B, T * N, T * N)."""
        nodes = x.flatten(1, 2)
        found, out = {}, []
        if self.theta is not None:
            graph = self.similarity(nodes, None if kept is None else kept.flatten(1))
            found["similarity_graph"] = graph
            out.append(self.over_similarity(nodes, graph.detach() if self.released else graph))
        if len(self.front):
            scale, pixel = (RELEASED_SIDE, 1.0) if self.released else (1.0, 0.0)
            # in the boxes' own precision: bfloat16 cannot tell an edge to a pixel
            with torch.autocast(boxes.device.type, enabled=False):
                front, back = space_time_graphs(boxes * scale, kept, pixel=pixel)
            found["front_graph"], found["back_graph"] = front, back
            out.append(self.over_space_time(nodes, front.to(x.dtype), back.to(x.dtype)))
        y = out[0] if len(out) == 1 else out[0] + out[1]
        return only(y.view_as(x), kept), found if with_graphs else {}

    def over_similarity(self, nodes: Tensor, graph: Tensor) -> Tensor:
        x = nodes
        for layer, norm in zip(self.similar, self.similar_norms, strict=True):
            x = F.relu(norm(graph @ layer(x)))
        return x + nodes

    def over_space_time(self, nodes: Tensor, front: Tensor, back: Tensor) -> Tensor:
        x = nodes
        for ahead, behind, norm in zip(self.front, self.back, self.moving_norms, strict=True):
            y, z = front @ ahead(x), back @ behind(x)
            x = F.relu(y) + F.relu(z) if self.released else F.relu(norm(y + z))
        return x


class GraphReasoning(Reasoning):
    """RegionGraph, the mean of a step's instances, the steps together."""

    def __init__(self, inputs: int, *, steps: int, graphs: Graphs, variant: Variant) -> None:
        super().__init__()
        self.width, self.steps = inputs, steps
        self.graph = RegionGraph(inputs, graphs=graphs, variant=variant)
        self.time = nn.Linear(steps * inputs, inputs, bias=False)

    def forward(self, joint: Joint, kept: Tensor | None, *, extras: bool) -> tuple[Tensor, dict[str, Tensor]]:
        x, graphs = self.graph(joint.features, joint.boxes, kept, with_graphs=extras)
        by_step = mean_of_slots(x, kept)
        return F.relu(self.time(beside_one_another(by_step[:, :, None], self.steps)[:, 0])), graphs


@register("strg", paper="Wang and Gupta, ECCV 2018", summary="graph convolutions over all steps' instances (Ours-STRG)")
def strg(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    graphs: Graphs = "similarity",
    variant: Variant = "paper",
    appearance: bool = True,
    non_appearance: bool = True,
    steps: int = 4,
    width: int = 512,
    map_width: int | None = None,
    roi_size: int = 3,
    global_feature: bool = False,
    dropout: float = 0.3,
) -> JointHead:
    """Ours-STRG.

    graphs: "similarity" as Ours-STRG, "space_time", or "both" as Wang and Gupta. width: of each kind of an instance's
    features. The other options: see JointHead. variant: "released" is the public code.

    extras: similarity_graph, front_graph, back_graph (B, T * N, T * N), steps first.
    """
    one_of("variant", variant, get_args(Variant))
    return JointHead(
        streams=streams,
        classes=classes,
        reasoning=lambda joint_width: GraphReasoning(joint_width, steps=steps, graphs=graphs, variant=variant),
        variant=variant,
        appearance=appearance,
        non_appearance=non_appearance,
        steps=steps,
        width=width,
        map_width=map_width,
        roi_size=roi_size,
        global_feature=global_feature,
        dropout=dropout,
    )
