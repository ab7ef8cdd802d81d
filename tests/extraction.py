"""Helpers of the extraction tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# timm's smallest test network, random but seeded weights, small frames: the machinery is tested, not the network
TINY = ["--backbone", "tsn:test_resnet", "--weights", "random", "--side", "40", "--crop", "32", "--fps", "10"]


def spawn(*words: object, **options) -> subprocess.Popen:
    """`actionfuse extract ...` in a process of its own."""
    command = [sys.executable, "-m", "actionfuse.extract", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """All outputs of a run by name: what must not differ between runs."""
    files = [p for p in folder.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.parts)]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
