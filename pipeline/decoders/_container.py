"""What a container says about its video stream, without decoding more than one frame. PyAV (FFmpeg) reads all of them.

Times are exact: they come from the packets' own time stamps. mp4 and mov carry an index that gives the number of frames
in no time; every other container is read through once, packet by packet, without decoding.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import ENOENT
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..guard import beat
from ..remote import RangeFile, is_url
from ..video import VideoError, VideoInfo
from ._cut_off import file_bytes, missing_bytes

# A time stamp rounded to the container's ticks may lie up to half a tick after the time that it stands for.
MAX_SLACK_SECONDS = 0.0005
# Slower than any time lapse: the header lies, and a walk over such a video at some rate would hardly end.
MAX_FRAME_SECONDS = 3600.0
ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: cover art, which is no video
_KEY_FRAME, _DISCARDED = 1, 2  # AVINDEX_KEYFRAME, AVINDEX_DISCARD_FRAME
PROGRESSIVE = (0, 1)  # AV_FIELD_UNKNOWN, AV_FIELD_PROGRESSIVE

# Metadata are shown to people at most; badly encoded ones must not make a video unreadable. PyAV 19 keeps their bytes
# as surrogates, whatever they are, and has no option for it any more.
LENIENT: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


def reason(error: BaseException) -> str:
    """The words of an FFmpeg error, with what FFmpeg logged last."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    log = getattr(error, "log", None)
    return f"{words} ({log[1]}: {str(log[2]).strip()})" if log and len(log) > 2 and log[2] else words


