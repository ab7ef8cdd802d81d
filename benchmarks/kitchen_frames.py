"""What keeps the benchmark's 90 minutes for the models: frames are decoded once, rows of features looked up once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from actionfuse.pipeline import open_video
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.protocols import Task
from actionfuse.pipeline.samples import Sample, SegmentDataset
from actionfuse.pipeline.types import Frames
from actionfuse.pipeline.video import SizeLike, VideoInfo, VideoReader, scaled_size
from actionfuse.train.drawn import DrawnTasks


class StoredFrames(VideoReader):
    """A video as an array of every 1/fps s, uint8 (N, H, W, 3) or (N, H, W, 1) of grey, scaled when it is asked for.

    The kitchen's actions start at multiples of 0.25 s, so the times of their clips at 8 fps are those of the array.
    """

    def __init__(self, info: VideoInfo, frames: np.ndarray, fps: float) -> None:
        self.path, self.info, self.damage, self.decoder = info.path, info, [], "stored"
        self.frames, self.fps = frames, fps

    def select(
        self, seconds: Iterable[float], short_sides: Sequence[SizeLike] = (None,), batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        times = np.fromiter(seconds, np.float64)
        rows = np.floor((times - self.info.start_seconds) * self.fps + 1e-6).astype(np.int64)
        rows = rows[rows < len(self.frames)].clip(0)
        for first in range(0, len(rows), batch):
            some = rows[first : first + batch]
            stamps = self.info.start_seconds + some / self.fps
            yield tuple(Frames(self._scaled(some, side), stamps) for side in short_sides)

    def all_frames(
        self, short_sides: Sequence[SizeLike] = (None,), start_seconds: float = 0.0, batch: int = 64
    ) -> Iterator[tuple[Frames, ...]]:
        times = self.info.start_seconds + np.arange(len(self.frames)) / self.fps
        return self.select(times[times + 1 / self.fps > start_seconds].tolist(), short_sides, batch)

    def close(self) -> None:
        pass

    def _scaled(self, rows: np.ndarray, side: SizeLike) -> np.ndarray:
        frames = self.frames[rows]
        size = scaled_size(frames.shape[2], frames.shape[1], side)
        if size != (frames.shape[2], frames.shape[1]):
            frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
            frames = frames.reshape(len(rows), size[1], size[0], -1)
        return frames if frames.shape[-1] == 3 else np.repeat(frames, 3, -1)


def store_frames(folder: Path, out: Path, fps: float, *, grey: bool) -> None:
    """Decode all videos of a folder, at `fps` frames a second, into `out`; what is there is not made again."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.mp4")):
        target = out / f"{path.stem}.npy"
        if target.is_file():
            continue
        with open_video(path, threads=1) as reader:
            frames = np.concatenate([part.data for part in reader.stream(fps=fps)])
        temporary = target.with_suffix(".part")
        with temporary.open("wb") as file:
            np.save(file, frames[..., :1] if grey else frames)
        temporary.replace(target)


def lend_stored(dataset: SegmentDataset, stored: Path, stream: str, fps: float) -> None:
    """Let a dataset read its videos of `stream` from what `store_frames` wrote."""
    split = dataset.dataset
    paths = {split.path(segment, stream) for segment in split.segments}
    for path in sorted(paths):
        with open_video(path, threads=1) as reader:
            info = reader.info
        dataset.lend(path, StoredFrames(info, np.load(stored / f"{path.stem}.npy", mmap_mode="r"), fps))


Memory = dict[tuple[str, ...], Sample]


def remember_samples(dataset: SegmentDataset, memory: Memory) -> None:
    """Keep the samples of a dataset that draws nothing but its task (stored features, a rule without chance), for all
    who share `memory`: the runs of one task on these streams or on some of them. All are read now, video by video.
    """
    drawing = dataset if isinstance(dataset, DrawnTasks) else None
    names, read = tuple(spec.name for spec in dataset.streams), dataset.sample

    def sample(segment: Segment, epoch: int = 0, index: int = 0, task: Task | None = None) -> Sample:
        task = task or (drawing.drawn(epoch, index) if drawing else dataset.task)
        return replace(find(segment, task), index=index, epoch=epoch)

    def find(segment: Segment, task: Task) -> Sample:
        key = (f"{task} {dataset.sampling}", segment.id)
        known = memory.get((*key, *names)) or memory.get(key)
        if known is None or not (known.error or known.streams.keys() >= set(names)):
            known = read(segment, task=task)
            # What some streams cannot show, others may.
            memory[(*key, *names) if known.error else key] = known
        if known.error:
            return known
        some = ({name: part[name] for name in names} for part in (known.streams, known.masks, known.seconds))
        streams, masks, seconds = some
        return replace(known, streams=streams, masks=masks, seconds=seconds)

    for segment in dataset.dataset.segments:
        for task in drawing.tasks if drawing else (dataset.task,):
            find(segment, task)
    dataset.sample = sample
