"""One `actionfuse extract` call, from its arguments to the exit code."""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
from types import FrameType

from ..pipeline import VideoError, open_video
from ..pipeline.inputs import VideoInput
from .engine import Engine, Failed, Finished, default_compute_threads
from .progress import Report
from .runner import Runner
from .settings import Settings, batch_clips, build_runners, num_workers, split_by_size
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
        pool=args.pool,
        layer=args.layer,
        top=args.top,
        instances=args.instances if args.boxes is not None else 0,
        precision=args.precision,
        device=args.device,
    )


class Job:
    """What the arguments ask for: models built, inputs found."""

    def __init__(self, args: argparse.Namespace, fps: float | str | None, videos: list[VideoInput]) -> None:
        self._args, self._videos = args, videos
        self._boxes = None
        if args.boxes is not None:
            from ..pipeline.boxes import read_box_file

            self._boxes = read_box_file(args.boxes)
        self._settings = settings_of(args, fps)
        self._runners, self._recipes = build_runners(self._settings)
        if self._boxes is not None:
            for recipe in self._recipes:
                recipe["identity"]["boxes_sha256"] = _file_hash(str(args.boxes))
        self._labels = _labels(args, self._runners)

    def open_stores(self) -> StoreSink:
        """The stores of all outputs, their recipes checked."""
        args = self._args
        names = [runner.plan.name for runner in self._runners]
        sink = StoreSink(
            args.out,
            dict(zip(names, self._recipes, strict=True)),
            outputs={r.plan.name: ("features", "roi") if r.plan.instances else ("features",) for r in self._runners},
            format=args.store,
            dtype=args.dtype,
            frame_fps=args.frame_fps,
            overwrite=args.overwrite,
        )
        return sink

    def dry_run(self) -> int:
        """Print the rows that each video will give."""
        broken = 0
        for video in self._videos:
            try:
                with open_video(video.path, decoder=self._args.decoder) as reader:
                    info = reader.info
            except (VideoError, OSError, ValueError) as error:
                print(f"{video.key}: {error}")
                broken += 1
                continue
            start = max(video.start_seconds or 0.0, info.start_seconds)
            stop = min(info.stop_seconds if video.stop_seconds is None else video.stop_seconds, info.stop_seconds)
            for runner in self._runners:
                plan = runner.plan
                whole = video.start_seconds is None and video.stop_seconds is None
                frames = info.num_frames if whole else round((stop - start) * info.average_fps)
                entries = plan.num_entries(stop - start, frames)
                print(
                    f"{video.key}: {plan.name}: {plan.num_clips(entries)} rows "
                    f"({stop - start:.3f} s, {entries} entries)"
                )
        return 1 if broken else 0

    def run(self) -> int:
        """Extract this process's share, then help with the others'."""
        args = self._args
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        sink = self.open_stores()
        failures = FailureList(args.out)
        ordered = _own_share_first(self._videos, rank, world)
        device = self._runners[0].device
        threads, inside = default_compute_threads(device)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        engine = Engine(
            ordered,
            self._runners,
            sink,
            batch_clips=[batch_clips(args.batch, runner) for runner in self._runners],
            workers=min(num_workers(args.workers, device, local), len(ordered)),
            compute_threads=max(1, threads // local) if device.type == "cpu" else threads,
            threads_per_compute=inside,
            timeout_seconds=args.timeout,
            decoder=args.decoder,
            boxes=self._boxes,
        )
        label = f"[{rank}/{world}] " if world > 1 else ""
        report = Report(len(ordered), label=label, quiet=args.quiet or (rank > 0 and not sys.stderr.isatty()))
        received: list[int] = []

        def stop(number: int, _frame: FrameType | None) -> None:
            received.append(number)
            engine.stop()
            if len(received) > 1:
                raise KeyboardInterrupt

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for event in engine.run():
                self._tell(event, report, failures)
        finally:
            report.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if received:
            report.say(f"stopped by {signal.Signals(received[0]).name}; the same call goes on from here")
            return 128 + received[0]
        if not args.quiet:
            for line in report.summary(engine.stage_seconds):
                print(f"{label}{line}", file=sys.stderr)
        broken = failures.read().keys() & {video.key for video in self._videos}
        if broken:
            print(
                f"{label}{len(broken)} of {len(self._videos)} inputs failed or are damaged: see {failures.path}",
                file=sys.stderr,
            )
        return 1 if broken else 0

    def _tell(self, event: object, report: Report, failures: FailureList) -> None:
        if isinstance(event, Finished):
            report.done += 1
            report.video_seconds += event.video_seconds
            report.frames += event.frames
            report.rows += sum(event.rows.values())
            if event.notes:
                report.damaged += 1
                path = next(video.path for video in self._videos if video.key == event.key)
                reason = f"damaged, extracted what could be read: {'; '.join(event.notes)}"
                failures.add(key=event.key, path=path, stage="decode", reason=reason)
                report.say(f"{event.key}: {reason}")
            else:
                failures.remove([event.key])
            for plan, classes in event.predictions.items():
                names = ", ".join(f"{self._label(plan, index)} {score:.2f}" for index, score in classes)
                print(f"{event.key}: {plan}: {names}", flush=True)
        elif isinstance(event, Failed):
            report.failed += 1
            failures.add(key=event.key, path=event.path, stage=event.stage, reason=event.reason)
            report.say(f"{event.key}: {event.stage}: {event.reason}")
        elif getattr(event, "elsewhere", False):
            report.elsewhere += 1
        else:
            report.skipped += 1
        report.step()

    def _label(self, plan: str, index: int) -> str:
        names = self._labels.get(plan, ())
        # ImageNet's names list synonyms: the first one is enough on a line
        return names[index].split(", ")[0] if index < len(names) else f"class {index}"


def _own_share_first(videos: list[VideoInput], rank: int, world: int) -> list[VideoInput]:
    """The videos of this process, largest first, then those of the others: what they have not begun when this one is
    done.
    """
    shares = split_by_size([_size(video) for video in videos], world)
    order = [index for step in range(world) for index in shares[(rank + step) % world]]
    return [videos[index] for index in order]


def _size(video: VideoInput) -> int:
    """Bytes on disk, the best guess of the work that needs no opening; seconds where a segment says them."""
    if video.start_seconds is not None and video.stop_seconds is not None:
        return int(1e6 * (video.stop_seconds - video.start_seconds))
    try:
        return os.stat(video.path).st_size
    except OSError:
        return 0


def _labels(args: argparse.Namespace, runners: list[Runner]) -> dict[str, tuple[str, ...]]:
    labels = {runner.plan.name: tuple(runner.backbone.class_names) for runner in runners}
    if args.labels is not None:
        names = tuple(args.labels.read_text(encoding="utf-8").splitlines())
        for runner in runners:
            if args.top and len(names) < runner.backbone.num_classes:
                raise ValueError(
                    f"{args.labels} names {len(names)} classes, {runner.plan.name} knows {runner.backbone.num_classes}"
                )
            labels[runner.plan.name] = names
    return labels


def _file_hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
