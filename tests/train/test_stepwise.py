"""RULSTM is tested at all of its steps in one pass: against a loop over segments and steps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import toy_recipe, write_toy

from actionfuse.cli import main
from actionfuse.fusion import create_head
from actionfuse.pipeline.features import FeatureStore
from actionfuse.train.build import load_split, make_task
from actionfuse.train.engine import Trainer
from actionfuse.train.evaluate import submission_of
from actionfuse.train.members import load_members, test_run
from actionfuse.train.runs import open_run
from actionfuse.train.stepwise import step_tasks

test_run.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]
STEPS, TOLD = 6, 4
TAU_A = [1.5, 1.25, 1.0, 0.75, 0.5, 0.25]


def rulstm_recipe(root, **changes):
    steps = {"clip": {"frames": 8, "fps": 4}, "key": "{video}"}
    return toy_recipe(
        root, task__kind="anticipation", task__tau_a=0.25, task__tau_o=2.0, sampling__rule="rulstm",
        streams={stream: {**steps, "features": str(root / stream)} for stream in ("rgb", "flow")},
        head={"name": "rulstm", "options": {"width": 8, "anticipation_steps": STEPS, "told_step": TOLD}},
        data__max_broken_share=1.0, run__epochs=2, run__monitor="verb/top1_accuracy@tau_a=1", **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stepwise")
    Trainer(rulstm_recipe(write_toy(folder / "toy")), folder / "run", quiet=True).run()
    files = ["--json", str(folder / "r.json"), "--scores", str(folder / "s.npz"), "--csv", str(folder / "r.csv")]
    # segments of the first quarter of a second have nothing before them to look at
    assert main(["evaluate", str(folder / "run"), "--quiet", *files]) == 1
    return folder


def naive_scores(folder):
    """id -> task -> (STEPS, C): one segment at a time, frame by frame, from the rows of the stores themselves."""
    run = open_run(folder / "run")
    split = load_split(run.recipe, "test")
    stores = {stream: FeatureStore.open(folder / "toy" / stream) for stream in ("rgb", "flow")}
    found = {}
    for segment in split.segments:
        entries, real = {}, []
        for stream, store in stores.items():
            rows = store.read(segment.video)
            stops = np.asarray(rows.stop_seconds)
            real = [segment.start_seconds - 0.25 * n for n in range(8, 0, -1)]
            real = [t for t in real if t > 1e-6]
            picked = [int(np.flatnonzero(stops <= t + 1e-6)[-1]) for t in real]
            entries[stream] = torch.from_numpy(np.stack([rows.data[i] for i in picked]))[None] if picked else None
        if not real:
            continue
        with torch.inference_mode():
            steps = run.model.head(entries).auxiliary["steps"]
        short = STEPS - min(STEPS, len(real))
        found[segment.id] = {
            task: np.concatenate([of[0][:1].numpy()] * short + [of[0].numpy()]) for task, of in steps.items()
        }
    return found, {s.id: s.labels for s in split.segments}


def test_every_step_is_told_in_one_pass(tested):
    scores, labels = naive_scores(tested)
    results = json.loads((tested / "r.json").read_text())["results"]
    for task in ("verb", "noun"):
        for k in (1, 5):
            hits = {}
            for name, of in scores.items():
                order = [sorted(range(len(x)), key=lambda c, x=x: (-x[c], -c))[:k] for x in of[task]]
                hits[name] = [labels[name][task] in best for best in order]
            for step, tau_a in enumerate(TAU_A):
                expected = np.mean([each[step] for each in hits.values()])
                assert results[f"{task}/top{k}_accuracy@tau_a={tau_a:g}"] == pytest.approx(expected), (task, k, tau_a)
                by_class = {}
                for name, each in hits.items():
                    by_class.setdefault(labels[name][task], []).append(each[step])
                recall = np.mean([np.mean(each) for each in by_class.values()])
                assert results[f"{task}/class_mean_top{k}_recall@tau_a={tau_a:g}"] == pytest.approx(recall)
            if k == 5:
                times = [next((t for t, hit in zip(TAU_A, each, strict=True) if hit), 0.0) for each in hits.values()]
                assert results[f"{task}/top5_time_to_action@tau_a=1.5..0.25"] == pytest.approx(np.mean(times))
        assert results[f"{task}/top1_accuracy"] == results[f"{task}/top1_accuracy@tau_a=1"]  # the told step


def test_training_reports_the_same(tested):
    best = json.loads((tested / "run" / "best" / "metrics.json").read_text())
    assert best["monitor"] == "verb/top1_accuracy@tau_a=1"
    assert json.loads((tested / "r.json").read_text())["results"] == best["results"]


def test_scores_are_kept_by_moment(tested):
    member = load_members(tested / "s.npz")[0]
    assert list(member.observations) == ["", *(f"tau_a={t:g}" for t in TAU_A)]
    assert [seen.what["tau_a"] for seen in member.observations.values()] == [1.0, *TAU_A]
    scores, _ = naive_scores(tested)
    for step, tau_a in enumerate(TAU_A):
        table = member.observations[f"tau_a={tau_a:g}"].table
        for row, name in enumerate(table.ids):
            np.testing.assert_allclose(table.scores["verb"][row], scores[name]["verb"][step], atol=1e-5)
    verbs = submission_of(member, (1, 2, 3))["results"][member.observations[""].table.ids[0]]["verb"]
    told = member.observations["tau_a=1"].table.scores["verb"][0]
    np.testing.assert_allclose(list(verbs.values()), told)


def test_moments_follow_the_rule():
    def tasks(**changes):
        recipe = toy_recipe(Path("x"), head={"name": "rulstm", "options": {}}, **changes)
        head = create_head("rulstm", streams={"rgb": 4}, classes={"verb": 3}, anticipation_steps=4)
        return recipe, head, [name for name, _ in step_tasks(recipe, head, 4)]

    ahead = {"task__kind": "anticipation", "task__tau_a": 1.0, "task__tau_o": 5.0, "sampling__rule": "last"}
    assert tasks(**ahead)[2] == ["tau_a=1.75", "tau_a=1.5", "tau_a=1.25", "tau_a=1"]
    assert tasks(**ahead, sampling__stride_frames=2)[2] == ["tau_a=2.5", "tau_a=2", "tau_a=1.5", "tau_a=1"]
    frames = {"streams__rgb__clip__frames": 4, "streams__flow__clip__frames": 4}
    early = {"task__kind": "early_recognition", "sampling__rule": "ends", **frames}
    assert tasks(**early)[2] == ["fraction=0.25", "fraction=0.5", "fraction=0.75", "fraction=1"]
    assert tasks(task__kind="recognition")[2] == []
    recipe, head, _ = tasks(**ahead)
    task = make_task(recipe.task)
    assert [each for _, each in step_tasks(recipe, head, 4)][-1].tau_a == task.tau_a
    with pytest.raises(ValueError, match="leave task.test_tau_a"):
        tasks(**ahead, task__test_tau_a=[0.5])


def test_it_is_refused_before_training(tmp_path):
    recipe = rulstm_recipe(write_toy(tmp_path / "toy", videos=4), data__options={"videos": 4}, task__test_tau_a=[1.0])
    with pytest.raises(ValueError, match="leave task.test_tau_a"):
        Trainer(recipe, tmp_path / "run", quiet=True)


def test_people_get_the_moments_and_one_sentence(tested, capsys):
    assert main(["evaluate", str(tested / "s.npz"), "--quiet"]) == 1
    shown = capsys.readouterr().out
    results = json.loads((tested / "r.json").read_text())["results"]
    wait = results["verb/top5_time_to_action@tau_a=1.5..0.25"]
    assert f"tau_a=1.5..0.25): verb {wait:.2f} s, noun" in shown and "top5_time_to_action" not in shown
    row = next(line.split() for line in shown.splitlines() if line.startswith("noun@tau_a=0.75"))
    assert row[1] == f"{100 * results['noun/top1_accuracy@tau_a=0.75']:.2f}"
