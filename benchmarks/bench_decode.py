"""Every decoder on one's own files, in three patterns, against a plain PyAV loop and against decoding alone.

    bench_decode.py [FILES ...]      without files: 1080p with long and short groups of pictures, 456x256, VP9

sequential  every frame of the file once, at its own size and at short side 256; opening included
clip        8 uniform frames; 16 frames, stride 4, at a random place; short side 256, opening included
window      16-frame windows, stride 8, short side 256: per window in one pass, and each window asked for by itself

Programs take turns, in a new order in each round, and figures are ratios within a round: of wall time to the plain
loop's, and of the raw limit (the same packets decoded by PyAV, nothing converted) to the program's, in wall time and in
CPU-seconds of the process, which a busy machine disturbs less. The plain loop decodes with all cores, seeks before it
reads a clip, reads straight on and converts what was asked for.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from _clips import encode, sources
from _common import save, table
from decode_programs import AUTO, CV2, PLAIN, RAW, Program, programs

from actionfuse.pipeline import VideoError, open_video
from actionfuse.pipeline.sampling import windows

LENGTH, STRIDE = 16, 8  # of windows
SHORT_SIDE = 256
WINDOWS_ASKED_FOR = 3


# --- patterns: what to do with an opened program; (units of work, pictures to compare or None)


def sequential(short_side: int | None) -> Callable[..., tuple[int, None]]:
    def run(program: Any) -> tuple[int, None]:
        return sum(1 for _ in program.frames(short_side)), None

    return run


def asked_for(times: np.ndarray, groups: Iterable[np.ndarray]) -> Callable[..., tuple[int, list]]:
    def run(program: Any) -> tuple[int, list]:
        found = [list(program.at(times[numbers], numbers, SHORT_SIDE)) for numbers in groups]
        return len(found), [picture for clip in found for picture in clip]

    return run


def streamed_windows(program: Any) -> tuple[int, None]:
    held: deque = deque(maxlen=LENGTH)
    given = 0
    for number, picture in enumerate(program.frames(SHORT_SIDE)):
        held.append(picture)
        if number >= LENGTH - 1 and (number - LENGTH + 1) % STRIDE == 0:
            if picture is not None:
                np.stack(held)
            given += 1
    return given, None


def patterns(times: np.ndarray, short_side: int, seed: int) -> dict[str, tuple[bool, Callable]]:
    """name -> (opening counts, what to do with an opened program)."""
    found: dict[str, tuple[bool, Callable]] = {"sequential, own size": (True, sequential(None))}
    if short_side > SHORT_SIDE:
        found[f"sequential, short side {SHORT_SIDE}"] = (True, sequential(SHORT_SIDE))
    uniform = ((np.arange(8) + 0.5) * len(times) / 8).astype(int)
    found["clip, 8 uniform frames"] = (True, asked_for(times, [uniform]))
    if len(times) > 16 * 4:
        place = random.Random(seed).randrange(len(times) - 15 * 4)
        found["clip, 16 frames, stride 4"] = (True, asked_for(times, [place + 4 * np.arange(16)]))
    starts = list(windows(len(times), LENGTH, STRIDE))
    if len(starts) > WINDOWS_ASKED_FOR:
        middle = (len(starts) - WINDOWS_ASKED_FOR) // 2  # the mean distance from the start of a group of pictures
        found["window, one pass"] = (False, streamed_windows)
        asked = starts[middle : middle + WINDOWS_ASKED_FOR]
        found["window by window"] = (False, asked_for(times, [np.asarray(w) for w in asked]))
    return found


class Measured:
    """Seconds per unit of work of one program in one pattern, one entry per round."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.units = 0
        self.apart: float | None = None  # mean difference of its pictures from those of the plain loop, grey levels
        self.refusal = ""


def one_run(program: Program, path: Path, opening_counts: bool, work: Callable, into: Measured) -> list | None:
    """Run once, note what it took; the pictures of a clip, None for other patterns and for a file that is refused."""
    try:
        opened = None if opening_counts else program(path)
        wall, cpu = time.perf_counter(), time.process_time()
        opened = opened or program(path)
        into.units, pictures = work(opened)
        into.wall.append((time.perf_counter() - wall) / max(1, into.units))
        into.cpu.append((time.process_time() - cpu) / max(1, into.units))
        opened.close()
        return pictures
    except (ValueError, VideoError, StopIteration, av.FFmpegError) as error:
        into.refusal = str(error).removeprefix(f"{path}: ") or type(error).__name__
        return None


def measure(path: Path, repeats: int) -> dict[str, dict[str, Measured]]:
    """pattern -> program -> Measured."""
    with open_video(path) as reader:
        everyone = programs(reader.decoder)
        times = np.concatenate([frames.pts_seconds for frames in reader.stream(short_side=16)])
        short_side = min(reader.info.width, reader.info.height)
    found: dict[str, dict[str, Measured]] = {}
    order = list(everyone)
    for round_number in range(repeats):
        for pattern, (opening_counts, work) in patterns(times, short_side, round_number).items():
            of_pattern = found.setdefault(pattern, {name: Measured() for name in everyone})
            shown: dict[str, list | None] = {}
            for name in order:
                into = of_pattern[name]
                if not into.refusal:
                    shown[name] = one_run(everyone[name], path, opening_counts, work, into)
            compare(of_pattern, shown)
        order = order[1:] + order[:1]
    return found


