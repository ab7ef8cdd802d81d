"""Distance-weighted sampling: the density and the loss against loops, the order of groups, exact resume, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy_training import toy_recipe, write_toy
from toy_videos import video_recipe, write_videos

from actionfuse.train.batches import TrainSampler
from actionfuse.train.distance import distance_loss, embedding, grouped_order, negative_weights
from actionfuse.train.engine import Preempted, Trainer
from actionfuse.train.log import read_metrics
from actionfuse.train.model import load_model
from actionfuse.train.recipe import Distance, Recipe

SETTINGS = Distance(weight=1.0)


def batch(width: int, count: int = 12, seed: int = 0):
    """Embeddings on the sphere, close enough together that negatives are within reach; four classes, one unknown."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=made, dtype=torch.float64) + 1.0
    labels = torch.arange(count) % 4
    labels[-1] = -100
    return embedding({"rgb": x}).double(), labels


@pytest.mark.parametrize("width", [3, 8, 128])
def test_negatives_are_drawn_by_the_inverse_of_the_density(width):
    x, labels = batch(width)
    distances = torch.cdist(x, x)
    negatives = (labels[:, None] != labels[None]) & (labels >= 0)[:, None] & (labels >= 0)[None]
    weights = negative_weights(distances, negatives, width, SETTINGS)
    for i in range(len(x)):
        own = {}
        for j in range(len(x)):
            d = float(distances[i, j])
            if labels[i] >= 0 and labels[j] >= 0 and labels[i] != labels[j] and d < 1.4:
                d = max(d, 0.5)
                own[j] = 1 / (d ** (width - 2) * (1 - d * d / 4) ** ((width - 3) / 2))
        expected = [own.get(j, 0.0) / sum(own.values()) if own else 0.0 for j in range(len(x))]
        np.testing.assert_allclose(weights[i], expected, rtol=1e-9, atol=1e-12)
    assert not weights[-1].any() and torch.allclose(weights[:-1].sum(1), torch.ones(11, dtype=torch.float64))


def test_the_loss_is_that_of_the_drawn_pairs(monkeypatch):
    x, labels = batch(16)
    x = x.float()
    drawn = torch.randint(0, len(x), (len(x), len(x)), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch.Tensor, "multinomial", lambda *_, **__: drawn)
    terms = []
    for i in range(len(x) - 1):
        for j in range(len(x) - 1):
            if i != j and labels[i] == labels[j]:
                terms.append(max(0.0, 0.2 + math.dist(x[i].tolist(), x[j].tolist()) - 1.2))
                terms.append(max(0.0, 0.2 - math.dist(x[i].tolist(), x[drawn[i, j]].tolist()) + 1.2))
    positive = [term for term in terms if term > 0]
    assert float(distance_loss(x, labels, SETTINGS)) == pytest.approx(sum(positive) / len(positive), rel=1e-4)


def test_draws_follow_the_weights_and_the_seed():
    x, labels = batch(4)
    x = x.float().requires_grad_()
    torch.manual_seed(3)
    one = distance_loss(x, labels, SETTINGS)
    torch.manual_seed(3)
    assert torch.equal(one, distance_loss(x, labels, SETTINGS)) and one > 0
    one.backward()
    assert x.grad is not None and x.grad[:-1].any() and not x.grad[-1].any()  # the unknown one is in no pair
    alone = torch.zeros(12, dtype=torch.int64)
    assert torch.isfinite(distance_loss(x, alone, SETTINGS))  # nobody has a negative
    assert not distance_loss(x[:3].detach(), torch.tensor([0, 1, 2]), SETTINGS)  # nobody has a pair
    same = embedding({"rgb": torch.ones(4, 5)}).requires_grad_()
    distance_loss(same, torch.tensor([0, 0, 1, 1]), SETTINGS).backward()
    assert same.grad is not None and same.grad.isfinite().all()


def test_an_epoch_comes_in_groups_of_a_class():
    labels = np.array([0] * 7 + [1] * 4 + [2] + [-1] * 3)
    order = grouped_order(labels, 4, seed=5, epoch=2)
    assert len(order) == 4 * (2 + 1 + 1 + 1)
    for group in order.reshape(-1, 4):
        assert len(set(labels[group].tolist())) == 1
    assert set(order.tolist()) == set(range(len(labels)))
    assert np.array_equal(order, grouped_order(labels, 4, seed=5, epoch=2))
    others = [grouped_order(labels, 4, seed=seed, epoch=epoch) for seed, epoch in ((5, 3), (6, 2))]
    assert all(len(other) == len(order) and not np.array_equal(other, order) for other in others)


def test_the_sampler_begins_anywhere_and_draws_repeats_anew():
    labels = np.array([0] * 5 + [1] * 3)
    made = TrainSampler(8, groups=(labels, 4), seed=1)
    assert len(made) == made.num_samples == 12
    made.set_epoch(1)
    whole = list(made)
    assert len(set(whole)) == 12 and {index for _, index in whole} == set(range(8))  # no two draws are the same
    made.set_epoch(1, 5)
    assert list(made) == whole[5:]
    shares = [list(TrainSampler(8, groups=(labels, 4), seed=1, epoch=1, rank=r, world_size=2)) for r in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(whole)
    for share in shares:  # two of a class in each process's group
        assert all(labels[a[1]] == labels[b[1]] for a, b in zip(share[::2], share[1::2], strict=True))


def paired(root, **changes) -> Recipe:
    return video_recipe(
        root, loss__distance={"weight": 0.5, "task": "noun", "per_class": 2}, run__epochs=3, optim__ema=0.9,
        augment__crop="multi_scale", **changes,
    )  # fmt: skip


def test_it_trains_and_goes_on_to_the_same_bits(tmp_path):
    root = write_videos(tmp_path / "videos")
    Trainer(paired(root), tmp_path / "whole", quiet=True).run()
    rows = [row for row in read_metrics(tmp_path / "whole") if row["kind"] == "step"]
    assert len(rows) == 6 and all(row["distance"] > 0 for row in rows)
    for row in rows:
        assert row["loss"] == pytest.approx(row["verb"] + row["noun"] + row["distance"], rel=1e-5)
    stopped = Trainer(paired(root), tmp_path / "stopped", quiet=True)
    one_step = stopped._one_step

    def then_stop(*args):
        done = one_step(*args)
        stopped._stop = stopped.progress.step == 2  # in the middle of the second epoch
        return done

    stopped._one_step = then_stop
    with pytest.raises(Preempted):
        stopped.run()
    Trainer(paired(root), tmp_path / "stopped", quiet=True).run()
    assert read_metrics(tmp_path / "stopped") == read_metrics(tmp_path / "whole")
    one, two = (load_model(tmp_path / name).state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss__distance__task": "x"}, "loss.distance.task is 'x'"),
        ({"loss__balance": "class"}, "take one of them"),
        ({"augment__mixup": 0.2}, "leave augment.mixup"),
        ({"streams__rgb__freeze": True}, "one that is not frozen"),
        ({"loss__distance__per_class": 1}, "each needs two of a class or more"),
        ({"loss__distance__per_class": 4}, "more than one class"),
        ({"run__micro_batch": 2}, "more than one class"),
    ],
)
def test_what_makes_no_pairs_is_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        Trainer(paired(write_videos(tmp_path / "videos"), **changes), tmp_path / "run", quiet=True)


def test_stored_features_do_not_move(tmp_path):
    with pytest.raises(ValueError, match="needs inputs: pixels"):
        Trainer(toy_recipe(write_toy(tmp_path), loss__distance={"weight": 1.0}), tmp_path / "run", quiet=True)
