"""One offline HTML file from a runs folder: claims, comparison, curves, pictures, sounds.

>>> write_report(Path("runs"))
PosixPath('runs/report.html')

The page asks nothing of any network: styles, script, pictures and sounds are inlined, and its
content security policy forbids the rest.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from passband.bench.prove import ClaimRow, reuse_note
from passband.bench.report import charts
from passband.bench.report.artifacts import Shelf, Shown, read_table
from passband.bench.report.rows import Runs, read_runs
from passband.bench.report.style import PALETTE
from passband.bench.report.tables import (
    SYMBOLS,
    Entry,
    TaskTable,
    claims_markdown,
    claims_table,
    comparison,
    duration,
    figure,
    interval_text,
    size,
    summary,
)
from passband.bench.results import Result, write_atomic
from passband.bench.task import COSTS
from passband.bench.verdict import VERDICTS

__all__ = ["claims_markdown", "claims_table", "comparison", "write_report"]

_HERE = Path(__file__).parent


def write_report(runs: Path, out: Path | None = None) -> Path:
    """Write the report of a runs folder to `out` (default: `runs/report.html`); returns the path.

    Missing or damaged files don't stop it: the page says what is missing.
    """
    runs = Path(runs)
    out = Path(out) if out is not None else runs / "report.html"
    write_atomic(out, render(read_runs(runs)).encode("utf-8"))
    return out


def render(runs: Runs) -> str:
    """The page as text."""
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters.update(
        figure=figure, duration=duration, size=size, moment=_moment, reuse_note=reuse_note
    )
    shelf = Shelf(runs.folder)
    tables = comparison(runs)
    provenance, mixed = _provenance(runs)
    tasks = [(table, _charts(table), _exhibits(table, shelf)) for table in tables]
    return environment.get_template("template.html.j2").render(
        summary=summary(runs),
        claims=claims_table(runs),
        counts=Counter(row.evidence.verdict for row in runs.claims),
        smoke=sum(row.scale == "smoke" for row in runs.claims),
        verdicts=VERDICTS, symbols=SYMBOLS,
        tasks=tasks,
        problems=runs.problems,
        provenance=provenance, mixed=mixed,
        glyph=_glyph, interval_text=interval_text, details=_details, swatch=charts.swatch,
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        palette=_palette(), script=Markup(script), digests=[digest, *sorted(shelf.scripts)],
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _palette() -> Markup:
    colours = "".join(f"--s{i}:light-dark({a},{b});" for i, (a, b) in enumerate(PALETTE))
    return Markup(f":root{{{colours}}}")


def _glyph(row: ClaimRow) -> Markup:
    e = row.evidence
    return charts.interval_glyph(
        e.effect, e.low, e.high, e.margin, e.better, interval_text(e)
    ) or Markup()


def _details(row: ClaimRow) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None:
    try:
        return read_table(row.evidence.details)
    except ValueError:
        return None


def _charts(table: TaskTable) -> list[tuple[str, Markup]]:
    """Captioned charts of one task: error against time, and the task's pairs of measures.

    A task that names no pairs gets quality against time and against memory.
    """
    if not table.metrics:
        return []
    metric = table.primary
    name = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
    drawn: list[tuple[str, Markup | None]] = [(
        "While it runs",
        charts.curves([_series(e, metric.name) for e in table.entries], name, log_y=metric.log),
    )]
    pairs = table.pareto or (("seconds", metric.name), ("peak_memory", metric.name))
    drawn += [(_against(table, pair), _pareto(table, *pair)) for pair in pairs]
    return [(title, chart) for title, chart in drawn if chart is not None]


# Costs as people read them: the axis's name, and the factor from the row's unit to its.
_AXES = {
    "peak_memory": ("peak memory, MB", 1e-6), "seconds": ("seconds to fit", 1.0),
    "file_bytes": ("size of the file, kB", 1e-3), "parameters": ("parameters", 1.0),
}


def _against(table: TaskTable, pair: tuple[str, str]) -> str:
    """
    >>> _against(table, ("peak_memory", "bits_per_byte"))
    'Bits per byte against peak memory'
    """
    x, y = (name.replace("_", " ") for name in pair)
    return f"{y[:1].upper()}{y[1:]} against {x}"


def _pareto(table: TaskTable, x: str, y: str) -> Markup | None:
    """One pair of measures; None where fewer than two entries have both."""
    measures, factors = [], []
    for name in (x, y):
        metric = next((m for m in table.metrics if m.name == name), None)
        if metric is None and name not in COSTS:
            return None
        shown, factor = (name, 1.0) if metric else _AXES[name]
        metric = metric or COSTS[name]
        unit = f" ({metric.unit})" if factor == 1.0 and metric.unit and shown == name else ""
        measures.append(charts.Measure(shown + unit, metric.better, metric.log))
        factors.append(factor)
    points = []
    for entry in table.entries:
        found = [entry.measured(name) for name in (x, y)]
        spans = [
            charts.Span(n.value * f, n.ends[0] * f, n.ends[1] * f)
            for n, f in zip(found, factors, strict=True) if n is not None
        ]
        if len(spans) == 2:
            points.append(charts.Point(entry.name, entry.style, *spans))
    return charts.pareto(points, *measures)


def _series(entry: Entry, metric: str) -> charts.Series:
    lines = []
    for row in entry.done:
        pairs = zip(row.curves.get("seconds", ()), row.curves.get(metric, ()), strict=False)
        lines.append([(float(x), float(y)) for x, y in pairs if _is_number(x) and _is_number(y)])
    return charts.Series(entry.name, entry.style, lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _exhibits(table: TaskTable, shelf: Shelf) -> list[tuple[Entry, int, list[list[Shown]]]]:
    """Artifacts of each entry's first good seed: (entry, seed, groups)."""
    out = []
    for entry in table.entries:
        rows = sorted((r for r in entry.done if r.artifacts), key=lambda r: r.seed)
        if rows:
            out.append((entry, rows[0].seed, list(shelf.show(rows[0]).values())))
    return out


