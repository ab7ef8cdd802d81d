"""What a dataset is to the rest: segments, class names, where its streams' files lie, who belongs to which subset."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

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
        the names in `Segment.extra`; a `*` in it stands for any text (extensions that differ, numbered parts).
    parts: task -> for each of its classes the classes of other tasks that it consists of, for instance
        {"action": {"verb": (3, ...), "noun": (10, ...)}}: action 0 is verb 3 and noun 10.
    subsets: name -> ids of the segments in it ("unseen", "tail_verb").
    many_shot: rule -> task -> class numbers that count as many-shot under that rule.
    boxes: video -> tracks, or None for datasets without boxes.
    notes: what a user has to know (how many annotations were left out and why), one sentence each.
    """

    name: str
    split: str
    segments: tuple[Segment, ...]
    classes: Mapping[str, tuple[str, ...]]
    root: Path
    paths: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    subsets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    many_shot: Mapping[str, Mapping[str, frozenset[int]]] = field(default_factory=dict)
    boxes: Mapping[str, BoxTracks] | None = None
    notes: tuple[str, ...] = ()

    def path(self, segment: Segment, stream: str = "rgb") -> Path:
        """Where this stream of the segment's video lies. Raises FileNotFoundError that says where it was looked for."""
        if stream not in self.paths:
            raise ValueError(f"{self.name} has no stream {stream!r}; it has {', '.join(self.paths)}")
        relative = self.paths[stream].format(video=segment.video, id=segment.id, **segment.extra)
        if "*" not in relative:
            return self.root / relative
        found = sorted(self.root.glob(relative))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{stream} of {segment.id!r} should be one file {self.root / relative}; there are {len(found)}"
            )
        return found[0]


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
    """Decorator of the function `read(root: Path, split: str, *, options) -> Dataset`."""
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
    read, card = DATASETS[name], CARDS[name]
    if split not in card.splits:
        near = get_close_matches(split, card.splits, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"dataset {name!r} has no split {split!r}; {hint}there are {', '.join(card.splits)}")
    known = [option for option in inspect.signature(read).parameters if option not in ("root", "split")]
    for option in options:
        if option not in known:
            raise ValueError(f"dataset {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return read(Path(root), split, **options)


def list_datasets(pattern: str = "*") -> list[str]:
    """Registered names that match a shell pattern, sorted."""
    return DATASETS.names(pattern)
