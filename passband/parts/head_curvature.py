"""Gradient and curvature of a classifier's loss in its linear head alone, in closed form.

    p = softmax(W h + b), or the sigmoid of a single output;  Y one-hot;  every sum divided by n
    g      W: (p - Y)^T h               b: sum (p - Y)
    H v    a = V h + c, r = p (a - <p, a>);   W: r^T h,   b: sum r          v = (V, c)
    diag   q = p (1 - p);                     W: q^T h^2, b: sum q

    h [..., n, d], p [..., n, C], y [..., n] or soft [..., n, C]  ->  [..., P], P = C d + C

P counts W row by row, then b; `bias=False` leaves b out. Leading axes (domains, say) are carried
along. Each is a product or two, differentiable by ordinary first-order autograd, in h and in p: a
penalty on curvature needs no graph of gradients and no random probes.

>>> h, weight = torch.randn(6, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
>>> p, y = (h @ weight.T).softmax(-1), torch.tensor([0, 1, 2, 0, 1, 2])
>>> g = head_gradient(h, p, y)
>>> g.shape, torch.allclose(head_hvp(h, p, g), head_hessian(h, p) @ g)
(torch.Size([9]), True)

A head that is not linear has no such forms: `autograd_gradient`, `autograd_hvp` and
`hutchinson_diag` serve any. Source: Hemati et al., arXiv 2308.11778; the closed forms are textbook
(softmax regression).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError

LARGEST = 3000  # parameters of a head whose Hessian is formed: 72 MB in float64
ROWS = 2048  # of the Gram matrix at a time


# ---- what goes in ------------------------------------------------------------------------------


def probabilities(logits: Tensor) -> Tensor:
    """[..., C] -> [..., C]: softmax, or the sigmoid of a single output; at least float32.

    >>> probabilities(torch.zeros(1)), probabilities(torch.zeros(2))
    (tensor([0.5000]), tensor([0.5000, 0.5000]))
    """
    z = _wide(logits)
    return z.sigmoid() if z.shape[-1] == 1 else z.softmax(-1)


def targets(y: Tensor, classes: int) -> Tensor:
    """Labels [..., n] as one-hot rows [..., n, C], or as they are for a single output [..., n, 1].

    Soft labels, of floating type and with a last axis of C, stay what they are.

    >>> targets(torch.tensor([1, 0]), 2)
    tensor([[0., 1.],
            [1., 0.]])
    """
    if y.is_floating_point() and y.dim() > 1 and y.shape[-1] == classes:
        return y
    if classes == 1:
        return y[..., None].to(torch.get_default_dtype())
    # Not F.one_hot: a comparison takes any number of mapped axes.
    hot = y[..., None] == torch.arange(classes, device=y.device)
    return hot.to(torch.get_default_dtype())


def head_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over n of the cross-entropy (of two classes for a single output): [..., n, C] -> [...].

    >>> head_loss(torch.zeros(5, 1), torch.tensor([0, 1, 1, 0, 1]))
    tensor(0.6931)
    """
    z = _wide(logits)
    t = targets(y, z.shape[-1]).to(z.dtype)
    if z.shape[-1] == 1:
        each = F.binary_cross_entropy_with_logits(z, t, reduction="none")[..., 0]
    else:
        each = -(t * z.log_softmax(-1)).sum(-1)
    return each.mean(-1)


# ---- closed forms ------------------------------------------------------------------------------


def head_gradient(h: Tensor, p: Tensor, y: Tensor, *, bias: bool = True) -> Tensor:
    """Gradient of the mean loss, [..., P]."""
    h, p = _wide(h), _wide(p)
    return _moments(p - targets(y, p.shape[-1]).to(p.dtype), h, bias)


def head_hvp(h: Tensor, p: Tensor, v: Tensor, *, bias: bool = True) -> Tensor:
    """Hessian times v [..., P]; leading axes of v are broadcast against those of h and p."""
    h, p = _wide(h), _wide(p)
    classes, d = p.shape[-1], h.shape[-1]
    v = v.to(p.dtype)
    directions = v[..., : classes * d].reshape(*v.shape[:-1], classes, d)
    a = h @ directions.mT
    if bias:
        a = a + v[..., None, classes * d :]
    mean = (p * a).sum(-1, keepdim=True)
    return _moments(p * (1 - p) * a if classes == 1 else p * (a - mean), h, bias)


