"""Videos behind URLs: the same pictures as files give, few bytes for few frames, faults tried again."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from videos import write_counting_video

from actionfuse.pipeline import VideoError, open_video
from actionfuse.pipeline import remote as remote_module
from actionfuse.pipeline.inputs import find_videos, listed_inputs
from actionfuse.pipeline.probe import probe
from actionfuse.pipeline.remote import ATTEMPTS, BLOCK_BYTES, RangeFile, is_url, retried

fsspec = pytest.importorskip("fsspec")
NUMBERS = itertools.count()


@pytest.fixture
def store(tmp_path: Path) -> str:
    """URL of a folder with a.mp4 and sub/b.mkv; tmp_path/v has the same files."""
    (tmp_path / "v" / "sub").mkdir(parents=True)
    write_counting_video(tmp_path / "v" / "a.mp4", 60, (64, 48), 25, audio=True)
    write_counting_video(tmp_path / "v" / "sub" / "b.mkv", 30, (64, 48), 25)
    url = f"memory://bucket{next(NUMBERS)}"
    fs, top = fsspec.core.url_to_fs(url)
    for name in ("a.mp4", "sub/b.mkv"):
        fs.pipe_file(f"{top}/{name}", (tmp_path / "v" / name).read_bytes())
    fs.pipe_file(f"{top}/list.txt", b"# both\na.mp4\nsub/b.mkv\n")
    fs.pipe_file(f"{top}/cut.csv", b"path,start_seconds,stop_seconds\na.mp4,0,1\n")
    fs.pipe_file(f"{top}/bad.txt.mp4", b"no video")
    return url


def blob(count: int) -> tuple[str, bytes]:
    data = random.Random(0).randbytes(count)
    url = f"memory://blob{next(NUMBERS)}/x.bin"
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, data)
    return url, data


def test_what_is_a_url():
    assert is_url("s3://b/x.mp4") and is_url("https://h/x.mp4") and is_url("simplecache::s3://b/x")
    assert not any(map(is_url, ("x.mp4", "/a//b", "C:/x.mp4", "a:b.mp4", "")))


def test_inputs_behind_urls_have_keys_like_files(store: str):
    found = find_videos([store])
    assert [video.key for video in found] == ["a.mp4", "bad.txt.mp4", "sub/b.mkv"]
    assert found[0].path == f"{store}/a.mp4"
    assert [video.key for video in find_videos(f"{store}/list.txt")] == ["a.mp4", "sub/b.mkv"]
    (segment,) = find_videos(f"{store}/cut.csv")
    assert (segment.key, segment.path, segment.stop_seconds) == ("a.mp4#0.000-1.000", f"{store}/a.mp4", 1.0)
    assert [video.key for video in find_videos(f"{store}/sub/b.mkv", root=store)] == ["sub/b.mkv"]
    with pytest.raises(ValueError, match="does not exist"):
        find_videos(f"{store}/none.mp4")
    with pytest.raises(ValueError, match="no common root"):
        find_videos([store, "memory://other"] if fsspec.filesystem("memory").makedirs("/other", exist_ok=True) else [
            f"{store}/a.mp4", __file__])  # fmt: skip


def test_a_store_is_listed_once(store: str, monkeypatch: pytest.MonkeyPatch):
    fs, top = fsspec.core.url_to_fs(store)
    fs.pipe_file(f"{top}/.hidden/c.mp4", b"x")
    asked: list[str] = []
    whole = type(fs).ls

    def ls(self, path, **options):
        asked.append(path)
        return whole(self, path, **options)

    monkeypatch.setattr(type(fs), "ls", ls)
    with listed_inputs(store) as listed:
        found = {video.key: tag for video, tag in listed}
    assert sorted(found) == ["a.mp4", "bad.txt.mp4", "sub/b.mkv"] and found["bad.txt.mp4"] == "8"
    assert asked == [top, f"{top}/sub"]


@pytest.mark.parametrize("name", ["a.mp4", "sub/b.mkv"])
def test_the_same_pictures_as_from_the_file(store: str, tmp_path: Path, name: str):
    with open_video(f"{store}/{name}") as remote, open_video(tmp_path / "v" / name) as local:
        times = [0.1, 0.5, 1.1]
        assert np.array_equal(remote.frames_at(times).data, local.frames_at(times).data)
        assert remote.info.num_frames == local.info.num_frames
        for (ours,), (theirs,) in zip(remote.all_frames(), local.all_frames(), strict=True):
            assert np.array_equal(ours.data, theirs.data)


def test_probe_of_urls(store: str, tmp_path: Path):
    ours, theirs = probe(f"{store}/a.mp4"), probe(tmp_path / "v" / "a.mp4")
    assert (ours.num_frames, ours.audio, ours.file_bytes) == (theirs.num_frames, theirs.audio, theirs.file_bytes)
    assert "not a readable video" in (probe(f"{store}/bad.txt.mp4").error or "")
    assert "no such file" in (probe(f"{store}/none.mp4").error or "")
    with pytest.raises(VideoError, match="no such file"):
        open_video(f"{store}/none.mp4")
    with pytest.raises(ValueError, match="reads files on this machine only"):
        open_video(f"{store}/a.mp4", "decord")


def test_sparse_reading_fetches_blocks_and_dense_reading_reads_ahead():
    url, data = blob(60 * BLOCK_BYTES + 17)
    with RangeFile(url) as file:
        for at in (0, 50 * BLOCK_BYTES - 5, len(data) - 10):
            file.seek(at)
            assert file.read(10) == data[at : at + 10]
        assert file.requests == 4 and file.fetched_bytes <= 4 * BLOCK_BYTES  # the second lies in two blocks
        file.seek(0)
        assert file.read(10) == data[:10]
        assert file.requests == 4  # kept
    with RangeFile(url) as file:
        pieces = [file.read(32768) for _ in range(len(data) // 32768 + 1)]
        assert b"".join(pieces) == data
        assert file.fetched_bytes == len(data) and file.requests < 20


def test_faults_are_tried_again_and_then_told(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(remote_module.time, "sleep", pauses.append)
    url, data = blob(3 * BLOCK_BYTES)
    file = RangeFile(url)
    whole, faults = file._fs.cat_file, itertools.count()

    def faulty(path, start=None, end=None):
        match next(faults) % 4:
            case 0:
                raise OSError("503 Slow Down")
            case 1:
                raise TimeoutError("no answer")
            case 2:
                return whole(path, start=start, end=end)[:-1]  # broke off
        return whole(path, start=start, end=end)

    monkeypatch.setattr(file._fs, "cat_file", faulty)
    assert file.read() == data
    assert len(pauses) == 9 and pauses[2] > pauses[0]  # 3 blocks, 3 faults each, growing

    asked = []

    def refuse():
        asked.append(1)
        raise OSError("503")

    with pytest.raises(OSError, match=f"failed {ATTEMPTS} times"):
        retried(refuse, "x")
    assert len(asked) == ATTEMPTS

    def absent():
        asked.append(1)
        raise FileNotFoundError("x")

    with pytest.raises(FileNotFoundError):
        retried(absent, "x")
    assert len(asked) == ATTEMPTS + 1
