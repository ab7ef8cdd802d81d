"""Parts of a report on tasks in which several classes hold at once (Charades): precisions, mix-ups, what is told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .charts import escape, matrix
from .metrics import average_precisions, mean_average_precision
from .report_page import table
from .scores import ScoreTable

Name = Callable[[int], str]


def several_tasks(whole: ScoreTable | None) -> list[str]:
    """Tasks with several labels a segment."""
    if whole is None:
        return []
    return [task for task, labels in whole.labels.items() if labels.ndim == 2 and task in whole.scores]


def told_classes(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool (N, C): of each segment as many of its best classes as it has labels."""
    count = labels.astype(bool).sum(1)
    places = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return places < count[:, None]


def class_table(whole: ScoreTable, task: str, name: Name) -> str:
    """Average precision of each class, beside what chance gives, and how much of it is among the best classes."""
    scores, labels = whole.scores[task], whole.labels[task].astype(bool)
    ranked = np.where(labels.any(1, keepdims=True), scores.astype(np.float64), -np.inf)  # as in results.py
    values, told = average_precisions(ranked, labels), told_classes(scores, labels)
    rows = []
    for number in np.flatnonzero(labels.any(0)).tolist():
        own = labels[:, number]
        taken = told[:, number]
        precision = float(own[taken].mean()) if taken.any() else float("nan")
        rows.append(
            [name(number), str(int(own.sum())), float(values[number]), float(own.mean()), float(taken[own].mean()),
             precision]
        )  # fmt: skip
    rows.sort(key=lambda row: -row[2])
    head = [task, "segments", "AP, %", "AP by chance, %", "recall, %", "precision, %"]
    mean = 100 * mean_average_precision(scores, labels, unlabelled_last=True)
    words = (
        f"<p class='dim'>mAP {mean:.1f} % over {len(rows)} classes. Recall and precision are of the best classes of "
        "each segment, as many as it has labels.</p>"
    )
    return f"<div><h3>{escape(task)}</h3>{words}{table(head, rows, sortable=True, scroll=True)}</div>"


def mixed_up(whole: ScoreTable, task: str, name: Name, most: int) -> str:
    """Which classes are told where others were missed, of those that are missed most often."""
    labels, told = whole.labels[task].astype(bool), told_classes(whole.scores[task], whole.labels[task])
    missed, wrong = (labels & ~told).astype(np.int64), (told & ~labels).astype(np.int64)
    together, count = missed.T @ wrong, missed.sum(0)
    shown = np.argsort(-count, kind="stable")[:most]
    shown = np.sort(shown[count[shown] > 0])
    if not len(shown):
        return ""
    beside = np.argsort(-together[shown].sum(0), kind="stable")[:most]
    beside = np.sort(beside[together[shown].sum(0)[beside] > 0])
    cells = together[np.ix_(shown, beside)]
    rows, columns = ([name(int(n)) for n in numbers] for numbers in (shown, beside))
    tips = [
        [f"{b} told where {a} was missed: {int(cells[r, c])} of {int(count[shown[r]])}" for c, b in enumerate(columns)]
        for r, a in enumerate(rows)
    ]
    title = f"{task}, told instead, % of the missed (the {len(shown)} that are missed most)"
    return matrix(
        cells / count[shown][:, None], rows, columns, title=title, tips=tips, row_label="missed", column_label="told"
    )


def said_of(scores: np.ndarray, labels: np.ndarray, name: Name) -> tuple[list[str], list[str], list[str]]:
    """Of one segment, names of the classes that were found, missed and wrongly told among its best."""
    held = labels.astype(bool)
    told = told_classes(scores[None], held[None])[0]

    def names(which: np.ndarray) -> list[str]:
        return [name(number) for number in np.flatnonzero(which).tolist()]

    return names(held & told), names(held & ~told), names(told & ~held)
