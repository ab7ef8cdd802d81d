"""Transforms: one geometry for frames, flow, depth and boxes; colours of single streams."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from actionfuse.pipeline import BoxTracks, Clip
from actionfuse.pipeline.boxes import crop_boxes, limit_instances
from actionfuse.pipeline.sampling import draw
from actionfuse.pipeline.transforms import (
    COLOUR_STEPS,
    Geometry,
    Photometric,
    apply_geometry,
    apply_photometric,
    centre_crop,
    centre_crop_geometry,
    draw_colour_jitter,
    draw_flip,
    draw_multi_scale_crop,
    draw_rand_augment,
    draw_random_resized_crop,
    draw_scale_jitter_crop,
    multi_scale_offsets,
    resize_short_side,
    three_crops,
)

HEIGHT, WIDTH = 96, 128


def make_clip(seed: int = 0, times: int = 3) -> Clip:
    """Two bright markers drift over black, with boxes; rgb and ir at full size, flow at half, depth at a quarter."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((times, 2, 4), np.float32)
    streams = {
        "rgb": np.zeros((times, HEIGHT, WIDTH, 3), np.uint8),
        "ir": np.zeros((times, HEIGHT, WIDTH, 1), np.uint8),
        "flow": np.zeros((times, HEIGHT // 2, WIDTH // 2, 2), np.float32),
        "depth": np.zeros((times, HEIGHT // 4, WIDTH // 4, 1), np.uint16),
        "audio": rng.random((times, 8, 8, 1)).astype(np.float32),
    }
    starts = rng.integers(1, (8, 3), (2, 2)) + np.array([[0, 0], [14, 12]])  # x, y in depth pixels
    for n, (x, y) in enumerate(starts):
        for t in range(times):
            left, top, right, bottom = x + t, y + t, x + t + 6, y + t + 6
            boxes[t, n] = np.array([left, top, right, bottom]) / [WIDTH // 4, HEIGHT // 4, WIDTH // 4, HEIGHT // 4]
            for name, scale in (("rgb", 4), ("ir", 4), ("flow", 2), ("depth", 1)):
                marker = streams[name][t, top * scale : bottom * scale, left * scale : right * scale]
                marker[..., n % marker.shape[-1] if name == "rgb" else slice(None)] = 200
    seconds = np.arange(times) / 4
    tracks = BoxTracks(boxes, np.ones((times, 2), bool), seconds, np.array([1, 2]), ("red", "green"))
    return Clip(streams, 0.0, 1.0, tracks, {"rgb": np.ones(times, bool)})


GEOMETRIES: dict[str, Callable[[np.random.Generator], Geometry]] = {
    "identity": lambda rng: Geometry(),
    "resize_up": lambda rng: Geometry(size=(150, 210)),
    "resize_down": lambda rng: Geometry(size=(40, 40)),
    "short_side": lambda rng: resize_short_side(HEIGHT, WIDTH, 64),
    "centre": lambda rng: centre_crop_geometry(HEIGHT, WIDTH, 80),
    "centre_of_scaled": lambda rng: centre_crop_geometry(HEIGHT, WIDTH, 56, 64),
    "left": lambda rng: three_crops(HEIGHT, WIDTH, 96)[0],
    "right": lambda rng: three_crops(HEIGHT, WIDTH, 56, 64)[2],
    "random_resized": lambda rng: draw_random_resized_crop(HEIGHT, WIDTH, 72, rng, area=(0.3, 1.0)),
    "multi_scale": lambda rng: draw_multi_scale_crop(HEIGHT, WIDTH, 72, rng),
    "scale_jitter": lambda rng: draw_scale_jitter_crop(HEIGHT, WIDTH, 56, rng, (64, 80)),
    "flip": lambda rng: Geometry(flip=True),
    "flipped_crop": lambda rng: draw_flip(draw_random_resized_crop(HEIGHT, WIDTH, 64, rng, (0.3, 1.0)), rng, 1.0),
}


def assert_markers_fill_their_boxes(clip: Clip, scales: dict[str, float]) -> int:
    """Every bright pixel lies in a box and every box's middle is bright. Returns how many boxes were looked at.

    scales: new pixels per old pixel. A crop's edge may be half an old pixel off, a resampled edge as much again.
    """
    assert clip.boxes is not None
    looked = 0
    for name, scale in scales.items():
        data = clip.streams[name].astype(np.float64)
        height, width = data.shape[1:3]
        slack = 0.5 + max(scale, 0.5)
        ys, xs = np.mgrid[:height, :width] + 0.5
        for t in range(len(data)):
            inside = np.zeros((height, width), bool)
            for n in np.flatnonzero(clip.boxes.present[t]):
                x1, y1, x2, y2 = clip.boxes.boxes[t, n] * [width, height, width, height]
                picture = np.abs(data[t, :, :, n if name == "rgb" else 0])
                if min(x2 - x1, y2 - y1) > 2 * slack:
                    assert picture[int((y1 + y2) / 2), int((x1 + x2) / 2)] > picture.max() / 2, (name, t, n)
                    looked += 1
                inside |= (abs(xs - (x1 + x2) / 2) < (x2 - x1) / 2 + slack) & (
                    abs(ys - (y1 + y2) / 2) < (y2 - y1) / 2 + slack
                )
            if clip.boxes.present[t].all():
                bright = np.abs(data[t, :, :, : 3 if name == "rgb" else 1]).max(-1)
                assert inside[bright > 0.55 * bright.max()].all(), (name, t)
    return looked


def scales_of(clip: Clip, moved: Clip, geometry: Geometry) -> dict[str, float]:
    x1, y1, x2, y2 = geometry.region
    shapes = {name: (clip.streams[name].shape, moved.streams[name].shape) for name in ("rgb", "ir", "flow", "depth")}
    return {
        name: max(new[1] / (old[1] * (y2 - y1)), new[2] / (old[2] * (x2 - x1))) for name, (old, new) in shapes.items()
    }


@pytest.mark.parametrize("name", GEOMETRIES)
def test_markers_stay_in_their_boxes(name: str):
    looked = 0
    for index in range(6):
        clip = make_clip(index)
        geometry = GEOMETRIES[name](draw(0, 0, index))
        moved = apply_geometry(clip, geometry, min_visible_share=0)
        if geometry.size is not None:
            assert {moved.streams[s].shape[1:3] for s in ("rgb", "flow", "depth", "ir")} == {geometry.size}
        assert {s: moved.streams[s].dtype for s in moved.streams} == {s: clip.streams[s].dtype for s in clip.streams}
        assert np.array_equal(moved.streams["audio"], clip.streams["audio"]) and moved.masks is clip.masks
        looked += assert_markers_fill_their_boxes(moved, scales_of(clip, moved, geometry))
    assert looked > 30


def test_markers_stay_in_their_boxes_through_chains():
    looked = 0
    for index in range(40):
        rng = draw(1, 0, index)
        clip = make_clip(index)
        first, second = (list(GEOMETRIES.values())[int(rng.integers(len(GEOMETRIES)))](rng) for _ in range(2))
        # The second was drawn for another frame size; shares make it fit all the same.
        step_by_step = apply_geometry(apply_geometry(clip, first, min_visible_share=0), second, min_visible_share=0)
        at_once = apply_geometry(clip, first.then(second), min_visible_share=0)
        assert step_by_step.boxes is not None and at_once.boxes is not None
        assert np.array_equal(step_by_step.boxes.present, at_once.boxes.present)
        assert np.allclose(step_by_step.boxes.boxes, at_once.boxes.boxes, atol=1e-5)
        if first.size is not None:
            for name in ("rgb", "flow", "depth", "ir"):
                assert step_by_step.streams[name].shape == at_once.streams[name].shape
        scales = scales_of(clip, at_once, first.then(second))
        looked += assert_markers_fill_their_boxes(at_once, scales)
        assert_markers_fill_their_boxes(step_by_step, {name: 2 * scale + 1 for name, scale in scales.items()})
    assert looked > 200


def test_exact_pixels_of_plain_crops():
    data = np.random.default_rng(0).integers(0, 256, (2, 97, 130, 3), np.uint8)
    clip = Clip({"rgb": data}, 0, 1)
    tensor = torch.from_numpy(data).permute(0, 3, 1, 2)
    for side in (50, 51, 96, 97):
        expected = v2.functional.center_crop(tensor, [side, side]).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(apply_geometry(clip, centre_crop_geometry(97, 130, side)).streams["rgb"], expected)
        assert np.array_equal(centre_crop(data, side), expected)
    assert np.shares_memory(centre_crop(data, 64), data)
    left, middle, right = (apply_geometry(clip, g).streams["rgb"] for g in three_crops(97, 130, 97))
    assert np.array_equal(left, data[:, :, :97]) and np.array_equal(right, data[:, :, 33:])
    assert np.array_equal(middle, data[:, :, 17:114])  # ceil(33 / 2)
    upright = data.transpose(0, 2, 1, 3)
    top = apply_geometry(Clip({"rgb": upright}, 0, 1), three_crops(130, 97, 90)[0]).streams["rgb"]
    assert np.array_equal(top, upright[:, :90, 4:94])


def test_resize_is_torchvisions():
    data = np.random.default_rng(0).integers(0, 256, (2, 97, 130, 3), np.uint8)
    ours = apply_geometry(Clip({"rgb": data}, 0, 1), resize_short_side(97, 130, 64)).streams["rgb"]
    theirs = v2.functional.resize(torch.from_numpy(data).permute(0, 3, 1, 2).contiguous(), [64, 86], antialias=True)
    assert ours.shape == (2, 64, 86, 3)
    assert np.abs(ours.astype(int) - theirs.permute(0, 2, 3, 1).numpy()).max() <= 1


def test_double_flip_is_the_identity():
    clip = make_clip()
    flip = Geometry(flip=True)
    twice = apply_geometry(apply_geometry(clip, flip), flip)
    for name, data in clip.streams.items():
        assert np.array_equal(twice.streams[name], data)
    assert twice.boxes is not None and clip.boxes is not None
    assert np.allclose(twice.boxes.boxes, clip.boxes.boxes, atol=1e-6)
    assert flip.then(flip) == Geometry()


def affine_flow(height: int, width: int, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Flow (H, W, 2) of the motion p -> matrix p + shift, p in pixels from the corner (pixel centres at + 0.5)."""
    ys, xs = np.mgrid[:height, :width] + 0.5
    points = np.stack([xs, ys], -1)
    return (points @ (matrix - np.eye(2)).T + shift).astype(np.float32)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("stack", [1, 3])
def test_flow_of_the_transformed_pair_is_the_transformed_flow(name: str, stack: int):
    rng = draw(0, 1, 0)
    matrix, shift = np.eye(2) + rng.uniform(-0.1, 0.1, (2, 2)), rng.uniform(-5, 5, 2)
    flow = affine_flow(HEIGHT, WIDTH, matrix, shift)
    geometry = GEOMETRIES[name](rng)
    clip = Clip({"flow": np.tile(flow[None], (2, 1, 1, stack))}, 0, 1)
    moved = apply_geometry(clip, geometry).streams["flow"]
    height, width = moved.shape[1:3]
    # The picture's points move by p' = diagonal (p - corner), then x' = width - x': so does the motion.
    x1, y1, x2, y2 = (round(edge * size) for edge, size in zip(geometry.region, [WIDTH, HEIGHT] * 2, strict=True))
    scale = np.diag([width / (x2 - x1), height / (y2 - y1)])
    offset = -scale @ [x1, y1]
    if geometry.flip:
        scale, offset = np.diag([-1, 1]) @ scale, np.diag([-1, 1]) @ offset + [width, 0]
    new_matrix = scale @ matrix @ np.linalg.inv(scale)
    new_shift = scale @ shift + offset - new_matrix @ offset
    expected = affine_flow(height, width, new_matrix, new_shift)
    margin = 1 + int(2 * max(1, height / (y2 - y1), width / (x2 - x1)))  # the filter sees no pixels beyond the edge
    inner = np.s_[:, margin:-margin, margin:-margin]
    # Between pixels a linear field is exact; the antialiasing filter is a sampled one, so not quite.
    tolerance = 1e-4 if np.abs(np.diag(scale)).min() >= 1 else 0.01
    assert np.abs(moved - np.tile(expected, stack))[inner].max() < tolerance


def test_other_sizes_for_single_streams():
    moved = apply_geometry(make_clip(), Geometry(size=(60, 60)), sizes={"flow": (30, 40)})
    assert moved.streams["flow"].shape == (3, 30, 40, 2) and moved.streams["rgb"].shape == (3, 60, 60, 3)
    with pytest.raises(ValueError, match="sizes names audio"):
        apply_geometry(make_clip(), Geometry(), sizes={"audio": (8, 8)})


def test_depth_holds_only_values_that_were_there():
    depth = np.random.default_rng(0).choice(np.array([0, 500, 65535], np.uint16), (2, 40, 50, 1))
    moved = apply_geometry(Clip({"depth": depth}, 0, 1), Geometry((0.1, 0, 0.9, 1), (77, 33), True)).streams["depth"]
    assert moved.dtype == np.uint16 and set(np.unique(moved)) <= {0, 500, 65535}
    resized = apply_geometry(Clip({"depth": depth}, 0, 1), Geometry(size=(77, 33))).streams["depth"]
    pictures = torch.from_numpy(depth.astype(np.float32)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(pictures, (77, 33), mode="nearest-exact").permute(0, 2, 3, 1).numpy()
    assert np.array_equal(resized, theirs)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_every_type_of_infrared_frames(dtype: type):
    ramp = np.broadcast_to(
        (np.arange(40) * 5).astype(dtype)[None, None, :, None], (2, 30, 40, 1)
    )  # not to be written to
    moved = apply_geometry(Clip({"ir": ramp}, 0, 1), Geometry(size=(15, 20), flip=True)).streams["ir"]
    expected = (np.arange(20) * 10 + 2.5)[::-1]
    assert moved.dtype == dtype and moved.flags.c_contiguous
    assert np.abs(moved[0, 7, 2:-2, 0] - expected[2:-2]).max() <= 0.51


def test_flow_must_be_transformed_before_it_is_quantised():
    clip = Clip({"flow": np.zeros((1, 8, 8, 2), np.uint8)}, 0, 1)
    with pytest.raises(ValueError, match="transform, then quantise"):
        apply_geometry(clip, Geometry(flip=True))


def test_draws_have_fixed_values():
    """What (seed 3, epoch 1, index 4) has been and has to stay, for runs to be repeatable across versions."""
    crop = draw_random_resized_crop(240, 320, 224, draw(3, 1, 4))
    assert crop == Geometry(region=(0.209375, 0.0125, 0.725, 0.8), size=(224, 224))
    crop = draw_multi_scale_crop(240, 320, 224, draw(3, 1, 4))
    assert crop == Geometry(region=(80 / 320, 80 / 240, (80 + 158) / 320, (80 + 158) / 240), size=(224, 224))
    assert draw_flip(Geometry(), draw(3, 1, 4)) == Geometry() and draw_flip(Geometry(), draw(3, 1, 5), 1.0).flip
    names, values = zip(*draw_colour_jitter(draw(3, 1, 4)).steps, strict=True)
    assert names == ("hue", "contrast", "saturation", "brightness")
    assert values == pytest.approx((-0.029140856, 0.816035794, 0.948526527, 1.020758792))
    assert draw_rand_augment(draw(3, 1, 4)) == Photometric((("equalize", 0.0), ("posterize", 7.0)))


def test_draws_depend_on_nothing_but_their_generator():
    for make in GEOMETRIES.values():
        torch.manual_seed(0)
        np.random.seed(0)
        first = make(draw(0, 0, 5))
        torch.manual_seed(1)
        np.random.seed(1)
        assert make(draw(0, 0, 5)) == first
    assert draw_rand_augment(draw(0, 0, 5)) == draw_rand_augment(draw(0, 0, 5))
    clip, geometry = make_clip(), draw_random_resized_crop(HEIGHT, WIDTH, 64, draw(0, 0, 5))
    first, again = apply_geometry(clip, geometry), apply_geometry(make_clip(), geometry)
    assert all(np.array_equal(first.streams[name], again.streams[name]) for name in first.streams)


def test_random_resized_crop_keeps_its_bounds():
    areas, aspects = [], []
    for index in range(300):
        x1, y1, x2, y2 = draw_random_resized_crop(240, 320, 224, draw(0, 0, index)).region
        areas.append((x2 - x1) * (y2 - y1))
        aspects.append((x2 - x1) * 320 / ((y2 - y1) * 240))
    assert 0.075 < min(areas) < 0.15 and 0.8 < max(areas) <= 1
    assert 0.73 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.37
    x1, y1, x2, y2 = draw_random_resized_crop(10, 400, 8, draw(0, 0, 0), area=(0.9, 1.0)).region  # no try can fit
    assert (x1, y1, x2, y2) == pytest.approx((193 / 400, 0, 206 / 400, 1))


def test_multi_scale_crop_by_hand():
    # Sides of 256 x 340 frames: 256, 224, 192, 168; neighbours may mix; steps of a quarter of the rest.
    assert multi_scale_offsets(256, 340, (224, 224)) == [
        *((0, 0), (0, 116), (32, 0), (32, 116), (16, 58)),
        *((16, 0), (16, 116), (32, 58), (0, 58), (8, 29), (8, 87), (24, 29), (24, 87)),
    ]
    assert len(multi_scale_offsets(256, 340, (224, 224), more=False)) == 5
    seen = set()
    for index in range(600):
        x1, y1, x2, y2 = draw_multi_scale_crop(256, 340, 224, draw(0, 0, index)).region
        height, width = round((y2 - y1) * 256), round((x2 - x1) * 340)
        seen.add((height, width))
        assert (round(y1 * 256), round(x1 * 340)) in multi_scale_offsets(256, 340, (height, width))
    sides = [256, 224, 192, 168]
    assert seen == {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1}
    anywhere = {draw_multi_scale_crop(64, 64, 32, draw(0, 0, i), (0.5,), fixed_offsets=False).region for i in range(99)}
    assert len(anywhere) > 50
    # Sides within 3 pixels of the size take its length, but not beyond the frame.
    assert draw_multi_scale_crop(222, 300, 224, draw(0, 0, 0), (1.0,)).region[3] == 1.0


def test_what_does_not_fit_is_said():
    for call in (
        lambda: centre_crop(np.zeros((2, 20, 40, 3), np.uint8), 32),
        lambda: centre_crop_geometry(20, 40, 32),
        lambda: three_crops(320, 240, 224, short_side=200),
        lambda: draw_scale_jitter_crop(240, 320, 224, draw(0, 0, 0), (200, 210)),
    ):
        with pytest.raises(ValueError, match="does not fit into .* choose a smaller crop"):
            call()
    with pytest.raises(ValueError, match="region is"):
        Geometry((0.5, 0.0, 0.4, 1.0))
    with pytest.raises(ValueError, match="size is"):
        Geometry(size=(0, 10))


def textured(times: int = 4, channels: int = 3) -> Clip:
    rng = np.random.default_rng(0)
    dim = rng.integers(20, 200, (times, 24, 32, channels), np.uint8)
    dim[0] //= 2  # a dark frame: its own statistics differ from the clip's
    flow = rng.standard_normal((times, 24, 32, 2)).astype(np.float32)
    return Clip({"rgb": dim, "flow": flow}, 0, 1, make_clip(times=times).boxes)


@pytest.mark.parametrize("step", COLOUR_STEPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_colour_step(step: str, channels: int):
    clip = textured(channels=channels)
    value = {"hue": 0.2, "posterize": 3, "solarize": 100}.get(step, 1.5)
    changed = apply_photometric(clip, {"rgb": Photometric(((step, value),))})
    data = changed.streams["rgb"]
    assert data.dtype == np.uint8 and data.shape == clip.streams["rgb"].shape
    unchanged = channels == 1 and step in ("saturation", "hue", "grey")
    assert np.array_equal(data, clip.streams["rgb"]) == unchanged
    assert changed.streams["flow"] is clip.streams["flow"] and changed.boxes is clip.boxes
    # Clip-wide: two frames that were alike stay alike, whatever stands beside them.
    twin = clip.streams["rgb"].copy()
    twin[1] = twin[3]
    both = apply_photometric(Clip({"rgb": twin}, 0, 1), {"rgb": Photometric(((step, value),))}).streams["rgb"]
    assert np.array_equal(both[1], both[3])


def test_colours_do_not_flicker():
    """Contrast takes the clip's mean: a dark frame stays darker by the same factor."""
    data = np.full((2, 8, 8, 3), 100, np.uint8)
    data[0] = 50
    changed = apply_photometric(Clip({"rgb": data}, 0, 1), {"rgb": Photometric((("contrast", 2.0),))}).streams["rgb"]
    assert abs(changed[0].max() - 25) <= 1 and abs(changed[1].max() - 125) <= 1  # mean 75: 2 x 50 - 75, 2 x 100 - 75


def test_colour_values_by_hand():
    data = np.array([[[[10, 100, 200]]]], np.uint8)

    def after(step: str, value: float = 0.0) -> list[int]:
        changed = apply_photometric(Clip({"rgb": data}, 0, 1), {"rgb": Photometric(((step, value),))})
        return changed.streams["rgb"].ravel().tolist()

    assert after("brightness", 1.5) == [15, 150, 255]
    assert after("invert") == [245, 155, 55]
    assert after("posterize", 1) == [0, 0, 128]
    assert after("solarize", 100) == [10, 155, 55]
    assert len(set(after("grey"))) == 1


def test_colour_draws_keep_their_ranges():
    orders, greys = set(), 0
    for index in range(200):
        steps = draw_colour_jitter(draw(0, 0, index), 0.4, 0.3, 0.0, 0.1, grey_probability=0.2).steps
        values = dict(steps)
        greys += values.pop("grey", None) is not None
        orders.add(tuple(values))
        assert 0.6 <= values["brightness"] <= 1.4 and 0.7 <= values["contrast"] <= 1.3 and abs(values["hue"]) <= 0.1
        assert "saturation" not in values
    assert len(orders) == 6 and 20 < greys < 65
    seen: set[str] = set()
    for index in range(200):
        augment = draw_rand_augment(draw(0, 0, index), num_ops=2, magnitude=9)
        seen.update(name for name, _ in augment.steps)
        for name, value in augment.steps:
            expected = {"posterize": [7.0], "solarize": [178.5], "autocontrast": [0.0], "equalize": [0.0]}
            assert any(value == pytest.approx(v) for v in expected.get(name, [1.27, 0.73]))
        apply_photometric(textured(), {"rgb": augment}) if index < 20 else None
    assert seen == {
        *("brightness", "saturation", "contrast", "sharpness"),
        *("posterize", "solarize", "autocontrast", "equalize"),
    }


def test_wrong_colour_changes_are_said():
    clip = textured()
    with pytest.raises(ValueError, match="no stream 'ir'"):
        apply_photometric(clip, {"ir": Photometric()})
    with pytest.raises(ValueError, match="flow is float32"):
        apply_photometric(clip, {"flow": Photometric()})
    with pytest.raises(ValueError, match="no colour change is named 'blur'"):
        Photometric((("blur", 1.0),))
    with pytest.raises(ValueError, match="magnitude is 31"):
        draw_rand_augment(draw(0, 0, 0), magnitude=31)


def test_boxes_of_a_moved_clip_are_boxes_like_any_other():
    clip = make_clip()
    moved = apply_geometry(clip, Geometry((0.0, 0.0, 0.5, 1.0)))
    assert moved.boxes is not None and clip.boxes is not None
    expected = crop_boxes(clip.boxes, (0.0, 0.0, 0.5, 1.0))
    assert np.array_equal(moved.boxes.boxes, expected.boxes)
    assert limit_instances(moved.boxes, 4).boxes.shape == (3, 4, 4)


def test_cropping_starts_without_torch():
    code = (
        "import sys, numpy as np; from actionfuse.pipeline.transforms import centre_crop, centre_crop_geometry as g;"
        "import actionfuse.pipeline.sampling, actionfuse.pipeline.boxes, actionfuse.pipeline.annotations;"
        "centre_crop(np.zeros((1, 9, 9, 3)), 4); g(9, 9, 4); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
