"""The sections of a run's report: numbers and pictures as html."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np

from ..pipeline.annotations import Segment
from ..pipeline.boxes import boxes_at
from ..pipeline.datasets.contract import Dataset
from ..pipeline.protocols import Anticipation, Observation
from ..pipeline.video import VideoError, open_video
from .build import make_task
from .charts import class_colour, escape, line_chart, matrix, share_bars, timeline
from .evaluate import told_ahead
from .log import METRICS, read_metrics
from .many_labels import class_table, mixed_up, said_of, several_tasks
from .metrics import mean_average_precision, ranking, softmax
from .overlay import VideoWriter, draw_boxes
from .recipe import dump_recipe
from .report_page import page, table
from .results import TIME_TO_ACTION, by_row
from .runs import recipe_file
from .scores import ScoreTable

if TYPE_CHECKING:
    from .report import Told

CURVE_POINTS, MOST_CLASSES, SHARE_CLASSES, VIDEOS = 300, 30, 24, 4
CLIP_SIDE, CLIP_FPS, CLIP_SECONDS = 144, 10.0, 6.0


def build_page(told: Told) -> str:
    """The whole page."""
    recipe, member = told.run.recipe, told.member
    parts = [
        ("results", "Results", _results(told)),
        ("curves", "Training", _curves(told)),
        ("classes", "Classes", _per_class(told)),
        ("confusion", "Confusion", _confusion(told)),
        ("shares", "What it looks at", _shares(told)),
        ("clips", "Best and worst", _clips(told)),
        ("timeline", "Time lines", _timelines(told)),
        ("recipe", "Recipe", f"<pre>{escape(dump_recipe(recipe))}</pre>"),
    ]
    streams = ", ".join(
        f"{name} ({each.backbone if recipe.inputs == 'pixels' else 'stored features'})"
        for name, each in recipe.streams.items()
    )
    seen = next(iter(member.observations.values()))
    subtitle = escape(
        f"{recipe.task.kind.replace('_', ' ')} by {recipe.head.name} of {streams}; {member.split} of {member.dataset}, "
        f"{len(seen.table)} segments"
    )
    return page(recipe.name or str(told.run.path), subtitle, parts)


# --- numbers


def _results(told: Told) -> str:
    results = told.member.results()
    if not results:
        return "<p>This split has no public labels: there is nothing to compare with.</p>"
    ahead = told_ahead(results)
    results = [row for row in results if row.metric != TIME_TO_ACTION]
    metrics, rows, counts = by_row(results)
    head = ["in %", *(m.replace("_", " ") for m in metrics), "segments"]
    cells = [[name, *(of.get(m, float("nan")) for m in metrics), str(counts[name])] for name, of in rows.items()]
    first, more = [row for row in cells if "@" not in str(row[0])], [row for row in cells if "@" in str(row[0])]
    out = [table(head, first, scroll=True)]
    if more:
        out.append(f"<details><summary>other observations</summary>{table(head, more, scroll=True)}</details>")
    if len(told.member.observations) > 1:
        charts = []
        for task in told.member.classes:
            lines: dict[str, list[tuple[float, float]]] = {}
            for row in results:
                what = told.member.observations[row.at].what
                at = what.get("tau_a", what.get("fraction"))
                if row.task == task and row.subset == "all" and row.scores == "direct" and at is not None:
                    lines.setdefault(row.metric.replace("_", " "), []).append((float(at), row.value))
            anticipates = told.run.recipe.task.kind == "anticipation"
            charts.append(
                line_chart(
                    {name: sorted(line) for name, line in lines.items()},
                    x_label="tau_a, seconds before the action" if anticipates else "fraction seen",
                    title=task,
                    percent=True,
                    reverse_x=anticipates,
                    marks=True,
                )
            )
        out.append(f'<div class="row">{"".join(charts)}</div>')
    if ahead:
        out.append(f"<p class='dim'>{escape(ahead)}</p>")
    alone = _alone(told)
    if alone:
        out.append("<h3>Each stream by itself</h3><p class='dim'>What the head's own classifiers of single streams (or "
                   "groups of them) say.</p>" + alone)  # fmt: skip
    broken = told.member.broken
    if broken:
        names = "; ".join(f"{row['id']}: {row['reason']}" for row in broken[:20])
        out.append(f"<p class='bad'>{len(broken)} segments could not be read: {escape(names)}</p>")
    return "".join(out)


def _alone(told: Told) -> str:
    found, tables = told.seen.alone, told.by_task
    if not found or not tables:
        return ""

    def value(task: str, scores: np.ndarray) -> float:
        labels = tables[task].labels[task]
        if labels.ndim == 2:
            return mean_average_precision(scores, labels, unlabelled_last=True)
        return float((scores.argmax(-1) == labels).mean())

    def of_stream(task: str, of: Mapping[str, Mapping[str, np.ndarray]]) -> float:
        return value(task, np.stack([of[task][i] for i in tables[task].ids])) if task in of else float("nan")

    rows = [[stream, *(of_stream(task, of) for task in tables)] for stream, of in found.items()]
    rows.append(["fused", *(value(task, whole.scores[task]) for task, whole in tables.items())])
    heads = (f"{t}, {'mAP' if whole.labels[t].ndim == 2 else 'top 1'}" for t, whole in tables.items())
    return table(["in %", *heads], rows)


def _curves(told: Told) -> str:
    folder = recipe_file(told.run.folder).parent
    if not (folder / METRICS).is_file():
        return f"<p>The run has no {METRICS}: its curves are not known.</p>"
    rows = read_metrics(folder)
    steps = [row for row in rows if row["kind"] == "step"]
    per_epoch = max(1, len(steps)) / max(1, 1 + max((row["epoch"] for row in steps), default=0))
    names = [k for k in (steps[0] if steps else {}) if k not in ("kind", "epoch", "step", "lr")]
    charts = []
    losses = {
        name: _thinned([(row["step"] / per_epoch, row[name]) for row in steps if row.get(name) is not None])
        for name in names
    }
    tasks = [name for name in names if name in told.member.classes]
    others = [name for name in names if name not in ("loss", *tasks)]
    for title, drawn in (("loss", ["loss"]), ("loss of each task", tasks), ("further losses", others)):
        lines = {name: losses[name] for name in drawn if name in losses}
        charts.append(line_chart(lines, x_label="epoch", title=f"{title} (means of neighbouring steps)"))
    charts.append(
        line_chart(
            {"learning rate": _thinned([(r["step"] / per_epoch, r["lr"]) for r in steps])},
            x_label="epoch",
            title="learning rate",
        )  # fmt: skip
    )
    tests = [row for row in rows if row["kind"] == "test"]
    for task in told.member.classes:
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in tests:
            for name, value in row.items():
                first, _, rest = name.partition("/")
                if first == task and "/" not in rest and "@" not in rest and value is not None:
                    lines.setdefault(rest.replace("_", " "), []).append((row["epoch"] + 1, value))
        charts.append(line_chart(lines, x_label="epoch", title=f"{task}, tests", percent=True, marks=True))
    return f'<div class="row">{"".join(charts)}</div>'


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, at most CURVE_POINTS of them."""
    parts = np.array_split(np.array(points, np.float64).reshape(-1, 2), min(len(points), CURVE_POINTS) or 1)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts if len(part)]


