"""Reads a runs folder for the report: whatever is readable is shown, whatever isn't is named.

>>> runs = read_runs(Path("runs"))
>>> len(runs.results), runs.problems
(42, ['results.jsonl, line 17: not a whole row; left out'])
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from passband.bench.prove import ClaimRow
from passband.bench.results import CLAIMS, RESULTS, R, Result, RowsFile
from passband.errors import ResultsError


@dataclass(frozen=True)
class Runs:
    """Everything a report is made from.

    results   the newest row of every cell, in order of appearance
    claims    one row per system and claim: the newest at full scale, else the newest smoke row
    problems  sentences about what is missing or damaged
    """

    folder: Path
    results: list[Result]
    claims: list[ClaimRow]
    problems: list[str]


def read_runs(folder: str | Path) -> Runs:
    """Never raises for missing or damaged files: they become entries of `problems`."""
    folder = Path(folder)
    problems: list[str] = []
    if not (folder / RESULTS).exists():
        problems.append(f"{RESULTS} is missing in {folder}: there is no result to show")
    # Of two states of the code the newer counts; other data or another task is another cell.
    cells = {
        (row.key, row.task_version, row.data.get("hash"), row.data.get("model_hash")): row
        for row in _rows(folder / RESULTS, Result, problems)
    }
    claims: dict[tuple[str, str], ClaimRow] = {}
    for row in _rows(folder / CLAIMS, ClaimRow, problems):
        key = (row.system, row.claim)
        if not (key in claims and claims[key].scale == "full" and row.scale == "smoke"):
            claims[key] = row
    return Runs(folder, list(cells.values()), list(claims.values()), problems)


def _rows(path: Path, kind: type[R], problems: list[str]) -> list[R]:
    """Readable rows, the oldest first. A file that isn't there has none."""
    try:
        rows, damage = RowsFile(path, kind).scan()
    except ResultsError as error:
        problems.append(f"{path.name} could not be read: {error.what}")
        return []
    problems += [f"{path.name}, line {d.line}: not a whole row; left out" for d in damage]
    return sorted(rows, key=lambda row: row.when)
