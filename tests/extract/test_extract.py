"""Features are those of the plain loop, whatever runs them: decoder, workers, batch, threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from installed import need_decoder
from torchvision.transforms.v2.functional import center_crop

from actionfuse.backbones import Backbone, create_backbone, pool_clip
from actionfuse.extract import extract_features
from actionfuse.extract.decode import Outcome
from actionfuse.extract.engine import Engine, _BatchItem
from actionfuse.extract.events import Failed
from actionfuse.extract.plan import ClipPlan
from actionfuse.extract.runner import Runner
from actionfuse.extract.sinks import MemorySink
from actionfuse.extract.workers import RowNote
from actionfuse.pipeline import open_video
from actionfuse.pipeline.sampling import windows


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(1)
    return create_backbone("tsn:test_resnet")


OPTIONS = dict(fps=10, clip_frames=3, clip_stride=2, side=40, crop=32)


def plain_loop(path: Path, backbone: Backbone) -> np.ndarray:
    """One clip at a time, straight from the reader."""
    with open_video(path) as reader:
        frames = np.concatenate([f.data for f in reader.stream(fps=10, short_side=40)])
    frames = center_crop(torch.from_numpy(frames).permute(0, 3, 1, 2), [32, 32]).permute(0, 2, 3, 1).numpy()
    rows = []
    with torch.inference_mode():
        for indices in windows(len(frames), 3, 2, "pad"):
            clip = torch.from_numpy(frames[indices])[None]
            rows.append(pool_clip(backbone(backbone.input_spec.normalise(clip)))[0].numpy())
    return np.stack(rows)


def run(folder: Path, backbone: Backbone, **options) -> dict[str, np.ndarray]:
    found = {}
    for key, outputs in extract_features(folder, backbone=backbone, **(OPTIONS | options)):
        (features,) = outputs.values()
        found[key] = np.array(features.data)
    return found


@pytest.fixture(scope="module")
def reference(folder: Path, backbone: Backbone) -> dict[str, np.ndarray]:
    keys = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return {key: plain_loop(folder / key, backbone) for key in keys}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"workers": 1, "batch": 1},
        {"workers": 3, "batch": 7},
        {"batch": 64},
        {"decoder": "pyav"},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_features_are_those_of_the_plain_loop(
    folder: Path, backbone: Backbone, reference: dict[str, np.ndarray], options: dict
) -> None:
    found = run(folder, backbone, **options)
    assert found.keys() == reference.keys()
    for key, rows in reference.items():
        assert found[key].shape == rows.shape
        np.testing.assert_allclose(found[key], rows, rtol=1e-5, atol=1e-5)


def test_decoders_give_the_same_features(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    """On an ordinary file that each decoder may read."""
    need_decoder("decord")
    (tmp_path / "b.mkv").symlink_to(folder / "b.mkv")
    by_pyav = run(tmp_path, backbone, decoder="pyav")
    by_decord = run(tmp_path, backbone, decoder="decord")
    np.testing.assert_allclose(by_decord["b.mkv"], by_pyav["b.mkv"], rtol=1e-5, atol=1e-5)


def test_a_decoder_that_scales_otherwise_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="without a bicubic kernel, and tsn-efficientnet_b0-rgb learned"):
        next(extract_features(folder / "b.mkv", backbone="tsn:efficientnet_b0", weights="random", decoder="decord"))


def test_several_backbones_and_streams_in_one_call(folder: Path) -> None:
    names = ["tsn:test_resnet", "tsn:test_vit"]
    options = dict(weights="random", fps=5, clip_frames=2, side=176, crop=160, workers=2)
    together = dict(extract_features(folder, backbone=names, streams=["rgb", "flow"], **options))
    assert {name for outputs in together.values() for name in outputs} == {
        "tsn-test_resnet-rgb", "tsn-test_resnet-flow", "tsn-test_vit-rgb", "tsn-test_vit-flow"
    }  # fmt: skip
    for name in names:
        for stream in ("rgb", "flow"):
            for key, outputs in extract_features(folder, backbone=name, streams=stream, **options):
                (plan,) = outputs
                alone, along = outputs[plan], together[key][plan]
                np.testing.assert_allclose(alone.data, along.data, rtol=1e-5, atol=1e-5)
                np.testing.assert_array_equal(alone.start_seconds, along.start_seconds)
                np.testing.assert_array_equal(alone.stop_seconds, along.stop_seconds)


def test_pools_and_layers(folder: Path, backbone: Backbone) -> None:
    one = folder / "b.mkv"
    shapes = {}
    for pool in ("clip", "space", "none"):
        ((_, outputs),) = extract_features(one, backbone=backbone, pool=pool, **OPTIONS)
        shapes[pool] = next(iter(outputs.values())).data
    maps = shapes["none"]
    assert maps.ndim == 5 and maps.shape[1] == backbone.feature_dim and maps.shape[2] == 3
    np.testing.assert_allclose(maps.mean((3, 4)).transpose(0, 2, 1), shapes["space"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps.mean((2, 3, 4)), shapes["clip"], rtol=1e-4, atol=1e-5)


def test_errors_are_told(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(ValueError, match="bad.mp4"):
        list(extract_features(tmp_path, backbone=backbone))
    with pytest.warns(UserWarning, match="bad.mp4"):
        assert list(extract_features(tmp_path, backbone=backbone, on_error="warn")) == []
    with pytest.raises(ValueError, match="no backbone is named"):
        next(extract_features(folder, backbone="i4d"))
    with pytest.raises(ValueError, match="there are rgb, flow, audio, depth, ir"):
        next(extract_features(folder, streams="smell"))
    with pytest.raises(ValueError, match="sees no GPU|cuda"):
        if torch.cuda.is_available():
            raise ValueError("cuda")
        next(extract_features(folder, backbone=backbone, device="cuda"))


def test_stopping_early_leaves_no_process(folder: Path, backbone: Backbone) -> None:
    import psutil

    iterator = extract_features(folder, backbone=backbone, **OPTIONS)
    next(iterator)
    iterator.close()
    left = [c for c in psutil.Process().children(recursive=True) if "worker_main" in " ".join(c.cmdline())]
    assert left == []


def test_many_short_videos_do_not_pile_up(
    folder: Path, backbone: Backbone, reference: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos whose rows wait for a batch to fill hold files open: where too many do, the batch goes as it is."""
    monkeypatch.setattr("actionfuse.extract.engine._most_open_videos", lambda plans: 1)
    threads = torch.get_num_threads()
    found = run(folder, backbone, batch=64, workers=1)
    assert found.keys() == reference.keys() and torch.get_num_threads() == threads
    for key, rows in reference.items():
        np.testing.assert_allclose(found[key], rows, rtol=1e-5, atol=1e-5)


