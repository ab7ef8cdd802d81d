"""What the engine tells of each video, and what it asks of the place where outputs go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Finished:
    """All missing outputs of a video were written. notes: damage that was met."""

    key: str
    decoder: str
    rows: dict[str, int]
    video_seconds: float
    frames: int
    notes: tuple[str, ...]
    predictions: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """A video that gave nothing: where it failed and why."""

    key: str
    path: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Skipped:
    """All outputs were there, or another process has the video."""

    key: str
    elsewhere: bool


@dataclass(frozen=True)
class Underway:
    """A video is being decoded, told now and then for those who wait for a long one.

    seconds: how far, from where its rows begin. share: of all that is asked of it, 0 to 1.
    """

    key: str
    seconds: float
    share: float


class RowWriter(Protocol):
    def write(self, first_row: int, rows: np.ndarray) -> None: ...
    def commit(
        self, start_seconds: np.ndarray, stop_seconds: np.ndarray, metadata: dict, extra: dict[str, np.ndarray]
    ) -> None: ...
    def close(self) -> None:
        """Drop what is not committed."""
        ...


class Sink(Protocol):
    """Where outputs go."""

    def begin(self, key: str) -> tuple[str, ...] | None:
        """Take a video on: names of the plans whose output is missing; None if another process has it."""
        ...

    def writer(self, key: str, plan: str, output: str, row_shape: tuple[int, ...]) -> RowWriter: ...

    def end(self, key: str) -> None:
        """Let go of a video that was taken on."""
        ...
