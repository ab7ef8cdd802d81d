"""Checkpoints of ruiyan1995/Interactive_Fusion_for_CAR: one file with the backbone and what stands on it.

Which of the region models a file holds is told by its keys. `released_parts` renames what all of them share, a head
adds the rules of its own part; `from_released` and `released_options` are those of head `interactive`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
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


def from_released(
    state: Mapping[str, Tensor], *, stream: str = "rgb", task: str = "action"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state_dict of a released checkpoint (its `state_dict`) -> (the backbone's, the head's).

    The backbone's goes into `i3d_r50_stin` through its loader; it is empty for a model of boxes alone. The head's goes
    into the head that `released_options` describe, with load_state_dict.
    stream, task: the names that the head has for its one stream and its one task.

    The LSTM may be there twice, as STCR_temporal_flow and as pred_LSTM: one module under two names, of which loading
    leaves the second. Raises ValueError for keys that belong to neither; it lists them.
    """
    rules = {
        "STCR_fea_embed.": "reasoning.embed.",
        "STCR_spaital_fusion.": "reasoning.fuse.",
        "STCR_temporal_flow.": "flow.",
        "pred_LSTM.": "flow.",
        "STCR_temporal_fusion.0.": "time.layers.0.linear.",
        "STCR_temporal_fusion.1.": "time.layers.0.norm.",
        "STCR_temporal_fusion.3.": "time.layers.1.linear.",
        "STCR_temporal_fusion.4.": "time.layers.1.norm.",
        "navie_temp.0.": "time.linear.",
        "pos_decoder.": "predictor.position.",
        "offset_decoder.": "predictor.offset.",
    }
    theirs = [f"STCR_{kind}.0.weight" for kind in ("empty_other", "hand_hand", "hand_obj", "obj_obj")]
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    # pred_LSTM after the flow, so that it is the one that stays
    ordered = sorted((key for key in plain if key not in theirs), key=lambda key: key.startswith("pred_LSTM."))
    backbone, head = released_parts({key: plain[key] for key in ordered}, rules, stream=stream, task=task)
    found = [key for key in theirs if key in plain]
    if found:
        if len(found) < len(theirs):
            raise ValueError(f"the released state_dict has {', '.join(found)} but not all of {', '.join(theirs)}")
        halves = [plain[key].chunk(2, 1) for key in theirs]
        head["reasoning.pairs.weight"] = torch.cat([half[side] for side in (0, 1) for half in halves])
    return backbone, head


def released_options(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Options of create_head("interactive", ...) that fit a released checkpoint's state_dict.

    Of `fc.weight` (classes, inputs) the first size is the number of classes.
    """
    sizes = {key.removeprefix("module."): tuple(tensor.shape) for key, tensor in state.items()}
    appearance, non_appearance = "conv.weight" in sizes, "region_coord_embed.0.weight" in sizes
    interaction, flow = "STCR_fea_embed.weight" in sizes, "STCR_temporal_fusion.0.weight"
    if "fc.weight" not in sizes or not (appearance or non_appearance):
        raise ValueError(
            "this is no state_dict of a region model of Interactive_Fusion_for_CAR: it has no fc.weight, or neither "
            "conv.weight nor region_coord_embed.0.weight"
        )
    width = sizes["region_vis_embed.0.weight" if appearance else "non_appearance_encoder.0.weight"][0]
    joint = width * (appearance + non_appearance)
    options: dict[str, object] = {
        "variant": "released",
        "appearance": appearance,
        "non_appearance": non_appearance,
        "interaction": interaction,
        "prediction": "pos_decoder.weight" in sizes,
        "width": width,
        "global_feature": sizes["fc.weight"][1] > (width if interaction else joint),
    }
    if appearance:
        options["map_width"] = sizes["conv.weight"][0]
    if flow in sizes or "navie_temp.0.weight" in sizes:
        options["steps"] = sizes[flow if flow in sizes else "navie_temp.0.weight"][1] // joint
    else:
        options["base"] = "mean"
    return options
