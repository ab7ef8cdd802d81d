"""Annotation files of the synthetic kitchen, in the layouts of EPIC-KITCHENS-100, RULSTM and Something-Else.

EPIC_100_*.csv                       official columns; frame numbers are max(1, floor(seconds x 24))
training.csv validation.csv validation_*_ids.csv actions.csv    RULSTM's, frame numbers at 30 a second
something_else/                      every action as a video of its own at 12 frames a second, with boxes
splits.json                          compositional and few-shot splits by narration id, and which clip is which
truth.jsonl                          what each instance shows: for oracles and tests, not for models
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..guard import beat
from .choreography import CLIP_FPS, FPS, HEIGHT, WIDTH
from .law import ACTION_NAMES, NOUN_OF, NOUNS, NOVEL_VERBS, OUTLINES, VERB_OF, VERBS, facets, shared_motion
from .render import Scene
from .script import Instance, Plan, VideoScript

_RULSTM_FPS = 30
_TAIL_SHARE = 0.2  # tail classes: the rarest ones, up to this share of the training instances (EPIC-KITCHENS-100)
_GERUNDS = ("Taking", "Putting", "Washing", "Cutting", "Stirring", "Turning", "Shaking", "Squeezing")

# A split of Something-Else: its file, and ours by name.
_LISTS = {
    "compositional/train.json": "compositional_train",
    "compositional/validation.json": "compositional_validation",
    "fewshot/base_training_set.json": "few_shot_base_train",
    "fewshot/base_validation_set.json": "few_shot_base_validation",
    **{f"fewshot/finetune_{k}shot_training.json": f"few_shot_{k}_train" for k in (5, 10)},
    **{f"fewshot/finetune_{k}shot_validation.json": f"few_shot_{k}_validation" for k in (5, 10)},
}


def write_annotations(plan: Plan) -> dict[str, str]:
    """Path below the kitchen's folder -> text of every annotation file."""
    unseen = sorted({v.participant for v in plan.videos} - {v.participant for v in plan.videos if v.split == "train"})
    tail = {"verb": _tail(plan, "verb", len(VERBS)), "noun": _tail(plan, "noun", len(NOUNS))}
    validation = plan.instances("validation")
    subsets = {
        "unseen_participants": [i for i in validation if i.video.split("_")[0] in unseen],
        "tail_verbs": [i for i in validation if i.verb in tail["verb"]],
        "tail_nouns": [i for i in validation if i.noun in tail["noun"]],
        "tail_actions": [i for i in validation if i.verb in tail["verb"] or i.noun in tail["noun"]],
    }
    return {
        "EPIC_100_train.csv": _epic(plan, "train"),
        "EPIC_100_validation.csv": _epic(plan, "validation"),
        "EPIC_100_verb_classes.csv": _classes(VERBS, [shared_motion(n // 2) for n in range(len(VERBS))]),
        "EPIC_100_noun_classes.csv": _classes(NOUNS, [OUTLINES[n // 3] for n in range(len(NOUNS))]),
        "EPIC_100_tail_verbs.csv": _csv(["verb"], [[n] for n in tail["verb"]]),
        "EPIC_100_tail_nouns.csv": _csv(["noun"], [[n] for n in tail["noun"]]),
        "EPIC_100_unseen_participant_ids_validation.csv": _csv(["participant_id"], [[name] for name in unseen]),
        "EPIC_100_video_info.csv": _csv(
            ["video_id", "duration", "fps", "resolution"],
            [[v.id, v.duration_seconds, float(FPS), f"{WIDTH}x{HEIGHT}"] for v in plan.videos],
        ),
        "training.csv": _rulstm(plan, "train"),
        "validation.csv": _rulstm(plan, "validation"),
        **{f"validation_{name}_ids.csv": "".join(f"{i.id}\n" for i in found) for name, found in subsets.items()},
        "actions.csv": _csv(
            ["id", "verb", "noun", "action"],
            [[n, VERB_OF[n], NOUN_OF[n], name] for n, name in enumerate(ACTION_NAMES)],
        ),
        "splits.json": _json(
            {
                "splits": {name: [instance.id for instance in found] for name, found in plan.subsets.items()},
                "clips": {i.id: str(i.clip) for video in plan.videos for i in video.instances},
            }
        ),
        "truth.jsonl": "".join(_json(row, indent=None) for row in _truth(plan)),
        "something_else/annotations.json": _boxes(plan),
        **{f"something_else/{name}": _clips(plan.subsets[split]) for name, split in _LISTS.items()},
        **{f"something_else/{name}": _json(labels) for name, labels in _label_lists().items()},
    }


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _json(value: Any, indent: int | None = 1) -> str:
    return json.dumps(value, indent=indent) + "\n"


# EPIC-KITCHENS-100


def _epic(plan: Plan, split: str) -> str:
    header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
        "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    )
    rows = []
    for video in plan.videos:
        for i in video.instances if video.split == split else ():
            verb, noun = VERBS[i.verb], NOUNS[i.noun]
            times = [_stamp(i.start_seconds, 3), _stamp(i.start_seconds, 2), _stamp(i.stop_seconds, 2)]
            frames = [_frame(i.start_seconds, FPS), _frame(i.stop_seconds, FPS)]
            labels = [f"{verb} {noun}", verb, i.verb, noun, i.noun, f"['{noun}']", f"[{i.noun}]"]
            rows.append([i.id, video.participant, video.id, *times, *frames, *labels])
    return _csv(header.split(","), rows)


def _stamp(seconds: float, decimals: int) -> str:
    hours, minutes = int(seconds // 3600), int(seconds // 60 % 60)
    return f"{hours:02d}:{minutes:02d}:{seconds % 60:0{3 + decimals}.{decimals}f}"


def _frame(seconds: float, fps: int) -> int:
    return max(1, int(seconds * fps))


def _classes(names: Sequence[str], categories: Sequence[str]) -> str:
    pairs = enumerate(zip(names, categories, strict=True))
    rows = [[n, name, f"['{name}']", category] for n, (name, category) in pairs]
    return _csv(["id", "key", "instances", "category"], rows)


def _tail(plan: Plan, task: str, classes: int) -> list[int]:
    counts = Counter(getattr(instance, task) for instance in plan.instances("train"))
    order = sorted(range(classes), key=lambda n: (counts[n], n))
    shares = np.cumsum([counts[n] for n in order]) / counts.total()
    return sorted(n for n, share in zip(order, shares, strict=True) if share <= _TAIL_SHARE)


def _rulstm(plan: Plan, split: str) -> str:
    rows = []
    for i in plan.instances(split):
        frames = [_frame(i.start_seconds, _RULSTM_FPS), _frame(i.stop_seconds, _RULSTM_FPS)]
        rows.append([i.id, i.video, *frames, i.verb, i.noun, i.action])
    return _csv([], rows).lstrip("\n")


# Something-Else


def _label_lists() -> dict[str, dict[str, int]]:
    names = {verb: f"{gerund} something" for verb, gerund in zip(VERBS, _GERUNDS, strict=True)}
    base = [name for verb, name in names.items() if verb not in NOVEL_VERBS]
    novel = [names[verb] for verb in NOVEL_VERBS]
    lists = {"compositional/labels": names.values(), "fewshot/base_labels": base, "fewshot/finetune_labels": novel}
    return {f"{file}.json": {name: n for n, name in enumerate(found)} for file, found in lists.items()}


def _clips(instances: Sequence[Instance]) -> str:
    return _json(
        [
            {
                "id": str(i.clip),
                "label": f"{_GERUNDS[i.verb].lower()} {NOUNS[i.noun]}",
                "template": f"{_GERUNDS[i.verb]} [something]",
                "placeholders": [NOUNS[i.noun]],
            }
            for i in instances
        ]
    )


def _boxes(plan: Plan) -> str:
    lines = []
    for video in plan.videos:
        scene = Scene(plan.law, video)
        for instance in video.instances:
            beat()
            lines.append(f'"{instance.clip}": {json.dumps(list(_annotated_frames(scene, instance)))}')
    return "{" + ",\n".join(lines) + "}\n"


def clip_seconds(instance: Instance) -> list[float]:
    """When the frames of an instance's own video are, on the clock of the video that it is from."""
    return [instance.start_seconds + n / CLIP_FPS for n in range(round(instance.duration_seconds * CLIP_FPS))]


def _annotated_frames(scene: Scene, instance: Instance) -> Iterable[dict[str, Any]]:
    noun = NOUNS[instance.noun]
    for number, seconds in enumerate(clip_seconds(instance), 1):
        shot = scene.shot(seconds)
        found = (("0000", noun, "object 0", shot.object_box), ("hand", "hand", "object hand", shot.hand_box))
        labels = [
            {
                "box2d": dict(zip(("x1", "y1", "x2", "y2"), map(partial(round, ndigits=3), box), strict=True)),
                "category": category,
                "standard_category": standard,
                "gt_annotation": annotation,
            }
            for standard, category, annotation, box in found
            if box is not None
        ]
        if labels:
            name = f"{instance.clip}/{number:04d}.jpg"
            yield {"name": name, "nr_instances": len(labels), "gt_placeholders": [noun], "labels": labels}


# Truth


def _truth(plan: Plan) -> Iterable[dict[str, Any]]:
    for video in plan.videos:
        yield from (_told(plan, video, instance) for instance in video.instances)


def _told(plan: Plan, video: VideoScript, instance: Instance) -> dict[str, Any]:
    known = facets(plan.law)
    return {
        "id": instance.id,
        "clip": str(instance.clip),
        "video": video.id,
        "split": video.split,
        "start_seconds": instance.start_seconds,
        "stop_seconds": instance.stop_seconds,
        "act_from": instance.act_from,
        "action": instance.action,
        "verb": instance.verb,
        "noun": instance.noun,
        "symbols": {name: known[name].symbols[symbol] for name, symbol in instance.symbols.items()},
    }
