"""`actionfuse check`: what is told of a folder, in words, as JSON and by the exit code."""

import json
import shutil

import numpy as np
import pytest
from dataset_files import something_else_frame, write_epic100, write_json
from PIL import Image
from videos import write_counting_video

from actionfuse import cli
from actionfuse.pipeline.datasets import CARDS, list_datasets
from actionfuse.pipeline.datasets.check import check_dataset
from actionfuse.pipeline.datasets.contract import DATASETS


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_counting_video(path, num_frames=150, size=(64, 48), fps=25)
    return path


@pytest.fixture
def epic100(tmp_path, video):
    """Whole but for the videos of the test split; those of train are too short for their segments."""
    root = write_epic100(tmp_path / "epic100")
    for name in ("P01_01", "P01_101", "P02_03", "P09_102"):
        (root / "videos").mkdir(exist_ok=True)
        (root / f"videos/{name}.mp4").hardlink_to(video)
    return root


def run(capsys, *words):
    code = cli.main(["check", *map(str, words)])
    return code, capsys.readouterr().out


def test_lists_every_dataset_with_its_splits(capsys):
    code, out = run(capsys)
    assert code == 0
    for name in list_datasets():
        assert name in out and ", ".join(CARDS[name].splits) in out
    code, out = run(capsys, "--json")
    assert code == 0 and set(json.loads(out)) == set(list_datasets())


@pytest.mark.parametrize("name", [n for n in list_datasets() if DATASETS[n].__module__.startswith("actionfuse.")])
def test_a_card_tells_source_licence_layout_and_options(capsys, name):
    code, out = run(capsys, name)
    card = CARDS[name]
    assert code == 0 and all(text in out for text in (card.source, card.licence, card.layout, card.paper))
    assert "paths=" in out
    assert "options" in json.loads(run(capsys, name, "--json")[1])[name]


def test_a_whole_split(epic100, capsys):
    code, out = run(capsys, "epic_kitchens_100", epic100, "--split", "validation")
    assert code == 0
    assert "validation: 4 segments of 2 videos" in out and "EPIC_100_validation.csv" in out
    assert "rgb: 2 of 2 videos as videos/{video}.mp4" in out and "1 of 1 splits are whole" in out


