"""Claims: verdicts, seeds kept apart, failures told from defects, cells shared."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passband.bench.claims import Bench, Evidence, judge
from passband.bench.dispatch import Progress
from passband.bench.prove import ProofBench, claims_file, reproduce, reuse_note
from passband.bench.results import CALIBRATION, CLAIMS, RESULTS, ResultsFile
from passband.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    PassbandWarning,
    UnknownNameError,
)

pytestmark = pytest.mark.usefixtures("fakes")


@pytest.fixture
def proofs(fakes: Path) -> Any:
    """The fake system's CLAIMS, restored afterwards."""
    module = importlib.import_module("passband_fakes.line.claims")
    before = dict(module.CLAIMS)
    yield module.CLAIMS
    module.CLAIMS.clear()
    module.CLAIMS.update(before)


def prove(runs: Path, **arguments: Any) -> dict[str, Any]:
    return {row.claim: row for row in reproduce("fakes-line", runs=runs, processes=1, **arguments)}


def test_rows_of_a_card(tmp_path: Path) -> None:
    rows = prove(tmp_path)
    assert [row.evidence.verdict for row in rows.values()] == ["holds", "fails", "not shown"]
    first = rows["C1"]
    assert first.reported == "10 times" and first.source == "Table 1"
    assert first.evidence.n == 4 and first.scale == "full" and not first.calibrate
    assert first.command == "passband reproduce fakes-line --claims C1"
    assert first.code_hash and first.versions["numpy"] == np.__version__ and first.seconds > 0
    assert rows["C2"].evidence.obtained == "LinAlgError: Singular matrix"
    assert rows["C3"].evidence.needs == "a moon"
    assert claims_file(tmp_path).read() == list(rows.values())
    assert claims_file(tmp_path).latest()["fakes-line/C1/full"] == first
    assert first.to_json()["verdict"] == "holds"


def test_cells_of_a_claim_are_named_and_run_once(tmp_path: Path) -> None:
    first = prove(tmp_path, claim_ids=["C1"])["C1"]
    keys = [row.key for row in ResultsFile(tmp_path / RESULTS).read()]
    assert sorted(keys) == sorted(first.cells) and len(set(keys)) == 8


def test_effect_is_that_of_the_rows(tmp_path: Path) -> None:
    evidence = prove(tmp_path, claim_ids=["C1"])["C1"].evidence
    mse = {(r.system, r.seed): r.metrics["mse"] for r in ResultsFile(tmp_path / RESULTS).read()}
    ratios = [mse["fakes-average", s] / mse["fakes-line", s] for s in range(4)]
    assert evidence.effect == pytest.approx(float(np.exp(np.mean(np.log(ratios)))))


def test_judging_and_calibration_seeds_are_apart(tmp_path: Path) -> None:
    prove(tmp_path, smoke=True, claim_ids=["C1"])
    judged = {row.seed for row in ResultsFile(tmp_path / RESULTS).read()}
    assert judged == {0, 1} and not (tmp_path / CALIBRATION).exists()
    row = prove(tmp_path, calibrate=True, smoke=True, claim_ids=["C1"])["C1"]
    assert {r.seed for r in ResultsFile(tmp_path / RESULTS).read()} - judged == {1000, 1001}
    assert row.calibrate and row.scale == "smoke" and row.command.endswith("--smoke --calibrate")
    assert len(claims_file(tmp_path).read()) == 1  # calibration never gets among the verdicts
    assert claims_file(tmp_path, calibrate=True).read() == [row]


def test_smoke_rows_never_stand_for_full_ones(tmp_path: Path) -> None:
    prove(tmp_path, claim_ids=["C3"])
    prove(tmp_path, claim_ids=["C3"], smoke=True)
    assert set(claims_file(tmp_path).latest()) == {"fakes-line/C3/full", "fakes-line/C3/smoke"}


def test_cells_of_earlier_calls_only_when_asked_and_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cells() -> int:
        return len(ResultsFile(tmp_path / RESULTS).read())

    monkeypatch.setattr("passband.bench.facts.dirty", lambda: False)
    prove(tmp_path, claim_ids=["C1"], smoke=True)
    assert cells() == 4
    prove(tmp_path, claim_ids=["C1"], smoke=True)
    assert cells() == 8
    row = prove(tmp_path, claim_ids=["C1"], smoke=True, reuse=True)["C1"]
    assert cells() == 8
    assert set(row.reused) == set(row.cells) and not row.dirty
    assert reuse_note([row]) == f"4 of 4 cells reused, computed on {row.when[:10]}"
    row = prove(tmp_path, claim_ids=["C1"], reuse=True)["C1"]  # two seeds more
    assert cells() == 12
    assert len(row.reused) == 4 and reuse_note([row]).startswith("4 of 8 cells reused")
    monkeypatch.setattr("passband.bench.facts.dirty", lambda: True)
    with pytest.warns(PassbandWarning, match="nothing is reused"):
        row = prove(tmp_path, claim_ids=["C1"], smoke=True, reuse=True)["C1"]
    assert cells() == 16 and not row.reused and reuse_note([row]) == ""
    monkeypatch.setattr("passband.bench.facts.dirty", lambda: False)
    assert prove(tmp_path, claim_ids=["C1"], smoke=True, reuse=True)["C1"].dirty  # as its cells


