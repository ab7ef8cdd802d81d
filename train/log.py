"""What a run tells: metrics.jsonl, which is the same however often the run was interrupted, and progress for people."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from actionfuse.heartbeat import beat

METRICS = "metrics.jsonl"


class RunLog:
    """One process writes and speaks, the others are silent. A terminal gets one line that changes, a log a line now and
    then.
    """

    def __init__(self, folder: Path, *, main: bool, quiet: bool = False, every_seconds: float = 20.0) -> None:
        self.path, self.main, self.quiet, self.every_seconds = folder / METRICS, main, quiet, every_seconds
        self._file: Any = None
        self._line = False
        self._told = self._began = time.monotonic()
        self._done = self._total = self._first = 0
        self._segments = 0
        self._waited = self._spent = 0.0

    def open(self, kept_bytes: int) -> None:
        """Go on after the first `kept_bytes` of the file: what a killed run wrote behind its checkpoint comes again.
        Where the file is shorter (somebody removed it), go on at its end.
        """
        if not self.main:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")
        if os.fstat(self._file.fileno()).st_size > kept_bytes:
            self._file.truncate(kept_bytes)

    def write(self, row: Mapping[str, Any]) -> None:
        """One line. Nothing that depends on the clock belongs in it."""
        if self._file is not None:
            self._file.write((json.dumps({k: _number(v) for k, v in row.items()}) + "\n").encode())

    def flush(self) -> int:
        """Everything is on disk; returns how long the file is."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def start(self, total_steps: int, done_steps: int) -> None:
        self._total, self._first, self._done = total_steps, done_steps, done_steps
        self._began = self._told = time.monotonic()

    def step(self, row: Mapping[str, Any], *, segments: int, waited: float, total: float) -> None:
        """A step's line, and now and then how fast it goes. waited of total seconds: for data."""
        self.write(row)
        beat()  # every process: each node's health is looked at
        self._done += 1
        self._segments += segments
        self._waited, self._spent = self._waited + waited, self._spent + total
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if not self.main or self.quiet or now - self._told < (0.2 if terminal else self.every_seconds):
            return
        self._told = now
        left = (now - self._began) / max(1, self._done - self._first) * (self._total - self._done)
        words = [
            f"epoch {row['epoch']}, step {self._done} of {self._total}: loss {row['loss']:.4f}, lr {row['lr']:.3g}",
            f"{self._segments / max(self._spent, 1e-9):.1f} clips/s",
            f"waiting for data {100 * self._waited / max(self._spent, 1e-9):.0f} %",
            f"about {int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d} left",
        ]
        if torch.cuda.is_available():
            words.append(f"GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        line = ", ".join(words)
        print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
        self._line = terminal
        self._segments, self._waited, self._spent = 0, 0.0, 0.0

    def say(self, text: str) -> None:
        if self.main and not self.quiet:
            print(("\n" if self._line else "") + text, file=sys.stderr, flush=True)
            self._line = False

    def close(self) -> None:
        if self._line:
            print(file=sys.stderr)
            self._line = False
        if self._file is not None:
            self._file.flush()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line that was cut off is left out."""
    rows = []
    for line in (run / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _number(value: Any) -> Any:
    """NaN and infinity are no JSON."""
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value
