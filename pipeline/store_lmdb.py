"""Features in one LMDB per store, with the keys that RULSTM's loaders read.

RULSTM: Furnari and Farinella, "What Would You Expect?", ICCV 2019, and fpv-iplab/rulstm; AVT and AFFT read the same
files. Key `<video>_frame_<number, 10 digits>.jpg`, value raw float32 bytes without a header; numbers begin at 1.

- `<video>` is the store's key without the file's extension; sub-folders stay, with `/` (`P01/P01_01.MP4#2` is
  `P01/P01_01#2`).
- `<number>` is the frame that ends where the row's interval ends: `ceil(stop_seconds * frame_fps - 0.05)`, at least 1.
  Row i of a 30 fps video with one row per frame is frame i + 1. RULSTM asks at time t for frame floor(t * 30), which is
  a row that saw nothing after t. The 0.05 frame absorbs time stamps that a container rounded to milliseconds.

Beside these each video has two keys that those loaders never ask for: `actionfuse:rows:<video>` (times and extra
arrays, raw, and the CRC-32 of each row, by which every read is checked) and `actionfuse:meta:<video>` (json: shapes,
metadata, CRC-32), written last: a video without it is not there.

A video is written in one transaction, one of more than 64 MiB in several (LMDB keeps a transaction in memory). Folders
without a `store.json`, such as RULSTM's own, can be read; there frame n is the interval [(n - 1) / fps, n / fps).
"""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .store_files import ABSENT, BLOCK_BYTES, Spool, Stored, check_key, seal_json, unseal_json

T = TypeVar("T")
_NUMBER = re.compile(rb"(\d{10})\.jpg")
META, ROWS = "actionfuse:meta:", "actionfuse:rows:"
TRANSACTION_BYTES = 64 << 20
MAP_BYTES = 32 << 20  # room beyond the file's size before the map has to grow

# LMDB forbids to open one environment twice in a process, and to use one across a fork. So every operation opens it,
# works and closes it (0.15 ms), one at a time, and a fork waits until none is open.
_one_at_a_time = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_one_at_a_time.acquire, after_in_parent=_one_at_a_time.release, after_in_child=_one_at_a_time.release
    )


def frame_numbers(stop_seconds: np.ndarray, frame_fps: float) -> np.ndarray:
    """int64 (N,): the frame, counted from 1, that each row is stored under."""
    return np.maximum(1, np.ceil(np.asarray(stop_seconds, np.float64) * frame_fps - 0.05)).astype(np.int64)


def video_name(key: str) -> str:
    """The `<video>` of LMDB keys: the key without the file's extension, a `#...` at its end kept."""
    return re.sub(r"\.(?=[0-9]*[A-Za-z])[A-Za-z0-9]{2,5}(?=(#[^/]*)?$)", "", check_key(key))


