"""What was installed fits together: compiled parts of different libraries find one another."""

import importlib.metadata
import re

import pytest
from layout import options


def test_torchvision_operators_belong_to_this_torch():
    # A torch from another index than torchvision's leaves its operators unregistered; the first call says so.
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
    assert kept.tolist() == [0, 2]


def test_opencv_needs_no_screen():
    import cv2
    import numpy as np

    assert "GUI:" in cv2.getBuildInformation()
    assert re.search(r"GUI:\s+NONE", cv2.getBuildInformation()), "opencv-python instead of opencv-python-headless?"
    assert cv2.resize(np.zeros((4, 4, 3), np.uint8), (2, 2)).shape == (2, 2, 3)


def declared_bounds() -> list[tuple[str, str]]:
    return re.findall(r"^([\w-]+)>=([\d.]+)", options()["install_requires"].strip(), flags=re.M)


@pytest.mark.parametrize(("name", "bound"), declared_bounds())
def test_installed_version_is_within_the_declared_bound(name, bound):
    from packaging.version import Version

    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        assert name == "decord", f"{name} is not installed"
        pytest.skip("decord has no wheel for this platform")
    assert Version(installed) >= Version(bound)
