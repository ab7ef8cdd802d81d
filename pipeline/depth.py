"""Depth from the numbers of its files to those that networks take, 0..255, to other sizes, and to colours."""

from __future__ import annotations

import math

import numpy as np

_LARGEST = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def check_depth_range(depth_range: tuple[float, float]) -> None:
    near, far = depth_range
    if not (0 <= near < far and math.isfinite(far)):
        raise ValueError(
            f"depth_range is {(near, far)}; it must be (near, far) in the depth files' own numbers, 0 <= near < far"
        )


def scale_by_nearest(depth: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., H, W, C) -> (..., height, width, C); every pixel is one that was there: no depth is made up between an
    object and what is behind it. The pixel whose middle is nearest, as "nearest-exact" elsewhere.
    """
    for axis, new in ((-3, height), (-2, width)):
        if (old := depth.shape[axis]) != new:
            depth = np.take(depth, ((np.arange(new) + 0.5) * old / new).astype(np.int64), axis)
    return depth


def scale_depth(depth: np.ndarray, depth_range: tuple[float, float] | None) -> np.ndarray:
    """uint8 or uint16 of any shape, as stored -> what a network takes, on the scale of pictures of 8 bits.

    depth_range: (near, far) in the numbers of the file; near becomes 1 and far 255, linearly, and what lies outside is
        taken for the nearer of the two. 0, which cameras write where they measured nothing, stays 0 and means nothing
        else. The result is float32: no two numbers between near and far become one.
    None: uint8 is handed through; uint16 becomes float32, 65535 as 255, which assumes nothing about the unit and lets
        nothing fall together. Indoors it is a narrow part of the scale (8 m in millimetres are 31): a depth_range, as
        (500, 4500) for a Kinect v2, uses all of it.
    """
    if depth.dtype not in _LARGEST:
        raise ValueError(f"depth is {depth.dtype}; it must be uint8 or uint16, as the file has it")
    if depth_range is None:
        return depth if depth.dtype == np.uint8 else depth / np.float32(257)
    check_depth_range(depth_range)
    near, far = depth_range
    # All numbers that there are, in float64: exact ends, and one look-up a pixel.
    numbers = np.arange(_LARGEST[depth.dtype] + 1, dtype=np.float64)
    table = (1 + (numbers.clip(near, far) - near) * (254 / (far - near))).astype(np.float32)
    table[0] = 0
    return table[depth]


def paint_jet(grey: np.ndarray) -> np.ndarray:
    """uint8 or float32 (T, H, W, 1), 0..255 -> the same type (T, H, W, 3), red, green, blue of OpenCV's jet.

    Between whole numbers the colours are mixed, so that float32 keeps what it tells apart.
    """
    import cv2  # here, so that opening a video does not load it

    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_JET)[:, 0, ::-1]
    grey = grey[..., 0]
    if grey.dtype == np.uint8:
        return table[grey]
    below = np.minimum(grey.astype(np.uint8), 254)
    colours, steps = table.astype(np.float32), np.diff(table.astype(np.float32), axis=0)
    return colours[below] + steps[below] * (grey - below)[..., None]
