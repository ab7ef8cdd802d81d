"""What a thousand hours of video cost: CPU-seconds of extraction on this machine, and the sums from there.

    python benchmarks/bench_cost.py

Measured, per hour of video: the CPU of `actionfuse extract` with a light model at 4 frames a second, and at the 15 of a
heavy one with a model so small that what it computes itself can be taken off. What a call costs before its first frame
is taken off too: a thousand hours pay it once. Not measured: a GPU. Its hours are the model's operations divided by
what --gpu-tflops sustains. Prices are arguments.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _clips import encode, ffmpeg, sources
from _common import save, table
from bench_extract import decode_alone, extract, model_alone, numbers, rows_of, start_up

LIGHT = ["--backbone", "tsn:tf_efficientnet_lite0", "--weights", "bundled", "--clip-frames", "1", "--fps", "4"]
# swin3d_t's frames a second and size of frames; without it
FRAMES = ["--backbone", "tsn:mobilenetv3_small_050", "--weights", "random", "--clip-frames", "1", "--fps", "15"]
SIZES = ((340, 256), (640, 360), (1280, 720))
HEAVY_GMAC, HEAVY_CLIP_SECONDS = 87.8, 32 / 15  # swin3d_t: 32 frames at 15 a second, as `actionfuse models` says


@dataclass(frozen=True)
class Measured:
    """CPU-seconds for an hour of video: the whole call, the model's share of it. peak_mb: of a process."""

    call: float
    model: float
    peak_mb: float

    @property
    def rest(self) -> float:
        return self.call - self.model


def measure(videos: Path, scratch: Path, model: Sequence[str], hours: float, begin: float) -> Measured:
    """begin: CPU-seconds of a call before its first frame."""
    cost = extract(videos, scratch / "out", *model)
    own, _ = numbers(model_alone(rows_of(cost), *model))
    return Measured((cost.cpu_seconds - begin) / hours, own / hours, cost.peak_mb)


def make_videos(folder: Path, width: int, height: int, seconds: float) -> Path:
    """Four files; ten encoded seconds over and over."""
    first = encode(sources()[0], folder / "0.mp4", width=width, height=height, seconds=10.0)
    for i in range(1, 5):
        ffmpeg("-stream_loop", round(seconds / 10) - 1, "-i", first, "-c", "copy", folder / f"{i}.mp4")
    first.unlink()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each of four videos (default: %(default)g)")
    parser.add_argument("--core-dollars", type=float, default=0.04, help="a core and hour (default: %(default)g)")
    parser.add_argument("--gpu-dollars", type=float, default=2.5, help="a GPU and hour (default: %(default)g)")
    parser.add_argument("--gpu-tflops", type=float, default=100.0, help="sustained by the model (default: %(default)g)")
    args = parser.parse_args()
    rows, sums = [], []
    hours = 4 * args.seconds / 3600
    gpu_hours = 1000 * 3600 / HEAVY_CLIP_SECONDS * 2e9 * HEAVY_GMAC / (args.gpu_tflops * 1e12) / 3600
    with tempfile.TemporaryDirectory(prefix="actionfuse-cost-") as name:
        scratch = Path(name)
        begin = [start_up(model, scratch).cpu_seconds for model in (LIGHT, FRAMES)]
        for width, height in SIZES:
            size = f"{width} x {height}"
            videos = make_videos(scratch / size.replace(" ", ""), width, height, args.seconds)
            decode = decode_alone(sorted(videos.iterdir())).cpu_seconds / hours
            light = measure(videos, scratch, LIGHT, hours, begin[0])
            frames = measure(videos, scratch, FRAMES, hours, begin[1])
            rows.append(
                [size]
                + [f"{number:.0f}" for number in (decode, light.call, light.model, light.rest, frames.rest)]
                + [f"{max(light.peak_mb, frames.peak_mb):.0f}"]
            )
            core_hours = [1000 * number / 3600 for number in (light.call, frames.rest)]
            sums.append(
                [
                    size,
                    f"{core_hours[0]:.0f} core hours, {core_hours[0] * args.core_dollars:.2f} $",
                    f"{gpu_hours:.2f} GPU hours and {core_hours[1]:.0f} core hours, "
                    f"{gpu_hours * args.gpu_dollars + core_hours[1] * args.core_dollars:.2f} $",
                    f"{core_hours[1] / gpu_hours:.0f}",
                ]
            )
    measured = table(
        (
            "frames",
            "FFmpeg decoding alone",
            "light model, 4 a second: the call",
            "of it the model alone",
            "the rest",
            "15 a second: without the model",
            "peak MB",
        ),
        rows,
    )
    extrapolated = table(
        (
            "1000 hours of",
            "light model on CPUs, measured",
            f"swin3d_t (32 frames at 15 a second, all of it) on GPUs at {args.gpu_tflops:g} TFLOP/s, extrapolated",
            "cores that one GPU keeps busy",
        ),
        sums,
    )
    body = (
        f"CPU-seconds for an hour of video. Measured were {4 * args.seconds:g} s of each size, H.264 at 30 frames a "
        f"second. The light model is TSN with EfficientNet-Lite0. Taken off: a call's start, {begin[0]:.0f} s.\n\n"
        f"{measured}\n\n{extrapolated}\n\n"
        f"A core costs {args.core_dollars:g} $ an hour, a GPU {args.gpu_dollars:g} $: assumptions, as the TFLOP/s are."
    )
    save("cost", "CPU of extraction per hour of video, and what 1000 hours cost", body)


if __name__ == "__main__":
    main()
