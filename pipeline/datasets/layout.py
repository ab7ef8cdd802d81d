"""What readers of datasets share: finding their files, telling what is there instead, reading tables with a header."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from ..annotations import Segment, csv_rows
from ..decoders.frame_files import fitting, is_frame_pattern

_PROBED_VIDEOS = 12


class LayoutError(ValueError):
    """A folder is laid out otherwise than expected. `missing`: names of the files that were looked for."""

    def __init__(self, root: Path, missing: Sequence[str], advice: str = "") -> None:
        self.missing = tuple(missing)
        super().__init__(
            f"{root} holds no {' or '.join(self.missing)}{'; ' if advice else ''}{advice}. "
            f"Found there: {describe_folder(root)}{_inside(root, self.missing)}"
        )


def describe_folder(root: Path, shown: int = 12) -> str:
    """The first names in a folder, those of folders with a /."""
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir()) if root.is_dir() else []
    if not names:
        return "nothing" if root.is_dir() else "no folder"
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _inside(root: Path, names: Sequence[str]) -> str:
    """What is in those folders below root in which the names were looked for."""
    folders = dict.fromkeys(str(Path(name).parent) for name in names if "/" in name)
    return "".join(f"; in {f}/: {describe_folder(root / f)}" for f in folders if (root / f).is_dir())


def find_optional(root: Path, names: Sequence[str], folders: Sequence[str] = ("",)) -> Path | None:
    """The first of the names that is in the first of the folders (relative to root) that has one."""
    for folder in folders:
        for name in names:
            if (path := root / folder / name).is_file():
                return path
    return None


def find_file(root: Path, names: Sequence[str], folders: Sequence[str] = ("",), advice: str = "") -> Path:
    """As `find_optional`; raises LayoutError that tells what was looked for and what is there."""
    path = find_optional(root, names, folders)
    if path is None:
        places = [folder or "." for folder in folders]
        where = f"looked for in {', '.join(places)}" if places != ["."] else ""
        raise LayoutError(root, names, "; ".join(filter(None, (where, advice))))
    return path


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> cell) of a csv whose header has at least these columns. Raises ValueError."""
    rows = csv_rows(path)
    line, header = next(rows, (1, []))
    if missing := [name for name in columns if name not in header]:
        raise ValueError(
            f"{path}:{line}: no column {', '.join(missing)}; the header must have {','.join(columns)} and is "
            f"{','.join(header)!r}"
        )
    for line, cells in rows:
        if len(cells) != len(header):
            raise ValueError(f"{path}:{line}: {len(cells)} cells where the header has {len(header)}")
        yield line, dict(zip(header, cells, strict=True))


def whole_number(text: str, name: str) -> int:
    """A class or frame number, 0 or more. Raises ValueError that names the column."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} is {text!r}; it must be a whole number, 0 or more")
    return int(text)


def unique(segments: Iterable[Segment], path: Path) -> tuple[Segment, ...]:
    """The segments as a tuple. Raises ValueError where two have one id."""
    kept: dict[str, Segment] = {}
    for segment in segments:
        if kept.setdefault(segment.id, segment) is not segment:
            raise ValueError(f"{path}: two segments are called {segment.id!r}; every one needs an id of its own")
    return tuple(kept.values())


def choose_paths(
    root: Path,
    candidates: Mapping[str, Sequence[str]],
    segments: Sequence[Segment],
    given: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """For each stream the pattern of `Dataset.paths` under which most of a few videos lie; of equals the first.

    candidates: stream -> patterns, the expected one first; a stream of which nothing is there keeps that one if it is
        rgb, and is left out otherwise.
    given: patterns that the user names; they are not looked for.
    """
    step = max(1, len(segments) // _PROBED_VIDEOS)
    probes = list({segment.video: segment for segment in islice(segments, 0, None, step)}.values())
    chosen: dict[str, str] = {}
    for stream, patterns in candidates.items():
        hits = [sum(_lies_there(root, pattern, probe) for probe in probes) for pattern in patterns]
        if max(hits, default=0) > 0 or stream == "rgb":
            chosen[stream] = patterns[hits.index(max(hits))]
    return {**chosen, **(given or {})}


def _lies_there(root: Path, pattern: str, segment: Segment) -> bool:
    path = root / pattern.format_map({**segment.extra, "video": segment.video, "id": segment.id})
    return path.exists() or (is_frame_pattern(path) and bool(fitting(path.name, _names(path.parent))))


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
