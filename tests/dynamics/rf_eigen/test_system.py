"""As a user has it: files in, a page of sentences out; wrong files are answered."""

import json

import numpy as np
import pytest

from passband import apply, create, load, train
from passband.dynamics.rf_eigen.files import as_inputs, as_targets, read
from passband.dynamics.risk_tasks import TASKS
from passband.errors import DataError, PassbandWarning

RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 4))
Y = np.sign(X[:, 0] * X[:, 1]) + 0.1 * RNG.standard_normal(120)
CLASSES = np.where(X[:, 0] > 0, "right", "left")


@pytest.fixture
def saved(tmp_path):
    def save(**arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return path

    return save


def test_the_report_of_a_file(saved, tmp_path):
    written = apply("rf-eigen", saved(x=X, y=CLASSES), tmp_path / "out", preset="smoke")
    names = {path.name for path in written}
    assert names == {"report.html", "report.json", "data.svg", "ridge.svg", "features.svg",
                     "spectrum.npz"}
    page = (tmp_path / "out" / "report.html").read_text()
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(facts["sentences"]) == 6
    for start in ("Less ridge:", "More data:", "More features:"):
        assert start in page and any(one.startswith(start) for one in facts["sentences"])
    assert page.count("<svg") == 3 and "http" not in page.replace("http://www.w3.org", "")
    assert facts["features"][-1]["k"] is None and facts["points"] == 120


def test_the_spectrum_can_be_asked_again(saved, tmp_path):
    apply("rf-eigen", saved(x=X, y=Y), tmp_path / "out", preset="smoke")
    (table,) = apply("rf-eigen", tmp_path / "out" / "spectrum.npz", tmp_path / "again")
    header, first = table.read_text().splitlines()[:2]
    assert header.startswith("n,k,ridge,test") and first.startswith("2,2,")


def test_a_kernel_matrix_of_ones_own(saved, tmp_path):
    system = create("rf-eigen", preset="smoke")
    inputs = as_inputs(X)
    kernel = system.family(inputs).gram(inputs, inputs)
    by_kernel, by_inputs = system.measure(kernel=kernel, y=Y), system.measure(X, Y)
    assert [row.test for row in by_kernel.data] == pytest.approx(
        [row.test for row in by_inputs.data]
    )
    assert by_kernel.features == ()
    np.save(tmp_path / "kernel.npy", kernel)
    np.save(tmp_path / "y.npy", Y)
    subject = read(tmp_path)
    assert subject.kernel.shape == (120, 120) and subject.x is None


@pytest.mark.parametrize("name", ["arc-cosine", "relu-ntk", "gaussian", "laplace", "linear"])
def test_every_kernel(name):
    report = create("rf-eigen", preset="smoke", kernel=name).measure(X, Y)
    assert report.kernel == name and (report.features == ()) == (name == "relu-ntk")
    assert all(np.isfinite(row.test) for row in report.data)


def test_saved_and_loaded(tmp_path):
    from passband.dynamics.risk_tasks import Data, Regression

    system = create("rf-eigen", preset="smoke")
    system.fit(Data(train=Regression(X, Y)))
    again = load(system.save(tmp_path / "saved"))
    assert again.measure().to_json() == system.measure().to_json()
    assert again.measure().predict(500, 64, 0.1).test == system.measure().predict(500, 64, 0.1).test


def test_many_points_are_drawn_from():
    report = create("rf-eigen", preset="smoke", most=80).measure(X, Y)
    assert report.points == 80 and "80 of 120" in report.notes[0]


def test_the_task_compares_predictions_with_regressions(tmp_path):
    row = train("rf-eigen", "digits-risk", preset="smoke", size="smoke", runs=tmp_path)
    assert 0 <= row.metrics["prediction_error"] <= row.metrics["worst_error"] < 80
    assert 0 <= row.metrics["regret"] < 30
    page = next((tmp_path / row.folder).rglob("*.html"))
    assert "More data" in page.read_text()


def test_the_task_draws_its_parts_by_seed():
    task = TASKS["digits-risk"]
    first, again, other = task.data(0), task.data(0), task.data(1)
    np.testing.assert_array_equal(first.train.x, again.train.x)
    assert not np.array_equal(first.train.x, other.train.x)
    assert (len(first.train.x), len(first.test.part.x)) == (1197, 600)


# ---- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "says"),
    [({"x": X}, "holds x"), ({"x": X, "y": Y[:50]}, "50 targets"), ({"z": X, "y": Y}, "holds y, z"),
     ({"x": X, "y": Y, "kernel": X @ X.T}, "holds kernel, x, y"),
     ({"x": np.where(X > 2, np.nan, X), "y": Y}, "NaN"),
     ({"x": X[:20], "y": Y[:20]}, "20 distinct"),
     ({"x": X, "y": np.ones(120)}, "equal"), ({"x": X, "y": np.arange(120)}, "120 classes"),
     ({"x": np.ones((90, 2)), "y": Y[:90]}, "points are equal"), ({"x": X[:, 0], "y": Y}, "inputs"),
     ({"kernel": X, "y": Y}, r"\(120, 4\)"), ({"eigenvalues": [1.0]}, "without power"),
     ({"x": X, "y": np.array([{}] * 120)}, "can't be read")],
)
def test_bad_files(saved, tmp_path, arrays, says):
    with pytest.raises(DataError, match=says):
        apply("rf-eigen", saved(**arrays), tmp_path / "out", preset="smoke")


def test_files_of_another_kind(tmp_path):
    for name in ("a.txt", "b.npz"):
        (tmp_path / name).write_text("no arrays")
        with pytest.raises(DataError, match=name):
            apply("rf-eigen", tmp_path / name, tmp_path / "out")


def test_columns_of_different_units_are_pointed_out():
    mixed = X * [1, 1, 1, 1e5]
    with pytest.warns(PassbandWarning, match="normalise=columns"):
        as_inputs(mixed)
    np.testing.assert_allclose(as_inputs(mixed, "columns"), as_inputs(X, "columns"))


def test_targets():
    assert as_targets(np.arange(4), "numbers").tolist() == [[0], [1], [2], [3]]
    assert as_targets([True, False]).shape == (2, 2)
    with pytest.raises(DataError, match="one class"):
        as_targets(["a", "a"])


def test_measure_needs_something():
    system = create("rf-eigen", preset="smoke")
    with pytest.raises(DataError, match="nothing to measure"):
        system.measure()
    with pytest.raises(DataError, match="y is missing"):
        system.measure(X)
    with pytest.raises(DataError, match="both"):
        system.measure(X, Y, kernel=X @ X.T)