def _single(told: Told) -> list[tuple[str, ScoreTable]]:
    """Tasks with one label a segment, each with the segments that have one."""
    return [(task, whole) for task, whole in told.by_task.items() if whole.labels[task].ndim == 1]


def _name(told: Told, task: str, number: int) -> str:
    names = told.member.classes.get(task, ())
    return names[number] if number < len(names) else str(number)


def _per_class(told: Told) -> str:
    out = [
        class_table(told.table, task, partial(_name, told, task)) for task in several_tasks(told.table) if told.table
    ]
    for task, whole in _single(told):
        labels, best = whole.labels[task], ranking(whole.scores[task], 5)
        rows = []
        for number in np.unique(labels).tolist():
            own = labels == number
            taken = best[own, 0]
            wrong = np.bincount(taken[taken != number]) if (taken != number).any() else None
            confused = "" if wrong is None else f"{_name(told, task, int(wrong.argmax()))} ({int(wrong.max())})"
            named = best[:, 0] == number
            precision = float((labels[named] == number).mean()) if named.any() else float("nan")
            recall, top5 = float((taken == number).mean()), float((best[own] == number).any(1).mean())
            rows.append([_name(told, task, number), str(int(own.sum())), recall, top5, precision, confused])
        rows.sort(key=lambda row: -int(row[1]))
        head = [task, "segments", "recall, %", "in top 5, %", "precision, %", "most often taken for"]
        out.append(f"<div><h3>{escape(task)}</h3>{table(head, rows, sortable=True, scroll=True)}</div>")
    if not out:
        return "<p>No labels are known of this split.</p>"
    return f'<div class="row">{"".join(out)}</div>'


