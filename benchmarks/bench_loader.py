"""SegmentDataset in a DataLoader against decoding alone and against loaders with cv2, on the same frames.

    bench_loader.py [CASES ...]      without cases: all of them (`--help` lists them)

The raw limit decodes, and nothing else: of each group of pictures that holds a wanted frame the packets from its key
frame to the last frame wanted, by FFmpeg through PyAV, in one thread a worker, with pictures that no other refers to
left out where they are not wanted. What is to be decoded was found before; nothing is looked for, converted or sent.
The limit with RGB also makes a picture of every wanted frame, whole and at the size of the case, and drops it.
The plain loader opens a file with cv2.VideoCapture, seeks to the first frame, reads on to the last one, resizes those
that are wanted, crops and makes RGB. The tuned one only decodes the frames between (`grab`), or seeks to each where
that is faster, in one thread a worker. Their scaling is cv2's default, which is not antialiased.

Every program runs in a DataLoader with as many workers and the same order of samples; workers are warm. Ours and
the raw limit keep the same number of files open, of which there are more. Programs take turns, in a new order in each
round; figures are ratios within a round: of wall time, and of CPU-seconds of the workers, which other work on the
machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from multiprocessing import active_children
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _common import save, table
from loader_cases import CASES, CROP, SIDE, Case
from loader_programs import Packets, PlainCv2, RawDecoding, Run
from torch.utils.data import DataLoader

from actionfuse.pipeline import EpochSampler, SegmentDataset, make_loader

OURS, RAW, RGB = "actionfuse", "raw limit", "raw limit with RGB"
PLAIN, TUNED = "plain cv2 loader", "tuned cv2 loader"
OPEN_FILES = 8  # SegmentDataset's default
Item = tuple[int, int]  # (epoch, index)


class Taken(NamedTuple):
    """Seconds of one round."""

    wall: float
    cpu: float


def dataset_of(case: Case, folder: Path) -> SegmentDataset:
    return SegmentDataset(
        case.segments(folder), [case.spec], task=case.task, sampling=case.sampling, training=case.training,
        augmentation=case.augmentation, open_readers=OPEN_FILES,
    )  # fmt: skip


def frames_of(case: Case, ours: SegmentDataset, epochs: int) -> tuple[dict[Item, np.ndarray], dict[Item, list[Run]]]:
    """Which frames each sample holds, by the time stamps that ours gives, and what must be decoded for them."""
    known: dict[int, Packets] = {}  # by inode: links are the same file
    numbers: dict[Item, np.ndarray] = {}
    runs: dict[Item, list[Run]] = {}
    for index, segment in enumerate(ours.dataset.segments):
        inode = os.stat(segment.video).st_ino
        packets = known.setdefault(inode, known.get(inode) or Packets(segment.video))
        for epoch in range(epochs):
            numbers[epoch, index] = packets.numbers(ours[epoch, index].seconds["rgb"].numpy())
            runs[epoch, index] = packets.runs(numbers[epoch, index])
    return numbers, runs


def check_alike(case: Case, ours: SegmentDataset, plain: PlainCv2) -> None:
    """The plain loader gives the same frames: pixels agree but for the scaling filter."""
    if case.augmented:
        return
    for index in range(3):
        mine, its = ours[0, index].streams["rgb"].float(), plain[0, index].float()
        apart = (mine - its).abs().mean(dim=(1, 2, 3)).max().item()
        if mine.shape != its.shape or apart > 8:
            raise RuntimeError(f"{case.name}: frames of the plain loader differ by {apart:.1f} grey levels")


def measure(case: Case, folder: Path, batch: int, workers: int, repeats: int) -> dict[str, list[Taken]]:
    """Program -> what each round took, after one that warms up."""
    ours = dataset_of(case, folder)
    numbers, runs = frames_of(case, ours, repeats + 1)
    paths = [segment.video for segment in ours.dataset.segments]
    cut = {"side": SIDE, "crop": CROP, "augmented": case.augmented}
    plain = PlainCv2(paths, numbers, skipping="read", threads=None, **cut)
    tuned = PlainCv2(paths, numbers, skipping="seek" if case.seek_each else "grab", threads=1, **cut)
    for loader in (plain, tuned):
        check_alike(case, ours, loader)
    ours = dataset_of(case, folder)  # nothing is open, nothing known
    sampler = EpochSampler(len(ours))
    settings = {"batch_size": batch, "sampler": sampler, "num_workers": workers, "persistent_workers": workers > 0}
    loaders = {
        OURS: make_loader(ours, batch_size=batch, sampler=sampler, num_workers=workers),
        RAW: DataLoader(RawDecoding(paths, runs, OPEN_FILES), **settings),
        RGB: DataLoader(RawDecoding(paths, runs, OPEN_FILES, SIDE), **settings),
        PLAIN: DataLoader(plain, **settings),
        TUNED: DataLoader(tuned, **settings),
    }
    found: dict[str, list[Taken]] = {name: [] for name in loaders}
    pids: dict[str, list[int]] = {}
    order = list(loaders)
    for epoch in range(repeats + 1):
        sampler.set_epoch(epoch)
        for name in order:
            others = {child.pid for child in active_children()}
            cpu, wall = cpu_seconds(pids.get(name, [])), time.perf_counter()
            count = sum(1 for _ in loaders[name])
            wall = time.perf_counter() - wall
            assert count == -(-len(ours) // batch)
            if epoch:
                found[name].append(Taken(wall, cpu_seconds(pids[name]) - cpu))
            else:
                pids[name] = [child.pid for child in active_children() if child.pid and child.pid not in others]
        order = order[1:] + order[:1]
    return found


def cpu_seconds(pids: list[int]) -> float:
    """What these processes have used so far, all their threads together; of this one where there are none."""
    if not pids:
        return time.process_time()
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def ratios(over: list[Taken], under: list[Taken], field: int) -> list[float]:
    return [a[field] / max(b[field], 1e-3) for a, b in zip(over, under, strict=True)]


def spread(values: list[float]) -> str:
    return f"**{statistics.median(values):.2f}** ({min(values):.2f}..{max(values):.2f})"


def main() -> None:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASES", help=", ".join(names))
    parser.add_argument("--repeats", type=int, default=3, help="rounds; each program runs once in each")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each DataLoader")
    parser.add_argument("--batch", type=int, default=2, help="samples in a batch")
    folder = Path(tempfile.gettempdir()) / "actionfuse-bench" / "loader"
    parser.add_argument("--folder", type=Path, default=folder, help="where the videos are kept")
    parser.add_argument("--prepare", action="store_true", help="make the videos and measure nothing")
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.batch) < 1:
        parser.error("--repeats and --batch must be at least 1")
    if unknown := sorted(set(arguments.cases) - set(names)):
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(names)}")
    cases = [case for case in CASES if case.name in (arguments.cases or names)]
    for case in cases:
        case.videos.make(arguments.folder)
    if arguments.prepare:
        return
    torch.set_num_threads(1)
    load, began, rows = os.getloadavg()[0], time.perf_counter(), []
    for case in cases:
        found = measure(case, arguments.folder, arguments.batch, arguments.workers, arguments.repeats)
        speed = case.samples / statistics.median(taken.wall for taken in found[OURS])
        others = (RAW, RGB, PLAIN, TUNED)
        figures = [spread(ratios(found[name], found[OURS], field)) for name in others for field in (0, 1)]
        figures += [spread(ratios(found[TUNED], found[RAW], 1))]
        rows.append([case.name, f"{speed:.1f}", *figures])
        print(*rows[-1], flush=True)
    head = ["", "clips a second", "share of the raw limit", "in CPU time", "share of the limit with RGB",
            "in CPU time", "times the plain cv2 loader", "in CPU time", "times the tuned cv2 loader", "in CPU time",
            "the raw limit, times the tuned cv2 loader, in CPU time"]  # fmt: skip
    about = (
        f"{arguments.workers} workers, batches of {arguments.batch}, {arguments.repeats} rounds: median (least..most). "
        f"Load average {load:.1f} before, {os.getloadavg()[0]:.1f} after; {time.perf_counter() - began:.0f} s in all."
    )
    told = "\n".join(f"- {case}" for case in cases)
    save("loader", "Loading clips", f"{__doc__}\n{told}\n\n{about}\n\n{table(head, rows)}")


if __name__ == "__main__":
    main()
