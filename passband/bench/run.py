"""One cell: a system with a preset, on a task, with a seed -> one result row.

>>> cell = Cell("gp-hm", "poisson1d-mix", budget="2m", overrides={"kernel": "gm"})
>>> result = run_cell(cell, Path("runs"))
>>> result.metrics["relative_l2"]
2.4e-08

All that is cheap is checked first, so that a wrong name never costs an hour. The row is the last
thing written: a cell that is interrupted leaves a checkpoint and no row.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from passband import catalog
from passband.bench import facts
from passband.bench.budget import Budget
from passband.bench.failures import describe, failures
from passband.bench.memory import PeakMemory
from passband.bench.randomness import isolated
from passband.bench.recorder import Recorder
from passband.bench.results import (
    CELLS,
    CHECKPOINT,
    CURVES,
    RESULTS,
    RUNNING,
    SYSTEM,
    Result,
    ResultsFile,
    locked,
    timestamp,
    write_atomic,
)
from passband.bench.system import Monitor, System
from passband.bench.task import Data, Size, Task
from passband.catalog import Card
from passband.errors import (
    BudgetError,
    ConfigError,
    DataError,
    PassbandWarning,
    ResultsError,
    UnknownNameError,
)

LEAST_FREE = 100 * 2**20  # bytes on the disk of the runs folder, below which nothing is begun


@dataclass(frozen=True)
class Cell:
    """All that defines a cell, as plain values: it travels to other processes and machines.

    budget     text as `Budget.parse` reads it; empty for the preset's own
    overrides  configuration fields that differ from the preset
    data       path of the user's own data; empty for the task's embedded data
    model      folder of the user's own model, for tasks that take one; empty for the task's
    """

    system: str
    task: str
    preset: str = "small"
    size: str = "small"
    seed: int = 0
    budget: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    model: str = ""

    @property
    def key(self) -> str:
        """Names the cell and its folder: readable, and a hash of all that defines it.

        >>> Cell("gp-hm", "advection", seed=3, budget="2m").key
        'gp-hm_advection_3_3da9ca31d999'
        """
        asked = asdict(self) | {"budget": asdict(Budget.parse(self.budget or None))}
        if not self.model:  # keys of cells without one are older than the field
            del asked["model"]
        text = json.dumps(asked, sort_keys=True, default=str)
        name = re.sub(r"[^\w-]+", "-", f"{self.system}_{self.task}_{self.seed}")
        return f"{name}_{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"

    def __str__(self) -> str:
        return f"{self.system} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """A checked cell with what its names stand for."""

    cell: Cell
    card: Card
    task: Task
    budget: Budget
    code_hash: str
    data: dict[str, str]

    def done_by(self, row: Result) -> bool:
        """Whether a row is this cell's, without error, by the same code on the same data."""
        return (
            row.key == self.cell.key and not row.error and row.code_hash == self.code_hash
            and row.versions == facts.versions() and row.task_version == self.task.version
            and row.data == self.data
        )


def user_path(path: str | Path | None) -> str:
    """A path of the user's as the text of a cell: the same from every working folder."""
    return "" if path is None else str(Path(path).expanduser().resolve())


def budget_text(budget: Budget | str | None) -> str:
    """A budget as the text of a cell."""
    if budget is None or isinstance(budget, str):
        return budget or ""
    parts = ((budget.steps, "steps"), (budget.seconds, "s"), (budget.examples, "examples"))
    return ", ".join(f"{value} {unit}" for value, unit in parts if value is not None)


# ---- checks ----------------------------------------------------------------------------------


def check(cell: Cell) -> Job:
    """Everything about a cell that can be wrong and is cheap to see; raises a PassbandError."""
    card, task = catalog.get(cell.system), catalog.task(cell.task)
    if not catalog.enters(card, task):
        able = [one.id for one in catalog.cards().values() if catalog.enters(one, task)]
        of = f" of the family {task.family!r}" if task.family else ""
        raise ConfigError(
            f"{card.id!r} can't enter the task {task.name!r}, which is for the verb {task.verb!r}"
            f"{of}",
            expected=f"a system with that verb; {card.id!r} has {', '.join(card.verbs)}",
            mend=f"systems that can: {', '.join(able)}" if able else "",
        )
    if cell.size not in get_args(Size):
        raise UnknownNameError("size", cell.size, get_args(Size))
    if isinstance(cell.seed, bool) or not isinstance(cell.seed, int) or cell.seed < 0:
        raise ConfigError(f"seed = {cell.seed!r}", expected="an integer from 0 up")
    if not isinstance(cell.budget, str):
        raise BudgetError(f"budget = {cell.budget!r}", expected="text", mend="for example '2m'")
    budget = Budget.parse(cell.budget or None)
    card.check(cell.preset, **cell.overrides)
    data = {"path": cell.data, "hash": data_hash(Path(cell.data))} if cell.data else {}
    if cell.model:
        data |= {"model": cell.model, "model_hash": _model_hash(Path(cell.model), task)}
    return Job(cell, card, task, budget, facts.code_hash(card, task), data)


