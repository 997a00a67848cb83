"""Handwritten digits of 8x8 pixels (scikit-learn's copy of the UCI set), and shifts of them.

>>> data = digits()
>>> data.train.images.shape, len(data.valid), len(data.test)
(torch.Size([1197, 1, 8, 8]), 300, 300)
>>> tilted = data.train.transformed(inverted, rotated(90))
>>> rare = biased(data.train, keep={9: 0.2}, noise=0.3, seed=0)

Images are [N, 1, 8, 8] float32 in [0, 1], ink is bright; labels are [N] int64, 0 to 9. 1,797
images in all, split once and for all. Source: E. Alpaydin and C. Kaynak, Optical Recognition of
Handwritten Digits, UCI repository, 1998.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from passband.data.cache import digest
from passband.errors import DataError, MissingExtraError

Transform = Callable[[Tensor], Tensor]
HELD_OUT = 300  # images of valid, and of test


@dataclass(frozen=True, eq=False)
class Digits:
    """images [N, 1, 8, 8] in [0, 1], labels [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def subset(self, chosen: Tensor | Iterable[int]) -> Digits:
        """The images at these places, or where a mask [N] is True."""
        index = chosen if isinstance(chosen, Tensor) else torch.tensor(list(chosen)).long()
        return Digits(self.images[index], self.labels[index])

    def of(self, classes: Iterable[int]) -> Digits:
        """The images of some classes."""
        return self.subset(torch.isin(self.labels, torch.tensor(list(classes))))

    def transformed(self, *transforms: Transform) -> Digits:
        """Every image through the transforms, in this order."""
        images = self.images
        for transform in transforms:
            images = transform(images)
        return Digits(images, self.labels)


@dataclass(frozen=True, eq=False)
class DigitsSplit:
    train: Digits
    valid: Digits
    test: Digits

    @property
    def fingerprint(self) -> str:
        parts = (self.train, self.valid, self.test)
        return digest(
            tensor.numpy().tobytes() for p in parts for tensor in (p.images, p.labels)
        )


@cache
def digits() -> DigitsSplit:
    """The images in a fixed split: 1,197 train, 300 valid, 300 test."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-learn", "tuning") from None
    data = load_digits()
    images = torch.from_numpy(data.images / 16.0).float()[:, None]
    labels = torch.from_numpy(data.target).long()
    # RandomState's streams are frozen by NumPy's policy: the split stays as it is.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    whole = Digits(images, labels)
    return DigitsSplit(
        whole.subset(order[2 * HELD_OUT :]), whole.subset(order[:HELD_OUT]),
        whole.subset(order[HELD_OUT : 2 * HELD_OUT]),
    )


# ---- shifts: images [N, 1, H, W] -> the same shape ------------------------------------------


def inverted(images: Tensor) -> Tensor:
    """Dark ink on bright paper."""
    return 1.0 - images


def dilated(images: Tensor) -> Tensor:
    """Thicker strokes: the largest of 2x2 neighbours."""
    return F.max_pool2d(F.pad(images, (0, 1, 0, 1)), 2, stride=1)


def bordered(images: Tensor) -> Tensor:
    """A bright frame one pixel wide."""
    framed = torch.ones_like(images)
    framed[..., 1:-1, 1:-1] = images[..., 1:-1, 1:-1]
    return framed


def rotated(degrees: float) -> Transform:
    """Turned counter-clockwise about the centre; exact for multiples of 90, bilinear between."""
    turns, rest = divmod(degrees, 90)
    if rest == 0:
        return lambda images: torch.rot90(images, int(turns) % 4, dims=(-2, -1))
    angle = np.deg2rad(degrees)
    # grid_sample asks where each output pixel comes from; its y axis points down.
    back = torch.tensor(
        [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]
    ).float()

    def turn(images: Tensor) -> Tensor:
        theta = back.expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    return turn


def permuted(seed: int) -> Transform:
    """All pixels exchanged by one fixed permutation: another task with the same statistics."""

    def exchange(images: Tensor) -> Tensor:
        pixels = images.flatten(-2)
        order = np.random.RandomState(seed).permutation(pixels.shape[-1])
        return pixels[..., torch.from_numpy(order)].view_as(images)

    return exchange


# ---- what is wrong with data in the world ---------------------------------------------------


def biased(
    data: Digits, *, keep: Mapping[int, float] | None = None, noise: float = 0.0, seed: int = 0
) -> Digits:
    """Some classes thinned out, then some labels replaced by a wrong one.

    keep   class -> share of its images that stays, in [0, 1]; others stay whole
    noise  share of the labels, in [0, 1], that become another class, each equally likely
    Raises `DataError` for shares outside [0, 1], or where nothing is left.
    """
    for name, share in {**(keep or {}), "noise": noise}.items():
        if not 0 <= share <= 1:
            raise DataError(f"a share of {share} ({name})", expected="0 to 1", mend="choose one")
    rng = np.random.RandomState(seed)
    labels = data.labels.numpy()
    chosen = []
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(places[: round(len(places) * (keep or {}).get(int(label), 1.0))])
    index = np.sort(np.concatenate(chosen))
    if not len(index):
        raise DataError("no image is left", expected="some", mend="keep a larger share")
    kept = labels[index].copy()
    wrong = rng.permutation(len(kept))[: round(noise * len(kept))]
    kept[wrong] = (kept[wrong] + rng.randint(1, 10, size=len(wrong))) % 10
    return Digits(data.images[torch.from_numpy(index)], torch.from_numpy(kept))


RARE = dict.fromkeys(range(5, 10), 0.2)  # five classes kept at a fifth


def imbalanced(data: Digits, n: int = 300, seed: int = 0) -> Digits:
    """`n` images with right labels, classes 5 to 9 five times as rare as the others.

    Raises `DataError` where there are fewer.
    """
    few = biased(data, keep=RARE, seed=seed)
    if n > len(few):
        raise DataError(
            f"{n} images are asked for", expected=f"at most {len(few)}", mend="ask for fewer"
        )
    order = np.random.RandomState([seed % 2**32, n]).permutation(len(few))[:n]
    return few.subset(torch.from_numpy(order))
