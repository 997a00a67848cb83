"""Many cells at once: processes of this machine, or a Ray cluster, by one argument.

>>> cells = [Cell("gp-hm", "poisson1d-random", seed=seed) for seed in range(8)]
>>> rows = dispatch(cells, Path("runs"))                                      # local processes
>>> rows = dispatch(cells, Path("runs"), engine="ray", address="head:6379")   # a cluster
>>> [row.seed for row in rows]
[0, 1, 2, 3, 4, 5, 6, 7]

Rows are the same on both, up to timings.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from passband import catalog
from passband.bench.results import CELLS, RESULTS, Result, ResultsFile, write_atomic
from passband.bench.run import Cell, check, check_runs, finished, run_or_record
from passband.errors import (
    ConfigError,
    MissingExtraError,
    PassbandWarning,
    ResultsError,
    UnknownNameError,
)

LARGEST = 64 * 2**20  # bytes of one file that travels from a worker's disk to the driver's


@dataclass(frozen=True)
class Progress:
    """What a progress callback receives: when an item starts, moves on or ends.

    done, total  items (cells, or claims of a `reproduce`) that have ended, and all of them
    label        the item in question, "gp-hm on poisson1d-mix, seed 0"
    fraction     of that item, in [0, 1]; known while it runs in this process
    text         what it does just now
    outcome      its row when it has just ended
    """

    done: int
    total: int
    label: str = ""
    fraction: float = 0.0
    text: str = ""
    outcome: Any = None


Report: TypeAlias = Callable[[Progress], None]


class CrashError(RuntimeError):
    """A defect in code that ended a cell; the other cells have finished. Has the traceback."""


@dataclass(frozen=True)
class Outcome:
    """What comes back from a worker: a row, or the traceback of a defect."""

    index: int
    result: Result | None = None
    crash: str = ""
    files: Mapping[str, bytes] | None = None  # of the cell's folder, from another disk
    left: tuple[str, ...] = ()  # files too large to travel
    warned: tuple[str, ...] = ()  # the worker's warnings: its own stderr is nobody's to read


def dispatch(
    cells: Sequence[Cell], runs: Path | str, *, engine: str = "local",
    processes: int | None = None, address: str | None = None, resume: bool = False,
    artifacts: bool = True, progress: Report | None = None,
) -> list[Result]:
    """Run cells and return their rows in the order of `cells`; equal cells run once.

    engine     "local": processes of this machine; "ray": a Ray cluster (the extra `ray`)
    processes  cells at a time; None: as many as there are cores. The cores are divided among
               them. 1 (local) runs in this process.
    address    of a running Ray cluster, whose machines have passband installed and see the paths
               of user data; None starts one on this machine for the call
    resume     finished cells give their rows, interrupted ones go on (on this machine's disk)
    progress   called with `Progress`

    Every cell is checked before the first one starts: names, presets, fields, budgets, paths.
    A method that fails makes a row with `error`; a defect in code raises CrashError when the
    other cells are done and their rows are written.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if processes is not None and processes < 1:
        raise ConfigError(f"processes = {processes}", expected="1 or more, or None for all cores")
    runs = Path(runs)
    unique = {cell.key: cell for cell in cells}
    jobs = {key: check(cell) for key, cell in unique.items()}
    check_runs(runs)
    rows: dict[str, Result] = {}
    if resume:
        latest = ResultsFile(runs / RESULTS).latest()
        found = {key: finished(job, latest) for key, job in jobs.items()}
        rows = {key: row for key, row in found.items() if row is not None}
    report = progress or _silent
    todo = [cell for key, cell in unique.items() if key not in rows]
    work = Work(todo, runs.absolute(), processes, address, resume, artifacts, report, len(rows))
    report(Progress(len(rows), len(unique)))
    crashes: list[str] = []
    warned: dict[str, None] = {}
    for outcome in ENGINES[engine](work) if todo else ():
        cell = todo[outcome.index]
        warned |= {f"{cell}: {text}": None for text in outcome.warned}
        if outcome.result is None:
            crashes.append(f"{cell} crashed:\n{outcome.crash}")
            continue
        rows[cell.key] = outcome.result
        done = len(rows) + len(crashes)
        report(Progress(done, len(unique), str(cell), 1.0, outcome=outcome.result))
    for text in warned:  # last: a warning that is turned into an error must not cost a row
        warnings.warn(text, PassbandWarning, stacklevel=2)
    if crashes:
        raise CrashError("\n".join(crashes))
    return [rows[cell.key] for cell in cells]


@dataclass(frozen=True)
class Work:
    """What an engine gets."""

    cells: Sequence[Cell]
    runs: Path
    processes: int | None
    address: str | None
    resume: bool
    artifacts: bool
    report: Report
    before: int  # cells that were done already

    @property
    def total(self) -> int:
        return self.before + len(self.cells)


def _silent(_: Progress) -> None:
    return None


# ---- this machine ----------------------------------------------------------------------------


def _local(work: Work) -> Iterator[Outcome]:
    import joblib

    cores = joblib.cpu_count()
    processes = min(work.processes or cores, len(work.cells))
    if processes == 1:
        for index, cell in enumerate(work.cells):
            yield _attempt(index, cell, work, _CellMonitor(work, index, cell))
        return
    threads = max(1, cores // processes)
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(given)) if given.isdecimal() and int(given) else threads
    quiet = replace(work, report=_silent)  # a callback stays in its process
    with (
        joblib.parallel_config(backend="loky", inner_max_num_threads=threads),
        warnings.catch_warnings(),
    ):
        # loky renews a worker whose memory has grown; its cells are not lost.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
        parallel = joblib.Parallel(n_jobs=processes, return_as="generator_unordered")
        yield from parallel(
            joblib.delayed(_in_process)(index, cell, quiet, threads)
            for index, cell in enumerate(work.cells)
        )


def _in_process(index: int, cell: Cell, work: Work, threads: int) -> Outcome:
    with _warnings() as warned:
        outcome = _attempt(index, cell, work, threads=threads)
    return replace(outcome, warned=tuple(warned))


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The texts of our warnings, filled when the block ends; others are shown as ever."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", PassbandWarning)
        yield texts
    for item in caught:
        if issubclass(item.category, PassbandWarning):
            texts.append(str(item.message))
        else:
            warnings.showwarning(item.message, item.category, item.filename, item.lineno)


