"""Cells in this process, in two processes and on a Ray cluster give the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from passband.bench.dispatch import CrashError, Progress, dispatch
from passband.bench.results import RESULTS, ResultsFile
from passband.bench.run import Cell
from passband.errors import (
    ConfigError,
    MissingExtraError,
    PassbandWarning,
    ResultsError,
    UnknownNameError,
)

pytestmark = pytest.mark.usefixtures("fakes")


def line(seed: int = 0, **overrides: Any) -> Cell:
    return Cell("fakes-line", "fakes-line", seed=seed, overrides=overrides)


CELLS = [
    line(1), line(0), Cell("fakes-average", "fakes-line", seed=1), line(2, fail="error"),
    line(3, fail="nan"),
]


def contents(runs: Path, rows: list[Any]) -> dict[str, bytes]:
    """The files of the cells, but for those that carry times or belong to a machine."""
    return {
        f"{row.key}/{path.relative_to(runs / row.folder)}": path.read_bytes()
        for row in rows if row.folder for path in (runs / row.folder).rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_in_this_process_in_order(tmp_path: Path) -> None:
    rows = dispatch(CELLS, tmp_path, processes=1)
    assert [row.key for row in rows] == [cell.key for cell in CELLS]
    assert [bool(row.error) for row in rows] == [False, False, False, True, True]
    assert ResultsFile(tmp_path / RESULTS).read() == rows


def test_two_processes_give_the_same(tmp_path: Path) -> None:
    here = dispatch(CELLS, tmp_path / "here", processes=1)
    events: list[Progress] = []
    there = dispatch(CELLS, tmp_path / "there", processes=2, progress=events.append)
    assert [row.untimed() for row in there] == [row.untimed() for row in here]
    assert contents(tmp_path / "there", there) == contents(tmp_path / "here", here)
    assert {row.machine["threads"] for row in there} == {1}
    assert [event.done for event in events] == [0, 1, 2, 3, 4, 5]
    assert {event.outcome.key for event in events[1:]} == {cell.key for cell in CELLS}


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    here = dispatch(CELLS, tmp_path / "here", processes=1)
    there = dispatch(CELLS, tmp_path / "there", engine="ray", processes=2)
    assert [row.untimed() for row in there] == [row.untimed() for row in here]
    assert contents(tmp_path / "there", there) == contents(tmp_path / "here", here)
    assert len(ResultsFile(tmp_path / "there" / RESULTS).read()) == len(CELLS)
    with pytest.raises(CrashError, match="a defect in code"):
        dispatch([line(fail="crash"), line(4)], tmp_path / "there", engine="ray", processes=1)
    assert line(4).key in ResultsFile(tmp_path / "there" / RESULTS).latest()


def test_warnings_of_other_processes_are_told_here(tmp_path: Path) -> None:
    with pytest.warns(PassbandWarning) as caught:
        rows = dispatch([line(0, warn="it was adjusted"), line(1)], tmp_path, processes=2)
    assert [str(w.message) for w in caught] == ["fakes-line on fakes-line, seed 0: it was adjusted"]
    assert not any(row.error for row in rows)


def test_equal_cells_run_once(tmp_path: Path) -> None:
    rows = dispatch([line(), line(1), line()], tmp_path, processes=1)
    assert rows[0] == rows[2] and len(ResultsFile(tmp_path / RESULTS).read()) == 2


def test_progress_within_a_cell_of_this_process(tmp_path: Path) -> None:
    events: list[Progress] = []
    dispatch([line(), line(1)], tmp_path, processes=1, progress=events.append)
    inside = [e for e in events if e.label == "fakes-line on fakes-line, seed 1" and not e.outcome]
    assert [e.done for e in inside] == [1] * 31 and inside[-1].text == "step 30"
    assert inside[0].fraction == 0.0 and inside[-1].fraction == 1.0 and inside[0].total == 2


def test_finished_cells_are_not_run_again_on_resume(tmp_path: Path) -> None:
    first = dispatch([line(), line(1, fail="nan")], tmp_path, processes=1)
    events: list[Progress] = []
    again = dispatch(
        [line(), line(1, fail="nan"), line(2)], tmp_path, processes=1, resume=True,
        progress=events.append,
    )
    assert again[0] == first[0] and again[1].when > first[1].when  # a failure is tried again
    assert [e.done for e in events if e.outcome] == [2, 3]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_defect_is_raised_when_the_others_are_done(tmp_path: Path, processes: int) -> None:
    cells = [line(0, fail="crash"), line(1), line(2)]
    with pytest.raises(CrashError, match=r"seed 0 crashed[\s\S]*a defect in code"):
        dispatch(cells, tmp_path, processes=processes)
    assert {row.seed for row in ResultsFile(tmp_path / RESULTS).read()} == {1, 2}


def test_everything_is_checked_before_anything_runs(tmp_path: Path) -> None:
    good, runs = line(), tmp_path / "runs"
    with pytest.raises(UnknownNameError, match="stepz"):
        dispatch([good, line(stepz=1)], runs)
    with pytest.raises(UnknownNameError, match="did you mean 'ray'"):
        dispatch([good], runs, engine="rey")
    with pytest.raises(ConfigError, match="processes = 0"):
        dispatch([good], runs, processes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="can't be written"):
        dispatch([good], tmp_path / "file" / "runs")
    assert not runs.exists() and dispatch([], runs) == []


def test_results_that_cannot_be_written_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("passband.bench.results.RowsFile._write", refuse)
    with pytest.raises(ResultsError, match="No space left"):
        dispatch([line(), line(1)], tmp_path, processes=1)


def test_ray_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"passband\[ray\]"):
        dispatch([line()], tmp_path, engine="ray")
