"""Which videos a command line means: files, folders, text lists and csv files of segments, each with a key of its own.

A key names a video's outputs: its path relative to the root, with `/` and with the extension, so that x.mp4 and x.avi
never collide.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from .decoders.frame_files import is_frame_pattern, leads_to_folder, names_a_frame_folder
from .remote import RangeFile, is_remote_folder, is_url, list_remote, remote_file

# What a walk over a folder picks up (tar: of frames); a file that is named itself is taken whatever it is called.
VIDEO_EXTENSIONS = frozenset(
    ".mp4 .m4v .mov .qt .mkv .webm .avi .divx .mpg .mpeg .m2v .vob .ts .m2ts .mts .wmv .asf .flv .f4v .3gp .3g2 .ogv "
    ".ogm .mxf .rm .rmvb .dv .nut .y4m .mjpeg .mjpg .h264 .264 .h265 .265 .hevc .ivf .obu .gif .tar".split()
)


@dataclass(frozen=True, slots=True)
class VideoInput:
    """One video to read, or the segment [start_seconds, stop_seconds) of one (None: from its start, to its end).

    path: a video file, a folder of frames or a tar of frames. id: the segment's name, None without a segment.
    """

    path: str
    key: str
    start_seconds: float | None = None
    stop_seconds: float | None = None
    id: str | None = None


@dataclass(frozen=True)
class InputScan:
    """videos: sorted by key. skipped: how many files of folders are no videos by their extension ('' = without one)."""

    videos: list[VideoInput]
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Found:
    path: str  # absolute, or a URL
    start_seconds: float | None = None
    stop_seconds: float | None = None
    id: str | None = None
    tag: str = field(default="", compare=False)  # size and etag, of what a store listed


class _Root:
    """The folder or URL that keys are relative to; found while inputs are, of which there may be too many to keep."""

    def __init__(self, given: str | Path | None) -> None:
        self._given = given
        self._local: str | None = None
        self._remote: list[str] | None = None

    def add(self, folder: str) -> None:
        """An input lies in this folder."""
        if is_url(folder):
            parts = folder.split("/")  # of lists commonprefix compares whole entries
            self._remote = parts if self._remote is None else list(os.path.commonprefix([self._remote, parts]))
        elif folder != self._local:
            self._local = folder if self._local is None else os.path.commonpath([self._local, folder])

    def folder(self) -> str:
        if self._given is not None:
            return os.fspath(self._given).rstrip("/") if is_url(self._given) else os.path.abspath(self._given)
        if self._remote is None:
            return self._local or ""
        if self._local is not None or len(self._remote) < 3:
            raise ValueError(
                "the inputs lie in different stores and have no common root: give each store a call of its own"
            )
        return "/".join(self._remote)


def find_videos(paths: str | Path | Iterable[str | Path], root: str | Path | None = None) -> list[VideoInput]:
    """The videos that `paths` mean, sorted by key, each once.

    paths: any of
        - a file; a folder of frames or a tar of frames is one video (`decoders.frame_folder.is_frame_folder`);
        - a folder: searched with its sub-folders for VIDEO_EXTENSIONS and folders of frames. Hidden names are left
          out, linked folders are followed once each;
        - a list `*.txt`: one path a line, relative to the list's folder; lines that begin with # are comments;
        - a table `*.csv` with a header that has path, start_seconds, stop_seconds and perhaps id (others are ignored):
          one segment a row, paths as in a list; an empty start or stop is the video's own, both empty the whole video.
    Any of these may be URLs (s3://bucket/videos, https://host/x.mp4), and lists may hold URLs; those of frame folders
    cannot be read. See `pipeline.remote`.
    root: keys are relative to it; default: the one folder that was given, or the deepest one that holds all inputs.
        Give it where outputs of several calls share a folder, so that a video's key is the same in each.

    The key of a segment is the video's, `#` and its id (default `start-stop` in seconds, to the millisecond). Files of
    lists are not looked at here: a missing one is found when it is opened.

    Raises: ValueError where a path does not exist, a table is malformed, an input is outside of the root, or two
        different inputs have one key.
    """
    return scan_inputs(paths, root).videos


def scan_inputs(paths: str | Path | Iterable[str | Path], root: str | Path | None = None) -> InputScan:
    """`find_videos`, with the count of what was skipped."""
    skipped: Counter[str] = Counter()
    base = _Root(root)
    found = list(dict.fromkeys(_find(paths, skipped, base)))
    top = base.folder()
    by_key: dict[str, _Found] = {}
    for item in found:
        key = _key(item, top)
        other = by_key.setdefault(key, item)
        if other is not item:
            raise ValueError(
                f"two inputs have the key {key!r}: {_describe(other)} and {_describe(item)}; "
                "give the segments different ids, or leave one out"
            )
    ordered = sorted(by_key.items())
    videos = [VideoInput(item.path, key, item.start_seconds, item.stop_seconds, item.id) for key, item in ordered]
    return InputScan(videos, skipped)


@dataclass(frozen=True)
class ListedInputs:
    """count: of inputs, repeated ones too. Iterating gives each and what the store's listing said of its content."""

    count: int
    root: str
    _file: IO[str]

    def __iter__(self) -> Iterator[tuple[VideoInput, str]]:
        self._file.seek(0)
        for line in self._file:
            *given, tag = json.loads(line)
            item = _Found(*given)
            yield VideoInput(item.path, _key(item, self.root), item.start_seconds, item.stop_seconds, item.id), tag


@contextmanager
def listed_inputs(paths: str | Path | Iterable[str | Path], root: str | Path | None = None) -> Iterator[ListedInputs]:
    """`find_videos` for more inputs than memory holds: they wait in a temporary file, in the order they were found.

    Each place is listed once. An input that is named twice comes twice, and nothing is said of two with one key.
    Raises: ValueError as `find_videos`; for one outside of the root when iterating comes to it.
    """
    base = _Root(root)
    count = 0
    with tempfile.TemporaryFile("w+", encoding="ascii") as file:
        for item in _find(paths, Counter(), base):
            count += 1
            row = [item.path, item.start_seconds, item.stop_seconds, item.id, item.tag]
            file.write(json.dumps(row) + "\n")
        yield ListedInputs(count, base.folder(), file)


def _find(paths: str | Path | Iterable[str | Path], skipped: Counter[str], root: _Root) -> Iterator[_Found]:
    """What `paths` mean, as it is found."""
    given = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not given:
        raise ValueError("no input was given: name video files, folders, a .txt list or a .csv of segments")
    for path in given:
        extension = os.path.splitext(path)[1].lower()
        if is_url(path) and extension not in (".txt", ".csv"):
            yield from _expand_url(_Found(path.rstrip("/")), skipped, root)
            continue
        if not is_url(path) and not os.path.lexists(path) and not is_frame_pattern(path):
            raise ValueError(f"{path!r} does not exist; inputs are video files, folders, .txt lists and .csv segments")
        if extension in (".txt", ".csv") and not os.path.isdir(path):
            for row in _read_list(path) if extension == ".txt" else _read_segments(path):
                # No look at the file system for a name that says it is a video: lists may be long.
                if is_url(row.path):
                    root.add(row.path.rsplit("/", 1)[0])
                    yield row
                    continue
                named = os.path.splitext(row.path)[1].lower() in VIDEO_EXTENSIONS
                yield from _expand(row, not named and os.path.isdir(row.path), skipped, root)
        else:
            path = os.path.abspath(path)
            yield from _expand(_Found(path), os.path.isdir(path), skipped, root)


def is_frame_folder(path: str | Path) -> bool:
    """Whether a walk over inputs takes this folder for one video.

    It does where the folder holds numbered images of one series (series of flow do not count), no video file and no
    visible sub-folder. `open_video` on a folder is less strict.
    """
    return list(_walk(os.fspath(path), Counter(), deep=False)) == [os.fspath(path)]


def _key(item: _Found, base: str) -> str:
    prefix = base if base.endswith(os.sep) else base + os.sep
    if not item.path.startswith(prefix):
        raise ValueError(f"{item.path!r} is not inside of the root {base!r}; name a root that holds all inputs")
    key = item.path[len(prefix) :].replace(os.sep, "/")
    return key if item.id is None else f"{key}#{item.id}"


def _describe(item: _Found) -> str:
    if item.start_seconds is None and item.stop_seconds is None:
        return item.path
    return f"{item.path} [{item.start_seconds}, {item.stop_seconds}) s"


def _expand(item: _Found, is_folder: bool, skipped: Counter[str], root: _Root) -> Iterator[_Found]:
    if not is_folder or item.start_seconds is not None or item.stop_seconds is not None:
        root.add(os.path.dirname(item.path))
        yield item
        return
    for path in _walk(item.path, skipped):
        # A folder of frames that is itself the input is named like a file, by the folder that holds it.
        root.add(os.path.dirname(item.path) if path == item.path else item.path)
        yield replace(item, path=path)


def _expand_url(item: _Found, skipped: Counter[str], root: _Root) -> Iterator[_Found]:
    try:
        if not is_remote_folder(item.path):
            file = remote_file(item.path)
            root.add(item.path.rsplit("/", 1)[0])
            yield replace(item, tag=file.tag)
            return
    except FileNotFoundError as error:
        raise ValueError(f"{item.path!r} does not exist; inputs are video files, folders and lists") from error
    root.add(item.path)
    for file in list_remote(item.path):
        extension = os.path.splitext(file.url)[1].lower()
        if extension in VIDEO_EXTENSIONS and extension != ".tar":
            yield replace(item, path=file.url, tag=file.tag)
        else:
            skipped[extension] += 1


def _walk(top: str, skipped: Counter[str], deep: bool = True) -> Iterator[str]:
    """Video files and folders of frames under `top`, real folders before linked ones, each folder once."""
    seen: set[tuple[int, int]] = set()
    folders, linked = deque([top]), deque[str]()
    while folders or linked:
        folder = folders.popleft() if folders else linked.popleft()
        videos = sub_folders = False
        others: list[str] = []  # names, as long as this may be a folder of frames
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if leads_to_folder(entry):
                        sub_folders = True
                        (linked if entry.is_symlink() else folders).append(entry.path)
                    # a link that leads nowhere is told when it is opened; a pipe or a socket would wait for ever
                    elif os.path.splitext(entry.name)[1].lower() in VIDEO_EXTENSIONS and (
                        entry.is_symlink() or entry.is_file()
                    ):
                        videos = True
                        yield entry.path
                    elif videos or sub_folders:
                        skipped[os.path.splitext(entry.name)[1].lower()] += 1
                    else:
                        others.append(entry.name)
        except OSError:
            if folder == top:
                raise
            yield folder  # may not be read: opening it tells why
            continue
        if not videos and not sub_folders and names_a_frame_folder(others):
            yield folder
        else:
            skipped.update(os.path.splitext(name)[1].lower() for name in others)
        if not deep:
            return


def _folder_of(path: str) -> str:
    return path.rsplit("/", 1)[0] if is_url(path) else os.path.dirname(os.path.abspath(path))


def beside(folder: str, name: str) -> str:
    """What a list in `folder` means by `name`: a URL stays, a path is relative to the list."""
    if is_url(name):
        return name
    if is_url(folder):
        return f"{folder}/{name.removeprefix('./')}"
    return os.path.normpath(os.path.join(folder, name))


def _read_list(path: str) -> Iterator[_Found]:
    folder = _folder_of(path)
    with RangeFile(path) if is_url(path) else open(path, "rb") as file:
        for line in file:
            name = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf").strip())
            if name and not name.startswith("#"):
                yield _Found(beside(folder, name))


def _read_segments(path: str) -> Iterator[_Found]:
    folder = _folder_of(path)
    with (
        RangeFile(path) if is_url(path) else open(path, "rb") as raw,
        io.TextIOWrapper(io.BufferedReader(raw), "utf-8-sig", "surrogateescape", newline="") as file,  # pyright: ignore[reportArgumentType]
    ):
        rows = csv.DictReader(file, skipinitialspace=True)
        missing = [name for name in ("path", "start_seconds", "stop_seconds") if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: the header is {','.join(rows.fieldnames or ())!r} and lacks {', '.join(missing)}; "
                "it must have path,start_seconds,stop_seconds and may have id"
            )
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if not row["path"]:
                raise ValueError(f"{where}: the path is empty")
            start, stop = (_seconds(row[name], f"{where}: {name}") for name in ("start_seconds", "stop_seconds"))
            if start is not None and stop is not None and not start < stop:
                raise ValueError(
                    f"{where}: the segment [{start}, {stop}) s is empty; start_seconds must be below stop_seconds"
                )
            name = (row.get("id") or "").strip() or None
            if name is not None and (re.search(r"[/\\\x00-\x1f]", name) or name in (".", "..")):
                raise ValueError(
                    f"{where}: the id {name!r} cannot be part of a file's name; leave out slashes and control codes"
                )
            if name is None and (start is not None or stop is not None):
                name = f"{'start' if start is None else f'{start:.3f}'}-{'stop' if stop is None else f'{stop:.3f}'}"
            yield _Found(beside(folder, row["path"].strip()), start, stop, name)


def _seconds(text: str | None, where: str) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{where} is {text!r}; it must be a number of seconds, or empty for the video's own")
    return seconds
