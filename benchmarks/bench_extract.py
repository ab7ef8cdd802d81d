"""Whole `actionfuse extract` calls against the plainest correct loop and against what the machine allows at best.

The limit: (b) the model alone on random tensors and (c) decoding alone with FFmpeg have to be paid whatever a program
does. On a CPU both share the cores, so the limit is (CPU-seconds of b + CPU-seconds of c) / cores; on a GPU it is
max(b, c) in wall time. The baseline (a) is a loop with cv2.VideoCapture: one clip at a time, same frames, same model.

    bench_extract.py light       60 mixed clips, a light model
    bench_extract.py heavy       the same with a heavy one
    bench_extract.py plain       every fifth of these clips, light model: against the cv2 loop (a)
    bench_extract.py windows     16-frame windows, stride 8, 1080p: one pass against window by window
    bench_extract.py streams     rgb + flow + audio with three light backbones in one call against each alone
    bench_extract.py memory      peak memory of a 1-minute and a 30-minute 1080p file
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from _clips import FFMPEG, encode, long_file, mixed_folder, sources
from _common import Cost, cores, run_measured, save, table

HERE = Path(__file__).parent
LIGHT = ["--backbone", "tsn:tf_efficientnet_lite0", "--weights", "bundled"]
# 8 frames of 15 a second, one clip every 17 s: a heavy model that an hour of CPU is not needed for
HEAVY = ["--backbone", "swin3d_t", "--weights", "random", "--clip-frames", "8", "--clip-stride", "256"]
WINDOWS_SECONDS = 30.0


def extract(paths: Path | list[Path], out: Path, *options: object) -> Cost:
    """One `actionfuse extract` as a process of its own."""
    given = [paths] if isinstance(paths, Path) else paths
    shutil.rmtree(out, ignore_errors=True)
    return run_measured(
        [sys.executable, "-m", "actionfuse.extract", *map(str, given), "--out", str(out), *map(str, options)]
    )


def model_alone(clips: int, *options: str) -> Cost:
    """(b): this many clips of random pixels through the same model, in the same batches and threads."""
    return run_measured([sys.executable, str(HERE / "model_alone.py"), str(clips), *options])


def decode_alone(files: list[Path]) -> Cost:
    """(c): FFmpeg decodes every frame of every file and throws it away."""
    costs = [
        run_measured(
            [
                FFMPEG,
                "-nostdin",
                "-loglevel",
                "error",
                "-threads",
                "1",
                "-i",
                str(f),
                "-map",
                "0:v:0",
                "-f",
                "null",
                "-",
            ]
        )
        for f in files
    ]
    return Cost(
        sum(c.wall_seconds for c in costs), sum(c.cpu_seconds for c in costs), max(c.peak_mb for c in costs), ""
    )


def plain_loop(files: list[Path], *options: str) -> Cost:
    """(a): cv2.VideoCapture, one clip at a time, all of torch's threads."""
    return run_measured([sys.executable, str(HERE / "plain_loop.py"), *map(str, files), "--", *options])


def rows_of(cost: Cost) -> int:
    found = re.search(r": (\d+) rows from", cost.output)
    assert found, cost.output
    return int(found[1])


def numbers(cost: Cost) -> tuple[float, float]:
    found = re.search(r"cpu ([\d.]+) wall ([\d.]+)", cost.output)
    assert found, cost.output
    return float(found[1]), float(found[2])


def start_up(model: list[str], folder: Path) -> Cost:
    """What a call costs before the first frame: one small clip."""
    one = encode(sources()[1], folder / "one.mp4", width=320, height=240, seconds=0.2)
    return extract(one, folder / "one-out", *model)


@dataclass(frozen=True)
class Run:
    """One round: extract, and the parts that nobody can avoid."""

    extract: Cost
    model_cpu: float
    decode_cpu: float
    start_wall: float

    @property
    def limit(self) -> float:
        return (self.model_cpu + self.decode_cpu) / cores()

    @property
    def ratio(self) -> float:
        return self.extract.wall_seconds / self.limit


def bench_light(folder: Path, repeats: int) -> None:
    bench_folder(folder, repeats, "light", "tsn:tf_efficientnet_lite0", LIGHT)