def _provenance(runs: Runs) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """What the numbers came from, and the systems whose rows come from several states of code."""
    rows: list[Result | ClaimRow] = [*runs.results, *runs.claims]
    states: dict[str, list[str]] = {}
    for row in rows:
        state = f"{row.code_hash or 'unknown'}{' with uncommitted changes' if row.dirty else ''}"
        states.setdefault(row.system, []).append(state)
    dates = sorted(row.when for row in rows if row.when)
    facts = [
        ("Rows", [f"{len(runs.results)} results, {len(runs.claims)} claims"]),
        ("Measured", [f"{_moment(dates[0])} to {_moment(dates[-1])}"] if dates else []),
        ("Code", [f"{system}: {', '.join(_distinct(found))}"
                  for system, found in sorted(states.items())]),
        ("Versions", _distinct(
            f"{k} {v}" for row in rows for k, v in sorted(row.versions.items())
        )),
        ("Machine", _distinct(_machine(row.machine) for row in runs.results)),
    ]
    mixed = [system for system, found in sorted(states.items()) if len(set(found)) > 1]
    return [(name, values) for name, values in facts if values], mixed


def _machine(facts: Mapping[str, Any]) -> str:
    """
    >>> _machine({"cpu": "A1", "cores": 2, "memory": 8_000_000_000})
    'A1, cores 2, memory 8 GB'
    """
    texts = [
        str(v) if k in ("cpu", "gpu", "system")
        else f"{k} {size(v) if k == 'memory' and _is_number(v) else v}"
        for k, v in facts.items()
    ]
    return ", ".join(texts)


def _moment(when: str) -> str:
    """
    >>> _moment("2025-03-01T12:30:05.123456Z")
    '2025-03-01 12:30'
    """
    return when[:16].replace("T", " ")


def _distinct(values: Iterable[str]) -> list[str]:
    return [v for v in dict.fromkeys(values) if v]
