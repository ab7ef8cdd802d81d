"""The videos and the patterns of reading that bench_loader.py measures, after the datasets that are read so.

Videos are made of a real clip by FFmpeg with its default settings, so x264 uses B-frames and sets key frames where it
likes, at most `gop` apart. Long ones are twenty coded seconds repeated without coding them again. Copies are hard
links: files of their own for every program, pages in memory once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _clips import ffmpeg, sources

from actionfuse.pipeline import Anticipation, Augmentation, Recognition, Sampling, StreamSpec
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.protocols import Task

SIDE, CROP = 256, 224


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Files of one kind. coded: seconds that are coded; repeats: how often they come in a file."""

    width: int
    height: int
    fps: int
    gop: int = 250
    coded: float = 10.0
    repeats: int = 1
    files: int = 8
    ending: str = "mp4"

    @property
    def seconds(self) -> float:
        return self.coded * self.repeats

    def make(self, folder: Path) -> list[Path]:
        name = f"{self.width}x{self.height}-{self.fps}fps-gop{self.gop}-{self.coded:g}s"
        piece = folder / f"{name}.{self.ending}"
        if not piece.exists():
            folder.mkdir(parents=True, exist_ok=True)
            vp9 = "-c:v libvpx-vp9 -b:v 0 -crf 32 -cpu-used 5 -deadline good"
            codec = "-c:v libx264" if self.ending == "mp4" else vp9
            temporary = piece.with_name(f".partial-{piece.name}")
            # every picture of the source is one of the video: none is repeated to reach the rate
            ffmpeg("-stream_loop", "-1", "-i", sources()[1], "-an", "-vf",
                   f"setpts=N/{self.fps}/TB,scale={self.width}:{self.height}:flags=bicubic", "-r", self.fps,
                   "-t", self.coded, *codec.split(), "-g", self.gop, "-pix_fmt", "yuv420p", temporary)  # fmt: skip
            temporary.rename(piece)
        whole = piece
        if self.repeats > 1:
            whole = folder / f"{name}-{self.repeats}x.{self.ending}"
            if not whole.exists():
                ffmpeg("-stream_loop", self.repeats - 1, "-i", piece, "-c", "copy", whole)
        links = [whole.with_name(f"{whole.stem}-{n}{whole.suffix}") for n in range(self.files)]
        for link in links:
            if not link.exists():
                os.link(whole, link)
        return links


TRIMMED = Videos(width=427, height=240, fps=12, gop=128, coded=4.0, files=48, ending="webm")
SHORT = Videos(width=340, height=256, fps=30)
HD = Videos(width=1280, height=720, fps=30, gop=48)
LONG = Videos(width=456, height=256, fps=50, coded=20.0, repeats=30, files=24)
LONG_HD = Videos(width=1920, height=1080, fps=50, gop=25, coded=20.0, repeats=30, files=24)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way of reading videos. samples: in an epoch. lengths: of segments in seconds, drawn evenly between these two;
    None: whole videos. augmented: random resized crops and flips, else the middle crop. seek_each: of the two ways in
    which the tuned loader may find its frames the one that was faster.
    """

    name: str
    videos: Videos
    spec: StreamSpec
    sampling: Sampling
    task: Task = Recognition()
    samples: int
    lengths: tuple[float, float] | None = None
    training: bool = True
    augmented: bool = False
    seek_each: bool = False

    def __str__(self) -> str:
        videos, length = self.videos, "whole"
        if self.lengths is not None:
            length = f"segments of {self.lengths[0]:g} to {self.lengths[1]:g} s in"
        return (
            f"{self.name}: {self.samples} samples an epoch, {length} {videos.files} {videos.ending} of "
            f"{videos.width}x{videos.height}, {videos.fps} fps, {videos.seconds:g} s, key frames at most {videos.gop} "
            f"frames apart; {self.told}; {'random resized crop and flip' if self.augmented else 'middle crop'}"
        )

    @property
    def told(self) -> str:
        """Which frames."""
        rule, frames = self.sampling.rule, self.spec.frames
        if rule == "segments":
            return f"{frames} frames, {'a random' if self.training else 'the middle'} one of each equal part"
        if rule == "strided":
            return f"{frames} frames, {self.sampling.stride_frames} apart, at a random place"
        return f"{frames} frames at {self.spec.fps:g} a second, the last 1 s before the segment"

    @property
    def augmentation(self) -> Augmentation | None:
        return Augmentation() if self.augmented else None

    def segments(self, folder: Path) -> list[Segment]:
        """The same in every call: files in turn, places by chance."""
        files, rng = self.videos.make(folder), np.random.default_rng(0)
        found = []
        for number in range(self.samples):
            start, stop = 0.0, self.videos.seconds
            if self.lengths is not None:
                length = rng.uniform(*self.lengths)
                start = rng.uniform(12.0, stop - length)  # so that every window of anticipation lies in the video
                stop = start + length
            found.append(Segment(str(files[number % len(files)]), start, stop, str(number)))
        return found


def _spec(frames: int, fps: float | None = None) -> StreamSpec:
    return StreamSpec(frames=frames, fps=fps, resize_side=SIDE, crop=CROP)


PARTS, STRIDED = Sampling(rule="segments"), Sampling(rule="strided", stride_frames=4)
ACTIONS = (0.5, 5.0)  # seconds of most segments of EPIC-KITCHENS
CASES = (
    Case(name="something", videos=TRIMMED, spec=_spec(8), sampling=PARTS, samples=48, augmented=True),
    Case(name="kinetics-tsn", videos=SHORT, spec=_spec(8), sampling=PARTS, samples=24, augmented=True),
    Case(name="kinetics-clip", videos=SHORT, spec=_spec(16), sampling=STRIDED, samples=32, augmented=True),
    Case(name="hd-test", videos=HD, spec=_spec(8), sampling=PARTS, samples=8, training=False),
    Case(name="epic-tsn", videos=LONG, spec=_spec(8), sampling=PARTS, samples=40, lengths=ACTIONS, augmented=True),
    Case(name="epic-clip", videos=LONG, spec=_spec(16), sampling=STRIDED, samples=40, lengths=ACTIONS, augmented=True),
    Case(
        name="epic-anticipation",
        videos=LONG,
        spec=_spec(10, fps=1.0),
        sampling=Sampling(rule="last"),
        task=Anticipation(tau_a=1.0, tau_o=10.0),
        samples=16,
        lengths=ACTIONS,
        seek_each=True,
    ),
    Case(name="epic-hd-tsn", videos=LONG_HD, spec=_spec(8), sampling=PARTS, samples=8, lengths=ACTIONS),
)
