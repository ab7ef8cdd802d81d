"""From the results of `bench_kitchen.py` to `kitchen.md`: mean, spread and share of the ceiling; no number by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import kitchen_runs as runs
from kitchen_facets import facet_table

from actionfuse.pipeline.synth.ceilings import ceiling, read_ceilings

Row = dict[str, Any]
_ACTION = "action/top1_accuracy"
KEPT = Path(__file__).parent / "results" / "kitchen"  # what the tables are made of
_NOTES = Path(__file__).with_name("kitchen_notes.md")
_TASKS = ("verb", "noun", "action")


def read_results(work: Path) -> list[Row]:
    return [json.loads(path.read_text()) for path in sorted((work / "results").glob("*.json"))]


def collect(work: Path, machine: str) -> None:
    """Write what the tables need of all runs to KEPT: scores, times and ceilings, without recipes."""
    known = read_ceilings(work / "kitchen")
    about = json.loads((work / "kitchen" / "kitchen.json").read_text())
    rows = []
    for row in read_results(work):
        kept = {name: row[name] for name in _FIELDS if name in row}
        if "streams" in row:
            scores = {k: v for k, v in row["results"].items() if _is_whole(k)}
            kept |= {"results": scores, "ceilings": _ceilings(row, known)}
        rows.append(kept)
    KEPT.mkdir(parents=True, exist_ok=True)
    facts = {"size": about["size"], "seed": about["seed"], "machine": machine, "date": date.today().isoformat()}
    (KEPT / "about.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (KEPT / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


_FIELDS = (
    "group",
    "method",
    "seed",
    "streams",
    "seconds",
    "cpu_seconds",
    "segments",
    "unseen",
    "weights",
    "facets",
    "pairs",
    "grammar",
)


def _is_whole(name: str) -> bool:
    """Whether a score is of the whole split: `verb/top1_accuracy`, `action/top1_accuracy@tau_a=0.5`."""
    return name.count("/") == 1 and "top1" in name


def _ceilings(row: Row, known: Any) -> dict[str, float]:
    """Of the streams that the run sees: by task, or by tau_a; on_split: of the best predictor there."""
    streams, group = row["streams"], row["group"]
    if "compositional" in group:
        return {task: ceiling(known, streams, task=task, split="compositional_validation") for task in ("verb",)}
    if group == "anticipation":
        return {f"{tau_a:g}": ceiling(known, streams, tau_a=tau_a) for tau_a in runs.TAU_A if _has(known, tau_a)}
    found = {task: ceiling(known, streams, task=task) for task in _TASKS}
    order = [stream for stream in known["streams"] if stream in streams]
    best = known["top1_of_the_best_predictor_on_the_validation_split"].get("+".join(order))
    return found | ({"on_split": best["action"]} if best else {})


def _has(known: Any, tau_a: float) -> bool:
    return str(float(tau_a)) in known["anticipation"]["by_tau_a_seconds"]


def of_group(rows: Iterable[Row], group: str) -> dict[str, list[Row]]:
    """method -> its runs, in the order of the plan."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["group"] == group:
            found[row["method"]].append(row)
    order = [*runs.STREAMS, *runs.FUSIONS, runs.REALLOCATED, runs.DIRECT, *runs.INTERACTIVE]
    return {method: found[method] for method in dict.fromkeys(order) if method in found}


def best_fusions(rows: Sequence[Row], count: int) -> tuple[str, ...]:
    """The best methods of recognition on features, but for reallocation, which trains nothing."""
    means = {
        method: fmean(row["results"][_ACTION] for row in each)
        for method, each in of_group(rows, "recognition").items()
        if method in runs.FUSIONS
    }
    return tuple(sorted(means, key=lambda method: -means[method])[:count])


