"""Flow against motions that are known exactly, and the conventions around it."""

import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest

from actionfuse.pipeline.flow import (
    FlowComputer,
    dequantise,
    flow_to_rgb,
    list_flow_methods,
    quantise,
    stack,
    stack_indices,
)

HAS_CONTRIB = hasattr(cv2, "optflow")
OPENCV_METHODS = ["dis_ultrafast", "dis_fast", "dis_medium", "farneback"] + (["tvl1"] if HAS_CONTRIB else [])

# The map that carries a point (x, y), from the middle of the picture, to its place in the next frame: A p + b.
ANGLE = 0.02
MOTIONS = {
    "shift": (np.eye(2), np.array([3.2, -1.7])),
    "rotation": (np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]), np.zeros(2)),
    "zoom": (np.eye(2) * 1.02, np.zeros(2)),
}
# Mean end-point error in pixels, 8 pixels off the border; measured: at most 0.15 (ultrafast), 0.09 (fast),
# 0.04 (medium), 0.06 (Farneback), 0.06 (TV-L1).
ERROR_BOUNDS = {"dis_ultrafast": 0.2, "dis_fast": 0.12, "dis_medium": 0.06, "farneback": 0.08, "tvl1": 0.08}


def picture(x, y):
    """A smooth coloured texture at real-valued places: uint8 (..., 3)."""
    random = np.random.default_rng(0)
    colours = np.zeros((*x.shape, 3))
    for _ in range(40):
        length, angle = random.uniform(7, 40), random.uniform(0, 2 * np.pi)
        wave = 2 * np.pi / length * (np.cos(angle) * x + np.sin(angle) * y)
        colours += np.sin(wave[..., None] + random.uniform(0, 2 * np.pi, 3))
    return np.clip(128 + 14 * colours, 0, 255).round().astype(np.uint8)


def moving(motion, num_frames, height=120, width=160):
    """Frames under a steady motion, uint8 (T, H, W, 3), and its flow, (H, W, 2)."""
    matrix, offset = MOTIONS[motion]
    y, x = np.mgrid[:height, :width].astype(float)
    points = np.stack([x - width / 2, y - height / 2], -1)
    frames, source = [], points
    for _ in range(num_frames):
        frames.append(picture(source[..., 0], source[..., 1]))
        source = (source - offset) @ np.linalg.inv(matrix).T
    return np.stack(frames), points @ matrix.T + offset - points


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("method", OPENCV_METHODS)
def test_known_motions_are_found(method, motion):
    frames, expected = moving(motion, 3)
    flow = FlowComputer(method).pairs(frames)
    assert flow.shape == (2, 120, 160, 2) and flow.dtype == np.float32
    errors = np.linalg.norm(flow - expected, axis=-1)[:, 8:-8, 8:-8]
    assert errors.mean(axis=(1, 2)).max() < ERROR_BOUNDS[method]


@pytest.mark.parametrize("method", OPENCV_METHODS)
def test_u_is_to_the_right_and_v_is_down(method):
    y, x = np.mgrid[:96, :128].astype(float)
    still, right, down = picture(x, y), picture(x - 2, y), picture(x, y - 2)
    u, v = FlowComputer(method).pairs(np.stack([still, right]))[0].mean(axis=(0, 1))
    assert 1.5 < u < 2.5 and abs(v) < 0.3
    u, v = FlowComputer(method).pairs(np.stack([still, down]))[0].mean(axis=(0, 1))
    assert abs(u) < 0.3 and 1.5 < v < 2.5
    # Field k goes from frame k to frame k + 1: the way back is the negative.
    assert FlowComputer(method).pairs(np.stack([right, still]))[0].mean(axis=(0, 1))[0] < -1.5


# The small ones are those where OpenCV's DIS object changes its own settings, or reads outside of its buffers; TV-L1
# keeps nothing and takes seconds for the large ones.
SIZES = [(96, 128), (64, 80), (48, 64), (16, 90), (5, 9)]


