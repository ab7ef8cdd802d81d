"""16-frame windows, stride 8, each read from the file by itself: VIDEO HOW OUT.npy

HOW: the name of a decoder, behind this project's reader; or `plain`, a loop with PyAV as one writes it: seek to the key
frame before the window, decode to its end, keep the frames wanted. It scales by the same kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import av
import numpy as np
from _options import runner_of

from actionfuse.extract.runner import Batch
from actionfuse.pipeline import open_video
from actionfuse.pipeline.decoders._pixels import Scaler
from actionfuse.pipeline.sampling import windows
from actionfuse.pipeline.transforms import centre_crop
from actionfuse.pipeline.video import Size


def by_reader(path: str, decoder: str, size: Size) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """How many frames there are, and what reads those of a window."""
    reader = open_video(path, decoder=decoder)
    times = reader.info.start_seconds + np.arange(reader.info.num_frames) / reader.info.average_fps
    return len(times), lambda indices: reader.frames_at(list(times[indices] + 1e-4), short_side=size).data


def by_loop(path: str, size: Size) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    with open_video(path, decoder="pyav") as reader:
        info = reader.info
    container = av.open(path)
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    assert stream.time_base is not None
    ticks = round(1 / info.average_fps / stream.time_base)
    scaler = Scaler(info, size)

    def read(indices: np.ndarray) -> np.ndarray:
        rows = np.empty((len(indices), scaler.height, scaler.width, 3), np.uint8)
        container.seek(int(indices[0]) * ticks, stream=stream)
        for frame in container.decode(stream):
            assert frame.pts is not None
            for row in np.flatnonzero(indices == round(frame.pts / ticks)):
                scaler.write(frame, rows[row])
            if frame.pts >= indices[-1] * ticks:
                break
        return rows

    return info.num_frames, read


if __name__ == "__main__":
    path, how, out = sys.argv[1:]
    runner, _ = runner_of(["--clip-frames", "16", "--clip-stride", "8", "--fps", "native"])
    plan, rows = runner.plan, []
    length, read = by_loop(path, plan.size) if how == "plain" else by_reader(path, how, plan.size)
    for indices in windows(length, 16, 8):
        clip = np.ascontiguousarray(centre_crop(read(indices), plan.crop))
        rows.append(runner(Batch(clip[None]))["features"])
    np.save(out, np.concatenate(rows))
