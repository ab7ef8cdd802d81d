"""In which order samples come: a pure function of (seed, epoch), shared among processes, begun anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from .sampling import draw

_ORDER = 1_000_000  # a part of the draw that no sample uses


def epoch_order(num_samples: int, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """The samples of an epoch in their order, int64 (num_samples,), each once; a function of its arguments alone."""
    if num_samples < 0:
        raise ValueError(f"num_samples is {num_samples}; it must be 0 or more")
    if not shuffle:
        return np.arange(num_samples)
    return draw(seed, epoch, 0, _ORDER).permutation(num_samples)


class EpochSampler:
    """The share of one process of an epoch, for torch's DataLoader: `DataLoader(dataset, sampler=EpochSampler(...))`.

    Yields (epoch, index), so that a SegmentDataset draws for the right epoch in whatever worker and however early a
    sample is fetched. Process `rank` of `world_size` has every world_size-th sample of what is left of the order: all
    processes together have each sample once.

    start_index: how many samples of the epoch all processes together have had: where training goes on after it was
        stopped, with any number of processes. After k batches of B in each process it is k B world_size.
    uneven: where the rest cannot be shared out evenly, "keep" gives some processes one sample more (evaluation: every
        sample once), "drop" leaves out fewer than world_size at the end (training in step: as many batches everywhere).

    Do not hand such a loader to Accelerate's `prepare`, which would share it out a second time, unless world_size is 1
    here.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        start_index: int = 0,
        uneven: Literal["keep", "drop"] = "keep",
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank} of {world_size} processes; ranks are 0 to {world_size - 1}")
        if uneven not in ("keep", "drop"):
            raise ValueError(f'uneven is {uneven!r}; it must be "keep" or "drop"')
        self.num_samples, self.seed, self.shuffle = num_samples, seed, shuffle
        self.rank, self.world_size, self.uneven = rank, world_size, uneven
        self.set_epoch(epoch, start_index)

    def set_epoch(self, epoch: int, start_index: int = 0) -> None:
        """From now on this epoch, from its sample `start_index` on."""
        if epoch < 0 or not 0 <= start_index <= self.num_samples:
            raise ValueError(f"epoch is {epoch}, start_index {start_index} of {self.num_samples} samples")
        self.epoch, self.start_index = epoch, start_index

    def order(self) -> np.ndarray:
        """The samples of the epoch, of all processes, in order, int64 (num_samples,)."""
        return epoch_order(self.num_samples, self.seed, self.epoch, self.shuffle)

    def indices(self) -> np.ndarray:
        """The samples of this process, in order, int64."""
        order = self.order()[self.start_index :]
        if self.uneven == "drop":
            order = order[: len(order) // self.world_size * self.world_size]
        return order[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        for index in self.indices().tolist():
            yield epoch, index

    def __len__(self) -> int:
        left = self.num_samples - self.start_index
        whole, rest = divmod(left, self.world_size)
        return whole + (self.uneven == "keep" and self.rank < rest)
