"""Whether a run's folder holds a run of the same recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checkpoint import latest_checkpoint
from .recipe import Recipe, load_recipe

# What may differ between a run and the one it goes on from: nothing that changes a number. Data may have been copied
# elsewhere, as jobs do that read from a node's own disk.
_FREE = {f"run.{name}" for name in ("workers", "save_minutes", "save_steps", "keep", "trackers", "shard")}
_FREE |= {"name", "data.root"}


def check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Raises ValueError, with what changed, where the folder has checkpoints of another recipe."""
    before, now = asdict(load_recipe(folder / "recipe.yaml")), asdict(recipe)
    changed = [f"{key}: {old!r} is now {new!r}" for key, old, new in _differences(before, now) if _counts(key)]
    if changed and latest_checkpoint(folder) is not None:
        raise ValueError(
            f"{folder} holds a run of another recipe ({'; '.join(changed[:5])}); take another --out, or the "
            "recipe as it was"
        )


def _counts(key: str) -> bool:
    return key not in _FREE and not key.startswith("about.")


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path, before, now
