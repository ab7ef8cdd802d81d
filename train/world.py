"""How many processes there are, and whether that is what was asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

# How long a process waits for the others before it gives up. NCCL's own 10 minutes are less than what one of many is
# late by at the end of a test of hours, in which they do not meet.
PATIENCE = timedelta(hours=1)


def join_world() -> PartialState:
    """This process among those that were started together, on its GPU where there is one."""
    import torch
    from accelerate import PartialState

    # said, or torchrun's processes on a CPU would each be alone
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def parse_processes(text: str) -> tuple[int, int]:
    """`8` -> (8, 8); `2:8` -> (2, 8): from 2 to 8, as an elastic launcher may start.

    Raises: ValueError.
    """
    low, colon, high = text.partition(":")
    try:
        found = int(low), int(high if colon else low)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise ValueError(f"the number of processes is {text!r}; give one, such as 8, or a range, such as 2:8")
    return found


def check_world(
    processes: int,
    asked: int | tuple[int, int] | None,
    what: str = "training",
    program: str = "actionfuse.train",
) -> str | None:
    """Refuse to do alone what was meant for many: `accelerate launch --cpu --num_processes 2` starts one process.

    asked: a number, or the least and the most of an elastic job. Returns what to say about it: which size of the range
    this is. Raises: ValueError where the number of processes is not what --processes or the launcher's variables say.
    """
    low, high = asked if isinstance(asked, tuple) else (asked, asked)
    if low is not None and high is not None and low < high:
        if not low <= processes <= high:
            raise ValueError(f"--processes allows {low} to {high} processes, but {what} runs in {processes}")
        low = None
    wishes = {"--processes": low, "WORLD_SIZE": os.environ.get("WORLD_SIZE")}
    # Under torchrun Slurm starts one task a node, and WORLD_SIZE is torchrun's own.
    if "SLURM_PROCID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        wishes["SLURM_NTASKS"] = os.environ.get("SLURM_NTASKS")
    for name, wish in wishes.items():
        if wish is not None and int(wish) != processes:
            raise ValueError(
                f"{name} asks for {wish} processes, but {what} runs in {processes}; start it with torchrun "
                f"--nproc-per-node {wish} -m {program} ... (accelerate launch starts one process on a CPU)"
            )
    if isinstance(asked, tuple) and asked[0] < asked[1]:
        return f"{processes} processes, of {asked[0]} to {asked[1]} that --processes allows"
    return None


def check_batch(batch: int, asked: int | tuple[int, int] | None) -> None:
    """Refuse at the start what would fail when the world changes: a batch that some world of the range cannot share.

    Raises: ValueError.
    """
    if isinstance(asked, tuple):
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        for processes in range(asked[0], asked[1] + 1):
            if processes % local == 0 and batch % processes:
                raise ValueError(
                    f"optim.batch is {batch}, which {processes} processes cannot share evenly, and --processes "
                    f"{asked[0]}:{asked[1]} allows that many; take a batch that all of them divide"
                )


def share_batch(batch: int, micro_batch: int | None, processes: int) -> tuple[int, int]:
    """Segments that a process computes at a time, and how often for one step of `batch` segments over all processes.

    micro_batch: `Run.micro_batch`. Raises: ValueError where the batch cannot be shared evenly.
    """
    local, rest = divmod(batch, processes)
    if rest:
        raise ValueError(f"optim.batch is {batch}, which {processes} processes cannot share evenly")
    micro = min(micro_batch or local, local)
    if local % micro:
        raise ValueError(f"run.micro_batch is {micro}; it must divide the {local} segments of a step in each process")
    return micro, local // micro


def check_sync_bn(sync_bn: bool, world: int, device_type: str) -> None:
    """Raises ValueError where batch norms are to be measured over processes of a CPU, which torch cannot."""
    if sync_bn and world > 1 and device_type == "cpu":
        raise ValueError(
            "run.sync_bn is true, but torch's synchronised batch norms run on GPUs alone: set run.sync_bn=false (each "
            "process then measures its own share of a batch)"
        )


def check_compile(wanted: bool) -> None:
    """Raises ValueError where torch.compile would fail at the first step: it writes C for its kernels, also a GPU's."""
    compilers = [os.environ.get("CC"), os.environ.get("CXX"), *map(shutil.which, ("gcc", "g++", "clang", "clang++"))]
    if wanted and not any(compilers):
        raise ValueError(
            "run.compile is true, but there is no C compiler here (slim images have none): install gcc and g++, name "
            "one in CC, or set run.compile=false"
        )


def check_trackers(wanted: Iterable[str]) -> None:
    """Raises ValueError for a tracker that there is not, or that is not installed: Accelerate would do without."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = {str(each) for each in get_available_trackers()}
    for name in wanted:
        if name not in (*LOGGER_TYPE_TO_CLASS, "all"):
            raise ValueError(f"run.trackers names {name!r}; there are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, all")
        if name not in (*there, "all"):
            raise ValueError(
                f"run.trackers names {name!r}, which is not installed here: install its package, or leave it out; "
                "metrics.jsonl is written anyway"
            )
