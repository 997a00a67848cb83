"""Files of rows: whole or not at all, whatever happens to the process or the disk."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passband.bench import results
from passband.bench.results import Result, ResultsFile, decode, encode, locked, write_atomic
from passband.errors import PassbandWarning, ResultsError


def row(number: int = 0, **fields: Any) -> Result:
    facts: dict[str, Any] = {
        "key": f"k{number}", "system": "s", "preset": "small", "overrides": {"a": [1, 2]},
        "task": "t", "task_version": 1, "size": "small", "seed": number,
        "metrics": {"error": 0.1 + number}, "seconds": {"fit": 1.5, "evaluate": 0.5},
        "peak_memory": 10, "parameters": 3, "file_bytes": 99, "budget": {"steps": None},
        "spent": {"steps": 7}, "selected": "last", "versions": {"numpy": "2"},
        "code_hash": "c", "dirty": False, "when": f"2026-01-01T00:00:{number:02d}.000000Z",
    }
    return Result(**{**facts, **fields})


@pytest.fixture
def file(tmp_path: Path) -> ResultsFile:
    return ResultsFile(tmp_path / "runs" / "results.jsonl")


# ---- rows as lines ---------------------------------------------------------------------------


def test_round_trip(file: ResultsFile) -> None:
    rows = [row(0, error="Ünïcode\nand lines"), row(1)]
    assert [file.append(r) for r in rows] == rows == file.read()
    assert file.path.read_bytes().count(b"\n") == 2


def test_strict_json_of_any_number(file: ResultsFile) -> None:
    spent = {
        "array": np.arange(3), "scalar": np.float32(0.5), "flag": np.bool_(True), "bad": np.nan,
        "path": Path("x"), "tuple": (1, float("inf")),
    }
    kept = file.append(row(spent=spent, curves={"step": [1, 2], "loss": [float("nan"), 2.0]}))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(file.path.read_text(), parse_constant=refuse)
    assert kept.spent == {
        "array": [0, 1, 2], "scalar": 0.5, "flag": True, "bad": None, "path": "x",
        "tuple": [1, None],
    }
    assert np.isnan(kept.curves["loss"][0]) and kept.curves["loss"][1] == 2.0


def test_numbers_that_are_not_finite_are_read_back(file: ResultsFile) -> None:
    kept = file.append(row(metrics={"error": float("nan")}, seconds={"fit": float("inf")}))
    assert np.isnan(kept.metrics["error"]) and np.isnan(kept.seconds["fit"])
    assert file.scan()[1] == [] and np.isnan(file.read()[0].metrics["error"])


def test_rows_of_newer_and_older_versions() -> None:
    facts = json.loads(encode(row()))
    assert decode(json.dumps({**facts, "colour": "red"}).encode(), Result) == row()
    for name in ("machine", "curves", "error", "data", "peak_gpu_memory"):
        del facts[name]
    assert decode(json.dumps(facts).encode(), Result) == row()
    del facts["metrics"]
    with pytest.raises(ValueError, match="metrics"):
        decode(json.dumps(facts).encode(), Result)


def test_untimed_drops_what_differs_between_runs_of_a_cell() -> None:
    one = row(spent={"steps": 7, "seconds": 1.0}, curves={"seconds": [1.0], "step": [1.0]})
    other = replace(
        one, seconds={"fit": 9.0}, peak_memory=1, when="x", machine={"cpu": "y"},
        spent={"steps": 7, "seconds": 2.0}, curves={"seconds": [2.0], "step": [1.0]},
    )
    assert one.untimed() == other.untimed()
    assert replace(one, metrics={"error": 2.0}).untimed() != one.untimed()


def test_latest_goes_by_time_then_by_place(file: ResultsFile) -> None:
    file.append(row(1, when="2026-02", selected="newest"))
    file.append(row(1, when="2026-01", selected="older"))
    file.append(row(2, when="2026-01", selected="first"))
    file.append(row(2, when="2026-01", selected="second"))
    assert {k: r.selected for k, r in file.latest().items()} == {"k1": "newest", "k2": "second"}


# ---- damage ----------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_read_and_goes_on(file: ResultsFile) -> None:
    file.extend([row(0), row(1)])
    whole = file.path.read_bytes()
    first = whole.index(b"\n") + 1
    damaged = file.path.with_name("results.jsonl.damaged")
    for cut in range(first, len(whole) + 1):
        file.path.write_bytes(whole[:cut])
        damaged.unlink(missing_ok=True)
        complete = 2 if cut >= len(whole) - 1 else 1  # only the newline is missing: still whole
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PassbandWarning)
            assert file.read() == [row(0), row(1)][:complete]
            file.append(row(2))
        assert file.read() == [*[row(0), row(1)][:complete], row(2)]
        torn = whole[first:cut] + b"\n" if complete == 1 and cut > first else b""
        assert (damaged.read_bytes() if damaged.exists() else b"") == torn


def test_damage_is_reported_never_raised(file: ResultsFile) -> None:
    assert file.read() == []  # no file yet
    file.append(row(0))
    good = file.path.read_bytes()
    file.path.write_bytes(b'{"key": "half\n' + good + b"\xff\xfe\n[]\n" + good + b'{"key"')
    with pytest.warns(PassbandWarning, match=r"4 damaged line\(s\), skipped; the first is line 1"):
        assert file.read() == [row(0), row(0)]
    assert [d.line for d in file.scan()[1]] == [1, 3, 4, 6]


def test_the_tail_is_moved_aside_with_a_warning(file: ResultsFile) -> None:
    file.append(row(0))
    with file.path.open("ab") as stream:
        stream.write(b'{"torn')
    with pytest.warns(PassbandWarning, match="cut off by a kill; its 6 bytes were moved to"):
        file.append(row(1))
    assert file.read() == [row(0), row(1)]


# ---- disks -----------------------------------------------------------------------------------


def full_disk(after: int) -> Any:
    """os.write for a disk with room for `after` more bytes."""
    write, room = os.write, [after]

    def limited(handle: int, data: Any) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(handle, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    return limited


@pytest.mark.parametrize("room", [0, 1, 100])
def test_full_disk_loses_nothing(
    file: ResultsFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    file.append(row(0))
    before, elsewhere = file.path.read_bytes(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(results.tempfile, "gettempdir", lambda: str(elsewhere))
    append = results.write_atomic
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk(room))

        def other_disk(path: Path, payload: bytes) -> None:
            patch.undo()
            append(path, payload)

        patch.setattr(results, "write_atomic", other_disk)
        with pytest.raises(ResultsError, match=r"No space left[\s\S]*make room") as caught:
            file.append(row(1))
    assert file.path.read_bytes() == before
    (kept,) = elsewhere.iterdir()
    assert str(kept) in caught.value.mend
    with file.path.open("ab") as stream:  # what the error advises
        stream.write(kept.read_bytes())
    assert file.read() == [row(0), row(1)]


def test_full_disk_everywhere_offers_the_row_in_the_error(
    file: ResultsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.append(row(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk(10))
        with pytest.raises(ResultsError) as caught:
            file.append(row(1))
    assert decode(caught.value.mend[caught.value.mend.index("{"):].encode(), Result) == row(1)
    assert file.read() == [row(0)]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="can't be written"):
        ResultsFile(tmp_path / "file" / "results.jsonl").append(row())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ResultsError, match="Permission denied"):
            ResultsFile(tmp_path / "results.jsonl").append(row())
    finally:
        tmp_path.chmod(0o700)


def test_read_only_file_system(file: ResultsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.append(row(0))
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(file.path.parent)):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(ResultsError, match="Read-only file system"):
            file.append(row(1))
        assert file.read() == [row(0)]


def test_a_stuck_writer_is_named(file: ResultsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.append(row(0))
    monkeypatch.setattr(results, "LOCK_SECONDS", 0.05)
    code = textwrap.dedent(
        f"""
        from pathlib import Path
        from passband.bench.results import locked
        with locked(Path({str(file.path.parent)!r}) / ".results.jsonl.lock", timeout=9):
            print("held", flush=True)
            input()
        """
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(ResultsError, match="held by another process"):
        file.append(row(1))
    other.communicate(b"\n")
    file.append(row(1))


def test_locks_and_small_files(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", timeout=1):
        write_atomic(tmp_path / "a" / "b", b"new")
    assert (tmp_path / "a" / "b").read_bytes() == b"new"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


# ---- kills and many writers ------------------------------------------------------------------

def append(path: Path, who: str, rows: int) -> None:
    warnings.simplefilter("ignore")
    for number in range(rows):
        ResultsFile(path).append(row(number, key=f"{who}-{number}", selected="x" * 5000))


def writer(file: ResultsFile, who: str, rows: int) -> Any:
    """A forked process: it begins to write at once, so that a kill hits the writing."""
    process = get_context("fork").Process(target=append, args=(file.path, who, rows))
    process.start()
    return process


def test_twenty_kills_while_appending(file: ResultsFile) -> None:
    file.append(row(0))
    rng = random.Random(0)
    for kill in range(20):
        size = file.path.stat().st_size
        process = writer(file, str(kill), 10**6)
        while file.path.stat().st_size == size:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        rows, damage = file.scan()
        # What a writer appended is there without a hole; only the very last line may be torn.
        numbers = [r.key for r in rows if r.key.startswith(f"{kill}-")]
        assert numbers == [f"{kill}-{i}" for i in range(len(numbers))]
        assert len(damage) <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PassbandWarning)
        file.append(row(1))
    assert all(len(r.selected) == 5000 for r in rows[1:]) and file.scan()[1] == []
    assert len(rows) > 20


def test_many_writers_at_once(file: ResultsFile) -> None:
    writers = [writer(file, str(who), 25) for who in range(4)]
    for process in writers:
        process.join()
        assert process.exitcode == 0
    keys = sorted(r.key for r in file.read())
    assert keys == sorted(f"{who}-{i}" for who in range(4) for i in range(25))


# ---- merging ---------------------------------------------------------------------------------


def test_merge_of_several_machines(file: ResultsFile, tmp_path: Path) -> None:
    file.extend([row(0), row(3)])
    other, third = ResultsFile(tmp_path / "other.jsonl"), ResultsFile(tmp_path / "third.jsonl")
    other.extend([row(3), row(2)])
    third.extend([row(2), row(1), row(3, metrics={"error": 9.0})])
    assert file.merge([other.path, third.path]) == 3
    assert [r.key for r in file.read()] == ["k0", "k3", "k1", "k2", "k3"]
    assert file.merge([other.path, third.path]) == 0
    with pytest.raises(ResultsError, match="is no file"):
        file.merge([tmp_path / "missing.jsonl"])
