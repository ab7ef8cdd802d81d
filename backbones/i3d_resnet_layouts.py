"""Published checkpoints of I3D-ResNet-50 in the keys of i3d_resnet.py: one function and one Layout each.

Sources of the names: joaanna/something_else, ruiyan1995/Interactive_Fusion_for_CAR, facebookresearch/SlowFast
(its table for Caffe2 too), facebookresearch/pytorchvideo, facebookresearch/video-nonlocal-net.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .contract import Layout
from .convert import published, rename


def _from_pytorchvideo(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # blocks.0 is the stem, blocks.2 pool2, blocks.6 the head
    rules = [(r"blocks\.0\.(conv|norm)\.(.+)", r"stem.\1.\2"), (r"blocks\.6\.proj\.(.+)", r"head.\1")]
    for block, stage in ((1, 2), (3, 3), (4, 4), (5, 5)):
        here, ours = rf"blocks\.{block}\.res_blocks\.(\d+)", rf"res{stage}.blocks.\1"
        rules.append((here + r"\.branch1_(conv|norm)\.(.+)", ours + r".shortcut.\2.\3"))
        rules.append((here + r"\.branch2\.(conv|norm)_([abc])\.(.+)", ours + r".\3.\2.\4"))
    return rename(state, *rules)


def _from_slowfast(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    here, ours = r"s([2-5])\.pathway0_res(\d+)", r"res\1.blocks.\2"
    there = r"s([2-5])\.pathway0_nonlocal(\d+)"
    return rename(
        state,
        (r"s1\.pathway0_stem\.conv\.(.+)", r"stem.conv.\1"),
        (r"s1\.pathway0_stem\.bn\.(.+)", r"stem.norm.\1"),
        (here + r"\.branch1\.(.+)", ours + r".shortcut.conv.\3"),
        (here + r"\.branch1_bn\.(.+)", ours + r".shortcut.norm.\3"),
        (here + r"\.branch2\.([abc])\.(.+)", ours + r".\3.conv.\4"),
        (here + r"\.branch2\.([abc])_bn\.(.+)", ours + r".\3.norm.\4"),
        (there + r"\.conv_(theta|phi|g|out)\.(.+)", r"res\1.nonlocals.\2.\3.\4"),
        (there + r"\.bn\.(.+)", r"res\1.nonlocals.\2.norm.\3"),
        (r"head\.projection\.(.+)", r"head.\1"),
    )


def _from_caffe2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    leaf = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}
    stage = r"res([2-5])_(\d+)"
    ours = rename(
        state,
        (r"conv1_w", r"stem.conv.w"),
        (r"res_conv1_bn_(s|b|rm|riv)", r"stem.norm.\1"),
        (stage + r"_branch1_w", r"res\1.blocks.\2.shortcut.conv.w"),
        (stage + r"_branch1_bn_(s|b|rm|riv)", r"res\1.blocks.\2.shortcut.norm.\3"),
        (stage + r"_branch2([abc])_w", r"res\1.blocks.\2.\3.conv.w"),
        (stage + r"_branch2([abc])_bn_(s|b|rm|riv)", r"res\1.blocks.\2.\3.norm.\4"),
        (r"nonlocal_conv([34])_(\d+)_(theta|phi|g|out)_([wb])", r"res\1.nonlocals.\2.\3.\4"),
        (r"nonlocal_conv([34])_(\d+)_bn_(s|b|rm|riv)", r"res\1.nonlocals.\2.norm.\3"),
        (r"pred_([wb])", r"head.\1"),
    )
    converted: dict[str, Tensor] = {}
    for key, tensor in ours.items():
        module, dot, name = key.rpartition(".")
        converted[f"{module}.{leaf[name]}" if dot and name in leaf else key] = tensor
    for key, gain in list(converted.items()):
        # Networks tuned with a frozen norm ("affine") keep gain and offset alone: mean 0, and variance + eps = 1.
        if key.endswith("norm.weight"):
            norm = key.removesuffix("weight")
            converted.setdefault(f"{norm}running_mean", torch.zeros_like(gain))
            converted.setdefault(f"{norm}running_var", torch.full_like(gain, 1 - 1e-5))
    if "head.weight" in converted:
        # fully convolutional tests keep the classifier as a 1x1x1 kernel
        converted["head.weight"] = converted["head.weight"].flatten(1)
    return converted


_STIN_PLACES = ("", "backbone.", "i3D.")  # alone; inside a whole CAR model; inside a whole STIN model


def _stin_place(state: Mapping[str, Tensor]) -> str | None:
    # torchvision's and VMZ's 3-D networks call their blocks alike, but not their stems
    ours = (place for place in _STIN_PLACES if f"{place}bn1.weight" in state)
    return next((place for place in ours if f"{place}layer1.0.conv1.0.weight" in state), None)


def _from_stin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a whole CAR or STIN model the backbone alone is taken: the rest is the fusion head's, and those models never
    use (nor train) the backbone's own classifier."""
    place = _stin_place(state) or ""
    inside = {key.removeprefix(place): tensor for key, tensor in state.items() if key.startswith(place)}
    if place:
        inside = {key: tensor for key, tensor in inside.items() if not key.startswith("classifier.")}
    rules = [(r"conv1\.(.+)", r"stem.conv.\1"), (r"bn1\.(.+)", r"stem.norm.\1")]
    rules.append((r"(?:classifier|fc)\.(.+)", r"head.\1"))
    for layer in (1, 2, 3, 4):
        here, ours = rf"layer{layer}\.(\d+)", rf"res{layer + 1}.blocks.\1"
        for part, name in (("conv1", "a"), ("conv2", "b"), ("conv3", "c"), ("shortcut", "shortcut")):
            rules.append((here + rf"\.{part}\.0\.(.+)", ours + rf".{name}.conv.\2"))
            rules.append((here + rf"\.{part}\.1\.(.+)", ours + rf".{name}.norm.\2"))
    return rename(inside, *rules)


