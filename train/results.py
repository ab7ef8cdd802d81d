"""From a table of scores to results, and their files: json, csv, and submissions to EPIC-KITCHENS-100 challenges."""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from actionfuse._files import replacing, write_atomically

from . import metrics
from .metrics import Absent
from .scores import ScoreTable

Challenge = Literal["action_recognition", "action_anticipation"]
Classes = Mapping[str, Collection[int]]
TIME_TO_ACTION = "top5_time_to_action"  # the one metric in seconds


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number.

    scores: where the task's scores come from: "direct" (the task's own classifier), "marginalised" (a verb's score is
        the sum of softmax over its actions) or "factorised" (an action's is softmax(verb) * softmax(noun), all pairs
        competing).
    subset: "all", a name of the dataset's subsets, or "many_shot_RULE" (class-mean recall over those classes).
    at: "" or which of several predictions: "tau_a=1", "fraction=0.125".
    value: a fraction, or seconds (TIME_TO_ACTION); NaN where the subset holds no segment. segments: how many counted.
    """

    task: str
    metric: str
    value: float
    segments: int
    scores: str = "direct"
    subset: str = "all"
    at: str = ""

    @property
    def name(self) -> str:
        """For instance `verb_marginalised/class_mean_top5_recall/unseen@tau_a=1.00`."""
        task = self.task if self.scores == "direct" else f"{self.task}_{self.scores}"
        subset = "" if self.subset == "all" else f"/{self.subset}"
        return f"{task}/{self.metric}{subset}" + (f"@{self.at}" if self.at else "")


def evaluate(
    table: ScoreTable,
    *,
    parts: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    subsets: Mapping[str, Collection[str]] | None = None,
    many_shot: Mapping[str, Classes] | None = None,
    at: Sequence[str] = (),
    ks: Sequence[int] = (1, 5),
    absent: Absent = "zero",
) -> list[Result]:
    """Every metric that the table's scores and labels allow; `parts`, `subsets`, `many_shot` are those of a Dataset.

    A segment whose label of a task is not known (below 0) does not count in it; a task without any has no result.

    For a task with one label: topK_accuracy and class_mean_topK_recall for each of `ks`; with several labels: mAP, in
    which segments without any label rank behind all others (Charades' public script).
    Where a task has parts, verbs and nouns are also scored by marginalising, and actions by factorising.

    subsets: one called `something_TASK` (`tail_verb`) is for that task alone. at: names of the T predictions of a
    segment. absent: see `metrics.marginalise`; "action_0" is RULSTM's.
    Scores of missing segments are zero in every task, after marginalising, as RULSTM has it.
    """
    found: list[Result] = []
    for task, truth in table.labels.items():
        for source, known, ranks in _sources(table, task, parts or {}, absent):
            if truth.ndim == 2:
                found += _multi_label(table, task, at, subsets or {})
                continue
            for subset, rows, classes in _subsets(table, task, subsets or {}, many_shot or {}):
                among = np.isin(known, rows)
                label, own = truth[known[among]], ranks[among]
                for k in ks:
                    values = {f"class_mean_top{k}_recall": metrics.class_mean_of(own, label, k, classes)}
                    if classes is None:
                        values = {f"top{k}_accuracy": metrics.top_k_of(own, k)} | values
                    counted = len(label) if classes is None else int(np.isin(label, list(classes)).sum())
                    for metric, value in values.items():
                        for name, number in zip(_names(at, value), np.atleast_1d(value), strict=True):
                            found.append(
                                Result(
                                    task=task, metric=metric, value=float(number), segments=counted, scores=source,
                                    subset=subset, at=name,
                                )
                            )  # fmt: skip
    return found


def evaluate_all(
    tables: Mapping[str, ScoreTable],
    *,
    parts: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    subsets: Mapping[str, Collection[str]] | None = None,
    many_shot: Mapping[str, Classes] | None = None,
    absent: Absent = "zero",
) -> list[Result]:
    """`evaluate` of each observation ("", "tau_a=0.5", "fraction=0.25", ...), and `time_to_action` over all tau_a."""
    found = []
    for name, table in tables.items():
        rows = evaluate(table, parts=parts, subsets=subsets, many_shot=many_shot, absent=absent)
        found += [replace(row, at=name) for row in rows]
    moments = {float(name[6:]): table for name, table in tables.items() if name.startswith("tau_a=")}
    return found + time_to_action(moments, parts=parts, absent=absent)


def time_to_action(
    tables: Mapping[float, ScoreTable],
    *,
    parts: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    absent: Absent = "zero",
) -> list[Result]:
    """TIME_TO_ACTION of every task with one label: how many seconds before the action its label is first among the 5
    best, mean over the segments; 0 where it never is. tables: tau_a in seconds -> scores of the same segments.

    Nothing for fewer than two tau_a or different segments. It depends on which tau_a were looked at, which `at` says.
    Source: `tta` of RULSTM, tau_a 2 to 0.25 s.
    """
    moments = sorted(tables, reverse=True)
    if len(moments) < 2 or len({tables[tau_a].ids for tau_a in moments}) > 1:
        return []
    first = tables[moments[0]]
    at = f"tau_a={moments[0]:g}..{moments[-1]:g}"
    found = []
    for task, truth in first.labels.items():
        if truth.ndim == 2:
            continue
        ranks: dict[str, list[np.ndarray]] = {}
        for tau_a in moments:
            for source, _, of in _sources(tables[tau_a], task, parts or {}, absent):
                ranks.setdefault(source, []).append(of)
        for source, of in ranks.items():
            value = metrics.mean_time_to_action_of(np.stack(of, 1), moments, 5)
            found.append(
                Result(task=task, metric=TIME_TO_ACTION, value=value, segments=len(of[0]), scores=source, at=at)
            )
    return found


def by_row(results: Iterable[Result]) -> tuple[list[str], dict[str, dict[str, float]], dict[str, int]]:
    """Results as a table: the metrics, row -> metric -> value, row -> segments. A row is a task with its source of
    scores, subset and observation: a result's name without the metric.
    """
    metric_names: dict[str, None] = {}
    rows: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for result in results:
        task, _, rest = result.name.partition("/")
        name = task + rest.removeprefix(result.metric)
        metric_names[result.metric] = None
        rows.setdefault(name, {})[result.metric] = result.value
        counts[name] = result.segments
    return list(metric_names), rows, counts


def _sources(
    table: ScoreTable, task: str, parts: Mapping[str, Mapping[str, Sequence[int]]], absent: Absent
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(where scores come from, places of the segments whose label is known, ranks of these labels (N,) or (N, T)) for a
    task; ranks mean nothing for many labels.
    """
    labels, several = table.labels[task], table.labels[task].ndim == 2
    known = np.arange(len(table)) if several else np.flatnonzero(labels >= 0)
    if not len(known) and len(table):
        return []
    labels, found = labels[known], []
    if task in table.scores:
        ranks = labels if several else metrics.label_ranks(table.scores[task][known], labels)
        found.append(("direct", known, ranks))
    for whole, owners in parts.items():
        if whole in table.scores and task in owners and not several:
            given = table.scores.get(task)
            count = given.shape[-1] if given is not None else max(*owners[task], int(labels.max(initial=0))) + 1
            scores = metrics.marginalise(table.scores[whole][known], np.asarray(owners[task]), count, absent)
            scores[table.missing[known]] = 0
            found.append(("marginalised", known, metrics.label_ranks(scores, labels)))
        pair = list(owners)
        if whole == task and len(pair) == 2 and all(name in table.scores and name in table.labels for name in pair):
            both = known[np.all([table.labels[name][known] >= 0 for name in pair], axis=0)]
            if len(both) or not len(table):
                found.append(("factorised", both, _pair_ranks(table, pair, both)))
    return found


def _pair_ranks(table: ScoreTable, pair: list[str], rows: np.ndarray) -> np.ndarray:
    first, second = (table.scores[name][rows] for name in pair)
    labels = [table.labels[name][rows] for name in pair]
    if first.ndim == 2:
        return metrics.pair_ranks(first, second, *labels)
    return np.stack([metrics.pair_ranks(first[:, t], second[:, t], *labels) for t in range(first.shape[1])], axis=1)


def _subsets(
    table: ScoreTable, task: str, subsets: Mapping[str, Collection[str]], many_shot: Mapping[str, Classes]
) -> list[tuple[str, np.ndarray, Collection[int] | None]]:
    everything = np.arange(len(table))
    found: list[tuple[str, np.ndarray, Collection[int] | None]] = [("all", everything, None)]
    found += [(name, table.rows(ids), None) for name, ids in _of_task(table, task, subsets)]
    found += [(f"many_shot_{rule}", everything, of[task]) for rule, of in many_shot.items() if task in of]
    return found


def _of_task(table: ScoreTable, task: str, subsets: Mapping[str, Collection[str]]) -> list[tuple[str, Collection[str]]]:
    others = tuple(f"_{name}" for name in {*table.labels, "verb", "noun", "action"} - {task})
    return [(name, ids) for name, ids in subsets.items() if not name.endswith(others)]


def _multi_label(
    table: ScoreTable, task: str, at: Sequence[str], subsets: Mapping[str, Collection[str]]
) -> list[Result]:
    scores, truth = table.scores[task], table.labels[task].astype(bool)
    if scores.ndim == 2:
        scores = scores[:, None]
    names = _names(at, np.zeros(scores.shape[1])) if table.scores[task].ndim == 3 else [""]
    found = []
    for subset, ids in [("all", table.ids), *_of_task(table, task, subsets)]:
        rows = table.rows(ids)
        for t, name in enumerate(names):
            value = metrics.mean_average_precision(scores[rows, t], truth[rows], unlabelled_last=True)
            found.append(Result(task=task, metric="mAP", value=value, segments=len(rows), subset=subset, at=name))
    return found


def _names(at: Sequence[str], value: np.ndarray) -> Sequence[str]:
    if not value.ndim:
        return [""]
    if at and len(at) != len(value):
        raise ValueError(f"there are {len(value)} predictions for each segment, but {len(at)} names ({', '.join(at)})")
    return at or [str(t) for t in range(len(value))]


# Files


def write_json(path: str | Path, results: Iterable[Result], about: Mapping[str, Any] | None = None) -> None:
    """{"about": {...}, "results": {name: value}, "rows": [...]}; NaN becomes null. Written whole or not at all."""
    rows = list(results)
    content = {
        "about": dict(about or {}),
        "results": {row.name: _number(row.value) for row in rows},
        "rows": [{**asdict(row), "value": _number(row.value)} for row in rows],
    }
    with replacing(path) as file:
        json.dump(content, file, indent=2, allow_nan=False)
        file.write("\n")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def write_csv(path: str | Path, results: Iterable[Result]) -> None:
    """task,scores,metric,subset,at,value,segments; NaN is an empty cell. Written whole or not at all."""
    columns = ["task", "scores", "metric", "subset", "at", "value", "segments"]
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in results:
            cells = asdict(row) | {"value": "" if math.isnan(row.value) else repr(row.value)}
            writer.writerow([cells[name] for name in columns])


def epic_submission(
    ids: Sequence[str],
    verb: np.ndarray,
    noun: np.ndarray,
    *,
    challenge: Challenge,
    sls_pt: int,
    sls_tl: int,
    sls_td: int,
    action: np.ndarray | None = None,
    actions: Sequence[tuple[int, int]] | None = None,
    top_actions: int = 100,
    version: str = "0.2",
) -> dict[str, Any]:
    """What the EPIC-KITCHENS-100 servers take: for each segment all verb and noun scores and the best actions.

    ids: narration ids. verb (N, 97), noun (N, 300): any scores, larger is better.
    action: (N, A) with actions: (verb, noun) of each. None: the best pairs by softmax(verb) * softmax(noun), for which
        verb and noun must be logits.
    sls_pt, sls_tl, sls_td: supervision levels 0 to 5 of pretraining, training labels and training data.
    Source: epic-kitchens/C1-Action-Recognition and fpv-iplab/rulstm (`predictions_to_json`).
    """
    if challenge not in ("action_recognition", "action_anticipation"):
        raise ValueError(f"challenge is {challenge!r}; it is action_recognition or action_anticipation")
    levels = {"sls_pt": sls_pt, "sls_tl": sls_tl, "sls_td": sls_td}
    for name, level in levels.items():
        if level not in range(6):
            raise ValueError(f"{name} is {level}; supervision levels are 0 to 5")
    if len(set(ids)) != len(ids) or not len(ids) == len(verb) == len(noun):
        raise ValueError(f"{len(ids)} ids (each once) need as many scores; verb is {verb.shape}, noun {noun.shape}")
    if not (np.isfinite(verb).all() and np.isfinite(noun).all()):
        raise ValueError("verb and noun scores must be finite numbers")
    best, scores = _best_pairs(verb, noun, top_actions) if action is None else _best(action, actions, top_actions)
    results = {
        str(name): {
            "verb": {str(number): float(score) for number, score in enumerate(verb[row])},
            "noun": {str(number): float(score) for number, score in enumerate(noun[row])},
            "action": {f"{v},{n}": float(score) for (v, n), score in zip(best[row].tolist(), scores[row], strict=True)},
        }
        for row, name in enumerate(ids)
    }
    return {"version": version, "challenge": challenge, **levels, "results": results}


def _best(action: np.ndarray, actions: Sequence[tuple[int, int]] | None, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, top, 2) verb and noun of the best actions, (N, top) their scores."""
    pairs = np.asarray(actions if actions is not None else [], np.int64).reshape(-1, 2)
    if len(pairs) != action.shape[1] or not np.isfinite(action).all():
        raise ValueError(f"action is {action.shape}, finite numbers for each of the {len(pairs)} (verb, noun) actions")
    best = metrics.ranking(action, top)
    return pairs[best], np.take_along_axis(action, best, 1)


def _best_pairs(verb: np.ndarray, noun: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    verbs, nouns = metrics.ranking(verb, top), metrics.ranking(noun, top)
    # A pair of the i-th verb and the j-th noun has i j - 1 pairs before it or level with it.
    i, j = np.divmod(np.arange(verbs.shape[1] * nouns.shape[1]), nouns.shape[1])
    near = (i + 1) * (j + 1) <= top
    i, j = i[near], j[near]
    probability = np.take_along_axis(metrics.softmax(verb), verbs, 1)[:, i]
    probability = probability * np.take_along_axis(metrics.softmax(noun), nouns, 1)[:, j]
    order = np.argsort(-probability, axis=1, kind="stable")[:, :top]
    pairs = np.stack([np.take_along_axis(verbs[:, i], order, 1), np.take_along_axis(nouns[:, j], order, 1)], axis=-1)
    return pairs, np.take_along_axis(probability, order, 1)


def write_epic_submission(path: str | Path, submission: Mapping[str, Any]) -> None:
    """As json, or for a name that ends in .zip as the zip with one test.json that the servers take."""
    content = json.dumps(submission, allow_nan=False).encode()
    if Path(path).suffix == ".zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("test.json", content)
        content = packed.getvalue()
    write_atomically(path, content)
