"""The model side of one plan: a batch of clips to rows of features, on one device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import Backbone, pool_clip, pool_space
from ..backbones.contract import channels_last
from ..backbones.roi import roi_features
from ..pipeline.flow import FlowComputer, quantise
from .plan import ClipPlan

Pool = Literal["clip", "space", "none"]
Precision = Literal["fp32", "bf16", "fp16"]
FRAMES_AT_ONCE = (16, 128)  # at most, on a CPU and on a GPU, of frames that are computed once for all clips
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Batch:
    """Clips of one plan. clips (B, T, H, W, C); boxes (B, T, N, 4) and present (B, T, N) or None.

    real_entries: int (B,), how many of the T the video gave; the others repeat the last one. None: all.
    before: int, the place in the batch of the clip that comes before each in its video, -1 where it is not there; clips
        behind those that it names fill the batch up and are of no interest. None: not known.
    """

    clips: np.ndarray
    boxes: np.ndarray | None = None
    present: np.ndarray | None = None
    real_entries: np.ndarray | None = None
    before: np.ndarray | None = None

    def __getitem__(self, part: slice) -> Batch:
        """Some of the clips; which comes before which is forgotten."""
        arrays = (self.clips, self.boxes, self.present, self.real_entries)
        return Batch(*(None if array is None else array[part] for array in arrays))  # pyright: ignore[reportArgumentType]


class Runner:
    """Runs `backbone` on batches of `plan`.

    pool: "clip" (D), "space" (T', D) or "none" (D, T', H', W') per clip.
    layer: name of a sub-module whose output is taken instead of the backbone's map.
    top: how many predicted classes per clip to keep, of each task that the backbone classifies; 0 for none.
    roi: also give a feature of each box instance, (N, D): RoIAlign on the map, mean over cells and over the times
        at which the instance is there.
    """

    def __init__(
        self,
        plan: ClipPlan,
        backbone: Backbone,
        *,
        device: torch.device,
        precision: Precision = "fp32",
        pool: Pool = "clip",
        layer: str | None = None,
        top: int = 0,
        roi: bool = False,
        flow: FlowComputer | None = None,
    ) -> None:
        if precision not in DTYPES:
            raise ValueError(f"precision is {precision!r}; there are {', '.join(DTYPES)}")
        if pool not in ("clip", "space", "none"):
            raise ValueError(f"pool is {pool!r}; there are clip, space and none")
        if top and not backbone.num_classes:
            raise ValueError(
                f"{plan.name}: predictions were asked for, but the backbone has no classifier; "
                "give weights that carry one"
            )
        fewest = min([backbone.num_classes, *backbone.tasks.values()])
        if top > fewest:
            raise ValueError(f"{plan.name}: top is {top}, but the classifier knows {fewest} classes")
        self.plan, self.backbone, self.device = plan, backbone.eval().to(device), device
        if device.type == "cuda":
            channels_last(self.backbone, large=True)
        self.precision, self.pool, self.layer, self.top, self.roi = precision, pool, layer, top, roi
        # Where windows overlap, each frame is computed once, if nothing but its mean over space is asked for.
        looks_once = backbone.frame_by_frame and plan.stride < plan.entries and not plan.flow_on_device
        self.shares_frames = looks_once and pool != "none" and layer is None and not top and not roi
        self._flow = flow
        # RAFT keeps a pyramid of correlations from call to call: one thread at a time.
        self._flow_lock = threading.Lock()
        self._hook = None
        # Several threads run the module at once: what the hook sees belongs to the thread that it runs in.
        self._seen = threading.local()
        if layer is not None:
            modules = dict(backbone.named_modules())
            if not layer or layer not in modules:
                names = [name for name in modules if 0 < name.count(".") + bool(name) <= 2]
                raise ValueError(f"{plan.name}: no layer is named {layer!r}; there are {', '.join(names)}, ...")
            self._hook = modules[layer].register_forward_hook(self._remember)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # weights are laid out anew on another stream than those that use them

    def close(self) -> None:
        """Leave the backbone without hooks."""
        if self._hook is not None:
            self._hook.remove()

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        """Rows, (B, ...): "features", "roi" and "present" of boxes, "top_classes" and "top_scores": (B, top), or
        (B, tasks, top) of a classifier for several, numbered through.
        """
        autocast = contextlib.nullcontext()
        if self.precision != "fp32":
            # Its cache of converted weights is one for all threads: what one stream of a GPU converts, another would
            # use before it is there.
            autocast = torch.autocast(self.device.type, DTYPES[self.precision], cache_enabled=False)
        # Outside: RAFT knows what of it may be computed in which precision, and its correlations are float32.
        pixels = self._flow_clips(batch) if self.plan.flow_on_device else batch.clips
        with torch.inference_mode(), autocast:
            if self.shares_frames and batch.before is not None:
                rows = {"features": self._frames_once(batch.clips, batch.before)}
            else:
                rows = self._rows(self._normal(pixels), batch)
            return {name: value.float().cpu().numpy() if value.is_floating_point() else value.cpu().numpy()
                    for name, value in rows.items()}  # fmt: skip

    def _rows(self, clips: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        if self.top:
            maps, logits = self.backbone.forward_and_classify(clips)
        else:
            maps, logits = self.backbone(clips), None
        if self.layer is not None:
            maps = as_map(self._seen.output, len(clips), self.layer)
        rows: dict[str, Tensor] = {}
        if self.pool == "clip":
            rows["features"] = pool_clip(maps)
        elif self.pool == "space":
            rows["features"] = pool_space(maps)
        else:
            rows["features"] = maps
        if logits is not None:
            rows["top_scores"], rows["top_classes"] = best_classes(self.backbone, logits.float(), self.top)
        if self.roi:
            assert batch.boxes is not None and batch.present is not None
            # Where flow is computed here, the clip has frames beyond those that the map's times stand for.
            frames = slice(self.plan.frames)
            rows["roi"], rows["present"] = _instances(maps, batch.boxes[:, frames], batch.present[:, frames])
        return rows

    def _normal(self, pixels: np.ndarray) -> Tensor:
        return self.backbone.input_spec.normalise(torch.from_numpy(pixels).to(self.device, non_blocking=True))

    def _frames_once(self, clips: np.ndarray, before: np.ndarray) -> Tensor:
        """Pooled features of clips that overlap, from features of their frames: what a clip shares with the one before
        it is taken from there. Frames run in pieces of one size, so that what else is in the batch changes no bit; it
        is no larger than the batch, whose size is chosen by what memory holds.
        """
        entries, shared = clips.shape[1], clips.shape[1] - self.plan.stride
        piece = min(FRAMES_AT_ONCE[self.device.type != "cpu"], len(clips) * entries)
        places = np.zeros((len(before), entries), np.int64)  # of each entry's frame among all
        count, frames = 0, []
        for row, last in enumerate(before):
            known = shared if last >= 0 else 0
            places[row, :known] = places[last, entries - known :]
            places[row, known:] = count + np.arange(entries - known)
            frames.append(clips[row, known:])
            count += entries - known
        frames += [frames[-1][-1:]] * (-count % piece)
        pieces = np.concatenate(frames).reshape(-1, 1, piece, *clips.shape[2:])
        found = torch.cat([pool_space(self.backbone(self._normal(each)).float())[0] for each in pieces])
        features = found[torch.from_numpy(places).to(self.device)]
        return features if self.pool == "space" else features.mean(1)

    def _remember(self, _module: nn.Module, _inputs: object, output: Any) -> None:
        self._seen.output = output

    def _flow_clips(self, batch: Batch) -> np.ndarray:
        """RGB (B, T + L, H, W, 3) to quantised flow stacks (B, T, H, W, 2 L): fields t to t + L - 1 in entry t.

        As in `FlowEntries`, the last field stands for those past the end of the video. A clip with a single frame of
        the video has no motion: what came before is not known here.
        """
        assert self._flow is not None
        fields = batch.clips.shape[1] - 1
        flow = np.zeros((len(batch.clips), fields, *batch.clips.shape[2:4], 2), np.float32)
        for row, clip in enumerate(batch.clips):
            real = fields if batch.real_entries is None else int(batch.real_entries[row]) - 1
            if real:
                with self._flow_lock:
                    flow[row, :real] = self._flow.pairs(clip[: real + 1])
                flow[row, real:] = flow[row, real - 1]
        flow = quantise(flow)
        stacks = [flow[:, k : k + self.plan.frames] for k in range(self.plan.flow_stack)]
        return np.concatenate(stacks, axis=-1)


def clips_before(clips: list[tuple[str, int, int]]) -> np.ndarray:
    """`Batch.before` of clips by (video, attempt, row), each after the one before it if that is there."""
    places: dict[tuple[str, int, int], int] = {}
    before = []
    for place, (key, attempt, row) in enumerate(clips):
        before.append(places.get((key, attempt, row - 1), -1))
        places[key, attempt, row] = place
    return np.array(before)


def best_classes(backbone: Backbone, logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scores and numbers of the likeliest classes of logits (B, C): (B, top), or (B, tasks, top) of several tasks."""
    scores = backbone.scores(logits)
    if not backbone.tasks:
        return scores.topk(top)  # pyright: ignore[reportReturnType]
    found, first = [], 0
    for width in backbone.tasks.values():
        shares, numbers = scores[:, first : first + width].topk(top)
        found.append((shares, numbers + first))
        first += width
    shares, numbers = zip(*found, strict=True)
    return torch.stack(shares, 1), torch.stack(numbers, 1)


