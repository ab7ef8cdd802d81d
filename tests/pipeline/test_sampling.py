"""Sampling: hand-computed values, golden values of public code, and properties over many sizes."""

import math
from pathlib import Path

import numpy as np
import pytest

from actionfuse.pipeline import sampling
from actionfuse.pipeline.protocols import Recognition, Sampling
from actionfuse.pipeline.sampling import draw

GOLDEN = Path(__file__).parent.parent / "golden" / "anticipation"


def test_draw_is_a_function_of_its_arguments_alone():
    assert draw(1, 2, 3).random(4).tolist() == draw(1, 2, 3).random(4).tolist()
    np.random.seed(0)
    before = draw(0, 0, 0).integers(1000, size=4).tolist()
    np.random.seed(1)
    assert draw(0, 0, 0).integers(1000, size=4).tolist() == before == [455, 602, 928, 576]
    others = [(2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1), (2**32 + 1, 2, 3, 0), (2, 1, 3, 0), (3, 2, 1, 0)]
    values = [draw(*arguments).random() for arguments in [(1, 2, 3, 0), *others]]
    assert len(set(values)) == len(values)


def test_draw_refuses_negative_numbers():
    with pytest.raises(ValueError, match="epoch=-1"):
        draw(0, -1, 0)


def test_short_video_policies_by_hand():
    indices = np.array([3, 4, 5, 6, 11])
    assert sampling.repeat_last(indices, 5).tolist() == [3, 4, 4, 4, 4]
    assert sampling.wrap(indices, 5).tolist() == [3, 4, 0, 1, 1]
    assert sampling.error(indices, 12) is indices
    with pytest.raises(ValueError, match="needs entry 11 but there are only 5"):
        sampling.error(indices, 5)


