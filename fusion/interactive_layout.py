"""Checkpoints of ruiyan1995/Interactive_Fusion_for_CAR: one file with the backbone and what stands on it.

Which of the region models a file holds is told by its keys. What all of them share is renamed here; a head adds the
rules of its own part.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_BACKBONE = "backbone."
_BOXES = "instances.non_appearance.boxes."
_SHARED = {
    "region_vis_embed.0.": "instances.appearance.embed.",
    "region_coord_embed.0.": f"{_BOXES}first.linear.",
    "region_coord_embed.1.": f"{_BOXES}first.norm.",
    "region_coord_embed.3.": f"{_BOXES}second.linear.",
    "region_coord_embed.4.": f"{_BOXES}second.norm.",
    "category_embed_layer.": f"{_BOXES}category.",
    "coord_category_fusion.0.": "instances.non_appearance.fusion.linear.",
    "coord_category_fusion.1.": "instances.non_appearance.fusion.norm.",
    "non_appearance_encoder.": "instances.non_appearance.encoder.",
}


def released_parts(
    state: Mapping[str, Tensor], rules: Mapping[str, str], *, stream: str = "rgb", task: str = "action"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A released state_dict, taken apart: the backbone's, keys `backbone.*` as they are, and the head's, by our keys.

    rules: prefix of a key -> our prefix, for what the head has beside `instances` and `classifiers`.
    stream, task: what the head calls them; the released network has one of each.

    The backbone's is empty where the network looks at boxes alone; `i3d_r50_stin` takes it otherwise. Raises
    ValueError for keys that belong to neither; it lists them.
    """
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    names = {**_SHARED, **rules, "conv.": f"instances.appearance.narrow.{stream}.", "fc.": f"classifiers.{task}."}
    backbone, head, left_over = {}, {}, []
    for key, tensor in plain.items():
        if key.startswith(_BACKBONE):
            backbone[key] = tensor
            continue
        if key.startswith("non_appearance_encoder.") and "region_coord_embed.0.weight" not in plain:
            continue  # made, but neither used nor trained, by networks that look at appearance alone
        found = next((theirs for theirs in names if key.startswith(theirs)), None)
        if found is None:
            left_over.append(key)
        else:
            head[names[found] + key.removeprefix(found)] = tensor
    if left_over:
        raise ValueError(
            f"{len(left_over)} keys of the released state_dict belong to no part of this head: "
            + ", ".join(sorted(left_over))
        )
    return backbone, head
