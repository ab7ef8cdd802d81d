"""Live: sound as in the recording, and hidden states that go on, against the whole sequence at once."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from toy_videos import ANTICIPATION, VIDEOS, video_recipe
from videos import write_counting_video

from actionfuse.cli import main
from actionfuse.pipeline import open_video
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.audio import AudioReader
from actionfuse.pipeline.protocols import Anticipation, Recognition
from actionfuse.pipeline.running import LiveSource
from actionfuse.pipeline.video import Size
from actionfuse.train import live
from actionfuse.train.build import build_dataset, build_model, load_split
from actionfuse.train.carry import pace_of
from actionfuse.train.model import config_of, save_model
from actionfuse.train.recipe import dump_recipe
from actionfuse.train.runs import open_run

SOUND = {"backbone": "tsn:test_resnet", "weights": "random", "clip": {"frames": 3, "fps": 8, "crop": 32}}
LSTM = {"name": "mmixer", "options": {"width": 16, "unit": "lstm"}}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for n in range(VIDEOS):
        write_counting_video(root / f"v{n}.mp4", 150, first_number=1000 * n, audio=True)
    return root


def make_run(folder, recipe):
    torch.manual_seed(3)
    model = build_model(recipe, load_split(recipe, "train").classes).eval()
    for parameter in model.head.parameters():
        parameter.data.normal_(std=0.3)  # so that the state counts
    save_model(model, folder, config_of(model))
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder


def rows_of(path):
    return json.loads(path.read_text())["predictions"]


def same_rows(recorded, streamed):
    assert [(r["start_seconds"], r["stop_seconds"]) for r in streamed] == [
        (r["start_seconds"], r["stop_seconds"]) for r in recorded
    ]
    for one, two in zip(recorded, streamed, strict=True):
        for task, best in one["top"].items():
            names = {each["name"]: each["score"] for each in two["top"][task]}
            assert names == {each["name"]: pytest.approx(each["score"], abs=1e-5) for each in best}


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_the_sound_that_is_held_is_that_of_the_file(videos, rate):
    path = str(videos / "v0.mp4")
    with LiveSource(path, keep_up=False, listen=True) as source:
        sound = source.sound
        assert sound is not None
        sound.seconds = 3.0
        most = 0
        for _ in source:
            most = max(most, sound.nbytes)
        assert source.heard_seconds == math.inf
    assert most <= (3.0 + 0.2) * 16_000 * 4
    with AudioReader(path) as recorded:
        for start, stop in ((4.2, 5.1), (5.0, 6.5)):
            one, two = sound.read(start, stop, rate), recorded.read(start, stop, rate)
            np.testing.assert_array_equal(one.valid, two.valid)
            np.testing.assert_allclose(one.samples, two.samples, atol=1e-6)


@pytest.mark.parametrize("kind", ["recognition", "anticipation", "sound alone"])
def test_live_hears_what_the_recording_holds(videos, tmp_path, kind):
    changes = ANTICIPATION if kind == "anticipation" else {}
    recipe = video_recipe(videos, **changes, streams__audio=SOUND)
    if kind == "sound alone":
        recipe = video_recipe(videos, streams={"audio": SOUND})
    folder, video = make_run(tmp_path / "run", recipe), str(videos / "v1.mp4")
    words = ["--stride", "0.5", *(["--window", "1"] if kind != "anticipation" else []), "--quiet"]
    assert main(["predict", str(folder), video, *words, "--json", str(tmp_path / "a.json")]) == 0
    assert main(["predict", str(folder), "--live", video, *words, "--json", str(tmp_path / "b.json")]) == 0
    same_rows(rows_of(tmp_path / "a.json"), rows_of(tmp_path / "b.json"))


def test_a_silent_source_is_told(videos, tmp_path, capsys):
    folder = make_run(tmp_path / "run", video_recipe(videos, streams__audio=SOUND))
    silent = write_counting_video(tmp_path / "silent.mp4", 50)
    words = ["--window", "1", "--quiet"]
    assert main(["predict", str(folder), str(silent), *words, "--json", str(tmp_path / "a.json")]) == 0
    assert main(["predict", str(folder), "--live", str(silent), *words, "--json", str(tmp_path / "b.json")]) == 0
    assert "the source has no sound" in capsys.readouterr().err
    same_rows(rows_of(tmp_path / "a.json"), rows_of(tmp_path / "b.json"))


def test_frames_wait_for_late_sound_but_not_for_ever(videos, tmp_path):
    run = open_run(make_run(tmp_path / "run", video_recipe(videos, streams__audio=SOUND)))

    class Deaf(LiveSource):
        """Its sound stays behind."""

        @property
        def heard_seconds(self):
            return 0.0

    with Deaf(str(videos / "v0.mp4"), keep_up=False, listen=True) as source:
        report = live.run_live(run, source, window=1.0, stride=0.5)
    assert len(report.predictions) == 11 and report.predictions[-1].stop_seconds == 6.0
    assert report.ring_frames <= 25 * (1 + 0.5 + 0.64 + 0.05 + 2.0) + 4


# --- hidden states

RGB = {"frames": 4, "fps": 8, "side": 48, "crop": 48}
CARRIED = {
    # rule, further changes, seconds between entries, when the entries that are seen at t lie before t
    "segments": ({"sampling__rule": "segments"}, 0.125),
    "strided": ({"sampling__rule": "strided"}, 0.125),
    "last": ({**ANTICIPATION, "sampling__rule": "last"}, 0.125),
}


@pytest.mark.parametrize(("kind", "unit"), [("segments", "lstm"), ("strided", "gru"), ("last", "lstm")])
def test_a_state_that_goes_on_says_what_the_whole_says(videos, tmp_path, kind, unit):
    changes, step = CARRIED[kind]
    head = {"name": "mmixer", "options": {"width": 16, "unit": unit}}
    recipe = video_recipe(videos, **{"streams__rgb__clip": RGB, "head": head, **changes})
    run = open_run(make_run(tmp_path / "run", recipe))
    # the whole sequence at once, as training would see a segment of this length
    whole = video_recipe(videos, **{"streams__rgb__clip": {**RGB, "frames": 40}, "head": head, **changes})
    split = load_split(whole, "test")
    task = Anticipation(tau_a=0.5, tau_o=5.0) if kind == "last" else Recognition()
    sample = build_dataset(whole, split, run.model, task, training=False).sample(
        Segment("v2", 5.5, 6.0, "x") if kind == "last" else Segment("v2", 0.0, 5.0, "x")
    )
    clip = sample.streams["rgb"]
    for stride in (None, 4 * step):
        with LiveSource(str(videos / "v2.mp4"), keep_up=False) as source:
            report = live.run_live(run, source, stride=stride, seconds=5.1, top=3)
        chunk = 1 if stride is None else 4
        assert report.carried and len(report.predictions) == 40 // chunk
        for k, row in enumerate(report.predictions, 1):
            assert (row.start_seconds, row.stop_seconds) == (0.0, pytest.approx(k * chunk * step))
            with torch.inference_mode():
                logits = run.model({"rgb": clip[None, : k * chunk]}).logits
            for task_name, scores in logits.items():
                told = {each["class"]: each["score"] for each in row.top[task_name]}
                expected = scores[0].softmax(0)
                assert [told[c] for c in range(len(expected))] == pytest.approx(expected.tolist(), abs=1e-5)


def test_clips_of_networks_that_mix_frames_follow_one_another(videos, tmp_path):
    clip = {"frames": 4, "fps": 8, "side": 48, "crop": 48}
    recipe = video_recipe(
        videos, streams__rgb={"backbone": "tsm:test_resnet", "weights": "random", "clip": clip}, head=LSTM
    )
    run = open_run(make_run(tmp_path / "run", recipe))
    with LiveSource(str(videos / "v2.mp4"), keep_up=False) as source:
        report = live.run_live(run, source, top=3)
    assert [row.stop_seconds for row in report.predictions] == [0.5 * k for k in range(1, 13)]
    with open_video(videos / "v2.mp4") as reader:
        frames = reader.frames_at([(i + 0.5) / 8 for i in range(48)], Size(48)).data
    left = (frames.shape[2] - 48) // 2
    clips = torch.from_numpy(np.ascontiguousarray(frames[:, :, left : left + 48])).unflatten(0, (12, 4))
    with torch.inference_mode():
        maps = torch.cat([run.model.encode("rgb", each[None]) for each in clips], 2)
        logits = run.model.head({"rgb": maps}).logits["noun"][0]
    told = {each["class"]: each["score"] for each in report.predictions[-1].top["noun"]}
    assert [told[c] for c in range(3)] == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)


def test_memory_does_not_grow_with_the_stream(videos, tmp_path):
    """Pictures, flow and sound: what is held after 9 s is held after 13 s as well."""
    flow = {"backbone": "tsn:test_resnet", "weights": "random", "options": {"flow_stack": 2}}
    flow["clip"] = {"frames": 2, "fps": 4, "side": 32, "crop": 32, "flow_method": "farneback"}
    sound = {**SOUND, "clip": {**SOUND["clip"], "frames": 2}}
    recipe = video_recipe(videos, streams__rgb__clip=RGB, streams__flow=flow, streams__audio=sound, head=LSTM)
    run = open_run(make_run(tmp_path / "run", recipe))
    held = []
    for seconds in (9, 13):
        path = write_counting_video(tmp_path / f"{seconds}.mp4", 25 * seconds, audio=True)
        with LiveSource(str(path), keep_up=False, listen=True, queue_frames=8) as source:
            report = live.run_live(run, source, keep=4)
        assert report.carried and report.frames == 25 * seconds and len(report.predictions) == 4
        held.append((report.ring_frames, report.ring_bytes))
    (frames, size), (frames_later, size_later) = held
    assert frames == frames_later and size_later <= size * 1.01
    pace = pace_of(run, report_info(path), None, None)
    assert (pace.seconds, pace.stride) == (0.5, 0.25)


def report_info(path):
    with open_video(path) as reader:
        return reader.info


def test_the_command_says_what_is_looked_at(videos, tmp_path, capsys):
    video = str(videos / "v0.mp4")
    mcu = {"name": "mmixer", "options": {"width": 16, "content": "self"}}
    folder = make_run(tmp_path / "mcu", video_recipe(videos, streams__rgb__clip=RGB, head=mcu))
    call = ["--live", video, "--quiet", "--live-seconds", "2"]
    assert main(["predict", str(folder), *call]) == 0
    assert "the last 0.5 s are looked at, every 0.25 s: mmixer looks at whole sequences" in capsys.readouterr().err
    assert main(["predict", str(folder), *call, "--state", "carry"]) == 2
    assert "no hidden state can be carried: mmixer looks at whole" in capsys.readouterr().err
    folder = make_run(tmp_path / "lstm", video_recipe(videos, streams__rgb__clip=RGB, head=LSTM))
    assert main(["predict", str(folder), *call]) == 0
    assert "the hidden state of mmixer goes on, every 0.125 s" in capsys.readouterr().err
    assert main(["predict", str(folder), *call, "--state", "window"]) == 0
    assert "the last 0.5 s are looked at, every 0.25 s: as asked" in capsys.readouterr().err
    assert main(["predict", str(folder), *call, "--stride", "0.3"]) == 2
    assert "take a multiple of 0.125 s, up to 0.5 s, or --state window" in capsys.readouterr().err
    assert main(["predict", str(folder), video, "--state", "carry"]) == 2
    assert "belong to --live" in capsys.readouterr().err
