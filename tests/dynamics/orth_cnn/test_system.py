"""The system: what its fields do, certificates of files, answers to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from passband import apply
from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.labelled.digits import clean
from passband.dynamics.attacks import EPS
from passband.dynamics.orth_cnn.checkpoint import read_checkpoint
from passband.dynamics.orth_cnn.initialisers import delta_orthogonal_
from passband.dynamics.orth_cnn.system import OrthCNN
from passband.dynamics.tasks import TASKS
from passband.errors import CheckpointError, ConfigError, DataError, UnknownNameError


@pytest.fixture(scope="module")
def digits() -> Data:
    parts = clean(0, "smoke")
    return Data(train=parts.train, test=parts.test.subset(range(100)))


def fitted(digits: Data, **options) -> OrthCNN:
    system = OrthCNN.from_preset("smoke", **options)
    system.fit(digits.for_fit(), Budget(steps=options.get("steps", 60)))
    return system


def test_the_penalty_makes_layers_near_isometric(digits: Data) -> None:
    plain, held = (fitted(digits, lam=lam, lr=0.05).certify() for lam in (0.0, 1.0))
    assert held.lorth < 0.2 * plain.lorth
    assert held.lipschitz < 0.5 * plain.lipschitz


def test_the_robust_task(digits: Data) -> None:
    system = fitted(digits, lam=0.3, lr=0.05, normalise=True)
    found = TASKS["digits-robust"].evaluate(system, digits)
    assert {"accuracy", "robust", "certified", "lipschitz"} <= found.keys()
    assert found["certified"] <= found["robust"] <= found["accuracy"]
    # Distances count in pixels, not in the network's normalised units.
    assert found["lipschitz"] == pytest.approx(system.certify().lipschitz / float(system.std))
    x = digits.test.x
    radii = system.radii(x)
    moved = x + EPS * torch.nn.functional.normalize(torch.randn(x.shape).flatten(1)).view(x.shape)
    safe = (radii > EPS).numpy()
    assert np.array_equal(system.classify(moved.numpy())[safe], system.classify(x.numpy())[safe])


def test_starting_points_and_parametrisations(digits: Data) -> None:
    for init in ("delta", "block"):
        rows = OrthCNN.from_preset("smoke", init=init).certify().convolutions
        assert max(row.err_s for row in rows) < 1e-5
    for parametrise in ("kernel", "spectral"):
        system = fitted(digits, parametrise=parametrise, lam=0.0, steps=10)
        values = torch.linalg.svdvals(system.network.body[2].weight.detach().flatten(1))
        assert float(values[0]) == pytest.approx(1, abs=0.02)


def test_every_and_warm_up_reach_the_run(digits: Data) -> None:
    logged: list[float] = []

    class Keeps:
        def log(self, step: int, seconds: float, **values: float) -> None:
            if "penalty" in values:
                logged.append(values["penalty"])

        def progress(self, fraction: float, text: str = "") -> None:
            return None

        def test_error(self, system: OrthCNN) -> None:
            return None

    system = OrthCNN.from_preset("smoke", every=2, lam_warmup=0.5, lam=0.1)
    system.fit(digits.for_fit(), Budget(steps=12), Keeps())
    zeros = [value == 0 for value in logged]
    assert zeros[1::2] == [True] * len(zeros[1::2])
    assert zeros[0] is True  # lam is still 0
    assert not any(zeros[2::2])


def test_other_networks_become_circular() -> None:
    system = OrthCNN.from_preset("smoke", network="conv", channels=(6, 8))
    rows = system.certify().convolutions
    assert all(row.valid for row in rows)
    assert OrthCNN.from_preset("smoke", network="conv", channels=(6, 8), circular=False).certify(
    ).convolutions[0].valid is False
    with pytest.raises(ConfigError, match="constant"):
        OrthCNN.from_preset("smoke", network="resnet34", width=2, shape=(1, 16, 16)).radii(
            np.zeros((1, 1, 16, 16), np.float32)
        )


def test_impossible_networks_are_refused_before_training(digits: Data) -> None:
    options = {"channels": (32, 16), "strides": (4, 1)}
    with pytest.raises(Exception, match="no orthogonal layer of this shape"):
        fitted(digits, **options)
    fitted(digits, **options, impossible="ignore", steps=2)
    for wrong in ({"network": "vgg"}, {"activation": "swish"}, {"penalty": "none"}):
        with pytest.raises(ConfigError):
            OrthCNN.from_preset("smoke", **wrong)


def test_saved_and_loaded(digits: Data, tmp_path: Path) -> None:
    system = fitted(digits, steps=5, parametrise="kernel")
    again = OrthCNN.load(system.save(tmp_path / "saved"))
    x = digits.test.x.numpy()
    np.testing.assert_array_equal(again.scores(x), system.scores(x))


# ---- a user's checkpoint -------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    iso = delta_orthogonal_(torch.empty(6, 3, 3, 3), 2)
    tensors = {
        "stem.weight": torch.randn(4, 3, 3, 3), "stem.bias": torch.zeros(4),
        "down.weight": iso, "depth.weight": torch.randn(6, 1, 3, 3).half(),
        "head.weight": torch.randn(10, 6), "wave.weight": torch.randn(4, 2, 5),
        "codes.weight": torch.zeros(2, 2, 3, dtype=torch.int8),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return path


def test_a_checkpoint_is_certified(checkpoint: Path, tmp_path: Path) -> None:
    beside = {"size": 8, "layers": {"down": {"stride": 2}, "stem": {"padding": "zeros"}}}
    checkpoint.with_suffix(".layers.json").write_text(json.dumps(beside))
    written = apply("orth-cnn", checkpoint, tmp_path / "out")
    assert {p.name for p in written} == {
        "certificate.html", "certificate.json", "certificate.svg", "model.layers.json",
    }
    facts = json.loads((tmp_path / "out/certificate.json").read_text())
    rows = {row["name"]: row for row in facts["convolutions"]}
    assert set(rows) == {"depth", "down", "stem", "wave"}
    assert rows["down"]["sigma_min"] == pytest.approx(1, abs=1e-6)
    assert rows["down"]["lorth"] == pytest.approx(0, abs=1e-10)
    assert rows["depth"]["groups"] in (1, 6)
    assert rows["wave"]["size"] == [8]
    assert rows["stem"]["valid"] is False
    assert sorted(facts["assumed"]) == ["depth", "wave"]
    assert "codes.weight" in facts["skipped"]
    page = (tmp_path / "out/certificate.html").read_text()
    assert "down" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    template = json.loads((tmp_path / "out/model.layers.json").read_text())
    assert template["layers"]["down"]["stride"] == 2
    # What was written can be put beside the checkpoint as it is.
    checkpoint.with_suffix(".layers.json").write_text(json.dumps(template))
    assert read_checkpoint(checkpoint).assumed == ()


def test_torch_files_and_nested_ones(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 3))
    torch.save({"model": net.state_dict(), "epoch": 3}, tmp_path / "a.pt")
    assert list(read_checkpoint(tmp_path / "a.pt").weights) == ["model.0"]


def test_bad_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    beside = checkpoint.with_suffix(".layers.json")
    for text, error in (
        ('{"layers": {"dwon": {}}}', UnknownNameError), ('{"sizes": 3}', DataError),
        ("{", DataError), ('{"layers": {"down": {"strides": 2}}}', DataError),
        ('{"layers": {"down": {"stride": 0}}}', DataError),
        ('{"layers": {"down": {"stride": [1, 2, 3]}}}', DataError),
        ('{"layers": {"down": {"groups": 4}}}', DataError), ('{"layers": []}', DataError),
        ('{"size": "big"}', DataError),
    ):
        beside.write_text(text)
        with pytest.raises(error):
            apply("orth-cnn", checkpoint, tmp_path / "out")
    beside.unlink()
    save_file({"a.weight": torch.full((2, 2, 3), torch.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(DataError, match="12 values"):
        apply("orth-cnn", tmp_path / "nan.safetensors", tmp_path / "out")
    save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / "dense.safetensors")
    with pytest.raises(DataError, match="no kernel"):
        apply("orth-cnn", tmp_path / "dense.safetensors", tmp_path / "out")
    (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(CheckpointError):
        apply("orth-cnn", tmp_path / "cut.safetensors", tmp_path / "out")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="learned nothing"):
        apply("orth-cnn", tmp_path / "a.png", tmp_path / "out")
