"""Whether a file ends before its outermost structure does: a download or a copy that broke off.

FFmpeg reads such a file up to its end and calls it whole. mp4 and mov (boxes), Matroska and WebM (the Segment's size)
and AVI (the RIFF chunk's size) say how long they are; MPEG streams do not.
"""

from __future__ import annotations

import os
import struct

from ..remote import RangeFile, is_url, remote_file

_MATROSKA, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_MAX_BOXES = 1_000_000  # fragments of a day-long recording; a file of nothing but empty boxes ends here


def file_bytes(path: str) -> int:
    """The size of a file, or of what is behind a URL."""
    return remote_file(path).bytes if is_url(path) else os.path.getsize(path)


def missing_bytes(path: str) -> int:
    """How many bytes are missing at the file's end, at least; 0 where nothing is missing or the format does not say."""
    size = file_bytes(path)
    with RangeFile(path) if is_url(path) else open(path, "rb") as file:
        head = file.read(16)
        if head[:4] == _MATROSKA:
            promised = _matroska_size(head + file.read(4096))
        elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            promised = 8 + int.from_bytes(head[4:8], "little")
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"):
            promised = _boxes_size(file, size)
        else:
            return 0
    return max(0, promised - size)


def _variable_int(data: bytes, at: int) -> tuple[int | None, int]:
    """EBML: (value, where it ends); None for an unknown size, which live recordings have."""
    if at >= len(data) or data[at] == 0:
        return None, at + 8
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length


def _matroska_size(head: bytes) -> int:
    header_size, at = _variable_int(head, 4)
    at += header_size or 0
    if header_size is None or head[at : at + 4] != _SEGMENT:
        return 0
    segment_size, at = _variable_int(head, at + 4)
    return 0 if segment_size is None else at + segment_size


def _boxes_size(file, size: int) -> int:
    """Where the last top-level box that begins inside the file ends."""
    at = 0
    for _ in range(_MAX_BOXES):
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            break
        length, kind = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            length = int.from_bytes(header[8:], "big")
        elif length == 0:  # up to the end of the file
            return size
        if length < 8 or not kind.isascii() or not kind.strip().isalnum():
            break  # no box: padding, or something appended that is none of the file
        at += length
        if at >= size:
            break
    return at
