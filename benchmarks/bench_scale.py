"""Metadata paths of sharded extraction with millions of entries: time and memory to plan, to resume and to verify.

    python benchmarks/bench_scale.py --videos 10000000 --shards 10000

Runs no model: the manifests are made up. Outputs are not looked at one by one, which takes a request each on a store;
what that costs is measured apart, on --outputs files. Prints one json object.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actionfuse.extract.objects import open_objects
from actionfuse.extract.shards import is_done, manifest_bytes, plan_shards, read_plan, read_shard, verify_shard
from actionfuse.pipeline.inputs import VideoInput


def inputs(count: int) -> Iterator[tuple[VideoInput, str]]:
    for i in range(count):
        key = f"{i % 1000:03d}/{i:08d}.mp4"
        yield VideoInput(f"s3://videos/{key}", key), f"{i:016x}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--outputs", type=int, default=10_000)
    args = parser.parse_args()
    said: dict[str, float] = {"videos": args.videos, "shards": args.shards}

    @contextmanager
    def measured(name: str) -> Iterator[None]:
        since = time.perf_counter()
        yield
        said[f"{name}_seconds"] = round(time.perf_counter() - since, 2)
        said[f"{name}_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    with tempfile.TemporaryDirectory() as folder:
        objects = open_objects(folder)
        with measured("plan"):
            plan = plan_shards(inputs(args.videos), {"fps": 4}, args.shards, objects)
        said["list_mib"] = Path(folder, "shards/videos.jsonl").stat().st_size >> 20
        said["plan_kib"] = Path(folder, "shards/plan.json").stat().st_size >> 10
        with measured("read_plan_and_one_shard"):
            read_shard(objects, read_plan(objects).shards[-1])
        with measured("manifests"):
            for shard in plan.shards:
                rows = ({"key": video.key, "stage": "x", "error": "x"} for video in read_shard(objects, shard))
                objects.put_new(shard.manifest, manifest_bytes(shard, rows))
        with measured("resume"):
            assert all(is_done(objects, shard) for shard in plan.shards)
        with measured("verify"):
            found = sum(1 for shard in plan.shards for _ in verify_shard(objects, shard))
        assert found == args.videos
        for i in range(args.outputs):
            Path(folder, f"{i}.npz").write_bytes(b"x")
        with measured("look_at_outputs"):
            assert all(objects.size(f"{i}.npz") == 1 for i in range(args.outputs))
    print(json.dumps(said))


if __name__ == "__main__":
    main()
