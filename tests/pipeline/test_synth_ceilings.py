"""Best possible scores of the synthetic kitchen: against brute force, and against predictors that read the symbols."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product, takewhile
from pathlib import Path

import numpy as np
import pytest
from kitchen import tiny_kitchen

from actionfuse.pipeline.synth.ceilings import (
    FRACTIONS,
    TAU_A_SECONDS,
    Histories,
    ceiling,
    compute_ceilings,
    exact_recognition,
    exact_scores,
    key_of,
    oracle_top1,
    read_ceilings,
    stream_sets,
)
from actionfuse.pipeline.synth.law import (
    ACTION_NAMES,
    ACTIONS,
    GRAMMAR,
    HELD_OUT,
    NOUN_OF,
    NOUNS,
    NOVEL_VERBS,
    SHOWN_BY,
    STREAMS,
    VERB_OF,
    VERBS,
    KitchenLaw,
    facets,
    stationary,
    transitions,
)
from actionfuse.pipeline.synth.script import SIZES, Instance, Plan, draw

LAW = KitchenLaw()
ALL = "+".join(STREAMS)
AMBIGUITIES = tuple(
    "shared_motion plain_surface level_height flat_relief neutral_heat shared_envelope dull_timbre".split()
)


@pytest.fixture(scope="module")
def ceilings(tmp_path_factory):
    return read_ceilings(tiny_kitchen(tmp_path_factory))


@cache
def full_plan() -> Plan:
    return Plan(law=LAW, size=SIZES["full"], seed=3)


# The law


def test_the_grammar_is_a_chain_without_dead_ends():
    assert all(sum(following.values()) == pytest.approx(1) for following in GRAMMAR.values())
    assert {name for following in GRAMMAR.values() for name in following} <= set(GRAMMAR)
    assert transitions(LAW).sum(1) == pytest.approx(1)
    assert stationary(LAW) @ transitions(LAW) == pytest.approx(stationary(LAW))
    assert stationary(LAW).min() > 0.002
    for facet in facets(LAW).values():
        assert facet.confusion.sum(1) == pytest.approx(1) and facet.confusion.shape[1] == len(facet.symbols)


def test_actions_are_numbered_as_rulstm_does():
    pairs = [f"{VERBS.index(verb)}_{NOUNS.index(noun)}" for verb, noun in ACTIONS]
    assert pairs == sorted(pairs)


def test_held_out_pairs_share_verbs_and_nouns_with_the_others():
    held, kept = ({ACTIONS[ACTION_NAMES.index(name)] for name in names} for names in (HELD_OUT, {*GRAMMAR} - HELD_OUT))
    assert {verb for verb, _ in held} == {verb for verb, _ in kept} == set(VERBS)
    assert {noun for _, noun in held} <= {noun for _, noun in kept} == set(NOUNS)


def test_draws_follow_the_law():
    drawn = draw(LAW, np.random.default_rng(0), 4000, 6)
    shares = np.bincount(drawn.actions.ravel(), minlength=len(ACTIONS)) / drawn.actions.size
    assert shares == pytest.approx(stationary(LAW), abs=0.006)
    pan = ACTION_NAMES.index("stir pan")
    after = drawn.actions[:, 1:][drawn.actions[:, :-1] == pan]
    assert np.bincount(after, minlength=len(ACTIONS)) / len(after) == pytest.approx(transitions(LAW)[pan], abs=0.05)
    for facet in facets(LAW).values():
        classes = (VERB_OF if facet.of == "verb" else NOUN_OF)[drawn.actions]
        seen = drawn.symbols[facet.name][classes == 0]
        assert np.bincount(seen, minlength=len(facet.symbols)) / len(seen) == pytest.approx(
            facet.confusion[0], abs=0.04
        )
    assert [(drawn.act_from == at).mean() for at in LAW.act_from] == pytest.approx(LAW.act_from_probability, abs=0.02)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"shared_motion": 1.5}, "shared_motion is 1.5"),
        ({"act_from": (0.1, 0.2, 0.3)}, "fractions of an action"),
        ({"act_from": (0.5,)}, "act_from_probability"),
        ({"gaps_seconds": (0.3,)}, "multiples of 0.25"),
    ],
)
def test_a_wrong_law_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        KitchenLaw(**wrong)


# Exact sums


def brute_force(law: KitchenLaw, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Ceilings by going through every combination of symbols, in plain Python."""
    known, prior = facets(law), stationary(law)
    parts = {"verb": list(VERB_OF), "noun": list(NOUN_OF), "action": list(range(len(ACTIONS)))}
    totals = {task: Counter() for task in parts}
    for symbols in product(*(range(len(known[name].symbols)) for name in names)):
        joint = [float(p) for p in prior]
        for name, symbol in zip(names, symbols, strict=True):
            of = parts[known[name].of]
            joint = [p * known[name].confusion[of[a]][symbol] for a, p in enumerate(joint)]
        for task, of in parts.items():
            classes, mass = Counter(), Counter()
            for action, p in enumerate(joint):
                classes[of[action]] += p
                mass[of[action]] += float(prior[action])
            best = sorted(classes.values(), reverse=True)
            recall = sorted((p / mass[c] / len(mass) for c, p in classes.items()), reverse=True)
            scores = {"top1": best[0], "top5": sum(best[:5])}
            scores |= {"class_mean_top1": recall[0], "class_mean_top5": sum(recall[:5])}
            totals[task].update(scores)
    return {task: dict(scores) for task, scores in totals.items()}


