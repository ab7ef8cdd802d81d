"""SegmentDataset: segments to tensors, from videos or stored features, for torch's DataLoader.

    dataset = SegmentDataset(load_dataset(...), [StreamSpec(stream="rgb", frames=8)], training=True)
    sampler = EpochSampler(len(dataset), seed=0)
    for batch in make_loader(dataset, batch_size=8, sampler=sampler, num_workers=4): ...

A sample is a function of (seed, epoch, index) and of the files, whoever reads it. Pictures and flow stay uint8 until
they are on the device (`InputSpec.normalise`), but depth of 16 bits is float32. What cannot be read is a sample that
says so.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from multiprocessing import get_start_method
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from actionfuse._memory import keep_freed_memory

from .annotations import Segment
from .audio import AudioReader
from .clip_reader import Entries, Shelf, read_features, store_of
from .clip_spec import Augmentation, FeatureSpec, StreamSpec
from .datasets.contract import Dataset
from .order import EpochSampler
from .past_labels import PastLabels, single_label_tasks
from .pixel_reader import TIME, Draw, PixelReader
from .protocols import Anticipation, NotObserved, Observation, Recognition, Sampling, Task
from .sampling import draw
from .shared_batches import SharedCollate, shared_memory_available
from .video import VideoError, VideoReader

IGNORED = -100  # the label of a segment that has none: what torch's cross_entropy leaves out


@dataclass(frozen=True)
class Sample:
    """One segment as tensors.

    streams: name -> (T, H, W, C) or (T, ...) of features; with several views (T of each first) (views, T, ...).
    masks: bool (T,), False where there is nothing real. seconds: float64 (T,), when each entry was.
    boxes: boxes (T, N, 4), present (T, N), categories (N,), by the entries of the first stream of pictures.
    labels: int64 (), IGNORED where unknown, or bool (classes,) where several hold.
    past_labels: task -> int64 (T,), what was done at each entry of the first stream, where SegmentDataset was asked.
    pairs: of a stream of flow that is yet to be computed, int64 (T, flow_stack, 2): which two of the frames that the
    stream holds, uint8 (F, H, W, 3), make each field. flow_network: by which method, with which weights.
    start_seconds, stop_seconds: what was observed. damage: what the decoder could not read, in words.
    error: why there is nothing; then all dictionaries are empty.
    """

    id: str
    index: int
    epoch: int
    streams: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, Tensor] = field(default_factory=dict)
    boxes: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
    start_seconds: float = 0.0
    stop_seconds: float = 0.0
    damage: str = ""
    error: str = ""
    past_labels: dict[str, Tensor] = field(default_factory=dict)
    pairs: dict[str, Tensor] = field(default_factory=dict)
    flow_network: tuple[str, str] | None = None


class SegmentDataset(TorchDataset):
    """A map-style dataset of Samples; an index is a number, or (epoch, number) as EpochSampler gives it.

    segments: a Dataset, or segments whose `video` is a path below `root`.
    streams: what a sample holds. Streams of pixels may be rgb, flow, depth, ir and audio; flow and audio come from the
        file of rgb where the dataset has none of their own.
    task: what of a segment is observed. sampling: where in it the entries lie.
    training: random places (and `augmentation`; None: the middle crop); else the rule's test and `num_crops` crops.
    classes: task -> number of classes, for tasks with several labels of list[Segment].
    flipped_labels: task -> class -> the class that it becomes where a clip is mirrored ("to the left").
    past_labels: samples also tell, for each observed entry of the first stream, which other segment of the video it
        shows (`past_labels.py`), for tasks in which a segment has one label; Anticipation only.
    instances: slots for boxes; None = all that there are (collate pads), 0 = no boxes.
    open_readers: files that each worker keeps open. decoder: as in `open_video`. frame_fps: how fast folders of frames
        count; None = as `Dataset.frame_fps` says, and 30 where it says nothing.
    transform: what becomes of each sample that could be read, in the worker; it must pickle.
    """

    def __init__(
        self,
        segments: Dataset | Sequence[Segment],
        streams: Sequence[StreamSpec | FeatureSpec],
        *,
        task: Task | None = None,
        sampling: Sampling | None = None,
        training: bool = False,
        augmentation: Augmentation | None = None,
        num_crops: Literal[1, 3] = 1,
        seed: int = 0,
        root: str | Path = ".",
        classes: Mapping[str, int] | None = None,
        flipped_labels: Mapping[str, Mapping[int, int]] | None = None,
        past_labels: bool = False,
        instances: int | None = 0,
        open_readers: int = 8,
        decoder: str = "auto",
        frame_fps: float | None = None,
        transform: Callable[[Sample], Sample] | None = None,
    ) -> None:
        if not isinstance(segments, Dataset):
            segments = Dataset(
                name="segments", split="all", segments=tuple(segments), classes={}, root=Path(root),
                paths={"rgb": "{video}"},
            )  # fmt: skip
        self.dataset, self.streams = segments, tuple(streams)
        self.task, self.sampling = task or Recognition(), sampling or Sampling()
        self.training, self.seed, self.transform = training, seed, transform
        self.flipped_labels = dict(flipped_labels or {})
        self._features = tuple(spec for spec in self.streams if isinstance(spec, FeatureSpec))
        self._pixels = PixelReader(
            dataset=segments,
            specs=tuple(spec for spec in self.streams if isinstance(spec, StreamSpec)),
            sampling=self.sampling,
            training=training,
            augmentation=augmentation,
            num_crops=num_crops,
            instances=instances,
            shelf=Shelf(open_readers, decoder, frame_fps),
        )
        self._check()
        self._flow_network = next(
            ((spec.flow_method, spec.flow_weights or "") for spec in self._pixels.specs if spec.flow_on_device), None
        )
        self._tasks = _label_kinds(segments, classes or {})
        self._past = self._make_past() if past_labels else None
        self._stores = {spec.name: store_of(spec) for spec in self._features}
        # Shared, so that workers that live longer than an epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def _check(self) -> None:
        names = [spec.name for spec in self.streams]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"streams are {', '.join(names) or 'none'}; give at least one, each once")
        pixels = self._pixels
        paths = self.dataset.paths
        borrowing = ("flow", "audio")  # streams that the file of rgb has as well
        missing = [
            spec.stream
            for spec in pixels.specs
            if spec.stream not in paths and not (spec.stream in borrowing and "rgb" in paths)
        ]
        if missing:
            raise ValueError(
                f"{self.dataset.name} has no stream {', '.join(missing)}; it has {', '.join(paths) or 'none'}"
            )
        if pixels.num_crops not in (1, 3) or (self.training and pixels.num_crops != 1):
            raise ValueError(f"num_crops is {pixels.num_crops}; it must be 1, or 3 in tests")
        if pixels.augmentation is not None and not self.training:
            raise ValueError("an augmentation was given, but training is False: leave one of the two out")
        if pixels.instances != 0 and not pixels.pictures:
            raise ValueError("boxes belong to pictures: give a stream rgb, flow, depth or ir, or instances=0")
        if self.num_views > 1 and self._features:
            raise ValueError("several crops or clips need streams of pixels; stored features have one view")

    def _make_past(self) -> PastLabels:
        if not isinstance(self.task, Anticipation):
            raise ValueError(
                f"past_labels are of what comes before an action: the task must be Anticipation, not {self.task}"
            )
        tasks = single_label_tasks(self._tasks)
        if not tasks:
            raise ValueError(f"past_labels need a task with one label a segment; there are {', '.join(self._tasks)}")
        return PastLabels(self.dataset.segments, tasks, IGNORED)

    @property
    def num_views(self) -> int:
        """Views of a sample, clips x crops, all crops of a clip together. Above 1 streams have an axis for them."""
        return self._pixels.num_crops * (1 if self.training else self.sampling.num_clips)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def lend(self, path: str | Path, reader: VideoReader | AudioReader) -> None:
        """Read this reader of pictures or sound, which may be of a stream that still runs, wherever the file of a
        segment is `path`. Readers that are lent do not count in `open_readers`.
        """
        self._pixels.shelf.put(str(path), reader)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that plain indices are drawn for. EpochSampler says its own with every index."""
        self._epoch.fill_(epoch)

    def close(self) -> None:
        """Close the files that this process holds open; they open again when they are needed."""
        self._pixels.shelf.close()

    def __len__(self) -> int:
        return len(self.dataset.segments)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        epoch, index = item if isinstance(item, tuple) else (self.epoch, item)
        return self.sample(self.dataset.segments[index], epoch, index % len(self))

    def sample(self, segment: Segment, epoch: int = 0, index: int = 0, task: Task | None = None) -> Sample:
        """The sample of any segment of the dataset's videos, drawn as (epoch, index).

        task: what is observed, in place of the dataset's.
        """
        try:
            sample = self._read(segment, epoch, index, task or self.task)
            return sample if self.transform is None else self.transform(sample)
        except (VideoError, OSError, NotObserved) as error:
            return Sample(segment.id, index, epoch, error=str(error) or type(error).__name__)

    # --- one sample

    def _read(self, segment: Segment, epoch: int, index: int, task: Task) -> Sample:
        of_part = partial(draw, self.seed, epoch, index)
        stop = segment.stop_seconds if math.isfinite(segment.stop_seconds) else self._end(segment)
        if not stop > segment.start_seconds:
            raise NotObserved(f"the segment starts at {segment.start_seconds} s, but its video ends at {stop:.3f} s")
        observation = task.observe(segment.start_seconds, stop)
        pixels = self._pixels.read(segment, observation, of_part)
        entries = pixels.entries | {
            spec.name: self._stored(segment, spec, observation, of_part) for spec in self._features
        }
        entries = {spec.name: entries[spec.name] for spec in self.streams}

        def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
            return {name: _tensor(array if self.num_views > 1 else array[0]) for name, array in arrays.items()}

        return Sample(
            segment.id,
            index,
            epoch,
            tensors({name: each.data for name, each in entries.items()}),
            tensors({name: each.mask for name, each in entries.items()}),
            tensors({name: each.seconds for name, each in entries.items()}),
            tensors(pixels.boxes),
            {name: self._label(segment, name, pixels.flip) for name in self._tasks},
            observation.start_seconds,
            observation.stop_seconds,
            pixels.damage,
            past_labels=tensors(self._past_labels(segment, observation, entries, pixels.flip)),
            pairs=tensors({name: each.pairs for name, each in entries.items() if each.pairs is not None}),
            flow_network=self._flow_network,
        )

    def _past_labels(
        self, segment: Segment, observation: Observation, entries: Mapping[str, Entries], flip: bool
    ) -> dict[str, np.ndarray]:
        if self._past is None:
            return {}
        lead = self.streams[0]
        seen, ended = entries[lead.name], isinstance(lead, FeatureSpec)
        found = self._past.at(segment.video, seen.seconds, observation.horizon_seconds, ended=ended)
        for task, labels in found.items():
            for old, new in self.flipped_labels.get(task, {}).items() if flip else ():
                labels = np.where(found[task] == old, new, labels)
            found[task] = np.where(seen.mask, labels, IGNORED)
        return found

    def _stored(self, segment: Segment, spec: FeatureSpec, observation: Observation, of_part: Draw) -> Entries:
        rng = of_part(TIME) if self.training else None
        return read_features(self._stores[spec.name], _key(spec, segment), spec, observation, self.sampling, rng)

    def _end(self, segment: Segment) -> float:
        """When a segment without an end stops: with its video, or with its last row of features."""
        end = self._pixels.end_seconds(segment)
        if end is not None:
            return end
        if not self._features:
            raise NotObserved(f"segment {segment.id!r} has no end, and sound alone does not say where it is")
        spec = self._features[0]
        try:
            return float(self._stores[spec.name].read(_key(spec, segment)).stop_seconds.max())
        except ValueError as error:
            raise NotObserved(str(error)) from error

    def labels(self) -> dict[str, np.ndarray]:
        """Of all segments, in their order: task -> int64 (N,), IGNORED where unknown, or bool (N, classes)."""
        segments = self.dataset.segments
        return {task: np.stack([self._label(each, task, False).numpy() for each in segments]) for task in self._tasks}

    def _label(self, segment: Segment, task: str, flip: bool) -> Tensor:
        count, label = self._tasks[task], segment.labels.get(task)
        swaps = self.flipped_labels.get(task, {}) if flip else {}
        if count is None:
            return torch.tensor(IGNORED if label is None else swaps.get(_one(label), _one(label)))
        several = torch.zeros(count, dtype=torch.bool)
        for number in () if label is None else label if isinstance(label, tuple) else (label,):
            several[swaps.get(number, number)] = True
        return several


