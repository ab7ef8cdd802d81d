"""From a recipe to datasets and a model: the only place where pipeline, backbones and fusion meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ..backbones import Backbone, InputSpec, create_backbone
from ..fusion import create_head, freeze_all_but_classifier
from ..pipeline.clip_spec import Augmentation, FeatureSpec, StreamSpec
from ..pipeline.datasets.contract import Dataset, load_dataset
from ..pipeline.features import FeatureStore
from ..pipeline.protocols import Anticipation, EarlyRecognition, Recognition, Sampling, Task
from ..pipeline.samples import SegmentDataset
from ..pipeline.sampling import draw
from .drawn import DrawnTasks
from .model import WEIGHTS, ActionModel, find_model, head_classes
from .recipe import Recipe, StreamRecipe, TaskRecipe
from .rgbd import JoinDepth
from .settings import check_settings

_SHARE = 7  # the part of the draw that chooses `data.share`


def load_split(recipe: Recipe, split: str) -> Dataset:
    """A split of the recipe's dataset with the tasks that are predicted.

    Segments without a label of any of them stay in tests and leave training. Tests keep the labels of what consists of
    these tasks as well (an action is scored by its verb and noun), and of what these consist of (verbs by actions).
    """
    data = recipe.data
    dataset = load_dataset(data.dataset, data.root, split, **data.options)
    tasks = data.tasks or list(dataset.classes)
    if unknown := [task for task in tasks if task not in dataset.classes]:
        raise ValueError(
            f"data.tasks names {', '.join(unknown)}; {dataset.name} has {', '.join(dataset.classes) or 'no classes'}"
        )
    segments = dataset.segments
    if split == data.train:
        segments = tuple(s for s in segments if any(task in s.labels for task in tasks))
        if data.share < 1:
            count = round(data.share * len(segments))
            chosen = draw(recipe.run.seed, 0, 0, _SHARE).permutation(len(segments))[:count]
            segments = tuple(segments[i] for i in np.sort(chosen))
    if data.limit is not None:
        segments = segments[: data.limit]
    if not segments:
        raise ValueError(f"the split {split!r} of {dataset.name} in {data.root} has no segments for {', '.join(tasks)}")
    wholes = [whole for whole, parts in dataset.parts.items() if whole not in tasks and set(parts) <= set(tasks)]
    owned = [part for whole in tasks for part in dataset.parts.get(whole, {})]
    kept = tasks if split == data.train else [*dict.fromkeys([*tasks, *wholes, *owned])]
    segments = tuple(replace(s, labels={t: s.labels[t] for t in kept if t in s.labels}) for s in segments)
    return replace(dataset, segments=segments, classes={task: dataset.classes[task] for task in tasks})


def build_model(recipe: Recipe, classes: Mapping[str, tuple[str, ...]]) -> ActionModel:
    """The recipe's model with the weights that it names, ready to train; random parts depend on the seed alone.

    Raises: ValueError for settings that contradict each other or would do nothing (settings.py), among others.
    """
    check_settings(recipe, classes)
    transition, last = recipe.head.transition, recipe.loss.last_action
    if transition and not last:
        raise ValueError("head.transition leads on from what was seen last: let loss.last_action teach that, such as 1")
    second = last > 0 and not transition
    state = torch.random.get_rng_state()
    torch.manual_seed(recipe.run.seed)
    try:
        backbones, widths = {}, {}
        for stream, each in recipe.streams.items():
            backbone = _backbone(stream, each) if recipe.inputs == "pixels" else None
            if backbone is not None:
                backbones[stream] = backbone
            widths[stream] = backbone.feature_dim if backbone is not None else feature_width(recipe, stream)
        head = create_head(
            recipe.head.name,
            streams=widths,
            classes=head_classes({task: len(names) for task, names in classes.items()}, second),
            **recipe.head.options,
        )
    finally:
        torch.random.set_rng_state(state)
    model = ActionModel(backbones, head, classes, transition=transition)
    anew: set[str] = set()
    if recipe.head.freeze_all_but_classifier:
        anew = {f"head.{name}" for name in freeze_all_but_classifier(head)}
        model.freeze(*backbones)
    if recipe.init_from is not None:
        for path in [recipe.init_from] if isinstance(recipe.init_from, str) else recipe.init_from:
            init_from(model, Path(path), but=anew)
    for stream, each in recipe.streams.items():
        if stream in model.backbones:
            _freeze(model, stream, each)
    return model.train()


def _backbone(stream: str, each: StreamRecipe) -> Backbone:
    if each.backbone is None:
        raise ValueError(
            f"streams.{stream}.backbone is not set, but inputs is pixels; name one, or set inputs=features"
        )
    weights = None if each.weights == "random" else each.weights
    eats: Any = each.options.get("stream", "rgb" if each.clip.colour_map else stream)
    options = {key: value for key, value in each.options.items() if key != "stream"}
    backbone = create_backbone(each.backbone, weights=weights, stream=eats, **options)
    if backbone.num_classes:
        backbone.reset_classifier(0)  # a classifier that nobody asks has no gradient
    return backbone


def features_folder(recipe: Recipe, stream: str) -> Path:
    """The store of a stream's features, `{root}` replaced."""
    folder = recipe.streams[stream].features
    if folder is None:
        raise ValueError(f"streams.{stream}.features is not set, but inputs is features; name a store's folder")
    return Path(folder.replace("{root}", recipe.data.root))


