"""One decode pass gives every plan the frames that are on screen at its own times."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from videos import read_code, write_counting_video

from actionfuse.extract.clips import ClipRow
from actionfuse.extract.decode import ReaderShelf, decode_task
from actionfuse.extract.plan import ClipPlan, Task
from actionfuse.pipeline import open_video


def plan(name: str = "x", **options) -> ClipPlan:
    base = dict(name=name, stream="rgb", frames=4, stride=4, fps=None, resize_side=48, crop=48)
    return ClipPlan(**(base | options))


def decode(path: Path, *plans: ClipPlan, start: float | None = None, stop: float | None = None):
    rows: dict[int, list[ClipRow]] = {index: [] for index in range(len(plans))}
    task = Task("key", str(path), start, stop, "auto", 0, tuple(range(len(plans))))
    # Entries are views of decode buffers, valid for as long as they are held: copy what the test keeps.
    outcome = decode_task(task, plans, lambda index, row: rows[index].append(row))
    assert not outcome.error, outcome.error
    assert outcome.rows == {index: len(found) for index, found in rows.items()}
    return rows, outcome


def numbers(rows: list[ClipRow]) -> list[list[int]]:
    return [[read_code(entry.data) for entry in row.entries] for row in rows]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_counting_video(tmp_path_factory.mktemp("v") / "count.mp4", 50, (48, 48), 25, bframes=2)


def test_native_frames(video: Path) -> None:
    rows, outcome = decode(video, plan(frames=4, stride=3))
    assert numbers(rows[0])[0] == [0, 1, 2, 3] and numbers(rows[0])[1] == [3, 4, 5, 6]
    assert len(rows[0]) == 1 + -(-(50 - 4) // 3)
    assert numbers(rows[0])[-1] == [48, 49, 49, 49]
    assert rows[0][1].start_seconds == pytest.approx(3 / 25) and rows[0][1].stop_seconds == pytest.approx(7 / 25)
    assert rows[0][-1].stop_seconds == pytest.approx(2.0)
    assert outcome.frames == 50 and outcome.video_seconds == pytest.approx(2.0)


@pytest.mark.parametrize("fps", [1.0, 5.0, 12.0, 25.0, 40.0])
def test_grid_shows_what_is_on_screen(video: Path, fps: float) -> None:
    rows, _ = decode(video, plan(frames=1, stride=1, fps=fps))
    count = int(np.ceil(2.0 * fps))
    expected = [min(49, int(np.floor(k / fps * 25 + 1e-9))) for k in range(count)]
    assert [row[0] for row in numbers(rows[0])] == expected
    assert [row.start_seconds for row in rows[0]] == pytest.approx([k / fps for k in range(count)])


def test_plans_do_not_change_one_another(video: Path) -> None:
    plans = (
        plan("a", fps=8.0, frames=4, stride=2),
        plan("b", fps=None, frames=8, stride=8, resize_side=32, crop=32),
        plan("c", fps=8.0, frames=1, stride=1, crop=40),
        plan("d", fps=3.0, frames=2, stride=1, stream="flow"),
    )
    together, _ = decode(video, *plans)
    for index, one in enumerate(plans):
        alone, _ = decode(video, one)
        assert len(alone[0]) == len(together[index])
        for left, right in zip(alone[0], together[index], strict=True):
            assert (left.row, left.start_seconds, left.stop_seconds) == (
                right.row,
                right.start_seconds,
                right.stop_seconds,
            )
            for a, b in zip(left.entries, right.entries, strict=True):
                np.testing.assert_array_equal(a.data, b.data)


def test_two_grids_without_native(video: Path) -> None:
    rows, _ = decode(video, plan("a", fps=10.0, frames=1, stride=1), plan("b", fps=4.0, frames=1, stride=1))
    assert [row[0] for row in numbers(rows[0])] == [int(np.floor(k * 2.5 + 1e-9)) for k in range(20)]
    assert [row[0] for row in numbers(rows[1])] == [int(np.floor(k * 6.25 + 1e-9)) for k in range(8)]


def test_variable_frame_rate_keeps_time(tmp_path: Path) -> None:
    pts, now = [], 0
    for index in range(30):
        pts.append(now)
        now += (1, 2, 1, 5)[index % 4] * 512
    path = write_counting_video(tmp_path / "vfr.mp4", 30, (48, 48), pts=pts, time_base=Fraction(1, 12_800))
    rows, _ = decode(path, plan(frames=1, stride=1, fps=10.0), plan("native", frames=1, stride=1))
    times = np.array(pts) / 12_800
    for row, number in zip(rows[0], numbers(rows[0]), strict=True):
        assert number[0] == np.searchsorted(times, row.start_seconds + 1e-9, side="right") - 1
    assert [row[0] for row in numbers(rows[1])] == list(range(30))
    assert [row.start_seconds for row in rows[1]] == pytest.approx(times)
    assert [row.stop_seconds for row in rows[1]][:-1] == pytest.approx(times[1:])


def test_segment(video: Path) -> None:
    rows, _ = decode(video, plan(frames=2, stride=2), plan("grid", fps=10.0, frames=1, stride=1), start=0.5, stop=1.2)
    assert numbers(rows[0])[0] == [13, 14] or numbers(rows[0])[0] == [12, 13]
    assert all(0.44 < row.start_seconds and row.stop_seconds <= 1.2 + 1e-9 for row in rows[0])
    assert [row[0] for row in numbers(rows[1])] == [int(np.floor((0.5 + k / 10) * 25 + 1e-9)) for k in range(7)]


def test_a_segment_outside_is_told(video: Path) -> None:
    outcome = decode_task(Task("k", str(video), 7.0, 8.0, "auto", 0, (0,)), (plan(),), lambda *_: None)
    assert "outside the video" in outcome.error


def test_flow_has_as_many_entries_as_frames(video: Path) -> None:
    rows, _ = decode(
        video, plan(stream="flow", frames=1, stride=1), plan("deep", stream="flow", frames=1, stride=1, flow_stack=5)
    )
    assert len(rows[0]) == len(rows[1]) == 50
    assert rows[0][0].entries[0].data.shape == (48, 48, 2) and rows[1][0].entries[0].data.shape == (48, 48, 10)
    # entry t of the stack holds the fields t to t + 4, and the last field again at the end
    for t in (0, 7, 44, 46, 49):
        for part in range(5):
            single = rows[0][min(t + part, 48)].entries[0].data
            np.testing.assert_array_equal(rows[1][t].entries[0].data[..., 2 * part : 2 * part + 2], single)
    np.testing.assert_array_equal(rows[0][49].entries[0].data, rows[0][48].entries[0].data)
    # a row says how far it looked: one frame further for each field
    assert rows[0][3].stop_seconds == pytest.approx(5 / 25) and rows[1][3].stop_seconds == pytest.approx(9 / 25)


def test_one_frame_has_no_motion(tmp_path: Path) -> None:
    path = write_counting_video(tmp_path / "one.mp4", 1, (48, 48))
    rows, _ = decode(path, plan(stream="flow", frames=2, stride=2, flow_stack=3))
    assert len(rows[0]) == 1
    assert set(np.unique(rows[0][0].entries[0].data)) == {128}  # the code of zero


def test_broken_video_is_an_outcome_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("no video")
    outcome = decode_task(Task("k", str(path), None, None, "auto", 0, (0,)), (plan(),), lambda *_: None)
    assert outcome.error and outcome.stage == "open" and outcome.rows == {}


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames, 30 a second, stamped in whole milliseconds: 0, 33, 67, 100, ..., and an end at 667 ms."""
    return write_counting_video(tmp_path_factory.mktemp("v") / "count.mkv", 20, (48, 48), 30, audio=True)


