"""Which facets the stored features of a stream tell: linear read-outs of `truth.jsonl`. For diagnosis; nothing else in
the benchmark looks at that file, and no result uses it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import kitchen_runs as runs
import numpy as np
import torch
from torch import Tensor, nn

from actionfuse.pipeline.features import FeatureStore
from actionfuse.pipeline.synth.law import SHOWN_BY


def facet_scores(work: Path, stream: str) -> dict[str, float]:
    """facet -> share of the validation actions whose symbol a linear classifier of an action's mean features names."""
    actions = [json.loads(line) for line in (work / "kitchen" / "truth.jsonl").read_text().splitlines()]
    store = FeatureStore.open(runs.store(work, stream))
    means = [_mean(store, action) for action in actions]
    features = torch.from_numpy(np.stack(means))
    training = torch.tensor([action["split"] == "train" for action in actions])
    features = (features - features[training].mean(0)) / (features[training].std(0) + 1e-6)
    found = {}
    for facet in SHOWN_BY[stream]:
        names = sorted({action["symbols"][facet] for action in actions})
        labels = torch.tensor([names.index(action["symbols"][facet]) for action in actions])
        layer = _fit(features[training], labels[training], len(names))
        with torch.no_grad():
            right = layer(features[~training]).argmax(1) == labels[~training]
        found[facet] = float(right.float().mean())
    return found


def _mean(store: FeatureStore, action: dict) -> np.ndarray:
    rows = store.read_between(f"{action['video']}.mp4", action["start_seconds"], action["stop_seconds"])
    return np.asarray(rows.data).mean(0)


def _fit(features: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(features.shape[1], classes)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=80)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(features), labels) + 1e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return layer


def facet_table(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Head and body: a row a stream, a column a facet."""
    facets = list(dict.fromkeys(facet for row in rows for facet in row["facets"]))
    body = [
        [row["method"], *(f"{100 * row['facets'][facet]:.1f}" if facet in row["facets"] else "" for facet in facets)]
        for row in rows
    ]
    return ["stream", *facets], body
