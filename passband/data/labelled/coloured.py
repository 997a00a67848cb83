"""Coloured digits: colour tells the class in training, and tells the opposite in the test.

    y       1 for digits below 5, else 0; turned over with chance 0.25
    colour  y turned over with chance 0.2 and 0.1 in two training domains, 0.9 in the test
    image   [2, H, W]: the digit in the channel of its colour, nothing in the other

>>> parts = coloured_digits(seed=0)
>>> len(parts.train), len(parts.test), parts.train.shape, parts.train.group_names
(1200, 597, (2, 8, 8), ('colour wrong in 20 %', 'colour wrong in 10 %'))
>>> colour = parts.test.x.sum((2, 3)).argmax(1)
>>> round(float((colour == parts.test.y).double().mean()), 1)      # what has learned the colour
0.1

Shape says the label in 75 of 100 cases, which is the most that anything can reach on the test; the
colour says it in 80 and 90 in training. There is no validation part: any accuracy on the training
domains prefers colour. The turned labels are the labels, as in the paper: no truth stands behind.

Source: Arjovsky et al., arXiv 1907.02893 (coloured MNIST); `coloured_mnist` makes that from arrays
of MNIST, here `coloured_digits` from the 1,797 digits of scikit-learn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.data.digits import digits
from passband.data.labelled import readers
from passband.data.labelled.digits import Size
from passband.data.labelled.inputs import arrays
from passband.data.labelled.labelled import Labelled, Parts
from passband.errors import DataError, MissingExtraError

CLASSES = ("5 to 9", "0 to 4")
LABELS_WRONG = 0.25
COLOURS_WRONG = (0.2, 0.1, 0.9)  # two domains of training, the test
RARE = 0.03  # share of training that is the rare class of the first domain, when imbalanced
TRAIN, SMOKE, SMOKE_TEST = 1200, 300, 150
UNSEEN = ("unseen", "test")  # names of a domain that training is not to see


def coloured_digits(
    seed: int = 0, size: Size = "small", copies: int = 1, **options: Any
) -> Parts:
    """1,200 digits in two domains, 597 in the test; `smoke` has 300 and 150.

    copies   of each training digit, with labels and colours of their own: digits that come with
             both labels can't be learned by heart
    options  of `environments`: imbalanced, grey, labels_wrong, colours_wrong
    """
    images, labels = _digits()
    rng = np.random.default_rng([seed, 0])
    order = torch.from_numpy(rng.permutation(len(images)))
    train = SMOKE if size == "smoke" else TRAIN
    order = order[: SMOKE + SMOKE_TEST] if size == "smoke" else order
    order = torch.cat([order[:train].repeat(copies), order[train:]])
    return environments(images[order], labels[order], train * copies, seed, **options)


def imbalanced_digits(seed: int = 0, size: Size = "small") -> Parts:
    """The same, one class of digits almost absent from the first domain, the other from the
    second."""
    return coloured_digits(seed, size, imbalanced=True)


def many_coloured_digits(seed: int = 0, size: Size = "small") -> Parts:
    """The same 1,200 digits, each with four draws of its label and colour."""
    return coloured_digits(seed, size, copies=4)


def grey_digits(seed: int = 0, size: Size = "small") -> Parts:
    """The same digits and labels without colour: what a learner that ignores colour can reach."""
    return coloured_digits(seed, size, grey=True)


def coloured_mnist(images: Any, labels: Any, seed: int = 0, **options: Any) -> Parts:
    """Coloured MNIST from its arrays: five sixths for training, halved; the last sixth is the test.

    images   [N, 28, 28] bytes, or numbers in [0, 1]; every second pixel each way is kept
    labels   [N] digits 0 to 9
    options  of `environments`

    Of 60,000 images that is 25,000 in each domain and 10,000 in the test, [2, 14, 14] each.

    >>> parts = coloured_mnist(np.zeros((60, 28, 28), np.uint8), np.arange(60) % 10)
    >>> len(parts.train), len(parts.test), parts.train.shape
    (50, 10, (2, 14, 14))
    """
    x = torch.as_tensor(np.asarray(images))
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    y = torch.as_tensor(np.asarray(labels)).long()
    if x.dim() != 3 or len(x) < 12 or y.shape != (len(x),) or y.min() < 0 or y.max() > 9:
        raise DataError(
            f"images of shape {list(x.shape)} with labels of shape {list(y.shape)}",
            expected="[N, height, width] of 12 images or more, and [N] digits from 0 to 9",
        )
    train = len(x) * 5 // 6
    shuffled = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(train))
    order = torch.cat([shuffled, torch.arange(train, len(x))])
    return environments(x[order][:, None, ::2, ::2], y[order], train, seed, **options)


def environments(
    images: Tensor, digit: Tensor, train: int, seed: int = 0, *, imbalanced: bool = False,
    grey: bool = False, labels_wrong: float = LABELS_WRONG,
    colours_wrong: tuple[float, float, float] = COLOURS_WRONG,
) -> Parts:
    """Colour digits [N, 1, H, W]: the first `train` become two domains, the rest the test.

    imbalanced  the first domain has all digits below 5 and few others (3 % of training), the second
                the others alone. So the published code has it, where the text says 97 to 3 % in
                both; labels keep two values in each domain, for a quarter of them is turned over
    grey        the digit in both channels
    """
    rng = np.random.default_rng([seed, 1])
    clean = (digit < 5).long()
    flips = torch.from_numpy(rng.random((2, len(images))))
    y = clean ^ (flips[0] < labels_wrong).long()
    groups = torch.arange(len(images)) % 2
    if imbalanced:
        rest = (clean == 0).nonzero().ravel()
        groups = clean ^ 1
        groups[rest[: round(RARE * train)]] = 0
    groups[train:] = 2
    wrong = flips[1] < torch.tensor(colours_wrong, dtype=torch.float64)[groups]
    colour = y ^ wrong.long()
    x = images.expand(-1, 2, -1, -1).clone()
    if not grey:
        x[torch.arange(len(x)), 1 - colour] = 0
    names = tuple(f"colour wrong in {100 * share:.0f} %" for share in colours_wrong)
    first = slice(0, train)
    seen = Labelled(x[first], y[first], CLASSES, groups=groups[first], group_names=names[:2])
    last = Labelled(x[train:], y[train:], CLASSES, group_names=names[2:],
                    groups=torch.zeros(len(x) - train, dtype=torch.long))
    return Parts(seen, None, last)


def read(path: str | Path) -> Parts:
    """The user's domains, one of them unseen; or MNIST, which is coloured.

    An .npz of images [N, 28, 28] with digits (`x`, `y`; or `x_train`, `y_train` as Keras has it)
    becomes coloured MNIST. Anything that `passband.data.labelled.readers` reads with domains is
    taken as it is: the test is the domain called `unseen` or `test`, else the last by name. A
    folder with its own train and test keeps them, domains inside: DIR/train/DOMAIN/CLASS/a.png.

    Raises `DataError` for data without domains.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz" and path.is_file():
        mnist = _mnist(path)
        if mnist is not None:
            return coloured_mnist(*mnist)
    if path.is_dir() and any(p.is_dir() and p.name.lower() == "train" for p in path.iterdir()):
        parts = readers.read(path)
        _need_domains(parts.train, path, least=2)
        return parts
    whole = readers.read_whole(path)
    _need_domains(whole, path, least=3)
    named = [name for name in whole.group_names if name.lower() in UNSEEN]
    return readers.read(path, unseen=(named or whole.group_names)[-1])


def _mnist(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Images and digits of a file that has them and no domains."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
    except (OSError, ValueError):
        return None  # the reader of arrays says what is wrong with it
    pair = ("x_train", "y_train") if {"x_train", "y_train"} <= names else ("x", "y")
    if "domain" in names or not set(pair) <= names:
        return None
    found = arrays(path, pair)
    images, labels = found[pair[0]], found[pair[1]]
    return (images, labels) if images.ndim == 3 and images.shape[1:] == (28, 28) else None


def _need_domains(data: Labelled, path: Path, least: int) -> None:
    count = 0 if data.groups is None else len(data.groups.unique())
    if count < least:
        raise DataError(
            f"{path} has {count} domains", expected=f"{least} or more"
            + (": two to learn from and one that is not seen" if least > 2 else ""),
            mend="a column `domain`, an array `domain`, or folders DOMAIN/CLASS/image",
        )


def _digits() -> tuple[Tensor, Tensor]:
    try:
        data = digits()
    except MissingExtraError:
        raise MissingExtraError("scikit-learn", "dynamics") from None
    parts = (data.train, data.valid, data.test)
    return torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts])
