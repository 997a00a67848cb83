"""The smoke proof of one claim a system runs from its beginning to its row."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from passband.bench.claims import Verdict
from passband.bench.prove import claims_file, reproduce
from passband.catalog import Card


@pytest.mark.filterwarnings("default::passband.errors.PassbandWarning")
def test_a_smoke_proof_runs(card: Card, tmp_path: Path) -> None:
    """The first claim that can be shown here; those before it say what they need."""
    if not card.claims:
        pytest.skip("no claims on this card")
    for claim in card.claims:
        (row,) = reproduce(card.id, claim_ids=[claim.id], smoke=True, runs=tmp_path, processes=1)
        assert (row.system, row.claim, row.scale) == (card.id, claim.id, "smoke")
        assert row.evidence.verdict in get_args(Verdict)
        assert row.evidence.obtained
        assert claims_file(tmp_path).read()[-1] == row
        if row.evidence.verdict != "not shown":
            assert row.evidence.n > 0
            return
        assert row.evidence.needs, "a claim that is not shown says what it would take"
