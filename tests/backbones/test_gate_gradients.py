"""Gradients of GSM and GSF, whose backward passes are written by hand, and their two ways of convolving."""

import pytest
import torch

from actionfuse.backbones.gate_shift import GSF, GSM, WIDE


@pytest.mark.parametrize("percent", [0, 50, 100])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_those_of_differences(percent, training):
    torch.manual_seed(1)
    gate = (GSF(8, percent) if percent else GSM(8)).double().train(training)
    for weight in gate.parameters():
        torch.nn.init.normal_(weight)
    names, weights = zip(*gate.named_parameters(), strict=True)
    maps = torch.randn(2, 3, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    copies = [weight.detach().clone().requires_grad_() for weight in weights]

    def run(maps, *weights):
        return torch.func.functional_call(gate, dict(zip(names, weights, strict=True)), (maps,))

    torch.autograd.gradcheck(run, (maps, *copies), fast_mode=True)
    assert torch.equal(gate.eval().overwrite(maps * 1), gate(maps))


def test_convolutions_of_wide_gates_are_those_of_narrow_ones(monkeypatch):
    torch.manual_seed(2)
    gate, maps = GSM(WIDE), torch.randn(1, 3, WIDE, 4, 5)
    torch.nn.init.normal_(gate.conv3D.weight)
    found = []
    for least in (WIDE, WIDE + 1):
        monkeypatch.setattr("actionfuse.backbones.gate_shift.WIDE", least)
        steps = gate._steps(maps[0])
        steps.square().mean().backward()
        found.append((steps.detach(), gate.conv3D.weight.grad))
        gate.conv3D.weight.grad = None
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