def head_hessian_diag(h: Tensor, p: Tensor, *, bias: bool = True) -> Tensor:
    """Diagonal of the Hessian, [..., P]."""
    h, p = _wide(h), _wide(p)
    return _moments(p * (1 - p), h.square(), bias)


def head_hessian(h: Tensor, p: Tensor, *, bias: bool = True) -> Tensor:
    """The whole Hessian of one domain, [P, P], for heads of up to 3000 parameters.

    h [n, d], p [n, C]. Raises `ConfigError` for larger heads: `head_hvp` does without it.
    """
    h, p = _wide(h), _wide(p)
    n, classes = p.shape
    rows = torch.cat([h, h.new_ones(n, 1)], 1) if bias else h
    d, size = rows.shape[1], rows.shape[1] * classes
    if size > LARGEST:
        raise ConfigError(
            f"the Hessian of a head of {size} parameters", expected=f"at most {LARGEST}",
            mend="head_hvp multiplies with it, hessian_distance and hessian_spectral compare two, "
            "without forming it",
        )
    spread = p.diag_embed() - p[:, :, None] * p[:, None]
    if classes == 1:
        spread = (p * (1 - p))[..., None]
    found = h.new_empty(classes, d, classes, d)
    for c in range(classes):  # one class at a time: its products fit where all would not
        weighted = rows.T[None] * spread[:, c].T[:, None]  # [C, d, n]
        found[c] = (weighted @ rows / n).transpose(0, 1)
    whole = found.reshape(size, size)
    if not bias:
        return whole
    # Every class ends with its bias here; the order of P has all biases last.
    place = torch.arange(size, device=h.device).view(classes, d)
    order = torch.cat([place[:, :-1].reshape(-1), place[:, -1]])
    return whole[order][:, order]


# ---- two domains compared ----------------------------------------------------------------------


def hessian_inner(
    h: Tensor, p: Tensor, other_h: Tensor, other_p: Tensor, *, bias: bool = True
) -> Tensor:
    """<H, H'> = sum of the products of their entries, without forming either; a scalar.

    Each is a mean of S_i (x) x_i x_i^T with S = diag(p) - p p^T and x = (h, 1), so that the product
    is a mean over pairs of <S_i, S_j> (x_i . x_j)^2. Memory n' numbers a row, whatever d.
    """
    h, p, other_h, other_p = (_wide(t) for t in (h, p, other_h, other_p))
    total = p.new_zeros(())
    for rows, shares in zip(torch.split(h, ROWS), torch.split(p, ROWS), strict=True):
        gram = (rows @ other_h.T + float(bias)).square()
        if p.shape[-1] == 1:
            spread = (shares * (1 - shares)) @ (other_p * (1 - other_p)).T
        else:
            both = shares @ other_p.T
            spread = both - shares.square() @ other_p.T - shares @ other_p.square().T
            spread = spread + both.square()
        total = total + (gram * spread).sum()
    return total / (len(h) * len(other_h))


def hessian_distance(
    h: Tensor, p: Tensor, other_h: Tensor, other_p: Tensor, *, bias: bool = True
) -> Tensor:
    """||H - H'||_F of two domains [n, d], [n', d] in one head; a scalar in float64.

    Accurate to about 1e-8 of ||H||: it is a difference of squares.
    """
    one, two = (h.double(), p.double()), (other_h.double(), other_p.double())
    square = hessian_inner(*one, *one, bias=bias) + hessian_inner(*two, *two, bias=bias)
    return (square - 2 * hessian_inner(*one, *two, bias=bias)).clamp_min(0).sqrt()


def hessian_spectral(
    h: Tensor, p: Tensor, other_h: Tensor, other_p: Tensor, *, bias: bool = True
) -> float:
    """||H - H'||_2, the largest absolute eigenvalue: Lanczos (ARPACK) on products with both."""
    one, two = (h.double(), p.double()), (other_h.double(), other_p.double())
    size = p.shape[-1] * (h.shape[-1] + bias)

    def product(v: Tensor) -> Tensor:
        return head_hvp(*one, v, bias=bias) - head_hvp(*two, v, bias=bias)

    return spectral_norm(product, size)


