"""Manifests: strictly valid, and the training command of the Indexed Job run as it stands by two hosts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from cluster_hosts import TwoHosts
from cluster_jobs import ENVIRONMENT, losses, write_job
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


def _container(name: str) -> tuple[dict, dict]:
    job = next(each for each in yaml.safe_load_all((FOLDER / name).read_text()) if each["kind"] == "Job")
    return job["spec"], job["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.timeout(150)
def test_the_command_of_the_indexed_job_trains_on_two_hosts(tmp_path):
    recipe = write_job(tmp_path / "toy", epochs=10, save_steps=20)
    spec, container = _container("train-job.yaml")
    given = {each["name"]: each["value"] for each in container["env"]}
    # what a cluster provides: names of pods, and volumes
    given |= {"MASTER_ADDR": TwoHosts.addresses[0], "RECIPE": str(recipe), "RUN": str(tmp_path / "run")}
    started = []
    with TwoHosts() as hosts:
        try:
            for index in range(spec["completions"]):
                env = {**ENVIRONMENT, **given, "JOB_COMPLETION_INDEX": str(index)}
                with (tmp_path / f"{index}.log").open("wb") as out:
                    started.append(
                        subprocess.Popen(
                            hosts.on(index, container["command"]),
                            env=env,
                            stdout=out,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
            codes = [process.wait(timeout=120) for process in started]
        finally:
            for process in started:
                stop(process, 5.0)
    assert codes == [0, 0], (tmp_path / "0.log").read_text()[-4000:]
    assert len(losses(tmp_path / "run")) == 60


def test_extraction_shares_the_shards_among_all_pods():
    spec, container = _container("extract-job.yaml")
    words = container["command"]
    assert int(words[words.index("--parts") + 1]) == spec["completions"]
