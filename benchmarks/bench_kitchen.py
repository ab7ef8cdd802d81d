"""Heads, and the best of them end to end, against the ceilings of the synthetic kitchen; writes `kitchen.md`.

    python benchmarks/bench_kitchen.py                    # all that is missing, then the tables
    python benchmarks/bench_kitchen.py --only table       # the tables of what is there

Stages: synth (`actionfuse synth --size full`), frames (decoded once, for tuning), tune (a backbone per stream), extract
(`actionfuse extract`), facets (what of the law the features tell), heads (all fusions on stored features, recognition
and anticipation), tune-compositional and compositional (Interactive Fusion), pixels (the best two end to end), table.

Nothing is computed twice: a finished run is a file in WORK/results, an unfinished one goes on where it was, and a run
whose recipe has changed is refused until its folder is removed. Killed at any moment, the same call goes on. No stage
is limited in time. A run uses one core: calls for other stages, --streams, --tasks or --methods may run beside one
another.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kitchen_runs as runs
from _common import machine
from kitchen_facets import facet_scores
from kitchen_frames import Memory, lend_stored, remember_samples, store_frames
from kitchen_law import grammar_scores, pair_scores
from kitchen_runs import Planned
from kitchen_table import best_fusions, collect, read_results, write_table

STAGES = (
    "synth",
    "frames",
    "tune",
    "extract",
    "facets",
    "heads",
    "tune-compositional",
    "compositional",
    "pixels",
    "table",
)
FOLDERS = {"depth": "depth", "ir": "ir"}  # of the kitchen, for streams that are not in videos/
_MEMORY: Memory = {}  # samples of features
_PLAIN: Memory = {}
_COMMAND = [sys.executable, "-m", "actionfuse.cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/actionfuse-bench/kitchen-full"))
    parser.add_argument("--size", default="full", help="of the kitchen (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=runs.SEEDS)
    parser.add_argument("--pixel-seeds", type=int, default=3, help="of the runs end to end")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--streams", nargs="+", choices=runs.STREAMS, default=list(runs.STREAMS), help="of tune, extract"
    )
    parser.add_argument("--tasks", nargs="+", choices=list(runs.TASKS), default=list(runs.TASKS), help="of heads")
    parser.add_argument("--methods", nargs="+", help="of heads, compositional and pixels (default: all)")
    parser.add_argument("--epochs", type=int, help="of every run, to try the script: batches are then small as well")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("kitchen.md"))
    args = parser.parse_args()
    work, streams = args.work.absolute(), tuple(args.streams)
    if "synth" in args.only:
        synthesise(work, args.size)
    if "frames" in args.only:
        for stream in runs.PICTURES:
            folder = work / "kitchen" / FOLDERS.get(stream, "videos")
            store_frames(folder, work / "frames" / stream, runs.FRAMES_FPS, grey=stream != "rgb")
    if "tune" in args.only:
        for planned in runs.tuning(work, streams=streams):
            tune(planned, work, args.epochs)
    if "extract" in args.only:
        for stream in streams:
            extract(work, stream)
    if "facets" in args.only:
        for stream in widths(work):
            kept = work / "results" / f"facets-{stream}.json"
            if not kept.is_file():
                keep(kept, {"group": "facets", "method": stream, "seconds": 0.0, "facets": facet_scores(work, stream)})
        kept = work / "results" / "pairs-rgb.json"
        if not kept.is_file():
            keep(kept, {"group": "pairs", "method": "rgb", "seconds": 0.0, "pairs": pair_scores(work)})
        kept = work / "results" / "grammar.json"
        if not kept.is_file():
            found = grammar_scores(work, runs.FUSED, runs.TAU_A, runs.TAU_O)
            keep(kept, {"group": "grammar", "method": "all", "seconds": 0.0, "grammar": found})
    if "heads" in args.only:
        planned = runs.on_features(work, widths(work), args.seeds, tuple(args.tasks))
        for each in chosen(planned, args.methods):
            train(each, work, args.epochs)
            if each.method == "MIMO" and each.group == "recognition":
                reallocate(each, work)
    if "tune-compositional" in args.only:
        for planned in runs.tuning(work, split="compositional", streams=("rgb",)):
            tune(planned, work, args.epochs)
    if "compositional" in args.only:
        for each in chosen(runs.interactive(work, args.seeds), args.methods):
            train(each, work, args.epochs)
    if "pixels" in args.only:
        best = best_fusions(read_results(work), 2)
        for each in chosen(runs.from_pixels(work, best, args.pixel_seeds), args.methods):
            train(each, work, args.epochs)
    if "table" in args.only:
        collect(work, machine())
        write_table(args.out)
        print(f"wrote {args.out}")


def chosen(planned: Iterable[Planned], methods: list[str] | None) -> Iterator[Planned]:
    return (each for each in planned if methods is None or each.method in methods)


def synthesise(work: Path, size: str) -> None:
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run([*_COMMAND, "synth", str(work / "kitchen"), "--size", size], check=True)


def tune(planned: Planned, work: Path, epochs: int | None) -> None:
    """Train a backbone and write it as `actionfuse extract` reads it."""
    from actionfuse.backbones import save_backbone
    from actionfuse.train import load_model

    train(planned, work, epochs)
    (stream,) = planned.recipe["streams"]
    target = runs.weights(work, stream, "compositional" if "compositional" in planned.group else "")
    if not target.is_file():
        backbone: Any = load_model(work / "runs" / planned.name).backbones[stream]
        save_backbone(backbone, target)


def extract(work: Path, stream: str) -> None:
    """Features of all videos; what is there already is not made again."""
    began = time.perf_counter()
    command = [
        *_COMMAND,
        "extract",
        str(work / "kitchen" / FOLDERS.get(stream, "videos")),
        *("--out", str(work / "features"), "--backbone", f"{runs.BACKBONES[stream]}@{stream}"),
        *("--weights", str(runs.weights(work, stream)), "--quiet", "--workers", "1", "--store", "npy"),
        *("--timeout", "3600"),  # a stopped process is not a hanging one
        *runs.EXTRACTED[stream],
    ]
    subprocess.run(command, check=True)
    kept = work / "results" / f"extract-{stream}.json"
    if not kept.is_file():
        keep(kept, {"group": "extract", "method": stream, "seconds": time.perf_counter() - began})


def widths(work: Path) -> dict[str, int]:
    """Of the streams whose features are there."""
    from actionfuse.pipeline.features import FeatureStore

    found = {}
    for stream in runs.STREAMS:
        if runs.store(work, stream).is_dir():
            features = FeatureStore.open(runs.store(work, stream))
            found[stream] = int(features.read(features.keys()[0]).data.shape[1])
    if not found:
        raise SystemExit("no features are there: run the stages tune and extract first")
    return found


def train(planned: Planned, work: Path, epochs: int | None) -> bool:
    """Train to the end, or go on; keep the results of the last test. False where it was done before."""
    from actionfuse.train.engine import Trainer
    from actionfuse.train.recipe import recipe_of

    kept = work / "results" / f"{planned.name}.json"
    content = planned.recipe
    if epochs is not None:
        content = {
            **content,
            "run": {**content["run"], "epochs": epochs},
            "optim": {**content["optim"], "batch": 8},
        }
    if kept.is_file():
        if json.loads(kept.read_text())["recipe"] != content:
            raise SystemExit(f"{kept} is of another recipe; remove it and runs/{planned.name} to train anew")
        return False
    print(f"{planned.group}: {planned.method}, seed {planned.seed}", flush=True)
    began, cpu = time.perf_counter(), time.process_time()
    recipe = recipe_of({"name": planned.name, **content}, planned.name)
    trainer = Trainer(recipe, work / "runs" / planned.name, quiet=True)
    if recipe.inputs == "pixels":
        for dataset in (trainer.train_set, *trainer.test_sets.values()):
            for stream in runs.decoded(content["streams"]):
                lend_stored(dataset, work / "frames" / stream, stream, runs.FRAMES_FPS)
    else:
        # samples of those who learn what was seen last hold labels of it
        remember_samples(trainer.train_set, _MEMORY if recipe.loss.last_action else _PLAIN)
        for dataset in trainer.test_sets.values():
            remember_samples(dataset, _MEMORY)
    # A run that was done, but killed before its results were kept, tests nothing again.
    results = trainer.run() or last_test(work / "runs" / planned.name)
    row = {
        "group": planned.group,
        "method": planned.method,
        "seed": planned.seed,
        "streams": list(content["streams"]),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "segments": len(trainer.test_split.segments),
        "unseen": {name: unseen(dataset) for name, dataset in trainer.test_sets.items()},
        "results": results,
        "recipe": content,
    }
    keep(kept, row)
    key = "action/top1_accuracy" if "action/top1_accuracy" in results else "verb/top1_accuracy"
    print(f"    {key} {results[key]:.3f}, {row['seconds']:.0f} s", flush=True)
    return True


def last_test(run: Path) -> dict[str, float]:
    """Results of the last test that a run's log holds."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "test"][-1]
    return {name: value for name, value in last.items() if name not in ("kind", "epoch", "step")}


