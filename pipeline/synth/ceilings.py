"""The best possible scores of the synthetic kitchen, from its law.

All that a predictor can learn from a set of streams is the symbols of their facets, as soon as they show: an object's
look from `look_from` of its action on, what the hand does from `act_from` on. A predictor that knows the law, and reads
every symbol in its first frame, cannot be beaten; one that learns from a sample, or needs more frames, stays below.

Recognition and early recognition are exact: the probability of every (action, symbols) is a product, and the ceilings
are sums of it. Anticipation: the last action begun before the end of an observation is the one before the target, since
two actions start further apart than any tau_a; the posterior of it, given all symbols that show in the observation, is
the forward algorithm, and one step of the chain gives that of the target. The expectation over observations is a Monte
Carlo sum over independent histories, of the posterior's own best score (not of hits), with its standard error.

Metrics: top1, top5: share of segments. class_mean_top1, class_mean_top5: mean over classes of the share within a class
(mean top-k recall). Each is the best of its own: the rule that is best for one is not best for another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..guard import beat
from .law import (
    ACTION_NAMES,
    HELD_OUT,
    NOUN_OF,
    NOUNS,
    NOVEL_VERBS,
    SHOWN_BY,
    STREAMS,
    VERB_OF,
    VERBS,
    Facet,
    KitchenLaw,
    facets,
    stationary,
    transitions,
)
from .script import CEILINGS, Draw, Instance, Plan, draw

FRACTIONS = tuple(n / 8 for n in range(1, 9))
TAU_A_SECONDS = tuple(n / 4 for n in range(1, 9))
TAU_O_SECONDS = 5.0
FURTHER_TAU_O_SECONDS = (1.0, 2.0, 10.0)  # of all streams together
METRICS = ("top1", "top5", "class_mean_top1", "class_mean_top5")
_DECIMALS = 6
_CHUNK = 4_000

Scores = dict[str, dict[str, float]]
Groups: dict[str, np.ndarray] = {
    "verb": np.eye(len(VERBS))[VERB_OF],
    "noun": np.eye(len(NOUNS))[NOUN_OF],
    "action": np.eye(len(ACTION_NAMES)),
}


def stream_sets() -> Iterator[tuple[str, ...]]:
    """Every set of streams, small ones first."""
    for count in range(1, len(STREAMS) + 1):
        yield from combinations(STREAMS, count)


def key_of(streams: Collection[str]) -> str:
    """How `ceilings.json` names a set: "rgb+audio". Boxes are read as flow, which shows what they show."""
    known = (*STREAMS, "boxes")
    if wrong := [name for name in streams if name not in known]:
        raise ValueError(f"the kitchen has no stream {wrong[0]!r}; it has {', '.join(known)}")
    if not streams:
        raise ValueError(f"no streams were named; there are {', '.join(known)}")
    asked = {"flow" if name == "boxes" else name for name in streams}
    return "+".join(name for name in STREAMS if name in asked)


def compute_ceilings(plan: Plan) -> dict[str, Any]:
    """All that `ceilings.json` holds. Raises ValueError for a law whose actions follow faster than a tau_a."""
    law = plan.law
    if max(TAU_A_SECONDS) > law.least_period_seconds:
        raise ValueError(
            f"actions may start {law.least_period_seconds} s apart; ceilings of anticipation are computed up to "
            f"tau_a = {max(TAU_A_SECONDS)} s and need at least that: make durations_seconds or gaps_seconds longer"
        )
    prior = stationary(law)
    held = prior * np.isin(ACTION_NAMES, list(HELD_OUT))
    novel = prior * np.isin(np.array(VERBS)[VERB_OF], NOVEL_VERBS)
    base = prior - novel
    shown = {key_of(streams): _facets_of(law, streams) for streams in stream_sets()}
    histories = Histories(plan)
    every = key_of(STREAMS)
    return {
        "about": " ".join((__doc__ or "").split()),
        "parameters": {**asdict(law), "seed": plan.seed, "histories": plan.size.histories},
        "streams": {name: list(SHOWN_BY[name]) for name in SHOWN_BY},
        "classes": {"verb": list(VERBS), "noun": list(NOUNS), "action": list(ACTION_NAMES)},
        "nothing_seen": _rounded(exact_scores(prior, ())),
        "recognition": _each(shown, lambda of: exact_scores(prior, of)),
        "outline_and_surface": _rounded(exact_scores(prior, [facets(law)[name] for name in ("outline", "surface")])),
        "single_facets": _each({f.name: (f,) for f in facets(law).values()}, lambda of: exact_scores(prior, of)),
        "early_recognition": {
            str(fraction): _each(shown, lambda of, fraction=fraction: early_scores(law, of, fraction))
            for fraction in FRACTIONS
        },
        "anticipation": {
            "tau_o_seconds": TAU_O_SECONDS,
            "by_tau_a_seconds": {
                str(tau_a): _each(shown, lambda of, tau_a=tau_a: histories.scores(of, tau_a, TAU_O_SECONDS))
                for tau_a in TAU_A_SECONDS
            },
        },
        "anticipation_of_all_streams_by_tau_o_seconds": {
            str(tau_o): {str(tau_a): _rounded(histories.scores(shown[every], tau_a, tau_o)) for tau_a in TAU_A_SECONDS}
            for tau_o in FURTHER_TAU_O_SECONDS
        },
        "recognition_with_the_past": {
            "tau_o_seconds": TAU_O_SECONDS,
            "by_streams": _each(shown, lambda of: histories.scores(of, 0.0, TAU_O_SECONDS, and_the_action=True)),
        },
        "splits": {
            "compositional_validation": _each(shown, lambda of: exact_scores(held, of)),
            "few_shot_base_validation": _each(shown, lambda of: exact_scores(base, of)),
            "few_shot_5_validation": _each(shown, lambda of: exact_scores(novel, of)),
            "few_shot_10_validation": _each(shown, lambda of: exact_scores(novel, of)),
        },
        "top1_of_the_best_predictor_on_the_validation_split": {
            key: oracle_top1(law, of, plan.instances("validation")) for key, of in shown.items()
        },
    }


def _each(shown: Mapping[str, tuple[Facet, ...]], score: Any) -> dict[str, Any]:
    """The scores of each set; sets that show the same are computed once."""
    done: dict[tuple[str, ...], Any] = {}
    for of in shown.values():
        names = tuple(facet.name for facet in of)
        if names not in done:
            done[names] = _rounded(score(of))
    return {key: done[tuple(facet.name for facet in of)] for key, of in shown.items()}


def _rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    return round(float(values), _DECIMALS)


def _facets_of(law: KitchenLaw, streams: Collection[str]) -> tuple[Facet, ...]:
    return tuple(f for f in facets(law).values() if any(f.name in SHOWN_BY[stream] for stream in streams))


def _likelihood(facet: Facet) -> np.ndarray:
    """float64 (symbols, actions): P(symbol | action)."""
    return facet.confusion.T[:, VERB_OF if facet.of == "verb" else NOUN_OF]


# Exact sums


def exact_scores(prior: np.ndarray, seen: Sequence[Facet]) -> Scores:
    """Ceilings where these facets are seen of an action that is drawn from prior, float64 (A,), of any positive sum."""
    prior = prior / prior.sum()
    sides = []
    for of in ("verb", "noun"):
        rows = np.ones((1, len(prior)))
        for facet in seen:
            if facet.of == of:
                rows = (rows[:, None] * _likelihood(facet)).reshape(-1, len(prior))
                rows = rows[rows.any(1)]
        sides.append(_merged(rows))
    totals = {task: np.zeros(len(METRICS)) for task in Groups}
    for verb_row in sides[0]:
        joint = sides[1] * (verb_row * prior)
        for task, group in Groups.items():
            totals[task] += _best(joint @ group, prior @ group).sum(1)
    return {task: dict(zip(METRICS, map(float, total), strict=True)) for task, total in totals.items()}


def exact_recognition(law: KitchenLaw, streams: Collection[str]) -> Scores:
    """Ceilings of recognition for a set of streams: task -> metric -> share."""
    return exact_scores(stationary(law), _facets_of(law, key_of(streams).split("+")))


def _merged(rows: np.ndarray) -> np.ndarray:
    """Proportional rows as one: best scores are linear in a row's size, so their sum stays."""
    sizes = rows.sum(1, keepdims=True)
    _, inverse = np.unique(np.round(rows / sizes, 12), axis=0, return_inverse=True)
    merged = np.zeros((inverse.max() + 1, rows.shape[1]))
    np.add.at(merged, inverse.reshape(-1), rows)
    return merged


