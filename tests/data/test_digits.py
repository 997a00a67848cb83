"""Digits: the fixed split, the shifts against NumPy, and biased samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from passband.data.digits import (
    RARE,
    Digits,
    biased,
    bordered,
    digits,
    dilated,
    imbalanced,
    inverted,
    permuted,
    rotated,
)
from passband.errors import DataError


@pytest.fixture(scope="module")
def data():
    return digits()


def test_the_split_holds_every_image_once(data):
    from sklearn.datasets import load_digits

    source = load_digits()
    parts = (data.train, data.valid, data.test)
    assert [len(part) for part in parts] == [1197, 300, 300]
    images = torch.cat([part.images for part in parts]).numpy()
    labels = torch.cat([part.labels for part in parts]).numpy()
    ours = sorted((*image.ravel(), label) for image, label in zip(images, labels, strict=True))
    theirs = sorted(
        (*image.ravel() / 16, label)
        for image, label in zip(source.images, source.target, strict=True)
    )
    assert np.allclose(ours, theirs)
    assert images.dtype == np.float32 and images.min() == 0 and images.max() == 1
    assert data.test.labels.bincount().min() >= 20


def test_shifts_agree_with_numpy(data):
    images = data.test.images[:20]
    flat = images[:, 0].numpy()
    assert np.allclose(inverted(images)[:, 0], 1 - flat)
    assert np.array_equal(rotated(90)(images)[:, 0], np.rot90(flat, axes=(1, 2)))
    assert np.array_equal(rotated(-90)(images)[:, 0], np.rot90(flat, -1, axes=(1, 2)))
    # The largest over the pixel itself, its right and its lower neighbours.
    wide = np.pad(flat, ((0, 0), (0, 1), (0, 1)))
    grown = np.max([wide[:, :-1, :-1], wide[:, 1:, :-1], wide[:, :-1, 1:], wide[:, 1:, 1:]], axis=0)
    assert np.array_equal(dilated(images)[:, 0], grown)
    framed = bordered(images)[:, 0].numpy()
    assert (framed[:, 0] == 1).all() and (framed[:, :, -1] == 1).all()
    assert np.array_equal(framed[:, 1:-1, 1:-1], flat[:, 1:-1, 1:-1])


def test_rotations_by_any_angle_continue_those_by_90(data):
    images = data.test.images[:20]
    assert torch.allclose(rotated(90 + 1e-4)(images), rotated(90)(images), atol=1e-4)
    assert torch.allclose(rotated(1e-4)(images), images, atol=1e-4)
    turned = rotated(30)(images)[:, 0].numpy()
    expected = ndimage.rotate(images[:, 0].numpy(), 30, axes=(2, 1), reshape=False, order=1)
    expected_other = ndimage.rotate(images[:, 0].numpy(), -30, axes=(2, 1), reshape=False, order=1)
    error = np.abs(turned - expected)[:, 2:-2, 2:-2].mean()
    other = np.abs(turned - expected_other)[:, 2:-2, 2:-2].mean()
    assert min(error, other) < 1e-5 < max(error, other)


def test_a_permutation_keeps_the_pixels(data):
    images = data.test.images[:5]
    moved = permuted(3)(images)
    assert moved.shape == images.shape and not torch.equal(moved, images)
    assert torch.equal(moved.flatten(1).sort().values, images.flatten(1).sort().values)
    assert torch.equal(permuted(3)(images[:1]), moved[:1])
    assert not torch.equal(permuted(4)(images), moved)


def test_transforms_are_applied_in_order(data):
    both = data.test.transformed(inverted, bordered)
    assert torch.equal(both.images, bordered(inverted(data.test.images)))
    assert torch.equal(both.labels, data.test.labels)


def test_a_biased_sample_has_its_shares(data):
    whole = data.train.labels.bincount()
    found = biased(data.train, keep=RARE, seed=1)
    for label, count in enumerate(found.labels.bincount().tolist()):
        share = 0.2 if label >= 5 else 1.0
        assert count == round(share * int(whole[label]))
    # Without noise every image has its own label.
    truth = {image.numpy().tobytes(): int(label) for image, label in data.train}
    assert all(truth[image.numpy().tobytes()] == int(label) for image, label in found)


def test_noise_replaces_labels_by_wrong_ones(data):
    noisy = biased(data.train, noise=0.3, seed=0)
    wrong = noisy.labels != data.train.labels
    assert int(wrong.sum()) == round(0.3 * len(data.train))
    assert torch.equal(noisy.images, data.train.images)
    assert noisy.labels.min() == 0 and noisy.labels.max() == 9
    assert torch.equal(biased(data.train, noise=0.3, seed=0).labels, noisy.labels)
    assert not torch.equal(biased(data.train, noise=0.3, seed=1).labels, noisy.labels)


def test_a_small_imbalanced_sample(data):
    few = imbalanced(data.train, 300, seed=0)
    assert len(few) == 300
    share = (few.labels >= 5).double().mean()
    assert 0.10 < share < 0.24  # a sixth on average
    with pytest.raises(DataError, match="at most"):
        imbalanced(data.train, 1197)


def test_shares_that_cannot_be(data):
    for arguments in ({"keep": {3: 1.5}}, {"noise": -0.1}):
        with pytest.raises(DataError, match="0 to 1"):
            biased(data.train, **arguments)
    with pytest.raises(DataError, match="no image"):
        biased(data.train, keep=dict.fromkeys(range(10), 0.0))


def test_of_and_subset():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 8, 8)
    few = Digits(images, torch.tensor([1, 2, 1, 3]))
    assert few.of([1, 3]).labels.tolist() == [1, 1, 3]
    assert few.subset([2, 0]).images[:, 0, 0, 0].tolist() == [2, 0]
