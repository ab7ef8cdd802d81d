"""Train and compare fusion heads on the small synthetic kitchen, with the commands that a user would type.

  actionfuse demo-training --out demo-output/training

Synthesises a kitchen, extracts features of pictures, flow and sound with the bundled ImageNet network, trains each
stream alone, early and late fusion and the heads of the papers on them, tunes Interactive Fusion end to end on
pictures and boxes, and sets their scores on the validation split beside the best that is possible (ceilings.json).
Each command is printed as it runs, with its time; all of them run in this process, to save their start. The same call
again repeats only what is missing: extraction and training go on where they stopped.

Exit codes: 0 all done, else the code of the command that stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..pipeline.synth.ceilings import ceiling, read_ceilings
from .charts import escape

NETWORK = "tsn:tf_efficientnet_lite0"
STORE = "tsn-tf_efficientnet_lite0"
STREAMS = ("rgb", "flow", "audio")
TASKS = ("verb", "noun", "action")
HEADS = {
    # recipe: (what the table calls it, what it sees)
    "kitchen_rgb": ("rgb alone", ("rgb",)),
    "kitchen_flow": ("flow alone", ("flow",)),
    "kitchen_audio": ("audio alone", ("audio",)),
    "kitchen_concat": ("early fusion (concat)", STREAMS),
    "kitchen_late": ("late fusion", STREAMS),
    "kitchen_mif_parallel": ("MIF, parallel", STREAMS),
    "kitchen_mif_progressive": ("MIF, progressive", STREAMS),
    "kitchen_mimo": ("MIMO", STREAMS),
    "kitchen_mmixer": ("M-Mixer", STREAMS),
}
END_TO_END = "kitchen_interactive"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output/training"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--size", choices=("tiny", "small"), default="small", help="kitchen (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="of heads on features (default: %(default)s)")
    parser.add_argument("--tune-epochs", type=int, default=2, help="end to end (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    began = time.monotonic()
    kitchen, runs = args.out / "kitchen", args.out / "runs"
    calls = [["synth", str(kitchen), "--size", args.size], extraction(args.out)]
    for recipe, (_, streams) in HEADS.items():
        calls.append(training(args.out, recipe, streams, args.epochs))
    calls.append(tuning(args.out, args.tune_epochs))
    for recipe in (*HEADS, END_TO_END):
        calls.append(["evaluate", str(runs / recipe), "--json", str(runs / recipe / "results.json"), "--quiet"])
    calls.append(["report", str(runs / "kitchen_mimo"), "--quiet"])
    calls.append(["report", str(runs / END_TO_END), "--quiet"])
    took = []
    for call in calls:
        started = time.monotonic()
        code = run(call)
        if code:
            return code
        took.append(time.monotonic() - started)
    rows = compare(runs, kitchen)
    page = write_page(args.out, rows, list(zip(calls, took, strict=True)))
    print(f"\n{as_text(rows)}\n\n{page} shows it all ({time.monotonic() - began:.0f} s)")
    return 0


def run(call: Sequence[str]) -> int:
    """Print a command, run it here, print its time."""
    from actionfuse.cli import main as actionfuse

    print(f"\n$ actionfuse {shlex.join(call)}", flush=True)
    began = time.monotonic()
    code = actionfuse(call)
    print(f"({time.monotonic() - began:.1f} s)", flush=True)
    return code


def extraction(out: Path) -> list[str]:
    call = ["extract", str(out / "kitchen/videos"), "--out", str(out / "features"), "--backbone", NETWORK]
    for stream in STREAMS:
        call += ["--stream", stream]
    return [*call, *"--fps 8 --clip-frames 1 --side 96 --crop 96 --flow-stack 3 --audio-preset vggish".split()]


def training(out: Path, recipe: str, streams: Sequence[str], epochs: int) -> list[str]:
    """A head on stored features. M-Mixer takes rgb, flow and audio here, as its rivals do."""
    call = ["train", recipe, "--out", str(out / "runs" / recipe), f"data.root={out / 'kitchen'}", "inputs=features"]
    if recipe == "kitchen_mmixer":
        call.append("streams={}")
    for stream in streams:
        here = f"streams.{stream}"
        call += [f"{here}.features={out / 'features'}/{STORE}-{stream}", f"{here}.key='{{video}}.mp4'"]
        call += [f"{here}.feature_dim=1280", f"{here}.clip.frames=8", f"{here}.clip.fps=8"]
    return [*call, f"run.epochs={epochs}", "optim.batch=32", "run.workers=0", f"run.test_every={epochs}", "--quiet"]


def tuning(out: Path, epochs: int) -> list[str]:
    call = ["train", END_TO_END, "--out", str(out / "runs" / END_TO_END), f"data.root={out / 'kitchen'}"]
    call += ["data.train=train", "data.test=validation", "data.tasks=[verb, noun]"]
    call += [f"streams.rgb.backbone={NETWORK}", "streams.rgb.weights=bundled", "streams.rgb.partial_bn=true"]
    call += ["streams.rgb.lr_scale=0.3", "optim.lr=5e-4", "optim.warmup_epochs=0.2"]
    return [*call, f"run.epochs={epochs}", f"run.test_every={epochs}", "--quiet"]


def compare(runs: Path, kitchen: Path) -> list[dict[str, str | float]]:
    """Top-1 of each run and of the best possible predictor; NaN where a run does not predict a task."""
    known = read_ceilings(kitchen)
    heads: Mapping[str, tuple[str, tuple[str, ...]]] = {
        **HEADS,
        # Boxes count as flow, which rgb contains: the bound is that of rgb
        END_TO_END: ("Interactive Fusion, end to end, boxes", ("rgb", "flow")),
    }
    rows: list[dict[str, str | float]] = []
    for recipe, (title, streams) in heads.items():
        found = json.loads((runs / recipe / "results.json").read_text(encoding="utf-8"))["results"]
        row: dict[str, str | float] = {"head": title, "run": recipe}
        for task in TASKS:
            value = found.get(f"{task}/top1_accuracy")
            if value is None:
                value = found.get(f"{task}_factorised/top1_accuracy")
            row[task] = float("nan") if value is None else value
            row[f"best {task}"] = ceiling(known, streams, task=task)
        rows.append(row)
    return rows


def as_text(rows: Sequence[Mapping[str, str | float]]) -> str:
    """The table for a terminal: percent, with the ceiling of the same streams in brackets."""
    lines = [f"{'top-1 % (the best possible)':40}" + "".join(f"{task:>16}" for task in TASKS)]
    for row in rows:
        cells = "".join(f"{_percent(row[task])} ({_percent(row[f'best {task}'])})".rjust(16) for task in TASKS)
        lines.append(f"{row['head']:40}{cells}")
    return "\n".join(lines)


def _percent(value: str | float) -> str:
    value = float(value)
    return "-" if value != value else f"{100 * value:.1f}"


def write_page(
    out: Path, rows: Sequence[Mapping[str, str | float]], commands: Sequence[tuple[Sequence[str], float]]
) -> Path:
    """index.html: the kitchen, the table, links to the reports of single runs, the commands and their seconds."""
    from ..pipeline.annotations import replacing
    from .report_page import page, table

    shown = [[row["head"], *(float(row[key]) for task in TASKS for key in (task, f"best {task}"))] for row in rows]
    head = ["head", *(name for task in TASKS for name in (task, f"best possible {task}"))]
    links = "".join(
        f'<li><a href="runs/{escape(row["run"])}/report.html">{escape(row["head"])}</a></li>'
        for row in rows
        if (out / "runs" / str(row["run"]) / "report.html").is_file()
    )
    typed = "\n".join(f"{seconds:6.1f} s  actionfuse {shlex.join(call)}" for call, seconds in commands)
    sections = [
        ("table", "Top-1 accuracy, per cent", table(head, shown, sortable=True, scroll=True)),
        ("kitchen", "The kitchen", '<img src="kitchen/contact_sheet.jpg" alt="frames" style="max-width:100%">'),
        ("runs", "Reports of single runs", f"<ul>{links}</ul>"),
        ("table-text", "As text", f"<pre>{escape(as_text(rows))}</pre>"),
        ("commands", "Commands", f'<pre style="overflow-x:auto">{escape(typed)}</pre>'),
    ]
    about = (
        "Heads on features of a frozen ImageNet network, one head tuned end to end; one seed, a small validation "
        f"split; {sum(seconds for _, seconds in commands):.0f} s."
    )
    file_path = out / "index.html"
    with replacing(file_path) as file:
        file.write(page("Fusion on the synthetic kitchen", about, sections))
    return file_path
