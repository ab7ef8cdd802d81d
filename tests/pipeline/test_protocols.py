"""Observations of segments, and the places that rules find in them."""

import math
from pathlib import Path

import numpy as np
import pytest

from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.protocols import (
    RULES,
    WINDOW_RULES,
    Anticipation,
    EarlyRecognition,
    NotObserved,
    Observation,
    Recognition,
    Sampling,
    rulstm_anticipation,
    sliding_windows,
)
from actionfuse.pipeline.sampling import draw, rulstm_action_frames

GOLDEN = Path(__file__).parents[1] / "golden" / "anticipation"


def test_observations_by_hand():
    assert Recognition().observe(2.0, 5.0) == Observation(2.0, 5.0, math.inf, 2.0)
    assert EarlyRecognition(fraction=0.25).observe(2.0, 6.0) == Observation(2.0, 3.0, 3.0, 2.0)
    assert EarlyRecognition(fraction=1).observe(2.0, 5.1).stop_seconds == 5.1
    assert Anticipation(tau_a=1.0, tau_o=2.5).observe(10.0, 11.0) == Observation(6.5, 9.0, 9.0, 10.0)
    seen = rulstm_anticipation().observe(10.0, 11.0)
    assert (seen.start_seconds, seen.stop_seconds) == (6.25, 9.75)
    for wrong in (lambda: EarlyRecognition(fraction=0), lambda: Anticipation(tau_a=-1), lambda: Anticipation(tau_o=0)):
        with pytest.raises(ValueError):
            wrong()


