"""Readers of video files and folders of frames; `open_with` picks one per file."""

from __future__ import annotations

import os
from difflib import get_close_matches

from ..video import DECODERS, VideoReader
from .frame_files import is_frame_pattern


def open_with(path: str, decoder: str = "auto", *, threads: int = 0, frame_fps: float = 30.0) -> VideoReader:
    """The reader for `path`; see `open_video` for arguments and errors."""
    if decoder not in DECODERS:
        near = get_close_matches(decoder, DECODERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(DECODERS)}"
        raise ValueError(f"no decoder is named {decoder!r}; {hint}")
    if threads < 0:
        raise ValueError(f"threads is {threads}; it must be positive, or 0 for one per core")
    frames = (
        os.path.isdir(path) or path.lower().endswith(".tar") or (is_frame_pattern(path) and not os.path.exists(path))
    )
    if decoder == "frame_folder" or (decoder == "auto" and frames):
        from .frame_folder import FrameFolderReader

        return FrameFolderReader(path, frame_fps=frame_fps)
    if decoder == "decord":
        from .decord import DecordReader

        return DecordReader(path, threads=threads)
    if decoder == "torchcodec":
        from .torchcodec import TorchCodecReader

        return TorchCodecReader(path, threads=threads)
    from .pyav import PyAVReader

    return PyAVReader(path, threads=threads)
