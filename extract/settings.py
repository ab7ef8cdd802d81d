"""What a user asks of an extraction, and the runners and recipes it becomes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..backbones import Backbone, create_backbone
from ..backbones.own import read_header
from ..pipeline.flow import FlowComputer, default_method
from ..pipeline.sampling import LastClip
from .plan import ClipPlan, cores
from .runner import Runner

DEFAULT_BACKBONE = "tsn:tf_efficientnet_lite0"
BUNDLED = {DEFAULT_BACKBONE}
WORDS = ("auto", "bundled", "pretrained", "random")
STREAMS = ("rgb", "flow", "audio", "depth", "ir")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of an extraction. None = what the backbone's input spec says.

    backbones: names, or `name@stream` to tie one to a stream. streams: each backbone runs on each of them.
    weights: one for all backbones or one for each: a path, "pretrained", "bundled", "random" (seeded), or "auto".
    fps: entries a second, "native" for every frame.
    clip_frames: entries per clip. clip_stride: entries from one clip's start to the next one's; None = clip_frames.
    side: shorter side in pixels to which frames are scaled. crop: side of the middle square that is taken.
    flow_method, flow_weights: as in `pipeline.flow.FlowComputer`; None = raft_small where weights are given, else
        dis_fast.
    depth_range: (near, far) in the depth files' own numbers, as the model was trained (`StreamSpec.depth_range`).
    frame_fps: how fast the frames of folders and tars of frames run.
    """

    backbones: tuple[str, ...] = (DEFAULT_BACKBONE,)
    streams: tuple[str, ...] = ("rgb",)
    weights: tuple[str, ...] = ("auto",)
    fps: float | str | None = None
    clip_frames: int | None = None
    clip_stride: int | None = None
    side: int | None = None
    crop: int | None = None
    last_clip: LastClip = "pad"
    flow_method: str | None = None
    flow_weights: str | None = None
    flow_stack: int | None = None
    audio_preset: str = "tbn"
    pool: str = "clip"
    layer: str | None = None
    top: int = 0
    instances: int = 0
    precision: str = "fp32"
    device: str = "auto"
    frame_fps: float = 30.0
    depth_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not (self.frame_fps > 0 and math.isfinite(self.frame_fps)):
            raise ValueError(f"frame fps is {self.frame_fps}; it must be a positive number of frames a second")
        if self.top < 0:
            raise ValueError(f"top is {self.top}; it is how many classes to keep, 0 for none")
        if self.instances < 0:
            raise ValueError(f"instances is {self.instances}; it is how many boxes a clip has room for")


