"""`actionfuse extract` as a user calls it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from extraction import TINY, contents, spawn

from actionfuse.backbones import create_backbone, save_backbone
from actionfuse.pipeline.features import FeatureStore

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


def test_segments_of_a_csv(folder: Path, tmp_path: Path, extract: Callable) -> None:
    table = tmp_path / "segments.csv"
    table.write_text(f"path,start_seconds,stop_seconds,id\n{folder}/b.mkv,0.2,1.0,open\n{folder}/b.mkv,1.0,1.6,\n")
    out = tmp_path / "out"
    assert extract(table, "--out", out, *TINY, "--clip-frames", 2) == 0
    store = FeatureStore.open(out / PLAN)
    assert store.keys() == ["b.mkv#1.000-1.600", "b.mkv#open"]
    first = store.read("b.mkv#open")
    assert first.start_seconds[0] == 0.2 and first.stop_seconds[-1] == pytest.approx(1.0) and len(first) == 4


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
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_calls(folder: Path, tmp_path: Path, extract: Callable, capfd, words: list[str], message: str) -> None:
    base = [w for w in TINY]
    if words[0] in ("--backbone", "--weights"):
        at = base.index(words[0])
        del base[at : at + 2]
    assert extract(folder, "--out", tmp_path / "out", *base, *words) == 2
    assert message in capfd.readouterr().err


def test_missing_input(tmp_path: Path, extract: Callable, capfd) -> None:
    assert extract(tmp_path / "nothing", "--out", tmp_path / "out", *TINY) == 2
    assert "does not exist" in capfd.readouterr().err
    assert extract(tmp_path, "--out", tmp_path / "out", *TINY) == 2
    assert "no video found" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stops_cleanly_and_goes_on(folder: Path, tmp_path: Path, extract: Callable, number: signal.Signals) -> None:
    videos = tmp_path / "videos"
    for copy in range(30):
        shutil.copytree(folder, videos / str(copy))
    out = tmp_path / "out"
    process = spawn(videos, "--out", out, *TINY, "--workers", 1)
    while not list(out.rglob("*.npz")) and process.poll() is None:
        time.sleep(0.05)
    sent = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - sent < 15
    assert process.returncode == 128 + number, errors
    assert "goes on from here" in errors
    done = len(list(out.rglob("*.npz")))
    assert 0 < done < 180
    assert not list((out / ".claims").iterdir())
