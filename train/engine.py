"""The training loop: steps, tests, checkpoints, exact resume, in one process or many, through Accelerate.

A step takes `optim.batch` segments over all processes, whatever their number, in an order that is a function of (seed,
epoch). Before it torch is seeded from (seed, epoch, step, rank), so nothing that a step does depends on what came
before but weights, optimiser and averages, which checkpoints hold: a run that was killed and goes on gives the same
bits.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from safetensors.torch import load, save
from torch import Tensor, distributed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.utils.data import DataLoader

from actionfuse._files import write_atomically

from . import checkpoint
from .batches import Batch, TrainSampler, balanced_probabilities, erase, mix, step_seed, to_device
from .build import build_dataset, build_model, load_split, test_tasks
from .distance import check_distance, group_labels, task_of
from .log import RunLog
from .losses import class_weights_of, labels_of
from .model import CONFIG, WEIGHTS, ActionModel, ModelConfig, config_of
from .optim import Ema, build_optimizer, lr_factor, param_groups, set_lr
from .recipe import Recipe, dump_recipe
from .results import evaluate_all
from .same_recipe import check_same_recipe
from .scores import ScoreTable
from .shard import check_sharding, gathered, shard_model, share_buffers, sync_gradients, whole
from .step import Step
from .stepwise import check_monitor, check_stepwise, told_tables
from .testing import test_scores
from .world import PATIENCE, check_batch, check_compile, check_sync_bn, check_trackers, check_world, share_batch

PREEMPTED = 75  # exit code of a run that was asked to stop and has saved: EX_TEMPFAIL, which schedulers requeue on
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Preempted(Exception):
    """SIGTERM or SIGINT came; a checkpoint is written."""


class _TestStopped(Exception):
    """Asked to stop in the middle of a test, which is done again when the run goes on."""


class Unreadable(ValueError):
    """More of the data cannot be read than the recipe allows; the call was right."""


class NotFinite(Exception):
    """A loss became NaN or infinite. str(error) names the segments."""


@dataclass
class Progress:
    """Where a run is: `step` optimiser steps in all, `in_epoch` of them in this epoch."""

    epoch: int = 0
    step: int = 0
    in_epoch: int = 0
    best: float | None = None
    broken: list[dict] = field(default_factory=list)  # of this epoch, of this process
    told: bool = False  # they were told: only the test of this epoch is left
    log_bytes: int = 0


class Trainer:
    """One run in one folder. `run` trains until the recipe's end; made again on the same folder, it goes on."""

    def __init__(
        self, recipe: Recipe, folder: Path, *, processes: int | tuple[int, int] | None = None, quiet: bool = False
    ) -> None:
        self.recipe, self.folder = recipe, folder
        run = recipe.run
        check_sharding(run.shard, run.precision)
        check_compile(run.compile)
        check_trackers(run.trackers)
        self.accelerator = Accelerator(
            # said, or torchrun's processes on a CPU would each train alone
            cpu=not torch.accelerator.is_available(),
            mixed_precision="no" if run.precision == "fp32" else run.precision,
            log_with=list(run.trackers) or None,  # pyright: ignore[reportArgumentType]
            project_dir=str(folder),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        world_told = check_world(self.accelerator.num_processes, processes)
        check_batch(recipe.optim.batch, processes)
        self.rank, self.world, self.device = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.accelerator.device,
        )
        self.micro, self.micros = share_batch(recipe.optim.batch, run.micro_batch, self.world)
        check_sync_bn(run.sync_bn, self.world, self.device.type)
        self.train_split, self.test_split = load_split(recipe, recipe.data.train), load_split(recipe, recipe.data.test)
        self.classes = {task: len(names) for task, names in self.train_split.classes.items()}
        torch.manual_seed(run.seed)
        model = build_model(recipe, self.train_split.classes)
        check_stepwise(recipe, model.head)
        check_monitor(recipe, model.head, self.test_split)
        self.train_set = build_dataset(recipe, self.train_split, model, test_tasks(recipe.task)[""], training=True)
        self.test_sets = {
            name: build_dataset(recipe, self.test_split, model, task, training=False)
            for name, task in test_tasks(recipe.task).items()
        }
        self.config = config_of(
            model,
            task=asdict(recipe.task),
            clips={stream: asdict(each.clip) | asdict(recipe.sampling) for stream, each in recipe.streams.items()},
        )
        self.specs = model.input_specs
        self.sampler = self._make_sampler()
        self.steps_per_epoch = self.sampler.num_samples // recipe.optim.batch
        if not self.steps_per_epoch:
            raise ValueError(
                f"optim.batch is {recipe.optim.batch}, but an epoch has {self.sampler.num_samples} samples; take a "
                "smaller batch"
            )
        self._prepare(model)
        self.progress = Progress()
        self._loader: DataLoader | None = None  # made where it is first needed: its workers are forked then
        self._last: Batch | None = None  # stands in for a batch of which nothing can be read
        self._stop = False
        self.log = RunLog(folder, main=self.accelerator.is_main_process, quiet=quiet)
        if world_told:
            self.log.say(world_told)
        self._resume()

    # --- making

    def _make_sampler(self) -> TrainSampler:
        recipe, segments = self.recipe, self.train_split.segments
        probabilities = groups = None
        if recipe.loss.balance == "class":
            probabilities = balanced_probabilities(segments, self._balance_task())
        distance = recipe.loss.distance
        if distance.weight:
            check_distance(recipe, list(self.classes), self.world, self.micro)
            groups = group_labels(segments, task_of(distance, list(self.classes))), distance.per_class
        return TrainSampler(
            len(segments),
            repeats=recipe.augment.repeats,
            probabilities=probabilities,
            groups=groups,
            seed=recipe.run.seed,
            rank=self.rank,
            world_size=self.world,
            uneven="drop",
        )

    def _balance_task(self) -> str:
        task = self.recipe.loss.balance_task or next(iter(self.classes))
        if task not in self.classes:
            raise ValueError(f"loss.balance_task is {task!r}; there are {', '.join(self.classes)}")
        return task

    def _class_weights(self) -> dict[str, Tensor]:
        if self.recipe.loss.balance != "loss":
            return {}
        task = self._balance_task()
        return {task: class_weights_of(labels_of(self.train_split.segments, task), self.classes[task])}

    def _prepare(self, model: ActionModel) -> None:
        run, optim = self.recipe.run, self.recipe.optim
        if run.sync_bn and self.world > 1:
            model.synchronise_norms()
        self.model = model.to(self.device)
        if run.shard:
            shard_model(model)
        self.optimizer = build_optimizer(param_groups(model, optim, self.recipe.streams), optim)
        self.ema = Ema(model, optim.ema) if optim.ema else None
        self.step = Step(model, self.recipe, self._class_weights())
        if not run.shard:
            self.step = self.accelerator.prepare(self.step)
        self.optimizer = self.accelerator.prepare(self.optimizer)
        if run.compile:
            self.step.compile()

    # --- resume

    def _resume(self) -> None:
        main = self.accelerator.is_main_process
        found = checkpoint.latest_checkpoint(self.folder)
        kept = self.folder / "recipe.yaml"
        if kept.is_file() and main:
            check_same_recipe(self.folder, self.recipe)
        if main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, dump_recipe(self.recipe).encode())
        self.accelerator.wait_for_everyone()
        if found is None:
            self.log.open(0)
            count, batch = len(self.train_split.segments), self.recipe.optim.batch
            self.log.say(f"{count} segments, {self.steps_per_epoch} steps of {batch} an epoch")
            return
        state = checkpoint.read_training(found)
        # Training goes on from the trained weights, which are not those of model.safetensors where there are averages.
        weights = state["weights"] if self.ema is not None else load((found / WEIGHTS).read_bytes())
        set_model_state_dict(self.step, {f"model.{k}": v for k, v in weights.items()}, options=_FULL)
        if any(x is not None for each in state["optimizer"]["state"].values() for x in each.values()):
            # torch asks for a tensor, and SGD without momentum keeps none
            set_optimizer_state_dict(self.step, self._torch_optimizer(), state["optimizer"], options=_FULL)
        for group, base in zip(self._torch_optimizer().param_groups, state["base_lrs"], strict=True):
            group["base_lr"] = base
            group |= {"betas": tuple(group["betas"])} if "betas" in group else {}  # torch reads them back as a list
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        fields = state["progress"]
        self.progress = Progress(**{**fields, "broken": [dict(row) for row in fields["broken"]] if main else []})
        self.log.open(self.progress.log_bytes)
        changed = "" if state["world"] == self.world else f" with {self.world} processes instead of {state['world']}"
        if self.progress.epoch >= self.recipe.run.epochs:
            self.log.say(f"trained to the end before: {self.progress.epoch} epochs, {self.progress.step} steps")
        else:
            self.log.say(f"going on from step {self.progress.step} (epoch {self.progress.epoch}){changed}")

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    # --- training

    def run(self) -> dict[str, float]:
        """Train to the end; returns the results of the last test by name.

        Raises: Preempted when asked to stop (saved; `run` once more goes on), NotFinite, Unreadable where too many
        segments are broken.
        """
        self._stop = False
        handlers = {sig: signal.signal(sig, self._ask_to_stop) for sig in (signal.SIGTERM, signal.SIGINT)}
        results: dict[str, float] = {}
        try:
            epochs = self.recipe.run.epochs
            if self.recipe.run.trackers:
                self.accelerator.init_trackers("actionfuse", config={"recipe": dump_recipe(self.recipe)})
            self.log.start(epochs * self.steps_per_epoch, self.progress.step)
            while self.progress.epoch < epochs:
                self._epoch()
                if not self.progress.told:
                    self._tell_broken()
                epoch = self.progress.epoch
                if (epoch + 1) % self.recipe.run.test_every == 0 or epoch + 1 == epochs:
                    try:
                        results = self._test()
                    except _TestStopped:
                        self._save()
                        raise Preempted from None
                progress = self.progress
                progress.epoch, progress.in_epoch, progress.broken, progress.told = epoch + 1, 0, [], False
                self._save()
        finally:
            self.log.close()
            if self.recipe.run.trackers:
                self.accelerator.end_training()
            for sig, handler in handlers.items():
                signal.signal(sig, handler)
        return results

    def _ask_to_stop(self, *_: object) -> None:
        self._stop = True

    def _epoch(self) -> None:
        recipe, progress = self.recipe, self.progress
        saved = time.monotonic()
        self.step.train()
        waited = time.perf_counter()
        for parts in self._steps():
            began = time.perf_counter()
            place = progress.in_epoch
            torch.manual_seed(step_seed(recipe.run.seed, progress.epoch, place, self.rank))
            epoch_now = progress.epoch + place / self.steps_per_epoch
            factor = lr_factor(recipe.optim, recipe.run.epochs, epoch_now)
            lr = set_lr(self._torch_optimizer(), factor)
            losses = self._one_step(parts, place)
            progress.step, progress.in_epoch = progress.step + 1, place + 1
            row = {"kind": "step", "epoch": progress.epoch, "step": progress.step, "lr": lr, **losses}
            self.log.step(row, segments=recipe.optim.batch, waited=began - waited, total=time.perf_counter() - waited)
            self._track(row)
            waited = time.perf_counter()
            if self._anyone_stops():
                self._save()
                raise Preempted
            minutes = (time.monotonic() - saved) / 60
            by_steps = recipe.run.save_steps and progress.step % recipe.run.save_steps == 0
            if by_steps or self._agree(minutes > recipe.run.save_minutes):
                self._save()
                saved = time.monotonic()

    def _steps(self) -> Iterator[list[Mapping[str, Any]]]:
        """The micro-batches of each step that is left of the epoch."""
        from ..pipeline.samples import make_loader

        batch = self.recipe.optim.batch
        self.sampler.set_epoch(self.progress.epoch, self.progress.in_epoch * batch)
        if self._loader is None:
            self._loader = make_loader(
                self.train_set,
                batch_size=self.micro,
                sampler=self.sampler,
                num_workers=self.recipe.run.workers,
                device=self.device,
            )
        micros: list[Mapping[str, Any]] = []
        left = self.steps_per_epoch - self.progress.in_epoch
        if not left:  # stopped in the test that follows
            return
        for raw in self._loader:
            micros.append(raw)
            if len(micros) == self.micros:
                yield micros
                micros = []
                left -= 1
                if not left:
                    return

    def _one_step(self, micros: list[Mapping[str, Any]], place: int) -> dict[str, float]:
        """One optimiser step; its losses, each the mean over the step's segments of all processes."""
        recipe, epoch = self.recipe, self.progress.epoch
        planned = self.micro * self.micros
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        ids: list[str] = []
        share_buffers(self.model)
        for number, raw in enumerate(micros):
            self.progress.broken += raw["broken"]
            batch = self._augmented(raw, epoch, place * self.micros + number)
            share = len(raw["id"]) / planned  # 0 where a stand-in keeps the processes in step
            last = number + 1 == len(micros)
            sync_gradients(self.model, last)
            alone = last or self.world == 1 or recipe.run.shard
            with nullcontext() if alone else self.accelerator.no_sync(self.step):
                with self.accelerator.autocast():
                    out = self.step(batch.inputs, batch.boxes, batch.masks, batch.targets, batch.past)
                # Outside: what the forward pass keeps in float32 has its gradients in float32, too.
                self.accelerator.backward(out["loss"] * share)
            ids += raw["id"]
            for name, value in {"loss": out["loss"].detach(), **out["parts"]}.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.float() * share
        means = self._mean_over_processes(sums)
        if not all(value == value and abs(value) != float("inf") for value in means.values()):
            bad = {name: value for name, value in means.items() if not (value == value and abs(value) != float("inf"))}
            raise NotFinite(
                f"step {self.progress.step + 1} of epoch {epoch}: {', '.join(f'{n} is {v}' for n, v in bad.items())}; "
                f"segments of this process: {', '.join(ids)}. Try a smaller optim.lr, optim.clip_norm, or fp32"
            )
        if recipe.optim.clip_norm:
            self.accelerator.clip_grad_norm_(self.step.parameters(), recipe.optim.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        return means

    def _augmented(self, raw: Mapping[str, Any], epoch: int, number: int) -> Batch:
        augment, seed = self.recipe.augment, self.recipe.run.seed
        if not raw["id"]:
            if self._last is None:
                reasons = "; ".join(f"{row['id']}: {row['reason']}" for row in raw["broken"][:3])
                raise Unreadable(f"the first batch holds nothing that can be read: {reasons}")
            return self._last
        batch = to_device(raw, self.device, self.recipe.loss.kind, self.classes)
        number = number * self.world + self.rank
        if augment.erasing:
            batch = erase(batch, augment.erasing, self.specs, seed)
        if augment.mixup:
            batch = mix(batch, augment.mixup, self.classes, seed, epoch, number)
        self._last = batch
        return batch

    # --- ends of epochs

    def _test(self) -> dict[str, float]:
        tables: dict[str, ScoreTable] = {}
        split = self.test_split
        for name, dataset in self.test_sets.items():
            averages = self.ema.applied(self.model) if self.ema is not None else nullcontext()
            with averages, gathered(self.model):
                tested = test_scores(
                    self.model,
                    dataset,
                    self.device,
                    batch_size=self.micro,
                    workers=self.recipe.run.workers,
                    precision=self.recipe.run.precision,
                    rank=self.rank,
                    world_size=self.world,
                    tick=self._tick,
                )
            tested = tested.gather()
            if tested is None:
                continue
            if not len(tested.scores):
                raise Unreadable(f"nothing of the split {split.split!r} can be read, such as {_told(tested.broken[0])}")
            told = told_tables(tested, self.recipe, self.model.head, name, test_tasks(self.recipe.task)[name])
            tables |= {at: table for at, (_, table) in told.items()}
            if tested.broken:
                self.log.say(f"test: {len(tested.broken)} segments cannot be read, such as {_told(tested.broken[0])}")
        rows = evaluate_all(tables, parts=split.parts, subsets=split.subsets, many_shot=split.many_shot)
        found = {row.name: row.value for row in rows}
        self.step.train()
        state = self._averages()
        if self.accelerator.is_main_process:
            self.log.write({"kind": "test", "epoch": self.progress.epoch, "step": self.progress.step, **found})
            self._track({"kind": "test", **found})
            self._keep_best(found, state)
        return found

    def _tick(self, _segments: int) -> None:
        # Several processes finish the test: they would have to agree after each batch.
        if self._stop and self.world == 1:
            raise _TestStopped

    def _keep_best(self, found: dict[str, float], state: dict[str, Tensor]) -> None:
        monitor = self.recipe.run.monitor or next(
            (name for name in found if name.endswith("top1_accuracy")), next(iter(found))
        )
        if monitor not in found:
            raise ValueError(f"run.monitor is {monitor!r}; tests give {', '.join(list(found)[:12])}")
        value = found[monitor]
        self.log.say(f"epoch {self.progress.epoch}: {monitor} {value:.4f}")
        if self.progress.best is None or value > self.progress.best:
            self.progress.best = value
            results = {"monitor": monitor, "step": self.progress.step, "epoch": self.progress.epoch, "results": found}
            files = {**self._files(state), "metrics.json": json.dumps(results, indent=1).encode()}
            checkpoint.write_best(self.folder, self.progress.step, files)

    def _tell_broken(self) -> None:
        """Segments of the epoch that could not be read; too many end the run."""
        broken = self._gathered(self.progress.broken)
        ids = {row["id"]: row for row in broken}
        share = len(ids) / len(self.train_split.segments)
        if ids:
            self.log.write({"kind": "broken", "epoch": self.progress.epoch, "segments": sorted(ids)})
            self.log.say(f"epoch {self.progress.epoch}: {len(ids)} segments cannot be read, such as {_told(broken[0])}")
        if share > self.recipe.data.max_broken_share:
            raise Unreadable(
                f"{len(ids)} of {len(self.train_split.segments)} segments cannot be read, more than "
                f"data.max_broken_share={self.recipe.data.max_broken_share:g} allows, such as {_told(broken[0])}"
            )
        self.progress.told = True

    # --- checkpoints

    def _averages(self) -> dict[str, Tensor]:
        """Whole weights as others load them: the averages where there are any. Every process must call it."""
        state: Any = whole(self.ema.average) if self.ema is not None else self._weights()
        return state

    def _files(self, state: Mapping[str, Tensor]) -> dict[str, bytes]:
        """model.safetensors and config.json."""
        state = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
        config: ModelConfig = self.config
        return {WEIGHTS: save(state, metadata={"format": "pt"}), CONFIG: json.dumps(asdict(config), indent=1).encode()}

    def _weights(self) -> dict[str, Tensor]:
        state: Any = get_model_state_dict(self.step, options=_FULL)
        return {key.removeprefix("model."): value for key, value in state.items()}

    def _save(self) -> None:
        weights = self._weights() if self.ema is not None else {}
        optimizer = get_optimizer_state_dict(self.step, self._torch_optimizer(), options=_FULL)
        broken, state = self._gathered(self.progress.broken), self._averages()
        ema = whole(self.ema.state_dict()) if self.ema is not None else {}
        if self.accelerator.is_main_process:
            self.progress.log_bytes = self.log.flush()
            scaler = self.accelerator.scaler
            training = {
                "progress": {**asdict(self.progress), "broken": broken},
                "optimizer": optimizer,
                "base_lrs": [group["base_lr"] for group in self._torch_optimizer().param_groups],
                "weights": weights,
                "ema": ema,
                "scaler": scaler.state_dict() if scaler is not None else {},
                "world": self.world,
            }
            checkpoint.write_checkpoint(self.folder, self.progress.step, self._files(state), training)
            checkpoint.keep_last(self.folder, self.recipe.run.keep)
        self.accelerator.wait_for_everyone()

    # --- among processes

    def _mean_over_processes(self, sums: dict[str, Tensor]) -> dict[str, float]:
        values = torch.stack(list(sums.values()))
        if self.world > 1:
            distributed.all_reduce(values)
            values /= self.world
        return dict(zip(sums, values.tolist(), strict=True))

    def _agree(self, wish: bool) -> bool:
        """What process 0 wishes."""
        if self.world == 1:
            return wish
        flag = torch.tensor(int(wish), device=self.device)
        distributed.broadcast(flag, 0)
        return bool(flag)

    def _anyone_stops(self) -> bool:
        if self.world == 1:
            return self._stop
        flag = torch.tensor(int(self._stop), device=self.device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag)

    def _gathered(self, rows: list[dict]) -> list[dict]:
        if self.world == 1:
            return rows
        parts: list[list[dict]] = [[] for _ in range(self.world)]
        distributed.all_gather_object(parts, rows)
        return [row for part in parts for row in part]

    def _track(self, row: Mapping[str, Any]) -> None:
        if self.recipe.run.trackers:
            values = {k: v for k, v in row.items() if isinstance(v, int | float) and k not in ("epoch", "step")}
            self.accelerator.log(values, step=self.progress.step)


def _told(row: Mapping[str, Any]) -> str:
    return f"{row['id']} ({row['reason']})"
