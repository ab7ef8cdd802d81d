"""The benchmark of the synthetic kitchen: its document is what its results say, and what it keeps changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from videos import read_codes, write_counting_video

from actionfuse.pipeline import open_video
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.clip_spec import FeatureSpec
from actionfuse.pipeline.features import FeatureStore
from actionfuse.pipeline.protocols import Anticipation, Sampling
from actionfuse.pipeline.samples import SegmentDataset
from actionfuse.train.drawn import DrawnTasks

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_document_is_made_of_the_results(tmp_path: Path) -> None:
    from kitchen_table import write_table  # pyright: ignore[reportMissingImports]

    write_table(tmp_path / "kitchen.md")
    assert (tmp_path / "kitchen.md").read_text() == (BENCHMARKS / "kitchen.md").read_text()


def test_stored_frames_are_those_of_the_file(tmp_path: Path) -> None:
    from kitchen_frames import StoredFrames, store_frames  # pyright: ignore[reportMissingImports]

    (tmp_path / "videos").mkdir()
    video = write_counting_video(tmp_path / "videos" / "a.mp4", 48, fps=24)
    store_frames(video.parent, tmp_path / "stored", 8.0, grey=False)
    with open_video(video) as reader:
        kept = StoredFrames(reader.info, np.load(tmp_path / "stored" / "a.npy"), 8.0)
        times = [0.25, 0.375, 1.0, 1.875]
        there, here = reader.frames_at(times), kept.frames_at(times)
    assert read_codes(here.data) == read_codes(there.data) == [6, 9, 24, 45]
    np.testing.assert_array_equal(here.data, there.data)
    np.testing.assert_allclose(here.pts_seconds, there.pts_seconds)
    assert kept.frames_at(times, 24).data.shape == (4, 24, 32, 3)


def test_remembered_samples_are_those_of_the_store(tmp_path: Path) -> None:
    from kitchen_frames import remember_samples  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(0)
    for stream in ("rgb", "audio"):
        store = FeatureStore.open(tmp_path / stream, recipe={"identity": {}, "provenance": {}})
        starts = np.arange(40) / 4 + (1.0 if stream == "audio" else 0.0)  # audio tells nothing of the first second
        with store.writer("v", row_shape=(3,)) as writer:
            writer.write(0, rng.standard_normal((40, 3)).astype(np.float32))
            writer.commit(starts, starts + 0.25, {})
    segments = [
        Segment(id=str(k), video="v", start_seconds=1.5 + 2 * k, stop_seconds=3.0 + 2 * k, labels={"verb": k})
        for k in range(4)
    ]
    tasks = [Anticipation(tau_a=tau_a, tau_o=2.0) for tau_a in (1.0, 0.25)]

    def made(streams: tuple[str, ...], *tasks: Anticipation) -> SegmentDataset:
        specs = [FeatureSpec(stream=name, store=tmp_path / name, frames=4, fps=4) for name in streams]
        sampling = Sampling(rule="last")
        if len(tasks) > 1:
            return DrawnTasks(segments, specs, tasks=tasks, sampling=sampling, seed=3)
        return SegmentDataset(segments, specs, task=tasks[0], sampling=sampling, seed=3)

    memory = {}
    for streams in (("rgb", "audio"), ("rgb",), ("audio",)):
        dataset = made(streams, *tasks)
        remember_samples(dataset, memory)
        plain = [made(streams, task) for task in tasks]
        drawn = set()
        for epoch in range(6):
            for index in range(len(segments)):
                sample = dataset[(epoch, index)]
                same = [
                    number
                    for number, each in enumerate(plain)
                    if (found := each[index]).error == sample.error
                    and all(np.array_equal(found.streams[name], sample.streams[name]) for name in sample.streams)
                ]
                assert same and (sample.index, sample.epoch) == (index, epoch)
                assert sample.error or set(sample.streams) == set(streams)
                drawn |= set(same if len(same) == 1 else ())
        assert drawn == {0, 1}
    assert made(("audio",), tasks[0])[0].error and not made(("rgb",), tasks[0])[0].error
