"""Shards: the same plan for the same list, outputs published once, and a verify that finds what is wrong."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actionfuse.cli import main
from actionfuse.extract.objects import Objects, open_objects
from actionfuse.extract.shards import (
    VIDEOS,
    Inventory,
    Shard,
    done_shards,
    is_done,
    manifest_bytes,
    plan_shards,
    read_plan,
    read_shard,
    verify_shard,
)
from actionfuse.pipeline.inputs import VideoInput

MODEL = ("--weights", "random", "--side", "64", "--crop", "64", "--fps", "4", "--clip-frames", "1", "--device", "cpu")


def listed(count: int) -> list[tuple[VideoInput, str]]:
    return [(VideoInput(f"/v/{i}.mp4", f"{i}.mp4"), str(i)) for i in range(count)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npz")}


@pytest.fixture(params=["folder", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "memory":
        pytest.importorskip("fsspec")
        return open_objects(f"memory://{tmp_path.name}/out")
    return open_objects(tmp_path / "out")


def test_the_same_list_in_any_order_gives_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = plan_shards(listed(50), {"fps": 4}, 4, open_objects(tmp_path / "a"))
    monkeypatch.setattr("actionfuse.extract.shards._RUN_LINES", 7)  # sorted in files, merged
    again = plan_shards(reversed(listed(50)), {"fps": 4}, 4, open_objects(tmp_path / "b"))
    assert first == again
    assert (tmp_path / "a" / VIDEOS).read_bytes() == (tmp_path / "b" / VIDEOS).read_bytes()
    assert len(first.shards) == 4 and first.videos == 50
    objects = open_objects(tmp_path / "a")
    assert read_plan(objects) == first
    keys = [video.key for shard in first.shards for video in read_shard(objects, shard)]
    assert sorted(keys) == sorted(video.key for video, _ in listed(50))


@pytest.mark.parametrize("change", ["option", "content", "path"])
def test_a_shards_id_follows_its_content(tmp_path: Path, change: str):
    before = plan_shards(listed(50), {"fps": 4}, 4, open_objects(tmp_path / "a"))
    videos = listed(50)
    if change == "content":
        videos[7] = (videos[7][0], "changed")
    elif change == "path":
        videos[7] = (VideoInput("/w/7.mp4", "7.mp4"), "7")
    after = plan_shards(videos, {"fps": 5 if change == "option" else 4}, 4, open_objects(tmp_path / "b"))
    changed = [one.id != other.id for one, other in zip(before.shards, after.shards, strict=True)]
    assert sum(changed) == (4 if change == "option" else 1)
    with pytest.raises(ValueError, match="has a plan of other inputs"):
        plan_shards(videos, {"fps": 5 if change == "option" else 4}, 4, open_objects(tmp_path / "a"))


def test_segments_of_a_video_stay_together_and_one_key_twice_is_refused(tmp_path: Path):
    parts = [(VideoInput("/v/a.mp4", f"a.mp4#{i}", i, i + 1, str(i)), "") for i in range(20)]
    assert len(plan_shards(parts, {}, 8, open_objects(tmp_path / "a")).shards) == 1
    known, repeated = listed(3), [(video, "") for video, _ in listed(3)]  # from a listing, and from a list of names
    both = plan_shards([*repeated, *known, *repeated], {}, 2, open_objects(tmp_path / "c"))
    assert both == plan_shards(known, {}, 2, open_objects(tmp_path / "d")) and both.videos == 3
    twice = [*listed(3), (VideoInput("/elsewhere/1.mp4", "1.mp4"), "")]
    with pytest.raises(ValueError, match=r"two inputs have the key '1\.mp4'"):
        plan_shards(twice, {}, 2, open_objects(tmp_path / "b"))


def test_one_of_many_writers_wins(objects: Objects):
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda i: objects.put_new("a/x.bin", bytes([i]) * 1000), range(8)))
    assert sum(won) == 1
    assert objects.read("a/x.bin") == bytes([won.index(True)]) * 1000
    assert objects.names("a") == ["x.bin"]  # and nothing is left beside it
    assert objects.read("a/x.bin", 10, 20) == bytes([won.index(True)]) * 10
    objects.remove("a/x.bin")
    assert objects.size("a/x.bin") is None and objects.put_new("a/x.bin", b"again")


def test_verify_lists_what_is_not_there_exactly_once(objects: Objects):
    plan = plan_shards(listed(6), {}, 1, objects)
    (shard,) = plan.shards
    assert [(p.kind, p.key) for p in verify_shard(objects, shard)] == [("missing", "")]
    rows = []
    for i in range(5):  # 5.mp4 is left out
        objects.put_new(f"s/{i}.npz", bytes(10))
        rows.append({"key": f"{i}.mp4", "outputs": {f"s/{i}.npz": [10, "e38a6876"]}})
    rows[1] = {"key": "1.mp4", "stage": "open", "error": "not a video"}
    rows += [rows[0], {"key": "strange.mp4", "outputs": {}}]
    objects.remove("s/2.npz")
    for name, data in (("s/3.npz", bytes(9)), ("s/4.npz", bytes(9) + b"x")):
        objects.remove(name)
        objects.put_new(name, data)
    objects.put_new(shard.manifest, manifest_bytes(shard, rows))
    found = {(p.kind, p.key) for p in verify_shard(objects, shard)}
    quick = {
        ("doubled", "0.mp4"),
        ("failed", "1.mp4"),
        ("missing", "2.mp4"),
        ("damaged", "3.mp4"),
        ("missing", "5.mp4"),
        ("unknown", "strange.mp4"),
    }
    assert found == quick
    assert {(p.kind, p.key) for p in verify_shard(objects, shard, deep=True)} == quick | {("damaged", "4.mp4")}
    assert is_done(objects, shard)
    assert not is_done(objects, shard, retry_failed=True)  # it has an error: the manifest is gone
    assert objects.size(shard.manifest) is None


def test_a_manifest_of_another_plan_does_not_count(objects: Objects):
    plan = plan_shards(listed(2), {}, 1, objects)
    (shard,) = plan.shards
    other = Shard(shard.number, "0" * 64, shard.videos, shard.start, shard.stop)
    objects.put_new(other.manifest, manifest_bytes(other, []))
    assert not is_done(objects, shard) and not done_shards(objects, plan)
    objects.put_new(shard.manifest, manifest_bytes(other, []))  # in the wrong place
    assert [p.kind for p in verify_shard(objects, shard)] == ["damaged"]
    assert is_done(objects, shard) and done_shards(objects, plan) == {shard.number}


def test_a_listing_finds_what_questions_find(objects: Objects):
    plan = plan_shards(listed(40), {}, 3, objects)
    for shard in plan.shards:
        rows = []
        for video in read_shard(objects, shard):
            number = int(video.key.split(".")[0])
            names = [f"{store}/deep/{number}.npz" for store in ("one", "two")]
            for name in names if number != 7 else names[:1]:
                objects.put_new(name, bytes(5 + (number == 9)))
            rows.append({"key": video.key, "outputs": {name: [5, "00000000"] for name in names}})
        objects.put_new(shard.manifest, manifest_bytes(shard, rows))
    inventory = Inventory(objects)
    asked = [p for shard in plan.shards for p in verify_shard(objects, shard)]
    assert sorted((p.kind, p.key) for p in asked) == [("damaged", "9.mp4"), ("damaged", "9.mp4"), ("missing", "7.mp4")]
    assert [p for shard in plan.shards for p in verify_shard(objects, shard, inventory=inventory)] == asked
    assert inventory.holds("two/deep/3.npz", 5) and not inventory.holds("two/deep/3.npz", 6)
    assert not inventory.holds("three/3.npz", 5)


def test_large_files_go_and_come_in_pieces(objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("actionfuse.extract.objects.PIECE_BYTES", 1000)
    path = tmp_path / "large.bin"
    path.write_bytes(data := bytes(range(256)) * 37)
    assert objects.put_new("a/large.bin", path) and not objects.put_new("a/large.bin", path)
    assert objects.crc32("a/large.bin") == (len(data), zlib.crc32(data))
    assert objects.read("a/large.bin") == data
    assert list(objects.listing("a")) == [("a/large.bin", len(data))] and not list(objects.listing("none"))
    with pytest.raises(FileNotFoundError):
        objects.crc32("a/none.bin")


def test_shards_give_the_bytes_of_one_call(folder: Path, tmp_path: Path, extract: Callable[..., int], capsys):
    videos = [folder / "a.mp4", folder / "sub" / "a.avi", folder / "tall.webm"]
    bad = folder.parent / "bad.mp4"
    bad.write_bytes(b"no video")
    words = (*map(str, videos), str(bad), "--root", str(folder.parent), *MODEL)
    assert extract(*words, "--quiet", "--out", tmp_path / "one") == 1
    out = str(tmp_path / "shards")
    assert main(["shards", "plan", *words, "--out", out, "--shards", "2"]) == 0
    assert main(["shards", "verify", out]) == 1
    plan = read_plan(open_objects(out))
    codes = [main(["shards", "run", out, "--device", "cpu", "--shard", str(k), "--quiet"]) for k in range(2)]
    assert sorted(codes) == [0, 1] and len(plan.shards) == 2
    manifests = {path.name: path.read_bytes() for path in (tmp_path / "shards/shards/done").iterdir()}
    assert files_of(tmp_path / "one") == files_of(tmp_path / "shards") and len(files_of(tmp_path / "one")) == 3
    capsys.readouterr()
    assert main(["shards", "verify", out, "--deep"]) == 1
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["kind"], row["key"]) for row in said] == [("failed", "bad.mp4")]

    # what is lost is made again, and only that
    lost = next(path for path in (tmp_path / "shards").rglob("*.npz"))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.npz") if path != lost}
    lost.unlink()
    for path in (tmp_path / "shards/shards/done").iterdir():
        path.unlink()
    assert main(["shards", "run", out, "--device", "cpu", "--quiet"]) == 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert files_of(tmp_path / "one") == files_of(tmp_path / "shards")
    assert {path.name: path.read_bytes() for path in (tmp_path / "shards/shards/done").iterdir()} == manifests


@pytest.mark.parametrize(
    "environment, chosen, parts, expected",
    [
        ({}, None, None, ([0, 1, 2, 3, 4], [])),
        ({}, [3, 9], None, ([3], [])),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "6", "SLURM_ARRAY_TASK_COUNT": "2"}, None, None,
         ([1, 3], [])),
        ({"JOB_COMPLETION_INDEX": "4"}, None, None, ([4], [])),
        ({"JOB_COMPLETION_INDEX": "1"}, None, 3, ([1, 4], [])),
        ({"RANK": "1", "WORLD_SIZE": "2"}, None, None, ([1, 3], [0, 2, 4])),
    ],
)  # fmt: skip
def test_which_shards_a_process_runs(tmp_path, monkeypatch, environment, chosen, parts, expected):
    from actionfuse.extract.shard_run import my_shards

    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    plan = plan_shards(listed(40), {}, 5, open_objects(tmp_path))
    own, others = my_shards(plan, chosen, parts)
    assert ([shard.number for shard in own], sorted(shard.number for shard in others)) == expected


def test_ranks_help_in_orders_of_their_own(tmp_path, monkeypatch):
    from actionfuse.extract.shard_run import my_shards

    plan = plan_shards(listed(400), {}, 100, open_objects(tmp_path))
    orders = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        orders.append([shard.number for shard in my_shards(plan)[1]])
    # the shards of rank 2, as both others come to them
    first, second = ([number for number in order if number in {*orders[0]} & {*orders[1]}] for order in orders[:2])
    assert sorted(first) == sorted(second) and first != second
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "10")
    assert my_shards(plan)[1] == []
    own, others = my_shards(plan, help_others=True)
    assert own == plan.shards[1::10] and {shard.id for shard in own + others} == {shard.id for shard in plan.shards}


@pytest.mark.parametrize("options", [["--dry-run"], ["--overwrite"], ["--processes", "2"], ["--engine", "ray"]])
def test_a_plan_refuses_what_it_would_not_do(folder: Path, tmp_path: Path, capsys, options):
    assert main(["shards", "plan", str(folder), "--out", str(tmp_path / "out"), *options]) == 2
    assert options[0] in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_cluster_without_room_is_refused():
    import argparse

    from actionfuse.extract.ray_engine import sizes

    def asked(**given):
        return argparse.Namespace(**{"device": "cpu", "models": None, "decoders": None, **given})

    assert sizes(asked(), {"CPU": 8.0}) == (1, 7, 0.0)
    assert sizes(asked(device="auto"), {"CPU": 32.0, "GPU": 4.0}) == (4, 7, 1.0)
    with pytest.raises(ValueError, match="would wait for CPUs for ever"):
        sizes(asked(), {"CPU": 1.0})
    with pytest.raises(ValueError, match="would wait for CPUs for ever"):
        sizes(asked(decoders=8), {"CPU": 8.0})
    with pytest.raises(ValueError, match="as many GPUs"):
        sizes(asked(device="cuda", models=2), {"CPU": 8.0, "GPU": 1.0})
