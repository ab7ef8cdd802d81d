"""actionfuse report: valid html with all sections, which loads nothing; videos that play; numbers of evaluate."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import av
import numpy as np
import pytest
import torch
from toy_training import toy_recipe, write_toy
from toy_videos import ANTICIPATION, video_recipe
from videos import read_code

from actionfuse.cli import main
from actionfuse.fusion import Output
from actionfuse.pipeline.datasets.contract import DATASETS, Dataset, load_dataset, register
from actionfuse.pipeline.protocols import Anticipation, Recognition
from actionfuse.train.batches import Batch
from actionfuse.train.charts import line_chart, matrix, share_bars, ticks, timeline
from actionfuse.train.engine import Trainer
from actionfuse.train.many_labels import class_table, mixed_up, said_of, told_classes
from actionfuse.train.members import Member, Observed
from actionfuse.train.report import Looked, Told
from actionfuse.train.scores import ScoreTable
from actionfuse.train.sections import _alone, clip_of

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


if "toy_homes" not in DATASETS:

    @register("toy_homes", splits=("train", "test"), paper="", source="", licence="", layout="")
    def read_toy_homes(root, split: str, *, parts: bool = False) -> Dataset:
        """toy_videos with several labels a segment, or with `parts` an action made of verb and noun."""
        plain = load_dataset("toy_videos", root, split)
        if parts:
            names = tuple(f"{verb} {noun}" for verb in plain.classes["verb"] for noun in plain.classes["noun"])
            owners = {"verb": tuple(n // 3 for n in range(6)), "noun": tuple(n % 3 for n in range(6))}
            segments = [
                replace(s, labels={**s.labels, "action": s.labels["verb"] * 3 + s.labels["noun"]})  # pyright: ignore
                for s in plain.segments
            ]
            return replace(
                plain, segments=tuple(segments), classes={**plain.classes, "action": names}, parts={"action": owners}
            )
        labels = ((0, 2), (1,), (0, 1, 3), ())
        segments = [
            replace(s, labels={"action": labels[n % 4]} if labels[n % 4] else {}) for n, s in enumerate(plain.segments)
        ]
        return replace(plain, segments=tuple(segments), classes={"action": ("hold", "sit", "eat <x>", "read")})


def test_several_labels_a_segment(videos, tmp_path):
    """Charades: average precision of each class, what is told where something was missed, clips with their classes."""
    head = {"name": "mmixer", "options": {"width": 8, "content": "self"}}
    recipe = video_recipe(videos, data__dataset="toy_homes", loss={"kind": "bce"}, head=head, run__monitor="action/mAP")
    results = Trainer(recipe, tmp_path, quiet=True).run()
    page = page_of(tmp_path, "--show", "2")
    assert list(page.sections) == SECTIONS
    classes = page.sections["classes"]
    assert f"mAP {100 * results['action/mAP']:.1f} % over 4 classes" in classes and "eat <x>" in classes
    assert "AP by chance" in classes and "mAP" in page.sections["results"]
    # the unimodal classifier of the only stream is scored as the whole is, by mAP
    assert re.search(r"action, mAP\s*rgb", page.sections["results"])
    assert "told instead, % of the missed" in page.sections["confusion"]
    clips = page.sections["clips"]
    # of four segments one has no label: it is neither best nor worst
    assert "test-2-3" not in clips and "test-2-" in clips and len([t for t, _ in page.tags if t == "video"]) == 2
    assert "less the best of the others" in clips and ("missed" in clips or "wrong" in clips)
    assert "No task has one label a segment" in page.sections["timeline"]


def test_average_precisions_and_mix_ups_by_hand():
    scores = np.array([[0.9, 0.1, 0.3], [0.4, 0.8, 0.2], [0.7, 0.6, 0.9], [0.95, 0.2, 0.8]])
    labels = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    whole = ScoreTable(("a", "b", "c", "d"), {"x": scores}, {"x": labels.astype(bool)}, np.zeros(4, bool))
    text = re.sub(r"<[^>]+>", " ", class_table(whole, "x", lambda n: f"class{n}"))
    # the last one has no label and ranks behind all: class 0 then is perfect, class 2 is found second
    found = {name: float(value) for name, value in re.findall(r"(class\d)\s+\d\s+([\d.]+)", text)}
    assert found == {"class0": 100.0, "class1": 100.0, "class2": 50.0}
    assert told_classes(scores, labels).tolist() == [
        [True, False, True], [False, True, False], [True, False, True], [False, False, False]
    ]  # fmt: skip
    assert said_of(scores[2], labels[2], str) == (["0"], ["1"], ["2"])
    together = matrix_of(mixed_up(whole, "x", str, 5))
    assert together == ["2 told where 1 was missed: 1 of 1"]


def matrix_of(text):
    return re.findall(r"\w+ told where \w+ was missed: \d+ of \d+", text)


def test_verbs_and_nouns_of_actions_that_no_classifier_tells(videos, tmp_path):
    """Labels of actions are there for factorised scores; clips and time lines go by verb and noun."""
    recipe = video_recipe(
        videos, data__dataset="toy_homes", data__options={"parts": True}, data__tasks=["verb", "noun"],
        run__monitor="action_factorised/top1_accuracy",
    )  # fmt: skip
    Trainer(recipe, tmp_path, quiet=True).run()
    page = page_of(tmp_path)
    assert "action_factorised" in page.sections["results"]
    assert "by the scores of verb times noun" in page.sections["clips"]
    assert {"verb came", "verb predicted", "noun came", "noun predicted"} <= set(
        re.findall(r"(?:verb|noun) (?:came|predicted)", page.sections["timeline"])
    )


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


def test_a_task_is_told_over_the_segments_that_have_its_label():
    ids, rng = tuple("abcd"), np.random.default_rng(0)
    scores = {"verb": rng.normal(size=(4, 3)), "noun": rng.normal(size=(4, 2))}
    labels = {"verb": np.array([0, -100, 1, -100]), "noun": np.array([-100, 1, -100, -100])}
    classes = {"verb": ("cut", "mix", "wash"), "noun": ("pan", "egg")}
    member = Member("run", "toy", "test", classes, {"": Observed({}, ScoreTable(ids, scores, labels))})
    seen = Looked()
    seen.alone = {"rgb": {task: dict(zip(ids, of, strict=True)) for task, of in scores.items()}}
    told = Told(run=None, member=member, split=None, seen=seen, show=1)  # pyright: ignore[reportArgumentType]
    assert {task: table.ids for task, table in told.by_task.items()} == {"verb": ("a", "c"), "noun": ("b",)}
    best = {task: of.argmax(1) == labels[task] for task, of in scores.items()}
    said = [f"{100 * share:.1f}" for share in (best["verb"][[0, 2]].mean(), best["noun"][1])]
    page = Page(f"<section id='x'>{_alone(told)}</section>").sections["x"]
    assert re.findall(r"[\d.]+", page.split("rgb")[1].split("fused")[0]) == said
    assert page.count(said[0]) >= 2  # the same of all streams, which are one
    assert {row.name: row.value for row in member.results()}["verb/top1_accuracy"] == best["verb"][[0, 2]].mean()


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