def _confusion(told: Told) -> str:
    out = [
        mixed_up(told.table, task, partial(_name, told, task), MOST_CLASSES)
        for task in several_tasks(told.table)
        if told.table
    ]
    for task, whole in _single(told):
        labels, best = whole.labels[task], whole.scores[task].argmax(-1)
        counts = np.bincount(np.concatenate([labels, best]), minlength=1)
        frequency = np.bincount(labels, minlength=len(counts))
        shown = np.argsort(-frequency, kind="stable")[:MOST_CLASSES]
        shown = np.sort(shown[counts[shown] > 0])
        place = {int(number): n for n, number in enumerate(shown)}
        cells = np.zeros((len(shown), len(shown)))
        for truth, taken in zip(labels.tolist(), best.tolist(), strict=True):
            if truth in place and taken in place:
                cells[place[truth], place[taken]] += 1
        total = np.array([max(1, int(frequency[number])) for number in shown])[:, None]
        names = [_name(told, task, int(number)) for number in shown]
        tips = [
            [f"{a} taken for {b}: {int(cells[r, c])} of {int(frequency[shown[r]])}" for c, b in enumerate(names)]
            for r, a in enumerate(names)
        ]
        more = f" (the {len(shown)} most frequent)" if (frequency > 0).sum() > len(shown) else ""
        title = f"{task}{more}, % of the row"
        out.append(
            matrix(cells / total, names, names, title=title, tips=tips, row_label="truth", column_label="predicted")
        )
    if not any(out):
        return "<p>Nothing was taken for anything else.</p>"
    return f'<div class="row">{"".join(out)}</div>'


# --- what the head shows


def _shares(told: Told) -> str:
    streams = list(told.run.model.head.streams)
    whole = told.table
    out, maps = [], []
    for name, by_id in sorted(told.seen.extras.items(), key=lambda each: each[0].startswith("uncertainty")):
        values = next(iter(by_id.values()))
        kind, _, task = name.partition("/")
        if kind == "logits":
            continue
        axis = _stream_axis(kind, values, len(streams), task in told.member.classes)
        if axis is not None and whole is not None:
            of = task if task in whole.labels else told.task
            labels = whole.labels[of]
            held = labels.astype(bool) if labels.ndim == 2 else np.arange(labels.max() + 1) == labels[:, None]
            # the streams last; heads and steps are averaged
            shares = np.stack([np.moveaxis(by_id[i], axis, -1).reshape(-1, len(streams)).mean(0) for i in whole.ids])
            counts = held.sum(0)
            shown = np.argsort(-counts, kind="stable")[:SHARE_CLASSES]
            rows = [("all", np.nanmean(shares, 0).tolist())]
            rows += [(_name(told, of, int(c)), np.nanmean(shares[held[:, c]], 0).tolist()) for c in shown if counts[c]]
            title = f"{name.replace('_', ' ')}, by {of}"
            out.append(
                share_bars(rows, streams, title=f"{title}, parts of the sum" if kind == "uncertainty" else title)
            )
        elif values.ndim == 2 and kind == "attention" and max(values.shape) <= 64:
            steps = {each.shape for each in by_id.values()}
            if len(steps) == 1:
                mean = np.mean(list(by_id.values()), 0)
                rows, columns = ([str(n) for n in range(size)] for size in mean.shape)
                asking, _, looked_at = task.partition("/")
                maps.append(
                    matrix(
                        mean / max(mean.max(), 1e-9),
                        rows,
                        columns,
                        title=f"{task}, share of the largest",
                        row_label=asking,
                        column_label=looked_at,
                    )  # fmt: skip
                )
    if out:
        out = [f'<div class="row">{"".join(out)}</div>']
    if maps:
        out.append("<h3>Attention between steps, mean over segments</h3>")
        out.append(f'<div class="row">{"".join(maps)}</div>')
    return "".join(out) or f"<p>The head {escape(told.run.recipe.head.name)} shows no shares of its streams.</p>"


def _stream_axis(kind: str, values: np.ndarray, streams: int, of_a_task: bool) -> int | None:
    """Which axis of one segment's array are the streams; None where none is. Attention named after a task is that to
    the streams, attention named after streams is that from steps to steps.
    """
    if kind in ("modality_weights", "uncertainty") or (kind == "attention" and of_a_task):
        return values.ndim - 1 if values.ndim and values.shape[-1] == streams else None
    return 0 if kind == "integration_score" and values.ndim and values.shape[0] == streams else None


# --- segments


