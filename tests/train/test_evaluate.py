"""actionfuse evaluate: the engine's own numbers, every segment once, ensembles by id, files, what is refused."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import toy_recipe, write_toy
from toy_videos import video_recipe, write_videos

from actionfuse import heartbeat
from actionfuse.cli import main
from actionfuse.fusion import Instances
from actionfuse.pipeline.protocols import Recognition
from actionfuse.pipeline.samples import SegmentDataset
from actionfuse.train.build import build_dataset, load_split
from actionfuse.train.engine import Trainer
from actionfuse.train.evaluate import submission_of
from actionfuse.train.members import Member, Observed, ensemble, labelled, load_members, save_members, test_run
from actionfuse.train.results import evaluate
from actionfuse.train.runs import open_run
from actionfuse.train.scores import ScoreTable
from actionfuse.train.testing import _OF_VIEWS

test_run.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Two runs; `a` observes early."""
    folder = tmp_path_factory.mktemp("evaluate")
    root = write_toy(folder / "toy")
    task = {"task__kind": "early_recognition", "task__test_fractions": [0.25, 0.5]}
    for name, options in {"a": task, "b": {"run__seed": 5, "data__options": {"missing": 0}}}.items():
        recipe = toy_recipe(root, run__epochs=3, run__monitor="verb/top1_accuracy", **options)
        Trainer(recipe, folder / name, quiet=True).run()
    return folder


def results_of(path: Path) -> dict:
    return json.loads(path.read_text())["results"]


def test_it_gives_the_numbers_of_training(toy, tmp_path, capsys):
    files = ["--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")]
    assert main(["evaluate", str(toy / "a"), *files]) == 0
    best = json.loads((toy / "a" / "best" / "metrics.json").read_text())["results"]
    assert results_of(tmp_path / "r.json") == best
    assert {"verb/top1_accuracy", "verb/top1_accuracy@fraction=0.25", "noun/top1_accuracy@fraction=0.5"} <= best.keys()
    with open(tmp_path / "r.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(best)
    shown = capsys.readouterr().out
    assert "12 segments" in shown and f"{100 * best['verb/top1_accuracy']:.2f}" in shown
    assert "verb@fraction=0.25" in shown


def test_a_test_shows_that_it_lives(toy, tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path / "beat"))
    monkeypatch.setattr(heartbeat, "_last", -1e9)
    assert test_run(open_run(toy / "b")) is not None
    assert heartbeat.main([]) == 0


def test_runs_and_fields_may_stand_behind_options(toy, tmp_path, capsys):
    call = ["evaluate", str(toy / "a"), "--quiet", str(toy / "b"), "--json", str(tmp_path / "r.json")]
    assert main([*call, "task.kind=recognition", "data.limit=3"]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["about"]["segments"] == 3
    assert {str(toy / "a"), str(toy / "b"), "ensemble"} <= {line.split()[0] for line in table_lines(capsys)}
    with pytest.raises(SystemExit):
        main([*call, "--wieghts", "1,2"])
    assert "did you mean --weights?" in capsys.readouterr().err


def table_lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_boxes_move_with_the_views(tmp_path):
    root = write_videos(tmp_path / "videos")
    options = {"width": 8, "steps": 3}
    recipe = video_recipe(root, sampling__rule="slowfast", head={"name": "interactive", "options": options})
    Trainer(recipe, tmp_path / "run", quiet=True).run()
    call = ["evaluate", str(tmp_path / "run"), "--clips", "2", "--crops", "3", "--average", "logit", "--quiet"]
    assert main([*call, "--scores", str(tmp_path / "s.npz")]) == 0
    run = open_run(tmp_path / "run", ["sampling.num_clips=2"])
    dataset = build_dataset(
        run.recipe, load_split(run.recipe, "test"), run.model, Recognition(), training=False, num_crops=3
    )
    own = load_members(tmp_path / "s.npz")[0].observations[""].table.scores["noun"]
    for row in range(4):
        sample = dataset[row]
        shown = sample.boxes["categories"][..., None, :] * sample.boxes["present"]
        with torch.inference_mode():
            told = run.model({"rgb": sample.streams["rgb"]}, Instances(sample.boxes["boxes"], shown), losses=False)
        np.testing.assert_allclose(own[row], told.logits["noun"].mean(0), atol=1e-5)


@pytest.mark.parametrize("average", ["probability", "logit", "maximum"])
def test_views_are_averaged_as_asked(tmp_path, average):
    root = write_videos(tmp_path / "videos")
    recipe = video_recipe(root, sampling__rule="slowfast")
    Trainer(recipe, tmp_path / "run", quiet=True).run()
    call = ["evaluate", str(tmp_path / "run"), "--clips", "2", "--crops", "3", "--average", average, "--quiet"]
    assert main([*call, "--scores", str(tmp_path / "s.npz"), "--json", str(tmp_path / "r.json")]) == 0
    member = load_members(tmp_path / "s.npz")[0]
    assert member.views == 6
    run = open_run(tmp_path / "run", ["sampling.num_clips=2"])
    split = load_split(run.recipe, "test")
    dataset = build_dataset(run.recipe, split, run.model, Recognition(), training=False, num_crops=3)
    for row in range(4):
        clips = dataset[row].streams["rgb"]
        assert clips.shape == (6, 3, 32, 32, 3)
        with torch.inference_mode():
            logits = run.model({"rgb": clips}).logits["noun"]
        own = member.observations[""].table.scores["noun"][row]
        shares = logits.softmax(-1)
        expected = {"logit": logits.mean(0), "probability": shares.mean(0).log(), "maximum": shares.amax(0).log()}
        np.testing.assert_allclose(own, expected[average], atol=1e-5)
    # the same as training's own test where nothing is asked for
    assert main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "one.json"), "--quiet"]) == 0
    best = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())["results"]
    assert results_of(tmp_path / "one.json") == best


