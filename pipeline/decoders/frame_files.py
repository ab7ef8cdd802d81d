"""Files of frames: which names make a series of numbered frames, and where their bytes lie (a folder or a tar file)."""

from __future__ import annotations

import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from ..video import VideoError

IMAGE_EXTENSIONS = frozenset(".jpg .jpeg .jpe .png .bmp .webp .tif .tiff .ppm .pgm .pnm".split())
PATTERN = re.compile(r"%(?:0?\d*)d")
FLOW = re.compile(r"^(flow.*|[xyuv])[_-]?$", re.IGNORECASE)  # what flow series are named by
_LAST_NUMBER = re.compile(r"^(?P<before>.*?)(?P<digits>\d+)(?P<after>\D*)$", re.DOTALL)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    # Digits compare as numbers and before text; the text itself settles ties such as 1 and 01.
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def extension_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def frame_series(names: Iterable[str]) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """Image names grouped by what surrounds their last number: (before, after) -> [(number, name), ...], unsorted."""
    series: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        stem, extension = os.path.splitext(name)
        if extension.lower() in IMAGE_EXTENSIONS and not name.startswith("."):
            found = _LAST_NUMBER.match(stem)
            if found and len(found["digits"]) <= 18:  # what fits an int64
                series[found["before"], found["after"]].append((int(found["digits"]), name))
    return dict(series)


def names_a_frame_folder(file_names: Iterable[str]) -> bool:
    """Whether a folder with these files (and no sub-folder) is one video: one series of numbered images, flow aside."""
    return sum(not FLOW.match(before) for before, _ in frame_series(file_names)) == 1


def is_frame_pattern(path: str | Path) -> bool:
    """Whether the path's last part is a pattern of numbered images, such as `img_%05d.jpg`; see `fitting`."""
    name = os.path.basename(path)
    return extension_of(name) in IMAGE_EXTENSIONS and PATTERN.search(name) is not None


def fitting(pattern: str, names: Iterable[str]) -> list[tuple[int, str]]:
    """The names that fit a pattern, each with its number, unsorted.

    The first field counts; further ones stand for any number: `frame_%d_tc_%d_rgb.jpg`. Widths and the case of the
    extension do not matter.
    """
    extension = extension_of(pattern)
    first, *rest = map(re.escape, PATTERN.split(pattern[: -len(extension)]))
    whole = re.compile(first + r"(\d{1,18})" + r"\d+".join(rest))
    found = []
    for name in names:
        stem, of_name = os.path.splitext(name)
        if of_name.lower() == extension and (match := whole.fullmatch(stem)):
            found.append((int(match[1]), name))
    return found


class FolderOfFrames:
    """The files of one folder."""

    damage: str | None = None

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            with os.scandir(path) as entries:
                files = (e.name for e in entries if not e.name.startswith(".") and not leads_to_folder(e))
                self.names = list(files)
        except OSError as error:
            raise VideoError(f"{path}: {error.strerror}") from error

    def read(self, name: str) -> bytes:
        with open(os.path.join(self._path, name), "rb") as file:
            return file.read()

    def close(self) -> None: ...


class TarOfFrames:
    """The files of an uncompressed tar, read at their offsets (thread-safe: no shared file position).

    parents: folders whose files are named FOLDER/NAME, and count as lying in the folder above.
    """

    def __init__(self, path: str, parents: Collection[str] = ()) -> None:
        self.damage: str | None = None
        members: dict[str, tuple[int, int]] = {}
        folders = set()
        try:
            with tarfile.open(path, "r:") as tar:
                try:
                    for member in tar:
                        folder, name = os.path.split(os.path.normpath(member.name))
                        if member.isreg() and not member.issparse() and not name.startswith("."):
                            above, parent = os.path.split(folder)
                            if parent in parents:
                                folder, name = above, f"{parent}/{name}"
                            members[name] = (member.offset_data, member.size)
                            if extension_of(name) in IMAGE_EXTENSIONS:
                                folders.add(folder)
                except (tarfile.TarError, OSError, ValueError) as error:
                    # What the headers up to here name is still good: a copy that was cut off.
                    self.damage = f"the tar breaks off after {len(members)} files ({error})"
        except tarfile.TarError as error:
            with open(path, "rb") as file:
                packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd"))
            why = (
                "it is compressed; unpack the outer layer once (gunzip), frames are read by offset" if packed else error
            )
            raise VideoError(f"{path}: no tar of frames: {why}") from error
        except OSError as error:
            raise VideoError(f"{path}: {error.strerror}") from error
        if len(folders) > 1:
            some = ", ".join(sorted(folder or "." for folder in folders)[:4])
            raise VideoError(
                f"{path}: holds frames of {len(folders)} folders ({some}, ...); make one tar for each video"
            )
        self.names = list(members)
        self._members = members
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def read(self, name: str) -> bytes:
        offset, size = self._members[name]
        data = os.pread(self._descriptor, size, offset)
        if len(data) < size:
            raise OSError(f"{len(data)} of {size} bytes are there")
        return data

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
