"""Run a few steps of a recipe and tell how long it takes, what memory it needs, and what to change.

  actionfuse plan kitchen_mimo data.root=kitchen
  actionfuse plan mimo_epic_kitchens_100 --synthetic --processes 2 --card-gb 24

Steps are those of `actionfuse train`, with random weights (nothing is fetched) and, with --synthetic, random tensors of
the right shapes, so that the data need not be there. Memory of another batch follows from two sizes that are measured,
since it grows evenly. Without a GPU it is estimated: weights, gradients, optimiser, averages and what autograd keeps of
a batch, which is counted, and --overhead for what libraries take. Time is that of this machine; tests are not in it.

Exit codes: 0 it fits the card, 1 it does not, 2 wrong call.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .recipe import Recipe

GIB = 2**30
# Where --synthetic takes the numbers of classes and of training segments from; None = not known here.
KNOWN: Mapping[str, tuple[Mapping[str, int], int | None]] = {
    "epic_kitchens_100": ({"verb": 97, "noun": 300, "action": 3806}, 67217),
    "epic_kitchens_55": ({"verb": 125, "noun": 352, "action": 2513}, 23493),
    "egtea_gaze_plus": ({"verb": 19, "noun": 51, "action": 106}, 8299),
    "something_else": ({"action": 174}, 54919),
    "kinetics_400": ({"action": 400}, 240436),
    "charades": ({"action": 157}, None),
    "ntu_rgbd_60": ({"action": 60}, 40320),
    "ntu_rgbd_120": ({"action": 120}, None),
    "nw_ucla": ({"action": 10}, None),
    "kitchen": ({"verb": 8, "noun": 12, "action": 37}, 240),  # of the small one
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name of a recipe, or path of a .yaml file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="fields of the recipe to change")
    parser.add_argument("--synthetic", action="store_true", help="random tensors in place of the data")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="micro-batches to measure, after a first one")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that will train, one card each")
    parser.add_argument(
        "--card-gb", type=float, metavar="GB", help="memory of a card, in GiB (default: of the GPU here, else 24)"
    )
    parser.add_argument("--overhead", type=float, default=1.0, metavar="GB", help="of it for libraries, in GiB")
    parser.add_argument("--segments", type=int, metavar="N", help="training segments, where --synthetic cannot know")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")


def main(args: argparse.Namespace) -> int:
    from .recipe import load_recipe

    card_gb = card_here() / GIB if args.card_gb is None else args.card_gb
    if args.steps < 1 or args.processes < 1 or not card_gb > args.overhead >= 0:
        raise ValueError("--steps and --processes must be at least 1, and --card-gb more than --overhead")
    plan = make_plan(
        load_recipe(args.recipe, args.overrides),
        synthetic=args.synthetic,
        steps=args.steps,
        processes=args.processes,
        card_bytes=int(card_gb * GIB),
        overhead_bytes=int(args.overhead * GIB),
        segments=args.segments,
    )
    told = {**asdict(plan), "fits": plan.fits, "needed_bytes": plan.needed_bytes, "largest": plan.largest_micro_batch}
    print(json.dumps(told, indent=1) if args.json else "\n".join(describe(plan)))
    return 0 if plan.fits else 1


def card_here() -> int:
    """Bytes of memory of this process's GPU; 24 GiB where there is none."""
    import torch

    return torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else 24 * GIB


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was measured, in seconds and bytes, for one process.

    micro_batch: segments at a time; accumulated: micro-batches of a step. measured_batches: sizes that were run.
    fixed_bytes: memory whatever the batch: `fixed` names its parts. segment_bytes: for each segment of a micro-batch.
    segment_seconds: computing, of one segment. waiting_share: of the time, for data; 0 with random tensors.
    segments: of an epoch, None = not known. out_of_memory: the device had too little for the recipe's micro-batch.
    """

    recipe: str
    device: str
    processes: int
    parameters: int
    trained: int
    micro_batch: int
    accumulated: int
    measured_batches: tuple[int, ...]
    fixed_bytes: int
    fixed: dict[str, int]
    segment_bytes: int
    card_bytes: int
    overhead_bytes: int
    counted: bool
    peak_rss_bytes: int
    segment_seconds: float
    waiting_share: float
    segments: int | None
    epochs: int
    workers: int
    precision: str
    out_of_memory: bool = False
    uncheckpointed: tuple[str, ...] = field(default=())

    @property
    def needed_bytes(self) -> int:
        return self.fixed_bytes + self.micro_batch * self.segment_bytes + self.overhead_bytes

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.card_bytes and not self.out_of_memory

    @property
    def largest_micro_batch(self) -> int:
        """The largest that fits and divides the segments of a step in a process; 0 where none does."""
        local = self.micro_batch * self.accumulated
        room = (self.card_bytes - self.overhead_bytes - self.fixed_bytes) / max(1, self.segment_bytes)
        return max((n for n in range(1, local + 1) if local % n == 0 and n <= room), default=0)

    @property
    def epoch_seconds(self) -> float | None:
        if self.segments is None:
            return None
        return self.segments * self.segment_seconds / (1 - self.waiting_share) / self.processes


def make_plan(
    recipe: Recipe,
    *,
    synthetic: bool = False,
    steps: int = 4,
    processes: int = 1,
    card_bytes: int = 24 * GIB,
    overhead_bytes: int = GIB,
    segments: int | None = None,
) -> Plan:
    """Build the model, run micro-batches of two sizes, then `steps` with the data.

    Raises: ValueError where the data is not there (and not `synthetic`), or the batch cannot be shared.
    """
    import torch

    from .build import build_dataset, build_model, load_split, make_task, stream_specs
    from .world import share_batch

    micro, accumulated = share_batch(recipe.optim.batch, recipe.run.micro_batch, processes)
    recipe = replace(
        recipe, init_from=None, streams={name: replace(s, weights=None) for name, s in recipe.streams.items()}
    )
    split = None
    if synthetic:
        classes, known = _known(recipe)
        segments = segments or known
    else:
        split = load_split(recipe, recipe.data.train)
        classes, segments = dict(split.classes), len(split.segments)
    model = build_model(recipe, classes)
    bench = Bench(recipe, model)
    shapes = stream_specs(recipe, model.input_specs)
    # Batches of one are nothing for batch norm; small ones say as much as large ones, but fill no GPU.
    sizes = sorted({min(2, micro), min(4, micro)} | ({micro} if bench.cuda else set()))
    points, crowded = [], False
    for size in sizes:
        try:
            points.append((size, bench.memory(random_batch(recipe, shapes, model, size))))
        except torch.OutOfMemoryError:
            crowded = True
    if not points:
        raise ValueError(f"not even {sizes[0]} segments fit this device; try run.precision=bf16 or checkpointing")
    (low, few), (high, many) = points[0], points[-1]
    segment_bytes = max(0, many - few) // (high - low) if high > low else few // high
    fixed = bench.fixed(processes)
    fixed["kept of any batch"] = max(0, few - low * segment_bytes)
    if split is None:
        batches: Iterator[Any] = (random_batch(recipe, shapes, model, high) for _ in range(steps + 1))
    else:
        dataset = build_dataset(recipe, split, model, make_task(recipe.task), training=True)
        batches = _loaded(recipe, dataset, high, steps + 1, bench.device)
    seconds, waited = bench.clock(batches, read=split is not None)
    return Plan(
        recipe=recipe.name,
        device=torch.cuda.get_device_name() if bench.cuda else "the CPU",
        processes=processes,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        micro_batch=micro,
        accumulated=accumulated,
        measured_batches=tuple(size for size, _ in points),
        fixed_bytes=sum(fixed.values()),
        fixed=fixed,
        segment_bytes=segment_bytes,
        card_bytes=card_bytes,
        overhead_bytes=overhead_bytes,
        counted=bench.cuda,
        peak_rss_bytes=_peak_rss(),
        segment_seconds=seconds,
        waiting_share=waited,
        segments=None if segments is None else segments * recipe.augment.repeats,
        epochs=recipe.run.epochs,
        workers=recipe.run.workers,
        precision=recipe.run.precision,
        out_of_memory=crowded,
        uncheckpointed=tuple(
            name
            for name, backbone in model.backbones.items()
            if hasattr(backbone, "set_grad_checkpointing") and not recipe.streams[name].checkpointing
        ),
    )


class Bench:
    """A model with its loss and optimiser on the device."""

    def __init__(self, recipe: Recipe, model: Any) -> None:
        import torch

        from .optim import build_optimizer, param_groups
        from .step import Step
        from .testing import autocast

        self.recipe, self.cuda = recipe, torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.model = model.to(self.device)
        self.step = Step(self.model, recipe, {}).train()
        self.optimizer = build_optimizer(param_groups(self.model, recipe.optim, recipe.streams), recipe.optim)
        self.autocast = lambda: autocast(self.device, recipe.run.precision)

    def run(self, raw: Mapping[str, Any], hooks: Any = None) -> None:
        """One step: forward, backward, optimiser. hooks: a context of the forward pass."""
        from .batches import to_device

        batch = to_device(raw, self.device, self.recipe.loss.kind, self.model.head.classes)
        self.optimizer.zero_grad()
        with self.autocast(), hooks or nullcontext():
            loss = self.step(batch.inputs, batch.boxes, batch.masks, batch.targets)["loss"]
        loss.backward()
        self.optimizer.step()
        if self.cuda:
            loss.item()  # waits for the device

    def memory(self, raw: Mapping[str, Any]) -> int:
        """Bytes beyond weights, gradients and optimiser that a step of this batch needs."""
        import torch

        inputs = sum(x.nbytes for x in raw["streams"].values())
        if not self.cuda:
            kept = Kept(self.model)
            self.run(raw, torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack))
            return kept.bytes + inputs
        try:
            self.run(raw)  # the first step makes the optimiser's state
            torch.cuda.reset_peak_memory_stats()
            self.run(raw)
            lasting = self.fixed(1)
            return max(0, torch.cuda.max_memory_allocated() - sum(lasting.values()) + lasting["averages"])
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad()
            torch.cuda.empty_cache()
            raise

    def fixed(self, processes: int) -> dict[str, int]:
        """Bytes that a process needs whatever the batch. averages: of optim.ema, which are not made here."""
        weights = sum(x.nbytes for x in self.model.state_dict().values())
        trained = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        state = sum(
            value.nbytes
            for each in self.optimizer.state.values()
            for value in each.values()
            if hasattr(value, "nbytes") and value.ndim
        )
        return {
            "weights": weights,
            "gradients": trained,
            "optimiser": state,
            "averages": weights if self.recipe.optim.ema else 0,
            "buffers of parallel training": trained if processes > 1 else 0,
        }

    def clock(self, batches: Iterator[Mapping[str, Any]], *, read: bool) -> tuple[float, float]:
        """Computing seconds of a segment, and the share of the time that goes into waiting for data.

        read: whether the batches are read; time to make random ones does not count. The first batch does not either.
        """
        computed = waited = 0.0
        segments, first = 0, True
        asked = time.perf_counter()
        for raw in batches:
            began = time.perf_counter()
            if raw["id"]:
                self.run(raw)
            ended = time.perf_counter()
            if not first:
                waited += began - asked
                computed += ended - began
                segments += len(raw["id"])
            first, asked = False, ended
        if not segments:
            raise ValueError(
                "no segment that was tried can be read; `actionfuse probe` tells what is wrong with videos"
            )
        return computed / segments, waited / (waited + computed) if read else 0.0


class Kept:
    """Counts what autograd keeps for the backward pass, each memory once, weights left out."""

    def __init__(self, model: Any) -> None:
        self.bytes = 0
        self._seen = {x.untyped_storage().data_ptr() for x in model.state_dict().values()}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            # What is kept stays alive until the backward pass, so no other tensor gets its address.
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        return tensor


def random_batch(recipe: Recipe, specs: list[Any], model: Any, size: int) -> dict[str, Any]:
    """A batch as `samples.collate` gives it, of random numbers."""
    import torch

    from ..pipeline.clip_spec import FeatureSpec
    from ..pipeline.spectrogram import SpectrogramPreset
    from .build import feature_width
    from .rgbd import join_channels

    generator = torch.Generator().manual_seed(size)
    streams: dict[str, Any] = {}
    entries = 0
    pairs: dict[str, Any] = {}
    network = None
    for spec in specs:
        if isinstance(spec, FeatureSpec):
            steps = spec.frames or 16
            width = feature_width(recipe, spec.stream)
            streams[spec.name] = torch.randn(size, steps, width, generator=generator)
        elif spec.stream == "audio":
            cells = SpectrogramPreset.named(spec.audio_preset).cells
            streams[spec.name] = torch.randn(size, spec.frames, *cells, 1, generator=generator)
        else:
            channels = {"rgb": 3, "flow": 2 * spec.flow_stack}.get(spec.stream, 3 if spec.colour_map else 1)
            shape = (size, spec.frames, spec.crop, spec.crop, channels)
            streams[spec.name] = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            entries = entries or spec.frames
            if spec.flow_on_device:  # a dense clip: flow is computed here as in training
                count = spec.frames + spec.flow_stack
                shape = (size, count, spec.crop, spec.crop, 3)
                streams[spec.name] = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
                begins = torch.arange(spec.frames)[:, None] + torch.arange(spec.flow_stack)
                pairs[spec.name] = torch.stack([begins, begins + 1], -1).expand(size, -1, -1, -1)
                network = (spec.flow_method, spec.flow_weights)
    joined = [name for name, spec in model.input_specs.items() if spec.stream == "rgbd"]
    for name in joined:
        depth, rgb = streams.pop("depth"), streams.pop("rgb")
        streams = {name: join_channels(rgb, depth), **streams}
    boxes: dict[str, Any] = {}
    if model.head.needs_boxes:
        count = recipe.head.options.get("instances", 4)
        corners = torch.rand(size, entries, count, 2, 2, generator=generator).sort(-2).values
        boxes = {
            "boxes": corners.flatten(-2),
            "present": torch.ones(size, entries, count, dtype=torch.bool),
            "categories": torch.randint(1, 3, (size, count), generator=generator),
        }
    labels: dict[str, Any] = {}
    for task, count in model.classes.items():
        labels[task] = torch.randint(count, (size,), generator=generator)
    return {
        "id": [str(n) for n in range(size)],
        "epoch": torch.zeros(size, dtype=torch.int64),
        "index": torch.arange(size),
        "streams": streams,
        "masks": {name: torch.ones(pairs.get(name, x).shape[:2], dtype=torch.bool) for name, x in streams.items()},
        "pairs": pairs,
        "flow_network": network,
        "boxes": boxes,
        "labels": labels,
        "broken": [],
        "damaged": [],
    }


def describe(plan: Plan) -> list[str]:
    """The plan in words: what it needs, whether it fits, what to change, how long it takes."""
    said = "measured" if plan.counted else "estimated"
    lines = [
        f"{plan.recipe}: {plan.parameters / 1e6:.1f} M parameters, {plan.trained / 1e6:.1f} M of them trained, "
        f"{plan.precision}, on {plan.device}",
        f"a step of a process: {plan.accumulated} x {plan.micro_batch} segments, {plan.processes} processes",
        f"memory of a card, {said} with batches of {' and '.join(map(str, plan.measured_batches))}:",
        *(f"  {size / GIB:8.2f} GiB  {name}" for name, size in plan.fixed.items() if size),
        f"  {plan.micro_batch * plan.segment_bytes / GIB:8.2f} GiB  {plan.micro_batch} segments of "
        f"{plan.segment_bytes / 2**20:.1f} MiB",
        f"  {plan.overhead_bytes / GIB:8.2f} GiB  for libraries (--overhead)",
        f"  {plan.needed_bytes / GIB:8.2f} GiB  in all: {'fits' if plan.fits else 'does NOT fit'} "
        f"{plan.card_bytes / GIB:g} GiB",
        *advice(plan),
        f"peak memory of this process: {plan.peak_rss_bytes / GIB:.2f} GiB",
        f"speed of a process here: {1 / plan.segment_seconds:.2f} segments/s, "
        f"{plan.micro_batch * plan.accumulated * plan.segment_seconds:.3g} s a step without waiting; "
        f"waiting for data {100 * plan.waiting_share:.0f} %",
    ]
    if plan.epoch_seconds is None:
        lines.append("how long an epoch is depends on the number of segments: give --segments")
    else:
        lines.append(
            f"an epoch of {plan.segments} segments: {_clock(plan.epoch_seconds)}; {plan.epochs} epochs: "
            f"{_clock(plan.epoch_seconds * plan.epochs)}, tests not counted"
        )
    return lines


def advice(plan: Plan) -> list[str]:
    """What to change, best first; nothing where all is well."""
    lines = []
    best = plan.largest_micro_batch
    if not plan.fits and best:
        lines.append(f"try run.micro_batch={best}, the largest that fits: the steps stay the same")
    elif not plan.fits:
        lines.append("no micro-batch fits")
    elif best > plan.micro_batch:
        lines.append(f"there is room for run.micro_batch={best}")
    if not plan.fits:
        lines += [f"try streams.{name}.checkpointing=true: less memory, more time" for name in plan.uncheckpointed]
        if plan.precision == "fp32":
            lines.append("try run.precision=bf16: about half of what is kept of a batch")
    if plan.waiting_share > 0.1:
        wanted = max(1, math.ceil(max(1, plan.workers) / (1 - min(plan.waiting_share, 0.95))))
        lines.append(f"try run.workers={wanted}, if there are cores for them, or stored flow and features")
    return lines


def _loaded(recipe: Recipe, dataset: Any, size: int, count: int, device: torch.device) -> Iterator[Any]:
    """The first `count` batches of training on `device`, over again where an epoch is shorter."""
    from ..pipeline.samples import make_loader
    from .batches import TrainSampler

    sampler = TrainSampler(len(dataset), repeats=recipe.augment.repeats, seed=recipe.run.seed)
    loader = make_loader(dataset, batch_size=size, sampler=sampler, num_workers=recipe.run.workers, device=device)
    given, epoch = 0, 0
    while given < count:
        sampler.set_epoch(epoch)
        for raw in loader:
            yield raw
            given += 1
            if given == count:
                return
        epoch += 1


def _known(recipe: Recipe) -> tuple[dict[str, tuple[str, ...]], int | None]:
    """Classes (without names) and training segments of the recipe's dataset, as they are published."""
    counts, segments = KNOWN.get(recipe.data.dataset, ({}, None))
    tasks = recipe.data.tasks or list(counts) or ["action"]
    if segments is not None:
        segments = round(segments * recipe.data.share)
        segments = min(segments, recipe.data.limit or segments)
    return {task: tuple(map(str, range(counts.get(task, 100)))) for task in tasks}, segments


def _peak_rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
