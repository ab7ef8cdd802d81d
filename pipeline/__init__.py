"""Raw video to typed clips: decoding, sampling, flow, sound, boxes, transforms, stored features.

What samples are made of is loaded when it is first used: `SegmentDataset` needs torch, and decoding processes do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .inputs import VideoInput, find_videos, is_frame_folder
from .types import BoxTracks, Clip, DepthFrames, Frames, Waveform
from .video import VideoError, VideoInfo, VideoReader, open_video

if TYPE_CHECKING:
    from .clip_spec import Augmentation, FeatureSpec, StreamSpec
    from .order import EpochSampler, epoch_order
    from .protocols import Anticipation, EarlyRecognition, Recognition, Sampling, sliding_windows
    from .samples import Sample, SegmentDataset, collate, make_loader

__all__ = [
    "Anticipation",
    "Augmentation",
    "BoxTracks",
    "Clip",
    "DepthFrames",
    "EarlyRecognition",
    "EpochSampler",
    "FeatureSpec",
    "Frames",
    "Recognition",
    "Sample",
    "Sampling",
    "SegmentDataset",
    "StreamSpec",
    "VideoError",
    "VideoInfo",
    "VideoInput",
    "VideoReader",
    "Waveform",
    "collate",
    "epoch_order",
    "find_videos",
    "is_frame_folder",
    "make_loader",
    "open_video",
    "sliding_windows",
]

_LATER = {
    "clip_spec": ("Augmentation", "FeatureSpec", "StreamSpec"),
    "order": ("EpochSampler", "epoch_order"),
    "protocols": ("Anticipation", "EarlyRecognition", "Recognition", "Sampling", "sliding_windows"),
    "samples": ("Sample", "SegmentDataset", "collate", "make_loader"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
