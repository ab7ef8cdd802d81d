"""What the user sees while it runs: a bar on a terminal, plain lines in a log, and a closing summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_EVERY_SECONDS = 30.0

# stage names of the stopwatches, in the order in which a clip passes them
STAGES = ("decode", "flow", "transform", "model", "write")
WAITS = ("decoder waiting", "model waiting")


class Report:
    """Counts videos, seconds of video, frames and clips; shows rates and the time left."""

    def __init__(self, total_videos: int, *, label: str = "", quiet: bool = False) -> None:
        self.total, self.label, self.quiet = total_videos, label, quiet
        self.done = self.failed = self.damaged = self.skipped = self.elsewhere = 0
        self.video_seconds, self.frames, self.rows = 0.0, 0, 0
        self.underway: dict[str, tuple[float, float]] = {}  # key -> seconds and share that are decoded
        self._began = self._said = time.monotonic()
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rates]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(f"{label}videos", total=total_videos, rates="")
            self._bar.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def rates(self) -> str:
        seconds = max(self.seconds, 1e-9)
        decoded = self.video_seconds + sum(done for done, _ in self.underway.values())
        frames = f", {self.frames / seconds:.0f} frames/s" if self.frames else ""  # sound has none; counted at the end
        return f"{decoded / seconds:.1f} s of video/s{frames}"

    def step(self) -> None:
        """One more video is dealt with, or one is further than it was."""
        begun = sum(share for _, share in self.underway.values())
        passed = self.done + self.failed + self.skipped + self.elsewhere + begun
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=passed, rates=self.rates())
        elif not self.quiet and (time.monotonic() - self._said > LOG_EVERY_SECONDS):
            self._said = time.monotonic()
            worked = self.done + self.failed + begun
            left = f", about {_clock((self.total - passed) * self.seconds / worked)} left" if worked else ""
            self.say(f"{passed:.{1 if begun else 0}f} of {self.total} videos, {self.rates()}{left}")

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(f"{self.label}{line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def summary(self, stage_seconds: Mapping[str, float]) -> list[str]:
        """The closing lines: what came out, and where the time went."""
        parts = [f"{self.done} extracted"]
        parts += [f"{count} {word}" for count, word in (
            (self.skipped, "already there"),
            (self.elsewhere, "done by another process"),
            (self.damaged, "of them damaged"),
            (self.failed, "failed"),
        ) if count]  # fmt: skip
        lines = [
            f"{', '.join(parts)}: {self.rows} rows from {self.video_seconds:.1f} s of video "
            f"in {self.seconds:.1f} s ({self.rates()})"
        ]
        spent = [
            f"{stage} {stage_seconds[stage]:.1f} s"
            for stage in (*STAGES, *WAITS)
            if stage_seconds.get(stage, 0) >= 0.05
        ]
        if spent:
            lines.append(f"where the time went, added over processes and threads: {', '.join(spent)}")
        return lines


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