class LmdbFormat:
    """See `FeatureStore` for the words.

    foreign: a folder that another program wrote. writable: a file that was cut short is repaired and not only told.
    """

    def __init__(self, folder: Path, frame_fps: float, *, foreign: bool, writable: bool) -> None:
        if find_spec("lmdb") is None:
            raise ValueError("format 'lmdb' needs lmdb: pip install 'actionfuse[lmdb]', or take format 'npz'")
        self.folder, self.frame_fps, self.foreign, self.writable = folder, frame_fps, foreign, writable
        self._foreign_numbers: dict[str, np.ndarray] = {}

    # -- transactions

    def _run(self, work: Callable[[Any], T], write: bool = False) -> T:
        """work(transaction), in an environment that is open for this only; called again where the map had to grow."""
        with _one_at_a_time:
            for attempt in range(3):
                try:
                    return self._transact(work, write)
                except _TooShort as short:
                    if self.writable:
                        self._transact(lambda transaction: None, write=True)
                    elif attempt < 2:  # a writer that has just committed lengthens the file in a moment
                        time.sleep(0.1)
                    else:
                        raise ValueError(f"{self.folder / 'data.mdb'} was cut short: {short}") from None
            return self._transact(work, write)

    def _transact(self, work: Callable[[Any], T], write: bool) -> T:
        import lmdb

        lock = write or os.access(self.folder, os.W_OK)  # a read-only folder has no writers to lock out
        try:
            with self._open_environment(write, lock) as environment:
                if lock:
                    environment.reader_check()  # readers that were killed would keep old pages alive
                if not write and (missing := _missing_bytes(environment)):
                    raise _TooShort(f"{missing} bytes are missing")
                while True:
                    try:
                        with environment.begin(write=write, buffers=True) as transaction:
                            if write:
                                _lengthen(environment)
                            answer = work(transaction)
                        if write:
                            with environment.begin(write=True):  # only for its lock
                                _lengthen(environment)
                        return answer
                    except lmdb.MapFullError:
                        environment.set_mapsize(environment.info()["map_size"] * 2)
                    except lmdb.MapResizedError:  # another process made it larger since we opened it
                        environment.set_mapsize(0)
        except lmdb.Error as error:
            raise ValueError(f"{self.folder / 'data.mdb'} cannot be used: {error}") from error

    def _open_environment(self, write: bool, lock: bool) -> Any:
        import lmdb

        data, failures = self.folder / "data.mdb", 0
        while True:
            size = data.stat().st_size if data.exists() else 0
            try:
                return lmdb.open(
                    str(self.folder), size + MAP_BYTES, readonly=not write, lock=lock, create=False, max_readers=1024
                )
            except lmdb.MapResizedError:  # another process made the file larger since we asked for its size
                continue
            except lmdb.Error as error:
                # Seen once, just after a writer was killed, and never again: so it is tried again a few times.
                failures += 1
                if "Bad file descriptor" not in str(error) or failures > 5:
                    raise
                time.sleep(0.05)

    # -- names

    def _frame_key(self, name: str, number: int) -> bytes:
        return f"{name}_frame_{number:010d}.jpg".encode("utf-8", "surrogateescape")

    def _key(self, prefix: str, name: str) -> bytes:
        return (prefix + name).encode("utf-8", "surrogateescape")

    def keys(self) -> list[str]:
        if not (self.folder / "data.mdb").exists():
            return []
        return sorted(self._run(self._foreign_keys if self.foreign else self._own_keys))

    def _own_keys(self, transaction: Any) -> list[str]:
        metas = (_unseal(value) for _, value in _range(transaction, META.encode()))
        return [meta["key"] for meta in metas if meta]

    def _foreign_keys(self, transaction: Any) -> list[str]:
        found, cursor = [], transaction.cursor()
        more = cursor.first()
        while more:
            key = bytes(cursor.key())
            name = re.fullmatch(rb"(.*)_frame_\d{10}\.jpg", key, re.DOTALL)
            if name:  # on to the first key behind this video's
                found.append(name[1].decode("utf-8", "surrogateescape"))
                more = cursor.set_range(name[1] + b"_frame_:")
            else:
                more = cursor.next()
        return found

    def check_new(self, key: str) -> None:
        name = video_name(key)
        if name.startswith("actionfuse:"):
            raise ValueError(f"key {key!r}: in an lmdb store no name may begin with 'actionfuse:'")
        if len(self._frame_key(name, 1)) > 511:
            raise ValueError(f"key {key!r} is too long for LMDB, whose keys end at 511 bytes; take another format")
        if (self.folder / "data.mdb").exists():
            self._run(lambda transaction: self._check_owner(transaction, key))

    def _check_owner(self, transaction: Any, key: str) -> None:
        meta = _unseal(transaction.get(self._key(META, video_name(key))))
        if meta and meta["key"] != key:
            raise ValueError(
                f"{key!r} and {meta['key']!r} would both be {video_name(key)!r} in LMDB keys; "
                "rename one or take format 'npz'"
            )

    # -- reading

    def damage(self, key: str) -> str | None:
        try:
            rows = self.open(key).rows
            per_block = max(1, BLOCK_BYTES // max(4, 4 * int(np.prod(rows.shape[1:]))))
            for first in range(0, len(rows), per_block):
                rows[first : first + per_block]
        except ValueError as error:
            return str(error)
        return None

    def open(self, key: str) -> Stored:
        if not (self.folder / "data.mdb").exists():
            raise ValueError(ABSENT)
        if self.foreign:
            return self._open_foreign(key)
        name = video_name(key)

        def work(transaction: Any) -> tuple[dict[str, Any] | None, bytes]:
            meta = _unseal(transaction.get(self._key(META, name)))
            return meta, bytes(transaction.get(self._key(ROWS, name), b""))

        meta, table = self._run(work)
        if meta is None or meta["key"] != key:
            raise ValueError(ABSENT)
        if zlib.crc32(table) != meta["table_crc32"]:
            raise ValueError(f"the times of {name} are damaged: they do not give their CRC-32")
        arrays = _arrays(meta, table)
        numbers = frame_numbers(arrays["stop_seconds"], meta["frame_fps"])
        rows = LmdbRows(self, name, numbers, tuple(meta["row_shape"]), arrays.pop("row_crc32"))
        return Stored(rows, arrays, meta["metadata"])

    def _open_foreign(self, key: str) -> Stored:
        if key not in self._foreign_numbers:
            prefix = f"{key}_frame_".encode("utf-8", "surrogateescape")

            def work(transaction: Any) -> list[int]:
                ends = (_NUMBER.fullmatch(bytes(found)[len(prefix) :]) for found, _ in _range(transaction, prefix))
                return [int(end[1]) for end in ends if end]

            self._foreign_numbers[key] = np.array(self._run(work), np.int64)
        numbers = self._foreign_numbers[key]
        if not len(numbers):
            raise ValueError(ABSENT)
        first = self._run(lambda transaction: len(transaction.get(self._frame_key(key, int(numbers[0])))))
        arrays = {"start_seconds": (numbers - 1) / self.frame_fps, "stop_seconds": numbers / self.frame_fps}
        return Stored(LmdbRows(self, key, numbers, (first // 4,)), arrays, {"key": key})

    def get_rows(
        self, name: str, numbers: np.ndarray, row_shape: tuple[int, ...], crc32: np.ndarray | None
    ) -> np.ndarray:
        """float32 (len(numbers), *row_shape), in one transaction, checked against crc32 (len(numbers),) if given."""
        out = np.empty((len(numbers), int(np.prod(row_shape))), np.float32)

        def work(transaction: Any) -> None:
            for i, (row, number) in enumerate(zip(out, numbers.tolist(), strict=True)):
                value = transaction.get(self._frame_key(name, number))
                if value is None or len(value) != row.nbytes:
                    had = "nothing" if value is None else f"{len(value)} bytes"
                    raise ValueError(f"frame {number} of {name} has {had} instead of {row.nbytes} bytes")
                if crc32 is not None and zlib.crc32(value) != crc32[i]:
                    raise ValueError(f"frame {number} of {name} is damaged: it does not give its CRC-32")
                row[:] = np.frombuffer(value, "<f4")

        self._run(work)
        return out.reshape(len(numbers), *row_shape)

    # -- writing

    def write(self, key: str, spool: Spool, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        name = video_name(key)
        numbers = frame_numbers(arrays["stop_seconds"], self.frame_fps)
        unique, counts = np.unique(numbers, return_counts=True)
        if (counts > 1).any():
            twice = int(unique[counts > 1][0])
            rows = np.flatnonzero(numbers == twice)[:2]
            ends = " and ".join(f"{float(arrays['stop_seconds'][row])}" for row in rows)
            raise ValueError(
                f"{key}: rows {rows[0]} and {rows[1]} (they end at {ends} s) are both frame {twice} at frame_fps "
                f"{self.frame_fps:g}; open the store with a higher frame_fps, or take another format"
            )
        crcs = [zlib.crc32(row.data) for block in spool.blocks() for row in block]
        arrays = {**arrays, "row_crc32": np.array(crcs, "<u4")}
        table = b"".join(array.tobytes() for array in arrays.values())
        meta = {
            "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()],
            "frame_fps": self.frame_fps,
            "key": key,
            "metadata": metadata,
            "row_shape": list(spool.shape[1:]),
            "table_crc32": zlib.crc32(table),
        }
        sealed = seal_json(meta).encode()
        first = 0
        for block in spool.blocks(TRANSACTION_BYTES):
            stop = first + len(block)
            values = block.reshape(len(block), -1).view(np.uint8) if len(block) else block

            def work(transaction: Any, first: int = first, stop: int = stop, values: np.ndarray = values) -> None:
                if first == 0:
                    self._check_owner(transaction, key)
                    self._delete(transaction, name)
                for number, value in zip(numbers[first:stop].tolist(), values, strict=True):
                    transaction.put(self._frame_key(name, number), value)
                if stop == len(numbers):
                    transaction.put(self._key(ROWS, name), table)
                    transaction.put(self._key(META, name), sealed)

            self._run(work, write=True)
            first = stop

    def _delete(self, transaction: Any, name: str) -> None:
        transaction.delete(self._key(META, name))
        transaction.delete(self._key(ROWS, name))
        prefix = self._key("", f"{name}_frame_")
        cursor = transaction.cursor()
        more = cursor.set_range(prefix)
        while more and _starts(cursor, prefix):
            more = cursor.delete() if _NUMBER.fullmatch(bytes(cursor.key())[len(prefix) :]) else cursor.next()

    def remove(self, key: str) -> None:
        def work(transaction: Any) -> None:
            meta = _unseal(transaction.get(self._key(META, video_name(key))))
            if meta is None or meta["key"] == key:
                self._delete(transaction, video_name(key))

        if (self.folder / "data.mdb").exists():
            self._run(work, write=True)

    def remove_all(self) -> None:
        for name in ("data.mdb", "lock.mdb"):
            (self.folder / name).unlink(missing_ok=True)


class LmdbRows:
    """Rows of one video, read when they are indexed with a slice or an array of row numbers."""

    def __init__(
        self,
        store: LmdbFormat,
        name: str,
        numbers: np.ndarray,
        row_shape: tuple[int, ...],
        crc32: np.ndarray | None = None,
    ) -> None:
        self._store, self._name, self._numbers, self._row_shape, self._crc32 = store, name, numbers, row_shape, crc32
        self.shape, self.dtype = (len(numbers), *row_shape), np.dtype("<f4")

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        crc32 = None if self._crc32 is None else self._crc32[rows]
        return self._store.get_rows(self._name, self._numbers[rows], self._row_shape, crc32)


class _TooShort(Exception):
    """The data file ends before the last page that its header counts: to touch that page would end the process."""


def _missing_bytes(environment: Any) -> int:
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    return max(0, needed - os.stat(os.path.join(environment.path(), "data.mdb")).st_size)


def _lengthen(environment: Any) -> None:
    # LMDB may leave free pages at the end unwritten; written out, a short file always means that it was cut. What a cut
    # took away is then zeros, which the check sums tell. Call it inside a write transaction: no other writer then.
    if missing := _missing_bytes(environment):
        path = os.path.join(environment.path(), "data.mdb")
        os.truncate(path, os.stat(path).st_size + missing)


def _starts(cursor: Any, prefix: bytes) -> bool:
    return bytes(cursor.key()).startswith(prefix)


def _range(transaction: Any, prefix: bytes) -> Iterator[tuple[Any, Any]]:
    """All (key, value) whose key begins with `prefix`."""
    cursor = transaction.cursor()
    more = cursor.set_range(prefix)
    while more and _starts(cursor, prefix):
        yield cursor.key(), cursor.value()
        more = cursor.next()


def _unseal(value: Any) -> dict[str, Any] | None:
    return None if value is None else unseal_json(bytes(value).decode("utf-8", "replace"))


def _arrays(meta: dict[str, Any], table: Any) -> dict[str, np.ndarray]:
    found, at = {}, 0
    for name, kind, shape in meta["arrays"]:
        count = int(np.prod(shape, dtype=np.int64))
        found[name] = np.frombuffer(table, kind, count, at).reshape(shape).copy()
        at += found[name].nbytes
    return found
