"""How far a run is: told while a long video is under way, not only when it is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from videos import write_counting_video

from actionfuse.backbones import create_backbone
from actionfuse.extract import engine as engines
from actionfuse.extract.events import Finished, Underway
from actionfuse.extract.plan import ClipPlan
from actionfuse.extract.progress import Report
from actionfuse.extract.runner import Runner
from actionfuse.extract.sinks import MemorySink
from actionfuse.pipeline.inputs import VideoInput

PLAN = ClipPlan(name="x", stream="rgb", frames=1, stride=1, fps=None, resize_side=360, crop=360)


def test_a_video_under_way_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "TELL_SECONDS", 0.0)
    # frames of 0.4 MB: several messages of 4 MB
    path = write_counting_video(tmp_path / "long.mp4", 50, (640, 360), 25)
    runner = Runner(PLAN, create_backbone("tsn:test_resnet"), device=torch.device("cpu"))
    video = VideoInput(str(path), "long.mp4")
    engine = engines.Engine([video], [runner], MemorySink(["x"]), batch_clips=[4], workers=1, compute_threads=1)
    *told, last = engine.run()
    assert isinstance(last, Finished) and len(told) >= 3
    assert all(isinstance(event, Underway) and event.key == "long.mp4" for event in told)
    shares = [event.share for event in told]
    assert shares == sorted(shares) and 0 < shares[0] < 0.5 and shares[-1] <= 1
    assert [event.seconds for event in told] == pytest.approx([2 * share for share in shares])


def test_the_log_counts_what_is_under_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("actionfuse.extract.progress.LOG_EVERY_SECONDS", -1.0)
    report = Report(2)
    report._began -= 100.0
    report.step()
    assert capsys.readouterr().err == "0 of 2 videos, 0.0 s of video/s\n"
    report.underway["a"] = 50.0, 0.5
    report.step()
    assert capsys.readouterr().err == "0.5 of 2 videos, 0.5 s of video/s, about 0:05:00 left\n"
