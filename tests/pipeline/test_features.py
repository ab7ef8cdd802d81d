"""FeatureStore: what is written comes back, whole or not at all, in every format."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import signal
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from actionfuse import _files
from actionfuse.pipeline import store_files, store_lmdb
from actionfuse.pipeline.features import FORMATS, Features, FeatureStore, compare, rows_at, rows_between
from actionfuse.pipeline.store_files import key_to_path, path_to_key
from actionfuse.pipeline.store_lmdb import frame_numbers, video_name

GOLDEN = Path(__file__).parents[1] / "golden" / "anticipation"
RECIPE = {"identity": {"backbone": {"name": "i3d", "side": 224}, "fps": 30}, "provenance": {"numpy": "2.0"}}
FILE_FORMATS = [name for name in FORMATS if name != "lmdb"]


@pytest.fixture(params=FORMATS)
def format(request):
    if request.param in ("hdf5", "lmdb"):
        pytest.importorskip({"hdf5": "h5py", "lmdb": "lmdb"}[request.param])
    return request.param


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """A killed process loses nothing that it wrote; only a power cut does, and no test makes one."""
    monkeypatch.setattr(_files, "flush", lambda path: None)


def rows_of(seed: int, n: int = 12, shape: tuple[int, ...] = (16,)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def put(store: FeatureStore, key: str, rows: np.ndarray, step: float = 0.5, extra=None, metadata=None) -> None:
    with store.writer(key, row_shape=rows.shape[1:]) as writer:
        writer.write(0, rows)
        starts = np.arange(len(rows)) * step
        writer.commit(starts, starts + step, metadata or {"frames": len(rows)}, extra)


def files_in(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and ".tmp" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def temporaries(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".tmp").iterdir() if path.name != "lock")


# ---------------------------------------------------------------------------------------------------------------------
# what is written comes back


@pytest.mark.parametrize("shape", [(16,), (8, 2, 3, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(tmp_path, format, dtype, shape):
    if (format, dtype) == ("lmdb", "float16"):
        with pytest.raises(ValueError, match="raw float32"):
            FeatureStore.open(tmp_path, format=format, dtype=dtype, recipe=RECIPE)
        return
    rows = rows_of(0, 40, shape)
    boxes, heard = np.random.rand(40, 3, 4).astype(np.float32), np.arange(40) % 3 == 0
    starts = np.arange(40) / 3
    stops = starts + 0.7
    store = FeatureStore.open(tmp_path, format=format, dtype=dtype, recipe=RECIPE)
    with store.writer("a/b/x.mp4", row_shape=shape) as writer:
        for first in (30, 0, 10, 20):
            writer.write(first, rows[first : first + 10])
        assert not store.has("a/b/x.mp4") and store.keys() == []
        writer.commit(starts, stops, {"fps": 29.97, "name": "Ä"}, {"boxes": boxes, "heard": heard})

    for opened in (store, FeatureStore.open(tmp_path), pickle.loads(pickle.dumps(store))):
        assert opened.has("a/b/x.mp4") and opened.check("a/b/x.mp4") is None and opened.keys() == ["a/b/x.mp4"]
        read = opened.read("a/b/x.mp4")
        assert read.data.dtype == dtype and np.array_equal(read.data, rows.astype(dtype))
        assert np.array_equal(read.start_seconds, starts) and np.array_equal(read.stop_seconds, stops)
        assert np.array_equal(read.extra["boxes"], boxes) and np.array_equal(read.extra["heard"], heard)
        assert read.extra["heard"].dtype == bool and read.extra["boxes"].dtype == np.float32
        assert read.metadata == {"fps": 29.97, "name": "Ä", "key": "a/b/x.mp4", "recipe": RECIPE}
        if format != "lmdb":
            assert isinstance(read.data, np.memmap) and read.data.flags.aligned and not read.data.flags.writeable
    assert temporaries(tmp_path) == []


def test_a_video_without_rows_is_an_output(tmp_path, format):
    store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE)
    put(store, "short.mp4", np.zeros((0, 16), np.float32))
    assert store.has("short.mp4") and store.read("short.mp4").data.shape == (0, 16)
    assert store.at("short.mp4", [1.0], missing="zeros").tolist() == [[0.0] * 16]


def test_files_are_what_their_libraries_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    rows, extra = rows_of(1), {"top5": np.arange(60).reshape(12, 5)}
    for format in FILE_FORMATS:
        put(FeatureStore.open(tmp_path / format, format=format, recipe=RECIPE), "x.mp4", rows, extra=extra)
    with np.load(tmp_path / "npz" / "x.mp4.npz", allow_pickle=False) as npz:
        assert set(npz.files) == {"features", "start_seconds", "stop_seconds", "top5", "metadata"}
        assert np.array_equal(npz["features"], rows) and np.array_equal(npz["top5"], extra["top5"])
        assert json.loads(npz["metadata"].item())["recipe"] == RECIPE
    assert np.array_equal(np.load(tmp_path / "npy" / "x.mp4.npy"), rows)
    assert np.array_equal(np.load(tmp_path / "npy" / "x.mp4@top5.npy"), extra["top5"])
    side = json.loads((tmp_path / "npy" / "x.mp4.npy.json").read_text())
    assert side["start_seconds"] == [i / 2 for i in range(12)] and side["metadata"]["frames"] == 12
    with h5py.File(tmp_path / "hdf5" / "x.mp4.h5") as file:
        assert np.array_equal(file["features"], rows) and np.array_equal(file["top5"], extra["top5"])
        assert json.loads(file["metadata"][()])["key"] == "x.mp4"


@pytest.mark.parametrize("format", FILE_FORMATS)
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, format, monkeypatch):
    store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE)
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda number: (order.append(os.fstat(number).st_ino), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append(Path(names[1]).name), replace(*names)))
    put(store, "a/x.mp4", rows_of(0))
    folder, names = tmp_path / "a", [entry for entry in order if isinstance(entry, str)]
    expected = {"npz": ["x.mp4.npz"], "npy": ["x.mp4.npy", "x.mp4.npy.json"], "hdf5": ["x.mp4.h5"]}[format]
    assert names == expected
    assert order == [step for name in names for step in ((folder / name).stat().st_ino, name, folder.stat().st_ino)]


@pytest.mark.parametrize("format", FILE_FORMATS)
def test_equal_input_makes_equal_bytes(tmp_path, format):
    rows = rows_of(2, 30)
    for name, firsts in (("one", [0, 10, 20]), ("two", [20, 0, 10])):
        store = FeatureStore.open(tmp_path / name, format=format, recipe=RECIPE)
        with store.writer("v/x.mp4", row_shape=(16,)) as writer:
            for first in firsts:
                writer.write(first, rows[first : first + 10])
            writer.commit(np.arange(30.0), np.arange(1.0, 31), {"b": 1, "a": 2}, {"z": np.ones((30, 2))})
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def test_memory_stays_flat(tmp_path, monkeypatch):
    monkeypatch.setattr(store_files, "BLOCK_BYTES", 1 << 20)
    block = rows_of(3, 64, (1024, 4))  # 1 MiB
    for format in FILE_FORMATS:
        store = FeatureStore.open(tmp_path / format, format=format, recipe=RECIPE)
        tracemalloc.start()
        with store.writer("long.mp4", row_shape=(1024, 4)) as writer:
            for first in range(0, 32 * 64, 64):
                writer.write(first, block)
            writer.commit(np.arange(2048.0), np.arange(2048.0) + 1, {})
        assert store.has("long.mp4")
        last = store.read_between("long.mp4", 2047.0, 2048.0).data
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(last, block[-1:]) and peak < 8 << 20  # of 32 MiB


# ---------------------------------------------------------------------------------------------------------------------
# the writer


def test_writer_is_thread_safe(tmp_path, format):
    rows = rows_of(4, 400)
    store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE)
    with store.writer("x.mp4", row_shape=(16,)) as writer, ThreadPoolExecutor(8) as pool:
        starts = random.Random(0).sample(range(0, 400, 4), 100)
        list(pool.map(lambda first: writer.write(first, rows[first : first + 4]), starts))
        writer.commit(np.arange(400.0), np.arange(1.0, 401), {})
    assert np.array_equal(store.read("x.mp4").data, rows)


def test_writer_refuses_what_is_wrong(tmp_path):
    store = FeatureStore.open(tmp_path, recipe=RECIPE)
    times = np.arange(3.0), np.arange(1.0, 4)
    with store.writer("x.mp4", row_shape=(4,)) as writer:
        with pytest.raises(ValueError, match=r"float32 \(2, 5\).*float \(n, 4,\)"):
            writer.write(0, np.zeros((2, 5), np.float32))
        with pytest.raises(ValueError, match="must be float"):
            writer.write(0, np.zeros((2, 4), np.int64))
        with pytest.raises(ValueError, match="counted from 0"):
            writer.write(-1, np.zeros((2, 4), np.float32))
        writer.write(1, np.zeros((2, 4), np.float32))
        with pytest.raises(ValueError, match="row 2 was written before"):
            writer.write(2, np.zeros((1, 4), np.float32))
        with pytest.raises(ValueError, match="row 0 is missing"):
            writer.commit(*times, {})
        writer.write(0, np.zeros((1, 4), np.float32))
        with pytest.raises(ValueError, match="row 2 is too many"):
            writer.commit(times[0][:2], times[1][:2], {})
        with pytest.raises(ValueError, match="row 1 has the interval"):
            writer.commit(times[0], np.array([1.0, 0.5, 3.0]), {})
        with pytest.raises(ValueError, match="row 0 has the interval"):
            writer.commit(np.array([np.nan, 1, 2]), times[1], {})
        with pytest.raises(ValueError, match=r"stop_seconds float64 \(2,\)"):
            writer.commit(times[0], times[1][:2], {})
        with pytest.raises(ValueError, match="itself adds"):
            writer.commit(*times, {"key": "y"})
        with pytest.raises(ValueError, match="not plain json"):
            writer.commit(*times, {"weights": np.zeros(3)})
        with pytest.raises(ValueError, match="must be a word"):
            writer.commit(*times, {}, {"features": np.zeros(3)})
        with pytest.raises(ValueError, match="'a': object|'a' is object|numbers or bools"):
            writer.commit(*times, {}, {"a": np.array([None] * 3)})
        with pytest.raises(ValueError, match=r"\(3, ...\)"):
            writer.commit(*times, {}, {"a": np.zeros(4)})
        writer.commit(*times, {})
        with pytest.raises(ValueError, match="closed"):
            writer.write(3, np.zeros((1, 4), np.float32))
    assert store.has("x.mp4")
    with pytest.raises(ValueError, match="open it with a recipe"):
        FeatureStore.open(tmp_path).writer("y.mp4", row_shape=(4,))


def test_float16_overflow_is_told(tmp_path):
    store = FeatureStore.open(tmp_path, dtype="float16", recipe=RECIPE)
    with store.writer("x.mp4", row_shape=(2,)) as writer:
        with pytest.raises(ValueError, match="70000 in row 6 is too large for float16"):
            writer.write(5, np.array([[1, 2], [3, 70000]], np.float32))
        writer.write(0, np.array([[np.inf, 65504]], np.float32))  # inf is what was given
        writer.commit(np.zeros(1), np.ones(1), {})
    assert store.read("x.mp4").data.tolist() == [[np.inf, 65504]]


def test_leaving_without_commit_leaves_nothing(tmp_path, format):
    store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE)
    with pytest.raises(RuntimeError), store.writer("x.mp4", row_shape=(16,)) as writer:
        writer.write(0, rows_of(0))
        assert len(temporaries(tmp_path)) == 1
        raise RuntimeError
    assert temporaries(tmp_path) == [] and not store.has("x.mp4") and store.keys() == []
    put(store, "x.mp4", rows_of(1))
    with store.writer("x.mp4", row_shape=(16,)) as writer:
        writer.write(0, rows_of(2))
    assert np.array_equal(store.read("x.mp4").data, rows_of(1))  # the old one stays until a commit


def test_rewriting_and_removing(tmp_path, format):
    store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE)
    put(store, "x.mp4", rows_of(1, 12), extra={"old": np.ones(12)})
    put(store, "y.mp4", rows_of(3, 12))
    put(store, "x.mp4", rows_of(2, 5))
    assert np.array_equal(store.read("x.mp4").data, rows_of(2, 5)) and store.read("x.mp4").extra == {}
    store.remove("x.mp4")
    store.remove("never there.mp4")
    assert store.keys() == ["y.mp4"] and store.check("x.mp4") == "there is no output"
    store.remove("y.mp4")
    assert format == "lmdb" or set(files_in(tmp_path)) == {"store.json"}


# ---------------------------------------------------------------------------------------------------------------------
# names

KEYS = [
    "x.mp4",
    "x",
    "store",
    "a/b/c/x.mp4",
    "a/x.mp4",
    "x.mp4#seg1",
    "x.mp4#2/1",
    "with blank .mp4",
    "quo\"te's.mp4",
    "50%25.mp4",
    "a@b~c.mp4",
    "日本語/ビデオ 🎬.mkv",
    ".hidden/.x.mp4",
    "q?a*b:c|d<e>\\f.mp4",
    "con/aux.mp4",
    "trailing./dot.",
    "new\nline\t.mp4",
    "x.mp4.npz/y.mp4",
    "x.mp4.npy/y.mp4",
    "surrogate\udcff.mp4",
]


def test_keys_come_back_whatever_they_hold(tmp_path, format):
    long = [f"{'very long ' * 40}{i}.mp4" for i in range(2)] + [f"{'ü' * 150}/{'%' * 90}.mp4", "%" * 70 + "/x.mp4"]
    keys = KEYS + ([] if format == "lmdb" else long)
    store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE)
    for i, key in enumerate(keys):
        if key == "x":
            if format == "lmdb":
                with pytest.raises(ValueError, match="'x' and 'x.mp4' would both be 'x'"):
                    store.writer(key, row_shape=(16,))
                continue
        put(store, key, rows_of(i))
    expected = [key for key in keys if format != "lmdb" or key != "x"]
    assert store.keys() == sorted(expected)
    for i, key in enumerate(keys):
        if key in expected:
            assert store.has(key) and np.array_equal(store.read(key).data, rows_of(i))
    for path in tmp_path.rglob("*"):
        assert len(os.fsencode(path.name)) <= 255 and not set(path.name) & set('"\\:*?<>|\n\t')
    if format == "lmdb":
        with pytest.raises(ValueError, match="too long for LMDB"):
            store.writer("x" * 600, row_shape=(16,))
        with pytest.raises(ValueError, match="actionfuse:"):
            store.writer("actionfuse:x", row_shape=(16,))


@pytest.mark.parametrize("key", ["", "/etc/x.mp4", "../x.mp4", "a/../../x.mp4", "a//x.mp4", "a/./x.mp4", "a/", None])
def test_keys_stay_inside_the_folder(tmp_path, format, key):
    store = FeatureStore.open(tmp_path / "store", format=format, recipe=RECIPE)
    for use in (store.has, store.read, store.remove, lambda name: store.writer(name, row_shape=(2,))):
        with pytest.raises(ValueError, match="is no relative path"):
            use(key)


def test_escapes_are_reversible_and_distinct():
    keys = [*KEYS, "x%2Emp4", "x.mp4@y", "CON", "con.x", "console", "COM1.mp4", "a.h5/x", "a.h5"]
    paths = [key_to_path(key) for key in keys]
    assert len(set(paths)) == len(keys) and [path_to_key(path) for path in paths] == keys
    assert key_to_path("a/b/x.mp4#1") == "a/b/x.mp4#1" and key_to_path("console/x") == "console/x"


# ---------------------------------------------------------------------------------------------------------------------
# recipes


def test_another_recipe_is_refused_with_what_differs(tmp_path, format):
    store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE)
    put(store, "x.mp4", rows_of(0))
    other = {"identity": {"backbone": {"name": "swin3d_t", "side": 224}, "fps": 30.0, "crops": [{"side": 1}]}}
    with pytest.raises(ValueError) as error:
        FeatureStore.open(tmp_path, format=format, recipe=other)
    for line in (
        "recipe.identity.backbone.name is 'i3d' there, 'swin3d_t' here",
        "recipe.identity.crops.0.side is nothing there, 1 here",
        "--overwrite",
        "another --out",
    ):
        assert line in str(error.value)
    assert (
        "fps" not in str(error.value) and "side is 224" not in str(error.value) and "provenance" not in str(error.value)
    )
    newer = {**RECIPE, "provenance": {"numpy": "3.0"}}
    assert FeatureStore.open(tmp_path, recipe=newer).has("x.mp4")  # format None: as the store says
    with pytest.raises(ValueError, match="format is"):
        FeatureStore.open(tmp_path, format="npz" if format != "npz" else "npy", recipe=RECIPE)
    with pytest.raises(ValueError, match="format is"):
        FeatureStore.open(tmp_path, format="npz" if format != "npz" else "npy")

    same = FeatureStore.open(tmp_path, format=format, recipe=RECIPE, overwrite=True)
    assert same.has("x.mp4")
    new = FeatureStore.open(tmp_path, format=format, recipe=other, overwrite=True)
    assert new.keys() == [] and not new.has("x.mp4")
    put(new, "y.mp4", rows_of(1))
    put(store, "z.mp4", rows_of(2))  # a process that began before
    assert new.has("y.mp4") and "another recipe: recipe.identity.backbone.name" in (new.check("z.mp4") or "")
    assert not FeatureStore.open(tmp_path).has("z.mp4")


def test_overwriting_with_another_format_leaves_strangers_alone(tmp_path):
    pytest.importorskip("lmdb")
    np.savez(tmp_path / "mine.npz", a=np.ones(3))
    before = None
    for format in (*FORMATS, "npz"):
        if before in ("hdf5",):
            pytest.importorskip("h5py")
        store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE, dtype="float32", overwrite=True)
        assert store.keys() == [] and (tmp_path / "mine.npz").exists()
        put(store, "x.mp4", rows_of(0), extra={"a": np.ones(12)})
        assert store.keys() == ["x.mp4"]
        before = format
    assert set(files_in(tmp_path)) == {"store.json", "x.mp4.npz", "mine.npz"}


def test_opening_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="there is no store.json"):
        FeatureStore.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'tar' is not known; there are npz, npy, hdf5, lmdb"):
        FeatureStore.open(tmp_path, format="tar", recipe=RECIPE)
    with pytest.raises(ValueError, match="no bfloat16"):
        FeatureStore.open(tmp_path, dtype="bfloat16", recipe=RECIPE)
    with pytest.raises(ValueError, match="a recipe is"):
        FeatureStore.open(tmp_path, recipe={"backbone": "i3d"})
    with pytest.raises(ValueError, match="not plain json"):
        FeatureStore.open(tmp_path, recipe={"identity": {"x": np.zeros(2)}})
    with pytest.raises(ValueError, match="frame_fps is 0"):
        FeatureStore.open(tmp_path, format="lmdb", recipe=RECIPE, frame_fps=0)
    store = FeatureStore.open(tmp_path, recipe=RECIPE)
    put(store, "kitchen.mp4", rows_of(0))
    with pytest.raises(ValueError, match="there is no output; did you mean 'kitchen.mp4'"):
        store.read("kitchn.mp4")
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(ValueError, match="store.json cannot be read"):
        FeatureStore.open(tmp_path, recipe=RECIPE)


def _open_at_once(folder, format, identity, barrier, answers):
    barrier.wait()
    try:
        store = FeatureStore.open(folder, format=format, recipe={"identity": identity})
        put(store, f"{os.getpid()}.mp4", rows_of(identity["side"]))
        answers.put((identity["side"], "made"))
    except ValueError as error:
        answers.put((identity["side"], str(error)))


@pytest.mark.parametrize("sides", [[1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]])
def test_processes_that_open_a_store_at_once(tmp_path, format, sides):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(len(sides)), context.Queue()
    children = [
        context.Process(target=_open_at_once, args=(tmp_path, format, {"side": side}, barrier, answers))
        for side in sides
    ]
    for child in children:
        child.start()
    said = [answers.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    made = [side for side, answer in said if answer == "made"]
    store = FeatureStore.open(tmp_path)
    assert len(made) == (6 if len(set(sides)) == 1 else 1)
    assert store.recipe["identity"] == {"side": made[0]} and len(store.keys()) == len(made)
    assert all("recipe.identity.side is" in answer for _, answer in said if answer != "made")
    assert all(store.has(key) and np.array_equal(store.read(key).data, rows_of(made[0])) for key in store.keys())


# ---------------------------------------------------------------------------------------------------------------------
# damage


def _damageable(folder: Path, format: str, rows: np.ndarray) -> list[tuple[Path, range]]:
    """The files of the only output, each with the bytes whose change must be told."""
    if format != "lmdb":
        names = [name for name in files_in(folder) if name != "store.json"]
        return [(folder / name, range((folder / name).stat().st_size)) for name in names]
    data = (folder / "data.mdb").read_bytes()
    spans = []
    for piece in [row.tobytes() for row in rows]:
        assert data.count(piece) == 1
        spans.append((folder / "data.mdb", range(data.find(piece), data.find(piece) + len(piece))))
    table = (np.arange(len(rows)) * 0.5).tobytes()
    return [*spans, (folder / "data.mdb", range(data.find(table), data.find(table) + len(table)))]


def test_every_flipped_bit_is_noticed(tmp_path, format):
    rows, dice = rows_of(7, 6, (1024,)), random.Random(7)
    store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE)
    put(store, "x.mp4", rows, extra={"a": np.arange(6)})
    for path, span in _damageable(tmp_path, format, rows):
        whole = path.read_bytes()
        edges = [*span[:160:5], *span[-160::5]] if format != "lmdb" else [span[0], span[-1]]
        for at in edges + dice.sample(span, 20):
            broken = bytearray(whole)
            broken[at] ^= 1 << dice.randrange(8)
            path.write_bytes(broken)
            assert store.check("x.mp4"), f"{path.name}: byte {at} of {len(whole)}"
        path.write_bytes(whole)
        assert store.has("x.mp4")
    path.write_bytes(broken)
    put(store, "x.mp4", rows, extra={"a": np.arange(6)})
    assert store.has("x.mp4")


def test_every_truncation_is_noticed(tmp_path, format):
    rows = rows_of(8, 6, (1024,))
    store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE)
    put(store, "x.mp4", rows)
    spans = {path: path.read_bytes() for path, _ in _damageable(tmp_path, format, rows)}
    for path, whole in spans.items():
        for length in {0, 1, 40, len(whole) // 3, len(whole) // 2, len(whole) - 4096, len(whole) - 1} & set(
            range(len(whole))
        ):
            path.write_bytes(whole[:length])
            reader = FeatureStore.open(tmp_path)
            assert reader.check("x.mp4"), f"{path.name} cut to {length}"
            if length < len(whole) // 2:
                with pytest.raises(ValueError, match="cannot be read"):
                    reader.read("x.mp4")
        path.write_bytes(whole)
        assert store.has("x.mp4")
        path.unlink()
        assert not store.has("x.mp4")
        path.write_bytes(whole)
    put(store, "x.mp4", rows)
    assert store.has("x.mp4")


def test_a_file_under_the_wrong_name_is_not_an_output(tmp_path):
    store = FeatureStore.open(tmp_path, recipe=RECIPE)
    put(store, "x.mp4", rows_of(0))
    (tmp_path / "x.mp4.npz").rename(tmp_path / "y.mp4.npz")
    assert store.check("y.mp4") == "the file holds the output of 'x.mp4'"


def _write_for_ever(folder, format, keys, seed):
    store, dice = FeatureStore.open(folder, format=format, recipe=RECIPE), random.Random(seed)
    store.clean()
    while True:
        i = dice.randrange(len(keys))
        put(store, keys[i], rows_of(i, 50, (256,)), extra={"a": np.arange(50)})


def test_killed_at_any_moment(tmp_path, format):
    keys = [f"{'ab'[i % 2]}/{i}.mp4" for i in range(8)]
    calm = FeatureStore.open(tmp_path / "calm", format=format, recipe=RECIPE)
    for i, key in enumerate(keys):
        put(calm, key, rows_of(i, 50, (256,)), extra={"a": np.arange(50)})
    folder, dice = tmp_path / "killed", random.Random(1)
    context = multiprocessing.get_context("fork")
    found = 0
    for turn in range(100):
        if turn >= 20 and found:
            break
        child = context.Process(target=_write_for_ever, args=(folder, format, keys, turn))
        child.start()
        # on a busy machine a child may need longer to write anything at all
        time.sleep((0.005 + dice.random() * 0.05) * max(1, turn - 18))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        if not (folder / "store.json").exists():
            continue
        store = FeatureStore.open(folder)
        assert all(store.has(key) for key in store.keys())
        for i, key in enumerate(keys):
            if store.has(key):
                found += 1
                assert np.array_equal(store.read(key).data, rows_of(i, 50, (256,)))
    assert found  # else the children were killed before any of them had written
    store = FeatureStore.open(folder, format=format, recipe=RECIPE)
    for i, key in enumerate(keys):
        if not store.has(key):
            put(store, key, rows_of(i, 50, (256,)), extra={"a": np.arange(50)})
    store.clean()
    assert temporaries(folder) == [] and store.keys() == calm.keys()
    if format == "lmdb":
        assert _lmdb_items(folder) == _lmdb_items(tmp_path / "calm")
    else:
        assert files_in(folder) == files_in(tmp_path / "calm")


def _hold_a_writer(folder, key, ready, go_on):
    store = FeatureStore.open(folder, recipe=RECIPE)
    with store.writer(key, row_shape=(16,)) as writer:
        writer.write(0, rows_of(0))
        ready.set()
        go_on.wait()
        writer.commit(np.arange(12.0), np.arange(12.0) + 1, {})


def test_clean_spares_living_writers(tmp_path):
    context = multiprocessing.get_context("fork")
    store = FeatureStore.open(tmp_path, recipe=RECIPE)
    children = []
    for key in ("dead.mp4", "alive.mp4"):
        ready, go_on = context.Event(), context.Event()
        child = context.Process(target=_hold_a_writer, args=(tmp_path, key, ready, go_on))
        child.start()
        assert ready.wait(60)
        children.append((child, go_on))
    os.kill(children[0][0].pid, signal.SIGKILL)
    children[0][0].join()
    with store.writer("own.mp4", row_shape=(16,)) as writer:
        (tmp_path / ".tmp" / "1-0123.spool").write_bytes(b"")
        (tmp_path / ".tmp" / "1-0123.features.out").write_bytes(b"")
        assert store.clean() == 2 and len(temporaries(tmp_path)) == 2 and store.clean() == 0
        children[1][1].set()
        children[1][0].join()
        writer.write(0, rows_of(1))
        writer.commit(np.arange(12.0), np.arange(12.0) + 1, {})
    assert store.keys() == ["alive.mp4", "own.mp4"] and temporaries(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------------
# reading by seconds


def test_rows_between_half_open_intervals():
    starts, stops = np.array([0.0, 1, 2, 3]), np.array([1.0, 2, 3, 3])  # the last one has no duration
    for interval, rows in {
        (0, 1): [0],
        (1, 2): [1],
        (0.5, 1.5): [0, 1],
        (3, 4): [3],
        (2.5, 3): [2],
        (1, 1): [],
        (-5, 50): [0, 1, 2, 3],
        (4, 9): [],
    }.items():
        assert rows_between(starts, stops, *interval).tolist() == rows, interval
    with pytest.raises(ValueError, match="ends before it starts"):
        rows_between(starts, stops, 2, 1)


def test_rows_at_hand_computed():
    starts, stops = np.array([0.0, 0.5, 1.0, 3.0]), np.array([1.0, 1.5, 2.0, 4.0])
    times = np.array([-0.1, 0.0, 0.5, 0.75, 0.76, 1.0, 1.5, 2.0, 2.9, 3.0, 9.0])
    assert rows_at(starts, stops, times).tolist() == [-1, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert rows_at(starts, stops, times, causal=True).tolist() == [-1, -1, -1, -1, -1, 0, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_rows_at_against_a_plain_search(seed):
    dice = np.random.default_rng(seed)
    n = int(dice.integers(0, 12))
    starts = dice.integers(0, 20, n) / 2
    stops = starts + (1.0 if seed % 2 else dice.integers(0, 8, n) / 2)
    times = np.arange(-2, 30) / 2 + dice.choice([0.0, 0.25])

    def plain(time, causal):
        covering = [i for i in range(n) if starts[i] <= time < stops[i]]
        if covering and not causal:
            return min(abs((starts[i] + stops[i]) / 2 - time) for i in covering), covering
        return max((stops[i] for i in range(n) if stops[i] <= time), default=None), None

    for causal in (False, True):
        for moment, row in zip(times, rows_at(starts, stops, times, causal), strict=True):
            best, covering = plain(moment, causal)
            if covering:
                assert row in covering and abs((starts[row] + stops[row]) / 2 - moment) == best
            elif best is None:
                assert row == -1
            else:
                assert stops[row] == best
            assert not causal or row < 0 or stops[row] <= moment


def test_reading_by_seconds(tmp_path, format):
    rows, heard = rows_of(9, 20), np.arange(20) % 2 == 0
    store = FeatureStore.open(tmp_path, format=format, recipe=RECIPE)
    put(store, "x.mp4", rows, step=0.5, extra={"heard": heard})
    store.read("x.mp4").metadata["recipe"]["identity"].clear()  # the reader's own copy
    part = store.read_between("x.mp4", 1.2, 3.0)
    assert part.metadata["recipe"] == RECIPE
    assert np.array_equal(part.data, rows[2:6]) and part.start_seconds.tolist() == [1.0, 1.5, 2.0, 2.5]
    assert np.array_equal(part.extra["heard"], heard[2:6]) and part.metadata["key"] == "x.mp4"
    assert len(store.read_between("x.mp4", 50, 60)) == 0
    got = store.at("x.mp4", [3.1, 0.0, 99.0])
    assert np.array_equal(got, rows[[6, 0, 19]]) and got.flags.writeable
    assert np.array_equal(store.at("x.mp4", [3.1, 0.5], causal=True), rows[[5, 0]])
    with pytest.raises(ValueError, match="x.mp4: no row has ended at 0.4 s"):
        store.at("x.mp4", [3.1, 0.4], causal=True)
    assert np.array_equal(store.at("x.mp4", [3.1, 0.4], causal=True, missing="zeros"), [rows[5], np.zeros(16)])
    with pytest.raises(ValueError, match="'error' or 'zeros'"):
        store.at("x.mp4", [1.0], missing="nan")
    with store.writer("shuffled.mp4", row_shape=(16,)) as writer:  # rows need not be in the order of time
        writer.write(0, rows)
        order = np.random.default_rng(0).permutation(20)
        writer.commit(order * 0.5, order * 0.5 + 0.5, {})
    assert np.array_equal(store.at("shuffled.mp4", [4.2]), rows[order == 8])
    assert np.array_equal(store.read_between("shuffled.mp4", 2.0, 4.0).data, rows[(order >= 4) & (order < 8)])


def test_features_check_themselves():
    times = np.zeros(2), np.ones(2)
    assert "float32 (2, 4), 0.000..1.000 s" in repr(Features(np.zeros((2, 4), np.float32), *times))
    with pytest.raises(ValueError, match="float32 or float16"):
        Features(np.zeros((2, 4)), *times)
    with pytest.raises(ValueError, match=r"stop_seconds is float64 \(1,\)"):
        Features(np.zeros((2, 4), np.float32), times[0], np.ones(1))
    with pytest.raises(ValueError, match="row 0 has the interval"):
        Features(np.zeros((2, 4), np.float32), times[1], times[0])
    with pytest.raises(ValueError, match=r"extra\['a'\]"):
        Features(np.zeros((2, 4), np.float32), *times, {}, {"a": np.zeros(3)})


# ---------------------------------------------------------------------------------------------------------------------
# lmdb


def _lmdb_items(folder: Path) -> dict[bytes, bytes]:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), readonly=True) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


def _foreign_lmdb(folder: Path, videos: dict[str, dict[int, np.ndarray]]) -> None:
    lmdb = pytest.importorskip("lmdb")
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 28) as environment, environment.begin(write=True) as transaction:
        for video, frames in videos.items():
            for number, row in frames.items():
                transaction.put(f"{video}_frame_{number:010d}.jpg".encode(), row.astype("float32").tobytes())


def test_lmdb_has_the_keys_that_rulstm_reads(tmp_path):
    rows = rows_of(0, 90, (1024,))
    store = FeatureStore.open(tmp_path, format="lmdb", recipe=RECIPE)
    put(store, "P01/P01_01.MP4", rows, step=1 / 30)
    items = _lmdb_items(tmp_path)
    for i in range(90):
        value = items.pop(f"P01/P01_01_frame_{i + 1:010d}.jpg".encode())
        assert np.array_equal(np.frombuffer(value, "float32"), rows[i])
    assert all(key.startswith(b"actionfuse:") for key in items)
    # a loader that asks at t for frame floor(t * 30) sees nothing after t
    for i in range(1, 90):
        assert np.array_equal(store.at("P01/P01_01.MP4", [(i + 0.5) / 30], causal=True)[0], rows[i - 1])


def test_lmdb_frame_numbers():
    assert frame_numbers(np.arange(1, 2000) / 30, 30.0).tolist() == list(range(1, 2000))
    assert frame_numbers(np.round(np.arange(1, 2000) / 30, 3), 30.0).tolist() == list(range(1, 2000))  # matroska
    assert frame_numbers(np.array([0.0, 0.01, 0.034, 0.05, 2.1]), 30.0).tolist() == [1, 1, 1, 2, 63]
    assert frame_numbers(np.array([16 / 25, 24 / 25]), 30.0).tolist() == [20, 29]  # the frame in which it ends
    assert [
        video_name(key) for key in ("a/x.mp4", "x.MP4#2", "x.m2ts", "x.3gp", "P01_01", "v1.5", "a.b/x", "t.0#1.5")
    ] == [
        "a/x",
        "x#2",
        "x",
        "x",
        "P01_01",
        "v1.5",
        "a.b/x",
        "t.0#1.5",
    ]


def test_lmdb_refuses_two_rows_for_one_key(tmp_path):
    pytest.importorskip("lmdb")
    store = FeatureStore.open(tmp_path, format="lmdb", recipe=RECIPE)
    with pytest.raises(ValueError, match="rows 0 and 1 .* are both frame 1 at frame_fps 30; .* higher frame_fps"):
        put(store, "x.mp4", rows_of(0), step=1 / 60)
    assert not store.has("x.mp4")
    with pytest.raises(ValueError, match="frame_fps is 30.0 there, 60.0 here"):
        FeatureStore.open(tmp_path, recipe=RECIPE, frame_fps=60)
    store = FeatureStore.open(tmp_path, recipe=RECIPE, frame_fps=60, overwrite=True)
    put(store, "x.mp4", rows_of(0), step=1 / 60)
    assert store.has("x.mp4") and FeatureStore.open(tmp_path).frame_fps == 60


def test_lmdb_map_grows_and_long_videos_take_several_transactions(tmp_path, monkeypatch):
    pytest.importorskip("lmdb")
    monkeypatch.setattr(store_lmdb, "MAP_BYTES", 1 << 16)
    monkeypatch.setattr(store_lmdb, "TRANSACTION_BYTES", 1 << 18)
    store = FeatureStore.open(tmp_path, format="lmdb", recipe=RECIPE)
    rows = rows_of(0, 500, (1024,))  # 2 MB
    put(store, "x.mp4", rows, step=1 / 30)
    put(store, "y.mp4", rows[:10], step=1 / 30)
    assert np.array_equal(store.read("x.mp4").data, rows) and store.has("x.mp4") and store.has("y.mp4")
    spool_write = store._files._run

    def fail_in_the_middle(work, write=False, turns=[2]):  # noqa: B006 (counts over calls)
        if write:
            turns[0] -= 1
            if turns[0] < 0:
                raise OSError("no space left")
        return spool_write(work, write)

    monkeypatch.setattr(store._files, "_run", fail_in_the_middle)
    with pytest.raises(OSError, match="no space"):
        put(store, "x.mp4", rows + 1, step=1 / 30)
    again = FeatureStore.open(tmp_path, recipe=RECIPE)
    assert again.keys() == ["y.mp4"] and again.check("x.mp4") == "there is no output" and again.has("y.mp4")
    put(again, "x.mp4", rows[:3] + 2, step=1 / 30)
    left = [key for key in _lmdb_items(tmp_path) if key.startswith(b"x_frame_")]
    assert len(left) == 3 and again.has("x.mp4")  # nothing of the longer ones stays


def _write_some(folder, keys):
    store = FeatureStore.open(folder, recipe=RECIPE)
    for key in keys:
        put(store, key, rows_of(len(key), 200, (512,)), step=1 / 30)


def test_lmdb_takes_several_processes_and_threads(tmp_path, monkeypatch):
    pytest.importorskip("lmdb")
    monkeypatch.setattr(store_lmdb, "MAP_BYTES", 1 << 14)
    store = FeatureStore.open(tmp_path, format="lmdb", recipe=RECIPE)
    context = multiprocessing.get_context("fork")
    parts = [[f"{i}{'x' * k}.mp4" for k in range(6)] for i in range(3)]
    children = [context.Process(target=_write_some, args=(tmp_path, part)) for part in parts]
    for child in children:
        child.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: put(store, f"t{i}.mp4", rows_of(i, 200, (512,)), step=1 / 30), range(6)))
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert len(store.keys()) == 24 and all(store.has(key) for key in store.keys())


def test_lmdb_that_grows_while_it_is_opened_is_opened_again(tmp_path, monkeypatch):
    lmdb = pytest.importorskip("lmdb")
    store = FeatureStore.open(tmp_path, format="lmdb", recipe=RECIPE)
    put(store, "x.mp4", rows_of(1, 20, (4,)), step=1 / 30)
    lmdb_open, turns = lmdb.open, []

    def grown_once(*args, **kwargs):
        turns.append(kwargs)
        if len(turns) == 1:
            raise lmdb.MapResizedError("mdb_txn_begin")
        return lmdb_open(*args, **kwargs)

    monkeypatch.setattr(lmdb, "open", grown_once)
    assert store.keys() == ["x.mp4"] and len(turns) == 2


@pytest.mark.parametrize("times", [2, 99])
def test_lmdb_that_cannot_be_opened_for_a_moment_is_tried_again(tmp_path, monkeypatch, times):
    lmdb = pytest.importorskip("lmdb")
    store = FeatureStore.open(tmp_path, format="lmdb", recipe=RECIPE)
    put(store, "x.mp4", rows_of(1, 20, (4,)), step=1 / 30)
    lmdb_open, turns = lmdb.open, []

    def fails_at_first(*args, **kwargs):
        turns.append(kwargs)
        if len(turns) <= times:
            raise lmdb.Error("Bad file descriptor")
        return lmdb_open(*args, **kwargs)

    monkeypatch.setattr(lmdb, "open", fails_at_first)
    if times == 2:
        assert store.keys() == ["x.mp4"] and len(turns) == 3
    else:
        with pytest.raises(ValueError, match="cannot be used: Bad file descriptor"):
            store.keys()


def test_lmdb_of_rulstm_is_read(tmp_path):
    frames = {
        video: {n: np.full(8, n + 1000 * v) for n in range(1, 100, v + 1)} for v, video in enumerate(["P01_01", "P02"])
    }
    frames["P01_011"] = {5: np.zeros(8)}
    _foreign_lmdb(tmp_path / "rgb", frames)
    store = FeatureStore.open(tmp_path / "rgb")
    assert store.keys() == ["P01_01", "P01_011", "P02"] and all(store.has(key) for key in store.keys())
    assert not store.has("P03")
    read = store.read("P02")
    assert read.data.shape == (50, 8) and read.data[:, 0].tolist() == [1000.0 + n for n in range(1, 100, 2)]
    assert read.stop_seconds[3] == 7 / 30 and read.start_seconds[3] == 6 / 30
    assert store.at("P02", [8.5 / 30], causal=True)[0, 0] == 1007  # frame 8 is not stored: the last before it
    assert store.read_between("P01_01", 1.0, 2.0).data[:, 0].tolist() == list(range(31, 61))
    with pytest.raises(ValueError, match="open for reading"):
        store.writer("P03", row_shape=(8,))
    with pytest.raises(ValueError, match="another program wrote"):
        FeatureStore.open(tmp_path / "rgb", format="lmdb", recipe=RECIPE)
    with pytest.raises(ValueError, match="P03.*did you mean"):
        store.read("P03")


def test_causal_reads_are_rulstm_frames(tmp_path):
    """The frames that RULSTM's dataset reads before 300 EPIC-KITCHENS-55 validation segments (golden)."""
    golden = np.load(GOLDEN / "rulstm_frames_ek55_val.npz")
    starts, wanted = golden["start"], golden["past_frames"]
    rows = np.flatnonzero((wanted > 1).all(axis=1) & (np.diff(wanted, axis=1) > 0).all(axis=1))[:300]
    used = sorted(set(wanted[rows].ravel().tolist()))
    _foreign_lmdb(tmp_path / "rgb", {"video": {n: np.array([n]) for n in used}})
    store = FeatureStore.open(tmp_path / "rgb")
    taus = np.arange(0.25, 3.75, 0.25)[::-1]
    assert len(rows) == 300
    for row in rows:
        got = store.at("video", starts[row] / 30 - taus, causal=True)[:, 0]
        assert got.tolist() == wanted[row].tolist()


