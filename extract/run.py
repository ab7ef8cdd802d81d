"""One `actionfuse extract` call, from its arguments to the exit code."""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from actionfuse.heartbeat import beat

from ..pipeline import VideoError
from ..pipeline.inputs import VideoInput
from ..pipeline.types import BoxTracks
from .decode import ReaderShelf, sound_span
from .engine import Engine, task_of, video_key
from .events import Failed, Finished, Skipped, Underway
from .labels import read_labels
from .passes import decode_passes, in_order
from .plan import Span, num_workers
from .progress import Report
from .runner import Runner
from .settings import (
    Settings,
    batch_clips,
    build_runners,
    default_compute_threads,
    split_by_size,
    with_boxes,
)
from .sinks import FailureList, StoreSink


def settings_of(args: argparse.Namespace, fps: float | str | None) -> Settings:
    """What the arguments of `actionfuse extract` say about models and sampling."""
    return Settings(
        backbones=tuple(args.backbone or Settings.backbones),
        streams=tuple(args.stream or Settings.streams),
        weights=tuple(args.weights or Settings.weights),
        fps=fps,
        clip_frames=args.clip_frames,
        clip_stride=args.clip_stride,
        side=args.side,
        crop=args.crop,
        last_clip=args.last_clip,
        flow_method=args.flow_method,
        flow_weights=args.flow_weights,
        flow_stack=args.flow_stack,
        audio_preset=args.audio_preset,
        depth_range=None if args.depth_range is None else tuple(args.depth_range),
        pool=args.pool,
        layer=args.layer,
        top=args.top,
        instances=args.instances if args.boxes is not None else 0,
        precision=args.precision,
        device=args.device,
        frame_fps=args.frame_fps,
    )


