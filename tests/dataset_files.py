"""Small made-up datasets in the formats of public ones: the names and layouts are theirs, no row is."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# (id, video, start, stop, verb, noun)
Row = tuple[str, str, float, float, int, int]


def write_csv(path: Path, rows: Iterable[Sequence[object]], separator: str = ",") -> Path:
    """Rows as csv; with separator ", " as RULSTM writes its files (blanks after commas, nothing quoted)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        if separator == ",":
            csv.writer(file, lineterminator="\n").writerows(rows)
        else:
            file.writelines(separator.join(map(str, row)) + "\n" for row in rows)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def stamp(seconds: float) -> str:
    """As EPIC writes times: 00:01:02.50."""
    minutes, rest = divmod(round(seconds * 100), 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 100:02d}.{rest % 100:02d}"


EPIC_COLUMNS = (
    "participant_id video_id narration start_timestamp stop_timestamp start_frame stop_frame verb verb_class noun "
    "noun_class all_nouns all_noun_classes"
).split()


def epic_rows(
    segments: Iterable[Row],
    *,
    id_column: str,
    rates: Mapping[str, float],
    labelled: bool = True,
) -> list[list[object]]:
    """Official rows, header first; rates: video -> frames a second."""
    columns = [id_column, *EPIC_COLUMNS]
    if not labelled:
        columns = [name for name in columns if name.endswith(("_id", "_timestamp", "_frame")) or name == id_column]
    rows: list[list[object]] = [list(columns)]
    for segment_id, video, start, stop, verb, noun in segments:
        row: dict[str, object] = {
            id_column: segment_id,
            "participant_id": video.split("_")[0],
            "video_id": video,
            "narration": f"do {verb}, then {noun}",
            "start_timestamp": stamp(start),
            "stop_timestamp": stamp(stop),
            "start_frame": max(1, int(start * rates[video])),
            "stop_frame": int(stop * rates[video]),
            "verb": f"verb{verb}",
            "verb_class": verb,
            "noun": f"noun{noun}",
            "noun_class": noun,
            "all_nouns": f"['noun{noun}', 'noun0']",
            "all_noun_classes": f"[{noun}, 0]",
        }
        rows.append([row[name] for name in columns])
    return rows


# Two digits are of 2018 (60 frames a second), three digits of 2020 (50).
EPIC100_TRAIN = [
    ("P01_01_0", "P01_01", 1.25, 2.5, 0, 1),
    ("P01_01_1", "P01_01", 3.11, 4.87, 2, 0),
    ("P01_101_0", "P01_101", 61.98, 63.02, 1, 10),
    ("P01_101_1", "P01_101", 70.0, 71.5, 1, 2),
]
EPIC100_VALIDATION = [
    ("P02_03_0", "P02_03", 0.0, 0.5, 0, 1),
    ("P02_03_1", "P02_03", 5.0, 6.0, 3, 2),
    ("P09_102_0", "P09_102", 2.0, 3.0, 0, 10),
    ("P09_102_1", "P09_102", 4.0, 5.0, 2, 0),
]
EPIC100_RATES = {"P01_01": 60, "P01_101": 50, "P02_03": 60, "P09_102": 50, "P33_101": 50}
EPIC100_TEST = [("P33_101_0", "P33_101", 1.5, 2.0, 0, 0)]
VERBS, NOUNS = 4, 11
# Pairs sorted as text: 0_1 < 0_10 < 1_10 < 1_2 < 2_0 < 3_2.
EPIC100_ACTIONS = [(0, 1), (0, 10), (1, 10), (1, 2), (2, 0), (3, 2)]


def write_epic100(root: Path) -> Path:
    """EPIC-KITCHENS-100's official files, with subsets."""
    for name, segments, labelled in (
        ("EPIC_100_train", EPIC100_TRAIN, True),
        ("EPIC_100_validation", EPIC100_VALIDATION, True),
        ("EPIC_100_test_timestamps", EPIC100_TEST, False),
    ):
        rows = epic_rows(segments, id_column="narration_id", rates=EPIC100_RATES, labelled=labelled)
        write_csv(root / f"{name}.csv", rows)
    write_epic_classes(root, "EPIC_100_{}_classes.csv", ("id", "key", "instances", "category"))
    write_csv(root / "EPIC_100_tail_verbs.csv", [["verb"], [3]])
    write_csv(root / "EPIC_100_tail_nouns.csv", [["noun"], [10]])
    write_csv(root / "EPIC_100_unseen_participant_ids_validation.csv", [["participant_id"], ["P09"]])
    write_csv(root / "EPIC_100_unseen_participant_ids_test.csv", [["participant_id"], ["P33"]])
    # The rates of the videos, which are not those that frame numbers of 2018 count by.
    info = [[video, 100.0, 59.94 if rate == 60 else rate, "456x256"] for video, rate in EPIC100_RATES.items()]
    write_csv(root / "EPIC_100_video_info.csv", [["video_id", "duration", "fps", "resolution"], *info])
    return root


def write_epic_classes(root: Path, pattern: str, header: Sequence[str]) -> None:
    for task, count in (("verb", VERBS), ("noun", NOUNS)):
        rows = [[n, f"{task}{n}", f"['{task}{n}', 'other']", "things"][: len(header)] for n in range(count)]
        own = [name.replace("TASK", task) for name in header]
        write_csv(root / pattern.format(task), [own, *rows])


def rulstm_rows(segments: Iterable[Row], actions: Sequence[tuple[int, int]] | None) -> list[list[object]]:
    """RULSTM's rows at 30 frames a second; without actions: of a test split."""
    rows: list[list[object]] = []
    for segment_id, video, start, stop, verb, noun in segments:
        labels = [] if actions is None else [verb, noun, actions.index((verb, noun))]
        rows.append([segment_id, video, max(1, int(start * 30)), int(stop * 30), *labels])
    return rows