def test_rounded_time_stamps_make_no_entry_more(rounded: Path) -> None:
    grid = dict(frames=1, stride=1, fps=3.0)
    plans = plan("rgb", **grid), plan("sound", stream="audio", **grid), plan("native", frames=1, stride=1)
    for chosen in (plans[:1], plans[1:2], plans[:2], plans):
        rows, _ = decode(rounded, *chosen)
        assert [len(rows[index]) for index in rows] == [20 if p.fps is None else 2 for p in chosen]


def test_rounded_time_stamps_show_the_same_frames_beside_every_frame(rounded: Path) -> None:
    grid, native = plan("grid", frames=1, stride=1, fps=30.0), plan("native", frames=1, stride=1)
    expected = [[k] for k in range(20)]
    assert numbers(decode(rounded, grid)[0][0]) == expected
    assert numbers(decode(rounded, grid, native)[0][0]) == expected
    cut = dict(start=0.0, stop=2 / 30 + 0.0001)  # the frame at 67 ms counts as on screen at 66.7
    assert numbers(decode(rounded, grid, **cut)[0][0]) == [[0], [1], [2]]
    assert numbers(decode(rounded, grid, native, **cut)[0][0]) == [[0], [1], [2]]


def test_segments_of_one_video_share_its_reader(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import actionfuse.extract.decode as module

    opened = []
    monkeypatch.setattr(
        module, "open_video", lambda path, **options: opened.append(path) or open_video(path, **options)
    )
    readers, spans = ReaderShelf(), [(0.0, 0.4), (1.2, 2.0), (0.4, 0.8)]
    for start, stop in spans:
        rows: list[ClipRow] = []
        task = Task("key", str(video), start, stop, "auto", 0, (0,))
        outcome = decode_task(
            task, (plan(frames=1, stride=1),), lambda _, row, to=rows: to.append(row), None, int, readers
        )
        assert not outcome.error
        assert numbers(rows) == [[k] for k in range(round(start * 25), round(stop * 25))]
    assert len(opened) == 1


def test_sound_alone(tmp_path: Path) -> None:
    import wave

    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-9000, 9000, 8000 * 3, "<i2").tobytes())
    sound = plan(stream="audio", frames=1, stride=1, fps=2.0)
    rows, outcome = decode(path, sound)
    assert len(rows[0]) == 6 and all(row.heard for row in rows[0]) and outcome.video_seconds == pytest.approx(3.0)
    assert len(decode(path, sound, start=1.0, stop=2.0)[0][0]) == 2
    both = decode_task(Task("k", str(path), None, None, "auto", 0, (0, 1)), (sound, plan()), lambda *_: None)
    assert "only sound" in both.error and both.stage == "open"


def test_an_error_that_nobody_expects_says_where_it_comes_from(video: Path) -> None:
    def fail(_task: Task):
        raise IndexError("7")

    outcome = decode_task(
        Task("k", str(video), None, None, "auto", 0, (0,)), (plan(),), lambda *_: None, None, int, fail
    )
    assert outcome.error.startswith("7 (IndexError at test_decode.py:")