@pytest.mark.parametrize("names", [(), ("motion", "outline"), ("outline", "surface"), ("envelope", "timbre")])
def test_exact_sums_are_those_of_brute_force(names):
    found = exact_scores(stationary(LAW), [facets(LAW)[name] for name in names])
    for task, scores in brute_force(LAW, names).items():
        assert found[task] == pytest.approx(scores, abs=1e-9)


def test_without_ambiguity_everything_is_told():
    scores = exact_recognition(KitchenLaw(**dict.fromkeys(AMBIGUITIES, 0.0)), STREAMS)
    assert [scores[task][metric] for task in scores for metric in scores[task]] == pytest.approx([1.0] * 12)


# What ceilings.json says


def test_no_stream_reaches_what_all_reach_together(ceilings):
    for task in ("verb", "noun", "action"):
        for metric in ("top1", "class_mean_top1"):
            alone = [ceiling(ceilings, [stream], task=task, metric=metric) for stream in STREAMS]
            assert max(alone) < ceiling(ceilings, STREAMS, task=task, metric=metric)
    alone = {stream: ceiling(ceilings, [stream]) for stream in STREAMS}
    assert all(0.5 < share < 0.76 for share in alone.values()), alone
    assert ceiling(ceilings, STREAMS) > 0.9
    assert all(ceiling(ceilings, STREAMS) - share > 0.15 for share in alone.values())
    for pair in (("rgb", "audio"), ("rgb", "depth"), ("rgb", "ir"), ("flow", "audio")):
        assert ceiling(ceilings, pair) > max(alone[stream] for stream in pair) + 0.03


def test_more_streams_never_hurt(ceilings):
    for streams in stream_sets():
        for fewer in (set(streams) - {stream} for stream in streams if len(streams) > 1):
            assert ceiling(ceilings, streams) >= ceiling(ceilings, fewer) - 1e-6


def test_anticipation_has_a_ceiling_below_recognition(ceilings):
    for streams in stream_sets():
        values = [ceiling(ceilings, streams, tau_a=tau_a) for tau_a in TAU_A_SECONDS]
        assert max(values) < ceiling(ceilings, streams)
        assert values[-1] < values[0] - 0.02
        assert values[-1] > ceilings["nothing_seen"]["action"]["top1"]
    assert 0.4 < ceiling(ceilings, STREAMS, tau_a=1.0) < 0.65
    assert ceiling(ceilings, STREAMS, tau_a=1.0) > ceiling(ceilings, ["audio"], tau_a=1.0) + 0.02
    error = ceilings["anticipation"]["by_tau_a_seconds"]["1.0"][ALL]["standard_error"]["action"]["top1"]
    assert 0 < error < 0.02


def test_early_recognition_grows_with_what_is_seen(ceilings):
    for streams in stream_sets():
        values = [ceiling(ceilings, streams, fraction=fraction) for fraction in FRACTIONS]
        assert all(later >= sooner - 1e-6 for sooner, later in zip(values, values[1:], strict=False))
        assert values[-1] == ceiling(ceilings, streams)
    assert ceiling(ceilings, STREAMS, fraction=0.125) == ceilings["nothing_seen"]["action"]["top1"]
    assert ceiling(ceilings, STREAMS, fraction=0.25) < ceiling(ceilings, STREAMS, fraction=0.5)


def test_boxes_count_as_flow_and_unknown_names_are_told(ceilings):
    assert key_of(["boxes", "rgb"]) == "rgb+flow"
    assert ceiling(ceilings, ["boxes"]) == ceiling(ceilings, ["flow"])
    with pytest.raises(ValueError, match="no stream 'sound'"):
        ceiling(ceilings, ["sound"])
    with pytest.raises(ValueError, match=r"tau_a 1.1; there are 0.25"):
        ceiling(ceilings, ["rgb"], tau_a=1.1)
    with pytest.raises(ValueError, match="metric top3"):
        ceiling(ceilings, ["rgb"], metric="top3")
    with pytest.raises(ValueError, match="one of"):
        ceiling(ceilings, ["rgb"], tau_a=1.0, fraction=0.5)
    with pytest.raises(FileNotFoundError, match="actionfuse synth"):
        read_ceilings("nowhere")