def test_a_folder_of_ones_own_has_no_files_of_annotations(tmp_path, capsys):
    for name in ("run/1.mp4", "jump/2.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"seen, not opened")
    code, out = run(capsys, "folder", tmp_path, "--split", "train")
    assert code == 0 and "  train: 2 segments of 2 videos\n    rgb: 2 of 2 videos as {video}\n" in out


def test_missing_videos_are_counted_and_named(epic100, capsys):
    (epic100 / "videos/P02_03.mp4").unlink()
    (epic100 / "videos/P02_03.mp4").symlink_to("nowhere.mp4")
    code, out = run(capsys, "epic_kitchens_100", epic100)
    assert code == 1
    assert "rgb: 1 of 2 videos" in out and "missing: videos/P02_03.mp4" in out
    assert "missing: P33/videos/P33_101.MP4" in out  # nothing of this split is there: where it is expected
    assert "1 of 3 splits are whole" in out


def test_missing_annotations_are_named_with_what_is_there(epic100, capsys):
    (epic100 / "EPIC_100_train.csv").unlink()
    code, out = run(capsys, "epic_kitchens_100", epic100, "--json")
    told = json.loads(out)["splits"]
    assert code == 1 and [split["split"] for split in told] == ["train", "validation", "test"]
    assert all(split["missing_files"] == ["EPIC_100_train.csv"] for split in told)
    assert "Found there: EPIC_100_noun_classes.csv" in told[0]["error"]
    code, out = run(capsys, "epic_kitchens_100", epic100)
    assert code == 1 and "expected in the folder:" in out and CARDS["epic_kitchens_100"].layout in out


def test_a_long_list_is_cut_short_but_for_json(tmp_path, capsys):
    entries = [{"id": str(n), "template": "Moving [something] up"} for n in range(9)]
    write_json(tmp_path / "train.json", entries)
    write_json(tmp_path / "labels.json", {"Moving something up": 0})
    code, out = run(capsys, "something_something_v2", tmp_path, "--split", "train")
    assert code == 1 and out.count("missing: 20bn") == 5 and "and 4 more missing" in out
    code, out = run(capsys, "something_something_v2", tmp_path, "--split", "train", "--json")
    assert len(json.loads(out)["splits"][0]["streams"]["rgb"]["missing"]) == 9


def test_decoding_finds_broken_and_short_videos(epic100, capsys):
    code, out = run(capsys, "epic_kitchens_100", epic100, "--split", "validation", "--decode", 5)
    assert code == 0 and "decoded 2 of them, 0 with problems" in out
    (epic100 / "videos/P02_03.mp4").unlink()
    (epic100 / "videos/P02_03.mp4").write_bytes(b"no video")
    code, out = run(capsys, "epic_kitchens_100", epic100, "--split", "validation", "train", "--decode", 5)
    assert code == 1 and "broken: videos/P02_03.mp4: " in out
    assert "broken: videos/P01_101.mp4: a segment ends at 71.50 s and the video at 6.00 s" in out
    (split,) = check_dataset("epic_kitchens_100", epic100, ["validation"], decode=1)
    assert split.streams["rgb"].decoded == 1 and len(split.streams["rgb"].problems) == 1


def test_streams_that_are_asked_for(epic100, capsys):
    code, out = run(capsys, "epic_kitchens_100", epic100, "--split", "validation", "--streams", "rgb,flow")
    assert code == 1 and "flow: 0 of 2 videos" in out and "--options paths.flow=PATTERN" in out
    for name in ("P02_03", "P09_102"):
        for axis in ("u", "v"):
            (epic100 / f"fields/{name}/{axis}").mkdir(parents=True)
            for number in (1, 100, 300):
                file = epic100 / f"fields/{name}/{axis}/frame_{number:010d}.jpg"
                Image.fromarray(np.full((16, 24), 128, np.uint8)).save(file)
    words = ("--streams", "rgb,flow", "--options", "paths.flow=fields/{video}", "times=frames", "--decode", 2)
    code, out = run(capsys, "epic_kitchens_100", epic100, "--split", "validation", *words)
    assert code == 0 and "flow: 2 of 2 videos as fields/{video}" in out and "decoded 2 of them, 0 with" in out
    (epic100 / "fields/P02_03/v/frame_0000000100.jpg").write_bytes(b"no picture")
    shutil.rmtree(epic100 / "fields/P09_102/v")
    code, out = run(capsys, "epic_kitchens_100", epic100, "--split", "validation", *words)
    assert code == 1 and "decoded 2 of them, 2 with" in out and "broken: fields/P02_03: v/frame_0000000100.jpg" in out
    assert (
        "broken: fields/P09_102: " in out and "holds 0 pairs of numbered pictures of flow; expected one, u/frame" in out
    )


def test_videos_without_boxes(tmp_path, capsys):
    for part in ("train", "validation"):
        entries = [{"id": video, "template": "Moving [something] up"} for video in ("12", "3")]
        write_json(tmp_path / f"compositional/{part}.json", entries)
    write_json(tmp_path / "compositional/labels.json", {"Moving something up": 0})
    write_json(tmp_path / "annotations.json", {"3": [something_else_frame("3", 1, {"0000": (0, 0, 1, 1)})]})
    (tmp_path / "videos").mkdir()
    for video in ("12", "3"):
        (tmp_path / f"videos/{video}.webm").touch()
    words = ("something_else", tmp_path, "--split", "compositional_train")
    code, out = run(capsys, *words)
    assert code == 1 and "1 of 2 videos have no boxes" in out and "without boxes: 12" in out
    code, out = run(capsys, *words, "--options", "boxes=false")
    assert code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["epic_kitchens"], "did you mean 'epic_kitchens_"),
        (["epic_kitchens_100", "ROOT/nowhere"], "is no folder"),
        (["epic_kitchens_100", "ROOT", "--split", "trian"], "did you mean 'train'"),
        (["epic_kitchens_100", "ROOT", "--options", "annotations=rulst"], "one of 'official', 'rulstm'"),
        (["epic_kitchens_100", "ROOT", "--options", "annotation=rulstm"], "did you mean 'annotations'"),
        (["epic_kitchens_100", "ROOT", "--options", "rulstm"], "write NAME=VALUE"),
        (["epic_kitchens_100", "ROOT", "--decode", "-1"], "decode is -1"),
    ],
)
def test_wrong_calls(epic100, capsys, words, said):
    assert cli.main(["check", *(word.replace("ROOT", str(epic100)) for word in words)]) == 2
    assert said in capsys.readouterr().err
