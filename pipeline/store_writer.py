"""Takes the rows of one video for a FeatureStore, with flat memory."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .store_files import Spool, canonical_json, new_spool, remove_temporaries

RESERVED = ("features", "start_seconds", "stop_seconds", "metadata")


class Format(Protocol):
    """What writes the output of a key; see store_formats.py and store_lmdb.py."""

    def write(self, key: str, spool: Spool, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None: ...


class FeatureWriter:
    """Takes the rows of one video in any order, then `commit`. From `FeatureStore.writer`. Thread-safe.

    Rows lie in a temporary file inside the store, so memory stays flat. Leaving the `with` block without a commit
    removes it; a lock on it tells `FeatureStore.clean` that its writer lives.
    """

    def __init__(
        self, folder: Path, format: Format, key: str, *, row_shape: tuple[int, ...], dtype: str, recipe: dict[str, Any]
    ) -> None:
        if not row_shape or min(row_shape) < 1:
            raise ValueError(f"{key}: row_shape is {row_shape}; it needs at least one side, each of at least 1")
        self.key, self.row_shape = key, row_shape
        self._format, self._recipe = format, recipe
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._row_bytes = int(np.prod(row_shape, dtype=np.int64)) * self._dtype.itemsize
        self._written = np.zeros(64, bool)
        self._lock = threading.Lock()
        self._spool, self._file = new_spool(folder)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop what is not committed. May be called again."""
        with self._lock:
            if not self._file.closed:
                remove_temporaries(self._spool)  # while the lock is held: nobody else cleans it up meanwhile
                self._file.close()

    def write(self, first_row: int, rows: np.ndarray) -> None:
        """Rows first_row, first_row + 1, ... as float (n, *row_shape).

        Raises: ValueError for a wrong shape, a row written before, or a number too large for the store's dtype.
        """
        rows = np.asarray(rows)
        if rows.shape[1:] != self.row_shape or rows.ndim == 0 or rows.dtype.kind != "f":
            raise ValueError(
                f"{self.key}: rows are {shape_text(rows)}; they must be float (n, {str(self.row_shape)[1:]}"
            )
        if first_row < 0:
            raise ValueError(f"{self.key}: first_row is {first_row}; rows are counted from 0")
        with np.errstate(over="ignore"):
            data = np.ascontiguousarray(rows, self._dtype)
        if data.dtype.itemsize < rows.dtype.itemsize:
            lost = np.isinf(data) & np.isfinite(rows)
            if lost.any():
                raise ValueError(
                    f"{self.key}: {rows[lost][0]:g} in row {first_row + int(np.argwhere(lost)[0, 0])} is too large for "
                    f"{self._dtype.name} (at most {np.finfo(self._dtype).max:g}); take dtype float32"
                )
        stop = first_row + len(data)
        with self._lock:
            self._check_open()
            if stop > len(self._written):
                self._written = np.concatenate((self._written, np.zeros(max(stop, len(self._written)), bool)))
            twice = np.flatnonzero(self._written[first_row:stop])
            if len(twice):
                raise ValueError(f"{self.key}: row {first_row + int(twice[0])} was written before")
            self._file.seek(first_row * self._row_bytes)
            left = data.reshape(-1).view(np.uint8).data
            while len(left):  # an unbuffered file may take less than it is given
                left = left[self._file.write(left) :]
            self._written[first_row:stop] = True

    def commit(
        self,
        start_seconds: np.ndarray,
        stop_seconds: np.ndarray,
        metadata: Mapping[str, Any],
        extra: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Make the output: from here on it is there, and on the disk.

        start_seconds, stop_seconds: float64 (N,), finite, stop >= start; N rows 0..N-1 must have been written.
        metadata: anything that json holds; `key` and `recipe` are added.
        extra: arrays of numbers or bools with one entry per row, (N, ...), by names that are words.
        """
        starts, stops = (np.array(times, "<f8") for times in (start_seconds, stop_seconds))
        if starts.ndim != 1 or starts.shape != stops.shape:
            raise ValueError(
                f"{self.key}: start_seconds is {shape_text(starts)}, stop_seconds {shape_text(stops)}; both are (N,)"
            )
        check_intervals(starts, stops, f"{self.key}: ")
        arrays = {"start_seconds": starts, "stop_seconds": stops}
        for name, array in (extra or {}).items():
            array = np.asarray(array)
            if not re.fullmatch("[A-Za-z][A-Za-z0-9_]{0,39}", name) or name in RESERVED:
                raise ValueError(f"{self.key}: extra array {name!r}: its name must be a word and none of {RESERVED}")
            if array.dtype.kind not in "biuf" or array.shape[:1] != starts.shape:
                raise ValueError(
                    f"{self.key}: extra array {name!r} is {shape_text(array)}; "
                    f"it must be numbers or bools ({len(starts)}, ...)"
                )
            arrays[name] = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        whole = self._whole_metadata(metadata)
        with self._lock:
            self._check_open()
            self._check_rows(len(starts))
            spool = Spool(self._spool, (len(starts), *self.row_shape), self._dtype)
            self._format.write(self.key, spool, arrays, whole)
        self.close()

    def _whole_metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        if both := {"key", "recipe"} & set(metadata):
            raise ValueError(
                f"{self.key}: metadata has {sorted(both)}, which the store itself adds; name them otherwise"
            )
        try:
            return json.loads(canonical_json({**metadata, "key": self.key, "recipe": self._recipe}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.key}: metadata is not plain json: {error}") from error

    def _check_open(self) -> None:
        if self._file.closed:
            raise ValueError(f"{self.key}: the writer is closed; get a new one from FeatureStore.writer")

    def _check_rows(self, count: int) -> None:
        written = int(self._written.sum())
        if self._written[:count].sum() != count or written != count:
            missing = np.flatnonzero(~self._written[:count])
            where = f"{missing[0]} is missing" if len(missing) else f"{np.flatnonzero(self._written)[-1]} is too many"
            raise ValueError(f"{self.key}: {count} times but {written} rows were written: row {where}")


def check_intervals(start_seconds: np.ndarray, stop_seconds: np.ndarray, where: str = "") -> None:
    """ValueError unless all are finite and none ends before it starts."""
    wrong = ~(np.isfinite(start_seconds) & np.isfinite(stop_seconds) & (stop_seconds >= start_seconds))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{where}row {row} has the interval [{start_seconds[row]}, {stop_seconds[row]}); it must be finite"
        )


def shape_text(array: np.ndarray) -> str:
    return f"{array.dtype} {tuple(array.shape)}"
