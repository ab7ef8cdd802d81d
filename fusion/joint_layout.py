"""Checkpoints of ruiyan1995/Interactive_Fusion_for_CAR whose reasoning module is STIN, STNL or STRG: heads `stin` with
inputs="joint", `nonlocal` and `strg`. Those of its own modules are in interactive_layout.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from torch import Tensor

from .contract import one_of
from .interactive_layout import released_parts
from .strg import LAYERS, Graphs

# A key that only one module has -> the head.
_TOLD_BY = {
    "spatial_node_fusion_list.0.weight": "stin",
    "STNL_reduce.weight": "nonlocal",
    "rgcn.sim_gc1.weight": "strg",
}
_STIN = {
    "spatial_node_fusion_list.0.": "reasoning.interaction.spatial.",
    "temporal_node_fusion_list.0.": "reasoning.interaction.temporal.",
}
_STIN_UNUSED = tuple(f"{part}_node_fusion_list.{n}." for part in ("spatial", "temporal") for n in (1, 3, 4))
_STNL = {
    "STNL_NLs.0.theta.": "reasoning.block.theta.",
    "STNL_NLs.0.phi.0.": "reasoning.block.phi.",
    "STNL_NLs.0.g.0.": "reasoning.block.g.",
    "STNL_NLs.0.W.0.": "reasoning.block.out.",
    "STNL_NLs.0.W.1.": "reasoning.block.norm.",
    "STNL_reduce.": "reasoning.reduce.",
    "STNL_temp.": "reasoning.time.",
}


def from_released(
    state: Mapping[str, Tensor], *, graphs: Graphs = "similarity", stream: str = "rgb", task: str = "action"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state_dict of a released checkpoint -> (the backbone's, the head's).

    The backbone's, keys as they are, goes into `i3d_r50_stin` through its loader; it is empty for a model of boxes
    alone. The head's goes into the head that `released_head` describes, with load_state_dict.
    graphs: of head `strg`; layers over other graphs are left out. The released forward used the similarity graph, so
        those over the space-time graph are in the file as they were made.
    stream, task: the names that the head has for its one stream and its one task.

    Left out as well are, of STIN, the layers that the code makes and never uses: all but the first of
    spatial_node_fusion_list and temporal_node_fusion_list. Raises ValueError for other keys that belong to neither
    part; it lists them.
    """
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    name = _name(plain)
    if name == "stin":
        used = {key: tensor for key, tensor in plain.items() if not key.startswith(_STIN_UNUSED)}
        return released_parts(used, _STIN, stream=stream, task=task)
    if name == "nonlocal":
        backbone, head = released_parts(plain, _STNL, stream=stream, task=task)
        # 1 x 1 convolutions are Linears here
        return backbone, {
            key: x.flatten(1) if key.startswith("reasoning.block.") and x.ndim == 4 else x for key, x in head.items()
        }
    graph = {key.removeprefix("rgcn."): plain.pop(key) for key in list(plain) if key.startswith("rgcn.")}
    backbone, head = released_parts(plain, {"navie_temp.0.": "reasoning.time."}, stream=stream, task=task)
    weights = graph_from_released(graph, graphs=graphs)
    return backbone, head | {f"reasoning.graph.{key}": x for key, x in weights.items()}


def graph_from_released(state: Mapping[str, Tensor], *, graphs: Graphs = "similarity") -> dict[str, Tensor]:
    """The state_dict of the released RGCN -> that of strg.RegionGraph, without layers over other graphs."""
    one_of("graphs", graphs, get_args(Graphs))
    similar = {"sim_embed1.weight": "theta.weight", "sim_embed2.weight": "phi.weight"}
    moving = {}
    for layer in range(LAYERS):
        similar[f"sim_gc{layer + 1}.weight"] = f"similar.{layer}.weight"
        moving[f"st_gc{layer + 1}.weight"] = f"front.{layer}.weight"
        moving[f"st_gc{layer + 1}_back.weight"] = f"back.{layer}.weight"
    unknown, missing = sorted(state.keys() - similar.keys() - moving.keys()), sorted(similar.keys() - state.keys())
    if unknown or missing:
        raise ValueError(f"the released graph has unknown keys: {unknown}; it lacks: {missing}")
    names = {
        **(similar if graphs != "space_time" else {}),
        **(moving if graphs != "similarity" else {}),
    }
    # a layer's matrix stands on the right of its features there
    return {
        ours: state[theirs] if "embed" in theirs else state[theirs].t().contiguous()
        for theirs, ours in names.items()
        if theirs in state
    }


def released_head(state: Mapping[str, Tensor]) -> tuple[str, dict[str, object]]:
    """(name, options) of the head, for create_head(name, streams=..., classes=..., **options), that a released
    checkpoint's state_dict fits. Of `fc.weight` (classes, inputs) the first size is the number of classes."""
    sizes = {key.removeprefix("module."): tuple(tensor.shape) for key, tensor in state.items()}
    name = _name(sizes)
    appearance, non_appearance = "region_vis_embed.0.weight" in sizes, "region_coord_embed.0.weight" in sizes
    width = sizes["non_appearance_encoder.0.weight"][0]
    joint = width * (appearance + non_appearance)
    options: dict[str, object] = {"variant": "released", "width": width}
    if name == "stin":
        options |= {"inputs": "joint", "steps": sizes["temporal_node_fusion_list.0.weight"][1] // width}
    else:
        time, inputs = ("STNL_temp.weight", width) if name == "nonlocal" else ("navie_temp.0.weight", joint)
        options["steps"] = sizes[time][1] // inputs
        options |= {"appearance": appearance, "non_appearance": non_appearance}
    if appearance:
        options["map_width"] = sizes["conv.weight"][0]
    options["global_feature"] = sizes["fc.weight"][1] > (joint if name == "strg" else width)
    return name, options


def _name(state: Mapping[str, object]) -> str:
    name = next((head for key, head in _TOLD_BY.items() if key in state), None)
    if name is None:
        raise ValueError(
            "this is no state_dict of Interactive_Fusion_for_CAR's region model with module STIN, STNL or STRG; those "
            f"have one of the keys {', '.join(_TOLD_BY)}. It has {len(state)}, such as {', '.join(list(state)[:5])}"
        )
    return name
