"""Training that anticipates from several distances: each sample draws how long before the action it stops to look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..pipeline.annotations import Segment
from ..pipeline.protocols import Task
from ..pipeline.samples import Sample, SegmentDataset
from ..pipeline.sampling import draw

_TASK = 12  # part of draws, beside those of samples and of batches.py


class DrawnTasks(SegmentDataset):
    """SegmentDataset of which every sample draws its task, all alike, as a function of (seed, epoch, index).

    tasks: that are drawn from, such as `Anticipation` at several tau_a. Further options: as of SegmentDataset.
    """

    def __init__(self, *args: Any, tasks: Sequence[Task], **options: Any) -> None:
        if not tasks:
            raise ValueError("tasks are empty: there is nothing to draw from")
        super().__init__(*args, task=tasks[0], **options)
        self.tasks = tuple(tasks)

    def drawn(self, epoch: int, index: int) -> Task:
        """The task of a sample."""
        return self.tasks[draw(self.seed, epoch, index, _TASK).integers(len(self.tasks))]

    def sample(self, segment: Segment, epoch: int = 0, index: int = 0, task: Task | None = None) -> Sample:
        """The sample of any segment of the dataset's videos, drawn as (epoch, index). task: that is told, not drawn."""
        return super().sample(segment, epoch, index, task or self.drawn(epoch, index))
