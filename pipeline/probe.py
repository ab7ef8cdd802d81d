"""What is in video files: times, frames, sizes, codecs, the decoder that reads them, and which are broken and why.

Inputs are files, folders (searched with their sub-folders), folders and tars of frames, .txt lists and .csv segments.
Files are read in processes that can be killed, so that one that hangs or crashes a decoder costs one row.
Exit codes: 0 all can be read, 1 some are broken or damaged (listed at the end), 2 wrong call.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

from av.error import FFmpegError

from .decoders._container import demux, open_container, video_streams
from .guard import Lost, beat, guarded_map
from .inputs import VideoInput, scan_inputs
from .remote import is_url, remote_file
from .video import VideoError, VideoInfo, VideoReader, open_video

_GOP_PACKETS = 1000  # enough for a median where a container has no index
_SHOWN_DAMAGE = 5
_DEEP_SHORT_SIDE = 64  # --deep wants to know that frames decode, not what they look like


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """What one video is. Fields are None where a broken file does not tell.

    error: why nothing of it can be read; None if something can.
    damage: what of it cannot be read. Without `deep` only what opening it and its first frame show.
    num_frames, duration_seconds, ...: as in `VideoInfo`. decoded_frames: frames that `deep` could decode.
    gop_frames: median distance of key frames in frames, the whole length where there is one key frame only.
    audio: codec, rate and channels of the sound, None without.
    decoder, decoder_reason: the decoder that `auto` takes for this file, and why.
    """

    path: str
    key: str
    error: str | None = None
    damage: list[str] = field(default_factory=list)
    container: str | None = None
    codec: str | None = None
    pixel_format: str | None = None
    width: int | None = None
    height: int | None = None
    rotation_degrees: int | None = None
    start_seconds: float | None = None
    duration_seconds: float | None = None
    num_frames: int | None = None
    average_fps: float | None = None
    variable_frame_rate: bool | None = None
    gop_frames: float | None = None
    audio: str | None = None
    decoder: str | None = None
    decoder_reason: str | None = None
    decoded_frames: int | None = None
    file_bytes: int | None = None

    @property
    def is_broken(self) -> bool:
        """Whether anything of the video cannot be read."""
        return self.error is not None or bool(self.damage)


def probe(path: str | Path, *, deep: bool = False, frame_fps: float = 30.0) -> ProbeRow:
    """What the video at `path` is; a broken one is told by `error` and `damage`, not raised.

    path: a file, a folder of frames or a tar of frames. deep: decode all of it. frame_fps: rate of frames' numbers.
    Runs in this process: `guarded_map(probe, paths)` survives files that hang or crash a decoder.
    """
    where = os.fspath(path) if is_url(path) else os.path.abspath(path)
    return _probe(VideoInput(where, os.path.basename(path)), deep=deep, frame_fps=frame_fps)


def probe_many(
    videos: Iterable[VideoInput],
    *,
    deep: bool = False,
    frame_fps: float = 30.0,
    workers: int = 1,
    silence_seconds: float = 60.0,
) -> Iterator[ProbeRow]:
    """`probe` of each video in guarded processes, in order; one without progress for `silence_seconds` is given up."""
    work = partial(_probe, deep=deep, frame_fps=frame_fps)
    for video, row in guarded_map(work, videos, workers=workers, silence_seconds=silence_seconds):
        yield ProbeRow(path=video.path, key=video.key, error=row.reason) if isinstance(row, Lost) else row


def _probe(video: VideoInput, *, deep: bool, frame_fps: float) -> ProbeRow:
    path, facts, damage = video.path, {}, []
    if os.path.isfile(path):
        facts["file_bytes"] = os.path.getsize(path)
    error = None
    try:
        with open_video(path, frame_fps=frame_fps) as reader:
            beat()
            if is_url(path):
                facts["file_bytes"] = remote_file(path).bytes
            facts |= _facts(reader.info) | _key_frames_and_sound(reader.info)
            if deep:
                facts["decoded_frames"], damage = _decode_all(reader)
            else:
                reader.frames_at([reader.info.start_seconds], outside="clamp")
                damage = reader.damage
            facts |= {"decoder": reader.decoder, "decoder_reason": reader.decoder_reason or None}
    except (VideoError, OSError) as reason:
        error = _without_path(str(reason), path)
    except Exception as fault:  # costs its row and not the run, and says what it is
        error = f"unexpected {type(fault).__name__}: {fault}; this is a fault of the program"
    reasons = [_without_path(reason, path) for reason in dict.fromkeys(damage)]
    return ProbeRow(path=path, key=video.key, error=error, damage=reasons, **facts)


def _decode_all(reader: VideoReader) -> tuple[int, list[str]]:
    """(frames that decode, what did not). VideoError: none does."""
    info, decoded, stopped = reader.info, 0, []
    short_side = min(_DEEP_SHORT_SIDE, info.width, info.height)
    try:
        for (frames,) in reader.all_frames((short_side,), start_seconds=-math.inf):
            decoded += len(frames)
            beat()
    except VideoError as reason:
        if not decoded:
            raise
        stopped = [str(reason)]
    damage = [*reader.damage, *stopped]
    if not decoded:
        raise VideoError("; ".join(damage) or "not a single frame can be decoded")
    if decoded < info.num_frames and not damage:
        damage = [f"{decoded} of {info.num_frames} frames can be decoded"]
    return decoded, damage


def _facts(info: VideoInfo) -> dict[str, object]:
    facts = asdict(info)
    del facts["path"], facts["has_audio"]
    return facts


def _without_path(reason: str, path: str) -> str:
    """The row names the file already."""
    return reason.removeprefix(path).lstrip(": ").strip() or "cannot be read"


def _key_frames_and_sound(info: VideoInfo) -> dict[str, object]:
    """Key frame distance and sound, from the index or the first packets, without decoding."""
    if info.container in ("folder", "tar"):
        return {"gop_frames": 1.0}
    with open_container(info.path) as container:
        pictures, audio = video_streams(container)[0], None
        if container.streams.audio:
            sound = container.streams.audio[0].codec_context
            audio = sound.name if sound else "unknown codec"
            if sound and sound.sample_rate:
                audio += f" {sound.sample_rate} Hz {sound.layout.name}"
        index = pictures.index_entries
        if len(index) > 1 and len(index) == pictures.frames:
            flags = [entry.is_keyframe for entry in index]
        else:
            flags = []
            try:
                for packet in demux(container, pictures):
                    flags += [packet.is_keyframe] if packet.size else []
                    if len(flags) == _GOP_PACKETS:
                        break
            except (FFmpegError, OSError):  # the reader tells of the damage
                pass
    keys = [number for number, is_key in enumerate(flags) if is_key]
    steps = [after - before for before, after in pairwise(keys)] or [len(flags)]
    return {"gop_frames": float(median(steps)), "audio": audio}


# --- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="video files, folders, .txt lists, .csv segments")
    parser.add_argument("--deep", action="store_true", help="decode every frame and report what cannot be decoded")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, in place of the table")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="files read at a time"
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="a file that gives no frame for so long is given up",
    )
    parser.add_argument(
        "--frame-fps", type=float, default=30.0, metavar="FPS", help="frames a second of folders and tars of frames"
    )
    parser.add_argument(
        "--root", metavar="DIR", help="folder that names are relative to (default: common to all inputs)"
    )


def main(args: argparse.Namespace) -> int:
    if not args.frame_fps > 0:
        raise ValueError(f"--frame-fps is {args.frame_fps}; it must be positive")
    scan = scan_inputs(args.paths, args.root)
    # Segments of one video are one file.
    videos = list({video.path: replace(video, key=_without_segment(video)) for video in scan.videos}.values())
    skipped = _skipped(scan.skipped)
    if not videos:
        raise ValueError(f"no video is in {', '.join(args.paths)}{f' ({skipped})' if skipped else ''}")
    rows = probe_many(
        videos,
        deep=args.deep,
        frame_fps=args.frame_fps,
        workers=min(args.workers, len(videos)),
        silence_seconds=args.time_limit,
    )
    if args.json:
        broken = 0
        for row in rows:
            print(json.dumps(asdict(row), allow_nan=False), flush=True)
            broken += row.is_broken
        return 1 if broken else 0
    rows = list(_with_progress(rows, len(videos)))
    _print_table(rows, skipped)
    return 1 if any(row.is_broken for row in rows) else 0


def _without_segment(video: VideoInput) -> str:
    return video.key if video.id is None else video.key.removesuffix(f"#{video.id}")


def _skipped(skipped: Counter[str]) -> str:
    if not skipped:
        return ""
    kinds = ", ".join(f"{count} {extension or 'without extension'}" for extension, count in skipped.most_common(5))
    return f"{skipped.total()} files are no videos and were skipped: {kinds}{', ...' if len(skipped) > 5 else ''}"


def _with_progress(rows: Iterable[ProbeRow], total: int) -> Iterator[ProbeRow]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("probe"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(rows, total=total)


_COLUMNS = "file seconds frames fps size turned start GOP codec pixels sound decoder".split()
_LEFT = ("file", "codec", "pixels", "sound", "decoder")
_LEAST_NEEDED = ("pixels", "sound", "start", "turned", "GOP", "decoder", "codec")


def _print_table(rows: Sequence[ProbeRow], skipped: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:  # a file or a pipe has no width: cut nothing short
        console = Console(highlight=False, markup=False, emoji=False, width=10_000)
    readable = [row for row in rows if row.error is None]
    if readable:
        cells = [_cells(row) for row in readable]
        columns, left_out = _fitting(cells, console.width)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            justify = "left" if name in _LEFT else "right"
            table.add_column(name, justify=justify, overflow="fold", no_wrap=name != "file")
        for row in cells:
            table.add_row(*(row[name] for name in columns))
        console.print(table)
        if left_out:
            console.print(f"left out for lack of width: {', '.join(left_out)} (--json has all)")
    if reasons := dict.fromkeys((row.decoder, row.decoder_reason) for row in readable if row.decoder_reason):
        console.print()
        for decoder, reason in reasons:
            console.print(f"{decoder}: {reason}")
    broken = [row for row in rows if row.is_broken]
    plural = "s" if len(rows) != 1 else ""
    lasts = _hours(sum(row.duration_seconds or 0 for row in rows))
    console.print(f"\n{len(rows)} video{plural}, {lasts}, {len(broken)} broken")
    if skipped:
        console.print(skipped)
    if broken:
        console.print()
    for row in broken:
        console.print(f"{_printable(row.key)}: {_printable(row.error or 'damaged')}", style="red")
        for reason in row.damage[:_SHOWN_DAMAGE]:
            console.print(f"    {_printable(reason)}")
        if len(row.damage) > _SHOWN_DAMAGE:
            console.print(f"    and {len(row.damage) - _SHOWN_DAMAGE} more (--json lists all)")


def _fitting(cells: Sequence[dict[str, str]], width: int) -> tuple[list[str], list[str]]:
    """(columns that say something and fit beside file names, columns that do not fit)."""
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) + 2 for name in _COLUMNS}
    widths["file"] = min(widths["file"], max(24, width // 4))  # longer names go on in a next line
    columns = [name for name in _COLUMNS if any(row[name] for row in cells)]
    left_out = []
    for name in _LEAST_NEEDED:
        if sum(widths[column] for column in columns) > width and name in columns:
            columns.remove(name)
            left_out.append(name)
    return columns, left_out


def _cells(row: ProbeRow) -> dict[str, str]:
    frames = f"{row.num_frames}"
    if row.decoded_frames not in (None, row.num_frames):
        frames = f"{row.decoded_frames} of {frames}"
    fps = f"{row.average_fps or 0:.3f}".rstrip("0").rstrip(".")
    return {
        "file": _printable(row.key),
        "seconds": f"{row.duration_seconds:.3f}",
        "frames": frames,
        "fps": f"{fps} VFR" if row.variable_frame_rate else fps,
        "size": f"{row.width}x{row.height}",
        "turned": f"{row.rotation_degrees}" if row.rotation_degrees else "",
        "start": f"{row.start_seconds:.3f}" if row.start_seconds else "",
        "GOP": "" if row.gop_frames is None else f"{row.gop_frames:g}",
        "codec": row.codec or "",
        "pixels": row.pixel_format or "",
        "sound": row.audio or "",
        "decoder": row.decoder or "",
    }


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.1f} seconds"


def _printable(text: str) -> str:
    # File names are bytes: what is no UTF-8, or would move the cursor, is written as its code.
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
