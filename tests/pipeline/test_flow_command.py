"""`actionfuse flow`: what it writes reads back as what FlowComputer gives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import av
import cv2
import numpy as np
import pytest

from actionfuse.cli import main
from actionfuse.pipeline import flow_command, open_video
from actionfuse.pipeline.flow import FlowComputer, dequantise
from actionfuse.pipeline.flow_files import pack_flow, read_flow_video, read_recipe, unpack_flow

NUM_FRAMES, HEIGHT, WIDTH = 40, 47, 64  # an odd height; more than one batch of frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with a drifting texture (as x.mp4, and as sub/x.mp4 with other times), a still and a broken file."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    noise = cv2.GaussianBlur(np.random.default_rng(0).uniform(0, 255, (160, 160, 3)), (0, 0), 3)
    texture = np.clip(128 + 4 * (noise - 128), 0, 255).astype(np.uint8)
    drift = [np.ascontiguousarray(texture[k : k + HEIGHT, 2 * k : 2 * k + WIDTH]) for k in range(NUM_FRAMES)]
    for name, pictures, step in (("x.mp4", drift, 1), ("sub/x.mp4", drift[:5], 3), ("one.mp4", drift[:1], 1)):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264rgb", rate=25, options={"qp": "0", "preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb24"
            for k, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = k * step
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    (folder / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def expected(videos):
    with open_video(videos / "x.mp4") as reader:
        frames = [frames for frames in reader.stream()]
    data = np.concatenate([f.data for f in frames])
    times = np.concatenate([f.pts_seconds for f in frames])
    flow = FlowComputer("dis_fast").pairs(data)
    assert len(flow) == NUM_FRAMES - 1 and flow[..., 0].mean() == pytest.approx(-2, abs=0.3)
    assert flow[..., 1].mean() == pytest.approx(-1, abs=0.3)
    return data, flow, times


@pytest.fixture
def in_this_process(monkeypatch):
    """Without children: starting one takes longer than these videos. Other tests have them."""
    monkeypatch.setattr(flow_command, "guarded_map", lambda work, items, **_: ((item, work(item)) for item in items))


def run(*arguments):
    return main(["flow", "--method", "dis_fast", "--short-side", "0", "--workers", "1", *map(str, arguments)])


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_video_reads_back_within_half_a_code(videos, expected, tmp_path):
    _, flow, times = expected
    assert run(videos / "x.mp4", "--out", tmp_path) == 0
    assert files_in(tmp_path) == ["x.mp4.flow.mkv"]
    pieces = list(read_flow_video(tmp_path / "x.mp4.flow.mkv", batch=16))
    assert [len(field) for field, _ in pieces] == [16, 16, 7]
    read = np.concatenate([field for field, _ in pieces])
    assert read.dtype == np.float32 and np.abs(flow).max() < 20 and np.abs(read - flow).max() < 0.08
    np.testing.assert_allclose(np.concatenate([t for _, t in pieces]), times[:-1], atol=0.0005)
    # The common reader gives the same codes, in any order.
    with open_video(tmp_path / "x.mp4.flow.mkv") as reader:
        picked = reader.frames_at([times[30], times[3]])
    np.testing.assert_array_equal(unpack_flow(picked.data), read[[30, 3]])


def test_packing_is_lossless_but_for_the_codes():
    flow = np.random.default_rng(0).uniform(-5, 5, (3, 4, 6, 2)).astype(np.float32)
    pictures = pack_flow(flow, bound=5)
    assert pictures.shape == (3, 4, 12) and pictures.dtype == np.uint8
    assert np.abs(unpack_flow(pictures, bound=5) - flow).max() <= 5 / 255 + 1e-6
    with pytest.raises(ValueError, match="u beside v"):
        unpack_flow(pictures[..., :11])


@pytest.mark.parametrize(
    ("names", "u", "v"),
    [
        ("uv", "u/0000000039.jpg", "v/0000000039.jpg"),
        ("tsn", "flow_x_00039.jpg", "flow_y_00039.jpg"),
        ("epic", "u/frame_0000000039.jpg", "v/frame_0000000039.jpg"),
    ],
)
def test_jpg_pairs(in_this_process, videos, expected, tmp_path, names, u, v):
    _, flow, times = expected
    assert run(videos / "x.mp4", "--out", tmp_path, "--as", "jpg", "--jpg-names", names) == 0
    files = files_in(tmp_path / "x.mp4")
    assert len(files) == 2 * (NUM_FRAMES - 1) + 1 and u in files and v in files
    for channel, name in enumerate((u, v)):
        codes = cv2.imread(str(tmp_path / "x.mp4" / name), cv2.IMREAD_GRAYSCALE)
        assert np.abs(dequantise(codes) - flow[-1, ..., channel]).mean() < 0.08
    content = json.loads((tmp_path / "x.mp4" / "flow.json").read_text())
    assert content["pts_seconds"] == times[:-1].tolist() and content["flow"]["bound_pixels"] == 20


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 4e-3), ("float32", 0)])
def test_arrays(in_this_process, videos, expected, tmp_path, dtype, tolerance):
    _, flow, times = expected
    assert run(videos / "x.mp4", "--out", tmp_path, "--as", "npz", "--npz-dtype", dtype) == 0
    with np.load(tmp_path / "x.mp4.flow.npz") as arrays:
        assert arrays["flow"].dtype == np.dtype(dtype)
        np.testing.assert_allclose(arrays["flow"].astype(np.float32), flow, atol=tolerance, rtol=0)
        np.testing.assert_array_equal(arrays["pts_seconds"], times[:-1])
    assert files_in(tmp_path) == ["x.mp4.flow.npz"]
    assert read_recipe(tmp_path / "x.mp4.flow.npz", "npz")["dtype"] == dtype


def test_preview_shows_pictures_and_colours(in_this_process, videos, expected, tmp_path):
    data, _, _ = expected
    assert run(videos / "x.mp4", "--out", tmp_path, "--as", "preview", "--preview-max", "3") == 0
    assert read_recipe(tmp_path / "x.mp4.preview.mp4", "preview")["max_pixels"] == 3
    with av.open(str(tmp_path / "x.mp4.preview.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert pictures.shape == (NUM_FRAMES - 1, HEIGHT + 1, 2 * WIDTH, 3)
    left, right = pictures[:, :HEIGHT, :WIDTH].astype(int), pictures[:, :, WIDTH:]
    assert np.abs(left - data[:-1]).mean() < 12
    red, green, blue = right.mean(axis=(0, 1, 2))
    assert blue > red + 50 and green > red + 50  # the wheel's cyan is to the left, a little up


def test_fps_and_segments(in_this_process, videos, tmp_path):
    (tmp_path / "cut.csv").write_text(f"path,start_seconds,stop_seconds,id\n{videos / 'x.mp4'},0.4,1.0,cut\n")
    assert run(tmp_path / "cut.csv", "--out", tmp_path / "o", "--fps", "12.5") == 0
    (name,) = files_in(tmp_path / "o")
    ((flow, times),) = read_flow_video(tmp_path / "o" / name)
    np.testing.assert_allclose(times, 0.4 + np.arange(7) / 12.5, atol=0.001)  # 8 frames: 0.4, 0.48, ..., 0.96
    assert flow[..., 0].mean() == pytest.approx(-4, abs=0.5)  # per step at 12.5 fps


def test_the_rest_goes_on_and_a_second_call_does_nothing(videos, tmp_path, capsys):
    assert run(videos, "--out", tmp_path) == 1
    assert files_in(tmp_path) == ["failures.jsonl", "sub/x.mp4.flow.mkv", "x.mp4.flow.mkv"]
    rows = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(row["key"], row["stage"]) for row in rows] == [("broken.mp4", "decode"), ("one.mp4", "decode")]
    assert "two frames" in rows[1]["reason"]
    capsys.readouterr()
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files_in(tmp_path) if name.endswith("mkv")}
    assert run(videos, "--out", tmp_path) == 1
    assert "2 already there, 2 failed; 0 fields" in capsys.readouterr().out
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in before}
    assert run(videos / "x.mp4", "--out", tmp_path) == 0 and not (tmp_path / "failures.jsonl").exists()


def test_other_settings_never_mix(in_this_process, videos, tmp_path, capsys):
    for kind in ("video", "jpg"):
        options = [videos / "sub", "--root", videos, "--out", tmp_path, "--as", kind]
        assert run(*options) == 0
        assert run(*options, "--fps", "5") == 1
        assert "fps None (now 5.0)" in capsys.readouterr().err
        assert run(*options, "--fps", "5", "--overwrite") == 0
        (path,) = (tmp_path / "sub").iterdir()
        assert read_recipe(path, kind)["fps"] == 5
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    target = tmp_path / "sub" / "x.mp4.flow.mkv"
    target.write_text("something else")
    assert run(videos / "sub", "--root", videos, "--out", tmp_path) == 1 and target.read_text() == "something else"
    assert "no recipe" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_a_killed_run_leaves_nothing_half_done(videos, tmp_path):
    command = [sys.executable, "-m", "actionfuse.cli", "flow", str(videos / "x.mp4"), "--out", str(tmp_path)]
    command += ["--method", "dis_medium", "--short-side", "400", "--workers", "1"]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".tmp/*/x*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob(".tmp/*/x*"))  # it was killed while it wrote
    import fcntl

    with open(next(tmp_path.glob(".tmp/*/lock")), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # its own child, which wrote, may take a moment to die
    assert not (tmp_path / "x.mp4.flow.mkv").exists()
    assert run(videos / "x.mp4", "--out", tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4.flow.mkv"]


def test_wrong_calls(videos, tmp_path, capsys):
    for arguments, reason in (
        (["--method", "dis_fats"], "did you mean 'dis_fast'"),
        (["--method", "raft_small"], "needs weights"),
        (["--fps", "0"], "must be positive"),
        (["--bound", "-1"], "must be positive"),
        (["--workers", "0"], "at least 1"),
    ):
        assert run(videos, "--out", tmp_path / "o", *arguments) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
