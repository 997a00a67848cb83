"""The report as one offline HTML page: sentences first, then pictures, then tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from passband.bench.results import write_atomic
from passband.dynamics.rf_eigen.report import Report, Row
from passband.dynamics.rf_eigen.sentences import percent, span

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>More data, more features, less ridge: {{ source }}</title>
<style>
 :root { color-scheme: light dark; --ink: #1c1d21; --paper: #fff; --soft: #6b7080; --line: #e3e5ea }
 @media (prefers-color-scheme: dark) { :root { --ink: #e8e9ed; --paper: #17181c; --soft: #9aa0b0;
         --line: #2e3038 } }
 body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
        max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
 h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
 .soft, figcaption { color: var(--soft) }
 ul.said { padding-left: 1.1rem; max-width: 48rem } ul.said li { margin: .45rem 0 }
 .pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0 }
 figure { margin: 0; flex: 1 1 18rem; max-width: 24rem } svg { width: 100%; height: auto }
 .wide { overflow-x: auto }
 table { border-collapse: collapse } th { text-align: right; font-weight: 500; color: var(--soft) }
 td, th { padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right;
          font-variant-numeric: tabular-nums; white-space: nowrap }
 td:first-child, th:first-child { text-align: left }
</style></head><body>
<h1>{{ report.advice|capitalize }}: {{ source }}</h1>
<p class="soft">Errors are shares of the targets' variance: 100 % is what predicting the mean gives.
Predictions are from the kernel's eigenvalues; what was measured is beside them.</p>
<ul class="said">{% for one in said %}<li>{{ one }}</li>{% endfor %}</ul>
{% for note in report.notes %}<p class="soft">Note: {{ note }}.</p>{% endfor %}
<div class="pictures">{% for title, svg in pictures %}<figure>{{ svg }}
<figcaption>{{ title }}</figcaption></figure>{% endfor %}</div>
{% for title, table in tables %}<h2>{{ title }}</h2><div class="wide"><table><thead><tr>
{%- for cell in table[0] %}<th>{{ cell }}{% endfor %}</tr></thead><tbody>
{%- for row in table[1:] %}<tr>{% for cell in row %}<td>{{ cell }}{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% endfor %}
<p class="soft">Simon, Karkada, Ghosh, Belkin: More is Better in Modern Machine Learning, ICLR 2024.
Beyond the points that are there, predictions rest on powerlaws that go on as they begin.</p>
</body></html>
"""
NO_BREAK = "\u00a0"
TITLES = {
    "data": "Fewer and more points; the band is of fits nearly as good, the dotted line is now",
    "ridge": "Less and more ridge, with all points",
    "features": "More random features, with all points; the dotted line is infinitely many",
}


def write_page(path: Path, report: Report, pictures: Sequence[Path], source: str) -> Path:
    """One file without outside references."""
    text = Environment(autoescape=True).from_string(_PAGE).render(
        report=report, source=source,
        said=[one.replace(" %", NO_BREAK + "%") for one in report.sentences()],
        pictures=[(TITLES[p.stem], Markup(_inline(p, i))) for i, p in enumerate(pictures)],
        tables=_tables(report),
    )
    write_atomic(path, text.encode())
    return path


def _inline(picture: Path, number: int) -> str:
    """An SVG as part of a page: without its prologue, its ids apart from those of the others."""
    text = picture.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="([^"]+)"', rf'id="p{number}-\1"', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>p{number}-", text)


def _tables(report: Report) -> list[tuple[str, list[list[str]]]]:
    head = ["error", "fits nearly as good", "best ridge", "train / test", "without a ridge"]
    found = [("Points", [["points", *head], *([f"{r.n:,}", *_cells(r)] for r in report.data)])]
    if report.features:
        found.append(("Random features", [["features", *head], *(
            [f"{int(r.k):,}" if math.isfinite(r.k) else "infinitely many", *_cells(r)]
            for r in report.features
        )]))
    if report.checks:
        found.append(("Control: predicted and measured", [
            ["what", "points", "predicted", "measured", "apart"],
            *([c.what, f"{c.n:,}", percent(c.predicted), percent(c.measured),
               f"{100 * c.apart:+.1f} %"] for c in report.checks),
        ]))
    return found


def _cells(row: Row) -> list[str]:
    return [percent(row.test), span(row), f"{row.ridge:.3g}", f"{row.train / row.test:.2g}",
            percent(row.no_ridge)]
