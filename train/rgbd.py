"""Samples for backbones that eat rgbd: pictures and depth, two files, as four channels of one stream."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..pipeline.annotations import Segment
from ..pipeline.samples import Sample, SegmentDataset

INVERSE_DEPTH = 75.0  # the largest that Omnivore lets in (Girdhar et al., CVPR 2022); InputSpec divides by it


class RgbdDataset(SegmentDataset):
    """A SegmentDataset that reads rgb and depth; its samples hold float32 (..., H, W, 4) under `joined` instead.

    Depth files of 8 bits are taken as inverse depth (near is bright), 0 as 0 and 255 as 75.
    Differs: Omnivore computes inverse depth of metric depth, which a picture of 8 bits does not hold.
    """

    joined: str = "rgb"

    def sample(self, segment: Segment, epoch: int = 0, index: int = 0) -> Sample:
        """Raises ValueError where depth is not of 8 bits: inverse depth needs its unit and the camera."""
        sample = super().sample(segment, epoch, index)
        if sample.error:
            return sample
        rgb, depth = sample.streams["rgb"], sample.streams["depth"]
        if depth.dtype != torch.uint8:
            raise ValueError(
                f"the depth of {segment.id} has 16 bits; rgbd backbones take files of 8 bits, grey as inverse "
                "depth (near is bright): convert it, or train on depth as a stream of its own"
            )
        data = join_channels(rgb, depth)
        real = sample.masks["rgb"] & sample.masks["depth"]
        rest = {name: each for name, each in sample.streams.items() if name not in ("rgb", "depth")}
        masks, seconds = ({n: each[n] for n in rest} for each in (sample.masks, sample.seconds))
        return replace(
            sample,
            streams={self.joined: data, **rest},
            masks={self.joined: real, **masks},
            seconds={self.joined: sample.seconds["rgb"], **seconds},
        )


def join_channels(rgb: Tensor, depth: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) and (..., H, W, 1) -> float32 (..., H, W, 4)."""
    return torch.cat([rgb.float(), depth.float().mul_(INVERSE_DEPTH / 255)], -1)


def join_depth(dataset: SegmentDataset, stream: str) -> RgbdDataset:
    """The same dataset with rgb and depth joined under the stream's name."""
    dataset.__class__ = RgbdDataset
    assert isinstance(dataset, RgbdDataset)
    dataset.joined = stream
    return dataset
