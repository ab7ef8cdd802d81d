"""What the tests of jobs share: a recipe on toy features that the command line takes, and what a run left behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from toy_training import SECONDS, label_of, toy_recipe, write_toy

from actionfuse.train.log import read_metrics
from actionfuse.train.recipe import dump_recipe

BIN = Path(sys.executable).parent
# One thread each: the same sums in the same order, whatever the machine does beside.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}


def write_job(root: Path, *, epochs: int, save_steps: int) -> Path:
    """Features, csv annotations and the recipe of a run that is long enough to be disturbed. Returns the recipe."""
    write_toy(root, videos=12)
    for split, numbers in {"train": range(9), "test": range(9, 12)}.items():
        lines = ["path,start_seconds,stop_seconds,id,verb,noun"]
        for video in numbers:
            for second in range(SECONDS):
                verb, noun = label_of(video, second)
                lines.append(f"v{video}.mp4,{second},{second + 1},{split}-{video}-{second},{verb},{noun}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    recipe = toy_recipe(
        root, data__dataset="csv", run__epochs=epochs, run__save_steps=save_steps, run__test_every=epochs
    )
    path = root / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    return path


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every step, in the order of the file."""
    return [(row["step"], row["loss"]) for row in read_metrics(run) if row["kind"] == "step"]


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl, as far as it is written; 0 before the first."""
    found = losses(run) if (run / "metrics.jsonl").is_file() else []
    return found[-1][0] if found else 0


def saved_step(run: Path) -> int:
    """The newest checkpoint; 0 before the first."""
    return max((int(path.name[5:]) for path in run.glob("checkpoints/step-*")), default=0)


def wait_for(what: str, ready: Callable[[], object], within_seconds: float, log: Path | None = None) -> float:
    """Seconds until `ready()` is true. Raises: TimeoutError with the end of the log."""
    began = time.monotonic()
    while not ready():
        if time.monotonic() - began > within_seconds:
            told = f":\n{log.read_text()[-4000:]}" if log is not None and log.is_file() else ""
            raise TimeoutError(f"{what}: not after {within_seconds:g} s{told}")
        time.sleep(0.1)
    return time.monotonic() - began
