"""`actionfuse extract` as a user calls it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import threading
import time
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from extraction import TINY, contents, spawn

from actionfuse.backbones import create_backbone, save_backbone
from actionfuse.extract.claims import claim
from actionfuse.pipeline.features import FeatureStore, FeatureWriter

PLAN = "tsn-test_resnet-rgb"


def test_whole_folder_then_nothing_to_do(folder: Path, tmp_path: Path, extract: Callable, capfd) -> None:
    out = tmp_path / "out"
    assert extract(folder, "--out", out, *TINY) == 0
    store = FeatureStore.open(out / PLAN)
    assert store.keys() == ["a.mp4", "b.mkv", "sub/a.avi", "sub/a.mp4", "sub/deep/one.mp4", "tall.webm"]
    assert (out / PLAN / "sub" / "a.mp4.npz").is_file()
    features = store.read("a.mp4")
    assert len(features) == 2 and features.start_seconds.tolist() == [0.0, 0.8]  # 12 entries of 10 fps, 8 a clip
    assert features.stop_seconds.tolist() == pytest.approx([0.8, 1.2])
    identity = features.metadata["recipe"]["identity"]
    assert identity["backbone"]["name"] == "tsn:test_resnet" and len(identity["backbone"]["weights_sha256"]) == 64
    assert features.metadata["decoder"] in ("decord", "pyav")
    plain = np.load(out / PLAN / "a.mp4.npz")
    np.testing.assert_array_equal(plain["features"], features.data)

    before = {name: (out / name).stat().st_mtime_ns for name in contents(out)}
    capfd.readouterr()
    assert extract(folder, "--out", out, *TINY) == 0
    assert "6 already there" in capfd.readouterr().err
    assert {name: (out / name).stat().st_mtime_ns for name in contents(out)} == before


def test_only_what_is_missing_or_damaged_is_done_again(folder: Path, tmp_path: Path, extract: Callable, capfd) -> None:
    out = tmp_path / "out"
    extract(folder, "--out", out, *TINY)
    whole = contents(out)
    (out / PLAN / "b.mkv.npz").unlink()
    damaged = out / PLAN / "sub" / "a.avi.npz"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 0xFF
    damaged.write_bytes(data)
    capfd.readouterr()
    assert extract(folder, "--out", out, *TINY) == 0
    assert "2 extracted, 4 already there" in capfd.readouterr().err
    assert contents(out) == whole


def test_other_options_never_mix(folder: Path, tmp_path: Path, extract: Callable, capfd) -> None:
    out = tmp_path / "out"
    one = folder / "b.mkv"
    assert extract(one, "--out", out, *TINY) == 0
    assert extract(one, "--out", out, *TINY, "--clip-stride", 2) == 2
    told = capfd.readouterr().err
    assert "sampling.stride is 8 there, 2 here" in told and "--overwrite" in told
    assert extract(one, "--out", out, *TINY, "--clip-stride", 2, "--overwrite") == 0
    assert FeatureStore.open(out / PLAN).recipe["identity"]["sampling"]["stride"] == 2


def test_broken_inputs_are_listed_and_the_rest_goes_on(folder: Path, tmp_path: Path, extract: Callable, capfd) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(folder, videos)
    (videos / "text.mp4").write_text("no video at all")
    (videos / "empty.mp4").touch()
    out = tmp_path / "out"
    assert extract(videos, "--out", out, *TINY) == 1
    entries = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [(Path(e["path"]).name, e["stage"]) for e in entries] == [("empty.mp4", "open"), ("text.mp4", "open")]
    assert all(e["reason"] for e in entries)
    assert len(FeatureStore.open(out / PLAN).keys()) == 6
    assert "2 failed" in capfd.readouterr().err

    shutil.copyfile(folder / "a.mp4", videos / "text.mp4")
    (videos / "empty.mp4").unlink()
    assert extract(videos, "--out", out, *TINY) == 0  # what works again leaves the list
    assert (
        "empty.mp4" in (out / "failures.jsonl").read_text() and "text.mp4" not in (out / "failures.jsonl").read_text()
    )


def test_dry_run_tells_the_rows(folder: Path, tmp_path: Path, extract: Callable, capsys) -> None:
    for options in (["--fps", "native", "--clip-frames", "4", "--clip-stride", "3"], ["--last-clip", "drop"], []):
        out = tmp_path / "-".join(["out", *options])
        assert extract(folder, "--out", out, *TINY, *options, "--dry-run") == 0
        told = {}
        for line in capsys.readouterr().out.splitlines():
            key, _, rest = line.split(": ")
            told[key] = int(rest.split()[0])
        assert not out.exists()
        assert extract(folder, "--out", out, *TINY, *options) == 0
        store = FeatureStore.open(out / PLAN)
        assert told == {key: len(store.read(key)) for key in store.keys()}


def test_segments_of_a_csv(folder: Path, tmp_path: Path, extract: Callable, capsys) -> None:
    table = tmp_path / "segments.csv"
    table.write_text(f"path,start_seconds,stop_seconds,id\n{folder}/b.mkv,0.2,1.0,open\n{folder}/b.mkv,1.0,1.6,\n")
    out = tmp_path / "out"
    assert extract(table, "--out", out, *TINY, "--clip-frames", 2) == 0
    store = FeatureStore.open(out / PLAN)
    assert store.keys() == ["b.mkv#1.000-1.600", "b.mkv#open"]
    first = store.read("b.mkv#open")
    assert first.start_seconds[0] == 0.2 and first.stop_seconds[-1] == pytest.approx(1.0) and len(first) == 4
    native = [table, "--out", tmp_path / "native", *TINY, "--clip-frames", 1, "--fps", "native"]
    assert extract(*native, "--dry-run") == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["15", "20"]
    assert extract(*native) == 0
    store = FeatureStore.open(tmp_path / "native" / PLAN)
    assert [len(store.read(key)) for key in store.keys()] == [15, 20]


@pytest.mark.parametrize("format", ["npy", "hdf5", "lmdb"])
def test_other_stores(folder: Path, tmp_path: Path, extract: Callable, format: str) -> None:
    pytest.importorskip({"npy": "numpy", "hdf5": "h5py", "lmdb": "lmdb"}[format])
    one = folder / "b.mkv"
    assert extract(one, "--out", tmp_path / "npz", *TINY) == 0
    assert extract(one, "--out", tmp_path / format, *TINY, "--store", format) == 0
    there = FeatureStore.open(tmp_path / "npz" / PLAN).read("b.mkv")
    here = FeatureStore.open(tmp_path / format / PLAN).read("b.mkv")
    np.testing.assert_array_equal(there.data, here.data)
    np.testing.assert_array_equal(there.start_seconds, here.start_seconds)


def test_predictions(folder: Path, tmp_path: Path, extract: Callable, capsys) -> None:
    checkpoint, labels = tmp_path / "trained.safetensors", tmp_path / "labels.txt"
    save_backbone(create_backbone("tsn:test_resnet", num_classes=7), checkpoint)
    labels.write_text("\n".join(f"thing {k}" for k in range(7)))
    words = ["--backbone", "tsn:test_resnet", "--weights", checkpoint, "--crop", 32, "--side", 40, "--top", 3]
    assert extract(folder / "b.mkv", "--out", tmp_path / "out", *words, "--labels", labels) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("b.mkv: tsn-test_resnet-rgb: thing ") and printed.count("thing") == 3
    features = FeatureStore.open(tmp_path / "out" / PLAN).read("b.mkv")
    assert features.extra["top_classes"].shape == (len(features), 3)
    assert (np.diff(features.extra["top_scores"], axis=1) <= 0).all()
    labels.write_text("one\ntwo")
    assert extract(folder / "b.mkv", "--out", tmp_path / "out", *words, "--labels", labels) == 2
    assert "names 2 classes" in capsys.readouterr().err
    assert extract(folder / "b.mkv", "--out", tmp_path / "other", *TINY, "--top", 3) == 2  # random: no classifier
    assert "has no classifier" in capsys.readouterr().err


def test_own_weights_say_how_their_backbone_was_built(folder: Path, tmp_path: Path, extract: Callable) -> None:
    checkpoint = tmp_path / "trained.safetensors"
    backbone = create_backbone("karpathy:test_resnet", fusion="early_fusion", frames=2)  # slow_fusion is the default
    save_backbone(backbone, checkpoint)
    words = ["--backbone", "karpathy:test_resnet", "--weights", checkpoint, "--crop", 32, "--side", 32]
    assert extract(folder / "b.mkv", "--out", tmp_path / "out", *words) == 0
    found = FeatureStore.open(tmp_path / "out" / "karpathy-test_resnet-rgb").read("b.mkv")
    assert found.data.shape[1] == backbone.feature_dim
    seen = found.stop_seconds - found.start_seconds
    np.testing.assert_allclose(seen[0], 2 / backbone.input_spec.fps, atol=0.05)


def test_every_task_has_scores_of_its_own(folder: Path, tmp_path: Path, extract: Callable, capsys) -> None:
    checkpoint, verbs, nouns = (tmp_path / name for name in ("trained.safetensors", "verbs.txt", "nouns.txt"))
    backbone = create_backbone("tsn:test_resnet", num_classes=7)
    backbone.tasks = {"verb": 3, "noun": 4}
    save_backbone(backbone, checkpoint)
    verbs.write_text("take\nput\nwash\n")
    nouns.write_text("\n".join(f"thing {k}" for k in range(4)))
    words = ["--backbone", "tsn:test_resnet", "--weights", checkpoint, "--crop", 32, "--side", 40, "--top", 3]
    assert extract(folder / "b.mkv", "--out", tmp_path / "out", *words, "--labels", verbs, "--labels", nouns) == 0
    printed = capsys.readouterr().out
    assert printed.count("verb ") == 3 and printed.count("noun thing ") == 3
    extra = FeatureStore.open(tmp_path / "out" / PLAN).read("b.mkv").extra
    assert extra["top_classes"].shape[1:] == (2, 3)
    np.testing.assert_allclose(extra["top_scores"][:, 0].sum(1), 1, rtol=1e-5)  # all three verbs
    assert (extra["top_classes"][:, 0] < 3).all() and (extra["top_classes"][:, 1] >= 3).all()
    assert (extra["top_scores"][:, 1].sum(1) > 0.75).all()
    assert extract(folder / "b.mkv", "--out", tmp_path / "plain", *words) == 0
    assert re.search(r"verb [0-2] 0\.\d\d, .*noun [0-3] 0\.\d\d", capsys.readouterr().out)
    assert extract(folder / "b.mkv", "--out", tmp_path / "out", *words, "--labels", nouns, "--labels", verbs) == 2
    assert "names 3 classes" in capsys.readouterr().err
    assert extract(folder / "b.mkv", "--out", tmp_path / "out", *words, *["--labels", nouns] * 3) == 2
    assert "given 3 times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clip-frames", "0"], "must be"),
        (["--crop", "64", "--side", "32"], "raise --side"),
        (["--fps", "fast"], "native"),
        (["--backbone", "tsn:resnet_of_a_kind"], "resnet"),
        (["--workers", "0"], "at least one"),
        (["--batch", "0"], "at least 1"),
        (["--layer", "nowhere"], "no layer"),
        (["--flow-method", "dis_fats", "--stream", "flow"], "dis_fast"),
        (["--decoder", "pyva"], "pyav"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
        (["--boxes", "nowhere.csv"], "there is no box file nowhere.csv"),
        (["--crop", "16"], "at least"),
        (["--backbone", "tsn:test_vit", "--weights", "random", "--crop", "33"], "16"),
        (["--top", "-1"], "how many classes"),
        (["--labels", __file__], "--top"),
        (["--timeout", "0"], "positive"),
        (["--frame-fps", "0"], "positive"),
        (["--flow-method", "dis_fast"], "no flow is extracted"),
        (["--flow-weights", "raft.pth", "--stream", "flow", "--flow-method", "dis_fast"], "has no weights"),
        (["--flow-weights", "nowhere.pth", "--stream", "flow"], "no such file"),
        (["--audio-preset", "logmel"], "no sound is extracted"),
        (["--key-fps", "30"], "--store npz has none"),
        (["--processes", "2", "--device", "nothing"], "write auto, cpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_calls(folder: Path, tmp_path: Path, extract: Callable, capfd, words: list[str], message: str) -> None:
    base = [w for w in TINY]
    for word in {"--backbone", "--weights"} & set(words):
        at = base.index(word)
        del base[at : at + 2]
    assert extract(folder, "--out", tmp_path / "out", *base, *words) == 2
    assert message in capfd.readouterr().err


def test_missing_input(tmp_path: Path, extract: Callable, capfd) -> None:
    assert extract(tmp_path / "nothing", "--out", tmp_path / "out", *TINY) == 2
    assert "does not exist" in capfd.readouterr().err
    assert extract(tmp_path, "--out", tmp_path / "out", *TINY) == 2
    assert "no video found" in capfd.readouterr().err


def test_sound_alone_and_rows_that_a_store_cannot_hold(folder: Path, tmp_path: Path, extract: Callable, capfd) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-9000, 9000, 8000 * 3, "<i2").tobytes())
    words = [tmp_path / "sound.wav", *TINY, "--fps", 2, "--clip-frames", 2]
    assert extract(*words, "--out", tmp_path / "out", "--stream", "audio", "--dry-run") == 0
    assert "3 rows (3.000 s, 6 entries)" in capfd.readouterr().out
    assert extract(*words, "--out", tmp_path / "out", "--stream", "audio") == 0
    assert len(FeatureStore.open(tmp_path / "out" / "tsn-test_resnet-audio").read("sound.wav")) == 3
    assert extract(*words, "--out", tmp_path / "out") == 1
    assert "only sound" in capfd.readouterr().err
    # Windows of sound are moved into the sound: two rows end at one time, for which RULSTM's keys have no room.
    pytest.importorskip("lmdb")
    words += ["--fps", 10, "--clip-frames", 1, "--stream", "audio"]
    assert extract(*words, "--out", tmp_path / "lmdb", "--store", "lmdb") == 1
    assert "sound.wav: write: " in capfd.readouterr().err


def test_frames_at_their_own_rate(folder: Path, tmp_path: Path, extract: Callable, capfd) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(1, 11):
        cv2.imwrite(str(frames / f"{number:05d}.png"), np.full((48, 64, 3), 20 * number, np.uint8))
    words = [frames, "--out", tmp_path / "out", *TINY, "--clip-frames", 1]
    assert extract(*words, "--frame-fps", 5) == 0
    assert len(FeatureStore.open(tmp_path / "out" / PLAN).read("frames")) == 20  # 2 s at 10 a second
    assert extract(*words) == 2
    assert "sampling.frame_fps is 5.0 there, 30.0 here" in capfd.readouterr().err


def test_names_that_are_no_utf8(folder: Path, tmp_path: Path, extract: Callable, capfd) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copyfile(folder / "a.mp4", videos / os.fsdecode(b"\xff.mp4"))
    (videos / os.fsdecode(b"bad\xfe.mp4")).write_text("no video")
    assert extract(videos, "--out", tmp_path / "out", *TINY, "--dry-run") == 1
    for _ in range(2):
        assert extract(videos, "--out", tmp_path / "out", *TINY) == 1
    assert FeatureStore.open(tmp_path / "out" / PLAN).keys() == [os.fsdecode(b"\xff.mp4")]
    (entry,) = map(json.loads, (tmp_path / "out" / "failures.jsonl").read_text(encoding="utf-8").splitlines())
    assert entry["key"] == os.fsdecode(b"bad\xfe.mp4")


def test_a_full_disk_stops_the_run(
    folder: Path, tmp_path: Path, extract: Callable, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "write", full)
        assert extract(folder, "--out", tmp_path / "out", *TINY) == 1
    told = capfd.readouterr().err
    assert "No space left on device" in told and "goes on from here" in told and "Traceback" not in told
    assert not list((tmp_path / "out" / ".claims").iterdir())
    assert extract(folder, "--out", tmp_path / "out", *TINY) == 0


def test_features_beside_boxes_are_those_without(folder: Path, tmp_path: Path, extract: Callable, capfd) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("video,seconds,x1,y1,x2,y2,track,category\na.mp4,0.1,0.2,0.2,0.8,0.8,cup,1\n")
    words = [folder, "--out", tmp_path / "out", *TINY]
    assert extract(*words) == 0
    features = contents(tmp_path / "out")
    assert extract(*words, "--boxes", boxes, "--instances", 2) == 0
    assert features.items() <= contents(tmp_path / "out").items()
    roi = FeatureStore.open(tmp_path / "out" / f"{PLAN}-roi")
    assert roi.read("a.mp4").extra["present"].tolist() == [[True, False], [False, False]]
    assert extract(*words, "--boxes", boxes, "--instances", 3) == 2
    assert "boxes.instances is 2 there, 3 here" in capfd.readouterr().err
    assert extract(*words, "--boxes", boxes, "--instances", 0) == 2
    boxes.write_text(boxes.read_text().replace("a.mp4", "nobody.mp4"))
    assert extract(*words, "--boxes", boxes) == 2
    assert "none of the inputs" in capfd.readouterr().err


def test_videos_of_others_are_passed_by_or_waited_for(
    folder: Path, tmp_path: Path, extract: Callable, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    other = claim(out, "a.mp4")
    assert other is not None
    words = [folder, "--out", out, *TINY]
    assert extract(*words) == 0
    assert "5 extracted, 1 done by another process" in capfd.readouterr().err
    # The processes of one launch wait for one another, and take over what one that was killed leaves undone.
    monkeypatch.setenv("WORLD_SIZE", "2")
    released = threading.Timer(1.0, other.release)
    released.start()
    assert extract(*words) == 0
    released.join()
    assert "1 extracted, 5 already there" in capfd.readouterr().err


def test_ctrl_c_while_it_starts(folder: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for copy in range(20):  # seconds of work: a busy machine may see the first child late
        shutil.copytree(folder, videos / str(copy))
    # What runs in the background of a script ignores Ctrl-C from its start, and so do its children.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    options = {"start_new_session": True, "preexec_fn": heed}
    process = spawn(videos, "--out", tmp_path / "out", *TINY, "--workers", 2, **options)
    while not psutil.Process(process.pid).children() and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors


def test_stops_cleanly_and_goes_on(folder: Path, tmp_path: Path, extract: Callable) -> None:
    videos = tmp_path / "videos"
    for copy in range(30):
        shutil.copytree(folder, videos / str(copy))
    out = tmp_path / "out"
    process = spawn(videos, "--out", out, *TINY, "--workers", 1)
    while not list(out.rglob("*.npz")) and process.poll() is None:
        time.sleep(0.05)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - sent < 15
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "goes on from here" in errors
    done = len(list(out.rglob("*.npz")))
    assert 0 < done < 180
    assert not list((out / ".claims").iterdir())
