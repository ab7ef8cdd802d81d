"""Whether a dataset on disk is whole: which annotation files and videos are there, which are missing.

Without DATASET: what can be read, with the splits. Without ROOT: where to get a dataset and how its folder must look.
Nothing is written. Exit codes: 0 all is there, 1 something is missing or wrong (listed), 2 wrong call.

  actionfuse check
  actionfuse check epic_kitchens_100
  actionfuse check epic_kitchens_100 data/ek100 --split train validation --decode 20
  actionfuse check epic_kitchens_55 data/ek55 --options annotations=rulstm paths.rgb=videos/{video}.mp4
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..annotations import Segment
from ..decoders.flow_folder import open_flow
from ..decoders.frame_files import fitting, is_frame_pattern
from ..guard import Lost, guarded_map
from ..video import VideoError, open_video
from .contract import CARDS, DATASETS, Dataset, check_call, list_datasets, load_dataset, options_of
from .layout import LayoutError

_SHOWN = 5
_LATE_SECONDS = 1.0  # annotators' and containers' ends differ by fractions of a second


@dataclass(frozen=True, kw_only=True)
class StreamCheck:
    """One stream of one split. missing: paths below root; problems: what decoding found, one line for each video."""

    expected: str | None
    videos: int
    missing: list[str] = field(default_factory=list)
    decoded: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SplitCheck:
    """One split. error: why its annotations cannot be read; missing_files: those that were looked for.

    without_boxes: videos without boxes, of datasets that have some.
    """

    split: str
    error: str | None = None
    missing_files: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    segments: int = 0
    videos: int = 0
    notes: list[str] = field(default_factory=list)
    without_boxes: list[str] = field(default_factory=list)
    streams: dict[str, StreamCheck] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        wrong = any(stream.missing or stream.problems for stream in self.streams.values())
        return self.error is None and not wrong and not self.without_boxes


def check_dataset(
    name: str,
    root: str | Path,
    splits: Sequence[str] = (),
    *,
    streams: Sequence[str] = (),
    decode: int = 0,
    options: Mapping[str, object] | None = None,
) -> list[SplitCheck]:
    """What is there of a dataset.

    splits: which ones; none: all. streams: which ones; none: those that the reader finds, at least rgb.
    decode: how many videos of each split and stream are opened and decoded at a segment's start, middle and end.
    options: of the dataset, as in `load_dataset`.

    Raises ValueError for a wrong call: an unknown dataset, split or option, or a root that is no folder.
    """
    if decode < 0:
        raise ValueError(f"decode is {decode}; it must be 0 or more")
    DATASETS[name]  # an unknown name is told before anything is read
    wanted = tuple(splits) or CARDS[name].splits
    for split in wanted:
        check_call(name, root, split, options or {})
    work: list[_Work] = []
    found = [_check_split(name, Path(root), split, streams, decode, options or {}, work) for split in wanted]
    # one process for all: starting one takes longer than decoding a few frames
    for item, trouble in guarded_map(_decode, work):
        if trouble is not None:
            reason = trouble.reason if isinstance(trouble, Lost) else trouble
            problems = found[wanted.index(item.split)].streams[item.stream].problems
            problems.append(f"{_below(Path(item.path), Path(root))}: {reason}")
    return found


class _Work(NamedTuple):
    """A file that is to be decoded around a segment."""

    split: str
    stream: str
    path: str
    start_seconds: float
    stop_seconds: float
    frame_fps: float | None


def _check_split(
    name: str,
    root: Path,
    split: str,
    streams: Sequence[str],
    decode: int,
    options: Mapping[str, object],
    work: list[_Work],
) -> SplitCheck:
    try:
        dataset = load_dataset(name, root, split, **options)
    except (ValueError, OSError) as problem:
        missing = list(problem.missing) if isinstance(problem, LayoutError) else []
        return SplitCheck(split=split, error=str(problem), missing_files=missing)
    # One segment stands for each video: the one that ends last, which a video that is too short cannot hold.
    last: dict[str, Segment] = {}
    for segment in dataset.segments:
        if segment.video not in last or segment.stop_seconds > last[segment.video].stop_seconds:
            last[segment.video] = segment
    segments = list(last.values())
    return SplitCheck(
        split=split,
        files=[_below(path, root) for path in dataset.files],
        segments=len(dataset.segments),
        videos=len(segments),
        notes=list(dataset.notes),
        without_boxes=[] if dataset.boxes is None else [video for video in last if video not in dataset.boxes],
        streams={
            stream: _check_stream(dataset, segments, split, stream, decode, work) for stream in streams or dataset.paths
        },
    )


def _check_stream(
    dataset: Dataset, segments: Sequence[Segment], split: str, stream: str, decode: int, work: list[_Work]
) -> StreamCheck:
    """What is there of a stream; what is to be decoded of it goes to `work`."""
    if stream not in dataset.paths:
        nowhere = [f"no {stream} lies where it is looked for; name its place with --options paths.{stream}=PATTERN"]
        return StreamCheck(expected=None, videos=len(segments), missing=nowhere)
    present: list[tuple[Segment, Path]] = []
    missing: list[str] = []
    exists = _Listing()
    for segment in segments:
        try:
            path = dataset.path(segment, stream)
        except FileNotFoundError as problem:
            missing.append(str(problem))
            continue
        if exists(path):
            present.append((segment, path))
        else:
            missing.append(_below(path, dataset.root))
    chosen = present[:: max(1, len(present) // max(1, decode))][:decode]
    for s, path in chosen:
        frame_fps = dataset.frame_fps(s, stream)
        work.append(_Work(split, stream, str(path), s.start_seconds, s.stop_seconds, frame_fps))
    return StreamCheck(expected=dataset.paths[stream], videos=len(segments), missing=missing, decoded=len(chosen))


class _Listing:
    """Whether paths exist, by one look at each folder: asking for a hundred thousand one by one is slow over a net."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, bool]] = {}

    def __call__(self, path: Path) -> bool:
        if path.parent not in self._names:
            try:
                with os.scandir(path.parent) as entries:
                    self._names[path.parent] = {entry.name: entry.is_symlink() for entry in entries}
            except OSError:
                self._names[path.parent] = {}
        is_link = self._names[path.parent].get(path.name)
        if is_link is None and is_frame_pattern(path):
            return bool(fitting(path.name, self._names[path.parent]))
        return is_link is False or (is_link is True and path.exists())


