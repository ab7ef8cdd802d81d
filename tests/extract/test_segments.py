"""Segments of one video that overlap or touch: one decode pass, each frame once, and the rows of each as by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from videos import make, write_counting_video

from actionfuse.extract import extract_features
from actionfuse.extract.clips import ClipRow
from actionfuse.extract.decode import Apart, Outcome, decode_task, decode_together
from actionfuse.extract.passes import decode_passes, in_order
from actionfuse.extract.plan import ClipPlan, Task
from actionfuse.pipeline.decoders._decode_pass import DecodePass
from actionfuse.pipeline.inputs import VideoInput
from actionfuse.pipeline.types import BoxTracks

SPANS = [(None, 0.5), (0.2, 1.0), (0.31, 0.87), (0.9, 1.6), (1.6, None), (0.0, 2.0), (None, None)]


def plan(name: str, **options) -> ClipPlan:
    base = dict(name=name, stream="rgb", frames=4, stride=3, fps=None, resize_side=48, crop=40)
    return ClipPlan(**(base | options))


PLANS = {
    "every frame": (plan("x"),),
    "grid": (plan("x", fps=7.0),),
    "sparse": (plan("x", frames=1, stride=4),),
    "flow": (plan("x", stream="flow", flow_stack=3, fps=12.0),),
    "all": (
        plan("a"),
        plan("b", fps=10.0, frames=2, stride=5, resize_side=40, last_clip="drop"),
        plan("c", stream="flow", frames=2),
        plan("d", stream="audio", fps=4.0, frames=1, stride=1),
        plan("e", fps=5.0, frames=1, stride=1, instances=2),
    ),
}


def tasks(path: Path, plans: tuple[ClipPlan, ...], spans: list = SPANS) -> list[Task]:
    every = tuple(range(len(plans)))
    return [Task(f"k{n}", str(path), start, stop, "auto", 0, every) for n, (start, stop) in enumerate(spans)]


class Collector:
    """Rows by key and plan, their pixels copied."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], list[tuple]] = {}

    def __call__(self, key: str, index: int, row: ClipRow) -> None:
        boxes = None if row.boxes is None else (row.boxes.boxes.tolist(), row.boxes.present.tolist())
        told = (row.row, row.start_seconds, row.stop_seconds, row.heard, row.real_entries, boxes)
        self.rows.setdefault((key, index), []).append((told, np.stack([entry.data for entry in row.entries])))


def tracks() -> BoxTracks:
    seconds = np.arange(4) / 2
    boxes = np.stack([[[0.1 + t / 9, 0.2, 0.5 + t / 9, 0.8], [0.4, 0.1, 0.9, 0.6]] for t in range(4)])
    return BoxTracks(boxes.astype(np.float32), np.ones((4, 2), bool), seconds, np.zeros(2, np.int64))


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mkv: time stamps in whole milliseconds."""
    path = tmp_path_factory.mktemp("v") / f"count.{request.param}"
    return write_counting_video(path, 60, (64, 48), 30, bframes=2, gop=24, audio=True)


@pytest.mark.parametrize("kind", PLANS)
def test_rows_are_those_of_each_by_itself(video: Path, kind: str) -> None:
    plans, together, alone = PLANS[kind], Collector(), Collector()
    found = decode_together(tasks(video, plans), plans, together, tracks())
    assert len(found) == len(SPANS)
    for task, outcome in zip(tasks(video, plans), found, strict=True):
        own = decode_task(task, plans, lambda index, row, key=task.key: alone(key, index, row), tracks())
        for name in Outcome.__dataclass_fields__.keys() - {"stage_seconds"}:
            assert getattr(outcome, name) == getattr(own, name), name
    assert together.rows.keys() == alone.rows.keys() and len(alone.rows) == len(SPANS) * len(plans)
    for key, rows in alone.rows.items():
        assert [told for told, _ in together.rows[key]] == [told for told, _ in rows], key
        for (_, left), (_, right) in zip(together.rows[key], rows, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How many pictures FFmpeg decoded."""
    count: Counter = Counter()
    original = DecodePass._stamp
    monkeypatch.setattr(DecodePass, "_stamp", lambda self, frame: count.update(["frames"]) or original(self, frame))
    return count


@pytest.mark.parametrize("fps", [None, 30.0])
def test_each_frame_is_decoded_once(video: Path, decoded: Counter, fps: float | None) -> None:
    plans = (plan("x", fps=fps),)
    spans = [(k / 10, k / 10 + 1.0) for k in range(11)]  # each second of the video lies in up to ten of them
    decode_together(tasks(video, plans, spans), plans, lambda *_: None)
    assert decoded["frames"] == 60
    for task in tasks(video, plans, spans):
        decode_task(task, plans, lambda *_: None)
    assert decoded["frames"] > 60 + 4 * 60


