"""actionfuse report: valid html with all sections, which loads nothing; videos that play; numbers of evaluate."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import av
import numpy as np
import pytest
import torch
from toy_training import toy_recipe, write_toy
from toy_videos import ANTICIPATION, video_recipe, write_videos
from videos import read_code

from actionfuse.cli import main
from actionfuse.fusion import Output
from actionfuse.pipeline.datasets.contract import load_dataset
from actionfuse.pipeline.protocols import Anticipation, Recognition
from actionfuse.train.batches import Batch
from actionfuse.train.charts import line_chart, matrix, share_bars, ticks, timeline
from actionfuse.train.engine import Trainer
from actionfuse.train.report import Looked
from actionfuse.train.sections import clip_of

SECTIONS = ["results", "curves", "classes", "confusion", "shares", "clips", "timeline", "recipe"]
VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """Reads a page; tags must close in the order in which they opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections[dict(attrs)["id"]] = ""

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "section" in self.open:
            name = list(self.sections)[-1]
            self.sections[name] += data


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


def page_of(run, *words):
    assert main(["report", str(run), "--quiet", *words]) in (0, 1)
    return Page((run / "report.html").read_text())


def test_a_report_holds_everything_and_loads_nothing(videos, tmp_path):
    recipe = video_recipe(videos, **ANTICIPATION, data__max_broken_share=0.5, run__epochs=2)
    Trainer(recipe, tmp_path, quiet=True).run()
    page = page_of(tmp_path)
    assert list(page.sections) == SECTIONS
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object")
        assert attributes.get("poster", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:video/mp4;base64,")), (tag, attributes)
    text = (tmp_path / "report.html").read_text()
    assert "http" not in text and "url(" not in text and "@import" not in text
    # what the classes are called is text, not tags
    assert "put <in>" in page.sections["classes"] and "take" in page.sections["confusion"]
    assert "top1 accuracy" in page.sections["results"] and "verb@tau_a=0.25" in page.sections["results"]
    assert "1 segments could not be read: test-2-0" in page.sections["results"]
    assert "backbone: tsn:test_resnet" in page.sections["recipe"]
    assert "observed" in page.sections["timeline"] and "nothing at or after 1.50 s is seen" in page.sections["timeline"]
    assert "seen before" in page.sections["timeline"] and "epoch" in page.sections["curves"]
    best = json.loads((tmp_path / "best" / "metrics.json").read_text())["results"]
    value = f"{100 * best['verb/top1_accuracy']:.1f}"
    assert re.search(rf"verb\s*{value}", page.sections["results"])
    clips = [attributes["src"] for tag, attributes in page.tags if tag == "video"]
    assert len(clips) == 2  # of three segments one best, one worst
    for source in clips:
        with av.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as video:
            assert sum(1 for _ in video.decode(video=0)) >= 10


def test_shares_of_the_head_and_segments_without_video(tmp_path):
    root = write_toy(tmp_path / "toy")
    for head, told in {
        "mimo": "attention/verb, by verb",
        "mif_parallel": "Attention between steps",
        "concat": "shows no shares",
    }.items():
        options = {"width": 8, "heads": 2} if head != "concat" else {}
        recipe = toy_recipe(root, run__epochs=1, head={"name": head, "options": options}, optim__ema=0.0)
        Trainer(recipe, tmp_path / head, quiet=True).run()
        page = page_of(tmp_path / head, "--show", "1")
        assert told in page.sections["shares"]
        assert page.sections["clips"].count("no video to show") == 2
        if head == "mimo":
            assert "rgb" in page.sections["shares"] and "w, flow: 0." in page.sections["shares"]


def test_clips_show_what_is_seen_and_what_comes(videos):
    split = load_dataset("toy_videos", videos, "test")
    segment = split.segments[2]  # [2, 3)

    def frames(observation, **options):
        with av.open(io.BytesIO(clip_of(split, segment, observation, **options))) as video:
            return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]

    plain = frames(Recognition().observe(2.0, 3.0))
    assert len(plain) == 10 and plain[0].shape == (48, 64, 3)
    ahead = frames(Anticipation(tau_a=0.5, tau_o=1.0).observe(2.0, 3.0))
    assert len(ahead) == 25  # [0.5, 3)
    bars = [frame[1:4, 40:60].mean((0, 1)) for frame in ahead]
    phases = [
        int(np.argmin([np.abs(bar - c).sum() for c in [(40, 110, 190), (130,) * 3, (230, 140, 40)]])) for bar in bars
    ]
    assert phases == [0] * 10 + [1] * 5 + [2] * 10
    unboxed = load_dataset("toy_videos", videos, "test")
    object.__setattr__(unboxed, "boxes", None)
    with av.open(io.BytesIO(clip_of(unboxed, segment, Recognition().observe(2.0, 3.0)))) as video:
        bare = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert read_code(bare[0]) == 2050
    differs = np.abs(plain[0].astype(int) - bare[0]).sum(-1) > 60
    assert differs[10, 14:38].mean() > 0.5 and differs[40:, :].mean() < 0.1  # the upper edge of the box, and below it


def test_views_of_a_segment_are_averaged():
    seen = Looked()
    batch = Batch(["a", "b"], {}, {}, None, {}, {})
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75], [0.75, 0.25]])
    output = Output({}, auxiliary={"unimodal/rgb": {"verb": torch.zeros(4, 2)}}, extras={"modality_weights": weights})
    seen.look(batch, output)
    np.testing.assert_allclose(seen.extras["modality_weights"]["a"], [0.5, 0.5])
    assert seen.alone["rgb"]["verb"].keys() == {"a", "b"}


def test_charts_are_whole_and_escape_what_they_are_told():
    pieces = [
        line_chart({"<a>": [(0, 0.5), (1, float("nan")), (2, 0.7)]}, x_label="x", title="&t", percent=True, marks=True),
        matrix(np.array([[1.0, np.nan], [0.5, 0.5]]), ["<r>", "s"], ["c", "d"], title="m", row_label="t"),
        share_bars([("<all>", [0.2, 0.5]), ("none", [float("nan"), 0.0])], ["rgb", "flow"], title="s"),
        timeline([("came", [(0.0, 1.0, "red", "<tip>")])], title="v", marks=[(0.5, "<m>")]),
    ]
    for piece in pieces:
        Page(piece)
        assert not re.search(r"<(a|r|all|tip|m)>", piece) and "nan" not in piece
    assert line_chart({"a": []}, x_label="x", title="t") == "" and timeline([("a", [])], title="t") == ""
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0]) and ticks(3, 3) == [3]


def test_a_wrong_call_is_told(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no model" in capsys.readouterr().err
