"""Anticipation that is trained from several distances, and told what was seen last: draws, labels, losses, runs."""

import json

import numpy as np
import pytest
import torch
from toy_training import toy_recipe

from actionfuse.cli import main
from actionfuse.fusion import Output
from actionfuse.pipeline import Anticipation
from actionfuse.pipeline.samples import IGNORED
from actionfuse.train.build import build_dataset, build_model, load_split, make_task, train_tasks
from actionfuse.train.drawn import DrawnTasks
from actionfuse.train.engine import Trainer
from actionfuse.train.log import read_metrics
from actionfuse.train.losses import latest_known, task_loss, total_loss
from actionfuse.train.model import load_model
from actionfuse.train.recipe import Loss
from actionfuse.train.transition import Transitions

ASKED = {
    "task": {"kind": "anticipation", "tau_a": 0.5, "tau_o": 2.0, "train_tau_a": [0.5, 0.25]},
    "sampling": {"rule": "last"},
    "data__max_broken_share": 0.5,
}


def made(root, *, training=True, **changes):
    recipe = toy_recipe(root, **{**ASKED, **changes})
    split = load_split(recipe, "train")
    model = build_model(recipe, split.classes)
    return build_dataset(recipe, split, model, make_task(recipe.task), training=training)


def test_every_sample_draws_its_distance(root):
    dataset, plain = made(root), {}
    for tau_a in (0.5, 0.25):
        task = {**ASKED["task"], "tau_a": tau_a, "train_tau_a": []}
        plain[Anticipation(tau_a=tau_a, tau_o=2.0)] = made(root, task=task)
    assert isinstance(dataset, DrawnTasks) and set(dataset.tasks) == set(plain)
    drawn = []
    for epoch in range(6):
        for index in range(len(dataset)):
            task, sample = dataset.drawn(epoch, index), dataset[epoch, index]
            drawn.append(task.tau_a)
            same = plain[task][epoch, index]
            assert sample.error == same.error and (sample.index, sample.epoch) == (index, epoch)
            assert sample.stop_seconds == same.stop_seconds
            for stream, rows in sample.streams.items():
                np.testing.assert_array_equal(rows, same.streams[stream])
    share = drawn.count(0.25) / len(drawn)
    assert 0.3 < share < 0.7 and drawn[: len(dataset)] != drawn[len(dataset) : 2 * len(dataset)]
    again = made(root)
    assert [again.drawn(e, i).tau_a for e in range(6) for i in range(len(again))] == drawn


def test_tests_draw_nothing(root):
    dataset = made(root, training=False)
    assert not isinstance(dataset, DrawnTasks) and dataset.task == Anticipation(tau_a=0.5, tau_o=2.0)


def test_one_distance_is_that_distance(root):
    dataset = made(root, task={**ASKED["task"], "train_tau_a": [0.25]})
    assert dataset.task == Anticipation(tau_a=0.25, tau_o=2.0)


def test_recognition_has_no_distance(root):
    recipe = toy_recipe(root, task={"kind": "recognition", "train_tau_a": [1.0]})
    with pytest.raises(ValueError, match=r"train_tau_a is for anticipation, but task.kind is recognition"):
        train_tasks(recipe.task)
    with pytest.raises(ValueError, match="nothing to draw from"):
        DrawnTasks([], [], tasks=[])


def test_the_latest_label_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.where(rng.random((40, 5)) < 0.5, IGNORED, rng.integers(0, 9, (40, 5))))
    labels[0] = IGNORED
    wanted = []
    for row in labels.tolist():
        known = [label for label in row if label != IGNORED]
        wanted.append(known[-1] if known else IGNORED)
    assert latest_known(labels).tolist() == wanted and wanted[0] == IGNORED
    soft = torch.where((labels == IGNORED)[..., None], float(IGNORED), labels[..., None] + torch.tensor([0.0, 0.5]))
    assert latest_known(soft)[:, 0].tolist() == wanted


def test_what_was_seen_last_is_part_of_the_loss():
    torch.manual_seed(0)
    past = torch.tensor([[1, IGNORED, 3, IGNORED], [IGNORED] * 4, [2, 0, IGNORED, IGNORED]])
    target, logits = torch.tensor([0, 1, 2]), {"verb": torch.randn(3, 4), "last/verb": torch.randn(3, 4)}
    recipe = Loss(last_action=0.5, weights={"verb": 3.0})
    total, parts = total_loss(Output(logits), {"verb": target}, recipe, past={"verb": past})
    own = 3 * task_loss(logits["verb"], target)
    last = 3 * 0.5 * task_loss(logits["last/verb"], torch.tensor([3, IGNORED, 0]))
    torch.testing.assert_close(parts["last/verb"], last)
    torch.testing.assert_close(total, own + last)
    silent = total_loss(Output(logits), {"verb": target}, Loss(weights={"verb": 3.0}), past={"verb": past})
    assert set(silent[1]) == {"verb"}


