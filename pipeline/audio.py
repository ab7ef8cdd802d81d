"""Sound by seconds: any container through FFmpeg (PyAV), mono, resampled, on an exact grid of samples.

Sample n of a request at rate r is the sound at n / r seconds, whatever was asked before and wherever the file was
entered: read_audio, stream_audio and SpectrogramStream give the same samples for the same times (but for the noise that
AAC and AC-3 decoders make up themselves). Seconds are the stream's own time stamps, the clock of the pictures; only in
files without video is 0 the first sample. Mono is the mean of the channels; resampling is FFmpeg's swresample, without
delay. Decoder delay that the container declares (AAC, Opus, MP3 priming) is taken off; where it declares none (AVI, raw
ADTS, MPEG-TS) it stays: 1024 samples for FFmpeg's AAC.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from math import gcd, isfinite
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Discard

from .decoders._container import open_container, reason, video_streams
from .decoders.frame_files import is_frame_pattern
from .spectrogram import PRESETS, SpectrogramPreset, spectrogram
from .types import Waveform
from .video import VideoError

__all__ = ["PRESETS", "AudioReader", "SpectrogramStream", "read_audio", "sound_seconds", "spectrogram", "stream_audio"]

# A decoder that starts in the middle needs a while to be right: MP3 looks back up to nine frames.
_WARM_UP_SECONDS = 1.0
# Time stamps may wander so much around the count of samples (they are rounded to milliseconds in Matroska and FLV).
_JITTER_SECONDS = 0.002
_BLOCK = 8192

Piece = tuple[int, np.ndarray]  # place on the grid of output samples, samples


def read_audio(
    path: str | os.PathLike[str], start_seconds: float, stop_seconds: float, sample_rate_hz: int
) -> Waveform:
    """The sound in [start_seconds, stop_seconds): exactly round((stop - start) * rate) samples, float32 mono.

    What lies outside of the sound, gaps in it, and everything where there is no audio stream, is zero with `valid`
    False. samples[0] is the sound at the grid point next to start_seconds.

    Raises: ValueError for an interval that ends before it starts; VideoError where the file cannot be read.
    """
    with AudioReader(path) as reader:
        return reader.read(start_seconds, stop_seconds, sample_rate_hz)


def stream_audio(
    path: str | os.PathLike[str],
    sample_rate_hz: int,
    start_seconds: float = 0.0,
    stop_seconds: float | None = None,
    chunk_seconds: float = 10.0,
) -> Iterator[Waveform]:
    """One pass over the sound in chunks of round(chunk_seconds * rate) samples, in memory that does not grow.

    stop_seconds: None = to the end of the sound (nothing at all where there is none); else to there, padded as
        read_audio does. The last chunk is shorter where the interval ends.

    Raises: as read_audio; what came before damage is yielded first.
    """
    with AudioReader(path) as reader:
        yield from reader.stream(sample_rate_hz, start_seconds, stop_seconds, chunk_seconds)


def sound_seconds(path: str | os.PathLike[str]) -> float | None:
    """How long the sound of a file without video is; None where there is video or no sound. Nothing is decoded.

    Raises: VideoError where the file cannot be opened or breaks off.
    """
    path = os.fspath(path)
    with open_container(path) as container:
        stream = container.streams.best("audio")
        if stream is None or stream.time_base is None or video_streams(container):
            return None
        begin = end = stream.start_time or 0
        try:
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None:
                    end = max(end, packet.pts + (packet.duration or 0))
        except FFmpegError as broken:
            raise VideoError(f"{path}: the sound breaks off: {reason(broken)}") from broken
        return float((end - begin) * stream.time_base)


class AudioReader:
    """An open file for many reads; a context manager. One read or stream at a time.

    has_sound: False where the file has no audio stream (folders and archives of frames never have one).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._container: InputContainer | None = None
        self._grid: tuple[int, int] | None = None
        # Pictures make no sound; other files are opened, and say so themselves when they cannot be.
        silent = os.path.isdir(self.path) or is_frame_pattern(self.path) or self.path.lower().endswith(".tar")
        self.has_sound = False
        if not silent:
            self._open()

    def read(self, start_seconds: float, stop_seconds: float, sample_rate_hz: int) -> Waveform:
        """See read_audio."""
        first, stop = _grid_interval(start_seconds, stop_seconds, sample_rate_hz)
        tape = Tape(self._pieces(first, sample_rate_hz))
        samples, valid = tape.window(first, stop)
        tape.close()
        return Waveform(samples, sample_rate_hz, first / sample_rate_hz, valid)

    def stream(
        self,
        sample_rate_hz: int,
        start_seconds: float = 0.0,
        stop_seconds: float | None = None,
        chunk_seconds: float = 10.0,
    ) -> Iterator[Waveform]:
        """See stream_audio."""
        end = start_seconds if stop_seconds is None else stop_seconds
        first, stop = _grid_interval(start_seconds, end, sample_rate_hz)
        length = round(chunk_seconds * sample_rate_hz)
        if length < 1:
            raise ValueError(f"chunk_seconds is {chunk_seconds}; a chunk must hold at least one sample")
        tape = Tape(self._pieces(first, sample_rate_hz))
        while stop_seconds is None or first < stop:
            last = first + length if stop_seconds is None else min(first + length, stop)
            samples, valid = tape.window(first, last)
            if stop_seconds is None and tape.ended and tape.position < last:
                left = max(0, tape.position - first)
                if left:
                    yield Waveform(samples[:left], sample_rate_hz, first / sample_rate_hz, valid[:left])
                break
            yield Waveform(samples, sample_rate_hz, first / sample_rate_hz, valid)
            first = last
        tape.close()

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- decoding ---

    def _open(self) -> None:
        self.close()
        container = open_container(self.path)
        self._container = container
        self.has_sound = bool(container.streams.audio)
        self._at_start = True
        if not self.has_sound:
            return
        stream = container.streams.best("audio") or container.streams.audio[0]
        assert isinstance(stream, av.AudioStream) and stream.time_base is not None
        if stream.codec_context is None:
            raise VideoError(f"{self.path}: this FFmpeg has no decoder for its sound")
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all  # pyright: ignore[reportAttributeAccessIssue]
        self._stream = stream
        self._time_base = stream.time_base
        self._start_ticks = stream.start_time or 0
        self._zero_ticks = 0 if video_streams(container) else self._start_ticks

    def _pieces(self, first: int, rate: int) -> Iterator[Piece]:
        """Sound from grid point `first` or before it to the end: contiguous pieces, in order of time."""
        if not self.has_sound:
            return
        run: _Run | None = None
        jitter = max(_JITTER_SECONDS, 1.5 * float(self._time_base))
        frames = self._decoded(first / rate)
        frame = next(frames, None)
        while frame is not None:
            following = next(frames, None)
            rate_in, index, samples = frame
            if run is not None and run.rate_in == rate_in and abs(index - run.end) > jitter * rate_in:
                # A time stamp that the one after it does not confirm is an error (Vorbis in Ogg where blocks change
                # their length), not a gap.
                after = run.end + len(samples)
                if following is not None and abs(following[1] - after) <= jitter * rate_in:
                    index = run.end
            if run is None or run.rate_in != rate_in or abs(index - run.end) > jitter * rate_in:
                if run is not None:
                    yield from run.finish()
                run = _Run(rate_in, rate, index)
            yield from run.push(samples)
            frame = following
        if run is not None:
            yield from run.finish()

    def _decoded(self, from_seconds: float) -> Iterator[tuple[int, int, np.ndarray]]:
        """(rate, place of the first sample at that rate, float32 mono samples) per decoded frame.

        Starts at least the warm-up before from_seconds, or at the start of the sound.
        """
        target = int((from_seconds - _WARM_UP_SECONDS) / self._time_base) + self._zero_ticks
        if target > self._start_ticks:
            self._learn_grid()
            try:
                self._container.seek(target, stream=self._stream)  # pyright: ignore[reportOptionalMemberAccess]
            except FFmpegError:
                pass  # a container without an index: read from the start
            else:
                self._at_start = False
                frames = self._frames()
                head = next(frames, None)
                # A seek that went too far (a poor index) is not believed, nor one that found nothing.
                if head is not None and self._ticks(head) <= target + _WARM_UP_SECONDS / 2 / self._time_base:
                    yield self._placed(head, self._snapped(head))
                    for frame in frames:
                        yield self._placed(frame)
                    return
        if not self._at_start:
            self._open()  # anew: not every demuxer forgets a seek
        self._at_start = False
        for frame in self._frames():
            yield self._placed(frame)

    def _frames(self) -> Iterator[av.AudioFrame]:
        decoded, error = 0, None
        try:
            for packet in self._container.demux(self._stream):  # pyright: ignore[reportOptionalMemberAccess]
                try:
                    frames = packet.decode()
                except FFmpegError as broken:  # the packet's time stays silent, and `valid` says so
                    error = broken
                    continue
                for frame in frames:
                    if frame.samples:
                        decoded += 1
                        yield frame  # pyright: ignore[reportReturnType]
        except FFmpegError as broken:
            raise VideoError(f"{self.path}: the sound breaks off: {reason(broken)}") from broken
        if error is not None and not decoded:
            raise VideoError(f"{self.path}: the sound cannot be decoded: {reason(error)}")

    def _ticks(self, frame: av.AudioFrame) -> int:
        return self._start_ticks if frame.pts is None else frame.pts

    def _index(self, frame: av.AudioFrame) -> int:
        base = frame.time_base or self._time_base
        ticks = self._ticks(frame) - self._zero_ticks
        scale = base.numerator * frame.sample_rate
        return (2 * ticks * scale + base.denominator) // (2 * base.denominator)

    def _placed(self, frame: av.AudioFrame, index: int | None = None) -> tuple[int, int, np.ndarray]:
        return frame.sample_rate, self._index(frame) if index is None else index, _mono(frame)

    def _learn_grid(self) -> None:
        """Where frames begin, in containers whose ticks are coarser than samples: first end and length of frames."""
        if self._grid is not None or self._time_base * self._stream.rate <= 1:
            return
        if not self._at_start:
            self._open()
        self._at_start = False
        frames = self._frames()
        head, second = next(frames, None), next(frames, None)
        if head is not None and second is not None:
            self._grid = (self._index(head) + head.samples, second.samples)

    def _snapped(self, frame: av.AudioFrame) -> int:
        """The place of a frame after a seek.

        Milliseconds are too coarse to know the sample, but most codecs have frames of one length, so the start of the
        file tells where this one can begin.
        """
        index = self._index(frame)
        if self._grid is not None and frame.samples == self._grid[1]:
            origin, length = self._grid
            snapped = origin + round((index - origin) / length) * length
            if abs(snapped - index) <= self._time_base * frame.sample_rate / 2 + 1:
                return snapped
        return index