def test_what_goes_together() -> None:
    def segments(*spans: tuple, path: str = "a") -> list[VideoInput]:
        return [VideoInput(path, f"{path}#{n}", *span, f"{n}") for n, span in enumerate(spans)]

    def lengths(videos: list[VideoInput], **options) -> list[int]:
        return [len(together) for together in decode_passes(videos, **options)]

    assert lengths([]) == []
    assert lengths(segments((0, 2), (1, 3), (3, 4), (4.5, 5))) == [3, 1]  # overlaps, touches, is apart
    assert lengths(segments((0, 9), (1, 2), (5, 6))) == [3]  # within the first
    assert lengths(segments((0, 2), (1, 3)) + segments((0, 2), path="b")) == [2, 1]
    assert lengths(segments((None, 1), (0.5, None), (77, 78))) == [3]
    assert lengths(segments(*[(0, 1)] * 5), most=2) == [2, 2, 1]
    mixed = segments((5, 6), (0, 5.5))[:1] + segments((0, 1), path="b") + segments((5, 6), (0, 5.5))[1:]
    assert lengths(mixed) == [1, 1, 1] and lengths(in_order(mixed)) == [2, 1]


def test_what_is_wrong_sets_them_apart(video: Path, tmp_path: Path) -> None:
    plans = (plan("x", fps=10.0),)
    with pytest.raises(Apart):  # one lies outside
        decode_together(tasks(video, plans, [(0.0, 1.0), (0.5, 9.0), (7.0, 8.0)]), plans, lambda *_: None)
    damaged = make("damaged_middle", tmp_path).path
    with pytest.raises(Apart):
        decode_together(tasks(damaged, plans, [(0.0, None), (0.1, None)]), plans, lambda *_: None)


def table(folder: Path, rows: list[str]) -> Path:
    path = folder / "segments.csv"
    path.write_text("path,start_seconds,stop_seconds,id\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_counting_video(tmp_path_factory.mktemp("v") / "whole.mp4", 60, (64, 48), 30, bframes=2)


def test_features_from_a_table(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole engine, with a segment outside of the video and a damaged video among them."""
    damaged = make("damaged_middle", tmp_path).path
    spans = ["0.5,1.5", "0,1", "1.5,2", "0.2,", "5,6"]
    rows = [f"{whole},{span},s{n}" for n, span in enumerate(spans)] + [f"{damaged},0,0.8,d0", f"{damaged},0.1,,d1"]
    options = dict(backbone="tsn:test_resnet", weights="random", fps=10, clip_frames=3, clip_stride=2, workers=2)

    def features() -> dict:
        with pytest.warns(UserWarning, match="outside the video"):
            found = extract_features(table(tmp_path, rows), on_error="warn", side=40, crop=32, root="/", **options)
            return {key.partition("#")[2]: outputs["tsn-test_resnet-rgb"] for key, outputs in found}

    together = features()
    monkeypatch.setattr("actionfuse.extract.engine.decode_passes", lambda videos: ([video] for video in videos))
    alone = features()
    assert together.keys() == alone.keys() == {"s0", "s1", "s2", "s3", "d0", "d1"}
    for name, theirs in alone.items():
        ours = together[name]
        np.testing.assert_array_equal(ours.start_seconds, theirs.start_seconds)
        np.testing.assert_array_equal(ours.stop_seconds, theirs.stop_seconds)
        assert bool(ours.metadata["damage"]) == bool(theirs.metadata["damage"]) == (name == "d1")
        if name != "d1":  # what FFmpeg paints over damage depends on its threads
            np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-5, atol=1e-5)


def test_only_what_is_missing_is_done_again(whole: Path, tmp_path: Path, extract: Callable, capfd) -> None:
    """The segment in the middle is there already: what lies around it is two passes."""
    rows = [f"{whole},0,0.8,a", f"{whole},0.5,1.5,b", f"{whole},1.2,2,c"]
    words = [table(tmp_path, rows), "--root", whole.parent, "--out", tmp_path / "out", "--fps", 10,
             "--backbone", "tsn:test_resnet", "--weights", "random", "--side", 40, "--crop", 32]  # fmt: skip
    stores = tmp_path / "out" / "tsn-test_resnet-rgb"
    assert extract(*words) == 0
    first = {path.name: path.read_bytes() for path in stores.glob("*.npz")}
    assert len(first) == 3
    for name in ("a", "c"):
        (stores / f"{whole.name}#{name}.npz").unlink()
    assert extract(*words) == 0
    assert "2 extracted, 1 already there" in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in stores.glob("*.npz")} == first
