"""The tables of the report as data: claims per system, comparison per task.

>>> for table in comparison("runs"):
...     for entry in table.entries:
...         entry.name, entry.metrics["relative_l2"].text, entry.n
('gp-hm', '2.41 × 10⁻⁸', 3)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from passband import catalog
from passband.bench.budget import Budget
from passband.bench.claims import Evidence
from passband.bench.prove import ClaimRow
from passband.bench.report.charts import SUPERSCRIPT, tick_text
from passband.bench.report.rows import Runs, read_runs
from passband.bench.report.style import PALETTE
from passband.bench.results import Result
from passband.bench.task import Metric
from passband.bench.verdict import VERDICTS
from passband.errors import PassbandError

SYMBOLS = {"holds": "✓", "fails": "✗", "inconclusive": "≈", "not shown": "○"}


# ---- numbers as people write them ------------------------------------------------------------


def figure(value: float | None, digits: int = 3) -> str:
    """
    >>> figure(2.413e-8), figure(0.0512), figure(1234.0), figure(float("nan"))
    ('2.41 × 10⁻⁸', '0.0512', '1230', 'not a number')
    """
    if value is None or math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = float(f"{value:.{digits}g}")
    if rounded == 0:
        return "0"
    if 1e-3 <= abs(rounded) < 1e5:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
        return f"{rounded:.{decimals}f}".replace("-", "−")
    lead, _, power = f"{rounded:.{digits - 1}e}".partition("e")
    return f"{lead} × 10{str(int(power)).translate(SUPERSCRIPT)}".replace("-", "−", 1)


def duration(seconds: float) -> str:
    """
    >>> duration(0.412), duration(75.0), duration(7300.0)
    ('0.412 s', '1.25 min', '2.03 h')
    """
    for limit, unit, name in ((60.0, 1.0, "s"), (3600.0, 60.0, "min"), (math.inf, 3600.0, "h")):
        if seconds < limit:
            return f"{figure(seconds / unit)} {name}"
    return "not measured"


def size(number: float, unit: str = "B") -> str:
    """
    >>> size(3_200_000), size(92, "")
    ('3.2 MB', '92')
    """
    if number >= 1000:
        for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if number >= scale:
                return f"{float(f'{number / scale:.3g}'):g} {prefix}{unit}".rstrip()
    return f"{number:g} {unit}".rstrip()


@dataclass(frozen=True)
class Number:
    """A mean over seeds. `spread` is the standard error (a factor when geometric)."""

    value: float
    n: int
    spread: float | None = None
    geometric: bool = False

    @property
    def text(self) -> str:
        return figure(self.value)

    @property
    def ends(self) -> tuple[float, float]:
        """The value less and plus its spread."""
        if self.spread is None:
            return self.value, self.value
        if self.geometric:
            return self.value / self.spread, self.value * self.spread
        return self.value - self.spread, self.value + self.spread

    @property
    def spread_text(self) -> str:
        if self.spread is None:
            return ""
        return f"×÷ {figure(self.spread)}" if self.geometric else f"± {figure(self.spread, 2)}"


def mean(values: Iterable[float | None], *, log: bool = False) -> Number | None:
    """Mean and standard error of the finite values; geometric when `log` and all are above 0.

    >>> mean([1e-4, 1e-2], log=True)
    Number(value=0.001, n=2, spread=10.0, geometric=True)
    """
    x = [float(v) for v in values if v is not None and math.isfinite(v)]
    if not x:
        return None
    geometric = log and min(x) > 0
    y = [math.log(v) for v in x] if geometric else x
    middle = sum(y) / len(y)
    error = None
    if len(y) > 1:
        error = math.sqrt(sum((v - middle) ** 2 for v in y) / (len(y) - 1) / len(y))
    if geometric:
        factor = None if error is None else _round(math.exp(error))
        return Number(_round(math.exp(middle)), len(x), factor, True)
    return Number(middle, len(x), error, False)


def _round(value: float) -> float:
    return float(f"{value:.12g}")


# ---- claims ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SystemClaims:
    """The claims of one paper; `missing` are those of the card that have no row yet."""

    system: str
    title: str
    source: str
    rows: list[ClaimRow]
    missing: list[tuple[str, str]] = field(default_factory=list)

    def count(self, verdict: str) -> int:
        return sum(row.evidence.verdict == verdict for row in self.rows)


def claims_table(runs: Runs | str | Path) -> list[SystemClaims]:
    """Claims by system, in the order of the system's card."""
    runs = runs if isinstance(runs, Runs) else read_runs(runs)
    groups: dict[str, list[ClaimRow]] = {}
    for row in runs.claims:
        groups.setdefault(row.system, []).append(row)
    return [_system_claims(system, rows) for system, rows in sorted(groups.items())]


