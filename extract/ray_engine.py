"""`actionfuse extract --engine ray`: decode actors on the CPUs of a cluster feed model actors on its GPUs.

    driver --shards--> model actors (the extraction loop of `engine`) <--clips-- decode actors (on any node)

A model actor is the local engine with its decode processes on other machines: the same batches, so the same bytes.
Clips come as a stream of objects of which few are under way per decode actor; where the model is slower, decoders wait.
Videos that cannot be read are rows of the manifest. An actor or node that dies costs what it had in hand: a decode
actor's video is decoded again, a model actor's shard is run again (what it published stays), and a driver that dies is
started again by the same call. Each decode actor has its own decode process, so that a decoder that hangs is cut off.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from actionfuse.heartbeat import beat

from ..pipeline.types import BoxTracks
from .objects import Objects, open_objects
from .plan import ClipPlan, Task
from .shards import Shard, ShardPlan, done_shards, read_plan
from .workers import MOST_LOST_STARTS, Clips, Decoded, Lost, Pool

START_SECONDS = 600.0  # without any decode actor, or any model actor: nodes may be on their way
WAIT_SECONDS = 10.0  # between two signs of life of the driver
CLIPS_UNDER_WAY = 4  # objects per decode actor that wait for the model actor
SHARD_ATTEMPTS = 5
DECODER_CPUS = 1.0
MODEL_CPUS = 1.0


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]  # of the extra
    except ImportError as error:
        raise ValueError("--engine ray needs ray: pip install 'actionfuse[ray]'") from error
    return ray


def connect(args: argparse.Namespace) -> None:
    """Join the cluster and check that it has room. Raises: ValueError where it has not: Ray would wait for ever."""
    ray = _ray()
    if not ray.is_initialized():
        address = args.ray_address or os.environ.get("RAY_ADDRESS")
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except ConnectionError as error:
            raise ValueError(f"no Ray cluster answers at {address}: {error}") from error
    sizes(args, ray.cluster_resources())


def sizes(args: argparse.Namespace, resources: dict[str, float]) -> tuple[int, int, float]:
    """(model actors, decode actors of each, GPUs of a model actor) for a cluster with these resources.

    Raises: ValueError where they do not fit.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    on_gpu = args.device.startswith("cuda") or (args.device == "auto" and gpus >= 1)
    models = args.models if args.models is not None else max(1, int(gpus)) if on_gpu else 1
    if models < 1 or (args.decoders is not None and args.decoders < 1):
        raise ValueError(f"--models is {args.models} and --decoders {args.decoders}; each must be at least 1")
    if on_gpu and gpus < models:
        raise ValueError(
            f"{models} model actors need as many GPUs, the cluster has {gpus:g}; lower --models, or give --device cpu"
        )
    room = int((cpus - models * MODEL_CPUS) / DECODER_CPUS)
    wanted = args.decoders if args.decoders is not None else room
    if wanted < models or wanted > room:
        raise ValueError(
            f"the cluster has {cpus:g} CPUs: {models} model actors take {models * MODEL_CPUS:g} and leave room for "
            f"{max(0, room)} decode actors, but there must be {max(models, wanted)} (one for each model at least); "
            "they would wait for CPUs for ever: add nodes, or lower --models or --decoders"
        )
    return models, wanted // models, 1.0 if on_gpu else 0.0


class _Decoder:
    """A decode actor: one decode process, whose clips are sent on."""

    def __init__(self, plans: tuple[ClipPlan, ...], timeout_seconds: float) -> None:
        self._pool = Pool(plans, 1, timeout_seconds)

    def alive(self) -> None:
        """Comes back where the actor has found a CPU and started."""

    def decode(self, tasks: tuple[Task, ...], boxes: BoxTracks | None) -> Iterator[Any]:
        """What a pool's `events` give of these tasks, with clips as arrays of their own."""
        self._pool.submit(0, tasks, boxes)
        while True:
            for event in self._pool.events(timeout_seconds=0.5):
                if isinstance(event, Clips):
                    data = event.data.copy()
                    self._pool.free(event)
                    event.data = data
                yield event
                if isinstance(event, (Decoded, Lost)):
                    return


