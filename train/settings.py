"""Settings that would do nothing: refused before anything is read, because they are mistakes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from difflib import get_close_matches

from .recipe import Recipe


def check_settings(recipe: Recipe, tasks: Collection[str]) -> None:
    """Raises ValueError that lists every setting of the recipe that nothing would look at.

    tasks: what the model is to predict. Settings that wait for `inputs` to change, and augmentation of streams that
    are not pictures, are none of these.
    """
    if wrong := [*_of_schedule(recipe), *_of_task(recipe), *_of_names(recipe, tasks)]:
        raise ValueError("; ".join(wrong))


def _of_schedule(recipe: Recipe) -> Iterator[str]:
    optim = recipe.optim
    if optim.schedule == "step" and not optim.milestones:
        yield "optim.schedule is step, but optim.milestones are empty: name the epochs, such as [20, 40]"
    if optim.schedule != "step" and optim.milestones:
        yield f"optim.milestones are for the schedule step, but optim.schedule is {optim.schedule}: leave them out ([])"
    if optim.schedule != "cosine" and optim.min_lr:
        yield f"optim.min_lr is for the schedule cosine, but optim.schedule is {optim.schedule}: leave it out (0)"
    if optim.nesterov and optim.name != "sgd":
        yield f"optim.nesterov is for sgd, but optim.name is {optim.name}: leave it out (false)"


def _of_task(recipe: Recipe) -> Iterator[str]:
    task = recipe.task
    if task.test_tau_a and task.kind != "anticipation":
        yield f"task.test_tau_a is for anticipation, but task.kind is {task.kind}: leave it out"
    if (task.test_fractions or task.fraction != 1) and task.kind != "early_recognition":
        yield f"task.fraction and test_fractions are for early_recognition, but task.kind is {task.kind}"


def _of_names(recipe: Recipe, tasks: Collection[str]) -> Iterator[str]:
    loss, smoothing = recipe.loss, recipe.optim.label_smoothing
    for key, given in (
        ("loss.weights", loss.weights),
        ("optim.label_smoothing", smoothing if isinstance(smoothing, dict) else {}),
    ):
        for name in given:
            if name not in tasks:
                near = get_close_matches(name, tasks, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(tasks)}"
                yield f"{key} names {name!r}, which is not predicted; {hint}"
    if loss.balance_task and loss.balance == "none":
        yield "loss.balance_task is set, but loss.balance is none: choose class or loss, or leave it out"
