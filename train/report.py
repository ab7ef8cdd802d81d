"""Show one run as one html file that needs nothing else: what it learned, where it fails, what it looks at.

  actionfuse report runs/mif                        writes runs/mif/report.html
  actionfuse report runs/mif --out mif.html --split test --show 8

Results of the split, curves of training, classes and what they are taken for, shares of the streams per class where the
head tells them, the best and the worst segments as small videos with their boxes, time lines of what was observed, what
came and what was predicted, and the recipe. The split is tested anew, as `actionfuse evaluate` does; `key=value`
changes the same fields as there.

Exit codes: 0 all segments were read, 1 some were not (they are named; the page is there), 2 wrong call.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..fusion import Output
    from ..pipeline.datasets.contract import Dataset
    from .batches import Batch
    from .members import Member
    from .runs import TrainedRun
    from .scores import ScoreTable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run; its best model is taken")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe fields to change")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="the page (default: RUN/report.html)")
    parser.add_argument("--split", help="of the dataset (default: the recipe's data.test)")
    parser.add_argument("--root", help="the dataset's folder (default: the recipe's data.root)")
    parser.add_argument(
        "--show", type=int, default=6, metavar="N", help="best and worst segments each (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace) -> int:
    from actionfuse._files import replacing

    from .build import load_split
    from .evaluate import tell_broken
    from .members import test_run
    from .runs import open_run, recipe_file
    from .sections import build_page

    if args.show < 0:
        raise ValueError(f"--show is {args.show}; it must be 0 or more")
    run = open_run(args.run, [*args.overrides, *([f"data.root={args.root}"] if args.root else [])])
    seen = Looked(several=run.recipe.loss.kind == "bce")
    member = test_run(run, args.split, quiet=args.quiet, look=seen.look)
    assert member is not None
    split = load_split(run.recipe, args.split or run.recipe.data.test)
    out = args.out or recipe_file(run.folder).parent / "report.html"
    content = build_page(Told(run, member, split, seen, args.show))
    with replacing(out) as file:
        file.write(content)
    if not args.quiet:
        print(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return tell_broken(member.broken)


@dataclass
class Looked:
    """What a head shows of each segment. extras: name -> id -> array, the mean over views. alone: stream -> task ->
    id -> scores of the stream by itself. several: they are of tasks in which several classes hold.
    """

    extras: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    alone: dict[str, dict[str, dict[str, np.ndarray]]] = field(default_factory=dict)
    several: bool = False

    def look(self, batch: Batch, output: Output) -> None:
        for name, value in output.extras.items():
            if value.ndim and len(value) % len(batch) == 0 and value.is_floating_point():
                rows = value.float().unflatten(0, (len(batch), -1)).mean(1).cpu().numpy()
                self.extras.setdefault(name, {}).update(zip(batch.ids, rows, strict=True))
        for name, tasks in output.auxiliary.items():
            kind, _, stream = name.partition("/")
            for task, value in tasks.items() if kind in ("unimodal", "group") else ():
                if value.ndim == 2:
                    scores = value.float() if self.several else value.float().log_softmax(-1)
                    rows = scores.unflatten(0, (len(batch), -1)).mean(1).cpu().numpy()
                    self.alone.setdefault(stream, {}).setdefault(task, {}).update(zip(batch.ids, rows, strict=True))


@dataclass(frozen=True)
class Told:
    """All that the page shows. member: scores of the split; show: how many best and worst segments."""

    run: TrainedRun
    member: Member
    split: Dataset
    seen: Looked
    show: int

    @cached_property
    def table(self) -> ScoreTable | None:
        """Segments with labels of all tasks, under the observation of training."""
        return self._labelled(None)

    @cached_property
    def by_task(self) -> dict[str, ScoreTable]:
        """Task -> the segments with a label of it, as results count them."""
        labels = next(iter(self.member.observations.values())).table.labels
        found = {task: self._labelled(task) for task in labels}
        return {task: table for task, table in found.items() if table is not None and task in table.scores}

    def _labelled(self, task: str | None) -> ScoreTable | None:
        from .members import labelled

        return labelled(next(iter(self.member.observations.values())).table, task)

    @property
    def task(self) -> str:
        """The label that segments are shown by: that of run.monitor, else action, else the first."""
        table = self.table
        known = [] if table is None else [task for task in table.labels if task in table.scores]
        tasks = known or list(self.member.classes)
        monitored = self.run.recipe.run.monitor.partition("/")[0]
        return next((name for name in (monitored, "action") if name in tasks), tasks[0])
