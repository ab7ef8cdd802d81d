"""The CPU image under a real Docker engine: built, looked at, extracting, training, stopped, resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from cluster_jobs import ENVIRONMENT, last_step, losses, wait_for, write_job
from daemons import Daemons, call, stop, tail
from videos import write_counting_video

ROOT = Path(__file__).parents[2]
DOCKER = "/usr/bin/docker"  # Debian's, with BuildKit inside; another in PATH may need a plugin for it
IMAGE = "actionfuse:cpu"
USER = "10001"
# Nothing that may be written but what is mounted, no rights, no network.
SHUT = ["--read-only", "--tmpfs=/tmp", "--tmpfs=/cache:mode=1777", "--cap-drop=ALL", "--network=none", "--init"]
SHUT += ["--security-opt=no-new-privileges"]


@dataclass(frozen=True)
class Docker:
    """call: `docker WORDS`, or `docker-compose WORDS` with compose=True. env: what they need."""

    call: Callable[..., str]
    env: dict[str, str]

    def __call__(self, *words: str | Path, **options) -> str:
        return self.call(*words, **options)


@pytest.fixture(scope="module")
def base() -> Path:
    """The tree that stands for the base image; kept for the next time."""
    script = Path(__file__).with_name("base-image.sh")
    trusted = Path("/etc/ssl/certs/ca-certificates.crt")
    digest = hashlib.sha256(script.read_bytes() + trusted.read_bytes()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "actionfuse"
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / f"base-bookworm-{digest[:12]}.tar"
    if not tree.exists():
        call([script, tree], within_seconds=400)
    return tree


@pytest.fixture(scope="module")
def docker(base: Path) -> Iterator[Docker]:
    """`docker` and `docker-compose` on an engine of this test's own, with the base image."""
    had_bridge = Path("/sys/class/net/docker0").exists()
    free = shutil.disk_usage(tempfile.gettempdir()).free
    assert free > 10e9, f"images need 10 GB below {tempfile.gettempdir()}, there are {free / 1e9:.1f}"  # measured: 8.7
    # short: the path of a socket has 107 characters
    folder = Path(tempfile.mkdtemp(prefix="af-docker-"))
    env = {"DOCKER_HOST": f"unix://{folder}/socket", "DOCKER_BUILDKIT": "1", "COMPOSE_PROJECT_NAME": "actionfuse"}
    env |= {"ACTIONFUSE_IMAGE": IMAGE, "KITCHEN_SIZE": "tiny", "EPOCHS": "1", "RECIPE": "kitchen_rgb"}
    words = ["dockerd", "--data-root", folder / "data", "--exec-root", folder / "exec"]
    words += ["-H", env["DOCKER_HOST"], "--pidfile", folder / "pid"]

    def run(*words: str | Path, compose: bool = False, **options) -> str:
        return call([*(_compose() if compose else [DOCKER]), *words], env=env, **options)

    def answers() -> bool:
        return subprocess.run([DOCKER, "info"], env={**os.environ, **env}, capture_output=True).returncode == 0

    try:
        with Daemons(folder) as engine:
            engine.start("dockerd", words, answers, grace_seconds=60)
            with base.open("rb") as tree:
                import_ = [DOCKER, "import", "-", "python:3.11-slim-bookworm"]
                subprocess.run(import_, stdin=tree, env={**os.environ, **env}, check=True, timeout=120)
            yield Docker(run, env)
            run("down", "--volumes", "--timeout", "5", compose=True, within_seconds=300)
    finally:
        shutil.rmtree(folder)
        if not had_bridge:
            subprocess.run(["ip", "link", "delete", "docker0"], check=False, capture_output=True)


def _compose(*more: Path) -> list[str | Path]:
    files = [word for path in (ROOT / "docker" / "compose.yaml", *more) for word in ("-f", path)]
    return ["docker-compose", "--ansi", "never", *files]


@pytest.fixture(scope="module")
def image(docker: Docker) -> dict:
    """What `docker image inspect` says of the image, which is built from the CPU lock."""
    words = ["--build-arg", "LOCK=cpu", "--build-arg", "VERSION=1.2.3", "--build-arg", "REVISION=abc"]
    docker("build", "-f", ROOT / "docker" / "Dockerfile", "-t", IMAGE, *words, ROOT, within_seconds=840)
    return json.loads(docker("image", "inspect", IMAGE))[0]


def test_the_dockerfile_keeps_the_rules_of_hadolint(tmp_path):
    checker = Path(os.environ["ACTIONFUSE_CHECKERS"]) / "hadolint"
    call([checker, ROOT / "docker" / "Dockerfile"])
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python:3.11-slim-bookworm\nRUN cd /opt && sudo true\n")
    assert "DL3004" in call([checker, wrong], code=1)