# ---------------------------------------------------------------------------------------------------------------------
# comparing


def test_compare(tmp_path):
    base = rows_of(0, 60, (64,))
    stores = {}
    for name, rows in {"a": base, "same": base, "half": base * 2, "late": np.roll(base, 2, axis=0)[:50]}.items():
        stores[name] = FeatureStore.open(tmp_path / name, recipe=RECIPE, format="npy" if name == "same" else "npz")
        put(stores[name], "x.mp4", rows)
    put(stores["same"], "only.mp4", base)
    put(stores["half"], "other.mp4", base[:, :8])
    same = compare(stores["a"], stores["same"])
    assert same["x.mp4"].cosine == pytest.approx(1) and same["x.mp4"].max_abs_difference == 0
    assert same["only.mp4"].problem == f"only in {tmp_path / 'same'}" and str(same["only.mp4"]).startswith(
        "only.mp4: only"
    )
    half = compare(stores["a"], stores["half"])["x.mp4"]
    assert half.cosine == pytest.approx(1) and half.max_rel_difference == pytest.approx(1)
    assert half.max_abs_difference == pytest.approx(np.abs(base).max()) and half.row_offset == 0
    late = compare(stores["a"], stores["late"])["x.mp4"]
    assert (late.rows_a, late.rows_b, late.row_offset) == (60, 50, 2) and late.cosine_at_offset == pytest.approx(1)
    assert late.cosine < 0.5 and "cosine 1.000000" in str(late) and late.max_time_difference_seconds == 0
    pairs = compare(stores["a"], stores["half"], pairs={"x.mp4": "other.mp4"})
    assert pairs["x.mp4"].problem == "rows of shape (64,) and (8,)"
