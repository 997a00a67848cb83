"""The complex ratio mask that makes clean speech of noisy speech, and the error of an estimate.

    target   T = S conj(Y) / (|Y|^2 + 1e-8);   parts above 2 become 1, parts below -2 become -1
    error    mean (Re M - Re T)^2 + mean (Im M - Im T)^2

S, Y are the spectra of clean and noisy speech, M the mask, complex [..., F, T]. The rule of the
targets is not a clamp: where the noisy spectrum has all but vanished the ratio says nothing, and
the bin is passed.

>>> noisy, clean = torch.randn(2, 161, 50, dtype=torch.complex64).unbind(0)
>>> ratio_mask(clean, noisy).shape
torch.Size([161, 50])
>>> ratio_mask(torch.tensor([3 + 1j]), torch.tensor([1 + 0j]))
tensor([1.+1.j])

Source: Zhao et al., arXiv 2206.07293, and the trainer published with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 2.0  # of a part of the target mask
EPS = 1e-8


def ratio_mask(clean: Tensor, noisy: Tensor) -> Tensor:
    """Complex spectra of equal shape -> the complex mask that makes one from the other."""
    mask = clean * noisy.conj() / (noisy.real.square() + noisy.imag.square() + EPS)
    return torch.complex(_passed(mask.real), _passed(mask.imag))


def _passed(part: Tensor) -> Tensor:
    return torch.where(part.abs() > LARGEST, part.sign(), part)


def mask_error(mask: Tensor, target: Tensor) -> Tensor:
    """Sum over both parts of the mean squared difference."""
    difference = mask - target
    return difference.real.square().mean() + difference.imag.square().mean()