def write_table(out: Path) -> None:
    """The document, of what `collect` kept."""
    about = json.loads((KEPT / "about.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (KEPT / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    text = ["# The synthetic kitchen, measured", "", *_intro(about)]
    text += ["", "## What is reached", "", *_goals(rows), *_missing(rows)]
    text += ["", "## Backbones", "", *_BACKBONES, "", *_top1(rows, "backbone")]
    text += ["", *_FACETS, "", *table(*facet_table([row for row in rows if row["group"] == "facets"]))]
    text += ["", "## Recognition", "", *_RECOGNITION, "", *_top1(rows, "recognition")]
    text += ["", "## Anticipation", "", *_ANTICIPATION, "", *_anticipation(rows)]
    text += ["", *_GRAMMAR, "", *_grammar(rows)]
    text += ["", "## Pairs of verb and noun that training has not", "", *_COMPOSITIONAL, "", *_compositional(rows)]
    text += ["", *_PAIRS, "", *_pairs(rows)]
    text += ["", "## End to end", "", *_top1(rows, "recognition, end to end")]
    if _NOTES.is_file():
        text += ["", _NOTES.read_text(encoding="utf-8").rstrip()]
    text += ["", "## Time", "", *_time(rows)]
    out.write_text("\n".join(text) + "\n", encoding="utf-8")


def _intro(about: Row) -> list[str]:
    clip, tuned = runs.TUNED["rgb"], runs.TUNING
    return [
        f"Made on {about['date']} by `python benchmarks/bench_kitchen.py`, which goes on where it was; do not edit.",
        "The tables alone, of `benchmarks/results/kitchen/`: `python benchmarks/kitchen_table.py`.",
        "",
        f"- Kitchen: `actionfuse synth DIR --size {about['size']}`, seed {about['seed']}; what it shows and how the "
        "ceilings are computed: [docs/kitchen.md](../docs/kitchen.md).",
        f"- Features: rows of windows, {runs.FEATURE_FPS} a second, of whole videos, by `actionfuse extract` "
        f"({runs.PIECE} frames at {clip['fps']:g} fps; of sound 0.975 s). Heads see nothing else.",
        f"- Heads: width {runs.WIDTH}, AdamW, learning rate {runs.HEADS['lr']:g}, batch {runs.HEADS['batch']}, "
        + ", ".join(f"{task} {epochs} epochs" for task, epochs in runs.HEAD_EPOCHS.items())
        + ", the same for all.",
        f"- Backbones: AdamW, learning rate {tuned['lr']:g}, batch {tuned['batch']}, "
        + ", ".join(f"{stream} {epochs}" for stream, epochs in runs.TUNING_EPOCHS.items())
        + " epochs.",
        "- Scores: top-1 in %, on the validation split, mean and standard deviation over seeds.",
        "- Ceiling: the best possible score, in expectation, of the streams that a method sees; share: of that. "
        "A split is a sample: `best here` is what a predictor that knows the law scores on this very one.",
        f"- Machine: {about['machine']}.",
    ]


_BACKBONES = [
    "One network a stream, trained from random weights on whole actions by verb, noun and action, one seed. Pictures:",
    f"`{runs.BACKBONES['rgb']}` with early fusion over pieces of {runs.PIECE} frames (its first layer sees motion) of "
    f"{runs.TUNED['rgb']['crop']} x {runs.TUNED['rgb']['crop']} pixels,",
    f"flow {runs.TUNED['flow']['crop']} x {runs.TUNED['flow']['crop']}; sound: `{runs.BACKBONES['audio']}` on "
    "spectrograms of VGGish's form.",
]
_FACETS = [
    "What of the law their features tell, for diagnosis: validation actions whose symbol a linear read-out of the mean",
    "over the action names, %. Only this looks at `truth.jsonl`. A ceiling takes all of them for 100.",
]
_RECOGNITION = [
    "Eight rows of features of each stream, at the ends of the eighths of an action. Single streams: a linear",
    f"classifier of their mean. Fusions: {', '.join(runs.FUSED)}; flow is computed from rgb, and the ceiling with it",
    "is that without.",
]
_ANTICIPATION = [
    f"On the {runs.TAU_O:g} s before, a row each half second. Training draws tau_a for each sample from those of the",
    "test (`task.train_tau_a`); one model is tested at all of them. Heads name the action that was seen last",
    "(`loss.last_action`), and a table of transitions, learned with them, leads on to the next (`head.transition`,",
    f"after Miech et al., 2019). `{runs.DIRECT}` learns the next one and nothing else. A segment of which",
    "nothing can be seen counts as wrong. Single streams: the encoder and classifier that MIF and late fusion have for",
    "each (`late_fusion` of one stream), since a mean over the rows, which `concat` takes, does not tell which was",
    "last.",
]
_GRAMMAR = [
    "What a predictor that sees all symbols of these streams scores on this very split, by what it knows of the order",
    "of actions, %; for diagnosis, from `truth.jsonl`:",
]
_COMPOSITIONAL = [
    "Interactive Fusion on boxes and maps of rgb, verbs of pairs that are held out. The backbone, `tsm:test_resnet`,",
    "which keeps frames apart as boxes are, was tuned on the training pairs and is frozen.",
]


_PAIRS = [
    "The ceiling knows which pairs are tested. What a predictor that knows the law and sees all symbols of rgb names",
    "right of the same actions, by what it knows of pairs, %; for diagnosis, from `truth.jsonl`:",
]


def _top1(rows: Sequence[Row], group: str) -> list[str]:
    body = []
    for method, each in of_group(rows, group).items():
        best, cells = each[0]["ceilings"], [method, str(len(each))]
        for task in _TASKS:
            name = f"{task}/top1_accuracy"
            values = [100 * row["results"][name] for row in each if name in row["results"]]
            cells += [spread(values), share(values, 100 * best[task])]
        on_split = f"{100 * best['on_split']:.1f}" if "on_split" in best else ""
        body.append([*cells[:-1], f"{100 * best['action']:.1f}", cells[-1], on_split])
    head = ["method", "runs", "verb", "share", "noun", "share", "action", "ceiling", "share", "best here"]
    return table(head, body)


def _anticipation(rows: Sequence[Row]) -> list[str]:
    body, shares = [], []
    for method, each in of_group(rows, "anticipation").items():
        best = each[0]["ceilings"]
        body.append([method, str(len(each)), *(spread(at(each, tau_a)) for tau_a in runs.TAU_A)])
        part = [share(at(each, tau_a), 100 * best[f"{tau_a:g}"]) for tau_a in runs.TAU_A]
        shares.append([method, f"{100 * best['1']:.1f}", *part])
    for method, each in of_group(rows, "anticipation").items():
        if method in runs.FUSIONS:
            best = each[0]["ceilings"]
            body.append(
                [
                    "ceiling of " + " + ".join(runs.FUSED),
                    "",
                    *(f"{100 * best[f'{tau_a:g}']:.1f}" for tau_a in runs.TAU_A),
                ]
            )
            break
    times = [f"{tau_a:g} s" for tau_a in runs.TAU_A]
    return [
        *table(["method", "runs", *times], body),
        "",
        "Share of the ceiling of its streams:",
        "",
        *table(["method", "ceiling, 1 s", *times], shares),
    ]


def at(each: Sequence[Row], tau_a: float) -> list[float]:
    """Top-1 of the action in %, of each run; segments of which nothing was seen count as wrong."""
    test = "" if tau_a == 1.0 else f"tau_a={tau_a:g}"
    name = f"{_ACTION}@{test}" if test else _ACTION
    return [
        100 * row["results"][name] * (1 - row.get("unseen", {}).get(test, 0) / row["segments"])
        for row in each
        if name in row["results"]
    ]


def _compositional(rows: Sequence[Row]) -> list[str]:
    body = []
    for method, each in {
        "backbone alone": of_group(rows, "backbone compositional").get("rgb", []),
        **of_group(rows, "compositional"),
    }.items():
        values = [100 * row["results"]["verb/top1_accuracy"] for row in each]
        if values:
            best = 100 * each[0]["ceilings"]["verb"]
            body.append([method, str(len(each)), spread(values), f"{best:.1f}", share(values, best)])
    return table(["method", "runs", "verb", "ceiling", "share"], body)


def _pairs(rows: Sequence[Row]) -> list[str]:
    told = [item for row in rows if row["group"] == "pairs" for item in row["pairs"].items()]
    return table(["knows", "verb"], [[known, f"{100 * value:.1f}"] for known, value in told])


def _grammar(rows: Sequence[Row]) -> list[str]:
    told = [item for row in rows if row["group"] == "grammar" for item in row["grammar"].items()]
    body = [[known, *(f"{100 * value:.1f}" for value in values)] for known, values in told]
    return table(["knows", *(f"{tau_a:g} s" for tau_a in runs.TAU_A)], body)


def _goals(rows: Sequence[Row]) -> list[str]:
    text = []
    for task, goal, pick in (
        ("recognition", 95, lambda each: [100 * row["results"][_ACTION] for row in each]),
        ("anticipation", 90, lambda each: at(each, 1.0)),
    ):
        networks = of_group(rows, "backbone") if task == "recognition" else {}
        text += _goal(of_group(rows, task), networks, task, goal, pick)
    return text or ["No run of a fusion is done."]


def _goal(
    methods: dict[str, list[Row]],
    networks: dict[str, list[Row]],
    task: str,
    goal: int,
    pick: Callable[[Sequence[Row]], list[float]],
) -> list[str]:
    """networks: the tuned backbones by themselves, where they do the same; the better of the two counts."""
    key = "1" if task == "anticipation" else "action"
    means = {method: fmean(pick(each)) for method, each in methods.items()}
    alone = {method: value for method, value in means.items() if method in runs.STREAMS}
    alone |= {name: max(fmean(pick(each)), alone.get(name, 0.0)) for name, each in networks.items()}
    fused = {method: value for method, value in means.items() if method not in runs.STREAMS}
    most = max((len(methods[method]) for method in fused), default=0)  # one lucky seed is not the best
    fused = {method: value for method, value in fused.items() if len(methods[method]) == most}
    if not alone or not fused:
        return []
    best, single = max(fused, key=fused.__getitem__), max(alone, key=alone.__getitem__)
    limit = 100 * methods[best][0]["ceilings"][key]
    apart = limit - 100 * max((methods | networks)[stream][0]["ceilings"][key] for stream in alone)
    reached, ahead = 100 * fused[best] / limit, fused[best] - alone[single]
    when = " at 1 s" if key == "1" else ""
    return [
        f"- {task}{when}: {best} reaches {fused[best]:.1f} %, {reached:.1f} % of the ceiling of {limit:.1f} "
        f"(goal {goal} %: {'reached' if reached >= goal else 'missed'}), {ahead:.1f} points above {single} alone "
        f"(goal 5: {'reached' if ahead >= 5 else 'missed'}; its ceiling lies {apart:.1f} above that of any stream)."
    ]


def _missing(rows: Sequence[Row]) -> list[str]:
    """What is planned and not there, in words."""
    wanted = {
        "backbone": runs.STREAMS,
        "recognition": (*runs.STREAMS, *runs.FUSIONS),
        "anticipation": (*runs.STREAMS, *runs.FUSIONS, runs.DIRECT),
        "compositional": tuple(runs.INTERACTIVE),
    }
    text = []
    for group, methods in wanted.items():
        found, seeds = of_group(rows, group), 1 if group == "backbone" else runs.SEEDS
        lacking = [
            f"{method} ({len(found.get(method, []))} of {seeds})"
            for method in methods
            if len(found.get(method, [])) < seeds
        ]
        if lacking:
            text.append(f"- Not there yet, {group}: {', '.join(lacking)}.")
    found = of_group(rows, "recognition, end to end")
    lacking = [f"{each} ({len(found.get(each, []))} of {runs.SEEDS})" for each in best_fusions(rows, 2)]
    if any(len(found.get(each, [])) < runs.SEEDS for each in best_fusions(rows, 2)):
        text.append(f"- Not there yet, end to end: {', '.join(lacking)}.")
    return text


def _time(rows: Sequence[Row]) -> list[str]:
    """Wall and CPU; other programs ran on the machine, so CPU tells more."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["seconds"]:
            found[row["group"]].append(row)
    body = []
    for group, each in found.items():
        used = [row["cpu_seconds"] for row in each if "cpu_seconds" in row]
        wall = sum(row["seconds"] for row in each) / 60
        cpu = f"{sum(used) / 60:.1f}" if used else ""
        body.append([group, str(len(each)), f"{wall:.1f}", cpu])
    heads = [row["cpu_seconds"] / 60 for group in runs.TASKS for row in found[group] if "cpu_seconds" in row]
    planned = runs.SEEDS * (len(runs.TASKS) * (len(runs.STREAMS) + len(runs.FUSIONS)) + 1)
    return [
        f"Heads on features, all {len(heads)} runs that there are (of {planned}): {sum(heads):.0f} minutes of CPU, "
        f"{sum(heads) / 2:.0f} on two cores that do nothing else (goal: 90).",
        "",
        "Other programs shared the machine, and runs shared it with one another: CPU tells more than wall. A run has",
        "one thread.",
        "",
        *table(["what", "runs", "wall, minutes", "CPU, minutes"], body),
    ]


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def share(values: Sequence[float], best: float) -> str:
    return f"{100 * fmean(values) / best:.0f} %" if values else ""


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *body)] if body else ["No run is done."]


if __name__ == "__main__":
    write_table(Path(__file__).with_name("kitchen.md"))
