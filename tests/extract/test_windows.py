"""Clips cut from a stream of entries are those of the sampling arithmetic, and the counts are those of the formula."""

import numpy as np
import pytest

from actionfuse.extract.clips import Entry, Windows
from actionfuse.extract.plan import ClipPlan
from actionfuse.pipeline.sampling import windows as window_indices


def plan(frames: int, stride: int, last_clip: str = "pad", **options) -> ClipPlan:
    return ClipPlan(
        name="x",
        stream="rgb",
        frames=frames,
        stride=stride,
        fps=10.0,
        resize_side=8,
        crop=8,
        last_clip=last_clip,
        **options,
    )


def entry(number: int) -> Entry:
    return Entry(np.full((1, 1, 1), number), number / 10, (number + 1) / 10, number / 10)


@pytest.mark.parametrize("last_clip", ["pad", "drop"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("frames", [1, 3, 4])
def test_windows_are_those_of_sampling(frames: int, stride: int, last_clip: str) -> None:
    for total in range(1, 24):
        cut = Windows(plan(frames, stride, last_clip))
        rows = [row for number in range(total) if cut.wants(number) for row in cut.push(entry(number), number)]
        rows += cut.finish()
        expected = window_indices(total, frames, stride, last_clip)
        assert [[int(e.data.item()) for e in row.entries] for row in rows] == expected.tolist()
        assert [row.row for row in rows] == list(range(len(expected)))
        assert len(rows) == plan(frames, stride, last_clip).num_clips(total) == cut.rows
        for row, indices in zip(rows, expected, strict=True):
            assert row.start_seconds == indices[0] / 10
            assert row.stop_seconds == (indices[-1] + 1) / 10


def test_no_entry_no_row() -> None:
    cut = Windows(plan(4, 4))
    assert list(cut.finish()) == [] and cut.rows == 0


def test_windows_hold_no_more_than_a_clip() -> None:
    cut = Windows(plan(4, 9))
    for number in range(100):
        list(cut.push(entry(number), number))
        assert len(cut._held) <= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "must be >= 1"),
        ({"stride": 0}, "must be >= 1"),
        ({"crop": 9}, "smaller than the crop"),
        ({"last_clip": "keep"}, "'pad' or 'drop'"),
        ({"fps": -1.0}, "must be positive"),
        ({"stream": "audio", "fps": None}, "give fps"),
    ],
)
def test_wrong_plans_say_what_is_wrong(change: dict, message: str) -> None:
    good = dict(name="x", stream="rgb", frames=4, stride=4, fps=10.0, resize_side=8, crop=8)
    with pytest.raises(ValueError, match=message):
        ClipPlan(**(good | change))


@pytest.mark.parametrize(
    ("seconds", "fps", "count"), [(2.0, 8.0, 16), (2.01, 8.0, 17), (0.01, 8.0, 1), (2.4, 25.0, 60)]
)
def test_num_entries(seconds: float, fps: float, count: int) -> None:
    assert ClipPlan(
        name="x", stream="rgb", frames=4, stride=4, fps=fps, resize_side=8, crop=8
    ).num_entries(seconds, 0) == count  # fmt: skip
