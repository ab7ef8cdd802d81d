"""Recipes: everything that decides a training run, as one YAML file with typed fields.

    actionfuse train mif_parallel_ek55 data.root=/data/EPIC-55 optim.lr=0.005

A recipe is a name (a file of train/recipes/ without its `.yaml`) or a path. `key.path=value` changes one field; the
value is YAML. An unknown key, a missing one or a value of the wrong type is a ValueError that names file, dotted path
and, for a key, the nearest one. The resolved recipe is written beside the run, where the same file starts it again.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

FOLDER = Path(__file__).parent / "recipes"
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
_UNION_MEMBER = re.compile(r"(constrained-)?(int|float|str|bool)|.+\]")  # in the paths of pydantic's errors


@dataclass(config=STRICT, frozen=True, kw_only=True)
class About:
    """What the recipe reproduces. For people; nothing here changes the run.

    paper, row: what and which table and row. expected: name of a result -> the paper's number, a fraction as results
    are. hardware: what the paper, or whoever measured, used. deviations: where this recipe differs from the paper, or
    had to choose, one sentence each.
    """

    paper: str = ""
    row: str = ""
    expected: dict[str, float] = field(default_factory=dict)
    hardware: str = ""
    deviations: list[str] = field(default_factory=list)


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Data:
    """dataset: a registered name. root: its folder. train, test: its splits. options: the dataset's own.

    tasks: labels to predict; none = all that the dataset has classes for.
    share: of the training segments, drawn with the seed (MIMO: 0.25). limit: at most so many of each split.
    max_broken_share: of an epoch's segments that may fail to decode before the run stops.
    """

    dataset: str
    root: str
    train: str = "train"
    test: str = "validation"
    options: dict[str, Any] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    limit: Count | None = None
    max_broken_share: Share = 0.05
    decoder: str = "auto"


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TaskRecipe:
    """What is observed of a segment; see pipeline/protocols.py.

    tau_a, tau_o: seconds, for anticipation. fraction: of the segment, for early recognition.
    train_tau_a: training draws one of them for each sample, instead of tau_a; none = tau_a.
    test_tau_a, test_fractions: what evaluation goes through beside it.
    """

    kind: Literal["recognition", "early_recognition", "anticipation"] = "recognition"
    tau_a: Amount = 1.0
    tau_o: Positive = 10.0
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    train_tau_a: list[float] = field(default_factory=list)
    test_tau_a: list[float] = field(default_factory=list)
    test_fractions: list[float] = field(default_factory=list)


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Places:
    """Where in an observation the entries of a clip lie: pipeline/protocols.py, Sampling, says what each means.

    test_crops: squares of a frame that tests look at, 1 or 3.
    """

    rule: str = "segments"
    stride_frames: Count = 1
    num_clips: Count = 1
    window_frames: Count = 64
    alpha: Positive = 0.25
    test_crops: Literal[1, 3] = 1


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Clip:
    """How a stream's clip is cut; None = what the backbone's input spec says.

    frames: entries of a clip. fps: entries a second, "native" = every frame. side, crop: pixels.
    flow_method: of pipeline/flow.py; raft_small and raft_large are computed on the model's device and need
    flow_weights, the path of a torchvision state dict or "pretrained".
    colour_map: "jet" makes three channels of depth or ir, for a backbone that eats rgb.
    depth_range: [near, far] in the numbers of the depth files (millimetres, as a rule) that fill the scale 1..255; None
        = files of 8 bits as they are, of 16 bits all 65536 numbers on 0..255.
    inverse_depth: for a backbone that eats rgbd and depth of 16 bits: what is divided by a number of the depth files,
        the sensor's baseline in metres x focal length in pixels x numbers a metre (see train/rgbd.py).
    """

    frames: Count | None = None
    fps: Positive | Literal["native"] | None = None
    side: Count | None = None
    crop: Count | None = None
    flow_method: str = "dis_fast"
    flow_weights: str | None = None
    audio_preset: str = "tbn"
    colour_map: Literal["jet"] | None = None
    depth_range: tuple[float, float] | None = None
    inverse_depth: float | None = None


@dataclass(config=STRICT, frozen=True, kw_only=True)
class StreamRecipe:
    """One stream: a backbone on pixels, stored features, or both, of which `Recipe.inputs` then takes one.

    weights: path, "pretrained", "bundled", "random". freeze: the whole backbone is left as it is and in eval mode.
    freeze_stages: so many of its first stages. partial_bn: batch norms keep their statistics, but for the first.
    lr_scale: times the learning rate. layer_decay: the learning rate of each stage before the last, times this.
    checkpointing: activations are computed twice instead of kept.
    features: folder of a feature store, where {root} stands for `Data.root`; feature_dim: their width, needed where no
    backbone is named. key: the store's key of a segment's video, a format string that may use {video}, {id} and what
    `Segment.extra` holds.
    """

    backbone: str | None = None
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    freeze: bool = False
    freeze_stages: Annotated[int, Field(ge=0)] = 0
    partial_bn: bool = False
    lr_scale: Amount = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    checkpointing: bool = False
    features: str | None = None
    feature_dim: Count | None = None
    key: str = "{video}"
    clip: Clip = field(default_factory=Clip)


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Head:
    """name: a registered head. options: its own.

    freeze_all_but_classifier: the head learns nothing but its last layers, which start anew, and the backbones learn
        nothing and stay in eval mode: the second stage of few-shot transfer, after `Recipe.init_from`.
    transition: for anticipation: the head names what was seen last, which `Loss.last_action` teaches it, and a learned
        table of what follows what leads from there to what comes next (train/transition.py).
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    freeze_all_but_classifier: bool = False
    transition: bool = False


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Augment:
    """Of training clips: the fields up to rand_augment are those of pipeline/clip_spec.py, Augmentation. All streams
    and boxes of a clip get the same geometry.

    repeats: clips drawn from a segment each time it comes (repeated augmentation).
    mixup: alpha of the beta distribution, 0 = none. erasing: how likely a clip loses a box of pixels.
    """

    crop: Literal["random_resized", "multi_scale", "scale_jitter", "centre"] = "random_resized"
    area: tuple[float, float] = (0.25, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    short_side: tuple[int, int] = (256, 320)
    flip: Share = 0.5
    colour_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    grey: Share = 0.0
    rand_augment: tuple[int, int] | None = None
    erasing: Share = 0.0
    mixup: Amount = 0.0
    repeats: Count = 1


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Optim:
    """batch: segments per optimiser step over all processes and accumulation; it does not change with their number.

    lr: for `lr_batch` segments a step; used is lr * batch / lr_batch (the linear rule of Goyal et al., 2017). lr_batch
        None: lr as it is, whatever the batch: Adam's are not scaled (M-Mixer's has one rate for 8 and for 32).
    schedule: "constant", "cosine" to `min_lr`, or "step": times `gamma` at each of `milestones` (epochs).
    warmup_epochs: linear from 0. clip_norm: of the gradient, 0 = none. ema: decay of the averaged weights, 0 = none.
    no_decay_norms: no weight decay on norms and biases. label_smoothing: for all tasks, or task -> amount.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.01
    batch: Count = 32
    lr_batch: Count | None = None
    momentum: Share = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Amount = 0.0
    no_decay_norms: bool = False
    schedule: Literal["constant", "cosine", "step"] = "constant"
    milestones: list[float] = field(default_factory=list)
    gamma: Positive = 0.1
    min_lr: Amount = 0.0
    warmup_epochs: Amount = 0.0
    clip_norm: Amount = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_smoothing: Share | dict[str, Share] = 0.0


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Distance:
    """Distance-weighted sampling (Wu et al., ICCV 2017; train/distance.py): epochs come in groups of `per_class`
    segments of a class, and a margin loss on their mean features has its negatives drawn by distance.

    weight: of that loss beside the tasks'; 0 = none of it. task: whose classes; "" = the first.
    margin, boundary, cutoff: alpha, beta and the least distance that counts, of features of length 1.
    """

    weight: Amount = 0.0
    task: str = ""
    per_class: Count = 4
    margin: float = 0.2
    boundary: float = 1.2
    cutoff: float = 0.5


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Loss:
    """kind: "cross_entropy", or "bce" where several classes hold at once. weights: task -> factor.

    past: weight of what was done at each observed step (AVT's past labels, pipeline/past_labels.py); 0 = left out. It
        needs task.kind anticipation and a head that reports `auxiliary["past/..."]` (afft_* with options.past).
    last_action: weight of naming what was seen last, too: the label of the latest observed step that has one. The head
        gets a second classifier for each task, which is left out in tests; with `Head.transition` it is all that the
        head learns. For any head that anticipates.
    balance: "none", "class" (segments drawn so that classes are equally likely), or "loss" (cross-entropy weighted by
        1 / frequency, what holds for "bce"; the mean of a loss is over the segments computed at a time, by their
        weights). balance_task: whose classes.
    distance: distance-weighted sampling of pairs, instead of balance "class".
    """

    kind: Literal["cross_entropy", "bce"] = "cross_entropy"
    weights: dict[str, Amount] = field(default_factory=dict)
    past: Amount = 0.0
    last_action: Amount = 0.0
    balance: Literal["none", "class", "loss"] = "none"
    balance_task: str = ""
    distance: Distance = field(default_factory=Distance)


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Run:
    """epochs; seed of every draw; workers: decode processes per training process.

    micro_batch: segments a process computes at a time; the rest of `optim.batch` is accumulated. None: all at once.
    precision: of autocast. save_minutes, save_steps: how often a checkpoint is written besides after each epoch.
    keep: checkpoints kept beside the best. monitor: metric that "best" means; higher is better.
    shard: weights, gradients and optimiser state are shared out over the processes (FSDP2) instead of copied (DDP).
    compile: the step by torch.compile; its dropout draws others than without. Tried on CPUs, alone and in two processes
        with copies and with shards; not on GPUs.
    sync_bn: batch norms measure over all processes; on GPUs alone.
    test_every: epochs. trackers: Accelerate's ("tensorboard", "wandb", ...), beside metrics.jsonl, which is always
        written. They get the recipe as a text, losses and learning rate by step, and results of tests; TensorBoard's
        files lie in RUN/actionfuse.
    """

    epochs: Count = 30
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 2
    micro_batch: Count | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    sync_bn: bool = False
    shard: bool = False
    save_minutes: Positive = 10.0
    save_steps: Count | None = None
    keep: Count = 2
    monitor: str = ""
    test_every: Count = 1
    trackers: list[str] = field(default_factory=list)


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Recipe:
    """One training run. inputs: "pixels" through the streams' backbones, or their stored "features".

    streams: name -> how it is made; the order is the head's. init_from: a run or a file of weights to begin from
    (stages of two- and three-stage recipes), or several, each of which gives what it has (RULSTM's branches to their
    fusion); what the model has and the files lack starts anew.
    """

    name: str = ""
    about: About = field(default_factory=About)
    data: Data
    task: TaskRecipe = field(default_factory=TaskRecipe)
    sampling: Places = field(default_factory=Places)
    inputs: Literal["pixels", "features"] = "pixels"
    streams: dict[str, StreamRecipe]
    head: Head
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    loss: Loss = field(default_factory=Loss)
    run: Run = field(default_factory=Run)
    init_from: str | list[str] | None = None


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe. Raises ValueError that suggests near names."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ValueError(
            f"there is no recipe {path}; write a path to a .yaml file or one of {', '.join(list_recipes())}"
        )
    named = FOLDER / f"{name_or_path}.yaml"
    if named.is_file():
        return named
    near = get_close_matches(str(name_or_path), list_recipes(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(list_recipes())}"
    raise ValueError(f"no recipe is named {str(name_or_path)!r}; {hint} (or write a path that ends in .yaml)")


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and change fields: `load_recipe("kitchen_mimo", ["optim.lr=0.01", "streams.rgb.freeze=true"])`.

    Raises: ValueError for an unknown recipe, key or value.
    """
    path = find_recipe(name_or_path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; a recipe is a mapping with the keys {_keys(Recipe)}")
    content.setdefault("name", path.stem)
    overrides = list(overrides)
    for override in overrides:
        _apply(content, override)
    return recipe_of(content, " ".join([str(path), *(["with", *overrides] if overrides else [])]))


def recipe_of(content: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe of plain dictionaries. where: what errors call it. Raises ValueError that lists all that is wrong."""
    try:
        return TypeAdapter(Recipe).validate_python(dict(content))
    except ValidationError as error:
        problems: dict[str, dict[str, None]] = {}  # what a field may be either of is told once
        for problem in error.errors():
            told, _, reason = _explain(problem).partition(": ")
            problems.setdefault(told, {})[reason] = None
        lines = [f"{told}{': ' if any(reasons) else ''}{', or '.join(reasons)}" for told, reasons in problems.items()]
        raise ValueError(f"{where}: " + "; ".join(lines)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The YAML that `load_recipe` reads back equal, every field written out."""
    return yaml.safe_dump(_plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True, width=120)  # pyright: ignore[reportArgumentType]


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} changes nothing; write key.path=value, such as optim.lr=0.01")
    *parents, last = key.split(".")
    place = content
    for name in parents:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{override!r}: {name} is {inner!r}, which holds no keys")
        place = inner
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"{override!r}: the value is no YAML; quote it") from None


def _explain(problem: Any) -> str:
    path = [str(part) for part in problem["loc"] if not _UNION_MEMBER.fullmatch(str(part))]
    dotted = ".".join(path)
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        allowed = _fields_at(path[:-1])
        near = get_close_matches(path[-1], allowed, n=1)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"there are {', '.join(allowed)}"
        return f"{dotted} is unknown; {hint}"
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{dotted} is missing"
    if problem["type"] == "dataclass_type":
        return f"{dotted} is {problem['input']!r}; it is a mapping with the keys {', '.join(_fields_at(path))}"
    return f"{dotted} is {problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _fields_at(path: list[str]) -> list[str]:
    """Keys that may stand at a dotted path of a recipe."""
    kind: Any = Recipe
    for name in path:
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(name)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            kind = next((part for part in typing.get_args(kind) if dataclasses.is_dataclass(part)), None)
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _keys(kind: Any) -> str:
    return ", ".join(f.name for f in dataclasses.fields(kind))


def _plain(value: Any) -> Any:
    """Tuples as lists: YAML's safe form knows no tuples."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