def pick_device(name: str) -> torch.device:
    """ "auto" is the GPU of this process where there is one, else the CPU; "cuda" is the GPU of this process."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; write auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"device is {name!r}, but this torch ({torch.__version__}) sees no GPU; write --device cpu"
            )
        count = torch.cuda.device_count()
        if device.index is None:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % count)
        if device.index >= count:
            raise ValueError(f"device is {name!r}, but there are {count} GPUs, counted from cuda:0")
    return device


def pairs(settings: Settings) -> list[tuple[str, str, str]]:
    """(backbone, stream, weights) of each output, in order."""
    weights = settings.weights or ("auto",)
    if len(weights) == 1:
        weights = weights * len(settings.backbones)
    if len(weights) != len(settings.backbones):
        raise ValueError(
            f"{len(weights)} weights were given for {len(settings.backbones)} backbones; "
            "give one for all or one for each, in order"
        )
    found: list[tuple[str, str, str]] = []
    for entry, source in zip(settings.backbones, weights, strict=True):
        name, _, tied = entry.partition("@")
        for stream in (tied,) if tied else settings.streams:
            if stream not in STREAMS:
                raise ValueError(
                    f"stream {stream!r} cannot be extracted from a video file; there are {', '.join(STREAMS)}"
                )
            if (name, stream, source) not in found:
                found.append((name, stream, source))
    names = [plan_name(name, stream) for name, stream, _ in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two outputs would be called {', '.join(sorted(twice))}; extract them into two folders")
    return found


def plan_name(backbone: str, stream: str) -> str:
    """Folder of an output: `swin3d_t-rgb`, `tsn-resnet50-flow`."""
    return f"{backbone}-{stream}".replace(":", "-").replace("/", "-")


def build_backbone(
    name: str,
    stream: str,
    weights: str,
    flow_stack: int | None,
    clip_frames: int | None = None,
    crop: int | None = None,
) -> Backbone:
    """The backbone with its weights. "random" is seeded, so that a run that goes on later has the same ones.

    A file of our own says with which options its backbone was built. One that takes a single size of clips is built for
    the frames and the crop that are asked for. Raises: ValueError where its weights are of another size.
    """
    own = read_header(weights)
    options: dict[str, Any] = dict(own.options) if own is not None and own.name == name else {}
    if flow_stack is not None and stream == "flow":
        options["flow_stack"] = flow_stack
    if weights == "auto":
        weights = "bundled" if name in BUNDLED else "pretrained"
    backbone = _create(name, stream, weights, options)
    spec = backbone.input_spec
    frames, side = clip_frames or spec.frames, spec.crop if stream == "audio" else crop or spec.crop
    if not _fits(backbone, frames, side, side):
        size = {"crop": side} if backbone.frame_by_frame else {"frames": frames, "crop": side}
        try:
            backbone = _create(name, stream, weights, options | size)
        except ValueError as error:
            own_size, options_out, asked = f"{spec.crop} x {spec.crop} pixels", "--crop", f"{side} x {side}"
            if not backbone.frame_by_frame:
                own_size, asked = f"{spec.frames} frames of {own_size}", f"{frames} of {asked}"
                options_out = "--clip-frames and --crop"
            raise ValueError(
                f"{name} with these weights takes {own_size} only; leave {options_out} out. Built for {asked}: {error}"
            ) from error
    return backbone


def _create(name: str, stream: str, weights: str, options: dict[str, Any]) -> Backbone:
    if weights == "random":
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        try:
            return create_backbone(name, stream=stream, **options)  # pyright: ignore[reportArgumentType]
        finally:
            torch.random.set_rng_state(state)
    return create_backbone(name, stream=stream, weights=weights, **options)  # pyright: ignore[reportArgumentType]


def _fits(backbone: Backbone, frames: int, height: int, width: int) -> bool:
    """Whether it takes clips of this size, as far as it was built for one alone."""
    spec = backbone.input_spec
    timed = not backbone.frame_by_frame and backbone.min_size[0] == spec.frames
    same = (height, width) == (spec.crop, spec.crop) and (frames == spec.frames or not timed)
    return same or not backbone.fixed_size


def make_plan(settings: Settings, backbone: Backbone, name: str, device: torch.device) -> ClipPlan:
    """The clips that `backbone` gets, by its input spec and what the settings change of it."""
    spec = backbone.input_spec
    frames = spec.frames if settings.clip_frames is None else settings.clip_frames
    fps = spec.fps if settings.fps is None else None if settings.fps == "native" else float(settings.fps)
    crop = spec.crop if settings.crop is None else settings.crop
    side = max(spec.resize_side, crop) if settings.side is None else settings.side
    method = settings.flow_method or ("raft_small" if settings.flow_weights else "dis_fast")
    if method == "auto":
        method = default_method(str(device))
    if spec.stream == "flow" and not method.startswith("raft"):
        # a wrong name, a missing package, weights without use: told before anything runs
        FlowComputer(method, weights=settings.flow_weights)
    cells = (256, 256)
    if spec.stream == "audio":
        from ..pipeline.audio import PRESETS

        if settings.audio_preset not in PRESETS:
            raise ValueError(f"no audio preset is named {settings.audio_preset!r}; there are {', '.join(PRESETS)}")
        cells = PRESETS[settings.audio_preset].cells
    plan = ClipPlan(
        name=plan_name(name, spec.stream),
        stream=spec.stream,
        frames=frames,
        stride=frames if settings.clip_stride is None else settings.clip_stride,
        fps=fps,
        resize_side=side,
        crop=crop,
        interpolation=spec.interpolation,
        last_clip=settings.last_clip,
        flow_method=method,
        flow_stack=spec.flow_stack,
        flow_on_device=spec.stream == "flow" and method.startswith("raft"),
        audio_preset=settings.audio_preset,
        audio_cells=cells,
        instances=settings.instances if spec.stream != "audio" else 0,
        depth_range=settings.depth_range if spec.stream == "depth" else None,
    )
    height, width = cells if spec.stream == "audio" else (crop, crop)
    least = backbone.min_size
    if frames < least[0] or height < least[1] or width < least[2]:
        raise ValueError(
            f"{name}: clips of {frames} frames and {height} x {width} pixels are too small; it takes at least "
            f"{least[0]} frames of {least[1]} x {least[2]}"
        )
    if not _fits(backbone, frames, height, width):
        raise ValueError(
            f"{name} was built for clips of {spec.frames} frames of {spec.crop} x {spec.crop} pixels and cannot take "
            f"{frames} of {height} x {width}; build it for them, or leave the clip's frames and crop to it"
        )
    if type(backbone).output_size is not Backbone.output_size:
        backbone.output_size(frames, height, width)  # raises where the network cannot take this size
    return plan


def build_runners(settings: Settings) -> tuple[list[Runner], list[dict[str, Any]]]:
    """A runner and a recipe per output. A recipe's identity says what the features depend on; provenance is for the
    record.
    """
    device = pick_device(settings.device)
    chosen = {stream for _, stream, _ in pairs(settings)}
    if "flow" not in chosen and (settings.flow_method or settings.flow_weights or settings.flow_stack):
        raise ValueError("options of flow were given, but no flow is extracted: add the stream flow, or leave them out")
    if "audio" not in chosen and settings.audio_preset != Settings.audio_preset:
        raise ValueError("an audio preset was given, but no sound is extracted: add the stream audio, or leave it out")
    if "depth" not in chosen and settings.depth_range is not None:
        raise ValueError("a depth range was given, but no depth is extracted: add the stream depth, or leave it out")
    runners, recipes = [], []
    for name, stream, weights in pairs(settings):
        backbone = build_backbone(name, stream, weights, settings.flow_stack, settings.clip_frames, settings.crop)
        runner, recipe = wrap(settings, backbone, name, weights, device)
        runners.append(runner)
        recipes.append(recipe)
    return runners, recipes


def wrap(
    settings: Settings, backbone: Backbone, name: str, weights: str, device: torch.device
) -> tuple[Runner, dict[str, Any]]:
    """Runner and recipe of one backbone that is already built."""
    plan = make_plan(settings, backbone, name, device)
    # A classifier that learned from rgb says nothing about flow or sound, though its weights were adapted to them.
    top = settings.top if plan.stream == "rgb" or weights not in WORDS else 0
    flow = None
    if plan.flow_on_device:
        source = settings.flow_weights or ("pretrained" if settings.flow_method == "auto" else None)
        flow = FlowComputer(plan.flow_method, weights=source, device=str(device), precision=settings.precision)
    runner = Runner(
        plan,
        backbone,
        device=device,
        precision=settings.precision,  # pyright: ignore[reportArgumentType]
        pool=settings.pool,  # pyright: ignore[reportArgumentType]
        layer=settings.layer,
        top=top,
        roi=plan.instances > 0,
        flow=flow,
    )
    sampling = asdict(plan)
    for unused in {
        "rgb": ("flow", "audio", "depth"),
        "flow": ("audio", "depth"),
        "audio": ("flow", "depth", "resize", "crop", "interpolation"),
        "depth": ("flow", "audio", "interpolation"),
        "ir": ("flow", "audio", "depth"),
    }.get(plan.stream, ()):
        sampling = {key: value for key, value in sampling.items() if not key.startswith(unused)}
    del sampling["name"], sampling["instances"]  # see `with_boxes`
    sampling["frame_fps"] = settings.frame_fps
    if flow is not None:
        sampling["flow_weights_sha256"] = hash_weights(flow.network)
    identity = {
        "backbone": {"name": name, "options": dict(backbone.options), "weights_sha256": hash_weights(backbone)},
        "input": json.loads(json.dumps(asdict(backbone.input_spec))),
        "sampling": json.loads(json.dumps(sampling)),
        "features": {
            "pool": settings.pool,
            "layer": settings.layer,
            "top": top,
            "precision": settings.precision,
        },
    }
    return runner, {"identity": identity, "provenance": {"weights": _source_name(weights), **versions()}}


def with_boxes(recipe: dict[str, Any], boxes_sha256: str, instances: int) -> dict[str, Any]:
    """The recipe of the RoI features beside features that do not depend on boxes."""
    boxes = {"sha256": boxes_sha256, "instances": instances}
    return {**recipe, "identity": {**recipe["identity"], "boxes": boxes}}


def _source_name(weights: str) -> str:
    return weights if weights in WORDS else Path(weights).name


def hash_weights(module: torch.nn.Module) -> str:
    """sha256 over names, shapes, types and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        # numpy knows no bfloat16: look at any tensor as bytes
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the numbers went through."""
    found = {"python": platform.python_version()}
    for package in ("actionfuse", "torch", "torchvision", "timm", "av", "decord", "opencv-python-headless", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def default_compute_threads(device: torch.device) -> tuple[int, int]:
    """(threads that run batches, threads inside each).

    On a CPU many single-threaded passes side by side beat one pass with many threads: nothing waits for a barrier. On a
    GPU a second thread copies while the first computes.
    """
    if device.type != "cpu":
        return 2, 1
    inside = max(1, cores() // 8)
    return max(1, cores() // inside), inside


def batch_clips(requested: int | None, runner: Runner) -> int:
    """Clips per batch. A GPU wants many frames at a time; a CPU gains nothing by more than keep its caches busy."""
    if requested is not None:
        if requested < 1:
            raise ValueError(f"batch is {requested}; it must be at least 1 clip")
        return requested
    frames, plan = 256 if runner.device.type == "cuda" else 16, runner.plan
    clips = max(1, frames // plan.entries)
    if runner.shares_frames and runner.device.type != "cuda":
        # Clips of one batch share frames: about 64 of them that are not shared, in clips that are not many bytes.
        clips = max(clips, min(16, 1 + (64 - plan.entries) // plan.stride))
    return clips


def split_by_size(sizes: Sequence[int], shares: int) -> list[list[int]]:
    """Indices of `sizes` in `shares` lists of nearly equal sums: each next largest to the list with the least."""
    lists: list[list[int]] = [[] for _ in range(shares)]
    sums = [0] * shares
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = sums.index(min(sums))
        lists[least].append(index)
        sums[least] += max(1, sizes[index])
    return lists