@pytest.mark.parametrize(
    ("method", "size"), [(m, size) for m in OPENCV_METHODS for size in (SIZES if m != "tvl1" else SIZES[3:])]
)
def test_chunks_leave_no_trace(method, size):
    frames, _ = moving("rotation", 7, *size)
    whole = FlowComputer(method).pairs(frames)
    assert whole.shape == (6, *size, 2) and np.isfinite(whole).all()
    for cuts in ([1, 2, 3, 4, 5, 6], [3], [1], [2, 2, 5]):
        computer = FlowComputer(method)
        pieces = list(computer.over(np.split(frames, cuts)))
        assert [len(piece) for piece in pieces][1:] == [len(chunk) for chunk in np.split(frames, cuts)][1:]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
    alone = [computer.pairs(frames[k : k + 2])[0] for k in (5, 0, 3)]
    np.testing.assert_array_equal(np.stack(alone), whole[[5, 0, 3]])


def test_the_caller_may_reuse_its_buffer():
    frames, _ = moving("shift", 4, 64, 80)
    buffer, pieces = np.empty_like(frames[:2]), []
    stream = FlowComputer("dis_fast").stream()
    for start in (0, 2):
        buffer[:] = frames[start : start + 2]
        pieces.append(stream.push(buffer))
    np.testing.assert_array_equal(np.concatenate(pieces), FlowComputer("dis_fast").pairs(frames))


@pytest.mark.parametrize("method", [name for name in OPENCV_METHODS if name != "tvl1"])
def test_threads_do_not_change_the_result(method):
    frames, _ = moving("zoom", 4)
    before = cv2.getNumThreads()
    results = []
    try:
        for opencv_threads, threads in ((1, 1), (2, 1), (7, 1), (1, 3)):
            cv2.setNumThreads(opencv_threads)
            results.append(FlowComputer(method, threads=threads).pairs(frames))
    finally:
        cv2.setNumThreads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_computer_pickles_and_leaves_opencv_threads_alone():
    before = cv2.getNumThreads()
    frames, _ = moving("shift", 3, 64, 80)
    computer = FlowComputer("dis_medium", threads=2)
    expected = computer.pairs(frames)  # estimators exist now, and cannot be pickled themselves
    copy = pickle.loads(pickle.dumps(computer))
    assert (copy.method, copy.options) == (computer.method, computer.options)
    np.testing.assert_array_equal(copy.pairs(frames), expected)
    assert cv2.getNumThreads() == before


