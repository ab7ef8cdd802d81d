"""Training on raw video against the same steps on random tensors in memory, against a plain loop, and its loader alone.

    bench_train.py                        a network that is the limit, and one so light that the data are
    bench_train.py RECIPE [KEY=VALUE ...] --rounds 3 --steps 8

Programs of one model, one batch and one optimiser, in turn, in a new order in each round:

train     the trainer's own steps (`actionfuse train`): its loader, its workers, its losses, its checks
memory    the same steps on one batch of random tensors that lies in memory: what no loader can beat
bare      forward, loss, backward and step of a plain loop on tensors in memory: what the trainer adds to them
loader    the trainer's batches, taken and thrown away
plain     a loop as in many scripts: a DataLoader whose dataset opens the file with cv2.VideoCapture, seeks and reads
          each frame, resizes, crops and normalises it in the worker; forward, loss, backward, step; for rgb alone
cv2 data  the batches of that DataLoader, taken and thrown away

Steps that warm workers and caches up are not counted. Goals: 0.95 of memory with workers enough, 2 of plain. On a CPU
network and decoding share the cores, so that a step takes the sum of both: `train` then cannot reach `memory`, and
against `plain` it gains what decoding is of a step. What limits a case is told by memory and loader: the slower one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _common import save, table
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from actionfuse.train.build import build_model, load_split, stream_specs
from actionfuse.train.engine import Trainer
from actionfuse.train.optim import build_optimizer, param_groups
from actionfuse.train.plan import random_batch
from actionfuse.train.recipe import Recipe, load_recipe

WARM = 2  # steps before the clock starts


class Programs:
    """The programs; each gives the seconds of a step."""

    def __init__(self, recipe: Recipe, folder: Path, steps: int) -> None:
        self.recipe, self.steps = recipe, steps
        self.trainer = Trainer(recipe, folder, quiet=True)
        self.trainer.log.start(0, 0)
        self.epoch = 0
        specs = stream_specs(recipe, self.trainer.specs)
        batch: Mapping[str, Any] = random_batch(recipe, specs, self.trainer.model, self.trainer.micro)
        self.kept: list[Mapping[str, Any]] = [batch] * self.trainer.micros

    def train(self) -> float:
        return self._clock(self._batches(), lambda parts: self.trainer._one_step(parts, 0))

    def memory(self) -> float:
        return self._clock(self._endless(), lambda parts: self.trainer._one_step(parts, 0))

    def loader(self) -> float:
        return self._clock(self._batches(), lambda parts: None, times=4)

    def bare(self) -> float:
        step, micros = self._plain_step(), self.trainer.micros
        eats: Any = self.trainer.specs["rgb"]
        clips = eats.normalise(self.kept[0]["streams"]["rgb"])
        labels: dict[str, Any] = {task: self.kept[0]["labels"][task] for task in self.trainer.classes}
        return self._clock(iter(lambda: None, 0), lambda _: [step((clips, labels)) for _ in range(micros)])

    def plain(self) -> float:
        step, given = self._plain_step(), self._plain_batches()
        micros = self.trainer.micros
        return self._clock(given, lambda first: [step(first if n == 0 else next(given)) for n in range(micros)])

    def cv2_data(self) -> float:
        given, micros = self._plain_batches(), self.trainer.micros
        return self._clock(given, lambda first: [next(given) for _ in range(micros - 1)], times=4)

    def _plain_step(self) -> Callable[[tuple[torch.Tensor, dict[str, torch.Tensor]]], None]:
        recipe, device = self.recipe, self.trainer.device
        model = build_model(recipe, self.trainer.train_split.classes).to(device).train()
        optimizer = build_optimizer(param_groups(model, recipe.optim, recipe.streams), recipe.optim)
        backbone: Any = model.backbones["rgb"]

        def step(batch: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> None:
            clips, labels = batch
            optimizer.zero_grad()
            output = model.head({"rgb": backbone(clips.to(device))}, losses=True)
            loss = torch.stack([F.cross_entropy(output.logits[t], labels[t].to(device)) for t in output.logits]).sum()
            loss.backward()
            optimizer.step()
            loss.item()

        return step

    def _plain_batches(self) -> Iterator[Any]:
        recipe = self.recipe
        (spec,) = stream_specs(recipe, self.trainer.specs)
        split = load_split(recipe, recipe.data.train)
        frames = PlainFrames(split, spec, self.trainer.specs["rgb"], self.steps * 4)
        loader = DataLoader(
            frames, batch_size=self.trainer.micro, num_workers=recipe.run.workers, shuffle=True, drop_last=True
        )
        while True:
            yield from loader

    def _clock(self, given: Iterator[Any], work: Callable[[Any], object], times: int = 1) -> float:
        """Seconds a step. times: so many more steps, where what waits in a loader's queue would count much."""
        for _ in range(WARM):
            work(next(given))
        began = time.perf_counter()
        for _ in range(times * self.steps):
            work(next(given))
        return (time.perf_counter() - began) / (times * self.steps)

    def _batches(self) -> Iterator[list[Mapping[str, Any]]]:
        """The trainer's own, epoch after epoch; its workers stay."""
        while True:
            self.trainer.progress.epoch, self.trainer.progress.in_epoch = self.epoch, 0
            self.epoch += 1
            self.trainer.step.train()
            yield from self.trainer._steps()

    def _endless(self) -> Iterator[list[Mapping[str, Any]]]:
        self.trainer.step.train()
        while True:
            yield self.kept


