"""The monitor of a cell: collects curves, times the looks at the truth, passes progress on."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Self

from passband.bench.failures import failures
from passband.bench.randomness import isolated
from passband.bench.results import CURVES, write_atomic
from passband.bench.system import Monitor, NullMonitor, System
from passband.bench.task import Data, Task

LONGEST = 1000  # rows of curves that a result carries, besides its test errors


class Recorder:
    """Implements `Monitor` for `fit`, which runs inside its `with` block.

    Curves also go to a file in the cell's folder: a fit that resumes keeps its beginning. Rows
    that the resumed fit repeats (from its first logged step on) are dropped. A step has one look at
    the truth at most: a second one there would say nothing new.
    """

    def __init__(
        self, task: Task, data: Data[Any], folder: Path, *, resume: bool = False,
        outer: Monitor | None = None,
    ) -> None:
        self.task, self.data, self.outer = task, data, outer or NullMonitor()
        self.rows: list[dict[str, float]] = []
        self.excluded = 0.0  # seconds spent in `test_error`
        self.earlier = 0.0   # seconds of fit before the resume, up to the last row that is kept
        self.stopped: float | None = None
        self._look: dict[str, float] = {}  # taken after a resume, before a step was logged
        self._path = folder / CURVES
        self._before = _read(self._path) if resume else []
        self._file = self._path.open("a" if resume else "w", encoding="utf-8")
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = time.perf_counter()
        if self._before:  # the kill came when the fit was over: nothing was logged again
            self._join(math.inf)
        self._file.close()

    @property
    def seconds(self) -> float:
        """Seconds of fit, looks at the truth excluded."""
        now = time.perf_counter() if self.stopped is None else self.stopped
        return self.earlier + now - self._start - self.excluded

    # ---- the protocol --------------------------------------------------------------------

    def log(self, step: int, seconds: float, **values: float) -> None:
        # Systems differ in what their clock counts; all curves are drawn by this one.
        if self._before:
            self._join(step)
        seconds = self.seconds
        self._add({"step": step, "seconds": seconds, **{n: float(v) for n, v in values.items()}})
        self.outer.log(step, seconds, **values)

    def progress(self, fraction: float, text: str = "") -> None:
        self.outer.progress(fraction, text)

    def test_error(self, system: System) -> None:
        if self.data.test is None:
            return
        seconds, began = self.seconds, time.perf_counter()
        name = self.task.primary.name
        with isolated():  # an evaluation that draws random numbers must not change the fit
            try:
                value = float(self.task.evaluate(system, self.data).get(name, math.nan))
            except failures():
                value = math.nan
        look = {"seconds": seconds, name: value}
        if self._before:
            self._look = look  # which step this is shows when the next one is logged
        else:
            self._add_look(look)
        self.excluded += time.perf_counter() - began

    # ---- curves --------------------------------------------------------------------------

    def curves(self) -> dict[str, list[float]]:
        """Columns of one length: step, seconds, then every logged name; NaN where not logged.

        Long ones are thinned evenly; test errors and the last row stay.
        """
        test = self.task.primary.name
        logged = [i for i, row in enumerate(self.rows) if test not in row]
        stride = -(-len(logged) // LONGEST) or 1
        keep = {*logged[::stride], *logged[-1:]}
        rows = [row for i, row in enumerate(self.rows) if i in keep or test in row]
        names = dict.fromkeys(["step", "seconds", *(name for row in rows for name in row)])
        return {name: [row.get(name, math.nan) for row in rows] for name in names} if rows else {}

    def _join(self, step: float) -> None:
        """Put the rows from before the resume in front of the new ones."""
        kept = [row for row in self._before if row["step"] < step]
        rows, self._before = kept + self.rows, []
        self.earlier = kept[-1]["seconds"] if kept else 0.0
        self._file.close()
        # Whole or not at all: another kill must not take the beginning away.
        write_atomic(self._path, "".join(map(_line, rows)).encode())
        self._file = self._path.open("a", encoding="utf-8")
        self.rows = rows
        if self._look:
            self._add_look(self._look)
            self._look = {}

    def _add_look(self, look: dict[str, float]) -> None:
        step, name = self.rows[-1]["step"] if self.rows else 0, self.task.primary.name
        if not any(name in row for row in self.rows if row["step"] == step):
            self._add({"step": step, **look})

    def _add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self._file.write(_line(row))
        self._file.flush()


def _line(row: dict[str, float]) -> str:
    return json.dumps(row) + "\n"


def _read(path: Path) -> list[dict[str, float]]:
    """Rows of an interrupted fit; a last line that a kill cut off is left out."""
    rows: list[dict[str, float]] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return rows
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not {"step", "seconds"} <= row.keys():
            break
        rows.append(row)
    return rows