def feature_width(recipe: Recipe, stream: str) -> int:
    """How wide the stored features of a stream are, by the recipe or by the store."""
    width = recipe.streams[stream].feature_dim
    if width is not None:
        return width
    folder = features_folder(recipe, stream)
    store = FeatureStore.open(folder)
    for key in store.keys():
        return int(store.read(key).data.shape[1])
    raise ValueError(f"the store {folder} of streams.{stream} is empty; extract its features first")


def _freeze(model: ActionModel, stream: str, each: StreamRecipe) -> None:
    backbone: Any = model.backbones[stream]
    if each.checkpointing:
        backbone.set_grad_checkpointing(True)
    if each.partial_bn:
        model.partial_bn(stream)
    if each.freeze_stages:
        model.freeze_stages(stream, each.freeze_stages)
    if each.freeze:
        model.freeze(stream)


def init_from(model: ActionModel, path: Path, but: Collection[str] = ()) -> list[str]:
    """Weights of another run or file, where names and shapes agree; returns what the file has not, which starts anew.

    but: names that start anew whatever the file has.

    Raises: ValueError where nothing fits: that is the wrong file.
    """
    try:
        file = path if path.is_file() else find_model(path) / WEIGHTS
    except ValueError as error:
        raise ValueError(f"init_from: {error}; train that stage first, or name where its run lies") from None
    given, own = load_file(file), model.state_dict()
    wanted = {key: value.shape for key, value in own.items() if key not in but}
    fitting = {key: value for key, value in given.items() if wanted.get(key) == value.shape}
    if not fitting:
        raise ValueError(f"init_from: nothing of {file} fits this model; it holds {', '.join(list(given)[:4])}, ...")
    model.load_state_dict(fitting, strict=False)
    return [key for key in own if key not in fitting]


def make_task(task: TaskRecipe) -> Task:
    """The observation that training uses."""
    if task.kind == "anticipation":
        return Anticipation(tau_a=task.tau_a, tau_o=task.tau_o)
    return EarlyRecognition(fraction=task.fraction) if task.kind == "early_recognition" else Recognition()


def train_tasks(task: TaskRecipe) -> tuple[Task, ...]:
    """What each sample of training draws from: `train_tau_a`, or the one of `make_task`.

    Raises: ValueError where train_tau_a is given and nothing is anticipated.
    """
    if not task.train_tau_a:
        return (make_task(task),)
    if task.kind != "anticipation":
        raise ValueError(f"task.train_tau_a is for anticipation, but task.kind is {task.kind}: leave it out")
    return tuple(Anticipation(tau_a=tau_a, tau_o=task.tau_o) for tau_a in task.train_tau_a)


