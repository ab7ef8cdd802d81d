"""Raw video to typed clips: decoding, sampling, flow, sound, boxes, transforms, stored features."""

from .types import BoxTracks, Clip, Frames, Waveform
from .video import VideoError, VideoInfo, VideoReader, open_video

__all__ = ["BoxTracks", "Clip", "Frames", "VideoError", "VideoInfo", "VideoReader", "Waveform", "open_video"]