def compare(of_pattern: dict[str, Measured], shown: dict[str, list | None]) -> None:
    expected = shown.get(PLAIN)
    for name, pictures in shown.items():
        if name != RAW and expected and pictures and pictures[0].shape == expected[0].shape:
            apart = [cv2.absdiff(a, b).mean() for a, b in zip(pictures, expected, strict=True)]
            of_pattern[name].apart = max(of_pattern[name].apart or 0.0, *map(float, apart))


def spread(values: list[float]) -> str:
    middle = f"**{statistics.median(values):.2f}**"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f}..{max(values):.2f})"


def ratios(over: list[float], under: list[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def report(path: Path, found: dict[str, dict[str, Measured]]) -> str:
    """Everything that was measured on one file."""
    parts = [f"## {about(path)}\n"]
    for pattern, of_pattern in found.items():
        raw, plain = of_pattern[RAW], of_pattern[PLAIN]
        unit = "frame" if pattern.startswith("sequential") else pattern.split(",")[0].split()[0]
        rows = []
        for name, each in of_pattern.items():
            if each.refusal or len(raw.wall) != len(plain.wall) or len(each.wall) != len(raw.wall):
                rows.append([name, f"refused: {each.refusal or 'nothing to compare with'}", "", "", "", ""])
                continue
            ours = name not in (RAW, PLAIN)
            told = "" if each.apart is None or not ours else f"{each.apart:.1f} grey levels apart"
            if each.units != plain.units:
                told = f"{each.units} {unit}s, the plain loop {plain.units}"
            rows.append([
                name, f"{1000 * statistics.median(each.wall):.1f}", spread(ratios(plain.wall, each.wall)),
                spread(ratios(raw.wall, each.wall)), spread(ratios(raw.cpu, each.cpu)), told,
            ])  # fmt: skip
        head = ["", f"ms per {unit}", "times the plain loop", "share of the raw limit", "the same in CPU time", ""]
        parts.append(f"### {pattern}\n\n{table(head, rows)}\n")
        if pattern == "window by window":
            parts.append(gain(found["window, one pass"], of_pattern))
    return "\n".join(parts)


def about(path: Path) -> str:
    with open_video(path) as reader:
        info = reader.info
        kind = f"{info.width}x{info.height} {info.codec} in {info.container}, {info.num_frames} frames"
        return f"{path.name}: {kind}; `auto` picks {reader.decoder}"


def summary(measured: dict[Path, dict[str, dict[str, Measured]]]) -> str:
    """Medians of all files and patterns in one table."""
    rows: list[list[object]] = []
    for path, found in measured.items():
        for pattern, of_pattern in found.items():
            raw, plain, auto, cv = (of_pattern[name] for name in (RAW, PLAIN, AUTO, CV2))
            if not len(raw.wall) == len(plain.wall) == len(auto.wall):
                continue
            against_cv = ratios(cv.wall, auto.wall) if len(cv.wall) == len(auto.wall) else []
            wall = ratios(raw.wall, auto.wall)
            figures = [ratios(plain.wall, auto.wall), against_cv, wall, ratios(raw.cpu, auto.cpu)]
            rows.append([path.name, pattern, *(f"{statistics.median(f):.2f}" if f else "" for f in figures)])
    head = ["`auto`", "", "times the plain loop", "times cv2", "share of the raw limit", "the same in CPU time"]
    return table(head, rows) + "\n"


def gain(one_pass: dict[str, Measured], by_window: dict[str, Measured]) -> str:
    """How much one pass over the file saves."""
    rows: list[list[object]] = [
        [name, spread(ratios(by_window[name].wall, one_pass[name].wall))]
        for name in one_pass
        if name != RAW and one_pass[name].wall and len(by_window[name].wall) == len(one_pass[name].wall)
    ]
    return table(["", "time window by window / time in one pass"], rows) + "\n"


def default_files(folder: Path, seconds: float) -> list[Path]:
    def clip(name: str, width: int, height: int, gop: int, codec: str = "libx264") -> Path:
        stem, ending = name.split(".")
        target = folder / f"{stem}-{seconds:g}s.{ending}"
        return encode(sources()[1], target, width=width, height=height, seconds=seconds, gop=gop, codec=codec)

    return [
        clip("1080p-gop250.mp4", 1920, 1080, 250),
        clip("1080p-gop12.mp4", 1920, 1080, 12),
        clip("456x256-gop250.mp4", 456, 256, 250),
        clip("640x360-vp9.webm", 640, 360, 120, "libvpx-vp9"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="videos to measure on; each is read whole, many times")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; each program runs once in each")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the clips that are made without FILES")
    folder = Path(tempfile.gettempdir()) / "actionfuse-bench" / "decode"
    parser.add_argument("--folder", type=Path, default=folder, help="where those clips are kept")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats is {arguments.repeats}; it must be at least 1")
    files = arguments.files or default_files(arguments.folder, arguments.seconds)
    for path in files:
        try:
            open_video(path).close()
        except VideoError as error:
            parser.error(str(error))
    load, began = os.getloadavg()[0], time.perf_counter()
    measure(files[0], 1)  # libraries are loaded before anything counts
    measured = {path: measure(path, arguments.repeats) for path in files}
    body = "\n".join([summary(measured), *(report(path, found) for path, found in measured.items())])
    rounds = f"{arguments.repeats} round{'s' * (arguments.repeats > 1)}: median (least..most) of ratios within a round."
    also = f" torchcodec {version('torchcodec')}." if find_spec("torchcodec") else ""
    busy = f"Load average {load:.1f} before, {os.getloadavg()[0]:.1f} after; {time.perf_counter() - began:.0f} s."
    print(__doc__)
    save("decode", "Decoders in three patterns", f"{rounds}{also} {busy}\n\n{body}")


if __name__ == "__main__":
    main()