def spectral_norm(product: Callable[[Tensor], Tensor], size: int) -> float:
    """Largest absolute eigenvalue of a symmetric matrix that is known by its products.

    product  [size] float64 -> [size]

    >>> spectral_norm(lambda v: torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64) * v, 3)
    3.0
    """
    if size <= 32:  # Lanczos needs room; so few columns are formed as fast
        columns = torch.stack([product(v) for v in torch.eye(size, dtype=torch.float64)])
        return float(torch.linalg.eigvalsh((columns + columns.mT) / 2).abs().max())
    from scipy.sparse.linalg import LinearOperator, eigsh

    def apply(v: np.ndarray) -> np.ndarray:
        return np.asarray(product(torch.from_numpy(v.ravel().copy())).detach())

    start = np.random.default_rng(0).standard_normal(size)
    if not np.any(apply(start)):
        return 0.0  # both are the same: nothing for Lanczos to find
    operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)
    values = eigsh(operator, k=1, which="LM", v0=start, return_eigenvectors=False, tol=1e-8)
    return float(abs(values[0]))


# ---- any head ----------------------------------------------------------------------------------


def autograd_gradient(head: nn.Module, h: Tensor, y: Tensor) -> Tensor:
    """Gradient of the mean loss of head(h) [n, C], [P] in the order of the head's parameters.

    Gradients flow on through it, into the head and h.
    """
    found: Tensor = torch.func.grad(_flat_loss(head, h, y))(flat_parameters(head))
    return found


def autograd_hvp(head: nn.Module, h: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """v [P] -> H v; v may also be [R, P], of one product each.

    >>> head, h, y = nn.Linear(2, 3), torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
    >>> exact = head_hvp(h, head(h).softmax(-1), torch.ones(9))
    >>> torch.allclose(autograd_hvp(head, h, y)(torch.ones(9)), exact, atol=1e-6)
    True
    """
    gradient = torch.func.grad(_flat_loss(head, h, y))
    # The Hessian is symmetric: the product from the left is the one from the right.
    pull = torch.func.vjp(gradient, flat_parameters(head))[1]

    def product(v: Tensor) -> Tensor:
        if v.dim() == 1:
            one: Tensor = pull(v)[0]
            return one
        many: Tensor = torch.func.vmap(lambda row: pull(row)[0])(v)
        return many

    return product


def hutchinson_diag(
    product: Callable[[Tensor], Tensor], size: int, probes: int, *,
    generator: torch.Generator | None = None, like: Tensor | None = None,
) -> Tensor:
    """Estimate of a diagonal: the mean of z (H z) over random signs z.

    product  [R, size] -> [R, size], or with more axes between: [R, E, size] for E domains
    like     tensor whose type and device the signs take

    The variance of entry j is sum_{k != j} H_jk^2 / probes: exact for a diagonal matrix.

    >>> matrix = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    >>> hutchinson_diag(lambda z: z @ matrix, 2, probes=3)
    tensor([2., 5.])
    """
    if probes < 1:
        raise ConfigError(f"probes = {probes}", expected="1 or more")
    dtype, device = (None, None) if like is None else (like.dtype, like.device)
    bits = torch.randint(0, 2, (probes, size), generator=generator)
    z = (2 * bits - 1).to(device=device, dtype=dtype or torch.get_default_dtype())
    found = product(z)
    return (z.view(probes, *[1] * (found.dim() - 2), size) * found).mean(0)


def flat_parameters(head: nn.Module) -> Tensor:
    """[P] parameters one after the other; gradients reach them.

    >>> flat_parameters(nn.Linear(2, 3)).shape
    torch.Size([9])
    """
    found = [p.reshape(-1) for p in head.parameters() if p.requires_grad]
    if not found:
        raise DataError(
            "a head without parameters that require a gradient", expected="one or more",
            mend="give the last trained layer",
        )
    return torch.cat(found)


def _flat_loss(head: nn.Module, h: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    named = [(name, p) for name, p in head.named_parameters() if p.requires_grad]

    def loss(flat: Tensor) -> Tensor:
        pieces = torch.split(flat, [p.numel() for _, p in named])
        given = {n: v.view_as(p) for (n, p), v in zip(named, pieces, strict=True)}
        return head_loss(torch.func.functional_call(head, given, (h,)), y)

    return loss


def _moments(r: Tensor, h: Tensor, bias: bool) -> Tensor:
    """Means over n of r (x) h, then of r: [..., P]."""
    weight = (r.mT @ h / h.shape[-2]).flatten(-2)
    return torch.cat([weight, r.mean(-2).expand(*weight.shape[:-1], -1)], -1) if bias else weight


def _wide(x: Tensor) -> Tensor:
    """Half precision loses p (1 - p) near 0 and 1: computed in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