def test_opencv_methods_start_without_torch():
    code = (
        "import sys, numpy as np; from actionfuse.pipeline.flow import FlowComputer;"
        "FlowComputer('dis_fast').pairs(np.zeros((3, 64, 80, 3), np.uint8)); FlowComputer('auto', device='cpu');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_too_few_frames_give_no_field():
    frames, _ = moving("shift", 1, 64, 80)
    computer = FlowComputer("dis_fast")
    assert computer.pairs(frames).shape == (0, 64, 80, 2)
    assert computer.pairs(frames[:0]).shape == (0, 64, 80, 2)


def test_wrong_calls_say_what_to_do():
    with pytest.raises(ValueError, match="did you mean 'dis_fast'"):
        FlowComputer("dis_fats")
    with pytest.raises(ValueError, match="has no weights"):
        FlowComputer("dis_fast", weights="x.pth")
    with pytest.raises(ValueError, match=r"float32 \(2, 8, 8, 3\)"):
        FlowComputer("dis_fast").pairs(np.zeros((2, 8, 8, 3), np.float32))
    stream = FlowComputer("dis_fast").stream()
    stream.push(np.zeros((1, 64, 80, 3), np.uint8))
    with pytest.raises(ValueError, match="flow needs one size"):
        stream.push(np.zeros((1, 64, 96, 3), np.uint8))
    with pytest.raises(ValueError, match="at least 1"):
        FlowComputer("dis_fast", threads=0)


@pytest.mark.skipif(HAS_CONTRIB, reason="this OpenCV has the contrib modules")
def test_tvl1_without_contrib_names_the_extra():
    assert "tvl1" in list_flow_methods()
    with pytest.raises(ValueError, match=r"actionfuse\[contrib\]"):
        FlowComputer("tvl1")


# --- codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [20.0, 15.0, 1.0])
def test_codes_read_back_within_half_a_step(bound):
    flow = np.linspace(-bound, bound, 100_001, dtype=np.float32)
    codes = quantise(flow, bound)
    assert codes.dtype == np.uint8 and codes[0] == 0 and codes[-1] == 255
    error = np.abs(dequantise(codes, bound).astype(np.float64) - flow)
    assert error.max() <= bound / 255 + 1e-5
    assert bound != 20 or error.max() < 0.08


def test_codes_are_the_public_ones():
    # round(255 * (v + 20) / 40), halves to even as C's rint, clipped.
    pixels = np.concatenate([np.random.default_rng(0).uniform(-25, 25, 10_000), [0, 20, -20, 1e9, -1e9]])
    expected = [min(255, max(0, round(255 * (float(np.float32(p)) + 20) / 40))) for p in pixels]
    np.testing.assert_array_equal(quantise(pixels), expected)


def test_no_motion_becomes_128():
    assert quantise(np.zeros(3)).tolist() == [128, 128, 128]
    assert dequantise(np.array([128], np.uint8))[0] == pytest.approx(20 / 255)
    with pytest.raises(ValueError, match="positive"):
        quantise(np.zeros(3), bound=0)
    with pytest.raises(ValueError, match="uint8"):
        dequantise(np.zeros(3))


# --- stacks ----------------------------------------------------------------------------------------------------------


def test_stack_orders_by_hand():
    assert stack_indices(4, 3, mode="tsn").tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3]]
    assert stack_indices(4, 3, mode="rulstm").tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert stack_indices(4, 3, edges="valid").tolist() == [[0, 1, 2], [1, 2, 3]]
    assert stack_indices(2, 3, edges="valid").shape == (0, 3)
    assert stack_indices(1, 5, mode="rulstm").tolist() == [[0, 0, 0, 0, 0]]
    assert stack_indices(0, 5).shape == (0, 5)
    with pytest.raises(ValueError, match="rulstm"):
        stack_indices(4, 3, mode="backward")


@pytest.mark.parametrize("mode", ["tsn", "rulstm"])
def test_stacks_interleave_u_and_v(mode):
    flow = np.random.default_rng(0).normal(size=(6, 4, 5, 2)).astype(np.float32)
    stacked = stack(flow, 5, mode=mode)
    assert stacked.shape == (6, 4, 5, 10) and stacked.dtype == np.float32
    for t in range(6):
        for i in range(5):
            field = min(t + i, 5) if mode == "tsn" else max(t - 4 + i, 0)
            np.testing.assert_array_equal(stacked[t, ..., 2 * i], flow[field, ..., 0])
            np.testing.assert_array_equal(stacked[t, ..., 2 * i + 1], flow[field, ..., 1])
    assert stack(quantise(flow), 5).dtype == np.uint8


# --- colours ---------------------------------------------------------------------------------------------------------


def test_colour_wheel_matches_torchvision():
    torch = pytest.importorskip("torch")
    from torchvision.utils import flow_to_image

    flow = np.random.default_rng(0).normal(size=(2, 30, 40, 2)).astype(np.float32)
    flow[0, 0, 0] = [-30, 0]
    for field in flow:  # torchvision scales by the longest vector as well
        theirs = flow_to_image(torch.from_numpy(field).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        assert np.abs(flow_to_rgb(field).astype(int) - theirs).max() <= 1  # floors of values that rounding moves
    assert (flow_to_rgb(np.zeros((3, 4, 2))) == 255).all()


def test_colours_keep_one_scale():
    flow = np.zeros((2, 1, 1, 2), np.float32)
    flow[:, 0, 0, 0] = [1, 4]
    faint, full = flow_to_rgb(flow)[:, 0, 0]
    assert full.tolist() == [255, 0, 0] and faint.tolist() == [255, 191, 191]
    assert flow_to_rgb(flow, max_pixels=1)[:, 0, 0].tolist() == [[255, 0, 0], [191, 0, 0]]
    with pytest.raises(ValueError, match="max_pixels"):
        flow_to_rgb(flow, max_pixels=0)
