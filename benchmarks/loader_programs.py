"""What bench_loader.py compares SegmentDataset with: decoding alone, and loaders with cv2.

Both are Datasets whose item (epoch, index) is told beforehand which frames it is to give.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import av
import cv2
import numpy as np
import torch
from av.container import InputContainer
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop

from actionfuse.pipeline.video import scaled_size


@dataclass(frozen=True)
class Run:
    """Packets to decode one after another, from a key frame on. seek: where to (ticks). last: pts of the last packet.
    wanted: pts of those whose frames are wanted.
    """

    seek: int
    last: int
    wanted: frozenset[int]


class Packets:
    """The packets of a file in the order of decoding, and what frames need of them."""

    def __init__(self, path: str) -> None:
        with av.open(path) as container:
            stream = container.streams.video[0]
            base = stream.time_base
            assert base is not None
            rows = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
        self.pts = np.array([row[0] for row in rows])
        self.keys = np.flatnonzero([row[1] for row in rows])
        self.base = float(base)
        self.shown = np.sort(self.pts)

    def numbers(self, seconds: np.ndarray) -> np.ndarray:
        """int64 (T,): which frames, counted as they are shown, have these time stamps."""
        found = np.searchsorted(self.shown, np.rint(seconds / self.base))
        assert np.allclose(self.shown[found] * self.base, seconds, atol=1e-6)
        return found

    def runs(self, numbers: np.ndarray) -> list[Run]:
        """All that must be decoded for these frames: in each group of pictures that holds one, from its key frame to
        the last one wanted.
        """
        order = {pts: place for place, pts in enumerate(self.pts.tolist())}
        places = np.unique([order[pts] for pts in self.shown[numbers].tolist()])
        groups = np.searchsorted(self.keys, places, side="right") - 1
        found = []
        for group in np.unique(groups):
            mine = places[groups == group]
            wanted = frozenset(self.pts[mine].tolist())
            found.append(Run(int(self.pts[self.keys[group]]), int(self.pts[mine[-1]]), wanted))
        return found


class RawDecoding(Dataset):
    """The raw limit: FFmpeg through PyAV, one thread, decodes what must be decoded and gives nothing.

    As many files stay open as with the others. Pictures that no other refers to are left out where they are not wanted
    (skip_frame NONREF); nothing is read, decoded, looked for or converted beyond that.

    side: make RGB pictures of the wanted frames, as numpy arrays, whole, shrunk to this shorter side where they are
    larger; None: not even that.
    """

    def __init__(
        self, files: list[str], runs: dict[tuple[int, int], list[Run]], open_files: int, side: int | None = None
    ) -> None:
        self.files, self.runs, self.open_files, self.side = files, runs, open_files, side
        self._open: OrderedDict[str, InputContainer] = OrderedDict()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> int:
        container = self._container(self.files[item[1]])
        stream = container.streams.video[0]
        decoder, given = stream.codec_context, 0
        for run in self.runs[item]:
            container.seek(run.seek, stream=stream)
            decoder.skip_frame, skipping = "NONREF", True
            for packet in container.demux(stream):
                if skipping == (packet.pts in run.wanted):
                    skipping = not skipping
                    decoder.skip_frame = "NONREF" if skipping else "DEFAULT"
                given += self._take(decoder.decode(packet), run)
                if packet.pts == run.last:
                    break
            given += self._take(decoder.decode(None), run)
        if given != sum(len(run.wanted) for run in self.runs[item]):
            raise RuntimeError(f"{self.files[item[1]]}: {given} frames of {self.runs[item]}")
        return given

    def _take(self, frames: list[av.VideoFrame], run: Run) -> int:
        wanted = [frame for frame in frames if frame.pts in run.wanted]
        if self.side is None:
            return len(wanted)
        for frame in wanted:
            shorter = min(frame.width, frame.height, self.side)
            width, height = scaled_size(frame.width, frame.height, shorter)
            frame.to_ndarray(format="rgb24", width=width, height=height)
        return len(wanted)

    def _container(self, path: str) -> InputContainer:
        if path not in self._open:
            if len(self._open) >= self.open_files:
                self._open.popitem(last=False)[1].close()
            self._open[path] = av.open(path)
            self._open[path].streams.video[0].thread_count = 1
        self._open.move_to_end(path)
        return self._open[path]


class PlainCv2(Dataset):
    """A loader with cv2: it seeks to the first frame, reads on to the last, resizes, crops and makes RGB.

    skipping: how it comes from one wanted frame to the next. "read" reads those between, as the loops of most public
    code do; "grab" decodes them only; "seek" looks for every frame anew.
    threads: FFmpeg's in each worker; None: as many as it likes, which is what cv2 does by itself.
    """

    def __init__(
        self,
        files: list[str],
        numbers: dict[tuple[int, int], np.ndarray],
        *,
        side: int,
        crop: int,
        augmented: bool,
        skipping: Literal["read", "grab", "seek"],
        threads: int | None,
    ) -> None:
        self.files, self.numbers = files, numbers
        self.side, self.crop, self.augmented, self.skipping = side, crop, augmented, skipping
        self.options = [] if threads is None else [cv2.CAP_PROP_N_THREADS, threads]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> torch.Tensor:
        capture = cv2.VideoCapture(self.files[item[1]], cv2.CAP_FFMPEG, self.options)
        upcoming, pictures = -1, []
        for number in self.numbers[item].tolist():
            if number == upcoming - 1:  # once more
                pictures.append(pictures[-1])
                continue
            if upcoming < 0 or (self.skipping == "seek" and number != upcoming):
                capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            else:
                for _ in range(number - upcoming):
                    capture.grab() if self.skipping == "grab" else capture.read()
            there, picture = capture.read()
            if not there:
                raise RuntimeError(f"{self.files[item[1]]} has no frame {number}")
            pictures.append(picture)
            upcoming = number + 1
        capture.release()
        clip = np.stack(self._cut(pictures))
        return torch.from_numpy(clip)

    def _cut(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        height, width = pictures[0].shape[:2]
        if self.augmented:
            image = torch.empty(0, height, width)
            top, left, high, wide = RandomResizedCrop.get_params(image, scale=[0.25, 1.0], ratio=[3 / 4, 4 / 3])
            cut = [cv2.resize(each[top : top + high, left : left + wide], (self.crop, self.crop)) for each in pictures]
            if torch.rand(()) < 0.5:
                cut = [cv2.flip(each, 1) for each in cut]
        else:
            size = scaled_size(width, height, self.side)
            top, left = (size[1] - self.crop) // 2, (size[0] - self.crop) // 2
            small = [cv2.resize(each, size) for each in pictures]
            cut = [each[top : top + self.crop, left : left + self.crop] for each in small]
        return [cv2.cvtColor(np.ascontiguousarray(each), cv2.COLOR_BGR2RGB) for each in cut]