def unseen(dataset: Any) -> int:
    """Segments of which nothing can be observed, as the first of a video two seconds before it: the test leaves them
    out, the ceiling does not."""
    early = [k for k, segment in enumerate(dataset.dataset.segments) if segment.start_seconds < runs.TAU_O]
    return sum(bool(dataset[k].error) for k in early)


def reallocate(planned: Planned, work: Path) -> None:
    """MIMO's weights of attention in testing, searched on one half of the validation videos and scored on the other."""
    from actionfuse.fusion.reallocation import tune_reallocation
    from actionfuse.train.build import build_dataset, load_split, make_task
    from actionfuse.train.model import load_model
    from actionfuse.train.recipe import recipe_of

    name = planned.name.replace("mimo", runs.slug(runs.REALLOCATED))
    kept = work / "results" / f"{name}.json"
    if kept.is_file():
        return
    recipe = recipe_of({"name": planned.name, **planned.recipe}, planned.name)
    model = load_model(work / "runs" / planned.name)
    split = load_split(recipe, recipe.data.test)
    dataset = build_dataset(recipe, split, model, make_task(recipe.task), training=False)
    videos = {video: number for number, video in enumerate(sorted({s.video for s in split.segments}))}
    remember_samples(dataset, _MEMORY)
    samples: tuple[list, list] = ([], [])
    for number, segment in enumerate(split.segments):
        sample = dataset[number]
        if not sample.error:
            samples[videos[segment.video] % 2].append(sample)
    halves = [[(b["streams"], b["masks"], b["labels"]) for b in _batches(half)] for half in samples]
    right, chosen = 0, []
    head: Any = model.head
    for tuned, scored in (halves, halves[::-1]):
        found = tune_reallocation(head, tuned)
        chosen.append(found.weights["action"])
        for streams, masks, labels in scored:
            right += int((head(streams, None, masks).logits["action"].argmax(1) == labels["action"]).sum())
    keep(
        kept,
        {
            "group": planned.group,
            "method": runs.REALLOCATED,
            "seed": planned.seed,
            "streams": list(planned.recipe["streams"]),
            "seconds": 0.0,
            "segments": len(split.segments),
            "results": {"action/top1_accuracy": right / len(split.segments)},
            "weights": chosen,
        },
    )


def _batches(samples: list, size: int = 150) -> Iterator[dict[str, Any]]:
    from actionfuse.pipeline.samples import collate

    for first in range(0, len(samples), size):
        yield collate(samples[first : first + size])


def keep(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(row, indent=1))
    temporary.replace(path)


if __name__ == "__main__":
    main()
