"""FeatureStore: features of videos in a folder, written per video, read by seconds.

A store is a folder with `store.json` (format, dtype, recipe) and one output per key, a relative posix path such as
`a/b/x.mp4` or `x.mp4#2`. An output is there whole or not at all, whatever is killed at whatever moment, and any number
of processes may write into one store. Formats: store_formats.py (npz, npy, hdf5) and store_lmdb.py (RULSTM's keys).
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from actionfuse._files import put_in_place

from .store_compare import Comparison, compare
from .store_files import ABSENT, TEMPORARY, Stored, canonical_json, check_key, locked, remove_dead
from .store_formats import FileFormat, Hdf5Format, NpyFormat, NpzFormat
from .store_lmdb import LmdbFormat
from .store_writer import FeatureWriter, check_intervals, shape_text

__all__ = ["Comparison", "FeatureStore", "FeatureWriter", "Features", "compare", "rows_at", "rows_between"]

FORMATS = ("npz", "npy", "hdf5", "lmdb")
DTYPES = ("float32", "float16")


@dataclass(frozen=True, repr=False)
class Features:
    """Features of one video, or of a part of it.

    data: float32 or float16 (N, ...), one row per interval: (N, D) pooled, (N, D, T, H, W) maps. Read-only and
        memory-mapped where the format allows; copy before writing to it.
    start_seconds, stop_seconds: float64 (N,), the half-open interval that each row saw.
    metadata: what the writer said, and `key` and `recipe`.
    extra: further arrays with one entry per row, (N, ...).
    """

    data: np.ndarray
    start_seconds: np.ndarray
    stop_seconds: np.ndarray
    metadata: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.dtype not in (np.float32, np.float16) or self.data.ndim < 2:
            raise ValueError(f"Features.data is {shape_text(self.data)}; it must be float32 or float16 (N, ...)")
        for name in ("start_seconds", "stop_seconds"):
            times = getattr(self, name)
            if times.dtype != np.float64 or times.shape != self.data.shape[:1]:
                raise ValueError(f"Features.{name} is {shape_text(times)}; it must be float64 ({len(self.data)},)")
        check_intervals(self.start_seconds, self.stop_seconds)
        for name, array in self.extra.items():
            if array.shape[:1] != self.data.shape[:1]:
                raise ValueError(
                    f"Features.extra[{name!r}] is {shape_text(array)}; it must have {len(self.data)} entries"
                )

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        span = f"{self.start_seconds.min():.3f}..{self.stop_seconds.max():.3f} s" if len(self) else "empty"
        more = "".join(f", {name}={shape_text(array)}" for name, array in self.extra.items())
        return f"Features(data={shape_text(self.data)}, {span}{more})"


_ROUNDING_SECONDS = 1e-6  # a row that ends so little after a time ends with it


def _row_times(seconds: Sequence[float] | np.ndarray) -> np.ndarray:
    times = np.asarray(seconds, np.float64)
    if times.ndim != 1:
        raise ValueError(f"seconds is {shape_text(times)}; it must be (M,)")
    return times


def rows_between(
    row_start_seconds: np.ndarray, row_stop_seconds: np.ndarray, start_seconds: float, stop_seconds: float
) -> np.ndarray:
    """int64 (K,): the rows that overlap [start_seconds, stop_seconds). A row of no duration lies at its start."""
    if not start_seconds <= stop_seconds:
        raise ValueError(f"[{start_seconds}, {stop_seconds}) ends before it starts")
    after = (row_stop_seconds > start_seconds) | (row_start_seconds >= start_seconds)
    return np.flatnonzero(after & (row_start_seconds < stop_seconds))


def rows_at(
    row_start_seconds: np.ndarray, row_stop_seconds: np.ndarray, seconds: np.ndarray, causal: bool = False
) -> np.ndarray:
    """int64 (M,): the row for each time, -1 where there is none.

    causal: the row that ended last, at or before the time: it saw nothing after it.
    not causal: of the rows whose interval covers the time the one whose centre is nearest (the earlier of two); where
        none covers it, the one that ended last.
    """
    seconds = np.asarray(seconds, np.float64)
    if not len(row_start_seconds):
        return np.full(seconds.shape, -1, np.int64)
    order = np.lexsort((row_start_seconds, row_stop_seconds))
    place = np.searchsorted(row_stop_seconds[order], seconds, side="right") - 1
    ended = np.where(place >= 0, order[place], -1)
    if causal:
        return ended
    order = np.lexsort((row_stop_seconds, row_start_seconds))
    starts, stops = row_start_seconds[order], row_stop_seconds[order]
    centres = (starts + stops) / 2
    if np.all(stops[1:] >= stops[:-1]):  # the usual case: rows that cover a time follow one another
        first = np.searchsorted(stops, seconds, side="right")
        last = np.searchsorted(starts, seconds, side="right") - 1
        covered = first <= last
        first, last = np.minimum(first, last).clip(min=0), last.clip(min=0)  # any row where none covers
        right = np.searchsorted(centres, seconds).clip(first, last)
        left = (right - 1).clip(first, last)
        nearest = np.where(seconds - centres[left] <= centres[right] - seconds, left, right)
        return np.where(covered, order[nearest], ended)
    rows = ended.copy()
    for i, time in enumerate(seconds):
        covering = np.flatnonzero((starts <= time) & (time < stops))
        if len(covering):
            rows[i] = order[covering[np.argmin(np.abs(centres[covering] - time))]]
    return rows


class FeatureStore:
    """Make it with `FeatureStore.open`. It holds no open file: it pickles, and forked processes may share it."""

    def __init__(
        self,
        folder: Path,
        *,
        format: str,
        dtype: str,
        frame_fps: float | None,
        recipe: dict[str, Any] | None,
        writable: bool,
    ) -> None:
        self.folder, self.format, self.dtype, self.frame_fps = folder, format, dtype, frame_fps
        self.recipe = recipe  # None: another program's LMDB, which has none
        self.writable = writable
        self._files = _files(folder, format, frame_fps, foreign=recipe is None, writable=writable)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        format: str | None = None,
        recipe: Mapping[str, Any] | None = None,
        dtype: str | None = None,
        frame_fps: float | None = None,
        overwrite: bool = False,
    ) -> FeatureStore:
        """Open the store in `folder`; with a recipe make it where there is none.

        recipe: {"identity": what decides the numbers (compared), "provenance": versions and the like (recorded)}. None
            opens for reading: a store, or a folder with an LMDB that another program wrote with RULSTM's keys.
        format: npz, npy, hdf5 or lmdb; None is npz for a new store, what it is for an old one.
        dtype: float32 or float16 (lmdb: float32 only); None is float32 for a new store, what it is for an old one.
        frame_fps: lmdb only, the frame rate by which times become frame numbers; None is 30 for a new store.
        overwrite: a store of another identity, format, dtype or frame_fps is emptied instead of refused. One that
            agrees keeps its outputs.

        Raises: ValueError that lists what differs.
        """
        folder = Path(folder)
        if format not in (None, *FORMATS):
            raise ValueError(f"format {format!r} is not known; there are {', '.join(FORMATS)}")
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype {dtype!r} cannot be stored; there are {', '.join(DTYPES)} (numpy has no bfloat16)")
        if frame_fps is not None and not frame_fps > 0:
            raise ValueError(f"frame_fps is {frame_fps}; it must be positive")
        asked = {"format": format, "dtype": dtype, "frame_fps": None if frame_fps is None else float(frame_fps)}
        if recipe is None:
            stored = _read_description(folder)
            if stored is None:
                if not (folder / "data.mdb").is_file():
                    raise ValueError(f"{folder} is no feature store: there is no store.json in it")
                stored = {"format": "lmdb", "dtype": "float32", "frame_fps": asked["frame_fps"] or 30.0, "recipe": None}
            if stored["format"] != "lmdb":
                asked["frame_fps"] = None  # means nothing there
            given = {name: value for name, value in asked.items() if value is not None}
            _refuse(folder, _differences(stored, given), "leave them out: the store knows")
            return cls(folder, **stored, writable=False)

        recipe = _checked_recipe(recipe)
        with locked(folder / TEMPORARY / "lock"):
            stored = _read_description(folder)
            new = {**_with_defaults(asked, stored), "recipe": recipe}
            if new["format"] == "lmdb" and new["dtype"] != "float32":
                raise ValueError("an lmdb store holds raw float32, as its loaders expect; give dtype 'float32'")
            if stored is None and (folder / "data.mdb").exists():
                raise ValueError(f"{folder} has an LMDB that another program wrote; give another --out")
            differences = _differences(stored, new) if stored else []
            if not overwrite:
                _refuse(folder, differences, "use --overwrite to remove its outputs, or give another --out")
            store = cls(folder, **new, writable=True)  # says that h5py or lmdb is missing before anything is lost
            if stored is None or differences:
                if stored:
                    _files(folder, stored["format"], stored["frame_fps"], foreign=False, writable=True).remove_all()
                temporary = folder / TEMPORARY / "store.json"
                temporary.write_text(json.dumps({"version": 1, **new}, indent=2, sort_keys=True) + "\n", "utf-8")
                put_in_place(temporary, folder / "store.json")
        return store

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.folder)!r}, format={self.format!r}, dtype={self.dtype!r})"

    def has(self, key: str) -> bool:
        """Whether the output of `key` is there, whole, undamaged and of this store's recipe. Reads it once."""
        return self.check(key) is None

    def check(self, key: str) -> str | None:
        """None where `has(key)`, else the reason."""
        reason = self._files.damage(check_key(key))
        if reason or self.recipe is None:
            return reason
        stored = self._open(key)
        if stored.metadata["key"] != key:
            return f"the file holds the output of {stored.metadata['key']!r}"
        if other := _differences(stored.metadata, {"recipe": self.recipe, "key": key}):
            return "it was made with another recipe: " + "; ".join(other)
        return None if stored.rows.dtype == self.dtype else f"it is {stored.rows.dtype}, not {self.dtype}"

    def keys(self) -> list[str]:
        """Keys of all outputs that are complete by name and seal, sorted. `check` tells whether one is undamaged."""
        return self._files.keys()

    def read(self, key: str) -> Features:
        """All rows. Raises: ValueError where there is no readable output."""
        stored = self._open(key)
        return self._features(stored, slice(None))

    def read_between(self, key: str, start_seconds: float, stop_seconds: float) -> Features:
        """The rows that overlap the half-open interval, in their stored order."""
        stored = self._open(key)
        times = stored.arrays["start_seconds"], stored.arrays["stop_seconds"]
        rows = rows_between(*times, start_seconds, stop_seconds)
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
            return self._features(stored, slice(int(rows[0]), int(rows[-1]) + 1))  # a view, nothing is copied
        return self._features(stored, rows)

    def at(
        self, key: str, seconds: Sequence[float] | np.ndarray, *, causal: bool = False, missing: str = "error"
    ) -> np.ndarray:
        """One row per time, (M, ...), a fresh array. Which row: see `rows_at`.

        causal: only rows with stop_seconds <= time (anticipation must not see what comes).
        missing: "error" raises a ValueError where no row is early enough; "zeros" gives zeros there.
        """
        if missing not in ("error", "zeros"):
            raise ValueError(f"missing is {missing!r}; it must be 'error' or 'zeros'")
        stored = self._open(key)
        seconds = _row_times(seconds)
        rows = self._rows(stored, seconds, causal)
        lost = rows < 0
        if lost.any() and missing == "error":
            what = "no row has ended" if causal else "there is no row"
            raise ValueError(f"{key}: {what} at {seconds[lost][0]} s; ask for later times or pass missing='zeros'")
        if not lost.any():
            return np.array(stored.rows[rows])
        data = np.zeros((len(rows), *stored.rows.shape[1:]), stored.rows.dtype)
        data[~lost] = stored.rows[rows[~lost]]
        return data

    def lookup(
        self,
        key: str,
        seconds: Sequence[float] | np.ndarray,
        *,
        causal: bool = False,
        horizon_seconds: float = math.inf,
    ) -> tuple[Features, np.ndarray]:
        """One row per time, with its interval: Features of M rows, and bool (M,), False where no row was early enough.
        Such a time gets the first row that another time found.

        causal: as in `at`. horizon_seconds: rows that end after it are not taken, whatever covers the time; the one
            that had ended last at the horizon stands in.
        Raises: ValueError where not a single row is early enough.
        """
        stored = self._open(key)
        times = _row_times(seconds)
        rows = self._rows(stored, times, causal)
        stops = stored.arrays["stop_seconds"]
        late = (rows >= 0) & (stops[rows] > horizon_seconds + _ROUNDING_SECONDS) if len(stops) else rows >= 0
        if late.any():
            rows[late] = self._rows(stored, np.minimum(times, horizon_seconds), True)[late]
        found = rows >= 0
        if not found.any():
            what = f"no row has ended by {times.max(initial=-math.inf):.3f} s" if len(stops) else "there is no row"
            raise ValueError(f"{key}: {what}")
        return self._features(stored, np.where(found, rows, rows[found][0])), found

    def _rows(self, stored: Stored, seconds: np.ndarray, causal: bool) -> np.ndarray:
        if self.recipe is None:
            # such a store knows frame numbers only, and its users read number floor(t * fps), with that rounding
            seconds = (np.floor(seconds * (self.frame_fps or 30.0)) + 0.5) / (self.frame_fps or 30.0)
        return rows_at(stored.arrays["start_seconds"], stored.arrays["stop_seconds"], seconds, causal)

    def writer(self, key: str, *, row_shape: Sequence[int]) -> FeatureWriter:
        """A context manager that makes the output of `key`; an old one stays until `commit`.

        row_shape: shape of one row, (D,) or (D, T, H, W).
        Raises: ValueError where the format cannot hold such a key.
        """
        recipe = self._recipe_to_write()
        self._files.check_new(check_key(key))
        shape = tuple(int(n) for n in row_shape)
        return FeatureWriter(self.folder, self._files, key, row_shape=shape, dtype=self.dtype, recipe=recipe)

    def output_path(self, key: str) -> Path:
        """The file that makes the output of `key` complete, whether it is there or not. Not of LMDBs."""
        if isinstance(self._files, LmdbFormat):
            raise ValueError(f"{self.folder} is an LMDB: its outputs are no files of their own")
        return self._files.path(check_key(key))

    def remove(self, key: str) -> None:
        """Remove the output of `key`, if there is one."""
        self._recipe_to_write()
        self._files.remove(check_key(key))

    def clean(self) -> int:
        """Remove temporary files of writers that died; returns how many there were. Living writers hold a lock."""
        return remove_dead(self.folder)

    def _recipe_to_write(self) -> dict[str, Any]:
        if not self.writable or self.recipe is None:
            raise ValueError(f"{self.folder} is open for reading; open it with a recipe to change it")
        return self.recipe

    def _open(self, key: str) -> Stored:
        check_key(key)
        try:
            return self._files.open(key)
        except (OSError, ValueError, KeyError, EOFError, struct.error, zipfile.BadZipFile) as error:
            reason = self._files.damage(key) or f"{type(error).__name__}: {error}"
            near = get_close_matches(key, self.keys(), n=3) if reason == ABSENT else []
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"{key!r} cannot be read from {self.folder}: {reason}{hint}") from error

    def _features(self, stored: Stored, rows: slice | np.ndarray) -> Features:
        arrays = {name: array[rows] for name, array in stored.arrays.items()}
        times = arrays.pop("start_seconds"), arrays.pop("stop_seconds")
        return Features(stored.rows[rows], *times, deepcopy(stored.metadata), arrays)


