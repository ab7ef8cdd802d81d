"""Training on a GPU: the CPU's steps, within the rounding of the precision; `python -m pytest -m gpu`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torchvision.models import optical_flow
from toy_training import toy_recipe
from toy_videos import video_recipe

from actionfuse.cli import main
from actionfuse.pipeline import raft
from actionfuse.pipeline.order import EpochSampler
from actionfuse.pipeline.samples import collate, make_loader
from actionfuse.train import checkpoint
from actionfuse.train.batches import erase, mix, to_device
from actionfuse.train.build import build_dataset, build_model, load_split, make_task
from actionfuse.train.engine import Preempted, Trainer
from actionfuse.train.log import read_metrics
from actionfuse.train.plan import make_plan
from actionfuse.train.recipe import Recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or not -m gpu")]
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device is not several")
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SGD = {
    "optim__name": "sgd",
    "optim__lr": 0.01,
}  # Adam's first steps are the signs of gradients, also of those near zero
SIZES = {"streams__rgb__clip": {"frames": 3, "fps": 8, "side": 48, "crop": 32}}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Accelerate's one device and one precision of a process are for one test; convolutions do not round to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(recipe: Recipe, folder: Path, device: torch.device = GPU, stop: int | None = None) -> list[float]:
    """Train there, up to a step or to the end; the losses so far."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(torch.accelerator, "is_available", lambda *_: False)
        trainer = Trainer(recipe, folder, quiet=True)
        assert trainer.device.type == device.type == next(trainer.model.parameters()).device.type
        if stop is None:
            trainer.run()
        else:
            trainer._anyone_stops = lambda: trainer.progress.step == stop
            with pytest.raises(Preempted):
                trainer.run()
    return losses_of(folder)


def losses_of(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder) if row["kind"] == "step"]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2), ("fp16", 2e-2)])
@pytest.mark.parametrize("inputs", ["features", "pixels"])
def test_steps_are_those_of_the_cpu(root, videos, tmp_path, inputs, precision, tolerance):
    changes = {"run__epochs": 2, "optim__clip_norm": 1.0, **SGD}
    recipe = toy_recipe(root, **changes) if inputs == "features" else video_recipe(videos, **changes, **SIZES)
    there = replace(recipe, run=replace(recipe.run, precision=precision))
    one, two = train(recipe, tmp_path / "cpu", CPU), train(there, tmp_path / "gpu")
    assert len(one) == len(two) and np.isfinite(two).all()
    # half precisions go apart step by step, and fp16 leaves out its first ones, until it has found the scale of losses
    same = len(one) if precision == "fp32" else 1
    np.testing.assert_allclose(two[:same], one[:same], rtol=tolerance)
    for key, value in load_file(tmp_path / "gpu" / "best" / "model.safetensors").items():
        assert value.dtype in (torch.float32, torch.int64) and torch.isfinite(value).all(), key


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_stopped_run_goes_on_here_and_on_the_cpu(root, tmp_path, precision):
    changes = {"run__epochs": 3, "run__precision": precision, "run__micro_batch": 2, "head__options": {"dropout": 0.3}}
    recipe = toy_recipe(root, **changes)
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "stopped", stop=8)
    folder = checkpoint.latest_checkpoint(tmp_path / "stopped")
    assert folder is not None
    state = checkpoint.read_training(folder)
    assert bool(state["scaler"]) == (precision == "fp16")
    # with dropout: what a step draws on the GPU depends on its seed alone
    np.testing.assert_allclose(train(recipe, tmp_path / "stopped"), whole, rtol=1e-4)
    if precision == "fp32":
        plain = toy_recipe(root, run__epochs=3)
        train(plain, tmp_path / "moved", stop=8)
        elsewhere = train(plain, tmp_path / "moved", CPU)
        np.testing.assert_allclose(elsewhere, train(plain, tmp_path / "here"), rtol=1e-3)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pinned_batches_are_whole_while_they_are_copied(videos, method):
    """Memory of workers and pinned memory are used again and again, while copies are under way."""
    recipe = video_recipe(videos, streams__rgb__clip={"frames": 8, "fps": 8, "side": 160, "crop": 128})
    split = load_split(recipe, "train")
    model = build_model(recipe, split.classes)
    dataset = build_dataset(recipe, split, model, make_task(recipe.task), training=False)
    truth = {dataset[n].id: dataset[n].streams["rgb"] for n in range(len(dataset))}
    sampler = EpochSampler(len(dataset), seed=0)
    loader = make_loader(
        dataset, batch_size=2, sampler=sampler, num_workers=2, start_method=method, device=torch.device("cuda")
    )
    busy = torch.randn(2048, 2048, device="cuda")
    for epoch in range(4):
        sampler.set_epoch(epoch)
        moved = []
        for raw in loader:
            assert raw["streams"]["rgb"].is_pinned()
            for _ in range(20):  # the stream is behind: copies wait while their sources go
                busy = busy @ busy / 2048
            batch = to_device(raw, GPU, "cross_entropy", model.head.classes)
            moved.append((batch.ids, batch.inputs["rgb"]))
            del raw, batch
        for ids, clips in moved:
            for name, clip in zip(ids, clips, strict=True):
                assert torch.equal(clip.cpu(), truth[name])


