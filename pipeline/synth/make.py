"""Make a synthetic kitchen: plan, draw, encode; whole files or none, by several processes, resumed where it was killed.

    videos/P01_101.mp4      rgb, h264 at 24 fps, and sound, aac at 16 kHz
    depth/P01_101.mp4       12 fps, grey, lighter is nearer; ir/P01_101.mp4: lighter is warmer
    something_else/videos/1.mp4     an action alone, 12 fps, without sound
    annotations             see annotate.py
    ceilings.json           see ceilings.py; ceilings.md: tables of it
    contact_sheet.jpg       pictures of every motion
    kitchen.json            what it was made with

What is drawn follows from (law, size, seed); the encoded files from that and the versions of the codecs.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np

from actionfuse._files import put_in_place, replacing, write_atomically

from ..guard import Lost, beat, guarded_map
from ..store_files import TEMPORARY, locked
from .annotate import write_annotations
from .ceilings import compute_ceilings
from .choreography import CLIP_FPS, FPS, HEIGHT, WIDTH
from .law import KitchenLaw
from .render import Scene
from .script import SIZES, Plan, VideoScript
from .sound import SAMPLE_RATE_HZ, waveform
from .tables import contact_sheet, markdown

VERSION = 1  # of what is drawn and written; another one is no kitchen to resume
_LOCK = ".lock"
_SILENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Job:
    """One thing to make, in whatever process. video: its place in the plan, or what else is written."""

    root: Path
    plan: Plan
    video: int | Literal["annotations", "ceilings"]

    def __str__(self) -> str:
        return self.plan.videos[self.video].id if isinstance(self.video, int) else self.video


@dataclass(frozen=True, kw_only=True)
class Progress:
    """After each job: how many are done of how many, how many were there before, and which ones were lost so far."""

    done: int
    total: int
    skipped: int
    lost: tuple[str, ...]


def plan_kitchen(size: str = "small", seed: int = 0, law: KitchenLaw | None = None) -> Plan:
    """The plan of a size by name ("tiny", "small", "full"). Raises ValueError for another name or a negative seed."""
    if size not in SIZES:
        raise ValueError(f"there is no size {size!r}; there are {', '.join(SIZES)}")
    return Plan(law=law or KitchenLaw(), size=SIZES[size], seed=seed)


def make_kitchen(root: str | Path, plan: Plan, *, workers: int = 1) -> Iterator[Progress]:
    """Make what is not there yet, in `workers` processes; iterate to the end.

    The files do not depend on workers, nor on whether an earlier call was killed. A second call meanwhile waits.
    Raises ValueError, when iterated, where `root` holds another kitchen or something else.
    """
    root = Path(root)
    _check(root, plan)
    with locked(root / _LOCK):
        _check(root, plan)  # another call may have begun one since
        shutil.rmtree(root / TEMPORARY, ignore_errors=True)
        if not (root / "kitchen.json").exists():
            with replacing(root / "kitchen.json") as file:
                file.write(json.dumps(recipe(plan), indent=1) + "\n")
        jobs = [Job(root, plan, "ceilings"), Job(root, plan, "annotations")]
        jobs += [Job(root, plan, number) for number in range(len(plan.videos))]
        missing = [job for job in jobs if not is_done(job)]
        progress = Progress(done=len(jobs) - len(missing), total=len(jobs), skipped=len(jobs) - len(missing), lost=())
        yield progress
        for job, result in guarded_map(make, missing, workers=workers, silence_seconds=_SILENCE_SECONDS):
            lost = (*progress.lost, f"{job}: {result.reason}") if isinstance(result, Lost) else progress.lost
            progress = replace(progress, done=progress.done + 1, lost=lost)
            yield progress
        shutil.rmtree(root / TEMPORARY, ignore_errors=True)


def recipe(plan: Plan) -> dict[str, Any]:
    """What decides the contents, as `kitchen.json` holds it."""
    names = [name for name, size in SIZES.items() if size == plan.size]
    return {
        "version": VERSION,
        "size": names[0] if names else "own",
        "seed": plan.seed,
        **asdict(plan.size),
        "frame": [WIDTH, HEIGHT],
        "fps": {"rgb": FPS, "depth": CLIP_FPS, "ir": CLIP_FPS, "something_else": CLIP_FPS},
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "law": json.loads(json.dumps(asdict(plan.law))),  # tuples as json has them
    }


def _check(root: Path, plan: Plan) -> None:
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file; name a folder")
    path = root / "kitchen.json"
    if not path.is_file():
        # Annotations, an interrupted first write and the lock are ours; anything else is not.
        if root.is_dir() and any(p.name != _LOCK and not p.name.startswith(".kitchen.json.") for p in root.iterdir()):
            raise ValueError(f"{root} holds files and no kitchen; name a new or an empty folder")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path} is no json: {problem}; name another folder") from None
    wanted = recipe(plan)
    if found != wanted:
        told = [f"{key} {found.get(key)!r}, now {value!r}" for key, value in wanted.items() if found.get(key) != value]
        raise ValueError(f"{root} holds a kitchen of other settings ({'; '.join(told)}); name another folder")


def outputs(job: Job) -> list[Path]:
    """Files of a job; the last one is put in place last."""
    if not isinstance(job.video, int):
        return [job.root / ("ceilings.json" if job.video == "ceilings" else "truth.jsonl")]
    script = job.plan.videos[job.video]
    clips = [job.root / "something_else" / "videos" / f"{instance.clip}.mp4" for instance in script.instances]
    return [*clips, *(job.root / stream / f"{script.id}.mp4" for stream in ("depth", "ir", "videos"))]


def is_done(job: Job) -> bool:
    return all(path.exists() for path in outputs(job))


def make(job: Job) -> None:
    """Make the files of one job."""
    if job.video == "ceilings":
        ceilings = compute_ceilings(job.plan)
        _write_text(job.root / "ceilings.md", markdown(ceilings))
        _write_text(job.root / "ceilings.json", json.dumps(ceilings, indent=1) + "\n")
    elif job.video == "annotations":
        _write_picture(job.root / "contact_sheet.jpg", contact_sheet(job.plan))
        texts = write_annotations(job.plan)
        for name in sorted(texts, key=lambda name: name == outputs(job)[0].name):
            _write_text(job.root / name, texts[name])
    else:
        script = job.plan.videos[job.video]
        # Of this call alone: what a killed call's last process still writes must not get in its way.
        folder = job.root / TEMPORARY / f"{script.id}-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        made = [folder / path.relative_to(job.root) for path in outputs(job)]
        for path in made:
            path.parent.mkdir(parents=True, exist_ok=True)
        draw_video(job.plan.law, script, folder)
        for source, target in zip(made, outputs(job), strict=True):
            put_in_place(source, target)
        shutil.rmtree(folder)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text)


def _write_picture(path: Path, picture: np.ndarray) -> None:
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    write_atomically(path, data.tobytes())


def draw_video(law: KitchenLaw, script: VideoScript, folder: Path) -> None:
    """Draw and encode one video with its streams and clips, below `folder`."""
    scene, step = Scene(law, script), FPS // CLIP_FPS
    clip_of = {
        number: instance
        for instance in script.instances
        for number in range(round(instance.start_seconds * FPS), round(instance.stop_seconds * FPS), step)
    }
    last_of = {instance.clip: round(instance.stop_seconds * FPS) - step for instance in script.instances}
    clip: Encoder | None = None
    with ExitStack() as stack:
        name = f"{script.id}.mp4"
        rgb = stack.enter_context(Encoder(folder / "videos" / name, FPS, 20, waveform(law, script)))
        depth = stack.enter_context(Encoder(folder / "depth" / name, CLIP_FPS, 16))
        ir = stack.enter_context(Encoder(folder / "ir" / name, CLIP_FPS, 16))
        for number in range(scene.num_frames):
            beat()
            shot = scene.shot(number / FPS)
            frame = scene.rgb(shot)
            rgb.add(frame)
            if number % step == 0:
                depth.add(np.repeat(scene.depth(shot)[..., None], 3, -1))
                ir.add(np.repeat(scene.ir(shot)[..., None], 3, -1))
            if (instance := clip_of.get(number)) is not None:
                if clip is None:
                    clip = Encoder(folder / "something_else" / "videos" / f"{instance.clip}.mp4", CLIP_FPS, 20)
                    stack.callback(clip.close)
                clip.add(frame)
                if number == last_of[instance.clip]:
                    clip.close()
                    clip = None


class Encoder:
    """An mp4 of h264, and aac where there is sound. One thread and no dates: the same frames give the same file."""

    def __init__(self, path: Path, fps: int, crf: int, sound: np.ndarray | None = None) -> None:
        self._closed = False
        self._out = av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"})
        self._video = self._out.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": str(crf)})
        self._video.width, self._video.height, self._video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        self._video.thread_count, self._video.gop_size = 1, 2 * fps
        self._sound, self._heard, self._shown, self._fps = sound, 0, 0, fps
        if sound is not None:
            self._audio = self._out.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
            self._audio.bit_rate = 64_000
            self._audio.codec_context.thread_count = 1

    def add(self, frame: np.ndarray) -> None:
        """The next frame, uint8 (H, W, 3)."""
        picture = av.VideoFrame.from_ndarray(frame, "rgb24")
        picture.pts = self._shown
        self._shown += 1
        self._out.mux(self._video.encode(picture))
        self._add_sound(self._shown * SAMPLE_RATE_HZ // self._fps)

    def _add_sound(self, until: int) -> None:
        if self._sound is None:
            return
        while self._heard < min(until, len(self._sound)):
            piece = self._sound[self._heard : min(self._heard + 1024, len(self._sound))]
            samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece[None]), "fltp", "mono")
            samples.sample_rate, samples.pts = SAMPLE_RATE_HZ, self._heard
            self._out.mux(self._audio.encode(samples))
            self._heard += len(piece)

    def close(self) -> None:
        """Write what is left; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._out.mux(self._video.encode(None))
        if self._sound is not None:
            self._out.mux(self._audio.encode(None))
        self._out.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