class Tape:
    """Windows of a sound that comes in pieces. It holds only what is not yet behind.

    position: the end of what was taken from the pieces so far; the end of the sound once `ended`.
    start: the first sample that there is, None before it was met.
    """

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._held: deque[Piece] = deque()
        self.position = -(1 << 62)
        self.start: int | None = None
        self.ended = False

    def window(self, first: int, stop: int, keep_from: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Samples and validity of the grid points [first, stop). Later windows must not begin before keep_from."""
        low = first if keep_from is None else min(first, keep_from)
        while not self.ended and self.position < stop:
            place, samples = next(self._pieces, (None, None))
            if place is None or samples is None:
                self.ended = True
                break
            # Where time stamps go back over what was there already, the first to come stays.
            samples, place = samples[max(0, self.position - place) :], max(place, self.position)
            if len(samples) == 0:
                continue
            self.start = place if self.start is None else self.start
            self.position = place + len(samples)
            self._held.append((place, samples))
            self._drop(low)
        self._drop(low)
        out, valid = np.zeros(max(0, stop - first), np.float32), np.zeros(max(0, stop - first), np.bool_)
        for place, samples in self._held:
            begin, end = max(place, first), min(place + len(samples), stop)
            if begin < end:
                out[begin - first : end - first] = samples[begin - place : end - place]
                valid[begin - first : end - first] = True
        return out, valid

    def _drop(self, low: int) -> None:
        while self._held and self._held[0][0] + len(self._held[0][1]) <= low:
            self._held.popleft()

    def close(self) -> None:
        self._pieces.close()  # pyright: ignore[reportAttributeAccessIssue]


class _Run:
    """Sound without a gap, at one rate: resampled onto the grid n / rate_out.

    The resampler starts at an input sample that lies on the output grid (silence fills up to there), so the samples
    between come out the same wherever the run began.
    """

    def __init__(self, rate_in: int, rate_out: int, begin: int) -> None:
        common = gcd(rate_in, rate_out)
        self._per_in, self._per_out = rate_in // common, rate_out // common
        self.rate_in = rate_in
        self.end = begin
        self._place = begin // self._per_in * self._per_out
        self._valid_from = self._grid(begin)
        self._waiting: list[np.ndarray] = []
        self._waiting_samples = 0
        self._resampler = None
        if rate_in != rate_out:
            self._resampler = av.AudioResampler("fltp", "mono", rate_out)
            self._waiting.append(np.zeros(begin % self._per_in, np.float32))

    def push(self, samples: np.ndarray) -> Iterator[Piece]:
        self.end += len(samples)
        self._waiting.append(samples)
        self._waiting_samples += len(samples)
        if self._waiting_samples >= _BLOCK:  # far larger than a frame: the resampler costs the same a call
            yield from self._flush()

    def finish(self) -> Iterator[Piece]:
        yield from self._flush()
        if self._resampler is not None:
            yield from self._trimmed(self._resampler.resample(None), self._grid(self.end))

    def _grid(self, index: int) -> int:
        """The first output sample at or after an input sample."""
        return -(-index * self._per_out // self._per_in)

    def _flush(self) -> Iterator[Piece]:
        samples = np.concatenate(self._waiting) if self._waiting else np.zeros(0, np.float32)
        self._waiting.clear()
        self._waiting_samples = 0
        if self._resampler is None:
            place, self._place = self._place, self._place + len(samples)
            if len(samples):
                yield place, samples
        elif len(samples):
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = self.rate_in
            yield from self._trimmed(self._resampler.resample(frame), None)

    def _trimmed(self, frames: list[av.AudioFrame], stop: int | None) -> Iterator[Piece]:
        for frame in frames:
            samples, place = frame.to_ndarray()[0], self._place
            self._place += len(samples)
            samples = samples[: None if stop is None else max(0, stop - place)]
            early = max(0, self._valid_from - place)
            if len(samples) > early:
                yield place + early, samples[early:]


class WindowSpectrogram(NamedTuple):
    """cells: float32 (frequency, time). heard: False where the window lies wholly outside of the sound."""

    cells: np.ndarray
    start_seconds: float
    stop_seconds: float
    heard: bool


class SpectrogramStream:
    """Spectrograms of windows centred on given seconds, in one pass over the sound and bounded memory.

    centres_seconds ascend. A window whose centre lies in the sound is moved to lie wholly in it (TBN's rule: the first
    or last window of the file); a sound shorter than the window is padded with zeros. Other windows stay in place.
    Iterating yields one WindowSpectrogram per centre; without an audio stream they are those of silence, heard False.
    """

    def __init__(
        self, path: str | os.PathLike[str], preset: str | SpectrogramPreset, centres_seconds: Sequence[float]
    ) -> None:
        self.path = os.fspath(path)
        self.preset = SpectrogramPreset.named(preset) if isinstance(preset, str) else preset
        self.centres_seconds = np.asarray(centres_seconds, np.float64)
        if (np.diff(self.centres_seconds) < 0).any():
            raise ValueError("centres_seconds descend; one pass over the sound needs them in ascending order")

    def __iter__(self) -> Iterator[WindowSpectrogram]:
        if not len(self.centres_seconds):
            return
        rate, length = self.preset.sample_rate_hz, self.preset.window_samples
        starts = np.rint(self.centres_seconds * rate - length / 2).astype(np.int64)
        with AudioReader(self.path) as reader:
            tape = Tape(reader._pieces(int(starts[0]) - length, rate))
            for centre, start in zip(self.centres_seconds * rate, starts.tolist(), strict=True):
                start = self._inside(tape, centre, start, length)
                samples, valid = tape.window(start, start + length, keep_from=start - length)
                cells = spectrogram(samples, self.preset)
                yield WindowSpectrogram(cells, start / rate, (start + length) / rate, bool(valid.any()))
            tape.close()

    @staticmethod
    def _inside(tape: Tape, centre: float, start: int, length: int) -> int:
        tape.window(start, start + length, keep_from=start - length)
        if tape.start is None or centre < tape.start:
            return start
        if start < tape.start:
            start = tape.start
            tape.window(start, start + length, keep_from=start - length)
        if tape.ended and centre <= tape.position and start + length > tape.position:
            start = max(tape.start, tape.position - length)
        return start


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """float32 (samples,): the mean of the channels."""
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, len(frame.layout.channels)).T
    if data.dtype == np.uint8:
        data = (data.astype(np.float32) - 128) / 128
    elif data.dtype.kind == "i":
        data = data.astype(np.float32) * np.float32(2.0 ** (1 - 8 * data.dtype.itemsize))
    return (data[0] if len(data) == 1 else np.add.reduce(data) / len(data)).astype(np.float32, copy=False)


def _grid_interval(start_seconds: float, stop_seconds: float, rate: int) -> tuple[int, int]:
    if int(rate) != rate or rate < 1:
        raise ValueError(f"sample_rate_hz is {rate}; it must be a positive whole number")
    if not (isfinite(start_seconds) and isfinite(stop_seconds) and start_seconds <= stop_seconds):
        raise ValueError(f"sound in [{start_seconds}, {stop_seconds}) s: stop_seconds must not be before start_seconds")
    first = round(start_seconds * rate)
    return first, first + round((stop_seconds - start_seconds) * rate)
