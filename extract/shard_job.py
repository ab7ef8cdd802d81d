"""A shard's extraction: into a scratch folder, each output published by put-if-absent, at last the shard's manifest."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..pipeline.inputs import VideoInput
from .objects import FolderObjects, Objects
from .run import Job
from .shard_run import ONE_FILE
from .shards import Shard, ShardPlan, manifest_bytes, read_shard
from .sinks import FailureList, StoreSink

PUBLISHING = 8  # outputs under way to the store at a time


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
