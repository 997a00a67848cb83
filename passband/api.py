"""The public functions, re-exported lazily by `passband`.

>>> import passband
>>> result = passband.train("gp-hm", "poisson1d-mix", budget="1m")
>>> solver = passband.load(Path("runs") / result.folder)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passband import catalog
from passband.bench.results import CELLS
from passband.catalog import Card
from passband.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from passband.bench.budget import Budget
    from passband.bench.compare import Comparison
    from passband.bench.dispatch import Progress
    from passband.bench.prove import ClaimRow
    from passband.bench.results import Result
    from passband.bench.system import Monitor, System

# Receives the share of the whole work that is done, in [0, 1], and what is being done.
ProgressCallback = Callable[[float, str], None]


def list_systems(
    words: str = "", *, family: str | None = None, verb: str | None = None, kind: str = "system"
) -> list[Card]:
    """Cards whose id, title or summary has every word; imports no torch.

    >>> [card.id for card in list_systems("gp*", family="pde")]
    ['gp-hm']

    kind  "system" or "baseline"
    Raises UnknownNameError for an unknown family.
    """
    return catalog.select(words, family=family, verb=verb, kind=kind)


def info(name: str) -> dict[str, Any]:
    """Everything about one system as plain values: card, presets, fields, tasks, claims.

    >>> info("gp-hm")["tasks"][0]["name"]
    'poisson1d-single'

    `fields` has name, type, default, unit, range and description of each configuration field.
    Raises UnknownNameError with the nearest ids.
    """
    from passband.bench.fields import fields_of

    card = catalog.get(name)
    cls = card.load()
    facts = {name: value for name, value in asdict(card).items() if name != "folder"}
    return facts | {
        "needs_fit": cls.needs_fit,
        "presets": {
            preset: {**values, **card.config} for preset, values in cls.presets.items()
        },
        "fields": fields_of(cls.Config),
        "tasks": [
            {"name": task.name, "verb": task.verb, "summary": task.summary,
             "metrics": [asdict(metric) for metric in task.metrics]}
            for task in catalog.tasks().values() if catalog.enters(card, task)
        ],
    }


def create(name: str, preset: str = "small", *, seed: int = 0, **overrides: Any) -> System:
    """Build a system from a preset with single fields changed.

    >>> solver = create("gp-hm", preset="smoke", kernel="gm")

    Raises UnknownNameError (system, preset, field) and ConfigError (a value out of range).
    """
    from passband.bench import saved

    return saved.create(name, preset, seed=seed, **overrides)


def load(folder: str | Path) -> System:
    """A saved system, from the folder of `save` or of a finished cell.

    >>> solver = load("runs/cells/gp-hm_advection_0_7d0f5c2f9d0e")

    The class comes from the catalog, never from the text of the file. Raises CheckpointError for
    a folder that is damaged, of another format, or of a class that no card names.
    """
    from passband.bench import saved

    return saved.load(folder)


def train(
    system: str, task: str | None = None, *, preset: str = "small",
    data: str | Path | None = None, model: str | Path | None = None,
    budget: Budget | str | None = None, seed: int = 0, size: str = "small", resume: bool = False,
    runs: str | Path = "runs", monitor: Monitor | None = None, **overrides: Any,
) -> Result:
    """Train a system on a task, evaluate and save it; returns the result row.

    >>> result = train("gp-hm", "poisson1d-mix", budget="30s", kernel="gm")
    >>> result.metrics["relative_l2"], result.folder
    (2.4e-08, 'cells/gp-hm_poisson1d-mix_0_5b7a2c1f90aa')

    task     None: the first task of the card
    data     the user's own data in place of the task's, read by `task.read`
    model    folder of the user's own model in place of the task's, where the task takes one
    budget   '2m', '500 steps', '10k examples', several joined by commas; None: the preset's own
    resume   return the row of a finished run, continue an interrupted one
    runs     folder of results; the system is saved in `runs/<result.folder>/system`
    monitor  receives logged values and progress

    Raises a PassbandError for what can be mended, before any long work where it can be seen.
    """
    from passband.bench.run import Cell, budget_text, run_cell, user_path

    card = catalog.get(system)
    if task is None and not card.tasks:
        raise ConfigError(
            f"{system!r} names no task of its own", expected="a task",
            mend=f"give one: {', '.join(t['name'] for t in info(system)['tasks']) or 'none fits'}",
        )
    cell = Cell(
        system, task or card.tasks[0], preset, size, seed, budget_text(budget), overrides,
        user_path(data), user_path(model),
    )
    return run_cell(cell, runs, resume=resume, monitor=monitor)


def apply(
    system: str | Path, inputs: str | Path | Iterable[str | Path], out: str | Path = "out", *,
    preset: str = "small", seed: int = 0, monitor: Monitor | None = None, **overrides: Any,
) -> list[Path]:
    """Apply a trained system, or one that needs no training, to the user's files.

    >>> apply("gp-hm", "problem.npz", out="solution")
    [PosixPath('solution/solution.npz'), ...]
    >>> apply("runs/cells/tiger_two-talkers_0_1c5e8f0a77b2", ["a.wav", "b.wav"], out="separated")

    system   folder of a saved system or of a finished cell; or an id of the catalog whose class
             has `needs_fit = False`
    inputs   one path or several; of several, each gets its own folder in `out`
    monitor  receives progress, of one file after the other
    preset, seed, overrides: for an id only
    """
    paths = [Path(p) for p in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    if not paths:
        raise DataError("no input files", expected="at least one path")
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} doesn't exist", expected="a file", mend="check the path")
    ready = _ready(system, preset, seed, overrides)
    out = Path(out)
    folders = [out] if len(paths) == 1 else [out / name for name in _folders(paths)]
    for folder in folders:
        _make(folder)
    return [
        file for path, folder in zip(paths, folders, strict=True)
        for file in ready.apply_file(path, folder, monitor)
    ]


def compare(
    systems: Sequence[str], task: str, *, seeds: int | Sequence[int] = 3, preset: str = "small",
    data: str | Path | None = None, model: str | Path | None = None,
    budget: Budget | str | None = None, size: str = "small",
    overrides: Mapping[str, Mapping[str, Any]] | None = None, baselines: bool = False,
    reference: str = "first", runs: str | Path = "runs", engine: str = "local",
    processes: int | None = None, address: str | None = None, resume: bool = True,
    artifacts: bool = True, progress: ProgressCallback | None = None,
) -> Comparison:
    """Systems on the same data with the same seeds and budget, with paired statistics.

    >>> result = compare(["gp-hm", "chebyshev"], "poisson1d-random", seeds=5, budget="30s")
    >>> [(s.system, s.metrics["relative_l2"].mean, s.fit_seconds) for s in result.summaries]
    [('gp-hm', 3.2e-06, 2.2), ('chebyshev', 4e-11, 0.03)]

    Arguments as in `passband.bench.compare.compare`; `resume` takes finished cells of the same
    code, `progress` is called with (share done, text).
    """
    from passband.bench import compare as engine_room

    return engine_room.compare(
        systems, task, seeds=seeds, preset=preset, data=data, model=model, budget=budget,
        size=size, overrides=overrides, baselines=baselines, reference=reference, runs=runs,
        engine=engine, processes=processes, address=address, resume=resume, artifacts=artifacts,
        progress=_events(progress),
    )


def reproduce(
    systems: str | Sequence[str] | None = None, *, claims: Sequence[str] | None = None,
    smoke: bool = False, calibrate: bool = False, reuse: bool = False,
    runs: str | Path = "runs", engine: str = "local", processes: int | None = None,
    address: str | None = None, progress: ProgressCallback | None = None,
) -> list[ClaimRow]:
    """Prove the claims of systems (None: of all): reported, obtained, verdict.

    >>> for row in reproduce("gp-hm", smoke=True):
    ...     print(row.claim, row.evidence.verdict, row.evidence.obtained)
    C1 holds 2.4e-08 [1.9e-08, 3.0e-08], n = 3

    Arguments as in `passband.bench.prove.reproduce`; `claims` are ids, `progress` is called with
    (share done, text).
    """
    from passband.bench import prove

    return prove.reproduce(
        systems, claim_ids=claims, smoke=smoke, calibrate=calibrate, reuse=reuse, runs=runs,
        engine=engine, processes=processes, address=address, progress=_events(progress),
    )


# ---- helpers ---------------------------------------------------------------------------------


def _ready(system: str | Path, preset: str, seed: int, overrides: Mapping[str, Any]) -> System:
    """A system that can be applied at once."""
    name = str(system)
    if Path(system).is_dir() and name not in catalog.cards():
        if overrides:
            raise ConfigError(
                f"{', '.join(overrides)} can't be changed in a saved system",
                expected="no fields beside a folder", mend="train again with other fields",
            )
        return load(system)
    if isinstance(system, Path) or "/" in name:
        raise CheckpointError(
            f"{name} is no folder", expected="a saved system, or an id of the catalog",
            mend=f"trained systems lie in runs/{CELLS}/",
        )
    card = catalog.get(name)
    if card.load().needs_fit:
        raise ConfigError(
            f"{name!r} has to be trained before it can be applied",
            expected="the folder of a trained one",
            mend=f"passband train {name}, then give its folder in runs/{CELLS}/",
        )
    return card.create(preset, seed=seed, **overrides)


def _make(folder: Path) -> None:
    """The folder for what is written; refused before any long work starts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} can't be written: {error.strerror or error}",
            expected="a writable folder", mend="choose another one with --out (out=...)",
        ) from None


def _folders(paths: Sequence[Path]) -> list[str]:
    """A folder name for each input: its stem, numbered where stems repeat."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}-{number}", number + 1
        names.append(name)
    return names


def _events(progress: ProgressCallback | None) -> Callable[[Progress], None] | None:
    """A callback of (share, text) as a receiver of the engine's events."""
    if progress is None:
        return None

    def receive(event: Progress) -> None:
        running = 0.0 if event.outcome is not None else event.fraction
        share = (event.done + running) / event.total if event.total else 1.0
        progress(share, ": ".join(part for part in (event.label, event.text) if part))

    return receive
