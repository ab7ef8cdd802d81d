"""Checkpoints of a run: written whole or not at all, checked before they are believed, the last few and the best kept.

    RUN/recipe.yaml                      what was asked for, every field
    RUN/metrics.jsonl                    one line a step or test; nothing in it depends on the clock
    RUN/checkpoints/step-00001200/
        model.safetensors, config.json   the weights that `load_model` reads (averaged ones where the recipe has ema)
        training.pt                      optimiser, trained weights under ema, loss scale, where the run is
        manifest.json                    size and sha256 of each of these: written last
    RUN/best -> best-00001200            model.safetensors, config.json and metrics.json of the best test

A checkpoint is made under another name and renamed when everything is on disk. One whose manifest does not fit is
passed over with a warning for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from actionfuse._files import flush, write_atomically

from .model import CONFIG, WEIGHTS, checkpoints

TRAINING, MANIFEST = "training.pt", "manifest.json"


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def write_checkpoint(run: Path, step: int, files: Mapping[str, bytes], training: Mapping[str, Any]) -> Path:
    """One checkpoint. files: name -> content; training: tensors and plain values, all that a safe load takes."""
    target = folder_of(run, step)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in files.items():
        (temporary / name).write_bytes(content)
    torch.save(dict(training), temporary / TRAINING)
    manifest = {path.name: _described(path) for path in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps({"step": step, "files": manifest}, indent=1))
    for path in temporary.iterdir():
        flush(path)
    flush(temporary)
    shutil.rmtree(target, ignore_errors=True)  # the same step again: a run that went back
    os.rename(temporary, target)
    flush(target.parent)
    return target


def damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be used; None where it can."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _described(path) != wanted:
            return f"{name} is not what was written"
    return None if {TRAINING, WEIGHTS, CONFIG} <= files.keys() else f"its {MANIFEST} does not list all files"


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning."""
    for folder in checkpoints(run):
        reason = damage(folder)
        if reason is None:
            return folder
        warnings.warn(f"{folder} is damaged: {reason}; going back to the checkpoint before it", stacklevel=2)
    return None


def read_training(folder: Path) -> dict[str, Any]:
    """What `write_checkpoint` got as `training`."""
    return torch.load(folder / TRAINING, map_location="cpu", weights_only=True)


def keep_last(run: Path, count: int) -> None:
    """Remove all checkpoints but the newest `count` (at least one), and what killed processes left."""
    for folder in checkpoints(run)[max(1, count) :]:
        gone = folder.with_name(f".{folder.name}.tmp")  # not a checkpoint any more from this moment on
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def write_best(run: Path, step: int, files: Mapping[str, bytes]) -> None:
    """Make `RUN/best` these files. The link is changed at once: readers see the old best or the new one, whole."""
    folder = run / f"best-{step:08d}"
    temporary = run / f".{folder.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in files.items():
        write_atomically(temporary / name, content)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)
    link = run / ".best.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    os.replace(link, run / "best")
    flush(run)
    for old in run.glob("best-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)


def _described(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
