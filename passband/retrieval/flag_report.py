"""A list of functions by risk as one offline HTML page and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment

if TYPE_CHECKING:
    from passband.retrieval.flagger import Flagger

MOST_ROWS = 5_000  # of a page; the CSV has all
NOTE = (
    "A list of what to look at first, by the words in the names of functions alone. A flag is no "
    "finding, and a name without one is no clean bill."
)

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Functions by risk: {{ source }}</title>
<style>
 :root { color-scheme: light dark; --ink: #1c1d21; --paper: #fff; --soft: #6b7080;
         --line: #e3e5ea; --mark: #b3401f; --wash: #b3401f1f }
 @media (prefers-color-scheme: dark) { :root { --ink: #e8e9ed; --paper: #17181c;
         --soft: #9aa0b0; --line: #2e3038; --mark: #ff9a73; --wash: #ff9a7326 } }
 body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
        max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
 h1 { font-size: 1.4rem; margin: 0 }
 p { color: var(--soft); max-width: 44rem }
 input { font: inherit; color: inherit; background: none; padding: .35rem .6rem; width: 18rem;
         max-width: 100%; border: 1px solid var(--line); border-radius: .3rem }
 label { margin-left: 1rem; color: var(--soft); white-space: nowrap }
 .wide { overflow-x: auto }
 table { border-collapse: collapse; width: 100%; margin-top: 1rem }
 th { text-align: left; font-weight: 500; color: var(--soft); position: sticky; top: 0;
      background: var(--paper) }
 td, th { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
          vertical-align: baseline }
 td.name, td.place, td.words { font-family: ui-monospace, monospace; font-size: .88em }
 td.place { color: var(--soft); overflow-wrap: anywhere }
 .score { white-space: nowrap; font-variant-numeric: tabular-nums }
 .bar { display: inline-block; width: 5rem; height: .55rem; background: var(--line);
        margin-right: .6rem; border-radius: .3rem; overflow: hidden }
 .bar i { display: block; height: 100%; background: var(--soft) }
 tr.flag .bar i { background: var(--mark) }
 tr.flag td.name { color: var(--mark) }
 td.words span { background: var(--wash); border-radius: .25rem; padding: .05rem .35rem;
                 margin-right: .3rem; white-space: nowrap }
 td.name { overflow-wrap: anywhere }
 tr[hidden] { display: none }
 @media (max-width: 40rem) { .bar { display: none } td, th { padding-right: .5rem }
         label { display: block; margin: .5rem 0 0 } }
</style></head><body>
<h1>{{ flagged }} of {{ total }} functions to look at first</h1>
<p>{{ source }}, by {{ about.system }}: flagged above {{ "%.2f"|format(about.threshold) }}.
{{ note }}</p>
<input id="find" type="search" placeholder="Filter by name, word or file" aria-label="Filter">
<label><input id="only" type="checkbox" style="width:auto"> flagged only</label>
<div class="wide"><table><thead><tr><th>Score<th>Function<th>Because of<th>Where</tr></thead><tbody>
{% for row in rows -%}
<tr{% if row.flag %} class="flag"{% endif %}><td class="score"><span class="bar"><i
 style="width:{{ (100 * row.score)|round|int }}%"></i></span>{{ "%.2f"|format(row.score) -}}
<td class="name">{{ row.name }}<td class="words">{% for word, share in row.pairs -%}
<span title="adds {{ share }}">{{ word or "(no word)" }}</span>{% endfor -%}
<td class="place">{{ row.file }}{% if row.line %}:{{ row.line }}{% endif %}</tr>
{% endfor %}</tbody></table></div>
{% if total > rows|length %}<p>The first {{ rows|length }} of {{ total }}; flags.csv has all.</p>
{% endif %}
<script>
const find = document.getElementById("find"), only = document.getElementById("only");
const rows = [...document.querySelectorAll("tbody tr")];
const texts = rows.map(row => row.textContent.toLowerCase());
function show() {
  const word = find.value.trim().toLowerCase();
  rows.forEach((row, i) => { row.hidden = !texts[i].includes(word)
    || (only.checked && !row.classList.contains("flag")); });
}
find.oninput = only.onchange = show;
</script></body></html>
"""


def write_html(
    path: Path, rows: Sequence[Mapping[str, Any]], system: Flagger, source: str
) -> Path:
    """One page without outside references; names without a score are left to the CSV."""
    shown = [
        {**row, "pairs": list(zip(row["words"].split(" "), row["contributions"].split(" "),
                                  strict=True)) if row["contributions"] else []}
        for row in rows[:MOST_ROWS] if row["score"] == row["score"]
    ]
    text = Environment(autoescape=True).from_string(_PAGE).render(
        rows=shown, total=len(rows), flagged=sum(row["flag"] for row in rows),
        about=system.about(), source=source, note=NOTE,
    )
    return _written(path, text)


def write_json(
    path: Path, rows: Sequence[Mapping[str, Any]], system: Flagger, source: str
) -> Path:
    """Facts on the system, and the rows; a score that is missing is null."""
    plain = [{**row, "score": row["score"] if row["score"] == row["score"] else None}
             for row in rows]
    facts = {**system.about(), "source": source, "note": NOTE, "functions": plain}
    return _written(path, json.dumps(facts, indent=1, ensure_ascii=False))


def _written(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path
