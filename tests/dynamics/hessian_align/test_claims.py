"""What the proofs read off their runs; and that each of them runs."""

from __future__ import annotations

import numpy as np
import pytest

from passband.bench.claims import Evidence
from passband.dynamics.hessian_align import claims
from passband.dynamics.hessian_align.experiments import Runs, Setting


class Smoke:
    smoke = calibrate = True

    def seeds(self, n: int) -> list[int]:
        return list(range(1000, 1000 + n))


def made(method: str, data: str, test: list[float], hessian: list[list[float]]) -> Runs:
    """Two seeds; the test accuracy of the last step, distances of every row."""
    rows = [
        {"step": 50 * i, "train": [0.8, 0.8], "test": test, "gradient": [0.1, 0.1], "hessian": h}
        for i, h in enumerate(hessian)
    ]
    return Runs(Setting(method, data), (0, 1), rows)


TESTS = {
    ("hgp", "coloured"): [0.6, 0.5], ("irm", "coloured"): [0.5, 0.5],
    ("vrex", "coloured"): [0.4, 0.52], ("fishr", "coloured"): [0.1, 0.1],
    ("hgp", "imbalanced"): [0.6, 0.6], ("irm", "imbalanced"): [0.4, 0.4],
    ("vrex", "imbalanced"): [0.3, 0.3], ("fishr", "imbalanced"): [0.45, 0.2],
    ("erm", "coloured"): [0.3, 0.3],
}
DISTANCES = [[1.0, 1.0], [5.0, 5.0], [4.0, 2.0], [2.0, 1.0]]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(bench: object, method: str, data: str = "coloured") -> Runs:
        return made(method, data, TESTS[method, data], DISTANCES)

    monkeypatch.setattr(claims, "runs", runs)


@pytest.mark.usefixtures("known")
def test_leads_and_falls_are_read_as_said() -> None:
    bench = Smoke()
    assert claims.alignment_does_better(bench).effect == pytest.approx(0.25)
    assert claims.gap_is_smaller(bench).effect == pytest.approx(-0.25)
    # Leads over the best of three: 0.15, 0.2 imbalanced; 0.1, -0.02 balanced.
    assert claims.ahead_when_imbalanced(bench).effect == pytest.approx((0.05 + 0.22) / 2)
    # The penalty begins in step 100, which is row 2.
    assert claims.distance_falls(bench).effect == pytest.approx(0.5)


def test_the_correlation_leaves_the_start_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"step": 50 * i, "train": [0.8], "test": [1 - e], "gradient": [0.1], "hessian": [h]}
        for i, (h, e) in enumerate([(9.0, 0.5), (1.0, 0.9), (0.5, 0.7), (0.25, 0.6)])
    ]
    found = Runs(Setting("hgp"), (0,), rows)
    monkeypatch.setattr(claims, "runs", lambda bench, method: found)
    evidence = claims.distance_follows_the_error(Smoke())
    expected = np.corrcoef([1.0, 0.5, 0.25], [0.9, 0.7, 0.6])[0, 1]
    assert evidence.effect == pytest.approx(expected)


def test_theory_and_closed_forms_hold() -> None:
    for proof in (claims.bound_holds, claims.closed_forms, claims.probes_are_unbiased):
        assert proof(Smoke()).verdict == "holds", proof.__name__


@pytest.mark.slow
@pytest.mark.parametrize("name", claims.CLAIMS)
def test_every_proof_runs(name: str) -> None:
    evidence = claims.CLAIMS[name](Smoke())
    assert isinstance(evidence, Evidence)
    assert evidence.n > 0 or evidence.verdict == "not shown"
