"""What was done when each observed entry was seen: labels of the past, for training that anticipates.

Source: Girdhar and Grauman, "Anticipative Video Transformer", ICCV 2021, section 3.3, and its public code
(facebookresearch/AVT): a frame carries the action of the annotated segment of its video that holds its time.
Differs: where several segments hold it, the one whose middle is nearest counts, of equals the first of the dataset (the
public code measures from half the segment's duration instead of its middle); ends are half open; and segments that
start after what may be seen count nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .annotations import Segment


class PastLabels:
    """Labels by time of the videos of a dataset. tasks: those in which a segment has one label."""

    def __init__(self, segments: Sequence[Segment], tasks: Sequence[str], ignored: int) -> None:
        self.tasks, self._ignored = tuple(tasks), ignored
        rows: dict[str, list[Segment]] = {}
        for segment in segments:
            rows.setdefault(segment.video, []).append(segment)
        self._times = {v: np.array([(s.start_seconds, s.stop_seconds) for s in found]) for v, found in rows.items()}
        self._labels = {
            video: {task: np.array([_one(s.labels.get(task), ignored) for s in found], np.int64) for task in self.tasks}
            for video, found in rows.items()
        }

    def at(self, video: str, seconds: np.ndarray, horizon_seconds: float, *, ended: bool) -> dict[str, np.ndarray]:
        """task -> int64 of the shape of `seconds`, `ignored` where no segment of the video is annotated.

        ended: the times are those at which entries ended (rows of features), else those at which they came on screen.
        """
        starts, stops = self._times.get(video, np.zeros((0, 2))).T
        times = seconds[..., None]
        holds = (starts < times) & (times <= stops) if ended else (starts <= times) & (times < stops)
        holds &= starts < horizon_seconds
        none = np.full(seconds.shape, self._ignored, np.int64)
        if not len(starts):
            return {task: none for task in self.tasks}
        nearest = np.where(holds, np.abs(times - (starts + stops) / 2), np.inf).argmin(-1)
        known = holds.any(-1)
        return {task: np.where(known, self._labels[video][task][nearest], none) for task in self.tasks}


def _one(label: int | tuple[int, ...] | None, ignored: int) -> int:
    return label if isinstance(label, int) else ignored


def single_label_tasks(kinds: Mapping[str, int | None]) -> tuple[str, ...]:
    """Of task -> number of classes where several hold at once, None where one does: the latter."""
    return tuple(task for task, count in kinds.items() if count is None)