def _model_hash(path: Path, task: Task) -> str:
    if not task.takes_model:
        able = [t.name for t in catalog.tasks().values() if t.takes_model and t.verb == task.verb]
        raise ConfigError(
            f"the task {task.name!r} takes no model of yours", expected="no --model (model=...)",
            mend=f"tasks that take one: {', '.join(able)}" if able else "leave --model out",
        )
    if not path.is_dir():
        raise DataError(
            f"the model {path} is no folder", expected="a folder with a saved model",
            mend="check the path given as model",
        )
    return data_hash(path)


def check_runs(runs: Path) -> None:
    """The runs folder can be written and its disk has room."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs):
            free = shutil.disk_usage(runs).free
    except OSError as error:
        raise ResultsError(
            f"the runs folder {runs} can't be written: {error.strerror or error}",
            expected="a writable folder", mend="choose another one with --runs (runs=...)",
        ) from None
    if free < LEAST_FREE:
        raise ResultsError(
            f"the disk of the runs folder {runs} has {free // 2**20} MiB left",
            expected=f"at least {LEAST_FREE // 2**20} MiB",
            mend="make room, or choose a folder on another disk with --runs (runs=...)",
        )


def data_hash(path: Path) -> str:
    """Hash of a file's content; of a folder's names, sizes and times of change."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                status = file.stat()
                entry = f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n"
                digest.update(entry.encode())
        else:
            with path.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
    except OSError as error:
        raise DataError(
            f"{path} can't be read: {error.strerror}", expected="a readable file or folder",
            mend="check the path",
        ) from None
    return digest.hexdigest()


def finished(job: Job, rows: Mapping[str, Result]) -> Result | None:
    """The row of a cell that needs no second run, among the latest rows by key."""
    row = rows.get(job.cell.key)
    if row is None or job.done_by(row):
        return row
    if not row.error:
        warnings.warn(
            f"{job.cell} was finished by other code or versions, or on other data; it runs anew",
            PassbandWarning, stacklevel=3,
        )
    return None


# ---- the run ---------------------------------------------------------------------------------


