"""actionfuse extract: features of raw videos.

PATH is a video file, a folder (searched with its sub-folders), a folder or tar of frames, a text list of paths, or a
csv with `path,start_seconds,stop_seconds[,id]`. One decode pass feeds all backbones and streams. The output of x.mp4 is
OUT/BACKBONE-STREAM/x.mp4.npz: features, start_seconds and stop_seconds of each row, and the recipe that made them.

The same call again does only what is missing. With other options it stops with an error, unless --overwrite is given.
Rows of a video with n frames at --fps: 1 + ceil((n - clip frames) / clip stride), at least 1 (--last-clip pad).

Exit codes: 0 all done, 1 some inputs failed or are damaged (OUT/failures.jsonl lists them), 2 wrong call, 130 and 143
interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from itertools import islice
from pathlib import Path

from actionfuse._memory import no_collection

from ..pipeline.inputs import find_videos
from ..pipeline.remote import is_url
from ..pipeline.video import DECODERS
from .passes import decode_passes, in_order
from .plan import num_workers
from .workers import Pool, Standby


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `actionfuse extract`."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="videos: files, folders, .txt lists, .csv segments")
    parser.add_argument("--out", type=_place, required=True, metavar="DIR", help="folder of the feature stores")
    parser.add_argument(
        "--root", metavar="DIR", help="outputs are named relative to it (default: folder common to all inputs)"
    )

    what = parser.add_argument_group("what to extract")
    what.add_argument(
        "--backbone",
        action="append",
        metavar="NAME",
        help="a name of `actionfuse models`; repeatable; NAME@STREAM ties it to one stream "
        "(default: tsn:tf_efficientnet_lite0)",
    )
    what.add_argument(
        "--stream",
        action="append",
        metavar="STREAM",
        help="rgb, flow or audio; depth or ir of files that hold them as grey pictures; repeatable (default: rgb)",
    )
    what.add_argument(
        "--weights",
        action="append",
        metavar="PATH|WORD",
        help="checkpoint, or bundled, pretrained, random; once for all backbones or once for each "
        "(default: bundled for tsn:tf_efficientnet_lite0, else pretrained)",
    )
    what.add_argument(
        "--layer", metavar="NAME", help="take the output of this sub-module (default: the last feature map)"
    )
    what.add_argument(
        "--pool",
        choices=("clip", "space", "none"),
        default="clip",
        help="clip: a vector per clip; space: a vector per time step; none: the map (default: %(default)s)",
    )
    what.add_argument(
        "--top",
        type=int,
        default=0,
        metavar="K",
        help="keep and print the K likeliest classes of each task (default: none)",
    )
    what.add_argument(
        "--labels",
        action="append",
        metavar="FILE",
        help="class names: text, one a line, json or csv; once for each task of weights with several, such as verbs, "
        "then nouns (default: the weights' own)",
    )
    what.add_argument(
        "--boxes", type=Path, metavar="FILE", help="box tracks; adds RoI features per instance, in BACKBONE-STREAM-roi"
    )
    what.add_argument("--instances", type=int, default=4, metavar="N", help="box slots per clip (default: %(default)s)")

    how = parser.add_argument_group("sampling")
    how.add_argument(
        "--fps",
        metavar="F|native",
        help="frames a second, native for every frame (default: as the backbone was trained)",
    )
    how.add_argument(
        "--clip-frames", type=int, metavar="T", help="frames per clip (default: as the backbone was trained)"
    )
    how.add_argument("--clip-stride", type=int, metavar="S", help="frames from clip to clip (default: clip frames)")
    how.add_argument(
        "--last-clip",
        choices=("pad", "drop"),
        default="pad",
        help="a last clip that is not full (default: %(default)s)",
    )
    how.add_argument(
        "--side", type=int, metavar="PIXELS", help="frames' shorter side (default: as the backbone was trained)"
    )
    how.add_argument(
        "--crop", type=int, metavar="PIXELS", help="side of the middle square that is taken (default: as trained)"
    )
    how.add_argument("--decoder", default="auto", help="auto, decord, pyav or torchcodec (default: %(default)s)")
    how.add_argument(
        "--frame-fps",
        type=float,
        default=30.0,
        metavar="F",
        help="how fast the frames of folders and tars of frames run (default: %(default)g a second)",
    )

    how.add_argument(
        "--depth-range",
        type=float,
        nargs=2,
        metavar=("NEAR", "FAR"),
        help="numbers of the depth files that fill the scale, as in training (default: all of their 8 or 16 bits)",
    )

    flow = parser.add_argument_group("flow and sound")
    flow.add_argument(
        "--flow-method",
        metavar="NAME",
        help="dis_fast, dis_medium, farneback, tvl1, raft_small, raft_large, auto "
        "(default: dis_fast, with --flow-weights raft_small)",
    )
    flow.add_argument("--flow-weights", metavar="PATH", help="checkpoint of RAFT, or pretrained")
    flow.add_argument(
        "--flow-stack", type=int, metavar="L", help="flow fields per frame (default: as the backbone was trained)"
    )
    flow.add_argument("--audio-preset", default="tbn", metavar="NAME", help="spectrogram (default: %(default)s)")

    run = parser.add_argument_group("running")
    run.add_argument(
        "--store", choices=("npz", "npy", "hdf5", "lmdb"), default="npz", help="file format (default: %(default)s)"
    )
    run.add_argument(
        "--key-fps",
        type=float,
        metavar="F",
        help="lmdb: frame rate by which times become the frame numbers of keys (default: 30)",
    )
    run.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of stored features (default: %(default)s)"
    )
    run.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the model (default: %(default)s)"
    )
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    run.add_argument(
        "--batch", type=int, metavar="CLIPS", help="clips per batch (default: 256 frames on a GPU, 16 on a CPU)"
    )
    run.add_argument("--workers", type=int, metavar="N", help="decode processes (default: one per core, at most 16)")
    run.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="a decoder without a sign of life is cut off (default: %(default)s)",
    )
    run.add_argument(
        "--processes", type=int, default=1, metavar="N", help="extracting processes, one per GPU (default: %(default)s)"
    )
    run.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where it runs (default: %(default)s, this machine)"
    )
    run.add_argument(
        "--shard-videos", type=int, default=256, metavar="N", help="ray, URLs: videos per shard (default: %(default)s)"
    )
    run.add_argument("--ray-address", metavar="ADDRESS", help="ray: the cluster (default: RAY_ADDRESS, else a new one)")
    run.add_argument(
        "--models", type=int, metavar="N", help="ray: actors that run models (default: one per GPU, else 1)"
    )
    run.add_argument(
        "--decoders", type=int, metavar="N", help="ray: decode actors, all together (default: the other CPUs)"
    )
    run.add_argument("--overwrite", action="store_true", help="throw away outputs that other options made")
    run.add_argument("--dry-run", action="store_true", help="print how many rows each video will give, and stop")
    run.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace) -> int:
    """Extract; returns the exit code."""
    if args.processes < 1:
        raise ValueError(f"--processes is {args.processes}; it must be at least 1")
    if args.decoder not in DECODERS:
        near = get_close_matches(args.decoder, DECODERS, n=1)
        raise ValueError(f"--decoder is {args.decoder!r}; {f'did you mean {near[0]!r}? ' if near else ''}"
                         f"there are {', '.join(DECODERS)}")  # fmt: skip
    if args.engine == "ray" or is_url(args.out):
        return _in_shards(args)
    fps = parse_fps(args.fps)
    videos = find_videos(args.paths, args.root)
    if not videos:
        raise ValueError(f"no video found in {', '.join(args.paths)}; `actionfuse probe` tells what is in there")
    launching = args.processes > 1 and "ACTIONFUSE_PROCESS" not in os.environ
    workers = num_workers(args.workers, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    first = islice(decode_passes(in_order(videos)), workers)
    with Standby(0 if launching or args.dry_run else len(list(first))) as standby:
        with no_collection():
            from ..pipeline.flow import settle_method
            from .run import Job  # torch and the models load from here on, decode processes beside them
            from .settings import pick_device

            if launching:
                device = str(pick_device(args.device))  # tells what is wrong with it
                if args.flow_method is not None:
                    args.flow_method, args.flow_weights = settle_method(args.flow_method, args.flow_weights, device)
                args.device = "cpu"  # the GPUs' memory is for the processes that extract
            job = Job(args, fps, videos, make_pool=partial(Pool, standby=standby))
        if args.dry_run:
            return job.dry_run()
        if launching:
            job.open_stores()  # a wrong recipe is told once, and --overwrite happens once
            return _launch(args.words, args.processes)
        return job.run()


def _in_shards(args: argparse.Namespace) -> int:
    """Plan, run and verify in one: to stores behind URLs, or over a Ray cluster."""
    if args.overwrite or args.dry_run or args.processes > 1:
        raise ValueError(
            "--overwrite, --dry-run and --processes are for a folder on this machine: remove outputs of other options "
            "yourself, and start `actionfuse shards run` as often as there are processes"
        )
    parse_fps(args.fps)
    from . import shard_run, shards_command

    if args.engine == "ray":
        from .ray_engine import connect

        connect(args)  # a cluster that is too small is told before inputs are listed
    objects, plan = shard_run.make_plan(args, None, shard_videos=args.shard_videos)
    if args.engine == "ray":
        from .ray_engine import run_on_ray

        code = run_on_ray(objects, plan, args)
    else:
        code = shard_run.run_shards(objects, plan, plan.shards, [], args)
    return code if code > 1 else shards_command.report(*shard_run.verify(objects))


def _place(text: str) -> Path | str:
    return text if is_url(text) else Path(text)


def parse_fps(text: str | None) -> float | str | None:
    """The value of --fps."""
    if text is None or text == "native":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"--fps is {text!r}; it is a number of frames a second, or native for every frame") from error


def _launch(words: Sequence[str], processes: int) -> int:
    """The same call (its command line: words) in `processes` processes, each with its share of the videos."""
    children: list[subprocess.Popen] = []
    received: list[int] = []

    def forward(number: int, _frame: object) -> None:
        received.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    code = "import sys; from actionfuse.cli import run; run(sys.argv[1:])"
    try:
        for rank in range(processes):
            environment = dict(
                os.environ,
                ACTIONFUSE_PROCESS="1",
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                LOCAL_WORLD_SIZE=str(processes),
            )
            if not received:
                children.append(subprocess.Popen([sys.executable, "-P", "-c", code, *words], env=environment))
        codes = [child.wait() for child in children]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    # a process that was killed is as bad as one that failed; the rest of its share was taken over by the others
    codes = [code if code >= 0 else 128 - code for code in codes]
    return max(codes, default=128 + received[0] if received else 0)