def test_a_cell_that_fails_fails_its_claim_and_no_other(tmp_path: Path, proofs: Any) -> None:
    def with_a_broken_baseline(bench: Bench) -> Evidence:
        rows = bench.run_many([
            {"system": "fakes-line", "task": "fakes-line", "seed": s, "fail": "nan", "fail_seed": 1}
            for s in bench.seeds(3)
        ])
        assert rows[1]["error"] == "mse is nan, r2 is nan"
        return judge([row["metrics"]["mse"] for row in rows], margin=1e9, better="lower")

    proofs["C1"] = with_a_broken_baseline
    rows = prove(tmp_path)
    assert rows["C1"].evidence.verdict == "fails" and "1 of 3 runs" in rows["C1"].evidence.obtained
    assert rows["C3"].evidence.verdict == "not shown"


def raising(error: Exception) -> Any:
    def proof(bench: Bench) -> Evidence:
        raise error

    return proof


def test_failures_of_the_method_and_missing_packages(tmp_path: Path, proofs: Any) -> None:
    proofs["C1"] = raising(DataError("too short", expected="longer"))
    proofs["C2"] = raising(ZeroDivisionError("division by zero"))
    proofs["C3"] = raising(MissingExtraError("peft", "tuning"))
    rows = prove(tmp_path)
    assert [row.evidence.verdict for row in rows.values()] == ["fails", "fails", "not shown"]
    assert rows["C1"].evidence.obtained.startswith("too short")
    assert rows["C3"].evidence.needs == "pip install 'passband[tuning]'"


def test_defects_are_raised_when_the_other_claims_are_safe(tmp_path: Path, proofs: Any) -> None:
    proofs["C1"] = raising(TypeError("a defect"))
    with pytest.raises(TypeError, match="a defect") as caught:
        prove(tmp_path)
    assert caught.value.__notes__ == ["while proving fakes-line C1"]
    assert [row.claim for row in claims_file(tmp_path).read()] == ["C2", "C3"]
    proofs["C2"] = lambda bench: bench.run("fakes-lime", "fakes-line")  # a slip in a proof
    with pytest.raises(ExceptionGroup) as group:
        prove(tmp_path)
    assert [type(e) for e in group.value.exceptions] == [TypeError, UnknownNameError]
    proofs["C1"], proofs["C2"] = proofs["C3"], lambda bench: "holds"
    with pytest.raises(TypeError, match="not an Evidence"):
        prove(tmp_path)


def test_claims_and_proofs_must_name_the_same(tmp_path: Path, proofs: Any) -> None:
    del proofs["C2"]
    with pytest.raises(ConfigError, match="claims C2 of 'fakes-line'"):
        prove(tmp_path)
    assert not (tmp_path / CLAIMS).exists()


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'C3'"):
        prove(tmp_path, claim_ids=["C33"])
    with pytest.raises(UnknownNameError, match="unknown system"):
        reproduce(["nobody"], runs=tmp_path)
    with pytest.raises(ConfigError, match="no claims"):
        reproduce("fakes-average", runs=tmp_path)


def test_bench_reads_the_arguments_of_run(tmp_path: Path) -> None:
    bench = ProofBench(tmp_path)
    common = {"preset": "smoke", "seed": 3, "budget": "7 steps", "rate": 1}
    with pytest.raises(UnknownNameError, match="'rate'"):
        bench.run_many([{"system": "fakes-line", "task": "fakes-line", **common}])
    del common["rate"]
    many = bench.run_many([{"system": "fakes-line", "task": "fakes-line", **common}])[0]
    one = bench.run("fakes-line", "fakes-line", preset="smoke", seed=3, budget="7 steps")
    assert many == one and one["spent"]["steps"] == 7 and one["preset"] == "smoke"
    assert len(bench.used) == 1 and bench.seeds(2) == [0, 1]


def test_progress_counts_claims(tmp_path: Path) -> None:
    events: list[Progress] = []
    prove(tmp_path, smoke=True, progress=events.append)
    assert [e.outcome.claim for e in events if e.outcome] == ["C1", "C2", "C3"]
    assert {e.total for e in events} == {3} and events[-1].done == 3
    inside = [e for e in events if e.label == "fakes-line C1" and not e.outcome]
    assert max(e.fraction for e in inside) == 1.0 and all(0 <= e.fraction <= 1 for e in inside)
