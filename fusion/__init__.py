"""Fusion heads: feature maps or sequences of several streams to logits. Torch only; nothing here knows a backbone."""

from . import (
    afft,
    baselines,
    gating,
    interactive,
    matt,
    mif,
    mimo,
    mmixer,
    nonlocal_block,
    rulstm,
    stin,
    strategies,
    strg,
    tbn,
)
from .contract import FusionHead as FusionHead
from .contract import Instances as Instances
from .contract import Output as Output
from .contract import State as State
from .contract import create_head as create_head
from .contract import head_options as head_options
from .contract import list_heads as list_heads
from .ensemble import score_ensemble as score_ensemble
from .few_shot import freeze_all_but_classifier as freeze_all_but_classifier
from .few_shot import reset_classifier as reset_classifier

__all__ = [
    "FusionHead",
    "Instances",
    "Output",
    "State",
    "create_head",
    "freeze_all_but_classifier",
    "head_options",
    "list_heads",
    "reset_classifier",
    "score_ensemble",
]
# One module per paper: importing it registers its names.
FAMILIES = (
    afft,
    baselines,
    gating,
    interactive,
    matt,
    mif,
    mimo,
    mmixer,
    nonlocal_block,
    rulstm,
    stin,
    strategies,
    strg,
    tbn,
)
