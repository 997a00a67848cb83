"""Tables of a function of two residues, a part of them known, a part of those wrong.

>>> data = modular_dataset(97, "add", alpha=0.5, xi=0.35, seed=0)
>>> len(data.train), len(data.corrupt), len(data.test)
(4704, 1646, 4705)
>>> m, n = data.pairs[7].tolist()
>>> int(data.truth[7]) == (m + n) % 97
True
>>> 0.64 < data.inverted < 0.67          # what ignoring the corrupted labels scores in training
True

Letters: p residues, N = p^2 pairs in the order m p + n, C classes. All of it lies in memory: p of a
few hundred at most. Source: Doshi, Das, He, Gromov, ICLR 2024, arXiv 2310.13061.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.noise import corrupted

LARGEST = 1024  # residues of a table: a million pairs
UNKNOWN = -1

Function = Callable[[Any, Any, int], Any]

OPERATIONS: dict[str, Function] = {
    "add": lambda m, n, p: (m + n) % p,
    "subtract": lambda m, n, p: (m - n) % p,
    "multiply": lambda m, n, p: (m * n) % p,
}


@dataclass(frozen=True, eq=False)
class Known:
    """What a learner sees: some pairs with labels, and nothing of which are right.

    pairs   [n, 2] int64 in 0..p-1
    labels  [n] int64 in 0..classes-1
    """

    p: int
    classes: int
    pairs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Modular:
    """A table with its truth.

    pairs    [N, 2] int64, all of them
    truth    [N] int64; -1 where nobody knows
    labels   [N] int64: the truth, but for `corrupt`
    corrupt  positions of training pairs whose label was drawn at random (it may come out right)
    clean    positions of the other training pairs
    test     positions of pairs that are held back, their labels never wrong
    alpha, xi  shares asked for
    op       name of the operation
    """

    p: int
    classes: int
    pairs: Tensor
    truth: Tensor
    labels: Tensor
    corrupt: Tensor
    clean: Tensor
    test: Tensor
    alpha: float
    xi: float
    op: str

    @property
    def train(self) -> Tensor:
        """Positions of the training pairs, corrupted ones first."""
        return torch.cat([self.corrupt, self.clean])

    @property
    def known(self) -> Known:
        """The training part as a learner sees it: in the order of the pairs."""
        train = self.train.sort().values
        return Known(self.p, self.classes, self.pairs[train], self.labels[train])

    @property
    def inverted(self) -> float:
        """Training accuracy of what knows the rule and ignores every corrupted label.

        1 - xi (1 - 1 / C) in expectation.
        """
        train = self.train
        return float((self.labels[train] == self.truth[train]).double().mean())

    def splits(self) -> dict[str, Tensor]:
        """Positions by name: train, corrupt, clean, test, and all with a known truth."""
        every = (self.truth != UNKNOWN).nonzero().ravel()
        return {
            "train": self.train, "corrupt": self.corrupt, "clean": self.clean,
            "test": self.test, "all": every,
        }

    def accuracies(self, predicted: Tensor) -> dict[str, float]:
        """Predictions [N] -> accuracy of each split; of an empty one there is none.

        train, corrupt and clean are held against the labels given, test and all against the
        truth. Where the label given is wrong, `memorised` is the share of it among the
        predictions, `recovered` that of the truth.

        >>> data = modular_dataset(11, alpha=0.6, xi=0.2)
        >>> data.accuracies(data.truth)["recovered"], data.accuracies(data.labels)["memorised"]
        (1.0, 1.0)
        """
        given = {"train", "corrupt", "clean"}
        found = {
            name: _share(predicted, self.labels if name in given else self.truth, rows)
            for name, rows in self.splits().items() if len(rows)
        }
        wrong = self.corrupt[self.labels[self.corrupt] != self.truth[self.corrupt]]
        if len(wrong):
            found["memorised"] = _share(predicted, self.labels, wrong)
            found["recovered"] = _share(predicted, self.truth, wrong)
        return found


def _share(predicted: Tensor, wanted: Tensor, rows: Tensor) -> float:
    return float((predicted[rows] == wanted[rows]).double().mean())


def modular_dataset(
    p: int = 97, op: str | Function | np.ndarray[Any, Any] = "add", alpha: float = 0.5,
    xi: float = 0.0, seed: int = 0,
) -> Modular:
    """All p^2 pairs; a share alpha is known, the first int(xi n) of its labels drawn at random.

    >>> modular_dataset(7, lambda m, n, p: m * m + n * n, alpha=0.8).classes
    73
    >>> table = np.arange(25).reshape(5, 5) % 3
    >>> modular_dataset(5, table, alpha=0.8).classes
    3

    op     "add", "subtract", "multiply", a function (m, n, p) -> labels of arrays of residues, or
           an integer table [p, p] with -1 where the entry is unknown
    alpha  share of all pairs that is for training, in (0, 1]
    xi     share of those whose label is drawn anew, each class equally likely

    Raises ConfigError for multiplication modulo no prime and shares out of range; DataError for
    labels that are no whole numbers from 0 up. Warns where too little is known for a rule to show.
    """
    if isinstance(p, bool) or not isinstance(p, (int, np.integer)) or not 3 <= p <= LARGEST:
        raise ConfigError(f"p = {p!r}", expected=f"a whole number from 3 to {LARGEST}")
    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha = {alpha}", expected="a share in (0, 1]")
    if not 0 <= xi <= 1:
        raise ConfigError(f"xi = {xi}", expected="a share in [0, 1]")
    if isinstance(op, str) and op == "multiply":
        check_prime(p)
    truth, name = _truth(int(p), op)
    classes = int(truth.max()) + 1
    if classes < 2:
        raise DataError("every label is the same", expected="at least two classes")
    if isinstance(op, str):
        classes = int(p)
    known = np.flatnonzero(truth != UNKNOWN)
    size = int(alpha * len(known) + 1e-9)
    if size < 1:
        raise ConfigError(f"alpha = {alpha} of {len(known)} pairs is none", expected="at least one")
    if size < p:
        warnings.warn(
            f"{size} known pairs for {p} residues: some residues are never seen, the rule can't "
            "be found", PassbandWarning, stacklevel=2,
        )
    order = known[np.random.default_rng(seed).permutation(len(known))]
    train, test = torch.from_numpy(order[:size]), torch.from_numpy(order[size:])
    whole = torch.from_numpy(truth)
    noisy = corrupted(whole[train], xi, classes, seed)  # warns where the signal vanishes
    labels = whole.clone()
    labels[train] = noisy.labels
    return Modular(
        int(p), classes, all_pairs(int(p)), whole, labels, corrupt=train[noisy.drawn],
        clean=train[~noisy.drawn], test=test, alpha=alpha, xi=xi, op=name,
    )


def all_pairs(p: int) -> Tensor:
    """[p^2, 2] int64, pair number m p + n is (m, n)."""
    return torch.cartesian_prod(torch.arange(p), torch.arange(p))


def _truth(p: int, op: str | Function | np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """[p^2] int64 and a name."""
    if isinstance(op, np.ndarray):
        table = check_table(op)
        if len(table) != p:
            raise DataError(f"a table of {len(table)} residues with p = {p}", expected="the same")
        return table.ravel(), "table"
    if isinstance(op, str):
        if op not in OPERATIONS:
            raise ConfigError(
                f"op = {op!r}", expected=f"one of {', '.join(OPERATIONS)}, a function or a table"
            )
        name, function = op, OPERATIONS[op]
    else:
        name, function = getattr(op, "__name__", "function"), op
    m, n = np.divmod(np.arange(p * p, dtype=np.int64), p)
    values = np.broadcast_to(np.asarray(function(m, n, p)), (p * p,))
    return _whole(values, f"the labels of {name}"), name


def check_table(table: Any, where: str = "the table") -> np.ndarray[Any, Any]:
    """A user's table as [p, p] int64, -1 where unknown (NaN there is read as unknown).

    >>> check_table([[0.0, np.nan, 2.0], [1.0, 2.0, 0.0], [2.0, 0.0, 1.0]])[0].tolist()
    [0, -1, 2]
    """
    values = np.asarray(table)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise DataError(
            f"{where} has shape {list(values.shape)}", expected="[p, p], one row and one column a "
            "residue", mend="mark unknown entries with -1 and leave none out",
        )
    if not 3 <= len(values) <= LARGEST:
        raise DataError(f"{where} has {len(values)} rows", expected=f"3 to {LARGEST}")
    if np.issubdtype(values.dtype, np.floating):
        values = np.where(np.isnan(values), UNKNOWN, values)
    whole = _whole(values, where, least=UNKNOWN)
    if not (whole != UNKNOWN).any():
        raise DataError(f"{where} has no known entry", expected="some, to learn from")
    return whole


def _whole(values: np.ndarray[Any, Any], where: str, least: int = 0) -> np.ndarray[Any, Any]:
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise DataError(f"{where}: values of type {values.dtype}", expected="whole numbers")
    if not np.isfinite(values).all() or (values != np.floor(values)).any():
        raise DataError(f"{where} has values that are no whole numbers", expected="0, 1, 2, ...")
    whole = values.astype(np.int64)
    if whole.min() < least or whole.max() >= LARGEST**2:
        raise DataError(
            f"{where} has values from {whole.min()} to {whole.max()}",
            expected=f"whole numbers from {least} up"
            + (", -1 for unknown entries" if least == UNKNOWN else ""),
            mend="number the classes 0, 1, 2, ...",
        )
    return whole


# ---- users' tables ---------------------------------------------------------------------------


def read_table(path: Path) -> np.ndarray[Any, Any]:
    """[p, p] int64 of a .npy file or a CSV of p lines; -1, an empty cell and ? are unknown.

    >>> _ = Path("table.csv").write_text("0,1,2\\n1,,0\\n2,?,1\\n")
    >>> read_table(Path("table.csv")).tolist()
    [[0, 1, 2], [1, -1, 0], [2, -1, 1]]
    """
    path = Path(path)
    if path.suffix == ".npy":
        try:
            return check_table(np.load(path, allow_pickle=False), str(path))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} can't be read: {error}", expected="a NumPy array of numbers, [p, p]"
            ) from None
    if path.suffix.lower() not in (".csv", ".txt"):
        raise DataError(
            f"{path} is no table", expected=".npy, or .csv with p lines of p whole numbers",
            mend="save the table with numpy.save, or as CSV without a header",
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read: {error}", expected="a CSV file") from None
    if not rows:
        raise DataError(f"{path} is empty", expected="p lines of p whole numbers")
    lengths = {len(row) for row in rows}
    if lengths != {len(rows)}:
        raise DataError(
            f"{path} has {len(rows)} lines of {min(lengths)} to {max(lengths)} cells",
            expected="as many cells in each line as there are lines, and no header",
            mend="leave unknown cells empty, between commas",
        )
    cells = [[_cell(cell, path, i) for cell in row] for i, row in enumerate(rows, 1)]
    return check_table(cells, str(path))


def _cell(text: str, path: Path, line: int) -> float:
    text = text.strip()
    if text in ("", "?", "-1"):
        return UNKNOWN
    try:
        return float(text)
    except ValueError:
        raise DataError(
            f"{path}, line {line}: {text!r}", expected="a whole number, or nothing where unknown"
        ) from None


def known_part(table: np.ndarray[Any, Any]) -> Known:
    """All known entries of a table as what a learner sees.

    >>> known_part(np.array([[0, 1, -1], [1, -1, 0], [2, 0, 1]])).pairs.shape
    torch.Size([7, 2])
    """
    table = check_table(table)
    m, n = np.nonzero(table != UNKNOWN)
    labels = table[m, n]
    pairs = torch.from_numpy(np.stack([m, n], 1).astype(np.int64))
    return Known(len(table), max(2, int(labels.max()) + 1), pairs, torch.from_numpy(labels))


# ---- number theory ---------------------------------------------------------------------------


def check_prime(p: int) -> None:
    """Raise ConfigError where the nonzero residues have no discrete logarithm we use."""
    if p < 3 or any(p % d == 0 for d in range(2, int(p**0.5) + 1)):
        raise ConfigError(
            f"multiplication modulo {p}", expected="a prime of 3 or more",
            mend="take a prime, for example 31 or 97; addition works for any p",
        )


def discrete_log_order(p: int) -> np.ndarray[Any, Any]:
    """Nonzero residues as powers of the least primitive root: g^0, g^1, ..., g^(p-2).

    >>> discrete_log_order(7).tolist()
    [1, 3, 2, 6, 4, 5]

    In this order multiplication adds places modulo p - 1, so that Fourier analysis applies.
    """
    check_prime(p)
    for g in range(2, p):
        powers = [1]
        while (following := powers[-1] * g % p) != 1:
            powers.append(following)
        if len(powers) == p - 1:
            return np.array(powers)
    raise AssertionError(f"{p} is prime and has no primitive root")
