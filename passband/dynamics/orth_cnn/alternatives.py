"""What L_orth is compared with: penalties and reparametrisations that know the matrix of a kernel,
K as M x (C k^n), and not the layer.

    kernel_orthogonality    ||K K^T - I||^2 on the shorter side: rows orthonormal, the layer not
    dense_orthogonality     the same of a dense layer, where it is the whole truth
    spectral_excess         (sigma_max(K) - 1)^2
    orthogonal_kernel_, spectral_kernel_     the same two held by reparametrisation

>>> layer = nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")
>>> _ = orthogonal_kernel_(layer)
>>> bool(kernel_orthogonality(layer.weight) < 1e-8)
True
>>> from passband.dynamics.orth_cnn.model import lorth
>>> bool(lorth(layer.weight) > 0.1)
True

A reparametrised layer pays at every forward pass, in use as well; a penalty at training alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from passband.dynamics.orth_cnn.model import HALF


def dense_orthogonality(matrix: Tensor) -> Tensor:
    """||W W^T - I||^2 of [rows, columns] on its shorter side."""
    with torch.autocast(matrix.device.type, enabled=False):
        wide = matrix.float() if matrix.dtype in HALF else matrix
        short = wide if wide.shape[0] <= wide.shape[1] else wide.T
        gram = short @ short.T
        return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum()


def kernel_orthogonality(weight: Tensor) -> Tensor:
    """The same of a kernel [M, C, *k] as M x (C prod k)."""
    return dense_orthogonality(weight.flatten(1))


def spectral_excess(weight: Tensor) -> Tensor:
    """(sigma_max - 1)^2 of a kernel [M, C, *k] as M x (C prod k)."""
    with torch.autocast(weight.device.type, enabled=False):
        wide = weight.float() if weight.dtype in HALF else weight
        return (torch.linalg.matrix_norm(wide.flatten(1), 2) - 1).square()


class _AsKernel(nn.Module):
    """A matrix [M, C prod k] seen as a kernel [M, C, *k]."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.shape)

    def right_inverse(self, kernel: Tensor) -> Tensor:
        return kernel.flatten(1)


def orthogonal_kernel_(layer: Any) -> Any:
    """Hold a layer's kernel, as a matrix, semi-orthogonal: torch's parametrisation of matrices."""
    parametrize.register_parametrization(layer, "weight", _AsKernel(layer.weight.shape))
    parametrizations.orthogonal(layer.parametrizations.weight, "original")
    return layer


def spectral_kernel_(layer: Any) -> Any:
    """Divide a layer's kernel by its largest singular value as a matrix."""
    return parametrizations.spectral_norm(layer, "weight")
