"""The base of the classifiers: what it takes, what it refuses, how it trains and comes back."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import passband
from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.labelled.digits import clean, symmetric_noise
from passband.data.labelled.labelled import Labelled
from passband.dynamics.baselines.cross_entropy import model as cross_entropy_model
from passband.dynamics.baselines.cross_entropy.system import CrossEntropy
from passband.dynamics.classifier import Classifier
from passband.dynamics.networks import build
from passband.dynamics.published_weights import published_names
from passband.errors import CheckpointError, ConfigError, DataError
from passband.parts.indexed import Item
from passband.parts.probes import Probes

PARTS = clean(0, "smoke")
DATA = Data(train=PARTS.train, valid=PARTS.valid, test=PARTS.test)
IMAGES = PARTS.test.x[:9]


@pytest.fixture(scope="module")
def learned() -> Classifier:
    system = Classifier.from_preset("smoke")
    system.fit(DATA.for_fit())
    return system


def test_it_learns_the_digits(learned: Classifier) -> None:
    found = learned.classify(PARTS.test.x)
    assert float((found == PARTS.test.y).double().mean()) > 0.8
    assert learned.classes == tuple("0123456789")


def test_arrays_tensors_bytes_and_grey_images_say_the_same(learned: Classifier) -> None:
    whole = learned.scores(IMAGES)
    assert isinstance(whole, torch.Tensor) and whole.shape == (9, 10)
    torch.testing.assert_close(whole.sum(1), torch.ones(9))
    for given in (IMAGES.numpy(), IMAGES.numpy()[:, 0], IMAGES[:, 0], IMAGES.double(),
                  IMAGES.tolist()):
        np.testing.assert_allclose(learned.scores(given), whole, atol=1e-6)
    found = learned.classify(IMAGES.numpy())
    assert isinstance(found, np.ndarray) and found.dtype == np.int64
    assert learned.classify(IMAGES).dtype == torch.int64
    coarse = (255 * IMAGES).round().to(torch.uint8)
    torch.testing.assert_close(learned.scores(coarse), learned.scores(coarse.float() / 255))
    assert learned.scores(IMAGES[:0]).shape == (0, 10)


@pytest.mark.parametrize(("given", "words"), [
    (IMAGES[0, 0], "inputs of shape"), (torch.zeros(2, 3, 8, 8), "inputs of shape"),
    (torch.full((1, 1, 8, 8), torch.nan), "not finite"), (np.array(["a"]), "no numbers"),
    (torch.zeros(8, 8, 8, 8), "inputs of shape"), (3.0, "inputs of shape"),
])
def test_other_inputs_are_refused(learned: Classifier, given, words: str) -> None:
    with pytest.raises(DataError, match=words):
        learned.classify(given)


def test_inputs_are_normalised_as_in_training() -> None:
    """A network that gives back what it is given shows it."""
    rows = Labelled(torch.randn(40, 3) * 7 + 2, torch.arange(40) % 3, ("a", "b", "c"))
    for normalise in (True, False):
        system = Classifier.from_preset("smoke", normalise=normalise, hidden=(), lr=1e-20)
        system.fit(Data(train=rows), Budget(steps=1))
        with torch.no_grad():
            system.network.head.weight.copy_(torch.eye(3))
            system.network.head.bias.zero_()
        x = rows.x
        expected = (x - x.mean(0)) / x.std(0, correction=0) if normalise else x
        torch.testing.assert_close(system.scores(x), expected.softmax(1), rtol=1e-4, atol=1e-6)
        with pytest.raises(DataError, match=r"one example needs x\[None\]"):
            system.scores(x[0])


def test_a_saved_system_knows_its_classes_and_shape(learned: Classifier, tmp_path: Path) -> None:
    again = Classifier.load(learned.save(tmp_path / "s"))
    assert again.classes == learned.classes and again.shape == (1, 8, 8)
    assert torch.equal(again.scores(IMAGES), learned.scores(IMAGES))
    fresh = Classifier.from_preset("smoke")
    with pytest.raises(CheckpointError, match="no normalisation or no classes"):
        fresh.load_state({}, {})


def test_what_a_method_keeps_is_saved_with_the_network(tmp_path: Path) -> None:
    again = Keeper.load(kept().save(tmp_path / "s"))
    assert torch.equal(again.seen, kept().seen) and int(again.seen.sum()) == 30 * 32


class Keeper(Classifier):
    """Counts how often each example was seen, as an ELR-like state would."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.seen = torch.zeros(len(PARTS.train), dtype=torch.int64)

    def objective(self, module, batch: Item):
        assert torch.equal(batch.y, PARTS.train.y[batch.index])
        torch.testing.assert_close(batch.x, self.ready(PARTS.train.x)[batch.index])
        # A batch that spans two epochs may have an example twice.
        self.seen.index_add_(0, batch.index, torch.ones_like(batch.index))
        return F.cross_entropy(module(batch.x), batch.y), {"seen": float(self.seen.max())}

    def extra_state(self):
        return {"seen": self.seen}

    def load_extra_state(self, state) -> None:
        self.seen = state["seen"]


