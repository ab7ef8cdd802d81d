"""A trained run as it is used: its best model with the recipe that made it, on this process's device."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from .model import ActionModel, find_model, load_model
from .recipe import Recipe, load_recipe
from .world import join_world

RECIPE = "recipe.yaml"
# What may be said anew of a run that is trained: where data lies, what is observed of it, how it is computed.
_CHANGEABLE = re.compile(
    r"(data|task|sampling)\..+|run\.(workers|micro_batch|precision)|streams\.[^.]+\.(features|key|clip)(\..+)?"
)


@dataclass(frozen=True)
class TrainedRun:
    """path: as it was given. folder: where the weights lie. model: in eval mode, on `device`."""

    path: Path
    folder: Path
    recipe: Recipe
    model: ActionModel
    device: torch.device


def open_run(path: str | Path, overrides: Iterable[str] = ()) -> TrainedRun:
    """The best model of a run (or one of its checkpoints) and its recipe.

    path: folder of a run, its best/ or a checkpoint in it. overrides: `key.path=value` of recipe fields that leave the
    trained weights as they are.
    Raises: ValueError where there is no model or no recipe, and for other overrides.
    """
    path, overrides = Path(path), list(overrides)
    for override in overrides:
        key = override.partition("=")[0]
        if not _CHANGEABLE.fullmatch(key):
            raise ValueError(
                f"{key} cannot be changed of a run that is trained; data.*, task.*, sampling.*, run.workers, "
                "run.micro_batch, run.precision and streams.NAME.features, .key and .clip.* can"
            )
    folder = find_model(path)
    recipe = load_recipe(recipe_file(folder), overrides)
    device = join_world().device or torch.device("cpu")
    return TrainedRun(path, folder, recipe, load_model(folder).to(device), device)


def recipe_file(model_folder: Path) -> Path:
    """recipe.yaml of the run that a folder of weights belongs to."""
    # best/ is a link into the run, so the path as given is looked at, not what it resolves to
    places = [model_folder, *list(model_folder.absolute().parents)[:2]]
    for folder in places:
        if (folder / RECIPE).is_file():
            return folder / RECIPE
    raise ValueError(f"{model_folder} belongs to no run: there is no {RECIPE} in it or in the two folders above it")


def split_words(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Words of a command line as (paths, `key=value` overrides); a file that is there is a path whatever its name."""
    paths: list[str] = []
    overrides: list[str] = []
    for word in words:
        (overrides if "=" in word and not Path(word).exists() else paths).append(word)
    return paths, overrides


class Ticker:
    """How far a test is: a line that changes on a terminal, a line now and then in a log."""

    def __init__(self, what: str, total: int, *, quiet: bool, every_seconds: float = 20.0) -> None:
        self.what, self.total, self.quiet = what, total, quiet
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every_seconds
        self._began = self._told = time.monotonic()
        self._done = 0
        self._line = False

    def __call__(self, segments: int) -> None:
        self._done += segments
        now = time.monotonic()
        if self.quiet or now - self._told < self._every:
            return
        self._told = now
        rate = self._done / max(now - self._began, 1e-9)
        left = (self.total - self._done) / max(rate, 1e-9)
        line = (
            f"{self.what}: {self._done} of {self.total} segments, {rate:.1f}/s, "
            f"about {int(left // 60)}:{int(left % 60):02d} left"
        )
        end = "" if self._terminal else "\n"
        print(f"\r\x1b[K{line}" if self._terminal else line, end=end, file=sys.stderr, flush=True)
        self._line = self._terminal

    def close(self) -> None:
        if self._line:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._line = False
