"""The public functions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import passband
from passband.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PassbandWarning,
    UnknownNameError,
)

pytestmark = pytest.mark.usefixtures("fakes")


def test_every_public_name_is_there() -> None:
    for name in passband.__all__:
        assert callable(getattr(passband, name)) and getattr(passband, name).__doc__


def test_list_and_info() -> None:
    assert [card.id for card in passband.list_systems("fakes-*")] == ["fakes-line"]
    assert [c.id for c in passband.list_systems("fakes", kind="baseline")] == ["fakes-average"]
    facts = passband.info("fakes-line")
    assert facts["presets"]["smoke"] == {"steps": 5} and facts["verbs"] == ("predict",)
    assert facts["fields"][0]["name"] == "steps" and facts["fields"][0]["default"] == 30
    assert [task["name"] for task in facts["tasks"]] == ["fakes-line", "fakes-shifted"]
    assert [claim["id"] for claim in facts["claims"]] == ["C1", "C2", "C3"]
    with pytest.raises(UnknownNameError, match="did you mean 'fakes-line'"):
        passband.info("fakes-lin")


def test_listing_imports_no_torch() -> None:
    code = "import sys, passband; passband.list_systems(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_create_checks_names_and_values() -> None:
    assert passband.create("fakes-line", "smoke", steps=7).config.steps == 7
    with pytest.raises(ConfigError, match="steps"):
        passband.create("fakes-line", steps=-1)


def test_train_load_apply(tmp_path: Path) -> None:
    runs, x = tmp_path / "runs", tmp_path / "x.txt"
    np.savetxt(x, [0.0, 1.0])
    result = passband.train("fakes-line", budget="50 steps", seed=4, runs=runs, steps=10)
    assert result.task == "fakes-line" and result.overrides == {"steps": 10}
    system = passband.load(runs / result.folder)
    assert system.id == "fakes-line" and system.seed == 4
    expected = system.predict(np.array([0.0, 1.0]))  # type: ignore[attr-defined]
    for place in (runs / result.folder, str(runs / result.folder / "system")):
        (written,) = passband.apply(place, x, tmp_path / "out")
        assert np.loadtxt(written) == pytest.approx(expected)
    assert passband.train("fakes-line", budget="50 steps", seed=4, runs=runs, steps=10,
                          resume=True) == result


def test_train_on_own_data_is_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "points.csv").write_text("0,1\n1,3\n")
    first = passband.train("fakes-line", data=tmp_path / "points.csv", runs=tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    again = passband.train("fakes-line", data="points.csv", runs="runs", resume=True)
    assert again == first and first.data["path"] == str(tmp_path / "points.csv")
    (tmp_path / "bad.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"bad\.csv"):
        passband.train("fakes-line", data="bad.csv")


def test_train_with_own_model_is_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shift.txt").write_text("10")
    first = passband.train(
        "fakes-line", "fakes-shifted", model=tmp_path / "mine", runs=tmp_path / "runs", steps=300
    )
    plain = passband.train("fakes-line", "fakes-shifted", runs=tmp_path / "runs", steps=300)
    monkeypatch.chdir(tmp_path)
    again = passband.train(
        "fakes-line", "fakes-shifted", model="mine", runs="runs", resume=True, steps=300
    )
    assert again == first and first.data["model"] == str(tmp_path / "mine") and not plain.data
    shifts = [passband.load(Path("runs") / row.folder).state()["weights"][1]
              for row in (first, plain)]
    assert shifts[0] == pytest.approx(shifts[1] + 10, abs=0.01)
    (tmp_path / "mine" / "shift.txt").write_text("11.5")
    with pytest.warns(PassbandWarning, match="other data"):
        other = passband.train(
            "fakes-line", "fakes-shifted", model="mine", runs="runs", resume=True, steps=300
        )
    assert other.key == first.key and other.data != first.data


def test_apply_to_several_files_keeps_them_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "x.txt", tmp_path / "b" / "x.txt", tmp_path / "y.txt"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        np.savetxt(path, [0.0, 1.0])
    written = passband.apply("fakes-average", paths, out=tmp_path / "out")
    names = [str(path.relative_to(tmp_path / "out")) for path in written]
    assert names == ["x/y.txt", "x-2/y.txt", "y/y.txt"]


def test_apply_refuses(tmp_path: Path) -> None:
    x = tmp_path / "x.txt"
    np.savetxt(x, [0.0, 1.0])
    with pytest.raises(ConfigError, match="has to be trained"):
        passband.apply("fakes-line", x)
    with pytest.raises(DataError, match="doesn't exist"):
        passband.apply("fakes-average", tmp_path / "none.txt")
    with pytest.raises(DataError, match="no input files"):
        passband.apply("fakes-average", [])
    with pytest.raises(CheckpointError, match="is no folder"):
        passband.apply("runs/nothing", x)
    with pytest.raises(ConfigError, match="can't be written"):
        passband.apply("fakes-average", x, out=x / "out")
    folder = passband.create("fakes-average").save(tmp_path / "saved")
    with pytest.raises(ConfigError, match="can't be changed"):
        passband.apply(folder, x, width=3)


def test_load_takes_classes_from_the_catalog_only(tmp_path: Path) -> None:
    folder = passband.create("fakes-line").save(tmp_path / "saved")
    facts = json.loads((folder / "config.json").read_text())
    for change in (
        {"system": "", "class": "os:system"}, {"system": "stranger"}, {"class": "os:system"},
    ):
        (folder / "config.json").write_text(json.dumps({**facts, **change}))
        if change == {"system": "stranger"}:  # a foreign id on a known class: the class counts
            assert type(passband.load(folder)).__name__ == "LineSystem"
            continue
        with pytest.raises(CheckpointError):
            passband.load(folder)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        passband.load(tmp_path)


def test_a_system_built_from_its_class_can_be_loaded(tmp_path: Path) -> None:
    from passband_fakes.line.system import LineSystem

    system = LineSystem(seed=1)
    loaded = passband.load(system.save(tmp_path / "saved"))
    assert loaded.state()["weights"] == pytest.approx(system.weights)


def test_compare_and_reproduce_report_shares_of_the_work(tmp_path: Path) -> None:
    shares: list[float] = []

    def progress(share: float, text: str) -> None:
        shares.append(share)

    passband.compare(["fakes-line", "fakes-average"], "fakes-line", seeds=2, runs=tmp_path,
                     processes=1, progress=progress)
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    shares.clear()
    rows = passband.reproduce("fakes-line", claims=["C2", "C3"], smoke=True, runs=tmp_path,
                              progress=progress)
    assert [row.claim for row in rows] == ["C2", "C3"] and shares[-1] == 1.0
