"""Samples for backbones that eat rgbd: pictures and depth, two files, as four channels of one stream."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..pipeline.samples import Sample

LARGEST_INVERSE_DEPTH = 75.0  # that Omnivore lets in (Girdhar et al., CVPR 2022); InputSpec divides by it


@dataclass(frozen=True)
class JoinDepth:
    """SegmentDataset's `transform`: the streams rgb and depth of a sample become one, float32 (..., H, W, 4).

    stream: its name.
    inverse_depth: what is divided by a number of depth files of 16 bits to give inverse depth: baseline of the sensor
        in metres x focal length in pixels x numbers a metre. Files of 8 bits hold inverse depth (near is bright), 0 as
        0 and 255 as 75.
    Source: Omnivore's public code, disparity = baseline x focal length / depth (baseline 0.075 m for Kinects, 0.095 m
        for RealSense and Xtion), at most 75. Differs: 0, nothing measured, stays 0 and is not as near as can be.
    """

    stream: str
    inverse_depth: float | None = None

    def __post_init__(self) -> None:
        if self.inverse_depth is not None and not self.inverse_depth > 0:
            raise ValueError(f"inverse_depth is {self.inverse_depth}; it must be positive, or None for files of 8 bits")

    def __call__(self, sample: Sample) -> Sample:
        """Raises ValueError for depth of 16 bits without `inverse_depth`."""
        rgb, depth = sample.streams["rgb"], sample.streams["depth"]
        if depth.dtype == torch.uint8:
            joined = join_channels(rgb, depth)
        elif self.inverse_depth is None:
            raise ValueError(
                f"the depth of {sample.id} has 16 bits, and an rgbd backbone takes inverse depth: give "
                "clip.inverse_depth = the sensor's baseline in metres x focal length in pixels x numbers a metre, "
                "for a Kinect v2 in millimetres about 0.075 * 365 * 1000 = 27000"
            )
        else:
            joined = torch.cat([rgb.float(), invert_depth(depth * 257, self.inverse_depth)], -1)
        real = sample.masks["rgb"] & sample.masks["depth"]
        rest = [name for name in sample.streams if name not in ("rgb", "depth")]
        return replace(
            sample,
            streams={self.stream: joined, **{n: sample.streams[n] for n in rest}},
            masks={self.stream: real, **{n: sample.masks[n] for n in rest}},
            seconds={self.stream: sample.seconds["rgb"], **{n: sample.seconds[n] for n in rest}},
        )


def join_channels(rgb: Tensor, depth: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) and (..., H, W, 1), 255 as near as can be -> float32 (..., H, W, 4)."""
    return torch.cat([rgb.float(), depth.float() * (LARGEST_INVERSE_DEPTH / 255)], -1)


def invert_depth(numbers: Tensor, inverse_depth: float) -> Tensor:
    """float32 numbers of depth files, 0 where nothing was measured -> inverse depth, 0..75."""
    inverse = (inverse_depth / numbers).clamp(max=LARGEST_INVERSE_DEPTH)
    return torch.where(numbers > 0, inverse, torch.zeros(()))
