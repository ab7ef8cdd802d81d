"""Raw video to typed clips: decoding, sampling, flow, sound, boxes, transforms, stored features."""

from .inputs import VideoInput, find_videos, is_frame_folder
from .types import BoxTracks, Clip, Frames, Waveform
from .video import VideoError, VideoInfo, VideoReader, open_video

__all__ = [
    "BoxTracks",
    "Clip",
    "Frames",
    "VideoError",
    "VideoInfo",
    "VideoInput",
    "VideoReader",
    "Waveform",
    "find_videos",
    "is_frame_folder",
    "open_video",
]
