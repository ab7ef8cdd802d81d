"""What is done with shards: plan them, run those that are not done (`shard_job`), verify them.

What a killed run has published stays and is not made again; what two runs make at a time is published once. So any
executor may run any shard any number of times: a loop here, ranks of torchrun, an array of Slurm, actors of Ray.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from actionfuse.heartbeat import beat

from ..pipeline.inputs import VideoInput, listed_inputs
from ..pipeline.remote import is_url
from .claims import claim
from .objects import Objects, open_objects
from .shards import (
    Inventory,
    Shard,
    ShardPlan,
    done_shards,
    is_done,
    plan_shards,
    read_plan,
    verify_shard,
)

ONE_FILE = ("npz", "hdf5")  # formats whose outputs are one file each
# What outputs depend on, of the options of `actionfuse extract`; the others are each run's own.
RECORDED = (
    "backbone stream weights layer pool top labels boxes instances fps clip_frames clip_stride last_clip side crop "
    "decoder frame_fps depth_range flow_method flow_weights flow_stack audio_preset store key_fps dtype precision batch"
).split()
_FILES = ("weights", "labels", "boxes", "flow_weights")


def recorded_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a plan, as json. Files are named absolutely: shards run in other folders."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(entry) for entry in value]
        return os.path.abspath(value) if value is not None and os.path.exists(value) else value

    options = {name: getattr(args, name) for name in RECORDED}
    options |= {name: absolute(options[name]) for name in _FILES}
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def tagged(videos: Iterable[tuple[VideoInput, str]]) -> Iterator[tuple[VideoInput, str]]:
    """Each with its size where a listing did not tell and a look at the file system does. URLs are not asked for."""
    for video, tag in videos:
        if not tag and not is_url(video.path):
            try:
                tag = str(os.stat(video.path).st_size)
            except OSError:
                pass  # told as a row's error when it is opened
        yield video, tag


def make_plan(
    args: argparse.Namespace, num_shards: int | None, *, shard_videos: int = 256
) -> tuple[Objects, ShardPlan]:
    """Find the inputs and plan them. num_shards: None = of about `shard_videos` videos each."""
    if args.store not in ONE_FILE:
        raise ValueError(f"--store is {args.store!r}; shards publish files, so it must be {' or '.join(ONE_FILE)}")
    with listed_inputs(args.paths, args.root) as videos:
        if not videos.count:
            raise ValueError(f"no video found in {', '.join(args.paths)}; `actionfuse probe` tells what is in there")
        num_shards = num_shards or -(-videos.count // shard_videos)
        objects = open_objects(args.out)
        return objects, plan_shards(tagged(videos), recorded_options(args), num_shards, objects)


def my_shards(
    plan: ShardPlan, chosen: list[int] | None = None, parts: int | None = None, *, help_others: bool = False
) -> tuple[list[Shard], list[Shard]]:
    """(shards that this process is to run, others with which it helps after), by --shard or by what started it.

    help_others: also in arrays and Jobs, as ranks of torchrun always do, which end together.
    """
    by_number = {shard.number: shard for shard in plan.shards}
    if chosen is not None:
        return [by_number[number] for number in chosen if number in by_number], []  # a shard may have got no video
    environment = os.environ
    if "SLURM_ARRAY_TASK_ID" in environment:
        part = int(environment["SLURM_ARRAY_TASK_ID"]) - int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        of = parts or int(environment.get("SLURM_ARRAY_TASK_COUNT", "1"))
    elif "JOB_COMPLETION_INDEX" in environment:
        part, of = int(environment["JOB_COMPLETION_INDEX"]), parts
    else:
        part, of, help_others = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1")), True
    if of is None:
        own = [by_number[part]] if part in by_number else []
    else:
        own = plan.shards[part % of :: of]
    if not help_others:
        return own, []
    mine = {shard.number for shard in own}
    others = [shard for shard in plan.shards if shard.number not in mine]
    # each in an order of its own: in the same they would all do the same shard
    others.sort(key=lambda shard: hashlib.blake2b(f"{part} {shard.id}".encode(), digest_size=8).digest())
    return own, others


def run_shards(
    objects: Objects,
    plan: ShardPlan,
    own: Iterable[Shard],
    others: Iterable[Shard],
    running: argparse.Namespace,
    *,
    retry_failed: bool = False,
) -> int:
    """Run what of these is not done; returns an exit code. retry_failed: of its own."""
    from .shard_job import ShardJob  # torch: planning and verifying need none

    job: ShardJob | None = None
    worst = 0
    folder = None if is_url(objects.root) else Path(objects.root)
    done = done_shards(objects, plan)
    passed: list[Shard] = []
    work = chain(((shard, retry_failed) for shard in own), ((shard, False) for shard in others))
    for shard, again in chain(work, ((shard, False) for shard in passed)):
        if shard.number in done and not again:
            continue
        held = None if folder is None else claim(folder / "shards", f"{shard.number}")
        if folder is not None and held is None:  # another process of this machine or share is at it
            if shard not in passed:
                passed.append(shard)  # looked at again in the end
            continue
        try:
            if is_done(objects, shard, retry_failed=again):
                if not again:  # others are at work, what was listed is old
                    done = done_shards(objects, plan)
                continue
            job = job or ShardJob(objects, plan, running)
            code = job.run_shard(shard)
        finally:
            if held is not None:
                held.release()
        if code > 2:
            return code
        worst = max(worst, code)
    return worst


def verify(objects: Objects, *, deep: bool = False, shards: list[int] | None = None) -> tuple[int, dict[str, int]]:
    """Print each problem as json; returns (videos that are there exactly once, problems by kind)."""
    plan = read_plan(objects)
    inventory = Inventory(objects) if shards is None and not deep else None
    problems: dict[str, int] = {}
    good = 0
    for shard in plan.shards:
        if shards is not None and shard.number not in shards:
            continue
        beat()
        bad: set[str] = set()
        for problem in verify_shard(objects, shard, deep=deep, inventory=inventory):
            print(json.dumps(asdict(problem)))
            problems[problem.kind] = problems.get(problem.kind, 0) + (1 if problem.key else shard.videos)
            bad.add(problem.key)
        good += 0 if "" in bad else shard.videos - len(bad)
    return good, problems