def test_rows_that_come_after_a_failure_open_nothing(backbone: Backbone) -> None:
    class Sink(MemorySink):
        opened = 0

        def writer(self, key, plan, output, row_shape):
            self.opened += 1
            return super().writer(key, plan, output, row_shape)

    plan = ClipPlan(name="x", stream="rgb", frames=1, stride=1, fps=None, resize_side=32, crop=32)
    runner = Runner(plan, backbone, device=torch.device("cpu"))
    sink = Sink(["x"])
    engine = Engine([], [runner], sink, batch_clips=[1], workers=1, compute_threads=1)
    open_videos: dict = {}

    def rows(attempt: int, row: int) -> tuple:
        item = _BatchItem("key", attempt, RowNote("key", row, row, row + 1.0))
        return "rows", 0, [item], {"features": np.ones((1, 3), np.float32)}

    engine._handle(rows(0, 0), open_videos)
    engine._handle(("drop", "key", 0), open_videos)  # the decode process died, and another starts over
    engine._handle(rows(0, 1), open_videos)
    assert sink.opened == 1 and not open_videos
    engine._handle(rows(1, 0), open_videos)
    engine._handle(("outcome", Outcome("key", 1, error="broken", stage="audio")), open_videos)
    assert isinstance(engine._events.get_nowait(), Failed)
    engine._handle(rows(1, 1), open_videos)
    assert sink.opened == 2 and not open_videos and engine._events.empty()
