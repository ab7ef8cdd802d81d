"""Write optical flow of videos: a lossless video of codes, pairs of jpgs, arrays or a preview.

Inputs are files, folders (searched with their sub-folders), .txt lists and .csv segments. Outputs lie in --out under
the input's own path and name: x.mp4.flow.mkv (video), the folder x.mp4 (jpg), x.mp4.preview.mp4, x.mp4.flow.npz.
Field k goes from frame k to frame k + 1, in pixels of the scaled picture per frame step at --fps. An output is there
whole or not at all, and is not made again unless --overwrite is given. failures.jsonl in --out lists what failed.
Exit codes: 0 all done, 1 some inputs failed, 2 wrong call.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from actionfuse._files import flush, put_in_place, write_atomically

from .flow import FLOW_BOUND_PIXELS, FlowComputer, list_flow_methods, settle_method
from .flow_files import JPG_NAMES, KINDS, SUFFIXES, FlowKind, create_writer, read_recipe
from .guard import Lost, beat, guarded_map
from .inputs import VideoInput, find_videos
from .store_files import TEMPORARY, fcntl, key_to_path
from .types import Frames
from .video import DECODERS, VideoError, VideoReader, open_video

_BATCH_FRAMES = 32


@dataclass(frozen=True, kw_only=True)
class FlowJob:
    """What is the same for all videos of a call."""

    out: Path
    kind: FlowKind
    method: str
    weights: str | None
    device: str
    precision: str
    batch_pairs: int
    threads: int
    decoder: str
    fps: float | None
    short_side: int | None
    bound: float
    jpg_names: str
    jpeg_quality: int
    preview_max_pixels: float
    npz_dtype: str
    weights_sha256: str | None
    overwrite: bool

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the contents of an output."""
        recipe: dict[str, Any] = {"method": self.method, "fps": self.fps, "short_side": self.short_side}
        if self.method.startswith("raft"):
            recipe |= {"weights": self.weights_sha256 or self.weights, "precision": self.precision}
        if self.kind in ("video", "jpg"):
            recipe["bound_pixels"] = self.bound
        if self.kind == "jpg":
            recipe |= {"names": self.jpg_names, "jpeg_quality": self.jpeg_quality}
        elif self.kind == "preview":
            recipe["max_pixels"] = self.preview_max_pixels
        elif self.kind == "npz":
            recipe["dtype"] = self.npz_dtype
        return recipe

    def target(self, video: VideoInput) -> Path:
        return self.out / (key_to_path(video.key) + SUFFIXES[self.kind])


