"""SegmentDataset in a DataLoader against decoding alone and against a plain loader with cv2, on the same frames.

    bench_loader.py [FILES ...]      without files: ten-second clips of 340x256, 1280x720 and 1920x1080

uniform  8 frames spread over the file, resized to short side 256, middle 224 x 224 pixels
clip     16 frames, stride 4, at a random place, cut alike
train    8 random frames of equal parts, a random resized crop and a flip

Every program runs in a DataLoader with as many workers and the same order of samples; workers are warm, files that were
opened stay open where a program keeps them. The raw limit decodes the same frames with PyAV, one thread a worker, seeks
where a key frame lies nearer, and converts nothing. The plain loader opens the file with cv2.VideoCapture for each
sample, seeks to the first frame, reads on, resizes and cuts. Programs take turns, in a new order in each round; figures
are ratios within a round: of wall time, and of CPU-seconds of the workers, which a busy machine disturbs less (cv2
decodes with threads of its own, beside the workers).
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

import av
import cv2
import numpy as np
import torch
from _clips import encode, sources
from _common import save, table
from torch.utils.data import DataLoader, Dataset

from actionfuse.pipeline import (
    Augmentation,
    EpochSampler,
    Sampling,
    SegmentDataset,
    StreamSpec,
    make_loader,
    open_video,
)
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.video import scaled_size

SIDE, CROP = 256, 224
PATTERNS = ("uniform", "clip", "train")
OURS, RAW, CV2 = "actionfuse", "raw limit", "plain cv2 loader"
Wanted = dict[tuple[int, int], np.ndarray]  # (epoch, index) -> times of its frames


def dataset_of(pattern: str, files: list[Path], copies: int) -> SegmentDataset:
    """Each file `copies` times."""
    segments = []
    for copy in range(copies):
        for path in files:
            with open_video(path) as reader:
                segments.append(Segment(str(path), 0.0, reader.info.stop_seconds, f"{path.stem}-{copy}"))
    spec = StreamSpec(frames=16 if pattern == "clip" else 8, resize_side=SIDE, crop=CROP)
    sampling = Sampling(rule="strided", stride_frames=4) if pattern == "clip" else Sampling(rule="segments")
    augmentation = Augmentation() if pattern == "train" else None
    return SegmentDataset(
        segments, [spec], sampling=sampling, training=pattern != "uniform", augmentation=augmentation, open_readers=64
    )


class RawFrames(Dataset):
    """Decodes the frames that are wanted and gives nothing."""

    def __init__(self, files: list[str], wanted: Wanted) -> None:
        self.files, self.wanted = files, wanted
        self._open: dict[str, tuple] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> int:
        path = self.files[item[1]]
        if path not in self._open:
            container = av.open(path)
            container.streams.video[0].thread_count = 1
            keys = [float(p.pts * p.time_base) for p in container.demux(video=0) if p.is_keyframe and p.pts is not None]
            self._open[path] = container, np.sort(keys)
        container, keys = self._open[path]
        stream = container.streams.video[0]
        here, decoding, count = -np.inf, iter(()), 0
        for seconds in np.sort(self.wanted[item]):
            key = keys[max(0, np.searchsorted(keys, seconds + 1e-4) - 1)]
            if here == -np.inf or key > here + 1e-4:
                container.seek(int(round(key / stream.time_base)), stream=stream)
                decoding, here = iter(container.decode(stream)), -1.0
            while here < seconds - 1e-4:
                here = float(next(decoding).time)
            count += 1
        return count


class PlainCv2(Dataset):
    """What most people's script does."""

    def __init__(self, files: list[str], wanted: Wanted, train: bool) -> None:
        self.files, self.wanted, self.train = files, wanted, train

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> torch.Tensor:
        capture = cv2.VideoCapture(self.files[item[1]])
        rate = capture.get(cv2.CAP_PROP_FPS)
        numbers = np.rint(self.wanted[item] * rate).astype(int)
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(numbers[0]))
        upcoming, pictures = int(numbers[0]), []
        for number in numbers:
            for _ in range(int(number) - upcoming):
                capture.grab()
            if number >= upcoming:
                there, picture = capture.read()
                upcoming = int(number) + 1
                if not there:
                    raise RuntimeError(f"{self.files[item[1]]} has no frame {number}")
            pictures.append(self._cut(picture))  # pyright: ignore[reportPossiblyUnboundVariable]
        capture.release()
        return torch.from_numpy(np.stack(pictures))

    def _cut(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        if self.train:  # a fixed cut of half the area: what a random one is on average
            high, wide = int(height * 0.75), int(width * 0.67)
            cut = cv2.resize(picture[:high, :wide], (CROP, CROP), interpolation=cv2.INTER_AREA)[:, ::-1]
        else:
            small = cv2.resize(picture, scaled_size(width, height, SIDE), interpolation=cv2.INTER_AREA)
            top, left = (small.shape[0] - CROP) // 2, (small.shape[1] - CROP) // 2
            cut = small[top : top + CROP, left : left + CROP]
        return cv2.cvtColor(np.ascontiguousarray(cut), cv2.COLOR_BGR2RGB)


class Taken(NamedTuple):
    """Seconds of one round."""

    wall: float
    cpu: float


def measure(
    pattern: str, files: list[Path], copies: int, batch: int, workers: int, repeats: int
) -> dict[str, list[Taken]]:
    """Program -> what each round took, after one that warms up."""
    ours = dataset_of(pattern, files, copies)
    wanted: Wanted = {}
    for epoch in range(repeats + 1):
        for index in range(len(ours)):
            wanted[epoch, index] = ours[epoch, index].seconds["rgb"].numpy()
    ours.close()
    paths = [segment.video for segment in ours.dataset.segments]
    sampler = EpochSampler(len(ours))
    settings = {"batch_size": batch, "sampler": sampler, "num_workers": workers, "persistent_workers": workers > 0}
    loaders = {
        OURS: make_loader(ours, batch_size=batch, sampler=sampler, num_workers=workers),
        RAW: DataLoader(RawFrames(paths, wanted), **settings),
        CV2: DataLoader(PlainCv2(paths, wanted, pattern == "train"), **settings),
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


def default_files(folder: Path, seconds: float, count: int) -> dict[str, list[Path]]:
    """Groups of equal clips."""
    found = {}
    for width, height, gop in ((340, 256, 250), (1280, 720, 48), (1920, 1080, 250)):
        whole = encode(sources()[1], folder / f"{height}p-{seconds:g}s.mp4", width=width, height=height,
                       seconds=seconds, gop=gop)  # fmt: skip
        copies = [folder / f"{height}p-{seconds:g}s-{n}.mp4" for n in range(count)]
        for copy in copies:
            if not copy.exists():
                os.link(whole, copy)
        found[f"{width}x{height}, key frame every {gop}"] = copies
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="videos to measure on")
    parser.add_argument(
        "--patterns", nargs="+", default=["uniform", "clip", "train"], choices=["uniform", "clip", "train"]
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds; each program runs once in each")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each DataLoader")
    parser.add_argument("--batch", type=int, default=4, help="samples in a batch")
    parser.add_argument("--clips", type=int, default=4, help="clips of each kind that are made without FILES")
    parser.add_argument("--copies", type=int, default=4, help="how often each file comes in an epoch")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of those clips")
    folder = Path(tempfile.gettempdir()) / "actionfuse-bench" / "loader"
    parser.add_argument("--folder", type=Path, default=folder, help="where those clips are kept")
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.batch, arguments.clips, arguments.copies) < 1:
        parser.error("--repeats, --batch, --clips and --copies must be at least 1")
    groups = {"given files": arguments.files} if arguments.files else default_files(
        arguments.folder, arguments.seconds, arguments.clips)  # fmt: skip
    load = os.getloadavg()[0]
    rows = []
    for group, files in groups.items():
        for pattern in arguments.patterns:
            found = measure(pattern, files, arguments.copies, arguments.batch, arguments.workers, arguments.repeats)
            ours = found[OURS]
            samples = len(files) * arguments.copies
            speed = samples / statistics.median(taken.wall for taken in ours)
            figures = [spread(ratios(found[name], ours, field)) for name in (RAW, CV2) for field in (0, 1)]
            rows.append([group, pattern, f"{speed:.1f}", *figures])
            print(*rows[-1], flush=True)
    head = ["", "", "clips a second", "share of the raw limit", "the same in CPU time",
            "times the plain cv2 loader", "the same in CPU time"]  # fmt: skip
    about = (
        f"{arguments.workers} workers, batches of {arguments.batch}, {arguments.repeats} rounds: median (least..most). "
        f"Load average {load:.1f} before, {os.getloadavg()[0]:.1f} after."
    )
    save("loader", "Loading clips", f"{__doc__}\n{about}\n\n{table(head, rows)}")


if __name__ == "__main__":
    main()
