"""What the proofs read off their runs; and that each of them runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from passband.bench.claims import Evidence
from passband.dynamics.grok import claims


class Smoke:
    smoke = calibrate = True

    def seeds(self, n: int) -> list[int]:
        return list(range(1000, 1000 + n))


def curve(train: list[float], inverted: float = 0.65) -> SimpleNamespace:
    rows = [{"step": 20 * i, "train": value} for i, value in enumerate(train)]
    return SimpleNamespace(rows=rows, data=SimpleNamespace(inverted=inverted))


def test_the_peak_and_the_fall_after_it():
    run = curve([0.01, 0.66, 0.99, 0.98, 0.8, 0.66, 0.65])
    assert claims._peak(run)["step"] == 40
    assert claims._fallen(run) == 100  # 0.66 on the way up is no fall
    assert np.isnan(claims._fallen(curve([0.01, 0.66, 0.99, 0.98])))


def test_the_closed_form_holds_at_full_size():
    bench = Smoke()
    bench.smoke = False
    evidence = claims.closed_form(bench)
    assert (evidence.verdict, evidence.effect, evidence.n) == ("holds", 1.0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("claim", claims.CLAIMS)
def test_every_proof_runs(claim):
    evidence = claims.CLAIMS[claim](Smoke())
    assert isinstance(evidence, Evidence)
    assert evidence.n or evidence.needs
