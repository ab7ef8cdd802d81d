"""A toy dataset of counting videos and a run on its pixels, small enough to be trained within a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from videos import write_counting_video

from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.datasets.contract import DATASETS, Dataset, register
from actionfuse.pipeline.types import BoxTracks
from actionfuse.train.recipe import Recipe, recipe_of

VIDEOS, SECONDS, FPS = 3, 4, 25


def write_videos(root: Path) -> Path:
    """Three videos of 4 s, 25 frames a second; video n counts from 1000 n."""
    root.mkdir(parents=True, exist_ok=True)
    for n in range(VIDEOS):
        write_counting_video(root / f"v{n}.mp4", SECONDS * FPS, first_number=1000 * n)
    return root


if "toy_videos" not in DATASETS:

    @register("toy_videos", splits=("train", "test"), paper="", source="", licence="", layout="")
    def read_toy_videos(root: Path, split: str, *, lost: bool = False) -> Dataset:
        """Segments of a second; the test split is the last video, and with `lost` one that is not there."""
        segments = []
        for n in range(VIDEOS - 1) if split == "train" else (VIDEOS - 1, *([9] if lost else [])):
            for second in range(SECONDS):
                labels = {"verb": second % 2, "noun": n % 3}
                segments.append(Segment(f"v{n}", float(second), float(second + 1), f"{split}-{n}-{second}", labels))
        times = np.arange(0, SECONDS, 0.5)
        boxes = np.zeros((len(times), 1, 4), np.float32) + np.array([0.2, 0.2, 0.6, 0.7], np.float32)
        tracks = BoxTracks(boxes, np.ones((len(times), 1), bool), times, np.ones(1, np.int64), ("hand",))
        return Dataset(
            name="toy_videos",
            split=split,
            segments=tuple(segments),
            classes={"verb": ("take", "put <in>"), "noun": ("cup", "pan", "lid")},
            root=root,
            paths={"rgb": "{video}.mp4"},
            boxes={f"v{n}": tracks for n in range(VIDEOS)},
        )


def video_recipe(root: Path, **changes) -> Recipe:
    """changes: dotted keys with __ for the dots."""
    content: dict = {
        "name": "toy_videos",
        "data": {"dataset": "toy_videos", "root": str(root), "test": "test"},
        "sampling": {"rule": "segments"},
        "streams": {
            "rgb": {
                "backbone": "tsn:test_resnet",
                "weights": "random",
                "clip": {"frames": 3, "fps": 8, "side": 32, "crop": 32},
            }
        },
        "head": {"name": "concat"},
        "augment": {"crop": "centre", "flip": 0.0},
        "optim": {"name": "adamw", "lr": 0.01, "batch": 4},
        "run": {"epochs": 1, "workers": 0, "save_minutes": 1000.0},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = content
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
    return recipe_of(content)


# A clip of anticipation: what ends at t, half a second apart.
ANTICIPATION = {
    "task__kind": "anticipation",
    "task__tau_a": 0.5,
    "task__tau_o": 1.0,
    "task__test_tau_a": [0.25],
    "sampling__rule": "last",
}
