"""What a run says of moments of a video: which moments, what is looked at, scores, rows for files and people.

Recognition: windows [first + k stride, first + k stride + window), k = 0, 1, ..., until one reaches the end of the
video; the last one is cut there. Anticipation: moments t = first + k stride, k = 1, 2, ..., up to the end; seen is
[t - tau_o, t), nothing at or after t is read, and told is the action that starts at t + tau_a.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actionfuse._files import replacing

from ..pipeline.annotations import Segment
from ..pipeline.clip_reader import frame_seconds
from ..pipeline.clip_spec import StreamSpec
from ..pipeline.datasets.contract import Dataset
from ..pipeline.protocols import Anticipation, Recognition, Task, sliding_windows
from ..pipeline.samples import SegmentDataset
from ..pipeline.types import BoxTracks
from ..pipeline.video import VideoInfo
from .build import build_dataset, stream_specs
from .metrics import ranking, softmax
from .runs import TrainedRun

_OF_ONE_FILE = ("rgb", "flow", "audio")  # streams that a video file has by itself


@dataclass(frozen=True)
class Prediction:
    """What a run says at one moment.

    video, id: which. start_seconds, stop_seconds: what was looked at. action_seconds: when the action that is told
    starts, for anticipation, tau_a seconds after what was looked at.
    top: task -> the best classes, best first: {"class", "name", "score"}; "verb+noun" has {"verb", "noun", "score"}.
    """

    video: str
    id: str
    start_seconds: float
    stop_seconds: float
    top: Mapping[str, list[dict[str, Any]]]
    action_seconds: float | None = None
    tau_a: float | None = None
    seen_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class View:
    """How videos are looked at. window: seconds seen at a time, None for anticipation. stride: seconds between moments.

    beside: stream -> where its file lies beside the video's, with {video}, {folder} and {stem}.
    """

    window: float | None
    stride: float
    beside: Mapping[str, str] = field(default_factory=dict)


def check_run(run: TrainedRun, beside: Mapping[str, str], boxes: bool) -> None:
    """Raises ValueError where raw videos are not enough for this run, with what is missing."""
    stored = [stream for stream in run.model.head.streams if stream not in run.model.backbones]
    if stored:
        raise ValueError(
            f"{run.path} was trained on stored features of {', '.join(stored)}: the backbones that made them are no "
            "part of it, so it cannot look at pixels. Train with inputs=pixels, or extract the features of your videos "
            "and use actionfuse evaluate"
        )
    specs = [spec.stream for spec in stream_specs(run.recipe, run.model.input_specs) if isinstance(spec, StreamSpec)]
    missing = [stream for stream in specs if stream not in _OF_ONE_FILE and stream not in beside]
    if missing:
        raise ValueError(
            f"{run.path} looks at {', '.join(missing)}, which a video file does not have; say where it lies with "
            f"--beside {missing[0]}={{folder}}/{{stem}}-{missing[0]}.mp4"
        )
    if run.model.head.needs_boxes and not boxes:
        raise ValueError(f"{run.path} looks at boxes of hands and objects; give them with --boxes FILE")


def dataset_of(
    run: TrainedRun,
    segments: Sequence[Segment],
    task: Task,
    *,
    beside: Mapping[str, str] | None = None,
    boxes: Mapping[str, BoxTracks] | None = None,
    crops: int | None = None,
) -> SegmentDataset:
    """Samples of segments whose `video` is a path."""
    split = Dataset(
        name="videos", split="all", segments=tuple(segments), classes={}, root=Path("."),
        paths={"rgb": "{video}", **(beside or {})}, boxes=boxes,
    )  # fmt: skip
    return build_dataset(run.recipe, split, run.model, task, training=False, num_crops=crops)


def choose_view(
    run: TrainedRun,
    info: VideoInfo,
    window: float | None,
    stride: float | None,
    beside: Mapping[str, str] | None = None,
) -> View:
    """Window: what a clip of the model spans, where none is given. Stride: half a window; anticipation: 1 s."""
    for name, value in (("--window", window), ("--stride", stride)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive, in seconds")
    if run.recipe.task.kind == "anticipation":
        if window is not None:
            raise ValueError("--window: an anticipation model looks at task.tau_o seconds; change that instead")
        return View(window=None, stride=stride or 1.0, beside=beside or {})
    window = window or clip_seconds(run, info)
    return View(window=window, stride=stride or window / 2, beside=beside or {})


def clip_seconds(run: TrainedRun, info: VideoInfo) -> float:
    """How long a clip of the run's streams lasts in this video: its longest stream counts."""
    stride = run.recipe.sampling.stride_frames
    spans = []
    for spec in stream_specs(run.recipe, run.model.input_specs):
        step = 1 / spec.fps if spec.fps else frame_seconds(info)
        spans.append((spec.frames or 1) * stride * step)
    return max(spans)