def test_segment_centres_by_hand():
    assert sampling.segment_centres(10, 3).tolist() == [1, 5, 8]
    assert sampling.segment_centres(8, 8).tolist() == list(range(8))
    assert sampling.segment_centres(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert sampling.segment_centres_seconds(2.0, 4.0, 4).tolist() == [2.25, 2.75, 3.25, 3.75]


def test_segment_jitter_stays_in_its_part_and_reaches_all_of_it():
    assert sampling.segment_jitter(100, 5, draw(7, 0, 3)).tolist() == [4, 35, 41, 61, 95]
    seen = set()
    for index in range(300):
        entries = sampling.segment_jitter(12, 3, draw(0, 0, index))
        assert (entries // 4).tolist() == [0, 1, 2]
        seen.update(entries.tolist())
        times = sampling.segment_jitter_seconds(1.0, 2.5, 3, draw(0, 0, index))
        assert ((times >= [1.0, 1.5, 2.0]) & (times < [1.5, 2.0, 2.5])).all()
    assert seen == set(range(12))


def test_seconds_never_reach_the_open_end():
    class Highest:
        def random(self, size: int) -> np.ndarray:
            return np.full(size, np.nextafter(1.0, 0.0))

    for start, stop in [(0.0, 0.1), (1e4, 1e4 + 0.3), (3.0, 3.7)]:
        assert sampling.segment_jitter_seconds(start, stop, 7, Highest()).max() < stop  # type: ignore[arg-type]


def test_car_by_hand():
    # 41 files: n = 40, parts of 5; int(2.5 + 5 i)
    assert sampling.car_val(41, 8).tolist() == [2, 7, 12, 17, 22, 27, 32, 37]
    assert sampling.car_val(9, 8).tolist() == [0] * 8  # n = 8 is not above 8
    assert sampling.car_val(10, 8).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    for index in range(50):
        assert (sampling.car_train(41, 8, draw(0, 0, index)) // 5).tolist() == list(range(8))
    assert sampling.car_train(1, 8, draw(0, 0, 0)).tolist() == [0] * 8


def naive_tsm_test(n: int, segments: int, length: int, twice: bool) -> list[int]:
    tick = (n - length + 1) / float(segments)
    frames = [int(tick / 2.0 + tick * x) + 1 for x in range(segments)]
    return frames + [int(tick * x) + 1 for x in range(segments)] if twice else frames


def test_tsm_uniform_by_hand_and_against_a_plain_loop():
    assert sampling.tsm_uniform_val(40, 8).tolist() == [3, 8, 13, 18, 23, 28, 33, 38]
    assert sampling.tsm_uniform_val(8, 8).tolist() == [1] * 8
    assert sampling.tsm_uniform_test(16, 8, twice_sample=True).tolist() == [
        *(2, 4, 6, 8, 10, 12, 14, 16),
        *(1, 3, 5, 7, 9, 11, 13, 15),
    ]
    for n in range(5, 90):
        for segments in (3, 8, 25):
            for length in (1, 5):
                ours = sampling.tsm_uniform_test(n, segments, length, twice_sample=True).tolist()
                assert ours == naive_tsm_test(n, segments, length, True)
                short = n <= segments + length - 1
                expected = [1] * segments if short else naive_tsm_test(n, segments, length, False)
                assert sampling.tsm_uniform_val(n, segments, length).tolist() == expected
    assert sampling.tsm_uniform_test(1, 8, 5).min() == 1


def test_tsm_uniform_train_stays_in_its_ranges():
    seen = set()
    for index in range(200):
        rng = draw(0, 0, index)
        entries = sampling.tsm_uniform_train(43, 8, rng)  # parts of 43 // 8 = 5; the last 3 frames are never drawn
        assert ((entries - 1) // 5).tolist() == list(range(8))
        seen.update(entries.tolist())
        flow = sampling.tsm_uniform_train(10, 8, rng, frames_per_segment=5)  # 6 // 8 = 0: sorted draws from 1..6
        assert (np.diff(flow) >= 0).all() and flow.min() >= 1 and flow.max() <= 6
    assert seen == set(range(1, 41))
    assert sampling.tsm_uniform_train(8, 9, draw(0, 0, 0)).tolist() == [1] * 9


def test_tsm_dense_by_hand():
    # 70 frames: starts 0..6 in ten steps of 6 / 9, stride 8
    starts = [0, 0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert sampling.tsm_dense_test(70, 8).tolist() == [[s + 1 + 8 * i for i in range(8)] for s in starts]
    assert sampling.tsm_dense_test(20, 8)[0].tolist() == [1, 9, 17, 5, 13, 1, 9, 17]  # mod 20
    drawn = {int(sampling.tsm_dense(70, 8, draw(0, 0, index))[0]) for index in range(300)}
    assert drawn == {1, 2, 3, 4, 5, 6}  # never 7: randint leaves out the last start
    assert sampling.tsm_dense(20, 8, draw(0, 0, 0)).tolist() == [1, 9, 17, 5, 13, 1, 9, 17]


def naive_windows(n: int, clip: int, stride: int, last_clip: str) -> list[list[int]]:
    """Windows one after the other, as a stream would cut them."""
    found: list[list[int]] = []
    start = 0
    while start < n:
        real = list(range(start, min(start + clip, n)))
        if len(real) < clip and last_clip == "drop" and found:
            break
        found.append(real + [n - 1] * (clip - len(real)))
        if real[-1] == n - 1:
            break
        start += stride
    return found


def test_windows_against_a_plain_loop():
    for n in range(0, 34):
        for clip in (1, 2, 5, 8, 16):
            for stride in (1, 3, 5, 8, 20):
                for last_clip in ("pad", "drop"):
                    expected = naive_windows(n, clip, stride, last_clip)
                    assert sampling.num_windows(n, clip, stride, last_clip) == len(expected), (
                        n,
                        clip,
                        stride,
                        last_clip,
                    )
                    assert sampling.windows(n, clip, stride, last_clip).tolist() == expected
                    for index in range(len(expected)):
                        assert sampling.window(index, n, clip, stride, last_clip).tolist() == expected[index]
    assert sampling.windows(0, 8, 4).shape == (0, 8)


def test_window_count_by_hand():
    assert sampling.num_windows(100, 16, 8, "pad") == 12  # 0, 8, ..., 88: 1 + ceil(84 / 8)
    assert sampling.num_windows(100, 16, 8, "drop") == 11  # 80 is the last whole one
    assert sampling.num_windows(96, 16, 8, "pad") == sampling.num_windows(96, 16, 8, "drop") == 11
    assert sampling.num_windows(5, 16, 8, "drop") == 1  # no video is without a row
    with pytest.raises(ValueError, match='last_clip is \'keep\'; it must be "pad" or "drop"'):
        sampling.num_windows(5, 16, 8, "keep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="windows 0 to 11"):
        sampling.window(12, 100, 16, 8)


def test_window_seconds_are_half_open_and_stop_with_the_last_real_entry():
    starts = np.array([0.0, 0.1, 0.3, 0.6, 1.0])  # variable frame rate
    assert sampling.window_seconds(starts, 1.5, 2, 2).tolist() == [[0.0, 0.3], [0.3, 1.0], [1.0, 1.5]]
    assert sampling.window_seconds(starts, 1.5, 2, 2, "drop").tolist() == [[0.0, 0.3], [0.3, 1.0]]
    assert sampling.window_seconds(starts, 1.5, 8, 4).tolist() == [[0.0, 1.5]]
    assert sampling.window_seconds(np.zeros(0), 0.0, 8, 4).shape == (0, 2)


def test_strided_clips_by_hand():
    assert sampling.clip_span(4, 8) == 25
    assert sampling.strided_clip(3, 40, 4, 8).tolist() == [3, 11, 19, 27]
    assert sampling.centre_clip(40, 4, 8).tolist() == [7, 15, 23, 31]
    assert sampling.centre_clip(10, 4, 4, "wrap").tolist() == [0, 4, 8, 2]
    assert sampling.centre_clip(10, 4, 4).tolist() == [0, 4, 8, 9]
    with pytest.raises(ValueError, match="repeat_last"):
        sampling.centre_clip(10, 4, 4, "error")
    with pytest.raises(ValueError, match="one of repeat_last, wrap, error"):
        sampling.centre_clip(10, 4, 4, "loop")  # type: ignore[arg-type]
    drawn = {int(sampling.random_clip(28, 4, 8, draw(0, 0, index))[0]) for index in range(200)}
    assert drawn == {0, 1, 2, 3}
    assert all(sampling.random_clip(28, 4, 8, draw(0, 0, index)).max() < 28 for index in range(50))


def test_multi_views_in_order():
    views = sampling.multi_views(2, 3).tolist()
    assert views == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_pyslowfast_clips_by_hand_and_against_torch():
    # 100 frames, clips of 8 x 8 = 64: rest 36, starts 0, 12, 24; 9 apart
    clips = sampling.pyslowfast_clips(100, 8, 8, 3)
    assert clips.tolist() == [[start + 9 * i for i in range(8)] for start in (0, 12, 24)]
    assert sampling.pyslowfast_clips(100, 8, 8, 3, use_offset=True)[:, 0].tolist() == [0, 18, 36]
    assert sampling.pyslowfast_clips(100, 8, 8, 1, use_offset=True)[0, 0] == 18
    assert sampling.pyslowfast_clips(30, 8, 8, 1)[0].tolist() == [0, 9, 18, 27, 29, 29, 29, 29]
    torch = pytest.importorskip("torch")
    different = total = 0
    for n in range(1, 700, 37):
        for clip_frames, stride, num_clips in [(8, 8, 10), (32, 2, 4), (16, 5, 3)]:
            rest = max(n - clip_frames * stride, 0)
            ours = sampling.pyslowfast_clips(n, clip_frames, stride, num_clips)
            for index in range(num_clips):
                start = rest * index / num_clips
                spread = torch.linspace(start, start + clip_frames * stride - 1, clip_frames)
                theirs = torch.clamp(spread, 0, n - 1).long().numpy()
                assert np.abs(theirs - ours[index]).max() <= 1
                different += int((theirs != ours[index]).sum())
                total += clip_frames
    assert different < total / 1000  # float32 in the public code


def test_charades_clips_against_a_plain_loop():
    for n, frames, stride, count in [(900, 64, 2, 10), (130, 64, 2, 10), (90, 64, 2, 10), (33, 4, 3, 5), (7, 1, 9, 3)]:
        expected = []
        gap = float(max(n - ((frames - 1) * stride + 1), 0)) / (count - 1)
        for clip in range(count):
            start = int(round(gap * clip))
            expected.append([max(min(start + i * stride, n - 1), 0) for i in range(frames)])
        assert sampling.charades_clips(n, frames, stride, count).tolist() == expected
    assert sampling.charades_clips(20, 4, 3, 1).tolist() == [[5, 8, 11, 14]]
    ten = Sampling(rule="charades", stride_frames=2, num_clips=10)
    times = ten.times(Recognition().observe(0.0, 900 / 24), 64, 1 / 24, first_seconds=0.0)
    np.testing.assert_allclose(times * 24, sampling.charades_clips(900, 64, 2, 10), atol=1e-6)


def test_mmaction_clips_by_hand():
    # 160 frames, clips of 32 x 2: (160 - 64 + 1) / 4 = 24.25; int(24.25 i + 12.125)
    clips = sampling.mmaction_clips(160, 32, 2, 4)
    assert clips[:, 0].tolist() == [12, 36, 60, 84]
    assert (np.diff(clips, axis=1) == 2).all()
    assert sampling.mmaction_clips(10, 4, 4, 2).tolist() == [[0, 4, 8, 2]] * 2


def test_omnivore_clips_by_hand():
    clips = sampling.omnivore_clips(160, 32, 32)
    assert clips.shape == (5, 32) and clips[:, 0].tolist() == [0, 32, 64, 96, 128] and clips[4, -1] == 159
    assert sampling.omnivore_clips(20, 4, 4, frame_stride=2).tolist() == [
        *([0, 2, 4, 6], [4, 6, 8, 10], [8, 10, 12, 14], [12, 14, 16, 18]),
    ]
    assert sampling.omnivore_clips(31, 32, 32).shape == (0, 32)


def test_anticipation_window():
    assert sampling.anticipation_window(12.0, 1.0, 2.5) == (8.5, 11.0)
    assert sampling.anticipation_window(1.0, 1.0, 3.5) == (-3.5, 0.0)
    with pytest.raises(ValueError, match="tau_a is -0.5"):
        sampling.anticipation_window(12.0, -0.5, 2.5)
    with pytest.raises(ValueError, match="tau_o is 0"):
        sampling.anticipation_window(12.0, 1.0, 0)


def test_early_recognition():
    fractions = sampling.early_recognition_fractions()
    assert fractions.tolist() == [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    windows = [sampling.early_recognition_window(3.1, 7.3, fraction) for fraction in fractions]
    assert windows[-1] == (3.1, 7.3) and windows[3] == (3.1, pytest.approx(5.2))
    assert all(first[1] < second[1] for first, second in zip(windows, windows[1:], strict=False))
    for fraction in (0.0, 1.1, -1):
        with pytest.raises(ValueError, match="fraction is"):
            sampling.early_recognition_window(3.1, 7.3, fraction)


def test_rulstm_frames_match_the_public_code():
    golden = np.load(GOLDEN / "rulstm_frames_ek55_val.npz")
    past = [sampling.rulstm_past_frames(int(start)) for start in golden["start"]]
    assert np.array_equal(np.array(past), golden["past_frames"])
    stops = golden["action_frames"][:, -1]
    action = [sampling.rulstm_action_frames(int(a), int(b)) for a, b in zip(golden["start"], stops, strict=True)]
    assert np.array_equal(np.array(action), golden["action_frames"])
    at_one_second = np.array(past)[:, -4]
    assert (golden["start"] - at_one_second == 31).sum() == 24  # the float64 expression, kept


def test_rulstm_by_hand():
    assert sampling.rulstm_seconds_before_action().tolist() == [3.5 - 0.25 * i for i in range(14)]
    assert sampling.rulstm_seconds_before_action(2, 0.1).tolist() == pytest.approx([0.2, 0.1])  # arange alone: 3
    for start in range(9):
        assert sampling.rulstm_past_frames(start) is None  # the first frame ends after start - 0.25 s: discarded
    assert sampling.rulstm_past_frames(9).tolist() == [1] * 14
    assert sampling.rulstm_past_frames(30).tolist() == [7] * 11 + [7, 15, 22]
    assert sampling.rulstm_action_frames(100, 180).tolist() == [110, 120, 130, 140, 150, 160, 170, 180]


@pytest.mark.parametrize(
    ("name", "options"),
    [("avt_frames_ek100_10s_1fps", {}), ("avt_frames_ek55_5s_2fps", {"tau_o": 5.0, "frames_per_second": 2})],
)
def test_avt_frames_match_the_public_code(name: str, options: dict):
    golden = np.load(GOLDEN / f"{name}.npz")
    # Stored in float32; the first 35 starts are this float64 grid, whose rounding decides some frames.
    starts = golden["action_start"].astype(np.float64)
    starts[:35] = np.arange(1.05, 14, 0.37)[:35]
    assert np.array_equal(starts.astype(np.float32), golden["action_start"])
    for start, frames, seconds in zip(starts, golden["frames"], golden["frame_sec"], strict=True):
        found = sampling.avt_frames(start, **options)
        assert found is not None
        assert np.array_equal(found[0], frames)
        assert found[1] == pytest.approx(seconds, rel=1e-6, abs=1e-6)


def test_avt_drops_what_has_no_frame():
    assert sampling.avt_frames(1.0 + 1 / 31) is None and sampling.avt_frames(0.5) is None
    assert sampling.avt_frames(5.02, tau_o=0.01) is None  # shorter than a frame
    frames, _ = sampling.avt_frames(1.05)  # type: ignore[misc]
    assert frames.tolist() == [1] * 10


def test_no_frame_at_or_after_the_anticipation_point():
    """Frame f of a 30 fps store is on screen until f / 30 s: it must not outlast start - tau_a."""
    for start in np.arange(1.3, 40, 0.173):
        frames, seconds = sampling.avt_frames(start)  # type: ignore[misc]
        assert frames.max() / 30 <= start - 1 + 1e-9 and seconds.max() <= start - 1
        assert (np.diff(frames) >= 0).all()
        past = sampling.rulstm_past_frames(round(start * 30))
        assert past is not None and past.max() / 30 <= round(start * 30) / 30 - 0.25 + 1e-9


def test_wrong_numbers_are_said():
    rng = draw(0, 0, 0)
    for call in (
        lambda: sampling.segment_centres(0, 3),
        lambda: sampling.segment_jitter(10, 0, rng),
        lambda: sampling.num_windows(10, 0, 1),
        lambda: sampling.num_windows(-1, 1, 1),
        lambda: sampling.strided_clip(10, 10, 2, 1),
        lambda: sampling.pyslowfast_clips(0, 8, 8, 3),
        lambda: sampling.segment_centres_seconds(2.0, 2.0, 3),
        lambda: sampling.segment_centres_seconds(2.0, math.inf, 3),
    ):
        with pytest.raises(ValueError, match=r"must|empty"):
            call()
