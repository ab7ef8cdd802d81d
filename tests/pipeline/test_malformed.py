"""Malformed inputs are read as far as they go or refused with a reason: no crash, no hang."""

import os
from functools import partial

import pytest
from malformed import MALFORMED, UNREADABLE, make_malformed

from actionfuse.pipeline.guard import Lost, guarded_map
from actionfuse.pipeline.probe import ProbeRow, probe

SILENCE_SECONDS = 30  # what a hang takes to show; nothing here needs a tenth of a second


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, ProbeRow | Lost]:
    """Each input decoded from end to end, in guarded processes."""
    paths = make_malformed(tmp_path_factory.mktemp("malformed"))
    read = partial(probe, deep=True)
    results = guarded_map(read, map(str, paths.values()), workers=2, silence_seconds=SILENCE_SECONDS)
    return {name: row for name, (_, row) in zip(paths, results, strict=True)}


def test_there_are_enough():
    assert len(MALFORMED) >= 40
    assert MALFORMED.keys() > UNREADABLE


@pytest.mark.parametrize("name", MALFORMED)
def test_read_or_refused_with_a_reason(rows, name):
    if name == "no_permission" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    row = rows[name]
    assert not isinstance(row, Lost), row
    if name in UNREADABLE:
        assert row.error is not None
    if row.error is None:
        assert row.decoded_frames
        assert row.duration_seconds is not None and 0 < row.duration_seconds < 1e10
        assert row.decoded_frames >= row.num_frames or row.damage, "frames are missing and nobody says so"
    else:
        assert len(row.error) > 5
        assert os.path.basename(row.path) not in row.error and "unexpected" not in row.error, row.error


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zero_bytes.mp4", "empty"),
        ("audio_only", "only sound"),
        ("sound.wav", "only sound"),
        ("audio_with_cover", "only sound"),
        ("link_to_nowhere", "no such file"),
        ("folder_named", "no frames"),
        ("frames_all_text", "none of the 6 frames can be read"),
    ],
)
def test_the_reason_says_what_it_is(rows, name, words):
    assert words in rows[name].error


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("fast_cut_at_50.mp4", 5, 39),
        ("mkv_cut_at_90.mkv", 20, 39),
        ("ts_cut_at_50.ts", 5, 39),
        ("avi_cut_at_90.avi", 5, 39),
        ("fast_data_10_flips_0.mp4", 20, 40),
        ("png_named.mp4", 1, 1),
        ("avi_named.mp4", 40, 40),
        ("mp4_named.avi", 40, 40),
        ("frames_one_cut", 5, 5),
        ("cut.tar", 1, 5),
    ],
)
def test_what_is_there_is_read(rows, name, least, most):
    assert rows[name].error is None
    assert least <= rows[name].decoded_frames <= most
