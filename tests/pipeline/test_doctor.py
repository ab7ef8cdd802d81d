"""actionfuse doctor: what it says of machines with GPUs, without, and with broken ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from actionfuse.cli import main
from actionfuse.pipeline import doctor


@pytest.fixture
def two_gpus(monkeypatch):
    """The second one does not compute."""
    ones = torch.ones

    def made(*shape, device="cpu"):
        if device == "cuda:1":
            raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")
        return ones(*shape)

    monkeypatch.setattr(torch, "ones", made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    about = SimpleNamespace(name="Card 9000", total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)


def test_every_gpu_is_tried(two_gpus):
    first, second, *rest = list(doctor.gpus(True))
    assert (first.level, first.what) == ("ok", f"GPU 0: Card 9000, 24 GiB, CUDA {torch.version.cuda}")
    assert (second.level, second.what) == ("error", "GPU 1, Card 9000, does not compute")
    assert second.advice == "CUDA error: no kernel image is available"
    assert any("NCCL" in finding.what for finding in rest)


@pytest.mark.parametrize(("words", "code", "level"), [([], 0, "warning"), (["--gpu"], 1, "error")])
def test_a_machine_without_a_gpu(tmp_path, capsys, monkeypatch, words, code, level):
    monkeypatch.setattr(doctor.Path, "exists", lambda _: False)  # no driver, wherever the test runs
    assert main(["doctor", "--out", str(tmp_path), "--free-gib", "0", *words]) == code
    told = capsys.readouterr().out
    assert any(line.startswith(level) and "GPU" in line or "CUDA" in line for line in told.splitlines())
    assert "decoder pyav: 10 of 10 frames" in told


def test_a_driver_without_a_gpu_for_torch(monkeypatch):
    monkeypatch.setattr(doctor.Path, "exists", lambda _: True)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    (finding,) = doctor.gpus(False)
    assert finding.level == "error" and "the driver may be too old for CUDA 13.2" in finding.advice
