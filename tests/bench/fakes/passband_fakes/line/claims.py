"""Proofs: one that holds, one whose method breaks down, one out of reach."""

from __future__ import annotations

import numpy as np

from passband.bench.claims import Bench, Evidence, judge, not_shown


def better_than_average(bench: Bench) -> Evidence:
    seeds = bench.seeds(2 if bench.smoke else 4)
    cells = [
        {"system": system, "task": "fakes-line", "seed": seed, **fields}
        for system, fields in (("fakes-line", {"steps": 60}), ("fakes-average", {}))
        for seed in seeds
    ]
    rows = bench.run_many(cells)
    first = bench.run("fakes-line", "fakes-line", seed=seeds[0], steps=60)
    assert first["metrics"] == rows[0]["metrics"]
    ours, theirs = rows[: len(seeds)], rows[len(seeds):]
    ratios = [
        b["metrics"]["mse"] / a["metrics"]["mse"] for a, b in zip(ours, theirs, strict=True)
    ]
    return judge(ratios, margin=1.0, better="higher", log=True)


def singular(bench: Bench) -> Evidence:
    np.linalg.inv(np.zeros((2, 2)))
    raise AssertionError("unreachable")


CLAIMS = {
    "C1": better_than_average,
    "C2": singular,
    "C3": lambda bench: not_shown(needs="a moon"),
}