def _tensor(array: np.ndarray) -> Tensor:
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _key(spec: FeatureSpec, segment: Segment) -> str:
    return spec.key.format(video=segment.video, id=segment.id, **segment.extra)


def _one(label: int | tuple[int, ...]) -> int:
    return label if isinstance(label, int) else label[0]


def _label_kinds(dataset: Dataset, classes: Mapping[str, int]) -> dict[str, int | None]:
    """Task -> None where a segment has one label, else the number of classes."""
    several: dict[str, int] = {}
    names = dict.fromkeys([*dataset.classes, *classes])
    for segment in dataset.segments:
        for task, label in segment.labels.items():
            names.setdefault(task)
            if isinstance(label, tuple):
                several[task] = max(several.get(task, 0), max(label) + 1)
    known = {task: len(each) for task, each in dataset.classes.items()} | dict(classes)
    for task, least in several.items():
        if known.get(task, least) < least:
            raise ValueError(f"{task} has {known[task]} classes, but a segment has the label {least - 1}")
    return {task: known.get(task, several[task]) if task in several else None for task in names}


# --- batches


def collate(samples: Sequence[Sample], empty: Callable[..., Tensor] = torch.empty) -> dict[str, Any]:
    """Samples as one batch of those that could be read.

    streams (B, [views,] T, ...), masks (B, [views,] T), seconds, boxes {boxes, present, categories} and labels by task,
    each padded with zeros (masks and present: False) to the longest T and the most instances (past_labels, by task
    (B, [views,] T): with IGNORED); index, epoch int64 (B,);
    start_seconds, stop_seconds float64 (B,); id: list of B; pairs, flow_network: as in Sample.
    broken: what could not be read, and damaged: what was read
    with blemishes, each a list of {id, index, reason}. Where nothing could be read B is 0 and streams are empty.

    empty: makes the tensors that samples are copied to, by (shape, dtype=).
    """
    whole = [sample for sample in samples if not sample.error]
    batch: dict[str, Any] = {
        name: {
            key: _batched([getattr(sample, name)[key] for sample in whole], empty) for key in getattr(whole[0], name)
        }
        if whole
        else {}
        for name in ("streams", "masks", "seconds", "boxes", "labels", "pairs")
    }
    batch["flow_network"] = whole[0].flow_network if whole else None
    tasks = whole[0].past_labels if whole else ()
    batch["past_labels"] = {task: _batched([s.past_labels[task] for s in whole], empty, IGNORED) for task in tasks}
    batch["index"] = torch.tensor([sample.index for sample in whole], dtype=torch.int64)
    batch["epoch"] = torch.tensor([sample.epoch for sample in whole], dtype=torch.int64)
    for name in ("start_seconds", "stop_seconds"):
        batch[name] = torch.tensor([getattr(sample, name) for sample in whole], dtype=torch.float64)
    batch["id"] = [sample.id for sample in whole]
    batch["broken"] = [{"id": s.id, "index": s.index, "reason": s.error} for s in samples if s.error]
    batch["damaged"] = [{"id": s.id, "index": s.index, "reason": s.damage} for s in whole if s.damage]
    return batch


