"""Charts as inline SVG, for pages that load nothing: lines, matrices, shares, timelines. All text is escaped here."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

PALETTE = (
    "#2563a8",
    "#d9822b",
    "#3a8f4d",
    "#b3446c",
    "#7a5fb0",
    "#4c9fb3",
    "#8a6d3b",
    "#667085",
    "#9bbf3b",
    "#d65f5f",
    "#2f6f6f",
    "#c79bd6",
)


def escape(text: object) -> str:
    return html.escape(str(text))


def class_colour(number: int) -> str:
    """A colour that neighbouring class numbers do not share."""
    return f"hsl({number * 137.508 % 360:.0f} 55% {52 + 12 * (number % 3)}%)"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high]."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= count)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    title: str,
    width: int = 520,
    height: int = 260,
    percent: bool = False,
    reverse_x: bool = False,
    marks: bool = False,
) -> str:
    """Lines of (x, y). percent: y are fractions. reverse_x: larger x to the left. marks: a dot with a tip per point."""
    points = [p for line in series.values() for p in line if math.isfinite(p[1])]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    x1 = x1 if x1 > x0 else x0 + 1
    margin = 0.05 * (y1 - y0) or 0.05 * abs(y1) or 0.05
    y0, y1 = max(y0 - margin, 0.0 if y0 >= 0 else -math.inf), y1 + margin
    if percent:
        y1 = min(y1, 1.0) if y1 - margin <= 1 else y1
    left, top, right, bottom = 52, 26, width - 20, height - 36

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - x0) / (x1 - x0)
        share = 1 - share if reverse_x else share
        return left + share * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    out.append(f'<text x="{left}" y="15" class="t">{escape(title)}</text>')
    for y in ticks(y0, y1):
        _, py = place(x0, y)
        label = f"{100 * y:g} %" if percent else f"{y:g}"
        out.append(f'<line x1="{left}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}" class="g"/>')
        out.append(f'<text x="{left - 6}" y="{py + 4:.1f}" class="a e">{label}</text>')
    for x in ticks(x0, x1, 6):
        px, _ = place(x, y0)
        out.append(f'<text x="{px:.1f}" y="{bottom + 15}" class="a m">{x:g}</text>')
    out.append(f'<text x="{(left + right) / 2}" y="{height - 6}" class="a m">{escape(x_label)}</text>')
    for n, (name, line) in enumerate(series.items()):
        colour = PALETTE[n % len(PALETTE)]
        shown = [(x, y) for x, y in line if math.isfinite(y)]
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in shown)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        for x, y in shown if marks or len(shown) < 3 else ():
            px, py = place(x, y)
            value = f"{100 * y:.2f} %" if percent else f"{y:.4g}"
            tip = f"<title>{escape(name)}, {escape(x_label)} {x:g}: {value}</title>"
            out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}">{tip}</circle>')
    out.append("</svg>")
    return f'<figure class="chart">{"".join(out)}{legend(list(series))}</figure>'


def legend(names: Sequence[str], colours: Sequence[str] = PALETTE) -> str:
    """Names with their colours."""
    items = "".join(
        f'<span><i style="background:{colours[n % len(colours)]}"></i>{escape(name)}</span>'
        for n, name in enumerate(names)
    )
    return f'<figcaption class="legend">{items}</figcaption>'


def matrix(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    tips: Sequence[Sequence[str]] | None = None,
    row_label: str = "",
    column_label: str = "",
) -> str:
    """A heat map of values (R, C) in 0..1; NaN stays empty."""
    cell = 22 if max(values.shape) <= 20 else 15 if max(values.shape) <= 40 else 9
    room = min(190, 8 + round(6.4 * max(map(len, [*rows, *columns]), default=1)))
    left, top = room + (16 if row_label else 0), room + 20
    width, height = left + cell * values.shape[1] + 12, top + cell * values.shape[0] + 8
    out = [f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" aria-label="{escape(title)}">']
    if column_label:
        out.append(f'<text x="{left}" y="12" class="a">{escape(column_label)} &#8594;</text>')
    if row_label:
        middle = top + cell * values.shape[0] / 2
        out.append(
            f'<text x="11" y="{middle}" class="a m" transform="rotate(-90 11 {middle})">{escape(row_label)}</text>'
        )
    for c, name in enumerate(columns):
        x = left + c * cell + cell / 2 + 3
        out.append(f'<text x="{x}" y="{top - 5}" class="s" transform="rotate(-90 {x} {top - 5})">{escape(name)}</text>')
    for r, name in enumerate(rows):
        y = top + r * cell
        out.append(f'<text x="{left - 5}" y="{y + cell / 2 + 3.5}" class="s e">{escape(name)}</text>')
        for c in range(values.shape[1]):
            value = float(values[r, c])
            if not math.isfinite(value):
                continue
            tip = tips[r][c] if tips is not None else f"{name}, {columns[c]}: {100 * value:.1f} %"
            shade = f"color-mix(in srgb, #17508f {100 * min(1.0, value):.0f}%, var(--cell))"
            out.append(
                f'<rect x="{left + c * cell}" y="{y}" width="{cell - 1}" height="{cell - 1}" style="fill:{shade}">'
                f"<title>{escape(tip)}</title></rect>"
            )
            if cell >= 20 and value >= 0.005:
                ink = "#fff" if value > 0.45 else "var(--ink)"
                out.append(
                    f'<text x="{left + c * cell + cell / 2 - 0.5}" y="{y + cell / 2 + 3}" class="n" '
                    f'style="fill:{ink}">{100 * value:.0f}</text>'
                )
    out.append("</svg>")
    return f'<figure class="matrix"><h3>{escape(title)}</h3>{"".join(out)}</figure>'


def share_bars(
    rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], *, title: str, width: int = 560
) -> str:
    """One bar a row, cut into parts as large as its shares; what is missing to 1 stays empty."""
    left, step = 130, 20
    height = 26 + step * len(rows)
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    out.append(f'<text x="4" y="15" class="t">{escape(title)}</text>')
    for n, (name, shares) in enumerate(rows):
        y, x = 24 + n * step, float(left)
        out.append(f'<text x="{left - 6}" y="{y + 12}" class="s e">{escape(name)}</text>')
        out.append(
            f'<rect x="{left}" y="{y}" width="{width - left - 8}" height="{step - 5}" style="fill:var(--cell)"/>'
        )
        total = max(1.0, float(np.nansum(shares)))
        for k, share in enumerate(shares):
            if not share > 0:
                continue
            length = share / total * (width - left - 8)
            tip = f"<title>{escape(name)}, {escape(names[k])}: {share:.3f}</title>"
            out.append(
                f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="{step - 5}" '
                f'fill="{PALETTE[k % len(PALETTE)]}">{tip}</rect>'
            )
            if length > 34:
                out.append(
                    f'<text x="{x + length / 2:.1f}" y="{y + 11}" class="n w">{100 * share / total:.0f} %</text>'
                )
            x += length
    out.append("</svg>")
    return f'<figure class="chart">{"".join(out)}{legend(names)}</figure>'


def timeline(
    bands: Sequence[tuple[str, Sequence[tuple[float, float, str, str]]]],
    *,
    title: str,
    marks: Sequence[tuple[float, str]] = (),
    width: int = 960,
) -> str:
    """Bands over seconds. bands: name and (start, stop, colour, tip) of each piece. marks: (seconds, tip)."""
    pieces = [piece for _, band in bands for piece in band]
    if not pieces:
        return ""
    low = min([piece[0] for piece in pieces] + [at for at, _ in marks])
    high = max(piece[1] for piece in pieces)
    left, step = 84, 24
    height = 44 + step * len(bands)

    def place(seconds: float) -> float:
        return left + (seconds - low) / max(high - low, 1e-9) * (width - left - 8)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    out.append(f'<text x="4" y="15" class="t">{escape(title)}</text>')
    for n, (name, band) in enumerate(bands):
        y = 24 + n * step
        out.append(f'<text x="{left - 6}" y="{y + 13}" class="s e">{escape(name)}</text>')
        out.append(
            f'<rect x="{left}" y="{y}" width="{width - left - 8}" height="{step - 5}" style="fill:var(--cell)"/>'
        )
        for start, stop, colour, tip in band:
            x, end = place(start), place(stop)
            out.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(1.0, end - x - 0.6):.1f}" height="{step - 5}" '
                f'fill="{colour}"><title>{escape(tip)}</title></rect>'
            )
    for at, tip in marks:
        x = place(at)
        line = f'x1="{x:.1f}" x2="{x:.1f}" y1="20" y2="{24 + step * len(bands)}"'
        out.append(f'<line {line} class="k"><title>{escape(tip)}</title></line>')
    for at in ticks(low, high, 8):
        out.append(f'<text x="{place(at):.1f}" y="{height - 6}" class="a m">{at:g} s</text>')
    out.append("</svg>")
    return f'<figure class="chart wide">{"".join(out)}</figure>'
