"""Running shards: extract into a scratch folder, publish each output by put-if-absent, at last the shard's manifest.

What a killed run has published stays and is not made again; what two runs make at a time is published once. So any
executor may run any shard any number of times: a loop here, ranks of torchrun, an array of Slurm, actors of Ray.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from actionfuse.heartbeat import beat

from ..pipeline.inputs import VideoInput, listed_inputs
from ..pipeline.remote import is_url
from .claims import claim
from .objects import FolderObjects, Objects, open_objects
from .run import Job
from .shards import (
    Inventory,
    Shard,
    ShardPlan,
    done_shards,
    is_done,
    manifest_bytes,
    plan_shards,
    read_plan,
    read_shard,
    verify_shard,
)
from .sinks import FailureList, StoreSink

ONE_FILE = ("npz", "hdf5")  # formats whose outputs are one file each
PUBLISHING = 8  # outputs under way to the store at a time
# What outputs depend on, of the options of `actionfuse extract`; the others are each run's own.
RECORDED = (
    "backbone stream weights layer pool top labels boxes instances fps clip_frames clip_stride last_clip side crop "
    "decoder frame_fps depth_range flow_method flow_weights flow_stack audio_preset store key_fps dtype precision batch"
).split()
_FILES = ("weights", "labels", "boxes", "flow_weights")


class ShardSink(StoreSink):
    """A StoreSink on a scratch folder whose outputs go on to `objects`. outputs: key -> {name: [bytes, crc32]}."""

    def __init__(self, scratch: Path, recipes: dict[tuple[str, str], dict[str, Any]], objects: Objects, **options: Any):
        super().__init__(scratch, recipes, **options)
        self._objects, self._scratch = objects, scratch
        self._threads = ThreadPoolExecutor(PUBLISHING)
        self._under_way: dict[str, Future[None]] = {}
        self._made: dict[str, dict[str, list[Any]]] = {}
        self.outputs: dict[str, dict[str, list[Any]]] = {}
        for store in self._stores.values():
            name = f"{store.folder.name}/store.json"
            if not objects.put_new(name, store.folder / "store.json"):
                there = json.loads(objects.read(name))
                wanted = json.loads((store.folder / "store.json").read_text("utf-8"))
                for said in (there, wanted):  # versions may differ, what the numbers depend on may not
                    said["recipe"].pop("provenance", None)
                if there != wanted:
                    raise ValueError(
                        f"{objects.root}/{store.folder.name} holds features of other weights or options; "
                        "give another --out"
                    )

    def _names(self, key: str) -> Iterator[tuple[str, str, Path]]:
        """(plan, name of its object, its file in the scratch folder)"""
        for (plan, _), store in self._stores.items():
            path = store.output_path(key)
            yield plan, path.relative_to(self._scratch).as_posix(), path

    def missing(self, key: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(plan for plan, name, _ in self._names(key) if self._objects.size(name) is None))

    def end(self, key: str) -> None:
        super().end(key)
        files = [(name, path) for _, name, path in self._names(key) if path.exists()]
        if files:
            self._under_way[key] = self._threads.submit(self._publish, key, files)

    def _publish(self, key: str, files: list[tuple[str, Path]]) -> None:
        made = {}
        for name, path in files:
            size, crc = FolderObjects(path.parent).crc32(path.name)
            if self._objects.put_new(name, path):
                made[name] = [size, f"{crc:08x}"]
            path.unlink()
        self._made[key] = made

    def finish(self, videos: Iterable[VideoInput]) -> None:
        """Wait until everything is published, and note it. Raises: OSError where the store refuses."""
        for future in self._under_way.values():
            future.result()
        keys = [video.key for video in videos]
        for key, found in zip(keys, self._threads.map(self._published, keys), strict=True):
            if found:
                self.outputs[key] = found
        self._threads.shutdown()

    def _published(self, key: str) -> dict[str, list[Any]]:
        # What was there before, or another made at the same time, is read: the manifest tells of what is there.
        made = self._made.get(key, {})
        found = {}
        for _, name, _ in self._names(key):
            if name in made:
                found[name] = made[name]
            elif self._objects.size(name) is not None:
                size, crc = self._objects.crc32(name)
                found[name] = [size, f"{crc:08x}"]
        return found


class ShardJob(Job):
    """Models built once, for shard after shard. place: of the run's choice are device, workers, timeout and quiet."""

    def __init__(
        self,
        objects: Objects,
        plan: ShardPlan,
        running: argparse.Namespace,
        *,
        make_pool: Callable[..., Any] | None = None,
    ) -> None:
        from .command import parse_fps

        args = argparse.Namespace(**{**vars(running), **plan.options, "overwrite": False})
        if args.boxes is not None:
            args.boxes = Path(args.boxes)
        if args.store not in ONE_FILE:
            raise ValueError(f"--store is {args.store!r}; shards publish files, so it must be {' or '.join(ONE_FILE)}")
        # boxes are checked against all inputs: of a shard alone there may be none
        everything = (video for shard in plan.shards for video in read_shard(objects, shard))
        super().__init__(args, parse_fps(args.fps), [], named=everything, make_pool=make_pool)
        self._objects = objects
        self._sink: ShardSink | None = None

    def place(self) -> tuple[int, int]:
        return 0, 1  # the whole shard, whatever ranks this process has

    def open_stores(self) -> StoreSink:
        args = self._args
        self._sink = ShardSink(
            args.out, self._recipes, self._objects, format=args.store, dtype=args.dtype, key_fps=args.key_fps
        )
        return self._sink

    def run_shard(self, shard: Shard) -> int:
        """Extract and publish what of a shard is missing, then its manifest; an exit code as `Job.run`'s.

        Error rows are no failure of the shard: 1 is returned, and the shard is done.
        """
        videos = read_shard(self._objects, shard)
        with tempfile.TemporaryDirectory(prefix="actionfuse-shard-") as scratch:
            self._args.out = Path(scratch)
            self._videos = videos
            self._paths = {video.key: video.path for video in videos}
            code = self.run()
            if code > 2 or self._sink is None:
                return code
            self._sink.finish(videos)
            failed = FailureList(Path(scratch)).read()
            rows: list[dict[str, Any]] = []
            for video in videos:
                if outputs := self._sink.outputs.get(video.key):
                    rows.append({"key": video.key, "outputs": outputs})
                elif video.key in failed:
                    entry = failed[video.key]
                    rows.append({"key": video.key, "stage": entry["stage"], "error": entry["reason"]})
            if len(rows) < len(videos):
                raise OSError(f"shard {shard.number}: {len(videos) - len(rows)} videos are left; run it again")
            self._objects.put_new(shard.manifest, manifest_bytes(shard, rows))
            return 1 if any("error" in row for row in rows) else 0


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
