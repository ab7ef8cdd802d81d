"""Test trained runs on a split; several runs are one ensemble by late fusion.

  actionfuse evaluate runs/mif
  actionfuse evaluate runs/rgb runs/flow --weights 1,0.5 --json ensemble.json
  actionfuse evaluate runs/i3d --clips 10 --crops 3 --average probability sampling.rule=slowfast
  actionfuse evaluate runs/charades --clips 10 --crops 3 --average maximum sampling.rule=charades
  torchrun --nproc-per-node 2 -m actionfuse.cli evaluate runs/mif --processes 2

RUN is the folder of a run (its best model is taken) or a file that --scores wrote. Tested is the split data.test of the
run's recipe under every observation that the recipe names (task.tau_a and test_tau_a; task.fraction and
test_fractions). `key=value` changes fields of all recipes: data.*, task.*, sampling.*, run.workers, run.micro_batch,
run.precision, streams.NAME.features, .key and .clip.*. Every segment counts once, in any number of processes.

Exit codes: 0 all segments were read (also those that are damaged, which are named), 1 some were not (they are named), 2
wrong call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .members import Member
    from .metrics import Absent
    from .results import Result

NAMED = 20  # broken segments that are told one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN|KEY=VALUE", help="runs, files of scores, recipe fields")
    what = parser.add_argument_group("what is tested")
    what.add_argument("--split", help="of the dataset (default: the recipe's data.test)")
    what.add_argument("--root", help="the dataset's folder (default: the recipe's data.root)")
    what.add_argument("--clips", type=int, metavar="N", help="clips of a segment (default: sampling.num_clips)")
    what.add_argument("--crops", type=int, choices=(1, 3), help="squares of a frame (default: sampling.test_crops)")
    what.add_argument(
        "--average",
        choices=("probability", "logit", "maximum"),
        default="probability",
        help="what the mean over views, and over runs, is taken of; maximum: of each class the largest probability of "
        "all views, and over runs the mean of these (default: %(default)s)",
    )
    what.add_argument(
        "--weights",
        action="append",
        metavar="[TASK:]W,W,...",
        help="weights of the runs, or of one task's scores; repeatable (default: equal)",
    )
    what.add_argument(
        "--unread",
        choices=("omit", "zeros"),
        default="omit",
        help="what segments are that cannot be read, or before which nothing can be seen: left out, or zeros: counted "
        "with scores of zero, so as misses (RULSTM on EPIC-KITCHENS-100) (default: %(default)s)",
    )
    what.add_argument(
        "--absent",
        choices=("zero", "action_0"),
        default="zero",
        help="what verbs and nouns that are in no action get of the actions' scores: zero, or that of action 0 "
        "(RULSTM's code, to compare with its numbers on EPIC-KITCHENS) (default: %(default)s)",
    )
    what.add_argument("--batch", type=int, metavar="N", help="segments at a time (default: as in training)")
    what.add_argument("--processes", type=int, metavar="N", help="refuse to run in any other number of processes")
    out = parser.add_argument_group("what is written")
    out.add_argument("--json", type=Path, metavar="FILE", help="results by name and as rows")
    out.add_argument("--csv", type=Path, metavar="FILE", help="results as rows")
    out.add_argument("--scores", type=Path, metavar="FILE.npz", help="each run's scores; the file can stand for them")
    out.add_argument("--submission", type=Path, metavar="FILE", help="EPIC-KITCHENS-100 challenge, .json or .zip")
    out.add_argument("--sls", metavar="PT,TL,TD", help="supervision levels 0 to 5 that a submission states")
    out.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace) -> int:
    from .members import ensemble, save_members
    from .results import write_csv, write_epic_submission, write_json
    from .runs import split_words
    from .world import check_world, join_world

    paths, overrides = split_words(args.runs)
    if args.batch is not None and args.batch < 1:
        raise ValueError(f"--batch is {args.batch}; it must be at least 1")
    if not paths:
        raise ValueError("name a run, such as runs/mif; all that was given are recipe fields")
    levels = parse_levels(args.sls) if args.submission is not None else (0, 0, 0)
    world = join_world()
    check_world(world.num_processes, args.processes, "evaluation", "actionfuse.cli evaluate")
    members = collect(args, paths, overrides, rank=world.process_index, world_size=world.num_processes)
    if members is None:
        return 0
    whole = members[0]
    if len(members) > 1:
        whole = ensemble(members, parse_weights(args.weights, len(members)), args.average)
    elif args.weights:
        raise ValueError("--weights are for several runs; one was given")
    if args.scores is not None:
        save_members(args.scores, members)
    if args.submission is not None:
        write_epic_submission(args.submission, submission_of(whole, levels, args.absent))
    results = whole.results(args.absent)
    alone = {member.name: member.results(args.absent) for member in members} if len(members) > 1 else {}
    about = about_of(whole, members, args, alone)
    if args.json is not None:
        write_json(args.json, results, about)
    if args.csv is not None:
        write_csv(args.csv, results)
    tell(whole, results, alone)
    tell_damaged(whole.damaged)
    return tell_broken(whole.broken, become="count with scores of zero" if args.unread == "zeros" else "were left out")


def collect(
    args: argparse.Namespace, paths: Sequence[str], overrides: Sequence[str], *, rank: int, world_size: int
) -> list[Member] | None:
    """What each path says of the split; None on processes other than 0."""
    from .members import load_members, test_run
    from .runs import open_run

    if all(Path(path).suffix == ".npz" for path in paths):
        given = {f"--{name}": getattr(args, name) for name in ("split", "root", "clips", "crops", "batch")}
        said = [name for name, value in given.items() if value is not None] + ["--unread"] * (args.unread != "omit")
        if said or overrides:
            raise ValueError(
                f"{', '.join([*said, *overrides])} would change nothing: files of scores have been tested already; "
                "name the runs themselves"
            )
    changes = list(overrides)
    changes += [f"data.root={args.root}"] if args.root else []
    changes += [f"sampling.num_clips={args.clips}"] if args.clips is not None else []
    members: list[Member] = []
    for path in paths:
        if Path(path).suffix == ".npz":
            members += load_members(path)
            continue
        run = open_run(path, changes)
        member = test_run(
            run, args.split, num_crops=args.crops, average=args.average, unread=args.unread, batch_size=args.batch,
            rank=rank, world_size=world_size, quiet=args.quiet,
        )  # fmt: skip
        members += [member] if member is not None else []
    if rank:
        return None
    names = [member.name for member in members]
    return [
        replace(member, name=f"{member.name} ({names[: n + 1].count(member.name)})")
        if member.name in names[:n]
        else member
        for n, member in enumerate(members)
    ]


def parse_weights(given: Sequence[str] | None, count: int) -> list[float] | dict[str, list[float]] | None:
    """--weights as `ensemble` takes them."""
    if not given:
        return None
    found: dict[str, list[float]] = {}
    for text in given:
        task, _, numbers = text.rpartition(":")
        try:
            found[task] = [float(number) for number in numbers.split(",")]
        except ValueError:
            raise ValueError(f"--weights is {text!r}; write numbers, such as 1,0.5 or verb:1,0.5") from None
        if len(found[task]) != count:
            raise ValueError(f"--weights has {len(found[task])} numbers ({text}) for {count} runs; give one each")
    if "" not in found:
        return found
    if len(found) > 1:
        raise ValueError("--weights are given for all tasks and for single ones; take one of the two")
    return found[""]


def parse_levels(text: str | None) -> tuple[int, int, int]:
    """--sls: supervision levels of pretraining, training labels and training data."""
    try:
        numbers = tuple(int(part) for part in (text or "").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise ValueError(
            f"--sls is {text!r}; a submission states its supervision levels: PT,TL,TD, each 0 to 5, such as 1,3,3 "
            "(pretraining, training labels, training data; the challenge's page says what they mean)"
        )
    return numbers


def submission_of(member: Member, levels: tuple[int, int, int], absent: Absent = "zero") -> dict[str, Any]:
    """What the EPIC-KITCHENS-100 servers take; anticipation is that of tau_a = 1 s. Segments that could not be read, or
    before which nothing can be seen, are in it with scores of zero, as RULSTM has them: the servers want all.

    Raises: ValueError where the run does not tell verbs and nouns, or was not tested at 1 s.
    """
    import numpy as np

    from .metrics import marginalise
    from .results import epic_submission

    seen = next(iter(member.observations.values()))
    if seen.what["kind"] == "anticipation":
        at_1 = [each for each in member.observations.values() if each.what["tau_a"] == 1.0]
        if not at_1:
            raise ValueError("the challenge anticipates at tau_a = 1 s; test there with task.tau_a=1")
        seen = at_1[0]
    scores = dict(seen.table.scores)
    parts = member.parts.get("action", {})
    for task in ("verb", "noun"):
        if task not in scores and "action" in scores and task in parts:
            scores[task] = marginalise(scores["action"], parts[task], len(member.classes.get(task, ())) or None, absent)
    if "verb" not in scores or "noun" not in scores:
        raise ValueError(f"a submission needs scores of verbs and nouns; {member.name} tells {', '.join(scores)}")
    whole = "action" in scores and {"verb", "noun"} <= parts.keys()
    gone = [row["id"] for row in seen.broken if row["id"] not in set(seen.table.ids)]
    full = {}
    for task, values in scores.items():
        values = np.where(seen.table.missing[:, None], 0, values)
        full[task] = np.concatenate([values, np.zeros((len(gone), values.shape[1]), values.dtype)])
    return epic_submission(
        (*seen.table.ids, *gone),
        full["verb"],
        full["noun"],
        challenge="action_anticipation" if seen.what["kind"] == "anticipation" else "action_recognition",
        sls_pt=levels[0],
        sls_tl=levels[1],
        sls_td=levels[2],
        action=full["action"] if whole else None,
        actions=list(zip(parts["verb"], parts["noun"], strict=True)) if whole else None,
    )


def about_of(
    whole: Member, members: Sequence[Member], args: argparse.Namespace, alone: Mapping[str, Sequence[Result]]
) -> dict[str, Any]:
    """How the results came about: nothing that depends on the clock or on the number of processes."""
    seen = next(iter(whole.observations.values()))
    about: dict[str, Any] = {
        "runs": [member.name for member in members],
        "dataset": whole.dataset,
        "split": whole.split,
        "segments": len(seen.table),
        "observations": {name or "trained": dict(each.what) for name, each in whole.observations.items()},
        "views": [member.views for member in members],
        "average": args.average,
        "unread": args.unread,
        "absent": args.absent,
        "broken": [{"id": row["id"], "reason": row["reason"]} for row in whole.broken],
        "damaged": [{"id": row["id"], "reason": row["reason"]} for row in whole.damaged],
    }
    if alone:
        about["weights"] = args.weights or "equal"
        about["alone"] = {
            name: {row.name: None if row.value != row.value else row.value for row in rows}
            for name, rows in alone.items()
        }
    return about


# --- for people


def tell(whole: Member, results: Sequence[Result], alone: Mapping[str, Sequence[Result]]) -> None:
    """Tables in per cent on standard output."""
    from .results import TIME_TO_ACTION

    seen = next(iter(whole.observations.values()))
    views = f", {whole.views} views each" if whole.views > 1 else ""
    print(f"{whole.name}: {whole.split} of {whole.dataset}, {len(seen.table)} segments{views}, in %")
    if not results:
        print("no labels are known of this split: nothing to compare with")
        return
    # of further observations the whole split alone; files have all
    print(table_of([row for row in results if row.metric != TIME_TO_ACTION and (not row.at or row.subset == "all")]))
    if ahead := told_ahead(results):
        print(ahead)
    if alone:
        top = [row.name for row in results if row.subset == "all" and row.metric in ("top1_accuracy", "mAP")]
        rows = [["", *top]]
        for name, own in [*alone.items(), ("ensemble", results)]:
            values = {row.name: row.value for row in own}
            rows.append([name, *(_percent(values[each]) if each in values else "" for each in top)])
        print("\n" + aligned(rows))


def table_of(results: Sequence[Result]) -> str:
    """A row for each task, source of scores, subset and observation, a column for each metric."""
    from .results import by_row

    metrics, rows, counts = by_row(results)
    lines = [["", *metrics, "segments"]]
    for name, values in rows.items():
        cells = (_percent(values[metric]) if metric in values else "" for metric in metrics)
        lines.append([name, *cells, str(counts[name])])
    return aligned(lines)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def told_ahead(results: Sequence[Result]) -> str:
    """The mean times to action as a sentence; empty where there are none."""
    from .results import TIME_TO_ACTION

    waits = [row for row in results if row.metric == TIME_TO_ACTION]
    told = ", ".join(f"{row.name.partition('/')[0]} {row.value:.2f} s" for row in waits)
    return f"first among the 5 best so long before the action (mean, {waits[0].at}): {told}" if waits else ""


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.2f}"


def tell_broken(broken: Sequence[Mapping[str, Any]], what: str = "segments", become: str = "were left out") -> int:
    """Name what could not be read on standard error; the exit code."""
    return _name("cannot be read", broken, what, become)


def tell_damaged(damaged: Sequence[Mapping[str, Any]], what: str = "segments") -> int:
    """As tell_broken, what was read though parts of it could not be."""
    return _name("read in part", damaged, what, "were read in part")


def _name(said: str, rows: Sequence[Mapping[str, Any]], what: str, become: str) -> int:
    for row in rows[:NAMED]:
        print(f"{said}: {row['id']}: {row['reason']}", file=sys.stderr)
    if rows:
        more = f", the first {NAMED} of them above" if len(rows) > NAMED else ""
        print(f"{len(rows)} {what} {become}{more}", file=sys.stderr)
    return int(bool(rows))