def kept() -> Keeper:
    system = Keeper.from_preset("smoke")
    system.fit(DATA.for_fit(), Budget(steps=30))
    return system


def test_indices_are_those_of_the_training_set_and_epochs_are_whole() -> None:
    seen = kept().seen
    assert int(seen.min()) == 3 and int(seen.max()) == 4  # 960 draws from 300


def test_groups_reach_the_objective() -> None:
    class Grouped(Classifier):
        def objective(self, module, batch: Item):
            assert torch.equal(batch.group, batch.index % 4)
            return F.cross_entropy(module(batch.x), batch.y)

    train = replace(PARTS.train, groups=torch.arange(300) % 4, group_names=("0", "1", "2", "3"))
    Grouped.from_preset("smoke").fit(Data(train=train), Budget(steps=3))


class Stop(Exception):
    pass


@pytest.mark.parametrize("options", [
    {"augment": "crop-flip", "dropout": 0.2}, {"mixup": 1.0, "select": "highest valid_accuracy"},
])
def test_a_killed_fit_ends_as_the_whole_one(tmp_path: Path, options, monkeypatch) -> None:
    def system() -> CrossEntropy:
        made = CrossEntropy.from_preset("smoke", **options)
        made.id = "cross-entropy"
        return made

    whole = system()
    whole.fit(DATA.for_fit(), Budget(steps=30))

    monkeypatch.setattr("passband.bench.loop.SHORTEST", 0.0)
    cut, calls = system(), []
    plain = cut.objective

    def stopping(module, batch):
        calls.append(1)
        if len(calls) > 17:
            raise Stop
        return plain(module, batch)

    cut.objective = stopping
    cut.checkpoints = tmp_path
    with pytest.raises(Stop):
        cut.fit(DATA.for_fit(), Budget(steps=30))
    resumed = system()
    resumed.checkpoints, resumed.resume = tmp_path, True
    resumed.fit(DATA.for_fit(), Budget(steps=30))
    assert torch.equal(resumed.scores(IMAGES), whole.scores(IMAGES))


def test_a_custom_step_and_probes() -> None:
    probes = Probes(lambda network, step: {"norm": network.head.weight.norm()}, every=5)

    class Stepped(Classifier):
        def learn(self, network, labelled, run):
            def step(stage, batch: Item):
                return {"loss": stage.update(F.cross_entropy(stage.module(batch.x), batch.y))}

            return run.train(network, None, labelled, step=step, probes=probes)

    stepped, plain = Stepped.from_preset("smoke"), Classifier.from_preset("smoke")
    for system in (stepped, plain):
        system.fit(DATA.for_fit(), Budget(steps=12))
    torch.testing.assert_close(stepped.scores(IMAGES), plain.scores(IMAGES))
    assert probes.column("step") == [0, 5, 10, 12]
    assert probes.rows[-1]["norm"] == pytest.approx(stepped.network.head.weight.norm().item())


