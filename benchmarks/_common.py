"""What the benchmarks share: the machine in words, CPU-seconds of a child process, dated results."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cost:
    """wall_seconds, cpu_seconds (user and system, children included) and peak_mb of one process."""

    wall_seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str


def run_measured(command: list[str], **options) -> Cost:
    """Run a command to its end; what it cost. Raises RuntimeError with its output where it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{' '.join(command)}\n{output}")
    # wait4 counts the process and the children that it waited for.
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output)


def own_cpu_seconds() -> float:
    """CPU-seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """The machine and versions, one line."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "av", "decord", "opencv-python-headless"))
    return f"{cores()} cores of {model}, Python {platform.python_version()}, {packages}"


def save(name: str, title: str, body: str) -> Path:
    """Write benchmarks/results/NAME-DATE.md with the command and the machine."""
    RESULTS.mkdir(exist_ok=True)
    today = datetime.date.today().isoformat()
    path = RESULTS / f"{name}-{today}.md"
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    path.write_text(f"# {title}\n\n{today}, {machine()}\n\nCommand: `{command}`\n\n{body}\n", encoding="utf-8")
    print(body)
    print(f"\nwritten to {path}")
    return path


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    lines: list[Sequence[object]] = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
