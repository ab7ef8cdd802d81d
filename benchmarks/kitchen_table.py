"""From the results of `bench_kitchen.py` to `kitchen.md`: mean, spread and share of the ceiling; no number by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import kitchen_runs as runs

from actionfuse.pipeline.synth.ceilings import ceiling, read_ceilings

Row = dict[str, Any]
_ACTION = "action/top1_accuracy"


def read_results(work: Path) -> list[Row]:
    return [json.loads(path.read_text()) for path in sorted((work / "results").glob("*.json"))]


def of_group(rows: Iterable[Row], group: str) -> dict[str, list[Row]]:
    """method -> its runs, in the order of the plan."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["group"] == group:
            found[row["method"]].append(row)
    order = [*runs.STREAMS, *runs.FUSIONS, runs.REALLOCATED, *runs.INTERACTIVE]
    return {method: found[method] for method in order if method in found}


def best_fusions(rows: Sequence[Row], count: int) -> tuple[str, ...]:
    """The best methods of recognition on features, but for reallocation, which trains nothing."""
    means = {
        method: fmean(row["results"][_ACTION] for row in each)
        for method, each in of_group(rows, "recognition").items()
        if method in runs.FUSIONS
    }
    return tuple(sorted(means, key=lambda method: -means[method])[:count])


def write_table(work: Path, out: Path, machine: str) -> None:
    rows, known = read_results(work), read_ceilings(work / "kitchen")
    text = ["# The synthetic kitchen, measured", "", *_intro(work, machine), *_backbones(rows, known)]
    text += ["", "## Recognition", "", *_top1(rows, "recognition", known)]
    text += ["", "## Anticipation", "", *_anticipation(rows, known)]
    text += ["", "## Pairs of verb and noun that training has not", "", *_compositional(rows, known)]
    text += ["", "## End to end", "", *_top1(rows, "recognition, end to end", known)]
    text += ["", "## Goals", "", *_goals(rows, known)]
    notes = Path(__file__).with_name("kitchen_notes.md")
    if notes.is_file():
        text += ["", notes.read_text(encoding="utf-8").rstrip()]
    text += ["", "## Time", "", *_time(rows)]
    out.write_text("\n".join(text) + "\n", encoding="utf-8")


def _intro(work: Path, machine: str) -> list[str]:
    about = json.loads((work / "kitchen" / "kitchen.json").read_text())
    return [
        "Made by `python benchmarks/bench_kitchen.py`; do not edit: the script writes it from the results of its runs.",
        "",
        f"- Kitchen: `actionfuse synth DIR --size {about['size']}`, seed {about['seed']}; what it shows and how the "
        "ceilings are computed: [docs/kitchen.md](../docs/kitchen.md).",
        f"- Backbones: `{runs.BACKBONE}`, one per stream, tuned on whole actions with one seed, from random weights.",
        f"- Features: windows of a second, {runs.FEATURE_FPS} a second, of whole videos.",
        f"- Scores: top-1 of the action on the validation split, mean and standard deviation over seeds, in %. "
        f"Anticipation is trained at tau_a = 1 s and tested at all, tau_o = {runs.TAU_O:g} s; a segment "
        "of which nothing can be seen counts as wrong.",
        "- Share: of the ceiling of the streams that the method sees.",
        f"- Machine: {machine}.",
        "- A table without rows is of runs that are not done.",
        "",
    ]


def _backbones(rows: Sequence[Row], known: Any) -> list[str]:
    """What the tuned networks score by themselves."""
    text = ["## Backbones", "", *_top1(rows, "backbone", known)]
    return text


def _top1(rows: Sequence[Row], group: str, known: Any) -> list[str]:
    body = []
    for method, each in of_group(rows, group).items():
        cells = [method, str(len(each))]
        for task in ("verb", "noun", "action"):
            name = f"{task}/top1_accuracy"
            best = 100 * ceiling(known, each[0]["streams"], task=task)
            values = [100 * row["results"][name] for row in each if name in row["results"]]
            cells += [spread(values), share(values, best)]
        body.append([*cells[:-1], f"{best:.1f}", cells[-1]])
    head = ["method", "runs", "verb", "share", "noun", "share", "action", "ceiling", "share"]
    return table(head, body)


