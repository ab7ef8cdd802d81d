"""Scores of segments, collected over batches and processes, each segment exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Missing = Literal["error", "zeros"]
_Batch = tuple[Sequence[str], dict[str, np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, repr=False)
class ScoreTable:
    """Scores and labels of N segments, one row each.

    ids: (N,), in order. scores: task -> (N, C), or (N, T, C) with T predictions per segment.
    labels: task -> int64 (N,), or bool (N, C) where several hold.
    missing: bool (N,), True for segments that no model saw: their scores are zero.
    """

    ids: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    missing: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("a ScoreTable has every id once; collect scores that come twice with Scores")
        if not self.missing.shape == (len(self.ids),):
            object.__setattr__(self, "missing", np.zeros(len(self.ids), bool))
        for name, array in [*self.scores.items(), *self.labels.items()]:
            if len(array) != len(self.ids):
                raise ValueError(f"{name} is {array.shape}; there are {len(self.ids)} segments")

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Iterable[str]) -> np.ndarray:
        """Places of those of `ids` that are in the table, int64, ascending."""
        wanted = set(ids)
        return np.flatnonzero([name in wanted for name in self.ids])

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={array.shape[1:]}" for name, array in self.scores.items())
        return f"ScoreTable({len(self)} segments, {shapes}, {int(self.missing.sum())} missing)"


class Scores:
    """Collects what a model says of segments, batch by batch, in any number of processes.

    A segment that comes again (samplers repeat some to fill a batch) is told by its id and left out: the first counts.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._batches: list[_Batch] = []

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, ids: Sequence[str], scores: Mapping[str, Any], labels: Mapping[str, Any] | None = None) -> None:
        """Scores (B, C) or (B, T, C) and labels of a batch, as arrays or tensors (on any device), by task."""
        arrays = {name: _array(value) for name, value in scores.items()}
        truths = {name: _array(value) for name, value in (labels or {}).items()}
        for name, array in [*arrays.items(), *truths.items()]:
            if len(array) != len(ids):
                raise ValueError(f"{name} is {array.shape}; the batch has {len(ids)} ids")
        if self._batches and (
            arrays.keys() != self._batches[0][1].keys() or truths.keys() != self._batches[0][2].keys()
        ):
            raise ValueError(
                f"this batch has scores of {', '.join(arrays)} and labels of {', '.join(truths) or 'nothing'}; "
                f"those before had {', '.join(self._batches[0][1])} and {', '.join(self._batches[0][2]) or 'nothing'}"
            )
        rows = []
        for row, name in enumerate(ids):
            if name not in self._seen:
                self._seen.add(name)
                rows.append(row)
        if rows:
            self._batches.append(
                (
                    [str(ids[row]) for row in rows],
                    {name: array[rows] for name, array in arrays.items()},
                    {name: array[rows] for name, array in truths.items()},
                )
            )

    def merge(self, others: Iterable[Scores]) -> Scores:
        """These scores with those of others, in their order; a segment of several counts as the first says."""
        merged = Scores()
        for part in (self, *others):
            for batch in part._batches:
                merged.add(*batch)
        return merged

    def gather(self, everywhere: bool = False) -> Scores | None:
        """The scores of all processes of torch.distributed, on process 0 (None on others), or on all of them.

        Every process must call it. Alone, a process has them all.
        """
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return self
        parts: list[Any] = [None] * distributed.get_world_size()
        first = distributed.get_rank() == 0
        if everywhere:
            distributed.all_gather_object(parts, self)
        else:
            distributed.gather_object(self, parts if first else None)
        return parts[0].merge(parts[1:]) if everywhere or first else None

    def table(
        self,
        ids: Sequence[str] | None = None,
        *,
        labels: Mapping[str, np.ndarray] | None = None,
        missing: Missing = "error",
    ) -> ScoreTable:
        """All segments as one table.

        ids: which segments, and their order: those of the dataset, so that the table does not depend on how many
            processes worked. None: those that came, sorted. Scores of other segments are left out.
        labels: by task, in the order of `ids`; None: those that came with the scores.
        missing: what segments without scores are: an error, or "zeros" (RULSTM's rule for segments that its loader
            discards; they need `labels`).
        """
        if not self._batches:
            raise ValueError("there are no scores yet")
        place = {name: row for row, name in enumerate(name for batch in self._batches for name in batch[0])}
        wanted = sorted(place) if ids is None else list(ids)
        rows = np.array([place.get(name, -1) for name in wanted], np.int64)
        lost = rows < 0
        if lost.any():
            names = [wanted[row] for row in np.flatnonzero(lost)]
            if missing != "zeros":
                raise ValueError(
                    f"{len(names)} of {len(wanted)} segments have no scores ({', '.join(names[:3])}, ...); predict "
                    'them, or count them as misses with missing="zeros"'
                )
            if labels is None and self._batches[0][2]:
                raise ValueError(f"{len(names)} segments have no scores and so no labels; pass labels in order of ids")

        def column(parts: list[np.ndarray]) -> np.ndarray:
            found = np.concatenate(parts)[rows]
            found[lost] = 0
            return found

        truths = {name: column([truths[name] for _, _, truths in self._batches]) for name in self._batches[0][2]}
        return ScoreTable(
            tuple(wanted),
            {name: column([scores[name] for _, scores, _ in self._batches]) for name in self._batches[0][1]},
            labels if labels is not None else truths,
            lost,
        )


def _array(value: Any) -> np.ndarray:
    """Of a tensor or array-like; half precision becomes float32."""
    if hasattr(value, "detach"):
        value = value.detach()
        value = (value.float() if value.is_floating_point() and value.element_size() < 4 else value).cpu().numpy()
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float16 else array
