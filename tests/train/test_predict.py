"""actionfuse predict: which moments, what is seen of them, files, overlay; live the same as recorded."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from toy_training import toy_recipe, write_toy
from toy_videos import ANTICIPATION, video_recipe
from videos import make_broken, read_code, write_counting_video

from actionfuse import heartbeat
from actionfuse.cli import main
from actionfuse.pipeline import open_video
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.running import LiveSource, RingReader
from actionfuse.pipeline.video import Size, VideoError
from actionfuse.train import live, predict, predictions
from actionfuse.train.build import build_model, load_split
from actionfuse.train.engine import Trainer
from actionfuse.train.model import config_of, save_model
from actionfuse.train.overlay import shown_at
from actionfuse.train.recipe import dump_recipe
from actionfuse.train.runs import open_run


def make_run(folder, recipe):
    """A run with random weights: what it says is as good as anything for what is tested here."""
    model = build_model(recipe, load_split(recipe, "train").classes).eval()
    save_model(model, folder, config_of(model))
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """Recognition, trained for an epoch."""
    folder = tmp_path_factory.mktemp("run")
    Trainer(video_recipe(videos), folder, quiet=True).run()
    return folder


@pytest.fixture(scope="module")
def ahead(videos, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("ahead"), video_recipe(videos, **ANTICIPATION))


@pytest.fixture
def seen(monkeypatch):
    """Numbers that the frames of each clip carry, by call; frames are looked at as they enter the model."""
    found: list[list[int]] = []
    to_device = predict_to_device = live.to_device

    def look(batch, *args):
        for clip in batch["streams"]["rgb"].numpy():
            found.append([read_code(frame) for frame in clip])
        return to_device(batch, *args)

    from actionfuse.train import testing

    assert predict_to_device is testing.to_device
    monkeypatch.setattr(testing, "to_device", look)
    monkeypatch.setattr(live, "to_device", look)
    return found


def rows_of(path):
    return json.loads(path.read_text())["predictions"]


def wide(videos):
    return video_recipe(videos, streams__rgb__clip={"frames": 3, "fps": 8, "side": 48, "crop": 48})


def test_windows_are_those_of_the_formula(videos, tmp_path, seen, capsys):
    folder = make_run(tmp_path / "run", wide(videos))
    out = tmp_path / "p.json"
    call = ["predict", str(folder), str(videos / "v1.mp4"), "--window", "1.5", "--stride", "1", "--json", str(out)]
    assert main(call) == 0
    rows = rows_of(out)
    # [0, 1.5), [1, 2.5), [2, 3.5), and [3, 4): the last one is cut at the end
    assert [(row["start_seconds"], row["stop_seconds"]) for row in rows] == [(0, 1.5), (1, 2.5), (2, 3.5), (3, 4)]
    assert [row["id"] for row in rows] == [f"v1.mp4@{k}" for k in range(4)]
    centres = [[a + (b - a) * (i + 0.5) / 3 for i in range(3)] for a, b in [(0, 1.5), (1, 2.5), (2, 3.5), (3, 4)]]
    assert seen == [[1000 + math.floor(t * 25 + 1e-6) for t in times] for times in centres]
    for row in rows:
        for task, count in {"verb": 2, "noun": 3, "verb+noun": 5}.items():
            scores = [each["score"] for each in row["top"][task]]
            assert len(scores) == count and scores == sorted(scores, reverse=True)
        assert sum(each["score"] for each in row["top"]["noun"]) == pytest.approx(1)
        best = row["top"]["verb+noun"][0]
        assert best["name"] == f"{row['top']['verb'][0]['name']} {row['top']['noun'][0]['name']}"
    assert capsys.readouterr().out.count(" s  ") == 4


def test_it_says_what_the_model_says(videos, run, tmp_path):
    out = tmp_path / "p.json"
    assert main(["predict", str(run), str(videos / "v2.mp4"), "--window=1", "--stride=1", f"--json={out}"]) == 0
    opened = open_run(run)
    with open_video(videos / "v2.mp4") as reader:
        for second, row in enumerate(rows_of(out)):
            times = [second + (i + 0.5) / 3 for i in range(3)]
            frames = reader.frames_at(times, short_side=32).data
            left = (frames.shape[2] - 32) // 2
            clip = torch.from_numpy(np.ascontiguousarray(frames[:, :, left : left + 32]))[None]
            with torch.inference_mode():
                logits = opened.model({"rgb": clip}).logits
            found = {each["class"]: each["score"] for each in row["top"]["noun"]}
            expected = logits["noun"][0].softmax(0).tolist()
            assert [found[c] for c in range(3)] == pytest.approx(expected, abs=0.03)  # scaled before it is cut
            assert np.argmax([found[c] for c in range(3)]) == np.argmax(expected)


def test_anticipation_sees_nothing_at_or_after_its_moment(videos, tmp_path, seen):
    clip = {"frames": 4, "fps": 8, "side": 48, "crop": 48}
    folder = make_run(tmp_path / "run", video_recipe(videos, **ANTICIPATION, streams__rgb__clip=clip))
    out, table = tmp_path / "p.json", tmp_path / "p.csv"
    call = ["predict", str(folder), str(videos / "v0.mp4"), "--stride", "0.72", "--json", str(out), "--csv", str(table)]
    assert main(call) == 0
    rows = rows_of(out)
    moments = [0.72 * k for k in range(1, 6)]
    assert [row["stop_seconds"] for row in rows] == pytest.approx(moments)
    assert [row["action_seconds"] for row in rows] == pytest.approx([t + 0.5 for t in moments])
    for numbers, t in zip(seen, moments, strict=True):
        # frame n is stamped n / 25; at t = 0.72 the frame 18 starts, and must not be seen
        assert max(numbers) == math.ceil(t * 25 - 1e-6) - 1
        assert min(numbers) >= 0 and all(n / 25 < t - 1e-9 for n in numbers)
    with open(table, newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * (2 + 3 + 5) and lines[0]["tau_a"] == "0.5"


def test_every_step_of_rulstm_is_told_from_what_had_passed(videos, tmp_path):
    """The action at 3 s by its own frames alone: a row for each step, of nothing behind what it says it saw."""
    recipe = video_recipe(
        videos, task__kind="anticipation", task__tau_a=0.25, task__tau_o=2.0, sampling__rule="rulstm",
        streams__rgb__clip={"frames": 6, "fps": 4, "side": 32, "crop": 32},
        head={"name": "rulstm", "options": {"width": 8, "anticipation_steps": 4, "told_step": 2}},
    )  # fmt: skip
    folder = make_run(tmp_path / "run", recipe)
    times, out = tmp_path / "times.csv", tmp_path / "p.json"
    times.write_text(f"path,start_seconds,stop_seconds,id\n{videos}/v0.mp4,3,4,a\n")
    assert main(["predict", str(folder), "--segments", str(times), "--json", str(out), "--quiet"]) == 0
    rows = rows_of(out)
    assert [(row["tau_a"], row["stop_seconds"], row["action_seconds"]) for row in rows] == [
        (1.0, 2.0, 3.0), (0.75, 2.25, 3.0), (0.5, 2.5, 3.0), (0.25, 2.75, 3.0)
    ]  # fmt: skip
    run = open_run(folder)
    segment = Segment(str(videos / "v0.mp4"), 3.0, 4.0, "a")
    sample = predictions.dataset_of(run, [segment], predictions.task_of_moments(run))[0]
    ends = sample.seconds["rgb"] + 1 / 25
    for row, steps in zip(rows, (3, 4, 5, 6), strict=True):
        seen = sample.streams["rgb"][None, :steps]
        assert row["stop_seconds"] - 1 / 25 < float(ends[steps - 1]) <= row["stop_seconds"] + 1e-9
        # what comes later changes nothing at this step
        clip = torch.cat([seen, torch.zeros_like(sample.streams["rgb"][None, steps:])], 1)
        with torch.inference_mode():
            told = run.model({"rgb": clip}).auxiliary["steps"]["noun"][0, steps - 3].softmax(-1)
        for each in row["top"]["noun"]:
            assert each["score"] == pytest.approx(float(told[each["class"]]), abs=1e-5)


def test_given_times_are_told_at_every_tau_a(videos, ahead, tmp_path):
    times = tmp_path / "times.csv"
    times.write_text(f"path,start_seconds,stop_seconds,id\n{videos}/v0.mp4,2,3,a\n{videos}/v1.mp4,1.5,,b\n")
    out = tmp_path / "p.json"
    assert main(["predict", str(ahead), "--segments", str(times), "--json", str(out), "--quiet"]) == 0
    rows = rows_of(out)
    assert sorted((row["video"], row["tau_a"], row["stop_seconds"], row["action_seconds"]) for row in rows) == [
        ("v0.mp4", 0.25, 1.75, 2), ("v0.mp4", 0.5, 1.5, 2), ("v1.mp4", 0.25, 1.25, 1.5), ("v1.mp4", 0.5, 1.0, 1.5),
    ]  # fmt: skip
    assert {row["id"] for row in rows} == {"v0.mp4#a", "v1.mp4#b"}


def test_broken_videos_are_named_and_the_rest_is_told(videos, run, tmp_path, capsys):
    broken = make_broken("noise", tmp_path)
    out = tmp_path / "p.json"
    call = ["predict", str(run), str(videos / "v0.mp4"), str(broken), "--window", "2", "--json", str(out)]
    assert main(call) == 1
    told = capsys.readouterr()
    assert "noise.mp4" in told.err and "1 videos or segments were left out" in told.err
    content = json.loads(out.read_text())
    assert len(content["predictions"]) == 3 and content["about"]["broken"][0]["video"].endswith("noise.mp4")


def test_a_video_that_is_cut_off_is_told_and_named(videos, run, tmp_path, capsys):
    whole, out = (videos / "v0.mp4").read_bytes(), tmp_path / "p.json"
    movable = tmp_path / "v.mp4"
    with (
        av.open(str(videos / "v0.mp4")) as source,
        av.open(str(movable), "w", options={"movflags": "faststart"}) as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    cut = movable.read_bytes()[: len(movable.read_bytes()) * 2 // 3]
    assert 0 < len(cut) < len(whole)
    movable.write_bytes(cut)
    assert main(["predict", str(run), str(movable), "--window", "1", "--json", str(out)]) == 1
    content, told = json.loads(out.read_text()), capsys.readouterr()
    assert content["about"]["broken"] == [] and {row["id"] for row in content["about"]["damaged"]} == {"v.mp4"}
    assert "cut off" in content["about"]["damaged"][0]["reason"] and "read in part: v.mp4: the file is cut" in told.err
    assert 1 < content["predictions"][-1]["stop_seconds"] < 3 and "cannot be read" not in told.err


def test_given_times_that_cannot_be_seen_are_told_by_id(videos, run, tmp_path):
    times, out = tmp_path / "times.csv", tmp_path / "p.json"
    name = tmp_path / "v0.mp4"
    name.symlink_to(videos / "v0.mp4")
    times.write_text(
        f"path,start_seconds,stop_seconds,id\n{name},1,2,one\n{name},500,501,late\n{tmp_path}/no.mp4,1,2,no\n"
    )
    assert main(["predict", str(run), "--segments", str(times), "--json", str(out), "--quiet"]) == 1
    content = json.loads(out.read_text())
    assert [row["id"] for row in content["predictions"]] == ["v0.mp4#one"]
    assert content["about"]["task"] == {"kind": "recognition"}  # nothing of what it does not use
    told = {(row["video"], row["id"]) for row in content["about"]["broken"]}
    assert told == {("v0.mp4", "v0.mp4#late"), ("no.mp4", "no.mp4#no")}


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are Unicode there")
def test_names_that_are_no_text_cost_nothing(videos, run, tmp_path):
    strange = os.fsencode(tmp_path) + b"/v\xff.mp4"
    os.symlink(os.fsencode(videos / "v0.mp4"), strange)
    (tmp_path / "w.mp4").symlink_to(videos / "v0.mp4")
    call = ["predict", run, tmp_path, "--window", "2", "--top", "1", "--json", tmp_path / "p.json", "--csv"]
    done = subprocess.run(
        [sys.executable, "-m", "actionfuse.cli", *map(str, call), str(tmp_path / "p.csv")],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"v\\udcff.mp4\n" in done.stdout and b"w.mp4\n" in done.stdout
    rows = (tmp_path / "p.csv").read_bytes().splitlines()
    assert sum(row.startswith(b"v\xff.mp4,") for row in rows) == sum(row.startswith(b"w.mp4,") for row in rows) > 0
    assert {row["video"] for row in json.loads((tmp_path / "p.json").read_text())["predictions"]} == {
        "v\udcff.mp4",
        "w.mp4",
    }


@pytest.mark.parametrize("how", ["recorded", "live"])
def test_it_shows_that_it_lives(videos, run, tmp_path, monkeypatch, how):
    monkeypatch.setenv(heartbeat.VARIABLE, str(tmp_path / "beat"))
    monkeypatch.setattr(heartbeat, "EVERY_SECONDS", 0.0)
    beats = []
    monkeypatch.setattr(heartbeat.Path, "touch", lambda path: beats.append(path))
    video = [str(videos / "v1.mp4")] if how == "recorded" else ["--live", str(videos / "v1.mp4")]
    assert main(["predict", str(run), *video, "--quiet"]) == 0
    assert len(beats) > (20 if how == "live" else 1)


def test_the_overlay_is_the_video_with_text(videos, ahead, run, tmp_path):
    out = tmp_path / "seen.mp4"
    assert main(["predict", str(ahead), str(videos / "v0.mp4"), "--overlay", str(out), "--quiet"]) == 0
    with open_video(out) as reader, open_video(videos / "v0.mp4") as original:
        assert reader.info.num_frames == original.info.num_frames == 100
        assert reader.info.duration_seconds == pytest.approx(original.info.duration_seconds, abs=0.05)
        drawn, plain = (each.frames_at([0.1, 3.9], 240).data.astype(int) for each in (reader, original))
    assert np.abs(drawn[:, 120:, 240:] - plain[:, 120:, 240:]).mean() < 6  # a corner without a panel
    assert np.abs(drawn[:, :20, :100] - plain[:, :20, :100]).mean() > 20
    several = tmp_path / "several"
    call = ["predict", str(run), str(videos / "v0.mp4"), str(videos / "v1.mp4"), "--window", "2", "--quiet"]
    assert main([*call, "--overlay", str(several)]) == 0
    assert sorted(path.name for path in several.iterdir()) == ["v0.mp4", "v1.mp4"]


def test_a_frame_shows_what_is_told_of_its_moment():
    def row(start, stop, action=None):
        return predictions.Prediction("v", "i", start, stop, {}, action)

    windows = [row(0, 2), row(1, 3), row(2, 4)]
    assert [shown_at(windows, t) for t in (0.5, 1.4, 1.8, 3.9)] == [windows[0], windows[0], windows[1], windows[2]]
    assert shown_at(windows, 4.0) is None
    moments = [row(0, 1, 2), row(0, 2, 3)]
    assert [shown_at(moments, t) for t in (0.9, 1.0, 5.0)] == [None, moments[0], moments[1]]


# --- live


@pytest.mark.parametrize("kind", ["recognition", "anticipation"])
def test_live_says_of_a_file_what_is_said_of_the_recording(videos, run, ahead, tmp_path, kind, capsys):
    folder = run if kind == "recognition" else ahead
    words = ["--window", "1", "--stride", "0.5"] if kind == "recognition" else ["--stride", "0.5"]
    video = str(videos / "v1.mp4")
    assert main(["predict", str(folder), video, *words, "--json", str(tmp_path / "a.json"), "--quiet"]) == 0
    overlay = tmp_path / "live.mp4"
    call = ["predict", str(folder), "--live", video, *words, "--json", str(tmp_path / "b.json"), "--quiet"]
    assert main([*call, "--overlay", str(overlay)]) == 0
    recorded, streamed = rows_of(tmp_path / "a.json"), rows_of(tmp_path / "b.json")
    assert len(streamed) == len(recorded) == (7 if kind == "recognition" else 8)
    for one, two in zip(recorded, streamed, strict=True):
        assert (one["start_seconds"], one["stop_seconds"]) == (two["start_seconds"], two["stop_seconds"])
        for task, best in one["top"].items():
            names = {each["name"]: each["score"] for each in two["top"][task]}
            assert names == {each["name"]: pytest.approx(each["score"], abs=1e-5) for each in best}
    about = json.loads((tmp_path / "b.json").read_text())["about"]
    assert about["frames"] == 100 and about["dropped_frames"] == about["skipped_moments"] == 0
    assert len(about["latency_seconds"]) == len(streamed) and min(about["latency_seconds"]) > 0
    # a window (or tau_o) of a second, a stride, and two frames more
    assert about["ring_frames"] <= 25 + 12.5 + 4
    assert "latency" in capsys.readouterr().err
    with open_video(overlay) as reader:
        assert reader.info.num_frames == 100


def test_the_ring_keeps_the_last_seconds_and_no_more(tmp_path):
    path = write_counting_video(tmp_path / "long.mp4", 400)
    sizes = [Size(), Size(24)]
    with LiveSource(str(path), keep_up=False) as source:
        ring = RingReader("live", source.fps, 2.0, sizes)
        most = 0
        for item in source:
            ring.add(item.frame, item.pts_seconds)
            most = max(most, ring.nbytes)
    assert len(ring) == 50 and most <= 51 * (64 * 48 + 32 * 24) * 3
    assert ring.info.stop_seconds == pytest.approx(16) and ring.info.start_seconds == 0
    with open_video(path) as reader:
        times = [14.0, 14.03, 15.0, 15.97]
        for size in sizes:
            one, two = ring.frames_at(times, size), reader.frames_at(times, size)
            np.testing.assert_array_equal(one.data, two.data)
            np.testing.assert_array_equal(one.pts_seconds, two.pts_seconds)
    assert read_code(ring.frames_at([1.0], Size()).data[0]) == 350  # what is gone is the oldest that is held
    assert sum(len(frames) for (frames,) in ring.all_frames([Size()])) == 50
    with pytest.raises(ValueError, match="frames are kept at"):
        ring.frames_at([15.0], 17)


def test_a_source_that_keeps_up_drops_the_oldest_and_counts(tmp_path):
    path = write_counting_video(tmp_path / "long.mp4", 200)
    with LiveSource(str(path), keep_up=True, queue_frames=10) as source:
        source._thread.join()  # nobody takes a frame until all have come
        assert source.newest_seconds == pytest.approx(199 / 25)
        numbers = [read_code(item.frame.to_ndarray(format="rgb24")) for item in source]
    assert numbers == list(range(190, 200)) and source.dropped == 190


class Late:
    """A source of which ever more frames wait behind the one that is taken."""

    source, fps, keep_up, dropped, error, newest_seconds, sound = "late", 25.0, True, 0, None, math.inf, None

    def __init__(self, path):
        with LiveSource(str(path), keep_up=False) as source:
            self.items = list(source)

    def __iter__(self):
        return iter(self.items)


def test_moments_that_are_over_are_skipped_and_counted(videos, run):
    report = live.run_live(open_run(run), Late(videos / "v0.mp4"), window=1.0, stride=0.5)  # pyright: ignore[reportArgumentType]
    assert report.skipped_moments == 6 and report.frames == 100
    assert [row.stop_seconds for row in report.predictions] == [4.0]  # the stream's last one


def test_a_stream_may_be_cut_after_some_seconds(videos, run):
    with LiveSource(str(videos / "v0.mp4"), keep_up=False) as source:
        report = live.run_live(open_run(run), source, window=1.0, stride=0.5, seconds=2.1, keep=1)
    assert report.frames == 53 and len(report.predictions) == len(report.latency_seconds) == 1
    assert report.predictions[0].stop_seconds == 2.0


def test_what_is_no_stream_is_told(tmp_path, run, capsys):
    broken = make_broken("noise", tmp_path)
    with pytest.raises(VideoError, match="cannot be opened as a stream"):
        LiveSource(str(broken))
    assert main(["predict", str(run), "--live", str(broken)]) == 1
    assert "noise.mp4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--window", "0"], "--window is 0.0; it must be positive"),
        (["--top", "0"], "--top is 0"),
        (["--segments", "x.txt"], "it is a .csv"),
        (["--beside", "depth"], "write STREAM=PATTERN"),
        (["--live", "x.mp4"], "--live is one source"),
        (["optim.lr=1"], "optim.lr cannot be changed"),
    ],
)
def test_wrong_calls_are_told(videos, run, capsys, words, said):
    assert main(["predict", str(run), str(videos / "v0.mp4"), *words]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_run_on_features_says_what_is_missing(videos, ahead, tmp_path, capsys):
    root = write_toy(tmp_path / "toy")
    folder = make_run(tmp_path / "run", toy_recipe(root))
    assert main(["predict", str(folder), str(videos / "v0.mp4")]) == 2
    assert re.search("stored features of rgb, flow: the backbones that made them", capsys.readouterr().err)
    assert main(["predict", str(ahead), str(videos / "v0.mp4"), "--window", "1"]) == 2
    assert "task.tau_o" in capsys.readouterr().err
    assert predict.parse_beside(["depth={folder}/{stem}.png"]) == {"depth": "{folder}/{stem}.png"}