@pytest.mark.parametrize("head", ["mif_progressive", "mimo", "concat"])
def test_a_run_learns_what_was_seen_last_and_does_not_tell_it(root, tmp_path, head):
    options = {"concat": {}, "mimo": {"width": 16, "heads": 2}}.get(head, {"width": 16, "heads": 2})
    recipe = toy_recipe(
        root, **ASKED, head={"name": head, "options": options}, loss={"last_action": 1.0}, run__epochs=4
    )
    trainer = Trainer(recipe, tmp_path / "run", quiet=True)
    assert isinstance(trainer.train_set, DrawnTasks)
    results = trainer.run()
    assert not any("last" in name for name in results)
    steps = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "step"]
    assert steps[-1]["last/verb"] < steps[0]["last/verb"]
    model = load_model(tmp_path / "run")
    assert model.classes == {task: n for task, n in model.head.classes.items() if "last" not in task} != {}
    inputs = {stream: torch.randn(2, 4, width) for stream, width in model.head.streams.items()}
    told = model(inputs)
    assert set(told.logits) == set(model.classes)
    assert all(set(logits) <= set(model.classes) for logits in told.auxiliary.values())
    assert set(model(inputs, losses=True).logits) == set(model.head.classes)


def test_only_anticipation_has_a_last_action(root, tmp_path):
    recipe = toy_recipe(root, loss={"last_action": 1.0})
    with pytest.raises(ValueError, match="must be Anticipation"):
        Trainer(recipe, tmp_path / "run", quiet=True)


def test_transitions_are_the_sum_over_what_was_last():
    torch.manual_seed(0)
    model = Transitions({"verb": 3})
    with torch.no_grad():
        model.table["verb"].copy_(torch.randn(3, 3) / 10)
    last = torch.randn(4, 3, requires_grad=True)
    told = model({"verb": last})["verb"]
    table = (10 * model.table["verb"]).softmax(1)
    for row in range(4):
        given = last[row].softmax(0)
        for follows in range(3):
            wanted = sum(given[k] * table[k, follows] for k in range(3))
            torch.testing.assert_close(told[row, follows].exp(), wanted)
    told.sum().backward()
    assert last.grad is None and model.table["verb"].grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_transitions_are_as_exact_where_the_rest_is_not(dtype):
    model = Transitions({"verb": 3})
    with torch.no_grad():
        model.table["verb"][:, 0] = 4.0
    last = {"verb": torch.tensor([[60.0, 0.0, 1.0]])}
    exact = model(last)["verb"]
    with torch.autocast("cpu", dtype):
        assert torch.equal(model({"verb": last["verb"].to(dtype)})["verb"], exact)
    assert torch.isfinite(exact).all() and exact.min() < -17  # less than float16's smallest number


@pytest.mark.parametrize("head", ["late_fusion", "mimo"])
def test_a_run_leads_on_from_what_was_seen_last(root, tmp_path, head):
    recipe = toy_recipe(
        root, **ASKED, head={"name": head, "options": {"width": 16, "heads": 2}, "transition": True},
        loss={"last_action": 1.0}, run__epochs=4,
    )  # fmt: skip
    trainer = Trainer(recipe, tmp_path / "run", quiet=True)
    assert set(trainer.model.head.classes) == set(trainer.classes)
    results = trainer.run()
    assert results and not any("last" in name for name in results)
    steps = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "step"]
    assert steps[-1]["last/verb"] < steps[0]["last/verb"]
    model = load_model(tmp_path / "run")
    inputs = {stream: torch.randn(2, 4, width) for stream, width in model.head.streams.items()}
    told = model(inputs)
    assert set(told.logits) == set(model.classes) and not told.auxiliary
    for task, logits in model.head(inputs).logits.items():
        torch.testing.assert_close(told.logits[task], model.transition.following(task, logits))
        torch.testing.assert_close(told.logits[task].exp().sum(1), torch.ones(2))
        assert model.transition.table[task].abs().max() > 0
    told = tmp_path / "told.json"
    # 1: of the first segment of each video nothing can be seen
    assert main(["evaluate", str(tmp_path / "run"), "--json", str(told), "--quiet"]) == 1
    best = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())["results"]
    assert json.loads(told.read_text())["results"] == best


def test_a_transition_needs_what_was_last(root, tmp_path):
    with pytest.raises(ValueError, match="let loss.last_action teach that"):
        Trainer(toy_recipe(root, **ASKED, head={"name": "concat", "transition": True}), tmp_path / "run", quiet=True)
