"""Readers of video files and folders of frames; `open_with` picks one per file.

`auto` reads folders, tars and patterns of frames by `frame_folder`, and every video file by `pyav`. decord would come
first wherever it is right and faster, but measured on h264 of 320x240, 456x256 and 1920x1080, whole files, clips and
single frames, it takes 0.95 to 2 times the CPU time of `pyav` here (which decodes no picture that nobody needs, and
converts and scales with less work), and it can hang or crash the process. `decord` and `torchcodec` remain for those
who ask for them by name: they give the same frames at the same times, and decord the same pixels bit for bit, or they
refuse the file and say why.
"""

from __future__ import annotations

import os
from difflib import get_close_matches

from ..remote import is_url
from ..video import DECODERS, VideoReader
from .frame_files import is_frame_pattern


def open_with(path: str, decoder: str = "auto", *, threads: int = 0, frame_fps: float = 30.0) -> VideoReader:
    """The reader for `path`; see `open_video` for arguments and errors. Decoders are imported on first use."""
    if decoder not in DECODERS:
        near = get_close_matches(decoder, DECODERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(DECODERS)}"
        raise ValueError(f"no decoder is named {decoder!r}; {hint}")
    if threads < 0:
        raise ValueError(f"threads is {threads}; it must be positive, or 0 for one per core")
    if is_url(path):
        if decoder not in ("auto", "pyav"):
            raise ValueError(f"decoder {decoder!r} reads files on this machine only; {path} is read by 'pyav' ('auto')")
        from .pyav import PyAVReader

        return PyAVReader(path, threads=threads)
    pattern = is_frame_pattern(path) and not os.path.exists(path)
    frames = pattern or os.path.isdir(path) or path.lower().endswith(".tar")
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
