"""How long 1000 GPUs take over 10 million videos: shards, stragglers and failures, simulated.

    python benchmarks/simulate_scale.py

Videos have lengths of a log-normal distribution and are spread over shards at random, as the hashes of keys spread
them. A GPU that fails is away for a while and then goes on: what a shard has published stays, and the video that it was
at is too short to count. Policies:
  array   every GPU has its fixed part of the shards (Slurm array, Kubernetes)
  help    the same, and who has finished goes on with shards of others (torchrun)
  queue   a driver hands out the next shard (Ray)
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque

import numpy as np
from _common import save, table


def shard_hours(args: argparse.Namespace, shards: int, rng: np.random.Generator) -> np.ndarray:
    """Hours that one GPU takes for each shard."""
    sigma = args.spread
    seconds = rng.lognormal(np.log(args.mean_seconds) - sigma**2 / 2, sigma, args.videos)
    place = rng.integers(0, shards, args.videos)
    return np.bincount(place, seconds, shards) / args.speed / 3600 + args.shard_seconds / 3600


class Gpu:
    """Works at 1 / `slowness` of the speed, and is away from time to time."""

    def __init__(self, slowness: float, mtbf_hours: float, away_hours: float, rng: np.random.Generator) -> None:
        self.slowness, self.mtbf_hours, self.away_hours, self.rng = slowness, mtbf_hours, away_hours, rng
        self.fails_at = rng.exponential(mtbf_hours)
        self.failures = 0

    def end(self, now: float, hours: float) -> float:
        """When work of so many hours ends that begins now."""
        now += hours * self.slowness
        while now > self.fails_at:
            self.failures += 1
            self.fails_at += self.away_hours
            now += self.away_hours
            self.fails_at += self.rng.exponential(self.mtbf_hours)
        return now


def run(hours: np.ndarray, gpus: list[Gpu], policy: str, rng: np.random.Generator) -> float:
    """Hours until the last shard is done."""
    world = len(gpus)
    shared = deque(rng.permutation(len(hours)) if policy == "help" else range(len(hours)))
    own = [deque(range(rank, len(hours), world)) if policy != "queue" else deque() for rank in range(world)]
    begun = np.zeros(len(hours), bool)
    free = [(0.0, rank) for rank in range(world)]
    last = 0.0
    while free:
        now, rank = heapq.heappop(free)
        shard = next_of(own[rank], begun)
        if shard is None and policy != "array":
            shard = next_of(shared, begun)
        if shard is not None:
            begun[shard] = True
            ended = gpus[rank].end(now, float(hours[shard]))
            last = max(last, ended)
            heapq.heappush(free, (ended, rank))
    return last


def next_of(queue: deque[int], begun: np.ndarray) -> int | None:
    while queue:
        shard = queue.popleft()
        if not begun[shard]:
            return shard
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=10_000_000)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--mean-seconds", type=float, default=60.0, help="of a video (default: %(default)g)")
    parser.add_argument("--spread", type=float, default=1.5, help="sigma of the log-normal (default: %(default)g)")
    parser.add_argument("--speed", type=float, default=100.0, help="seconds of video a GPU does in one (%(default)g)")
    parser.add_argument("--shard-seconds", type=float, default=5.0, help="beside the videos (default: %(default)g)")
    parser.add_argument("--slow-share", type=float, default=0.01, help="of GPUs at half the speed (%(default)g)")
    parser.add_argument("--away-minutes", type=float, default=10.0, help="after a failure (default: %(default)g)")
    args = parser.parse_args()
    rows = []
    for shards in (1000, 10_000, 40_000, 400_000):
        hours = shard_hours(args, shards, np.random.default_rng(0))
        for name, mtbf_hours in (("one failure a GPU in 2000 h", 2000.0), ("one in 10 h (spot)", 10.0)):
            found = []
            for policy in ("array", "help", "queue"):
                rng = np.random.default_rng(1)
                slow = rng.random(args.gpus) < args.slow_share
                gpus = [Gpu(2.0 if slow[i] else 1.0, mtbf_hours, args.away_minutes / 60, rng) for i in range(args.gpus)]
                found.append(run(hours, gpus, policy, rng))
            best = args.videos * args.mean_seconds / args.speed / 3600 / args.gpus
            rows.append((shards, f"{args.videos / shards:.0f}", name, *(f"{h:.2f} h, {best / h:.0%}" for h in found)))
    lines = [
        f"{args.videos} videos of {args.mean_seconds:g} s in the mean (log-normal, sigma {args.spread:g}), "
        f"{args.gpus} GPUs at {args.speed:g} x real time, {args.slow_share:.0%} of them at half of that, "
        f"{args.shard_seconds:g} s a shard beside its videos, {args.away_minutes:g} minutes away after a failure. "
        f"Without all this it would take {args.videos * args.mean_seconds / args.speed / 3600 / args.gpus:.2f} h.",
        "",
        table(["shards", "videos each", "failures", "array", "help", "queue"], rows),
    ]
    save("scale-simulation", "Time to the last shard, simulated, and its share of use", "\n".join(lines))


if __name__ == "__main__":
    main()
