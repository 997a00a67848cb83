"""Singular values and vectors of weight matrices through the smaller Gram matrix, in float64.

    W [m, n],  p = min(m, n),   W = U diag(s) V^T     U [m, p], s [p] falling, V^T [p, n]
    m <= n:    W W^T = U diag(s^2) U^T  (eigh, p x p),   V^T = diag(1/s) U^T W
A Gram matrix squares the spectrum: what lies below s_1 / 1000 is taken out and decomposed again at
its own scale, and directions of no weight at all are completed to an orthonormal set. So all
values are right to about 1e-13 s_1, like LAPACK's, at a fraction of the time for wide matrices.

The leading triples alone come from block Lanczos (Golub, Luk and Overton, ACM Trans. Math. Softw.
7, 1981) where few products do, and from the Gram matrix where the spectrum is flat: there sketches
(Halko, Martinsson and Tropp, SIAM Rev. 53, 2011) silently return a wrong subspace.

>>> svd = gram_svd(torch.diag(torch.tensor([3.0, 0.0, 5.0])))
>>> svd.s
tensor([5., 3., 0.], dtype=torch.float64)
>>> svd.rank
2
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from scipy import linalg
from torch import Tensor

from passband.errors import ConfigError, DataError

EPS = torch.finfo(torch.float64).eps
HEAD = 1e-3  # s / s_1 down to which both sides of a Gram matrix are orthonormal to 1e-10
SMALL = 1024  # side up to which a Gram matrix is decomposed sooner than a few Krylov steps


class Svd(NamedTuple):
    """W = U diag(s) Vh, thin, float64. Signs: the largest entry of each column of U is positive.

    rank   values above max(m, n) eps s_1, eps of the dtype that W came in
    """

    U: Tensor  # [m, k]
    s: Tensor  # [k]
    Vh: Tensor  # [k, n]
    rank: int

    def top(self, k: int) -> Svd:
        """The k leading triples."""
        return Svd(self.U[:, :k], self.s[:k], self.Vh[:k], min(self.rank, k))


class Leading(NamedTuple):
    """Leading triples with what was checked: max_i ||W^T u_i - s_i v_i||, ||W v_i - s_i u_i||."""

    U: Tensor  # [m, k]
    s: Tensor  # [k]
    Vh: Tensor  # [k, n]
    residual: float  # over s_1
    route: Literal["lanczos", "gram"]


@dataclass(frozen=True)
class LinearMap:
    """A matrix [m, n] known by its products with blocks of columns.

    >>> W, B, A = torch.ones(4, 3), torch.ones(4, 1), torch.ones(1, 3)
    >>> LinearMap.updated(W, B, A, scale=0.5).matvec(torch.ones(3, 1, dtype=torch.float64)).T
    tensor([[4.5000, 4.5000, 4.5000, 4.5000]], dtype=torch.float64)
    """

    shape: tuple[int, int]
    matvec: Callable[[Tensor], Tensor]  # [n, b] -> [m, b], float64
    rmatvec: Callable[[Tensor], Tensor]  # [m, b] -> [n, b], float64
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant

    @classmethod
    def of(cls, W: Tensor) -> LinearMap:
        """Products with W [m, n] itself, in float64."""
        matrix = _matrix(W)
        return cls(
            (matrix.shape[0], matrix.shape[1]),
            lambda q: _rows_times(q.T, matrix.T).T,
            lambda q: _rows_times(q.T, matrix).T,
            matrix.device,
        )

    @classmethod
    def updated(
        cls,
        W: Tensor,
        B: Tensor,
        A: Tensor,
        scale: float = 1.0,
        B0: Tensor | None = None,
        A0: Tensor | None = None,
    ) -> LinearMap:
        """W + scale (B A - B0 A0) without the sum being formed. W [m, n], B [m, r], A [r, n]."""
        W, B, A = _matrix(W), _matrix(B), _matrix(A)
        if B0 is not None and A0 is not None:
            B, A = torch.cat([B, -_matrix(B0)], 1), torch.cat([A, _matrix(A0)])
        if (B.shape[0], A.shape[1]) != tuple(W.shape) or B.shape[1] != A.shape[0]:
            raise DataError(
                f"factors {tuple(B.shape)} and {tuple(A.shape)} for a matrix {tuple(W.shape)}",
                expected="B [m, r] and A [r, n]",
            )
        B = scale * B
        return cls(
            (W.shape[0], W.shape[1]),
            lambda q: torch.addmm(_rows_times(q.T, W.T).T, B, A @ q),
            lambda q: torch.addmm(_rows_times(q.T, W).T, A.T, B.T @ q),
            W.device,
        )

    def dense(self, block: int = 256) -> Tensor:
        """The matrix itself [m, n], through products with the identity of the smaller side."""
        m, n = self.shape
        out = torch.empty(m, n, dtype=torch.float64, device=self.device)
        for start in range(0, min(m, n), block):
            unit = torch.zeros(min(m, n), min(block, min(m, n) - start), dtype=torch.float64)
            unit[start : start + unit.shape[1]].fill_diagonal_(1.0)
            unit = unit.to(self.device)
            if n <= m:
                out[:, start : start + unit.shape[1]] = self.matvec(unit)
            else:
                out[start : start + unit.shape[1]] = self.rmatvec(unit).T
        return out


def _matrix(W: Tensor) -> Tensor:
    """W in float64, detached; raises for what has no singular values."""
    if W.ndim != 2 or 0 in W.shape:
        raise DataError(f"matrix of shape {tuple(W.shape)}", expected="two axes, not empty")
    W = W.detach().double()
    if not bool(torch.isfinite(W.sum())):  # four times faster than looking at every entry
        raise DataError("matrix has NaN or infinite entries", expected="finite numbers")
    return W


def gram(W: Tensor) -> Tensor:
    """W W^T [m, m] of W [m, n], without gradient; half the work of a product of two matrices.

    >>> gram(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
    tensor([[5., 6.],
            [6., 9.]])
    """
    if W.device.type != "cpu":
        return W @ W.T
    array = W.detach().numpy()
    return torch.from_numpy(array @ array.T)  # NumPy sees the transpose and calls syrk


def _rows_times(rows: Tensor, W: Tensor) -> Tensor:
    """rows [k, m] @ W: with few rows lying in one piece BLAS is several times faster."""
    return rows.contiguous() @ W


def ordered_eigh(H: Tensor, top: int | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and their vectors (columns) of a symmetric matrix [p, p].

    top   how many of them; all when None. On a CPU few of them cost a third of all.
    Equal input gives equal signs: the largest entry of each vector is positive.

    >>> values, vectors = ordered_eigh(torch.diag(torch.tensor([1.0, 4.0, 2.0])), top=2)
    >>> values
    tensor([4., 2.])
    """
    p = H.shape[-1]
    k = p if top is None else min(top, p)
    if H.ndim == 2 and H.device.type == "cpu" and 4 * k <= p:
        found, columns = linalg.eigh(
            H.numpy(), driver="evr", subset_by_index=(p - k, p - 1), check_finite=False
        )
        values, vectors = torch.from_numpy(found), torch.from_numpy(columns)
    else:
        values, vectors = torch.linalg.eigh(H)
    values, vectors = values.flip(-1)[..., :k], vectors.flip(-1)[..., :k]
    return values, vectors * _signs(vectors)


def _signs(columns: Tensor) -> Tensor:
    """+1 or -1 per column [..., 1, k], so that its largest entry becomes positive."""
    at = columns.abs().argmax(dim=-2, keepdim=True)
    return torch.where(columns.gather(-2, at) < 0, -1.0, 1.0).to(columns.dtype)


def gram_svd(W: Tensor) -> Svd:
    """Thin SVD of W [m, n] by eigh of the smaller Gram matrix; result in float64.

    Vectors of values that are apart agree with LAPACK's up to sign; of equal values some
    orthonormal basis is returned; where s = 0 the vectors complete an orthonormal set.
    Raises `DataError` for NaN and for what is no matrix.

    >>> W = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
    >>> U, s, Vh, rank = gram_svd(W)
    >>> bool(torch.allclose(U * s @ Vh, W.double()))
    True
    """
    matrix = _matrix(W)
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    U, s, V = _wide(wide, ordered_eigh(gram(wide))[1])
    V = _completed(V, len(s))
    eps = torch.finfo(W.dtype).eps if W.dtype.is_floating_point else EPS
    rank = int((s > max(W.shape) * eps * s[0]).sum())
    if tall:
        U, V = V.T, U.T
    signs = _signs(U)
    return Svd(U * signs, s, V * signs.T, rank)


def _wide(W: Tensor, U: Tensor, floor: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """U [p, p], s [p], rows V [q, n] of values above `floor`; W [p, n], U of its Gram matrix."""
    P = U.T @ W
    s = torch.linalg.vector_norm(P, dim=1)
    s, order = torch.sort(s, descending=True, stable=True)
    U, P = U[:, order], P[order]
    if floor is None:
        floor = max(W.shape) * EPS * float(s[0])
    if float(s[0]) <= floor:
        return U, torch.zeros_like(s), P[:0]
    head = int((s > max(HEAD * float(s[0]), floor)).sum())
    V = P[:head] / s[:head, None]
    if head == len(s):
        return U, s, V
    # The rest at its own scale. Rounding of the large part leaked into its rows.
    tail = P[head:]
    for _ in range(2):
        tail = tail - (tail @ V.T) @ V
    inner, values, rows = _wide(tail, ordered_eigh(gram(tail))[1], floor)
    s = torch.cat([s[:head], values])
    U = torch.cat([U[:, :head], U[:, head:] @ inner], 1)
    V = torch.cat([V, rows])
    s, order = torch.sort(s, descending=True, stable=True)  # head and tail may touch
    return U[:, order], s, V[order[: len(V)]]


def _completed(V: Tensor, rows: int) -> Tensor:
    """V [q, n] with orthonormal rows, filled to `rows` of them."""
    missing = rows - len(V)
    if not missing:
        return V
    seed = torch.Generator().manual_seed(0)
    fresh = torch.randn(V.shape[1], missing, generator=seed, dtype=torch.float64).to(V.device)
    for _ in range(2):
        fresh = fresh - V.T @ (V @ fresh)
        fresh = torch.linalg.qr(fresh).Q
    return torch.cat([V, fresh.T])


def left_vectors(M: Tensor) -> tuple[Tensor, Tensor]:
    """U [m, p] and s [p], largest first, of M [m, n]: what methods need that project on U.

    Half the time of `gram_svd` where m <= n and no value is lost in the squared spectrum.

    >>> U, s = left_vectors(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> s
    tensor([2., 1.], dtype=torch.float64)
    """
    matrix = _matrix(M)
    if matrix.shape[0] <= matrix.shape[1]:
        values, U = ordered_eigh(gram(matrix))
        if float(values[-1]) > HEAD**2 * float(values[0]):
            return U, values.sqrt()
        U, s, _ = _wide(matrix, U)
        return U * _signs(U), s
    svd = gram_svd(M)
    return svd.U, svd.s


def top_singular(
    W: Tensor | LinearMap, k: int, tolerance: float = 1e-9, *, seed: int = 0
) -> Leading:
    """The k leading singular triples, with residuals ||W^T u - s v|| <= tolerance s_1 each.

    W   a matrix [m, n], or a `LinearMap` when only its products are at hand
    Block Lanczos is given up for the Gram matrix as soon as its rate of convergence says that it
    would cost more (flat spectra). Raises `ConfigError` for k outside 1 ... min(m, n).

    >>> top = top_singular(torch.diag(torch.arange(1.0, 9.0)), k=2)
    >>> top.s
    tensor([8., 7.], dtype=torch.float64)
    """
    if isinstance(W, Tensor) and (W.ndim != 2 or 0 in W.shape):
        raise DataError(f"matrix of shape {tuple(W.shape)}", expected="two axes, not empty")
    shape = W.shape if isinstance(W, LinearMap) else (W.shape[0], W.shape[1])
    p = min(shape)
    if not 1 <= k <= p:
        raise ConfigError(f"k = {k} singular triples of a matrix {shape}", expected=f"1 to {p}")
    if p > SMALL and 16 * k <= p:
        linear = W if isinstance(W, LinearMap) else LinearMap.of(W)
        found = _lanczos(linear, k, tolerance, seed)
        if found is not None:
            U, s, V = found
            return Leading(U, s, V.T, _residual(linear, U, s, V), "lanczos")
    return _leading_by_gram(_matrix(W.dense() if isinstance(W, LinearMap) else W), k)


def _residual(linear: LinearMap, U: Tensor, s: Tensor, V: Tensor) -> float:
    right = torch.linalg.vector_norm(linear.matvec(V) - U * s, dim=0)
    left = torch.linalg.vector_norm(linear.rmatvec(U) - V * s, dim=0)
    return float(torch.maximum(left, right).max() / s[0].clamp(min=torch.finfo(s.dtype).tiny))


def _leading_by_gram(matrix: Tensor, k: int) -> Leading:
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    left = ordered_eigh(gram(wide), k)[1].T.contiguous()  # rows
    right = _rows_times(left, wide)
    s = torch.linalg.vector_norm(right, dim=1)
    if float(s[-1]) > HEAD * float(s[0]):
        right = right / s[:, None]
    else:
        svd = gram_svd(wide).top(k)
        left, s, right = svd.U.T, svd.s, svd.Vh
    # The other residual, W^T u - s v, is zero: this is how v was made.
    rest = torch.linalg.vector_norm(_rows_times(right, wide.T) - s[:, None] * left, dim=1)
    residual = float(rest.max() / s[0].clamp(min=torch.finfo(s.dtype).tiny))
    U, V = (right, left) if tall else (left, right)
    return Leading(U.T, s, V, residual, "gram")


def _lanczos(
    linear: LinearMap, k: int, tolerance: float, seed: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """U [m, k], s [k], V [n, k] by block Golub-Kahan with full reorthogonalisation; or None.

    W V = U T holds exactly and W^T U = V T^T + V_next R E^T, so that the residual of a Ritz triple
    is the size of R^T times the last block of its left vector: known without a product.
    """
    m, n = linear.shape
    width = min(k + max(4, k // 4), min(m, n))
    # A Krylov space of a sixth of all costs what the Gram matrix costs.
    most = max(2, min(m, n) // (6 * width))
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(n, width, generator=generator, dtype=torch.float64).to(linear.device)
    block = torch.linalg.qr(block).Q
    U = block.new_empty(m, 0)
    V = block.new_empty(n, 0)
    T = block.new_empty(0, 0)
    history: list[float] = []
    for _ in range(most):
        V = torch.cat([V, block], 1)
        image = linear.matvec(block)
        left, coefficients = _orthonormalised(image, U)
        T = torch.cat([torch.cat([T, T.new_zeros(width, T.shape[1])]), coefficients], 1)
        U = torch.cat([U, left], 1)
        if not bool(torch.isfinite(T.sum())):
            return None
        block, next_coefficients = _orthonormalised(linear.rmatvec(left), V)
        P, s, Qh = torch.linalg.svd(T)
        tail = next_coefficients[-width:] @ P[-width:, :k]
        worst = float(torch.linalg.vector_norm(tail, dim=0).max())
        top = float(s[0])
        if worst <= tolerance * top:
            return U @ P[:, :k], s[:k], V @ Qh[:k].T
        history.append(math.log(worst / top))
        if _hopeless(history, math.log(tolerance), most):
            return None
    return None


def _hopeless(history: list[float], goal: float, most: int) -> bool:
    """Whether the fall of the residual so far reaches the goal too late. Lanczos speeds up: x 2."""
    if len(history) < 4:
        return False
    rate = max((history[1] - history[-1]) / (len(history) - 2), 1e-3)
    return len(history) + (history[-1] - goal) / (2 * rate) > most


def _orthonormalised(block: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Q orthonormal and orthogonal to the basis, and [c; R] with block = basis c + Q R."""
    first = basis.T @ block
    block = block - basis @ first
    Q, R = torch.linalg.qr(block)
    # Once more, in the scale of the result: a block that is nearly in the basis loses digits, and
    # one that is wholly in it leaves directions that were rounding alone.
    second = basis.T @ Q
    Q, again = torch.linalg.qr(Q - basis @ second)
    return Q, torch.cat([first + second @ R, again @ R])


def balanced_factors(U: Tensor, s: Tensor, Vh: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """B [m, r] and A [r, n] of equal size with scale B A = U diag(s) Vh.

    >>> B, A = balanced_factors(torch.eye(2), torch.tensor([4.0, 1.0]), torch.eye(2), scale=4.0)
    >>> B
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])
    """
    if scale <= 0:
        raise ConfigError(f"scale = {scale}", expected="a positive number")
    root = (s / scale).sqrt()
    return U * root, root[:, None] * Vh


Balance = Literal["none", "global", "exact"]


def rebalance(B: Tensor, A: Tensor, how: Balance = "none") -> tuple[Tensor, Tensor]:
    """B [m, r], A [r, n] with the same product and sizes that agree; dtypes are kept.

    how   none: as they are; global: one number, so that the Frobenius norms agree;
          exact: symmetric split of the thin SVD of B A

    >>> B, A = rebalance(torch.ones(2, 1), 16 * torch.ones(1, 2), how="global")
    >>> B.T, A
    (tensor([[4., 4.]]), tensor([[4., 4.]]))
    """
    if how not in _BALANCES:
        raise ConfigError(f"balance {how!r}", expected=f"one of {', '.join(_BALANCES)}")
    return _BALANCES[how](B, A)


def balance_ratio(Bs: list[Tensor], As: list[Tensor]) -> float:
    """q such that the q B and A / q of a whole model have the same mean Frobenius norm.

    >>> balance_ratio([torch.ones(1, 1)], [4 * torch.ones(1, 1)])
    2.0
    """
    b = sum(float(torch.linalg.vector_norm(B.detach().double())) for B in Bs)
    a = sum(float(torch.linalg.vector_norm(A.detach().double())) for A in As)
    return math.sqrt(a / b) if a > 0 and b > 0 else 1.0


def _as_they_are(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    return B, A


def _one_ratio(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    q = balance_ratio([B], [A])
    return B * q, A / q


def _symmetric(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    left, right = torch.linalg.qr(B.double()), torch.linalg.qr(A.double().T)
    U, s, Vh = torch.linalg.svd(left.R @ right.R.T)
    new_B, new_A = balanced_factors(left.Q @ U, s, Vh @ right.Q.T)
    return new_B.to(B.dtype), new_A.to(A.dtype)


_BALANCES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "none": _as_they_are,
    "global": _one_ratio,
    "exact": _symmetric,
}


def effective_rank(s: Tensor) -> Tensor:
    """exp of the entropy of s / sum(s), over the last axis (Roy and Vetterli, EUSIPCO 2007).

    >>> effective_rank(torch.tensor([2.0, 2.0, 0.0]))
    tensor(2.)
    """
    share = s / s.sum(-1, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return torch.where(s.amax(-1) > 0, entropy.exp(), torch.zeros_like(entropy))


def stable_rank(s: Tensor) -> Tensor:
    """sum(s^2) / max(s)^2 over the last axis; 0 for a zero matrix.

    >>> stable_rank(torch.tensor([2.0, 1.0]))
    tensor(1.2500)
    """
    top = s.amax(-1, keepdim=True)
    return (s / top.clamp(min=torch.finfo(s.dtype).tiny)).square().sum(-1)


def nuclear_gradient(P: Tensor) -> Tensor:
    """U V^T of P = U S V^T [..., m, n]: the gradient of the nuclear norm, in the dtype of P.

    Directions of no weight get none: of all subgradients the one of least norm. (P P^T)^(-1/2) P
    through eigh of the smaller Gram matrix in float64; leading axes are batched.

    >>> nuclear_gradient(torch.diag(torch.tensor([3.0, 0.0])))
    tensor([[1., 0.],
            [0., 0.]])
    """
    if P.ndim < 2 or 0 in P.shape:
        raise DataError(f"matrix of shape {tuple(P.shape)}", expected="two axes or more, not empty")
    wide = P.detach().double()
    tall = P.shape[-2] > P.shape[-1]
    wide = wide.mT if tall else wide
    if not bool(torch.isfinite(wide.sum())):
        raise DataError("matrix has NaN or infinite entries", expected="finite numbers")
    H = gram(wide) if wide.ndim == 2 else wide @ wide.mT
    values, U = torch.linalg.eigh(H)
    floor = 8 * max(P.shape[-2:]) * EPS * values[..., -1:]
    root = torch.where(values > floor, values, torch.inf).rsqrt()
    factor = (U * root[..., None, :]) @ (U.mT @ wide)
    out: Tensor = (factor.mT if tall else factor).to(P.dtype)
    return out


class SpectralCache:
    """Decompositions by the content of the matrix, so that methods and ranks share them.

    most_bytes   what is kept at most; the least recently used goes first. Thread-safe.

    >>> cache, W = SpectralCache(), torch.randn(6, 8)
    >>> full = cache.svd(W)
    >>> cache.top(W.clone(), 2).s.equal(full.s[:2])  # a slice of what is there
    True
    """

    def __init__(self, most_bytes: int = 1 << 29) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[bytes, Svd] = OrderedDict()
        self._lock = threading.Lock()

    def svd(self, W: Tensor) -> Svd:
        """`gram_svd(W)`."""
        return self._get(W, min(W.shape), lambda: gram_svd(W))

    def top(self, W: Tensor, k: int) -> Svd:
        """`top_singular(W, k)`, or a slice of a larger decomposition made before."""

        def leading() -> Svd:
            U, s, Vh, _, _ = top_singular(W, k)
            eps = torch.finfo(W.dtype).eps if W.dtype.is_floating_point else EPS
            return Svd(U, s, Vh, int((s > max(W.shape) * eps * s[0]).sum()))

        return self._get(W, k, leading).top(k)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)

    def _get(self, W: Tensor, k: int, make: Callable[[], Svd]) -> Svd:
        key = content_key(W)
        with self._lock:
            found = self._kept.get(key)
            if found is not None and len(found.s) >= k:
                self._kept.move_to_end(key)
                return found
        made = make()
        with self._lock:
            self._kept[key] = made
            self._kept.move_to_end(key)
            while self._bytes() > self.most_bytes and self._kept:
                self._kept.popitem(last=False)
        return made

    def _bytes(self) -> int:
        return sum(8 * (v.U.numel() + v.s.numel() + v.Vh.numel()) for v in self._kept.values())


def content_key(W: Tensor) -> bytes:
    """A digest of dtype, shape, device and bytes.

    >>> content_key(torch.ones(2, 3)) == content_key(torch.ones(3, 2).T)
    True
    """
    digest = hashlib.blake2b(repr((W.dtype, tuple(W.shape), W.device)).encode(), digest_size=16)
    flat = W.detach().contiguous().reshape(-1).view(torch.uint8)
    digest.update(flat.cpu().numpy().data)
    return digest.digest()