def _decode(item: _Work) -> str | None:
    """Decode a video at a segment's start, middle and end; what is wrong with it, or None."""
    _, stream, path, start, stop, frame_fps = item
    try:
        # Files of flow are videos, or folders and tars of a picture for u and one for v.
        opened = open_flow if stream == "flow" else open_video
        with opened(path, frame_fps=frame_fps or 30.0) as reader:
            duration = reader.info.duration_seconds
            end = duration if math.isinf(stop) else stop
            if end > duration + _LATE_SECONDS:
                return f"a segment ends at {end:.2f} s and the video at {duration:.2f} s"
            end = min(end, duration)
            reader.frames_at([start, (start + end) / 2, max(start, end - 1e-3)], short_side=64)
            damage = list(reader.damage)
    except (VideoError, ValueError, OSError) as problem:
        return str(problem)
    return "; ".join(damage) or None


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help="name of a dataset; none: list them")
    parser.add_argument("root", nargs="?", metavar="ROOT", help="its folder; none: tell how it must look")
    parser.add_argument("--split", nargs="+", default=[], metavar="SPLIT", help="splits to check (default: all)")
    parser.add_argument(
        "--streams",
        default="",
        metavar="A,B",
        help="such as rgb,flow (default: those that are there)",
    )
    parser.add_argument(
        "--decode",
        type=int,
        default=0,
        metavar="N",
        help="decode N videos of each split and stream, where segments begin and end (default: none)",
    )
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="options of the dataset; patterns of paths as paths.rgb=...",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, in place of the text")


def main(args: argparse.Namespace) -> int:
    if args.dataset is None:
        cards = {name: asdict(CARDS[name]) for name in list_datasets()}
        print(json.dumps(cards, indent=2) if args.json else "\n".join(_listed(cards)))
        return 0
    if args.root is None:
        DATASETS[args.dataset]
        told = {**asdict(CARDS[args.dataset]), "options": {n: str(v) for n, v in options_of(args.dataset).items()}}
        print(json.dumps({args.dataset: told}, indent=2) if args.json else "\n".join(_card(args.dataset)))
        return 0
    streams = [stream.strip() for stream in args.streams.split(",") if stream.strip()]
    found = check_dataset(
        args.dataset, args.root, args.split, streams=streams, decode=args.decode, options=_parse(args.options)
    )
    if args.json:
        splits = [{**asdict(split), "is_whole": split.is_whole} for split in found]
        print(json.dumps({"dataset": args.dataset, "root": args.root, "splits": splits}, indent=2))
    else:
        print("\n".join(_report(args.dataset, args.root, found)))
    return 0 if all(split.is_whole for split in found) else 1


def _parse(words: Sequence[str]) -> dict[str, object]:
    options: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals):
            raise ValueError(f"--options {word!r}; write NAME=VALUE, for instance annotations=rulstm")
        try:
            value: object = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
        except (ValueError, SyntaxError):
            value = text
        outer, dot, inner = name.partition(".")
        if dot:
            options.setdefault(outer, {})[inner] = text
        else:
            options[name] = value
    return options


def _listed(cards: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    width = max(map(len, cards))
    for name, card in cards.items():
        yield f"{name:{width}}  {', '.join(card['splits'])}"
        yield f"{'':{width}}  {card['paper']}; {card['licence']}"


def _card(name: str) -> Iterator[str]:
    card = CARDS[name]
    yield f"{name}: {card.paper}"
    yield f"  source   {card.source}"
    yield f"  licence  {card.licence}"
    yield f"  splits   {', '.join(card.splits)}"
    yield f"  options  {', '.join(f'{option}={default!r}' for option, default in options_of(name).items()) or 'none'}"
    yield "  expected in its folder (see the docstring of its module for all of it):"
    yield card.layout


def _report(name: str, root: str, found: Sequence[SplitCheck]) -> Iterator[str]:
    yield f"{name} in {root}"
    for split in found:
        if split.error is not None:
            yield f"  {split.split}: cannot be read: {split.error}"
            continue
        files = f"; {', '.join(split.files)}" if split.files else ""
        yield f"  {split.split}: {split.segments} segments of {split.videos} videos{files}"
        yield from (f"    note: {note}" for note in split.notes)
        yield from _shown("without boxes", split.without_boxes)
        for stream, seen in split.streams.items():
            there = seen.videos - len(seen.missing) if seen.expected is not None else 0
            yield f"    {stream}: {there} of {seen.videos} videos{f' as {seen.expected}' if seen.expected else ''}"
            yield from _shown("missing", seen.missing)
            if seen.decoded:
                yield f"      decoded {seen.decoded} of them, {len(seen.problems)} with problems"
            yield from _shown("broken", seen.problems)
    if any(split.missing_files for split in found):
        yield f"expected in the folder:\n{CARDS[name].layout}"
    whole = sum(split.is_whole for split in found)
    yield f"{whole} of {len(found)} splits are whole"


def _shown(word: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:_SHOWN]:
        yield f"      {word}: {line}"
    if len(lines) > _SHOWN:
        yield f"      and {len(lines) - _SHOWN} more {word} (--json lists all)"