def test_ceilings_need_actions_further_apart_than_tau_a():
    law = KitchenLaw(durations_seconds=(1.0,), gaps_seconds=(0.5,))
    with pytest.raises(ValueError, match=r"1\.5 s apart"):
        compute_ceilings(Plan(law=law, size=SIZES["tiny"], seed=0))


# Predictors that read the symbols


def posterior(instance: Instance, names: set[str], belief: list[float]) -> list[float]:
    """Bayes' rule in plain Python. belief: of each action, before."""
    after = []
    for (verb, noun), p in zip(ACTIONS, belief, strict=True):
        for name in names:
            facet = facets(LAW)[name]
            of = VERBS.index(verb) if facet.of == "verb" else NOUNS.index(noun)
            p *= float(facet.confusion[of, instance.symbols[name]])
        after.append(p)
    return [p / sum(after) for p in after]


def best(belief: list[float], task: str) -> int:
    if task == "action":
        return int(np.argmax(belief))
    of = VERB_OF if task == "verb" else NOUN_OF
    return int(np.argmax(np.bincount(of, weights=belief)))


@pytest.mark.parametrize("streams", [*((stream,) for stream in STREAMS), STREAMS])
def test_an_oracle_reaches_the_ceiling_of_recognition(ceilings, streams):
    instances = full_plan().instances("train")[:1200]
    names = {name for stream in streams for name in SHOWN_BY[stream]}
    prior = [float(p) for p in stationary(LAW)]
    right = Counter()
    for instance in instances:
        belief = posterior(instance, names, prior)
        right.update({task: best(belief, task) == getattr(instance, task) for task in ("verb", "noun", "action")})
    for task, hits in right.items():
        share = ceiling(ceilings, streams, task=task)
        assert abs(hits / len(instances) - share) < 4 * (share * (1 - share) / len(instances)) ** 0.5
    told = oracle_top1(LAW, [facets(LAW)[name] for name in facets(LAW) if name in names], instances)
    assert told["action"] == pytest.approx(right["action"] / len(instances), abs=2 / len(instances))


@pytest.mark.parametrize("streams", [("flow",), ("rgb",), ("audio",), ("rgb", "audio"), STREAMS])
def test_a_classifier_that_learns_from_symbols_stays_below_the_ceiling(ceilings, streams):
    names = {name for stream in streams for name in SHOWN_BY[stream]}
    train, validation = full_plan().instances("train"), full_plan().instances("validation")
    logs = np.zeros((len(validation), len(ACTIONS)))
    counts = np.bincount([i.action for i in train], minlength=len(ACTIONS))
    logs += np.log(counts + 0.5)
    for name in names:
        table = np.full((len(ACTIONS), len(facets(LAW)[name].symbols)), 0.02)
        for instance in train:
            table[instance.action, instance.symbols[name]] += 1
        table /= table.sum(1, keepdims=True)
        logs += np.log(table[:, [i.symbols[name] for i in validation]]).T
    share = float((logs.argmax(1) == [i.action for i in validation]).mean())
    limit = ceiling(ceilings, streams)
    error = (limit * (1 - limit) / len(validation)) ** 0.5
    assert limit - 0.08 < share < limit + 3 * error


@pytest.mark.parametrize(
    ("streams", "tau_a", "tau_o"), [(STREAMS, 1.0, 5.0), (("audio",), 1.75, 5.0), (("rgb",), 0.5, 2.0)]
)
def test_an_oracle_reaches_the_ceiling_of_anticipation(streams, tau_a, tau_o):
    plan = replace(full_plan(), size=replace(SIZES["full"], histories=6000))
    names = {name for stream in streams for name in SHOWN_BY[stream]}
    found = Histories(plan).scores([f for f in facets(LAW).values() if f.name in names], tau_a, tau_o)
    videos, right, count = full_plan().videos[:70], Counter(), 0
    for video in videos:
        for at, target in enumerate(video.instances):
            begin, end = target.start_seconds - tau_a - tau_o, target.start_seconds - tau_a
            belief = [float(p) for p in stationary(LAW)]
            for past in video.instances[:at]:
                visible = set()
                for name in names:
                    look = facets(LAW)[name].since == "look"
                    first = past.start_seconds + (LAW.look_from if look else past.act_from) * past.duration_seconds
                    last = past.start_seconds + (1.0 if look else LAW.act_until) * past.duration_seconds
                    if max(first, begin) < min(last, end):
                        visible.add(name)
                belief = list(np.array(posterior(past, visible, belief)) @ transitions(LAW))
            right.update({task: best(belief, task) == getattr(target, task) for task in ("verb", "noun", "action")})
            count += 1
    for task, hits in right.items():
        share, error = (found[what][task]["top1"] for what in ("value", "standard_error"))
        # Targets of one video share their history: a little more than independent ones would differ.
        assert abs(hits / count - share) < 4 * (1.5 * share * (1 - share) / count + error**2) ** 0.5, task


