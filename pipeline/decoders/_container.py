"""What a container says about its video stream, without decoding more than one frame. PyAV (FFmpeg) reads all of them.

Times are exact: they come from the packets' own time stamps. mp4 and mov carry an index that gives the number of frames
in no time; every other container is read through once, packet by packet, without decoding.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from errno import ENOENT
from fractions import Fraction

import av
import numpy as np
from av.stream import Discard

from ..video import VideoError, VideoInfo
from ._cut_off import missing_bytes

# A time stamp rounded to the container's ticks may lie up to half a tick after the time that it stands for.
MAX_SLACK_SECONDS = 0.0005
# Slower than any time lapse: the header lies, and a walk over such a video at some rate would hardly end.
MAX_FRAME_SECONDS = 3600.0
ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: cover art, which is no video
PROGRESSIVE = (0, 1)  # AV_FIELD_UNKNOWN, AV_FIELD_PROGRESSIVE


def reason(error: BaseException) -> str:
    """The words of an FFmpeg error, with what FFmpeg logged last."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    log = getattr(error, "log", None)
    return f"{words} ({log[1]}: {str(log[2]).strip()})" if log and len(log) > 2 and log[2] else words


def open_container(path: str) -> av.container.InputContainer:
    """Open with FFmpeg; VideoError with the reason where that fails."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: {'no such file' if error.errno == ENOENT else error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever, and a device may never end
        raise VideoError(f"{path}: no regular file (a folder, pipe or device)")
    if status.st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes)")
    try:
        # Metadata are shown to people at most; badly encoded ones must not make a video unreadable.
        return av.open(path, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video: {reason(error)}") from error


def video_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    """Video streams without cover art."""
    return [s for s in container.streams.video if not int(s.disposition) & ATTACHED_PICTURE]


def first_video_stream(path: str, container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream that is no cover art; packets of all other streams are left unread."""
    streams = video_streams(container)
    if not streams:
        what = "only sound" if container.streams.audio else "no stream that can be read"
        raise VideoError(f"{path}: holds no video, {what}")
    for other in container.streams:
        if other.index != streams[0].index:
            other.discard = Discard.all
    if streams[0].codec_context is None:
        raise VideoError(f"{path}: this FFmpeg has no decoder for its video")
    return streams[0]


