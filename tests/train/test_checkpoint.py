"""Checkpoints are whole or passed over; the best is never half a best."""

import shutil

import pytest
import torch

from actionfuse.train.checkpoint import (
    damage,
    folder_of,
    keep_last,
    latest_checkpoint,
    read_training,
    write_best,
    write_checkpoint,
)
from actionfuse.train.model import find_model

FILES = {"model.safetensors": b"weights", "config.json": b"{}"}


def write(run, step):
    return write_checkpoint(run, step, FILES, {"step": step, "moments": torch.arange(3)})


def test_what_is_written_is_read_back(tmp_path):
    folder = write(tmp_path, 12)
    assert folder == folder_of(tmp_path, 12) and damage(folder) is None
    assert latest_checkpoint(tmp_path) == folder
    state = read_training(folder)
    assert state["step"] == 12 and state["moments"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "config.json", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_damaged_checkpoints_are_passed_over(tmp_path, name, how):
    good, bad = write(tmp_path, 5), write(tmp_path, 9)
    content = (bad / name).read_bytes()
    if how == "gone":
        (bad / name).unlink()
    else:
        (bad / name).write_bytes(content[:-1] if how == "cut" else content[:-1] + b"?")
    if (name, how) == ("config.json", "cut"):
        (bad / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="step-00000009 is damaged"):
        assert latest_checkpoint(tmp_path) == good


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints" / ".step-00000003.tmp").mkdir(parents=True)  # killed while it was written
    assert latest_checkpoint(tmp_path) is None
    write(tmp_path, 3)
    assert latest_checkpoint(tmp_path) == folder_of(tmp_path, 3)


def test_the_last_few_stay(tmp_path):
    for step in (1, 20, 3, 100):
        write(tmp_path, step)
    keep_last(tmp_path, 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000020", "step-00000100"]


def test_the_best_is_replaced_at_once(tmp_path):
    write_best(tmp_path, 1, {"model.safetensors": b"first"})
    write_best(tmp_path, 2, {"model.safetensors": b"second"})
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == b"second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "best-00000002"]


def test_a_best_that_was_copied_as_a_link_is_told(tmp_path):
    write_best(tmp_path / "run", 1, FILES)
    shutil.copy(tmp_path / "run" / "best", tmp_path / "copy", follow_symlinks=False)
    with pytest.raises(ValueError, match="link to best-00000001.*cp -rL"):
        find_model(tmp_path / "copy")
    assert find_model(tmp_path / "run") == tmp_path / "run" / "best"