def _is_slowfast(state: Mapping[str, Tensor]) -> bool:
    # a second pathway and its fusion make it a SlowFast network
    return "s2.pathway0_res0.branch2.a.weight" in state and "s1_fuse.conv_f2s.weight" not in state


def _is_pytorchvideo(state: Mapping[str, Tensor]) -> bool:
    return "blocks.1.res_blocks.0.branch2.conv_a.weight" in state


def _is_caffe2(state: Mapping[str, Tensor]) -> bool:
    return "conv1_w" in state and "res2_0_branch2a_w" in state


def _is_stin(state: Mapping[str, Tensor]) -> bool:
    return _stin_place(state) is not None


SLOWFAST = published(
    Layout(
        name="facebookresearch/SlowFast I3D-R50 (i3d_r50, i3d_r50_nln)",
        recognises=_is_slowfast,
        convert=_from_slowfast,
    )
)
PYTORCHVIDEO = published(
    Layout(
        name="facebookresearch/pytorchvideo I3D-R50 (i3d_r50)", recognises=_is_pytorchvideo, convert=_from_pytorchvideo
    )
)
CAFFE2 = published(
    Layout(
        name="Caffe2 blobs of facebookresearch/SlowFast (i3d_r50, i3d_r50_nln) or video-nonlocal-net (i3d_r50_c2...)",
        recognises=_is_caffe2,
        convert=_from_caffe2,
    )
)
STIN = published(
    Layout(
        name="joaanna/something_else and ruiyan1995/Interactive_Fusion_for_CAR (i3d_r50_stin)",
        recognises=_is_stin,
        convert=_from_stin,
        # Frames were read in BGR order and taken for RGB; their numbers 0..255 met a mean and std meant for 0..1.
        spec={"channel_order": "bgr", "scale": 1.0},
    )
)
