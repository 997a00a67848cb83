"""Intruder dimensions: dominant singular vectors of a tuned matrix unlike any of the base matrix.

    W0 = U0 S0 V0^T  base [m, n],   W1 = U S V^T  tuned [m, n],   y_j = U[:, j], x_i = U0[:, i]
    y_j is an intruder   iff   max_i |y_j . x_i| < eps          over ALL base vectors x_i
    count(k, eps) = number of intruders among the k leading y_j

Base vectors are those of singular values above 1e-7 of the largest: the others span the null
space, where no direction is the matrix's own. So a tuned vector that lies in the null space (zero
rows of a pruned matrix, or beyond the n columns of a tall one) is an intruder. Tuned vectors of no
weight are left out for the same reason, which clips k to the rank.

Certificate: with m base vectors and e = sum_{i <= m} c_i^2 of a unit vector y, every other |c_i| is
at most sqrt(1 - e). Where that is below max_{i <= m} |c_i|, the maximum is known without the other
base vectors: large matrices that moved little are decided by a few Lanczos steps.

Source: Shuttleworth, Andreas, Torralba, Sharma, LoRA vs Full Fine-tuning: An Illusion of
Equivalence, NeurIPS 2025, arXiv 2410.21228.

>>> base = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
>>> spread = torch.full((4, 4), 2.5)                     # rank one, 10 in a direction of its own
>>> count_intruders(base, base + spread, eps=0.6)
1
>>> found = detect(base, base + spread, eps=0.6)
>>> found.positions, found.curve([0.5, 0.6, 1.0]).tolist()
((0,), [0, 1, 4])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from passband.errors import ConfigError, DataError
from passband.parts.spectral import LinearMap, left_vectors, top_singular

Side = Literal["left", "right", "both"]
SIDES: dict[str, tuple[Literal["left", "right"], ...]] = {
    "left": ("left",), "right": ("right",), "both": ("left", "right"),
}
NULL = 1e-7  # s / s_1 below which a direction counts as null: the rounding of single precision
LARGE = 1024  # sides above which the certificate is tried before all base vectors are computed
LEADING = 4  # base vectors that it looks at, for each tuned one


def count_intruders(
    before: Tensor | Base, after: Tensor | LinearMap, k: int = 10, eps: float = 0.5, *,
    side: Side = "left",
) -> int:
    """Number of the k leading singular vectors of `after` that are unlike any of `before`.

    before, after  [m, n], any floating dtype (computed in float64); k above the rank is clipped
    Raises `DataError` for shapes that differ, NaN and integers; `ConfigError` for eps outside
    (0, 1] and k below 1.

    >>> count_intruders(torch.eye(3), torch.eye(3))
    0
    """
    return detect(before, after, k, eps, side=side).count


@dataclass(frozen=True)
class Intruders:
    """What was found in one matrix; leading singular vectors of the tuned weights in order.

    sigma    [k]     their singular values
    cosines  [k]     largest |cosine| of each to a base vector; of both sides the larger one
    nearest  [k]     which base vector (or group of them) that is
    U, Vh    [m, k], [k, n]
    certified        whether the certificate made the rest of the base vectors unnecessary
    """

    sigma: Tensor
    cosines: Tensor
    nearest: Tensor
    U: Tensor
    Vh: Tensor
    eps: float
    certified: bool = False

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Ranks of the intruders among the tuned singular vectors, from 0."""
        return tuple(torch.nonzero(self.cosines < self.eps).flatten().tolist())

    @property
    def count(self) -> int:
        return len(self.positions)

    def curve(self, eps: Sequence[float] | Tensor, k: int | None = None) -> Tensor:
        """Counts [len(eps)] for other thresholds, among the first k."""
        edges = torch.as_tensor(eps, dtype=self.cosines.dtype)
        found: Tensor = (self.cosines[:k, None] < edges).sum(0)
        return found