def _anticipation(rows: Sequence[Row], known: Any) -> list[str]:
    body = []
    for method, each in of_group(rows, "anticipation").items():
        cells = [method, str(len(each))]
        for tau_a in runs.TAU_A:
            values = at(each, tau_a)
            cells.append(spread(values))
        values = at(each, 1.0)
        best = 100 * ceiling(known, each[0]["streams"], tau_a=1.0)
        body.append([*cells, f"{best:.1f}", share(values, best)])
    if body:
        best = [f"{100 * ceiling(known, runs.STREAMS, tau_a=tau_a):.1f}" for tau_a in runs.TAU_A]
        body.append(["ceiling of all", "", *best, "", ""])
    head = ["method", "runs", *(f"{t:g} s" for t in runs.TAU_A), "ceiling, 1 s", "share, 1 s"]
    return table(head, body)


def at(each: Sequence[Row], tau_a: float) -> list[float]:
    """Top-1 of the action in %, of each run; segments of which nothing was seen count as wrong."""
    test = "" if tau_a == 1.0 else f"tau_a={tau_a:g}"
    name = f"{_ACTION}@{test}" if test else _ACTION
    return [
        100 * row["results"][name] * (1 - row.get("unseen", {}).get(test, 0) / row["segments"])
        for row in each
        if name in row["results"]
    ]


def _compositional(rows: Sequence[Row], known: Any) -> list[str]:
    body = []
    best = 100 * ceiling(known, ["rgb"], task="verb", split="compositional_validation")
    for method, each in {
        **{"backbone alone": of_group(rows, "backbone compositional").get("rgb", [])},
        **of_group(rows, "compositional"),
    }.items():
        values = [100 * row["results"]["verb/top1_accuracy"] for row in each]
        if values:
            body.append([method, str(len(each)), spread(values), f"{best:.1f}", share(values, best)])
    return table(["method", "runs", "verb", "ceiling", "share"], body)


def _goals(rows: Sequence[Row], known: Any) -> list[str]:
    text = []
    for task, goal, pick in (
        ("recognition", 95, lambda each: [100 * row["results"][_ACTION] for row in each]),
        ("anticipation", 90, lambda each: at(each, 1.0)),
    ):
        text += _goal(of_group(rows, task), task, goal, pick, known)
    return text or ["No run of a fusion is done."]


def _goal(
    methods: dict[str, list[Row]], task: str, goal: int, pick: Callable[[Sequence[Row]], list[float]], known: Any
) -> list[str]:
    means = {method: fmean(pick(each)) for method, each in methods.items()}
    alone = {method: value for method, value in means.items() if method in runs.STREAMS}
    fused = {method: value for method, value in means.items() if method not in runs.STREAMS}
    if not alone or not fused:
        return []
    best, single = max(fused, key=fused.__getitem__), max(alone, key=alone.__getitem__)
    limit = 100 * ceiling(known, methods[best][0]["streams"], tau_a=1.0 if task == "anticipation" else None)
    reached, ahead = 100 * fused[best] / limit, fused[best] - alone[single]
    return [
        f"- {task}: {best} reaches {reached:.1f} % of the ceiling (goal {goal} %: "
        f"{'reached' if reached >= goal else 'missed'}), {ahead:.1f} points above {single} alone "
        f"(goal 5: {'reached' if ahead >= 5 else 'missed'})."
    ]


def _time(rows: Sequence[Row]) -> list[str]:
    seconds: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["seconds"]:
            seconds[row["group"]].append(row["seconds"])
    body = [[group, str(len(each)), f"{sum(each) / 60:.1f}", f"{fmean(each):.0f}"] for group, each in seconds.items()]
    return table(["what", "runs", "minutes in all", "seconds a run"], body)


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def share(values: Sequence[float], best: float) -> str:
    return f"{100 * fmean(values) / best:.0f} %" if values else ""


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