class PlainFrames(Dataset):
    """Frames of a segment by cv2: the file is opened for each sample, and each frame is sought."""

    def __init__(self, split: Any, spec: Any, eats: Any, repeats: int) -> None:
        self.split, self.spec, self.eats, self.repeats = split, spec, eats, repeats

    def __len__(self) -> int:
        return len(self.split.segments) * self.repeats  # so that workers need not start again

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, int]]:
        segment = self.split.segments[index % len(self.split.segments)]
        capture = cv2.VideoCapture(str(self.split.path(segment)))
        rate, spec = capture.get(cv2.CAP_PROP_FPS), self.spec
        edges = np.linspace(segment.start_seconds, segment.stop_seconds, spec.frames + 1)
        frames = []
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            capture.set(cv2.CAP_PROP_POS_FRAMES, int(random.uniform(low, high) * rate))
            found, frame = capture.read()
            if not found:
                frame = np.zeros((spec.resize_side, spec.resize_side, 3), np.uint8)
            height, width = frame.shape[:2]
            scale = spec.resize_side / min(height, width)
            frame = cv2.resize(frame, (max(spec.crop, round(width * scale)), max(spec.crop, round(height * scale))))
            top = random.randint(0, frame.shape[0] - spec.crop)
            left = random.randint(0, frame.shape[1] - spec.crop)
            frame = cv2.cvtColor(frame[top : top + spec.crop, left : left + spec.crop], cv2.COLOR_BGR2RGB)
            frames.append((frame / 255.0 - self.eats.mean) / self.eats.std)
        capture.release()
        clip = torch.from_numpy(np.stack(frames).astype(np.float32)).permute(3, 0, 1, 2).contiguous()
        return clip, {task: int(segment.labels[task]) for task in self.split.classes}


def small_kitchen(folder: Path) -> Path:
    command = [sys.executable, "-m", "actionfuse.cli", "synth", str(folder), "--size", "small"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


# One case whose network is the limit on a CPU, one whose data are: frames of 96 pixels through 70 thousand weights.
CASES: Mapping[str, list[str]] = {"the network": [], "the data": ["streams.rgb.backbone=tsn:test_resnet"]}


def measure(recipe: Recipe, steps: int, rounds: int) -> tuple[str, dict[str, float]]:
    """A table, and the median steps/s of each program."""
    with tempfile.TemporaryDirectory() as run:
        programs = Programs(recipe, Path(run), steps)
        names = ["train", "memory", "loader"]
        if list(recipe.streams) == ["rgb"]:
            names += ["bare", "plain", "cv2_data"]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            order = list(names)
            random.Random(number).shuffle(order)
            for name in order:
                seconds[name].append(getattr(programs, name)())
                print(f"round {number + 1}: {name} {seconds[name][-1]:.3f} s a step", flush=True)
        rows, rates = [], {}
        for name in names:
            rates[name] = statistics.median(1 / each for each in seconds[name])
            shares = [own / other for own, other in zip(seconds[name], seconds["train"], strict=True)]
            rows.append([name.replace("_", " "), f"{rates[name]:.3f}", f"{recipe.optim.batch * rates[name]:.1f}",
                         f"{statistics.median(shares):.2f}"])  # fmt: skip
        clips = ", ".join(
            f"{stream} {each.backbone}, {each.clip.frames} frames of {each.clip.crop}"
            for stream, each in recipe.streams.items()
        )
        words = (
            f"{recipe.name} ({clips}), {recipe.optim.batch} segments a step, {recipe.run.workers} workers, {rounds} "
            f"rounds of {steps} steps on {programs.trainer.device.type}. Medians; the last column is the speed of "
            "`train` as a multiple."
        )
        programs.trainer._loader = None  # its workers end
    return f"{words}\n\n{table(['program', 'steps/s', 'segments/s', 'train / this'], rows)}", rates


def limit(rates: Mapping[str, float]) -> str:
    """What a step waits for, in words."""
    slower = "network" if rates["memory"] < rates["loader"] else "data"
    both = 1 / (1 / rates["memory"] + 1 / rates["loader"])
    words = (
        f"The limit is the {slower}: {rates['memory']:.2f} steps/s in memory, {rates['loader']:.2f} of the loader "
        f"alone. One after the other on the same cores they would make {both:.2f}; `train` makes {rates['train']:.2f}."
    )
    if "plain" in rates:
        plain = 1 / (1 / rates["bare"] + 1 / rates["cv2_data"])
        words += (
            f" Of plain: {rates['bare']:.2f}, {rates['cv2_data']:.2f}, together {plain:.2f}; it makes "
            f"{rates['plain']:.2f}."
        )
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "actionfuse-bench")
    args = parser.parse_args()
    cases: Mapping[str, list[str]] = {"": list(args.overrides)} if args.recipe else CASES
    parts = []
    for name, changes in cases.items():
        recipe_name, overrides = args.recipe or "kitchen_rgb", list(changes)
        if recipe_name.startswith("kitchen_") and not any(word.startswith("data.root=") for word in overrides):
            overrides.append(f"data.root={small_kitchen(args.folder / 'kitchen')}")
        # a light step is over soon, and what waits in the queues when the clock starts counts more
        steps = args.steps * (4 if name == "the data" else 1)
        body, rates = measure(load_recipe(recipe_name, overrides), steps, args.rounds)
        heading = f"## Where {name} is the limit\n\n" if name else ""
        parts.append(f"{heading}{body}\n\n{limit(rates)}")
    goals = "Goals: 0.95 of memory with workers enough, 2 of plain."
    save("train", "Training on raw video against tensors in memory and a plain loop", "\n\n".join([*parts, goals]))


if __name__ == "__main__":
    main()
