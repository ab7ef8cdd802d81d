"""Backbones: clips (B, C, T, H, W) to feature maps (B, D, T, H, W). Torch only; nothing here knows video files."""

from .contract import Backbone as Backbone
from .contract import InputSpec as InputSpec
from .contract import Stream as Stream
from .contract import create_backbone as create_backbone
from .contract import list_backbones as list_backbones
from .contract import pool_clip as pool_clip
from .contract import pool_space as pool_space
