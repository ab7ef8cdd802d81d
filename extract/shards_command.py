"""actionfuse shards: extraction by many machines.

    actionfuse shards plan PATH... --out OUT --shards 100 [options of actionfuse extract]
    actionfuse shards run OUT          on every machine, as often as one likes
    actionfuse shards verify OUT

OUT is a folder that all machines share, or a URL (s3://bucket/prefix). `run` takes those of SLURM_ARRAY_TASK_ID (an
array of any size does all), JOB_COMPLETION_INDEX (Kubernetes; one shard, or with --parts N every N-th), or RANK and
WORLD_SIZE (torchrun); without these all that are not done, or those of --shard. Ranks of torchrun, and with
--help-others all, go on with what is left of the others' shards.

Exit codes: 0 done (verify: every video exactly once), 1 some inputs failed (verify: the problems are printed, one json
line each), 2 wrong call, 130 and 143 interrupted: the same call goes on.
"""

from __future__ import annotations

import argparse
import sys

from . import command
from .objects import open_objects


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", metavar="plan|run|verify", required=True, help="what to do")
    plan = steps.add_parser("plan", help="divide the inputs into shards; the same call gives the same plan")
    command.add_arguments(plan)
    plan.add_argument("--shards", type=int, metavar="N", help="number of shards (default: 256 videos each)")
    run = steps.add_parser("run", help="extract shards, and publish what they give")
    run.add_argument("out", metavar="OUT", help="where the plan is")
    run.add_argument("--shard", type=int, action="append", metavar="K", help="this one, from 0; repeatable")
    run.add_argument("--parts", type=int, metavar="N", help="number of processes that the shards are divided among")
    run.add_argument(
        "--help-others", action="store_true", help="arrays, Jobs: when the own shards are done, go on with others'"
    )
    run.add_argument("--retry-failed", action="store_true", help="try inputs again that failed before")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    run.add_argument("--workers", type=int, metavar="N", help="decode processes (default: one per core, at most 16)")
    run.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="as in extract")
    run.add_argument("--quiet", action="store_true", help="no progress")
    verify = steps.add_parser("verify", help="whether every video has its outputs or its error, exactly once")
    verify.add_argument("out", metavar="OUT", help="where the plan is")
    verify.add_argument("--shard", type=int, action="append", metavar="K", help="this one only; repeatable")
    verify.add_argument("--deep", action="store_true", help="read every output and compare its CRC-32")


def main(args: argparse.Namespace) -> int:
    from . import shard_run
    from .shards import read_plan

    if args.step == "plan":
        if args.overwrite or args.dry_run or args.processes > 1 or args.engine != "local":
            raise ValueError(
                "--overwrite, --dry-run, --processes and --engine are not for a plan, which computes no features: "
                "leave them out, and start `actionfuse shards run` as often as there are processes"
            )
        objects, plan = shard_run.make_plan(args, args.shards)
        print(f"{plan.videos} videos in {len(plan.shards)} shards, plan {plan.id[:12]} in {objects.root}/shards")
        return 0
    objects = open_objects(args.out)
    if args.step == "verify":
        return report(*shard_run.verify(objects, deep=args.deep, shards=args.shard))
    if args.parts is not None and args.parts < 1:
        raise ValueError(f"--parts is {args.parts}; it must be at least 1")
    plan = read_plan(objects)
    own, others = shard_run.my_shards(plan, args.shard, args.parts, help_others=args.help_others)
    return shard_run.run_shards(objects, plan, own, others, args, retry_failed=args.retry_failed)


def report(good: int, problems: dict[str, int]) -> int:
    """Say what `verify` found."""
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(problems.items()))
    print(f"{good} videos are there exactly once{f'; {listed}' if listed else ''}", file=sys.stderr)
    return 1 if problems else 0