def test_the_largest_of_views_for_many_labels():
    """As PySlowFast's TestMeter on Charades: the maximum of sigmoids."""
    logits = torch.randn(3, 4, 5, generator=torch.manual_seed(0))
    found = _OF_VIEWS["maximum"](logits, True)
    for row in range(3):
        for number in range(5):
            largest = max(1 / (1 + np.exp(-float(logits[row, view, number]))) for view in range(4))
            assert 1 / (1 + np.exp(-float(found[row, number]))) == pytest.approx(largest, abs=1e-6)


def test_two_processes_write_the_same_files_as_one(toy, tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\nsys.path.insert(0, sys.argv[1])\ntorch.set_num_threads(1)\nimport toy_training\n"
        "from actionfuse.cli import run\nrun(sys.argv[2:])\n"
    )
    call = ["evaluate", str(toy / "a"), str(toy / "b"), "data.limit=11", "task.kind=recognition"]

    def files(name):
        return [f"--json={tmp_path / name}.json", f"--csv={tmp_path / name}.csv", f"--scores={tmp_path / name}.npz"]

    assert main([*call, *files("one")]) == 0
    told = capsys.readouterr().out
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launcher, str(script), str(Path(__file__).parent.parent), *call, *files("two")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == told, done.stderr
    for kind in ("json", "csv"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    for one, two in zip(load_members(tmp_path / "one.npz"), load_members(tmp_path / "two.npz"), strict=True):
        a, b = one.observations[""].table, two.observations[""].table
        assert a.ids == b.ids and len(a) == 11
        for task, scores in a.scores.items():
            np.testing.assert_allclose(b.scores[task], scores, atol=1e-5)


def test_an_ensemble_of_a_run_with_itself_is_the_run(toy, tmp_path):
    run = open_run(toy / "a")
    member = test_run(run)
    both = ensemble([member, member], [1, 3])
    assert [(row.name, row.value) for row in both.results()] == [(row.name, row.value) for row in member.results()]
    for name, seen in member.observations.items():
        for task, scores in seen.table.scores.items():
            own = np.exp(scores.astype(np.float64))
            own /= own.sum(-1, keepdims=True)
            np.testing.assert_allclose(np.exp(both.observations[name].table.scores[task]), own, atol=1e-9)
    logits = ensemble([member, member], average="logit").observations[""].table.scores["verb"]
    np.testing.assert_allclose(logits, member.observations[""].table.scores["verb"], rtol=1e-6)


def test_kept_scores_stand_for_their_runs(toy, tmp_path):
    scores = str(tmp_path / "scores.npz")
    call = ["evaluate", str(toy / "a"), str(toy / "b"), "task.kind=recognition", "--weights", "verb:2,1"]
    assert main([*call, "--scores", scores, "--json", str(tmp_path / "runs.json"), "--quiet"]) == 0
    assert main(["evaluate", scores, "--weights", "verb:2,1", "--json", str(tmp_path / "file.json")]) == 0
    assert (tmp_path / "runs.json").read_bytes() == (tmp_path / "file.json").read_bytes()
    member = load_members(scores)[0]
    save_members(tmp_path / "again.npz", [member])
    assert load_members(tmp_path / "again.npz")[0].results() == member.results()
    assert member.classes == {"verb": ("a", "b", "c"), "noun": ("w", "x", "y", "z")}


def made(ids, scores, *, name="m", broken=(), labels=None, what=None, parts=None) -> Member:
    table = ScoreTable(tuple(ids), scores, labels or {})
    rows = [{"id": each, "index": n, "reason": "gone"} for n, each in enumerate(broken)]
    seen = Observed(what or {"kind": "recognition"}, table, rows)
    classes = {task: tuple(map(str, range(x.shape[1]))) for task, x in scores.items()}
    return Member(name, "d", "test", classes, {"": seen}, parts=parts or {})


def test_members_are_matched_by_id_whatever_their_order():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 4, 3))
    one = made(["a", "b", "c", "d"], {"verb": first}, labels={"verb": np.array([0, 1, 2, 0])})
    two = made(["d", "c", "b"], {"verb": second[[3, 2, 1]]}, broken=["a"], labels={"verb": np.array([0, 2, 1])})
    both = ensemble([one, two], [0.5, 2])
    table = both.observations[""].table
    assert table.ids == ("b", "c", "d") and [row["id"] for row in both.broken] == ["a"]
    for row, place in enumerate([1, 2, 3]):
        expected = np.zeros(3)
        for scores, weight in ((first[place], 0.2), (second[place], 0.8)):
            expected += weight * np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(np.exp(table.scores["verb"][row]), expected)
    np.testing.assert_array_equal(table.labels["verb"], [1, 2, 0])