def test_workers_change_no_step(videos, tmp_path):
    changes = {"run__epochs": 2, "run__micro_batch": 2, **SGD, **SIZES}
    one, two = (train(video_recipe(videos, run__workers=n, **changes), tmp_path / str(n)) for n in (0, 2))
    np.testing.assert_allclose(two, one, rtol=1e-3)


def test_mixed_and_erased_batches_are_those_of_the_cpu(videos):
    recipe = video_recipe(videos, **SIZES)
    split = load_split(recipe, "train")
    model = build_model(recipe, split.classes)
    dataset = build_dataset(recipe, split, model, make_task(recipe.task), training=True)
    raw = collate([dataset[n] for n in range(4)])
    found = []
    for device in (CPU, GPU):
        batch = to_device(raw, device, "cross_entropy", model.head.classes)
        batch = mix(erase(batch, 1.0, model.input_specs, 0), 0.4, model.head.classes, 0, 0, 0)
        assert batch.inputs["rgb"].device.type == device.type
        found.append({**batch.inputs, **batch.targets})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name].cpu(), value, rtol=1e-5, atol=1e-3)


def test_flow_of_batches_is_that_of_the_cpu(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(raft, "_UPDATES", 2)
    torch.manual_seed(1)
    torch.save(optical_flow.raft_small(weights=None).state_dict(), tmp_path / "small.pth")
    clip = {"frames": 3, "fps": 8, "side": 32, "crop": 32, "flow_method": "raft_small"}
    flow = {"backbone": "tsn:test_resnet", "weights": "random", "options": {"flow_stack": 2}}
    clip["flow_weights"] = str(tmp_path / "small.pth")
    recipe = video_recipe(videos, streams={"flow": {**flow, "clip": clip}}, data__limit=4)
    split = load_split(recipe, "train")
    model = build_model(recipe, split.classes)
    dataset = build_dataset(recipe, split, model, make_task(recipe.task), training=False)
    raw = collate([dataset[n] for n in range(3)])
    one, two = (to_device(raw, d, "cross_entropy", model.head.classes).inputs["flow"] for d in (CPU, GPU))
    assert two.is_cuda and two.dtype == torch.uint8
    apart = (one.int() - two.cpu().int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 0.01
    assert np.isfinite(train(recipe, tmp_path / "run")).all()


def test_commands_take_a_run_of_a_gpu(videos, tmp_path, capsys):
    recipe = video_recipe(videos, **SIZES)
    train(recipe, tmp_path / "run")
    scores = {}
    for device in (GPU, CPU):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.MonkeyPatch.context() as patch:
            if device.type == "cpu":
                patch.setattr(torch.accelerator, "is_available", lambda *_: False)
            out = tmp_path / f"{device.type}.npz"
            assert main(["evaluate", str(tmp_path / "run"), "--scores", str(out), "--quiet"]) == 0
            with np.load(out) as file:
                scores[device.type] = {name: file[name] for name in file.files if "/scores/" in name}
    assert scores["cpu"]
    for name, value in scores["cpu"].items():
        np.testing.assert_allclose(scores["cuda"][name], value, rtol=1e-3, atol=1e-3)
    AcceleratorState._reset_state(reset_partial_state=True)
    told = tmp_path / "told.json"
    assert main(["predict", str(tmp_path / "run"), str(videos / "v0.mp4"), "--json", str(told), "--quiet"]) == 0
    assert json.loads(told.read_text())
    assert main(["report", str(tmp_path / "run")]) == 0
    assert main(["doctor", "--gpu", "--free-gib", "0"]) == 0
    assert "GPU 0" in capsys.readouterr().out


def test_a_plan_is_measured(videos):
    plan = make_plan(video_recipe(videos, **SIZES), synthetic=True, steps=1)
    assert plan.counted and plan.device == torch.cuda.get_device_name() and plan.measured_batches[-1] == 4
    assert plan.fits and plan.fixed_bytes >= 2 * 4 * plan.parameters


def test_compiled_steps_are_the_same(root, tmp_path):
    one = train(toy_recipe(root, run__epochs=1), tmp_path / "plain")
    two = train(toy_recipe(root, run__epochs=1, run__compile=True), tmp_path / "compiled")
    np.testing.assert_allclose(two, one, rtol=1e-3)


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.backends.cudnn.allow_tf32 = False
from accelerate.state import AcceleratorState
from toy_training import toy_recipe
from toy_videos import video_recipe
from actionfuse.train.engine import Trainer
for name, videos, changes in json.loads(sys.argv[4]):
    AcceleratorState._reset_state()
    recipe = video_recipe(Path(videos), **changes) if videos else toy_recipe(Path(sys.argv[2]), **changes)
    trainer = Trainer(recipe, Path(sys.argv[3]) / name, processes=2, quiet=True)
    assert trainer.device.index == trainer.rank and torch.distributed.get_backend() == "nccl"
    trainer.run()
"""


@several
def test_two_gpus_are_one(root, videos, tmp_path):
    """Copies, shards and synchronised norms, by NCCL: the losses of one process."""
    features = {"run__epochs": 2, "optim__clip_norm": 1.0}
    pixels = {"run__epochs": 1, "run__sync_bn": True, **SGD, **SIZES}
    pixels["streams__rgb__backbone"] = "tsn:test_efficientnet"
    jobs = [
        ("copies", "", features),
        ("shards", "", {**features, "run__shard": True}),
        ("norms", str(videos), pixels),
        ("bf16", str(videos), {**pixels, "run__precision": "bf16"}),
        ("fp16", "", {**features, "run__precision": "fp16"}),
    ]
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [tmp_path / "script.py", Path(__file__).parent.parent, root, tmp_path, json.dumps(jobs)]
    done = subprocess.run([*torchrun, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one = train(toy_recipe(root, **features), tmp_path / "one")
    for name in ("copies", "shards"):
        np.testing.assert_allclose(losses_of(tmp_path / name), one, rtol=1e-3)
    one = train(video_recipe(videos, **pixels), tmp_path / "one pixels")
    np.testing.assert_allclose(losses_of(tmp_path / "norms"), one, rtol=1e-3)
    np.testing.assert_allclose(losses_of(tmp_path / "bf16")[0], one[0], rtol=5e-2)
    assert np.isfinite(losses_of(tmp_path / "fp16")).all()
