"""Heads that tell step by step (RULSTM): which moment each of their steps is told at, and its scores as those of an
observation of its own, so that one pass tests all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

import numpy as np

from ..fusion import FusionHead
from ..pipeline.datasets.contract import Dataset
from ..pipeline.protocols import Anticipation, EarlyRecognition, Task
from .build import make_task, test_tasks
from .model import asked
from .recipe import Recipe
from .results import evaluate_all
from .scores import ScoreTable
from .testing import Tested


def step_tasks(recipe: Recipe, head: FusionHead, steps: int) -> list[tuple[str, Task]]:
    """(name, observation) of each of the last `steps` entries, in their order; empty where the recipe does not say how
    far apart they are, or the head tells once.

    Anticipation: the entry that ends t seconds before the action is `tau_a=t` (RULSTM: 2, 1.75, ..., 0.25), by the
    rules `rulstm` and `last`. Early recognition: `fraction=0.125`, ..., by the rule `ends`.

    Raises: ValueError where the recipe names observations beside: each would be told step by step again.
    """
    if not head.stepwise:
        return []
    check_stepwise(recipe, head)
    task, places = make_task(recipe.task), recipe.sampling
    clips = [each.clip for each in recipe.streams.values()]
    back = np.arange(steps)[::-1]  # entries from the last one
    if isinstance(task, Anticipation):
        spacing = {clip.fps for clip in clips}
        if places.rule == "rulstm":
            apart, last = places.alpha, places.alpha
        elif places.rule == "last" and len(spacing) == 1 and isinstance(fps := spacing.pop(), int | float):
            apart, last = places.stride_frames / fps, task.tau_a
        else:
            return []
        begins = task.tau_a + task.tau_o
        moments = [last + apart * int(n) for n in back]
        return [(f"tau_a={t:g}", Anticipation(tau_a=t, tau_o=max(begins - t, apart))) for t in moments]
    frames = {clip.frames for clip in clips}
    if isinstance(task, EarlyRecognition) and places.rule == "ends" and len(frames) == 1 and (count := frames.pop()):
        shares = [task.fraction * (count - int(n)) / count for n in back]
        return [(f"fraction={share:g}", EarlyRecognition(fraction=share)) for share in shares]
    return []


def check_stepwise(recipe: Recipe, head: FusionHead) -> None:
    """Raises ValueError where further observations are asked of a head that tells all of its steps."""
    if head.stepwise and (recipe.task.test_tau_a or recipe.task.test_fractions):
        raise ValueError(
            f"the head {recipe.head.name} tells each of its steps, and tests report them all: leave task.test_tau_a "
            "and task.test_fractions out"
        )


def told_tables(
    tested: Tested,
    recipe: Recipe,
    head: FusionHead,
    name: str,
    task: Task,
    ids: Sequence[str] | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
) -> dict[str, tuple[Task, ScoreTable]]:
    """Observation and scores by name: what was tested as `name`, and each step where the head tells step by step.

    The head's own logits then are those of its told step, and so is the observation that they are told of.

    ids, labels: of all segments, of which those that could not be read have scores of zero; None: those that were read.
    """
    missing = "error" if ids is None else "zeros"
    table = tested.scores.table(ids, labels=labels, missing=missing)
    found: dict[str, tuple[Task, ScoreTable]] = {name: (task, table)}
    if not len(tested.steps):
        return found
    whole = tested.steps.table(table.ids, labels=table.labels, missing=missing)
    steps = next(iter(whole.scores.values())).shape[1]
    moments = step_tasks(recipe, head, steps)
    if moments:
        found[name] = (moments[-min(head.told_step, steps)][1], table)
    for step, (at, each) in enumerate(moments):
        found[at] = (each, replace(table, scores={of: x[:, step] for of, x in whole.scores.items()}))
    return found


def told_task(recipe: Recipe, head: FusionHead, task: Task) -> Task:
    """The observation that the head's own logits are told of: that of its told step, where steps are told apart."""
    moments = step_tasks(recipe, head, head.told_step)
    return moments[0][1] if moments else task


def check_monitor(recipe: Recipe, head: FusionHead, split: Dataset) -> None:
    """Raises ValueError where tests will give no result of the name that `run.monitor` waits for: before training, and
    not after its first epoch.
    """
    wanted = recipe.run.monitor
    labels = {task for segment in split.segments for task in segment.labels}
    several = {task for segment in split.segments for task, x in segment.labels.items() if isinstance(x, tuple)}
    if not wanted or not labels:
        return
    # results are called the same whatever the scores are: one segment of each task's first class tells them all
    scores = {task: np.zeros((1, count), np.float32) for task, count in asked(head.classes).items()}
    truth: dict[str, np.ndarray] = {
        task: np.ones((1, head.classes[task]), bool) if task in several else np.zeros(1, np.int64)
        for task in labels
        if task in head.classes or task not in several
    }
    table = ScoreTable(("one",), scores, truth)
    steps = getattr(head, "steps", 1) if head.stepwise else 0
    names = [*test_tasks(recipe.task), *(name for name, _ in step_tasks(recipe, head, steps))]
    tables = dict.fromkeys(names, table)
    known = [r.name for r in evaluate_all(tables, parts=split.parts, subsets=split.subsets, many_shot=split.many_shot)]
    if wanted not in known:
        near = get_close_matches(wanted, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"tests give {', '.join(known[:12])}, ..."
        raise ValueError(f"run.monitor is {wanted!r}; {hint}")
