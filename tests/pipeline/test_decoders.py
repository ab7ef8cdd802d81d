"""One contract for all decoders, on all kinds of files: frame i shows i, at its own time, however it is asked for."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import videos
from installed import need_decoder

from actionfuse.pipeline import VideoError, VideoReader, open_video
from actionfuse.pipeline.decoders import _container, _decode_pass
from actionfuse.pipeline.video import scaled_size

# What the other decoders read right; anything else they must refuse. PyAV reads all.
DECORD_READS = set(
    "plain bframes one_gop ntsc odd_name vfr vfr_gaps start_mp4 fragmented gray no_count one_frame two_frames "
    "cover_art bt601 bt709 full_range full_range_601 untagged".split()
)
TORCHCODEC_READS = DECORD_READS | set(
    "open_gop rotate90 rotate180 rotate270 edit_list edit_list_av gif tenbit_h264 tenbit_hevc odd_444 rgb".split()
)
READS = {"pyav": set(videos.GOOD), "decord": DECORD_READS, "torchcodec": TORCHCODEC_READS}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, cache = tmp_path_factory.mktemp("videos"), {}

    def get(kind: str) -> videos.Made:
        if kind not in cache:
            cache[kind] = videos.make(kind, folder)
        return cache[kind]

    return get


def whole(reader: VideoReader, short_side: int | None = None, **options) -> tuple[np.ndarray, np.ndarray]:
    frames = [f for (f,) in reader.all_frames((short_side,), **options)]
    return np.concatenate([f.data for f in frames]), np.concatenate([f.pts_seconds for f in frames])


def frame_on_screen(times: np.ndarray, moments: np.ndarray, slack: float) -> np.ndarray:
    return np.array([max([k for k, t in enumerate(times) if t <= m + slack], default=0) for m in moments])


@pytest.mark.parametrize(("decoder", "kind"), [(d, k) for d in READS for k in sorted(READS[d])])
def test_contract(decoder, kind, made):
    need_decoder(decoder)
    video = made(kind)
    with open_video(video.path, decoder) as reader:
        info = reader.info
        data, times = whole(reader, start_seconds=-np.inf)
        # Every frame once, in order, at its time.
        assert videos.read_codes(data, video.rotation_degrees) == video.numbers
        assert (np.diff(times) > 0).all()
        if video.seconds is not None:
            assert np.abs(times - video.seconds).max() <= (0.0005 if info.container == "matroska" else 1e-9)
        # What is said of the file before reading it.
        assert (info.width, info.height) == video.size == (data.shape[2], data.shape[1])
        assert info.rotation_degrees == video.rotation_degrees
        assert info.num_frames == len(video.numbers)
        assert info.has_audio == video.has_audio
        assert info.start_seconds == times[0]
        gaps = np.diff(times) if len(times) > 1 else np.array([0.04])
        assert info.stop_seconds == pytest.approx(times[-1] + gaps.min(), abs=0.0021)
        assert info.variable_frame_rate == kind.startswith("vfr")
        assert info.average_fps == pytest.approx(len(times) / (info.stop_seconds - info.start_seconds), rel=0.001)
        assert reader.damage == []
        assert reader.decoder == decoder
        # Any order, with repeats, inside of frames and at their very times.
        shuffle = random.Random(kind)
        ends = np.append(times[1:], info.stop_seconds)
        picks = shuffle.choices(range(len(times)), k=12)
        asked = np.array([times[k] + shuffle.choice((0.0, 0.5, 0.9)) * (ends[k] - times[k]) for k in picks])
        found = reader.frames_at(asked)
        assert np.array_equal(found.pts_seconds, times[picks])
        assert np.array_equal(found.data, data[picks])
        for moment, pick in zip(asked[:3], picks, strict=False):
            (one,) = reader.frames_at([moment]).data
            assert np.array_equal(one, data[pick])
        # A grid of times, two sizes in one pass.
        side = 24
        small_size = scaled_size(info.width, info.height, side)
        for fps in (4.0, 1 / gaps.min(), 37.0):
            moments = info.start_seconds + np.arange(200) / fps
            expected = frame_on_screen(times, moments[moments < info.stop_seconds - reader.slack_seconds],
                                       reader.slack_seconds)  # fmt: skip
            got = list(reader.select((info.start_seconds + k / fps for k in itertools.count()), (None, side), batch=7))
            assert all(len(a) == len(b) <= 7 for a, b in got)
            assert np.array_equal(np.concatenate([a.pts_seconds for a, _ in got]), times[expected][: len(moments)])
            assert np.array_equal(np.concatenate([a.data for a, _ in got]), data[expected])
            small = np.concatenate([b.data for _, b in got])
            assert small.shape[1:] == (small_size[1], small_size[0], 3)
            numbers = np.array(video.numbers)[expected].tolist()
            assert videos.read_codes(small, video.rotation_degrees) == numbers
        # Parts of the video.
        middle = len(times) // 2
        start, stop = times[middle], times[-1]
        part = list(reader.stream(start_seconds=start, stop_seconds=stop, batch=5))
        part_times = np.concatenate([f.pts_seconds for f in part]) if part else np.zeros(0)
        assert np.array_equal(part_times, times[middle:-1])
        if part:
            assert np.array_equal(np.concatenate([f.data for f in part]), data[middle:-1])
        late = whole(reader, start_seconds=times[-1] + 0.4 * (ends[-1] - times[-1]))
        assert np.array_equal(late[1], times[-1:]) and np.array_equal(late[0], data[-1:])
        again, _ = whole(reader, start_seconds=-np.inf)
        assert np.array_equal(again, data)
        if reader.rest():
            assert reader.info == info and np.array_equal(reader.frames_at(asked).data, data[picks])


@pytest.mark.parametrize(("decoder", "kind"), [(d, k) for d in READS for k in videos.GOOD if k not in READS[d]])
def test_what_a_decoder_reads_wrong_it_refuses(decoder, kind, made):
    need_decoder(decoder)
    with pytest.raises(ValueError, match=f"{decoder} cannot be trusted with this file: .*decoder='pyav'"):
        open_video(made(kind).path, decoder)


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_damage_is_an_error_for_decoders_that_do_not_get_past_it(decoder, made):
    need_decoder(decoder)
    with pytest.raises(VideoError, match="damaged_middle.mp4: "), open_video(made("damaged_middle").path, decoder) as r:
        whole(r)
    with pytest.raises(ValueError, match="damaged"):
        open_video(made("truncated").path, decoder)


def test_damaged_middle_shows_the_rest(made):
    video = made("damaged_middle")
    with open_video(video.path) as reader:
        data, times = whole(reader)
        shown = dict(zip(np.round(times, 6).tolist(), data, strict=True))
        for number, second in zip(video.numbers, video.seconds, strict=True):
            assert videos.read_code(shown[round(second, 6)]) == number
        assert (np.diff(times) > 0).all()
        assert any("damage" in note for note in reader.damage)
        # Behind the damage, by a jump.
        assert videos.read_codes(reader.frames_at([3.5, 0.2, 2.6]).data) == [87, 5, 65]


def test_file_that_ends_early_shows_what_is_there(made):
    video = made("truncated")
    with open_video(video.path) as reader:
        assert reader.info.num_frames == len(video.numbers)
        assert reader.info.stop_seconds == pytest.approx(len(video.numbers) / 25)
        data, _ = whole(reader)
        # PyAV 17 drops the frame that it holds when it meets the half packet at the cut.
        assert videos.read_codes(data) in (video.numbers, video.numbers[:-1])
        assert "cut off" in reader.damage[0]


@pytest.mark.parametrize("kind", sorted(videos.BROKEN))
@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_nothing_to_show(kind, decoder, tmp_path):
    path = videos.make_broken(kind, tmp_path)
    with pytest.raises(VideoError, match=f"{path.name}: .{{10}}"):
        open_video(path, decoder)


def test_recordings_put_end_to_end_go_on_in_time(tmp_path):
    one = videos.write_counting_video(tmp_path / "a.ts", 30, container="mpegts")
    two = videos.write_counting_video(tmp_path / "b.ts", 30, first_number=30, container="mpegts")
    (tmp_path / "both.ts").write_bytes(one.read_bytes() + two.read_bytes())
    with open_video(tmp_path / "both.ts") as reader:
        data, times = whole(reader)
        assert videos.read_codes(data) == list(range(60))
        assert np.allclose(np.diff(times), 0.04)
        assert reader.info.duration_seconds == pytest.approx(2.4)
        assert videos.read_codes(reader.frames_at(reader.info.start_seconds + np.array([1.9, 0.5])).data) == [47, 12]


LONG = {
    "mp4": dict(codec="libx264", bframes=3, codec_options={"b-pyramid": "normal"}),
    "mkv": dict(codec="libx264", bframes=3),
    "ts": dict(codec="libx264", bframes=3),
    "mov": dict(codec="libx265", bframes=3),
    "webm": dict(codec="libvpx-vp9"),
    "avi": dict(codec="mpeg4", bframes=2),
    "mpg": dict(codec="mpeg2video", bframes=2),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("suffix", sorted(LONG))
def test_jumps_land_where_reading_through_does(suffix, threads, tmp_path):
    path = videos.write_counting_video(tmp_path / f"long.{suffix}", 300, gop=20, **LONG[suffix])
    with open_video(path, threads=threads) as reader:
        data, times = whole(reader, start_seconds=-np.inf)
        assert videos.read_codes(data) == list(range(300))
        shuffle = random.Random(suffix)
        for count in (1, 2, 5, 40):
            picks = shuffle.sample(range(300), count)
            found = reader.frames_at(times[picks])
            assert np.array_equal(found.pts_seconds, times[picks])
            assert np.array_equal(found.data, data[picks])
        for stride in (2, 3, 7, 31, 90):  # ascending, with and without jumps, pictures left out between
            got = [f for (f,) in reader.select(times[5::stride] + 0.001)]
            assert np.array_equal(np.concatenate([f.data for f in got]), data[5::stride])


def _cut_out_of_open_groups(folder: Path) -> Path:
    options = {"x264-params": "open-gop=1:keyint=24:bframes=3"}
    source = videos.write_counting_video(folder / "source.mp4", 120, bframes=3, codec_options=options)
    videos.ffmpeg("-ss", "0.7", "-i", source, "-c", "copy", folder / "cut.mp4")
    return folder / "cut.mp4"


def _av1(folder: Path) -> Path:
    options = {"preset": "12", "svtav1-params": "lp=1"}
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        return videos.write_counting_video(folder / "av1.webm", 80, codec="libsvtav1", gop=16, codec_options=options)
    finally:
        os.sched_setscheduler(0, *before)  # run by root, SVT-AV1 leaves its caller with the highest real-time priority


def _refreshed_bit_by_bit(folder: Path) -> Path:
    """One whole key frame; those after it are marks at which a refresh of the picture begins."""
    pictures = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), np.uint8)
    return videos.write_counting_video(
        folder / "refresh.mp4", 100, codec_options={"x264-params": "intra-refresh=1:keyint=16", "crf": "40"},
        pictures=lambda number: pictures[number // 18],
    )  # fmt: skip


ANY_WAY = {
    "refreshed bit by bit": _refreshed_bit_by_bit,
    "cut out of open groups": _cut_out_of_open_groups,
    "av1": _av1,
    "starts at 5 s": lambda folder: videos.make("start_mp4", folder).path,
    "damaged": lambda folder: videos.make("damaged_middle", folder).path,
    "cut off": lambda folder: videos.make("truncated", folder).path,
}


@pytest.mark.parametrize("kind", ANY_WAY)
def test_any_way_of_asking_gives_the_same(kind, tmp_path):
    """Whatever was asked for before, by however many threads; but damage leaves traces in its group of pictures, which
    are others where decoding begins in the group before.
    """
    path = ANY_WAY[kind](tmp_path)
    with open_video(path, threads=1) as reader:
        data, times = whole(reader)
        start, stop, slack = reader.info.start_seconds, reader.info.stop_seconds, reader.slack_seconds
    readers = [open_video(path, threads=threads) for threads in (1, 2, 3)]
    draw = random.Random(kind)
    for trip in range(40):
        reader = draw.choice(readers)
        moments = sorted(draw.uniform(start - 0.1, stop - 0.001) for _ in range(draw.choice([1, 2, 4, 8])))
        first = max(0, int(np.searchsorted(times, moments[0] + slack, "right")) - 1)
        way = trip % 4
        if way == 0:  # not to the end
            asked = reader.select(moments, batch=1)
            found = [next(asked)[0] for _ in range(draw.randint(1, len(moments)))]
            asked.close()
            wanted = frame_on_screen(times, np.array(moments[: len(found)]), slack)
        elif way == 1:
            found = [frames for (frames,) in reader.all_frames(start_seconds=moments[0], batch=7)]
            wanted = np.arange(first, len(times))
        elif way == 2:
            reader.rest()
            found = [reader.frames_at(moments[::-1], outside="clamp")]
            wanted = frame_on_screen(times, np.array(moments[::-1]), slack)
        else:
            found = [reader.frames_at(times[first : first + 6 : 2])]
            wanted = np.arange(first, min(first + 6, len(times)), 2)
        assert np.array_equal(np.concatenate([frames.pts_seconds for frames in found]), times[wanted]), trip
        whole_group = (times[wanted] < 1.92) | (times[wanted] >= 2.4) if kind == "damaged" else slice(None)
        pictures = np.concatenate([frames.data for frames in found])
        assert np.array_equal(pictures[whole_group], data[wanted][whole_group]), trip
    for reader in readers:
        reader.close()


def test_frames_of_avi_files_come_in_order(tmp_path):
    """AVI has no times of display, and those that FFmpeg guesses for reordered h264 are in another order."""
    path = videos.write_counting_video(tmp_path / "reordered.avi", 60, gop=20, bframes=3)
    with open_video(path) as reader:
        data, times = whole(reader)
        assert videos.read_codes(data) == list(range(60))
        assert np.allclose(np.diff(times), 1 / 25) and not reader.damage
        assert videos.read_codes(reader.frames_at(times[[40, 3, 17]]).data) == [40, 3, 17]


def test_a_video_that_starts_before_zero_is_read_from_its_start(tmp_path):
    """The clock of MPEG-TS runs over after 95443.7 s; FFmpeg counts what came before as negative."""
    source = videos.write_counting_video(tmp_path / "source.mp4", 50)
    path = tmp_path / "over.ts"
    videos.ffmpeg("-i", source, "-c", "copy", "-output_ts_offset", "95441", path)
    with open_video(path) as reader:
        assert reader.info.start_seconds < -1
        assert videos.read_codes(whole(reader)[0]) == list(range(50))
        assert videos.read_codes(np.concatenate([frames.data for frames in reader.stream(fps=25)])) == list(range(50))


def test_only_what_is_needed_is_decoded(tmp_path, monkeypatch):
    path = videos.write_counting_video(tmp_path / "long.mp4", 600, gop=20, bframes=3)
    sent = []
    decode = _decode_pass.DecodePass._decode
    monkeypatch.setattr(
        _decode_pass.DecodePass, "_decode", lambda self, p: (sent.append(self._skipping), decode(self, p))
    )
    with open_video(path, threads=1) as reader:
        for start in range(3, 500, 61):  # clips over key frames: nothing is decoded twice
            sent.clear()
            clip = list(range(start, start + 40, 4))
            shown = videos.read_codes(reader.frames_at([k / 25 for k in clip]).data)
            assert shown == clip and len(sent) <= start % 20 + 40 + 4
        sent.clear()
        assert videos.read_codes(reader.frames_at([1.0, 23.0, 12.02]).data) == [25, 575, 300]
        assert 3 < len(sent) < 80
        sent.clear()
        # Every fifth frame: no jumps, but of the pictures in between some are not decoded.
        assert videos.read_codes(next(reader.stream(fps=5)).data) == list(range(0, 320, 5))
        assert sum(sent) > 60


def test_a_small_queue_gives_the_same(made, monkeypatch):
    video = made("one_gop")
    monkeypatch.setattr(_decode_pass, "MAX_QUEUED_BYTES", 100)
    with open_video(video.path) as reader:
        assert videos.read_codes(reader.frames_at([2.2, 0.1, 1.3]).data) == [55, 2, 32]


def test_an_index_answers_without_reading_packets(made, monkeypatch):
    monkeypatch.setattr(_container, "_survey_packets", lambda *_: pytest.fail("the file was read through"))
    assert open_video(made("bframes").path).info.num_frames == 60


def test_two_passes_at_a_time(made):
    with open_video(made("bframes").path) as reader:
        pairs = zip(reader.stream(batch=1), reader.stream(start_seconds=0.8, batch=1), strict=False)
        for k, (a, b) in enumerate(pairs):
            assert videos.read_codes(a.data) == [k] and videos.read_codes(b.data) == [k + 20]


@pytest.mark.parametrize("decoder", sorted(READS))
def test_times_outside(decoder, made):
    need_decoder(decoder)
    with open_video(made("start_mp4").path, decoder) as reader:  # 5 s to 7 s
        for wrong in ([4.9], [5.0, 7.0], [8.0]):
            with pytest.raises(ValueError, match=r"\[5.000000, 7.000000\)"):
                reader.frames_at(wrong)
        assert videos.read_codes(reader.frames_at([4.985]).data) == [0]  # rounded, not outside
        clamped = reader.frames_at([9.0, -1.0, 5.5], outside="clamp")
        assert videos.read_codes(clamped.data) == [49, 0, 12]
        with pytest.raises(ValueError, match="'error' or 'clamp'"):
            reader.frames_at([5.0], outside="wrap")
        with pytest.raises(ValueError, match="finite"):
            reader.frames_at([float("nan")])
        assert len(reader.frames_at([], short_side=24)) == 0
        assert [f for (f,) in reader.select([1.0, 2.0])][0].pts_seconds.tolist() == [5.0, 5.0]
        assert list(reader.select([7.0, 8.0])) == []
        with pytest.raises(ValueError, match="ascend"):
            list(reader.select([5.5, 5.4]))
        with pytest.raises(ValueError, match="batch"):
            list(reader.select([5.5], batch=0))
        with pytest.raises(ValueError, match="fps"):
            list(reader.stream(fps=0))


@pytest.mark.parametrize("decoder", sorted(READS))
def test_closing(decoder, made):
    need_decoder(decoder)
    with open_video(made("plain").path, decoder) as reader:
        reader.frames_at([0.1])
    with pytest.raises(ValueError, match="closed"):
        reader.frames_at([0.1])
    reader.close()


def _codes(reader: VideoReader) -> list[int]:
    return videos.read_codes(reader.frames_at([1.5, 0.2]).data) + videos.read_codes(next(reader.stream(batch=3)).data)


def _answer(connection, reader: VideoReader) -> None:
    connection.send(_codes(reader))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_other_processes(decoder, start, made):
    need_decoder(decoder)
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform does not {start}")
    with open_video(made("bframes").path, decoder) as reader:
        running = reader.stream(batch=2)
        next(running)  # in the middle of a pass, decoding threads alive
        expected = _codes(reader)
        assert expected == [37, 5, 0, 1, 2]
        context = multiprocessing.get_context(start)
        ours, theirs = context.Pipe()
        child = context.Process(target=_answer, args=(theirs, reader))
        child.start()
        answered = ours.poll(60)
        if not answered:
            child.kill()
        assert answered and ours.recv() == expected
        child.join(60)
        assert child.exitcode == 0
        assert videos.read_codes(next(running).data) == [2, 3]  # the parent's pass is unharmed


def _collect(connection) -> None:
    connection.send(gc.collect() >= 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_forked_child_leaves_the_parents_garbage_alone(made):
    gc.disable()  # until the fork, so that the decoder is garbage that nobody has collected
    try:
        container = av.open(made("bframes").path)
        container.streams.video[0].thread_type = "FRAME"
        frames = container.decode(video=0)
        next(frames)  # starts its decoding threads
        circle: list = [container, frames]
        circle.append(circle)
        del container, frames, circle
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_collect, args=(theirs,))
        child.start()
        answered = ours.poll(20)
        child.kill()
        child.join()
    finally:
        gc.enable()
        gc.collect()
    assert answered and ours.recv()


@pytest.mark.parametrize("decoder", sorted(READS))
def test_pickling(decoder, made):
    need_decoder(decoder)
    with open_video(made("bframes").path, decoder) as reader:
        copy = pickle.loads(pickle.dumps(reader))
    with copy:
        assert copy.info == reader.info and _codes(copy) == [37, 5, 0, 1, 2]


def test_names():
    for wrong, near in {"pyva": "'pyav'", "Decord": "'decord'"}.items():
        with pytest.raises(ValueError, match=f"no decoder is named '{wrong}'; did you mean {near}"):
            open_video("a.mp4", wrong)
    with pytest.raises(ValueError, match="there are: auto, decord, pyav, torchcodec"):
        open_video("a.mp4", "zzz")
    with pytest.raises(ValueError, match="threads is -1"):
        open_video("a.mp4", threads=-1)


def test_a_missing_library_is_told(made, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("decord", "torchcodec"):
        monkeypatch.setattr(f"actionfuse.pipeline.decoders.{name}.find_spec", lambda _: None)
        with pytest.raises(ValueError, match=f"needs the package {name}.*decoder='pyav'"):
            open_video(made("plain").path, name)


def test_opening_imports_neither_torch_nor_other_decoders(made):
    script = (
        "import sys\nfrom actionfuse.pipeline import open_video\n"
        f"with open_video({str(made('plain').path)!r}) as reader:\n"
        "    assert len(reader.frames_at([0.5, 1.0])) == 2 and reader.decoder == 'pyav'\n"
        "assert not {'torch', 'decord', 'torchcodec', 'cv2'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent)
