"""How the launcher reads flags, Slurm and Kubernetes, and what its exit codes say."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from actionfuse import heartbeat
from actionfuse.launch import World, command_of, first_host, gpu_count, make_parser, run, world_of

SLURM = {"SLURM_NODEID": "1", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu[07-09,12],head", "SLURM_JOB_ID": "5"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "1", "PET_NNODES": "2", "PET_MASTER_ADDR": "job-0.job"}


def world(env, *flags, gpus=0):
    return world_of(make_parser().parse_args([*flags, "train", "r"]), env, gpus)


def test_flags_then_slurm_then_kubernetes_then_one_node():
    assert world({}) == World()
    assert world({}, gpus=4).nproc_per_node == 4
    assert world(SLURM | KUBERNETES, gpus=2) == World("2", 2, 1, "gpu07", 20005)
    assert world(KUBERNETES | {"PET_NPROC_PER_NODE": "3"}, gpus=2) == World("2", 3, 1, "job-0.job", 29500)
    flags = "--node-rank 0 --master-addr other --master-port 7 --nproc-per-node 1"
    assert world(SLURM, *flags.split(), gpus=8) == World("2", 1, 0, "other", 7)


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0"}, "the first one's address"),
        ({"PET_NNODES": "2", "PET_MASTER_ADDR": "a"}, "say which this is"),
        ({"PET_NNODES": "two"}, "'two'"),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "2"}, "no such node"),
        ({"PET_NPROC_PER_NODE": "0"}, "'0'"),
    ],
)
def test_what_is_missing_is_told(env, told):
    with pytest.raises(ValueError, match=told):
        world(env)


def test_first_host():
    assert [first_host(x) for x in ("a", "a,b", "n[1-3]", "n[07,9]x,b", "")] == ["a", "a", "n1", "n07x", ""]


def test_gpus_are_counted_as_torch_does():
    assert gpu_count() == torch.cuda.device_count()


def test_commands():
    several = command_of(["train", "r", "--out", "o"], World("2", 4, 1, "head", 9), 0, 60)
    assert several[-2:] == ["--processes", "8"] and "--node-rank=1" in several and "--shutdown-timeout=60" in several
    elastic = command_of(["train", "r"], World("1:3", 2, 0, "head", 9), 3, 60)
    assert elastic[-1] == "2:6" and "--rdzv-conf=is_host=true" in elastic
    assert command_of(["train", "r"], World(), 0, 60)[1:] == ["-m", "actionfuse.cli", "train", "r"]
    assert command_of(["extract", "v"], World(nproc_per_node=2), 0, 60)[-2:] == ["--processes", "2"]
    assert command_of(["doctor"], World("2", 2, 0, "a"), 0, 60)[1:] == ["-m", "actionfuse.cli", "doctor"]


SAVES = "import os,pathlib,sys; pathlib.Path(os.environ['ACTIONFUSE_PREEMPTED']).touch(); sys.exit(%d)"


def test_only_a_process_that_tells_it_saved_makes_a_failure_a_preemption():
    assert run([sys.executable, "-c", SAVES % 1]) == 75 and run([sys.executable, "-c", SAVES % 0]) == 0
    assert run([sys.executable, "-c", "raise SystemExit(1)"]) == 1  # the file of the call before is not its own
    assert run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


def test_sigterm_is_handed_on(tmp_path):
    child = "import os,pathlib,signal,sys,time\n"
    child += "signal.signal(15,lambda *_:(pathlib.Path(os.environ['ACTIONFUSE_PREEMPTED']).touch(),sys.exit(1)))\n"
    child += "pathlib.Path(sys.argv[1],'up').touch()\ntime.sleep(60)"
    code = "import sys; from actionfuse.launch import run\nsys.exit(run([sys.executable, '-c', *sys.argv[1:]]))"
    process = subprocess.Popen([sys.executable, "-c", code, child, str(tmp_path)])
    try:
        while not (tmp_path / "up").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    finally:
        process.kill()


def test_a_heartbeat_ages(tmp_path, monkeypatch):
    file = tmp_path / "beat"
    monkeypatch.setenv("ACTIONFUSE_HEARTBEAT", str(file))
    monkeypatch.setattr(heartbeat, "_last", -1e9)
    assert heartbeat.main([]) == 1
    heartbeat.beat()
    assert heartbeat.main([]) == 0
    os.utime(file, (1, 1))
    assert heartbeat.main([]) == 1


def test_the_locks_differ_in_torch_and_cuda_only():
    folder = Path(__file__).parents[1] / "docker"
    locks = [
        dict(re.findall(r"^(\S+)(==\S+ \\\n    --hash=sha256:[0-9a-f]{64})$", path.read_text(), re.M))
        for path in sorted(folder.glob("requirements-*.lock"))
    ]
    assert len(locks) == 2 and all("torch" in lock and "setuptools" in lock for lock in locks)
    different = {name for name in locks[0].keys() | locks[1].keys() if locks[0].get(name) != locks[1].get(name)}
    assert all(re.fullmatch(r"torch|torchvision|triton|nvidia-.*|cuda-.*", name) for name in different), different