def bench_heavy(folder: Path, repeats: int) -> None:
    bench_folder(folder, repeats, "heavy", "swin3d_t", HEAVY)


def bench_folder(folder: Path, repeats: int, kind: str, name: str, model: list[str]) -> None:
    videos = mixed_folder(folder / "mixed")
    files = sorted(p for p in videos.rglob("*") if p.is_file() and not p.name.startswith("."))
    runs = []
    for _ in range(repeats):
        ours = extract(videos, folder / "out", *model)
        print(ours.output, flush=True)
        model_cpu, _ = numbers(model_alone(rows_of(ours), *model))
        runs.append(Run(ours, model_cpu, decode_alone(files).cpu_seconds, start_up(model, folder).wall_seconds))
    run = sorted(runs, key=lambda each: each.ratio)[len(runs) // 2]
    wall = run.extract.wall_seconds
    parts = [
        ["(b) model alone, CPU", f"{run.model_cpu:.1f}", ""],
        ["(c) FFmpeg decoding alone, CPU", f"{run.decode_cpu:.1f}", ""],
        [f"limit: (b + c) / {cores()} cores", f"{run.limit:.1f}", "1.00"],
        ["**actionfuse extract, wall**", f"{wall:.1f}", f"**{run.ratio:.2f}**"],
        ["of it until the first frame", f"{run.start_wall:.1f}", f"{run.start_wall / run.limit:.2f}"],
        ["actionfuse extract, CPU", f"{run.extract.cpu_seconds:.1f}", ""],
    ]
    body = [
        f"{name}, {rows_of(run.extract)} clips of {len(files)} files.",
        "",
        table(["", "seconds", "share of the limit"], parts),
        "",
        f"Ratios to the limit of all rounds: {', '.join(f'{each.ratio:.2f}' for each in runs)}; goal: <= 1.10.",
        *(["Frames that no clip shows are not decoded by extract; (c) decodes them all."] if kind == "heavy" else []),
    ]
    save(f"extract-{kind}", f"A folder of {len(files)} mixed clips, {kind} model", "\n".join(body))


def bench_plain(folder: Path, repeats: int) -> None:
    videos = mixed_folder(folder / "mixed")
    some = sorted(p for p in videos.rglob("*") if p.is_file() and not p.name.startswith("."))[::5]
    rows = []
    for _ in range(repeats):
        ours, plain = extract(some, folder / "out-some", *LIGHT), plain_loop(some, *LIGHT)
        ratio = plain.wall_seconds / ours.wall_seconds
        rows.append([f"{ours.wall_seconds:.1f}", f"{plain.wall_seconds:.1f}", f"**{ratio:.2f}**"])
    body = table(["extract, wall s", "cv2 loop, wall s", "times as long"], rows)
    save("extract-plain", f"{len(some)} mixed clips, light model, against a plain cv2 loop", body)


def bench_windows(folder: Path, repeats: int) -> None:
    import numpy as np

    video = encode(
        sources()[1], folder / f"windows-{WINDOWS_SECONDS:g}s.mp4", width=1920, height=1080, seconds=WINDOWS_SECONDS
    )
    rows = []
    options = [*LIGHT, "--clip-frames", 16, "--clip-stride", 8, "--fps", "native"]
    ours = [extract(video, folder / "out", *options) for _ in range(repeats)]
    found = np.load(folder / "out" / "tsn-tf_efficientnet_lite0-rgb" / f"{video.name}.npz")["features"]
    wall = statistics.median(c.wall_seconds for c in ours)
    rows.append(["extract, one pass", f"{wall:.1f}", "1.00", "0"])
    ways = {"plain": "a plain loop with PyAV", "decord": "decord", "pyav": "this project's own reader"}
    for way, told in ways.items():
        other = run_measured(
            [sys.executable, str(HERE / "window_by_window.py"), str(video), way, str(folder / "rows.npy")]
        )
        apart = float(np.abs(np.load(folder / "rows.npy") - found).max())
        rows.append(
            [
                f"window by window, {told}",
                f"{other.wall_seconds:.1f}",
                f"**{other.wall_seconds / wall:.2f}**",
                f"{apart:.1e}",
            ]
        )
    body = table(["", "wall s", "times extract", "largest difference of a feature"], rows)
    save(
        "extract-windows",
        f"16-frame windows, stride 8, {WINDOWS_SECONDS:g} s of 1080p30, light model",
        f"{body}\n\nGoal: >= 3. The plain loop seeks to the key frame before a window and decodes to its end. The "
        "project's reader also leaves out pictures that no other refers to. decord scales by another kernel.",
    )


def bench_streams(folder: Path, repeats: int) -> None:
    videos = mixed_folder(folder / "mixed", 60)
    chosen = sorted(p for p in videos.rglob("*.mp4") if not p.name.startswith("."))[:12]
    names = [(f"tsn:tf_efficientnet_lite0@{stream}", "bundled") for stream in ("rgb", "flow", "audio")]
    common = ["--fps", "4", "--clip-frames", "1"]
    apart = []
    for name, weights in names:
        costs = [
            extract(chosen, folder / "out", "--backbone", name, "--weights", weights, *common) for _ in range(repeats)
        ]
        apart.append(statistics.median(c.cpu_seconds for c in costs))
    together = [
        extract(
            chosen,
            folder / "out",
            *[w for name, weights in names for w in ("--backbone", name, "--weights", weights)],
            *common,
        )
        for _ in range(repeats)
    ]
    all_cpu = statistics.median(c.cpu_seconds for c in together)
    begin = start_up(LIGHT, folder).cpu_seconds
    decode = decode_alone(chosen).cpu_seconds
    # rgb and flow each decode when they run alone; in one call decoding is paid once. Sound decodes no pictures.
    own_parts = sum(cost - begin for cost in apart) - decode + begin
    names_and_costs = [("rgb alone", apart[0]), ("flow alone", apart[1]), ("audio alone", apart[2])]
    names_and_costs += [
        ("FFmpeg decoding", decode),
        ("start-up", begin),
        ("all three, decode and start-up once", own_parts),
    ]
    names_and_costs += [("**one call**", all_cpu)]
    body = table(["", "CPU s"], [[name, f"{cost:.1f}"] for name, cost in names_and_costs])
    body += f"\n\nOne call takes **{all_cpu / own_parts:.2f}** of the sum of its parts."
    save("extract-streams", "rgb, flow and audio in one call", body + "\n\nGoal: <= 1.15.")


def bench_memory(folder: Path, _repeats: int) -> None:
    # As many rows of both, so that the moments at which all threads compute at once come as often: every frame of the
    # short file, one a second of the long one.
    rows, peaks = [], []
    for minutes, fps in ((1, "native"), (30, 1)):
        video = long_file(folder, minutes)
        out = folder / f"out-{minutes}"
        shutil.rmtree(out, ignore_errors=True)
        words = [str(video), "--out", str(out), *LIGHT, "--fps", str(fps), "--clip-frames", "1"]
        cost = run_watching([sys.executable, "-m", "actionfuse.extract", *words])
        peaks.append(cost.peak_mb)
        rows.append([f"{minutes} min, {fps} frames/s", f"{cost.wall_seconds:.0f}", f"{cost.peak_mb:.0f}"])
    body = table(["1080p30 file", "wall s", "peak memory of all processes together, MB (PSS)"], rows)
    save("extract-memory", "Memory and length", body + f"\n\nRatio {peaks[1] / peaks[0]:.3f}; goal: within 10 %.")


def run_watching(command: list[str]) -> Cost:
    """Like run_measured, with the peak of the memory of all processes together (shared pages counted once)."""
    import subprocess

    import psutil

    began, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command)
    while process.poll() is None:
        total = 0
        for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                total += each.memory_full_info().pss
            except psutil.Error:
                continue
        peak = max(peak, total / 2**20)
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(" ".join(command))
    return Cost(time.perf_counter() - began, 0.0, peak, "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("light", "heavy", "plain", "windows", "streams", "memory"))
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "actionfuse-bench", help="for clips and outputs"
    )
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    {
        "light": bench_light,
        "heavy": bench_heavy,
        "plain": bench_plain,
        "windows": bench_windows,
        "streams": bench_streams,
        "memory": bench_memory,
    }[arguments.what](arguments.folder, arguments.repeats)
