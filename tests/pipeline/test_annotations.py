"""Segments and their csv form."""

import math
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from actionfuse.pipeline.annotations import Segment, parse_seconds, read_segments, write_segments


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_segment_is_frozen_hashable_and_pickles():
    segment = Segment("a.mp4", 1.0, 2.5, "a-0", {"verb": 3, "noun": (4, 9)}, {"participant": "P01"})
    assert segment.duration_seconds == 1.5
    assert pickle.loads(pickle.dumps(segment)) == segment
    assert len({segment, Segment("a.mp4", 1.0, 2.5, "a-0", {"verb": 3, "noun": (4, 9)}, {"participant": "P01"})}) == 1
    with pytest.raises(FrozenInstanceError):
        segment.start_seconds = 0.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", 0.0, 1.0, "x"), "needs a video and an id"),
        (("a.mp4", 0.0, 1.0, ""), "needs a video and an id"),
        (("a.mp4", -1.0, 1.0, "x"), "starts at -1.0 s"),
        (("a.mp4", math.nan, 1.0, "x"), "starts at nan s"),
        (("a.mp4", 2.0, 2.0, "x"), "must stop after its start"),
        (("a.mp4", 2.0, math.nan, "x"), "must stop after its start"),
        (("a.mp4", 0.0, 1.0, "x", {"verb": -1}), "leave unknown labels out"),
        (("a.mp4", 0.0, 1.0, "x", {"verb": True}), "leave unknown labels out"),
        (("a.mp4", 0.0, 1.0, "x", {"verb": "open"}), "verb='open'"),
        (("a.mp4", 0.0, 1.0, "x", {"verb": ()}), "leave unknown labels out"),
    ],
)
def test_segment_checks_itself(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        Segment(*arguments)


def test_times():
    assert parse_seconds("12.5") == 12.5
    assert parse_seconds("01:02.5") == 62.5
    assert parse_seconds(" 01:00:01.89 ") == 3601.89
    for text in ("", "a", "1:60", "1:2:3:4", "inf", "nan", "-1:30", "1:-2"):
        with pytest.raises(ValueError, match=r"is no time"):
            parse_seconds(text)


def test_read_by_hand(tmp_path: Path):
    path = write(
        tmp_path / "s.csv",
        "\ufeffpath, start_seconds,stop_seconds,id,verb,noun\r\n"
        "kitchen/a.mp4,12.5,14.25,a-0,3,17\r\n"
        "\r\n"
        '"b, c.mp4",00:00:20.1,,,0,4;9\r\n'
        "d.mp4,,,d-0,,5;\r\n",
    )
    assert read_segments(path) == [
        Segment("kitchen/a.mp4", 12.5, 14.25, "a-0", {"verb": 3, "noun": 17}),
        Segment("b, c.mp4", 20.1, math.inf, "b, c.mp4#20.1-inf", {"verb": 0, "noun": (4, 9)}),
        Segment("d.mp4", 0.0, math.inf, "d-0", {"noun": (5,)}),
    ]
    only_verbs = read_segments(path, label_columns=["verb"])
    assert only_verbs[1].labels == {"verb": 0} and only_verbs[1].extra == {"noun": "4;9"}
    assert [segment.labels for segment in read_segments(path, label_columns=())] == [{}] * 3
    assert read_segments(write(tmp_path / "p.csv", "path\na.mp4\n")) == [Segment("a.mp4", 0, math.inf, "a.mp4#0-inf")]


def test_what_is_written_is_read_back(tmp_path: Path):
    segments = [
        Segment("a.mp4", 0.1 + 0.2, 1e5 / 3, "one", {"verb": 3, "noun": (4, 9)}, {"narration": 'open, "slowly"'}),
        Segment("ü/b.mp4", 0.0, math.inf, "two", {"action": (7,)}),
    ]
    path = tmp_path / "deep" / "s.csv"
    write_segments(path, segments)
    assert read_segments(path, label_columns=["verb", "noun", "action"]) == segments
    assert [entry.name for entry in path.parent.iterdir()] == ["s.csv"]
    with pytest.raises(ValueError, match="id would name two columns"):
        write_segments(path, [Segment("a.mp4", 0.0, 1.0, "x", {"id": 1})])
    assert read_segments(path, label_columns=["verb", "noun", "action"]) == segments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"s.csv:1: the header is '';"),
        ("video,start\na.mp4,1\n", r"s.csv:1: the header is 'video,start'"),
        ("path;start_seconds\na.mp4;1\n", r"s.csv:1: the header .* comma-separated"),
        ("path,verb,verb\na.mp4,1,1\n", r"s.csv:1: every column needs a name"),
        ("path,verb\na.mp4,1\nb.mp4\n", r"s.csv:3: 1 cells where the header has 2"),
        ("path,verb\na.mp4,open\n", r"s.csv:2: verb is 'open'; a label is a class number"),
        ("path,verb\na.mp4,-1\n", r"s.csv:2: segment 'a.mp4#0-inf' has verb=-1"),
        ("path,start_seconds,stop_seconds\na.mp4,x,2\n", r"s.csv:2: 'x' is no time"),
        ("path,start_seconds,stop_seconds\n\na.mp4,3,2\n", r"s.csv:3: .* must stop after its start"),
        ("path,start_seconds\n,2\n", r"s.csv:2: the path is empty"),
        ("path,id\na.mp4,x\nb.mp4,x\n", r"s.csv:3: segment 'x' is in line 2 already"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_segments(write(tmp_path / "s.csv", text))


def test_what_is_no_text_is_said(tmp_path: Path):
    path = tmp_path / "s.csv"
    path.write_bytes(b"path\n\xff\xfe\x00\x01\n")
    with pytest.raises(ValueError, match=r"s.csv:\d: not a UTF-8 csv file"):
        read_segments(path)
    with pytest.raises(ValueError, match="no column noun; there are verb"):
        read_segments(write(path, "path,verb\na.mp4,1\n"), label_columns=["noun"])
    with pytest.raises(FileNotFoundError):
        read_segments(tmp_path / "none.csv")