class Job:
    """What the arguments ask for: models built, inputs found."""

    def __init__(
        self,
        args: argparse.Namespace,
        fps: float | str | None,
        videos: list[VideoInput],
        *,
        named: Iterable[VideoInput] | None = None,
        make_pool: Callable[..., Any] | None = None,
    ) -> None:
        """named: what --boxes may be about; default: the videos. make_pool: in the place of `workers.Pool`."""
        self._args, self._videos = args, videos
        self._boxes, boxes_sha256 = None, ""
        if args.boxes is not None:
            self._boxes, boxes_sha256 = _read_boxes(args, videos if named is None else named)
        if args.labels is not None and not args.top:
            raise ValueError("--labels names the classes that --top K prints: give both")
        if args.key_fps is not None and args.store != "lmdb":
            raise ValueError(f"--key-fps is for the keys of an LMDB; --store {args.store} has none: leave it out")
        self._runners, recipes = build_runners(settings_of(args, fps))
        self._recipes: dict[tuple[str, str], dict[str, Any]] = {}
        for runner, recipe in zip(self._runners, recipes, strict=True):
            self._recipes[runner.plan.name, "features"] = recipe
            if runner.plan.instances:
                self._recipes[runner.plan.name, "roi"] = with_boxes(recipe, boxes_sha256, runner.plan.instances)
        self._labels = _labels(args, self._runners)
        self._paths = {video.key: video.path for video in videos}
        self._engine: Engine | None = None
        self._make_pool = make_pool
        self._signals: list[int] = []
        self._prints = True

    def open_stores(self) -> StoreSink:
        """The stores of all outputs, their recipes checked."""
        args = self._args
        try:
            return StoreSink(
                args.out,
                self._recipes,
                format=args.store,
                dtype=args.dtype,
                key_fps=args.key_fps,
                overwrite=args.overwrite,
            )
        except OSError as error:
            raise ValueError(f"--out {args.out} cannot be written: {error.strerror or error}") from error

    def dry_run(self) -> int:
        """Print the rows that each video will give."""
        broken = 0
        plans = [runner.plan for runner in self._runners]
        sound_only = all(plan.stream == "audio" for plan in plans)
        with ReaderShelf() as readers:
            for video in self._videos:
                task = task_of(video, self._args.decoder, self._args.frame_fps)
                try:
                    span, frames, about = sound_span(task) if sound_only else None, 0, ""
                    if span is None:
                        with readers(task) as reader:
                            span = Span.of(reader, video.start_seconds, video.stop_seconds)
                            frames = span.num_frames(reader.info)
                            whole = frames == reader.info.num_frames
                            about = "" if whole or not reader.info.variable_frame_rate else "about "
                except (VideoError, OSError, ValueError) as error:
                    print(f"{printable(video.key)}: {error}")
                    broken += 1
                    continue
                for plan in plans:
                    entries = plan.num_entries(span.grid_seconds, frames)
                    print(
                        f"{printable(video.key)}: {plan.name}: {about if plan.fps is None else ''}"
                        f"{plan.num_clips(entries)} rows "
                        f"({span.stop_seconds - span.start_seconds:.3f} s, {entries} entries)"
                    )
        return 1 if broken else 0

    def place(self) -> tuple[int, int]:
        """(rank of this process, how many there are) among those that share the videos."""
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    def run(self) -> int:
        """Extract this process's share, then help with the others'."""
        args = self._args
        rank, world = self.place()
        _allow_open_files()
        sink = self.open_stores()
        failures = FailureList(args.out)
        label = f"[{rank}/{world}] " if world > 1 else ""
        quiet = args.quiet or (rank > 0 and not sys.stderr.isatty())
        report = Report(len(self._videos), label=label, quiet=quiet)
        stage_seconds: dict[str, float] = {}
        previous = self._catch((signal.SIGINT, signal.SIGTERM))
        try:
            own, others = _shares(self._videos, rank, world)
            work: Iterable[VideoInput] = chain(own, _not_failed(others, failures, report))
            workers = len(list(decode_passes(own))) + len(others)
            while workers and not self._signals:
                passed_by = self._extract(work, workers, sink, failures, report, stage_seconds)
                work = self._abandoned(passed_by, sink, failures, report, wait=world > 1)
                workers = len(work)
        except OSError as error:
            report.say(f"stopped: {error}; what is written stays, and the same call goes on from here")
            return 1
        finally:
            report.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._signals:
            report.say(f"stopped by {signal.Signals(self._signals[0]).name}; the same call goes on from here")
            return 128 + self._signals[0]
        if not args.quiet:
            for line in report.summary(stage_seconds):
                print(f"{label}{line}", file=sys.stderr)
        broken = failures.read().keys() & self._paths.keys()
        if broken:
            print(
                f"{label}{len(broken)} of {len(self._videos)} inputs failed or are damaged: see {failures.path}",
                file=sys.stderr,
            )
        return 1 if broken else 0

    def _catch(self, numbers: tuple[int, ...]) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}  # whoever runs this in a thread stops it otherwise
        return {number: signal.signal(number, self._stop) for number in numbers}

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        if self._engine is not None:
            self._engine.stop()
        if len(self._signals) > 1:
            raise KeyboardInterrupt

    def _extract(
        self,
        videos: Iterable[VideoInput],
        most_workers: int,
        sink: StoreSink,
        failures: FailureList,
        report: Report,
        stage_seconds: dict[str, float],
    ) -> list[VideoInput]:
        """Extract what is missing; returns the videos that other processes are at."""
        args, device = self._args, self._runners[0].device
        threads, inside = default_compute_threads(device)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        seen: dict[str, VideoInput] = {}

        def remembered() -> Iterator[VideoInput]:
            for video in videos:
                seen[video.key] = video
                yield video

        engine = self._engine = Engine(
            remembered(),
            self._runners,
            sink,
            batch_clips=[batch_clips(args.batch, runner) for runner in self._runners],
            workers=min(num_workers(args.workers, local), most_workers),
            compute_threads=max(1, threads // local) if device.type == "cpu" else threads,
            threads_per_compute=inside,
            timeout_seconds=args.timeout,
            decoder=args.decoder,
            frame_fps=args.frame_fps,
            boxes=self._boxes,
            make_pool=self._make_pool,
        )
        if self._signals:  # came before there was an engine to stop
            return []
        passed_by = []
        with closing(engine.run()) as events:
            for event in events:
                if isinstance(event, Skipped) and event.elsewhere:
                    passed_by.append(seen[event.key])
                else:
                    self._tell(event, report, failures)
        for stage, seconds in engine.stage_seconds.items():
            stage_seconds[stage] = stage_seconds.get(stage, 0.0) + seconds
        return passed_by

    def _abandoned(
        self, videos: list[VideoInput], sink: StoreSink, failures: FailureList, report: Report, *, wait: bool
    ) -> list[VideoInput]:
        """Those videos that other processes took on and left undone, because they were killed.

        wait: until the others have finished. The processes of one launch wait for one another: launchers end them all
            where one ends with an error, as it does after a broken input.
        """
        left = []
        for video in videos:
            while (missing := sink.begin(video.key)) is None and wait and not self._signals:
                beat()
                time.sleep(0.2)
            sink.end(video.key)
            if missing and video.key not in failures.read():
                left.append(video)
            else:
                report.elsewhere += 1
                report.step()
        return left

    def _tell(self, event: Finished | Failed | Skipped | Underway, report: Report, failures: FailureList) -> None:
        beat()
        if isinstance(event, Underway):
            report.underway[event.key] = event.seconds, event.share
            report.step()
            return
        report.underway.pop(event.key, None)
        if isinstance(event, Finished):
            report.done += 1
            report.video_seconds += event.video_seconds
            report.frames += event.frames
            report.rows += sum(event.rows.values())
            if event.notes:
                report.damaged += 1
                reason = f"damaged, extracted what could be read: {'; '.join(event.notes)}"
                failures.add(key=event.key, path=self._paths[event.key], stage="decode", reason=reason)
                report.say(f"{event.key}: {reason}")
            else:
                failures.remove([event.key])
            for plan, classes in event.predictions.items():
                names = ", ".join(f"{self._label(plan, index)} {score:.2f}" for index, score in classes)
                self._print(f"{printable(event.key)}: {plan}: {names}")
        elif isinstance(event, Failed):
            report.failed += 1
            failures.add(key=event.key, path=event.path, stage=event.stage, reason=event.reason)
            report.say(f"{event.key}: {event.stage}: {event.reason}")
        else:
            report.skipped += 1
        report.step()

    def _print(self, line: str) -> None:
        if self._prints:
            try:
                print(line, flush=True)
            except BrokenPipeError:  # `... --top 5 | head`: the features are still wanted
                self._prints = False
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _label(self, plan: str, index: int) -> str:
        names = self._labels.get(plan, ())
        # ImageNet's names list synonyms: the first one is enough on a line
        return names[index].split(", ")[0] if index < len(names) else f"class {index}"


def _allow_open_files() -> None:
    """As many as the system lets this process open: short videos wait with open files until batches are full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS has a lower limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _shares(videos: list[VideoInput], rank: int, world: int) -> tuple[list[VideoInput], list[VideoInput]]:
    """The videos of this process and those of the others, those first that take longest. What is decoded in one pass
    stays together, and segments of one video follow one another.
    """
    passes = list(decode_passes(in_order(videos)))
    sizes = [sum(_size(video) for video in together) for together in passes]
    of_video: Counter[str] = Counter()
    for together, size in zip(passes, sizes, strict=True):
        of_video[together[0].path] += size

    def order(index: int) -> tuple:
        first = passes[index][0]
        return -of_video[first.path], first.path, index

    shares = [sorted(share, key=order) for share in split_by_size(sizes, world)]
    own, *others = [
        [video for index in shares[(rank + step) % world] for video in passes[index]] for step in range(world)
    ]
    return own, [video for share in others for video in share]


def _not_failed(videos: list[VideoInput], failures: FailureList, report: Report) -> Iterator[VideoInput]:
    """Of the others' videos those that are not known to fail: each process tries the broken ones of its own share."""
    for video in videos:
        if video.key in failures.read():
            report.elsewhere += 1
        else:
            yield video


def _size(video: VideoInput) -> int:
    """Bytes on disk, the best guess of the work that needs no opening; seconds where a segment says them."""
    if video.start_seconds is not None and video.stop_seconds is not None:
        return int(1e6 * (video.stop_seconds - video.start_seconds))
    try:
        return os.stat(video.path).st_size
    except OSError:
        return 0


def _labels(args: argparse.Namespace, runners: list[Runner]) -> dict[str, tuple[str, ...]]:
    """Names of every runner's classes, in the order of its logits; of classifiers for several tasks with the task."""
    found = {}
    files = [read_labels(Path(file)) for file in args.labels or ()]
    for runner in runners:
        backbone = runner.backbone
        widths = dict(backbone.tasks) or {"": backbone.num_classes}
        names = tuple(backbone.class_names)
        if files and args.top:
            if len(files) not in (1, len(widths)):
                told = " and ".join(backbone.tasks) or "one task"
                raise ValueError(f"--labels was given {len(files)} times; {runner.plan.name} classifies {told}")
            wanted = widths.values() if len(files) == len(widths) else [backbone.num_classes]
            for file, each, width in zip(args.labels, files, wanted, strict=True):
                if len(each) < width:
                    raise ValueError(f"{file} names {len(each)} classes, {runner.plan.name} knows {width}")
            names = tuple(name for each, width in zip(files, wanted, strict=True) for name in each[:width])
        if backbone.tasks:
            numbers = [(task, number) for task, width in widths.items() for number in range(width)]
            known = names or [str(number) for _, number in numbers]
            names = tuple(f"{task} {name}" for (task, _), name in zip(numbers, known, strict=True))
        found[runner.plan.name] = names
    return found


def _read_boxes(args: argparse.Namespace, videos: Iterable[VideoInput]) -> tuple[dict[str, BoxTracks], str]:
    """Tracks per video, and a hash of them."""
    from ..pipeline.boxes import read_box_file

    if args.instances < 1:
        raise ValueError(f"--instances is {args.instances}; with --boxes there must be room for at least one")
    tracks = read_box_file(args.boxes)
    known: set[str] = set()
    for video in videos:  # of which there may be millions: the first with boxes is enough
        if video_key(video) in tracks:
            break
        if len(known) < 3:
            known.add(video_key(video))
    else:
        raise ValueError(
            f"{args.boxes} has boxes of {', '.join(sorted(tracks)[:3])}, ... and of none of the inputs, which are "
            f"called {', '.join(sorted(known))}, ...; --root changes what they are called"
        )
    digest = hashlib.sha256()
    for key, found in sorted(tracks.items()):
        digest.update(os.fsencode(f"{key} {found.boxes.shape}"))
        for array in (found.boxes, found.present, found.seconds, found.categories):
            digest.update(np.ascontiguousarray(array).tobytes())
    return tracks, digest.hexdigest()


def printable(key: str) -> str:
    """A key as standard output takes it, also where a file's name is no UTF-8."""
    return key.encode("utf-8", "backslashreplace").decode()
