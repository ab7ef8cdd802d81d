"""What instances' features are made of, beside what the heads' own tests see."""

import pytest
import torch
from torch import nn

from actionfuse.fusion.instances import CountedBatchNorm, centre_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_norm_of_all_rows_is_torchs(dtype):
    torch.manual_seed(0)
    ours, theirs = CountedBatchNorm(5).to(dtype), nn.BatchNorm1d(5).to(dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(3, 4, 5, dtype=dtype, requires_grad=True)
        first, second = ours(x), theirs(x.flatten(0, 1)).view_as(x)
        torch.testing.assert_close(first, second)
        weights = torch.randn_like(first)
        gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (first, second)]
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


def test_batch_norm_counts_the_rows_it_is_told_to():
    torch.manual_seed(0)
    some, alone = CountedBatchNorm(5), CountedBatchNorm(5)
    x, counted = torch.randn(6, 4, 5), torch.rand(6, 4) > 0.5
    padded = torch.where(counted[..., None], x, torch.nan)
    torch.testing.assert_close(some(padded, counted)[counted], alone(x[counted]))
    torch.testing.assert_close(some.state_dict(), alone.state_dict())
    before = {key: tensor.clone() for key, tensor in some.state_dict().items() if "running" in key}
    assert some(x, torch.zeros(6, 4, dtype=torch.bool)).isfinite().all()
    assert all(some.state_dict()[key].equal(tensor) for key, tensor in before.items())


def test_centre_and_size():
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.4]])
    torch.testing.assert_close(centre_size(boxes), torch.tensor([[0.3, 0.3, 0.4, 0.2]]))