def test_validation_counts_given_labels_and_selects_by_them() -> None:
    parts = symmetric_noise(0, "smoke")
    system = Classifier.from_preset("smoke", select="lowest valid_loss", epochs=3)
    report = system.fit(Data(train=parts.train, valid=parts.valid))
    assert report["steps"] == 29 and report["selected"] == "lowest valid_loss"  # 3 * 300 / 32
    p = system.scores(parts.valid.x)
    loss = float(F.nll_loss(p.log(), parts.valid.y))
    assert report["valid_loss"] == pytest.approx(loss, rel=1e-4)
    right = (p.argmax(1) == parts.valid.y).double().mean()
    assert report["valid_accuracy"] == pytest.approx(100 * float(right))


def test_training_data_that_can_not_be_learned_from_are_refused() -> None:
    system = Classifier.from_preset("smoke")
    with pytest.raises(DataError, match=r"type TensorDataset(.|\n)*your own loop"):
        system.fit(Data(train=torch.utils.data.TensorDataset(IMAGES, torch.arange(9))))
    one = PARTS.train.subset(PARTS.train.y == 3)
    with pytest.raises(DataError, match=r"all .* training labels are '3'"):
        system.fit(Data(train=one))
    other = Labelled(torch.zeros(3, 4), [0, 1, 2], ("a", "b", "c"))
    with pytest.raises(DataError, match="validation of shape"):
        system.fit(Data(train=PARTS.train, valid=other))
    with pytest.raises(ConfigError, match="without validation"):
        Classifier.from_preset("smoke", select="lowest valid_loss").fit(Data(train=PARTS.train))
    with pytest.raises(ConfigError, match="'select' = 'best'"):
        Classifier.from_preset("smoke", select="best").fit(DATA.for_fit())
    with pytest.raises(ConfigError, match="augment='none'"):
        rows = Labelled(torch.randn(8, 3), torch.arange(8) % 2, ("a", "b"))
        Classifier.from_preset("smoke", augment="crop-flip").fit(Data(train=rows))


def test_the_papers_network_trains_with_augmentation() -> None:
    images = torch.rand(6, 3, 32, 32)
    data = Labelled(images, torch.arange(6) % 2, ("a", "b"))
    system = Classifier.from_preset("paper", width=4, batch_size=3)
    report = system.fit(Data(train=data), Budget(steps=2))
    assert report["steps"] == 2 and np.isfinite(report["loss"])
    torch.testing.assert_close(system.scores(images[:1]), system.scores(images)[:1])


@pytest.mark.parametrize(("field", "value"), [
    ("network", "mpl"), ("optimizer", "sdg"), ("schedule", "cosin"), ("hidden", (0,)),
    ("shape", ()), ("classes", 1), ("drop_at", ("soon",)), ("augment", "mirror"),
])
def test_wrong_configurations_name_the_field(field: str, value) -> None:
    with pytest.raises(ConfigError, match=field):
        Classifier.configure("small", **{field: value})


# ---- files ---------------------------------------------------------------------------------------


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_files_of_all_kinds_give_a_table(learned: Classifier, tmp_path: Path) -> None:
    pixels = (255 * IMAGES[:, 0]).round().to(torch.uint8).numpy()
    folder, out = tmp_path / "images" / "deep", tmp_path / "out"
    folder.mkdir(parents=True), out.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    np.savez(tmp_path / "some.npz", x=pixels)
    p = learned.scores(pixels)
    for path, names in (
        (tmp_path / "images", [f"deep/{i}.png" for i in range(9)]),
        (tmp_path / "some.npz", [f"some.npz[{i}]" for i in range(9)]),
        (folder / "4.png", ["4.png"]),
    ):
        (file,) = learned.apply_file(path, out)
        rows, chosen = table(file), p if len(names) == 9 else p[4:5]
        assert file == out / f"{path.stem}.csv" and [row["file"] for row in rows] == names
        assert [row["label"] for row in rows] == [str(k) for k in chosen.argmax(1)]
        found = [float(row["probability"]) for row in rows]
        assert found == pytest.approx(chosen.max(1).tolist(), abs=1e-5)
    paths = sorted(folder.iterdir())
    np.testing.assert_array_equal(learned.classify(paths), p.argmax(1))
    np.testing.assert_array_equal(learned.classify(str(paths[4])), p[4:5].argmax(1))


