"""What `actionfuse demo-training` shows: the table as text, as a picture, and on a page with all the rest."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actionfuse._files import replacing, write_atomically

from ..pipeline.synth.ceilings import ceiling, read_ceilings
from .charts import escape
from .demo import COMPARED, Compared

TASKS = ("verb", "noun", "action")


@dataclass(frozen=True)
class Row:
    """One row. top1, best: task -> what was reached and what is possible with these streams, fractions."""

    name: str
    title: str
    top1: dict[str, float]
    best: dict[str, float]
    segments: int

    @property
    def share(self) -> float:
        """Of the ceiling of actions."""
        return self.top1["action"] / self.best["action"]


def compare(out: Path) -> list[Row]:
    """All results beside the best that is possible, from OUT/results and the kitchen's ceilings."""
    known = read_ceilings(out / "kitchen")
    rows = []
    for name, row in COMPARED.items():
        told = json.loads((out / "results" / f"{name}.json").read_text(encoding="utf-8"))
        top1 = {task: told["results"][f"{task}/top1_accuracy"] for task in TASKS}
        best = {task: ceiling(known, row.streams, task=task) for task in TASKS}
        rows.append(Row(name, row.title, top1, best, told["about"]["segments"]))
    return rows


def as_text(rows: Sequence[Row]) -> str:
    """The table for a terminal, in per cent; in brackets what is possible with the same streams."""
    wide = max(len(row.title) for row in rows)
    lines = [f"{'top-1, % (best possible)':{wide}}" + "".join(f"{task:>14}" for task in TASKS) + "   share of best"]
    for row in rows:
        cells = "".join(f"{100 * row.top1[task]:.1f} ({100 * row.best[task]:.1f})".rjust(14) for task in TASKS)
        lines.append(f"{row.title:{wide}}{cells}{100 * row.share:14.0f} %")
    return "\n".join(lines)


def _colour(row: Compared) -> str:
    if len(row.streams) == 1:
        return "#9aa7b5"
    if row.begins_from:
        return "#d9822b"
    return "#7fa8d1" if row.title.startswith(("early", "late")) else "#2563a8"


def draw(rows: Sequence[Row], path: Path) -> None:
    """A png: a bar for each row and task, and a mark where the best possible lies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 0.42 * len(rows) + 1.5), sharey=True, layout="constrained")
    places = list(range(len(rows)))[::-1]
    colours = [_colour(COMPARED[row.name]) for row in rows]
    for task, axes in zip(TASKS, panels, strict=True):
        values = [100 * row.top1[task] for row in rows]
        axes.barh(places, values, color=colours, height=0.72)
        for place, row, value in zip(places, rows, values, strict=True):
            best = 100 * row.best[task]
            axes.plot([best, best], [place - 0.42, place + 0.42], color="#1d2733", linewidth=2)
            axes.text(value - 1, place, f"{value:.0f}", va="center", ha="right", color="white", fontsize=10)
        axes.set_title(task, fontsize=12, loc="left", fontweight="bold")
        axes.set_xlim(0, 100)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#dfe4ea", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].set_yticks(places, [row.title for row in rows], fontsize=10.5)
    figure.supxlabel(
        f"top-1, %, of {rows[0].segments} validation segments; marks: the best that is possible with the same streams",
        fontsize=10,
    )
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    pyplot.close(figure)
    write_atomically(path, picture.getvalue())


def write_page(out: Path, rows: Sequence[Row], steps: Sequence[tuple[Sequence[str], float]]) -> Path:
    """OUT/index.html: picture and table, the kitchen, the reports of single runs, the commands with their seconds."""
    from .report_page import page

    sections = [
        ("compared", "Compared", _compared(out, rows)),
        ("kitchen", "The kitchen", _kitchen()),
        ("runs", "Runs", _runs(out)),
        ("commands", "Commands", _commands(steps)),
    ]
    seconds = sum(spent for _, spent in steps)
    about = (
        "Heads on features of a frozen ImageNet network, and one of them trained on together with its networks; one "
        f"seed, {rows[0].segments} validation segments. This call took {seconds:.0f} s."
    )
    file_path = out / "index.html"
    with replacing(file_path) as file:
        file.write(page("Fusion on the synthetic kitchen", about, sections))
    return file_path


def _compared(out: Path, rows: Sequence[Row]) -> str:
    from .report_page import table

    head = ["", *(word for task in TASKS for word in (task, "best possible")), "action, share of best"]
    cells: list[list[Any]] = [
        [row.title, *(number for task in TASKS for number in (row.top1[task], row.best[task])), row.share]
        for row in rows
    ]
    spread = 100 * (0.25 / rows[0].segments) ** 0.5
    words = (
        "Top-1 accuracy in per cent. The best possible is known: the kitchen is drawn from a law with ambiguities of a "
        "set amount, and no predictor that sees the same streams can beat it on average. Every run was tested once, "
        f"after its last epoch. One segment in {rows[0].segments} counts {100 / rows[0].segments:.1f} points, and the "
        f"standard error of a score is up to {spread:.0f}: small differences between heads are no result."
    )
    picture = '<img src="table.png" alt="top-1 accuracy of every run" style="width:100%;background:#fff">'
    return f"{picture}<p>{words}</p>{table(head, cells, sortable=True, scroll=True)}"


def _kitchen() -> str:
    words = (
        "Twelve motions: the hand over an empty table, the object slides in, both rest, five moments of the act, both "
        "leave; then depth, twice, and infrared. Verbs are motions, nouns are looks; sounds tell of both."
    )
    return f'<p>{words}</p><img src="kitchen/contact_sheet.jpg" alt="frames of the kitchen" style="width:100%">'


def _runs(out: Path) -> str:
    items = [
        f'<li><a href="runs/{name}/report.html">{escape(row.title)}</a>: {escape(", ".join(row.streams))}; '
        f"<code>{escape(row.head)}</code></li>"
        for name, row in COMPARED.items()
        if (out / "runs" / name / "report.html").is_file()
    ]
    words = "Curves, classes and what they are taken for, the best and the worst segments as videos, time lines:"
    return f"<p>{words}</p><ul>{''.join(items)}</ul>"


def _commands(steps: Sequence[tuple[Sequence[str], float]]) -> str:
    typed = "\n".join(
        f"{'done before' if spent < 0.05 else f'{spent:9.1f} s'}  actionfuse {shlex.join(call)}"
        for call, spent in steps
    )
    return f"<pre>{escape(typed)}</pre>"
