"""The plainest correct extraction: cv2.VideoCapture, one clip at a time. FILES -- OPTIONS of `actionfuse extract`

What most people's script does: read, resize, crop, run the model on one clip with all of torch's threads, go on.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
from _options import runner_of

from actionfuse.extract.runner import Batch, Runner


def features(path: str, runner: Runner) -> np.ndarray:
    plan = runner.plan
    assert plan.fps is not None
    capture = cv2.VideoCapture(path)
    rate = capture.get(cv2.CAP_PROP_FPS)
    clip: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    index, taken = -1, 0
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        index += 1
        while taken / plan.fps < (index + 1) / rate - 1e-9:
            if taken % plan.stride < plan.frames or plan.stride < plan.frames:
                height, width = frame.shape[:2]
                scale = plan.resize_side / min(height, width)
                size = round(width * scale), round(height * scale)
                small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
                top, left = (small.shape[0] - plan.crop) // 2, (small.shape[1] - plan.crop) // 2
                clip.append(cv2.cvtColor(small[top : top + plan.crop, left : left + plan.crop], cv2.COLOR_BGR2RGB))
            taken += 1
            if len(clip) == plan.frames:
                rows.append(runner(Batch(np.stack(clip)[None]))["features"])
                clip = clip[plan.stride :]
    if clip and (not rows or len(clip) > plan.frames - plan.stride):
        clip += [clip[-1]] * (plan.frames - len(clip))
        rows.append(runner(Batch(np.stack(clip)[None]))["features"])
    return np.concatenate(rows)


if __name__ == "__main__":
    middle = sys.argv.index("--")
    model, _ = runner_of(sys.argv[middle + 1 :])
    print("rows", sum(len(features(path, model)) for path in sys.argv[1:middle]))