def test_members_that_do_not_belong_together_are_told():
    x = np.zeros((2, 3))
    one = made("ab", {"verb": x}, labels={"verb": np.array([0, 1])}, name="one")
    with pytest.raises(ValueError, match="one has 1 segments that another run has not, such as b"):
        ensemble([one, made("ac", {"verb": x}, name="two")])
    with pytest.raises(ValueError, match="labels of verb differ"):
        ensemble([one, made("ab", {"verb": x}, labels={"verb": np.array([0, 2])})])
    with pytest.raises(ValueError, match="3 classes of verb, m 4"):
        ensemble([one, made("ab", {"verb": np.zeros((2, 4))})])
    late = made("ab", {"verb": x}, what={"kind": "anticipation", "tau_a": 0.5})
    with pytest.raises(ValueError, match="do not see the same moment"):
        ensemble([one, late])
    with pytest.raises(ValueError, match="weights are given for verbs; the runs tell verb"):
        ensemble([one, one], {"verbs": [1, 2]})


def test_segments_without_labels_are_left_out_of_results():
    scores = {"verb": np.eye(3)[[0, 1, 1]], "noun": np.eye(3)[[0, 0, 0]]}
    labels = {"verb": np.array([0, -100, 2]), "noun": np.array([-100, -100, -100])}
    table = labelled(ScoreTable(("a", "b", "c"), scores, labels))
    assert table is not None and table.ids == ("a", "c") and list(table.labels) == ["verb"]
    assert {row.name: row.value for row in evaluate(table)}["verb/top1_accuracy"] == 0.5
    assert made("abc", scores, labels={"noun": labels["noun"]}).results() == []


def test_verbs_of_no_action_may_score_as_action_0(tmp_path):
    rng = np.random.default_rng(2)
    parts = {"action": {"verb": (0, 3, 3), "noun": (1, 0, 1)}}
    labels = {"verb": rng.choice([0, 3], 30), "action": rng.integers(0, 3, 30)}
    scores = {"action": rng.normal(size=(30, 3))}
    member = made([str(n) for n in range(30)], scores, labels=labels, parts=parts)
    save_members(tmp_path / "s.npz", [member])
    table, found = member.observations[""].table, {}
    for absent in ("zero", "action_0"):
        call = ["evaluate", str(tmp_path / "s.npz"), "--absent", absent, "--json", str(tmp_path / "r.json")]
        assert main([*call, "--submission", str(tmp_path / "t.json"), "--sls", "1,3,3"]) == 0
        found[absent] = results_of(tmp_path / "r.json")
        assert found[absent] == {row.name: row.value for row in evaluate(table, parts=parts, absent=absent)}
        verbs = json.loads((tmp_path / "t.json").read_text())["results"]["0"]["verb"]
        assert (verbs["1"] == verbs["0"]) == (absent == "action_0") and (verbs["1"] == 0) == (absent == "zero")
    # verbs 1 and 2 have the score of verb 0, whose one action is action 0, and stand before it
    assert found["zero"]["verb_marginalised/top1_accuracy"] > found["action_0"]["verb_marginalised/top1_accuracy"]