def test_compose_files_are_valid():
    both = call([*_compose(ROOT / "docker" / "compose.gpu.yaml"), "config"])
    node = yaml.safe_load(both)["services"]["node0"]
    assert node["ipc"] == "host" and node["read_only"] and node["cap_drop"] == ["ALL"]
    assert node["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_the_image_is_what_it_says(docker, image):
    settings = image["Config"]
    assert settings["User"] == f"{USER}:0" and settings["StopSignal"] == "SIGTERM" and settings["Healthcheck"]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in settings["Env"]
    labels = {key.rpartition(".")[2]: value for key, value in settings["Labels"].items()}
    assert (labels["title"], labels["version"], labels["revision"]) == ("actionfuse", "1.2.3", "abc")
    print(f"{image['Size'] / 1e9:.2f} GB")
    assert 1e9 < image["Size"] < 4.6e9  # most of it CUDA's libraries, without which PyPI's torch cannot be loaded
    unwanted = "-name *.pth -size +64k -o -name *.pt -o -name *.safetensors -o -name *.mp4 -o -path */pip/http*"
    found = docker("run", "--rm", "--user=0", "--entrypoint=find", IMAGE, "/", "-xdev", *unwanted.split())
    assert found == "", "weights, videos or pip's cache in the image"
    assert docker("run", "--rm", *SHUT, "--entrypoint=id", IMAGE, "-u").strip() == USER
    refused = docker("run", "--rm", *SHUT, "--entrypoint=touch", IMAGE, "/opt/venv/x", code=1)
    assert "Read-only file system" in refused


@pytest.mark.timeout(120)
def test_doctor_is_content_as_any_user_that_may_write_the_output(docker, image, tmp_path):
    tmp_path.chmod(0o777)
    for user in (USER, "4321"):
        options = [*SHUT, f"--user={user}:0", "--shm-size=1g"]
        told = docker("run", "--rm", *options, "-v", f"{tmp_path}:/out", IMAGE, "doctor")
        assert "decoder decord: 10 of 10 frames" in told and "error" not in told, told
        assert "/out cannot be written" in docker("run", "--rm", *options, IMAGE, "doctor", code=1)
    assert "launch:" in docker("run", "--rm", *SHUT, "-e", "PET_NNODES=two", IMAGE, "train", "kitchen_rgb", code=2)


@pytest.mark.timeout(240)
def test_an_extraction_gives_what_it_gives_outside(docker, image, tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    out.mkdir()
    out.chmod(0o777)
    for number in range(2):
        write_counting_video(videos / f"v{number}.mp4")
    options = ["--backbone", "tsn:resnet18", "--weights", "random", "--device", "cpu"]
    mounts = ["-v", f"{videos}:/data:ro", "-v", f"{out}:/out"]
    docker("run", "--rm", *SHUT, *mounts, IMAGE, "extract", "/data", "--out", "/out/features", *options)
    call(["actionfuse", "extract", videos, "--out", tmp_path / "outside", *options], env=ENVIRONMENT)
    inside = sorted((out / "features").rglob("*.npz"))
    outside = sorted((tmp_path / "outside").rglob("*.npz"))
    assert [path.name for path in inside] == [path.name for path in outside] == ["v0.mp4.npz", "v1.mp4.npz"]
    for one, other in zip(inside, outside, strict=True):
        assert one.stat().st_uid == int(USER)
        with np.load(one) as a, np.load(other) as b:
            np.testing.assert_allclose(a["features"], b["features"], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(a["start_seconds"], b["start_seconds"])


@pytest.mark.timeout(400)
def test_two_containers_train_on_raw_videos(docker, image):
    told = docker("up", "node0", "node1", compose=True, within_seconds=360)
    assert "action/top1_accuracy" in told, told
    for node in ("node0", "node1"):
        name = docker("ps", "-q", node, compose=True).strip()
        about = json.loads(docker("inspect", name))[0]
        assert about["State"]["ExitCode"] == 0, told
        assert about["Config"]["User"] == f"{USER}:0"
        assert about["HostConfig"]["ReadonlyRootfs"] and about["HostConfig"]["CapDrop"] == ["ALL"]


@pytest.mark.timeout(400)
def test_a_stopped_container_saves_and_the_same_call_goes_on(docker, image, tmp_path):
    """`docker stop` of one of two nodes: both save, both end with 75, and resumed they reach the undisturbed loss."""
    toy = tmp_path / "toy"
    write_job(toy, epochs=60, save_steps=100000)
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(0o777)
    mounts = {"volumes": [f"{toy}:{toy}:ro", f"{runs}:/runs"]}
    more = tmp_path / "compose.test.yaml"
    more.write_text(yaml.safe_dump({"version": "3.8", "services": {"node0": mounts, "node1": mounts}}))
    given = {**docker.env, "RECIPE": str(toy / "recipe.yaml"), "DATA_ROOT": str(toy), "EPOCHS": "60"}
    up = [*_compose(more), "up", "node0", "node1"]

    def codes() -> list[int]:
        names = [docker("ps", "-q", node, compose=True).strip() for node in ("node0", "node1")]
        return [int(docker("inspect", "-f", "{{.State.ExitCode}}", name)) for name in names]

    log = tmp_path / "up.log"
    with log.open("wb") as out:
        env = {**os.environ, **given, "RUN": "/runs/stopped"}
        process = subprocess.Popen(up, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_for("steps", lambda: last_step(runs / "stopped") > 0, 150, log)
        node = docker("ps", "-q", "node1", compose=True).strip()
        docker("exec", node, "python", "-m", "actionfuse.heartbeat", "--within-seconds", "60")
        docker("stop", "--time", "60", node)
        assert process.wait(timeout=90) == 0, tail(log)  # docker-compose's own code
    finally:
        stop(process, 5.0)
    assert codes() == [75, 75], tail(log)
    steps = last_step(runs / "stopped")
    assert 0 < steps < 360
    for name in ("stopped", "undisturbed"):
        told = call(up, env={**given, "RUN": f"/runs/{name}"}, within_seconds=150)
        assert codes() == [0, 0], told
        assert (f"going on from step {steps}" in told) == (name == "stopped"), told
    assert losses(runs / "stopped") == losses(runs / "undisturbed") and len(losses(runs / "stopped")) == 360