def run_in_parts(runner: Runner, batch: Batch) -> dict[str, np.ndarray]:
    """Run the batch; halve it as often as the device's memory asks for."""
    try:
        return runner(batch)
    except torch.OutOfMemoryError:
        if len(batch.clips) == 1:
            raise
        torch.cuda.empty_cache()
    middle = len(batch.clips) // 2
    first, second = (run_in_parts(runner, half) for half in (batch[:middle], batch[middle:]))
    return {name: np.concatenate([first[name], second[name]]) for name in first}


def as_map(output: Tensor, batch: int, layer: str) -> Tensor:
    """What a layer gave, as (B, D, T, H, W): 5-D is taken as it is, (B T, D, H, W) of per-frame networks is folded."""
    if isinstance(output, Tensor) and output.ndim == 5:
        return output
    if isinstance(output, Tensor) and output.ndim == 4 and len(output) % batch == 0:
        return output.unflatten(0, (batch, -1)).transpose(1, 2)
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(f"layer {layer!r} gives {shape}; a feature map (B, D, T, H, W) or (B T, D, H, W) is needed")


def _instances(maps: Tensor, boxes: np.ndarray, present: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features (B, N, D) of the instances, zero where one is at no time there, and bool (B, N) where it is."""
    steps = maps.shape[2]
    # The map's step t stands for the entries t * T / T' to (t + 1) * T / T' - 1: its boxes are those of the middle one.
    middle = ((np.arange(steps) + 0.5) * boxes.shape[1] / steps).astype(int)
    there = torch.from_numpy(present[:, middle]).to(maps.device)
    cells = roi_features(maps.float(), torch.from_numpy(boxes[:, middle]).to(maps.device), there)
    counted = there.sum(1).clamp(min=1)[..., None]
    return cells.mean((-2, -1)).sum(1) / counted, there.any(1)
