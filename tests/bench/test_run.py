"""One cell: its key, its row, what it leaves behind, and what it refuses."""

from __future__ import annotations

import inspect
import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passband import catalog
from passband.bench import run as run_module
from passband.bench.budget import Budget
from passband.bench.recorder import Recorder
from passband.bench.results import CELLS, CHECKPOINT, CURVES, RESULTS, RUNNING, ResultsFile, locked
from passband.bench.run import Cell, budget_text, run_cell, run_or_record
from passband.bench.system import System
from passband.bench.task import COSTS
from passband.errors import (
    BudgetError,
    ConfigError,
    DataError,
    PassbandError,
    PassbandWarning,
    ResultsError,
    UnknownNameError,
)

pytestmark = pytest.mark.usefixtures("fakes")


def cell(**fields: Any) -> Cell:
    overrides = fields.pop("overrides", {})
    return Cell("fakes-line", "fakes-line", overrides=overrides, **fields)


# ---- keys ------------------------------------------------------------------------------------


def test_key_is_the_same_for_the_same_request_and_only_then() -> None:
    keys = {
        cell().key, cell(seed=1).key, cell(preset="smoke").key, cell(size="smoke").key,
        cell(budget="2m").key, cell(overrides={"steps": 3}).key, cell(data="x.csv").key,
        Cell("fakes-average", "fakes-line").key, cell(model="mine").key,
    }
    assert len(keys) == 9
    assert cell(budget="2m").key == cell(budget="120s").key
    one, other = {"steps": 3, "pause": 0.1}, {"pause": 0.1, "steps": 3}
    assert cell(overrides=one).key == cell(overrides=other).key
    # Written down: runs folders outlive versions of this code.
    assert Cell("a", "b").key == "a_b_0_3f7231d638e7"


