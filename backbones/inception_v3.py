"""Inception-v3 of the TSN line (Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, arXiv:1512.00567).

The network of tsn-pytorch and GSM: converted from TensorFlow's first release, with biased convolutions, pooling by
Caffe's rule (a last window may reach over the edge), norms with eps 1e-5 and a last block that pools by maximum, so
that timm's inception_v3 cannot hold its weights. Frames are 229 x 229, B, G, R of 0..255 less (104, 117, 128).
Differs: sizes whose halves do not come out even cut the pooled branch of mixed_3 and mixed_8 to the others' size, where
the original stops.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._inception import CeilMaxPool, ConvUnit, Inception
from .contract import InputSpec, Layout
from .convert import rename

CROP = 229
_TALL, _WIDE = (7, 1), (1, 7)
_Unit = tuple[str, int, int | tuple[int, int]]  # name, width, kernel


def _same(kernel: int | tuple[int, int]) -> int | tuple[int, int]:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


class Block(nn.Module):
    """Branches (chains of units) side by side; a chain's last step may fork in two.

    pool: "average" and "max" keep the size and are followed by unit `tower_2_conv`; "halve" is a branch of its own, and
        the last unit of every chain strides.
    """

    def __init__(
        self,
        inputs: int,
        chains: tuple[tuple[_Unit, ...], ...],
        *,
        pool: str,
        pooled: tuple[str, int] | None = None,
        forks: bool = False,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.chains = [[name for name, _, _ in chain] for chain in chains]
        # of a chain that forks, the last two units see the same maps
        self.forks = [forks and len(chain) > 1 for chain in chains]
        self.pooled = pooled[0] if pooled else ""
        units, self.outputs = {}, inputs if pool == "halve" else 0
        for chain, fork in zip(chains, self.forks, strict=True):
            widths = [inputs, *(width for _, width, _ in chain)]
            for place, (name, width, kernel) in enumerate(chain):
                last = place == len(chain) - 1
                before = widths[place - 1] if fork and last else widths[place]
                halves = pool == "halve" and last
                units[name] = ConvUnit(before, width, kernel, 2 if halves else 1, 0 if halves else _same(kernel))
            self.outputs += sum(widths[-2:]) if fork else widths[-1]
        if pooled:
            units[pooled[0]] = ConvUnit(inputs, pooled[1])
            self.outputs += pooled[1]
        self.units = nn.ModuleDict(units)

    def forward(self, maps: Tensor) -> Tensor:
        branches = []
        for chain, fork in zip(self.chains, self.forks, strict=True):
            x = maps
            for name in chain[:-2] if fork else chain:
                x = self.units[name](x)
            branches += [self.units[name](x) for name in chain[-2:]] if fork else [x]
        if self.pool == "halve":
            height, width = branches[0].shape[2:]
            branches.append(F.max_pool2d(maps, 3, 2, ceil_mode=True)[:, :, :height, :width])
        else:
            pooled = F.max_pool2d(maps, 3, 1, 1) if self.pool == "max" else F.avg_pool2d(maps, 3, 1, 1)
            branches.append(self.units[self.pooled](pooled))
        return torch.cat(branches, 1)


def _first(inputs: int, pooled: int) -> Block:
    chains = (
        (("conv", 64, 1),),
        (("tower_conv", 48, 1), ("tower_conv_1", 64, 5)),
        (("tower_1_conv", 64, 1), ("tower_1_conv_1", 96, 3), ("tower_1_conv_2", 96, 3)),
    )
    return Block(inputs, chains, pool="average", pooled=("tower_2_conv", pooled))


def _middle(width: int) -> Block:
    tower = (("tower_conv", width, 1), ("tower_conv_1", width, _TALL), ("tower_conv_2", 192, _WIDE))
    tower_1 = [(f"tower_1_conv_{i}", width, _WIDE if i % 2 else _TALL) for i in (1, 2, 3)]
    long = (("tower_1_conv", width, 1), *tower_1, ("tower_1_conv_4", 192, _TALL))
    return Block(768, ((("conv", 192, 1),), tower, long), pool="average", pooled=("tower_2_conv", 192))


def _last(inputs: int, pool: str) -> Block:
    ends = (("mixed_conv", 384, (3, 1)), ("mixed_conv_1", 384, (1, 3)))
    tower = (("tower_conv", 384, 1), *((f"tower_{name}", width, kernel) for name, width, kernel in ends))
    tower_1 = (("tower_1_conv", 448, 1), ("tower_1_conv_1", 384, 3))
    tower_1 += tuple((f"tower_1_{name}", width, kernel) for name, width, kernel in ends)
    return Block(inputs, ((("conv", 320, 1),), tower, tower_1), pool=pool, pooled=("tower_2_conv", 192), forks=True)


class InceptionV3(Inception):
    """(B, C, T, H, W) -> (B, 2048, T, about H / 32, about W / 32), the output of mixed_10."""

    feature_dim = 2048
    min_size = (1, 75, 75)

    def __init__(
        self, *, spec: InputSpec, layouts: tuple[Layout, ...] = (), num_classes: int = 0, dropout: float = 0.5
    ) -> None:
        narrow: tuple[tuple[_Unit, ...], ...] = (
            (("conv", 384, 3),),
            (("tower_conv", 64, 1), ("tower_conv_1", 96, 3), ("tower_conv_2", 96, 3)),
        )
        narrower: tuple[tuple[_Unit, ...], ...] = (
            (("tower_conv", 192, 1), ("tower_conv_1", 320, 3)),
            (
                ("tower_1_conv", 192, 1),
                ("tower_1_conv_1", 192, _TALL),
                ("tower_1_conv_2", 192, _WIDE),
                ("tower_1_conv_3", 192, 3),
            ),
        )
        body: dict[str, nn.Module] = {
            "conv": ConvUnit(spec.channels, 32, 3, 2),
            "conv_1": ConvUnit(32, 32, 3),
            "conv_2": ConvUnit(32, 64, 3, 1, 1),
            "pool": CeilMaxPool(),
            "conv_3": ConvUnit(64, 80),
            "conv_4": ConvUnit(80, 192, 3),
            "pool_1": CeilMaxPool(),
            "mixed": _first(192, 32),
            "mixed_1": _first(256, 64),
            "mixed_2": _first(288, 64),
            "mixed_3": Block(288, narrow, pool="halve"),
            "mixed_4": _middle(128),
            "mixed_5": _middle(160),
            "mixed_6": _middle(160),
            "mixed_7": _middle(192),
            "mixed_8": Block(768, narrower, pool="halve"),
            "mixed_9": _last(1280, "average"),
            "mixed_10": _last(2048, "max"),
        }
        super().__init__(body, spec=spec, layouts=layouts, num_classes=num_classes, dropout=dropout)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return frames, _side(height), _side(width)


def _side(size: int) -> int:
    size = (size - 3) // 2 + 1 - 2  # conv, conv_1
    size = size // 2 - 2  # pool, conv_4
    size = size // 2
    for _ in range(2):  # mixed_3 and mixed_8
        size = (size - 3) // 2 + 1
    return size


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of tsn-pytorch, GSM and GSF, `base_model.` before them or not. Where `new_fc` is the classifier, that of
    ImageNet is left out, as in bninception.py.
    """
    plain = {key.removeprefix("base_model."): tensor for key, tensor in state.items()}
    heads = [head for head in ("new_fc", "top_cls_fc") if f"{head}.weight" in plain]
    unused = tuple(f"{head}." for head in heads[1:])
    plain = {
        key: tensor.flatten() if "_batchnorm." in key and tensor.ndim == 2 else tensor
        for key, tensor in plain.items()
        if not (unused and key.startswith(unused))
    }
    stem, block = r"(conv(?:_[1-4])?)", r"(mixed(?:_\d+)?)_(conv|tower\w*?)"
    rules = [
        (stem + r"_Conv2D\.(.+)", r"body.\1.conv.\2"),
        (stem + r"_batchnorm\.(.+)", r"body.\1.norm.\2"),
        (block + r"_Conv2D\.(.+)", r"body.\1.units.\2.conv.\3"),
        (block + r"_batchnorm\.(.+)", r"body.\1.units.\2.norm.\3"),
        (r"gs[mf]_" + block + r"_Conv2D\.(.+)", r"body.\1.units.\2.conv.gate.\3"),
        *((rf"{head}\.(.+)", r"head.\1") for head in heads[:1]),
    ]
    return rename(plain, *rules)
