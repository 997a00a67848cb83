"""Claims judged: every claim of a card gets a row of reported, obtained, verdict.

>>> rows = reproduce(["gp-hm"], smoke=True, runs=Path("runs"))
>>> rows[0].claim, rows[0].reported, rows[0].evidence.obtained, rows[0].evidence.verdict
('C1', '...', '2.4e-08 [1.9e-08, 3.0e-08], n = 3', 'holds')

A proof sees the engine through `Bench` (passband.bench.claims) and nothing else.
"""

from __future__ import annotations

import math
import shlex
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from passband import catalog
from passband.bench import facts
from passband.bench.budget import Budget
from passband.bench.claims import CALIBRATION as CALIBRATION_SEEDS
from passband.bench.claims import JUDGING, Bench, Evidence, Proof, not_shown
from passband.bench.dispatch import Progress, Report, dispatch
from passband.bench.failures import describe, failures
from passband.bench.results import (
    CALIBRATION,
    CLAIMS,
    RESULTS,
    Result,
    ResultsFile,
    RowsFile,
    timestamp,
)
from passband.bench.run import Cell, budget_text, check_runs
from passband.catalog import Card, ClaimCard
from passband.errors import (
    BudgetError,
    ConfigError,
    MissingExtraError,
    PassbandWarning,
    ResultsError,
    UnknownNameError,
)

# A proof that raises one of these is written wrongly or the engine can't work: no verdict on a
# method. Other failures of the method itself are its verdict.
NO_VERDICT = (UnknownNameError, ConfigError, BudgetError, ResultsError)

_ARGUMENTS = {f.name for f in fields(Cell)} - {"overrides", "data"}


@dataclass(frozen=True)
class ClaimRow:
    """One claim of a paper and what we have for it.

    seconds   of the whole proof, cells included
    dirty     whether there were uncommitted changes, now or when one of its cells ran
    cells     keys of the cells it rests on, rows of `results.jsonl`
    reused    those of them that an earlier call had run, and when
    command   what repeats it
    """

    system: str
    claim: str
    statement: str
    reported: str
    source: str
    evidence: Evidence
    seconds: float
    when: str
    scale: Literal["smoke", "full"]
    calibrate: bool
    code_hash: str
    dirty: bool
    versions: dict[str, str]
    command: str
    machine: dict[str, Any] = field(default_factory=dict)
    cells: list[str] = field(default_factory=list)
    reused: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.system}/{self.claim}/{self.scale}"

    def to_json(self) -> dict[str, Any]:
        # The verdict also at the top: what most readers of the file look for.
        return {**asdict(self), "verdict": self.evidence.verdict}


def reuse_note(rows: Iterable[ClaimRow]) -> str:
    """Which evidence is not of today; empty when all of it is.

    >>> reuse_note(rows)
    '12 of 40 cells reused, computed on 2026-01-01 to 2026-01-03'
    """
    rows = list(rows)
    reused = {key: when[:10] for row in rows for key, when in row.reused.items()}
    if not reused:
        return ""
    total = len({key for row in rows for key in row.cells})
    days = sorted(set(reused.values()))
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{len(reused)} of {total} cells reused, computed on {span}"


def claims_file(runs: Path | str, *, calibrate: bool = False) -> RowsFile[ClaimRow]:
    """The claim rows of a runs folder: of judging seeds, or of calibration seeds."""
    return RowsFile(Path(runs) / (CALIBRATION if calibrate else CLAIMS), ClaimRow)