def _system_claims(system: str, rows: list[ClaimRow]) -> SystemClaims:
    card = _card(system)
    if card is None:
        return SystemClaims(system, "", "", rows)
    order = {claim.id: i for i, claim in enumerate(card.claims)}
    have = {row.claim for row in rows}
    return SystemClaims(
        system, card.title,
        " · ".join(part for part in (card.venue, card.arxiv and f"arXiv {card.arxiv}") if part),
        sorted(rows, key=lambda row: (order.get(row.claim, len(order)), row.claim)),
        [(claim.id, claim.statement) for claim in card.claims if claim.id not in have],
    )


def interval_text(evidence: Evidence) -> str:
    """The interval against the margin in words: what the glyph draws."""
    if evidence.effect is None or evidence.margin is None:
        return ""
    text = f"mean {figure(evidence.effect)}"
    if evidence.low is not None and evidence.high is not None and evidence.n > 1:
        text += f", 95 % interval {figure(evidence.low)} to {figure(evidence.high)}"
    side = "below" if evidence.better == "lower" else "above"
    unit = f" {evidence.unit}" if evidence.unit else ""
    return f"{text}{unit}, n = {evidence.n}; holds {side} {tick_text(evidence.margin)}{unit}"


def claims_markdown(runs: Runs | str | Path) -> str:
    """Obtained / reported / verdict as a Markdown table, with the command that repeats each."""
    parts = []
    for group in claims_table(runs):
        parts.append(f"**{_cell(group.system)}** {_cell(group.title)}".rstrip() + "\n")
        parts.append("| claim | obtained | reported | verdict | command |\n|---|---|---|---|---|")
        for row in group.rows:
            e = row.evidence
            verdict = f"{SYMBOLS[e.verdict]} {e.verdict}"
            verdict += f" (needs {e.needs})" if e.needs and e.verdict == "not shown" else ""
            verdict += " (smoke scale)" if row.scale == "smoke" else ""
            reported = f"{row.reported} ({row.source})" if row.source else row.reported
            cells = (f"{row.claim}: {row.statement}", e.obtained, reported, verdict)
            command = f"`{_cell(row.command)}`" if row.command else ""
            parts.append("| " + " | ".join([*map(_cell, cells), command]) + " |")
        parts.append("")
    return "\n".join(parts) or "No claim has been judged yet.\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


# ---- comparison ------------------------------------------------------------------------------


_COSTS: dict[str, Callable[[Result], float | None]] = {
    "peak_memory": lambda row: row.peak_memory,
    "seconds": lambda row: row.seconds.get("fit"),
    "file_bytes": lambda row: row.file_bytes,
    "parameters": lambda row: row.parameters,
}


