"""One pass of an FFmpeg decoder through a file: which packets are read, which are decoded, which are jumped.

What is on screen at a time is decided by time stamps of packets, before anything is decoded: pictures that neither are
wanted nor serve others as reference are then not decoded at all, and gaps longer than a group of pictures are jumped.
Damage is got past: what decodes is given, notes say what did not. What comes out around it depends on how many threads
decode and on what was left out, so a pass that meets damage begins again at the key frame before, with one thread and
leaving nothing out.
"""

from __future__ import annotations

import os
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame

from ..video import VideoError
from ._container import Layout, demux, first_video_stream, open_container, reason, to_seconds

MAX_QUEUED_BYTES = 64 << 20
MAX_NOTES = 20
# Jumping empties the decoder's pipeline; below this many frames going on is cheaper. One thread has no pipeline, and
# where there is an index a jump costs little else.
MIN_JUMP_FRAMES, MIN_JUMP_FRAMES_ALONE = 12, 2
# These take what to leave out when they are opened, and never hear of a change.
SKIP_FOR_GOOD = ("libdav1d",)
# Files without times of display: FFmpeg guesses which frame a time belongs to, wrongly where pictures are reordered in
# ways that it does not foresee (XviD). The times as such are right and frames come in order: the next has the earliest.
GUESSED_TIMES = ("avi",)

Shown = tuple[int, VideoFrame]  # ticks on the video's clock, and the picture


class _Damaged(Exception):
    """Met by a pass that was not careful: what follows must be decoded otherwise."""


class _Gradual(_Damaged):
    """A key frame is where pictures begin to be whole, row by row (intra refresh), not one that is whole."""