def reproduce(
    systems: str | Sequence[str] | None = None, *, runs: Path | str = "runs", smoke: bool = False,
    calibrate: bool = False, claim_ids: Sequence[str] | None = None, reuse: bool = False,
    engine: str = "local", processes: int | None = None, address: str | None = None,
    progress: Report | None = None,
) -> list[ClaimRow]:
    """Prove the claims of systems and append a row for each.

    systems    ids; None takes every system that has claims
    smoke      fewer cases and seeds, some 15 s a system; its rows never stand for the full ones
    calibrate  seeds from 1000 up, rows go to `calibration.jsonl`: for setting margins
    claim_ids  only these claims
    reuse      take cells of earlier calls whose code is the same, and go on with an interrupted
               one; not while there are uncommitted changes, which a warning then says
    engine, processes, address: see `dispatch`; cells that a proof asks for one by one run alone
    progress   called with `Progress`; items are claims

    The method's own failure (bad input, overflow, a singular matrix) is the verdict "fails"; a
    missing optional package is "not shown". A defect in a proof or in the engine is raised when
    the rows of the other claims are written.
    """
    cards = _cards(systems)
    todo = _todo(cards, claim_ids)
    runs = Path(runs)
    check_runs(runs)
    report = progress or _silent
    if reuse and facts.dirty():
        reuse = False
        warnings.warn(
            "nothing is reused: passband's own files have uncommitted changes", PassbandWarning,
            stacklevel=2,
        )
    earlier = ResultsFile(runs / RESULTS).latest() if reuse else {}
    rows: list[ClaimRow] = []
    defects: list[Exception] = []
    cache: dict[str, Result] = {}
    for card, claim, proof in todo:
        done = len(rows) + len(defects)
        label = f"{card.id} {claim.id}"
        report(Progress(done, len(todo), label))
        bench = ProofBench(
            runs, smoke=smoke, calibrate=calibrate, reuse=reuse, engine=engine,
            processes=processes, address=address, cache=cache, earlier=earlier,
            progress=_nested(report, done, len(todo), label),
        )
        try:
            row = _prove(card, claim, proof, bench)
        except ResultsError:
            raise
        except Exception as error:  # noqa: BLE001 - raised below, after the other claims
            error.add_note(f"while proving {label}")
            defects.append(error)
            continue
        rows.append(claims_file(runs, calibrate=calibrate).append(row))
        report(Progress(done + 1, len(todo), label, 1.0, outcome=rows[-1]))
    if len(defects) == 1:
        raise defects[0]
    if defects:
        raise ExceptionGroup("several proofs could not be run", defects)
    return rows