class Base:
    """A pretrained matrix [m, n]; its singular vectors are computed once, when first asked for.

    within  base vectors whose singular values differ by less than this share count as one
            subspace, in which no single direction is defined: sqrt(sum c^2) takes the place of |c|

    >>> base = Base(torch.eye(3), within=0.01)             # every direction is a singular vector
    >>> detect(base, torch.eye(3) + torch.full((3, 3), 0.1)).count
    0
    """

    def __init__(self, weight: Tensor, *, within: float = 0.0) -> None:
        if not 0.0 <= within < 1.0:
            raise ConfigError(f"within = {within}", expected="a share in [0, 1)")
        self.weight, self.within = checked(weight, "the base matrix"), within
        self._vectors: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def vectors(self, side: Literal["left", "right"] = "left") -> tuple[Tensor, Tensor]:
        """All base vectors as columns [m or n, rank], and their singular values [rank]."""
        if side not in self._vectors:
            found = left_vectors(self.weight if side == "left" else self.weight.T)
            self._vectors[side] = _weighty(*found)
        return self._vectors[side]

    def preset(self, side: Literal["left", "right"], vectors: Tensor, sigma: Tensor) -> None:
        """Take over vectors [m or n, rank] and values [rank] that an earlier run has kept."""
        size = self.shape[0] if side == "left" else self.shape[1]
        if vectors.shape != (size, len(sigma)):
            raise DataError(
                f"{side} vectors of shape {tuple(vectors.shape)} for a matrix {self.shape}",
                expected=f"[{size}, {len(sigma)}]", mend="they belong to another matrix",
            )
        self._vectors[side] = _weighty(vectors.double(), sigma.double())

    def similarity(
        self, columns: Tensor, side: Literal["left", "right"] = "left"
    ) -> Tensor:
        """|cosine| of every base vector with unit columns [m or n, k], as [rank, k]."""
        return (self.vectors(side)[0].T @ columns.double()).abs()

    def nearest(
        self, columns: Tensor, side: Literal["left", "right"] = "left"
    ) -> tuple[Tensor, Tensor, bool]:
        """Largest |cosine| [k], which base vector [k], and whether the certificate was enough."""
        # A group cut off at the last leading vector has no bound: all of them, then.
        if side not in self._vectors and min(self.shape) > LARGE and not self.within:
            found = self._certified(columns, side)
            if found is not None:
                return (*found, True)
        x, sigma = self.vectors(side)
        return (*_largest(x.T @ columns, sigma, self.within), False)

    def _certified(
        self, columns: Tensor, side: Literal["left", "right"]
    ) -> tuple[Tensor, Tensor] | None:
        """From the leading base vectors alone; None where the others could matter."""
        m = min(LEADING * columns.shape[1], min(self.shape) // 2)
        top = top_singular(self.weight, m)
        x, sigma = _weighty(top.U if side == "left" else top.Vh.T, top.s)
        c = x.T @ columns
        largest, index = _largest(c, sigma, within=0.0)
        return (largest, index) if bool(certain(c, largest).all()) else None


def detect(
    before: Tensor | Base, after: Tensor | LinearMap, k: int = 10, eps: float = 0.5, *,
    side: Side = "left",
) -> Intruders:
    """Compare the k leading singular vectors of `after` with all of `before`.

    before  [m, n], or a `Base` that serves several tuned matrices
    after   [m, n], or its products alone (`LinearMap.updated(W, B, A)`: no merged matrix is made)
    side    left: output directions, as in the paper; right; both: unlike on either side

    >>> W, B, A = torch.diag(torch.arange(1.0, 9.0)), torch.ones(8, 1), torch.ones(1, 8)
    >>> detect(Base(W), LinearMap.updated(W, B, A, scale=4.0)).positions
    (0,)
    """
    if side not in SIDES:
        raise ConfigError(f"side {side!r}", expected=f"one of {', '.join(SIDES)}")
    check_threshold(eps)
    if k < 1:
        raise ConfigError(f"k = {k} leading vectors", expected="1 or more")
    base = before if isinstance(before, Base) else Base(before)
    if isinstance(after, Tensor):
        after = checked(after, "the tuned matrix")
    if tuple(after.shape) != base.shape:
        raise DataError(
            f"a tuned matrix of shape {tuple(after.shape)}", expected=f"the base's {base.shape}",
            mend="compare weights of the same name and layout",
        )
    top = top_singular(after, min(k, *base.shape))
    if not bool(torch.isfinite(top.s).all()):
        raise DataError("the tuned matrix has NaN or infinite entries", expected="finite numbers")
    U, s = _weighty(top.U, top.s)
    Vh = top.Vh[: len(s)]
    if isinstance(after, Tensor) and torch.equal(after, base.weight):
        # Equal singular values would let two decompositions of one matrix differ.
        same = torch.arange(len(s), device=s.device)
        return Intruders(s, torch.ones_like(s), same, U, Vh, eps, True)
    columns = {"left": U, "right": Vh.T}
    found = [base.nearest(columns[one], one) for one in SIDES[side]]
    cosines, nearest, certified = found[0]
    for others, indices, enough in found[1:]:
        nearest = torch.where(others > cosines, indices, nearest)
        cosines, certified = torch.maximum(cosines, others), certified and enough
    return Intruders(s, cosines, nearest, U, Vh, eps, certified)


def certain(c: Tensor, largest: Tensor | None = None) -> Tensor:
    """Whether the largest |c_i| of the first m base vectors is that of all of them, [k] bool.

    c        [m, k] inner products of m base vectors with k unit vectors
    largest  [k] what is to beat; max_i |c_i| when None

    >>> certain(torch.tensor([[0.8, 0.5], [0.1, 0.5]]))
    tensor([ True, False])
    """
    largest = c.abs().amax(0) if largest is None else largest
    rest = (1.0 - c.square().sum(0)).clamp(min=0.0).sqrt()
    return rest < largest


def check_threshold(eps: float) -> None:
    """Raise `ConfigError` for a threshold of |cosine| outside (0, 1]."""
    if not 0.0 < eps <= 1.0:
        raise ConfigError(f"eps = {eps}", expected="a threshold of |cosine| in (0, 1]")


def checked(weight: Tensor, what: str) -> Tensor:
    """A matrix in float64; `DataError` for another number of axes, integers and NaN."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise DataError(f"{what} has shape {tuple(weight.shape)}", expected="[m, n], not empty")
    if not weight.is_floating_point():
        raise DataError(
            f"{what} holds {weight.dtype} (a quantised model?)", expected="floating-point weights",
            mend="load the model without quantisation, or dequantise it first",
        )
    weight = weight.detach().double()
    if not bool(torch.isfinite(weight).all()):
        raise DataError(f"{what} has NaN or infinite entries", expected="finite numbers")
    return weight


def _weighty(vectors: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Without the null directions; the values fall."""
    rank = int((sigma > NULL * sigma[0]).sum()) if len(sigma) else 0
    return vectors[:, :rank], sigma[:rank]


def _largest(c: Tensor, sigma: Tensor, within: float) -> tuple[Tensor, Tensor]:
    """Largest |c_i| over base vectors (or groups of near-equal sigma), and the first index there.

    c  [rank, k]
    """
    if not len(sigma):
        return c.new_zeros(c.shape[1]), torch.zeros(c.shape[1], dtype=torch.long, device=c.device)
    if within == 0.0:
        found = c.abs().max(dim=0)
        return found.values, found.indices
    starts = _groups(sigma.tolist(), within)
    owner = torch.zeros(len(sigma), dtype=torch.long)
    owner[starts[1:]] = 1
    owner = owner.cumsum(0).to(c.device)
    energy = c.new_zeros(len(starts), c.shape[1]).index_add_(0, owner, c.square())
    found = energy.max(dim=0)
    return found.values.sqrt(), torch.as_tensor(starts, device=c.device)[found.indices]


def _groups(sigma: list[float], within: float) -> list[int]:
    """Where groups begin: each reaches down to (1 - within) of its first value."""
    starts, floor = [], float("inf")
    for index, value in enumerate(sigma):
        if value < floor:
            starts.append(index)
            floor = value * (1.0 - within)
    return starts
