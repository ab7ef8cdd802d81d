"""First layers for other streams, and 2-D kernels made 3-D."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from actionfuse.backbones.first_layer import adapt_first_layer, adapt_state, average_channels, first_layer, inflate


def test_averaged_layer_answers_grey_as_rgb_does():
    # On an image whose channels are all alike, C averaged channels give C / 3 of what the rgb kernel gives: the mean is
    # repeated, not rescaled.
    weight = torch.randn(4, 3, 3, 3)
    grey = torch.randn(1, 1, 8, 8)
    rgb = F.conv2d(grey.expand(-1, 3, -1, -1), weight)
    for channels in (1, 3, 10):
        got = F.conv2d(grey.expand(-1, channels, -1, -1), average_channels(weight, channels))
        torch.testing.assert_close(got, rgb * channels / 3, rtol=1e-4, atol=1e-5)


def test_inflated_kernel_answers_a_still_clip_as_the_image():
    weight = torch.randn(4, 3, 3, 3)
    image = torch.randn(1, 3, 8, 8)
    got = F.conv3d(image[:, :, None].expand(-1, -1, 5, -1, -1), inflate(weight, 5))
    torch.testing.assert_close(got[:, :, 0], F.conv2d(image, weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv", [nn.Conv2d, nn.Conv3d])
def test_adapts_a_module_in_place(conv):
    module = nn.Sequential(nn.Identity(), nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4)), conv(4, 5, 1))
    module[1][0].weight.requires_grad_(False)
    before = module[1][0].weight.clone()
    adapt_first_layer(module, 2)
    name, layer = first_layer(module)
    assert (name, layer.in_channels) == ("1.0", 2)
    assert not layer.weight.requires_grad and module[2].weight.requires_grad
    torch.testing.assert_close(layer.weight, before.mean(1, keepdim=True).expand_as(layer.weight))
    adapt_first_layer(module, 2)  # nothing to do
    with pytest.raises(ValueError, match="'1.0' eats 2 channels"):
        adapt_first_layer(module, 10)
    with pytest.raises(ValueError, match="no convolution"):
        first_layer(nn.Linear(3, 3))


def test_adapts_nothing_but_rgb_kernels_that_differ_in_channels():
    module = nn.Sequential(nn.Conv2d(10, 4, 3), nn.Conv2d(4, 8, 3))
    state = {
        "0.weight": torch.randn(4, 3, 3, 3),
        "0.bias": torch.randn(4),
        "1.weight": torch.randn(8, 2, 3, 3),
        "other": torch.randn(4, 3, 3, 3),
    }
    adapted = adapt_state(module, state)
    assert adapted["0.weight"].shape == (4, 10, 3, 3)
    assert all(adapted[key] is state[key] for key in ("0.bias", "1.weight", "other"))


def test_wrong_kernels_are_refused():
    with pytest.raises(ValueError, match="inflate"):
        inflate(torch.zeros(1, 1, 1, 1, 1), 3)
    with pytest.raises(ValueError, match="average_channels"):
        average_channels(torch.zeros(1, 3, 1, 1), 0)