@dataclass
class Entry:
    """One way to enter a task: system, preset, overrides and budget, over its seeds."""

    name: str  # the system, told apart by its detail where it enters a task more than once
    detail: str
    style: int
    rows: list[Result]
    metrics: dict[str, Number] = field(default_factory=dict)
    best: set[str] = field(default_factory=set)  # columns in which it is the best

    @property
    def done(self) -> list[Result]:
        return [row for row in self.rows if not row.error]

    @property
    def errors(self) -> list[str]:
        return sorted({row.error for row in self.rows if row.error})

    @property
    def n(self) -> int:
        return len(self.done)

    @property
    def broken(self) -> int:
        """Seeds that raised, or gave no finite value for some metric."""
        return sum(
            bool(row.error) or not row.metrics
            or any(v is None or not math.isfinite(v) for v in row.metrics.values())
            for row in self.rows
        )

    @property
    def fit_seconds(self) -> Number | None:
        return self.cost("seconds")

    @property
    def memory(self) -> Number | None:
        return self.cost("peak_memory")

    def measured(self, name: str) -> Number | None:
        """The mean of a metric, or of one of `task.COSTS`."""
        return self.metrics.get(name) or self.cost(name)

    def cost(self, name: str) -> Number | None:
        read = _COSTS.get(name)
        return mean(read(row) for row in self.done) if read else None

    @property
    def parameters(self) -> int | None:
        return max((row.parameters for row in self.done), default=None)


@dataclass
class TaskTable:
    """All entries of one task on the same data; cells on other data are never mixed in."""

    task: str
    version: int
    data: str  # "small data", or the user's own file with its hash
    summary: str
    metrics: list[Metric]
    entries: list[Entry]
    pareto: tuple[tuple[str, str], ...] = ()  # the task's pictures, as pairs of names

    @property
    def primary(self) -> Metric:
        return self.metrics[0]


def comparison(runs: Runs | str | Path) -> list[TaskTable]:
    """Entries of every task, the best first. The same system has the same `style` everywhere."""
    runs = runs if isinstance(runs, Runs) else read_runs(runs)
    groups: dict[tuple[str, int, str], list[Result]] = {}
    for row in runs.results:
        groups.setdefault((row.task, row.task_version, _data(row)), []).append(row)
    styles = _styles(runs)
    return [_task_table(key, rows, styles) for key, rows in sorted(groups.items())]


def _data(row: Result) -> str:
    """What the rows of a table share: "small data", or "my.csv 3f7231d6, model llama 1a2b3c4d"."""
    def named(path: str, digest: str) -> str:
        return " ".join((Path(row.data.get(path, "")).name, row.data.get(digest, "")[:8])).strip()

    return ", model ".join(filter(None, (
        named("path", "hash") or f"{row.size} data", named("model", "model_hash")
    )))


def _styles(runs: Runs) -> dict[str, int]:
    """A number per system: systems before baselines, so that they get the strongest colours."""
    names = {row.system for row in runs.results}

    def order(name: str) -> tuple[bool, str]:
        card = _card(name)
        return (card is not None and card.kind == "baseline", name)

    return {name: i for i, name in enumerate(sorted(names, key=order))}


def _task_table(
    key: tuple[str, int, str], rows: list[Result], styles: dict[str, int]
) -> TaskTable:
    name, version, data = key
    task = _known(catalog.task, name)
    metrics = list(task.metrics) if task else _guess_metrics(rows)
    # A metric that this data has no use for, such as of groups where there are none, is no column.
    metrics = metrics[:1] + [m for m in metrics[1:] if any(m.name in row.metrics for row in rows)]
    groups: dict[tuple[str, str], list[Result]] = {}
    for row in rows:
        groups.setdefault((row.system, _detail(row)), []).append(row)
    entries: list[Entry] = []
    for (system, detail), group in groups.items():
        variants = [d for s, d in groups if s == system]
        label = f"{system} ({detail})" if len(variants) > 1 else system
        # Variants of a system share its colour; marker and dash tell them apart.
        style = styles[system] + len(PALETTE) * variants.index(detail)
        entries.append(Entry(label, detail, style, group))
    for entry in entries:
        for metric in metrics:
            number = mean((row.metrics.get(metric.name) for row in entry.done), log=metric.log)
            if number:
                entry.metrics[metric.name] = number
    _mark_best(entries, metrics)
    if metrics:
        entries.sort(key=lambda e: _rank(e, metrics[0]))
    return TaskTable(
        name, version, data, task.summary if task else "", metrics, entries,
        task.pareto if task else (),
    )