def test_a_submission_holds_every_segment(toy, tmp_path):
    rng = np.random.default_rng(1)
    parts = {"action": {"verb": (0, 1, 1), "noun": (1, 0, 1)}}
    scores = {"action": rng.normal(size=(2, 3))}
    told = submission_of(made("ab", scores, parts=parts), (1, 3, 3))
    assert told["challenge"] == "action_recognition" and told["sls_tl"] == 3 and told["results"].keys() == {"a", "b"}
    assert told["results"]["a"]["action"].keys() == {"0,1", "1,0", "1,1"}
    shares = np.exp(scores["action"][0]) / np.exp(scores["action"][0]).sum()
    assert told["results"]["a"]["verb"]["1"] == pytest.approx(shares[1] + shares[2])
    member = made("ab", {"verb": np.zeros((2, 2)), "noun": np.zeros((2, 2))})
    half = replace(member.observations[""], what={"kind": "anticipation", "tau_a": 0.5})
    with pytest.raises(ValueError, match="tau_a = 1 s"):
        submission_of(replace(member, observations={"": half}), (1, 3, 3))
    one = replace(half, what={"kind": "anticipation", "tau_a": 1.0})
    told = submission_of(replace(member, observations={"": half, "tau_a=1": one}), (1, 3, 3))
    assert told["challenge"] == "action_anticipation"
    with pytest.raises(ValueError, match="needs scores of verbs and nouns"):
        submission_of(made("a", {"verb": np.zeros((1, 2))}), (1, 3, 3))
    out = tmp_path / "s.json"
    assert main(["evaluate", str(toy / "b"), "--submission", str(out), "--sls", "1,3,3", "--quiet"]) == 0
    assert len(json.loads(out.read_text())["results"]) == 12


def test_broken_segments_are_named(toy, tmp_path, capsys):
    out = tmp_path / "r.json"
    call = ["evaluate", str(toy / "b"), "data.options.missing=2", "--json", str(out), "--quiet"]
    assert main(call) == 1
    told = capsys.readouterr()
    assert "cannot be read: test-9-0: " in told.err and "2 segments were left out" in told.err
    assert "10 segments" in told.out
    assert [row["id"] for row in json.loads(out.read_text())["about"]["broken"]] == ["test-9-0", "test-9-1"]


def test_what_was_read_in_part_is_named(tmp_path, monkeypatch, capsys):
    root = write_videos(tmp_path / "videos")
    Trainer(video_recipe(root), tmp_path / "run", quiet=True).run()
    read = SegmentDataset.sample

    def damaged(self, segment, epoch=0, index=0, task=None):
        sample = read(self, segment, epoch, index, task)
        return replace(sample, damage="a frame is missing" if index in (1, 2) else "")

    monkeypatch.setattr(SegmentDataset, "sample", damaged)
    files = ["--json", str(tmp_path / "r.json"), "--scores", str(tmp_path / "s.npz")]
    assert main(["evaluate", str(tmp_path / "run"), *files, "--quiet"]) == 0
    about = json.loads((tmp_path / "r.json").read_text())["about"]
    (member,) = load_members(tmp_path / "s.npz")
    ids = [row["id"] for row in member.damaged]
    assert len(ids) == 2 and about["broken"] == [] and [row["id"] for row in about["damaged"]] == ids
    told = capsys.readouterr().err
    assert f"read in part: {ids[0]}: a frame is missing" in told and "segments were read in part" in told
    assert ensemble([member, member]).damaged == member.damaged


