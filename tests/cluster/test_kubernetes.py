"""Manifests: strictly valid, and the training command of the Indexed Job run as it stands by two hosts."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from cluster_hosts import TwoHosts
from cluster_jobs import ENVIRONMENT, last_step, losses, saved_step, wait_for, write_job
from daemons import call, stop

FOLDER = Path(__file__).parents[2] / "docker" / "k8s"
CORE = ("train-job.yaml", "extract-job.yaml")


@pytest.mark.parametrize("name", CORE)
def test_manifests_are_valid(name, tmp_path):
    checker = Path(os.environ["ACTIONFUSE_CHECKERS"]) / "kubernetes-validate"
    call([checker, "--strict", FOLDER / name])
    wrong = tmp_path / name
    wrong.write_text((FOLDER / name).read_text().replace("completionMode:", "completionModee:"))
    call([checker, "--strict", wrong], code=1)


# Fields that the operator's own models do not know are lost on the way.
TRAIN_JOB = """
import sys, yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
given = yaml.safe_load(open(sys.argv[1]))
kept = TrainerV1alpha1TrainJob.from_dict(given).to_dict()
sys.exit(f"{kept} is not {given}" if kept != given else 0)
"""


def test_the_train_job_is_what_the_operator_reads(tmp_path):
    python = Path(os.environ["ACTIONFUSE_CHECKERS"]) / "python"
    call([python, "-c", TRAIN_JOB, FOLDER / "trainjob.yaml"])
    wrong = tmp_path / "trainjob.yaml"
    wrong.write_text((FOLDER / "trainjob.yaml").read_text().replace("numNodes:", "nodes:"))
    assert "is not" in call([python, "-c", TRAIN_JOB, wrong], code=1)


def _container(name: str) -> tuple[dict, dict]:
    job = next(each for each in yaml.safe_load_all((FOLDER / name).read_text()) if each["kind"] == "Job")
    return job["spec"], job["spec"]["template"]["spec"]["containers"][0]


class Pods:
    """The pods of the Indexed Job on two hosts: its command and variables, and what a cluster adds to them."""

    def __init__(self, hosts: TwoHosts, folder: Path, recipe: Path) -> None:
        self.hosts, self.folder, self.recipe = hosts, folder, recipe
        self.spec, self.container = _container("train-job.yaml")
        self.running: list[subprocess.Popen] = []

    def start(self, run: Path) -> None:
        given = {each["name"]: each["value"] for each in self.container["env"]}
        given |= {"PET_MASTER_ADDR": TwoHosts.addresses[0], "RECIPE": str(self.recipe), "RUN": str(run)}
        # $(NAME) is what Kubernetes itself fills in
        words = [re.sub(r"\$\((\w+)\)", lambda name: given[name[1]], word) for word in self.container["command"]]
        self.running = []
        for index in range(self.spec["completions"]):
            env = {**ENVIRONMENT, **given, "JOB_COMPLETION_INDEX": str(index)}
            with self.log(index).open("ab") as out:
                process = subprocess.Popen(
                    self.hosts.on(index, words), env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
            self.running.append(process)

    def log(self, index: int) -> Path:
        return self.folder / f"pod{index}.log"

    def codes(self, within_seconds: float) -> list[int]:
        try:
            return [process.wait(timeout=within_seconds) for process in self.running]
        finally:
            for process in self.running:
                stop(process, 5.0)

    def told(self) -> str:
        return "".join(self.log(index).read_text()[-4000:] for index in range(len(self.running)))


@pytest.mark.timeout(300)
def test_the_indexed_job_saves_when_one_pod_is_evicted_and_goes_on(tmp_path):
    recipe = write_job(tmp_path / "toy", epochs=30, save_steps=10)
    run, alone = tmp_path / "run", tmp_path / "undisturbed"
    with TwoHosts() as hosts:
        pods = Pods(hosts, tmp_path, recipe)
        ignored = [
            rule["onExitCodes"]["values"] for rule in pods.spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule
        ]
        assert [75] in ignored
        try:
            pods.start(run)
            wait_for("training", lambda: saved_step(run) >= 10, 90, pods.log(0))
            pods.running[1].terminate()  # the other pod is told by the processes themselves
        finally:
            codes = pods.codes(within_seconds=60)
        assert codes == [75, 75], pods.told()
        steps = last_step(run)
        assert 10 <= steps < 180
        # a pod that starts again before the other has ended must change nothing in that one's code: nothing is shared
        assert (run / "preempted").is_file()
        for folder in (run, alone):
            pods.start(folder)
            assert pods.codes(within_seconds=90) == [0, 0], pods.told()
    assert not (run / "preempted").exists()
    assert len(losses(run)) == 180 and losses(run) == losses(alone)


def test_extraction_shares_the_shards_among_all_pods():
    spec, container = _container("extract-job.yaml")
    words = container["command"]
    assert int(words[words.index("--parts") + 1]) == spec["completions"]
