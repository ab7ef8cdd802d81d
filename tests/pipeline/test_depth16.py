"""Depth of 16 bits: read exactly, cut by the nearest pixel, scaled by a stated rule; 8 bits stay what they were."""

import pickle
import shutil
import tarfile

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from videos import write_counting_video

from actionfuse.backbones.contract import InputSpec, stream_spec
from actionfuse.pipeline import (
    Anticipation,
    Augmentation,
    Clip,
    DepthFrames,
    Sampling,
    SegmentDataset,
    StreamSpec,
    VideoError,
    collate,
    open_video,
)
from actionfuse.pipeline.annotations import Segment
from actionfuse.pipeline.datasets.contract import Dataset, load_dataset
from actionfuse.pipeline.decoders.frame_files import FolderOfFrames
from actionfuse.pipeline.depth import paint_jet, scale_by_nearest, scale_depth
from actionfuse.pipeline.protocols import RULES
from actionfuse.pipeline.transforms import Geometry, apply_geometry
from actionfuse.train.rgbd import JoinDepth

HEIGHT, WIDTH, FRAMES = 48, 64, 6


def write_depth(folder, name="MDepth-%08d.png", frames=FRAMES, low=0):
    """Frames of numbers over all of 0..65535, of which no two in a frame are equal; `low` changes their low byte."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0).permutation(65536)[: frames * HEIGHT * WIDTH].astype(np.uint16)
    pictures = (numbers ^ np.uint16(low)).reshape(frames, HEIGHT, WIDTH)
    for n, picture in enumerate(pictures):
        assert cv2.imwrite(str(folder / (name % (n + 1))), picture)
    return pictures


def depth_spec(**options):
    return StreamSpec(**({"stream": "depth", "frames": 4, "fps": 30, "resize_side": 32, "crop": 32} | options))


def samples_of(root, folders, spec, **options):
    """One segment a folder."""
    segments = tuple(Segment(f, 0.0, FRAMES / 30, f, {"action": n}) for n, f in enumerate(folders))
    made = Dataset(
        name="own", split="all", segments=segments, classes={}, root=root, paths={"depth": "{video}"},
        frame_rates={"depth": 30.0},
    )  # fmt: skip
    return SegmentDataset(made, [spec], sampling=Sampling(rule="segments"), **options)


@pytest.mark.parametrize("extension", ["png", "tiff", "pgm"])
@pytest.mark.parametrize("tar", [False, True])
def test_all_bits_are_read(tmp_path, extension, tar):
    pictures = write_depth(tmp_path / "d", f"%05d.{extension}")
    path = tmp_path / "d"
    if tar:
        path = tmp_path / "d.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "d", "d")
    with open_video(path, frame_fps=30) as reader:
        assert (reader.info.pixel_format, reader.depth_bits) == ("gray16", 16)
        depth = reader.depth_at([k / 30 for k in (5, 0, 0, 3)])
        assert depth.data.dtype == np.uint16
        np.testing.assert_array_equal(depth.data[..., 0], pictures[[5, 0, 0, 3]])
        np.testing.assert_allclose(depth.pts_seconds, [5 / 30, 0, 0, 3 / 30])
        with pytest.raises(ValueError, match="no frame is on screen"):
            reader.depth_at([1.0])
        assert len(reader.depth_at([1.0], "clamp")) == 1 and len(reader.depth_at([])) == 0
        # Pictures of them are cut to 8 bits as ever, in three equal channels.
        shown = reader.frames_at([0.0]).data
        assert shown.dtype == np.uint8 and np.abs(shown[0, ..., 0] - pictures[0] / 257).max() <= 1
        copy = pickle.loads(pickle.dumps(reader))
        with copy:
            np.testing.assert_array_equal(copy.depth_at([0.0]).data[0, ..., 0], pictures[0])


def test_depth_of_8_bits_is_the_first_channel(tmp_path):
    write_counting_video(tmp_path / "a.mp4", 10, (64, 48), 10)
    with open_video(tmp_path / "a.mp4") as reader:
        assert reader.depth_bits == 8
        np.testing.assert_array_equal(reader.depth_at([0.5]).data, reader.frames_at([0.5]).data[..., :1])
    with pytest.raises(ValueError, match=r"must be uint8 or uint16 \(T, H, W, 1\)"):
        DepthFrames(np.zeros((1, 2, 2, 3), np.uint16), np.zeros(1))


def test_broken_frames_and_others_among_them(tmp_path):
    pictures = write_depth(tmp_path)
    (tmp_path / "MDepth-00000003.png").write_bytes(b"no png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(tmp_path / "MDepth-00000004.png")
    larger = np.repeat(np.repeat(pictures[4], 2, 0), 2, 1)
    assert cv2.imwrite(str(tmp_path / "MDepth-00000005.png"), larger)
    with open_video(tmp_path, frame_fps=30) as reader:
        depth = reader.depth_at([k / 30 for k in range(FRAMES)])
        # The last good frame stands in, and a larger one is scaled by the nearest pixel.
        np.testing.assert_array_equal(depth.data[..., 0], pictures[[0, 1, 1, 1, 4, 5]])
        assert len(reader.damage) == 2 and "uint8 depth among frames of 16 bits" in reader.damage[1]
    for file in tmp_path.iterdir():
        if file.name != "MDepth-00000001.png":
            file.unlink()
    with open_video(tmp_path) as reader:
        (tmp_path / "MDepth-00000001.png").write_bytes(b"gone")
        with pytest.raises(VideoError, match="none of the 1 frames can be read"):
            reader.depth_at([0.0])


def test_scale():
    every = np.arange(65536, dtype=np.uint16)
    whole = scale_depth(every, None)
    assert whole.dtype == np.float32 and len(np.unique(whole)) == 65536
    assert (whole[0], whole[257], whole[65535]) == (0, 1, 255)
    metres = scale_depth(every, (500, 4500))
    assert (metres[[0, 1, 500, 2500, 4500, 60000]] == [0, 1, 1, 128, 255, 255]).all()
    assert (np.diff(metres[500:4501]) > 0).all() and metres.dtype == np.float32
    naive = [0.0 if d == 0 else 1 + (min(max(d, 500), 4500) - 500) / 4000 * 254 for d in range(0, 65536, 97)]
    np.testing.assert_allclose(metres[::97], naive, rtol=1e-6)
    low = np.arange(256, dtype=np.uint8)
    assert scale_depth(low, None) is low
    np.testing.assert_allclose(scale_depth(low, (0, 254))[1:], low[1:].clip(max=254) + 1.0, rtol=1e-6)
    with pytest.raises(ValueError, match="it must be uint8 or uint16"):
        scale_depth(low.astype(np.int32), None)


def test_jet_tells_apart_what_depth_does():
    whole = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    painted = paint_jet(whole)
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(paint_jet(whole.astype(np.float32)), painted)
    grey = scale_depth(np.arange(65536, dtype=np.uint16).reshape(1, 256, 256, 1), None)
    fine = paint_jet(grey)
    assert fine.dtype == np.float32 and fine.min() >= 0 and fine.max() <= 255
    assert len(np.unique(fine.reshape(-1, 3), axis=0)) > 60000  # at both ends one of jet's 256 steps may be no step


@pytest.mark.parametrize("flip", [False, True])
def test_a_cut_keeps_values_and_places(flip):
    depth = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(1, HEIGHT, WIDTH, 1) * np.uint16(21)
    geometry = Geometry((0.25, 0.0, 0.75, 1.0), (24, 16), flip)
    cut = apply_geometry(Clip({"depth": depth}, 0.0, 1.0), geometry).streams["depth"]
    expected = depth[:, 1::2, 17:48:2]
    np.testing.assert_array_equal(cut, expected[:, :, ::-1] if flip else expected)


@pytest.mark.parametrize("options", [{}, {"depth_range": (0.0, 65535.0)}, {"colour_map": "jet"}])
def test_samples_differ_where_low_bytes_do(tmp_path, options):
    first = write_depth(tmp_path / "one")
    second = write_depth(tmp_path / "two", low=3)
    assert (first >> 8 == second >> 8).all() and (first != second).all()
    dataset = samples_of(tmp_path, ["one", "two"], depth_spec(**options))
    one, two = (sample.streams["depth"] for sample in (dataset[0], dataset[1]))
    assert one.dtype == torch.float32 and one.shape == (4, 32, 32, 3 if "colour_map" in options else 1)
    assert (one != two).any(-1).float().mean() > (0.9 if "colour_map" in options else 0.9999)
    assert 0 < (one - two).abs().max() < 6 * 3 / 257  # jet rises by 5 levels a step at most
    if not options:
        spec = stream_spec(InputSpec(crop=32, resize_side=32, frames=4), "depth")
        batch = collate([dataset[0], dataset[1]])["streams"]["depth"]
        assert batch.dtype == torch.float32
        eaten = spec.normalise(batch)
        assert eaten.shape == (2, 1, 4, 32, 32) and (eaten[0] != eaten[1]).all()


def test_augmented_samples_hold_only_numbers_of_the_file(tmp_path):
    pictures = write_depth(tmp_path / "one")
    changes = Augmentation(crop="random_resized", colour_jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2)
    dataset = samples_of(tmp_path, ["one"], depth_spec(), training=True, augmentation=changes)
    for epoch in range(4):
        sample = dataset[(epoch, 0)]
        shown = (sample.seconds["depth"] * 30).round().long()
        for n, frame in zip(shown.tolist(), sample.streams["depth"], strict=True):
            numbers = frame.double() * 257
            assert (numbers - numbers.round()).abs().max() < 0.01  # float32 keeps each number
            assert np.isin(numbers.round().numpy().astype(np.uint16), pictures[n]).all()
    crops = samples_of(tmp_path, ["one"], depth_spec(), num_crops=3)[0].streams["depth"]
    assert crops.shape == (3, 4, 32, 32, 1)


def test_8_and_16_bits_in_one_batch(tmp_path):
    write_depth(tmp_path / "wide")
    for n in range(FRAMES):
        (tmp_path / "byte").mkdir(exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH), 10 * n + 5, np.uint8)).save(tmp_path / "byte" / f"{n:05d}.png")
    dataset = samples_of(tmp_path, ["wide", "byte"], depth_spec())
    wide, byte = dataset[0], dataset[1]
    assert (wide.streams["depth"].dtype, byte.streams["depth"].dtype) == (torch.float32, torch.uint8)
    for order in ([wide, byte], [byte, wide]):
        batch = collate(order)["streams"]["depth"]
        assert batch.dtype == torch.float32
        for row, sample in zip(batch, order, strict=True):
            torch.testing.assert_close(row, sample.streams["depth"].float(), rtol=0, atol=0)
    ranged = samples_of(tmp_path, ["byte"], depth_spec(depth_range=(5, 55)))[0].streams["depth"]
    assert ranged.dtype == torch.float32 and set(ranged.unique().round().tolist()) <= {1, 52, 103, 153, 204, 255}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": "ir", "depth_range": (0, 1)}, "for ir; it is for depth"),
        ({"depth_range": (500, 500)}, "0 <= near < far"),
        ({"depth_range": (-1, 500)}, "0 <= near < far"),
        ({"depth_range": (0, float("inf"))}, "0 <= near < far"),
    ],
)
def test_wrong_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        depth_spec(**options)


def test_pictures_of_16_bits_are_decoded_once(tmp_path, monkeypatch):
    """In extraction their colours decide which frames there are, and their depth is asked for after each."""
    write_depth(tmp_path / "d", "%05d.png", frames=20)
    decoded, decode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flag: decoded.append(flag) or decode(data, flag))
    with open_video(tmp_path / "d") as reader:
        for (frames,) in reader.all_frames(batch=8):
            for colours, seconds in zip(frames.data, frames.pts_seconds, strict=True):
                depth = reader.depth_at([seconds]).data[0]
                assert np.array_equal(colours, (depth >> 8).astype(np.uint8).repeat(3, 2))
        assert len(decoded) == 20
        assert reader.depth_at([0.0]).data.shape == (1, *depth.shape) and len(decoded) == 21


@pytest.mark.parametrize("rule", RULES)
def test_no_depth_of_the_future_is_read(tmp_path, monkeypatch, rule):
    write_depth(tmp_path / "d", "%05d.png", frames=20)
    read, take = [], FolderOfFrames.read
    monkeypatch.setattr(FolderOfFrames, "read", lambda self, name: read.append(name) or take(self, name))
    for start in (12 / 30, 12 / 30 + 0.01, 12 / 30 + 1e-9):
        made = Dataset(
            name="own", split="all", segments=(Segment("d", start, 20 / 30, "d"),), classes={}, root=tmp_path,
            paths={"depth": "{video}"}, frame_rates={"depth": 30.0},
        )  # fmt: skip
        task = Anticipation(tau_a=0.1, tau_o=0.3)
        dataset = SegmentDataset(made, [depth_spec()], task=task, sampling=Sampling(rule=rule, alpha=0.1))
        sample = dataset[0]
        shown = sorted({(int(name[:5]) - 1) / 30 for name in read})
        assert not sample.error and len(shown) > 1 and shown[-1] < start - 0.1
        read.clear()


def test_ntu_from_files_to_batches(tmp_path):
    names = ["S001C002P001R001A001", "S001C003P002R001A010"]
    for number, name in enumerate(names):
        write_depth(tmp_path / "nturgb+d_depth_masked" / name, low=number)
    data = load_dataset("ntu_rgbd_60", tmp_path, "cross_view_train")
    spec = depth_spec(depth_range=(500, 4500))
    dataset = SegmentDataset(data, [spec], training=True, augmentation=Augmentation(), sampling=Sampling())
    batch = collate([dataset[0], dataset[1]])
    assert not batch["broken"] and batch["labels"]["action"].tolist() == [0, 9]
    depth = batch["streams"]["depth"]
    assert depth.shape == (2, 4, 32, 32, 1) and depth.dtype == torch.float32
    assert depth.min() >= 0 and depth.max() == 255 and len(depth.unique()) > 100


def test_ucla_reads_depth_of_16_bits_beside_rgb(tmp_path):
    episode = tmp_path / "view_1/a01_s01_e00"
    pictures = write_depth(episode, "frame_%d_tc_100_depth.png", frames=4)
    for n in range(1, 5):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * n, np.uint8)).save(episode / f"frame_{n}_tc_99_rgb.jpg")
    (tmp_path / "view_2/a02_s01_e00").mkdir(parents=True)
    shutil.copy(episode / "frame_1_tc_99_rgb.jpg", tmp_path / "view_2/a02_s01_e00")
    data = load_dataset("nw_ucla", tmp_path, "train")
    size = {"frames": 4, "fps": 30, "resize_side": HEIGHT, "crop": HEIGHT}
    streams = [StreamSpec(**size), StreamSpec(stream="depth", **size)]
    dataset = SegmentDataset(data, streams, sampling=Sampling(rule="segments"))
    sample = dataset[0]
    assert not sample.error and not sample.damage
    assert sample.streams["rgb"].dtype == torch.uint8
    middle = pictures[..., (WIDTH - HEIGHT) // 2 :][..., :HEIGHT]
    shown = (sample.seconds["depth"] * 30).round().long().numpy()
    np.testing.assert_array_equal((sample.streams["depth"][..., 0].double() * 257).round().numpy(), middle[shown])
    with pytest.raises(ValueError, match=r"has 16 bits, .* give clip\.inverse_depth"):
        SegmentDataset(data, streams, sampling=Sampling(rule="segments"), transform=JoinDepth("rgb"))[0]
    camera = 0.075 * 365 * 1000
    both = SegmentDataset(data, streams, sampling=Sampling(rule="segments"), transform=JoinDepth("rgb", camera))
    joined = pickle.loads(pickle.dumps(both))[0]
    assert list(joined.streams) == ["rgb"] and joined.streams["rgb"].dtype == torch.float32
    np.testing.assert_array_equal(joined.streams["rgb"][..., :3], sample.streams["rgb"])
    naive = np.array([0.0 if d == 0 else min(75.0, camera / d) for d in middle[shown].ravel().tolist()])
    np.testing.assert_allclose(joined.streams["rgb"][..., 3].flatten(), naive, rtol=1e-5)


@pytest.mark.parametrize(("extension", "channels"), [("png", 3), ("tiff", 3), ("ppm", 3), ("png", 4)])
def test_of_several_channels_the_first_counts(tmp_path, extension, channels):
    red = write_depth(tmp_path / "grey", frames=3)
    others = np.random.default_rng(1).integers(0, 65536, (3, HEIGHT, WIDTH, channels - 1), dtype=np.uint16)
    (tmp_path / "many").mkdir()
    for n in range(3):
        blue_green_red = [others[n, ..., 0], others[n, ..., 1], red[n], *([others[n, ..., 2]] if channels == 4 else [])]
        assert cv2.imwrite(str(tmp_path / f"many/{n:05d}.{extension}"), np.stack(blue_green_red, -1))
    with open_video(tmp_path / "many", frame_fps=30) as reader:
        assert (reader.info.pixel_format, reader.depth_bits) == ("rgb48" if channels == 3 else "rgba64", 16)
        np.testing.assert_array_equal(reader.depth_at([0, 1 / 30, 2 / 30]).data[..., 0], red)
        shown = reader.frames_at([0.0]).data
        assert shown.dtype == np.uint8 and np.abs(shown[0, ..., 0] - red[0] / 257).max() <= 1
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "eight.png")
    (tmp_path / "low").mkdir()
    (tmp_path / "eight.png").rename(tmp_path / "low/00000.png")
    with open_video(tmp_path / "low") as reader:
        assert (reader.info.pixel_format, reader.depth_bits) == ("rgb24", 8)


@pytest.mark.parametrize(
    ("codec", "pixel_format", "container"),
    [
        ("ffv1", "gray16le", "mkv"),
        ("ffv1", "gray12le", "mkv"),
        ("png", "gray16be", "mov"),
        ("rawvideo", "gray16be", "mov"),
    ],
)
def test_grey_video_keeps_its_bits(tmp_path, codec, pixel_format, container):
    bits = 12 if "12" in pixel_format else 16
    pictures = np.random.default_rng(0).integers(0, 1 << bits, (8, HEIGHT, 62), dtype=np.uint16)  # 62: padded rows
    path = tmp_path / f"depth.{container}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10, width=62, height=HEIGHT, pix_fmt=pixel_format)
        for picture in pictures:
            frame = av.VideoFrame(62, HEIGHT, pixel_format)
            rows = np.zeros((HEIGHT, frame.planes[0].line_size // 2), ">u2" if pixel_format[-2:] == "be" else "<u2")
            rows[:, :62] = picture
            frame.planes[0].update(rows.tobytes())
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with open_video(path) as reader:
        assert reader.depth_bits == 16 and reader.info.pixel_format.startswith(f"gray{bits}")
        depth = reader.depth_at([0.5, 0.0, 0.7, 0.5])
        np.testing.assert_array_equal(depth.data[..., 0], pictures[[5, 0, 7, 5]])
        np.testing.assert_allclose(depth.pts_seconds, [0.5, 0.0, 0.7, 0.5])
        assert len(reader.depth_at([])) == 0 and reader.frames_at([0.0]).data.dtype == np.uint8
    spec = depth_spec(frames=2, fps=10, resize_side=HEIGHT, crop=HEIGHT)
    made = Dataset(name="own", split="all", segments=(Segment(path.name, 0.0, 0.8, "a"),), classes={}, root=tmp_path,
                   paths={"depth": "{video}"})  # fmt: skip
    read = SegmentDataset(made, [spec])[0].streams["depth"]
    assert read.dtype == torch.float32
    np.testing.assert_array_equal((read[..., 0].double() * 257).round().numpy(), pictures[[2, 6]][:, :, 7:55])


def test_scaling_by_nearest_against_a_loop():
    rng = np.random.default_rng(0)
    for height, width, high, wide in rng.integers(1, 40, (30, 4)):
        depth = rng.integers(0, 65536, (2, height, width, 1), dtype=np.uint16)
        scaled = scale_by_nearest(depth, int(high), int(wide))
        assert scaled.shape == (2, high, wide, 1)
        for i in range(high):
            for j in range(wide):
                row, column = int((i + 0.5) * height / high), int((j + 0.5) * width / wide)
                assert (scaled[:, i, j] == depth[:, row, column]).all()
