"""A toy dataset of stored features for tests of training: two streams, each of which tells one of two labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from actionfuse.backbones.video_swin import Size
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.datasets.contract import DATASETS, Dataset, register
from actionfuse.pipeline.features import FeatureStore
from actionfuse.train.recipe import Recipe, recipe_of

VERBS, NOUNS, SECONDS, STEP = 3, 4, 4, 0.25
TINY_SWIN = Size(embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window=(2, 7, 7))


def write_toy(root: Path, videos: int = 12, seed: int = 0, nan_video: int | None = None) -> Path:
    """`rgb` tells the noun, `flow` the verb; each video has four segments of a second."""
    rng = np.random.default_rng(seed)
    means = {"rgb": rng.normal(size=(NOUNS, 8)), "flow": rng.normal(size=(VERBS, 6))}
    for stream, centres in means.items():
        store = FeatureStore.open(root / stream, format="npz", recipe={"identity": {"toy": stream}})
        for video in range(videos):
            rows = []
            for second in range(SECONDS):
                verb, noun = label_of(video, second)
                centre = centres[noun if stream == "rgb" else verb]
                rows.append(centre + 0.5 * rng.normal(size=(4, centres.shape[1])))
            data = np.concatenate(rows).astype(np.float32)
            if video == nan_video:
                data[:] = np.nan
            times = np.arange(len(data)) * STEP
            with store.writer(f"v{video}.mp4", row_shape=data.shape[1:]) as writer:
                writer.write(0, data)
                writer.commit(times, times + STEP, {})
    return root


def label_of(video: int, second: int) -> tuple[int, int]:
    return (video * 5 + second * 3) % VERBS, (video * 7 + second) % NOUNS


if "toy" not in DATASETS:

    @register("toy", splits=("train", "test"), paper="", source="", licence="", layout="")
    def read_toy(root: Path, split: str, *, videos: int = 12, missing: int = 0, unlabelled: int = 0) -> Dataset:
        """missing: so many segments are of a video that has no features. unlabelled: so many have no verb."""
        numbers = range(videos * 3 // 4) if split == "train" else range(videos * 3 // 4, videos)
        segments = []
        for video in numbers:
            for second in range(SECONDS):
                verb, noun = label_of(video, second)
                name = f"lost{video}.mp4" if len(segments) < missing else f"v{video}.mp4"
                labels = {"noun": noun} if len(segments) < unlabelled else {"verb": verb, "noun": noun}
                segments.append(Segment(name, float(second), float(second + 1), f"{split}-{video}-{second}", labels))
        classes = {"verb": ("a", "b", "c"), "noun": ("w", "x", "y", "z")}
        return Dataset(name="toy", split=split, segments=tuple(segments), classes=classes, root=root)


def toy_recipe(root: Path, **changes) -> Recipe:
    """A fast recipe on the toy features; changes: dotted keys with __ for the dots."""
    content: dict = {
        "name": "toy",
        "data": {"dataset": "toy", "root": str(root), "test": "test"},
        "inputs": "features",
        "sampling": {"rule": "segments"},
        "streams": {
            name: {"features": str(root / name), "clip": {"frames": 3, "fps": 4}, "key": "{video}"}
            for name in ("rgb", "flow")
        },
        "head": {"name": "concat"},
        "optim": {"name": "adamw", "lr": 0.01, "batch": 6, "ema": 0.9, "schedule": "cosine", "warmup_epochs": 0.5},
        "run": {"epochs": 4, "workers": 0, "save_minutes": 1000.0},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = content
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
    return recipe_of(content)
