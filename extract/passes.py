"""Which inputs are decoded together: segments of one video that overlap or touch, each frame once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from ..pipeline.inputs import VideoInput

# Each open segment holds a claim, a file of rows per output and up to a clip of frames.
MOST_TOGETHER = 32


def decode_passes(videos: Iterable[VideoInput], most: int = MOST_TOGETHER) -> Iterator[list[VideoInput]]:
    """The inputs in lists of up to `most` that one pass decodes: neighbours of one path that overlap or touch.

    For the fewest passes, inputs of one path stand together, ordered by their start (`in_order`).
    """
    group: list[VideoInput] = []
    first = last = 0.0
    for video in videos:
        start, stop = interval(video)
        if group and video.path == group[0].path and len(group) < most and start <= last and stop >= first:
            group.append(video)
            first, last = min(first, start), max(last, stop)
            continue
        if group:
            yield group
        group, first, last = [video], start, stop
    if group:
        yield group


def in_order(videos: Sequence[VideoInput]) -> list[VideoInput]:
    """Inputs of one path stand together, where the first of them stood, by their start."""
    place: dict[str, int] = {}
    for video in videos:
        place.setdefault(video.path, len(place))
    return sorted(videos, key=lambda video: (place[video.path], interval(video)))


def interval(video: VideoInput) -> tuple[float, float]:
    """[start, stop) in seconds; a whole video reaches from -inf to inf."""
    return (
        -math.inf if video.start_seconds is None else video.start_seconds,
        math.inf if video.stop_seconds is None else video.stop_seconds,
    )
