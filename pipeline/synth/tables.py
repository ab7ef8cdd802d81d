"""`ceilings.json` for people: the tables of `ceilings.md` and of the documentation, and a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from ..guard import beat
from .ceilings import FRACTIONS, TAU_A_SECONDS, key_of
from .choreography import HEIGHT, WIDTH
from .law import ACTION_NAMES, NOUNS, STREAMS, facets
from .render import Scene
from .script import Instance, Plan
from .sound import act_seconds

# Of the 31 sets of streams, those that the tables show.
SHOWN_SETS: tuple[tuple[str, ...], ...] = (
    *((stream,) for stream in STREAMS),
    ("rgb", "flow"),
    ("rgb", "audio"),
    ("flow", "audio"),
    ("rgb", "depth"),
    ("rgb", "ir"),
    ("depth", "ir"),
    ("rgb", "depth", "ir"),
    ("rgb", "flow", "audio"),
    STREAMS,
)
_SHOWN_TAU_A = tuple(tau_a for tau_a in TAU_A_SECONDS if tau_a in (0.25, 0.5, 1.0, 1.5, 2.0))
_COLUMNS = 12  # pictures a row of the sheet
_LABEL_WIDTH = 168


def markdown(ceilings: Mapping[str, Any]) -> str:
    """Three tables in per cent: recognition, early recognition, anticipation."""
    sets = {key_of(streams): "all" if streams == STREAMS else " + ".join(streams) for streams in SHOWN_SETS}
    recognition, early, later = (ceilings[name] for name in ("recognition", "early_recognition", "anticipation"))
    splits = ceilings["splits"]
    rows = [
        [name, *(_percent(recognition[key][task]["top1"]) for task in ("verb", "noun", "action"))]
        + [_percent(recognition[key]["action"]["class_mean_top1"])]
        + [
            _percent(splits[split][key]["verb"]["top1"])
            for split in ("compositional_validation", "few_shot_5_validation")
        ]
        for key, name in sets.items()
    ]
    nothing, frames = ceilings["nothing_seen"], ceilings["outline_and_surface"]
    for name, scores in (("nothing", nothing), ("outline, surface", frames)):
        shown = [_percent(scores[task]["top1"]) for task in ("verb", "noun", "action")]
        rows.append([name, *shown, _percent(scores["action"]["class_mean_top1"]), "", ""])
    parts = [
        "Recognition, %: top-1 of verb, noun and action, class-mean top-1 of the action; top-1 of the verb in the "
        "compositional and few-shot splits.",
        _table(["streams", "verb", "noun", "action", "class mean", "compositional", "few-shot"], rows),
        "Early recognition, %: top-1 of the action by the fraction of it that is seen.",
        _table(
            ["streams", *(f"{100 * fraction:g} %" for fraction in FRACTIONS)],
            [
                [name, *(_percent(early[str(f)][key]["action"]["top1"]) for f in FRACTIONS)]
                for key, name in sets.items()
            ],
        ),
        f"Anticipation, %, with standard errors: top-1 of the action by tau_a, tau_o = {later['tau_o_seconds']:g} s; "
        "class-mean top-5 (mean top-5 recall) at 1 s.",
        _table(
            ["streams", *(f"{tau_a:g} s" for tau_a in _SHOWN_TAU_A), "class-mean top-5, 1 s"],
            [
                [name, *(_with_error(later, tau_a, key, "top1") for tau_a in _SHOWN_TAU_A)]
                + [_with_error(later, 1.0, key, "class_mean_top5")]
                for key, name in sets.items()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _with_error(later: Mapping[str, Any], tau_a: float, key: str, metric: str) -> str:
    value, error = (
        later["by_tau_a_seconds"][str(tau_a)][key][what]["action"][metric] for what in ("value", "standard_error")
    )
    return f"{100 * value:.1f} ± {100 * error:.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def contact_sheet(plan: Plan) -> np.ndarray:
    """uint8 (H, W, 3): a row for each motion that the videos have, with six moments of its act among others.

    From left to right: rgb before the object comes, as it comes, and at rest; the act, 0.12 s apart; as both leave;
    depth early and late in the act; ir.
    """
    found: dict[int, tuple[Scene, Instance]] = {}
    for motion in range(len(facets(plan.law)["motion"].symbols)):
        able = [(video, i) for video in plan.videos for i in video.instances if i.symbols["motion"] == motion]
        if able:  # rather one that looks like its noun, of a video that is not shown yet
            used = {scene.script.id for scene, _ in found.values()}
            video, instance = min(able, key=lambda one: (one[1].symbols["surface"] >= len(NOUNS), one[0].id in used))
            found[motion] = Scene(plan.law, video), instance
    sheet = np.full((len(found) * HEIGHT, _LABEL_WIDTH + _COLUMNS * WIDTH, 3), 255, np.uint8)
    for row, (scene, instance) in enumerate(found.values()):
        beat()
        start, duration = instance.start_seconds, instance.duration_seconds
        begin, end = act_seconds(plan.law, instance)
        rgb = [start + 0.12 * duration, start + 0.2 * duration, begin - 0.04]
        rgb += [begin + 0.04 + 0.12 * n for n in range(5)] + [start + 0.95 * duration]
        pictures = [scene.rgb(scene.shot(t)) for t in rgb]
        pictures += [_three(scene.depth(scene.shot(t))) for t in (begin + 0.04, end - 0.04)]
        pictures += [_three(scene.ir(scene.shot(begin + 0.04)))]
        top = row * HEIGHT
        sheet[top : top + HEIGHT, _LABEL_WIDTH:] = np.concatenate(pictures, 1)
        shown = {name: facet.symbols[instance.symbols[name]] for name, facet in facets(plan.law).items()}
        lines = [ACTION_NAMES[instance.action], f"motion: {shown['motion']}", f"looks: {shown['surface']}"]
        lines += [f"height: {shown['height']}", f"relief: {shown['relief']}", f"heat: {shown['heat']}"]
        for line, text in enumerate(lines):
            place = (5, top + 15 + 15 * line)
            cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_8)
    return sheet


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)