@dataclass
class _Remote:
    actor: Any
    started: Any  # what `alive` gives; None once it has
    tasks: tuple[Task, ...] = ()
    boxes: BoxTracks | None = None
    stream: Any = None


class RayPool:
    """`workers.Pool` over decode actors, which stay for the next extraction when it is left."""

    def __init__(self, plans: tuple[ClipPlan, ...], decoders: int, timeout_seconds: float) -> None:
        self._ray = _ray()
        self._plans, self._timeout_seconds = plans, timeout_seconds
        self._remotes = [self._start() for _ in range(decoders)]
        self._seen = time.monotonic()  # a decode actor that was alive

    def _start(self) -> _Remote:
        kind = self._ray.remote(num_cpus=DECODER_CPUS, max_restarts=0, scheduling_strategy="SPREAD")(_Decoder)
        actor = kind.remote(self._plans, self._timeout_seconds)
        return _Remote(actor, actor.alive.remote())

    def idle(self) -> int | None:
        """One that has started: where a node is lost, others may wait for a CPU that never comes."""
        waiting = {remote.started: number for number, remote in enumerate(self._remotes) if remote.started is not None}
        ready = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0] if waiting else []
        for reference in ready:
            number = waiting[reference]
            try:
                self._ray.get(reference)
                self._remotes[number].started = None
            except self._ray.exceptions.RayError:
                self._remotes[number] = self._start()
        alive = [number for number, remote in enumerate(self._remotes) if remote.started is None]
        if alive:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > START_SECONDS:
            raise RuntimeError(f"no decode actor has started for {START_SECONDS:g} s: the cluster has no CPU for one")
        return next((number for number in alive if not self._remotes[number].tasks), None)

    @property
    def busy(self) -> bool:
        return any(remote.tasks for remote in self._remotes)

    def submit(self, number: int, tasks: tuple[Task, ...], boxes: BoxTracks | None = None) -> None:
        remote = self._remotes[number]
        remote.tasks, remote.boxes = tasks, boxes
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": CLIPS_UNDER_WAY}
        remote.stream = remote.actor.decode.options(**options).remote(tasks, boxes)

    def free(self, clips: Clips) -> None:
        return None  # an object goes when nobody refers to it

    def events(self, timeout_seconds: float) -> Iterator[Any]:
        streams = {remote.stream: number for number, remote in enumerate(self._remotes) if remote.tasks}
        if not streams:
            time.sleep(timeout_seconds)
            return
        ready, _ = self._ray.wait(list(streams), num_returns=1, timeout=timeout_seconds, fetch_local=True)
        for stream in ready:
            number = streams[stream]
            remote = self._remotes[number]
            try:
                event = self._ray.get(next(stream))
            except StopIteration:
                event = Lost(remote.tasks, remote.boxes, "the decode actor ended without an outcome")
            except self._ray.exceptions.RayError as error:
                # the actor or its node is gone, not by the video's fault as far as anybody knows
                event = Lost(remote.tasks, remote.boxes, f"the decode actor died ({type(error).__name__})", True)
                self._remotes[number] = self._start()
            if isinstance(event, (Decoded, Lost)):
                remote.tasks, remote.boxes, remote.stream = (), None, None
            if isinstance(event, Clips):
                event.worker = number
                event.data = np.asarray(event.data)
            yield event

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        for number, remote in enumerate(self._remotes):
            if remote.tasks:  # broken off: nobody reads what it still sends
                self._ray.kill(remote.actor)
                self._remotes[number] = self._start()


