"""Shards of an input list: planned once, done by any number of processes on any machines, verified against the outputs.

    OUT/shards/plan.json        what is to be done: options, shards (id, videos, where their lines are in the list)
    OUT/shards/videos.jsonl     one line per video, [key, path, start_seconds, stop_seconds, id, tag], by shard and key
    OUT/shards/done/K-ID.jsonl  the manifest of shard K: a line of its id, then per video its outputs or its error
    OUT/BACKBONE-STREAM/...     the outputs

All are put if absent and never change. A video's shard follows from its key alone (so its segments stay together, and
neighbours in a list, which often differ much in size, are spread), a shard's id from its videos' paths, sizes or etags,
and the options: the same list gives the same plan. Nothing here holds the list in memory: it is sorted in files.
What is done is asked for by listing a folder, not shard by shard and output by output: a store answers a thousand names
as fast as one.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actionfuse.heartbeat import beat

from ..pipeline.inputs import VideoInput
from ..pipeline.store_files import canonical_json
from .objects import Objects

PLAN, VIDEOS, DONE = "shards/plan.json", "shards/videos.jsonl", "shards/done"
_RUN_LINES = 250_000  # sorted in memory at a time: about 100 MB


@dataclass(frozen=True, slots=True)
class Shard:
    """id: hash of the shard's videos and the plan's options. start, stop: bytes of its lines in videos.jsonl."""

    number: int
    id: str
    videos: int
    start: int
    stop: int

    @property
    def manifest(self) -> str:
        """Its name holds the id: one of another plan is none of this."""
        return f"{DONE}/{self.number:06d}-{self.id[:12]}.jsonl"


@dataclass(frozen=True)
class ShardPlan:
    """id: hash of all shards' ids. options: of the extraction, as they were given."""

    id: str
    options: dict[str, Any]
    videos: int
    shards: list[Shard]


def plan_shards(
    videos: Iterable[tuple[VideoInput, str]], options: dict[str, Any], num_shards: int, objects: Objects
) -> ShardPlan:
    """Write the plan, unless it is there already.

    videos: each with a tag of its content (etag, size; '' where unknown), in any order, perhaps repeated.
    options: json; what the outputs depend on.
    Raises: ValueError where two different videos have one key, there is none, or OUT has another plan.
    """
    if num_shards < 1:
        raise ValueError(f"shards is {num_shards}; it must be at least 1")
    settings = hashlib.sha256(canonical_json(options).encode()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="actionfuse-plan-") as folder:
        path = Path(folder, "videos.jsonl")
        shards = _write_sorted(videos, num_shards, settings, path)
        if not shards:
            raise ValueError("no video was given: there is nothing to plan")
        identity = hashlib.sha256("".join(shard.id for shard in shards).encode()).hexdigest()
        plan = ShardPlan(identity, options, sum(shard.videos for shard in shards), shards)
        rows = [[shard.number, shard.id, shard.videos, shard.start, shard.stop] for shard in shards]
        # the list first: a plan without its list must never be seen
        if not objects.put_new(VIDEOS, path) and objects.size(VIDEOS) != path.stat().st_size:
            _other_plan(objects)
        text = canonical_json({"version": 1, **asdict(plan), "shards": rows})
        if not objects.put_new(PLAN, text.encode()) and read_plan(objects).id != plan.id:
            _other_plan(objects)
    return plan


def _other_plan(objects: Objects) -> None:
    raise ValueError(
        f"{objects.root} has a plan of other inputs, options or number of shards; give another --out, or remove "
        f"{objects.root}/shards to plan anew (outputs stay)"
    )


def read_plan(objects: Objects) -> ShardPlan:
    """Raises: ValueError where there is none."""
    try:
        stored = json.loads(objects.read(PLAN))
    except FileNotFoundError as error:
        raise ValueError(f"{objects.root} has no plan; make one with `actionfuse shards plan`") from error
    return ShardPlan(stored["id"], stored["options"], stored["videos"], [Shard(*row) for row in stored["shards"]])


