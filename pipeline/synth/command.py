"""Write the synthetic kitchen: a small dataset whose best possible scores are known.

Scripted hands and objects in rgb, depth, ir and sound, with annotations in the layouts of EPIC-KITCHENS-100 and
Something-Else. ceilings.json holds the best scores that any model can reach with each set of streams. A call that was
interrupted is resumed by the same call. Exit codes: 0 all made, 1 some files were not, 2 wrong call.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .ceilings import exact_recognition
from .choreography import FPS
from .law import STREAMS
from .make import Progress, make_kitchen, plan_kitchen
from .script import SIZES, Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `actionfuse synth`."""
    sizes = ", ".join(
        f"{name} {(s.train_videos + s.validation_videos) * s.actions_per_video}" for name, s in SIZES.items()
    )
    parser.add_argument("root", type=Path, metavar="DIR", help="a new or empty folder, or one to go on with")
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help=f"in actions: {sizes} (default: small)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one is another kitchen")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be made and make nothing")


def main(args: argparse.Namespace) -> int:
    """Run `actionfuse synth`; returns the exit code."""
    plan = plan_kitchen(args.size, args.seed)
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers is {args.workers}; it must be at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(_summary(plan))
    if args.dry_run:
        print(f"nothing was made in {args.root}: --dry-run")
        return 0
    began = time.monotonic()
    try:
        *_, progress = _shown(make_kitchen(args.root, plan, workers=args.workers or cores))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"actionfuse synth: {error}; make room and call again: what is there is kept", file=sys.stderr)
        return 1
    for reason in progress.lost:
        print(reason, file=sys.stderr)
    made = progress.total - progress.skipped - len(progress.lost)
    counts = f"{made} of {progress.total} jobs done, {progress.skipped} done before"
    print(f"{args.root}: {counts}, {time.monotonic() - began:.0f} s")
    if progress.lost:
        print(f"{len(progress.lost)} failed: the same call tries them again", file=sys.stderr)
    return 1 if progress.lost else 0


def _summary(plan: Plan) -> str:
    seconds = sum(video.duration_seconds for video in plan.videos)
    train, validation = len(plan.instances("train")), len(plan.instances("validation"))
    lines = [
        f"{len(plan.videos)} videos, {seconds / 60:.1f} minutes, {round(seconds * FPS)} frames; "
        f"{train} actions to train with, {validation} to validate",
        "best possible top-1 of recognition, %:   verb   noun  action",
    ]
    for streams in (*((name,) for name in STREAMS), STREAMS):
        scores = exact_recognition(plan.law, streams)
        name = streams[0] if len(streams) == 1 else "all streams"
        numbers = "  ".join(f"{100 * scores[task]['top1']:5.1f}" for task in ("verb", "noun", "action"))
        lines.append(f"  {name:<38} {numbers}")
    return "\n".join(lines)


def _shown(steps: Iterator[Progress]) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = TextColumn("synth"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("synth", total=None)
        for step in steps:
            bar.update(task, completed=step.done, total=step.total)
            yield step