def demux(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The stream's packets from where the container stands; those of streams that appear on the way are passed over."""
    while True:
        try:
            yield from container.demux(stream)
            return
        except IndexError:  # how PyAV takes such a packet: it is read, and the next call goes on behind it
            continue


def to_seconds(ticks: int, time_base: Fraction) -> float:
    """Exact to the last bit: one rounding, in the division."""
    return ticks * time_base.numerator / time_base.denominator


def ticks_to_seconds(ticks: np.ndarray, time_base: Fraction) -> np.ndarray:
    """`to_seconds` of int64 (N,): the same float64 numbers."""
    return (ticks * time_base.numerator).astype(np.float64) / time_base.denominator


@dataclass(frozen=True)
class Packets:
    """One row per packet of the video stream, in file order. Ticks of the stream's time base."""

    pts: np.ndarray  # int64; where there is none, the dts, else a count at the guessed rate
    dts: np.ndarray
    duration: np.ndarray
    key: np.ndarray  # bool
    hidden: np.ndarray  # bool: by an edit list
    shown: np.ndarray  # bool: neither hidden nor before the first key frame
    timed: bool  # every packet had a time stamp of its own
    ascending: bool  # no jump back in decoding time: seeking by time is unambiguous
    note: str = ""  # why reading stopped before the end of the file, if it did


def read_packets(container: av.container.InputContainer, stream: av.VideoStream, limit: int = 0) -> Packets:
    """Read packets (all, or the first `limit` that are shown) from where the container stands; nothing is decoded."""
    rows, note, seen, step = [], "", 0, _guessed_step(stream)
    try:
        for packet in demux(container, stream):
            if not packet.size or (packet.is_corrupt and container.format.name.startswith("mov")):
                continue  # the one at the cut of a file that is cut off
            rows.append((packet.pts, packet.dts, packet.duration, packet.is_keyframe, packet.is_discard))
            seen += not packet.is_discard
            if limit and seen >= limit:
                break
    except (av.FFmpegError, OSError) as error:
        note = f"the file breaks after {len(rows)} packets: {reason(error)}"
    n = len(rows)
    pts, dts = np.zeros(n, np.int64), np.zeros(n, np.int64)
    timed = True
    for k, (p, d, _, _, _) in enumerate(rows):
        timed &= p is not None
        pts[k] = p if p is not None else d if d is not None else round(k * step)
        dts[k] = d if d is not None else pts[k]
    duration = np.array([row[2] or 0 for row in rows], np.int64)
    key = np.array([row[3] for row in rows], bool)
    hidden = np.array([row[4] for row in rows], bool)
    shown = ~hidden & (np.cumsum(key) > 0) if key.any() else ~hidden
    known = np.array([row[1] is not None for row in rows], bool)
    ascending = bool((np.diff(dts[known]) >= 0).all())
    return Packets(pts, dts, duration, key, hidden, shown, timed, ascending, note)


def _guessed_step(stream: av.VideoStream) -> float:
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return float(1 / (rate * stream.time_base))


def _joined_length(packets: Packets, step: int) -> int:
    """Ticks that pieces put together end to end take: each goes on where the one before ended."""
    breaks = np.flatnonzero(np.diff(packets.dts) < 0) + 1
    pieces = zip(np.split(packets.pts, breaks), np.split(packets.duration, breaks), strict=True)
    return sum(int(pts.max() - pts.min()) + (int(duration[pts.argmax()]) or step) for pts, duration in pieces)


def first_frame(path: str) -> av.VideoFrame:
    """The first frame that decodes: size, rotation and pixel format are known for sure only from it."""
    with open_container(path) as container:
        stream = first_video_stream(path, container)
        stream.thread_count = 1
        problem: BaseException | None = None
        try:
            for packet in demux(container, stream):
                try:
                    for frame in packet.decode():
                        return frame
                except av.FFmpegError as error:
                    problem = error
        except (av.FFmpegError, OSError) as error:
            problem = error
    why = f": {reason(problem)}" if problem else ""
    raise VideoError(f"{path}: not a single frame can be decoded{why}")


@dataclass(frozen=True)
class Layout:
    """Where the frames of a file lie.

    key_ticks: int64 (K,), decoding (mp4, mov) or presentation time of each key frame, ascending; empty where seeking by
        time is not exact, so that a reader must go through the file from its start.
    slack_seconds: a frame counts as on screen from this long before its time stamp, see `VideoReader`.
    untimed_step: None, or the ticks between frames of a stream that carries no time stamps at all.
    """

    info: VideoInfo
    time_base: Fraction
    key_ticks: np.ndarray
    keyed_by_dts: bool
    slack_seconds: float
    untimed_step: float | None
    # What decides which decoder may read the file.
    edited: bool
    ascending: bool
    num_video_streams: int
    field_order: int
    codec_tag: str
    damage: tuple[str, ...] = field(default=())


def probe_layout(path: str, container: av.container.InputContainer, stream: av.VideoStream) -> Layout:
    """Layout of an opened file. Moves the container; the caller seeks or opens anew. VideoError: no frame decodes."""
    base = stream.time_base
    damage: list[str] = []
    indexed = container.format.name.startswith("mov") and stream.frames > 0 and len(stream.index_entries) > 0
    if indexed:
        entries = [(e.timestamp, e.is_keyframe, e.is_discard, e.pos + e.size) for e in stream.index_entries]
        ticks = np.array([e[0] for e in entries], np.int64)
        size = os.path.getsize(path)
        there = np.array([e[3] <= size for e in entries], bool)
        if not there.all():
            damage.append(f"the file is cut off: {int((~there).sum())} of {len(there)} frames are missing at its end")
        shown = there & ~np.array([e[2] for e in entries], bool)
        keys = np.array([e[1] for e in entries], bool) & there
        num_frames, edited = int(shown.sum()), bool((there & ~shown).any())
        head = read_packets(container, stream, limit=32)
        tail = head
        if num_frames > 32:
            # Shown last does not mean stored last, but no encoder reorders over more than 16 pictures.
            container.seek(int(ticks[np.flatnonzero(shown)[-32]]), stream=stream, any_frame=True)
            tail = read_packets(container, stream)
        gaps = np.diff(ticks[there])
        key_ticks, by_dts, untimed, ascending = ticks[keys], True, None, True
        ends = (head.pts[~head.hidden], tail.pts[~tail.hidden], tail.duration[~tail.hidden])
    else:
        packets = read_packets(container, stream)
        if packets.note:
            damage.append(packets.note)
        if missing := missing_bytes(path):
            damage.append(f"the file is cut off: {missing} bytes or more are missing at its end")
        pts = np.sort(packets.pts[packets.shown])
        num_frames, edited = int(packets.shown.sum()), bool((~packets.shown).any())
        untimed = None if packets.timed else _guessed_step(stream)
        exact = container.format.name.split(",")[0] in ("mov", "matroska", "mpegts")
        usable = exact and packets.ascending and packets.timed
        key_ticks = np.sort(packets.pts[packets.key]) if usable else np.zeros(0, np.int64)
        gaps, by_dts, ascending = np.diff(pts), False, packets.ascending
        ends = (pts, packets.pts[packets.shown], packets.duration[packets.shown])
    if not num_frames or not len(ends[0]) or not len(ends[1]):
        raise VideoError(f"{path}: holds a video stream without a single frame")
    step = _guessed_step(stream)
    start, last = int(ends[0].min()), int(ends[1].argmax())
    stop = int(ends[1][last]) + (int(ends[2][last]) or round(step))
    if not indexed and packets.timed and not packets.ascending:
        stop = start + _joined_length(packets, round(step))
    frame = first_frame(path)
    turned = round(frame.rotation / 90) * 90 % 360
    width, height = (frame.height, frame.width) if turned % 180 else (frame.width, frame.height)
    tolerance = max(1.5, 0.01 * float(np.median(gaps))) if len(gaps) else 0.0
    variable = bool(len(gaps)) and bool((np.abs(gaps - np.median(gaps)) > tolerance).any())
    duration = to_seconds(stop - start, base)
    if duration > num_frames * MAX_FRAME_SECONDS:
        raise VideoError(f"{path}: its clock is broken: {num_frames} frames are to fill {duration / 3600:.0f} hours")
    fps = num_frames / duration if duration > 0 else 0.0
    if (rate := stream.average_rate) and not variable and abs(duration * float(rate) / num_frames - 1) < 0.02:
        fps = float(rate)  # exact, where the container's rounded times are not
    tick = float(base)
    info = VideoInfo(
        path=path, container=container.format.name.split(",")[0], codec=stream.codec_context.codec.name,
        pixel_format=frame.format.name, width=width, height=height, rotation_degrees=turned, num_frames=num_frames,
        start_seconds=to_seconds(start, base), duration_seconds=duration, average_fps=fps,
        variable_frame_rate=variable, has_audio=len(container.streams.audio) > 0,
    )  # fmt: skip
    return Layout(
        info=info, time_base=base, key_ticks=key_ticks, keyed_by_dts=by_dts,
        slack_seconds=min(tick / 2, MAX_SLACK_SECONDS) + 1e-6, untimed_step=untimed, edited=edited, ascending=ascending,
        num_video_streams=len(video_streams(container)), field_order=stream.codec_context.field_order,
        codec_tag=stream.codec_context.codec_tag, damage=tuple(damage),
    )  # fmt: skip
