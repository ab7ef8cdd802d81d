"""Labels of what was seen before an action: the rule against a plain loop, in samples, batches, losses and training."""

import math

import numpy as np
import pytest
import torch
from toy_training import toy_recipe

from actionfuse.fusion import Output
from actionfuse.pipeline import Anticipation, FeatureSpec, Recognition, Sampling, SegmentDataset, collate
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.datasets.contract import load_dataset
from actionfuse.pipeline.past_labels import PastLabels
from actionfuse.pipeline.samples import IGNORED
from actionfuse.train.batches import Batch, mix, to_device
from actionfuse.train.engine import Trainer
from actionfuse.train.log import read_metrics
from actionfuse.train.losses import past_loss, task_loss, total_loss
from actionfuse.train.recipe import Loss

PAST = {
    "task": {"kind": "anticipation", "tau_a": 0.25, "tau_o": 2.0},
    "sampling": {"rule": "last"},
    "head": {"name": "afft_sa", "options": {"width": 16, "depth": 1, "past": True}},
    "loss": {"past": 0.5},
}


def naive(segments, video, t, horizon, task, ended):
    best, label = math.inf, IGNORED
    for s in segments:
        holds = s.start_seconds < t <= s.stop_seconds if ended else s.start_seconds <= t < s.stop_seconds
        if s.video != video or not holds or s.start_seconds >= horizon:
            continue
        distance = abs(t - (s.start_seconds + s.stop_seconds) / 2)
        if distance < best:
            best, label = distance, s.labels.get(task, IGNORED)
    return label


@pytest.mark.parametrize("ended", [False, True])
def test_the_rule_is_that_of_a_plain_loop(ended):
    rng = np.random.default_rng(0)
    segments = []
    for number in range(40):
        start = rng.integers(0, 40) / 4
        labels = {"verb": int(rng.integers(5))} | ({"noun": int(rng.integers(7))} if number % 3 else {})
        segments.append(Segment(f"v{number % 2}", start, start + rng.integers(1, 12) / 4, str(number), labels))
    past = PastLabels(segments, ("verb", "noun"), IGNORED)
    times = np.arange(0, 52).reshape(2, 26) / 4
    for video, horizon in (("v0", 99.0), ("v1", 4.0), ("v1", 4.25)):
        found = past.at(video, times, horizon, ended=ended)
        for task in ("verb", "noun"):
            wanted = [naive(segments, video, t, horizon, task, ended) for t in times.ravel().tolist()]
            assert found[task].ravel().tolist() == wanted
            assert len(set(wanted)) > 2
    assert (past.at("unknown", times, 1.0, ended=ended)["verb"] == IGNORED).all()


def past_set(root, tau_a=0.25, **changes):
    split = load_dataset("toy", root, "train")
    options = {"task": Anticipation(tau_a=tau_a, tau_o=2.0), "sampling": Sampling(rule="last"), "past_labels": True}
    streams = [FeatureSpec(stream="rgb", store=root / "rgb", frames=6, fps=4)]
    return split, SegmentDataset(split, streams, **(options | changes))


def test_samples_tell_the_past_and_nothing_later(root):
    split, dataset = past_set(root)
    samples = [dataset[index] for index in range(8)]
    seen = 0
    for sample, segment in zip(samples, split.segments, strict=False):
        if segment.start_seconds == 0:
            assert sample.error  # nothing comes before
            continue
        horizon = segment.start_seconds - 0.25
        for task in ("verb", "noun"):
            times, real = sample.seconds["rgb"].tolist(), sample.masks["rgb"].tolist()
            wanted = [
                naive(split.segments, segment.video, t, horizon, task, True) if there else IGNORED
                for t, there in zip(times, real, strict=True)
            ]
            assert sample.past_labels[task].tolist() == wanted
            seen += sum(label != IGNORED for label in wanted)
            assert (np.array(times)[real] <= horizon + 1e-6).all()
    assert seen > 20
    batch = collate(samples)
    assert batch["past_labels"]["verb"].shape == (6, 6) and batch["past_labels"]["verb"].dtype == torch.int64
    assert collate([past_set(root, past_labels=False)[1][1]])["past_labels"] == {}


def test_only_anticipation_has_a_past(root):
    with pytest.raises(ValueError, match="must be Anticipation"):
        past_set(root, task=Recognition())


def test_the_loss_of_past_steps():
    logits, labels = torch.randn(2, 3, 4), torch.tensor([[0, IGNORED, 1], [IGNORED, IGNORED, 2]])
    rows = [(0, 0, 0), (0, 2, 1), (1, 2, 2)]
    wanted = -sum(logits[b, t].log_softmax(0)[k].item() for b, t, k in rows) / 3
    assert past_loss(logits, labels).item() == pytest.approx(wanted, rel=1e-5)
    output = Output({"verb": torch.randn(2, 4)}, auxiliary={"past/fused": {"verb": logits}})
    target = {"verb": torch.tensor([1, 2])}
    main = task_loss(output.logits["verb"], target["verb"]).item()
    total, parts = total_loss(output, target, Loss(past=0.5, weights={"verb": 2.0}), past={"verb": labels})
    assert total.item() == pytest.approx(2 * main + wanted, rel=1e-5) and parts["past/fused/verb"] > 0
    # not asked for: never fitted to the label of the future
    assert total_loss(output, target, Loss())[0].item() == pytest.approx(main, rel=1e-5)
    with pytest.raises(ValueError, match="classifies no past steps"):
        total_loss(Output(output.logits), target, Loss(past=1.0), past={"verb": labels})
    with pytest.raises(ValueError, match="must begin with"):
        past_loss(logits[:, :2], labels)


def test_mixup_takes_those_whose_past_is_known(root):
    _, dataset = past_set(root)
    raw = collate([dataset[index] for index in (1, 2, 3, 5, 6, 7)])
    raw["past_labels"] = {"verb": torch.tensor([[0, 1]] * 2 + [[IGNORED, 1]] + [[2, 0]] * 3)}
    batch = to_device(raw, torch.device("cpu"), "cross_entropy", {"verb": 3, "noun": 4})
    mixed = mix(batch, 1.0, {"verb": 3, "noun": 4}, 0, 0, 0)
    assert isinstance(mixed, Batch) and mixed.past["verb"].shape == (6, 2, 3)
    assert torch.equal(mixed.inputs["rgb"][2], batch.inputs["rgb"][2])
    share = mixed.past["verb"][0, 0, 0].item()  # the first, 0, with the last, 2
    assert 0 < share < 1 and mixed.past["verb"][0, 0].tolist() == pytest.approx([share, 0, 1 - share])
    torch.testing.assert_close(
        mixed.inputs["rgb"][0], share * batch.inputs["rgb"][0] + (1 - share) * batch.inputs["rgb"][5]
    )


def test_a_recipe_trains_on_the_past(root, tmp_path):
    recipe = toy_recipe(root, **PAST, run__epochs=8, data__max_broken_share=0.5)
    Trainer(recipe, tmp_path / "run", quiet=True).run()
    steps = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "step"]
    for task in ("verb", "noun"):
        assert steps[-1][f"past/fused/{task}"] < steps[0][f"past/fused/{task}"]
    silent = toy_recipe(root, **(PAST | {"head": {"name": "concat"}}), run__epochs=1)
    with pytest.raises(ValueError, match=r"loss.past is 0.5, but the head classifies no past steps"):
        Trainer(silent, tmp_path / "silent", quiet=True).run()
