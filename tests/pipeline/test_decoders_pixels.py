"""Pixels: equal for all decoders, in the right colours, and those of FFmpeg's own scaler."""

from __future__ import annotations

import av
import numpy as np
import pytest
import videos
from av.filter import Graph
from installed import need_decoder

from actionfuse.pipeline import open_video
from actionfuse.pipeline.decoders._pixels import Scaler
from actionfuse.pipeline.video import Size, VideoInfo, scaled_size


def natural(number: int, size: tuple[int, int] = (130, 98)) -> np.ndarray:
    """A moving picture with edges, gradients and fine texture in all colours."""
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    red = 127 + 120 * np.sin((x + 3 * number) / 9) * np.cos(y / 7)
    green = (x * 255 / width + number * 5) % 256
    blue = np.where(((x // 5) + (y // 8) + number) % 2 > 0, 230.0, 25.0)
    noise = np.random.default_rng(number).normal(0, 12, (height, width, 1))
    return np.clip(np.stack([red, green, blue], -1) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("pixels") / "natural.mp4"
    return videos.write_counting_video(path, 20, (130, 98), bframes=2, pictures=natural)


SIDES = (None, 98, 97, 64, 49, 48, 31, 16, 140)  # native, even and odd longer sides, larger than native


def test_decord_gives_equal_pixels(clip):
    need_decoder("decord")
    with open_video(clip, "pyav") as ours, open_video(clip, "decord") as theirs:
        for a, b in zip(ours.all_frames(SIDES), theirs.all_frames(SIDES), strict=True):
            for side, mine, other in zip(SIDES, a, b, strict=True):
                assert np.array_equal(mine.data, other.data), side


def test_torchcodec_gives_equal_pixels_unless_scaled(clip):
    need_decoder("torchcodec")
    with open_video(clip, "pyav") as ours, open_video(clip, "torchcodec") as theirs:
        for a, b in zip(ours.all_frames((None, 64)), theirs.all_frames((None, 64)), strict=True):
            assert np.array_equal(a[0].data, b[0].data)
            # Its scaler interpolates colours otherwise, so pixels differ where colours do; over blocks they must not.
            blocks = [
                f.data.astype(float)[:, :, :80].reshape(len(f), 8, 8, 10, 8, 3).mean((2, 4)) for f in (a[1], b[1])
            ]
            assert np.abs(blocks[0] - blocks[1]).mean() <= 2


@pytest.mark.parametrize("side", SIDES)
def test_pixels_are_those_of_the_scale_filter(clip, side):
    with open_video(clip) as reader:
        (frames,) = [f for (f,) in reader.all_frames((side,))]
        width, height = scaled_size(130, 98, side)
    assert frames.data.shape[1:] == (height, width, 3)
    raw = videos.ffmpeg("-i", clip, "-vf", f"scale={width}:{height}:flags=bilinear:in_v_chr_pos=128,format=rgb24",
                        "-fps_mode", "passthrough", "-f", "rawvideo", "-")  # fmt: skip
    expected = np.frombuffer(raw, np.uint8).reshape(frames.data.shape)
    # Another version of FFmpeg may round otherwise, and place colours by half a pixel.
    assert np.abs(frames.data.astype(int) - expected).mean() < 2


def _one_step(frame: av.VideoFrame, width: int, height: int, kernel: str = "flags=bilinear") -> np.ndarray:
    graph = Graph()
    source = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:pixel_aspect=1/1"
        f":colorspace={frame.colorspace}:range={frame.color_range}",
    )
    chroma = ":in_v_chr_pos=128" if "420" in frame.format.name else ""
    scale = graph.add("scale", f"{width}:{height}:{kernel}{chroma}")
    graph.link_nodes(source, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


KERNELS = {"bilinear": "flags=bilinear", "bicubic": "flags=bicubic:param0=0:param1=0.5"}
FORMATS = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12", "gray"]


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_faster_ways_to_scale_are_exact(pixel_format):
    """By planes of 4:2:2 for even widths, of red, green and blue for odd ones: both equal the plain filter."""
    random = np.random.default_rng(5)
    for width, height in ((320, 180), (322, 182), (131, 99), (256, 256), (90, 160)):
        info = VideoInfo("", "", "", pixel_format, width, height, 0, 1, 0.0, 1.0, 1.0, False, False)
        picture = natural(1, (width, height))
        noise = random.integers(0, 256, picture.shape, np.uint8)
        frames = [av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=pixel_format) for rgb in (picture, noise)]
        sides = random.integers(8, min(width, height), 12).tolist()
        for side in (*sides, *(min(width, height) + np.array([-24, -17, -9, -1, 9])).tolist()):
            for interpolation, kernel in KERNELS.items():
                scaler = Scaler(info, Size(side, interpolation))
                if interpolation == "bicubic" and scaler.width % 2 == 0:
                    continue  # cut off at 0 and 255 between the two steps
                row = np.empty((scaler.height, scaler.width, 3), np.uint8)
                for frame in frames:
                    scaler.write(frame, row)
                    plain = _one_step(frame, scaler.width, scaler.height, kernel)
                    assert np.array_equal(row, plain), (width, height, side, interpolation)


@pytest.mark.parametrize("kind", ["bt601", "bt709", "full_range", "full_range_601", "untagged"])
@pytest.mark.parametrize("side", [None, 47])
def test_colours_are_the_tagged_ones(kind, side, tmp_path):
    video = videos.make(kind, tmp_path)
    with open_video(video.path) as reader:
        (frames,) = [f for (f,) in reader.all_frames((side,))]
    height, width = frames.data.shape[1:3]
    centres = np.ix_(((np.arange(4) + 0.5) * height / 4).astype(int), ((np.arange(4) + 0.5) * width / 4).astype(int))
    for number, frame in enumerate(frames.data):
        truth = videos.counting_frame(number, (width, height))
        # The wrong matrix is 5 to 10 levels off, the wrong range 15.
        assert np.abs(frame[centres].astype(int) - truth[centres]).mean() <= 2.5


@pytest.mark.parametrize("kind", ["tenbit_h264", "gray", "odd_444", "odd_420", "rgb", "gif", "interlaced", "mpeg4_avi"])
def test_pixels_agree_with_the_ffmpeg_program(kind, tmp_path):
    video = videos.make(kind, tmp_path)
    with open_video(video.path) as reader:
        data = np.concatenate([f.data for (f,) in reader.all_frames(start_seconds=-np.inf)])
    assert np.abs(data.astype(int) - videos.ffmpeg_frames(video.path, video.size)).mean() <= 2


def test_large_frames_come_in_small_batches(clip, monkeypatch):
    monkeypatch.setattr("actionfuse.pipeline.decoders._pixels.MAX_BATCH_BYTES", 3 * 130 * 98 * 3)
    with open_video(clip) as reader:
        assert [len(f) for (f,) in reader.all_frames()] == [3] * 6 + [2]
        assert [len(f) for (f,) in reader.all_frames((16,))] == [20]


def test_threads_change_no_pixel(tmp_path):
    path = videos.write_counting_video(
        tmp_path / "large.mp4", 2, (1280, 840), pictures=lambda k: natural(k, (1280, 840))
    )
    with open_video(path, threads=1) as one, open_video(path, threads=3) as three:
        for a, b in zip(one.all_frames((None, 300, 301)), three.all_frames((None, 300, 301)), strict=True):
            assert all(np.array_equal(x.data, y.data) for x, y in zip(a, b, strict=True))