def _best(joint: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """float64 (metrics, N): best scores of rows (N, C) of P(class, what is seen), or of P(class | what is seen).

    classes: float64 (C,), P(class); those of probability 0 are no classes.
    """
    there = classes > 0
    joint, classes = joint[:, there], classes[there]
    recall = joint / (classes * len(classes))
    return np.stack([joint.max(1), _top5(joint), recall.max(1), _top5(recall)])


def _top5(rows: np.ndarray) -> np.ndarray:
    return rows.sum(1) if rows.shape[1] <= 5 else np.partition(rows, -5, axis=1)[:, -5:].sum(1)


def early_scores(law: KitchenLaw, seen: Sequence[Facet], fraction: float) -> Scores:
    """Ceilings where the first `fraction` of an action is seen."""
    prior = stationary(law)
    totals: Scores = {task: dict.fromkeys(METRICS, 0.0) for task in Groups}
    shares: dict[bool, float] = {True: 0.0, False: 0.0}
    for act_from, probability in zip(law.act_from, law.act_from_probability, strict=True):
        shares[act_from < fraction] += probability
    for acts, share in shares.items():
        if share > 0:
            shown = [f for f in seen if (acts if f.since == "act" else law.look_from < fraction)]
            for task, scores in exact_scores(prior, shown).items():
                for metric, value in scores.items():
                    totals[task][metric] += share * value
    return totals


# Anticipation


class Histories:
    """Independent draws of a target action and what came before it, of targets anywhere in the plan's videos."""

    def __init__(self, plan: Plan) -> None:
        law, size = plan.law, plan.size
        self._law = law
        reach = max(TAU_O_SECONDS, *FURTHER_TAU_O_SECONDS) + max(TAU_A_SECONDS)
        self._past = math.ceil(reach / law.least_period_seconds)
        rng = np.random.default_rng((plan.seed, CEILINGS))
        drawn = draw(law, rng, size.histories, self._past + 1)
        self._drawn: Draw = drawn
        before = rng.integers(size.actions_per_video, size=size.histories)
        self._there = np.arange(self._past) >= self._past - before[:, None]
        # Seconds before the target's start (negative), from the last action back to the first.
        gaps, durations = drawn.gaps_before[:, 1:], drawn.durations[:, :-1]
        starts = -np.cumsum((gaps + durations)[:, ::-1], 1)[:, ::-1]
        self._shows = {
            "look": (starts + law.look_from * durations, starts + durations),
            "act": (starts + drawn.act_from[:, :-1] * durations, starts + law.act_until * durations),
        }

    def scores(
        self, seen: Sequence[Facet], tau_a: float, tau_o: float, and_the_action: bool = False
    ) -> dict[str, Scores]:
        """Ceilings ("value") and their standard errors where [start - tau_a - tau_o, start - tau_a) is seen.

        and_the_action: the target itself is seen as well.
        """
        law, prior = self._law, stationary(self._law)
        visible = {
            since: self._there & (np.maximum(begin, -tau_a - tau_o) < np.minimum(end, -tau_a))
            for since, (begin, end) in self._shows.items()
        }
        first = int(np.argmax((visible["look"] | visible["act"]).any(0)))
        count = len(self._there)
        sums = {task: np.zeros((2, len(METRICS))) for task in Groups}
        for chunk in (slice(at, at + _CHUNK) for at in range(0, count, _CHUNK)):
            beat()
            belief = np.broadcast_to(prior, (len(self._there[chunk]), len(prior)))
            for at in range(first, self._past):
                belief = self._updated(belief, seen, at, chunk, visible) @ transitions(law)
            if and_the_action:
                belief = self._updated(belief, seen, self._past, chunk, None)
            for task, group in Groups.items():
                best = _best(belief @ group, prior @ group)
                sums[task] += np.stack([best.sum(1), (best**2).sum(1)])
        result: dict[str, Scores] = {"value": {}, "standard_error": {}}
        for task, (total, squares) in sums.items():
            mean = total / count
            error = np.sqrt((squares / count - mean**2).clip(0) / (count - 1))
            result["value"][task] = dict(zip(METRICS, map(float, mean), strict=True))
            result["standard_error"][task] = dict(zip(METRICS, map(float, error), strict=True))
        return result

    def _updated(
        self,
        belief: np.ndarray,
        seen: Sequence[Facet],
        at: int,
        chunk: slice,
        visible: Mapping[str, np.ndarray] | None,
    ) -> np.ndarray:
        """The posterior of action `at`, given what of it is visible (None: all of it)."""
        for facet in seen:
            likelihood = _likelihood(facet)[self._drawn.symbols[facet.name][chunk, at]]
            if visible is not None:
                likelihood = np.where(visible[facet.since][chunk, at, None], likelihood, 1.0)
            belief = belief * likelihood
        return belief / belief.sum(1, keepdims=True)


# On the instances that were made


def oracle_top1(law: KitchenLaw, seen: Sequence[Facet], instances: Sequence[Instance]) -> dict[str, float]:
    """task -> share of instances that the best predictor of recognition gets right."""
    joint = np.repeat(stationary(law)[None], len(instances), 0)
    for facet in seen:
        joint = joint * _likelihood(facet)[[instance.symbols[facet.name] for instance in instances]]
    actions = np.array([instance.action for instance in instances])
    return {
        task: round(float(((joint @ group).argmax(1) == group[actions].argmax(1)).mean()), _DECIMALS)
        for task, group in Groups.items()
    }


# Reading them


def read_ceilings(root: str | Path) -> dict[str, Any]:
    """`ceilings.json` of a kitchen. Raises FileNotFoundError, and ValueError where it is no json."""
    path = Path(root) / "ceilings.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; it is written by 'actionfuse synth {root}'")
    return json.loads(path.read_text(encoding="utf-8"))