def _guess_metrics(rows: list[Result]) -> list[Metric]:
    """For a task that is not installed here: its directions are unknown, errors are assumed."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    return [Metric(name, "", "lower", about="direction assumed: task not installed")
            for name in names]


def _detail(row: Result) -> str:
    """Preset, changed fields and budget, as far as they differ from the plain case."""
    parts = [row.preset, *(f"{k}={v}" for k, v in sorted(row.overrides.items()))]
    limits = {k: v for k, v in row.budget.items() if v is not None}
    if limits:
        try:
            parts.append(str(Budget(**limits)))
        except (TypeError, PassbandError):
            parts.append(json.dumps(limits, sort_keys=True))
    return " · ".join(parts)


def _rank(entry: Entry, metric: Metric) -> tuple[bool, float]:
    number = entry.metrics.get(metric.name)
    if number is None:
        return True, 0.0
    return False, number.value if metric.better == "lower" else -number.value


def _mark_best(entries: Sequence[Entry], metrics: Sequence[Metric]) -> None:
    """Mark the best whole entry of every column; one with broken seeds can't be the best."""
    whole = [e for e in entries if not e.broken]
    if len(whole) < 2:
        return

    def mark(column: str, value: Callable[[Entry], float | None], better: str) -> None:
        values = [(v, e) for e in whole if (v := value(e)) is not None]
        if not values:
            return
        best = (min if better == "lower" else max)(v for v, _ in values)
        for v, entry in values:
            if v == best:
                entry.best.add(column)

    def metric_value(name: str) -> Callable[[Entry], float | None]:
        return lambda e: e.metrics[name].value if name in e.metrics else None

    for metric in metrics:
        mark(metric.name, metric_value(metric.name), metric.better)
    mark("fit", lambda e: e.fit_seconds.value if e.fit_seconds else None, "lower")
    mark("memory", lambda e: e.memory.value if e.memory else None, "lower")
    mark("parameters", lambda e: e.parameters, "lower")


# ---- the catalog, as far as it is installed ---------------------------------------------------


def _known(find: Callable[[str], Any], name: str) -> Any:
    """A row may name a system or task that is not installed here: it is shown all the same."""
    try:
        return find(name)
    except PassbandError:
        return None


def _card(name: str) -> catalog.Card | None:
    card: catalog.Card | None = _known(catalog.get, name)
    return card


def summary(runs: Runs) -> str:
    """The report in one sentence."""
    cells = _count(len(runs.results), "cell")
    where = _count(len({row.task for row in runs.results}), "task")
    total = len(runs.claims)
    if not total:
        return f"No claim has been judged yet: {cells} on {where}." if runs.results \
            else "Nothing has been run yet."
    systems = sorted({row.system for row in runs.claims})
    found = [
        f"{n} {_PHRASES[verdict][n > 1]}"
        for verdict in VERDICTS
        if (n := sum(row.evidence.verdict == verdict for row in runs.claims))
    ]
    listed = " and ".join(filter(None, [", ".join(found[:-1]), found[-1]]))
    of = systems[0] if len(systems) == 1 else f"{len(systems)} systems"
    judged = f", judged beside {cells} on {where}" if runs.results else ""
    return f"Of {_count(total, 'claim')} of {of}, {listed}{judged}."


_PHRASES = {  # verdict -> (for one, for several)
    "holds": ("holds", "hold"),
    "fails": ("fails", "fail"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
    "not shown": ("is not shown at this scale", "are not shown at this scale"),
}


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
