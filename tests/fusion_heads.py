"""Small heads and features for tests of fusion heads: any registered name, any set of streams."""

from __future__ import annotations

import torch
from torch import Tensor

from actionfuse.fusion import FusionHead, Instances, create_head, head_options

WIDTHS = {"rgb": 24, "flow": 16, "objects": 20, "audio": 12}
CLASSES = {"verb": 5, "noun": 7}
# Options that every head spells the same, made small; the others keep their defaults.
SMALL = {"width": 32, "heads": 4, "depth": 2, "dropout": 0.0}


def small_head(name: str, streams: tuple[str, ...] = ("rgb", "flow"), **options: object) -> FusionHead:
    """The head with few channels and its defaults otherwise; the same weights every time."""
    torch.manual_seed(0)
    known = dict(head_options(name))
    small = {option: value for option, value in SMALL.items() if option in known}
    return create_head(name, streams={s: WIDTHS[s] for s in streams}, classes=CLASSES, **{**small, **options}).eval()


def features_of(
    head: FusionHead, batch: int = 3, steps: int = 4, *, maps: bool = True, seed: int = 1
) -> dict[str, Tensor]:
    """Random features of all of the head's streams: maps (B, D, T, 3, 3), or sequences (B, T, D)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn((batch, width, steps, 3, 3) if maps else (batch, steps, width), generator=generator)
        for name, width in head.streams.items()
    }


def boxes_of(head: FusionHead, batch: int = 3, steps: int = 4, instances: int = 3, seed: int = 2) -> Instances | None:
    """A hand and objects, the last slot empty in the last sample; None for heads that take no boxes."""
    if not head.needs_boxes:
        return None
    generator = torch.Generator().manual_seed(seed)
    corner = 0.5 * torch.rand((batch, steps, instances, 2), generator=generator)
    size = 0.1 + 0.4 * torch.rand((batch, steps, instances, 2), generator=generator)
    categories = torch.full((batch, steps, instances), 2)
    categories[:, :, 0] = 1
    categories[-1, :, -1] = 0
    boxes = torch.cat([corner, corner + size], -1) * (categories > 0)[..., None]
    return Instances(boxes, categories)
