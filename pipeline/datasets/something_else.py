"""Something-Else: Something-Something v2 split so that verbs meet new objects, with boxes of hands and objects.

Paper: Materzynska et al., Something-Else: Compositional Action Recognition with Spatial-Temporal Interaction Networks,
CVPR 2020.
Where: splits: https://github.com/joaanna/something_else (code/dataset_splits); boxes: the folder that its README links;
       videos: those of Something-Something v2.
Licence: MIT (splits and boxes); videos as Something-Something v2.

Splits, each with _train and _validation: compositional (the objects of the two differ for each verb group; 174
classes), one_object (compositional, one object exchanged; 166), shuffled (the same videos, mixed; 174), few_shot_base
(88 classes), few_shot_5 and few_shot_10 (the other 86 classes with 5 or 10 training videos each).

Layout (splits also in dataset_splits/ or code/dataset_splits/; boxes also in annotations/ or
bounding_box_annotations/):

    compositional/labels.json  compositional/train.json  compositional/validation.json
    compositional_oneobject/...  compositional_shuffled/...
    fewshot/base_labels.json  fewshot/base_training_set.json  fewshot/base_validation_set.json
    fewshot/finetune_labels.json  fewshot/finetune_5shot_training.json  fewshot/finetune_5shot_validation.json  (10shot)
    annotations.json                     or bounding_box_smthsmth_part1.json to _part4.json
    videos/151201.webm                   or 20bn-something-something-v2/, or frames/151201/0001.jpg at 12 a second

Class numbers are the alphabetical rank of the class names, as in the splits' own code, not the numbers in labels.json.
Code that takes those (ORViT) orders its scores otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..boxes import Keep
from . import something_something as base
from .contract import Dataset, register
from .layout import LayoutError, choose_paths, find_file, find_optional
from .something_else_boxes import Repeated, SomethingElseBoxes

NAME = "something_else"
_FOLDERS = ("", "dataset_splits", "code/dataset_splits")
_BOX_FOLDERS = ("", "annotations", "bounding_box_annotations", "dataset_splits")
_BOX_PARTS = tuple(f"bounding_box_smthsmth_part{part}.json" for part in range(1, 5))
# The files have other names in other copies: those of the splits' authors come first.
_FILES: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    **{
        f"{split}": (
            f"{folder}/labels.json",
            {"train": (f"{folder}/train.json",), "validation": (f"{folder}/validation.json",)},
        )
        for split, folder in (
            ("compositional", "compositional"),
            ("one_object", "compositional_oneobject"),
            ("shuffled", "compositional_shuffled"),
        )
    },
    "few_shot_base": (
        "fewshot/base_labels.json",
        {
            "train": ("fewshot/base_training_set.json", "fewshot/base_train_set.json"),
            "validation": ("fewshot/base_validation_set.json",),
        },
    ),
    **{
        f"few_shot_{shots}": (
            "fewshot/finetune_labels.json",
            {
                "train": (
                    f"fewshot/finetune_{shots}shot_training.json",
                    f"fewshot/finetune_{shots}shot_train.json",
                ),
                "validation": (f"fewshot/finetune_{shots}shot_validation.json",),
            },
        )
        for shots in (5, 10)
    },
}


@register(
    NAME,
    splits=tuple(f"{split}_{part}" for split in _FILES for part in ("train", "validation")),
    paper="Materzynska et al., CVPR 2020",
    source="github.com/joaanna/something_else",
    licence=f"MIT (splits and boxes); videos: {base.LICENCE}",
    layout="""\
    compositional/labels.json  compositional/train.json  compositional/validation.json  fewshot/...
    annotations.json  or  bounding_box_smthsmth_part1.json to _part4.json
    videos/151201.webm""",
)
def read(
    root: Path,
    split: str,
    *,
    boxes: bool = True,
    max_instances: int | None = None,
    keep: Keep = "order",
    repeated: Repeated = "last",
    frame_sizes: str | Path | None = None,
    paths: Mapping[str, str] | None = None,
) -> Dataset:
    """One split; see the module's text and that of something_else_boxes.

    boxes: False leaves them out; their files need not be there then.
    max_instances, keep: at most so many instances a video, and which. None keeps all; heads that take four cut at the
        sampled times (`limit_instances`), as the public code does.
    repeated: "last" or "separate", what a second hand in one frame is.
    frame_sizes: a json of video -> [height, width], or video -> {"res": [height, width]} as the public code writes it
        (video_info.json), relative to root. None reads them from the videos, each when its boxes are first asked for.
    paths: stream -> pattern of `Dataset.paths`, where videos lie elsewhere.
    """
    setting, part = split.rsplit("_", 1)
    labels_name, names = _FILES[setting]
    advice = "get it from code/dataset_splits of github.com/joaanna/something_else"
    labels = find_file(root, (labels_name,), _FOLDERS, advice)
    videos = find_file(root, names[part], _FOLDERS, advice)
    classes = base.read_classes(labels)
    segments = base.read_videos(videos, classes)
    candidates = {**base.PATHS, "rgb": ("videos/{video}.webm", *base.PATHS["rgb"])}
    chosen = choose_paths(root, candidates, segments, paths)
    files, notes, tracks = [videos, labels], (), None
    if boxes:
        box_files = _box_files(root)
        tracks = SomethingElseBoxes(
            box_files,
            video_path=str(root / chosen["rgb"]),
            sizes=_read_sizes(root / frame_sizes) if frame_sizes is not None else None,
            repeated=repeated,
            max_instances=max_instances,
            keep=keep,
        )
        files += box_files
        if missing := sum(segment.video not in tracks for segment in segments):
            notes = (f"{missing} of {len(segments)} videos have no boxes.",)
    return Dataset(
        name=NAME,
        split=split,
        segments=segments,
        classes={"action": classes},
        root=root,
        paths=chosen,
        frame_rates=base.frame_rates_of(chosen),
        boxes=tracks,
        files=tuple(files),
        notes=notes,
    )


def _box_files(root: Path) -> list[Path]:
    if whole := find_optional(root, ("annotations.json",), _BOX_FOLDERS):
        return [whole]
    parts = {name: find_optional(root, (name,), _BOX_FOLDERS) for name in _BOX_PARTS}
    if any(parts.values()):
        if missing := [name for name, path in parts.items() if path is None]:
            raise LayoutError(root, missing, "the other parts of the boxes are there; all four are needed")
        return [path for path in parts.values() if path is not None]
    raise LayoutError(
        root,
        ("annotations.json", f"{_BOX_PARTS[0]} to _part4.json"),
        f"looked for in {', '.join(folder or '.' for folder in _BOX_FOLDERS)}; get the boxes where the README of "
        "github.com/joaanna/something_else says, or leave them out with boxes=False",
    )


def _read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Video -> (width, height)."""
    sizes: dict[str, tuple[int, int]] = {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for video, entry in content.items():
            height, width = entry["res"] if isinstance(entry, dict) else entry
            sizes[video] = int(width), int(height)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ValueError(
            f'{path}: must be a json object of video -> [height, width] or {{"res": [height, width]}}: {problem!r}'
        ) from None
    return sizes
