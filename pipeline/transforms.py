"""One geometry for all streams and boxes of a clip, and colour changes of single streams.

Drawing is separate from applying. A draw gives a small frozen object that can be looked at, stored and applied again;
all chance comes from the generator that is handed in (`sampling.draw`). A `Geometry` speaks in shares of the frame, so
rgb, flow at half size, depth and boxes of one clip move alike.

torch is imported when something is applied, not before: processes that only crop (`centre_crop`) start without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .boxes import crop_boxes, flip_boxes
from .depth import scale_by_nearest
from .types import Clip
from .video import scaled_size

if TYPE_CHECKING:
    import torch

GEOMETRIC_STREAMS = ("rgb", "flow", "depth", "ir")
Region = tuple[float, float, float, float]


@dataclass(frozen=True)
class Geometry:
    """Cut `region` out of the frame, scale it to `size`, mirror it if `flip`.

    region: x1 y1 x2 y2 in shares of the frame's width and height. In a frame of pixels its edges are the nearest ones.
    size: (height, width) of the result in pixels; None keeps the pixels of the region.
    flip: left and right change places.
    """

    region: Region = (0.0, 0.0, 1.0, 1.0)
    size: tuple[int, int] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        left, top, right, bottom = self.region
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"region is {self.region}; it must be x1 y1 x2 y2 in 0..1 with x1 < x2 and y1 < y2")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size is {self.size}; it must be (height, width) of at least 1 pixel")

    def then(self, after: Geometry) -> Geometry:
        """The one geometry that does this one and then `after`: one resampling instead of two."""
        left, top, right, bottom = self.region
        x1, y1, x2, y2 = after.region
        if self.flip:
            x1, x2 = 1 - x2, 1 - x1
        wide, high = right - left, bottom - top
        region = (left + x1 * wide, top + y1 * high, min(left + x2 * wide, 1.0), min(top + y2 * high, 1.0))
        size = after.size
        if size is None and self.size is not None:
            rows, columns = _edges(y1, y2, self.size[0]), _edges(x1, x2, self.size[1])
            size = (rows[1] - rows[0], columns[1] - columns[0])
        return Geometry(region, size, self.flip != after.flip)


def _edges(low: float, high: float, length: int) -> tuple[int, int]:
    """The pixels nearest to the shares low and high of `length`, at least one."""
    start = min(math.floor(low * length + 0.5), length - 1)
    return start, max(start + 1, min(math.floor(high * length + 0.5), length))


def _in_shares(top: float, left: float, crop: tuple[int, int], height: int, width: int) -> Region:
    return left / width, top / height, (left + crop[1]) / width, (top + crop[0]) / height


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _check_fits(crop: tuple[int, int], height: int, width: int) -> None:
    if crop[0] > height or crop[1] > width:
        raise ValueError(
            f"a crop of {crop[0]} x {crop[1]} pixels (height x width) does not fit into {height} x {width}; "
            "choose a smaller crop or a larger short_side"
        )


# Geometries without chance


def resize_short_side(height: int, width: int, side: int) -> Geometry:
    """The whole frame, its shorter side scaled to `side` pixels. `Geometry(size=(h, w))` scales to exactly h x w."""
    new_width, new_height = scaled_size(width, height, side)
    return Geometry(size=(new_height, new_width))


def centre_crop_geometry(height: int, width: int, crop: int, short_side: int | None = None) -> Geometry:
    """The middle crop x crop pixels of the frame, or of the frame scaled to `short_side`.

    Source: the offsets of torchvision's center_crop. Differs, here and below: the crop is taken from the unscaled
    frame, at its nearest pixels, and scaled alone, so it can be half an unscaled pixel off.
    """
    width, height = scaled_size(width, height, short_side)
    _check_fits((crop, crop), height, width)
    region = _in_shares(_centre(height, crop), _centre(width, crop), (crop, crop), height, width)
    return Geometry(region, (crop, crop))


def _centre(length: int, crop: int) -> int:
    return round((length - crop) / 2)


def three_crops(height: int, width: int, crop: int, short_side: int | None = None) -> tuple[Geometry, ...]:
    """Left, middle and right crop (top, middle and bottom of an upright frame) along the longer side, for tests.

    Source: PySlowFast and pytorchvideo `uniform_crop`: the middle rounds its offset up.
    """
    width, height = scaled_size(width, height, short_side)
    _check_fits((crop, crop), height, width)
    top, left = math.ceil((height - crop) / 2), math.ceil((width - crop) / 2)
    if height > width:
        offsets = [(0, left), (top, left), (height - crop, left)]
    else:
        offsets = [(top, 0), (top, left), (top, width - crop)]
    return tuple(Geometry(_in_shares(*offset, (crop, crop), height, width), (crop, crop)) for offset in offsets)


def centre_crop(frames: np.ndarray, side: int) -> np.ndarray:
    """The middle side x side pixels of (..., H, W, C), a view. Offsets as torchvision's center_crop."""
    height, width = frames.shape[-3:-1]
    _check_fits((side, side), height, width)
    top, left = _centre(height, side), _centre(width, side)
    return frames[..., top : top + side, left : left + side, :]