def test_tasks(task: TaskRecipe) -> dict[str, Task]:
    """name -> observation that is tested: "" is the training one, others are `tau_a=0.5` and `fraction=0.25`."""
    found: dict[str, Task] = {"": make_task(task)}
    if task.kind == "anticipation":
        found |= {f"tau_a={t:g}": Anticipation(tau_a=t, tau_o=task.tau_o) for t in task.test_tau_a}
    if task.kind == "early_recognition":
        found |= {f"fraction={f:g}": EarlyRecognition(fraction=f) for f in task.test_fractions}
    return found


def stream_specs(recipe: Recipe, specs: Mapping[str, InputSpec]) -> list[StreamSpec | FeatureSpec]:
    """What a sample holds of each stream. specs: of the streams that have a backbone."""
    found: list[StreamSpec | FeatureSpec] = []
    for stream, each in recipe.streams.items():
        clip = each.clip
        fps = None if clip.fps == "native" else clip.fps
        if stream not in specs:
            store = features_folder(recipe, stream)
            found.append(FeatureSpec(stream=stream, store=store, frames=clip.frames, fps=fps, key=each.key))
            continue
        spec = specs[stream]
        if clip.inverse_depth is not None and spec.stream != "rgbd":
            raise ValueError(f"streams.{stream}.clip.inverse_depth is for rgbd, but the backbone eats {spec.stream}")
        crop = clip.crop or spec.crop
        kind: Any = "rgb" if spec.stream == "rgbd" else spec.stream
        if clip.colour_map is not None:
            if spec.stream != "rgb":
                raise ValueError(f"streams.{stream}.clip.colour_map gives rgb, but the backbone eats {spec.stream}")
            kind = stream  # depth or ir, which StreamSpec checks
        made = StreamSpec(
            stream=kind,
            frames=clip.frames or spec.frames,
            fps=spec.fps if clip.fps is None else fps,
            resize_side=max(clip.side or spec.resize_side, crop),
            crop=crop,
            interpolation=spec.interpolation,
            flow_stack=spec.flow_stack,
            flow_method=clip.flow_method,
            flow_weights=clip.flow_weights,
            audio_preset=clip.audio_preset,
            colour_map=clip.colour_map,
            depth_range=clip.depth_range,
        )
        # files of their own, read at the same times and cut alike: samples join them (train/rgbd.py)
        found += [made, replace(made, stream="depth")] if spec.stream == "rgbd" else [made]
    return found


def build_dataset(
    recipe: Recipe, split: Dataset, model: ActionModel, task: Task, *, training: bool, num_crops: int | None = None
) -> SegmentDataset:
    """Samples of a split as the model eats them. task: of tests; training draws from `train_tasks`."""
    places, augment = recipe.sampling, recipe.augment
    specs = stream_specs(recipe, model.input_specs)
    joined = [stream for stream, spec in model.input_specs.items() if spec.stream == "rgbd"]
    if joined and len({spec.stream for spec in specs}) < len(specs):
        raise ValueError(
            f"streams.{joined[0]} takes rgb and depth for its rgbd backbone: leave other streams of rgb or depth out"
        )
    pixels = any(isinstance(spec, StreamSpec) and spec.stream != "audio" for spec in specs)
    augmentation = None
    if training and pixels:
        fields = asdict(augment)
        augmentation = Augmentation(**{k: v for k, v in fields.items() if k not in ("erasing", "mixup", "repeats")})
    crops: Any = 1 if training or not pixels else num_crops or places.test_crops
    drawn = train_tasks(recipe.task) if training else ()
    make: Any = partial(DrawnTasks, tasks=drawn) if len(drawn) > 1 else partial(SegmentDataset, task=(*drawn, task)[0])
    return make(
        split,
        specs,
        sampling=Sampling(
            rule=places.rule,
            stride_frames=places.stride_frames,
            num_clips=places.num_clips,
            window_frames=places.window_frames,
            alpha=places.alpha,
        ),
        training=training,
        augmentation=augmentation,
        num_crops=crops,
        seed=recipe.run.seed,
        past_labels=training and max(recipe.loss.past, recipe.loss.last_action) > 0,
        instances=recipe.head.options.get("instances", 4) if model.head.needs_boxes else 0,
        decoder=recipe.data.decoder,
        transform=JoinDepth(joined[0], recipe.streams[joined[0]].clip.inverse_depth) if joined else None,
    )
