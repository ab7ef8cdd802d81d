"""Frames are scaled by the kernel that is asked for, by every decoder."""

import cv2
import numpy as np
import pytest
from PIL import Image
from videos import write_counting_video

from actionfuse.pipeline.video import Size, as_size, open_video

FRAMES = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpolation")
    video = folder / "a.mp4"
    write_counting_video(video, num_frames=FRAMES, size=(160, 120))
    pictures = folder / "frames"
    pictures.mkdir()
    with open_video(video, "pyav") as reader:
        for i, frame in enumerate(next(iter(reader.stream())).data):
            cv2.imwrite(str(pictures / f"{i:05d}.png"), frame[..., ::-1])
    return {"pyav": video, "decord": video, "torchcodec": video, "frame_folder": pictures}


@pytest.mark.parametrize("decoder", ["pyav", "decord", "torchcodec", "frame_folder"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [48, 180])
def test_every_decoder_scales_as_pillow_does(files, decoder, interpolation, side):
    if decoder in ("decord", "torchcodec"):
        pytest.importorskip(decoder)
    kernels = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    with open_video(files[decoder], decoder) as reader:
        native = next(iter(reader.stream())).data
        scaled = np.concatenate([f.data for f in reader.stream(short_side=Size(side, interpolation))])
    height, width = scaled.shape[1:3]
    assert (len(scaled), min(height, width)) == (FRAMES, side)
    apart = {}
    for name, kernel in kernels.items():
        wanted = np.stack([np.asarray(Image.fromarray(frame).resize((width, height), kernel)) for frame in native])
        apart[name] = np.abs(scaled.astype(int) - wanted).mean()
    assert apart[interpolation] < 2  # grey levels
    assert apart[interpolation] < 0.9 * max(apart.values())


def test_sizes_of_one_pass_may_differ_in_their_kernel_alone(files):
    with open_video(files["pyav"]) as reader:
        first, second, third = next(iter(reader.all_frames((48, Size(48, "bicubic"), Size(48)))))
    assert (first.data == third.data).all() and (first.data != second.data).any()


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="'lanczos'.*bilinear, bicubic"):
        as_size(Size(48, "lanczos"))  # pyright: ignore[reportArgumentType]
