"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from passband.cli.output import console, number, paragraph, say

if TYPE_CHECKING:
    from passband.bench.claims import Evidence
    from passband.bench.compare import Comparison, Estimate
    from passband.bench.prove import ClaimRow
    from passband.bench.results import Result

STYLES = {
    "holds": "green", "fails": "bold red", "inconclusive": "yellow", "not shown": "dim",
    "ok": "green", "absent": "dim", "warning": "yellow", "broken": "bold red",
}


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, text: Sequence[str] = ()
) -> None:
    """One table. Columns named in `text` wrap, the others stay whole; empty ones are left out.

    Verdicts and states get their colour.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    filled = [[number(cell) for cell in row] for row in rows]
    shown = [i for i, _ in enumerate(columns) if not filled or any(row[i] for row in filled)]
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i in shown:
        out.add_column(columns[i], no_wrap=columns[i] not in text, overflow="fold")
    for row in filled:
        out.add_row(*(Text(row[i], style=STYLES.get(row[i], "")) for i in shown))
    console().print(out)


def heading(text: str) -> None:
    say(f"\n{text}", style="bold")


def show_info(facts: Mapping[str, Any]) -> None:
    """Everything of `passband.info`, with a verdict beside each claim."""
    paragraph(f"{facts['id']}: {facts['title']}", style="bold")
    paragraph(facts["summary"])
    for name in ("authors", "venue", "arxiv", "code", "licence", "family", "kind", "entry"):
        if facts[name]:
            paragraph(str(facts[name]), f"  {name:<10}")
    paragraph(", ".join(facts["verbs"]), f"  {'verbs':<10}")
    for name in ("extras", "baselines"):
        if facts[name]:
            paragraph(", ".join(facts[name]), f"  {name:<10}")
    heading("Presets")
    presets = facts["presets"]
    table(
        ("preset", "parameters", "sets"),
        [
            (name, facts["parameters"].get(name), _settings(sets))
            for name, sets in presets.items()
        ],
        text=("sets",),
    )
    heading("Configuration (--set FIELD=VALUE)")
    table(
        ("field", "type", "default", "unit", "range", "what it is"),
        [
            (
                f["name"], f["type"], "required" if f["required"] else f["default"], f["unit"],
                f["range"], f["description"],
            )
            for f in facts["fields"]
        ],
        text=("type", "default", "what it is"),
    )
    heading("Tasks it can enter")
    table(("task", "data"), [(t["name"], t["summary"]) for t in facts["tasks"]], text=("data",))
    if facts["claims"]:
        heading("Claims")
        table(
            ("id", "claim", "reported", "source", "verdict"),
            [
                (c["id"], c["statement"], c["reported"], c["source"], c["verdict"] or "open")
                for c in facts["claims"]
            ],
            text=("claim", "reported", "source"),
        )
    if facts["differences"]:
        heading("Differences from the paper")
        for text in facts["differences"]:
            paragraph(text, "  - ")


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "the defaults"


def show_findings(findings: Sequence[Mapping[str, Any]]) -> None:
    table(
        ("what", "state", "found", "to mend"),
        [(f["name"], f["state"], f["detail"], f["mend"]) for f in findings],
        text=("found", "to mend"),
    )


def show_result(result: Result, runs: Any) -> None:
    """One finished cell: what was measured, what it cost, where it lies."""
    say(f"{result.system} on {result.task}, seed {result.seed}", style="bold")
    if result.error:
        say(f"  failed: {result.error}", style="bold red")
    rows: list[tuple[str, Any]] = list(result.metrics.items())
    rows += [(f"seconds, {name}", value) for name, value in result.seconds.items()]
    rows += [
        ("parameters", result.parameters),
        ("peak memory, MB", result.peak_memory / 1e6),
        ("chosen iterate", result.selected),
    ]
    table(("measured", "value"), rows)
    if result.folder and not result.error:
        say(f"saved in {runs / result.folder}")


def show_comparison(found: Comparison) -> None:
    """Means, the primary metric's with its 95 % interval; then paired differences."""
    names = list(dict.fromkeys(name for s in found.summaries for name in s.metrics))
    say(f"{found.task}, budget {found.budget}, {len(found.seeds)} seed(s)", style="bold")
    table(
        ("system", *names, "fit s", "MB", "parameters", "n", "failed"),
        [
            (
                s.system, *(_estimate(s.metrics.get(name), name == found.metric) for name in names),
                s.fit_seconds, s.peak_memory / 1e6, s.parameters, s.n, s.failed,
            )
            for s in found.summaries
        ],
    )
    if found.differences:
        how = "ratio" if found.differences[0].log else "difference"
        heading(f"{found.metric} against {found.reference}, paired by seed ({how})")
        table(
            ("system", how, "95 % interval", "n", "p (t, Holm)", "p (Wilcoxon, Holm)"),
            [
                (
                    d.system, d.effect, f"[{number(d.low)}, {number(d.high)}]", d.n, d.p_t_holm,
                    d.p_wilcoxon_holm,
                )
                for d in found.differences
            ],
        )
    for summary in found.summaries:
        for error in summary.errors:
            say(f"{summary.system} failed: {error}", style="red")
    for note in found.notes:
        say(f"note: {note}")


def _estimate(found: Estimate | None, interval: bool) -> str:
    if found is None:
        return "-"
    mean = number(found.mean)
    if not interval or found.n == 1:
        return mean
    return f"{mean} [{number(found.low)}, {number(found.high)}]"


def show_proved(rows: Sequence[ClaimRow]) -> None:
    """Claim, reported, obtained, verdict: the front page of everything here."""
    from passband.bench.prove import reuse_note

    table(
        ("system", "claim", "statement", "reported", "obtained", "verdict"),
        [
            (
                row.system, row.claim, row.statement, row.reported,
                _obtained(row.evidence), row.evidence.verdict,
            )
            for row in rows
        ],
        text=("statement", "reported", "obtained"),
    )
    if any(row.scale == "smoke" for row in rows):
        say("a smoke run: fewer cases and seeds; these verdicts don't stand for the full ones")
    note = reuse_note(rows)
    if note:
        say(note)
    if any(row.calibrate for row in rows):
        say("calibration seeds: these verdicts are not recorded")


def _obtained(evidence: Evidence) -> str:
    return f"{evidence.obtained}; needs {evidence.needs}" if evidence.needs else evidence.obtained
