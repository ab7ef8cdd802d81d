"""Where extracted rows go: stores on disk with claims and a list of failures, or memory for notebooks."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actionfuse._files import write_atomically

from ..pipeline.features import Features, FeatureStore
from .claims import Claim, claim
from .events import RowWriter


class StoreSink:
    """One FeatureStore per output under `folder`: `folder/<plan>/<key>.npz`, RoI features in `folder/<plan>-roi/`.

    recipes: of each output, (plan, "features" or "roi").
    """

    def __init__(
        self,
        folder: Path,
        recipes: dict[tuple[str, str], dict[str, Any]],
        *,
        format: str = "npz",
        dtype: str = "float32",
        key_fps: float | None = None,
        overwrite: bool = False,
    ) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._claims: dict[str, Claim] = {}
        self._stores: dict[tuple[str, str], FeatureStore] = {}
        for (plan, output), recipe in recipes.items():
            name = plan if output == "features" else f"{plan}-{output}"
            store = FeatureStore.open(
                folder / name, format=format, recipe=recipe, dtype=dtype, frame_fps=key_fps, overwrite=overwrite
            )
            store.clean()
            self._stores[plan, output] = store

    def missing(self, key: str) -> tuple[str, ...]:
        """Plans of which an output of this video is not there, or is damaged."""
        return tuple(dict.fromkeys(plan for (plan, _), store in self._stores.items() if not store.has(key)))

    def begin(self, key: str) -> tuple[str, ...] | None:
        held = claim(self._folder, key)
        if held is None:
            return None
        missing = self.missing(key)  # asked for under the claim: nobody else can write it now
        if missing:
            self._claims[key] = held
        else:
            held.release()
        return missing

    def writer(self, key: str, plan: str, output: str, row_shape: tuple[int, ...]) -> RowWriter:
        return self._stores[plan, output].writer(key, row_shape=row_shape)

    def end(self, key: str) -> None:
        held = self._claims.pop(key, None)
        if held is not None:
            held.release()


class MemorySink:
    """Keeps finished outputs until they are taken with `pop`."""

    def __init__(self, plans: Sequence[str]) -> None:
        self._plans = tuple(plans)
        self._finished: dict[str, dict[str, Features]] = {}

    def begin(self, key: str) -> tuple[str, ...]:
        return self._plans

    def writer(self, key: str, plan: str, output: str, row_shape: tuple[int, ...]) -> RowWriter:
        name = plan if output == "features" else f"{plan}-{output}"
        return _MemoryWriter(self._finished.setdefault(key, {}), name, row_shape)

    def end(self, key: str) -> None:
        return None

    def pop(self, key: str) -> dict[str, Features]:
        return self._finished.pop(key, {})


class _MemoryWriter:
    def __init__(self, place: dict[str, Features], name: str, row_shape: tuple[int, ...]) -> None:
        self._place, self._name = place, name
        self._rows = np.empty((0, *row_shape), np.float32)

    def write(self, first_row: int, rows: np.ndarray) -> None:
        needed = first_row + len(rows)
        if needed > len(self._rows):
            grown = np.empty((max(needed, 2 * len(self._rows)), *self._rows.shape[1:]), np.float32)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[first_row:needed] = rows

    def commit(self, start_seconds: np.ndarray, stop_seconds: np.ndarray, metadata: dict, extra: dict) -> None:
        rows = self._rows[: len(start_seconds)]
        self._place[self._name] = Features(rows, start_seconds, stop_seconds, metadata, extra)

    def close(self) -> None:
        return None


class FailureList:
    """`failures.jsonl`: one line per broken input: path, key, stage, reason. What works again leaves the list.

    Several processes may write: each change reads, edits and replaces the file under a lock.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "failures.jsonl"

    def read(self) -> dict[str, dict[str, str]]:
        """key -> entry."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        entries = [json.loads(line) for line in lines if line]
        return {entry["key"]: entry for entry in entries}

    def add(self, *, key: str, path: str, stage: str, reason: str) -> None:
        self._edit(
            lambda entries: entries.__setitem__(key, {"path": path, "key": key, "stage": stage, "reason": reason})
        )

    def remove(self, keys: Iterable[str]) -> None:
        gone = set(keys)
        if gone & self.read().keys():
            self._edit(lambda entries: [entries.pop(key, None) for key in gone])

    def _edit(self, change: Any) -> None:
        lock = os.open(self._folder / ".claims-failures", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = self.read()
            change(entries)
            text = "".join(_json_line(entries[key]) for key in sorted(entries))
            write_atomically(self.path, text.encode())
        finally:
            os.close(lock)


def _json_line(entry: dict[str, str]) -> str:
    line = json.dumps(entry, ensure_ascii=False)
    if not line.isascii() and any("\ud800" <= letter <= "\udfff" for letter in line):
        line = json.dumps(entry)  # names of files that are no UTF-8: only escapes bring them back
    return line + "\n"
