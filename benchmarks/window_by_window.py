"""16-frame windows, stride 8, each read from the file by itself: VIDEO DECODER OUT.npy"""

from __future__ import annotations

import sys

import numpy as np
from _options import runner_of

from actionfuse.extract.runner import Batch
from actionfuse.pipeline import open_video
from actionfuse.pipeline.sampling import windows
from actionfuse.pipeline.transforms import centre_crop

if __name__ == "__main__":
    path, decoder, out = sys.argv[1:]
    runner, _ = runner_of(["--clip-frames", "16", "--clip-stride", "8", "--fps", "native"])
    plan, rows = runner.plan, []
    with open_video(path, decoder=decoder) as reader:
        times = reader.info.start_seconds + np.arange(reader.info.num_frames) / reader.info.average_fps
        for indices in windows(len(times), 16, 8):
            frames = reader.frames_at(list(times[indices] + 1e-4), short_side=plan.size)
            clip = np.ascontiguousarray(centre_crop(frames.data, plan.crop))
            rows.append(runner(Batch(clip[None]))["features"])
    np.save(out, np.concatenate(rows))
