"""Backbones: clips (B, C, T, H, W) to feature maps (B, D, T, H, W). Torch only; nothing here knows video files."""

from . import (
    bninception,
    c2d,
    c3d,
    csn,
    ego_rnn,
    frame_models,
    gate_shift,
    i3d,
    i3d_resnet,
    karpathy,
    mvit,
    p3d,
    r2plus1d,
    s3d,
    slowfast,
    trn,
    tsm,
    video_swin,
    x3d,
)
from .contract import Backbone as Backbone
from .contract import InputSpec as InputSpec
from .contract import Stream as Stream
from .contract import create_backbone as create_backbone
from .contract import list_backbones as list_backbones
from .contract import pool_clip as pool_clip
from .contract import pool_space as pool_space
from .contract import stream_spec as stream_spec
from .own import load_backbone as load_backbone
from .own import save_backbone as save_backbone
from .roi import roi_features as roi_features

__all__ = [
    "Backbone",
    "InputSpec",
    "Stream",
    "create_backbone",
    "list_backbones",
    "load_backbone",
    "pool_clip",
    "pool_space",
    "roi_features",
    "save_backbone",
    "stream_spec",
]
# One module per family: importing it registers its names.
FAMILIES = (
    bninception,
    c2d,
    c3d,
    csn,
    ego_rnn,
    frame_models,
    gate_shift,
    i3d,
    i3d_resnet,
    karpathy,
    mvit,
    p3d,
    r2plus1d,
    s3d,
    slowfast,
    trn,
    tsm,
    video_swin,
    x3d,
)
