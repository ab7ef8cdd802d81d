"""The CUDA device without a GPU finds what it is there for, and its gradients are those of autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fake_cuda import autocast, backward, devices, fake_cuda
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from actionfuse.backbones import create_backbone


class Computing(nn.Module):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.linear = nn.Linear(3, 3, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.linear(x))


def ran(compute: Callable[[Tensor], Tensor]) -> list[str]:
    """What went between host and GPU."""
    with fake_cuda(module := Computing(compute)) as copies, autocast(torch.bfloat16):
        y = module(torch.rand(2, 3, device="cuda"))
        assert y.dtype == torch.bfloat16
        assert devices(backward(y.sum())) == {"cuda"}
    return copies.found


def test_tensors_of_two_devices_do_not_meet() -> None:
    with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
        ran(lambda x: x + torch.zeros(3))


@pytest.mark.parametrize("wait", [lambda x: x * x.sum().item(), lambda x: x if bool(x.any()) else -x])
def test_waiting_for_numbers_raises(wait: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(DataDependentOutputException):
        ran(wait)


def test_what_is_sent_over_is_told() -> None:
    assert ran(lambda x: x[:, :2] * 2.0) == []
    for compute in (lambda x: x[:, [0, 2]], lambda x: x * x.new_tensor(2.0), lambda x: x * torch.ones(3).to(x)):
        found = ran(compute)
        assert found and all("test_fake_cuda.py" in each for each in found)


def test_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("tsm:test_resnet", num_classes=3, non_local=True).train()
    clips = torch.rand(2, 3, 2, 32, 32)
    for twice in (False, True):
        backbone.set_grad_checkpointing(twice)
        backbone.zero_grad()
        losses = [sum(x.square().mean() for x in backbone.forward_and_classify(clips)) for _ in range(2)]
        found = backward(losses[0])
        losses[1].backward()
        for parameter in backbone.parameters():
            torch.testing.assert_close(found[id(parameter)], parameter.grad)
