"""Compression of complex amplitudes: the heavy tails of a spectrum drawn in, its phase kept.

    compress(c) = beta |c|^alpha exp(i angle c);   decompress is its inverse     any shape

>>> spectrum = torch.tensor([4.0 + 0.0j, 0.0 - 9.0j, 0.0 + 0.0j])
>>> small = compress(spectrum, alpha=0.5, beta=0.15)
>>> small
tensor([0.3000+0.0000j, 0.0000-0.4500j, 0.0000+0.0000j])
>>> bool(torch.allclose(decompress(small, alpha=0.5, beta=0.15), spectrum))
True

Source: Braun and Tashev 2021, arXiv 2009.12286; alpha 0.5 and beta 0.15: Richter et al. 2023
(SGMSE+), arXiv 2208.05830.
"""

from __future__ import annotations

from torch import Tensor

from passband.errors import ConfigError

# Magnitude below which compression is linear: its slope at 0 would be infinite, and with it the
# gradient of everything before. 240 dB below 1, where single precision has nothing to say.
LINEAR = 1e-12


def compress(spectrum: Tensor, alpha: float, beta: float) -> Tensor:
    """beta |c|^alpha exp(i angle c), real or complex, with a finite gradient at 0.

    >>> c = torch.zeros(3, dtype=torch.complex64, requires_grad=True)
    >>> compress(c, 0.5, 0.15).abs().sum().backward()
    >>> bool(c.grad.isfinite().all())
    True

    alpha  exponent above 0, beta  factor above 0; others raise `ConfigError`
    """
    _check(alpha, beta)
    return _power(spectrum, alpha, LINEAR) * beta


def decompress(compressed: Tensor, alpha: float, beta: float) -> Tensor:
    """The inverse of `compress` with the same alpha and beta."""
    _check(alpha, beta)
    return _power(compressed / beta, 1 / alpha, LINEAR**alpha)


def _power(c: Tensor, exponent: float, linear: float) -> Tensor:
    """|c|^exponent with the sign or phase of c; linear below |c| = linear."""
    squared = c.real.square() + c.imag.square() if c.is_complex() else c.square()
    return c * squared.clamp_min(linear**2) ** ((exponent - 1) / 2)


def _check(alpha: float, beta: float) -> None:
    if not (alpha > 0 and beta > 0):
        raise ConfigError(f"compression with alpha {alpha:g}, beta {beta:g}", expected="both > 0")