def read_shard(objects: Objects, shard: Shard) -> list[VideoInput]:
    """The videos of a shard, sorted by key."""
    lines = objects.read(VIDEOS, shard.start, shard.stop).decode("ascii").splitlines()
    rows = [json.loads(line) for line in lines]
    return [VideoInput(path, key, start, stop, name) for key, path, start, stop, name, _ in rows]


def _write_sorted(
    videos: Iterable[tuple[VideoInput, str]], num_shards: int, settings: str, target: Path
) -> list[Shard]:
    """The list at `target`, sorted by (shard, key)."""
    shards: list[Shard] = []
    digest, number, count, start, at = hashlib.sha256(), -1, 0, 0, 0

    def end_shard() -> None:
        beat()
        if count:
            shards.append(Shard(number, digest.hexdigest(), count, start, at))

    with ExitStack() as stack:
        runs = [stack.enter_context(open(path, encoding="ascii")) for path in _sorted_runs(videos, num_shards, target)]
        with open(target, "wb") as file:
            for place, body in _each_once(heapq.merge(*runs)):
                if place != number:
                    end_shard()
                    digest, number, count, start = hashlib.sha256(f"{settings} {num_shards}\n".encode()), place, 0, at
                data = body.encode()
                digest.update(data)
                at, count = at + file.write(data), count + 1
            end_shard()
    return shards