def write_rulstm_100(root: Path) -> Path:
    write_csv(root / "training.csv", rulstm_rows(EPIC100_TRAIN, EPIC100_ACTIONS))
    write_csv(root / "validation.csv", rulstm_rows(EPIC100_VALIDATION, EPIC100_ACTIONS))
    write_csv(root / "test_timestamps.csv", rulstm_rows(EPIC100_TEST, None))
    actions = [[n, verb, noun, f"verb{verb} noun{noun}"] for n, (verb, noun) in enumerate(EPIC100_ACTIONS)]
    write_csv(root / "actions.csv", [["id", "verb", "noun", "action"], *actions])
    for name, ids in (
        ("unseen_participants", ["P09_102_0", "P09_102_1"]),
        ("tail_verbs", ["P02_03_1"]),
        ("tail_nouns", ["P09_102_0"]),
        ("tail_actions", ["P02_03_1", "P09_102_0"]),
    ):
        write_csv(root / f"validation_{name}_ids.csv", [[name] for name in ids])
    return root


# EPIC-KITCHENS-55: ids are numbers; P26 is a validation participant, P01_02 a validation video.
EPIC55 = [
    ("0", "P01_01", 0.14, 3.37, 0, 1),
    ("1", "P01_01", 4.25, 6.5, 1, 10),
    ("2", "P01_02", 0.02, 1.89, 2, 2),
    ("3", "P01_02", 9.0, 10.0, 3, 3),
    ("7", "P26_01", 5.0, 6.0, 0, 10),
]
EPIC55_TESTS = {"s1": [("5", "P01_11", 1.0, 2.0, 0, 0)], "s2": [("9", "P09_01", 3.0, 4.0, 0, 0)]}
EPIC55_ACTIONS = [(0, 1), (0, 10), (1, 10), (2, 2), (3, 3)]
MANY_SHOT_VERBS, MANY_SHOT_NOUNS = (0, 2), (10, 2)


def write_many_shot(root: Path, *, actions: bool) -> None:
    write_csv(root / "EPIC_many_shot_verbs.csv", [["verb_class", "verb"], *([v, f"verb{v}"] for v in MANY_SHOT_VERBS)])
    write_csv(root / "EPIC_many_shot_nouns.csv", [["noun_class", "noun"], *([n, f"noun{n}"] for n in MANY_SHOT_NOUNS)])
    if actions:
        pairs = [[f"({v}, {n})", f"noun{n}", n, f"verb{v}", v] for v, n in ((0, 10), (2, 2))]
        header = ["action_class", "noun", "noun_class", "verb", "verb_class"]
        write_csv(root / "EPIC_many_shot_actions.csv", [header, *pairs])


def write_epic55(root: Path) -> Path:
    rates = dict.fromkeys(("P01_01", "P01_02", "P01_11", "P09_01", "P26_01"), 60)
    write_csv(root / "EPIC_train_action_labels.csv", epic_rows(EPIC55, id_column="uid", rates=rates))
    for which, segments in EPIC55_TESTS.items():
        rows = epic_rows(segments, id_column="uid", rates=rates, labelled=False)
        write_csv(root / f"EPIC_test_{which}_timestamps.csv", rows)
    write_epic_classes(root, "EPIC_{}_classes.csv", ("TASK_id", "class_key", "TASKs"))
    write_csv(root / "validation_videos.csv", [["P01_02"]])
    write_many_shot(root, actions=True)
    return root


def write_rulstm_55(root: Path) -> Path:
    def padded(
        segments: Sequence[tuple[str, str, float, float, int, int]], labelled: bool = True
    ) -> list[list[object]]:
        rows = rulstm_rows(segments, EPIC55_ACTIONS if labelled else None)
        return [[f"{int(row[0]):05d}", row[1], *(f"{number:010d}" for number in row[2:])] for row in rows]

    write_csv(root / "training.csv", padded([s for s in EPIC55 if s[1] != "P01_02"]), ", ")
    write_csv(root / "validation.csv", padded([s for s in EPIC55 if s[1] == "P01_02"]), ", ")
    write_csv(root / "test_seen.csv", padded(EPIC55_TESTS["s1"], False), ", ")
    write_csv(root / "test_unseen.csv", padded(EPIC55_TESTS["s2"], False), ", ")
    # Names are narrations: the one verb or noun class has several.
    names = ["take_cup", "grab_pan", "put_pan", "open_lid", "close_door"]
    actions = [[n, names[n], verb, noun] for n, (verb, noun) in enumerate(EPIC55_ACTIONS)]
    write_csv(root / "actions.csv", [["id", "action", "verb", "noun"], *actions], ", ")
    write_csv(root / "validation_videos.csv", [["P01_02"]])
    write_many_shot(root, actions=False)
    return root


def something_else_frame(video: str, number: int, boxes: Mapping[str, tuple[float, float, float, float]]) -> dict:
    """One frame of the box json; boxes: standard_category (a `#2` at its end is dropped) -> x1 y1 x2 y2 in pixels."""
    labels = [
        {
            "box2d": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            "category": 'a "quoted] {thing',
            "gt_annotation": f"object {track}",
            "standard_category": track.partition("#")[0],
        }
        for track, box in boxes.items()
    ]
    return {
        "url": "none",
        "split": "80perc_1",
        "gt_placeholders": ["thing"],
        "name": f"{video}/{number:04d}.jpg",
        "nr_instances": len(labels),
        "task_index": 1,
        "labels": labels,
    }
