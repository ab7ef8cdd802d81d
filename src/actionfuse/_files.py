"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO


def put_in_place(source: Path, target: Path) -> None:
    """Flush `source` to the disk and rename it to `target`, so that `target` is whole at every moment."""
    flush(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
    if os.name != "nt":  # a folder cannot be opened there
        flush(target.parent)


def flush(path: Path) -> None:
    """What was written to a file, or which names a folder holds, is on the disk."""
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """A text file to write; it takes the place of `path` at the end, whole and flushed, or not at all.

    Names of files that are no UTF-8 are written as the bytes that they are.
    """
    with (
        _beside(Path(path)) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        yield file


def write_atomically(path: str | Path, content: bytes) -> None:
    """The file is there whole, on disk, or as it was."""
    with _beside(Path(path)) as temporary:
        file: BinaryIO
        with open(temporary, "wb") as file:
            file.write(content)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """The name of a file in the same folder, which is put in the target's place if nothing goes wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        put_in_place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
