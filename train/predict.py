"""What is done in raw videos, or what comes next: by a run that was trained on pixels.

  actionfuse predict runs/mimo kitchen.mp4 --window 2 --stride 1 --json kitchen.json --overlay kitchen-seen.mp4
  actionfuse predict runs/avt kitchen.mp4 --stride 0.5                what comes next, every half a second
  actionfuse predict runs/mimo videos --segments moments.csv          given times of videos
  actionfuse predict runs/avt --live /dev/video0 --stride 0.5         a camera; or a url, or a file

Recognition: windows [first + k stride, first + k stride + window) until one reaches the end; the last is cut there.
Anticipation: at first + k stride, k = 1, 2, ..., seen is what lies before, task.tau_o seconds at most, and told is the
action that starts task.tau_a later; RULSTM tells that action at each of its steps, by default first 2 s ahead. With
--segments (path,start_seconds,stop_seconds[,id]) anticipation tells each segment's action from what ends tau_a before
its start, for every tau_a of the recipe; early recognition sees every fraction of it that the recipe names.

--live reads one source that FFmpeg opens, pictures and sound. Each moment is told when the first frame after it has
come (with sound, also what its spectrograms take, for recognition half a spectrogram more); its latency runs from that
frame on. A camera or url does not wait: late frames are dropped, late moments skipped, both are counted. A file waits,
unless --realtime makes it run like a camera.

Recurrent heads (mmixer with unit lstm or gru) carry their hidden state through a stream: every entry is encoded once,
and what is told is what the head says of all that was seen since the stream began. Other heads look at the last window
alone; so does M-Mixer's MCU, which mixes every step with the content of the whole sequence. --state window gives
recurrent heads windows too, as long as those that they were trained on.

Exit codes: 0 all videos were read, 1 some were not, or not whole (they are named), 2 wrong call, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actionfuse.heartbeat import beat

if TYPE_CHECKING:
    from ..pipeline.inputs import VideoInput
    from ..pipeline.types import BoxTracks
    from .predictions import Prediction
    from .runs import TrainedRun

LIVE_LATENCIES = 10_000  # of a stream without an end the last ones are kept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run; its best model is taken")
    parser.add_argument(
        "videos", nargs="*", metavar="VIDEO|KEY=VALUE", help="files, folders, .txt lists; recipe fields"
    )
    when = parser.add_argument_group("when")
    when.add_argument("--window", type=float, metavar="SECONDS", help="seen at a time (default: a clip of the model)")
    when.add_argument(
        "--stride", type=float, metavar="SECONDS", help="between moments (default: half a window; anticipation: 1)"
    )
    when.add_argument("--segments", type=Path, metavar="FILE.csv", help="these times instead of windows")
    what = parser.add_argument_group("what is looked at and told")
    what.add_argument("--top", type=int, default=5, metavar="K", help="classes of each task (default: %(default)s)")
    what.add_argument("--crops", type=int, choices=(1, 3), help="squares of a frame (default: sampling.test_crops)")
    what.add_argument(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="tracks of hands and objects: .csv with video,seconds,x1,y1,x2,y2,track,category, or a folder of such",
    )
    what.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="STREAM=PATTERN",
        help="where depth, ir or flow files lie: {video}, {folder}, {stem} of the video; repeatable",
    )
    what.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: the recipe's run.workers)")
    out = parser.add_argument_group("what is written")
    out.add_argument("--json", type=Path, metavar="FILE", help="moments with their classes and scores")
    out.add_argument("--csv", type=Path, metavar="FILE", help="a line for each class of each moment")
    out.add_argument("--overlay", type=Path, metavar="FILE.mp4", help="the video with text; for several a folder")
    out.add_argument("--quiet", action="store_true", help="nothing on standard output")
    live = parser.add_argument_group("live")
    live.add_argument("--live", metavar="SOURCE", help="camera (/dev/video0), url or file that FFmpeg opens")
    live.add_argument("--live-format", metavar="NAME", help="FFmpeg's input format (default: what the source says)")
    live.add_argument("--live-seconds", type=float, metavar="S", help="stop after so many (default: at its end)")
    live.add_argument(
        "--state",
        choices=("auto", "carry", "window"),
        default="auto",
        help="carry a recurrent head's hidden state over the stream, or look at windows (default: carry where exact)",
    )
    live.add_argument("--realtime", action="store_true", help="a file runs as fast as it is shown and does not wait")


def main(args: argparse.Namespace) -> int:
    from .predictions import check_run
    from .runs import open_run, split_words

    paths, overrides = split_words(args.videos)
    if args.top < 1:
        raise ValueError(f"--top is {args.top}; it must be at least 1")
    beside = parse_beside(args.beside)
    overrides += [f"run.workers={args.workers}"] if args.workers is not None else []
    run = open_run(args.run, overrides)
    check_run(run, beside, args.boxes is not None)
    if args.live is not None:
        if paths or args.segments or args.crops or args.boxes or beside:
            raise ValueError("--live is one source, seen in windows: no VIDEO, --segments, --crops, --boxes, --beside")
        return live(args, run)
    if args.state != "auto" or args.realtime or args.live_seconds or args.live_format:
        raise ValueError("--state, --realtime, --live-seconds and --live-format belong to --live SOURCE")
    return recorded(args, run, paths, beside)


def parse_beside(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        stream, equals, pattern = text.partition("=")
        if not (stream and equals and pattern):
            raise ValueError(f"--beside is {text!r}; write STREAM=PATTERN, such as depth={{folder}}/{{stem}}-depth.mp4")
        found[stream] = pattern
    return found


def recorded(args: argparse.Namespace, run: TrainedRun, paths: Sequence[str], beside: Mapping[str, str]) -> int:
    """Recorded videos; returns the exit code."""
    from ..pipeline.inputs import find_videos
    from .build import make_task
    from .evaluate import tell_broken, tell_damaged
    from .members import described
    from .predictions import line_of, write_csv, write_json

    if args.segments is not None and args.segments.suffix != ".csv":
        raise ValueError(f"--segments is {args.segments}; it is a .csv with path,start_seconds,stop_seconds[,id]")
    if args.segments is not None and (args.window or args.stride):
        raise ValueError("--segments says the times: leave --window and --stride out")
    inputs = find_videos([*paths, *([args.segments] if args.segments else [])])
    if args.segments is not None and paths:
        raise ValueError("--segments names the videos by path: leave VIDEO out")
    if not inputs:
        raise ValueError("no video was found; name files, folders or .txt lists")
    boxes = boxes_of(args.boxes, inputs)
    rows, broken = predict_inputs(
        run, inputs, window=args.window, stride=args.stride, top=args.top, crops=args.crops, beside=beside, boxes=boxes
    )
    lost = [row for row in broken if not row.get("damaged")]
    damaged = [row for row in broken if row.get("damaged")]
    about: dict[str, Any] = {"run": str(run.path), "task": described(make_task(run.recipe.task))}
    for kind, unread in (("broken", lost), ("damaged", damaged)):
        about[kind] = [{key: row[key] for key in ("video", "id", "reason")} for row in unread]
    if args.json is not None:
        write_json(args.json, about, rows)
    if args.csv is not None:
        write_csv(args.csv, rows)
    if not args.quiet:
        for video, own in groupby(rows, key=lambda row: row.video):
            print(video)
            for row in own:
                print(f"  {line_of(row)}")
    if args.overlay is not None:
        _overlays(args.overlay, inputs, rows, boxes, run.recipe.data.decoder)
    partly = tell_damaged(damaged, "videos or segments")
    return tell_broken(lost, "videos or segments") or partly


def predict_inputs(
    run: TrainedRun,
    inputs: Sequence[VideoInput],
    *,
    window: float | None = None,
    stride: float | None = None,
    top: int = 5,
    crops: int | None = None,
    beside: Mapping[str, str] | None = None,
    boxes: Mapping[str, BoxTracks] | None = None,
) -> tuple[list[Prediction], list[dict[str, Any]]]:
    """Rows of all videos and segments in their order, those of a video together, and {video, id, reason} of what could
    not be read, with damaged=True where a part could.

    boxes: path of a video -> its tracks.
    """
    from .build import test_tasks
    from .predictions import choose_view, dataset_of, moments_of, prediction_of, task_of_moments
    from .stepwise import told_tables
    from .testing import test_scores

    broken: list[dict[str, Any]] = []
    moments, given = [], []
    for item in inputs:
        beat()
        info = _info(item, run.recipe.data.decoder, broken)
        if info is None:
            continue
        if item.id is not None:
            given.append(_segment(item, info))
            continue
        view = choose_view(run, info, window, stride, beside)
        moments += moments_of(run, item.path, item.key, info, view)
    names = {item.path: item.key.partition("#")[0] for item in inputs}
    rows: list[Prediction] = []
    tasks = {"": task_of_moments(run)}
    for segments, observed in ((moments, tasks), (given, test_tasks(run.recipe.task))):
        segments = [_with_names(segment) for segment in segments]
        for task in observed.values() if segments else ():
            dataset = dataset_of(run, segments, task, beside=beside, boxes=boxes, crops=crops)
            views = dataset.num_views
            tested = test_scores(
                run.model,
                dataset,
                run.device,
                batch_size=max(1, (run.recipe.run.micro_batch or run.recipe.optim.batch) // views),
                workers=run.recipe.run.workers,
                precision=run.recipe.run.precision,
                average="logit" if run.recipe.loss.kind == "bce" else "probability",
            )
            damaged = [{**row, "damaged": True} for row in tested.damaged]
            broken += [{**row, "video": names[segments[row["index"]].video]} for row in (*tested.broken, *damaged)]
            if not len(tested.scores):
                continue
            by_id = {segment.id: segment for segment in segments}
            told = list(told_tables(tested, run.recipe, run.model.head, "", task).values())
            for seen, table in told[1:] or told:  # of steps the told one is among the others
                for place, name in enumerate(table.ids):
                    scores = {each: x[place] for each, x in table.scores.items()}
                    segment = by_id[name]
                    rows.append(prediction_of(run, segment, names[segment.video], seen, scores, top))
    order = {item.key.partition("#")[0]: n for n, item in enumerate(inputs)}
    rows.sort(key=lambda row: (order[row.video], _when(row), row.stop_seconds))
    return rows, broken


def _when(row: Prediction) -> float:
    return row.start_seconds if row.action_seconds is None else row.action_seconds


def _info(item: VideoInput, decoder: str, broken: list[dict[str, Any]]) -> Any:
    from ..pipeline.video import VideoError, open_video

    try:
        with open_video(item.path, decoder) as reader:
            if reader.damage and item.id is None:
                reason = "; ".join(reader.damage)
                broken.append({"video": item.key, "id": item.key, "reason": reason, "damaged": True})
            return reader.info
    except (VideoError, OSError) as error:
        broken.append({"video": item.key.partition("#")[0], "id": item.key, "reason": str(error)})
        return None


def _segment(item: VideoInput, info: Any) -> Any:
    from ..pipeline.annotations import Segment

    start = info.start_seconds if item.start_seconds is None else item.start_seconds
    stop = info.stop_seconds if item.stop_seconds is None else item.stop_seconds
    return Segment(item.path, max(0.0, start), max(stop, start + 1e-3), item.key)


def _with_names(segment: Any) -> Any:
    path = Path(segment.video)
    return replace(segment, extra={**segment.extra, "folder": str(path.parent), "stem": path.stem})


def boxes_of(path: Path | None, inputs: Sequence[VideoInput]) -> dict[str, BoxTracks] | None:
    """Path of a video -> tracks, of a file that names videos by key, file name or stem."""
    if path is None:
        return None
    from ..pipeline.boxes import read_box_file

    tracks = read_box_file(path)
    found = {}
    for item in inputs:
        key = item.key.partition("#")[0]
        for name in (key, Path(key).name, Path(key).stem):
            if name in tracks:
                found[item.path] = tracks[name]
                break
    if not found:
        raise ValueError(f"{path} has boxes of {', '.join(list(tracks)[:3])}, ..., but of none of the videos")
    return found


def _overlays(
    out: Path,
    inputs: Sequence[VideoInput],
    rows: Sequence[Prediction],
    boxes: Mapping[str, BoxTracks] | None,
    decoder: str,
) -> None:
    from .overlay import write_overlay

    by_name = {item.key.partition("#")[0]: item.path for item in inputs}
    for name, own in groupby(rows, key=lambda row: row.video):
        target = out if len(by_name) == 1 else (out / name).with_suffix(".mp4")
        write_overlay(by_name[name], target, list(own), boxes=(boxes or {}).get(by_name[name]), decoder=decoder)


def live(args: argparse.Namespace, run: TrainedRun) -> int:
    """One stream; returns the exit code."""
    from ..pipeline.running import LiveSource, is_file
    from ..pipeline.video import VideoError
    from .live import run_live
    from .overlay import LiveOverlay
    from .predictions import line_of, write_csv, write_json

    waits = is_file(args.live) and not args.realtime
    listen = "audio" in run.model.backbones
    try:
        source = LiveSource(args.live, format=args.live_format, keep_up=not waits, pace=args.realtime, listen=listen)
    except VideoError as error:
        print(f"cannot be read: {error}", file=sys.stderr)
        return 1
    overlay = LiveOverlay(args.overlay, source.fps) if args.overlay is not None else None

    def tell(row: Prediction, latency: float) -> None:
        if overlay is not None:
            overlay.told = row
        if not args.quiet:
            print(f"{line_of(row)}  ({1000 * latency:.0f} ms)", flush=True)

    keep = None if args.json or args.csv else LIVE_LATENCIES
    try:
        with source:
            report = run_live(
                run, source, window=args.window, stride=args.stride, top=args.top, seconds=args.live_seconds,
                keep=keep, state=args.state, tell=tell, say=lambda line: print(line, file=sys.stderr),
                show=overlay.show if overlay is not None else lambda frame: None,
            )  # fmt: skip
    finally:
        if overlay is not None:
            overlay.close()
    about = {
        "run": str(run.path),
        "source": args.live,
        "frames": report.frames,
        "dropped_frames": report.dropped_frames,
        "skipped_moments": report.skipped_moments,
        "ring_frames": report.ring_frames,
        "ring_bytes": report.ring_bytes,
        "carried_state": report.carried,
        "latency_seconds": report.latency_seconds,
    }
    rows = [replace(row, video=args.live) for row in report.predictions]
    if args.json is not None:
        write_json(args.json, about, rows)
    if args.csv is not None:
        write_csv(args.csv, rows)
    print(report.summary(), file=sys.stderr)
    for row in report.broken:
        print(f"cannot be read: {row['id']}: {row['reason']}", file=sys.stderr)
    if report.error is not None:
        print(f"cannot be read: {args.live}: {report.error}", file=sys.stderr)
    return int(bool(report.broken) or report.error is not None)
