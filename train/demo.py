"""Train fusion heads on the synthetic kitchen, then one of them end to end; compare all with what is possible.

  actionfuse demo-training --out demo-output/training

Each step is a command that a user would type; it is printed with its time, and all of them run in this process, which
saves their start:

synth      a kitchen whose best possible scores are known (ceilings.json)
extract    features of pictures, optical flow and sound, by an ImageNet network that has never seen a kitchen
train      on these features: each stream alone, early fusion, the heads of the papers
train      the last of them end to end: inputs=pixels instead of features, from the weights of the head
evaluate   every run on the validation split; the runs of single streams together are late fusion
report     a page of each run; OUT/index.html and table.png compare them

The recipes lie in OUT/recipes, the results in OUT/results. The same call again repeats only what is missing, and goes
on where a killed one was. Runs are tested once, after their last epoch: nothing is chosen on the validation split.

Exit codes: 0 all done, else the code of the command that stopped (75: it was asked to and has saved).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from actionfuse._files import replacing

NETWORK, WEIGHTS = "tsn:tf_efficientnet_lite0", "bundled"
STREAMS = ("rgb", "flow", "audio")
# How a clip is cut, from stored features and from pixels alike; `extraction` says the same to `actionfuse extract`.
CLIPS: dict[str, dict[str, Any]] = {
    "rgb": {"frames": 8, "fps": 8, "side": 96, "crop": 96},
    "flow": {"frames": 8, "fps": 8, "side": 96, "crop": 96},
    "audio": {"frames": 8, "fps": 8, "audio_preset": "vggish"},
}
WIDTH = {"width": 256, "heads": 4}
LATE = "late"  # no run: the ensemble of those of single streams
END_TO_END = "mmixer-end-to-end"


@dataclass(frozen=True)
class Compared:
    """A row of the table: what it is called, its head with options, what it sees. begins_from: another run's weights,
    with which it trains end to end.
    """

    title: str
    head: str
    options: dict[str, Any]
    streams: tuple[str, ...] = STREAMS
    begins_from: str = ""


COMPARED = {
    "rgb": Compared("rgb alone", "late_fusion", WIDTH, ("rgb",)),
    "flow": Compared("flow alone", "late_fusion", WIDTH, ("flow",)),
    "audio": Compared("audio alone", "late_fusion", WIDTH, ("audio",)),
    "early": Compared("early fusion", "early_fusion", WIDTH),
    LATE: Compared("late fusion (the three runs above)", "", {}),
    "mif-parallel": Compared("MIF, parallel", "mif_parallel", WIDTH),
    "mif-progressive": Compared("MIF, progressive", "mif_progressive", {**WIDTH, "order": ["rgb", "audio", "flow"]}),
    "mimo": Compared("MIMO", "mimo", {**WIDTH, "allocation_weight": 0.1}),
    "mmixer": Compared("M-Mixer", "mmixer", {"width": 256}),
    END_TO_END: Compared("M-Mixer, then end to end", "mmixer", {"width": 256}, STREAMS, "mmixer"),
}
SIZES = {
    # of the kitchen: (epochs on features, segments a step; epochs end to end, segments a step)
    "tiny": (2, 8, 1, 8),
    "small": (20, 32, 3, 8),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output/training"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--size", choices=tuple(SIZES), default="small", help="of the kitchen; tiny shows that all runs, no more"
    )


def main(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the demo draws its table with matplotlib: pip install 'actionfuse[demo]'")
    # Read when torch is loaded: threads that wait for others let them have the core, which a decoding process needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .demo_page import as_text, compare, draw, write_page

    began = time.monotonic()
    out: Path = args.out
    write_recipes(out, args.size)
    steps = []
    for step in plan(out, args.size):
        started = time.monotonic()
        code = 0 if step.done() else run(step)
        if code:
            return code
        steps.append((step.call, time.monotonic() - started))
    rows = compare(out)
    draw(rows, out / "table.png")
    page = write_page(out, rows, steps)
    print(f"\n{as_text(rows)}\n\n{page} shows it all ({time.monotonic() - began:.0f} s)")
    return 0


# --- recipes


def write_recipes(out: Path, size: str) -> None:
    """OUT/recipes/NAME.yaml for every run that begins on features. One that is there and differs is replaced: a run
    that was made with it then refuses to go on.
    """
    for folder in ("recipes", "results"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name, row in COMPARED.items():
        if row.head and not row.begins_from:
            text = yaml.safe_dump(recipe(out, row, size), sort_keys=False, width=120)
            with replacing(out / "recipes" / f"{name}.yaml") as file:
                file.write(text)


def recipe(out: Path, row: Compared, size: str) -> dict[str, Any]:
    """A recipe that names stored features and the network that made them: `inputs` says which of the two is used."""
    epochs, batch, *_ = SIZES[size]
    return {
        "about": {"paper": "none: a demonstration", "row": row.title},
        "data": {"dataset": "kitchen", "root": str(out / "kitchen")},
        "sampling": {"rule": "segments"},
        "inputs": "features",
        "streams": {stream: _stream(out, stream) for stream in row.streams},
        "head": {"name": row.head, "options": row.options},
        "augment": {"crop": "multi_scale", "scales": [1.0, 0.875], "flip": 0.5},
        "optim": {
            "name": "adamw",
            "lr": 1e-3,
            "batch": batch,
            "weight_decay": 0.05,
            "no_decay_norms": True,
            "schedule": "cosine",
            "warmup_epochs": 1,
            "clip_norm": 5.0,
        },
        "run": {
            "epochs": epochs,
            "workers": 0,
            "test_every": epochs,
            "keep": 1,
            "monitor": "action/top1_accuracy",
        },
    }


def _stream(out: Path, stream: str) -> dict[str, Any]:
    found = {
        "backbone": NETWORK,
        "weights": WEIGHTS,
        # End to end the early layers stay as they are and no batch norm changes its statistics: the head begins with
        # the features that it knows.
        "freeze_stages": 5,
        "partial_bn": True,
        "lr_scale": 0.5,
        "features": str(out / "features" / f"{NETWORK.replace(':', '-')}-{stream}"),
        "key": "{video}.mp4",
        "clip": CLIPS[stream],
    }
    return found | ({"options": {"flow_stack": 1}} if stream == "flow" else {})


# --- commands


@dataclass(frozen=True)
class Step:
    """A command. made: the file that is there when it is done. after: files that it must not be older than.

    shown: what it prints is shown; else it goes to OUT/log.txt.
    """

    call: list[str]
    log: Path
    made: Path | None = None
    after: tuple[Path, ...] = ()
    shown: bool = False

    def done(self) -> bool:
        if self.made is None or not self.made.is_file():
            return False
        if self.call[0] == "train" and not same_run(self.call):
            return False
        made = self.made.stat().st_mtime_ns
        return all(path.is_file() and path.stat().st_mtime_ns <= made for path in self.after)


def plan(out: Path, size: str) -> list[Step]:
    """All commands, in their order."""
    log = out / "log.txt"
    runs = {name: row for name, row in COMPARED.items() if row.head}
    steps = [
        Step(["synth", str(out / "kitchen"), "--size", size], log, shown=True),
        Step(extraction(out), log, shown=True),
    ]
    for name, row in runs.items():
        call = tuning(out, name, size) if row.begins_from else training(out, name)
        steps.append(Step(call, log, best(out, name, "metrics.json"), shown=bool(row.begins_from)))
    for name in COMPARED:
        tested = [each for each in runs if len(runs[each].streams) == 1] if name == LATE else [name]
        made = out / "results" / f"{name}.json"
        call = ["evaluate", *(str(out / "runs" / each) for each in tested), "--json", str(made), "--quiet"]
        steps.append(Step(call, log, made, tuple(best(out, each, "metrics.json") for each in tested)))
    for name in runs:
        made = out / "runs" / name / "report.html"
        call = ["report", str(out / "runs" / name), "--show", "3", "--quiet"]
        steps.append(Step(call, log, made, (best(out, name, "metrics.json"),)))
    return steps


def best(out: Path, name: str, file: str) -> Path:
    return out / "runs" / name / "best" / file


def extraction(out: Path) -> list[str]:
    call = ["extract", str(out / "kitchen/videos"), "--out", str(out / "features"), "--backbone", NETWORK]
    call += ["--weights", WEIGHTS]
    for stream in STREAMS:
        call += ["--stream", stream]
    return [*call, *"--fps 8 --clip-frames 1 --side 96 --crop 96 --flow-stack 1 --audio-preset vggish".split()]


def training(out: Path, name: str) -> list[str]:
    """A head on stored features."""
    return ["train", str(out / "recipes" / f"{name}.yaml"), "--out", str(out / "runs" / name), "--quiet"]


def tuning(out: Path, name: str, size: str) -> list[str]:
    """The networks and the head that was trained on their features, together, from pixels and sound."""
    begins_from, (*_, epochs, batch) = COMPARED[name].begins_from, SIZES[size]
    call = ["train", str(out / "recipes" / f"{begins_from}.yaml"), "--out", str(out / "runs" / name)]
    call += ["inputs=pixels", f"init_from={out / 'runs' / begins_from}"]
    call += [f"optim.batch={batch}", "optim.lr=1e-4", "optim.warmup_epochs=0.5"]
    return [*call, f"run.epochs={epochs}", f"run.test_every={epochs}", "run.workers=1"]


def same_run(call: Sequence[str]) -> bool:
    """Whether the run's folder was made by the recipe of this call."""
    from .recipe import load_recipe

    kept = Path(call[call.index("--out") + 1]) / "recipe.yaml"
    wanted = load_recipe(call[1], [word for word in call[2:] if "=" in word])
    return kept.is_file() and load_recipe(kept) == wanted


def run(step: Step) -> int:
    """Print a command, run it here, print its time."""
    import torch

    from actionfuse.cli import main as actionfuse

    print(f"\n$ actionfuse {shlex.join(step.call)}", flush=True)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if not step.shown:
            # Heads are small: what a second thread would gain is lost in waiting for it.
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
            log = stack.enter_context(open(step.log, "a", encoding="utf-8"))
            print(f"$ actionfuse {shlex.join(step.call)}", file=log)
            stack.enter_context(contextlib.redirect_stdout(log))
        code = actionfuse(step.call)
    print(f"({time.monotonic() - began:.1f} s)", flush=True)
    return code
