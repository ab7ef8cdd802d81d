"""Files of the synthetic kitchen: readable by the real readers, in step with the pictures, the same however made."""

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kitchen import tiny_kitchen

from actionfuse.cli import main
from actionfuse.pipeline import open_video
from actionfuse.pipeline.audio import read_audio
from actionfuse.pipeline.boxes import boxes_at
from actionfuse.pipeline.datasets import CARDS, LayoutError, load_dataset
from actionfuse.pipeline.synth.annotate import write_annotations
from actionfuse.pipeline.synth.choreography import CLIP_FPS, FPS, HEIGHT, WIDTH
from actionfuse.pipeline.synth.law import ACTION_NAMES, NOUNS, VERBS, KitchenLaw, facets
from actionfuse.pipeline.synth.make import make_kitchen, plan_kitchen
from actionfuse.pipeline.synth.render import Scene
from actionfuse.pipeline.synth.script import Plan, Size
from actionfuse.pipeline.synth.sound import SAMPLE_RATE_HZ, act_seconds, envelope

TINY = plan_kitchen("tiny", seed=0)
FEW = Size(
    train_videos=2, validation_videos=1, actions_per_video=2, participants=2, unseen_participants=0, histories=50
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_kitchen(tmp_path_factory)


def make_all(root: Path, plan: Plan, workers: int = 1):
    *_, progress = make_kitchen(root, plan, workers=workers)
    assert not progress.lost
    return progress


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A kitchen made by one process, and its plan."""
    folder = tmp_path_factory.mktemp("few") / "kitchen"
    plan = Plan(law=KitchenLaw(), size=FEW, seed=7)
    make_all(folder, plan)
    return folder, plan


# The same however made


def test_files_are_the_same_bit_for_bit_with_more_processes(few, tmp_path):
    folder, plan = few
    make_all(tmp_path, plan, workers=3)
    assert contents(tmp_path) == contents(folder)


def test_another_seed_is_another_kitchen(few):
    _, plan = few
    other = Plan(law=plan.law, size=plan.size, seed=8)
    assert write_annotations(plan)["EPIC_100_train.csv"] != write_annotations(other)["EPIC_100_train.csv"]
    scenes = [Scene(p.law, p.videos[0]) for p in (plan, other)]
    assert not np.array_equal(*(scene.rgb(scene.shot(0.0)) for scene in scenes))


@pytest.mark.skipif(os.name == "nt", reason="processes are killed in another way there")
def test_a_killed_call_is_resumed_and_leaves_the_same_files(few, tmp_path):
    folder, plan = few
    size = ", ".join(f"{name}={getattr(FEW, name)}" for name in FEW.__dataclass_fields__)
    # Ceilings, annotations and a video are done; another process is drawing the next one.
    code = (
        "import os, signal\n"
        "from actionfuse.pipeline.synth.make import make_kitchen\n"
        "from actionfuse.pipeline.synth.law import KitchenLaw\n"
        "from actionfuse.pipeline.synth.script import Plan, Size\n"
        f"plan = Plan(law=KitchenLaw(), size=Size({size}), seed=7)\n"
        f"for progress in make_kitchen({str(tmp_path)!r}, plan, workers=2):\n"
        "    if progress.done == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", code])
    assert process.returncode == -signal.SIGKILL
    progress = make_all(tmp_path, plan)
    assert progress.skipped >= 3
    assert contents(tmp_path) == contents(folder)


def test_a_lost_file_alone_is_made_again(few, tmp_path):
    folder, plan = few
    for name, data in contents(folder).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    lost = [tmp_path / "depth" / f"{plan.videos[1].id}.mp4", tmp_path / "truth.jsonl"]
    for path in lost:
        path.unlink()
    progress = make_all(tmp_path, plan)
    assert progress.skipped == progress.total - len(lost)
    assert contents(tmp_path) == contents(folder)


# The command


def test_a_dry_run_tells_and_makes_nothing(tmp_path, capsys):
    folder = tmp_path / "kitchen"
    assert main(["synth", str(folder), "--size", "tiny", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "9 videos" in told and "24 actions to train with" in told and "all streams" in told
    assert not folder.exists()


def test_the_command_finds_a_kitchen_made(root, capsys):
    before = contents(root)
    assert main(["synth", str(root), "--size", "tiny", "--workers", "1"]) == 0
    assert "0 of 11 jobs done, 11 done before" in capsys.readouterr().out
    assert contents(root) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "tiny", "--seed", "1"], "holds a kitchen of other settings (seed 0, now 1)"),
        (["--size", "tiny", "--seed", "-1"], "the seed is -1"),
        (["--size", "tiny", "--workers", "0"], "--workers is 0"),
    ],
)
def test_wrong_calls_are_told(root, capsys, words, told):
    assert main(["synth", str(root), *words]) == 2
    assert told in capsys.readouterr().err


def test_a_folder_of_other_things_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["synth", str(tmp_path), "--size", "tiny"]) == 2
    assert "holds files and no kitchen" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert main(["synth", str(tmp_path / "thesis.txt"), "--size", "tiny"]) == 2
    with pytest.raises(ValueError, match="no size 'huge'; there are tiny"):
        plan_kitchen("huge")


# Annotations and pictures


@pytest.mark.parametrize("annotations", ["official", "rulstm"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_reader_of_epic_kitchens_reads_it(root, split, annotations):
    found = load_dataset("epic_kitchens_100", root, split, annotations=annotations)
    truth = TINY.instances(split)
    assert [s.id for s in found.segments] == [i.id for i in truth]
    for segment, instance in zip(found.segments, truth, strict=True):
        assert (segment.start_seconds, segment.stop_seconds) == (instance.start_seconds, instance.stop_seconds) or (
            annotations == "rulstm"
            and abs(segment.start_seconds - instance.start_seconds) < 1 / 30
            and abs(segment.stop_seconds - instance.stop_seconds) < 1 / 30
        )
        labels = {"verb": instance.verb, "noun": instance.noun, "action": instance.action}
        assert segment.labels == labels
    assert found.classes["action"] == ACTION_NAMES
    assert (len(found.classes["verb"]), len(found.classes["noun"])) == (len(VERBS), len(NOUNS))
    assert not found.notes
    if split == "validation":
        assert found.subsets["unseen"] == {i.id for i in truth if i.video.startswith("P03")} != set()


def test_frame_numbers_and_time_stamps_agree(root):
    with open(root / "EPIC_100_train.csv", newline="") as file:
        for row in csv.DictReader(file):
            for end in ("start", "stop"):
                minutes, seconds = row[f"{end}_timestamp"].split(":")[1:]
                assert int(row[f"{end}_frame"]) == max(1, int((60 * int(minutes) + float(seconds)) * FPS))


def test_videos_are_as_long_and_as_fast_as_the_script_says(root):
    for video in TINY.videos[:3]:
        for stream, fps in (("videos", FPS), ("depth", CLIP_FPS), ("ir", CLIP_FPS)):
            with open_video(root / stream / f"{video.id}.mp4") as reader:
                assert (reader.info.width, reader.info.height, reader.info.codec) == (WIDTH, HEIGHT, "h264")
                assert reader.info.num_frames == round(video.duration_seconds * fps)
                assert reader.info.duration_seconds == pytest.approx(video.duration_seconds)
                assert reader.info.has_audio == (stream == "videos")


def test_hands_are_seen_in_actions_and_not_between(root):
    """In the decoded ir video, against the csv: a hand is the only thing that is warm, large and at the lower edge."""
    data = load_dataset("kitchen", root, "train")
    for segment in data.segments[:10]:
        middle = (segment.start_seconds + segment.stop_seconds) / 2
        with open_video(data.path(segment, "ir")) as reader:
            frames = reader.frames_at([segment.start_seconds - 1 / CLIP_FPS, middle, segment.stop_seconds]).data
        warm = [(frame[HEIGHT - 12 :, :, 0] > 90).sum() for frame in frames]
        assert warm[0] == 0 and warm[1] > 60 and warm[2] == 0


def test_decoded_frames_are_the_drawn_ones(root):
    video = TINY.videos[0]
    scene = Scene(TINY.law, video)
    for stream, fps, draw, tolerance in (
        ("videos", FPS, scene.rgb, 7),
        ("depth", CLIP_FPS, scene.depth, 2),
        ("ir", CLIP_FPS, scene.ir, 2),
    ):
        seconds = np.arange(5, 120, 17) / fps
        with open_video(root / stream / f"{video.id}.mp4") as reader:
            frames = reader.frames_at(seconds).data
        for frame, t in zip(frames, seconds, strict=True):
            drawn = draw(scene.shot(float(t))).reshape(HEIGHT, WIDTH, -1)
            assert np.abs(frame.astype(int) - drawn).mean() < tolerance
            other = draw(scene.shot(float(t) + 2 / fps)).reshape(HEIGHT, WIDTH, -1)
            if np.abs(other.astype(int) - drawn).mean() > tolerance:
                assert np.abs(frame.astype(int) - other).mean() > np.abs(frame.astype(int) - drawn).mean()


def test_sound_has_the_envelope_of_what_is_written(root):
    known, window = facets(TINY.law)["envelope"].symbols, 0.02
    for video in TINY.videos[:3]:
        for instance in video.instances:
            begin, end = act_seconds(TINY.law, instance)
            sound = read_audio(root / "videos" / f"{video.id}.mp4", begin, end, SAMPLE_RATE_HZ).samples
            count = int((end - begin) / window)
            pieces = sound[: round(count * window * SAMPLE_RATE_HZ)].reshape(count, -1)
            heard = np.sqrt((pieces**2).mean(1))
            t = (np.arange(pieces.size) + 0.5) / SAMPLE_RATE_HZ
            curves = [envelope(symbol, t).reshape(count, -1) for symbol in known]
            likeness = [
                float(heard @ rms / np.linalg.norm(heard) / np.linalg.norm(rms))
                for rms in (np.sqrt((curve**2).mean(1)) for curve in curves)
            ]
            assert int(np.argmax(likeness)) == instance.symbols["envelope"]
            assert max(likeness) > 0.95


def test_truth_holds_what_was_drawn(root):
    rows = [json.loads(line) for line in (root / "truth.jsonl").read_text().splitlines()]
    instances = [instance for video in TINY.videos for instance in video.instances]
    assert [row["id"] for row in rows] == [instance.id for instance in instances]
    for row, instance in zip(rows, instances, strict=True):
        symbols = {name: facets(TINY.law)[name].symbols[symbol] for name, symbol in instance.symbols.items()}
        assert row["symbols"] == symbols
        assert row["symbols"]["outline"] in row["symbols"]["surface"] or row["symbols"]["surface"] == NOUNS[row["noun"]]


# Boxes and splits


def test_the_reader_of_something_else_reads_it(root):
    with open(root / "splits.json") as file:
        clips = json.load(file)["clips"]
    for setting in ("compositional", "few_shot_base", "few_shot_5", "few_shot_10"):
        for part in ("train", "validation"):
            split = f"{setting}_{part}"
            found = load_dataset("something_else", root / "something_else", split)
            ours = TINY.subsets[split]
            assert [s.id for s in found.segments] == [clips[i.id] for i in ours] and ours
            for segment, instance in zip(found.segments, ours, strict=True):
                name = found.classes["action"][segment.labels["action"]]
                assert name[:3].lower() == VERBS[instance.verb][:3] and name.endswith(" something")
                assert found.path(segment).is_file()
            assert not found.notes
    assert len(found.classes["action"]) == 4


def test_a_clip_shows_its_action_and_its_boxes(root):
    video = TINY.videos[1]
    instance, scene = video.instances[1], Scene(TINY.law, video)
    found = load_dataset("something_else", root / "something_else", "compositional_train")
    tracks = found.boxes[str(instance.clip)]
    assert tracks.track_ids == ("0000", "hand") and tracks.categories.tolist() == [2, 1]
    with open_video(root / "something_else" / "videos" / f"{instance.clip}.mp4") as reader:
        assert reader.info.num_frames == round(instance.duration_seconds * CLIP_FPS)
        frames = reader.frames_at(tracks.seconds).data
    for at, t in enumerate(tracks.seconds):
        shot = scene.shot(instance.start_seconds + float(t))
        for box, present, truth in zip(
            tracks.boxes[at], tracks.present[at], (shot.object_box, shot.hand_box), strict=True
        ):
            assert present == (truth is not None)
            if truth is not None:
                assert box * (WIDTH, HEIGHT, WIDTH, HEIGHT) == pytest.approx(truth, abs=0.01)
        assert np.abs(frames[at].astype(int) - scene.rgb(shot)).mean() < 7


@pytest.mark.parametrize("split", CARDS["kitchen"].splits)
def test_the_kitchen_reads_every_split(root, split):
    data = load_dataset("kitchen", root, split)
    part = split.rsplit("_")[-1]
    expected = TINY.instances(split) if split == part else TINY.subsets[split]
    assert [segment.id for segment in data.segments] == [instance.id for instance in expected]
    for stream in ("rgb", "depth", "ir"):
        assert all(data.path(segment, stream).is_file() for segment in data.segments)
    assert set().union(*data.subsets.values()) <= {segment.id for segment in data.segments}


def test_boxes_of_the_kitchen_are_on_the_clock_of_the_video(root):
    data = pickle.loads(pickle.dumps(load_dataset("kitchen", root, "compositional_validation").boxes))
    for video in [video for video in TINY.videos if video.split == "validation"]:
        scene, tracks = Scene(TINY.law, video), data[video.id]
        asked = [i.start_seconds + n / CLIP_FPS for i in video.instances for n in (6, 12, 18)]
        found = boxes_at(tracks, [*asked, 1.0])
        for at, t in enumerate(asked):
            truth = (scene.shot(t).object_box, scene.shot(t).hand_box)
            assert found.boxes[at] * (WIDTH, HEIGHT, WIDTH, HEIGHT) == pytest.approx(np.array(truth), abs=0.01)
        assert not found.present[-1].any()
    assert set(data) == {video.id for video in TINY.videos if video.split == "validation"}


def test_a_kitchen_without_its_files_is_told(root, tmp_path):
    for path in root.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(LayoutError, match=r"splits\.json.*actionfuse synth"):
        load_dataset("kitchen", tmp_path, "train")
    (tmp_path / "splits.json").write_text('{"splits": {}, "clips": {}}')
    with pytest.raises(ValueError, match="nothing of 'few_shot_5_train'"):
        load_dataset("kitchen", tmp_path, "few_shot_5_train", boxes=False)
    assert load_dataset("kitchen", tmp_path, "train", boxes=False).boxes is None
