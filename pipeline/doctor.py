"""Check what actionfuse finds on this machine: versions, GPU and driver, NCCL, shared memory, decoders, disk.

Each finding is ok, a warning (it works, slower or with less) or an error, with what to do. Exit code 1 where there is
an error, else 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    level: str
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:8}{self.what}{': ' + self.advice if self.advice else ''}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", action="store_true", help="a machine without a usable GPU is an error")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder whose disk is checked (default: here)")
    parser.add_argument("--free-gib", type=float, default=10.0, help="free space to ask for (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    found = []
    for check in (
        versions(),
        gpus(args.gpu),
        shared_memory(Path("/dev/shm")),
        decoders(),
        disk(args.out, args.free_gib),
    ):
        for finding in check:
            print(finding, flush=True)
            found.append(finding)
    return 1 if any(finding.level == "error" for finding in found) else 0


def versions() -> Iterator[Finding]:
    names = ("actionfuse", "torch", "torchvision", "av", "decord", "torchcodec")
    there = [f"{name} {version(name)}" for name in names if name == "actionfuse" or importlib.util.find_spec(name)]
    yield Finding("ok", f"Python {platform.python_version()}, {', '.join(there)}")


def gpus(needed: bool) -> Iterator[Finding]:
    import torch

    bad = "error" if needed else "warning"
    if torch.version.cuda is None:
        yield Finding(bad, "torch is built without CUDA", "install the CUDA build for GPUs")
        return
    if not torch.cuda.is_available():
        if Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists():
            advice = f"the driver may be too old for CUDA {torch.version.cuda}, or lacks its compute part"
            yield Finding("error", "there is an NVIDIA driver, but torch finds no GPU", advice)
        else:
            yield Finding(bad, "no GPU", "everything runs on the CPU; in a container, start it with --gpus all")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        try:
            value = torch.ones(64, 64, device=f"cuda:{number}").sum().item()
        except RuntimeError as error:
            yield Finding("error", f"GPU {number}, {about.name}, does not compute", str(error).splitlines()[0])
            continue
        level = "ok" if value == 4096 else "error"
        yield Finding(
            level, f"GPU {number}: {about.name}, {about.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
        )
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        yield Finding("ok", driver.read_text().splitlines()[0])
    if torch.distributed.is_nccl_available():
        from torch.cuda import nccl

        yield Finding("ok", f"NCCL {'.'.join(map(str, nccl.version()))}")
    else:
        yield Finding(
            "error", "torch has no NCCL", "several GPUs cannot train together: install another build of torch"
        )


def shared_memory(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    advice = "" if free >= GIB else "NCCL needs more: docker run --ipc host, or --shm-size 8g"
    yield Finding("warning" if advice else "ok", f"shared memory: {free / GIB:.2f} GiB free", advice)


def decoders() -> Iterator[Finding]:
    """Each decoder reads a video of its own that PyAV writes now."""
    import av
    import numpy as np

    from .video import open_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for shade in range(10):
                image = np.full((48, 64, 3), shade * 20, np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(stream.encode())
        for name in ("pyav", "decord", "torchcodec"):
            if name != "pyav" and importlib.util.find_spec(name) is None:
                continue
            try:
                with open_video(path, decoder=name) as reader:
                    count = sum(len(frames.data) for (frames,) in reader.all_frames())
                yield Finding("ok" if count == 10 else "error", f"decoder {name}: {count} of 10 frames")
            except Exception as error:  # whatever a library's loading raises is what is asked for here
                level = "error" if name == "pyav" else "warning"
                yield Finding(level, f"decoder {name} does not work", str(error).strip().splitlines()[0])


def disk(folder: Path, wanted_gib: float) -> Iterator[Finding]:
    if not os.access(folder, os.W_OK):
        yield Finding("error", f"{folder.resolve()} cannot be written", "mount a folder that this user may write")
        return
    free = shutil.disk_usage(folder).free / GIB
    advice = "" if free >= wanted_gib else f"less than {wanted_gib:g} GiB: checkpoints and features may not fit"
    yield Finding("warning" if advice else "ok", f"{folder.resolve()}: {free:.1f} GiB free", advice)
