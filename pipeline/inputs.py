"""Which videos a command line means: files, folders, text lists and csv files of segments, each with a key of its own.

A key names a video's outputs: its path relative to the root, with `/` and with the extension, so that x.mp4 and x.avi
never collide.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    given = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not given:
        raise ValueError("no input was given: name video files, folders, a .txt list or a .csv of segments")
    skipped: Counter[str] = Counter()
    found: list[_Found] = []
    anchors: set[str] = set()  # folders that hold the inputs: what the default root is made of
    for path in given:
        extension = os.path.splitext(path)[1].lower()
        if is_url(path) and extension not in (".txt", ".csv"):
            found.extend(_expand_url(_Found(path.rstrip("/")), skipped, anchors))
            continue
        if not is_url(path) and not os.path.lexists(path) and not is_frame_pattern(path):
            raise ValueError(f"{path!r} does not exist; inputs are video files, folders, .txt lists and .csv segments")
        if extension in (".txt", ".csv") and not os.path.isdir(path):
            for row in _read_list(path) if extension == ".txt" else _read_segments(path):
                # No look at the file system for a name that says it is a video: lists may be long.
                if is_url(row.path):
                    anchors.add(row.path.rsplit("/", 1)[0])
                    found.append(row)
                    continue
                named = os.path.splitext(row.path)[1].lower() in VIDEO_EXTENSIONS
                found.extend(_expand(row, not named and os.path.isdir(row.path), skipped, anchors))
        else:
            path = os.path.abspath(path)
            found.extend(_expand(_Found(path), os.path.isdir(path), skipped, anchors))
    found = list(dict.fromkeys(found))
    base = _base(root, anchors)
    by_key: dict[str, _Found] = {}
    for item in found:
        key = _key(item, base)
        other = by_key.setdefault(key, item)
        if other is not item:
            raise ValueError(
                f"two inputs have the key {key!r}: {_describe(other)} and {_describe(item)}; "
                "give the segments different ids, or leave one out"
            )
    ordered = sorted(by_key.items())
    videos = [VideoInput(item.path, key, item.start_seconds, item.stop_seconds, item.id) for key, item in ordered]
    return InputScan(videos, skipped)


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


def _expand(item: _Found, is_folder: bool, skipped: Counter[str], anchors: set[str]) -> Iterator[_Found]:
    if is_folder and item.start_seconds is None and item.stop_seconds is None:
        paths = list(_walk(item.path, skipped))
        # A folder of frames that is itself the input is named like a file, by the folder that holds it.
        anchors.add(os.path.dirname(item.path) if paths == [item.path] else item.path)
        yield from (replace(item, path=path) for path in paths)
    else:
        anchors.add(os.path.dirname(item.path))
        yield item


def _expand_url(item: _Found, skipped: Counter[str], anchors: set[str]) -> Iterator[_Found]:
    try:
        if not is_remote_folder(item.path):
            remote_file(item.path)
            anchors.add(item.path.rsplit("/", 1)[0])
            yield item
            return
    except FileNotFoundError as error:
        raise ValueError(f"{item.path!r} does not exist; inputs are video files, folders and lists") from error
    anchors.add(item.path)
    for file in list_remote(item.path):
        extension = os.path.splitext(file.url)[1].lower()
        if extension in VIDEO_EXTENSIONS and extension != ".tar":
            yield replace(item, path=file.url)
        else:
            skipped[extension] += 1


def _base(root: str | Path | None, anchors: set[str]) -> str:
    """The folder or URL that keys are relative to."""
    if root is not None:
        return os.fspath(root).rstrip("/") if is_url(root) else os.path.abspath(root)
    remote = [anchor for anchor in anchors if is_url(anchor)]
    if not remote:
        return os.path.commonpath(anchors) if anchors else ""
    parts = [anchor.split("/") for anchor in anchors]
    common = os.path.commonprefix(parts)  # of lists: whole parts only
    if len(remote) < len(anchors) or len(common) < 3:
        raise ValueError(
            "the inputs lie in different stores and have no common root: give each store a call of its own"
        )
    return "/".join(common)


def _walk(top: str, skipped: Counter[str], deep: bool = True) -> Iterator[str]:
    """Video files and folders of frames under `top`, real folders before linked ones, each folder once."""
    seen: set[tuple[int, int]] = set()
    folders, linked = deque([top]), deque[str]()
    while folders or linked:
        folder = folders.popleft() if folders else linked.popleft()
        videos, others, sub_folders = [], [], False
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
                    elif os.path.splitext(entry.name)[1].lower() not in VIDEO_EXTENSIONS:
                        others.append(entry.name)
                    elif entry.is_symlink() or entry.is_file():  # a link that leads nowhere is told when it is opened
                        videos.append(entry.path)
                    else:  # a pipe or a socket: opening it would wait for ever
                        others.append(entry.name)
        except OSError:
            if folder == top:
                raise
            yield folder  # may not be read: opening it tells why
            continue
        if not videos and not sub_folders and names_a_frame_folder(others):
            yield folder
        else:
            yield from videos
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
