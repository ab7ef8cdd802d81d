"""Training on raw video against the same steps on random tensors in memory, against a plain loop, and its loader alone.

    bench_train.py                        kitchen_rgb on a small kitchen that is made once
    bench_train.py RECIPE [KEY=VALUE ...] --rounds 3 --steps 8

Four programs of one model, one batch and one optimiser, in turn, in a new order in each round:

train    the trainer's own steps (`actionfuse train`): its loader, its workers, its losses, its checks
memory   the same steps on one batch of random tensors that lies in memory: what no loader can beat
plain    a loop as in many scripts: a DataLoader whose dataset opens the file with cv2.VideoCapture, seeks and reads
         each frame, resizes, crops and normalises it in the worker; forward, loss, backward, step; recipes of rgb alone
loader   the trainer's batches, taken and thrown away

Steps that warm workers and caches up are not counted. Goals: 0.95 of memory with workers enough, 2 of plain.
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
    """The four programs; each gives the seconds of `steps` steps."""

    def __init__(self, recipe: Recipe, folder: Path, steps: int) -> None:
        self.recipe, self.steps = recipe, steps
        self.trainer = Trainer(recipe, folder, quiet=True)
        self.trainer.log.start(0, 0)
        self.epoch = 0
        specs = stream_specs(recipe, self.trainer.specs)
        batch = random_batch(recipe, specs, self.trainer.model, self.trainer.micro)
        self.kept = [batch] * self.trainer.micros

    def train(self) -> float:
        return self._clock(self._batches(), lambda parts: self.trainer._one_step(parts, 0))

    def memory(self) -> float:
        return self._clock(self._endless(), lambda parts: self.trainer._one_step(parts, 0))

    def loader(self) -> float:
        return self._clock(self._batches(), lambda parts: None)

    def plain(self) -> float:
        recipe = self.recipe
        split = load_split(recipe, recipe.data.train)
        model = build_model(recipe, split.classes)
        device = self.trainer.device
        model.to(device).train()
        optimizer = build_optimizer(param_groups(model, recipe.optim, recipe.streams), recipe.optim)
        (spec,) = stream_specs(recipe, model.input_specs)
        frames = PlainFrames(split, spec, model.input_specs["rgb"], self.steps * 4)
        loader = DataLoader(
            frames, batch_size=self.trainer.micro, num_workers=recipe.run.workers, shuffle=True, drop_last=True
        )
        backbone: Any = model.backbones["rgb"]

        def step(batch: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> None:
            clips, labels = batch
            optimizer.zero_grad()
            output = model.head({"rgb": backbone(clips.to(device))}, losses=True)
            loss = torch.stack([F.cross_entropy(output.logits[t], labels[t].to(device)) for t in output.logits]).sum()
            loss.backward()
            optimizer.step()
            loss.item()

        def batches() -> Iterator[Any]:
            while True:
                yield from loader

        def whole(first: Any) -> None:
            for number in range(self.trainer.micros):
                step(first if number == 0 else next(given))

        given = batches()
        return self._clock(given, whole)

    def _clock(self, given: Iterator[Any], work: Callable[[Any], object]) -> float:
        for _ in range(WARM):
            work(next(given))
        began = time.perf_counter()
        for _ in range(self.steps):
            work(next(given))
        return time.perf_counter() - began

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="kitchen_rgb")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "actionfuse-bench")
    args = parser.parse_args()
    overrides = list(args.overrides)
    if args.recipe.startswith("kitchen_") and not any(word.startswith("data.root=") for word in overrides):
        overrides.append(f"data.root={small_kitchen(args.folder / 'kitchen')}")
    recipe = load_recipe(args.recipe, overrides)
    with tempfile.TemporaryDirectory() as run:
        programs = Programs(recipe, Path(run), args.steps)
        names = ["train", "memory", "loader"] + (["plain"] if list(recipe.streams) == ["rgb"] else [])
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(args.rounds):
            order = list(names)
            random.Random(number).shuffle(order)
            for name in order:
                seconds[name].append(getattr(programs, name)())
                print(f"round {number + 1}: {name} {seconds[name][-1]:.2f} s", flush=True)
    batch = recipe.optim.batch
    rows = []
    for name in names:
        rates = [args.steps / each for each in seconds[name]]
        shares = [other / own for own, other in zip(seconds[name], seconds["train"], strict=True)]
        rows.append([name, f"{statistics.median(rates):.3f}", f"{batch * statistics.median(rates):.1f}",
                     f"{1 / statistics.median(shares):.2f}"])  # fmt: skip
    body = [
        f"{recipe.name}, {batch} segments a step, {recipe.run.workers} workers, {args.rounds} rounds of {args.steps} "
        f"steps on {programs.trainer.device.type}. Medians; the last column is the speed of `train` as a multiple.",
        "",
        table(["program", "steps/s", "segments/s", "train / this"], rows),
        "",
        "Goals: 0.95 of memory with workers enough, 2 of plain.",
    ]
    save("train", "Training on raw video against tensors in memory and a plain loop", "\n".join(body))


if __name__ == "__main__":
    main()
