"""What EPIC-KITCHENS-55 and -100 have in common: the columns of the official csv files, frame numbers, actions, paths.

Official frame numbers belong to the frames that the authors give away, not to the videos. Those of the 2018 videos
(P01_01, two digits) were taken at 60 a second whatever the video's own rate is (59.94 mostly; also 29.97, 47.95, 90);
those of the 2020 videos (P01_101, three digits) at 50, their own rate. A number is max(1, floor(seconds x rate)), which
holds for every row. The 30 a second of RULSTM's files are in rulstm.py.

Their flow_frames (a u/ and a v/ for each video, decoders/flow_folder.py) have a field for every second frame of 2018
and for every frame of 2020: 30 and 50 a second.

Actions have no numbers in the official files. They get those of RULSTM's actions.csv, which all later work uses: pairs
(verb, noun) of the training and validation rows, sorted as the text "verb_noun" ("10_2" before "2_1").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..annotations import Segment, csv_rows, parse_seconds
from .layout import read_table, unique, whole_number
from .rulstm import Actions, plain_id

Annotations = Literal["official", "rulstm"]
Times = Literal["timestamps", "frames"]
FRAMES_2018, FRAMES_2020 = 60.0, 50.0
FLOW_STRIDE_2018 = 2
# Frame numbers further than this from the time stamps belong to other frames; the rounding of stamps and rates is less.
_FRAME_TOLERANCE = 2

LICENCE = "CC BY-NC 4.0 (videos and annotations)"
ANNOTATION_FOLDERS = ("", "annotations", "epic-kitchens-100-annotations", "epic-kitchens-55-annotations")
RULSTM_FOLDERS = ("", "annotations", "rulstm")
_VIDEO_FILES = ("MP4", "mp4", "mkv", "webm", "avi")


def _frames_of_2018(stream: str) -> Sequence[str]:
    """Where the archive of EPIC-KITCHENS-55 keeps frames."""
    folders = (f"frames_rgb_flow/{stream}/{split}/{{participant}}/{{video}}" for split in ("train", "test"))
    return [f"{folder}{ending}" for folder in folders for ending in ("", ".tar")]


PATHS: Mapping[str, Sequence[str]] = {
    "rgb": (
        "{participant}/videos/{video}.MP4",
        "EPIC-KITCHENS/{participant}/videos/{video}.MP4",
        "videos/train/{participant}/{video}.MP4",
        "videos/test/{participant}/{video}.MP4",
        *(
            f"{folder}{{video}}.{extension}"
            for folder in ("videos/", "videos/{participant}/", "{participant}/videos/", "")
            for extension in _VIDEO_FILES
        ),
        "{participant}/rgb_frames/{video}",
        "{participant}/rgb_frames/{video}.tar",
        "EPIC-KITCHENS/{participant}/rgb_frames/{video}",
        "EPIC-KITCHENS/{participant}/rgb_frames/{video}.tar",
        *_frames_of_2018("rgb"),
        "rgb/{video}",
    ),
    "flow": (
        "{participant}/flow_frames/{video}",
        "{participant}/flow_frames/{video}.tar",
        "EPIC-KITCHENS/{participant}/flow_frames/{video}",
        "EPIC-KITCHENS/{participant}/flow_frames/{video}.tar",
        *_frames_of_2018("flow"),
        "flow/{video}",
        "flow/{video}.tar",
        *(f"flow/{{video}}.{extension}" for extension in ("flow.mkv", "mkv", "mp4")),
    ),
    **{
        stream: tuple(f"{stream}/{{video}}.{extension}" for extension in ("mkv", "mp4", "avi"))
        for stream in ("depth", "ir")
    },
}


@dataclass(frozen=True)
class OfficialRows:
    """Segments of one official csv, without `action` labels, and how many have frame numbers of other frames."""

    segments: tuple[Segment, ...]
    strange_frames: int


def frame_rate(video: str, rates: Mapping[str, float] | None = None) -> float:
    """At how many a second the official frame numbers of a video count.

    rates: of EPIC_100_video_info.csv; asked for videos that are not of 2018, and may be missing.
    """
    number = video.rpartition("_")[2]
    if number.isdigit() and len(number) == 2:
        return FRAMES_2018
    return (rates or {}).get(video, FRAMES_2020)


def flow_stride(video: str) -> int:
    """Frames from one field of the official flow to the next."""
    number = video.rpartition("_")[2]
    return FLOW_STRIDE_2018 if number.isdigit() and len(number) == 2 else 1


def read_rates(path: Path) -> dict[str, float]:
    """Video -> frames a second, of EPIC_100_video_info.csv."""
    rates: dict[str, float] = {}
    for line, row in read_table(path, ("video_id", "fps")):
        try:
            rates[row["video_id"]] = float(row["fps"])
        except ValueError:
            raise ValueError(f"{path}:{line}: fps is {row['fps']!r}; it must be a number") from None
    return rates


def read_official(
    path: Path, *, id_column: str, labelled: bool, times: Times, rates: Mapping[str, float] | None = None
) -> OfficialRows:
    """An official csv of action segments. Raises ValueError that names the file and line."""
    columns = [id_column, "video_id", "start_timestamp", "stop_timestamp", "start_frame", "stop_frame"]
    columns += ["verb_class", "noun_class"] if labelled else []
    found: list[Segment] = []
    strange = 0
    for line, row in read_table(path, columns):
        try:
            segment, is_strange = _official_segment(row, id_column, labelled, times, rates)
        except ValueError as problem:
            raise ValueError(f"{path}:{line}: {problem}") from None
        found.append(segment)
        strange += is_strange
    return OfficialRows(unique(found, path), strange)


def _official_segment(
    row: Mapping[str, str], id_column: str, labelled: bool, times: Times, rates: Mapping[str, float] | None
) -> tuple[Segment, bool]:
    video = row["video_id"]
    rate = frame_rate(video, rates)
    frames = [whole_number(row[name], name) for name in ("start_frame", "stop_frame")]
    stamps = [parse_seconds(row[name]) for name in ("start_timestamp", "stop_timestamp")]
    start, stop = stamps if times == "timestamps" else (frame / rate for frame in frames)
    extra = {
        "participant": row.get("participant_id") or video.split("_")[0],
        "start_frame": str(frames[0]),
        "stop_frame": str(frames[1]),
        "frames_per_second": f"{rate:g}",
        "flow_frames_per_second": f"{rate / flow_stride(video):g}",
    }
    if row.get("narration"):
        extra["narration"] = row["narration"]
    if row.get("all_noun_classes"):
        extra["all_noun_classes"] = row["all_noun_classes"].strip("[]").replace(" ", "")
    labels = {task: whole_number(row[f"{task}_class"], f"{task}_class") for task in ("verb", "noun") if labelled}
    is_strange = any(abs(frame - stamp * rate) > _FRAME_TOLERANCE for frame, stamp in zip(frames, stamps, strict=True))
    return Segment(video, start, stop, plain_id(row[id_column]), labels, extra), is_strange


def read_classes(path: Path) -> tuple[str, ...]:
    """Names by class number, of EPIC_verb_classes.csv, EPIC_100_noun_classes.csv and the like."""
    rows = csv_rows(path)
    _, header = next(rows, (1, []))
    if len(header) < 2 or header[0] not in ("id", "verb_id", "noun_id"):
        raise ValueError(
            f"{path}:1: the header is {','.join(header)!r}; it must begin with id,key or verb_id,class_key"
        )
    names = {whole_number(cells[0], f"{path}:{line}: the id"): cells[1] for line, cells in rows}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{path}: class numbers must be 0 to {len(names) - 1}, each once")
    return tuple(names[number] for number in range(len(names)))


def number_actions(segments: Iterable[Segment], verbs: Sequence[str], nouns: Sequence[str]) -> Actions:
    """Action classes of the (verb, noun) pairs in these segments, numbered as RULSTM does; names are "verb noun"."""
    pairs = {(int(s.labels["verb"]), int(s.labels["noun"])) for s in segments}  # type: ignore[arg-type]
    ordered = sorted(pairs, key=lambda pair: f"{pair[0]}_{pair[1]}")
    for verb, noun in ordered:
        if verb >= len(verbs) or noun >= len(nouns):
            raise ValueError(
                f"a segment has verb {verb} and noun {noun}; the class lists name {len(verbs)} verbs and {len(nouns)} "
                "nouns. Are they of the same release?"
            )
    names = tuple(f"{verbs[verb]} {nouns[noun]}" for verb, noun in ordered)
    return Actions(names, tuple(verb for verb, _ in ordered), tuple(noun for _, noun in ordered))


def with_actions(segments: Iterable[Segment], actions: Actions) -> Iterator[Segment]:
    """The segments with the number of their action. Raises ValueError for a pair that is no action class."""
    numbers = actions.numbers()
    for segment in segments:
        pair = (segment.labels["verb"], segment.labels["noun"])
        if pair not in numbers:
            raise ValueError(
                f"segment {segment.id!r} is verb {pair[0]} and noun {pair[1]}, which is none of the {len(numbers)} "
                "action classes; they come from training and validation rows, or from actions.csv"
            )
        labels = {**segment.labels, "action": numbers[pair]}  # type: ignore[index]
        yield Segment(segment.video, segment.start_seconds, segment.stop_seconds, segment.id, labels, segment.extra)


def strange_note(path: Path, rows: OfficialRows) -> tuple[str, ...]:
    if not rows.strange_frames:
        return ()
    return (
        f"{path.name}: the frame numbers of {rows.strange_frames} of {len(rows.segments)} segments are not those of "
        "their time stamps at the rate of EPIC's frames; only the time stamps were used unless times='frames'.",
    )


def frame_rates_of(paths: Mapping[str, str]) -> dict[str, float | str]:
    """As in `Dataset.frame_rates`: official frames of rgb count at the rate of the annotations, flow at its own."""
    rates = {"rgb": "frames_per_second", "flow": "flow_frames_per_second"}
    official = ("rgb_frames", "flow_frames", "frames_rgb_flow")
    return {stream: rate for stream, rate in rates.items() if any(name in paths.get(stream, "") for name in official)}
