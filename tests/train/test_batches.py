"""Batches on their way to the model: what is drawn for a segment does not depend on what it shares a batch with."""

from __future__ import annotations

from dataclasses import replace

import torch

from actionfuse.backbones import InputSpec
from actionfuse.train.batches import Batch, erase

SPECS = {
    "rgb": InputSpec(stream="rgb", frames=2, fps=None, mean=(0.2, 0.4, 0.6), std=(1.0, 1.0, 1.0), channel_order="bgr"),
    "audio": InputSpec(stream="audio", frames=2, fps=None, mean=(0.0,), std=(1.0,)),
}


def batch_of(draws: list[tuple[int, int]]) -> Batch:
    inputs = {
        "rgb": torch.full((len(draws), 2, 20, 30, 3), 255, dtype=torch.uint8),
        "flow": torch.full((len(draws), 2, 10, 15, 2), 255, dtype=torch.uint8),
        "audio": torch.ones(len(draws), 2, 8, 8, 1),
    }
    return Batch([f"{epoch}-{index}" for epoch, index in draws], inputs, {}, None, {}, {}, draws=draws)


def test_erased_boxes_belong_to_their_segments_and_epochs():
    draws = [(epoch, index) for epoch in range(2) for index in range(6)]
    flow = {"flow": replace(SPECS["rgb"], stream="flow", mean=(0.5, 0.5), std=(1.0, 1.0), channel_order="rgb")}
    whole = erase(batch_of(draws), 0.7, SPECS | flow, seed=3)
    alone = [erase(batch_of([each]), 0.7, SPECS | flow, seed=3) for each in draws]
    for name, x in whole.inputs.items():
        torch.testing.assert_close(x, torch.cat([each.inputs[name] for each in alone]), rtol=0, atol=0)
    gone = (whole.inputs["rgb"] != 255).any(-1)
    assert torch.equal(gone[:, 0], gone[:, 1]) and bool((whole.inputs["audio"] == 1).all())
    chosen = gone[:, 0].flatten(1).any(1)
    assert 0 < int(chosen.sum()) < len(draws)
    assert len({tuple(row.flatten().tolist()) for row in gone[:, 0][chosen]}) == int(chosen.sum())
    # the mean colour, in the order of the clip, and in the flow of the same part of the frame
    assert {tuple(x) for x in whole.inputs["rgb"][gone].tolist()} == {(153, 102, 51)}
    also = (whole.inputs["flow"] != 255).any(-1)
    assert torch.equal(also.flatten(1).any(1), chosen)
    shares = [gone.float().mean((1, 2, 3)), also.float().mean((1, 2, 3))]
    torch.testing.assert_close(shares[0], shares[1], atol=0.06, rtol=0)
    assert bool((batch_of(draws).inputs["rgb"] == 255).all())
