"""Features of instances: RoIAlign (He et al., "Mask R-CNN", ICCV 2017) over feature maps of clips."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align


def roi_features(
    maps: Tensor,
    boxes: Tensor,
    present: Tensor | None = None,
    *,
    output_size: int = 3,
    aligned: bool = True,
    sampling_ratio: int = 2,
) -> Tensor:
    """Feature maps (B, D, T, H, W) and boxes (B, Tb, N, 4) -> (B, T, N, D, output_size, output_size).

    boxes: x1 y1 x2 y2 as shares of the clip's width and height (0..1), float. Tb is T or a multiple of it: the map's
        step t then takes the boxes of time t * Tb / T, the first that it covers (16 times over 4 steps: 0, 4, 8, 12).
    present: bool (B, Tb, N); absent instances and slots that only pad get zeros and send no gradient. None = all there.
    output_size: s, bins a side.
    aligned: True shifts boxes by half a cell, so that cell (i, j) covers [i, i + 1) x [j, j + 1); False is the older
        convention, in which a box is also at least one cell wide and high.
    sampling_ratio: points a side in each bin; 0 or less = as many as cells fall into it (adaptive).

    The STIN and Interactive Fusion networks were trained with aligned=False, sampling_ratio=-1, output_size=3.
    Boxes may reach over the border: what lies outside counts as the nearest cell, more than one cell outside as zero.
    """
    if maps.ndim != 5:
        raise ValueError(f"maps are {tuple(maps.shape)}; they must be (B, D, T, H, W)")
    batch, width, steps, map_height, map_width = maps.shape
    if boxes.ndim != 4 or boxes.shape[0] != batch or boxes.shape[-1] != 4 or not boxes.is_floating_point():
        raise ValueError(f"boxes are {boxes.dtype} {tuple(boxes.shape)}; they must be float ({batch}, T, N, 4)")
    times, instances = boxes.shape[1:3]
    if times == 0 or times % steps:
        raise ValueError(f"boxes have {times} times and maps {steps}; the boxes' must be a multiple of the maps'")
    if present is not None and (present.dtype != torch.bool or present.shape != boxes.shape[:3]):
        raise ValueError(f"present is {present.dtype} {tuple(present.shape)}; it must be bool {tuple(boxes.shape[:3])}")
    if output_size < 1:
        raise ValueError(f"output_size is {output_size}; it must be positive")

    stride = times // steps
    rois = boxes[:, ::stride].reshape(-1, 4)
    here = torch.ones(len(rois), dtype=torch.bool, device=maps.device)
    if present is not None:
        here = present[:, ::stride].reshape(-1).to(maps.device)
    # In float32 whatever the maps' type: bfloat16 cannot tell a box's edge to a tenth of a cell, nor count past 256.
    precise = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
    cells = precise.new_full((4,), map_width)  # filled in place: torch.tensor of a list would wait for a GPU
    cells[1::2] = map_height
    rois = rois.to(precise) * cells
    # Absent instances are computed as empty boxes rather than left out: shapes then depend on no data (no wait for the
    # GPU, no recompilation), and `where` keeps both their values and their gradients out.
    rois = torch.where(here[:, None], rois, torch.zeros_like(rois))
    image = torch.arange(batch * steps, device=maps.device, dtype=precise.dtype).repeat_interleave(instances)
    features = roi_align(
        precise.transpose(1, 2).flatten(0, 1),
        torch.cat([image[:, None], rois], 1),
        output_size,
        spatial_scale=1.0,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )
    features = torch.where(here[:, None, None, None], features, torch.zeros_like(features)).to(maps.dtype)
    return features.view(batch, steps, instances, width, output_size, output_size)
