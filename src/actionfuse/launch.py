"""What containers run: `python -m actionfuse.launch [OPTIONS] COMMAND ...`, one call on each node.

  launch train kitchen_mimo --out /out/run           as many processes as there are GPUs, else one
  launch --nproc-per-node 8 --nnodes 2 --node-rank 1 --master-addr head train kitchen_mimo --out /out/run
  launch extract /videos --out /out/features
  launch doctor

How many nodes and processes there are is taken from the options, else from Slurm (SLURM_NNODES, SLURM_NODEID), else
from Kubernetes (PET_NNODES, PET_NODE_RANK or JOB_COMPLETION_INDEX, PET_MASTER_ADDR, PET_MASTER_PORT), else it is one
node; PET_NPROC_PER_NODE says in all cases how many processes it has. `train`, and `extract` on several nodes, run under
torchrun; every other command runs as it is.

Exit codes are the command's own: 0 done, 2 wrong call, ...; 75 where training was asked to stop (SIGTERM) and has
saved: start it again. torchrun's own code would hide that, so processes tell it by a file of this node's own, which
ACTIONFUSE_PREEMPTED names: nodes share no file, and one that starts again takes no other's for its own.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from actionfuse.heartbeat import beat

PREEMPTED = 75
PREEMPTED_VARIABLE = "ACTIONFUSE_PREEMPTED"


@dataclass(frozen=True)
class World:
    """nnodes: 2, or 1:4 for an elastic job; node_rank: this call's, None where torchrun finds it out."""

    nnodes: str = "1"
    nproc_per_node: int = 1
    node_rank: int | None = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29500

    @property
    def processes(self) -> str:
        """`--processes` of `actionfuse train`: all of them, a range for an elastic job."""
        return ":".join(str(int(nodes) * self.nproc_per_node) for nodes in self.nnodes.split(":"))

    @property
    def elastic(self) -> bool:
        return ":" in self.nnodes


def world_of(args: argparse.Namespace, env: Mapping[str, str], gpus: int) -> World:
    """Options first, then Slurm, then Kubernetes, then one node.

    Raises: ValueError where there are several nodes and which this is, or the first one's address, is not said.
    """
    slurm = "SLURM_NODEID" in env and "SLURM_NNODES" in env
    if slurm:
        found: dict[str, str | None] = {
            "nnodes": env["SLURM_NNODES"],
            "node_rank": env["SLURM_NODEID"],
            "master_addr": env.get("MASTER_ADDR") or first_host(env.get("SLURM_JOB_NODELIST", "")),
            "master_port": env.get("MASTER_PORT") or str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000),
        }
    else:
        found = {
            "nnodes": env.get("PET_NNODES"),
            "node_rank": env.get("PET_NODE_RANK") or env.get("JOB_COMPLETION_INDEX"),
            "master_addr": env.get("PET_MASTER_ADDR") or env.get("MASTER_ADDR"),
            "master_port": env.get("PET_MASTER_PORT") or env.get("MASTER_PORT"),
        }
    found["nproc_per_node"] = env.get("PET_NPROC_PER_NODE")
    for name in found:
        given = getattr(args, name)
        found[name] = str(given) if given is not None else found[name]

    nnodes = found["nnodes"] or "1"
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", nnodes):
        raise ValueError(f"the number of nodes is {nnodes!r}; give one, such as 2, or a range, such as 1:4")
    nproc = found["nproc_per_node"] or "auto"
    if nproc in ("auto", "gpu", "cpu"):
        nproc = str(max(1, gpus))
    if not nproc.isdecimal() or int(nproc) < 1:
        raise ValueError(f"the number of processes per node is {nproc!r}; give a whole number, or auto for one per GPU")
    if nnodes == "1":
        return World(nproc_per_node=int(nproc), master_port=int(found["master_port"] or 29500))
    if not found["master_addr"]:
        raise ValueError(f"there are {nnodes} nodes: say the first one's address (--master-addr, or PET_MASTER_ADDR)")
    rank = found["node_rank"]
    if ":" not in nnodes and rank is None:
        raise ValueError(
            f"there are {nnodes} nodes: say which this is (--node-rank, PET_NODE_RANK, JOB_COMPLETION_INDEX)"
        )
    if ":" not in nnodes and rank is not None and int(rank) >= int(nnodes):
        raise ValueError(f"this is node {rank}, counted from 0, of {nnodes}: there is no such node")
    port = int(found["master_port"] or 29500)
    return World(nnodes, int(nproc), None if rank is None else int(rank), found["master_addr"], port)