def _batched(tensors: list[Tensor], empty: Callable[..., Tensor], padding: int = 0) -> Tensor:
    """One tensor, smaller ones padded.

    Depth of 8 and of 16 bits in one dataset is uint8 and float32: together float32.
    """
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    shapes = {tuple(tensor.shape) for tensor in tensors}
    batch = empty((len(tensors), *map(max, zip(*shapes, strict=True))), dtype=dtype)
    if len(shapes) > 1:
        batch.fill_(padding)
    for row, tensor in zip(batch, tensors, strict=True):
        row[tuple(map(slice, tensor.shape))] = tensor
    return batch


GIVE_WAY = 10  # added to the niceness of workers: about a tenth of a core where the network wants all of it


class _LeaveToParent:
    """What a worker does about a signal that stops a whole group of processes: nothing at first. The parent saves what
    it has and then ends its workers, by a second signal.
    """

    def __init__(self) -> None:
        self._asked = 0

    def __call__(self, *_: object) -> None:
        self._asked += 1
        if self._asked > 1:
            os._exit(0)


def _begin_worker(_: int, single_threaded: bool, gives_way: bool) -> None:
    if gives_way and hasattr(os, "nice"):
        os.nice(GIVE_WAY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _LeaveToParent())
    keep_freed_memory()
    if single_threaded:
        cv2.setNumThreads(1)


