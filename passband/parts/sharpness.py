"""Sharpness: the leading eigenvalues of a loss' Hessian, without forming the Hessian.

>>> model = nn.Linear(2, 1, bias=False)
>>> x, y = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)
>>> def loss(model, batch):
...     return (model(batch[0]) - batch[1]).square().mean()
>>> round(sharpness(model, loss, (x, y)), 4)           # H = 2 x^T x / 2 = diag(9, 1)
9.0
>>> leading_eigenvalues(model, loss, (x, y), k=2).round(decimals=4)
tensor([9., 1.], dtype=torch.float64)

Lanczos iteration on Hessian-vector products with full reorthogonalisation: as many products as
steps, each about two backward passes, and memory for one vector a step. Source of the use as a
probe of training: Cohen et al., arXiv 2103.00065.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.modes import evaluating

Loss = Callable[[Any, Any], Tensor]


def sharpness(
    model: nn.Module, loss: Loss, data: Any, *, steps: int = 40, tol: float = 1e-3, seed: int = 0
) -> float:
    """The largest eigenvalue of the Hessian of the mean loss; see `leading_eigenvalues`."""
    return float(leading_eigenvalues(model, loss, data, steps=steps, tol=tol, seed=seed)[0])


def leading_eigenvalues(
    model: nn.Module, loss: Loss, data: Any, *, k: int = 1, steps: int = 40, tol: float = 1e-3,
    seed: int = 0,
) -> Tensor:
    """[k] float64, the largest (algebraically) first; fewer where there are fewer parameters.

    loss   (model, batch) -> mean over the batch
    data   one batch: a tuple of tensors; or a list of batches, weighted by their lengths
    steps  of the iteration at most; it ends when the residuals of the k Ritz pairs are below
           tol times the largest eigenvalue's size. Warns where they are not.

    The model is looked at in evaluation mode. Eigenvalues that are equal are found once.
    """
    if k < 1 or steps < k:
        raise ConfigError(f"k = {k}, steps = {steps}", expected="k >= 1 and steps >= k")
    parameters = [p for p in model.parameters() if p.requires_grad]
    n = sum(p.numel() for p in parameters)
    if not n:
        raise DataError("no parameter requires a gradient", expected="something to move")
    with evaluating(model), torch.enable_grad():
        product = _product(model, loss, _batches(data), parameters)
        values, residuals = _lanczos(product, parameters[0], n, min(k, n), min(steps, n), tol, seed)
    if float(residuals.max()) > tol * float(values.abs().max()):
        warnings.warn(
            f"eigenvalues after {steps} steps are known to {float(residuals.max()):.1g} only: "
            "raise steps", PassbandWarning, stacklevel=2,
        )
    return values


def hessian_vector_product(
    loss: Tensor, parameters: Sequence[Tensor], vector: Tensor, *, retain_graph: bool = False
) -> Tensor:
    """H v for a scalar loss; v and the result are flat, in the order of the parameters.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hessian_vector_product((w**3).sum(), [w], torch.tensor([1.0, 1.0]))
    tensor([ 6., 12.])
    """
    gradients = torch.autograd.grad(loss, list(parameters), create_graph=True, allow_unused=True)
    return _times(gradients, parameters, vector, retain_graph=retain_graph)


def _times(
    gradients: Sequence[Tensor | None], parameters: Sequence[Tensor], vector: Tensor, *,
    retain_graph: bool,
) -> Tensor:
    pieces = [
        v.view_as(p) for v, p in zip(
            torch.split(vector, [p.numel() for p in parameters]), parameters, strict=True
        )
    ]
    # A gradient without a graph is constant: a loss that is linear there.
    pairs = [
        (g, v) for g, v in zip(gradients, pieces, strict=True) if g is not None and g.requires_grad
    ]
    if not pairs:
        return torch.zeros_like(vector)
    found = torch.autograd.grad(
        [g for g, _ in pairs], list(parameters), [v for _, v in pairs], allow_unused=True,
        retain_graph=retain_graph,
    )
    return torch.cat([
        (torch.zeros_like(p) if h is None else h).reshape(-1)
        for h, p in zip(found, parameters, strict=True)
    ])


def _product(
    model: nn.Module, loss: Loss, batches: list[Any], parameters: list[nn.Parameter]
) -> Callable[[Tensor], Tensor]:
    weights = [float(len(batch[0])) for batch in batches]
    total = sum(weights)
    if len(batches) == 1:  # one graph serves every product
        gradients = torch.autograd.grad(
            loss(model, batches[0]), parameters, create_graph=True, allow_unused=True
        )
        return lambda v: _times(gradients, parameters, v, retain_graph=True)

    def product(v: Tensor) -> Tensor:
        found = torch.zeros_like(v)
        for batch, weight in zip(batches, weights, strict=True):
            found += weight / total * hessian_vector_product(loss(model, batch), parameters, v)
        return found

    return product


def _batches(data: Any) -> list[Any]:
    if isinstance(data, tuple) and data and isinstance(data[0], Tensor):
        return [data]
    found = list(data) if isinstance(data, Iterable) else []
    if not found or not all(isinstance(b, (tuple, list)) and len(b) for b in found):
        raise DataError(
            f"data of type {type(data).__name__}",
            expected="a batch, which is a tuple of tensors, or a list of such",
        )
    return found


def _lanczos(
    product: Callable[[Tensor], Tensor], like: Tensor, n: int, k: int, steps: int, tol: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Ritz values [<= k], largest first, and their residuals."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(n, generator=generator, dtype=torch.float64)
    basis = (v / v.norm()).to(like)[None]
    alphas: list[float] = []
    betas: list[float] = []
    values = residuals = torch.zeros(0, dtype=torch.float64)
    for step in range(steps):
        w = product(basis[-1])
        if not torch.isfinite(w).all():
            raise DataError(
                "the Hessian has entries that are not finite", expected="a finite, smooth loss",
                mend="look for NaN in the data or the weights",
            )
        alphas.append(float(w @ basis[-1]))
        for _ in range(2):  # twice is enough against loss of orthogonality
            w = w - basis.T @ (basis @ w)
        beta = float(w.norm())
        off = torch.tensor(betas, dtype=torch.float64)
        tridiagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64))
        tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
        ritz, vectors = torch.linalg.eigh(tridiagonal)
        values = ritz.flip(0)[:k]
        residuals = beta * vectors[-1].flip(0)[:k].abs()
        scale = float(ritz.abs().max())
        if beta <= 1e-6 * max(scale, 1e-30):  # the rest of the space is never reached: exact
            return values, torch.zeros_like(values)
        if step + 1 >= k and float(residuals.max()) <= tol * scale:
            break
        betas.append(beta)
        basis = torch.cat([basis, (w / beta)[None]])
    return values, residuals
