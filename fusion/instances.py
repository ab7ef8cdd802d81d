"""Instance-centric joint features of hands, persons and objects: what they look like and where they are.

Source: Yan, Xie, Shu and Tang, "Interactive Fusion of Multi-level Features for Compositional Activity Recognition"
(arXiv:2012.05689), section 3.2.1 and the sizes of section 3.3; the boxes' encoder is that of Materzynska et al.,
"Something-Else", CVPR 2020. `variant="released"` is ruiyan1995/Interactive_Fusion_for_CAR at 3c5e7bf.

                        paper                                   released
d_fea, of the maps      512                                     256
RoIAlign                half-cell shift, 2 x 2 points a bin     no shift, as many points as there are cells
after RoIAlign          Linear                                  Linear, ReLU
positions, categories   fused by an MLP of two layers           fused by a layer with batch norm, then by such an MLP
empty slots             zeros; in no batch norm's statistics    a zero box is looked at and embedded like any other

The text names no dropout; that of the code follows the Linear after RoIAlign in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actionfuse._roi import roi_features

from .contract import Instances

Variant = Literal["paper", "released"]
CATEGORIES = 3  # nothing, hand or person, object


@dataclass(frozen=True)
class Joint:
    """Features of the instances of a batch of clips at T steps, the real ones first.

    features: (B, T, N, D). In the paper's variant zeros where `present` is False.
    boxes: (B, T, N, 4), x1 y1 x2 y2 as shares of the frame. categories: int64 (B, T, N).
    present: bool (B, T, N): something is in this slot and the step is real.
    real: bool (B, T): steps that are no padding, a run of True and then of False.
    whole: (B, G), the maps averaged over space and real steps; None where no map was looked at.
    """

    features: Tensor
    boxes: Tensor
    categories: Tensor
    present: Tensor
    real: Tensor
    whole: Tensor | None

    @property
    def centres(self) -> Tensor:
        """The boxes (B, T, N, 4) as cx cy w h."""
        return centre_size(self.boxes)


def centre_size(boxes: Tensor) -> Tensor:
    """x1 y1 x2 y2 -> cx cy w h."""
    low, high = boxes.split(2, -1)
    return torch.cat([(low + high) / 2, high - low], -1)


class CountedBatchNorm(nn.Module):
    """Batch norm over the channels of (..., D) whose statistics are those of the rows that count.

    Keys and arithmetic are those of nn.BatchNorm1d (eps 1e-5, momentum 0.1). Without any row to count, training
    normalises by the running statistics.
    """

    def __init__(self, width: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """counted: bool (...), None = every row counts."""
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self._statistics(x, counted)
        # in the statistics' precision, as batch norm does under autocast
        scale = self.weight * (var + self.eps).rsqrt()
        return ((x.to(mean.dtype) - mean) * scale + self.bias).to(x.dtype)

    def _statistics(self, x: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = x.flatten(0, -2).to(self.running_mean.dtype)
        if counted is None:
            mean, number = rows.mean(0), rows.new_full((), len(rows))  # new_tensor would wait for a GPU
            squares = (rows - mean).square().sum(0)
        else:
            kept = counted.flatten()[:, None]
            zero = rows.new_zeros(())
            number = kept.sum().to(rows.dtype)
            mean = torch.where(kept, rows, zero).sum(0) / number.clamp(min=1)
            squares = torch.where(kept, rows - mean, zero).square().sum(0)
        any_row = number > 0
        var = torch.where(any_row, squares / number.clamp(min=1), self.running_var)
        mean = torch.where(any_row, mean, self.running_mean)
        with torch.no_grad():
            unbiased = torch.where(any_row, squares / (number - 1).clamp(min=1), self.running_var)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        return mean, var


class LinearNorm(nn.Module):
    """Linear without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = CountedBatchNorm(outputs)

    def forward(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        return F.relu(self.norm(self.linear(x), counted))


class BoxEncoder(nn.Module):
    """Positions and categories of instances, beside one another: (..., width + width / 2).

    width: of a position's embedding, by two layers with batch norm from cx cy w h; a category's is half as wide and
        zero for category 0.
    frequent_categories_slower: divide a category's gradient by how often it occurs in the batch.
    """

    def __init__(self, width: int, *, frequent_categories_slower: bool = False) -> None:
        super().__init__()
        self.first = LinearNorm(4, width // 2)
        self.second = LinearNorm(width // 2, width)
        self.category = nn.Embedding(
            CATEGORIES, width // 2, padding_idx=0, scale_grad_by_freq=frequent_categories_slower
        )

    def forward(self, centres: Tensor, categories: Tensor, counted: Tensor | None = None) -> Tensor:
        """centres (..., 4) cx cy w h, categories int64 (...), counted: see CountedBatchNorm."""
        positions = self.second(self.first(centres, counted), counted)
        return torch.cat([positions, self.category(categories).to(positions.dtype)], -1)


class NonAppearance(nn.Module):
    """What is known of instances beside their looks: (..., width)."""

    def __init__(self, width: int, *, variant: Variant) -> None:
        super().__init__()
        released = variant == "released"
        self.boxes = BoxEncoder(width, frequent_categories_slower=released)
        embedded = width + width // 2
        self.fusion = LinearNorm(embedded, width) if released else None
        self.encoder = nn.Sequential(
            nn.Linear(width if released else embedded, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )

    def forward(self, centres: Tensor, categories: Tensor, counted: Tensor | None = None) -> Tensor:
        x = self.boxes(centres, categories, counted)
        return self.encoder(x if self.fusion is None else self.fusion(x, counted))


class Appearance(nn.Module):
    """What instances look like, cut out of one or more streams' maps: (B, T, N, width).

    Every stream's map is narrowed by a 1 x 1 x 1 convolution; all streams' RoI features stand beside one another
    before they are embedded together. RoI features (B, T, N, D, s, s) that are already cut out are narrowed alike.
    """

    def __init__(
        self, streams: Mapping[str, int], *, width: int, map_width: int, roi_size: int, dropout: float, variant: Variant
    ) -> None:
        super().__init__()
        self.released, self.roi_size, self.map_width = variant == "released", roi_size, map_width
        self.narrow = nn.ModuleDict({name: nn.Conv3d(inputs, map_width, 1) for name, inputs in streams.items()})
        self.embed = nn.Linear(len(streams) * map_width * roi_size**2, width)
        self.dropout = nn.Dropout(dropout)

    def narrowed(self, name: str, x: Tensor) -> Tensor:
        """A stream's maps (B, D, T, H, W) or RoI features (B, T, N, D, s, s) with `map_width` channels."""
        conv = self.narrow[name]
        if x.ndim == 6:
            if x.shape[-1] != self.roi_size or x.shape[-2] != self.roi_size:
                raise ValueError(
                    f"stream {name!r} has RoI features {tuple(x.shape)}; this head's RoIs are "
                    f"{self.roi_size} x {self.roi_size} (option roi_size)"
                )
            return conv(x.flatten(1, 2).transpose(1, 2)).transpose(1, 2).unflatten(1, x.shape[1:3])
        return conv(x)

    def forward(
        self, narrowed: Mapping[str, Tensor], boxes: Tensor, present: Tensor, masks: Mapping[str, Tensor]
    ) -> Tensor:
        """narrowed: of all streams; boxes (B, T, N, 4) at the maps' steps; masks: stream -> bool (B, T)."""
        cut = []
        for name, x in narrowed.items():
            if x.ndim == 5:
                # the released network looks at empty slots too
                x = roi_features(
                    x,
                    boxes,
                    None if self.released else present,
                    output_size=self.roi_size,
                    aligned=not self.released,
                    sampling_ratio=-1 if self.released else 2,
                )
            if name in masks:
                x = torch.where(masks[name][:, :, None, None, None, None], x, x.new_zeros(()))
            cut.append(x.flatten(3))
        x = self.embed(torch.cat(cut, -1))
        return self.dropout(F.relu(x) if self.released else x)


class InstanceFeatures(nn.Module):
    """Maps of streams and boxes -> Joint, whose width is `joint_width`: `width` for each of the two kinds of features.

    streams: stream -> width of its maps; not looked at without appearance.
    map_width: of the maps before RoIAlign (d_fea); None = `width`, and half of it in the released variant.
    appearance, non_appearance: whether to have that kind; not neither.
    """

    def __init__(
        self,
        streams: Mapping[str, int],
        *,
        width: int = 512,
        map_width: int | None = None,
        variant: Variant = "paper",
        appearance: bool = True,
        non_appearance: bool = True,
        roi_size: int = 3,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if variant not in ("paper", "released"):
            raise ValueError(f"variant is {variant!r}; it is 'paper' or 'released'")
        if not (appearance or non_appearance):
            raise ValueError("appearance and non_appearance are both False; instances need one of them at least")
        if width < 2 or width % 2:
            raise ValueError(f"width is {width}; it must be even and positive")
        self.variant: Variant = variant
        self.map_width = map_width or (width // 2 if variant == "released" else width)
        self.joint_width = width * (appearance + non_appearance)
        self.whole_width = len(streams) * self.map_width if appearance else 0
        self.appearance = (
            Appearance(
                streams,
                width=width,
                map_width=self.map_width,
                roi_size=roi_size,
                dropout=dropout,
                variant=variant,
            )
            if appearance
            else None
        )
        self.non_appearance = NonAppearance(width, variant=variant) if non_appearance else None

    def forward(
        self, features: Mapping[str, Tensor], boxes: Instances, masks: Mapping[str, Tensor], *, steps: int
    ) -> Joint:
        """features, boxes, masks: what a head's `fuse` gets; all streams have the same T.

        steps: the most steps that the head can take. The boxes' number of times must be T or a multiple of it, of
            which the first of each step counts; without features T is that of the boxes, brought down to `steps`.

        A step is real where any stream's mask is True; the real ones are moved to the front. Without features, steps
        after the last box are padding (paper; the released network has none).
        """
        masks = {name: masks[name] for name in features if name in masks}
        corners, categories, real = boxes_at_steps(features, boxes, masks, steps=steps, variant=self.variant)
        present = categories > 0

        kinds, whole = [], None
        if self.appearance is not None:
            narrowed = {
                name: self.appearance.narrowed(name, _cleared(x, masks.get(name))) for name, x in features.items()
            }
            kinds.append(self.appearance(narrowed, corners, present, masks))
            if all(x.ndim == 5 for x in narrowed.values()):
                whole = torch.cat([_mean(x, masks.get(name)) for name, x in narrowed.items()], -1)
        if self.non_appearance is not None:
            counted = present if self.variant == "paper" else real[:, :, None].expand_as(present)
            everything = self.variant == "released" and not masks
            kinds.append(
                self.non_appearance(
                    centre_size(corners).to(self.non_appearance.boxes.first.linear.weight.dtype),
                    categories,
                    None if everything else counted,
                )
            )
        x = torch.cat(kinds, -1)
        kept = present if self.variant == "paper" else real[:, :, None]
        x = torch.where(kept[..., None], x, x.new_zeros(()))
        if masks:
            x, corners, categories, present, real = real_first(real, x, corners, categories, present, real)
        return Joint(x, corners, categories, present, real, whole)


def boxes_at_steps(
    features: Mapping[str, Tensor], boxes: Instances, masks: Mapping[str, Tensor], *, steps: int, variant: Variant
) -> tuple[Tensor, Tensor, Tensor]:
    """boxes (B, T, N, 4), categories (B, T, N) and which steps are real (B, T), as InstanceFeatures says.

    Boxes and categories of other steps are zeros: what stands in a masked step may be NaN, in boxes as in maps. So are,
    in the paper's variant, boxes of empty slots; the released network looks at what it is given there.
    """
    times, stride = _steps_of(features, boxes, steps)
    corners, categories = boxes.boxes[:, ::stride], boxes.categories[:, ::stride]
    real = torch.ones(categories.shape[:2], dtype=torch.bool, device=categories.device)
    if features and len(masks) == len(features):
        real = torch.stack(list(masks.values())).any(0)
    elif not features and variant == "paper":
        real = (categories > 0).any(-1).flip(1).cummax(1).values.flip(1)
    categories = torch.where(real[:, :, None], categories, 0)
    kept = categories > 0 if variant == "paper" else real[:, :, None]
    return torch.where(kept[..., None], corners, corners.new_zeros(())), categories, real


def real_first(real: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Tensors (B, T, ...) with the steps where `real` (B, T) is True moved to the front, in their order."""
    order = real.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return [_reordered(x, order) for x in tensors]


def _steps_of(features: Mapping[str, Tensor], boxes: Instances, steps: int) -> tuple[int, int]:
    """T and the boxes' stride."""
    given = boxes.boxes.shape[1]
    if not features:
        times = given if given <= steps else steps
    else:
        times = {x.shape[2 if x.ndim == 5 else 1] for x in features.values()}.pop()
    if times > steps:
        raise ValueError(f"the streams have {times} steps and this head takes {steps}; make it with steps={times}")
    if given == 0 or given % times:
        raise ValueError(
            f"boxes are {tuple(boxes.boxes.shape)}; their number of times must be {times} or a multiple of it"
        )
    for name, x in features.items():
        if x.ndim == 6 and x.shape[2] != boxes.boxes.shape[2]:
            raise ValueError(
                f"stream {name!r} has RoI features {tuple(x.shape)} and the boxes are {tuple(boxes.boxes.shape)}; "
                "both must have the same instances"
            )
    return times, given // times


def _cleared(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros in the steps where the mask is False."""
    if mask is None:
        return x
    shape = (len(mask), 1, -1, 1, 1) if x.ndim == 5 else (len(mask), -1, 1, 1, 1, 1)
    return torch.where(mask.view(shape), x, x.new_zeros(()))


def _mean(maps: Tensor, mask: Tensor | None) -> Tensor:
    """Maps (B, D, T, H, W) averaged over space and the steps where the mask is True: (B, D)."""
    over_space = maps.mean((3, 4))
    if mask is None:
        return over_space.mean(2)
    kept = torch.where(mask[:, None], over_space, over_space.new_zeros(()))
    return kept.sum(2) / mask.sum(1)[:, None].clamp(min=1).to(kept.dtype)


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    """(B, T, ...) with its steps in another order (B, T)."""
    return x.gather(1, order.view(*order.shape, *[1] * (x.ndim - 2)).expand_as(x))