class DecodePass:
    """A container, its decoder, and what is known of the packets between them. All times in ticks."""

    def __init__(
        self, path: str, layout: Layout, threads: int, damage: list[str], opened: InputContainer | None = None
    ) -> None:
        self.path, self.layout, self.owner = path, layout, os.getpid()
        self._threads, self._damage = threads, damage
        self._careful = bool(damage)
        self._guessed = layout.info.container in GUESSED_TIMES
        self._may_skip = layout.info.codec not in SKIP_FOR_GOOD
        base = layout.time_base
        self._first = round(layout.info.start_seconds / float(base))
        self._step = layout.untimed_step or float(1 / (layout.info.average_fps or 25.0) / float(base))
        self._exact = len(layout.key_ticks) > 0
        self._shown_keys = layout.key_ticks + layout.key_lead
        alone = threads == 1 and layout.indexed
        self._least_jump = (MIN_JUMP_FRAMES_ALONE if alone else MIN_JUMP_FRAMES) * self._step
        self._open(opened)

    def _open(self, opened: InputContainer | None = None) -> None:
        self._container = opened or open_container(self.path)
        stream = self._stream = first_video_stream(self.path, self._container)
        self._decoder = stream.codec_context
        if opened is not None:
            self._jump(0, -np.inf)
            return
        stream.thread_type, stream.thread_count = "AUTO", 1 if self._careful else self._threads
        self._reset()

    def _reset(self) -> None:
        """After a jump or at the start: nothing read, nothing decoded."""
        self._demuxer = demux(self._container, self._stream)
        self._queue: deque[Packet] = deque()  # read, not yet given to the decoder
        self._waiting: set[int] = set()  # their times
        self._queued_bytes = 0
        self._ahead: list[int] = []  # times of packets that will be shown after the current frame, ascending
        self._read_dts = -np.inf
        self._read_ticks = float(self.layout.key_ticks[0]) if self._exact else 0.0
        self._jumped = False
        self._out: deque[Shown] = deque()  # decoded, after the current frame
        self._current: Shown | None = None
        self._last_ticks: int | None = None
        self._times: list[int] = []  # a heap, of pictures in the decoder, where stamps are guessed
        self._count = 0
        self._offset = 0
        self._trusted_from = -np.inf
        self._due: int | None = None  # the key frame that was jumped to
        self._at_end = False  # all packets are read
        self._drained = False  # the decoder was emptied; it must be reset before it takes more
        self._skipping = False
        self._decoder.skip_frame = "DEFAULT"

    def close(self) -> None:
        self._container.close()

    def limit(self, seconds: float) -> float:
        """The last tick at which a frame may start to be on screen at `seconds`."""
        return (seconds + self.layout.slack_seconds) / float(self.layout.time_base)

    # --- what readers ask for

    def on_screen(self, limit: float, following: float | None) -> Shown | None:
        """The last frame that starts at or before `limit`, else the first frame; None behind the end.

        following: the next limit that will be asked for, None if there is none: reading stops in time.
        """
        limit = max(limit, self._first)
        try:
            self._go_to(limit)
            return self._find(limit, following)
        except _Damaged as damage:
            self._begin_again(damage, limit)
            return self.on_screen(limit, following)

    def frames_from(self, limit: float) -> Iterator[Shown]:
        """The frame on screen at `limit` and all after it, each once."""
        given = -np.inf
        while True:
            try:
                for shown in self._every(max(limit, given)):
                    if shown[0] > given:
                        given = shown[0]
                        yield shown
                return
            except _Damaged as damage:
                self._begin_again(damage, max(limit, given))

    def _find(self, limit: float, following: float | None, *, linear: bool = False) -> Shown | None:
        """`on_screen` from here on. linear: without emptying the decoder before the end, so that nothing is missed."""
        while True:
            while self._out and self._out[0][0] <= limit:
                self._step_to_next()
            if self._out:
                if self._current is not None or not self._jumped:
                    return self._current or self._out[0]
                break
            there = self._current is not None and self._exact and self._current[0] == self._target(limit)
            if there:
                return self._current
            if not self._pump(limit, following, linear=linear):
                if self._all_given and (self._current is not None or not self._jumped):
                    return self._last_of_all(limit)
                break
        # The picture that its packet promises did not decode, or not the key frame that was jumped to: the frame on
        # screen is an earlier one. Find it step by step.
        self._reopen()
        return self._find(limit, limit, linear=True)

    def _every(self, limit: float) -> Iterator[Shown]:
        """`frames_from`, where nothing is damaged."""
        if limit > self._first:
            if self._drained and not self._all_given:
                self._go_back(limit)
            self.on_screen(limit, limit)
            if self._current is not None:
                yield self._current
        else:
            self._go_to(-np.inf)
        while True:
            while self._out:
                self._step_to_next()
                assert self._current is not None
                yield self._current
            if not self._pump(np.inf, None, everything=True):
                self._last_of_all(np.inf)
                return

    @property
    def _all_given(self) -> bool:
        """The decoder was emptied behind the last packet."""
        return self._drained and self._at_end and not self._queue

    def _step_to_next(self) -> None:
        self._current = self._out.popleft()
        if self._ahead:
            del self._ahead[: bisect_right(self._ahead, self._current[0])]

    def _last_of_all(self, limit: float) -> Shown | None:
        """The last frame that decodes, for as long as it is shown. Notes a file that ends before it should."""
        if self._current is None:
            raise VideoError(f"{self.path}: not a single frame can be decoded{self._why()}")
        ticks, frame = self._current
        end = ticks + max(frame.duration or 0, self._step)
        if end < self.layout.info.stop_seconds / float(self.layout.time_base) - 2 * self._step:
            self._note(
                f"no frame can be decoded after {to_seconds(ticks, self.layout.time_base):.3f} s, "
                f"though the file promises {self.layout.info.stop_seconds:.3f} s"
            )
            return self._current if limit < end else None
        return self._current

    # --- moving in the file

    def _go_to(self, limit: float) -> None:
        """Jump where that saves decoding, or where the frame lies behind."""
        k = self._key_before(limit)
        if self._worth_a_jump(k):
            self._jump(k, limit)
        elif (self._current is not None and limit < self._current[0]) or self._out_of_reach(limit):
            self._go_back(limit)

    def _go_back(self, limit: float) -> None:
        """Stand at the key frame before `limit`, or at the start."""
        if self._exact:
            self._jump(max(self._key_before(limit), 0), limit)
        else:
            self._reopen()

    def _begin_again(self, damage: _Damaged, limit: float) -> None:
        if isinstance(damage, _Gradual):
            self._shown_keys = self._shown_keys[:1]  # no other is believed
        else:
            self._careful = True
        self._reopen()
        if self._exact:
            self._go_back(limit)

    def _key_before(self, limit: float) -> int:
        return int(self._shown_keys.searchsorted(limit, side="right")) - 1

    def _worth_a_jump(self, k: int) -> bool:
        return k > 0 and self.layout.key_ticks[k] > self._read_ticks + self._least_jump

    def _out_of_reach(self, limit: float) -> bool:
        """The decoder was emptied before the end of the file, and what it gave does not hold the frame."""
        if not self._drained or (self._at_end and not self._queue):
            return False
        self._fill(limit)
        target = self._target(limit)
        return target is None or not (
            (self._current is not None and self._current[0] == target) or any(ticks == target for ticks, _ in self._out)
        )

    def _reopen(self) -> None:
        self.close()
        self._open()

    def _jump(self, k: int, limit: float) -> None:
        """Stand at key frame k, or at an earlier one where k is shown only after `limit`; exactly, or at the start."""
        packet = self._find_key(k)
        if packet is None:
            return self._reopen()
        assert packet.pts is not None
        if k and packet.pts > limit:
            return self._jump(k - 1, limit)
        self._put(packet)
        if k:
            # Pictures shown before the key frame may lean on ones from before it, which were not decoded.
            self._trusted_from = packet.pts
            self._jumped = True
            self._due = None if packet.is_discard or self._careful else packet.pts

    def _find_key(self, k: int) -> Packet | None:
        """The packet of key frame k, with the container behind it."""
        ticks = int(self.layout.key_ticks[k])
        # Containers with an index want to know when the frame is shown, or they go to the key frame before. Those
        # without one find a place by trial and may land behind the key frame: come from further back.
        for back_seconds in (None, 0.0, 1.0, 5.0, 25.0):
            back = -self.layout.key_lead if back_seconds is None else round(back_seconds / float(self.layout.time_base))
            try:
                self._container.seek(ticks - back, stream=self._stream, backward=True)
            except (FFmpegError, OSError):
                return None
            self._reset()
            while (packet := self._read()) is not None:
                mark = packet.dts if self.layout.indexed else packet.pts
                if packet.is_keyframe and mark is not None and mark >= ticks:
                    if mark == ticks:
                        return packet
                    break
        return None

    # --- packets in, frames out

    def _read(self) -> Packet | None:
        if self._at_end:
            return None
        try:
            packet = next(self._demuxer, None)
        except (FFmpegError, OSError) as error:
            self._note(f"the file breaks after {self._place()}: {reason(error)}")
            packet = None
        if packet is None or not packet.size:
            self._at_end = True
            return None
        if packet.dts is not None:
            self._read_dts = max(self._read_dts, packet.dts)
        place = packet.pts if packet.dts is None else packet.dts
        if place is not None:
            self._read_ticks = max(self._read_ticks, place)
        return packet

    def _put(self, packet: Packet) -> None:
        self._queue.append(packet)
        self._queued_bytes += packet.size
        if self._exact and packet.pts is not None:
            self._waiting.add(packet.pts)
            if not packet.is_discard:
                insort(self._ahead, packet.pts)

    def _enqueue(self) -> bool:
        packet = self._read()
        if packet is not None:
            self._put(packet)
        return packet is not None

    def _fill(self, limit: float) -> None:
        """Read on until no later packet can belong to a frame that starts at or before `limit`."""
        while self._read_dts <= limit and self._queued_bytes < MAX_QUEUED_BYTES and self._enqueue():
            pass

    def _target(self, limit: float) -> int | None:
        """When the frame on screen at `limit` starts, as far as packets tell; None if they were not read so far."""
        if not self._at_end and self._read_dts <= limit:
            return None
        n = bisect_right(self._ahead, limit)
        if n:
            return self._ahead[n - 1]
        return None if self._current is None else self._current[0]

    def _pump(self, limit: float, following: float | None, *, everything: bool = False, linear: bool = False) -> bool:
        """Give the decoder one more packet. False: there is nothing more to give and nothing more to come."""
        if self._drained:
            return False
        if everything or not self._exact:
            return self._send(skip=False) if self._queue or self._enqueue() else self._drain()
        self._fill(limit)
        target = self._target(limit)
        if self._queue and (target is None or target in self._waiting):
            pts = self._queue[0].pts
            return self._send(skip=target is not None and pts is not None and pts < target)
        # The decoder has the frame but holds it back until more packets come or until it is emptied.
        if following is None or self._worth_a_jump(self._key_before(following)):
            if not (linear or self._careful):
                return self._drain()
            following = limit
        self._fill(following)
        if not self._queue and not self._enqueue():
            return self._drain()
        later, pts = self._target(following), self._queue[0].pts
        return self._send(skip=later is not None and pts is not None and pts < later)

    def _send(self, *, skip: bool) -> bool:
        packet = self._queue.popleft()
        self._queued_bytes -= packet.size
        if packet.pts is not None:
            self._waiting.discard(packet.pts)
        skip = skip and self._may_skip and not self._careful
        if skip != self._skipping:
            # Only pictures that no other one refers to are left out, so that all others come out as ever.
            self._decoder.skip_frame = "NONREF" if skip else "DEFAULT"
            self._skipping = skip
        self._decode(packet)
        return True

    def _drain(self) -> bool:
        self._drained = True
        self._decode(None)
        return True

    def _decode(self, packet: Packet | None) -> None:
        time = packet.pts if packet is not None and self._guessed else None
        if time is not None:
            heappush(self._times, time)
        try:
            frames = self._decoder.decode(packet)
        except FFmpegError as error:
            if isinstance(error, EOFError):
                return
            if not self._careful:
                raise _Damaged from error
            self._note(f"damage near {self._place()}: {reason(error)}")
            if time in self._times:  # nothing comes of it
                self._times.remove(time)
                heapify(self._times)
            return
        for frame in frames:
            if (ticks := self._stamp(frame)) is not None:
                if frame.is_corrupt:
                    if not self._careful:
                        raise _Damaged
                    self._note(f"the frame at {to_seconds(ticks, self.layout.time_base):.3f} s is damaged")
                self._out.append((ticks, frame))

    def _stamp(self, frame: VideoFrame) -> int | None:
        """The frame's time on a clock that only goes forward; None: it must not be shown."""
        last, pts = self._last_ticks, heappop(self._times) if self._times else frame.pts
        if self.layout.untimed_step is not None:
            pts = self._first + round(self._count * self.layout.untimed_step)
            self._count += 1
        elif pts is None:
            pts = 0 if last is None else last - self._offset + max(1, round(self._step))
        if pts < self._trusted_from:
            return None
        due, self._due = self._due, None
        if due is not None and pts != due:  # the decoder held it back, and may give others too early
            raise _Gradual
        pts += self._offset
        if last is not None and pts <= last:
            if last - pts < 0.5 / float(self.layout.time_base):
                self._note(f"a frame out of order near {self._place()} is left out")
                return None
            # Recordings put together end to end start their clocks anew: go on where the last frame ended.
            shift = last + max(1, round(self._step)) - pts
            self._offset += shift
            pts += shift
        self._last_ticks = pts
        return pts

    def _place(self) -> str:
        ticks = self._last_ticks
        return "the start" if ticks is None else f"{to_seconds(ticks, self.layout.time_base):.3f} s"

    def _why(self) -> str:
        return f": {'; '.join(self._damage)}" if self._damage else ""

    def _note(self, words: str) -> None:
        if words not in self._damage and len(self._damage) < MAX_NOTES:
            self._damage.append(words)
