"""Beyond the points that there are: on tasks whose truth is known."""

import numpy as np
import pytest

from passband.dynamics.random_features import KERNELS
from passband.dynamics.rf_eigen.claims import powerlaw_task
from passband.dynamics.rf_eigen.estimate import backtest, estimate
from passband.dynamics.rf_eigen.model import optimal_ridge, predict_risk
from passband.dynamics.rf_eigen.report import recommend
from passband.dynamics.rf_eigen.sentences import sentences
from passband.dynamics.rf_eigen.spectrum import Spectrum
from passband.errors import DataError


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["clean", "noisy"])
def task(request):
    """500 points of a powerlaw task with ten outputs, noise as a share of the signal's variance."""
    alpha, beta, outputs = 1.5, 1.5, 10
    rng = np.random.default_rng(21)
    kernel, y = powerlaw_task(alpha, beta, 500, 5000, rng, outputs)
    truth = Spectrum.powerlaw(alpha, beta, 10**12)
    noise = request.param * truth.variance
    y = y + np.sqrt(noise) * rng.standard_normal(y.shape)
    return kernel, y, truth.with_noise(noise), estimate(kernel, y, trials=3)


def test_more_data_as_the_truth_has_it(task):
    _, _, truth, found = task
    for n in (250, 500, 1000, 2000):
        wanted = float(optimal_ridge(truth, n).test) / truth.variance
        best = optimal_ridge(found.spectrum, n)
        if n <= 1000:
            assert float(best.test) == pytest.approx(wanted, rel=0.12 if n <= 500 else 0.2)
        low, high = found.interval(best)  # farther away the interval is what can be said
        assert low / 1.1 < wanted < high * 1.1


def test_what_interpolating_costs_as_the_truth_has_it(task):
    _, _, truth, found = task
    costs = [
        float(predict_risk(s, 500).test / optimal_ridge(s, 500).test)
        for s in (truth, found.spectrum)
    ]
    assert costs[1] == pytest.approx(costs[0], rel=0.12)


def test_fits_are_kept_with_their_interval(task):
    _, _, truth, found = task
    best = optimal_ridge(found.spectrum, [250, 2000])
    low, high = found.interval(best)
    assert (low <= best.test + 1e-12).all() and (best.test <= high + 1e-12).all()
    assert high[1] / low[1] > high[0] / low[0]  # farther away it is wider
    assert found.spectrum.variance == pytest.approx(1.0, rel=1e-6)
    assert found.misfit < 0.08
    # A slow tail and noise look alike to few points: only the range is asked for.
    shares = [s.noise for s in found.plausible]
    assert min(shares) - 0.1 < truth.noise / truth.variance < max(shares) + 0.1


def test_half_of_the_points_foretell_the_rest(task):
    kernel, y, _, found = task
    tuned, bare = backtest(kernel, y, found, trials=3)
    assert tuned.n == 400
    assert abs(tuned.apart) < 0.15 and abs(bare.apart) < 0.2


# ---- the report ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((260, 3))
    one = KERNELS["laplace"]
    y = np.sign(x[:, :1] * x[:, 1:2])
    return recommend(one.gram(x, x), y, x=x, features=one.features, trials=2, widths=(32,))


def test_rows(clean):
    assert [row.n for row in clean.data] == [65, 130, 260, 520, 1040, 2600]
    tests = [row.test for row in clean.data]
    assert tests == sorted(tests, reverse=True)
    widths = [row.test for row in clean.features]
    assert widths == sorted(widths, reverse=True) and clean.features[-1].k == np.inf
    assert widths[-1] == pytest.approx(clean.now.test)
    for row in (*clean.data, *clean.features):
        assert row.low <= row.test <= row.high and row.test <= row.no_ridge * (1 + 1e-9)
    assert clean.predict(260, np.inf, clean.now.ridge).test == pytest.approx(clean.now.test)


def test_sentences_carry_the_numbers(clean):
    said = sentences(clean)
    kinds = (
        "With all 260 points", "Less ridge", "More data", "More features", "The task", "Control",
    )
    assert len(said) == len(kinds)
    for one, kind in zip(said, kinds, strict=True):
        assert one.startswith(kind) and one.endswith(".")
    assert f"({520:,})" in said[2] and f"{100 * clean.now.test:.1f} %" in said[0]


def test_noise_says_keep_the_ridge():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((240, 3))
    one = KERNELS["laplace"]
    noisy = recommend(
        one.gram(x, x), np.sign(x[:, 0]) + 2 * rng.standard_normal(240), trials=2
    )
    assert noisy.advice == "regularise" and noisy.features == ()
    assert noisy.fitting_ratio > 0.3 and noisy.interpolation_cost > 1.05
    assert "keep it" in noisy.sentences()[1]


@pytest.mark.parametrize(
    ("kernel", "targets", "says"),
    [(np.eye(30), np.arange(30.0), "30 distinct"), (np.eye(60), np.ones(60), "equal"),
     (np.ones((60, 60)), np.arange(60.0), "1 distinct"), (np.eye(60), np.arange(60), "int64")],
)
def test_bad_input(kernel, targets, says):
    with pytest.raises(DataError, match=says):
        estimate(kernel, targets)
