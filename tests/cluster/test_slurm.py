"""The batch files under a real Slurm: two nodes on this machine, started and stopped here, nothing in /etc."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from cluster_jobs import ENVIRONMENT, losses, saved_step, wait_for, write_job
from daemons import Daemons, call, free_port
from videos import write_counting_video

BATCH = Path(__file__).parents[2] / "docker" / "slurm"
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=30
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=2000
PartitionName=all Nodes=n1,n2 Default=YES State=UP MaxTime=INFINITE
"""
# cred_expire is also how long Slurm holds a job back that was queued again: 120 s where nothing is set.


@pytest.fixture(scope="module")
def slurm(daemons: Daemons):
    """The environment in which Slurm's commands find the cluster."""
    folder = daemons.folder / "slurm"
    (folder / "state").mkdir(parents=True)
    for node in ("n1", "n2"):
        (folder / node).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ports = [free_port() for _ in range(3)]
    settings = folder / "slurm.conf"
    settings.write_text(SETTINGS.format(host=socket.gethostname().split(".")[0], folder=folder, ports=ports))
    env = {**ENVIRONMENT, "SLURM_CONF": str(settings), "MASTER_ADDR": "127.0.0.1"}
    munge = folder / "munge.socket"
    options = [f"--key-file={key}", f"--socket={munge}", f"--pid-file={folder}/munged.pid"]
    options += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed", "--force", "--foreground"]
    daemons.start("munged", ["/usr/sbin/munged", *options], munge.exists, within_seconds=20)
    daemons.start("slurmctld", ["/usr/sbin/slurmctld", "-D", "-c", "-f", settings], lambda: _idle(env, 0), env=env)
    for number, node in enumerate(("n1", "n2"), 1):
        ready = lambda number=number: _idle(env, number)  # noqa: E731
        daemons.start(node, ["/usr/sbin/slurmd", "-D", "-N", node, "-f", settings], ready, env=env)
    return env


def _idle(env: dict[str, str], nodes: int) -> bool:
    done = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], env=env, capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.split().count("idle") >= nodes


def _state(env: dict[str, str], job: str) -> dict[str, str]:
    words = call(["scontrol", "-o", "show", "job", job], env=env).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def _submit(env: dict[str, str], *words: str | Path) -> str:
    return call(["sbatch", "--parsable", *words], env=env).strip().splitlines()[-1]


@pytest.mark.timeout(300)
def test_a_job_that_is_queued_again_goes_on(slurm, tmp_path):
    recipe = write_job(tmp_path / "toy", epochs=50, save_steps=20)
    out, log = tmp_path / "run", tmp_path / "job.log"
    batch = ["--nodes=2", f"--output={log}", f"--chdir={tmp_path}", BATCH / "train.sbatch", recipe]
    job = _submit(slurm, *batch, "--out", out)
    wait_for("training", lambda: saved_step(out) >= 40, 100, log)
    call(["scontrol", "requeue", job], env=slurm)
    seconds = wait_for("a second start", lambda: "going on from step" in log.read_text(), 150, log)
    print(f"queued again: going on after {seconds:.1f} s")
    wait_for("the end", lambda: _state(slurm, job)["JobState"] in ("COMPLETED", "FAILED"), 150, log)
    state = _state(slurm, job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1"), log.read_text()

    alone = tmp_path / "undisturbed"
    log = tmp_path / "undisturbed.log"
    done = [f"--output={log}", f"--chdir={tmp_path}", BATCH / "train.sbatch", recipe, "--out", alone]
    call(["sbatch", "--wait", "--nodes=2", *done], env=slurm, within_seconds=150)
    assert losses(out) == losses(alone) and len(losses(out)) == 300
    assert (out / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()


@pytest.mark.timeout(200)
def test_before_the_time_limit_a_job_saves_and_is_queued_again(slurm, tmp_path):
    recipe = write_job(tmp_path / "toy", epochs=20000, save_steps=10000)
    out, log = tmp_path / "run", tmp_path / "job.log"
    job = _submit(slurm, f"--output={log}", f"--chdir={tmp_path}", BATCH / "train.sbatch", recipe, "--out", out)
    wait_for("training", lambda: (out / "metrics.jsonl").is_file(), 100, log)
    wait_for("steps", lambda: (out / "metrics.jsonl").stat().st_size > 0, 60, log)
    call(["scancel", "--signal=TERM", job], env=slurm)  # what --signal=TERM@120 sends
    wait_for("queued again", lambda: _state(slurm, job)["Restarts"] == "1", 60, log)
    assert saved_step(out) > 0 and "saved; queued again" in log.read_text()
    call(["scancel", job], env=slurm)


@pytest.mark.timeout(60)
def test_a_call_without_a_run_is_refused(slurm, tmp_path):
    log = tmp_path / "job.log"
    call(["sbatch", "--wait", f"--output={log}", BATCH / "train.sbatch", "recipe.yaml"], env=slurm, code=2)
    assert "--out is missing" in log.read_text()


@pytest.mark.timeout(200)
def test_an_array_extracts_every_video_once(slurm, tmp_path):
    (tmp_path / "videos").mkdir()
    for number in range(4):
        write_counting_video(tmp_path / "videos" / f"v{number}.mp4")
    options = ["--backbone", "tsn:resnet18", "--weights", "random", "--device", "cpu"]
    out = tmp_path / "features"
    call(["actionfuse", "shards", "plan", tmp_path / "videos", "--out", out, "--shards", "3", *options], env=slurm)
    log = f"--output={tmp_path}/%a.log"
    words = ["--wait", "--array=0-1", log, f"--chdir={tmp_path}", BATCH / "extract.sbatch", out, "--device", "cpu"]
    call(["sbatch", *words], env=slurm, within_seconds=150)
    call(["actionfuse", "shards", "verify", out, "--deep"], env=slurm)