def test_a_model_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'fakes-line' takes no model[\s\S]*fakes-shifted"):
        run_cell(cell(model=str(tmp_path)), tmp_path / "runs")
    with pytest.raises(DataError, match="no folder"):
        run_cell(Cell("fakes-line", "fakes-shifted", model=str(tmp_path / "none")), tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", catalog.tasks())
def test_tasks_that_take_a_model_have_it_in_both_readers(name: str) -> None:
    task = catalog.task(name)
    if task.takes_model:
        for reader in (task.data, task.read):
            assert inspect.signature(reader).parameters["model"].default is None
    names = {*COSTS, *(metric.name for metric in task.metrics)}
    assert all({x, y} <= names for x, y in task.pareto)


def test_key_names_a_folder_whatever_the_names_are() -> None:
    assert "/" not in Cell("../../etc", "a b\n").key


@pytest.mark.parametrize(
    "budget",
    [Budget(), Budget(steps=7), Budget(seconds=1.25, examples=10**6), Budget(7, 12345.678)],
)
def test_budget_as_text_and_back(budget: Budget) -> None:
    assert Budget.parse(budget_text(budget) or None) == budget


# ---- rows ------------------------------------------------------------------------------------


def test_row_has_all_that_the_contract_lists(tmp_path: Path) -> None:
    row = run_cell(cell(seed=3, budget="20 steps", overrides={"steps": 9}), tmp_path)
    assert (row.system, row.task, row.seed, row.preset) == ("fakes-line", "fakes-line", 3, "small")
    assert row.overrides == {"steps": 9} and row.budget["steps"] == 20
    assert row.spent["steps"] == 20 and row.selected == "last" and "selected" not in row.spent
    assert isinstance(row.spent["residual"], float)
    assert row.parameters == 2 and row.error == "" and not row.data
    assert {"numpy", "python", "passband"} <= row.versions.keys()
    assert row.machine["cores"] >= 1 and row.machine["cpu"]
    folder = tmp_path / row.folder
    assert row.file_bytes == sum(p.stat().st_size for p in (folder / "system").iterdir())
    assert row.artifacts[0]["file"] == "weights.json" and (folder / "weights.json").exists()
    assert ResultsFile(tmp_path / RESULTS).read() == [row]
    assert not [n for n in (RUNNING, CHECKPOINT, CURVES) if (folder / n).exists()]


def test_metrics_are_those_of_the_task_on_its_own_test_part(tmp_path: Path) -> None:
    from passband import api, catalog

    row = run_cell(cell(seed=5), tmp_path)
    system, data = api.load(tmp_path / row.folder), catalog.task("fakes-line").data(5)
    gap = system.predict(data.test.x) - data.test.y
    assert row.metrics["mse"] == pytest.approx(float(np.mean(gap**2)), rel=1e-12)


def test_curves_and_time_without_the_looks_at_the_truth(tmp_path: Path) -> None:
    row = run_cell(cell(overrides={"look": 0.3}), tmp_path)
    # The three looks took 0.9 s: had they been counted, fit could not be below that.
    assert row.seconds["fit"] < 0.9 and row.seconds["evaluate"] >= 0.3
    curves = row.curves
    assert {len(column) for column in curves.values()} == {33}
    looked = [i for i, value in enumerate(curves["mse"]) if value == value]
    assert [curves["step"][i] for i in looked] == [10, 20, 30]
    assert curves["mse"][looked[-1]] == row.metrics["mse"]
    assert curves["seconds"] == sorted(curves["seconds"]) and curves["seconds"][-1] < 0.9


def test_looking_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = run_cell(cell(), tmp_path)
    monkeypatch.setattr("passband.bench.recorder.Recorder.test_error", lambda *_: None)
    assert run_cell(cell(), tmp_path).metrics == seen.metrics


def test_long_curves_are_thinned_but_keep_the_test_errors(tmp_path: Path) -> None:
    curves = run_cell(cell(budget="2500 steps"), tmp_path).curves
    looked = [value for value in curves["mse"] if value == value]
    assert len(looked) == 250 and len(curves["step"]) <= 1251 and curves["step"][-1] == 2500


def test_peak_memory_counts_what_fit_fills_for_a_moment(tmp_path: Path) -> None:
    row = run_cell(cell(overrides={"memory": 200 * 2**20}), tmp_path)
    assert 190 * 2**20 < row.peak_memory < 300 * 2**20


def test_global_random_streams_are_the_cells_own(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first = run_cell(cell(), tmp_path)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    np.random.seed(2)
    assert run_cell(cell(), tmp_path).untimed() == first.untimed()
    assert run_cell(cell(seed=1), tmp_path).metrics != first.metrics


def test_progress_and_logs_reach_the_monitor(tmp_path: Path) -> None:
    class Listener:
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.shares: list[float] = []

        def log(self, step: int, seconds: float, **values: float) -> None:
            self.steps.append(step)

        def progress(self, fraction: float, text: str = "") -> None:
            self.shares.append(fraction)

        def test_error(self, system: System) -> None:
            raise AssertionError("the truth is the engine's to look at")

    listener = Listener()
    run_cell(cell(budget="4 steps"), tmp_path, monitor=listener)
    assert listener.steps == [1, 2, 3, 4] and listener.shares == [0.25, 0.5, 0.75, 1.0]


def test_users_own_data(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("0,1\n1,3\n2,5\n")
    own = cell(data=str(path))
    row = run_cell(own, tmp_path / "runs")
    assert row.metrics == {} and row.error == "" and row.data["path"] == str(path)
    assert run_cell(own, tmp_path / "runs", resume=True) == row
    path.write_text("0,1\n1,3\n2,6\n")
    with pytest.warns(PassbandWarning, match="other data"):
        assert run_cell(own, tmp_path / "runs", resume=True).data["hash"] != row.data["hash"]


# ---- refusals before any work ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"preset": "smal"}, UnknownNameError, "did you mean 'small'"),
        ({"size": "huge"}, UnknownNameError, "size"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"budget": "2 parsecs"}, BudgetError, "2 parsecs"),
        ({"overrides": {"stepz": 3}}, UnknownNameError, "did you mean 'steps'"),
        ({"overrides": {"steps": 0}}, ConfigError, "steps"),
        ({"data": "/nowhere/x.csv"}, DataError, "/nowhere/x.csv"),
    ],
)
def test_wrong_cells_are_refused(
    tmp_path: Path, fields: dict[str, Any], error: type[PassbandError], words: str
) -> None:
    with pytest.raises(error, match=words):
        run_cell(cell(**fields), tmp_path)
    assert not (tmp_path / RESULTS).exists() and not (tmp_path / CELLS).exists()


def test_unknown_names_and_the_wrong_verb(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fakes-line'"):
        run_cell(Cell("fakes-lime", "fakes-line"), tmp_path)
    with pytest.raises(UnknownNameError, match="unknown task"):
        run_cell(Cell("fakes-line", "fakes-lime"), tmp_path)
    with pytest.raises(ConfigError, match="for the verb 'solve'"):
        run_cell(Cell("fakes-line", "poisson1d-mix"), tmp_path)


def test_runs_folder_that_cannot_be_written_or_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="can't be written"):
        run_cell(cell(), tmp_path / "file" / "runs")
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 3 * 2**20)
    monkeypatch.setattr(run_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResultsError, match="3 MiB left"):
        run_cell(cell(), tmp_path)


def test_a_cell_runs_once_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / CELLS / cell().key
    folder.mkdir(parents=True)
    with locked(folder / ".lock", timeout=0):
        code = f"from passband.bench.run import *; run_cell(Cell('fakes-line', 'fakes-line'), " \
               f"{str(tmp_path)!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "being run by another process" in done.stderr