_living: weakref.WeakSet[DataLoader] = weakref.WeakSet()  # loaders that have workers


@atexit.register
def _end_workers() -> None:
    """At the end of a program whose loaders still live: their workers leave the SIGTERM that they get then to the
    parent, which would wait for them forever.
    """
    for loader in _living:
        iterator: Any = loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()


def make_loader(
    dataset: SegmentDataset,
    *,
    batch_size: int,
    sampler: EpochSampler,
    num_workers: int = 0,
    start_method: Literal["fork", "spawn", "forkserver"] | None = None,
    prefetch_batches: int = 2,
    device: torch.device | None = None,
) -> DataLoader:
    """A DataLoader whose workers stay alive between epochs: call `sampler.set_epoch` before each one.

    device: where the network computes. For a GPU batches are pinned. On a CPU workers give way to its threads, which
        all wait for the one of them that was interrupted.
    """
    method = start_method or get_start_method()
    # Workers share the cores, so each has one thread of OpenCV. Not those that were forked: OpenCV's threads stayed
    # with the parent, and to change their number would wait for them forever.
    kind = device.type if device is not None else ""
    prepare = partial(_begin_worker, single_threaded=method != "fork", gives_way=kind == "cpu")
    shared = SharedCollate(collate) if num_workers and shared_memory_available() else None
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=shared or collate,
        pin_memory=kind == "cuda",
        worker_init_fn=prepare if num_workers else None,
        multiprocessing_context=method if num_workers else None,
        prefetch_factor=prefetch_batches if num_workers else None,
        persistent_workers=num_workers > 0,
    )
    if shared is not None:
        shared.watch(loader)
    if num_workers:
        _living.add(loader)
    return loader
