"""Scores of runs on one split: computed, kept in a file, joined to an ensemble, turned into results."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from actionfuse._files import write_atomically

from ..fusion import score_ensemble
from ..pipeline.datasets.contract import Dataset
from ..pipeline.protocols import Anticipation, EarlyRecognition, Task
from .build import build_dataset, load_split, test_tasks
from .metrics import Absent
from .results import Result, evaluate_all
from .runs import Ticker, TrainedRun
from .scores import ScoreTable
from .stepwise import check_stepwise, told_tables
from .testing import Average, Look, each_once, test_scores

Unread = Literal["omit", "zeros"]
_FORMAT = 1


@dataclass(frozen=True)
class Observed:
    """Scores under one observation. what: the observation in numbers. broken: {id, index, reason} of unread segments;
    damaged: of those of which parts could not be read.

    Labels of segments that have none are -100.
    """

    what: Mapping[str, Any]
    table: ScoreTable
    broken: Sequence[Mapping[str, Any]] = ()
    damaged: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Member:
    """What one run (or an ensemble) says of a split, with all of the dataset that results are computed from.

    several: tasks of which a segment may have many labels. observations: by name, "" is the one of training.
    views: of each segment.
    """

    name: str
    dataset: str
    split: str
    classes: Mapping[str, tuple[str, ...]]
    observations: Mapping[str, Observed]
    several: frozenset[str] = frozenset()
    parts: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    subsets: Mapping[str, Collection[str]] = field(default_factory=dict)
    many_shot: Mapping[str, Mapping[str, Collection[int]]] = field(default_factory=dict)
    views: int = 1

    @property
    def broken(self) -> list[Mapping[str, Any]]:
        """Of any observation, each segment once."""
        return each_once([seen.broken for seen in self.observations.values()])

    @property
    def damaged(self) -> list[Mapping[str, Any]]:
        """As `broken`: segments that were read though parts of them could not be."""
        return each_once([seen.damaged for seen in self.observations.values()])

    def results(self, absent: Absent = "zero") -> list[Result]:
        """All metrics under all observations, each over the segments that have a label of its task.

        absent: what a verb or noun that no action has gets of the actions' scores, as in `metrics.marginalise`.
        """
        tables = {name: seen.table for name, seen in self.observations.items()}
        return evaluate_all(tables, parts=self.parts, subsets=self.subsets, many_shot=self.many_shot, absent=absent)


def labelled(table: ScoreTable, task: str | None = None) -> ScoreTable | None:
    """The segments that have a label of `task`, or (None) of each task of which any segment has one; None where there
    are none.
    """
    known: dict[str, np.ndarray] = {}
    keep = np.ones(len(table), bool)
    for name, labels in table.labels.items():
        there = labels.any(1) if labels.ndim == 2 else labels >= 0
        if (labels.ndim == 2 or there.any()) and task in (None, name):
            known[name] = labels
            keep &= there if labels.ndim == 1 else True
    if not known or not keep.any():
        return None
    rows = np.flatnonzero(keep)
    return ScoreTable(
        tuple(table.ids[row] for row in rows),
        {name: scores[rows] for name, scores in table.scores.items()},
        {name: labels[rows] for name, labels in known.items()},
        table.missing[rows],
    )


def check_classes(run: TrainedRun, split: Dataset) -> None:
    """Raises ValueError where a split's classes are not those that the run was trained for."""
    theirs = {task: len(names) for task, names in split.classes.items()}
    ours = run.model.classes
    if theirs != ours:
        raise ValueError(
            f"{run.path} tells {_counts(ours)}, but {split.name} in {split.root} has {_counts(theirs)}; evaluate it on "
            "the dataset and tasks that it was trained for"
        )