def test_broken_segments_may_count_as_misses(toy, tmp_path, capsys):
    """As RULSTM has it: rows of zeros behind the scores, whose best classes are the largest numbers."""
    out, kept = tmp_path / "r.json", tmp_path / "k.npz"
    call = ["evaluate", str(toy / "b"), "data.options.missing=2", "--unread", "zeros", "--quiet"]
    assert main([*call, "--json", str(out), "--scores", str(kept)]) == 1
    told = capsys.readouterr()
    assert "2 segments count with scores of zero" in told.err and "12 segments" in told.out
    (whole,) = load_members(kept)
    table = whole.observations[""].table
    lost = [table.ids.index(name) for name in ("test-9-0", "test-9-1")]
    assert table.missing.nonzero()[0].tolist() == lost
    read = test_run(open_run(toy / "b", ["data.options.missing=2"]), quiet=True)
    assert read is not None
    seen = read.observations[""].table
    scores, labels = {}, {}
    for task in ("verb", "noun"):
        scores[task] = np.concatenate([seen.scores[task], np.zeros((2, seen.scores[task].shape[1]))])
        labels[task] = np.concatenate([seen.labels[task], table.labels[task][lost]])
    by_hand = evaluate(ScoreTable((*seen.ids, "test-9-0", "test-9-1"), scores, labels))
    assert {row.name: row.value for row in by_hand if row.scores == "direct"} == {
        name: value for name, value in results_of(out).items() if "factorised" not in name
    }
    assert [row.segments for row in whole.results()] == [12] * len(whole.results())
    shared = ensemble([whole, read]).observations[""].table
    assert set(shared.ids) == set(seen.ids) and not shared.missing.any()
    both = ensemble([whole, whole]).observations[""].table
    assert both.missing.nonzero()[0].tolist() == lost and not both.scores["verb"][lost].any()
    assert ensemble([whole, whole]).results() == whole.results()


def test_a_submission_holds_what_could_not_be_read(toy, tmp_path):
    out = tmp_path / "s.json"
    for more in ([], ["--unread", "zeros"]):
        call = ["evaluate", str(toy / "b"), "data.options.missing=2", "--submission", str(out), "--sls", "1,3,3"]
        assert main([*call, *more, "--quiet"]) == 1
        told = json.loads(out.read_text())["results"]
        assert len(told) == 12
        for task in ("verb", "noun"):
            assert set(told["test-9-1"][task].values()) == {0.0} and len(set(told["test-9-2"][task].values())) > 1


def test_segments_may_lack_a_label(toy, tmp_path, capsys):
    """A run is trained and tested on labels that are there; what lacks a verb counts among nouns."""
    recipe = toy_recipe(toy / "toy", run__epochs=1, data__options={"unlabelled": 2}, run__monitor="verb/top1_accuracy")
    Trainer(recipe, tmp_path / "run", quiet=True).run()
    out = tmp_path / "r.json"
    assert main(["evaluate", str(tmp_path / "run"), "--json", str(out), "--quiet"]) == 0
    rows = {(row["task"], row["segments"]) for row in json.loads(out.read_text())["rows"]}
    assert rows == {("verb", 10), ("noun", 12)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["b", "optim.lr=1"], "optim.lr cannot be changed"),
        (["b", "data.tsak=1"], "data.tsak is unknown"),
        (["b", "--split", "val"], "has no split 'val'"),
        (["b", "--root", "nowhere"], "nowhere is no folder"),
        (["b", "--weights", "1,2"], "several runs; one was given"),
        (["b", "b", "--weights", "1"], "1 numbers .1. for 2 runs"),
        (["b", "b", "--weights", "1,2", "--weights", "verb:1,2"], "take one of the two"),
        (["b", "--clips", "3"], "num_clips is 3, but the rule 'segments' makes one clip"),
        (["b", "--clips", "0"], "num_clips"),
        (["b", "--batch", "0"], "--batch is 0"),
        (["b", "--processes", "2"], "evaluation runs in 1.*-m actionfuse.cli evaluate"),
        (["b", "--submission", "x.json"], "states its supervision levels"),
        (["b", 'data.tasks=["verb"]'], "has 3 verb classes; evaluate it on"),
        (["toy"], "holds no model"),
        (["nothing.npz"], "is no file of scores"),
        (["nothing.npz", "--crops", "3", "data.limit=1"], "--crops, data.limit=1 would change nothing"),
        (["nothing.npz", "--unread", "zeros"], "--unread would change nothing"),
        (["data.limit=1"], "name a run"),
    ],
)
def test_wrong_calls_are_told(toy, capsys, words, said):
    paths = [str(toy / word) if word in ("a", "b", "toy") else word for word in words]
    assert main(["evaluate", *paths]) == 2
    assert re.search(said, capsys.readouterr().err)
