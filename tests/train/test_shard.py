"""Sharded training (FSDP2): weights really are shares, and losses, results and files are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_training import toy_recipe, write_toy

from actionfuse.train import checkpoint
from actionfuse.train.engine import Trainer
from actionfuse.train.log import read_metrics

SCRIPT = """
import json, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from torch.distributed.tensor import DTensor
from toy_training import toy_recipe
from actionfuse.train.engine import Preempted, Trainer
for name, changes in json.loads(sys.argv[4]):
    stop, copy = changes.pop("stop", None), changes.pop("copy", None)
    trainer = Trainer(toy_recipe(Path(sys.argv[2]), **changes), Path(sys.argv[3]) / name, processes=2, quiet=True)
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


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"))


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


def same(first: list[dict], second: list[dict]) -> None:
    assert [row["kind"] for row in first] == [row["kind"] for row in second]
    for one, two in zip(first, second, strict=True):
        for key, value in one.items():
            assert two[key] == (pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value), key


def test_shards_train_as_one_process_and_go_on_to_the_same_bits(root, tmp_path):
    """With averages, clipped gradients and micro-batches; stopped in the second epoch; then on alone, unsharded."""
    changes = {"run__epochs": 2, "run__micro_batch": 1, "optim__clip_norm": 1.0, "optim__batch": 4, "data__limit": 8}
    Trainer(toy_recipe(root, **changes), tmp_path / "one", quiet=True).run()
    shared = {**changes, "run__shard": True}
    sharded(root, tmp_path, ("two", shared), ("stopped", {**shared, "stop": 3, "copy": "handed"}), ("stopped", shared))
    same(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"))
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()
    files = {name: checkpoint.latest_checkpoint(tmp_path / name) for name in ("one", "two", "stopped")}
    weights = {name: load_file(folder / "model.safetensors") for name, folder in files.items() if folder}
    for key, value in weights["one"].items():
        assert weights["two"][key].shape == value.shape
        torch.testing.assert_close(weights["two"][key], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(weights["two"][key], weights["stopped"][key])
    trainer = Trainer(toy_recipe(root, **changes), tmp_path / "handed", quiet=True)
    assert trainer.progress.step == 3
    trainer.run()
    same(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "handed"))


def test_what_would_not_be_sharded_is_refused(root, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="run.shard is true, but there is one process"):
        Trainer(toy_recipe(root, run__shard=True), tmp_path, quiet=True)
    with pytest.raises(ValueError, match="take bf16"):
        Trainer(toy_recipe(root, run__shard=True, run__precision="fp16"), tmp_path, quiet=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="set run.shard=true"):
        Trainer(toy_recipe(root), tmp_path, quiet=True)
