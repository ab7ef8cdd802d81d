"""Collecting scores over batches and processes, evaluating them, and the files that are written."""

import csv
import json
import multiprocessing
import zipfile

import numpy as np
import pytest
import torch

from actionfuse.train import metrics
from actionfuse.train.results import (
    Result,
    epic_submission,
    evaluate,
    time_to_action,
    write_csv,
    write_epic_submission,
    write_json,
)
from actionfuse.train.scores import Scores, ScoreTable

N, ACTIONS = 23, 7
VERBS, NOUNS = (0, 0, 1, 3, 1, 0, 3), (0, 1, 1, 2, 0, 2, 1)
IDS = [f"P01_{n}" for n in range(N)]
random = np.random.default_rng(0)
LOGITS = random.standard_normal((N, ACTIONS)).astype(np.float32)
ACTION = random.integers(0, ACTIONS, N)
LABELS = {"action": ACTION, "verb": np.take(VERBS, ACTION), "noun": np.take(NOUNS, ACTION)}
PARTS = {"action": {"verb": VERBS, "noun": NOUNS}}


def collect(order, batch=4):
    scores = Scores()
    for low in range(0, len(order), batch):
        rows = order[low : low + batch]
        scores.add([IDS[r] for r in rows], {"action": torch.from_numpy(LOGITS[rows])}, {"action": ACTION[rows]})
    return scores


def test_every_segment_counts_once_however_it_came():
    alone = collect(np.arange(N)).table(IDS)
    assert np.array_equal(alone.scores["action"], LOGITS) and np.array_equal(alone.labels["action"], ACTION)
    # three processes; each repeats segments to fill its last batch, as samplers do
    shares = [np.concatenate([np.arange(rank, N, 3), np.arange(3)]) for rank in range(3)]
    parts = [collect(share) for share in shares]
    merged = parts[0].merge(parts[1:])
    assert len(merged) == N
    assert np.array_equal(merged.table(IDS).scores["action"], LOGITS)
    assert merged.table().ids == tuple(sorted(IDS))
    assert merged.gather() is merged
    kept = merged.table(IDS[5:9])
    assert kept.ids == tuple(IDS[5:9]) and np.array_equal(kept.scores["action"], LOGITS[5:9])


def test_the_first_of_two_scores_counts():
    scores = Scores()
    scores.add(["a", "a", "b"], {"x": np.array([[1.0], [2.0], [3.0]])})
    scores.add(["b", "a"], {"x": np.array([[4.0], [5.0]])})
    assert scores.table().scores["x"].ravel().tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="this batch has scores of y"):
        scores.add(["c"], {"y": np.zeros((1, 1))})
    with pytest.raises(ValueError, match="the batch has 2 ids"):
        scores.add(["c", "d"], {"x": np.zeros((1, 1))})
    half = Scores()
    half.add(["a"], {"x": torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)})
    assert half.table().scores["x"].dtype == np.float32


def _work(rank, world, port, results):
    import torch.distributed as distributed

    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    share = np.concatenate([np.arange(rank, N, world), [0, 1]])
    gathered = collect(share).gather()
    everywhere = collect(share).gather(everywhere=True).table(IDS)
    results.put((rank, None if gathered is None else gathered.table(IDS).scores["action"], everywhere.scores["action"]))
    distributed.destroy_process_group()


