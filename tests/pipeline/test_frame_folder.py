"""Folders and tars of frames: what is a frame, when it is on screen, and what happens to broken ones."""

import pickle
import tarfile
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from videos import counting_frame, read_codes, write_counting_video

from actionfuse.pipeline import VideoError, open_video
from actionfuse.pipeline.decoders.frame_folder import FrameFolderReader
from actionfuse.pipeline.inputs import is_frame_folder


def write_frame(path: Path, number: int, size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), counting_frame(number, size)[..., ::-1])
    return path


def write_frames(folder: Path, pattern: str, numbers, first: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """One image for each number; its picture shows number - first."""
    for number in numbers:
        write_frame(folder / (pattern % number), number - first, size)
    return folder


def all_codes(reader: FrameFolderReader) -> list[int]:
    return [code for (frames,) in reader.all_frames() for code in read_codes(frames.data)]


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        ("%010d.jpg", 1),
        ("frame_%010d.jpg", 1),
        ("img_%05d.jpg", 1),
        ("%d.png", 0),
        ("f%d_rgb.JPG", 0),
        ("a1-%03d.webp", 7),
    ],
)
def test_numbered_frames_in_order(tmp_path, pattern, first):
    write_frames(tmp_path, pattern, range(first, first + 23), first)
    assert is_frame_folder(tmp_path)
    with FrameFolderReader(tmp_path, frame_fps=10) as reader:
        assert (reader.info.num_frames, reader.info.width, reader.info.height) == (23, 64, 48)
        assert reader.info.duration_seconds == pytest.approx(2.3)
        assert reader.info.average_fps == pytest.approx(10)
        assert not reader.info.variable_frame_rate
        assert all_codes(reader) == list(range(23))
        frames = reader.frames_at([2.2, 0.0, 0.19, 0.2, 0.2])
        assert read_codes(frames.data) == [22, 0, 1, 2, 2]
        np.testing.assert_allclose(frames.pts_seconds, [2.2, 0.0, 0.1, 0.2, 0.2])


def test_colour_and_any_order_agree_with_the_pictures(tmp_path):
    write_frames(tmp_path, "%03d.png", range(5))
    with FrameFolderReader(tmp_path) as reader:
        data = reader.frames_at([4 / 30, 0.0]).data
    np.testing.assert_array_equal(data, [counting_frame(4), counting_frame(0)])


def test_missing_numbers_are_gaps_in_time(tmp_path):
    write_frames(tmp_path, "%05d.jpg", [1, 2, 3, 7, 8, 12], first=1)
    with FrameFolderReader(tmp_path, frame_fps=10) as reader:
        assert reader.info.variable_frame_rate
        assert reader.info.num_frames == 6
        assert reader.info.duration_seconds == pytest.approx(1.2)
        (frames,) = next(reader.select(k / 10 for k in range(12)))
        assert read_codes(frames.data) == [0, 1, 2, 2, 2, 2, 6, 7, 7, 7, 7, 11]
        np.testing.assert_allclose([f.pts_seconds for (f,) in reader.all_frames()], [[0, 0.1, 0.2, 0.6, 0.7, 1.1]])
        assert reader.damage == []


