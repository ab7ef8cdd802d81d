"""Writes docker/requirements-gpu.lock and docker/requirements-cpu.lock: what the images install, by version and hash.

  make locks                                         newest versions that setup.cfg allows
  python docker/lock.py --cpu-torch torch==2.15.0+cpu torchvision==0.29.2+cpu --cpu-index URL
                                                     torch of the CPU lock without CUDA, and where pip finds it

Run by pip on the image's own kind of machine (Linux, x86-64, Python 3.11). The locks differ in torch, torchvision and
the libraries that only their CUDA builds need.
"""

from __future__ import annotations

import argparse
import configparser
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAIR = ["torch", "torchvision"]
EXTRAS = ("hdf5", "lmdb")
CUDA_ONLY = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)$")


def resolve(wanted: list[str], *options: str) -> dict[str, tuple[str, str]]:
    """Version and sha256 of everything that pip would install, by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", report, *options, *wanted], check=True)
        rows = json.loads(report.read_text())["install"]
    found = {}
    for row in rows:
        about = row["metadata"]
        name = re.sub(r"[-_.]+", "-", about["name"]).lower()
        found[name] = about["version"], row["download_info"]["archive_info"]["hashes"]["sha256"]
    return found


def requirements() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(HERE.parent / "setup.cfg")
    texts = [setup["options"]["install_requires"], *(setup["options.extras_require"][name] for name in EXTRAS)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    # the package itself is built inside the image, without fetching anything more
    return [line for line in lines if line and not line.startswith("#")] + ["setuptools>=77.0.3", "wheel"]


def write(kind: str, pins: dict[str, tuple[str, str]]) -> None:
    head = "# Linux, x86-64, Python 3.11. Written by `make locks` (docker/lock.py); not by hand.\n"
    rows = (f"{name}=={version} \\\n    --hash=sha256:{digest}\n" for name, (version, digest) in sorted(pins.items()))
    (HERE / f"requirements-{kind}.lock").write_text(head + "".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="torch", help="requirement of torch in the GPU lock")
    parser.add_argument(
        "--cpu-torch",
        nargs="+",
        default=["torch"],
        metavar="REQUIREMENT",
        help="torch and torchvision without CUDA for the CPU lock; builds of different kinds do not load together",
    )
    parser.add_argument("--cpu-index", metavar="URL", help="index that has them")
    args = parser.parse_args()
    if args.cpu_torch != ["torch"] and sorted(re.split("[=<>~ ]", each)[0] for each in args.cpu_torch) != PAIR:
        parser.error("--cpu-torch needs both: torch==... torchvision==...")
    here = platform.system(), platform.machine(), sys.version_info[:2]
    if here != ("Linux", "x86_64", (3, 11)):
        parser.error(f"this is {here}; the images are Linux on x86_64 with Python 3.11: run it there")
    gpu = resolve([args.torch, *requirements()])
    write("gpu", gpu)
    index = ["--extra-index-url", args.cpu_index] if args.cpu_index else []
    if args.cpu_torch == ["torch"]:  # the CUDA build cannot be loaded without its libraries, but without a compiler
        write("cpu", {name: pin for name, pin in gpu.items() if name != "triton"})
    else:
        torch = resolve(args.cpu_torch, "--no-deps", *index)
        write("cpu", {name: pin for name, pin in gpu.items() if not CUDA_ONLY.match(name)} | torch)


if __name__ == "__main__":
    main()
