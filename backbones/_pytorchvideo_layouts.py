"""Published checkpoints of the networks that pytorchvideo builds: pytorchvideo's own, PySlowFast's and Caffe2's.

Ours keep pytorchvideo's names, `trunk.K.` in place of `blocks.K.`, with the classifier as `head.`.
Sources of the names: facebookresearch/pytorchvideo, facebookresearch/SlowFast (its table for Caffe2 too).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from .contract import Layout
from .convert import published, rename

# Stage of PySlowFast (s1 the stem, s2 ... s5) -> block of pytorchvideo.
PLAIN = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}
POOLED = {1: 0, 2: 1, 3: 3, 4: 4, 5: 5}  # blocks.2 is a pooling layer

# Classifiers of these widths are of Charades and AVA, where several actions happen at once.
SEVERAL = (157, 80)
_AVA_CLASSES = 80

_BN = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}


def _check_detection(state: Mapping[str, Tensor], *, detection: bool) -> None:
    """Networks tuned for AVA have the names of the others and another res5 and head."""
    head = state.get("head.projection.weight", state.get("pred_w"))
    if not detection and ("detection_head.proj.weight" in state or (head is not None and len(head) == _AVA_CLASSES)):
        raise ValueError("these weights were tuned for boxes (AVA); build the backbone with detection=True")


def _from_pytorchvideo(state: Mapping[str, Tensor], *, head: int, detection: bool) -> dict[str, Tensor]:
    _check_detection(state, detection=detection)
    return rename(
        {key.removeprefix("model."): tensor for key, tensor in state.items()},
        (r"detection_head\.proj\.(.+)", r"head.\1"),
        (rf"blocks\.{head}\.pool\.pre_(conv|norm)\.(.+)", rf"trunk.{head}.\1.\2"),
        (rf"blocks\.{head}\.pool\.post_conv\.(.+)", r"head.post_conv.\1"),
        # X3D's classifier has a layer before it, the others' is the classifier alone
        (
            rf"blocks\.{head}\.proj\.(.+)",
            r"head.proj.\1" if f"blocks.{head}.pool.post_conv.weight" in state else r"head.\1",
        ),
        (r"blocks\.(.+)", r"trunk.\1"),
    )


def _is_pytorchvideo(state: Mapping[str, Tensor], *, paths: int) -> bool:
    path = "multipathway_blocks.0." if paths == 2 else ""
    key = f"blocks.1.{path}res_blocks.0.branch2.conv_a.weight"
    return key in state or f"model.{key}" in state


def pytorchvideo_layout(names: str, *, head: int, paths: int = 1, detection: bool = False) -> Layout:
    """The layout of networks with one or two pathways whose classifier is `blocks.HEAD`.

    detection: as tuned for boxes, `model.` before the names and the classifier called `detection_head.proj`.
    """
    return published(
        Layout(
            name=f"facebookresearch/pytorchvideo ({names})",
            recognises=partial(_is_pytorchvideo, paths=paths),
            convert=partial(_from_pytorchvideo, head=head, detection=detection),
            several=SEVERAL,
        )
    )


def _from_slowfast(state: Mapping[str, Tensor], *, blocks: Mapping[int, int], detection: bool) -> dict[str, Tensor]:
    _check_detection(state, detection=detection)
    two = "s1_fuse.conv_f2s.weight" in state
    rules: list[tuple[str, str]] = []
    for stage, block in blocks.items():
        fuse = rf"trunk.{block}.multipathway_fusion"
        rules.append((rf"s{stage}_fuse\.conv_f2s\.(.+)", rf"{fuse}.conv_fast_to_slow.\1"))
        rules.append((rf"s{stage}_fuse\.bn\.(.+)", rf"{fuse}.norm.\1"))
        for path in (0, 1) if two else (0,):
            there = rf"s{stage}\.pathway{path}_"
            ours = f"trunk.{block}.multipathway_blocks.{path}" if two else f"trunk.{block}"
            # In X3D the first convolution is split: over space, then over time.
            split = "s1.pathway0_stem.conv_xy.weight" in state
            rules.append((there + r"stem\.conv_xy\.(.+)", rf"{ours}.conv.conv_t.\1"))
            rules.append((there + r"stem\.conv\.(.+)", rf"{ours}.conv.conv_xy.\1" if split else rf"{ours}.conv.\1"))
            rules.append((there + r"stem\.bn\.(.+)", rf"{ours}.norm.\1"))
            beside = rf"{ours}.res_blocks.\1.nonlocal"
            rules.append((there + r"nonlocal(\d+)\.conv_(theta|phi|g|out)\.(.+)", rf"{beside}.\2.\3"))
            rules.append((there + r"nonlocal(\d+)\.bn\.(.+)", rf"{beside}.norm.\2"))
            here, ours = there + r"res(\d+)\.", rf"{ours}.res_blocks.\1"
            rules.append((here + r"branch1\.(.+)", rf"{ours}.branch1_conv.\2"))
            rules.append((here + r"branch1_bn\.(.+)", rf"{ours}.branch1_norm.\2"))
            rules.append((here + r"branch2\.([abc])\.(.+)", rf"{ours}.branch2.conv_\2.\3"))
            if split:
                rules.append((here + r"branch2\.b_bn\.(.+)", rf"{ours}.branch2.norm_b.0.\2"))
                rules.append((here + r"branch2\.se\.fc1\.(.+)", rf"{ours}.branch2.norm_b.1.block.0.\2"))
                rules.append((here + r"branch2\.se\.fc2\.(.+)", rf"{ours}.branch2.norm_b.1.block.2.\2"))
            rules.append((here + r"branch2\.([abc])_bn\.(.+)", rf"{ours}.branch2.norm_\2.\3"))
    if "head.conv_5.weight" in state:
        last = max(blocks.values()) + 1
        rules.append((r"head\.conv_5\.(.+)", rf"trunk.{last}.conv.\1"))
        rules.append((r"head\.conv_5_bn\.(.+)", rf"trunk.{last}.norm.\1"))
        rules.append((r"head\.lin_5\.(.+)", r"head.post_conv.\1"))
        rules.append((r"head\.projection\.(.+)", r"head.proj.\1"))
    rules.append((r"head\.projection\.(.+)", r"head.\1"))
    return rename(state, *rules)


def _is_slowfast(state: Mapping[str, Tensor], *, paths: int) -> bool:
    two = "s1_fuse.conv_f2s.weight" in state
    return "s2.pathway0_res0.branch2.a.weight" in state and two == (paths == 2)


def slowfast_layout(
    names: str, *, blocks: Mapping[int, int] = PLAIN, paths: int = 1, detection: bool = False
) -> Layout:
    """PySlowFast's layout (`model_state`) of networks with one or two pathways.

    Those of Something-Something and Charades eat rgb too: REVERSE_INPUT_CHANNEL turns what was read as B, G, R.
    """
    return published(
        Layout(
            name=f"facebookresearch/SlowFast ({names})",
            recognises=partial(_is_slowfast, paths=paths),
            convert=partial(_from_slowfast, blocks=blocks, detection=detection),
            several=SEVERAL,
        )
    )


def _from_caffe2(state: Mapping[str, Tensor], *, blocks: Mapping[int, int], detection: bool) -> dict[str, Tensor]:
    _check_detection(state, detection=detection)
    leaf = r"(s|b|rm|riv)"
    stage = r"(t_)?res([2-5])_(\d+)"
    fused = r"t_res([2-5])_\d+_branch2c_bn_subsample"
    named = rename(
        state,
        (r"t_pool1_subsample_bn_" + leaf, r"s1_fuse.bn.\1"),
        (r"t_pool1_subsample_w", r"s1_fuse.conv_f2s.w"),
        (fused + r"_bn_" + leaf, r"s\1_fuse.bn.\2"),
        (fused + r"_w", r"s\1_fuse.conv_f2s.w"),
        (stage + r"_branch2([abc])_bn_" + leaf, r"s\2.\1pathway_res\3.branch2.\4_bn.\5"),
        (stage + r"_branch2([abc])_w", r"s\2.\1pathway_res\3.branch2.\4.w"),
        (stage + r"_branch1_bn_" + leaf, r"s\2.\1pathway_res\3.branch1_bn.\4"),
        (stage + r"_branch1_w", r"s\2.\1pathway_res\3.branch1.w"),
        (r"(t_)?res_conv1_bn_" + leaf, r"s1.\1pathway_stem.bn.\2"),
        (r"(t_)?conv1_w", r"s1.\1pathway_stem.conv.w"),
        (r"nonlocal_conv([2-5])_(\d+)_bn_" + leaf, r"s\1.pathway_nonlocal\2.bn.\3"),
        (r"nonlocal_conv([2-5])_(\d+)_(theta|phi|g|out)_([wb])", r"s\1.pathway_nonlocal\2.conv_\3.\4"),
        (r"pred_([wb])", r"head.projection.\1"),
    )
    ours: dict[str, Tensor] = {}
    for key, tensor in named.items():
        key = key.replace(".t_pathway_", ".pathway1_").replace(".pathway_", ".pathway0_")
        module, dot, name = key.rpartition(".")
        ours[f"{module}.{({'w': 'weight'} | _BN)[name]}" if dot and name in ({"w"} | set(_BN)) else key] = tensor
    for key, gain in list(ours.items()):
        # Networks tuned with a frozen norm keep gain and offset alone: mean 0, and variance + eps = 1.
        if key.endswith("bn.weight"):
            norm = key.removesuffix("weight")
            ours.setdefault(f"{norm}running_mean", torch.zeros_like(gain))
            ours.setdefault(f"{norm}running_var", torch.full_like(gain, 1 - 1e-5))
    if "head.projection.weight" in ours:
        ours["head.projection.weight"] = ours["head.projection.weight"].flatten(1)
    return _from_slowfast(ours, blocks=blocks, detection=detection)


def _is_caffe2(state: Mapping[str, Tensor], *, paths: int) -> bool:
    two = "t_conv1_w" in state
    return "conv1_w" in state and "res2_0_branch2a_w" in state and two == (paths == 2)


def caffe2_layout(names: str, *, blocks: Mapping[int, int] = PLAIN, paths: int = 1, detection: bool = False) -> Layout:
    """Caffe2's blobs of networks with one or two pathways."""
    return published(
        Layout(
            name=f"Caffe2 blobs of facebookresearch/SlowFast ({names})",
            recognises=partial(_is_caffe2, paths=paths),
            convert=partial(_from_caffe2, blocks=blocks, detection=detection),
            several=SEVERAL,
        )
    )
