"""RoIAlign over feature maps of clips, against its definition written with loops."""

from __future__ import annotations

import math

import pytest
import torch

from actionfuse.backbones import roi_features


def bilinear(plane: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """Value of (D, H, W) at a point; cells' values sit on whole coordinates."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(len(plane))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[:, top, left] * (1 - dx) + plane[:, top, right] * dx
    lower = plane[:, bottom, left] * (1 - dx) + plane[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def naive(maps, boxes, size, aligned, ratio):
    batch, width, steps, rows, columns = maps.shape
    stride = boxes.shape[1] // steps
    out = maps.new_zeros(batch, steps, boxes.shape[2], width, size, size)
    for b in range(batch):
        for t in range(steps):
            for n, box in enumerate(boxes[b, t * stride].tolist()):
                shift = 0.5 if aligned else 0.0
                x1, y1 = box[0] * columns - shift, box[1] * rows - shift
                box_width, box_height = (box[2] - box[0]) * columns, (box[3] - box[1]) * rows
                if not aligned:
                    box_width, box_height = max(box_width, 1.0), max(box_height, 1.0)
                bin_height, bin_width = box_height / size, box_width / size
                down, across = (ratio, ratio) if ratio > 0 else (math.ceil(bin_height), math.ceil(bin_width))
                for i in range(size):
                    for j in range(size):
                        points = [
                            bilinear(
                                maps[b, :, t],
                                y1 + (i + (k + 0.5) / down) * bin_height,
                                x1 + (j + (m + 0.5) / across) * bin_width,
                            )
                            for k in range(down)
                            for m in range(across)
                        ]
                        out[b, t, n, :, i, j] = torch.stack(points).mean(0)
    return out


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.randn(2, 3, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def boxes() -> torch.Tensor:
    """(2, 4, 3, 4): two times for each step of the map; some reach over the border, one is a point."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2, 4, 3, 2, dtype=torch.float64, generator=generator) * 0.7 - 0.05
    extent = torch.rand(2, 4, 3, 2, dtype=torch.float64, generator=generator) * 0.4 + 0.02
    boxes = torch.cat([corner, corner + extent], -1)
    boxes[0, 0, 0] = torch.tensor([0.5, 0.5, 0.5, 0.5])
    return boxes


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [1, 2, -1])
@pytest.mark.parametrize("size", [1, 3])
def test_equals_its_definition(maps, boxes, aligned, ratio, size):
    if aligned and ratio == -1:
        boxes[0, 0, 0, 2:] += 0.1  # an empty box has no points to average there
    got = roi_features(maps, boxes, output_size=size, aligned=aligned, sampling_ratio=ratio)
    assert got.shape == (2, 2, 3, 3, size, size)
    torch.testing.assert_close(got, naive(maps, boxes, size, aligned, ratio), rtol=1e-6, atol=1e-6)


def test_a_box_over_a_ramp_has_its_middle_in_the_middle():
    # Column j of the map holds j + 0.5, the middle of the cell; so a box's one bin holds the box's middle in cells.
    maps = (torch.arange(8.0) + 0.5).expand(1, 1, 1, 8, 8)
    boxes = torch.tensor([0.25, 0.25, 0.5, 0.75]).view(1, 1, 1, 4)
    assert roi_features(maps, boxes, output_size=1).item() == pytest.approx(0.375 * 8)


def test_gradients_reach_maps(maps, boxes):
    maps.requires_grad_()
    torch.autograd.gradcheck(lambda m: roi_features(m, boxes, output_size=2), maps, atol=1e-6)


def test_absent_instances_are_zero_and_send_nothing(maps, boxes):
    present = torch.ones(2, 4, 3, dtype=torch.bool)
    present[:, :, 1] = False
    present[0, 2] = False
    boxes[~present] = torch.nan  # whatever stands in an empty slot
    maps.requires_grad_()
    features = roi_features(maps, boxes, present)
    assert features.isfinite().all()
    assert not features[:, :, 1].any() and not features[0, 1].any()
    assert features[1, 0, 0].any()
    torch.testing.assert_close(features[1, :, 2], naive(maps, boxes, 3, True, 2)[1, :, 2])
    features[:, :, 1].sum().backward(retain_graph=True)
    assert not maps.grad.any()
    features.sum().backward()
    assert maps.grad.isfinite().all() and maps.grad[1].any() and not maps.grad[0, :, 1].any()


def test_later_times_of_a_step_do_not_matter(maps, boxes):
    moved = boxes.clone()
    moved[:, 1::2] = torch.rand(2, 2, 3, 4, dtype=torch.float64)
    assert torch.equal(roi_features(maps, boxes), roi_features(maps, moved))


def test_half_precision_maps_keep_precise_boxes(maps, boxes):
    half = maps.to(torch.bfloat16)
    many = torch.zeros(200, 3, 2, 5, 7, dtype=torch.bfloat16)
    many[199] = half[0]
    got = roi_features(many, boxes[:1].expand(200, -1, -1, -1))
    assert got.dtype == torch.bfloat16
    exact = roi_features(half[:1].float(), boxes[:1].float())
    torch.testing.assert_close(got[199:].float(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": (2, 3, 5, 7)}, "B, D, T, H, W"),
        ({"boxes": (1, 4, 3, 4)}, r"\(2, T, N, 4\)"),
        ({"boxes": (2, 4, 3, 5)}, r"\(2, T, N, 4\)"),
        ({"boxes": (2, 3, 3, 4)}, "multiple"),
        ({"boxes": (2, 0, 3, 4)}, "multiple"),
        ({"present": (2, 2, 3)}, "present"),
        ({"output_size": 0}, "output_size"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    maps = torch.zeros(change.get("maps", (2, 3, 2, 5, 7)))
    boxes = torch.zeros(change.get("boxes", (2, 4, 3, 4)))
    present = torch.ones(change.get("present", (2, 4, 3)), dtype=torch.bool) if "present" in change else None
    with pytest.raises(ValueError, match=message):
        roi_features(maps, boxes, present, output_size=change.get("output_size", 3))


def test_no_instances_are_no_features(maps):
    assert roi_features(maps, torch.zeros(2, 2, 0, 4)).shape == (2, 2, 0, 3, 3, 3)
