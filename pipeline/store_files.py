"""Names, locks, seals and temporary files of feature stores."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: no advisory locks there, so one process per store
    fcntl = None

BLOCK_BYTES = 8 << 20  # how much of a spool or file is in memory at a time
ABSENT = "there is no output"
TEMPORARY = ".tmp"  # the folder inside a store where unfinished files live

# ---------------------------------------------------------------------------------------------------------------------
# names


def check_key(key: str) -> str:
    """The key itself, or a ValueError where it is not a relative posix path without `.` and `..`."""
    if not isinstance(key, str) or not key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(
            f"key {key!r} is no relative path; give something like 'a/b/x.mp4': no leading '/', no empty part, no '..'"
        )
    return key


def key_to_path(key: str) -> str:
    """Relative file path (without suffix) for a key. `path_to_key` reverses it, except that a part over 200 bytes is
    cut and gets a hash after `~`; such a key is read from the file itself.

    Characters that some file system refuses become %XX, as do leading dots (hidden files are not outputs), trailing
    dots and blanks, and `%`, `@`, `~`, which have a meaning here.
    """
    parts = check_key(key).split("/")
    return "/".join([*(_escape(part, folder=True) for part in parts[:-1]), _escape(parts[-1], folder=False)])


def path_to_key(path: str) -> str | None:
    """The key of a relative file path without suffix; None where the path was cut and only the file knows."""
    return None if "~" in path else re.sub("%([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), path)


def _escape(part: str, folder: bool) -> str:
    text = re.sub(r'[<>:"\\|?*%@~\x00-\x1f\x7f]', _percent, part)
    text = re.sub(r"^\.|[. ]$", _percent, text)
    if re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", text):  # devices on Windows, whatever the extension
        text = f"%{ord(text[0]):02X}{text[1:]}"
    if folder:  # a folder called like the output of a video beside it
        text = re.sub(r"\.(?=(npz|npy|h5|json)$)", _percent, text)
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) <= 200:
        return text
    head = raw[:160].decode("utf-8", "ignore")
    return f"{head}~{hashlib.sha256(part.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}"


def _percent(found: re.Match[str]) -> str:
    return f"%{ord(found[0]):02X}"


# ---------------------------------------------------------------------------------------------------------------------
# files


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock between processes; the operating system frees it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def crc32_of(file: BinaryIO, start: int, stop: int) -> int:
    """CRC-32 of the bytes [start, stop) of an open file, block by block."""
    file.seek(start)
    crc, left = 0, stop - start
    while left > 0 and (block := file.read(min(BLOCK_BYTES, left))):
        crc, left = zlib.crc32(block, crc), left - len(block)
    return crc


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no blanks, ASCII only, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def seal_json(value: dict[str, Any]) -> str:
    """Canonical json whose first entry, `crc32`, is that of the rest."""
    body = canonical_json(value)
    return f'{{"crc32":"{zlib.crc32(body.encode()):08x}",{body[1:]}'


def unseal_json(text: str) -> dict[str, Any] | None:
    """The value, or None where the bytes are not those that were sealed."""
    body = "{" + text[len('{"crc32":"01234567",') :]
    seal = f'{{"crc32":"{zlib.crc32(body.encode("utf-8", "replace")):08x}",'
    return json.loads(body) if text.startswith(seal) else None


def new_spool(folder: Path) -> tuple[Path, Any]:
    """An open temporary file that is locked as long as this process lives and has it open."""
    (folder / TEMPORARY).mkdir(parents=True, exist_ok=True)
    while True:
        path = folder / TEMPORARY / f"{os.getpid()}-{secrets.token_hex(8)}.spool"
        file = open(path, "x+b", buffering=0)
        if fcntl is None:
            return path, file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # `clean` holds it this very moment, and removes it
            file.close()
            continue
        except OSError:  # this file system has no locks; `clean` then leaves everything
            return path, file
        if os.fstat(file.fileno()).st_nlink:  # else `clean` took it before it was locked
            return path, file
        file.close()


def remove_temporaries(spool: Path) -> None:
    """Remove a spool and what was being made of it."""
    for path in spool.parent.glob(f"{spool.stem}.*out"):
        path.unlink(missing_ok=True)
    spool.unlink(missing_ok=True)  # last: without it nobody looks for the others


def remove_dead(folder: Path) -> int:
    """Remove temporary files whose writers died; returns of how many writers."""
    count = 0
    for spool in sorted((folder / TEMPORARY).glob("*.spool")):
        try:
            with open(spool, "rb") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_temporaries(spool)
                count += 1
        except OSError:  # locked: its writer lives; gone: somebody else cleaned up; no locks here: nobody knows
            continue
    return count


# ---------------------------------------------------------------------------------------------------------------------
# what passes between the store and its formats


@dataclass(frozen=True)
class Spool:
    """Rows that lie raw in a temporary file: all of one video, in order."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def blocks(self, block_bytes: int | None = None) -> Iterator[np.ndarray]:
        """The rows in order, (n, *row_shape) at a time; one empty block where there are none."""
        row = int(np.prod(self.shape[1:], dtype=np.int64))
        per_block = max(1, (block_bytes or BLOCK_BYTES) // max(1, row * self.dtype.itemsize))
        with open(self.path, "rb") as file:
            for first in range(0, max(1, self.shape[0]), per_block):
                n = min(per_block, self.shape[0] - first)
                yield np.fromfile(file, self.dtype, n * row).reshape(n, *self.shape[1:])


@dataclass(frozen=True)
class Stored:
    """What is stored for one key. rows: array-like (N, ...) that is read when it is indexed."""

    rows: Any
    arrays: dict[str, np.ndarray]  # start_seconds, stop_seconds and the extra ones, (N, ...) each
    metadata: dict[str, Any]

    def __post_init__(self) -> None:
        for array in self.arrays.values():
            array.flags.writeable = False
