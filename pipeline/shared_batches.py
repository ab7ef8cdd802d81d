"""How batches come from the workers of a DataLoader: in memory that is shared and used again.

torch moves each tensor of a batch into a shared memory file of its own, made for it and mapped anew on both sides. The
kernel zeroes and maps such memory page by page: for a batch of pictures that takes about as long as decoding them.
Here a worker keeps the memory of batches that are gone and writes the next ones there, and the process that reads them
keeps its mappings. A tensor holds its memory until it and all its views are gone, as anywhere in torch; only then may
the worker use it again. Nothing lies in /dev/shm (Docker gives that 64 MB), and nothing is left when a process is
killed.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from actionfuse._memory import anonymous_file

# Below this a tensor travels by value: labels that somebody collects must not keep the memory of pictures.
MIN_BYTES = 1 << 16
MAX_FREE = 8  # blocks that a worker keeps for later
_HEADER = 64  # bytes; the first tells whether the reader still uses the block
_MINE, _LENT = 0, 1

# What this process has mapped: loader -> (worker, number of the block) -> its memory.
_mapped: dict[str, dict[tuple[int, int], mmap.mmap]] = {}


def shared_memory_available() -> bool:
    return hasattr(os, "memfd_create")


class Block:
    """Shared memory of a worker, for one tensor at a time."""

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size
        self.fd = anonymous_file()
        os.ftruncate(self.fd, _HEADER + size)
        self.memory = mmap.mmap(self.fd, _HEADER + size)
        self.sent = False

    @property
    def free(self) -> bool:
        return self.memory[0] == _MINE

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        length = int(np.prod(shape)) * dtype.itemsize
        whole = np.frombuffer(self.memory, np.uint8, length, _HEADER)
        return torch.from_numpy(whole).view(dtype).view(shape)

    def close(self) -> None:
        os.close(self.fd)  # the mapping goes with the last array that looks into it


class Blocks:
    """The blocks of one worker. loader: whose batches these are."""

    def __init__(self, loader: str) -> None:
        self.loader = loader
        self.blocks: list[Block] = []
        self.gone: list[int] = []  # numbers that the reader may forget
        self._next = 0

    def take(self, size: int) -> Block:
        """The smallest block that is free and large enough; it counts as lent from now on."""
        free = sorted((block for block in self.blocks if block.free), key=lambda block: block.size)
        fitting = [block for block in free if block.size >= size]
        if fitting:
            block = fitting[0]
        else:
            block = Block(self._next, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
            self._next += 1
            self.blocks.append(block)
        for spare in [each for each in free if each is not block][: max(0, len(free) - MAX_FREE)]:
            self.blocks.remove(spare)
            self.gone.append(spare.number)
            spare.close()
        block.memory[0] = _LENT
        return block


class SharedCollate:
    """A `collate_fn`: what `collate(samples, empty)` gives, in shared memory where a worker calls it.

    collate: makes every tensor of a batch by `empty(shape, dtype)`; a batch is a dictionary of anything, tensors also
    in dictionaries inside.
    """

    def __init__(self, collate: Callable[..., dict[str, Any]]) -> None:
        self.collate, self.loader = collate, uuid4().hex
        self._blocks: Blocks | None = None  # a worker's

    def watch(self, loader: object) -> None:
        """Forget what is mapped when this DataLoader is gone; tensors that live on keep their own memory."""
        weakref.finalize(loader, _mapped.pop, self.loader, None)

    def __call__(self, samples: Any) -> Any:
        if torch.utils.data.get_worker_info() is None:
            return self.collate(samples)
        blocks = self._blocks = self._blocks or Blocks(self.loader)
        lent: dict[int, Block] = {}

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            size = int(np.prod(shape)) * dtype.itemsize
            if size < MIN_BYTES:
                return torch.empty(shape, dtype=dtype)
            block = blocks.take(size)
            tensor = block.tensor(shape, dtype)
            lent[tensor.data_ptr()] = block
            return tensor

        batch = self.collate(samples, empty)
        return _Parcel(blocks, lent, batch)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_blocks": None}


class _Parcel:
    """A batch on its way: pickling it tells where its tensors lie, unpickling it is the batch."""

    def __init__(self, blocks: Blocks, lent: dict[int, Block], batch: dict[str, Any]) -> None:
        self.loader, self.gone = blocks.loader, blocks.gone
        self.batch = self._wrap(batch, lent)
        blocks.gone = []

    def _wrap(self, value: Any, lent: dict[int, Block]) -> Any:
        if isinstance(value, dict):
            return {key: self._wrap(each, lent) for key, each in value.items()}
        if not isinstance(value, Tensor):
            return value
        block = lent.get(value.data_ptr()) if value.numel() else None
        return _ByValue(value.numpy()) if block is None else _InBlock(block, tuple(value.shape), value.dtype)

    def __reduce__(self) -> tuple:
        return _unpack, (self.loader, os.getpid(), self.gone, self.batch)


class _ByValue:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class _InBlock:
    """block: in the worker its Block; where it was unpickled its number, its size and, the first time, its file."""

    def __init__(self, block: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.block, self.shape, self.dtype = block, shape, dtype

    def __getstate__(self) -> tuple:
        file = None if self.block.sent else DupFd(self.block.fd)
        self.block.sent = True
        return (self.block.number, self.block.size, file), self.shape, self.dtype

    def __setstate__(self, state: tuple) -> None:
        self.block, self.shape, self.dtype = state


def _unpack(loader: str, worker: int, gone: list[int], batch: dict[str, Any]) -> dict[str, Any]:
    known = _mapped.setdefault(loader, {})
    for number in gone:
        known.pop((worker, number), None)

    def open_(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: open_(each) for key, each in value.items()}
        if isinstance(value, _ByValue):
            return torch.from_numpy(value.array)
        if not isinstance(value, _InBlock):
            return value
        number, size, file = value.block
        if file is not None:
            fd = file.detach()
            try:
                known[worker, number] = mmap.mmap(fd, _HEADER + size)
            finally:
                os.close(fd)
        return _borrow(known[worker, number], value.shape, value.dtype)

    return open_(batch)


def _borrow(memory: mmap.mmap, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor in a block. It and all its views hold `whole`; the block is the worker's again when that goes."""
    whole = np.frombuffer(memory, np.uint8, int(np.prod(shape)) * dtype.itemsize, _HEADER)
    weakref.finalize(whole, _give_back, memory, os.getpid()).atexit = False
    return torch.from_numpy(whole).view(dtype).view(shape)


def _give_back(memory: mmap.mmap, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has a copy of every tensor, but they are its parent's
        memory[0] = _MINE
