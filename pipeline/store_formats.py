"""How the features of one video lie in files: npz, npy with a json side file, hdf5. `FeatureStore` uses them.

Every file is sealed: it ends or begins with the CRC-32 of all its other bytes, so that a truncated or bit-flipped file
is told from a whole one in one read. A file comes into being under a temporary name, is flushed to the disk, and is
then renamed. It holds no clock, host or process number: equal input makes equal bytes.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from actionfuse._files import put_in_place

from .store_files import (
    ABSENT,
    TEMPORARY,
    Spool,
    Stored,
    canonical_json,
    crc32_of,
    key_to_path,
    locked,
    path_to_key,
    seal_json,
    unseal_json,
)

OPEN_FILES = 64  # outputs that a store keeps mapped


class FileFormat(ABC):
    """One output = one file (npy: some files), in the sub-folder that the key says; words as in `FeatureStore`."""

    suffix: str  # of the file that makes an output complete

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # training asks the same files for a few rows over and over; each held one costs a file descriptor
        self._open_stamped = lru_cache(OPEN_FILES)(lambda path, inode, changed_ns, size: self.open_file(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def path(self, key: str) -> Path:
        return self.folder / (key_to_path(key) + self.suffix)

    def keys(self) -> list[str]:
        found = []
        for parent, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(parent, name)
                if name.startswith(".") or not name.endswith(self.suffix) or not self.sealed(path):
                    continue
                key = path_to_key(path.relative_to(self.folder).as_posix().removesuffix(self.suffix))
                # a cut name tells its key only where the file is whole
                if key is None and self.intact(path):
                    key = self.open_file(path).metadata["key"]
                if key is not None:
                    found.append(key)
        return sorted(found)

    def open(self, key: str) -> Stored:
        """What is stored; shared between callers, who must not change it."""
        path = self.path(key)
        now = path.stat()
        return self._open_stamped(path, now.st_ino, now.st_mtime_ns, now.st_size)

    def damage(self, key: str) -> str | None:
        """None, or why the output of `key` does not count: reads every byte once."""
        path = self.path(key)
        if not path.is_file():
            return ABSENT
        if not self.sealed(path):
            return f"{path.name} was cut short or is not an output of this program"
        return None if self.intact(path) else f"{path.name} is damaged: its bytes do not give the CRC-32 in its seal"

    def check_new(self, key: str) -> None:
        """ValueError where a key can have no output in this format."""
        key_to_path(key)

    def remove(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def remove_all(self) -> None:
        for key in self.keys():
            self.remove(key)

    @abstractmethod
    def sealed(self, path: Path) -> bool:
        """Whether the seal itself is there (a cheap look)."""

    @abstractmethod
    def intact(self, path: Path) -> bool:
        """Whether the sealed CRC-32 is that of the bytes."""

    @abstractmethod
    def open_file(self, path: Path) -> Stored:
        """Header and small arrays read, rows mapped."""

    @abstractmethod
    def write(self, key: str, spool: Spool, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        """Make the output of `key`, whole or not at all."""


class NpzFormat(FileFormat):
    """`np.load(path)`: arrays `features`, `start_seconds`, `stop_seconds`, extra ones; `metadata` is json as 0-d text.

    Members are stored, not deflated, and the first byte of `features` is aligned to 64, so that they can be mapped.
    The archive's comment is the seal.
    """

    suffix = ".npz"
    mark = b"actionfuse features 1 crc32 "

    def sealed(self, path: Path) -> bool:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(self.mark) - 8))
            return file.read(len(self.mark)) == self.mark

    def intact(self, path: Path) -> bool:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            return b"%08x" % crc32_of(file, 0, size - 8) == file.read(8)

    def open_file(self, path: Path) -> Stored:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for name in archive.namelist():
                if name != "features.npy":
                    with archive.open(name) as member:
                        arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
            header = archive.getinfo("features.npy").header_offset
        with open(path, "rb") as file:
            file.seek(header)
            name_bytes, extra_bytes = struct.unpack("<26xHH", file.read(30))
            rows = map_npy(file, header + 30 + name_bytes + extra_bytes)
        return Stored(rows, arrays, json.loads(arrays.pop("metadata").item()))

    def write(self, key: str, spool: Spool, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        path = spool.path.with_suffix(".out")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = self.mark + b"0" * 8
            with _member(archive, "features") as member:
                write_npy(member, spool)
            for name, array in {**arrays, "metadata": np.array(canonical_json(metadata))}.items():
                with _member(archive, name) as member:
                    np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
        with open(path, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            crc = crc32_of(file, 0, size - 8)
            file.seek(size - 8)
            file.write(b"%08x" % crc)
        put_in_place(path, self.path(key))


def _member(archive: zipfile.ZipFile, name: str) -> Any:
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o644 << 16
    # 30 bytes of header, the name, 20 bytes of 64-bit sizes: an extra field of 4 + n bytes (private id) pads to 64
    begin = archive.start_dir + 30 + len(info.filename) + 20 + 4
    padding = -begin % 64
    info.extra = struct.pack("<HH", 0xFA57, padding) + b"\0" * padding
    return archive.open(info, "w", force_zip64=True)


def write_npy(file: Any, spool: Spool) -> None:
    """Stream a spool as a .npy file."""
    description = np.lib.format.dtype_to_descr(spool.dtype)
    header = {"descr": description, "fortran_order": False, "shape": spool.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for block in spool.blocks():
        file.write(block)


def map_npy(file: BinaryIO, offset: int) -> np.ndarray:
    """The array whose .npy header begins at `offset`, memory-mapped, read-only."""
    file.seek(offset)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("the .npy header is not of version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return map_array(file.name, file.tell(), shape, dtype)


def map_array(path: str, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if 0 in shape:  # nothing can be mapped to nothing
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape)


class NpyFormat(FileFormat):
    """`x.mp4.npy` (features), `x.mp4@boxes.npy` for each extra array, and `x.mp4.npy.json`, written last.

    The json holds start_seconds, stop_seconds, metadata and the CRC-32 of each array file; its own comes first in it.
    """

    suffix = ".npy.json"
    mark = '{"crc32":"'

    def _array_path(self, side: Path, name: str) -> Path:
        stem = side.name.removesuffix(self.suffix)
        return side.with_name(f"{stem}.npy" if name == "features" else f"{stem}@{name}.npy")

    def _side(self, path: Path) -> dict[str, Any] | None:
        return unseal_json(path.read_text("utf-8", "replace"))

    def sealed(self, path: Path) -> bool:
        with open(path, "rb") as file:
            return file.read(len(self.mark)) == self.mark.encode()

    def intact(self, path: Path) -> bool:
        side = self._side(path)
        if side is None:
            return False
        for name, crc in side["files"].items():
            try:
                with open(self._array_path(path, name), "rb") as file:
                    if crc32_of(file, 0, file.seek(0, os.SEEK_END)) != crc:
                        return False
            except FileNotFoundError:
                return False
        return True

    def open_file(self, path: Path) -> Stored:
        side = self._side(path)
        if side is None:
            raise ValueError(f"{path.name} is damaged")
        arrays = {name: np.array(side[name], np.float64) for name in ("start_seconds", "stop_seconds")}
        for name in side["files"].keys() - {"features"}:
            arrays[name] = np.load(self._array_path(path, name), allow_pickle=False)
        with open(self._array_path(path, "features"), "rb") as file:
            rows = map_npy(file, 0)
        return Stored(rows, arrays, side["metadata"])

    def write(self, key: str, spool: Spool, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        target, ready = self.path(key), {}
        files = {name: array for name, array in arrays.items() if name not in ("start_seconds", "stop_seconds")}
        crcs = {}
        for name, array in {"features": None, **files}.items():
            temporary = spool.path.with_suffix(f".{name}.out")
            with open(temporary, "w+b") as file:
                if array is None:
                    write_npy(file, spool)
                else:
                    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
                crcs[name] = crc32_of(file, 0, file.seek(0, os.SEEK_END))
            ready[temporary] = self._array_path(target, name)
        side = {name: arrays[name].tolist() for name in ("start_seconds", "stop_seconds")}
        temporary = spool.path.with_suffix(".out")
        temporary.write_text(seal_json({**side, "files": crcs, "metadata": metadata}), "utf-8")
        with locked(self.folder / TEMPORARY / "lock"):  # two writers of one key must not mix their files
            self.remove(key)
            for source, place in ready.items():
                put_in_place(source, place)
            put_in_place(temporary, target)

    def remove(self, key: str) -> None:
        side = self.path(key)
        side.unlink(missing_ok=True)  # first: without it the arrays do not count
        self._array_path(side, "features").unlink(missing_ok=True)
        stem = side.name.removesuffix(self.suffix)
        if side.parent.is_dir():
            for name in os.listdir(side.parent):
                if name.startswith(f"{stem}@") and name.endswith(".npy"):
                    Path(side.parent, name).unlink(missing_ok=True)


class Hdf5Format(FileFormat):
    """One .h5 per video with the data sets `features`, `start_seconds`, `stop_seconds`, extra ones, `metadata` (json).

    Contiguous and unfiltered, so that they can be mapped. The seal is in the 512 bytes of user block that HDF5 leaves
    to the application.
    """

    suffix = ".h5"
    mark = b"actionfuse features 1 crc32 "

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        try:
            import h5py
        except ImportError as error:
            raise ValueError(
                "format 'hdf5' needs h5py: pip install 'actionfuse[hdf5]', or take format 'npz'"
            ) from error
        self._file_type = h5py.File

    def sealed(self, path: Path) -> bool:
        with open(path, "rb") as file:
            return file.read(len(self.mark)) == self.mark

    def intact(self, path: Path) -> bool:
        with open(path, "rb") as file:
            return file.read(512) == self._seal(file)

    def _seal(self, file: BinaryIO) -> bytes:
        crc = crc32_of(file, 512, file.seek(0, os.SEEK_END))
        return (self.mark + b"%08x\n" % crc).ljust(512, b"\0")

    def open_file(self, path: Path) -> Stored:
        # HDF5's own file locks fail on some network folders, and a finished file never changes
        with self._file_type(path, "r", locking=False) as file:
            data: Any = {name: file[name] for name in file}
            metadata, features = json.loads(data.pop("metadata")[()]), data.pop("features")
            arrays = {name: array[()] for name, array in data.items()}
            rows = map_array(str(path), features.id.get_offset() or 0, features.shape, features.dtype)
        return Stored(rows, arrays, metadata)

    def write(self, key: str, spool: Spool, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        path = spool.path.with_suffix(".out")
        with self._file_type(path, "w", userblock_size=512, locking=False) as file:
            features = file.create_dataset("features", spool.shape, spool.dtype)
            first = 0
            for block in spool.blocks():
                features[first : first + len(block)] = block
                first += len(block)
            for name, array in arrays.items():
                file.create_dataset(name, data=array)
            file.create_dataset("metadata", data=np.bytes_(canonical_json(metadata).encode()))
        with open(path, "r+b") as file:
            seal = self._seal(file)
            file.seek(0)
            file.write(seal)
        put_in_place(path, self.path(key))