def _counts(classes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {task} classes" for task, count in classes.items())


def test_run(
    run: TrainedRun,
    split_name: str | None = None,
    *,
    num_crops: int | None = None,
    average: Average = "probability",
    unread: Unread = "omit",
    batch_size: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    quiet: bool = True,
    look: Look | None = None,
) -> Member | None:
    """Scores of a run on a split (None: the recipe's test split) under all observations of its recipe; of heads that
    tell step by step also those of each step, from the same pass.

    num_crops: squares of a frame, 1 or 3; None: the recipe's. Clips are those of the recipe's sampling.num_clips.
    unread: what segments are that cannot be read, or before which nothing can be seen: left out, or "zeros": counted
        with scores of zero, which is a miss unless the label is among the last classes (RULSTM on EPIC-KITCHENS-100).
    batch_size: segments at a time in each process; None: as in training, less with many views.
    look: shown every batch and what the model gave for it, of the first observation.
    Every process must call it; all but process 0 get None.
    Raises: ValueError where nothing of the split can be read.
    """
    recipe = run.recipe
    check_stepwise(recipe, run.model.head)
    split = load_split(recipe, split_name or recipe.data.test)
    check_classes(run, split)
    observations: dict[str, Observed] = {}
    views, several = 1, frozenset()
    for name, task in test_tasks(recipe.task).items():
        dataset = build_dataset(recipe, split, run.model, task, training=False, num_crops=num_crops)
        views = dataset.num_views
        several = frozenset(task for task, count in dataset._tasks.items() if count is not None)
        ticker = Ticker(f"{run.path}{f' {name}' if name else ''}", len(dataset), quiet=quiet or rank > 0)
        tested = test_scores(
            run.model,
            dataset,
            run.device,
            batch_size=batch_size or max(1, (recipe.run.micro_batch or recipe.optim.batch) // views),
            workers=recipe.run.workers,
            precision=recipe.run.precision,
            average=average,
            rank=rank,
            world_size=world_size,
            # all processes together, about: each has the same share
            tick=lambda count, ticker=ticker: ticker(count * world_size),
            look=look if not observations else None,
        ).gather()
        ticker.close()
        if tested is None:
            observations[name] = Observed({}, ScoreTable((), {}))
            continue
        if not len(tested.scores):
            worst = tested.broken[0]
            raise ValueError(
                f"nothing of the split {split.split!r} of {split.name} can be read, such as {worst['id']}: "
                f"{worst['reason']}"
            )
        whole: dict[str, Any] = {}
        if unread == "zeros":
            known = tested.scores.table().labels
            labels = {task: values for task, values in dataset.labels().items() if task in known}
            whole = {"ids": [segment.id for segment in split.segments], "labels": labels}
        for at, (seen, table) in told_tables(tested, recipe, run.model.head, name, task, **whole).items():
            observations[at] = Observed(described(seen), table, tested.broken, tested.damaged)
    if rank:
        return None
    return Member(
        str(run.path), split.name, split.split, split.classes, observations, several, split.parts, split.subsets,
        split.many_shot, views,
    )  # fmt: skip


def described(task: Task) -> dict[str, Any]:
    """An observation in numbers."""
    kind = {Anticipation: "anticipation", EarlyRecognition: "early_recognition"}.get(type(task), "recognition")
    return {"kind": kind, **asdict(task)}


# --- ensembles


def ensemble(
    members: Sequence[Member],
    weights: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    average: Average = "probability",
) -> Member:
    """Late fusion: the weighted mean of members' probabilities, or logits, matched by segment id.

    Segments are those that all members have scores of; what one could not read is broken. Scores are kept as logarithms
    (log odds for tasks with many labels), so that softmax (sigmoid) gives the mean back. Observations are those that
    all members have. Tasks that a member lacks are averaged over the others.

    Raises: ValueError for members of different splits, labels or observations, and for wrong weights.
    """
    first = members[0]
    if isinstance(weights, Mapping):
        known = list(dict.fromkeys(task for member in members for task in member.classes))
        if unknown := [task for task in weights if task not in known]:
            raise ValueError(f"weights are given for {', '.join(unknown)}; the runs tell {', '.join(known)}")
    names = [name for name in first.observations if all(name in member.observations for member in members)]
    for member in members[1:]:
        for task, classes in member.classes.items():
            if task in first.classes and len(first.classes[task]) != len(classes):
                raise ValueError(
                    f"{first.name} knows {len(first.classes[task])} classes of {task}, {member.name} {len(classes)}; "
                    "an ensemble needs the same"
                )
        for name in names:
            one, other = first.observations[name].what, member.observations[name].what
            for key in ("kind", "tau_a", "fraction"):
                if one.get(key) != other.get(key):
                    raise ValueError(
                        f"{first.name} was tested with {key}={one.get(key)}, {member.name} with {other.get(key)}: they "
                        f"do not see the same moment; say the same with task.{key}=..."
                    )
    observations = {name: _joined(members, name, weights, average) for name in names}
    classes = {task: each for member in reversed(members) for task, each in member.classes.items()}
    several = frozenset(task for member in members for task in member.several)
    return replace(first, name="ensemble", classes=classes, observations=observations, several=several)


def _joined(
    members: Sequence[Member],
    name: str,
    weights: Sequence[float] | Mapping[str, Sequence[float]] | None,
    average: Average,
) -> Observed:
    seen = [member.observations[name] for member in members]
    lost = [{i for i, gone in zip(each.table.ids, each.table.missing, strict=True) if gone} for each in seen]
    places = [{i: row for row, i in enumerate(each.table.ids)} for each in seen]
    ids = [i for i in seen[0].table.ids if all(i in of for of in places)]
    known = {row["id"] for each in seen for row in each.broken}.union(ids)
    for member, each in zip(members, seen, strict=True):
        alone = [i for i in each.table.ids if i not in known]
        if alone:
            raise ValueError(
                f"{member.name} has {len(alone)} segments that another run has not, such as {alone[0]}; test all runs "
                f"on one split: they share {len(ids)} segments"
            )
    several = {task for member in members for task in member.several}
    picked = [np.array([of[i] for i in ids], np.int64) for of in places]
    labels: dict[str, np.ndarray] = {}
    for each, rows in zip(seen, picked, strict=True):
        for task, values in each.table.labels.items():
            if not np.array_equal(labels.setdefault(task, values[rows]), values[rows]):
                raise ValueError(f"the runs' labels of {task} differ; test all runs on one release of the dataset")
    tasks = list(dict.fromkeys(task for each in seen for task in each.table.scores))
    mixed: dict[str, np.ndarray] = {}
    for task in tasks:
        logits = [
            {task: torch.from_numpy(each.table.scores[task][rows].astype(np.float64))}
            if task in each.table.scores
            else {}
            for each, rows in zip(seen, picked, strict=True)
        ]
        given = weights.get(task) if isinstance(weights, Mapping) else weights
        kind = "logits" if average == "logit" else "sigmoid" if task in several else "softmax"
        mean = score_ensemble(logits, given, scores=kind)[task]
        if kind == "softmax":
            mean = mean.clamp(min=1e-300).log()
        elif kind == "sigmoid":
            mean = torch.logit(mean, eps=1e-15)
        mixed[task] = mean.numpy()
    # A run without scores of a segment has no say there (its zeros are even shares); what none has stays zero.
    missing = np.array([all(i in of for of in lost) for i in ids], bool)
    for scores in mixed.values():
        scores[missing] = 0
    broken, damaged = (each_once(lists) for lists in ([s.broken for s in seen], [s.damaged for s in seen]))
    return Observed(seen[0].what, ScoreTable(tuple(ids), mixed, labels, missing), broken, damaged)


# --- files of scores


def save_members(path: str | Path, members: Sequence[Member]) -> None:
    """An npz with scores, labels and all of the dataset that results need; written whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    about = []
    for number, member in enumerate(members):
        observed = {}
        for name, seen in member.observations.items():
            key = f"{number}/{name or 'trained'}"
            arrays[f"{key}/ids"] = np.array(seen.table.ids)
            arrays[f"{key}/missing"] = seen.table.missing
            arrays |= {f"{key}/scores/{task}": scores for task, scores in seen.table.scores.items()}
            arrays |= {f"{key}/labels/{task}": labels for task, labels in seen.table.labels.items()}
            lists = {"broken": [dict(row) for row in seen.broken], "damaged": [dict(row) for row in seen.damaged]}
            observed[name] = {"what": dict(seen.what), **lists}
        about.append(
            {
                "name": member.name,
                "dataset": member.dataset,
                "split": member.split,
                "classes": {task: list(names) for task, names in member.classes.items()},
                "observations": observed,
                "several": sorted(member.several),
                "parts": {task: {of: list(n) for of, n in each.items()} for task, each in member.parts.items()},
                "subsets": {name: sorted(ids) for name, ids in member.subsets.items()},
                "many_shot": {
                    rule: {task: sorted(numbers) for task, numbers in of.items()}
                    for rule, of in member.many_shot.items()
                },
                "views": member.views,
            }
        )
    arrays["about"] = np.array(json.dumps({"format": _FORMAT, "members": about}))
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, content.getvalue())


def load_members(path: str | Path) -> list[Member]:
    """What `save_members` wrote. Raises ValueError for any other file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays["about"]))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is no file of scores that --scores wrote: {error}") from None
    if about.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {about.get('format')!r}; this version reads {_FORMAT}")
    members = []
    for number, fields in enumerate(about["members"]):
        observations = {}
        for name, seen in fields["observations"].items():
            key = f"{number}/{name or 'trained'}/"
            own = {each.removeprefix(key): array for each, array in arrays.items() if each.startswith(key)}
            table = ScoreTable(
                tuple(map(str, own["ids"])),
                {each.removeprefix("scores/"): array for each, array in own.items() if each.startswith("scores/")},
                {each.removeprefix("labels/"): array for each, array in own.items() if each.startswith("labels/")},
                own.get("missing", np.zeros(0, bool)),
            )
            observations[name] = Observed(seen["what"], table, seen["broken"], seen.get("damaged", ()))
        fields["classes"] = {task: tuple(names) for task, names in fields["classes"].items()}
        fields["several"] = frozenset(fields["several"])
        members.append(Member(**{**fields, "observations": observations}))
    return members
