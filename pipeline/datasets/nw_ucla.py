"""Northwestern-UCLA Multiview Action 3D: 10 actions of 10 people before three Kinect cameras, in colour and depth.

Paper: Wang et al., Cross-view Action Modeling, Learning and Recognition, CVPR 2014.
Where: https://wangjiangb.github.io/my_data.html
Licence: see the dataset's page for its terms.

Splits: train, test: two cameras train and the third tests, as a rule camera 3 (`test_view`).

Layout (the views may also lie in multiview_action/):

    view_1/a01_s01_e00/frame_0_tc_1310_rgb.jpg  ..._depth.png  ..._depth_vis.jpg  ..._skeletons.txt
    view_2/...  view_3/...

A name tells action (a), subject (s) and episode (e); a segment is all frames of one. The actions have the numbers 1 to
6, 8, 9, 11 and 12; class numbers are their ranks.

A folder holds the frames of several streams, with two numbers in each name, of which the first counts, at 30 a second:
a stream is a pattern such as `frame_%d_tc_%d_rgb.jpg`. Depth is read with all of its 16 bits (`StreamSpec.depth_range`
names those that count); stream "depth_vis" is the dataset's own 8-bit picture of it.

The names of actions and files follow the public description.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..annotations import Segment
from .contract import Dataset, register
from .layout import LayoutError, choose_paths

NAME = "nw_ucla"
FRAMES_PER_SECOND = 30.0
ACTIONS: Mapping[int, str] = {
    1: "pick up with one hand",
    2: "pick up with two hands",
    3: "drop trash",
    4: "walk around",
    5: "sit down",
    6: "stand up",
    8: "donning",
    9: "doffing",
    11: "throw",
    12: "carry",
}
VIEWS = (1, 2, 3)
STREAMS: Mapping[str, str] = {"rgb": "rgb.jpg", "depth": "depth.png", "depth_vis": "depth_vis.jpg"}
_FOLDERS = ("", "multiview_action")
_EPISODE = re.compile(r"a(?P<action>\d+)_s(?P<subject>\d+)_e(?P<episode>\d+)")


@register(
    NAME,
    splits=("train", "test"),
    paper="Wang et al., CVPR 2014",
    source="wangjiangb.github.io/my_data.html",
    licence="see the dataset's page for its terms",
    layout="""\
    view_1/a01_s01_e00/frame_0_tc_1310_rgb.jpg  ..._depth.png   view_2/...  view_3/...""",
)
def read(root: Path, split: str, *, test_view: Literal[1, 2, 3] = 3, paths: Mapping[str, str] | None = None) -> Dataset:
    """One split; see the module's text.

    test_view: the camera that is not trained on.
    paths: stream -> pattern of `Dataset.paths`, where files lie elsewhere; {video} is view_1/a01_s01_e00.
    """
    folder = _views_folder(root)
    views = (test_view,) if split == "test" else tuple(view for view in VIEWS if view != test_view)
    classes = {action: number for number, action in enumerate(ACTIONS)}
    segments: list[Segment] = []
    for view in views:
        if not (folder / f"view_{view}").is_dir():
            raise LayoutError(folder, (f"view_{view}/a01_s01_e00",), "split and test_view need it")
        for name, parsed in _episodes(folder / f"view_{view}"):
            video, action = f"view_{view}/{name}", int(parsed["action"])
            if action not in classes:
                raise ValueError(f"{folder / video} has the action {action}; there are {', '.join(map(str, ACTIONS))}")
            extra = {"participant": f"s{parsed['subject']}", "view": str(view), "episode": parsed["episode"]}
            segments.append(Segment(video, 0.0, math.inf, video, {"action": classes[action]}, extra))
    below = "" if folder == root else f"{folder.name}/"
    candidates = {
        stream: (f"{below}{{video}}/frame_%d_tc_%d_{ending}", f"{stream}/{{video}}.avi", f"{stream}/{{video}}.mp4")
        for stream, ending in STREAMS.items()
    }
    chosen = choose_paths(root, candidates, segments, paths)
    return Dataset(
        name=NAME,
        split=split,
        segments=tuple(segments),
        classes={"action": tuple(ACTIONS.values())},
        root=root,
        paths=chosen,
        frame_rates={
            stream: FRAMES_PER_SECOND for stream, pattern in chosen.items() if not pattern.endswith((".avi", ".mp4"))
        },
    )


def _views_folder(root: Path) -> Path:
    for folder in _FOLDERS:
        if any((root / folder / f"view_{view}").is_dir() for view in VIEWS):
            return root / folder
    raise LayoutError(root, tuple(f"view_{view}/a01_s01_e00" for view in VIEWS), "or all in multiview_action/")


def _episodes(folder: Path) -> list[tuple[str, re.Match[str]]]:
    found = ((name, _EPISODE.fullmatch(name)) for name in sorted(os.listdir(folder)))
    return [(name, parsed) for name, parsed in found if parsed is not None]
