"""RAFT against torchvision called directly, with random weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models import optical_flow

from actionfuse.pipeline import raft
from actionfuse.pipeline.flow import FlowComputer


@pytest.fixture(scope="module")
def frames():
    noise = np.random.default_rng(0).uniform(0, 255, (4, 130 // 5, 150 // 5, 3))
    return noise.repeat(5, axis=1).repeat(5, axis=2).astype(np.uint8)  # (4, 130, 150, 3)


@pytest.fixture(autouse=True)
def few_updates(monkeypatch):
    monkeypatch.setattr(raft, "_UPDATES", 2)  # for speed; test_small_matches... runs all 12


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory):
    torch.manual_seed(1)
    model = optical_flow.raft_small(weights=None).eval()
    path = tmp_path_factory.mktemp("raft") / "small.pth"
    torch.save(model.state_dict(), path)
    return path, model


@torch.inference_mode()
def by_torchvision(model, frames, left, right, top, bottom, updates=2):
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    images = F.pad(images, (left, right, top, bottom), mode="replicate")
    flow = model(images[:-1], images[1:], num_flow_updates=updates)[-1].permute(0, 2, 3, 1).numpy()
    return flow[:, top : flow.shape[1] - bottom, left : flow.shape[2] - right]


def test_small_matches_torchvision_with_padding(frames, small_weights, monkeypatch):
    monkeypatch.setattr(raft, "_UPDATES", 12)
    path, model = small_weights
    flow = FlowComputer("raft_small", weights=str(path), device="cpu").pairs(frames)
    expected = by_torchvision(model, frames, left=1, right=1, top=3, bottom=3, updates=12)  # to 136 x 152
    assert flow.shape == (3, 130, 150, 2) and np.abs(expected).mean() > 0.1
    np.testing.assert_allclose(flow, expected, atol=1e-3 * np.abs(expected).max())


def test_large_matches_torchvision(frames):
    computer = FlowComputer("raft_large", weights="random", device="cpu")
    flow = computer.pairs(frames[:2])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = optical_flow.raft_large(weights=None).eval()
    expected = by_torchvision(model, frames[:2], left=1, right=1, top=3, bottom=3)
    np.testing.assert_allclose(flow, expected, atol=1e-3 * np.abs(expected).max())


def test_batches_and_chunks_leave_no_trace(frames, small_weights):
    path = str(small_weights[0])
    whole = FlowComputer("raft_small", weights=path, device="cpu").pairs(frames)
    twos = FlowComputer("raft_small", weights=path, device="cpu", batch_pairs=2)
    np.testing.assert_allclose(twos.pairs(frames), whole, atol=1e-3)
    pieces = list(twos.over([frames[:1], frames[1:4]]))
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-3)


def test_small_frames_are_padded(frames, small_weights):
    path, model = small_weights
    flow = FlowComputer("raft_small", weights=str(path), device="cpu").pairs(frames[:2, :48, :61])
    expected = by_torchvision(model, frames[:2, :48, :61], left=33, right=34, top=40, bottom=40)
    np.testing.assert_allclose(flow, expected, atol=1e-3 * np.abs(expected).max())


def test_bf16_is_near(frames, small_weights):
    options = {"weights": str(small_weights[0]), "device": "cpu"}
    exact = FlowComputer("raft_small", **options).pairs(frames[:2])
    near = FlowComputer("raft_small", precision="bf16", **options).pairs(frames[:2])
    assert not np.array_equal(near, exact)
    assert np.abs(near - exact).mean() < 0.05 * np.abs(exact).mean()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or not -m gpu")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.01), ("bf16", 0.1), ("fp16", 0.05)])
def test_gpu_agrees_with_cpu(frames, small_weights, monkeypatch, precision, tolerance):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = {"weights": str(small_weights[0])}
    on_cpu = FlowComputer("raft_small", device="cpu", **options).pairs(frames)
    on_gpu = FlowComputer("raft_small", device="cuda", precision=precision, **options).pairs(frames)
    assert np.abs(on_gpu - on_cpu).mean() < tolerance * np.abs(on_cpu).mean()


def test_weights_files_are_read_strictly(frames, small_weights, tmp_path):
    path, model = small_weights
    save_file(model.state_dict(), tmp_path / "small.safetensors")
    flow = FlowComputer("raft_small", weights=str(tmp_path / "small.safetensors"), device="cpu").pairs(frames[:2])
    np.testing.assert_array_equal(flow, FlowComputer("raft_small", weights=str(path), device="cpu").pairs(frames[:2]))
    with pytest.raises(ValueError, match="does not hold raft_large"):
        FlowComputer("raft_large", weights=str(path), device="cpu")
    with pytest.raises(ValueError, match="no such file"):
        FlowComputer("raft_small", weights=str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read"):
        FlowComputer("raft_small", weights=str(tmp_path / "text.pth"))


@pytest.mark.parametrize("method", ["raft_small", "raft_large"])
def test_never_random_silently(method):
    with pytest.raises(ValueError, match="'pretrained'"):
        FlowComputer(method)
    with pytest.raises(ValueError, match="bf16"):
        FlowComputer(method, weights="random", precision="int8")