class ProofBench:
    """Implements `Bench`: cells for proofs, each run once however many proofs ask for it."""

    def __init__(
        self, runs: Path, *, smoke: bool = False, calibrate: bool = False, reuse: bool = False,
        engine: str = "local", processes: int | None = None, address: str | None = None,
        cache: dict[str, Result] | None = None, earlier: Mapping[str, Result] | None = None,
        progress: Report | None = None,
    ) -> None:
        self.runs, self.smoke, self.calibrate, self.reuse = runs, smoke, calibrate, reuse
        self.used: dict[str, None] = {}  # keys of cells, in order
        self._fan_out: dict[str, Any] = {
            "engine": engine, "processes": processes, "address": address,
        }
        self._cache: dict[str, Result] = {} if cache is None else cache
        self._earlier = earlier or {}
        self._progress = progress

    def seeds(self, n: int) -> list[int]:
        first = CALIBRATION_SEEDS if self.calibrate else JUDGING
        return list(range(first, first + n))

    def run(
        self, system: str, task: str, *, preset: str = "small", seed: int = 0,
        size: str = "small", budget: Budget | str | None = None, **overrides: Any,
    ) -> Mapping[str, Any]:
        cell = Cell(system, task, preset, size, seed, budget_text(budget), overrides)
        return self._rows([cell], {"processes": 1})[0]

    def run_many(self, cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return self._rows([_cell(arguments) for arguments in cells], self._fan_out)

    @property
    def rows(self) -> list[Result]:
        """The rows that the proof has seen."""
        return [self._cache[key] for key in self.used]

    @property
    def reused(self) -> dict[str, str]:
        """Of the cells used, those of earlier calls: key -> when they ran."""
        seen = {row.key: row.when for row in self.rows}
        return {
            key: when for key, when in seen.items()
            if key in self._earlier and self._earlier[key].when == when
        }

    def _rows(self, cells: Sequence[Cell], how: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        missing = [cell for cell in cells if cell.key not in self._cache]
        if missing:
            rows = dispatch(missing, self.runs, resume=self.reuse, progress=self._progress, **how)
            self._cache.update({row.key: row for row in rows})
        self.used.update(dict.fromkeys(cell.key for cell in cells))
        return [_row_for_proof(self._cache[cell.key]) for cell in cells]


def _cell(arguments: Mapping[str, Any]) -> Cell:
    """The arguments of `Bench.run` as a cell: what is no argument is a configuration field."""
    given = {name: value for name, value in arguments.items() if name in _ARGUMENTS}
    given["budget"] = budget_text(given.get("budget"))
    overrides = {name: value for name, value in arguments.items() if name not in _ARGUMENTS}
    return Cell(**given, overrides=overrides)


def _row_for_proof(row: Result) -> dict[str, Any]:
    """A row as a mapping. A failed cell has NaN for every metric, which `judge` takes as failing:
    a baseline that diverges must not stop a proof."""
    if row.error:
        names = [metric.name for metric in catalog.task(row.task).metrics]
        row = replace(row, metrics=dict.fromkeys(names, math.nan))
    return row.to_json()


# ---- one claim -------------------------------------------------------------------------------


def _prove(card: Card, claim: ClaimCard, proof: Proof, bench: ProofBench) -> ClaimRow:
    began = time.perf_counter()
    try:
        evidence = _judged(proof, bench, claim)
    except MissingExtraError as error:
        evidence = not_shown(needs=error.mend, obtained=error.what)
    except NO_VERDICT:
        raise
    except failures() as error:
        evidence = Evidence(verdict="fails", obtained=describe(error))
    return ClaimRow(
        system=card.id, claim=claim.id, statement=claim.statement, reported=claim.reported,
        source=claim.source, evidence=evidence, seconds=time.perf_counter() - began,
        when=timestamp(), scale="smoke" if bench.smoke else "full", calibrate=bench.calibrate,
        code_hash=facts.code_hash(card),
        dirty=facts.dirty() or any(row.dirty for row in bench.rows),
        versions=facts.versions(), command=_command(card, claim, bench), machine=facts.machine(),
        cells=list(bench.used), reused=bench.reused,
    )


def _judged(proof: Proof, bench: Bench, claim: ClaimCard) -> Evidence:
    evidence = proof(bench)
    if not isinstance(evidence, Evidence):
        raise TypeError(f"the proof of {claim.id} returned {evidence!r}, not an Evidence")
    return evidence


def _command(card: Card, claim: ClaimCard, bench: ProofBench) -> str:
    words = ["passband", "reproduce", card.id, "--claims", claim.id]
    words += ["--smoke"] if bench.smoke else []
    words += ["--calibrate"] if bench.calibrate else []
    return shlex.join(words)


# ---- which claims ----------------------------------------------------------------------------


def _cards(systems: str | Sequence[str] | None) -> list[Card]:
    if systems is None:
        return [card for card in catalog.cards().values() if card.claims]
    names = [systems] if isinstance(systems, str) else list(systems)
    cards = [catalog.get(name) for name in names]
    if not any(card.claims for card in cards):
        raise ConfigError(
            f"no claims in the cards of {', '.join(names) or 'no system'}",
            expected="a system whose card lists claims", mend="`passband list` shows which have",
        )
    return cards


def _todo(
    cards: Sequence[Card], claim_ids: Sequence[str] | None
) -> list[tuple[Card, ClaimCard, Proof]]:
    todo = [(card, claim, proof) for card in cards for claim, proof in proofs_of(card)]
    if claim_ids is None:
        return todo
    known = {claim.id for _, claim, _ in todo}
    for name in claim_ids:
        if name not in known:
            raise UnknownNameError("claim", name, known, mend="`passband info SYSTEM` lists them")
    return [item for item in todo if item[1].id in claim_ids]


def proofs_of(card: Card) -> Iterator[tuple[ClaimCard, Proof]]:
    """Claims of a card with their proofs; the two must name the same ids."""
    proofs = card.proofs()
    apart = {claim.id for claim in card.claims} ^ proofs.keys()
    if apart:
        raise ConfigError(
            f"claims {', '.join(sorted(apart))} of {card.id!r} are in only one of card.toml and "
            "claims.py", expected="one proof in CLAIMS for every claim of the card",
            mend="a claim out of reach is a proof that returns not_shown(needs=...)",
        )
    for claim in card.claims:
        yield claim, proofs[claim.id]


# ---- progress --------------------------------------------------------------------------------


def _silent(_: Progress) -> None:
    return None


def _nested(report: Report, done: int, total: int, label: str) -> Callable[[Progress], None]:
    """Events of the cells of a claim, as events of that claim."""

    def forward(inner: Progress) -> None:
        share = (inner.done + inner.fraction) / inner.total if inner.outcome is None else (
            inner.done / inner.total
        )
        text = " ".join(part for part in (inner.label, inner.text) if part)
        report(Progress(done, total, label, min(1.0, share), text))

    return forward
