"""Coloured digits: the chances that define them, and users' domains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from passband.data.labelled.coloured import (
    coloured_digits,
    coloured_mnist,
    environments,
    grey_digits,
    imbalanced_digits,
    many_coloured_digits,
    read,
)
from passband.errors import DataError

IMAGES = torch.rand(6000, 1, 3, 3) + 0.1
DIGIT = torch.arange(6000) % 10


def colour(x: torch.Tensor) -> torch.Tensor:
    return x.sum((2, 3)).argmax(1)


def test_labels_and_colours_are_wrong_as_often_as_said() -> None:
    parts = environments(IMAGES, DIGIT, 4000, seed=0)
    train, test = parts.train, parts.test
    assert parts.valid is None and len(train) == 4000 and len(test) == 2000
    clean = (DIGIT < 5).long()
    within = 4 * (0.25 * 0.75 / 2000) ** 0.5
    for share, y, shape in ((0.25, train.y, clean[:4000]), (0.25, test.y, clean[4000:])):
        assert float((y != shape).double().mean()) == pytest.approx(share, abs=within)
    for e, share in enumerate((0.2, 0.1)):
        one = train.subset(train.groups == e)
        assert len(one) == 2000
        assert float((colour(one.x) != one.y).double().mean()) == pytest.approx(share, abs=within)
    assert float((colour(test.x) != test.y).double().mean()) == pytest.approx(0.9, abs=within)
    assert ((train.x.sum((2, 3)) == 0).sum(1) == 1).all()  # one channel is empty
    torch.testing.assert_close(train.x.sum(1), IMAGES[:4000, 0])
    assert train.truth is None  # a turned label is the label


def test_imbalance_is_as_published() -> None:
    parts = environments(IMAGES, DIGIT, 4000, seed=0, imbalanced=True)
    low = (DIGIT[:4000] < 5)
    first = parts.train.groups == 0
    assert int(first.sum()) == 2000 + 120 and bool(low[~first].logical_not().all())
    assert all(len(part.y.unique()) == 2 for part in parts.train.by_group())


def test_digits_are_drawn_by_the_seed_and_kept_apart() -> None:
    one, again, other = coloured_digits(3), coloured_digits(3), coloured_digits(4)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert len(coloured_digits(0, "smoke").train) == 300
    grey, imbalanced = grey_digits(3), imbalanced_digits(3)
    assert torch.equal(grey.train.y, one.train.y) and bool((grey.train.x[:, 0] > 0).any())
    assert torch.equal(grey.train.x[:, 0], grey.train.x[:, 1])
    assert torch.equal(imbalanced.test.x.sum(1), one.test.x.sum(1))
    many = many_coloured_digits(3)
    assert len(many.train) == 4800 and len(many.test) == 597
    shapes = many.train.x.sum(1).view(4, 1200, 8, 8)
    torch.testing.assert_close(shapes[0], shapes[3])
    assert not torch.equal(many.train.y[:1200], many.train.y[1200:2400])


def test_mnist_is_halved_and_coloured(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (120, 28, 28), dtype=np.uint8)
    labels = np.arange(120) % 10
    parts = coloured_mnist(images, labels)
    assert parts.train.shape == (2, 14, 14) and float(parts.train.x.max()) <= 1.0
    assert [len(part) for part in parts.train.by_group()] == [50, 50]
    torch.testing.assert_close(
        parts.test.x.sum(1), torch.from_numpy(images[100:, ::2, ::2]).float() / 255
    )
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert read(tmp_path / "mnist.npz").fingerprint == parts.fingerprint
    with pytest.raises(DataError, match="digits from 0 to 9"):
        coloured_mnist(images, labels + 1)


def test_users_domains(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    domain = np.repeat(["art", "photo", "sketch"], 20)
    x, y = rng.random((60, 3)), np.tile([0, 1], 30)
    np.savez(tmp_path / "a.npz", x=x, y=y, domain=domain)
    parts = read(tmp_path / "a.npz")
    assert {parts.test.group_names[g] for g in parts.test.groups} == {"sketch"}
    assert len(parts.test) == 20 and 2 not in parts.train.groups
    np.savez(tmp_path / "b.npz", x=x, y=y, domain=np.repeat(["unseen", "x", "y"], 20))
    seen = read(tmp_path / "b.npz")
    assert {seen.test.group_names[g] for g in seen.test.groups} == {"unseen"}
    np.savez(tmp_path / "c.npz", x=x, y=y)
    with pytest.raises(DataError, match="0 domains"):
        read(tmp_path / "c.npz")
    folder = tmp_path / "images"
    for place in ("train/a", "train/b", "test/c"):
        for name in ("cat", "dog"):
            (folder / place / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / place / name / f"{i}.png")
    given = read(folder)
    assert given.train.group_names == ("a", "b") and given.test.group_names == ("c",)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="can't be read"):
        read(tmp_path / "broken.npz")
