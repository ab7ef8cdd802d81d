"""BNInception: Inception with batch norm (Ioffe and Szegedy, ICML 2015, arXiv:1502.03167), as the TSN line has it.

Every frame goes through the network and logits are averaged (Wang et al., "Temporal Segment Networks", ECCV 2016). It
is the trunk of TSN, of RULSTM's features (Furnari and Farinella) and of Temporal Binding Network (Kazakos et al., ICCV
2019), whose names are those of Cadene's pretrainedmodels. Images are B, G, R of 0..255 less (104, 117, 128), flow less
128, spectrograms as they are.
Differs: sizes whose halves do not come out even pad the pooling of 3c and 4e by one, where the original stops.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._inception import CeilMaxPool, ConvUnit, Inception, caffe_spec
from .contract import InputSpec, Layout, Stream, register
from .convert import load_weights, published, rename

STREAMS: tuple[Stream, ...] = ("rgb", "flow", "audio", "depth", "ir")
# Widths of 1x1 (0: none, and the block halves the resolution) | 1x1, 3x3 | 1x1, 3x3 and 3x3 | pooling, 1x1.
WIDTHS = {
    "3a": (64, (64, 64), (64, 96), 32),
    "3b": (64, (64, 96), (64, 96), 64),
    "3c": (0, (128, 160), (64, 96), 0),
    "4a": (224, (64, 96), (96, 128), 128),
    "4b": (192, (96, 128), (96, 128), 128),
    "4c": (160, (128, 160), (128, 160), 128),
    "4d": (96, (128, 192), (160, 192), 128),
    "4e": (0, (128, 192), (192, 256), 0),
    "5a": (352, (192, 320), (160, 224), 128),
    "5b": (352, (192, 320), (192, 224), 128),
}
_MAX_POOLED = ("5b",)
# What a checkpoint of Temporal Binding Network calls the trunk of a stream.
_TBN_PARTS = {"rgb": "rgb", "depth": "rgb", "ir": "rgb", "flow": "flow", "audio": "spec"}


class InceptionBlock(nn.Module):
    """Branches side by side, joined along channels; units are named as in the checkpoints."""

    def __init__(
        self, inputs: int, widths: tuple[int, tuple[int, int], tuple[int, int], int], *, max_pool: bool = False
    ) -> None:
        super().__init__()
        single, (reduce, triple), (reduce2, double), pooled = widths
        self.halves, self.max_pool = not single, max_pool
        stride = 2 if self.halves else 1
        units = {} if self.halves else {"1x1": ConvUnit(inputs, single)}
        units["3x3_reduce"] = ConvUnit(inputs, reduce)
        units["3x3"] = ConvUnit(reduce, triple, 3, stride, 1)
        units["double_3x3_reduce"] = ConvUnit(inputs, reduce2)
        units["double_3x3_1"] = ConvUnit(reduce2, double, 3, 1, 1)
        units["double_3x3_2"] = ConvUnit(double, double, 3, stride, 1)
        if pooled:
            units["pool_proj"] = ConvUnit(inputs, pooled)
        self.units = nn.ModuleDict(units)
        self.outputs = single + triple + double + (inputs if self.halves else pooled)

    def forward(self, maps: Tensor) -> Tensor:
        units = self.units
        branches = [] if self.halves else [units["1x1"](maps)]
        branches.append(units["3x3"](units["3x3_reduce"](maps)))
        branches.append(units["double_3x3_2"](units["double_3x3_1"](units["double_3x3_reduce"](maps))))
        if self.halves:
            height, width = maps.shape[2:]
            branches.append(F.max_pool2d(maps, 3, 2, (height % 2, width % 2), ceil_mode=True))
        elif self.max_pool:
            branches.append(units["pool_proj"](F.max_pool2d(maps, 3, 1, 1)))
        else:
            branches.append(units["pool_proj"](F.avg_pool2d(maps, 3, 1, 1)))
        return torch.cat(branches, 1)


class BNInception(Inception):
    """(B, C, T, H, W) -> (B, 1024, T, about H / 32, about W / 32), the output of 5b."""

    feature_dim = 1024

    def __init__(
        self, *, spec: InputSpec, layouts: tuple[Layout, ...] = (), num_classes: int = 0, dropout: float = 0.5
    ) -> None:
        body: dict[str, nn.Module] = {
            "conv1_7x7_s2": ConvUnit(spec.channels, 64, 7, 2, 3),
            "pool1": CeilMaxPool(),
            "conv2_3x3_reduce": ConvUnit(64, 64),
            "conv2_3x3": ConvUnit(64, 192, 3, 1, 1),
            "pool2": CeilMaxPool(),
        }
        width = 192
        for name, widths in WIDTHS.items():
            block = InceptionBlock(width, widths, max_pool=name in _MAX_POOLED)
            body[f"inception_{name}"], width = block, block.outputs
        super().__init__(body, spec=spec, layouts=layouts, num_classes=num_classes, dropout=dropout)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        # conv1 rounds up, both poolings of the stem down (with a last window over the edge), 3c and 4e up
        h, w = (-(-((size + 1) // 2 // 4) // 4) for size in (height, width))
        return frames, h, w


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of pretrainedmodels and of the TSN code, `base_model.` before them or not, `gsm_` and `gsf_` modules too.

    Where `new_fc` is the classifier, that of ImageNet, which such files may still carry, is left out. The norms of
    files that came from Caffe have a first dimension of one.
    """
    plain = {key.removeprefix("base_model."): tensor for key, tensor in state.items()}
    heads = [head for head in ("new_fc", "last_linear", "fc") if f"{head}.weight" in plain]
    unused = tuple(f"{head}." for head in heads[1:])
    plain = {
        key: tensor.flatten() if "_bn." in key and tensor.ndim == 2 else tensor
        for key, tensor in plain.items()
        if not (unused and key.startswith(unused))
    }
    unit = r"(conv1_7x7_s2|conv2_3x3_reduce|conv2_3x3|inception_\d[a-e])"
    rules = [
        (unit + r"_bn\.([^.]+)", r"body.\1.norm.\2"),
        (unit + r"\.([^.]+)", r"body.\1.conv.\2"),
        (r"(inception_\d[a-e])_(\w+?)_bn\.([^.]+)", r"body.\1.units.\2.norm.\3"),
        (r"(inception_\d[a-e])_(\w+)\.([^.]+)", r"body.\1.units.\2.conv.\3"),
        (r"gs[mf]_(inception_\d[a-e])_(\w+?)\.(.+)", r"body.\1.units.\2.conv.gate.\3"),
    ]
    if heads:
        rules.append((rf"{heads[0]}\.([^.]+)", r"head.\1"))
    return rename(plain, *rules)


