"""Enhancement by regression: what a diffusion's network does without the diffusion.

    y noisy, x clean: compressed complex spectra [B, F, T]
    x' = network(y),   loss = mean |x' - x|^2

>>> model = Regression(NCSNpp(bins=64, in_channels=2, width=16, multipliers=(1, 2, 2), blocks=1,
...                           timed=False))
>>> noisy = torch.randn(2, 64, 30, dtype=torch.complex64)
>>> model(noisy).shape
torch.Size([2, 64, 30])

The same U-Net as the score model's, without a time and with y alone at its input.
Source: Lemercier et al., arXiv 2211.02397, the discriminative side of their comparison.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passband.parts.ncsnpp import NCSNpp

__all__ = ["NCSNpp", "Regression"]


class Regression(nn.Module):
    """
    network  real [B, 2, F, T] -> real [B, 2, F, T]
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor) -> Tensor:
        """Complex [B, F, T] -> complex [B, F, T]."""
        found = self.network(torch.stack([noisy.real, noisy.imag], dim=1))
        return torch.complex(found[:, 0], found[:, 1])

    def loss(self, noisy: Tensor, clean: Tensor) -> Tensor:
        error = self(noisy) - clean
        return (error.real.square() + error.imag.square()).mean()