def test_anticipation_knows_at_most_what_the_chain_allows():
    amounts = {
        name: 0.0 for name in vars(LAW) if name.startswith(("shared", "plain", "level", "flat", "neutral", "dull"))
    }
    law = replace(LAW, **amounts)
    plan = Plan(law=law, size=replace(SIZES["full"], histories=8000), seed=1)
    scores = Histories(plan).scores(tuple(facets(law).values()), 0.25, 10.0)
    first = 1 / plan.size.actions_per_video  # of a video's first action nothing is seen before
    sure = (stationary(law) * transitions(law).max(1)).sum() * (1 - first) + stationary(law).max() * first
    assert abs(scores["value"]["action"]["top1"] - sure) < 4 * scores["standard_error"]["action"]["top1"]


def test_splits_have_their_own_ceilings(ceilings):
    plan = full_plan()
    held = plan.subsets["compositional_validation"]
    assert {ACTION_NAMES[i.action] for i in held} == HELD_OUT
    assert not {i.action for i in plan.subsets["compositional_train"]} & {i.action for i in held}
    novel = {VERBS.index(verb) for verb in NOVEL_VERBS}
    for shots in (5, 10):
        counts = Counter(i.verb for i in plan.subsets[f"few_shot_{shots}_train"])
        assert counts == dict.fromkeys(novel, shots)
    assert {i.verb for i in plan.subsets["few_shot_5_validation"]} == novel
    assert {i.verb for i in plan.subsets["few_shot_base_train"]} == set(range(len(VERBS))) - novel
    for split in ("compositional_validation", "few_shot_5_validation"):
        for stream in STREAMS:
            assert ceiling(ceilings, [stream], split=split) < ceiling(ceilings, STREAMS, split=split)


# What the documentation says


def table_rows(text: str, starts: str) -> dict[str, list[str]]:
    """First cell -> the others, of the table below the line that starts so."""
    lines = text[text.index(f"\n{starts}") + 1 :].splitlines()[2:]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in takewhile(lambda x: x.startswith("|"), lines)
    ]
    return {row[0]: row[1:] for row in rows}


def test_the_documentation_shows_the_ceilings(tmp_path_factory):
    written = (Path(__file__).parents[2] / "docs" / "kitchen.md").read_text(encoding="utf-8")
    made = "\n" + (tiny_kitchen(tmp_path_factory) / "ceilings.md").read_text(encoding="utf-8")
    for exact in ("Recognition, %", "Early recognition, %"):  # of the law alone, so the same for every size
        assert table_rows(written, exact) == table_rows(made, exact)
        assert len(table_rows(made, exact)) >= 14
    plan = Plan(law=LAW, size=replace(SIZES["full"], histories=5000), seed=11)
    table = table_rows(written, "Anticipation, %")
    taus = [float(cell.removesuffix(" s")) for cell in table["streams"][:5]]
    for name, streams in (("all", STREAMS), ("rgb", ("rgb",)), ("flow + audio", ("flow", "audio"))):
        seen = [f for f in facets(LAW).values() if any(f.name in SHOWN_BY[stream] for stream in streams)]
        for tau_a, cell in list(zip(taus, table[name], strict=False))[2::2]:
            value, error = (float(number) / 100 for number in cell.split("±"))
            scores = Histories(plan).scores(seen, tau_a, 5.0)
            found, spread = (scores[what]["action"]["top1"] for what in ("value", "standard_error"))
            assert abs(found - value) < 4 * (spread**2 + (error + 0.0005) ** 2) ** 0.5


def test_the_documentation_shows_the_sizes():
    written = (Path(__file__).parents[2] / "docs" / "kitchen.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (tiny|small|full) \| (.*) \|$", written, re.M))
    assert set(rows) == set(SIZES)
    for name, cells in rows.items():
        plan = Plan(law=LAW, size=SIZES[name], seed=0)
        minutes = round(sum(video.duration_seconds for video in plan.videos) / 60)
        actions = sum(len(video.instances) for video in plan.videos)
        assert [int(cell) for cell in cells.split("|")] == [len(plan.videos), actions, minutes]
