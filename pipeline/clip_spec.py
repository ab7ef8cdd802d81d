"""What a sample is to hold: one spec a stream, and how training clips are cut and coloured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from .depth import check_depth_range
from .features import FeatureStore
from .flow import STACK_MODES
from .spectrogram import SpectrogramPreset
from .transforms import (
    Geometry,
    Photometric,
    centre_crop_geometry,
    draw_colour_jitter,
    draw_flip,
    draw_multi_scale_crop,
    draw_rand_augment,
    draw_random_resized_crop,
    draw_scale_jitter_crop,
    three_crops,
)
from .video import Interpolation, Size, as_size, scaled_size

PixelStream = Literal["rgb", "flow", "depth", "ir", "audio"]
ColourMap = Literal["jet"]
CropRule = Literal["random_resized", "multi_scale", "scale_jitter", "centre"]


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """One stream made of the video file (or of depth, infrared or flow files beside it).

    What a sample then holds, entries first, channels last:
        rgb             uint8 (frames, crop, crop, 3)
        depth, ir       uint8 (frames, crop, crop, 1), with a colour_map 3; depth of 16 bits float32, 0..255, while of
                        infrared pictures of 16 bits the upper 8 are taken
        flow            uint8 (frames, crop, crop, 2 flow_stack), codes of -20..20 pixels (`flow.quantise`), u v u v ...
        audio           float32 (frames, frequency, time, 1), a log spectrogram around each entry

    frames: entries of a clip. fps: entries a second of the grid that clips are taken from; None = the video's frames.
    resize_side, crop: the frame's shorter side is scaled to `resize_side` pixels, then crop x crop of them are taken.
        Training may cut otherwise (`Augmentation`), to the same crop.
    interpolation: how frames are scaled.
    flow_stack, flow_mode: consecutive fields in one entry and which ones (`flow.stack_indices`). Fields are 1 / fps
        apart. flow_method: how they are computed, where the dataset has no files of flow. RAFT is computed where the
        model is: the sample holds the uint8 frames (F, crop, crop, 3) and `pairs` (see `Sample`) instead.
    flow_weights: RAFT's, as in FlowComputer: a path, "pretrained" or "random".
    audio_preset: a name of `spectrogram.PRESETS`.
    colour_map: "jet" paints depth or ir after the cut, 0 dark blue and 255 dark red, as red, green, blue: pictures for
        a network of three channels (Garcia et al., TPAMI 2019; M-Mixer, WACV 2023).
    depth_range: (near, far) in the numbers of the depth files (as a rule millimetres) that are spread over 1..255, what
        is nearer or farther cut off, as float32; 0, nothing measured, stays 0. None: files of 8 bits as they are, and
        of 16 bits 0..65535 over 0..255, which keeps whatever their unit is (see `scale_depth`).
    """

    stream: PixelStream = "rgb"
    frames: int = 8
    fps: float | None = None
    resize_side: int = 256
    crop: int = 224
    interpolation: Interpolation = "bilinear"
    flow_stack: int = 1
    flow_mode: str = "tsn"
    flow_method: str = "dis_fast"
    flow_weights: str | None = None
    audio_preset: str = "tbn"
    colour_map: ColourMap | None = None
    depth_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.stream not in get_args(PixelStream):
            raise ValueError(f"stream is {self.stream!r}; there are {', '.join(get_args(PixelStream))}")
        if min(self.frames, self.crop, self.flow_stack) < 1 or self.resize_side < self.crop:
            raise ValueError(f"frames, crop and flow_stack must be positive and resize_side at least crop: {self}")
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps is {self.fps}; it must be positive, or None for every frame")
        if self.flow_mode not in STACK_MODES:
            raise ValueError(f"flow_mode is {self.flow_mode!r}; there are {', '.join(STACK_MODES)}")
        if self.flow_method.startswith("raft") != (self.flow_weights is not None):
            raise ValueError(
                f"flow_method is {self.flow_method!r}, flow_weights {self.flow_weights!r}; raft_small and raft_large "
                "need weights (the path of a torchvision state dict, or 'pretrained'), other methods have none"
            )
        as_size(self.size)
        if self.stream == "audio":
            SpectrogramPreset.named(self.audio_preset)
        if self.colour_map is not None and (self.colour_map != "jet" or self.stream not in ("depth", "ir")):
            raise ValueError(f"colour_map is {self.colour_map!r} for {self.stream}; it is 'jet', for depth or ir")
        if self.depth_range is not None:
            if self.stream != "depth":
                raise ValueError(f"depth_range is {self.depth_range} for {self.stream}; it is for depth")
            check_depth_range(self.depth_range)

    @property
    def name(self) -> str:
        return self.stream

    @property
    def flow_on_device(self) -> bool:
        """Whether flow, where it is not read from files, is left to the device of the model."""
        return self.stream == "flow" and self.flow_method.startswith("raft")

    @property
    def size(self) -> Size:
        return Size(self.resize_side, self.interpolation)


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """One stream of stored features: (frames, ...) rows of a FeatureStore, float32 or float16.

    stream: its name. store: the store or its folder. key: the store's key of a segment's video, a format string that
        may use {video}, {id} and the names in `Segment.extra`.
    frames: entries; None = all rows that overlap the observation.
    fps: entries a second of the grid that clips are taken from; None = 30.
    """

    stream: str
    store: FeatureStore | str | Path
    frames: int | None = 8
    fps: float | None = None
    key: str = "{video}"

    def __post_init__(self) -> None:
        if (self.frames is not None and self.frames < 1) or (self.fps is not None and not self.fps > 0):
            raise ValueError(f"frames and fps must be positive, or None: {self}")

    @property
    def name(self) -> str:
        return self.stream


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training clips are cut and coloured. One draw is for the whole clip: all its streams, times and boxes.

    crop: "random_resized" (area as shares of the frame, aspect as width / height), "multi_scale" (TSN, with `scales`),
        "scale_jitter" (`short_side` pixels, both counted, then a crop anywhere), "centre".
    flip: how likely left and right change places.
    colour_jitter: strengths of brightness, contrast, saturation and hue. grey: how likely a clip loses its colours.
    rand_augment: (number of changes, magnitude 0 to 30). Colours are those of rgb and ir, each with its own draw.
    """

    crop: CropRule = "random_resized"
    area: tuple[float, float] = (0.25, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    short_side: tuple[int, int] = (256, 320)
    flip: float = 0.5
    colour_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    grey: float = 0.0
    rand_augment: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.crop not in get_args(CropRule):
            raise ValueError(f"crop is {self.crop!r}; there are {', '.join(get_args(CropRule))}")
        if not (0 <= self.flip <= 1 and 0 <= self.grey <= 1):
            raise ValueError(f"flip is {self.flip} and grey {self.grey}; probabilities are 0 to 1")
        if not (0 < self.area[0] <= self.area[1] <= 1 and 0 < self.aspect[0] <= self.aspect[1]):
            raise ValueError(
                f"area is {self.area} and aspect {self.aspect}; each is (least, most), areas in shares of the frame"
            )
        if not (self.scales and all(0 < scale <= 1 for scale in self.scales)):
            raise ValueError(f"scales are {self.scales}; give some in (0, 1], shares of the shorter side")
        if not 0 < self.short_side[0] <= self.short_side[1]:
            raise ValueError(f"short_side is {self.short_side}; give (least, most) in pixels")
        if not (min(self.colour_jitter) >= 0 and self.colour_jitter[3] <= 0.5):
            raise ValueError(f"colour_jitter is {self.colour_jitter}; strengths are 0 or more, of hue 0.5 at most")
        if self.rand_augment and not (self.rand_augment[0] >= 1 and 0 <= self.rand_augment[1] <= 30):
            raise ValueError(f"rand_augment is {self.rand_augment}; give (changes, magnitude 0 to 30)")

    def geometry(self, height: int, width: int, spec: StreamSpec, rng: np.random.Generator) -> Geometry:
        """The cut of one clip of height x width pixels (as stored) for the stream of `spec`."""
        match self.crop:
            case "random_resized":
                cut = draw_random_resized_crop(height, width, spec.crop, rng, self.area, self.aspect)
            case "multi_scale":
                scaled = scaled_size(width, height, spec.resize_side)
                cut = draw_multi_scale_crop(scaled[1], scaled[0], spec.crop, rng, self.scales)
            case "scale_jitter":
                cut = draw_scale_jitter_crop(height, width, spec.crop, rng, self.short_side)
            case _:
                cut = centre_crop_geometry(height, width, spec.crop, spec.resize_side)
        return draw_flip(cut, rng, self.flip)

    def colours(self, rng: np.random.Generator) -> Photometric:
        """The colour changes of one stream of one clip."""
        steps: tuple[tuple[str, float], ...] = ()
        if any(self.colour_jitter) or self.grey:
            steps += draw_colour_jitter(rng, *self.colour_jitter, grey_probability=self.grey).steps
        if self.rand_augment is not None:
            steps += draw_rand_augment(rng, *self.rand_augment).steps
        return Photometric(steps)


def evaluation_geometries(height: int, width: int, spec: StreamSpec, num_crops: int) -> tuple[Geometry, ...]:
    """The middle crop, or with 3 crops those along the longer side."""
    if num_crops == 3:
        return three_crops(height, width, spec.crop, spec.resize_side)
    return (centre_crop_geometry(height, width, spec.crop, spec.resize_side),)


_MUCH_LARGER = 1.5


def decode_size(height: int, width: int, geometry: Geometry, spec: StreamSpec) -> Size:
    """The size to decode frames at, so that the region of `geometry` comes out at about the pixels that are wanted: no
    smaller, unless the video is, and no larger, so that little is scaled for nothing. A crop that was drawn in a scaled
    frame gets that very scale, and is then cut without scaling again. One of another shape than the frame's is scaled
    again in any case: frames that are not much larger are left as they are, and scaled once.
    """
    left, top, right, bottom = geometry.region
    wanted = geometry.size or (spec.crop, spec.crop)
    shorter = min(height, width)
    sides = wanted[0] / ((bottom - top) * height) * shorter, wanted[1] / ((right - left) * width) * shorter
    by_shorter, by_longer = sides if height <= width else sides[::-1]
    # The longer side of a scaled frame is rounded, which may make it look a little larger.
    same_shape = abs(by_shorter - by_longer) < 1
    side = round(by_shorter if same_shape else max(sides))
    if not same_shape and shorter < _MUCH_LARGER * side:
        return Size(None, spec.interpolation)
    # More pixels than the video has would show nothing more; `resize_side` itself is what was asked for.
    return Size(side if side <= max(shorter, spec.resize_side) else None, spec.interpolation)
