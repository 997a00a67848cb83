"""Statistics of a comparison against SciPy and hand computation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from passband import api, catalog
from passband.bench.compare import Comparison, compare, holm, summarise
from passband.bench.results import RESULTS, Result, ResultsFile, encode
from passband.errors import ConfigError, UnknownNameError

pytestmark = pytest.mark.usefixtures("fakes")


def rows_of(system: str, mse: Any, budget: int | None = None) -> list[Result]:
    return [
        Result(
            key=f"{system}{seed}", system=system, preset="small", overrides={}, task="fakes-line",
            task_version=1, size="small", seed=seed,
            metrics={} if value is None else {"mse": value, "r2": 1 - value},
            seconds={"fit": 1.5, "evaluate": 0.5}, peak_memory=10, parameters=3, file_bytes=99,
            budget={"steps": budget}, spent={"steps": 7}, selected="last", versions={},
            code_hash="c", dirty=False, error="" if value is not None else "it broke",
        )
        for seed, value in enumerate(mse)
    ]


def summary(*systems: list[Result], reference: str = "first") -> Comparison:
    rows = [row for group in systems for row in group]
    return summarise(rows, catalog.task("fakes-line"), reference=reference)


RNG = np.random.default_rng(0)
A, B, C = (list(scale * np.exp(RNG.normal(size=8))) for scale in (1.0, 1.5, 6.0))


def test_geometric_means_and_intervals() -> None:
    found = summary(rows_of("a", A)).summaries[0].metrics["mse"]
    logs = np.log(A)
    low, high = stats.t.interval(0.95, 7, loc=logs.mean(), scale=stats.sem(logs))
    assert found.mean == pytest.approx(stats.gmean(A))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert found.standard_error == pytest.approx(stats.sem(logs)) and found.n == 8 and found.log


def test_arithmetic_means_where_the_metric_is_not_logarithmic() -> None:
    found = summary(rows_of("a", A)).summaries[0].metrics["r2"]
    values = 1 - np.asarray(A)
    low, high = stats.t.interval(0.95, 7, loc=values.mean(), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert found.standard_error == pytest.approx(stats.sem(values)) and not found.log


def test_paired_tests_agree_with_scipy() -> None:
    result = summary(rows_of("a", A), rows_of("b", B), rows_of("c", C))
    assert result.reference == "a" and [d.system for d in result.differences] == ["b", "c"]
    for found, values in zip(result.differences, (B, C), strict=True):
        gaps = np.log(values) - np.log(A)
        assert found.p_t == pytest.approx(stats.ttest_rel(np.log(values), np.log(A)).pvalue)
        assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(np.log(values), np.log(A)).pvalue)
        assert found.effect == pytest.approx(math.exp(gaps.mean())) and found.log and found.n == 8
        low, high = stats.t.interval(0.95, 7, loc=gaps.mean(), scale=stats.sem(gaps))
        assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
        assert found.better is bool(gaps.mean() < 0)
    small, large = sorted(d.p_t or 0.0 for d in result.differences)
    expected = [2 * small, max(2 * small, large)]
    assert sorted(d.p_t_holm or 0.0 for d in result.differences) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_by_its_definition(p: list[float]) -> None:
    # Reject H_(1..k) while p_(i) <= level / (m - i + 1): the adjusted p is the smallest such level.
    order = sorted(range(len(p)), key=lambda i: p[i])
    for rank, i in enumerate(order):
        level = min(1.0, max(p[order[j]] * (len(p) - j) for j in range(rank + 1)))
        assert holm(p)[i] == pytest.approx(level)


def test_small_numbers_of_seeds() -> None:
    one = summary(rows_of("a", A[:1]), rows_of("b", B[:1]))
    assert one.summaries[0].metrics["mse"].standard_error is None
    assert one.differences[0].p_t is None
    assert one.differences[0].effect == pytest.approx(B[0] / A[0])
    five = summary(rows_of("a", A[:5]), rows_of("b", B[:5])).differences[0]
    assert five.p_t is not None and five.p_wilcoxon is None


def test_seeds_that_change_nothing_are_no_evidence() -> None:
    result = summary(rows_of("a", [2.0] * 6), rows_of("b", [1.0] * 6))
    assert result.differences[0].p_t is None and result.differences[0].p_wilcoxon is None
    assert result.differences[0].better is True and "no spread" in result.notes[0]


def test_failed_seeds_are_counted_and_left_out_of_pairs() -> None:
    result = summary(rows_of("a", [1.0, None, 3.0, 4.0]), rows_of("b", [2.0, 3.0, None, 9.0]))
    a = result.summaries[0]
    assert (a.n, a.failed, a.errors) == (3, 1, ["it broke"])
    assert result.differences[0].n == 2
    assert result.differences[0].effect == pytest.approx(math.sqrt(2.0 * 9.0 / 4.0))
    nothing = summary(rows_of("a", [1.0]), rows_of("b", [None]), reference="best")
    assert nothing.differences[0].n == 0 and nothing.summaries[1].metrics == {}


def test_an_exact_zero_makes_means_arithmetic_for_all() -> None:
    result = summary(rows_of("a", [0.0, 2.0]), rows_of("b", [1.0, 2.0]))
    assert [s.metrics["mse"].mean for s in result.summaries] == [1.0, 1.5]
    assert not result.differences[0].log and result.differences[0].effect == 0.5
    assert any("arithmetic" in note for note in result.notes)


def test_reference_by_choice() -> None:
    groups = rows_of("b", B), rows_of("a", A), rows_of("c", C)
    assert summary(*groups).reference == "b"
    assert summary(*groups, reference="c").reference == "c"
    best = min((stats.gmean(x), name) for name, x in (("a", A), ("b", B), ("c", C)))[1]
    assert summary(*groups, reference="best").reference == best


def test_costs_and_budget() -> None:
    rows = rows_of("a", A[:2], budget=5)
    rows[1] = replace(rows[1], seconds={"fit": 4.5, "evaluate": 0.5}, peak_memory=30)
    result = summary(rows)
    line = result.summaries[0]
    assert (line.fit_seconds, line.peak_memory, line.parameters) == (3.0, 30, 3)
    assert line.spent == {"steps": 7.0} and line.selected == "last"
    assert result.budget == "5 steps" and result.notes == ["a spent 7 steps of 5"]


# ---- runs ------------------------------------------------------------------------------------


def test_same_data_and_seeds_for_all(tmp_path: Path) -> None:
    result = compare(
        ["fakes-line"], "fakes-line", seeds=3, baselines=True, runs=tmp_path, processes=1,
        budget="40 steps", overrides={"fakes-line": {"fail": "nan", "fail_seed": 1}},
    )
    assert [(row.system, row.seed) for row in result.rows] == [
        (name, seed) for name in ("fakes-line", "fakes-average") for seed in range(3)
    ]
    assert [s.failed for s in result.summaries] == [1, 0] and result.differences[0].n == 2
    assert result.summaries[0].spent["steps"] == 40 and result.budget == "40 steps"
    data = catalog.task("fakes-line").data(2)
    gap = data.test.y - data.train.y.mean()
    assert result.rows[5].metrics["mse"] == pytest.approx(float(np.mean(gap**2)))
    assert result.rows[0].metrics["mse"] != result.rows[2].metrics["mse"]
    again = compare(
        ["fakes-line", "fakes-average"], "fakes-line", runs=tmp_path, processes=1,
        budget="40 steps", overrides={"fakes-line": {"fail": "nan", "fail_seed": 1}},
    )
    assert len(ResultsFile(tmp_path / RESULTS).read()) == 7  # only the failed cell ran again
    assert again.summaries[1] == result.summaries[1]


def test_own_data_and_model_are_the_same_for_all(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shift.txt").write_text("10")
    (tmp_path / "points.csv").write_text("0,1\n1,3\n")
    result = compare(
        ["fakes-line", "fakes-average"], "fakes-shifted", seeds=2, runs=tmp_path / "runs",
        processes=1, data=tmp_path / "points.csv", model=tmp_path / "mine",
    )
    assert len(result.rows) == 4
    (facts,) = {tuple(sorted(row.data.items())) for row in result.rows}
    assert dict(facts)["path"] == str(tmp_path / "points.csv")
    assert dict(facts)["model"] == str(tmp_path / "mine")
    average = api.load(tmp_path / "runs" / result.rows[3].folder)
    assert average.state()["weights"][1] == pytest.approx(12.0)  # of 1 and 3, shifted by 10
    with pytest.raises(ConfigError, match="takes no model"):
        compare(["fakes-line"], "fakes-line", runs=tmp_path / "none", model=tmp_path / "mine")
    assert not (tmp_path / "none").exists()


def test_a_comparison_is_json(tmp_path: Path) -> None:
    import json

    result = compare(["fakes-line"], "fakes-line", seeds=[7], runs=tmp_path, processes=1)
    json.dumps(result.to_json(), default=str)
    assert encode(result.rows[0]) and result.seeds == [7] and result.differences == []


def test_a_system_may_have_a_preset_of_its_own(tmp_path: Path) -> None:
    found = compare(
        ["fakes-line", "fakes-average"], "fakes-line", seeds=1, runs=tmp_path, artifacts=False,
        overrides={"fakes-average": {"preset": "smoke"}},
    )
    assert [row.preset for row in found.rows] == ["small", "smoke"]
    assert not any("preset" in row.overrides for row in found.rows)
    assert found.notes == ["fakes-average has the preset smoke, fakes-line small"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"systems": []}, ConfigError, "no system"),
        ({"seeds": 0}, ConfigError, "seeds = 0"),
        ({"seeds": [1, 1]}, ConfigError, r"seeds = \[1, 1\]"),
        ({"reference": "fakes-lime"}, UnknownNameError, "did you mean 'fakes-line'"),
        ({"overrides": {"fakes-average": {}}}, UnknownNameError, "overrides"),
        ({"task": "fakes-lime"}, UnknownNameError, "unknown task"),
    ],
)
def test_wrong_requests(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"systems": ["fakes-line"], "task": "fakes-line", "runs": tmp_path / "r", **arguments}
    with pytest.raises(error, match=words):
        compare(given.pop("systems"), given.pop("task"), **given)
    assert not (tmp_path / "r").exists()
