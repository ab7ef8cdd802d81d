"""From the frames of a video to clips: flow stacks and windows, as the frames come and holding no more than a clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from ..pipeline.flow import FlowComputer, quantise
from ..pipeline.transforms import centre_crop
from ..pipeline.types import BoxTracks
from .plan import ClipPlan


@dataclass(frozen=True)
class Entry:
    """One entry of a clip: its pixels (H, W, C) and the half-open interval of the video that it looks at."""

    data: np.ndarray
    start_seconds: float
    stop_seconds: float
    on_screen_seconds: float = 0.0
    heard: bool = True


@dataclass(frozen=True)
class ClipRow:
    """One row of an output before the model: the clip's entries and the interval they look at."""

    row: int
    entries: list[Entry]
    start_seconds: float
    stop_seconds: float
    boxes: BoxTracks | None = None

    @property
    def real_entries(self) -> int:
        """How many entries the video gave; those after them repeat the last one."""
        count = len(self.entries)
        while count > 1 and self.entries[count - 1] is self.entries[count - 2]:
            count -= 1
        return count

    @property
    def heard(self) -> bool:
        """False where the clip's sound is silence that was made up: no audio stream there."""
        return any(entry.heard for entry in self.entries)


class Windows:
    """Cuts a row of entries into clips of T entries, S apart; holds no more than T entries.

    Where S > T, entries between clips need not be pushed: `wants(k)` tells which.
    """

    def __init__(self, plan: ClipPlan) -> None:
        self.plan = plan
        self._held: deque[Entry] = deque()
        self._first = 0  # index of _held[0]
        self._row = 0
        self._seen = 0  # one more than the last index pushed

    def wants(self, index: int) -> bool:
        """Whether entry `index` is in any clip."""
        return index % self.plan.stride < self.plan.entries

    def push(self, entry: Entry, index: int) -> Iterator[ClipRow]:
        """The next entry; its index grows from call to call. Yields the clip that it completes."""
        self._seen = index + 1
        if not self.wants(index):
            return
        if not self._held:
            self._first = index
        self._held.append(entry)
        if len(self._held) == self.plan.entries:
            yield self._clip(list(self._held))

    def finish(self) -> Iterator[ClipRow]:
        """The padded clips at the end."""
        # Entries that were left out between clips make no difference to the number of clips.
        wanted = self.plan.num_clips(self._seen) if self._seen else 0
        while self._row < wanted and self._held:
            entries = list(self._held)
            entries += [entries[-1]] * (self.plan.entries - len(entries))
            yield self._clip(entries)

    def _clip(self, entries: list[Entry]) -> ClipRow:
        row = ClipRow(self._row, entries, entries[0].start_seconds, max(entry.stop_seconds for entry in entries))
        self._row += 1
        while self._held and self._first < self._row * self.plan.stride:
            self._held.popleft()
            self._first += 1
        return row

    @property
    def rows(self) -> int:
        return self._row


class FlowEntries:
    """Turns frames into stacks of L flow fields: entry k has the fields k to k+1, ..., k+L-1 to k+L.

    The entries at the end repeat the last field; a single frame has no motion: zero. So there are as many entries as
    frames, and rows of rgb and flow fall on the same grid.
    """

    def __init__(self, plan: ClipPlan, stopwatch: Callable[[str], AbstractContextManager]) -> None:
        self._stream = FlowComputer(plan.flow_method).stream()
        self._crop = plan.crop
        self._stack = plan.flow_stack
        self._stopwatch = stopwatch
        self._frames: deque[Entry] = deque()  # frames whose stack is not complete
        self._fields: deque[np.ndarray] = deque()
        self._last = quantise(np.zeros((plan.crop, plan.crop, 2), np.float32))

    def push(self, frame: Entry) -> Iterator[Entry]:
        with self._stopwatch("flow"):
            for flow in self._stream.push(frame.data[None]):
                self._last = quantise(centre_crop(flow, self._crop))
                self._fields.append(self._last)
        self._frames.append(frame)
        if len(self._fields) == self._stack:
            yield self._entry(frame.stop_seconds)

    def finish(self) -> Iterator[Entry]:
        stop_seconds = self._frames[-1].stop_seconds if self._frames else 0.0
        while self._frames:
            self._fields.extend([self._last] * (self._stack - len(self._fields)))
            yield self._entry(stop_seconds)

    def _entry(self, stop_seconds: float) -> Entry:
        frame = self._frames.popleft()
        data = np.concatenate(self._fields, axis=-1) if self._stack > 1 else self._fields[0]
        self._fields.popleft()
        return Entry(data, frame.start_seconds, stop_seconds, frame.on_screen_seconds)