def _has_gate(state: Mapping[str, Tensor]) -> bool:
    return any("gsm_" in key or "gsf_" in key for key in state)


def _is_tsn(state: Mapping[str, Tensor]) -> bool:
    return "base_model.conv1_7x7_s2.weight" in state and not _has_gate(state)


def _is_plain(state: Mapping[str, Tensor]) -> bool:
    return "conv1_7x7_s2.weight" in state and not _has_gate(state)


def _is_tbn(state: Mapping[str, Tensor]) -> bool:
    return any(f"{part}.conv1_7x7_s2.weight" in state for part in ("rgb", "flow", "spec"))


def _from_tbn(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = [name for name in ("rgb", "flow", "spec") if f"{name}.conv1_7x7_s2.weight" in state]
    if part not in parts:
        raise ValueError(f"this file of temporal-binding-network has trunks {', '.join(parts)} but none named {part!r}")
    return from_published({key.removeprefix(f"{part}."): x for key, x in state.items() if key.startswith(f"{part}.")})


TSN = published(Layout(name="BNInception of the TSN code or RULSTM", recognises=_is_tsn, convert=from_published))
PLAIN = published(Layout(name="BNInception of pretrainedmodels", recognises=_is_plain, convert=from_published))
_TBN = published(
    Layout(
        name="ekazakos/temporal-binding-network (bninception)", recognises=_is_tbn, convert=partial(_from_tbn, "rgb")
    )
)


def tbn_layout(stream: Stream) -> Layout:
    """Of a Temporal Binding Network's file, the trunk of one stream; its fusion layers are the `mid_level` head's."""
    return Layout(name=_TBN.name, recognises=_is_tbn, convert=partial(_from_tbn, _TBN_PARTS[stream]))


@register(
    "bninception",
    paper="Ioffe and Szegedy, ICML 2015; Wang et al. (TSN), ECCV 2016",
    streams=STREAMS,
    weights_from="pretrainedmodels, tsn-pytorch, RULSTM (TSN), temporal-binding-network",
)
def bninception(
    *,
    stream: Stream = "rgb",
    num_classes: int = 0,
    weights: str | Path | None = None,
    frames: int = 8,
    crop: int = 0,
    flow_stack: int = 5,
    dropout: float = 0.5,
) -> BNInception:
    """BNInception on every frame, logits averaged.

    frames: T of the input spec. crop: pixels, 0 = 224 (256 cells of spectrograms). flow_stack: u, v fields in an entry.
    weights: of a checkpoint of temporal-binding-network, which holds a trunk for each stream, `stream`'s is taken.
    """
    spec = caffe_spec(stream, frames=frames, crop=crop, flow_stack=flow_stack)
    layouts = (TSN, tbn_layout(stream), PLAIN)
    backbone = BNInception(spec=spec, layouts=layouts, num_classes=num_classes, dropout=dropout)
    backbone.frame_by_frame = True
    return load_weights(backbone, weights, num_classes=num_classes)
