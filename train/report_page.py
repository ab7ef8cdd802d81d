"""The page of `actionfuse report`: html with its own style and script, which loads nothing."""

from __future__ import annotations

from collections.abc import Sequence

from .charts import escape

_STYLE = """
:root{--ink:#1d2733;--dim:#5d6b7a;--line:#dfe4ea;--page:#fff;--cell:#eef1f5;--card:#f8f9fb;--accent:#17508f}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ef;--dim:#97a4b2;--line:#323c48;--page:#161b21;--cell:#252d37;
--card:#1d242c;--accent:#7db2ec}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:0 24px 60px}h1{font-size:26px;margin:28px 0 4px}
h2{font-size:19px;margin:40px 0 10px;padding-top:12px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:18px 0 6px}
p{margin:6px 0;max-width:78ch}.dim{color:var(--dim)}nav{position:sticky;top:0;background:var(--page);z-index:2;
border-bottom:1px solid var(--line);padding:8px 24px;display:flex;gap:18px;flex-wrap:wrap;font-size:14px}
nav a{color:var(--accent);text-decoration:none}
.row{display:flex;flex-wrap:wrap;gap:18px;align-items:flex-start}
figure{margin:0}.chart{flex:1 1 460px;max-width:560px}.chart.wide{flex:1 1 100%;max-width:100%;margin-bottom:12px}
.matrix{flex:1 1 420px;overflow-x:auto}svg{display:block;width:100%;height:auto;font-family:inherit}
svg text{fill:var(--ink)}
.t{font-size:13px;font-weight:600}.a{font-size:11px;fill:var(--dim)!important}.s{font-size:11px}
.n{font-size:9.5px;
text-anchor:middle}.w{fill:#fff!important}.e{text-anchor:end}.m{text-anchor:middle}.g{stroke:var(--line)}
.k{stroke:var(--ink);stroke-width:1.4;stroke-dasharray:3 2}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:12px;
padding-left:52px}.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:5px}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}th,td{padding:3px 10px;text-align:right;
border-bottom:1px solid var(--line);white-space:nowrap}th:first-child,td:first-child{text-align:left}
thead th{position:sticky;top:0;background:var(--card);font-weight:600}table.sort th{cursor:pointer}
table.sort th::after{content:" \\2195";color:var(--dim);font-weight:400}.scroll{max-height:440px;overflow:auto;
border:1px solid var(--line);border-radius:6px;display:inline-block;max-width:100%}
.bar{display:inline-block;height:9px;background:var(--accent);opacity:.75;border-radius:2px;vertical-align:middle}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:14px}.card{background:var(--card);
border:1px solid var(--line);border-radius:8px;overflow:hidden;font-size:13px}.card video{display:block;width:100%;
background:#000}.card .none{padding:26px 12px;text-align:center;color:var(--dim);background:var(--cell)}
.card div.words{padding:8px 12px 10px}.good{color:#24803d}.bad{color:#c03434}
@media(prefers-color-scheme:dark){.good{color:#6fce86}.bad{color:#f08080}}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:12px;overflow:auto;font-size:12.5px}
summary{cursor:pointer;color:var(--accent)}
"""
_SCRIPT = """
for(const table of document.querySelectorAll("table.sort"))table.tHead.addEventListener("click",event=>{
const head=event.target.closest("th");if(!head)return;
const n=head.cellIndex,up=head.dataset.up=head.dataset.up==="1"?"0":"1";
const key=row=>row.cells[n].dataset.v??row.cells[n].textContent;
const rows=[...table.tBodies[0].rows];
rows.sort((a,b)=>{const x=key(a),y=key(b),d=isNaN(x)||isNaN(y)||x===""||y===""?x.localeCompare(y):x-y;
return up==="1"?-d:d});table.tBodies[0].append(...rows)});
const watch=new IntersectionObserver(seen=>{for(const each of seen)each.isIntersecting?each.target.play():
each.target.pause()});for(const video of document.querySelectorAll("video"))watch.observe(video);
"""


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A whole page. sections: (id, heading, html)."""
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<nav>{links}</nav><main><h1>{escape(title)}</h1><p class='dim'>{subtitle}</p>",
    ]
    for name, heading, content in sections:
        parts.append(f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>')
    parts.append(f"</main><script>{_SCRIPT}</script></body></html>\n")
    return "\n".join(parts)


def table(
    head: Sequence[str], rows: Sequence[Sequence[object]], *, sortable: bool = False, scroll: bool = False
) -> str:
    """Cells are text, or numbers from 0 to 1, which are shown in per cent with a bar where they are floats."""
    out = [f"<table{' class=sort' if sortable else ''}><thead><tr>"]
    out += [f"<th>{escape(name)}</th>" for name in head]
    out.append("</tr></thead><tbody>")
    for row in rows:
        out.append("<tr>" + "".join(map(_cell, row)) + "</tr>")
    out.append("</tbody></table>")
    whole = "".join(out)
    return f'<div class="scroll">{whole}</div>' if scroll else whole


def _cell(value: object) -> str:
    if isinstance(value, float):
        if value != value:
            return '<td data-v="">&#8211;</td>'
        bar = f'<span class="bar" style="width:{max(0.0, min(1.0, value)) * 46:.0f}px"></span>'
        return f'<td data-v="{value:.6f}">{bar} {100 * value:.1f}</td>'
    return f"<td>{escape(value)}</td>"
