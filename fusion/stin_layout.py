"""Checkpoints of joaanna/something_else, one file with the backbone and what stands on it, for head `stin`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor


def from_released(
    state: Mapping[str, Tensor], *, stream: str = "rgb", task: str = "action"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state_dict of a released checkpoint -> (the backbone's, the head's).

    The backbone's, keys as they are, goes into `i3d_r50_stin` through its loader; it is empty for a model of boxes
    alone. The head's goes into `create_head("stin", ..., **released_options(state))` with load_state_dict.
    stream, task: the names that the head has for its one stream and its one task. Raises ValueError for keys that
    belong to neither; it lists them.
    """
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    parts = {"coord_to_feature": "tracks.positions", "coord_category_fusion": "tracks.fusion"}
    parts |= {"spatial_node_fusion": "interaction.spatial", "box_feature_fusion": "interaction.temporal"}
    rules = [(r"category_embed_layer\.(.+)", r"tracks.category.\1")]
    for theirs, ours in parts.items():
        for place, layer in enumerate(("0.linear", "0.norm", None, "1.linear", "1.norm")):
            rules.append((rf"(?:c_)?{theirs}\.{place}\.(.+)", rf"{ours}.{layer}.\1"))
    block, ours = r"(?:c_)?nonlocal_fusion\.(\d+)", r"interaction.nonlocals.\1"
    rules += [
        (block + r"\.0\.conv_(theta|phi|g|out)\.(.+)", ours + r".block.\2.\3"),
        (block + r"\.1\.(.+)", ours + r".layer.linear.\2"),
        (block + r"\.2\.(.+)", ours + r".layer.norm.\2"),
        (r"conv\.(.+)", rf"maps.narrow.{stream}.\1"),
        (r"global_new_fc\.0\.(.+)", rf"maps.layer.{stream}.0.linear.\1"),
        (r"global_new_fc\.1\.(.+)", rf"maps.layer.{stream}.0.norm.\1"),
        (r"classifier\.([02])\.(.+)", r"hidden.\1.\2"),
        (r"(?:fc|classifier\.4)\.(.+)", rf"classifiers.{task}.\1"),
    ]
    backbone, head, left_over = {}, {}, []
    for key, tensor in plain.items():
        found = next((match.expand(new) for rule, new in rules if (match := re.fullmatch(rule, key))), None)
        if key.startswith("i3D."):
            backbone[key] = tensor
        elif found is None:
            left_over.append(key)
        else:
            # 1 x 1 convolutions are Linears here
            head[found] = tensor.flatten(1) if tensor.ndim > 2 else tensor
    if left_over:
        raise ValueError(
            f"{len(left_over)} keys of the released state_dict belong to no part of this head: "
            + ", ".join(sorted(left_over))
        )
    return backbone, head


def released_options(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Options of create_head("stin", ...) that fit a released checkpoint's state_dict.

    Of `classifier.4.weight` or `fc.weight` (classes, inputs) the first size is the number of classes.
    """
    sizes = {key.removeprefix("module.").removeprefix("c_"): tuple(tensor.shape) for key, tensor in state.items()}
    maps, boxes = "conv.weight" in sizes, "coord_to_feature.3.weight" in sizes
    seen = [part for part, there in (("maps", maps), ("boxes", boxes)) if there]
    if not seen:
        raise ValueError("this is no state_dict of something_else: it has neither conv nor coord_to_feature")
    if "category_embed_layer.weight" in sizes:
        seen.append("categories")
    options: dict[str, object] = {"variant": "released", "inputs": "+".join(seen)}
    if boxes:
        width = sizes["coord_to_feature.3.weight"][0]
        options |= {"width": width, "steps": sizes["box_feature_fusion.0.weight"][1] // width}
        blocks = {key.split(".")[1] for key in sizes if key.startswith("nonlocal_fusion.")}
        options["nonlocal_layers"] = len(blocks)
    if maps:
        options["map_width"] = sizes["conv.weight"][0]
    return options