def _files(
    folder: Path, format: str, frame_fps: float | None, *, foreign: bool, writable: bool
) -> FileFormat | LmdbFormat:
    if format == "lmdb":
        return LmdbFormat(folder, frame_fps or 30.0, foreign=foreign, writable=writable)
    return {"npz": NpzFormat, "npy": NpyFormat, "hdf5": Hdf5Format}[format](folder)


def _read_description(folder: Path) -> dict[str, Any] | None:
    try:
        text = (folder / "store.json").read_text("utf-8")
    except FileNotFoundError:
        return None
    try:
        stored = json.loads(text)
        if stored["version"] != 1:
            raise ValueError(f"version {stored['version']}; this program knows version 1")
        return {name: stored[name] for name in ("format", "dtype", "frame_fps", "recipe")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'store.json'} cannot be read: {error}; remove it or give another folder"
        ) from error


def _checked_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(recipe.get("identity"), Mapping) or set(recipe) - {"identity", "provenance"}:
        raise ValueError(f"a recipe is {{'identity': {{...}}, 'provenance': {{...}}}}; given were {sorted(recipe)}")
    try:
        return json.loads(canonical_json({"provenance": {}, **recipe}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the recipe is not plain json: {error}") from error


def _with_defaults(asked: dict[str, Any], stored: dict[str, Any] | None) -> dict[str, Any]:
    usual = stored or {"format": "npz", "dtype": "float32", "frame_fps": None}
    settings = {name: usual[name] if value is None else value for name, value in asked.items()}
    return settings | {"frame_fps": (settings["frame_fps"] or 30.0) if settings["format"] == "lmdb" else None}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items: Any = value.items()
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        items = enumerate(value)
    else:
        return {name: value}
    return {path: leaf for key, entry in items for path, leaf in _flat(entry, f"{name}.{key}".lstrip(".")).items()}


def _differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """One line per dotted name whose value differs; of a recipe only the identity counts."""

    def compared(description: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in description.items() if name in given and name != "recipe"}
        return rest | _flat(description["recipe"]["identity"] if "recipe" in given else {}, "recipe.identity")

    old, new = compared(stored), compared(given)
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, now = (repr(side[name]) if name in side else "nothing" for side in (old, new))
        if name not in old or name not in new or old[name] != new[name]:
            lines.append(f"{name} is {before} there, {now} here")
    return lines


def _refuse(folder: Path, differences: list[str], advice: str) -> None:
    if differences:
        raise ValueError(f"{folder} is a store made otherwise:\n  " + "\n  ".join(differences) + f"\n{advice}")
