"""Where shards keep their plan, results and outputs: a folder, or a prefix of an object store. Objects appear whole.

`put_new` is what makes work idempotent: of any number of writers of one name exactly one wins. A folder does it by a
hard link, S3 by `If-None-Match: *`; a store that knows neither may take the last writer's, which has the same bytes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from actionfuse._files import flush

from ..pipeline.remote import filesystem, is_url, list_remote, retried

PIECE_BYTES = 8 << 20  # of a file that is read or sent in pieces


class Objects(ABC):
    """Objects by name ('a/b.json') under one root. Raises: FileNotFoundError where there is none of the name."""

    root: str

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes [start, stop) of an object."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of an object, None where there is none."""

    @abstractmethod
    def put_new(self, name: str, content: bytes | Path) -> bool:
        """Make an object of bytes, or of a file; False where there is one already, which stays."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove an object, if there is one."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names of what lies directly in a folder, sorted."""

    @abstractmethod
    def listing(self, folder: str) -> Iterator[tuple[str, int]]:
        """(name, bytes) of all objects in a folder and those in it, in any order, as they are listed."""

    def crc32(self, name: str) -> tuple[int, int]:
        """(bytes, CRC-32) of an object, read in pieces."""
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(f"{self.root}/{name}")
        crc = 0
        for start in range(0, size, PIECE_BYTES):
            crc = zlib.crc32(self.read(name, start, min(start + PIECE_BYTES, size)), crc)
        return size, crc


def open_objects(root: str | os.PathLike[str]) -> Objects:
    return RemoteObjects(os.fspath(root)) if is_url(root) else FolderObjects(Path(root))


class FolderObjects(Objects):
    def __init__(self, root: Path) -> None:
        self.root, self._root = str(root), root

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        with open(self._root / name, "rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else stop - start)

    def size(self, name: str) -> int | None:
        try:
            return (self._root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put_new(self, name: str, content: bytes | Path) -> bool:
        target = self._root / name
        if target.exists():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{os.getpid()}-{secrets.token_hex(6)}.new")
        try:
            with open(temporary, "xb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    with open(content, "rb") as source:
                        shutil.copyfileobj(source, file, PIECE_BYTES)
            flush(temporary)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError:  # no hard links on this file system: the last of two writers wins, with the same bytes
                os.replace(temporary, target)
            flush(target.parent)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        with suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self._root / folder) if not name.startswith("."))
        return []

    def listing(self, folder: str) -> Iterator[tuple[str, int]]:
        folders = [folder]
        while folders:
            folder = folders.pop()
            with suppress(FileNotFoundError), os.scandir(self._root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(f"{folder}/{entry.name}")
                    else:
                        with suppress(FileNotFoundError):  # removed meanwhile
                            yield f"{folder}/{entry.name}", entry.stat().st_size


class RemoteObjects(Objects):
    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._fs, path = filesystem(self.root)
        self._root = path.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        path = self._path(name)

        def ask() -> bytes:
            data = self._fs.cat_file(path, start=start, end=stop) if start or stop else self._fs.cat_file(path)
            if stop is not None and len(data) < stop - start:
                raise OSError(f"the answer broke off: {len(data)} of {stop - start} bytes")
            return data

        return retried(ask, f"{self.root}/{name}")

    def size(self, name: str) -> int | None:
        def ask() -> int:
            self._fs.invalidate_cache(self._path(name).rsplit("/", 1)[0])
            return int(self._fs.info(self._path(name))["size"])

        try:
            return retried(ask, f"{self.root}/{name}")
        except FileNotFoundError:
            return None

    def put_new(self, name: str, content: bytes | Path) -> bool:
        if self.size(name) is not None:
            return False
        # what a file or two of memory hold goes in one request, which more kinds of stores know to refuse
        bytes_ = content.stat().st_size if isinstance(content, Path) else 0
        data = content.read_bytes() if isinstance(content, Path) and bytes_ <= 2 * PIECE_BYTES else content
        options: dict[str, Any] = {}
        if hasattr(self._fs, "call_s3"):  # 10000 parts at most
            options = {"chunksize": max(PIECE_BYTES, -(-bytes_ // 10_000)), "max_concurrency": 4}

        def ask() -> bool:
            try:
                if isinstance(data, Path):
                    self._fs.put_file(str(data), self._path(name), mode="create", **options)
                else:
                    self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if "PreconditionFailed" in str(error) or "412" in str(error):
                    return False
                raise
            return True

        # An attempt whose answer was lost may have made it: then the next one says that it is there, which is as good.
        return retried(ask, f"{self.root}/{name}")

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            retried(lambda: self._fs.rm_file(self._path(name)), f"{self.root}/{name}")

    def names(self, folder: str) -> list[str]:
        def ask() -> list[str]:
            self._fs.invalidate_cache(self._path(folder))
            return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in self._fs.ls(self._path(folder), detail=False))

        try:
            return [name for name in retried(ask, f"{self.root}/{folder}") if name]
        except FileNotFoundError:
            return []

    def listing(self, folder: str) -> Iterator[tuple[str, int]]:
        try:
            for file in list_remote(f"{self.root}/{folder}"):
                yield file.url.removeprefix(f"{self.root}/"), file.bytes
        except FileNotFoundError:
            return