@dataclass(frozen=True)
class FlowOutcome:
    """error: why there is no output. damage: what of the video could not be read; the rest is written."""

    fields: int = 0
    skipped: bool = False
    stage: str = ""
    error: str = ""
    damage: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `actionfuse flow`."""
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="video file, folder, .txt list or .csv of segments")
    add("--out", required=True, type=Path, metavar="DIR", help="where outputs go")
    add("--root", metavar="DIR", help="outputs are named by paths relative to it (default: the folder of all inputs)")
    add("--as", dest="kind", choices=KINDS, default="video", help="what to write (default: %(default)s)")
    add("--short-side", type=int, default=256, metavar="PIXELS", help="scale to this first; 0 = do not (default: 256)")
    add("--fps", type=float, metavar="N", help="frames per second (default: every frame)")
    add("--bound", type=float, default=FLOW_BOUND_PIXELS, metavar="PIXELS", help="codes span +-bound (default: 20)")
    add("--decoder", choices=DECODERS, default="auto", help="(default: %(default)s)")
    add("--overwrite", action="store_true", help="make outputs again that are there")
    method = parser.add_argument_group("method")
    names = ", ".join(list_flow_methods())
    help_method = f"auto = raft_large on a GPU, dis_fast elsewhere; or one of {names} (default: auto)"
    method.add_argument("--method", default="auto", metavar="NAME", help=help_method)
    method.add_argument("--weights", metavar="FILE", help="RAFT: torchvision state dict, or 'pretrained' to fetch it")
    method.add_argument("--device", default="auto", help="RAFT: cpu, cuda, cuda:1, ... (default: auto)")
    method.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="RAFT (default: fp32)")
    method.add_argument("--batch-pairs", type=int, default=8, metavar="N", help="RAFT: pairs at a time (default: 8)")
    kinds = parser.add_argument_group("kinds of output")
    help_names = "uv = u/%%010d.jpg, tsn = flow_x_%%05d.jpg, epic = u/frame_%%010d.jpg (default: uv)"
    kinds.add_argument("--jpg-names", choices=tuple(JPG_NAMES), default="uv", help=help_names)
    kinds.add_argument("--jpeg-quality", type=int, default=95, metavar="1..100", help="(default: %(default)s)")
    help_max = "motion that gets full colour (default: 1/32 of the short side, 8 at 256)"
    kinds.add_argument("--preview-max", type=float, metavar="PIXELS", help=help_max)
    kinds.add_argument("--npz-dtype", choices=("float16", "float32"), default="float16", help="(default: %(default)s)")
    work = parser.add_argument_group("work")
    help_workers = "processes, each with a video of its own (default: one per core, 1 with RAFT)"
    work.add_argument("--workers", type=int, metavar="N", help=help_workers)
    help_limit = "give up a video that makes no progress for so long (default: 300)"
    work.add_argument("--time-limit", type=float, default=300.0, metavar="SECONDS", help=help_limit)


def main(args: argparse.Namespace) -> int:
    """Run `actionfuse flow`; returns the exit code."""
    began = time.monotonic()
    videos = find_videos(args.paths, args.root)
    if not videos:
        raise ValueError(f"no video is in {', '.join(args.paths)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    job, workers = _job(args, cores, len(videos))
    args.out.mkdir(parents=True, exist_ok=True)
    _remove_dead(args.out / TEMPORARY)
    there = {video: outcome for video in videos if (outcome := look_at_output(job, video)) is not None}
    missing = [video for video in videos if video not in there]
    results = guarded_map(partial(write_flow, job), missing, workers=workers, silence_seconds=args.time_limit)
    totals = {"written": 0, "already there": 0, "damaged": 0, "failed": 0}
    fields, failures = 0, []
    for video, outcome in chain(there.items(), _with_progress(results, len(missing))):
        if isinstance(outcome, Lost):
            outcome = FlowOutcome(stage="process", error=outcome.reason)
        fields += outcome.fields
        totals["failed" if outcome.error else "already there" if outcome.skipped else "written"] += 1
        totals["damaged"] += bool(outcome.damage)
        reasons = [(outcome.stage, outcome.error)] if outcome.error else [("damage", line) for line in outcome.damage]
        for stage, reason in reasons:
            reason = reason.removeprefix(f"{video.path}: ")
            failures.append({"path": video.path, "key": video.key, "stage": stage, "reason": reason})
            print(f"{video.path}: {reason}", file=sys.stderr, flush=True)
    with suppress(OSError):  # another call may work there
        (args.out / TEMPORARY).rmdir()
    _write_failures(args.out / "failures.jsonl", failures)
    seconds = time.monotonic() - began
    counts = ", ".join(f"{count} {word}" for word, count in totals.items() if count)
    rate = fields / max(seconds, 1e-9)
    plural = "s" if len(videos) != 1 else ""
    print(f"{len(videos)} video{plural}: {counts}; {fields} fields in {seconds:.1f} s, {rate:.1f} a second")
    return 1 if failures else 0


def look_at_output(job: FlowJob, video: VideoInput) -> FlowOutcome | None:
    """None where the output is to be made; else that it is there, or that another one is in its place."""
    target = job.target(video)
    if job.overwrite or not target.exists():
        return None
    try:
        recipe = read_recipe(target, job.kind)
    except VideoError as error:
        return FlowOutcome(stage="write", error=f"{error}; remove it, or use --overwrite")
    if recipe == job.recipe:
        return FlowOutcome(skipped=True)
    told = ", ".join(f"{k} {recipe.get(k)!r} (now {v!r})" for k, v in job.recipe.items() if recipe.get(k) != v)
    return FlowOutcome(
        stage="write", error=f"{target} was made with other settings: {told}; use --overwrite or another --out"
    )


def write_flow(job: FlowJob, video: VideoInput) -> FlowOutcome:
    """Flow of one video, written whole or not at all."""
    target = job.target(video)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _workplace(job.out) as folder, open_video(video.path, job.decoder) as reader:
            fields = _compute(job, video, reader, folder / target.name)
            damage = tuple(reader.damage)
            if fields == 0:
                return FlowOutcome(stage="decode", error="; ".join(("flow needs two frames, fewer are here", *damage)))
            _put_in_place(folder / target.name, target)
        return FlowOutcome(fields, damage=damage)
    except VideoError as error:
        return FlowOutcome(stage="decode", error=str(error))
    except OSError as error:
        return FlowOutcome(stage="write", error=str(error))


@cache
def _computer(job: FlowJob) -> FlowComputer:
    """One per process: RAFT's weights are loaded once."""
    cv2.setNumThreads(1)  # this process is ours, and so many pairs as there are threads are computed at a time
    return FlowComputer(
        job.method,
        weights=job.weights,
        device=job.device,
        precision=job.precision,
        batch_pairs=job.batch_pairs,
        threads=job.threads,
    )


