"""Metadata of sharded extraction with millions of videos: time and memory to plan, to resume and to verify.

    python benchmarks/bench_scale.py                        10 million videos in 40 000 shards: about 10 minutes, 6 GB
    python benchmarks/bench_scale.py --videos 200000 --shards 800

Every step is a process of its own on the files of the real ones, so its memory is its own: the input is a list of URLs,
manifests are written as shards write them. What is made up: the features (no model runs), and the listing of the
outputs, which the last step gets from memory instead of from a store. What a store's requests take is therefore counted
and not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from _common import run_measured, save, table

from actionfuse.extract.objects import FolderObjects
from actionfuse.extract.shards import (
    DONE,
    VIDEOS,
    Inventory,
    Shard,
    done_shards,
    manifest_bytes,
    plan_shards,
    read_plan,
    read_shard,
    verify_shard,
)
from actionfuse.pipeline.inputs import listed_inputs

LOST = 3  # outputs that the listing leaves out
PAGE = 1000  # names in an answer of S3


def key_of(number: int) -> str:
    return f"{number % 1000:03d}/{number:08d}.mp4"


def output_of(key: str) -> str:
    return f"tsn-tf_efficientnet_lite0-rgb/{key}.npz"


class Listed(FolderObjects):
    """A folder whose outputs are only listed: all but LOST of them."""

    def __init__(self, folder: Path, videos: int) -> None:
        super().__init__(folder)
        self._videos = videos

    def listing(self, folder: str) -> Iterator[tuple[str, int]]:
        return ((output_of(key_of(i)), 5000 + i % 5000) for i in range(LOST, self._videos))


def write_list(folder: Path, args: argparse.Namespace) -> None:
    with open(folder / "videos.txt", "w") as file:
        file.writelines(f"s3://videos/{key_of(i)}\n" for i in range(args.videos))


def plan(folder: Path, args: argparse.Namespace) -> None:
    with listed_inputs(folder / "videos.txt") as videos:
        found = plan_shards(videos, {"fps": 4}, args.shards, FolderObjects(folder / "out"))
    assert found.videos == args.videos


def publish(folder: Path, args: argparse.Namespace) -> None:
    objects = FolderObjects(folder / "out")
    for shard in read_plan(objects).shards:
        objects.put_new(shard.manifest, manifest_bytes(shard, _rows(objects, shard)))


def _rows(objects: FolderObjects, shard: Shard) -> Iterator[dict]:
    for video in read_shard(objects, shard):
        size = 5000 + int(video.key[4:12]) % 5000
        yield {"key": video.key, "outputs": {output_of(video.key): [size, f"{size:08x}"]}}


def start(folder: Path, args: argparse.Namespace) -> None:
    objects = FolderObjects(folder / "out")
    found = read_plan(objects)
    assert len(done_shards(objects, found)) == len(found.shards)
    assert read_shard(objects, found.shards[-1])


def verify(folder: Path, args: argparse.Namespace) -> None:
    objects = Listed(folder / "out", args.videos)
    inventory = Inventory(objects)
    found = [p for shard in read_plan(objects).shards for p in verify_shard(objects, shard, inventory=inventory)]
    assert sorted(problem.key for problem in found) == sorted(key_of(i) for i in range(LOST))


STEPS: dict[str, tuple[str, Callable[[Path, argparse.Namespace], None]]] = {
    "write_list": ("(write the list of inputs)", write_list),
    "plan": ("plan: read the list, sort, hash, write", plan),
    "publish": ("read every shard and write its manifest, one process", publish),
    "start": ("start or resume one worker: read the plan, list what is done, read a shard", start),
    "verify": ("verify: list outputs, read all manifests", verify),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=40_000)
    parser.add_argument("--folder", type=Path, help="kept, for steps run one by one (default: a temporary one)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="in this order (default: all)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        began = time.perf_counter()
        STEPS[args.steps[0]][1](args.folder, args)
        print(json.dumps(time.perf_counter() - began))
    elif args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
        measure(args.folder, args)
    else:
        with tempfile.TemporaryDirectory(prefix="actionfuse-scale-") as name:
            measure(Path(name), args)


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Run the steps; the result is saved once all of them have been run in this folder."""
    kept = folder / "rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for step in args.steps:
        command = [sys.executable, __file__, "--videos", str(args.videos), "--shards", str(args.shards), "--inside"]
        command += ["--steps", step, "--folder", str(folder)]
        cost = run_measured(command, env={**os.environ, "TMPDIR": str(folder)})
        seconds = json.loads(cost.output.splitlines()[-1])
        rows[step] = [STEPS[step][0], f"{seconds:.1f}", f"{cost.cpu_seconds:.1f}", f"{cost.peak_mb:.0f}"]
        print(*rows[step], flush=True)
        kept.write_text(json.dumps(rows))
    if rows.keys() != STEPS.keys():
        return
    sizes = {
        "list of inputs": folder / "videos.txt",
        VIDEOS: folder / "out" / VIDEOS,
        "shards/plan.json": folder / "out" / "shards" / "plan.json",
    }
    manifests = sum(entry.stat().st_size for entry in os.scandir(folder / "out" / DONE))
    lines = [f"- {what}: {path.stat().st_size / 1e6:.1f} MB" for what, path in sizes.items()]
    lines.append(f"- {DONE}: {manifests / 1e6:.1f} MB in {args.shards} objects")
    requests = [
        ("plan, of a listed prefix", -(-args.videos // PAGE), "LIST"),
        ("start of a worker", f"{-(-args.shards // PAGE)} LIST, 1", "GET"),
        ("a shard", 1, f"ranged GET of about {args.videos / args.shards:.0f} lines, 1 HEAD and 1 PUT of its manifest"),
        ("verify", f"{-(-args.videos // PAGE)} LIST, {2 * args.shards}", "GET"),
    ]
    body = table(["step", "seconds", "CPU seconds", "peak MB"], [rows[step] for step in STEPS])
    asked = table(["on S3", "requests"], [(what, f"{count} {kind}") for what, count, kind in requests])
    title = f"Metadata of {args.videos:,} videos in {args.shards:,} shards".replace(",", " ")
    save("scale", title, f"{body}\n\n{chr(10).join(lines)}\n\n{asked}")


if __name__ == "__main__":
    main()