def _each_once(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(shard, row) of sorted lines; of repeated inputs the one that is known best."""
    last: tuple[int, str] | None = None
    was: list[Any] = [None]
    for line in lines:
        row = json.loads(line[9:])
        if row[0] == was[0]:
            if row[:-1] != was[:-1]:
                raise ValueError(
                    f"two inputs have the key {row[0]!r}: {was[1]} and {row[1]}; leave one out, or name a root"
                )
        elif last is not None:
            yield last
        last, was = (int(line[:8], 16), line[9:]), row  # tags sort with none first
    if last is not None:
        yield last


def _sorted_runs(videos: Iterable[tuple[VideoInput, str]], num_shards: int, target: Path) -> list[Path]:
    paths: list[Path] = []
    lines: list[str] = []

    def write() -> None:
        beat()
        lines.sort()
        paths.append(target.with_suffix(f".{len(paths)}"))
        with open(paths[-1], "w", encoding="ascii") as file:
            file.writelines(lines)
        lines.clear()

    for video, tag in videos:
        whole = video.key if video.id is None else video.key.removesuffix(f"#{video.id}")
        number = int.from_bytes(hashlib.blake2b(whole.encode("utf-8", "surrogateescape"), digest_size=8).digest())
        row = json.dumps([video.key, video.path, video.start_seconds, video.stop_seconds, video.id, tag])
        lines.append(f"{number % num_shards:08x} {row}\n")  # equal keys are neighbours in any order of lines
        if len(lines) == _RUN_LINES:
            write()
    if lines:
        write()
    return paths


# ------------------------------------------------------------------------------------------------------- manifests


def manifest_bytes(shard: Shard, rows: Iterable[dict[str, Any]]) -> bytes:
    """rows: per video {"key", "outputs": {name: [bytes, crc32]}} and perhaps "damage", or {"key", "stage", "error"}."""
    lines = [canonical_json({"shard": shard.number, "id": shard.id})]
    lines += [canonical_json(row) for row in sorted(rows, key=lambda row: row["key"])]
    return "".join(f"{line}\n" for line in lines).encode()


def read_manifest(objects: Objects, shard: Shard) -> list[dict[str, Any]] | None:
    """The rows of a shard that is done, else None. Raises: ValueError where it is of another shard, or damaged."""
    try:
        lines = objects.read(shard.manifest).splitlines()
    except FileNotFoundError:
        return None
    where = f"{objects.root}/{shard.manifest}"
    try:
        head, *rows = [json.loads(line) for line in lines]
        if head != {"shard": shard.number, "id": shard.id}:
            raise ValueError(f"{where} says that it is of another shard; remove it, and run the shard again")
        return rows
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} cannot be read ({error}); remove it, and run the shard again") from error


def done_shards(objects: Objects, plan: ShardPlan) -> set[int]:
    """Numbers of the shards that have a manifest, by one listing."""
    names = set(objects.names(DONE))
    return {shard.number for shard in plan.shards if shard.manifest.rpartition("/")[2] in names}


def is_done(objects: Objects, shard: Shard, *, retry_failed: bool = False) -> bool:
    """Whether the shard has a manifest; one with errors is removed where these are to be tried again."""
    if not retry_failed:
        return objects.size(shard.manifest) is not None
    rows = read_manifest(objects, shard)
    if rows is not None and any("error" in row for row in rows):
        objects.remove(shard.manifest)
        return False
    return rows is not None


@dataclass(frozen=True)
class Problem:
    """kind: missing, doubled, unknown, damaged or failed. key: of the video; '' for a whole shard."""

    kind: str
    shard: int
    key: str
    reason: str


class Inventory:
    """Which outputs there are, by one listing of each store: 8 bytes of memory per output.

    Names and sizes are kept as hashes of 64 bits. That one which is not there is taken for another has, with ten
    million outputs, a chance of 5e-13; one that is not found is asked for by its name.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._stores: dict[str, array[int]] = {}

    def holds(self, name: str, size: int) -> bool:
        store = name.partition("/")[0]
        if store not in self._stores:
            found = array("Q", (_hash(*entry) for entry in self._objects.listing(store)))
            np.frombuffer(found, np.uint64).sort()  # in place
            self._stores[store] = found
        known, wanted = self._stores[store], _hash(name, size)
        place = bisect_left(known, wanted)
        return place < len(known) and known[place] == wanted


def _hash(name: str, size: int) -> int:
    whole = f"{size} {name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest())


def verify_shard(
    objects: Objects, shard: Shard, *, deep: bool = False, inventory: Inventory | None = None
) -> Iterator[Problem]:
    """What of a shard is not there exactly once, as its manifest says.

    deep: read every output and compare its CRC-32; without, only that it is there and its size.
    inventory: of `objects`, where many shards are looked at; without one, each output is asked for.
    """
    try:
        rows = read_manifest(objects, shard)
    except ValueError as error:
        yield Problem("damaged", shard.number, "", str(error))
        return
    if rows is None:
        yield Problem("missing", shard.number, "", f"not done yet: {shard.videos} videos")
        return
    wanted = {video.key for video in read_shard(objects, shard)}
    seen: set[str] = set()
    for row in rows:
        key = row["key"]
        if key in seen:
            yield Problem("doubled", shard.number, key, "it is in the manifest more than once")
            continue
        seen.add(key)
        if key not in wanted:
            yield Problem("unknown", shard.number, key, "it is not of this shard")
        elif "error" in row:
            yield Problem("failed", shard.number, key, f"{row['stage']}: {row['error']}")
        else:
            for name, (size, crc) in row["outputs"].items():
                if not deep and inventory is not None and inventory.holds(name, size):
                    continue
                if reason := _wrong(objects, name, size, crc, deep):
                    yield Problem("missing" if reason == "there is none" else "damaged", shard.number, key, reason)
    for key in sorted(wanted - seen):
        yield Problem("missing", shard.number, key, "it is not in the manifest")


def _wrong(objects: Objects, name: str, size: int, crc: str, deep: bool) -> str:
    found = objects.size(name)
    if found is None:
        return "there is none"
    if found != size:
        return f"{name} has {found} bytes, not {size}"
    if deep and f"{objects.crc32(name)[1]:08x}" != crc:
        return f"{name}: its bytes do not give the CRC-32 {crc}"
    return ""
