"""Sharded training (FSDP2): weights really are shares, and losses, results and files are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_training import toy_recipe
from toy_videos import write_videos

from actionfuse.train import checkpoint
from actionfuse.train.engine import Trainer
from actionfuse.train.log import read_metrics

SCRIPT = """
import json, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor
from toy_training import toy_recipe
from toy_videos import video_recipe
from actionfuse.train.engine import Preempted, Trainer
for name, changes in json.loads(sys.argv[4]):
    stop, copy, videos = (changes.pop(key, None) for key in ("stop", "copy", "videos"))
    AcceleratorState._reset_state()  # one process trains in several precisions
    recipe = video_recipe(Path(videos), **changes) if videos else toy_recipe(Path(sys.argv[2]), **changes)
    trainer = Trainer(recipe, Path(sys.argv[3]) / name, processes=2, quiet=True)
    if not recipe.run.shard:
        trainer.run()
        continue
    parameters = list(trainer.model.parameters())
    assert all(isinstance(p, DTensor) for p in parameters)
    assert sum(p.to_local().numel() for p in parameters) < 0.75 * sum(p.numel() for p in parameters)
    step = trainer.log.step
    def count(row, **times):
        step(row, **times)
        if row["step"] == stop:
            trainer._ask_to_stop()
    trainer.log.step = count
    try:
        trainer.run()
        assert stop is None
    except Preempted:
        assert trainer.progress.step == stop
    state = [v for s in trainer._torch_optimizer().state.values() for v in s.values() if isinstance(v, DTensor)]
    assert state and sum(v.to_local().numel() for v in state) < 0.75 * sum(v.numel() for v in state)
    torch.distributed.barrier()
    if copy and torch.distributed.get_rank() == 0:
        shutil.copytree(Path(sys.argv[3]) / name, Path(sys.argv[3]) / copy)
    torch.distributed.barrier()
"""


CHANGES = {"run__epochs": 2, "run__micro_batch": 1, "optim__clip_norm": 1.0, "optim__batch": 4, "data__limit": 8}
PIXELS = {"run__epochs": 2, "data__limit": 4, "optim__batch": 2, "optim__lr": 1e-3, "optim__ema": 0.0}
PRECISIONS = ("fp32", "bf16")


def sharded(root: Path, folder: Path, *jobs: tuple[str, dict]) -> None:
    """Train runs in two processes, one run after the other: (folder's name, changes of the recipe).

    Beside those, "stop" is the step after which a run is asked to stop, "copy" where it is then copied to.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = folder / "script.py"
    script.write_text(SCRIPT)
    arguments = [script, Path(__file__).parent.parent, root, folder, json.dumps(jobs)]
    done = subprocess.run([*torchrun, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def same(first: list[dict], second: list[dict], tolerance: float = 1e-5) -> None:
    assert [row["kind"] for row in first] == [row["kind"] for row in second]
    for one, two in zip(first, second, strict=True):
        for key, value in one.items():
            near = pytest.approx(value, rel=tolerance, abs=tolerance / 10) if isinstance(value, float) else value
            assert two[key] == near, key


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """All runs of two processes, which start but once: stored features, then pixels with and without shards."""
    folder = tmp_path_factory.mktemp("runs")
    videos = {"videos": str(write_videos(folder / "videos")), **PIXELS}
    sharded(
        root,
        folder,
        ("two", {**CHANGES, "run__shard": True}),
        ("stopped", {**CHANGES, "run__shard": True, "stop": 3, "copy": "handed"}),
        ("stopped", {**CHANGES, "run__shard": True}),
        *(
            (f"pixels-{p}-{s}", {**videos, "run__precision": p, "run__shard": bool(s)})
            for p in PRECISIONS
            for s in (0, 1)
        ),
    )
    return folder


def test_shards_train_as_one_process_and_go_on_to_the_same_bits(root, trained):
    """With averages, clipped gradients and micro-batches; stopped in the second epoch; then on alone, unsharded."""
    tmp_path = trained
    Trainer(toy_recipe(root, **CHANGES), tmp_path / "one", quiet=True).run()
    same(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"))
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()
    files = {name: checkpoint.latest_checkpoint(tmp_path / name) for name in ("one", "two", "stopped")}
    weights = {name: load_file(folder / "model.safetensors") for name, folder in files.items() if folder}
    for key, value in weights["one"].items():
        assert weights["two"][key].shape == value.shape
        torch.testing.assert_close(weights["two"][key], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(weights["two"][key], weights["stopped"][key])
    trainer = Trainer(toy_recipe(root, **CHANGES), tmp_path / "handed", quiet=True)
    assert trainer.progress.step == 3
    trainer.run()
    same(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "handed"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pixels_and_batch_norms_train_as_copies_do(trained, precision):
    """A network of pixels with batch norms: shards against DDP, whose processes measure the same statistics."""
    copies, shards = (trained / f"pixels-{precision}-{sharded}" for sharded in (0, 1))
    losses, weights = (1e-5, 1e-3) if precision == "fp32" else (1e-2, 0.1)  # bf16 has 8 bits
    same(read_metrics(copies), read_metrics(shards), losses)
    folders = [checkpoint.latest_checkpoint(run) for run in (copies, shards)]
    one, two = (load_file(folder / "model.safetensors") for folder in folders if folder is not None)
    statistics = [key for key in one if key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert statistics and one.keys() == two.keys()
    for key, value in one.items():
        assert two[key].dtype == value.dtype and (not value.is_floating_point() or value.dtype == torch.float32)
        torch.testing.assert_close(two[key], value, rtol=weights, atol=weights / 3)
    assert all(int(one[key]) == 4 for key in statistics if key.endswith("num_batches_tracked"))
    assert not any(torch.equal(one[key], torch.zeros_like(one[key])) for key in statistics)


def test_what_would_not_be_sharded_is_refused(root, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="run.shard is true, but there is one process"):
        Trainer(toy_recipe(root, run__shard=True), tmp_path, quiet=True)
    with pytest.raises(ValueError, match="take bf16"):
        Trainer(toy_recipe(root, run__shard=True, run__precision="fp16"), tmp_path, quiet=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="set run.shard=true"):
        Trainer(toy_recipe(root), tmp_path, quiet=True)
