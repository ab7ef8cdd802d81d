"""Train a model as a recipe says; on the same --out folder, go on where the run stopped.

  actionfuse train kitchen_mif_parallel --out runs/mif data.root=kitchen optim.lr=0.01
  torchrun --nproc-per-node 2 -m actionfuse.train kitchen_mif_parallel --out runs/mif --processes 2

Recipes that come with the package are listed by `actionfuse train --list`. `key.path=value` changes one field.

RUN/metrics.jsonl    losses of every step, results of every test
RUN/best/            the best model so far, by run.monitor: what evaluate, predict and load_model take
RUN/checkpoints/     the last few, from which a run goes on to the same bits
RUN/recipe.yaml      every field, as it was used

Exit codes: 0 trained to the end, 1 stopped by an error that is told, 2 wrong call, 75 asked to stop (SIGTERM, Ctrl-C)
and saved: start the same call again. Launchers such as torchrun exit with codes of their own: RUN/preempted is there
exactly where the last call ended with 75. Each process also makes the file that ACTIONFUSE_PREEMPTED names, if set.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="name of a recipe, or path of a .yaml file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="fields of the recipe to change")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/ and the recipe's name)")
    parser.add_argument(
        "--processes", metavar="N|MIN:MAX", help="refuse to train in any other number of processes; a range if elastic"
    )
    parser.add_argument("--list", action="store_true", help="list the recipes and what they reproduce")
    parser.add_argument("--show", action="store_true", help="print the recipe with every field, and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress, only errors")


def main(args: argparse.Namespace) -> int:
    # DDP's, of kernels of one pixel: their layout is the same whatever their strides say
    warnings.filterwarnings("ignore", r"(?s)Grad strides do not match.*?grad\.sizes\(\) = \[\d+, \d+(, 1)+\]")
    from .recipe import dump_recipe, list_recipes, load_recipe

    if args.list:
        for name in list_recipes():
            about = load_recipe(name).about
            print(f"{name}\n    {about.paper}{': ' + about.row if about.row else ''}")
        return 0
    if args.recipe is None:
        raise ValueError("name a recipe; `actionfuse train --list` shows those that are there")
    recipe = load_recipe(args.recipe, args.overrides)
    if args.show:
        print(dump_recipe(recipe), end="")
        return 0
    import torch

    from .engine import PREEMPTED, NotFinite, Preempted, Trainer, Unreadable
    from .world import parse_processes

    processes = None if args.processes is None else parse_processes(args.processes)
    out = args.out or Path("runs") / recipe.name
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder")
    marker = out / "preempted"
    node = os.environ.get("ACTIONFUSE_PREEMPTED")
    # before anything can fail, or a broken call would be taken for a saved one
    if os.environ.get("RANK", "0") == "0":
        marker.unlink(missing_ok=True)
    if node and os.environ.get("LOCAL_RANK", "0") == "0":
        Path(node).unlink(missing_ok=True)
    trainer = Trainer(recipe, out, processes=processes, quiet=args.quiet)
    try:
        trainer.run()
    except Preempted:
        if trainer.rank == 0:
            marker.touch()
        if node:
            Path(node).touch()
        print(f"stopped and saved at step {trainer.progress.step}; the same call goes on from there", file=sys.stderr)
        return PREEMPTED
    except (NotFinite, Unreadable) as error:
        print(f"training stopped: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(
            f"training stopped: {error}\nTry run.micro_batch (now {trainer.micro}; the steps stay the same), "
            "run.precision=bf16 or streams.NAME.checkpointing=true; `actionfuse plan` tells what fits",
            file=sys.stderr,
        )
        return 1
    return 0