def _confidence(whole: ScoreTable, task: str) -> np.ndarray:
    """How much of the truth is told, float (N,): its probability; with many labels, how far they stand out."""
    scores, labels = whole.scores[task].astype(np.float64), whole.labels[task]
    if labels.ndim == 1:
        return np.take_along_axis(softmax(scores), labels[:, None], 1)[:, 0]
    shares = 1 / (1 + np.exp(-scores))
    held = labels.astype(bool)
    own = np.where(held, shares, 0).sum(1) / held.sum(1).clip(min=1)
    return own - np.where(held, 0, shares).max(1)


def _clips(told: Told) -> str:
    whole, task = told.table, told.task
    if whole is None or task not in whole.scores:
        return "<p>No labels are known of this split.</p>"
    confidence, what = _confidence(whole, task), f"the score of the true {task}"
    if whole.labels[task].ndim == 2:
        what = f"the mean score of the true classes of {task}, less the best of the others"
    elif task in ("verb", "noun") and {"verb", "noun"} <= {each for each, _ in _single(told)}:
        confidence, what = _confidence(whole, "verb") * _confidence(whole, "noun"), "the scores of verb times noun"
    order = np.argsort(-confidence, kind="stable")
    if whole.labels[task].ndim == 2:
        order = order[whole.labels[task][order].any(1)]
    show = min(told.show, len(order) // 2)
    segments = {segment.id: segment for segment in told.split.segments}
    out = []
    for heading, rows in (("Best", order[:show]), ("Worst", order[::-1][:show])):
        cards = [_card(told, segments[whole.ids[row]], whole, int(row), float(confidence[row])) for row in rows]
        out.append(f'<h3>{heading}, by {escape(what)}</h3><div class="cards">{"".join(cards)}</div>')
    if told.run.recipe.task.kind == "anticipation":
        out.append("<p class='dim'>The bar above the picture: blue while the model sees, grey in the time between, "
                   "orange once the action runs, which it has not seen.</p>")  # fmt: skip
    return "".join(out)


def _card(told: Told, segment: Segment, whole: ScoreTable, row: int, confidence: float) -> str:
    words = []
    for task, scores in whole.scores.items():
        if task not in whole.labels:
            continue
        labels = whole.labels[task][row]
        if labels.ndim:
            names = said_of(scores[row], labels, partial(_name, told, task))
            marks = zip(("good", "dim", "bad"), ("", "missed ", "wrong "), names, strict=True)
            parts = [f'{said}<b class="{mark}">{escape(", ".join(each))}</b>' for mark, said, each in marks if each]
            words.append(f"{escape(task)}: {'; '.join(parts) or 'none'}")
            continue
        truth, best = int(labels), int(scores[row].argmax())
        told_as = "" if best == truth else f' &#8594; <b class="bad">{escape(_name(told, task, best))}</b>'
        mark = "good" if best == truth else "bad"
        words.append(f'{escape(task)}: <b class="{mark}">{escape(_name(told, task, truth))}</b>{told_as}')
    span = f"{segment.video} [{segment.start_seconds:.2f}, {segment.stop_seconds:.2f}) s"
    words.append(f'<span class="dim">score {confidence:.2f} &#183; {escape(segment.id)}<br>{escape(span)}</span>')
    try:
        clip = clip_of(told.split, segment, make_task(told.run.recipe.task).observe(*_ends(segment)))
        source = base64.b64encode(clip).decode()
        poster = base64.b64encode(_poster(clip)).decode()
        shown = (
            f'<video muted loop playsinline controls poster="data:image/jpeg;base64,{poster}" '
            f'src="data:video/mp4;base64,{source}"></video>'
        )
    except (VideoError, OSError, ValueError) as error:
        shown = f'<div class="none">no video to show: {escape(_short(error))}</div>'
    return f'<div class="card">{shown}<div class="words">{"<br>".join(words)}</div></div>'


def _poster(clip: bytes) -> bytes:
    """A jpeg of the frame in the middle, for paper and for before a video plays."""
    with av.open(io.BytesIO(clip), "r") as video:
        frames = list(video.decode(video=0))
    picture = frames[len(frames) // 2].to_ndarray(format="bgr24")
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes()


def _ends(segment: Segment) -> tuple[float, float]:
    return segment.start_seconds, min(segment.stop_seconds, segment.start_seconds + 3600)


def _short(error: Exception) -> str:
    return str(error)[:160]


def clip_of(split: Dataset, segment: Segment, seen: Observation, seconds: float = CLIP_SECONDS) -> bytes:
    """A small mp4 of a segment with its boxes: what is seen of it, and with anticipation what then comes.

    Raises: VideoError, OSError and ValueError where there is no video, or none of these seconds in it.
    """
    path = split.path(segment, "rgb")
    content = io.BytesIO()
    with open_video(path, frame_fps=split.frame_fps(segment) or 30.0) as reader:
        info = reader.info
        start, stop = seen.start_seconds, min(segment.stop_seconds, info.stop_seconds)
        if seen.stop_seconds < segment.start_seconds:
            # the end of what was seen counts most, then some of the action
            stop = min(stop, segment.start_seconds + seconds / 3)
            start = max(start, stop - seconds)
        start = max(start, info.start_seconds)
        stop = min(stop, start + seconds)
        if not stop > start:
            raise ValueError(f"{path} shows nothing of [{start:.2f}, {stop:.2f}) s")
        tracks = (split.boxes or {}).get(segment.video)
        side = min(CLIP_SIDE, info.width, info.height)
        with VideoWriter(content, CLIP_FPS, crf=28) as writer:
            for batch in reader.stream(CLIP_FPS, start, stop, short_side=side):
                for picture, pts in zip(batch.data, batch.pts_seconds.tolist(), strict=True):
                    at = start + writer.count / CLIP_FPS
                    picture = np.ascontiguousarray(picture).copy()
                    if tracks is not None and len(tracks.seconds):
                        draw_boxes(picture, boxes_at(tracks, np.array([pts])))
                    if seen.stop_seconds < segment.start_seconds:
                        phase = (40, 110, 190) if at < seen.stop_seconds else (130, 130, 130)
                        picture[:5] = (230, 140, 40) if at >= segment.start_seconds else phase
                    writer.add(picture, at)
    return content.getvalue()


def _timelines(told: Told) -> str:
    whole, task = told.table, told.task
    single = [each for each, _ in _single(told)]
    if whole is None or task not in single:
        return "<p>No task has one label a segment.</p>"
    tasks = ["verb", "noun"] if task in ("verb", "noun") and {"verb", "noun"} <= set(single) else [task]
    rows = {name: row for row, name in enumerate(whole.ids)}
    videos: dict[str, list[Segment]] = {}
    for segment in told.split.segments:
        if segment.id in rows and np.isfinite(segment.stop_seconds):
            videos.setdefault(segment.video, []).append(segment)
    longest = sorted(videos, key=lambda video: -len(videos[video]))[:VIDEOS]
    observe = make_task(told.run.recipe.task).observe
    ahead = isinstance(make_task(told.run.recipe.task), Anticipation)
    out = []
    for video in longest:
        segments = sorted(videos[video], key=lambda segment: segment.start_seconds)[:40]
        out.append(_timeline(told, video, segments, whole, rows, tasks, observe, ahead))
    words = (
        f"The {escape(' and the '.join(tasks))} of each segment and what was predicted of it; the same colour is the "
        "same class."
    )
    if ahead:
        words += (
            " Observed is what the model has seen before it says what comes; the dashed lines are where that ends, "
            f"{told.run.recipe.task.tau_a:g} s before the action."
        )
    return f"<p class='dim'>{words}</p>{''.join(out)}"


def _timeline(
    told: Told,
    video: str,
    segments: Sequence[Segment],
    whole: ScoreTable,
    rows: Mapping[str, int],
    tasks: Sequence[str],
    observe,
    ahead: bool,
) -> str:
    observed, marks = [], []
    came: dict[str, list] = {task: [] for task in tasks}
    predicted: dict[str, list] = {task: [] for task in tasks}
    for segment in segments:
        row, span = rows[segment.id], (segment.start_seconds, segment.stop_seconds)
        names = []
        for task in tasks:
            label, best = int(whole.labels[task][row]), int(whole.scores[task][row].argmax())
            name, said = _name(told, task, label), _name(told, task, best)
            names.append(name)
            came[task].append((*span, class_colour(label), f"{name}, {span[0]:.2f} to {span[1]:.2f} s"))
            right = "right" if best == label else f"wrong, it is {name}"
            predicted[task].append((*span, class_colour(best), f"{said}: {right}"))
        seen = observe(*span)
        start = max(0.0, seen.start_seconds)
        if seen.stop_seconds > start:
            tip = f"seen before {' '.join(names)}: {start:.2f} to {seen.stop_seconds:.2f} s"
            observed.append((start, seen.stop_seconds, "#2563a855", tip))
            marks.append((seen.stop_seconds, f"{segment.id}: nothing at or after {seen.stop_seconds:.2f} s is seen"))
    bands = [("observed", observed)] if ahead else []
    for task in tasks:
        own = f"{task} " if len(tasks) > 1 else ""
        bands += [(f"{own}came", came[task]), (f"{own}predicted", predicted[task])]
    return timeline(bands, title=video, marks=marks if ahead else ())
