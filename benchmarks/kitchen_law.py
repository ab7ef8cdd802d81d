"""What predictors that read every symbol score on the very actions that are tested, by what they know of the law.

`ceilings.json` holds expectations, of one who knows it all. Here: verbs of pairs that training has not, where the
ceiling knows which pairs are tested and who learns does not; and anticipation, where the order of actions may be
counted in the training videos. For diagnosis: it looks at `truth.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actionfuse.pipeline.synth.ceilings import _facets_of, _likelihood
from actionfuse.pipeline.synth.law import (
    ACTION_NAMES,
    HELD_OUT,
    VERB_OF,
    VERBS,
    KitchenLaw,
    stationary,
    transitions,
)

SPLITS = ("compositional_train", "compositional_validation")


def pair_scores(work: Path, streams: tuple[str, ...] = ("rgb",)) -> dict[str, float]:
    """what is known -> share of the tested actions whose verb is named right, from all that the streams show."""
    root, law = work / "kitchen", KitchenLaw()
    actions = {row["id"]: row for row in map(json.loads, (root / "truth.jsonl").read_text().splitlines())}
    splits = json.loads((root / "splits.json").read_text())["splits"]
    training, tested = ([actions[each] for each in splits[name]] for name in SPLITS)
    seen = _facets_of(law, streams)
    of_verb = [facet for facet in seen if facet.of == "verb"]
    frequency = np.bincount([row["action"] for row in training], minlength=len(ACTION_NAMES)) / len(training)
    by_verb = np.eye(len(VERBS))[VERB_OF]

    def score(prior: np.ndarray, facets: list) -> float:
        right = 0
        for row in tested:
            belief, verb_alone = prior.copy(), prior.copy()
            for facet in facets:
                likelihood = _likelihood(facet)[facet.symbols.index(row["symbols"][facet.name])]
                belief = belief * likelihood
                verb_alone = verb_alone * likelihood if facet in of_verb else verb_alone
            # where no known pair shows all this, the verb's own facets are left
            right += int(((belief if belief.any() else verb_alone) @ by_verb).argmax() == row["verb"])
        return right / len(tested)

    law_prior = stationary(law)
    return {
        "the pairs that are tested": score(law_prior * np.isin(ACTION_NAMES, list(HELD_OUT)), list(seen)),
        "all pairs": score(law_prior, list(seen)),
        "the pairs of training": score(frequency, list(seen)),
        "the pairs of training, and looks at the verb's facets alone": score(frequency, of_verb),
    }


def grammar_scores(work: Path, streams: Sequence[str], tau_as: Sequence[float], tau_o: float) -> dict[str, list[float]]:
    """what is known of the order of actions -> share of the validation actions that are anticipated, for each tau_a."""
    actions = [json.loads(line) for line in (work / "kitchen" / "truth.jsonl").read_text().splitlines()]
    count = len(ACTION_NAMES)
    first, pairs = np.zeros(count), np.zeros((count, count))
    videos: dict[str, dict[str, list[dict]]] = {"train": {}, "validation": {}}
    for row in sorted(actions, key=lambda row: row["start_seconds"]):
        videos[row["split"]].setdefault(row["video"], []).append(row)
    for rows in videos["train"].values():
        np.add.at(first, [row["action"] for row in rows], 1)
        np.add.at(pairs, ([row["action"] for row in rows[:-1]], [row["action"] for row in rows[1:]]), 1)
    prior = first / first.sum()
    smooth = pairs + 0.1 * prior
    law = KitchenLaw()
    known = {
        "the law": (stationary(law), transitions(law)),
        "transitions counted in training": (prior, smooth / smooth.sum(1, keepdims=True)),
    }
    tested = list(videos["validation"].values())
    return {name: [_anticipated(tested, streams, tau_a, tau_o, *of) for tau_a in tau_as] for name, of in known.items()}


def _anticipated(
    videos: Sequence[list[dict]],
    streams: Sequence[str],
    tau_a: float,
    tau_o: float,
    prior: np.ndarray,
    following: np.ndarray,
) -> float:
    law, right, total = KitchenLaw(), 0, 0
    seen = _facets_of(law, streams)
    for rows in videos:
        for place, target in enumerate(rows):
            stop, belief = target["start_seconds"] - tau_a, prior
            for row in rows[:place]:
                start, length = row["start_seconds"], row["stop_seconds"] - row["start_seconds"]
                shown = {
                    "look": (start + law.look_from * length, start + length),
                    "act": (start + row["act_from"] * length, start + law.act_until * length),
                }
                for facet in seen:
                    begin, end = shown[facet.since]
                    if max(begin, stop - tau_o) < min(end, stop):
                        belief = belief * _likelihood(facet)[facet.symbols.index(row["symbols"][facet.name])]
                belief = (belief / belief.sum()) @ following
            right += int(belief.argmax() == target["action"])
            total += 1
    return right / total
