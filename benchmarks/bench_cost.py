"""What a thousand hours of video cost: CPU-seconds of extraction on this machine, and the sums from there.

    python benchmarks/bench_cost.py

Measured, per hour of video: the CPU of whole `actionfuse extract` calls with a light model, and of it decoding and the
model. Not measured: a GPU. Its hours are the model's operations divided by what --gpu-tflops sustains. Prices are
arguments.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from _clips import encode, sources
from _common import save, table
from bench_extract import extract

LIGHT = ["--backbone", "tsn:tf_efficientnet_lite0", "--weights", "bundled", "--clip-frames", "1", "--fps", "4"]
SIZES = ((340, 256), (640, 360), (1280, 720))
HEAVY_GMAC, HEAVY_CLIP_SECONDS = 87.8, 32 / 15  # swin3d_t: 32 frames at 15 a second, as `actionfuse models` says


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each of four videos (default: %(default)g)")
    parser.add_argument("--core-dollars", type=float, default=0.04, help="a core and hour (default: %(default)g)")
    parser.add_argument("--gpu-dollars", type=float, default=2.5, help="a GPU and hour (default: %(default)g)")
    parser.add_argument("--gpu-tflops", type=float, default=100.0, help="sustained by the model (default: %(default)g)")
    args = parser.parse_args()
    rows, sums = [], []
    with tempfile.TemporaryDirectory(prefix="actionfuse-cost-") as name:
        for width, height in SIZES:
            folder = Path(name, f"{width}x{height}")
            first = encode(sources()[0], folder / "0.mp4", width=width, height=height, seconds=10.0)
            loops = str(round(args.seconds / 10) - 1)
            for i in range(1, 5):
                command = [shutil.which("ffmpeg") or _ffmpeg(), "-v", "error", "-stream_loop", loops, "-i", str(first)]
                subprocess.run([*command, "-c", "copy", str(folder / f"{i}.mp4")], check=True)
            first.unlink()
            cost = extract(folder, Path(name, "out"), *LIGHT)
            hours = _number(r"rows from ([\d.]+) s of video", cost.output) / 3600
            decode, model = (_number(rf"\b{stage} ([\d.]+) s", cost.output) for stage in ("decode", "model"))
            per_hour = [seconds / hours for seconds in (cost.cpu_seconds, decode, model)]
            rows.append((f"{width} x {height}", *(f"{seconds:.0f}" for seconds in per_hour), f"{cost.peak_mb:.0f}"))
            cpu_hours = 1000 * per_hour[0] / 3600
            core_hours = 1000 * (per_hour[0] - per_hour[2]) / 3600  # the model is the GPU's
            gpu_hours = 1000 * 3600 / HEAVY_CLIP_SECONDS * 2e9 * HEAVY_GMAC / (args.gpu_tflops * 1e12) / 3600
            sums.append(
                (
                    f"{width} x {height}",
                    f"{cpu_hours:.0f} core hours, {cpu_hours * args.core_dollars:.2f} $",
                    f"{gpu_hours:.2f} GPU hours and {core_hours:.0f} core hours, "
                    f"{gpu_hours * args.gpu_dollars + core_hours * args.core_dollars:.2f} $",
                    f"{core_hours / gpu_hours:.0f}",
                )
            )
    head = ("frames", "CPU s of the call", "of them decoding", "of them the model", "peak MB")
    body = table(head, rows)
    extrapolated = table(
        (
            "1000 hours of",
            "light model (TSN, EfficientNet-Lite0, 4 frames a second) on CPUs, measured",
            f"swin3d_t (32 frames at 15 a second, all of it) on GPUs at {args.gpu_tflops:g} TFLOP/s, extrapolated",
            "cores that one GPU keeps busy",
        ),
        sums,
    )
    price = (
        f"A core costs {args.core_dollars:g} $ an hour, a GPU {args.gpu_dollars:g} $: assumptions, as the TFLOP/s are."
    )
    title = "CPU of extraction per hour of video, and what 1000 hours cost"
    save("cost", title, f"Per hour of video, 30 frames a second, H.264:\n\n{body}\n\n{extrapolated}\n\n{price}")


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the call does not say {pattern!r}:\n{text}")
    return float(found[1])


if __name__ == "__main__":
    main()