def run_cell(
    cell: Cell, runs: Path | str, *, resume: bool = False, monitor: Monitor | None = None,
    artifacts: bool = True,
) -> Result:
    """Run one cell and append its row to `runs/results.jsonl`.

    resume     return the row of a finished cell; continue an interrupted one
    monitor    receives logged values and progress
    artifacts  False: no pictures or sounds

    Raises a PassbandError for what a user can mend, and whatever the system raised. A metric that
    is not finite makes a row with `error`.
    """
    runs = Path(runs)
    job = check(cell)
    check_runs(runs)
    folder, file = runs / CELLS / cell.key, ResultsFile(runs / RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{cell} is being run by another process in {runs}"
    with locked(folder / ".lock", timeout=0, busy=busy):
        done = finished(job, file.latest()) if resume else None
        if done is not None:
            _clear(folder)  # a kill may have come after the row
            return done
        resume = resume and _interrupted(folder, job)
        if not resume:
            _clear(folder)
        note = {"cell": asdict(cell), "pid": os.getpid(), "since": timestamp(), **_origin(job)}
        write_atomic(folder / RUNNING, json.dumps(note, default=str).encode())
        _warm_up()
        with isolated(cell.seed):
            result = _measure(job, folder, resume=resume, outer=monitor, artifacts=artifacts)
        result = file.append(result)
        _clear(folder)
    return result


def run_or_record(
    cell: Cell, runs: Path | str, *, resume: bool = False, monitor: Monitor | None = None,
    artifacts: bool = True,
) -> Result:
    """`run_cell` for a place in a comparison: the failure of a method becomes a row with `error`.

    Defects in code and a results file that can't be written are raised.
    """
    try:
        return run_cell(cell, runs, resume=resume, monitor=monitor, artifacts=artifacts)
    except ResultsError:
        raise
    except failures() as error:
        row = _row(check(cell), metrics={}, error=describe(error))
    row = ResultsFile(Path(runs) / RESULTS).append(row)
    _clear(Path(runs) / CELLS / cell.key)
    return row


def _warm_up() -> None:
    """Let systems that train by the loop find torch's optimisers ready: their first use in a
    process imports a compiler for seconds, which are no method's."""
    optim = sys.modules.get("passband.bench.optim")
    if optim is not None:
        optim.warm_up()


def _measure(
    job: Job, folder: Path, *, resume: bool, outer: Monitor | None, artifacts: bool
) -> Result:
    cell, task = job.cell, job.task
    model = {"model": Path(cell.model)} if cell.model else {}
    if cell.data:
        data = task.read(Path(cell.data), **model)
    else:
        data = task.data(cell.seed, _size(cell), **model)
    with PeakMemory() as peak:
        system = job.card.create(cell.preset, seed=cell.seed, **cell.overrides)
        system.checkpoints, system.resume = folder / CHECKPOINT, resume
        with Recorder(task, data, folder, resume=resume, outer=outer) as recorder:
            spent = dict(system.fit(data.for_fit(), job.budget, recorder))
        began = time.perf_counter()
        with isolated(cell.seed):  # the same draws, whether or not the fit was resumed
            metrics = task.evaluate(system, data)
        seconds = {"fit": recorder.seconds, "evaluate": time.perf_counter() - began}
    if not {"steps", "selected"} <= spent.keys():
        raise TypeError(f"fit of {cell.system} returned {sorted(spent)}, not steps, selected")
    _check_metrics(task, metrics)
    broken = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    system.save(folder / SYSTEM)
    shown = _artifacts(task, system, data, folder) if artifacts and not broken else []
    return _row(
        job, metrics={} if broken else {n: float(v) for n, v in metrics.items()},
        error=", ".join(broken), seconds=seconds,
        peak_memory=peak.bytes, peak_gpu_memory=peak.gpu_bytes,
        parameters=system.parameter_count(),
        file_bytes=sum(p.stat().st_size for p in (folder / SYSTEM).iterdir()),
        selected=str(spent.pop("selected")), spent={"seconds": seconds["fit"], **spent},
        curves=recorder.curves(), artifacts=shown, folder=f"{CELLS}/{cell.key}",
    )


def _row(
    job: Job, *, metrics: dict[str, float], error: str, seconds: dict[str, float] | None = None,
    spent: dict[str, Any] | None = None, selected: str = "", peak_memory: int = 0,
    parameters: int = 0, file_bytes: int = 0, **more: Any,
) -> Result:
    cell = job.cell
    return Result(
        key=cell.key, system=cell.system, preset=cell.preset, overrides=dict(cell.overrides),
        task=cell.task, task_version=job.task.version, size=cell.size, seed=cell.seed,
        metrics=metrics, seconds=seconds or {}, peak_memory=peak_memory, parameters=parameters,
        file_bytes=file_bytes, budget=asdict(job.budget), spent=spent or {}, selected=selected,
        versions=facts.versions(), dirty=facts.dirty(), machine=facts.machine(), error=error,
        when=timestamp(), **_origin(job), **more,
    )


def _origin(job: Job) -> dict[str, Any]:
    return {"code_hash": job.code_hash, "data": job.data}


def _size(cell: Cell) -> Size:
    return next(size for size in get_args(Size) if size == cell.size)


def _check_metrics(task: Task, metrics: Mapping[str, float]) -> None:
    unknown = metrics.keys() - {metric.name for metric in task.metrics}
    if unknown:
        raise TypeError(f"the task {task.name!r} returned metrics it doesn't declare: {unknown}")


def _artifacts(
    task: Task, system: System, data: Data[Any], folder: Path
) -> list[dict[str, Any]]:
    try:
        return [asdict(artifact) for artifact in task.artifacts(system, data, folder)]
    except Exception as error:  # noqa: BLE001 - a failed picture must not cost the hours of a fit
        warnings.warn(
            f"no pictures for this result: {describe(error)}", PassbandWarning, stacklevel=2
        )
        return []


def _interrupted(folder: Path, job: Job) -> bool:
    """Whether the folder holds the beginning of this cell by the same code on the same data."""
    try:
        note = json.loads((folder / RUNNING).read_bytes())
    except (OSError, ValueError):
        return False
    same = all(note.get(name) == value for name, value in _origin(job).items())
    if not same:
        warnings.warn(
            f"{job.cell} was interrupted, but code or data have changed since; it starts anew",
            PassbandWarning, stacklevel=3,
        )
    return same


def _clear(folder: Path) -> None:
    """Remove what only a running or interrupted cell has; the note goes last."""
    checkpoint = folder / CHECKPOINT
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    for name in (CHECKPOINT, CURVES, RUNNING):
        (folder / name).unlink(missing_ok=True)
