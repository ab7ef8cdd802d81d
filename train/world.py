"""How many processes there are, and whether that is what was asked for."""

from __future__ import annotations

import os


def check_world(processes: int, asked: int | None, what: str = "training", program: str = "actionfuse.train") -> None:
    """Refuse to do alone what was meant for many: `accelerate launch --cpu --num_processes 2` starts one process.

    Raises: ValueError where the number of processes is not what --processes or the launcher's variables say.
    """
    wishes = {"--processes": asked, "WORLD_SIZE": os.environ.get("WORLD_SIZE")}
    wishes["SLURM_NTASKS"] = os.environ.get("SLURM_NTASKS") if "SLURM_PROCID" in os.environ else None
    for name, wish in wishes.items():
        if wish is not None and int(wish) != processes:
            raise ValueError(
                f"{name} asks for {wish} processes, but {what} runs in {processes}; start it with torchrun "
                f"--nproc-per-node {wish} -m {program} ... (accelerate launch starts one process on a CPU)"
            )
