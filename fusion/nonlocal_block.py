"""Non-local blocks over instances (Wang, Girshick, Gupta and He, "Non-local Neural Networks", CVPR 2018), and the head
`nonlocal`: one such block over all steps and instances of a clip.

The head is Ours-NLs of Yan et al. (arXiv:2012.05689, tables 2 to 4): joint features of instances, a dot-product block
over the plane of steps and instances, a Linear to half the width, a Linear over all steps of an instance, the mean over
instances, a classifier. The text says no more than that the block is built on the joint features; the layers are those
of ruiyan1995/Interactive_Fusion_for_CAR at 3c5e7bf (reasoning module STNL), whose block is AlexHex7's.

`variant="released"` is that code and reads its checkpoints (fusion/joint_layout.py). What it does to empty slots is
kept: they are attended to, counted in the mean, and batch norm's statistics are of them too; phi and g see the plane
max-pooled by 2 x 2, so which instances share a cell depends on their order. `variant="paper"` does without the pooling
and looks at what is there.
Differs: both attentions are computed in their cheaper order or by a fused kernel unless the weights are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import one_of, register
from .instances import CountedBatchNorm, Joint, Variant
from .slots import JointHead, Reasoning, beside_one_another, mean_of_slots, only

Attention = Literal["softmax", "dot_product"]


class NonLocalBlock(nn.Module):
    """x + norm(out(attention(theta(x), phi(x), g(x)))) over the places of a plane: (B, T, N, D) -> the same.

    width, inner: D, and the width of theta, phi and g.
    attention: softmax (embedded Gaussian, affinities divided by sqrt(inner)) or dot_product (affinities divided by the
        number of places).
    norm: "batch", whose gain starts at zero: the block starts as the identity; or "layer", over channels and places of
        a sample at once, without gain and offset (Caffe2's LayerNorm; GroupNorm with one group).
    pool: phi and g see the plane max-pooled by 2 x 2. It knows nothing of empty places.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        attention: Attention = "softmax",
        norm: Literal["batch", "layer"] = "batch",
        pool: bool = False,
    ) -> None:
        super().__init__()
        one_of("attention", attention, get_args(Attention))
        self.attention: Attention = attention
        self.pool = pool
        self.theta, self.phi, self.g = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)
        self.norm = CountedBatchNorm(width) if norm == "batch" else None
        if self.norm is not None:
            nn.init.zeros_(self.norm.weight)

    def forward(
        self, x: Tensor, present: Tensor | None = None, *, with_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """present: bool (B, T, N), places to look at and to change, the others come out as zeros; None = all of them.

        The second result is what each place takes of which, (B, T * N, places of phi), if `with_weights`.
        """
        theta = self.theta(x).flatten(1, 2)
        phi, g = (self._seen(layer(x)) for layer in (self.phi, self.g))
        keep = None if present is None else present.flatten(1)
        attend = self._softmax if self.attention == "softmax" else self._dot_product
        y, weights = attend(theta, phi, g, keep, with_weights)
        y = self.out(y).view_as(x)
        y = x + (self.norm(y, present) if self.norm is not None else norm_of_sample(y, present))
        return only(y, present), weights

    def _seen(self, x: Tensor) -> Tensor:
        """The places that phi and g have, (B, places, inner)."""
        if not self.pool:
            return x.flatten(1, 2)
        if min(x.shape[1:3]) < 2:
            raise ValueError(f"a plane of {x.shape[1]} steps and {x.shape[2]} instances cannot be pooled by 2 x 2")
        return F.max_pool2d(x.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)

    @staticmethod
    def _softmax(
        theta: Tensor, phi: Tensor, g: Tensor, keep: Tensor | None, with_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        mask = None
        if keep is not None:
            # a sample without any place keeps all: a row of the softmax without one would be NaN, also backwards
            mask = (keep | ~keep.any(1, keepdim=True))[:, None]
        if not with_weights:
            attended = F.scaled_dot_product_attention(
                theta[:, None], phi[:, None], g[:, None], None if mask is None else mask[:, None]
            )
            return attended[:, 0], None
        scores = theta @ phi.transpose(1, 2) / theta.shape[-1] ** 0.5
        weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
        return weights @ g, weights

    @staticmethod
    def _dot_product(
        theta: Tensor, phi: Tensor, g: Tensor, keep: Tensor | None, with_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        if keep is None:
            phi = phi / phi.shape[1]
        else:
            kept = torch.where(keep[..., None], phi, phi.new_zeros(()))
            phi = kept / keep.sum(1).clamp(min=1)[:, None, None].to(phi.dtype)
        if with_weights:
            weights = theta @ phi.transpose(1, 2)
            return weights @ g, weights
        # nothing stands between the two products, so the small one goes first; g's absent rows meet phi's zeros
        return theta @ (phi.transpose(1, 2) @ g), None


def norm_of_sample(x: Tensor, present: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """(B, T, N, D) less its mean, by its deviation, both over all channels of a sample's present places."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if present is None:
        present = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
    kept = present[..., None]
    number = (present.sum((1, 2)).clamp(min=1) * x.shape[-1]).to(wide.dtype)[:, None, None, None]
    zero = wide.new_zeros(())
    centred = wide - torch.where(kept, wide, zero).sum((1, 2, 3), keepdim=True) / number
    var = torch.where(kept, centred, zero).square().sum((1, 2, 3), keepdim=True) / number
    return (centred * (var + eps).rsqrt()).to(x.dtype)


class NonLocalPlane(Reasoning):
    """A non-local block over the plane of steps and instances, then an instance's steps together, and their mean.

    inputs, width: of instances and of the video.
    """

    def __init__(self, inputs: int, width: int, *, steps: int, attention: Attention, pool: bool) -> None:
        super().__init__()
        self.width, self.steps = width, steps
        self.block = NonLocalBlock(inputs, inputs // 2, attention=attention, pool=pool)
        self.reduce = nn.Linear(inputs, width)
        self.time = nn.Linear(steps * width, width)

    def forward(self, joint: Joint, kept: Tensor | None, *, extras: bool) -> tuple[Tensor, dict[str, Tensor]]:
        if self.block.pool and kept is not None:
            if not bool(kept.all()):
                raise ValueError("the released network pools over steps, padded ones too; variant='paper' has masks")
            kept = None
        x, weights = self.block(joint.features, kept, with_weights=extras)
        x = only(self.reduce(x), kept)
        x = self.time(beside_one_another(x, self.steps))
        x = mean_of_slots(x, None if kept is None else kept.any(1))
        return x, {} if weights is None else {"affinity": weights}


@register(
    "nonlocal", paper="Wang et al., CVPR 2018", summary="a non-local block over all steps and instances (Ours-NLs)"
)
def nonlocal_head(
    *,
    streams: Mapping[str, int],
    classes: Mapping[str, int],
    attention: Attention = "dot_product",
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
    """Ours-NLs.

    attention: see NonLocalBlock. width: of a video's features, and of each kind of an instance's. The other options:
    see JointHead. variant: "released" is the public code, which pools and does not tell empty slots.

    extras: affinity (B, T * N, T * N), what each step's instance takes of which, steps first; in the released variant
    of which cell of the pooled plane, (B, T * N, T / 2 * N / 2).
    """
    return JointHead(
        streams=streams,
        classes=classes,
        reasoning=lambda joint_width: NonLocalPlane(
            joint_width, width, steps=steps, attention=attention, pool=variant == "released"
        ),
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