def _compute(job: FlowJob, video: VideoInput, reader: VideoReader, path: Path) -> int:
    stream = _computer(job).stream()
    writer = create_writer(
        job.kind,
        path,
        job.recipe,
        bound=job.bound,
        jpg_names=job.jpg_names,
        jpeg_quality=job.jpeg_quality,
        preview_max_pixels=job.preview_max_pixels,
        npz_dtype=job.npz_dtype,
    )
    fields = 0
    waiting: Frames | None = None  # the last frame: its field comes with the next one
    try:
        start = reader.info.start_seconds if video.start_seconds is None else video.start_seconds
        chunks = reader.stream(job.fps, start, video.stop_seconds, job.short_side, batch=_BATCH_FRAMES)
        for frames in _ahead(chunks):
            beat()
            flow = stream.push(frames.data)
            if waiting is None:
                pictures, times = frames.data[:-1], frames.pts_seconds[:-1]
            else:
                pictures = np.concatenate([waiting.data, frames.data[:-1]])
                times = np.concatenate([waiting.pts_seconds, frames.pts_seconds[:-1]])
            waiting = frames[-1:]
            if len(flow):
                writer.add(pictures, flow, times)
            fields += len(flow)
    finally:
        writer.close()
    return fields


def _ahead(chunks: Iterator[Frames]) -> Iterator[Frames]:
    """Decodes the next chunk while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, chunks, None)
        while (chunk := following.result()) is not None:
            following = thread.submit(next, chunks, None)
            yield chunk


def _job(args: argparse.Namespace, cores: int, num_videos: int) -> tuple[FlowJob, int]:
    if args.short_side < 0 or not 1 <= args.jpeg_quality <= 100:
        raise ValueError(f"--short-side {args.short_side} must be >= 0, --jpeg-quality {args.jpeg_quality} 1 to 100")
    for name, value in (("fps", args.fps), ("bound", args.bound), ("preview-max", args.preview_max)):
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}; it must be positive")
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers is {args.workers}; it must be at least 1")
    # Built once here, on the CPU, so that a wrong name or wrong weights are a wrong call and no failure of each video.
    method, weights = settle_method(args.method, args.weights, args.device)
    FlowComputer(method, weights=weights, device="cpu", precision=args.precision, batch_pairs=args.batch_pairs)
    digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest() if weights and Path(weights).is_file() else None
    workers = min(num_videos, args.workers or (1 if method.startswith("raft") else cores))
    short_side = args.short_side or None
    job = FlowJob(
        out=args.out,
        kind=args.kind,
        method=method,
        weights=weights,
        device=args.device,
        precision=args.precision,
        batch_pairs=args.batch_pairs,
        threads=max(1, cores // workers),
        decoder=args.decoder,
        fps=args.fps,
        short_side=short_side,
        bound=args.bound,
        jpg_names=args.jpg_names,
        jpeg_quality=args.jpeg_quality,
        preview_max_pixels=args.preview_max or (short_side or 256) / 32,
        npz_dtype=args.npz_dtype,
        weights_sha256=digest,
        overwrite=args.overwrite,
    )
    return job, workers


def _with_progress(results: Iterator, total: int) -> Iterator:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("flow"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(results, total=total)


def _write_failures(path: Path, failures: list[dict[str, str]]) -> None:
    """Of this call only: the list of a former one is no longer true."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in failures).encode())


def _put_in_place(temporary: Path, target: Path) -> None:
    if temporary.is_dir():
        for folder, _, names in os.walk(temporary):
            for name in names:
                flush(Path(folder, name))
            flush(Path(folder))
        if target.exists():  # a folder cannot be renamed over one that is not empty
            os.replace(target, temporary.with_name("old"))
    put_in_place(temporary, target)


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A folder for unfinished files, locked as long as this process lives; gone afterwards."""
    while True:
        folder = out / TEMPORARY / f"flow-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True)
            lock = open(folder / "lock", "wb")
            _lock(lock)
            if os.fstat(lock.fileno()).st_nlink:
                break
            lock.close()  # another call took it for a dead one's before it was locked
        except (FileNotFoundError, BlockingIOError):
            continue
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _lock(file: BinaryIO) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_dead(folder: Path) -> None:
    """Remove what processes left that were killed: their locks went with them."""
    if fcntl is None:
        return
    for path in folder.glob("flow-*/lock"):
        try:
            with open(path, "rb") as lock:
                _lock(lock)
                shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:  # its writer lives, or somebody else cleaned up, or there are no locks here
            continue
