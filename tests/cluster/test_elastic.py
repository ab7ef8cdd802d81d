"""Elastic training on two hosts: a killed worker, a lost node, a node that comes back; losses stay what they were."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from cluster_hosts import TwoHosts
from cluster_jobs import ENVIRONMENT, last_step, losses, saved_step, wait_for, write_job
from daemons import stop


class Cluster:
    """torchrun on two hosts; `--nnodes 1:2`."""

    def __init__(self, hosts: TwoHosts, recipe: Path, folder: Path) -> None:
        self.hosts, self.recipe, self.folder, self.run = hosts, recipe, folder, folder / "run"
        self.nodes: dict[int, subprocess.Popen] = {}
        self.told = 0  # characters of host 0's log that earlier steps of the test have read

    def start(self, host: int) -> None:
        rendezvous = f"is_host={'true' if host == 0 else 'false'},last_call_timeout=3,keep_alive_interval=2"
        command = [
            *("torchrun", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=5", "--monitor-interval=0.1"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint={self.hosts.addresses[0]}:29500", "--rdzv-id=job"),
            *(f"--rdzv-conf={rendezvous}", f"--local-addr={self.hosts.addresses[host]}"),
            *("-m", "actionfuse.train", str(self.recipe), "--out", str(self.run), "--processes", "1:2"),
        ]
        with self.log(host).open("ab") as out:
            self.nodes[host] = subprocess.Popen(
                self.hosts.on(host, command),
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**ENVIRONMENT, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
                start_new_session=True,
            )

    def log(self, host: int) -> Path:
        return self.folder / f"host{host}.log"

    def kill_worker(self, host: int) -> None:
        """The process that trains, not the agent that started it."""
        os.kill(_descendants(self.nodes[host].pid)[0], signal.SIGKILL)  # `ip netns exec` has become the agent

    def lose(self, host: int) -> None:
        """The agent and everything that it started, at once."""
        process = self.nodes.pop(host)
        family = [process.pid, *_descendants(process.pid)]
        assert len(family) >= 2
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        process.wait(timeout=30)

    def trains_on(self, what: str, host: int = 0, within_seconds: float = 100.0) -> tuple[float, str]:
        """Seconds until a checkpoint follows the one that training goes on from, and what was said meanwhile."""
        before, log = self.told, self.log(host)
        seconds = wait_for(what, lambda: "going on from step" in self._since(host, before), within_seconds, log)
        first = int(re.findall(r"going on from step (\d+)", self._since(host, before))[-1])
        seconds += wait_for(what, lambda: saved_step(self.run) > first, within_seconds, log)
        self.told = len(self.log(host).read_text())
        return seconds, self._since(host, before)

    def _since(self, host: int, place: int) -> str:
        return self.log(host).read_text()[place:]

    def stop(self) -> None:
        for host in sorted(self.nodes, reverse=True):
            stop(self.nodes[host], 20.0)


@pytest.mark.timeout(420)
def test_a_job_outlives_its_worker_and_its_node(tmp_path, record_property):
    recipe = write_job(tmp_path / "toy", epochs=20000, save_steps=20)
    with TwoHosts() as hosts:
        job = Cluster(hosts, recipe, tmp_path)
        try:
            job.start(0)
            job.start(1)
            wait_for("the first checkpoint", lambda: saved_step(job.run) >= 20, 100, job.log(0))
            assert "2 processes, of 1 to 2 that --processes allows" in job.log(0).read_text()
            job.told = len(job.log(0).read_text())

            job.kill_worker(1)
            seconds, said = job.trains_on("a killed worker")
            assert "instead of" not in said
            record_property("killed_worker_seconds", seconds)
            print(f"killed worker: training again after {seconds:.1f} s")
            both = saved_step(job.run)

            job.lose(1)
            seconds, said = job.trains_on("a lost node")
            assert "with 1 processes instead of 2" in said
            record_property("lost_node_seconds", seconds)
            print(f"lost node: training again after {seconds:.1f} s")

            job.start(1)
            seconds, said = job.trains_on("a node that came back")
            assert "with 2 processes instead of 1" in said
            record_property("joined_node_seconds", seconds)
            print(f"node came back: training with it after {seconds:.1f} s")
        finally:
            job.stop()
    disturbed = losses(job.run)
    print(f"{len(disturbed)} steps")
    expected = undisturbed(recipe, tmp_path / "undisturbed", len(disturbed))
    assert [step for step, _ in disturbed] == list(range(1, len(disturbed) + 1))
    assert disturbed[:both] == expected[:both]  # the same world: bit for bit
    for (_, one), (_, other) in zip(disturbed, expected, strict=False):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


def undisturbed(recipe: Path, folder: Path, steps: int) -> list[tuple[int, float]]:
    """The losses of two processes on one host, which end by being asked to after `steps`."""
    folder.mkdir()
    run, log = folder / "run", folder / "log"
    command = ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "actionfuse.train", str(recipe)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--out", str(run), "--processes", "2"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        try:
            wait_for("training", lambda: last_step(run) >= steps, 200, log)
        finally:
            stop(process, 20.0)
    assert (run / "preempted").is_file()
    return losses(run)


def _descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *_descendants(int(child))]
    return found
