"""What a dataset is to the rest: segments, class names, where its streams' files lie, who belongs to which subset."""

from __future__ import annotations

import glob
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from actionfuse._registry import Registry

from ..annotations import Segment
from ..types import BoxTracks


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One split of a dataset on disk.

    segments: in the order of the annotation file. Tests have their labels where these are public.
    classes: task -> names of its classes, by class number.
    root: folder that `paths` start from.
    paths: stream -> where its file or folder of frames lies under root: a format string that may use {video}, {id} and
        the names in `Segment.extra`; a `*` in it stands for any text (extensions that differ, numbered parts), which
        costs a look through the folder for every segment. An absolute one leads out of root.
    frame_rates: stream -> how fast its folders of frames count, in numbers a second, or the name in `Segment.extra`
        that tells it. Streams of video files have none.
    parts: task -> for each of its classes the classes of other tasks that it consists of, for instance
        {"action": {"verb": (3, ...), "noun": (10, ...)}}: action 0 is verb 3 and noun 10.
    subsets: name -> ids of the segments in it ("unseen", "tail_verb").
    many_shot: rule -> task -> class numbers that count as many-shot under that rule.
    boxes: video -> tracks, or None for datasets without boxes.
    files: the annotation files that were read.
    notes: what a user has to know (how many annotations were left out and why), one sentence each.
    """

    name: str
    split: str
    segments: tuple[Segment, ...]
    classes: Mapping[str, tuple[str, ...]]
    root: Path
    paths: Mapping[str, str] = field(default_factory=dict)
    frame_rates: Mapping[str, float | str] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    subsets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    many_shot: Mapping[str, Mapping[str, frozenset[int]]] = field(default_factory=dict)
    boxes: Mapping[str, BoxTracks] | None = None
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for segment in self.segments:
            for task, names in self.classes.items():
                label = segment.labels.get(task, ())
                if max(label if isinstance(label, tuple) else (label,), default=-1) >= len(names):
                    raise ValueError(
                        f"{self.name}, {self.split}: segment {segment.id!r} has {task}={label}; there are {len(names)} "
                        "classes of it. Are all annotation files of one release?"
                    )

    def path(self, segment: Segment, stream: str = "rgb") -> Path:
        """Where this stream of the segment's video lies; whether it is there is not looked at.

        Raises: ValueError for a stream that the dataset has not, and, where the pattern has a `*`, FileNotFoundError
        where it does not stand for exactly one file.
        """
        if stream not in self.paths:
            raise ValueError(f"{self.name} has no stream {stream!r}; it has {', '.join(self.paths) or 'none'}")
        pattern = self.paths[stream]
        names = {**segment.extra, "video": segment.video, "id": segment.id}
        try:
            if "*" not in pattern:
                return self.root / pattern.format_map(names)
            escaped = pattern.format_map({name: glob.escape(text) for name, text in names.items()})
        except KeyError as missing:
            raise ValueError(
                f"the path of {stream} is {pattern!r} and segment {segment.id!r} has no {missing}; it has "
                f"{', '.join(sorted(names))}"
            ) from None
        found = sorted(glob.glob(str(self.root / escaped)))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{stream} of {segment.id!r} should be one file {self.root / escaped}; there are {len(found)}"
            )
        return Path(found[0])

    def frame_fps(self, segment: Segment, stream: str = "rgb") -> float | None:
        """Numbers a second that this stream's folder of frames counts by, for `open_video`; None for video files."""
        rate = self.frame_rates.get(stream)
        return float(segment.extra[rate]) if isinstance(rate, str) else rate


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """What is told about a registered dataset without reading it.

    splits: names that `load_dataset` takes, the training split first.
    paper, source, licence: first author, venue and year; where to get it; under what terms.
    layout: the folder that is expected, as a small tree.
    """

    splits: tuple[str, ...]
    paper: str
    source: str
    licence: str
    layout: str


DATASETS: Registry[Dataset] = Registry("dataset")
CARDS: dict[str, DatasetCard] = {}


def register(
    name: str, *, splits: tuple[str, ...], paper: str, source: str, licence: str, layout: str
) -> Callable[[Callable[..., Dataset]], Callable[..., Dataset]]:
    """Decorator of the function `read(root: Path, split: str, *, options) -> Dataset`.

    `load_dataset` checks the split, and options that are annotated with a `Literal`, before it calls the function.
    """
    decorate = DATASETS.register(name)
    CARDS[name] = DatasetCard(splits=splits, paper=paper, source=source, licence=licence, layout=layout)
    return decorate


def load_dataset(name: str, root: str | Path, split: str, **options: object) -> Dataset:
    """One split of a dataset on disk.

    name: a registered name (`list_datasets()`). root: its folder; the layout that is expected is in the docstring of
    the dataset's file and in `actionfuse check`. options: keyword options of that dataset.

    Raises ValueError for an unknown name, split or option, and where the folder is laid out otherwise: it says what was
    expected and what is there.
    """
    check_call(name, root, split, options)
    return DATASETS[name](Path(root), split, **options)


def check_call(name: str, root: str | Path, split: str, options: Mapping[str, object]) -> None:
    """Raise the ValueErrors of `load_dataset` that need no look into the folder."""
    read, card = DATASETS[name], CARDS[name]
    if split not in card.splits:
        near = get_close_matches(split, card.splits, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"dataset {name!r} has no split {split!r}; {hint}there are {', '.join(card.splits)}")
    if not Path(root).is_dir():
        raise ValueError(f"{root} is no folder; name that of the dataset {name!r}, which holds\n{card.layout}")
    known, kinds = options_of(name), get_type_hints(read)
    for option, value in options.items():
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"dataset {name!r} has no option {option!r}; {hint}it has {', '.join(known) or 'none'}")
        allowed = get_args(kinds[option]) if get_origin(kinds[option]) is Literal else (value,)
        if value not in allowed:
            raise ValueError(
                f"{option} of dataset {name!r} is {value!r}; it must be one of {', '.join(map(repr, allowed))}"
            )


def options_of(name: str) -> dict[str, object]:
    """The keyword options of a dataset and their defaults."""
    parameters = inspect.signature(DATASETS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in ("root", "split")}


def list_datasets(pattern: str = "*") -> list[str]:
    """Registered names that match a shell pattern, sorted."""
    return DATASETS.names(pattern)