def moments_of(run: TrainedRun, video: str, name: str, info: VideoInfo, view: View) -> list[Segment]:
    """The moments of a video as segments, called name@k; those of anticipation start tau_a after what is seen."""
    whole = Segment(video, max(0.0, info.start_seconds), info.stop_seconds, name)
    if view.window is not None:
        return sliding_windows([whole], view.window, view.stride)
    tau_a = run.recipe.task.tau_a
    count = int((info.stop_seconds - whole.start_seconds) / view.stride + 1e-9)
    return [moment_at(whole, k, whole.start_seconds + k * view.stride, tau_a, view) for k in range(1, count + 1)]


def moment_at(whole: Segment, k: int, seconds: float, tau_a: float, view: View) -> Segment:
    """The segment whose observation ends at `seconds`."""
    start = seconds + tau_a
    return Segment(whole.video, start, start + view.stride, f"{whole.id}@{k}", {}, {"segment": whole.id})


def task_of_moments(run: TrainedRun) -> Task:
    """What is observed of a moment: a window is what has been seen, whatever fraction the run was trained with."""
    task = run.recipe.task
    return Anticipation(tau_a=task.tau_a, tau_o=task.tau_o) if task.kind == "anticipation" else Recognition()


def prediction_of(
    run: TrainedRun, segment: Segment, video: str, task: Task, scores: Mapping[str, np.ndarray], top: int
) -> Prediction:
    """A row. scores: task -> (C,) logits of the segment."""
    seen = task.observe(segment.start_seconds, segment.stop_seconds)
    ahead = task.tau_a if isinstance(task, Anticipation) else None
    return Prediction(
        video=video,
        id=segment.id,
        start_seconds=max(0.0, seen.start_seconds),
        stop_seconds=seen.stop_seconds,
        top=best_classes(scores, run.model.class_names, top, several=run.recipe.loss.kind == "bce"),
        action_seconds=None if ahead is None else seen.action_seconds,
        tau_a=ahead,
        seen_fraction=getattr(task, "fraction", None),
    )


def best_classes(
    scores: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]], top: int, several: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """task -> best classes of logits (C,), with softmax scores (several: sigmoid).

    Where verbs and nouns are told and actions are not, "verb+noun" are the best pairs by the product of both: every
    pair counts, also those that no training segment had.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    shares = {}
    for task, logits in scores.items():
        logits = logits.astype(np.float64)
        shares[task] = 1 / (1 + np.exp(-logits)) if several else softmax(logits[None])[0]
        called = names.get(task, ())
        found[task] = [
            {"class": int(c), "name": called[c] if c < len(called) else str(c), "score": float(shares[task][c])}
            for c in ranking(shares[task], top)
        ]
    if {"verb", "noun"} <= shares.keys() and "action" not in shares and not several:
        # The best pairs are made of the best verbs and nouns.
        pairs = [(verb, noun) for verb in found["verb"] for noun in found["noun"]]
        pairs = sorted(pairs, key=lambda pair: -pair[0]["score"] * pair[1]["score"])[:top]
        found["verb+noun"] = [
            {
                "verb": verb["class"],
                "noun": noun["class"],
                "name": f"{verb['name']} {noun['name']}",
                "score": verb["score"] * noun["score"],
            }
            for verb, noun in pairs
        ]
    return found


# --- files


def row_of(prediction: Prediction) -> dict[str, Any]:
    """As json has it: fields that do not apply are left out."""
    return {key: value for key, value in asdict(prediction).items() if value is not None}


def write_json(path: str | Path, about: Mapping[str, Any], rows: Sequence[Prediction]) -> None:
    """{"about": ..., "predictions": [...]}; written whole or not at all."""
    content = {"about": dict(about), "predictions": [row_of(row) for row in rows]}
    with replacing(path) as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")


def write_csv(path: str | Path, rows: Sequence[Prediction]) -> None:
    """video,id,start_seconds,stop_seconds,tau_a,action_seconds,task,rank,class,name,score: a line for each class."""
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["video", "id", "start_seconds", "stop_seconds", "tau_a", "action_seconds", "seen_fraction", "task", "rank",
             "class", "name", "score"]
        )  # fmt: skip
        for row in rows:
            own = [row.video, row.id, row.start_seconds, row.stop_seconds, row.tau_a, row.action_seconds,
                   row.seen_fraction]  # fmt: skip
            for task, classes in row.top.items():
                for rank, each in enumerate(classes):
                    number = each["class"] if "class" in each else f"{each['verb']},{each['noun']}"
                    cells = [*own, task, rank + 1, number, each["name"], repr(each["score"])]
                    writer.writerow(["" if cell is None else cell for cell in cells])


def line_of(prediction: Prediction) -> str:
    """One line for people: the best action, or the best class of each task."""
    span = f"[{prediction.start_seconds:8.2f}, {prediction.stop_seconds:8.2f}) s"
    if prediction.action_seconds is not None:
        span += f" -> {prediction.action_seconds:.2f} s"
    if prediction.seen_fraction is not None:
        span += f" ({100 * prediction.seen_fraction:g} % seen)"
    shown = [task for task in ("action", "verb+noun") if task in prediction.top] or list(prediction.top)
    words = []
    for task in shown:
        words.append(", ".join(f"{each['name']} {each['score']:.2f}" for each in prediction.top[task][:3]))
    return f"{span}  {'; '.join(words)}"
