"""Extraction from Python: the same engine as the command, results in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ..backbones import Backbone
from ..pipeline.features import Features
from ..pipeline.inputs import find_videos
from ..pipeline.sampling import LastClip
from ..pipeline.types import BoxTracks
from .engine import Engine
from .events import Failed, Finished
from .passes import decode_passes, in_order
from .plan import num_workers
from .runner import Runner
from .settings import (
    DEFAULT_BACKBONE,
    Settings,
    batch_clips,
    build_runners,
    default_compute_threads,
    pick_device,
    wrap,
)
from .sinks import MemorySink


def extract_features(
    paths: str | Path | Iterable[str | Path],
    *,
    backbone: str | Backbone | Sequence[str] = DEFAULT_BACKBONE,
    weights: str | Sequence[str] = "auto",
    streams: str | Sequence[str] = "rgb",
    fps: float | str | None = None,
    clip_frames: int | None = None,
    clip_stride: int | None = None,
    side: int | None = None,
    crop: int | None = None,
    last_clip: LastClip = "pad",
    flow_method: str | None = None,
    flow_weights: str | None = None,
    flow_stack: int | None = None,
    audio_preset: str = "tbn",
    depth_range: tuple[float, float] | None = None,
    pool: str = "clip",
    layer: str | None = None,
    top: int = 0,
    boxes: dict[str, BoxTracks] | None = None,
    instances: int = 4,
    precision: str = "fp32",
    device: str = "auto",
    batch: int | None = None,
    workers: int | None = None,
    decoder: str = "auto",
    frame_fps: float = 30.0,
    root: str | Path | None = None,
    timeout_seconds: float = 60.0,
    on_error: str = "raise",
) -> Iterator[tuple[str, dict[str, Features]]]:
    """Features of videos, one video after the other as they get ready (the order is not that of the paths).

    paths: files, folders, lists, csv of segments; see `pipeline.inputs.find_videos`.
    backbone: names, or a Backbone that is already built: then `weights`, `streams` and `flow_stack` are its own. It is
        moved to the device and put into eval mode.
    boxes: tracks of the whole videos, by key; see `pipeline.boxes.read_box_file`.
    The other options are those of `actionfuse extract`; see `Settings`.
    on_error: "raise" ends with a ValueError at the first video that cannot be read; "warn" warns and goes on.

    Yields: (key, {output name: Features(data (N, ...), start_seconds (N,), stop_seconds (N,), metadata)}).
    """
    if on_error not in ("raise", "warn"):
        raise ValueError(f"on_error is {on_error!r}; it is 'raise' or 'warn'")
    names: tuple[str, ...]
    if isinstance(backbone, Backbone):
        names = (backbone.name or type(backbone).__name__,)
    else:
        names = (backbone,) if isinstance(backbone, str) else tuple(backbone)
    settings = Settings(
        backbones=names,
        streams=(streams,) if isinstance(streams, str) else tuple(streams),
        weights=(weights,) if isinstance(weights, str) else tuple(weights),
        fps=fps,
        clip_frames=clip_frames,
        clip_stride=clip_stride,
        side=side,
        crop=crop,
        last_clip=last_clip,
        flow_method=flow_method,
        flow_weights=flow_weights,
        flow_stack=flow_stack,
        audio_preset=audio_preset,
        depth_range=depth_range,
        pool=pool,
        layer=layer,
        top=top,
        instances=instances if boxes else 0,
        precision=precision,
        device=device,
        frame_fps=frame_fps,
    )
    videos = in_order(find_videos(paths, root))
    if not videos:
        raise ValueError(f"no video found in {paths}")
    runners: list[Runner]
    recipes: list[dict[str, Any]]
    if isinstance(backbone, Backbone):
        runner, recipe = wrap(settings, backbone, names[0], "given", pick_device(device))
        runners, recipes = [runner], [recipe]
    else:
        runners, recipes = build_runners(settings)
    sink = MemorySink([runner.plan.name for runner in runners])
    threads, inside = default_compute_threads(runners[0].device)
    engine = Engine(
        videos,
        runners,
        sink,
        batch_clips=[batch_clips(batch, runner) for runner in runners],
        workers=min(num_workers(workers), len(list(decode_passes(videos)))),
        compute_threads=threads,
        threads_per_compute=inside,
        timeout_seconds=timeout_seconds,
        decoder=decoder,
        frame_fps=frame_fps,
        boxes=boxes,
    )
    by_name = {runner.plan.name: recipe for runner, recipe in zip(runners, recipes, strict=True)}
    try:
        with closing(engine.run()) as events:
            for event in events:
                if isinstance(event, Finished):
                    found = sink.pop(event.key)
                    for name, features in found.items():
                        features.metadata["recipe"] = by_name[name.removesuffix("-roi")]
                    yield event.key, found
                elif isinstance(event, Failed):
                    sink.pop(event.key)
                    reason = f"{event.path}: {event.reason}"
                    if on_error == "raise":
                        raise ValueError(f"{reason}; on_error='warn' goes on with the others")
                    warnings.warn(reason, stacklevel=2)
    finally:
        for runner in runners:
            runner.close()
