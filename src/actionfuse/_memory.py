"""What programs ask of the memory: freed blocks are kept, nothing is collected while modules are imported, and some is
shared without a name.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# From glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks of up to 32 MiB for the next layer; returns whether it does.

    By default every activation above 128 KiB to 32 MiB goes back to the kernel when it is freed, and is mapped and
    zeroed anew for the next layer: on a CPU that was a quarter of the time of a light network (5 of 20 ms a frame). It
    concerns the whole process, so only the program asks for it and processes that are our own (workers of a loader),
    never the library. Without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return False
    settings = (
        (_M_MMAP_THRESHOLD, 32 << 20),  # the most that glibc allows
        (_M_TRIM_THRESHOLD, (1 << 31) - 1),
        (_M_TOP_PAD, 64 << 20),
        (_M_ARENA_MAX, 1),  # other arenas are heaps of 64 MiB: too small for this
    )
    return all([mallopt(name, value) == 1 for name, value in settings])


@contextmanager
def no_collection() -> Iterator[None]:
    """The garbage collector rests: to import torch, torchvision and timm makes a million objects that stay, and going
    through them again and again is a quarter of the time (measured: 3.9 CPU-seconds instead of 5.0).
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def anonymous_file() -> int:
    """A file descriptor of shared memory without a name: nothing is left behind, however the processes end.

    On Linux it is not limited by the size of /dev/shm, which containers often set to 64 MB.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("actionfuse", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