def test_what_of_an_observation_a_video_shows():
    seen = Anticipation(tau_a=1, tau_o=5).observe(4.0, 6.0).inside(0.5, 20.0)
    assert (seen.start_seconds, seen.stop_seconds, seen.horizon_seconds) == (0.5, 3.0, 3.0)
    with pytest.raises(NotObserved, match=r"nothing to observe: \[-4.500, 0.500\)"):
        Anticipation(tau_a=1, tau_o=5).observe(1.5, 6.0).inside(0.5, 20.0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_times_stay_in_the_observation(rule, training):
    sampling = Sampling(rule=rule, stride_frames=2)
    for index in range(200):
        rng = draw(0, 0, index)
        start, length = rng.uniform(0, 100), float(rng.choice([0.01, 0.3, 2.0, 40.0]))
        fps, frames = float(rng.choice([12, 25, 29.97])), int(rng.integers(1, 17))
        observation = Anticipation(tau_a=0.25, tau_o=length).observe(start + length + 0.25, 1e9)
        first = None if index % 2 else 0.04
        times = sampling.times(observation, frames, 1 / fps, first_seconds=first, rng=rng if training else None)
        assert times.shape == (1, frames) and times.dtype == np.float64
        assert rule in ("mmaction", "tsm_dense") or (np.diff(times, axis=1) >= 0).all()  # these two start over
        if rule in WINDOW_RULES:
            assert (times >= observation.start_seconds).all() and (times < observation.stop_seconds).all()
        else:
            assert (times <= observation.stop_seconds + 2e-9).all()
            assert times[0, -1] == pytest.approx(observation.stop_seconds, abs=2e-9)


def test_places_on_the_grid_of_a_video():
    seen = Recognition().observe(1.0, 2.0)
    grid = Sampling(rule="strided", stride_frames=2).times(seen, 4, 0.1, first_seconds=0.05)[0]
    # entries at 1.05, 1.15, ..., 1.95: the middle clip of 7 of 10 begins with the second
    np.testing.assert_allclose(grid, [1.15, 1.35, 1.55, 1.75])
    grid = Sampling(rule="strided").times(seen, 10, 0.1)[0]
    np.testing.assert_allclose(grid, 1 + 0.1 * np.arange(10))
    clips = Sampling(rule="mmaction", num_clips=3).times(seen, 2, 0.1)
    np.testing.assert_allclose(clips[:, 0], [1.1, 1.4, 1.7], atol=1e-9)  # a third of 9 starts each, its middle
    assert Sampling(rule="slowfast", num_clips=4).times(seen, 2, 0.1).shape == (4, 2)
    np.testing.assert_allclose(Sampling(rule="ends").times(seen, 4, 0.1)[0], [1.25, 1.5, 1.75, 2.0])
    np.testing.assert_allclose(Sampling(rule="last").times(seen, 3, 0.25)[0], [1.5, 1.75, 2.0])
    short = Recognition().observe(1.01, 1.02)
    assert Sampling(rule="strided").times(short, 2, 0.1, first_seconds=0.0).tolist() == [[1.01, 1.01]]


def test_times_of_rulstm_are_its_frames():
    """floor(t fps) counted from 1 is the frame that ended last at t."""
    golden = np.load(GOLDEN / "rulstm_frames_ek55_val.npz")
    sampling, task = Sampling(rule="rulstm"), rulstm_anticipation()
    assert len(golden["start"]) > 1000
    for start, wanted in zip(golden["start"], golden["past_frames"], strict=True):
        if (np.diff(wanted) > 0).all():  # else filled up at the start of the video
            times = sampling.times(task.observe(start / 30, start / 30 + 1), 14, 1 / 30)[0]
            assert np.floor(times * 30).astype(int).tolist() == wanted.tolist()
    with pytest.raises(ValueError, match="rulstm_anticipation"):
        sampling.times(Anticipation(tau_a=1).observe(9.0, 10.0), 14, 1 / 30)


@pytest.mark.parametrize("length", [8, 36, 56, 57])
def test_ends_of_parts_are_rulstms_frames(length):
    """Early recognition: the frame that ends with a part of the action is in it, however seconds are rounded."""
    for start in range(1, 3000, 7):
        wanted = rulstm_action_frames(start, start + length)
        for part in (4, 8):  # tested at a half as well
            seen = EarlyRecognition(fraction=part / 8).observe(start / 30, (start + length) / 30)
            times = Sampling(rule="ends").times(seen, part, 1 / 30)[0]
            assert np.floor(times * 30).astype(int).tolist() == wanted[:part].tolist()


@pytest.mark.parametrize(
    ("name", "tau_o", "frames", "fps"), [("ek100_10s_1fps", 10, 10, 1), ("ek55_5s_2fps", 5, 10, 2)]
)
def test_times_of_the_last_rule_are_avts_frames(name, tau_o, frames, fps):
    golden = np.load(GOLDEN / f"avt_frames_{name}.npz")
    task, looked = Anticipation(tau_a=1.0, tau_o=tau_o), 0
    starts = golden["action_start"].astype(np.float64)
    starts[:35] = np.arange(1.05, 14, 0.37)[:35]  # before they were stored in float32
    for start, wanted in zip(starts, golden["frames"], strict=True):
        if (wanted <= 1).any() or len(set(wanted.tolist())) < frames:
            continue  # filled up at the start of the video
        times = Sampling(rule="last").times(task.observe(start, start + 1.0), frames, 1 / fps)[0]
        assert np.floor(times * 30).astype(int).tolist() == wanted.tolist()
        looked += 1
    assert looked > 5


def naive_windows(start, stop, window, stride):
    found, at = [], start
    while True:
        found.append((at, min(at + window, stop)))
        if at + window >= stop - 1e-9 or at + stride >= stop - 1e-9:
            return found
        at += stride


@pytest.mark.parametrize(("window", "stride"), [(2.0, 1.0), (1.0, 1.0), (1.0, 2.5), (20.0, 3.0)])
@pytest.mark.parametrize("length", [0.5, 2.0, 7.0, 7.3])
def test_sliding_windows(window, stride, length):
    segment = Segment("a.mp4", 3.0, 3.0 + length, "long", {"verb": 4}, {"participant": "P01"})
    found = sliding_windows([segment], window, stride)
    np.testing.assert_allclose(
        [(each.start_seconds, each.stop_seconds) for each in found], naive_windows(3.0, 3.0 + length, window, stride)
    )
    assert [each.id for each in found] == [f"long@{k}" for k in range(len(found))]
    assert found[0].labels == {"verb": 4} and found[0].extra == {"participant": "P01", "segment": "long"}


def test_windows_of_a_segment_without_end():
    endless = Segment("a.mp4", 0.0, math.inf, "a")
    assert len(sliding_windows([endless], 2, 2, duration_seconds=6)) == 3
    with pytest.raises(ValueError, match="has no end"):
        sliding_windows([endless], 2, 2)
    with pytest.raises(ValueError, match="must be positive"):
        sliding_windows([endless], 0, 2, 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"rule": "segment"}, "did you mean 'segments'"), ({"num_clips": 2}, "slowfast, charades, mmaction make more"),
     ({"stride_frames": 0}, "positive")],
)  # fmt: skip
def test_wrong_rules_are_told(change, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**change)
    with pytest.raises(ValueError, match="both must be positive"):
        Sampling().times(Recognition().observe(0, 1), 0, 0.1)