def test_the_whole_way_from_a_users_folder_to_a_table(tmp_path: Path) -> None:
    """Two kinds of images that differ in brightness, through the public functions."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(60 + 120 * k, 20, (5, 7, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "own" / name / f"{i}.png")
    row = passband.train(
        "cross-entropy", "digits", data=tmp_path / "own", preset="smoke", runs=tmp_path / "runs"
    )
    assert row.metrics == {"accuracy": 100.0}
    (file,) = passband.apply(
        tmp_path / "runs" / row.folder, tmp_path / "own" / "light", tmp_path / "out"
    )
    assert {r["label"] for r in table(file)} == {"light"} and len(table(file)) == 20


# ---- the plain baseline --------------------------------------------------------------------------


def test_mixing_is_cross_entropy_with_mixed_labels() -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(6, 4)
    x, y = torch.randn(10, 6), torch.randint(4, (10,))
    for smoothing in (0.0, 0.3):
        loss = cross_entropy_model.cross_entropy(
            network, x, y, mixup=0.4, smoothing=smoothing,
            generator=torch.Generator().manual_seed(5),
        )
        mixed, other, share = cross_entropy_model.mixed(x, 0.4, torch.Generator().manual_seed(5))
        hot = F.one_hot(y, 4).float()
        soft = share * hot + (1 - share) * hot[other]
        soft = (1 - smoothing) * soft + smoothing / 4
        expected = -(soft * network(mixed).log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(loss, expected)


def test_shares_follow_the_beta_distribution() -> None:
    from scipy.stats import beta, kstest

    generator = torch.Generator().manual_seed(0)
    for alpha in (0.4, 1.0, 4.0):
        shares = [cross_entropy_model.mixed(torch.zeros(2, 1), alpha, generator)[2]
                  for _ in range(800)]
        assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3


def test_wrong_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match="smoothing = 1"):
        cross_entropy_model.cross_entropy(torch.nn.Linear(1, 2), torch.zeros(2, 1),
                                          torch.zeros(2).long(), smoothing=1.0)
    with pytest.raises(ConfigError, match="alpha"):
        cross_entropy_model.mixed(torch.zeros(2, 1), -1.0)


# ---- published weights --------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A file of published names, and a network that has its weights."""
    network = build("resnet34", (3, 128, 128), 2, width=2).eval()
    with torch.no_grad():
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.1)
    state, path = network.state_dict(), tmp_path / "start.safetensors"
    save_file({t: state[o].clone() for o, t in published_names(network).items()}, path)
    return path, network


LARGE: dict[str, Any] = {
    "network": "resnet34", "width": 2, "shape": (3, 128, 128), "classes": 2, "batch_size": 2,
}


def test_a_fit_starts_from_published_weights_and_is_loaded_without_them(
    tmp_path: Path, published: tuple[Path, nn.Module]
) -> None:
    path, network = published
    data = Data(train=Labelled(torch.rand(4, 3, 128, 128), torch.tensor([0, 1, 0, 1]), ("a", "b")))
    system = CrossEntropy.from_preset(
        "smoke", weights=str(path), frozen_norm=True, lr=1e-9, steps=1, **LARGE
    )
    system.fit(data)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(system.network.state_dict()[name], tensor, rtol=0, atol=1e-6)
    folder = system.save(tmp_path / "saved")
    path.unlink()
    again = passband.load(folder)
    np.testing.assert_array_equal(again.scores(data.train.x), system.scores(data.train.x))
    with pytest.raises(CheckpointError, match="can't be read"):
        system.fit(data)


@pytest.mark.parametrize(("name", "more"), [("weight-compander", {}), ("elr", {"plus": True})])
def test_methods_around_a_published_start(
    published: tuple[Path, nn.Module], name: str, more: dict[str, Any]
) -> None:
    path, network = published
    system = passband.create(name, preset="smoke", weights=str(path), **LARGE, **more)
    x = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        found, wanted = system.logits(x), network(x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
