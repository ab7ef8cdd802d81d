"""What backbones eat: normalisation, streams, and specs that make no sense."""

from __future__ import annotations

import pytest
import torch

from actionfuse.backbones import InputSpec, stream_spec


def test_normalise_is_its_definition():
    spec = InputSpec()
    clips = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    before = clips.clone()
    got = spec.normalise(clips)
    assert got.shape == (2, 3, 3, 4, 5) and got.dtype == torch.float32
    assert torch.equal(clips, before)
    for channel in range(3):
        want = (clips[..., channel].double() / 255 - spec.mean[channel]) / spec.std[channel]
        torch.testing.assert_close(got[:, channel].double(), want, rtol=1e-5, atol=1e-6)


def test_bgr_turns_the_channels_but_not_their_means():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    clips = torch.randint(0, 256, (1, 2, 3, 4, 3), dtype=torch.uint8)
    bgr = InputSpec(mean=mean, std=std, channel_order="bgr").normalise(clips)
    torch.testing.assert_close(bgr, InputSpec(mean=mean, std=std).normalise(clips.flip(-1)))
    rgbd = InputSpec(stream="rgbd", mean=(*mean, 0.0), std=(*std, 1.0), channel_order="bgr")
    floats = torch.rand(1, 2, 3, 4, 4)
    torch.testing.assert_close(rgbd.normalise(floats)[:, 3], floats[..., 3] / 255)


def test_floats_are_left_as_they_were_and_may_need_gradients():
    spec = stream_spec(InputSpec(), "audio")
    clips = torch.randn(1, 2, 3, 4, 1, requires_grad=True)
    before = clips.detach().clone()
    got = spec.normalise(clips)
    assert torch.equal(got[:, 0], before[..., 0]) and torch.equal(clips, before)
    got.sum().backward()
    assert torch.equal(clips.grad, torch.ones_like(clips))


def test_bfloat16_is_rounded_once():
    clips = torch.randint(0, 256, (1, 2, 3, 4, 3), dtype=torch.uint8)
    assert torch.equal(InputSpec().normalise(clips, torch.bfloat16), InputSpec().normalise(clips).bfloat16())


def test_what_was_made_in_inference_mode_serves_training_later():
    spec = InputSpec(mean=(0.11, 0.22, 0.33))
    clips = torch.randint(0, 256, (1, 2, 3, 9, 3), dtype=torch.uint8)
    with torch.inference_mode():
        first = spec.normalise(clips)
    weight = torch.ones(3, 1, 1, 1, requires_grad=True)
    (spec.normalise(clips) * weight).sum().backward()
    assert torch.isfinite(weight.grad).all() and torch.equal(first, spec.normalise(clips))


def test_rgbd_depth_is_divided_by_75():
    spec = stream_spec(InputSpec(), "rgbd")
    clips = torch.full((1, 1, 1, 1, 4), 75.0)
    assert spec.normalise(clips)[0, 3].item() == pytest.approx(1.0)


def test_streams_keep_clip_and_crop():
    rgb = InputSpec(frames=3, crop=96, resize_side=100, fps=None, channel_order="bgr")
    flow = stream_spec(rgb, "flow", flow_stack=5)
    assert (flow.channels, flow.flow_stack, flow.frames, flow.crop, flow.fps) == (10, 5, 3, 96, None)
    assert flow.channel_order == "rgb"
    assert stream_spec(rgb, "rgb") is rgb


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream": "smell"}, "rgb, flow"),
        ({"mean": (0.5,)}, "one of each per channel"),
        ({"frames": 0}, "positive"),
        ({"resize_side": 200}, "at least crop"),
        ({"interpolation": "nearest"}, "bilinear or bicubic"),
    ],
)
def test_specs_check_themselves(fields, message):
    with pytest.raises(ValueError, match=message):
        InputSpec(**fields)


def test_clips_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(B, T, H, W, 3\)"):
        InputSpec().normalise(torch.zeros(1, 3, 2, 8, 8))
    with pytest.raises(ValueError, match="only flow"):
        stream_spec(InputSpec(), "rgb", flow_stack=5)
