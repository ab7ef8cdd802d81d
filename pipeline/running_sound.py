"""The last seconds of a sound that still runs, read as of any file."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

import av

from .audio import _JITTER_SECONDS, AudioReader


class RingSound(AudioReader):
    """The last `seconds` of a stream's sound: one thread adds frames as they are decoded, another reads.

    What it reads is what AudioReader reads of the recorded stream, for whatever is held and a second behind it: sound
    is resampled from there anew with every read. Seconds are the stream's own time stamps.
    """

    def __init__(self, path: str, stream: av.AudioStream, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.has_sound = True
        self._time_base = stream.time_base or Fraction(1, stream.rate)
        self._start_ticks = stream.start_time or 0
        self._zero_ticks = 0  # there are pictures beside it, and both have one clock
        self._lock = threading.Lock()
        self._held: deque = deque()
        self._stop_seconds = -math.inf

    @property
    def stop_seconds(self) -> float:
        """Up to when sound has come."""
        return self._stop_seconds

    @property
    def nbytes(self) -> int:
        with self._lock:
            return sum(samples.nbytes for _, _, samples in self._held)

    def add(self, frame: av.AudioFrame) -> None:
        """The next frame. What ended more than `seconds` before its end is let go."""
        if not frame.samples:
            return
        rate, first, samples = self._placed(frame)
        jitter = max(_JITTER_SECONDS, 1.5 * float(self._time_base)) * rate
        with self._lock:
            if self._held and self._held[-1][0] == rate:
                # stamps are coarser than samples in some containers; what follows without a gap follows exactly
                end = self._held[-1][1] + len(self._held[-1][2])
                first = end if abs(first - end) <= jitter else first
            self._held.append((rate, first, samples))
            self._stop_seconds = (first + len(samples)) / rate
            limit = self._stop_seconds - self.seconds
            while (self._held[0][1] + len(self._held[0][2])) / self._held[0][0] < limit:
                self._held.popleft()

    def close(self) -> None:
        """Nothing is open; the sound stays."""

    def _decoded(self, from_seconds: float) -> Iterator[tuple]:
        with self._lock:
            held = list(self._held)
        # a second before what is asked for, as AudioReader: the resampler needs a little to be right
        wanted = from_seconds - 1.0
        yield from (each for each in held if (each[1] + len(each[2])) / each[0] >= wanted)


class Silence(AudioReader):
    """The sound of a stream that has none."""

    def __init__(self, path: str) -> None:
        self.path, self.has_sound = path, False

    def close(self) -> None:
        """Nothing is open."""
