"""A folder of small ordinary videos, as a newcomer would have one: for what is tried out rather than measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg

# name: (picture, sound or None, seconds, more options); ffmpeg draws and plays them.
SAMPLES = {
    "clock.mp4": ("testsrc2=size=320x240:rate=25", "sine=frequency=440:sample_rate=44100", 4, ["-c:a", "aac"]),
    "zoom.mkv": ("mandelbrot=size=240x180:rate=30", "sine=frequency=880:beep_factor=4", 3, ["-c:a", "aac"]),
    "park/clock.mov": ("testsrc=size=180x320:rate=15", None, 2, []),
}


def write_sample_folder(folder: Path) -> list[Path]:
    """Write the videos of SAMPLES into `folder`: H.264, one of them upright and silent in a sub-folder."""
    written = []
    for name, (picture, sound, seconds, options) in SAMPLES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        inputs = [*("-f", "lavfi", "-i", picture), *(["-f", "lavfi", "-i", sound] if sound else [])]
        coding = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", *options]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", *inputs, "-t", str(seconds), *coding]
        subprocess.run([*command, str(path)], check=True)
        written.append(path)
    return written


def write_damaged_copy(source: Path, target: Path) -> Path:
    """The first half of a file's bytes: an interrupted download, without the index that mp4 keeps at the end."""
    data = source.read_bytes()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data[: len(data) // 2])
    return target