def test_gathering_over_processes():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_work, args=(rank, 2, port, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = {rank: (first, every) for rank, first, every in (results.get(timeout=120) for _ in workers)}
    for worker in workers:
        worker.join(timeout=60)
    assert found[1][0] is None
    for array in (found[0][0], found[0][1], found[1][1]):
        assert np.array_equal(array, LOGITS)


def test_missing_segments():
    scores = collect(np.arange(N - 3))
    with pytest.raises(ValueError, match="3 of 23 segments have no scores"):
        scores.table(IDS)
    with pytest.raises(ValueError, match="pass labels"):
        scores.table(IDS, missing="zeros")
    table = scores.table(IDS, labels=LABELS, missing="zeros")
    assert table.missing.tolist() == [False] * (N - 3) + [True] * 3
    values = {row.name: row.value for row in evaluate(table, parts=PARTS, ks=(1, 2), absent="action_0")}
    # RULSTM appends rows of zeros to the scores of all three tasks, after marginalising.
    action = np.concatenate([LOGITS[:-3], np.zeros((3, ACTIONS))])
    verb = np.zeros((N, 4))
    for n in range(N - 3):
        power = np.exp(LOGITS[n].astype(np.float64))
        for v in range(4):
            verb[n, v] = power[[a for a in range(ACTIONS) if VERBS[a] == v] or [0]].sum() / power.sum()
    for k in (1, 2):
        assert values[f"action/top{k}_accuracy"] == metrics.top_k_accuracy(action, ACTION, k)
        wanted = metrics.class_mean_top_k_recall(verb, LABELS["verb"], k)
        assert values[f"verb_marginalised/class_mean_top{k}_recall"] == pytest.approx(wanted, abs=1e-12)


def table_of_three(times=None):
    shape = (N,) if times is None else (N, times)
    scores = {"verb": random.standard_normal((*shape, 4)), "noun": random.standard_normal((*shape, 3))}
    scores["action"] = LOGITS if times is None else random.standard_normal((*shape, ACTIONS))
    return ScoreTable(tuple(IDS), scores, LABELS)


def test_names_say_where_scores_come_from():
    table = table_of_three()
    subsets = {"unseen": set(IDS[:9]), "tail_verb": set(IDS[5:]), "tail_noun": set(IDS[3:7])}
    rows = evaluate(table, parts=PARTS, subsets=subsets, many_shot={"either": {"action": {0, 1}}})
    values = {row.name: row.value for row in rows}
    assert len(values) == len(rows)
    assert values["verb/top1_accuracy"] == metrics.top_k_accuracy(table.scores["verb"], LABELS["verb"], 1)
    marginal = metrics.marginalise(LOGITS, np.array(VERBS), 4)
    assert values["verb_marginalised/top1_accuracy"] == metrics.top_k_accuracy(marginal, LABELS["verb"], 1)
    ranks = metrics.pair_ranks(table.scores["verb"], table.scores["noun"], LABELS["verb"], LABELS["noun"])
    assert values["action_factorised/top5_accuracy"] == (ranks < 5).mean()
    assert "action/class_mean_top5_recall" in values and "action_marginalised/top1_accuracy" not in values
    assert values["action/top1_accuracy/unseen"] == metrics.top_k_accuracy(LOGITS[:9], ACTION[:9], 1)
    assert "verb/top1_accuracy/tail_verb" in values and "verb/top1_accuracy/tail_noun" not in values
    wanted = metrics.class_mean_top_k_recall(LOGITS, ACTION, 5, {0, 1})
    assert values["action/class_mean_top5_recall/many_shot_either"] == wanted
    assert "action/top5_accuracy/many_shot_either" not in values
    counted = {row.name: row.segments for row in rows}
    assert counted["action/class_mean_top5_recall/many_shot_either"] == np.isin(ACTION, [0, 1]).sum()
    assert counted["action/top1_accuracy/unseen"] == 9


def test_unknown_labels_count_in_their_own_task_alone():
    table = table_of_three()
    labels = {task: values.copy() for task, values in LABELS.items()}
    labels["verb"][:6] = labels["action"][:6] = -100
    labels["noun"][4:9] = -100
    labels["other"] = np.full(N, -100)
    subsets = {"unseen": IDS[:10]}
    partly = ScoreTable(table.ids, {**table.scores, "other": np.zeros((N, 3))}, labels)
    rows = {row.name: row for row in evaluate(partly, parts=PARTS, subsets=subsets)}
    assert not [name for name in rows if name.startswith("other")]

    def part(keep):
        return ScoreTable(
            tuple(IDS[n] for n in keep),
            {task: values[keep] for task, values in table.scores.items()},
            {task: values[keep] for task, values in LABELS.items()},
        )

    kept = {"verb": np.arange(6, N), "action": np.arange(6, N), "noun": np.r_[:4, 9:N]}
    kept["action_factorised"] = np.arange(9, N)
    for name, row in rows.items():
        keep = kept["action_factorised" if row.scores == "factorised" else row.task]
        alone = {each.name: each for each in evaluate(part(keep), parts=PARTS, subsets=subsets)}[name]
        assert (row.value, row.segments) == (alone.value, alone.segments)
    assert rows["noun/top1_accuracy/unseen"].segments == 5 and rows["verb/top1_accuracy"].segments == N - 6
    moments = {tau_a: ScoreTable(table.ids, {"verb": table.scores["verb"]}, labels) for tau_a in (1.0, 0.5)}
    assert [row.segments for row in time_to_action(moments) if row.task == "verb"] == [N - 6]


def test_predictions_at_several_times():
    table = table_of_three(times=8)
    values = {
        row.name: row.value for row in evaluate(table, parts=PARTS, at=[f"tau_a={n / 4:g}" for n in range(8, 0, -1)])
    }
    at_1s = table.scores["action"][:, -4]
    assert values["action/top5_accuracy@tau_a=1"] == metrics.top_k_accuracy(at_1s, ACTION, 5)
    one = ScoreTable(table.ids, {name: array[:, -4] for name, array in table.scores.items()}, LABELS)
    for row in evaluate(one, parts=PARTS):
        assert values[f"{row.name}@tau_a=1"] == pytest.approx(row.value, abs=1e-12)
    with pytest.raises(ValueError, match="8 predictions"):
        evaluate(table, at=["a"])


def test_many_labels_give_map():
    positives = random.random((N, 5)) < 0.3
    scores = random.standard_normal((N, 2, 5))
    table = ScoreTable(tuple(IDS), {"class": scores}, {"class": positives})
    rows = evaluate(table, subsets={"unseen": IDS[:10]}, at=["early", "late"])
    assert [row.name for row in rows] == [
        "class/mAP@early", "class/mAP@late", "class/mAP/unseen@early", "class/mAP/unseen@late",
    ]  # fmt: skip
    assert rows[3].value == metrics.mean_average_precision(scores[:10, 1], positives[:10], unlabelled_last=True)


def test_json_and_csv(tmp_path):
    rows = [
        Result(task="verb", metric="top1_accuracy", value=1 / 3, segments=3, scores="marginalised", at="tau_a=1"),
        Result(task="verb", metric="top1_accuracy", value=float("nan"), segments=0, subset="unseen"),
    ]
    write_json(tmp_path / "new" / "results.json", rows, {"recipe": "x"})
    content = json.loads((tmp_path / "new" / "results.json").read_text())
    assert content["results"] == {
        "verb_marginalised/top1_accuracy@tau_a=1": 1 / 3,
        "verb/top1_accuracy/unseen": None,
    }
    assert content["about"] == {"recipe": "x"} and content["rows"][0]["segments"] == 3
    write_csv(tmp_path / "results.csv", rows)
    with open(tmp_path / "results.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert float(read[0]["value"]) == 1 / 3 and read[1]["value"] == "" and read[0]["scores"] == "marginalised"
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


LEVELS = {"sls_pt": 1, "sls_tl": 4, "sls_td": 3}


def test_submission_of_pairs():
    verb, noun = random.standard_normal((6, 97)), random.standard_normal((6, 300))
    got = epic_submission(IDS[:6], verb, noun, challenge="action_recognition", **LEVELS)
    assert {key: got[key] for key in got if key != "results"} == {
        "version": "0.2", "challenge": "action_recognition", **LEVELS,
    }  # fmt: skip
    assert list(got["results"]) == IDS[:6]
    for n, name in enumerate(IDS[:6]):
        row = got["results"][name]
        assert row["verb"] == {str(c): verb[n, c] for c in range(97)} and len(row["noun"]) == 300
        v, o = np.exp(verb[n]) / np.exp(verb[n]).sum(), np.exp(noun[n]) / np.exp(noun[n]).sum()
        best = sorted(((v[a] * o[b], f"{a},{b}") for a in range(97) for b in range(300)), reverse=True)[:100]
        assert list(row["action"]) == [key for _, key in best]
        np.testing.assert_allclose(list(row["action"].values()), [score for score, _ in best], rtol=1e-12)


def test_submission_of_actions(tmp_path):
    verb, noun = random.standard_normal((N, 4)), random.standard_normal((N, 3))
    pairs = list(zip(VERBS, NOUNS, strict=True))
    got = epic_submission(
        IDS, verb, noun, challenge="action_anticipation", action=LOGITS, actions=pairs, top_actions=3, **LEVELS
    )
    for n, name in enumerate(IDS):
        best = np.argsort(LOGITS[n])[::-1][:3]
        assert got["results"][name]["action"] == {f"{VERBS[a]},{NOUNS[a]}": float(LOGITS[n, a]) for a in best}
    write_epic_submission(tmp_path / "test.json", got)
    write_epic_submission(tmp_path / "test.zip", got)
    assert json.loads((tmp_path / "test.json").read_text()) == got
    with zipfile.ZipFile(tmp_path / "test.zip") as archive:
        assert archive.namelist() == ["test.json"] and json.loads(archive.read("test.json")) == got
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"challenge": "detection"}, "challenge is"),
        ({"sls_pt": 6}, "sls_pt is 6"),
        ({"ids": ["a", "a"]}, "each once"),
        ({"verb": np.full((2, 4), np.nan)}, "finite"),
        ({"action": np.zeros((2, 5)), "actions": [(0, 0)]}, "1 \\(verb, noun\\)"),
    ],
)
def test_wrong_submissions_are_told(change, said):
    right = {"ids": ["a", "b"], "verb": np.zeros((2, 4)), "noun": np.zeros((2, 3)), "challenge": "action_recognition"}
    with pytest.raises(ValueError, match=said):
        epic_submission(**{**right, **LEVELS, **change})


def test_a_table_has_every_id_once():
    with pytest.raises(ValueError, match="every id once"):
        ScoreTable(("a", "a"), {"x": np.zeros((2, 1))})