# ---- failures --------------------------------------------------------------------------------


def test_failures_are_raised_alone_and_rows_in_a_comparison(tmp_path: Path) -> None:
    broken = {
        "error": "not to my taste", "singular": "LinAlgError: Singular matrix", "nan": "mse is nan"
    }
    for fail, words in broken.items():
        row = run_or_record(cell(overrides={"fail": fail}), tmp_path)
        assert words in row.error and row.metrics == {}
        assert not (tmp_path / CELLS / row.key / RUNNING).exists()
    with pytest.raises(DataError, match="not to my taste"):
        run_cell(cell(overrides={"fail": "error"}), tmp_path)
    with pytest.raises(TypeError, match="a defect in code"):
        run_or_record(cell(overrides={"fail": "crash"}), tmp_path)
    rows, damage = ResultsFile(tmp_path / RESULTS).scan()
    assert len(rows) == 3 and not damage and rows[-1].error == "mse is nan, r2 is nan"


def test_failed_pictures_cost_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(type(catalog.task("fakes-line")), "artifacts", fail)
    with pytest.warns(PassbandWarning, match="no ink"):
        row = run_cell(cell(), tmp_path)
    assert row.metrics and row.artifacts == []


# ---- resume ----------------------------------------------------------------------------------


def test_resuming_a_finished_cell_returns_its_row(tmp_path: Path) -> None:
    row = run_cell(cell(), tmp_path)
    assert run_cell(cell(), tmp_path, resume=True) == row
    assert len(ResultsFile(tmp_path / RESULTS).read()) == 1
    assert run_cell(cell(), tmp_path).when > row.when  # without it: a new run, a new row


def test_a_row_of_other_code_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_cell(cell(), tmp_path)
    monkeypatch.setattr(run_module.facts, "code_hash", lambda *_: "other")
    with pytest.warns(PassbandWarning, match="other code"):
        assert run_cell(cell(), tmp_path, resume=True).code_hash == "other"


SCRIPT = textwrap.dedent(
    """
    import sys
    from passband.bench.run import Cell, run_cell
    overrides = {"pause": 0.02}
    run_cell(Cell("fakes-line", "fakes-line", overrides=overrides), sys.argv[1], resume=True)
    """
)


def test_killed_cells_resume_to_the_row_of_an_uninterrupted_one(tmp_path: Path) -> None:
    paused = cell(overrides={"pause": 0.02})
    whole = run_cell(paused, tmp_path / "whole")
    runs = tmp_path / "killed"
    note = runs / CELLS / paused.key / CURVES
    kills = 0
    for reached in (4, 11, 22):  # logged rows at which the kill comes
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(runs)])
        while process.poll() is None:
            if note.exists() and note.read_bytes().count(b"\n") >= reached:
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            time.sleep(0.002)
        assert not ResultsFile(runs / RESULTS).read()
        assert json.loads((runs / CELLS / paused.key / RUNNING).read_text())["pid"] == process.pid
    assert kills == 3
    resumed = run_cell(paused, runs, resume=True)
    assert resumed.untimed() == whole.untimed()
    assert len(ResultsFile(runs / RESULTS).read()) == 1
    # The pauses of all four processes are in: a fit that began anew would also take this long,
    # but its curves would tell.
    assert resumed.seconds["fit"] >= 30 * 0.02
    assert resumed.curves["seconds"] == sorted(resumed.curves["seconds"])


def test_an_interrupted_cell_of_other_code_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("passband.bench.recorder.Recorder.test_error", stop)
        run_cell(cell(), tmp_path)
    folder = tmp_path / CELLS / cell().key
    assert (folder / CHECKPOINT).exists() and not (tmp_path / RESULTS).exists()
    note = json.loads((folder / RUNNING).read_text())
    (folder / RUNNING).write_text(json.dumps({**note, "code_hash": "other"}))
    with pytest.warns(PassbandWarning, match="starts anew"):
        row = run_cell(cell(), tmp_path, resume=True)
    assert row.curves["step"][0] == 1 and (tmp_path / row.folder).is_dir()


def test_a_resumed_fit_that_logs_nothing_keeps_its_curves(tmp_path: Path) -> None:
    """The kill came between the end of the fit and the row."""
    task, data = catalog.task("fakes-line"), catalog.task("fakes-line").data(0)
    with Recorder(task, data, tmp_path) as first:
        first.log(1, 0.0, loss=2.0)
        first.log(2, 0.0, loss=1.0)
    for _ in range(2):  # and once more
        with Recorder(task, data, tmp_path, resume=True) as again:
            pass
        assert again.curves() == first.curves()
        assert again.seconds >= first.curves()["seconds"][-1]