def ceiling(
    ceilings: Mapping[str, Any],
    streams: Collection[str],
    *,
    task: str = "action",
    metric: str = "top1",
    fraction: float = 1.0,
    tau_a: float | None = None,
    split: str | None = None,
) -> float:
    """One number of `read_ceilings`: of recognition, of the first `fraction` of an action, or tau_a seconds before it.

    streams: those that the model sees. split: a split of its own ("compositional_validation"), recognition only.
    Raises ValueError for a name or amount that has no number.
    """
    key = key_of(streams)
    if (fraction != 1.0) + (tau_a is not None) + (split is not None) > 1:
        raise ValueError("give one of fraction, tau_a and split")
    if tau_a is not None:
        found = _at(ceilings["anticipation"]["by_tau_a_seconds"], str(float(tau_a)), "tau_a")[key]["value"]
    elif split is not None:
        found = _at(ceilings["splits"], split, "split")[key]
    elif fraction != 1.0:
        found = _at(ceilings["early_recognition"], str(float(fraction)), "fraction")[key]
    else:
        found = ceilings["recognition"][key]
    return float(_at(_at(found, task, "task"), metric, "metric"))


def _at(values: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in values:
        raise ValueError(f"there is no ceiling for {what} {name}; there are {', '.join(values)}")
    return values[name]