# Geometries by chance


def draw_random_resized_crop(
    height: int,
    width: int,
    size: int | tuple[int, int],
    rng: np.random.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Geometry:
    """A crop of random area (shares of the frame) and aspect (width / height), scaled to `size`.

    Source: Going deeper with convolutions (Szegedy et al., CVPR 2015) as torchvision does it: aspect log-uniform, ten
    tries, then the largest middle crop within the aspect bounds.
    """
    size = _pair(size)
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return Geometry(_in_shares(top, left, (h, w), height, width), size)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return Geometry(_in_shares((height - h) // 2, (width - w) // 2, (h, w), height, width), size)


def multi_scale_offsets(height: int, width: int, crop: tuple[int, int], more: bool = True) -> list[tuple[int, int]]:
    """(top, left) of TSN's fixed crops: corners and middle; with `more` also the middles of edges and of quarters."""
    down, right = (height - crop[0]) // 4, (width - crop[1]) // 4
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    if more:
        places += [(2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3)]
    return [(row * down, column * right) for row, column in places]


def draw_multi_scale_crop(
    height: int,
    width: int,
    size: int | tuple[int, int],
    rng: np.random.Generator,
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66),
    max_distort: int = 1,
    fixed_offsets: bool = True,
    more_offsets: bool = True,
) -> Geometry:
    """A crop whose sides are `scales` of the frame's shorter one, at one of 13 (5) fixed places, scaled to `size`.

    max_distort: how many places apart in `scales` height and width may be. fixed_offsets=False: any place.
    Source: Temporal Segment Networks (Wang et al., ECCV 2016), GroupMultiScaleCrop of the public code, where sides less
    than 3 pixels from `size` take its length (here: unless the frame is shorter).
    """
    size = _pair(size)
    sides = [max(1, int(min(height, width) * scale)) for scale in scales]
    highs, wides = ([want if abs(side - want) < 3 else side for side in sides] for want in size)
    crops = [(h, w) for i, h in enumerate(highs) for j, w in enumerate(wides) if abs(i - j) <= max_distort]
    h, w = crops[int(rng.integers(len(crops)))]
    crop = h, w = min(h, height), min(w, width)
    if fixed_offsets:
        offsets = multi_scale_offsets(height, width, crop, more_offsets)
        top, left = offsets[int(rng.integers(len(offsets)))]
    else:
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return Geometry(_in_shares(top, left, crop, height, width), size)


def draw_scale_jitter_crop(
    height: int, width: int, size: int, rng: np.random.Generator, short_side: tuple[int, int] = (256, 320)
) -> Geometry:
    """The frame scaled to a random shorter side (both bounds counted), then a size x size crop anywhere.

    Source: Very deep convolutional networks (Simonyan and Zisserman, ICLR 2015); the training of PySlowFast.
    """
    width, height = scaled_size(width, height, int(rng.integers(short_side[0], short_side[1] + 1)))
    _check_fits((size, size), height, width)
    top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    return Geometry(_in_shares(top, left, (size, size), height, width), (size, size))


def draw_flip(geometry: Geometry, rng: np.random.Generator, probability: float = 0.5) -> Geometry:
    """`geometry`, mirrored with this probability. Labels such as "to the left" are the dataset's to exchange."""
    return replace(geometry, flip=geometry.flip != bool(rng.random() < probability))


# Apply


def apply_geometry(
    clip: Clip,
    geometry: Geometry,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    min_visible_share: float = 0.1,
) -> Clip:
    """The clip with rgb, flow, depth, ir and boxes moved alike; other streams are handed through.

    rgb and ir are scaled with an antialiased bilinear filter, in uint8 where they are uint8. So is flow (float32, also
    stacks u, v, u, v, ... in the channels), whose values are multiplied by the scale of their axis; a flip turns the
    sign of u. Depth takes the nearest pixel: no depth is made up between an object and what is behind it.

    sizes: stream -> (height, width) where one is to differ from the geometry's size.
    min_visible_share: boxes that keep less of their area are absent.
    """
    sizes = dict(sizes or {})
    if unknown := sorted(set(sizes) - (set(clip.streams) & set(GEOMETRIC_STREAMS))):
        raise ValueError(f"sizes names {', '.join(unknown)}; the clip's streams are {', '.join(clip.streams)}")
    streams = {
        name: _move(name, data, geometry, sizes.get(name, geometry.size)) if name in GEOMETRIC_STREAMS else data
        for name, data in clip.streams.items()
    }
    boxes = clip.boxes
    if boxes is not None:
        boxes = crop_boxes(boxes, geometry.region, min_visible_share)
        boxes = flip_boxes(boxes) if geometry.flip else boxes
    return replace(clip, streams=streams, boxes=boxes)


def _move(name: str, data: np.ndarray, geometry: Geometry, size: tuple[int, int] | None) -> np.ndarray:
    if name == "flow" and (data.dtype != np.float32 or data.shape[-1] % 2):
        raise ValueError(
            f"flow is {data.dtype} {data.shape}; it must be float32 (T, H, W, 2), in pixels: transform, then quantise"
        )
    height, width = data.shape[1:3]
    left, top, right, bottom = geometry.region
    rows, columns = _edges(top, bottom, height), _edges(left, right, width)
    cut = data[:, slice(*rows), slice(*columns)]
    old = cut.shape[1:3]
    size = size or old
    if size != old:
        cut = scale_by_nearest(cut, *size) if name == "depth" else _bilinear(cut, size)
    if geometry.flip:
        # As signed numbers of the same bytes: torch before 2.15 does not flip wide unsigned ones.
        bits = cut.view(f"i{cut.itemsize}") if cut.dtype.kind == "u" else cut
        cut = _array(_tensor(bits).flip(3)).view(cut.dtype)
    if name == "flow" and (geometry.flip or size != old):
        across = (-1 if geometry.flip else 1) * size[1] / old[1]
        cut = cut * np.tile(np.array([across, size[0] / old[0]], np.float32), cut.shape[-1] // 2)
    return np.ascontiguousarray(cut)


def _bilinear(data: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from torchvision.transforms.v2 import functional

    dtype = data.dtype
    tensor = _tensor(data if dtype in (np.uint8, np.float32) else data.astype(np.float32))
    scaled = _array(functional.resize(tensor, list(size), antialias=True))
    if scaled.dtype != dtype and np.issubdtype(dtype, np.integer):
        scaled = np.rint(scaled)
    return scaled.astype(dtype, copy=False)


def _tensor(data: np.ndarray) -> torch.Tensor:
    """(T, H, W, C) -> (T, C, H, W), of the same memory where it may be written to."""
    import torch

    return torch.from_numpy(data if data.flags.writeable else data.copy()).permute(0, 3, 1, 2)


def _array(pictures: torch.Tensor) -> np.ndarray:
    """(T, C, H, W) -> (T, H, W, C), of the same memory."""
    return pictures.permute(0, 2, 3, 1).numpy()


# Colour

COLOUR_STEPS = (
    "brightness", "contrast", "saturation", "hue", "grey", "sharpness",
    "posterize", "solarize", "autocontrast", "equalize", "invert",
)  # fmt: skip

RAND_AUGMENT = (
    "none", "brightness", "saturation", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


@dataclass(frozen=True)
class Photometric:
    """Colour changes in their order, each (name, value).

    brightness, contrast, saturation, sharpness: factor, 1 changes nothing. hue: -0.5..0.5 turns. posterize: bits kept.
    solarize: pixels from this value (0..255) on are inverted. grey, autocontrast, equalize, invert: no value, write 0.
    """

    steps: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name, _ in self.steps:
            if name not in COLOUR_STEPS:
                raise ValueError(f"no colour change is named {name!r}; there are {', '.join(COLOUR_STEPS)}")


def draw_colour_jitter(
    rng: np.random.Generator,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    grey_probability: float = 0.0,
) -> Photometric:
    """Factors from [max(0, 1 - x), 1 + x], hue from [-x, x], in random order; then grey with its probability.

    Source: torchvision's ColorJitter and RandomGrayscale. A strength of 0 leaves its step out.
    """
    if not 0 <= hue <= 0.5 or min(brightness, contrast, saturation) < 0:
        raise ValueError("brightness, contrast and saturation must be 0 or more, hue 0 to 0.5")
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    steps: list[tuple[str, float]] = []
    for at in rng.permutation(4):
        name, strength = list(strengths.items())[at]
        low, high = (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
        value = float(rng.uniform(low, high))
        if strength > 0:
            steps.append((name, value))
    if rng.random() < grey_probability:
        steps.append(("grey", 0.0))
    return Photometric(tuple(steps))


def draw_rand_augment(
    rng: np.random.Generator, num_ops: int = 2, magnitude: int = 9, num_magnitudes: int = 31
) -> Photometric:
    """`num_ops` random colour changes of strength magnitude / (num_magnitudes - 1); "no change" is one of them.

    Source: RandAugment (Cubuk et al., 2019) with torchvision's ranges. Differs: without shear, translation and
    rotation, which would tear rgb away from flow, depth and boxes.
    """
    if not 0 <= magnitude < num_magnitudes or num_magnitudes < 2:
        raise ValueError(f"magnitude is {magnitude}; it must be 0 to {num_magnitudes - 1} (num_magnitudes - 1)")
    share = magnitude / (num_magnitudes - 1)
    steps: list[tuple[str, float]] = []
    for _ in range(num_ops):
        name = RAND_AUGMENT[int(rng.integers(len(RAND_AUGMENT)))]
        sign = 1 if rng.random() < 0.5 else -1
        values = {"posterize": 8 - round(4 * share), "solarize": 255 * (1 - share), "autocontrast": 0, "equalize": 0}
        if name != "none":
            steps.append((name, float(values.get(name, 1 + sign * 0.9 * share))))
    return Photometric(tuple(steps))


def apply_photometric(clip: Clip, changes: Mapping[str, Photometric]) -> Clip:
    """The clip with the colours of some streams changed: `changes` names them, each with its own draw.

    Means, extremes and histograms are those of the whole clip, so that brightness does not flicker from frame to frame
    (Differs: torchvision takes each frame's own).
    Raises: ValueError for a stream that is not there or is no picture: only uint8 of 1 or 3 channels has colours.
    """
    streams = dict(clip.streams)
    for name, change in changes.items():
        if name not in streams:
            raise ValueError(f"the clip has no stream {name!r}; it has {', '.join(streams)}")
        data = streams[name]
        if data.dtype != np.uint8 or data.shape[-1] not in (1, 3) or name == "flow":
            raise ValueError(
                f"{name} is {data.dtype} {data.shape}; only uint8 pictures of 1 or 3 channels have colours"
            )
        if len(data):
            for step, value in change.steps:
                data = _recolour(data, step, value)
        streams[name] = data
    return replace(clip, streams=streams)


def _recolour(data: np.ndarray, step: str, value: float) -> np.ndarray:
    from torchvision.transforms.v2 import functional

    times, height, width, channels = data.shape
    # All frames as one tall picture: statistics are then the clip's. Sharpness looks at neighbours: frame by frame.
    tall = data if step == "sharpness" else data.reshape(1, times * height, width, channels)
    picture = _tensor(tall)
    match step:
        case "brightness":
            changed = functional.adjust_brightness(picture, value)
        case "contrast":
            changed = functional.adjust_contrast(picture, value)
        case "saturation":
            changed = functional.adjust_saturation(picture, value)
        case "hue":
            changed = functional.adjust_hue(picture, value)
        case "grey":
            changed = functional.rgb_to_grayscale(picture, num_output_channels=channels)
        case "sharpness":
            changed = functional.adjust_sharpness(picture, value)
        case "posterize":
            changed = functional.posterize(picture, int(value))
        case "solarize":
            changed = functional.solarize(picture, value)
        case "autocontrast":
            changed = functional.autocontrast(picture)
        case "equalize":
            changed = functional.equalize(picture)
        case "invert":
            changed = functional.invert(picture)
        case _:
            raise ValueError(f"no colour change is named {step!r}")
    return np.ascontiguousarray(_array(changed)).reshape(data.shape)