def test_select_ends_with_the_video_and_wants_ascending_times(tmp_path):
    write_frames(tmp_path, "%02d.jpg", range(10))
    with FrameFolderReader(tmp_path, frame_fps=10) as reader:
        batches = [frames for (frames,) in reader.select((k / 20 for k in count()), batch=8)]
        assert [len(frames) for frames in batches] == [8, 8, 4]
        assert [c for frames in batches for c in read_codes(frames.data)] == [k // 2 for k in range(20)]
        with pytest.raises(ValueError, match="ascending"):
            list(reader.select([0.5, 0.4]))
        assert list(reader.select([5.0])) == []
        (frames,) = next(reader.select([-1.0, 0.0]))
        assert read_codes(frames.data) == [0, 0]
        assert [read_codes(f.data) for f in reader.stream(fps=5, start_seconds=0.2, stop_seconds=0.8)] == [[2, 4, 6]]
        assert [read_codes(f.data) for f in reader.stream(start_seconds=0.55, stop_seconds=0.8)] == [[5, 6, 7]]


def test_times_outside(tmp_path):
    write_frames(tmp_path, "%02d.jpg", range(4))
    with FrameFolderReader(tmp_path, frame_fps=10) as reader:
        for seconds in (-0.1, 0.4, 9.0, float("nan")):
            with pytest.raises(ValueError, match="no frame is on screen|finite"):
                reader.frames_at([seconds])
        assert read_codes(reader.frames_at([-3.0, 9.0], outside="clamp").data) == [0, 3]
        with pytest.raises(ValueError, match="'error' or 'clamp'"):
            reader.frames_at([0.0], outside="wrap")


def test_names_without_numbers_are_in_natural_order(tmp_path):
    for number, name in enumerate(["a2b9x1", "a2b10x1", "a10b1x1", "b"]):
        write_frame(tmp_path / f"{name}.png", number)
    assert not is_frame_folder(tmp_path)
    with FrameFolderReader(tmp_path) as reader:
        assert all_codes(reader) == [0, 1, 2, 3]


def test_flow_beside_frames_is_left_out_and_other_series_need_a_pattern(tmp_path):
    both = tmp_path / "both"
    write_frames(both, "img_%05d.jpg", range(3))
    write_frames(both, "flow_x_%05d.jpg", range(100, 103))
    write_frames(both, "flow_y_%05d.jpg", range(100, 103))
    assert is_frame_folder(both)
    with FrameFolderReader(both) as reader:
        assert all_codes(reader) == [0, 1, 2]
    with FrameFolderReader(both / "flow_x_%05d.jpg") as reader:
        assert all_codes(reader) == [100, 101, 102]
    two = tmp_path / "two"
    write_frames(two, "left%d.jpg", range(3))
    write_frames(two, "right%d.jpg", range(50, 53))
    assert not is_frame_folder(two)
    with pytest.raises(VideoError, match=r"2 series of frames \(left%d.jpg, right%d.jpg\)"):
        FrameFolderReader(two)
    with FrameFolderReader(two / "right%d.jpg") as reader:
        assert all_codes(reader) == [50, 51, 52]
    with pytest.raises(VideoError, match="no file fits"):
        FrameFolderReader(two / "up%d.jpg")


def test_one_number_twice_and_numbers_that_are_times(tmp_path):
    write_frames(tmp_path / "a", "%03d.jpg", range(3))
    write_frame(tmp_path / "a" / "001.png", 1)
    with pytest.raises(VideoError, match="one number"):
        FrameFolderReader(tmp_path / "a")
    for number in (0, 1):
        write_frame(tmp_path / "c" / f"{1_600_000_000_000_000 + 33_333 * number}.jpg", number)
    with pytest.raises(VideoError, match="look like times"):
        FrameFolderReader(tmp_path / "c")
    (tmp_path / "c" / "timestamps.txt").write_text("# seconds\n1.5\n1.75\n")
    with FrameFolderReader(tmp_path / "c") as reader:
        assert reader.info.start_seconds == 1.5
        assert reader.info.duration_seconds == 0.5
        assert read_codes(reader.frames_at([1.6, 1.8]).data) == [0, 1]
    for wrong in ("1.5\n", "2\n1\n", "one\ntwo\n", "1 2\n3 4\n"):
        (tmp_path / "c" / "timestamps.txt").write_text(wrong)
        with pytest.raises(VideoError, match="timestamps.txt"):
            FrameFolderReader(tmp_path / "c")


def test_sizes_follow_the_first_frame_and_short_side(tmp_path):
    write_frames(tmp_path, "%d.jpg", range(2), size=(128, 96))
    write_frame(tmp_path / "2.jpg", 2, (320, 180))
    with FrameFolderReader(tmp_path) as reader:
        ((large, small),) = list(reader.all_frames((None, 24)))
    assert large.data.shape == (3, 96, 128, 3)
    assert small.data.shape == (3, 24, 32, 3)
    assert read_codes(large.data) == read_codes(small.data) == [0, 1, 2]


def test_reduced_jpegs_stay_close_and_do_not_depend_on_what_else_is_asked_for(tmp_path):
    grid = np.mgrid[0:720, 0:1280]
    picture = np.stack([127 + 100 * np.sin(grid[0] / (9 + k) + grid[1] / (31 - 5 * k)) for k in range(3)], -1)
    cv2.imwrite(str(tmp_path / "1.jpg"), picture.astype(np.uint8))
    with FrameFolderReader(tmp_path) as reader:
        ((full, small),) = list(reader.all_frames((None, 112)))
        alone = reader.frames_at([0.0], short_side=112)
    np.testing.assert_array_equal(small.data, alone.data)
    want = np.asarray(Image.fromarray(full.data[0]).resize((200, 112), Image.Resampling.BILINEAR))
    assert np.abs(want.astype(int) - small.data[0]).mean() < 0.5


def test_scaling_is_that_of_the_other_decoders(tmp_path):
    grid = np.mgrid[0:180, 0:320]
    picture = np.stack([127 + 100 * np.sin(grid[0] / (9 + k) + grid[1] / (31 - 5 * k)) for k in range(3)], -1)
    picture = picture.astype(np.uint8)
    options = {"codec": "libx264rgb", "pix_fmt": "rgb24", "codec_options": {"crf": "0"}}
    video = write_counting_video(tmp_path / "a.mp4", 2, (320, 180), pictures=lambda _: picture, **options)
    cv2.imwrite(str(tmp_path / "1.png"), picture[..., ::-1])
    with FrameFolderReader(tmp_path / "%d.png") as frames, open_video(video) as other:
        a, b = frames.frames_at([0.0], short_side=64), other.frames_at([0.0], short_side=64)
    assert np.abs(a.data.astype(int) - b.data).mean() < 2


@pytest.mark.parametrize("harm", ["text", "empty", "cut", "gone"])
def test_a_broken_frame_is_told_and_the_one_before_stays(tmp_path, harm):
    write_frames(tmp_path, "%02d.jpg", range(8))
    reader = FrameFolderReader(tmp_path, frame_fps=10)
    for number in (0, 4, 5):
        path = tmp_path / f"{number:02d}.jpg"
        data = path.read_bytes()
        if harm == "gone":
            path.unlink()
        else:
            path.write_bytes({"text": b"no picture", "empty": b"", "cut": data[: len(data) * 2 // 3]}[harm])
    with reader:
        (frames,) = next(reader.select(k / 10 for k in range(8)))
        assert read_codes(frames.data) == [1, 1, 2, 3, 3, 3, 6, 7]
        np.testing.assert_allclose(frames.pts_seconds, [0.1, 0.1, 0.2, 0.3, 0.3, 0.3, 0.6, 0.7])
        assert read_codes(reader.frames_at([0.5, 0.0]).data) == [3, 1]
        assert all_codes(reader) == [1, 2, 3, 6, 7]
        assert [reason.split(":")[0] for reason in reader.damage] == ["00.jpg", "04.jpg", "05.jpg"]


def test_nothing_to_show(tmp_path):
    for name, match in (("empty", "no frames"), ("text", "no frames"), ("broken", "none of the 3 frames can be read")):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(3):
            if name != "empty":
                (folder / f"{number}.{'txt' if name == 'text' else 'jpg'}").write_text("no picture")
        with pytest.raises(VideoError, match=match):
            FrameFolderReader(folder)
    with pytest.raises(VideoError, match="No such file"):
        FrameFolderReader(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="frame_fps is 0"):
        FrameFolderReader(tmp_path, frame_fps=0)


def pack(folder: Path, path: Path, prefix: str = "", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for file in sorted(folder.iterdir(), reverse=True):
            tar.add(file, prefix + file.name)
    return path


@pytest.mark.parametrize("prefix", ["", "./", "P01/P01_01/"])
def test_a_tar_reads_like_its_folder(tmp_path, prefix):
    folder = write_frames(tmp_path / "frames", "frame_%010d.jpg", range(1, 31), first=1)
    tar = pack(folder, tmp_path / "frames.tar", prefix)
    with FrameFolderReader(folder) as one, FrameFolderReader(tar) as other:
        assert other.info.container == "tar"
        ((a,), (b,)) = next(one.all_frames()), next(other.all_frames())
        np.testing.assert_array_equal(a.data, b.data)
        np.testing.assert_array_equal(a.pts_seconds, b.pts_seconds)


def test_tars_that_cannot_be_read(tmp_path):
    folder = write_frames(tmp_path / "frames", "%d.jpg", range(3))
    with pytest.raises(VideoError, match="compressed"):
        FrameFolderReader(pack(folder, tmp_path / "a.tar", mode="w:gz"))
    two = pack(folder, tmp_path / "two.tar", "one/")
    pack(folder, two, "two/", mode="a")
    with pytest.raises(VideoError, match=r"2 folders \(one, two"):
        FrameFolderReader(two)
    (tmp_path / "text.tar").write_text("no tar" * 1000)
    with pytest.raises(VideoError, match="no tar of frames"):
        FrameFolderReader(tmp_path / "text.tar")
    (tmp_path / "zero.tar").write_bytes(b"")
    with pytest.raises(VideoError):
        FrameFolderReader(tmp_path / "zero.tar")


def test_a_tar_that_breaks_off_shows_what_is_there(tmp_path):
    folder = write_frames(tmp_path / "frames", "%d.jpg", range(10))
    tar = pack(folder, tmp_path / "a.tar")  # 9.jpg comes first
    with tarfile.open(tar) as whole:
        cut = whole.getmember("4.jpg").offset_data + 100
    tar.write_bytes(tar.read_bytes()[:cut])
    with FrameFolderReader(tar, frame_fps=10) as reader:
        codes = [code for (frames,) in reader.select([0.0, 0.1, 0.3]) for code in read_codes(frames.data)]
        assert all_codes(reader) == [5, 6, 7, 8, 9]
        assert reader.damage
        assert codes == [5, 5, 7]  # the header of 4.jpg is there: it is frame 0


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_readers_pickle(tmp_path, kind):
    path = write_frames(tmp_path / "frames", "%d.jpg", range(5))
    if kind == "tar":
        path = pack(path, tmp_path / "frames.tar")
    with FrameFolderReader(path, frame_fps=12.5) as reader, pickle.loads(pickle.dumps(reader)) as copy:
        assert copy.info == reader.info
        reader.close()
        assert all_codes(copy) == [0, 1, 2, 3, 4]


def test_what_a_frame_folder_is(tmp_path):
    write_frames(tmp_path / "frames", "%d.jpg", range(2))
    write_frame(tmp_path / "covers" / "cover.jpg", 1)
    write_frame(tmp_path / "mixed" / "1.jpg", 1)
    (tmp_path / "mixed" / "clip.mp4").touch()
    write_frame(tmp_path / "album" / "1.jpg", 1)
    (tmp_path / "album" / "more").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "frames" / ".hidden.mp4").touch()
    (tmp_path / "frames" / "readme.txt").touch()
    folders = ["frames", "covers", "mixed", "album", "empty", "."]
    assert [is_frame_folder(tmp_path / name) for name in folders] == [True] + [False] * 5
