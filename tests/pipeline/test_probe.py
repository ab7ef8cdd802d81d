"""`actionfuse probe`: what it says about good files, how it tells broken ones, and its exit codes."""

import json
import re
import signal
import subprocess
import sys
import time

import cv2
import pytest
from videos import counting_frame, make, write_counting_video

from actionfuse.cli import main
from actionfuse.pipeline.inputs import find_videos
from actionfuse.pipeline.probe import ProbeRow, probe, probe_many


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos, a folder of frames, a file that is no video."""
    top = tmp_path_factory.mktemp("videos")
    write_counting_video(top / "a.mp4", 50, gop=10, audio=True)
    (top / "deep").mkdir()
    write_counting_video(top / "deep" / "b.mkv", 30, (96, 64), 15, gop=7)
    (top / "deep" / "notes.json").write_text("{}")
    (top / "frames").mkdir()
    for number in range(1, 13):
        cv2.imwrite(str(top / "frames" / f"{number:010d}.jpg"), counting_frame(number))
    return top


def json_rows(capsys, *words: str) -> tuple[int, dict[str, dict]]:
    code = main(["probe", "--json", *words])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return code, {row["key"]: row for row in rows}


def test_what_a_good_file_is(folder):
    row = probe(folder / "a.mp4")
    assert not row.is_broken
    assert (row.width, row.height, row.num_frames, row.average_fps) == (64, 48, 50, 25)
    assert row.duration_seconds == pytest.approx(2)
    assert (row.codec, row.pixel_format, row.rotation_degrees, row.variable_frame_rate) == ("h264", "yuv420p", 0, False)
    assert (row.gop_frames, row.audio, row.start_seconds) == (10, "aac 16000 Hz mono", 0)
    assert row.decoder and row.decoder_reason
    assert row.decoded_frames is None
    assert row.file_bytes == (folder / "a.mp4").stat().st_size
    assert probe(folder / "deep" / "b.mkv").gop_frames == 7
    assert probe(folder / "a.mp4", deep=True).decoded_frames == 50


@pytest.mark.parametrize("kind", ["rotate90", "vfr", "start_ts", "one_frame", "cover_art", "edit_list", "gif"])
def test_odd_files_are_told_as_they_are(tmp_path, kind):
    made = make(kind, tmp_path)
    row = probe(made.path, deep=True)
    assert not row.is_broken
    assert (row.width, row.height) == made.size
    assert row.rotation_degrees == made.rotation_degrees
    assert row.num_frames == row.decoded_frames == len(made.numbers)
    assert row.start_seconds == pytest.approx(made.seconds[0])
    assert row.variable_frame_rate == (kind == "vfr")
    assert (row.audio is not None) == made.has_audio


def test_a_folder_as_json(folder, capsys):
    code, rows = json_rows(capsys, str(folder), "--frame-fps", "10")
    assert code == 0
    assert list(rows) == ["a.mp4", "deep/b.mkv", "frames"]
    assert rows["frames"]["duration_seconds"] == pytest.approx(1.2)
    assert rows["frames"]["decoder"] == "frame_folder"
    assert all(set(row) == set(ProbeRow.__dataclass_fields__) for row in rows.values())


def test_a_folder_as_a_table(folder, capsys):
    assert main(["probe", str(folder), "--deep", "--workers", "2"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("a.mp4"))
    for words in ("2.000", "50", "25", "64x48", "h264", "yuv420p", "aac 16000 Hz mono"):
        assert words in line
    assert "3 videos, 4.4 seconds, 0 broken" in out
    assert "1 files are no videos and were skipped: 1 .json" in out


def test_a_narrow_terminal_leaves_columns_out_and_says_so(folder, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "72")
    assert main(["probe", str(folder)]) == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out).splitlines()
    header = next(line for line in lines if line.startswith("file"))
    assert "codec" in header and "sound" not in header
    assert all(len(line) <= 72 for line in lines)
    assert any(line.startswith("left out for lack of width: ") and "sound" in line for line in lines)


def test_broken_files_are_listed_and_the_exit_code_is_1(folder, tmp_path, capsys):
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:3000])
    (tmp_path / "good.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (tmp_path / "half.mkv").write_bytes((folder / "deep" / "b.mkv").read_bytes()[:-2000])
    assert main(["probe", str(tmp_path), "--deep"]) == 1
    out = capsys.readouterr().out
    assert "4 videos" in out and "broken" in out
    listed = out[out.index("4 videos") :]
    assert "zero.mp4: the file is empty" in listed
    assert "cut.mp4: " in listed and "good.mp4" not in listed
    code, rows = json_rows(capsys, str(tmp_path))
    assert code == 1
    assert rows["good.mp4"]["error"] is None and rows["zero.mp4"]["error"].startswith("the file is empty")


def test_a_damaged_file_is_told_by_deep(tmp_path, capsys):
    made = make("damaged_middle", tmp_path)
    row = probe(made.path, deep=True)
    assert row.error is None and row.damage and row.is_broken
    assert 80 <= row.decoded_frames <= 100
    assert main(["probe", "--deep", str(made.path)]) == 1
    assert "damaged_middle.mp4: damaged\n    " in capsys.readouterr().out


def test_segments_of_one_video_are_one_row(folder, tmp_path, capsys):
    table = tmp_path / "t.csv"
    table.write_text(f"path,start_seconds,stop_seconds\n{folder}/a.mp4,0,1\n{folder}/a.mp4,1,2\n")
    code, rows = json_rows(capsys, str(table))
    assert (code, list(rows)) == (0, ["a.mp4"])


def test_wrong_calls(tmp_path, capsys):
    for words, said in (
        ([str(tmp_path / "nowhere")], "does not exist"),
        ([str(tmp_path)], "no video is in"),
        ([str(tmp_path), "--workers", "0"], "workers is 0"),
        ([str(tmp_path), "--frame-fps", "0"], "--frame-fps is 0"),
        ([str(tmp_path), "--time-limit", "-1"], "silence_seconds is -1"),
    ):
        if "--" in "".join(words):
            (tmp_path / "x.mp4").touch()
        assert main(["probe", *words]) == 2
        assert said in capsys.readouterr().err


# Which files crash or hang a decoder changes with its version; a child that misbehaves by name always does.
MISBEHAVE = """
import os, signal, time
real = os.path.isfile
def isfile(path):
    if str(path).endswith("hangs.mp4"):
        time.sleep(1000)
    if str(path).endswith("crashes.mp4"):
        signal.raise_signal(signal.SIGSEGV)
    return real(path)
os.path.isfile = isfile
"""


def test_files_that_hang_or_crash_cost_one_row_each(folder, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(MISBEHAVE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("crashes", "hangs", "good"):
        (tmp_path / f"{name}.mp4").write_bytes((folder / "a.mp4").read_bytes())
    rows = {row.key: row for row in probe_many(find_videos(tmp_path), workers=2, silence_seconds=4)}
    assert "SIGSEGV" in rows["crashes.mp4"].error
    assert "no sign of life for 4 s" in rows["hangs.mp4"].error
    assert not rows["good.mp4"].is_broken


def test_the_program_stops_at_ctrl_c_and_leaves_no_process(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "actionfuse.cli", "probe", "--json", "--deep", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)  # ends: children hold no pipe open
    assert process.returncode in (0, 130, -signal.SIGINT)
