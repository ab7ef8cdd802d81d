"""Maps of the I3D inside released CAR networks for golden cases; cases with the same weights and video share them."""

from __future__ import annotations

import torch
from golden_cases import Case
from torch import Tensor

from actionfuse.backbones import create_backbone
from actionfuse.backbones.convert import install
from actionfuse.backbones.i3d_resnet_layouts import STIN
from actionfuse.fusion import Instances

_MAPS: dict[str, Tensor] = {}


def released_maps(case: Case, backbone: dict[str, Tensor]) -> Tensor:
    """(V, 2048, T / 2, 14, 14). backbone: what a converter made of the case's weights; a case's weights and input are a
    function of their names and shapes."""
    key = repr((sorted((name, tuple(x.shape)) for name, x in backbone.items()), case.meta["inputs"]["video"]))
    if key not in _MAPS:
        network = create_backbone("i3d_r50_stin").eval()
        install(network, STIN.convert(backbone), what=case.name)
        with torch.inference_mode():
            _MAPS[key] = network(case.input("video"))
    return _MAPS[key]


def case_boxes(case: Case) -> Instances:
    """The case's boxes, which it has as cx cy w h."""
    centre, size = case.input("boxes").split(2, -1)
    return Instances(torch.cat([centre - size / 2, centre + size / 2], -1), case.input("categories").long())
