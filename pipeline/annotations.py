"""Segment: the only schema of annotations that the rest of the package sees, and a csv form of it for one's own videos.

The csv has a header and one segment a line:

    path,start_seconds,stop_seconds,id,verb,noun
    kitchen/a.mp4,12.5,14.25,a-0,3,17
    kitchen/a.mp4,00:00:20.1,,a-1,0,4;9

`path` is needed, all else may be left out. Times are seconds or [hours:]minutes:seconds; no start is 0, no stop is the
end of the video. Label cells hold a class number, or several with `;` (`4;9`, and `4;` for a list of one); an empty
cell is no label. Without an `id` a segment is called path#start-stop.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actionfuse._files import replacing

OWN_COLUMNS = ("path", "start_seconds", "stop_seconds", "id")

Label = int | tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """An annotated piece of one video.

    video: path or key of the video, as its dataset writes it.
    start_seconds, stop_seconds: half-open interval; stop may be infinite: to the end of the video.
    labels: name -> class number, or a tuple of them where several hold. Names that are missing are unknown.
    id: names the segment in its dataset, in score files and in feature stores.
    extra: what else a protocol needs as text: participant, narration, split.
    """

    video: str
    start_seconds: float
    stop_seconds: float
    id: str
    labels: Mapping[str, Label] = field(default_factory=dict, hash=False)
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.video or not self.id:
            raise ValueError(f"a Segment needs a video and an id; it got video={self.video!r}, id={self.id!r}")
        if not (math.isfinite(self.start_seconds) and self.start_seconds >= 0):
            raise ValueError(f"segment {self.id!r} starts at {self.start_seconds} s; it must be 0 or more and finite")
        if not self.stop_seconds > self.start_seconds:
            raise ValueError(
                f"segment {self.id!r} is [{self.start_seconds}, {self.stop_seconds}) s; it must stop after its start"
            )
        for name, label in self.labels.items():
            classes = label if isinstance(label, tuple) else (label,)
            if not classes or not all(type(c) is int and c >= 0 for c in classes):
                raise ValueError(
                    f"segment {self.id!r} has {name}={label!r}; a label is a class number (an int, 0 or more) "
                    "or a tuple of them; leave unknown labels out"
                )

    @property
    def duration_seconds(self) -> float:
        return self.stop_seconds - self.start_seconds


def parse_seconds(text: str) -> float:
    """Seconds of "12.5", "01:02.5" or "00:01:02.5". Raises ValueError."""
    parts = text.strip().split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 3 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"{text!r} is no time; write seconds (12.5) or [hours:]minutes:seconds (00:01:02.5)")
    if len(values) > 1 and not (values[0] >= 0 and all(0 <= value < 60 for value in values[1:])):
        raise ValueError(f"{text!r} is no time; minutes and seconds after a colon must be 0 or more and below 60")
    total = 0.0
    for value in values:
        total = total * 60 + value
    return total


def _parse_label(text: str) -> Label:
    if ";" not in text:
        return int(text)
    return tuple(int(part) for part in text.rstrip("; ").split(";"))


def csv_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, stripped cells) of each row of a UTF-8 csv that is not empty.

    Raises: ValueError that names the file where it is no UTF-8 text or no csv, and FileNotFoundError.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, skipinitialspace=True)
        try:
            for cells in rows:
                cells = [cell.strip() for cell in cells]
                if any(cells):
                    yield rows.line_num, cells
        except (UnicodeDecodeError, csv.Error) as problem:
            raise ValueError(f"{path}:{rows.line_num + 1}: not a UTF-8 csv file: {problem}") from None


def read_segments(path: str | Path, label_columns: Sequence[str] | None = None) -> list[Segment]:
    """Read the csv described above (UTF-8), in its order.

    label_columns: which further columns are labels; all others become `extra` text. None: every further column is one.
    Raises: ValueError that names the file and the line, and FileNotFoundError.
    """
    rows = csv_rows(path)
    line, header = next(rows, (1, []))
    if "path" not in header:
        raise ValueError(
            f"{path}:{line}: the header is {','.join(header)!r}; it must name the columns, comma-separated, as in "
            "path,start_seconds,stop_seconds[,id][,labels]"
        )
    if len(set(header)) != len(header) or "" in header:
        raise ValueError(f"{path}:{line}: every column needs a name of its own; the header is {','.join(header)!r}")
    further = [name for name in header if name not in OWN_COLUMNS]
    labelled = further if label_columns is None else list(label_columns)
    if missing := sorted(set(labelled) - set(further)):
        raise ValueError(
            f"{path}:{line}: no column {', '.join(missing)}; there are {', '.join(further) or 'no others'}"
        )
    segments: list[Segment] = []
    lines: dict[str, int] = {}
    for line, cells in rows:
        if len(cells) != len(header):
            raise ValueError(
                f"{path}:{line}: {len(cells)} cells where the header has {len(header)}; quote cells that hold commas"
            )
        try:
            segment = _segment_of(dict(zip(header, cells, strict=True)), labelled)
        except ValueError as problem:
            raise ValueError(f"{path}:{line}: {problem}") from None
        if segment.id in lines:
            raise ValueError(
                f"{path}:{line}: segment {segment.id!r} is in line {lines[segment.id]} already; "
                "give every segment an id of its own in a column id"
            )
        lines[segment.id] = line
        segments.append(segment)
    return segments


def _segment_of(row: Mapping[str, str], label_columns: Sequence[str]) -> Segment:
    start, stop = row.get("start_seconds", ""), row.get("stop_seconds", "")
    start_seconds = parse_seconds(start) if start else 0.0
    stop_seconds = parse_seconds(stop) if stop else math.inf
    labels: dict[str, Label] = {}
    for name in label_columns:
        if row[name]:
            try:
                labels[name] = _parse_label(row[name])
            except ValueError:
                raise ValueError(
                    f"{name} is {row[name]!r}; a label is a class number, or several joined by ';'. "
                    "Where the column is no label, say which ones are with label_columns"
                ) from None
    extra = {name: cell for name, cell in row.items() if cell and name not in {*OWN_COLUMNS, *label_columns}}
    if not row["path"]:
        raise ValueError("the path is empty")
    segment_id = row.get("id") or f"{row['path']}#{start_seconds:.12g}-{stop_seconds:.12g}"
    return Segment(row["path"], start_seconds, stop_seconds, segment_id, labels, extra)


def write_segments(path: str | Path, segments: Iterable[Segment]) -> None:
    """Write the csv that `read_segments` reads back equal (with label_columns named, where there is `extra`)."""
    segments = list(segments)
    names = list(dict.fromkeys(name for segment in segments for name in segment.labels))
    extras = list(dict.fromkeys(name for segment in segments for name in segment.extra))
    if clash := sorted((set(names) & set(extras)) | (set(names + extras) & set(OWN_COLUMNS))):
        raise ValueError(f"{', '.join(clash)} would name two columns of the csv; rename the label or extra")
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*OWN_COLUMNS, *names, *extras])
        for segment in segments:
            stop = "" if math.isinf(segment.stop_seconds) else repr(float(segment.stop_seconds))
            labels = [_label_text(segment.labels.get(name, "")) for name in names]
            start = repr(float(segment.start_seconds))
            further = [segment.extra.get(name, "") for name in extras]
            writer.writerow([segment.video, start, stop, segment.id, *labels, *further])


def _label_text(label: Label | str) -> str:
    if isinstance(label, tuple):
        return ";".join(map(str, label)) + (";" if len(label) == 1 else "")
    return str(label)