def _attempt(
    index: int, cell: Cell, work: Work, monitor: _CellMonitor | None = None,
    threads: int | None = None,
) -> Outcome:
    try:
        if threads is not None:
            _limit_threads(cell, threads)
        row = run_or_record(
            cell, work.runs, resume=work.resume, monitor=monitor, artifacts=work.artifacts
        )
    except ResultsError:  # no row can be written: going on would be in vain
        raise
    except Exception:  # noqa: BLE001 - a defect in one cell: `dispatch` raises it after the others
        return Outcome(index, crash=traceback.format_exc())
    return Outcome(index, row)


def _limit_threads(cell: Cell, threads: int) -> None:
    """The environment rules libraries that load from now on; torch is told when it is here."""
    catalog.get(cell.system).load()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


class _CellMonitor:
    """Turns the progress of a fit in this process into events."""

    def __init__(self, work: Work, index: int, cell: Cell) -> None:
        self._work, self._done, self._label = work, work.before + index, str(cell)
        self.progress(0.0)

    def log(self, step: int, seconds: float, **values: float) -> None:
        return None

    def progress(self, fraction: float, text: str = "") -> None:
        self._work.report(
            Progress(self._done, self._work.total, self._label, fraction, text)
        )

    def test_error(self, system: Any) -> None:
        return None


# ---- Ray -------------------------------------------------------------------------------------


def _ray(work: Work) -> Iterator[Outcome]:
    """Workers may have other disks: each runs in a folder of its own and sends its files back."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    with _cluster(ray, work):
        task = ray.remote(_on_worker).options(num_cpus=1, max_retries=0)
        running: dict[Any, int] = {}
        waiting = iter(enumerate(work.cells))
        limit = work.processes or _cluster_cores(ray)
        while True:
            while len(running) < limit and (following := next(waiting, None)) is not None:
                index, cell = following
                running[task.remote(index, cell, work.artifacts)] = index
            if not running:
                return
            ready, _ = ray.wait(list(running))
            for reference in ready:
                index = running.pop(reference)
                try:
                    outcome: Outcome = ray.get(reference)
                except ray.exceptions.RayError as error:  # the worker died, out of memory, ...
                    outcome = Outcome(index, crash=str(error))
                yield _bring_home(outcome, work)


def _cluster_cores(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextmanager
def _cluster(ray: Any, work: Work) -> Iterator[None]:
    """The cluster at an address, the one that the program is connected to, or a new local one."""
    if ray.is_initialized():
        yield
        return
    where = {"address": work.address} if work.address else {
        "num_cpus": work.processes or os.cpu_count(), "include_dashboard": False,
    }
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=False, **where)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster at {work.address!r}: {error}", expected="host:port of a head node",
            mend="start one with `ray start --head`, or leave the address out",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _on_worker(index: int, cell: Cell, artifacts: bool) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="passband-") as temporary:
        runs = Path(temporary)
        work = Work([cell], runs, 1, None, False, artifacts, _silent, 0)
        with _warnings() as warned:
            outcome = _attempt(index, cell, work)
        files, left = {}, []
        folder = runs / CELLS / cell.key
        for path in sorted(folder.rglob("*")) if outcome.result else ():
            name = path.relative_to(folder).as_posix()
            if not path.is_file() or name == ".lock":
                continue
            if path.stat().st_size > LARGEST:
                left.append(name)
            else:
                files[name] = path.read_bytes()
        return replace(outcome, files=files, left=tuple(left), warned=tuple(warned))


def _bring_home(outcome: Outcome, work: Work) -> Outcome:
    """Write the files and then the row of a worker where the driver keeps its runs."""
    if outcome.result is None:
        return outcome
    cell = work.cells[outcome.index]
    folder = work.runs / CELLS / cell.key
    for name, content in (outcome.files or {}).items():
        write_atomic(folder / name, content)
    if outcome.left:
        warnings.warn(
            f"{cell}: {', '.join(outcome.left)} stayed on the worker (over "
            f"{LARGEST // 2**20} MiB each)", PassbandWarning, stacklevel=2,
        )
    return replace(outcome, result=ResultsFile(work.runs / RESULTS).append(outcome.result))


ENGINES: dict[str, Callable[[Work], Iterator[Outcome]]] = {"local": _local, "ray": _ray}