class _Model:
    """A model actor: runs shards as `shard_run` does, with decoders anywhere in the cluster."""

    def __init__(self, root: str, running: dict[str, Any], decoders: int) -> None:
        from .shard_job import ShardJob

        self._objects = open_objects(root)
        self._plan = read_plan(self._objects)
        self._shards = {shard.number: shard for shard in self._plan.shards}
        self._decoders = decoders
        self._pool: RayPool | None = None
        self._job = ShardJob(self._objects, self._plan, argparse.Namespace(**running), make_pool=self._decode_actors)

    def _decode_actors(self, plans: tuple[ClipPlan, ...], _workers: int, timeout_seconds: float) -> RayPool:
        if self._pool is None:  # the plans are those of the one job
            self._pool = RayPool(plans, self._decoders, timeout_seconds)
        return self._pool

    def alive(self) -> None:
        """Comes back where the actor has found its place, and its model is built."""

    def run(self, number: int) -> int:
        return self._job.run_shard(self._shards[number])


def _first(references: list[Any], patience_seconds: float | None) -> list[Any]:
    """One that is ready, as a list; empty where none is in time. The driver shows that it lives meanwhile."""
    began = time.monotonic()
    while True:
        beat()
        ready, _ = _ray().wait(references, num_returns=1, timeout=WAIT_SECONDS)
        if ready or (patience_seconds is not None and time.monotonic() - began > patience_seconds):
            return ready


def run_on_ray(objects: Objects, plan: ShardPlan, args: argparse.Namespace) -> int:
    """Run what is not done of a plan; returns an exit code."""
    ray = _ray()
    models, decoders, gpus = sizes(args, ray.cluster_resources())
    finished = done_shards(objects, plan)
    todo: deque[Shard] = deque(shard for shard in plan.shards if shard.number not in finished)
    models = min(models, len(todo))
    attempts: dict[int, int] = {}
    root = objects.root if "://" in objects.root else os.path.abspath(objects.root)
    running = {"device": args.device, "workers": decoders, "timeout": args.timeout, "quiet": True, "traceback": False}
    kind = ray.remote(num_cpus=MODEL_CPUS, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD")(_Model)

    actors: list[Any] = [None] * models
    starting: dict[Any, int] = {}

    def start(number: int) -> None:
        actors[number] = kind.remote(root, running, decoders)
        starting[actors[number].alive.remote()] = number

    for number in range(models):
        start(number)
    idle: deque[int] = deque()  # that have started: where a node was lost, others may wait for a place that never comes
    under_way: dict[Any, tuple[int, Shard]] = {}
    done = worst = lost_starts = 0
    try:
        while todo or under_way:
            while todo and idle:
                number, shard = idle.popleft(), todo.popleft()
                under_way[actors[number].run.remote(shard.number)] = number, shard
            ready = _first([*under_way, *starting], None if under_way else START_SECONDS)
            if not ready:
                raise RuntimeError(
                    f"no model actor has started for {START_SECONDS:g} s: the cluster has no room for one"
                )
            number, shard = under_way.pop(ready[0], (starting.pop(ready[0], -1), None))
            try:
                code = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, ValueError):  # the same in every attempt
                    raise cause from error
                words = str(error).strip().splitlines()
                what = "a model actor" if shard is None else f"shard {shard.number}"
                print(f"{what}: {type(error).__name__}: {words[-1] if words else ''}", file=sys.stderr)
                if shard is None:
                    lost_starts += 1
                    if lost_starts == MOST_LOST_STARTS:
                        raise RuntimeError(
                            f"model actors ended {lost_starts} times as they started: {error}"
                        ) from error
                else:
                    attempts[shard.number] = attempts.get(shard.number, 0) + 1
                    if attempts[shard.number] == SHARD_ATTEMPTS:
                        print(f"shard {shard.number} failed {SHARD_ATTEMPTS} times and is left out", file=sys.stderr)
                        worst = 1
                    else:
                        todo.append(shard)
                ray.kill(actors[number])
                start(number)
                continue
            idle.append(number)
            lost_starts = 0
            if shard is not None:
                worst, done = max(worst, code), done + 1
                if not args.quiet:
                    print(f"{done} shards done, {len(todo) + len(under_way)} to do", file=sys.stderr)
    finally:
        for actor in actors:
            ray.kill(actor)
    return worst