def open_container(path: str) -> InputContainer:
    """Open with FFmpeg; VideoError with the reason where that fails. Of a URL only what is needed is fetched."""
    if is_url(path):
        return _open_remote(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: {'no such file' if error.errno == ENOENT else error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever, and a device may never end
        raise VideoError(f"{path}: no regular file (a folder, pipe or device)")
    if status.st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes)")
    try:
        return av.open(path, **LENIENT)
    except (FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video: {reason(error)}") from error


def _open_remote(url: str) -> InputContainer:
    try:
        file = RangeFile(url)
        if file.size == 0:
            raise VideoError(f"{url}: the file is empty (0 bytes)")
        return av.open(file, **LENIENT)
    except FileNotFoundError as error:
        raise VideoError(f"{url}: no such file") from error
    except IsADirectoryError as error:
        raise VideoError(f"{url}: no regular file (a folder)") from error
    except (FFmpegError, OSError) as error:
        raise VideoError(f"{url}: not a readable video: {reason(error)}") from error


def video_streams(container: InputContainer) -> list[VideoStream]:
    """Video streams without cover art."""
    return [s for s in container.streams.video if not int(s.disposition) & ATTACHED_PICTURE]


def first_video_stream(path: str, container: InputContainer) -> VideoStream:
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


def demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The stream's packets from where the container stands; those of streams that appear on the way are passed over."""
    while True:
        try:
            for packet in container.demux(stream):
                beat()  # a large file may be read for minutes before there is anything to show for it
                yield packet
            return
        except IndexError:  # how PyAV takes such a packet: it is read, and the next call goes on behind it
            continue


def file_signature(path: str) -> tuple[int, int] | None:
    """What changes when a file does: its bytes and when it was written; None for URLs and what is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


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

    @property
    def open_groups(self) -> bool:
        """Some pictures are stored behind a key frame, shown before it and lean on what comes before it."""
        last_key = np.maximum.accumulate(np.where(self.key, np.arange(len(self.key)), 0))
        return bool((self.pts < self.pts[last_key]).any())


def read_packets(container: InputContainer, stream: VideoStream, limit: int = 0) -> Packets:
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
    except (FFmpegError, OSError) as error:
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


def time_base_of(stream: VideoStream) -> Fraction:
    """Seconds per tick."""
    base = stream.time_base  # from PyAV 19 on a number type of its own
    return Fraction(base.numerator, base.denominator) if base else Fraction(1, 25)


def _guessed_step(stream: VideoStream) -> float:
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return float(1 / (rate * time_base_of(stream)))


def _joined_length(packets: Packets, step: int) -> int:
    """Ticks that pieces put together end to end take: each goes on where the one before ended."""
    breaks = np.flatnonzero(np.diff(packets.dts) < 0) + 1
    pieces = zip(np.split(packets.pts, breaks), np.split(packets.duration, breaks), strict=True)
    return sum(int(pts.max() - pts.min()) + (int(duration[pts.argmax()]) or step) for pts, duration in pieces)


def first_frame(path: str, container: InputContainer, stream: VideoStream) -> VideoFrame:
    """The first frame that decodes: size, rotation and pixel format are known for sure only from it."""
    problem: BaseException | None = None
    try:
        for packet in demux(container, stream):
            try:
                for frame in stream.decode(packet):
                    return frame
            except FFmpegError as error:
                problem = error
    except (FFmpegError, OSError) as error:
        problem = error
    why = f": {reason(problem)}" if problem else ""
    raise VideoError(f"{path}: not a single frame can be decoded{why}")


@dataclass(frozen=True)
class Layout:
    """Where the frames of a file lie.

    indexed: mp4 and mov, whose index lists every frame.
    key_ticks: int64 (K,), when each key frame is decoded (indexed) or shown (else), ascending; empty where seeking by
        time is not exact, so that a reader must go through the file from its start.
    key_lead: ticks from there to when it is shown, as far as the first one tells.
    slack_seconds: see `VideoReader`.
    untimed_step: None, or the ticks between frames of a stream that carries no time stamps at all.
    edited: an edit list hides some of the frames.
    ascending: time never jumps back.
    """

    info: VideoInfo
    time_base: Fraction
    indexed: bool
    key_ticks: np.ndarray
    key_lead: int
    slack_seconds: float
    untimed_step: float | None
    edited: bool
    ascending: bool
    num_video_streams: int
    interlaced: bool
    damage: tuple[str, ...]


@dataclass(frozen=True)
class _Survey:
    """What is known of a stream without decoding. Ticks of the stream's time base."""

    num_frames: int
    start: int  # of the first frame
    stop: int  # end of the last frame
    gaps: np.ndarray  # int64: from each frame to the next
    key_ticks: np.ndarray
    key_lead: int
    edited: bool
    ascending: bool
    untimed_step: float | None
    damage: tuple[str, ...]


def probe_layout(path: str, container: InputContainer, stream: VideoStream) -> Layout:
    """Layout of a file that was just opened. Moves the container. VideoError: not a single frame decodes."""
    base = time_base_of(stream)
    indexed = container.format.name.startswith("mov") and stream.frames > 0 and len(stream.index_entries) > 0
    if indexed:
        survey = _survey_index(path, container, stream)
        container.seek(stream.index_entries[0].timestamp, stream=stream)
        frame = first_frame(path, container, stream)
    else:
        survey = _survey_packets(path, container, stream)
        frame = None
        if len(survey.key_ticks):
            # Without an index a place is found by trial, and may lie behind the key frame.
            with suppress(VideoError, FFmpegError, OSError):
                container.seek(int(survey.key_ticks[0]), stream=stream)
                frame = first_frame(path, container, stream)
        if frame is None or frame.pts != survey.key_ticks[0]:
            with open_container(path) as again:
                frame = first_frame(path, again, first_video_stream(path, again))
    turned = round(frame.rotation / 90) * 90 % 360
    width, height = (frame.height, frame.width) if turned % 180 else (frame.width, frame.height)
    usual = float(np.median(survey.gaps)) if len(survey.gaps) else 0.0
    variable = bool((np.abs(survey.gaps - usual) > max(1.5, 0.01 * usual)).any())
    if survey.stop <= survey.start:
        raise VideoError(f"{path}: its time stamps make no sense: it would last {survey.stop - survey.start} ticks")
    duration = to_seconds(survey.stop - survey.start, base)
    if duration > survey.num_frames * MAX_FRAME_SECONDS:
        hours = duration / 3600
        raise VideoError(f"{path}: its clock is broken: {survey.num_frames} frames are to fill {hours:.0f} hours")
    fps = survey.num_frames / duration
    if (rate := stream.average_rate) and not variable and abs(float(rate) / fps - 1) < 0.02:
        fps = float(rate)  # exact, where the container's rounded times are not
    info = VideoInfo(
        path=path,
        container=container.format.name.split(",")[0],
        codec=stream.codec_context.codec.name,
        pixel_format=frame.format.name,
        width=width,
        height=height,
        rotation_degrees=turned,
        num_frames=survey.num_frames,
        start_seconds=to_seconds(survey.start, base),
        duration_seconds=duration,
        average_fps=fps,
        variable_frame_rate=variable,
        has_audio=len(container.streams.audio) > 0,
    )
    return Layout(
        info=info,
        time_base=base,
        indexed=indexed and len(survey.key_ticks) > 0,
        key_ticks=survey.key_ticks,
        key_lead=survey.key_lead,
        slack_seconds=min(float(base) / 2, MAX_SLACK_SECONDS) + 1e-6,
        untimed_step=survey.untimed_step,
        edited=survey.edited,
        ascending=survey.ascending,
        num_video_streams=len(video_streams(container)),
        # PyAV before 18 does not tell the stream's order of fields.
        interlaced=frame.interlaced_frame or getattr(stream.codec_context, "field_order", 0) not in PROGRESSIVE,
        damage=survey.damage,
    )


def _survey_index(path: str, container: InputContainer, stream: VideoStream) -> _Survey:
    """From the index of mp4 and mov, which gives decoding times, and from the first and last packets."""
    # one flat run of numbers: an hour has 200 000 entries
    numbers = (n for e in stream.index_entries for n in (e.timestamp, e.flags, e.pos, e.size))
    ticks, flags, places, sizes = np.fromiter(numbers, np.int64).reshape(-1, 4).T
    there = places + sizes <= file_bytes(path)
    missing = int((~there).sum())
    damage = (f"the file is cut off: {missing} of {len(there)} frames are missing at its end",) if missing else ()
    shown = there & ((flags & _DISCARDED) == 0)
    if not shown.any():
        raise VideoError(f"{path}: holds a video stream without a single frame{': ' + damage[0] if damage else ''}")
    # Shown first or last does not mean stored first or last, but no encoder reorders over more than 16 pictures.
    head = tail = read_packets(container, stream, limit=32)
    if shown.sum() > 32:
        container.seek(int(ticks[np.flatnonzero(shown)[-32]]), stream=stream, any_frame=True)
        tail = read_packets(container, stream)
    first, last = head.pts[~head.hidden], np.where(tail.hidden, np.iinfo(np.int64).min, tail.pts)
    if not len(first) or tail.hidden.all():
        raise VideoError(f"{path}: the index of its frames leads nowhere")
    keys = there & ((flags & _KEY_FRAME) != 0)
    leads = (head.pts - head.dts)[head.key]
    return _Survey(
        num_frames=int(shown.sum()),
        start=int(first.min()),
        stop=int(last.max()) + (int(tail.duration[last.argmax()]) or round(_guessed_step(stream))),
        gaps=np.diff(ticks[there]),
        key_ticks=ticks[keys],
        key_lead=int(leads[0]) if len(leads) else 0,
        edited=bool((there & ~shown).any()),
        ascending=True,
        untimed_step=None,
        damage=damage,
    )


def _survey_packets(path: str, container: InputContainer, stream: VideoStream) -> _Survey:
    """From all packets of the file."""
    packets = read_packets(container, stream)
    if not packets.shown.any():
        why = f": {packets.note}" if packets.note else ""
        raise VideoError(f"{path}: holds a video stream without a single frame{why}")
    damage = [packets.note] if packets.note else []
    if missing := missing_bytes(path):
        damage.append(f"the file is cut off: {missing} bytes or more are missing at its end")
    step = round(_guessed_step(stream))
    pts, duration = packets.pts[packets.shown], packets.duration[packets.shown]
    start, stop = int(pts.min()), int(pts.max()) + (int(duration[pts.argmax()]) or step)
    if packets.timed and not packets.ascending:
        stop = start + _joined_length(packets, step)
    # Seeking by time lands where it should in these containers only.
    exact = container.format.name.split(",")[0] in ("mov", "matroska", "mpegts")
    usable = exact and packets.ascending and packets.timed
    return _Survey(
        num_frames=len(pts),
        start=start,
        stop=stop,
        gaps=np.diff(np.sort(pts)),
        key_ticks=np.sort(packets.pts[packets.key]) if usable else np.zeros(0, np.int64),
        key_lead=0,
        edited=bool(packets.hidden.any()),
        ascending=packets.ascending,
        untimed_step=None if packets.timed else _guessed_step(stream),
        damage=tuple(damage),
    )