def first_host(hosts: str) -> str:
    """`gpu[07-09,12],head` -> `gpu07`: the first of a Slurm list, which takes no Slurm inside the container."""
    head = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", hosts)
    return "".join(part or "" for part in head.groups()) if head else ""


def command_of(words: Sequence[str], world: World, max_restarts: int, shutdown_seconds: int) -> list[str]:
    """The process to start: torchrun around it, or `actionfuse` itself. words: COMMAND and its arguments."""
    name, *rest = words
    several = world.nnodes != "1" or world.nproc_per_node > 1
    plain = [sys.executable, "-m", "actionfuse.cli", *words]
    if name == "extract" and world.nnodes == "1":
        asked = any(word.split("=")[0] == "--processes" for word in rest)
        return plain if asked or not several else [*plain, "--processes", str(world.nproc_per_node)]
    if name not in ("train", "extract") or not (several or max_restarts):
        return plain
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={world.nnodes}"]
    command += [f"--nproc-per-node={world.nproc_per_node}", f"--max-restarts={max_restarts}"]
    command += [f"--shutdown-timeout={shutdown_seconds}", "--monitor-interval=0.1"]
    if world.nnodes == "1":
        command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    elif world.elastic:
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={world.master_addr}:{world.master_port}"]
        if world.node_rank is not None:
            command += [f"--rdzv-conf=is_host={'true' if world.node_rank == 0 else 'false'}"]
    else:
        command += [f"--node-rank={world.node_rank}", f"--master-addr={world.master_addr}"]
        command += [f"--master-port={world.master_port}"]
    if name == "train" and not any(word.split("=")[0] == "--processes" for word in rest):
        rest = [*rest, "--processes", world.processes]
    return [*command, "-m", f"actionfuse.{name}", *rest]


def run(command: Sequence[str]) -> int:
    """Run it, hand on SIGTERM and SIGINT, and return its exit code: 75 where it ended badly but tells that it saved."""
    beat()
    with tempfile.TemporaryDirectory(prefix="actionfuse-") as folder:
        marker = Path(folder) / "preempted"
        code = _wait_for(command, {**os.environ, PREEMPTED_VARIABLE: str(marker)})
        return PREEMPTED if code and marker.exists() else code


def _wait_for(command: Sequence[str], env: Mapping[str, str]) -> int:
    asked: list[int] = []
    child: subprocess.Popen | None = None

    def forward(number: int, _frame: object) -> None:
        asked.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        child = subprocess.Popen(command, env=env)
        if asked:  # came while it was started
            child.send_signal(asked[0])
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def gpu_count() -> int:
    """GPUs that torch sees; where the machine shows no device of one, torch, which takes seconds, is not asked."""
    if not any(glob(f"/dev/{name}*") for name in ("nvidia", "nvhost", "nvmap", "kfd", "dxg")):
        return 0
    import torch

    return torch.cuda.device_count()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nnodes", help="nodes: N, or MIN:MAX for an elastic job")
    parser.add_argument("--nproc-per-node", help="processes on each (default: one per GPU, else one)")
    parser.add_argument("--node-rank", type=int, help="which node this is, from 0")
    parser.add_argument("--master-addr", help="host name of node 0")
    parser.add_argument("--master-port", type=int, help="a free port of it (default: 29500)")
    parser.add_argument("--max-restarts", type=int, default=0, help="how often torchrun may start lost processes again")
    parser.add_argument(
        "--shutdown-timeout",
        type=int,
        default=60,
        metavar="SECONDS",
        help="from SIGTERM to SIGKILL of a process: longer than a step and a checkpoint, shorter than the scheduler's "
        "grace period (default: 60)",
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="train, extract, predict, doctor, ..."
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.words:
        parser.error("say what to run: train, extract, predict, doctor or another command of actionfuse")
    try:
        gpus = gpu_count() if args.words[0] in ("train", "extract") else 0
        command = command_of(args.words, world_of(args, os.environ, gpus), args.max_restarts, args.shutdown_timeout)
    except ValueError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    return run(command)


if __name__ == "__main__":
    sys.exit(main())
