"""Second moments of what goes into one layer, summed over calibration samples.

    C = (1/N) sum_i X_i^T X_i / max(X_i)^2     X_i [T_i, n]: the tokens of sample i, masked ones out

>>> covariance = Covariance("layer")
>>> covariance.add(torch.tensor([[[2.0, 0.0], [0.0, 1.0], [9.0, 9.0]]]),
...                torch.tensor([[True, True, False]]))
>>> covariance.matrix(), covariance.tokens
(tensor([[1.0000, 0.0000],
        [0.0000, 0.2500]]), 2)

Source: Yang et al., NeurIPS 2024, arXiv 2406.05223. The mean is not subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from passband.errors import DataError
from passband.parts.spectral import gram

ENOUGH = 2  # tokens for each input that wait for one product: adding matrices costs as much
PARALLEL = 1 - 1e-6  # ||C||_F / trace C from which all inputs are multiples of one vector


@dataclass
class Covariance:
    """Sum over samples in float32; `matrix` is their mean.

    name      of the layer, for messages
    scaled    divide each sample by |its signed maximum|, as the paper does
    samples   seen so far
    tokens    seen so far, masked ones left out
    """

    name: str
    scaled: bool = True
    samples: int = 0
    tokens: int = 0
    absolute: Tensor | None = field(default=None, repr=False)  # [n], sum of |x|, for ASVD
    _total: Tensor | None = field(default=None, repr=False)
    _waiting: list[Tensor] = field(default_factory=list, repr=False)  # tokens, scaled

    def add(self, x: Tensor, mask: Tensor | None = None) -> None:
        """x [B, T, n], mask [B, T] (true: a token) or none; products are taken many tokens at once.

        Raises `DataError` for NaN and infinity.
        """
        x = x.detach().float()
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        tokens = x[mask]  # [N, n]; what padding holds may be NaN and is never looked at
        if not len(tokens):
            return
        if not bool(torch.isfinite(tokens.sum())):
            raise DataError(
                f"the inputs of {self.name} have NaN or infinity", expected="finite activations",
                mend="calibrate in float32, or look for a damaged calibration sample",
            )
        absolute = tokens.abs().sum(0)
        self.absolute = absolute if self.absolute is None else self.absolute + absolute
        self._waiting.append(tokens / self._scales(tokens, mask))
        self.samples += int(mask.any(1).sum())
        self.tokens += len(tokens)
        if sum(map(len, self._waiting)) >= ENOUGH * tokens.shape[1]:
            self._sum_up()

    def _sum_up(self) -> None:
        if not self._waiting:
            return
        product = gram(torch.cat(self._waiting).T)
        self._total = product if self._total is None else self._total.add_(product)
        self._waiting.clear()

    @property
    def total(self) -> Tensor | None:
        """The sum [n, n]; None where the layer was never called."""
        self._sum_up()
        return self._total

    def _scales(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """What each token is divided by, [N, 1]."""
        if not self.scaled:
            return tokens.new_ones(1)
        highest = tokens.new_full(mask.shape, -torch.inf)
        highest[mask] = tokens.amax(1)
        # The signed maximum: where no entry is positive it is the one nearest to zero.
        scale = highest.amax(1).abs()
        scale = torch.where((scale > 0) & torch.isfinite(scale), scale, 1.0)
        return scale[:, None].expand(mask.shape)[mask][:, None]

    def matrix(self) -> Tensor:
        """C [n, n].

        Raises `DataError` when the layer was never called, or its inputs have nothing to tell:
        all zero, or all multiples of one vector.
        """
        total = self.total
        if total is None:
            raise DataError(
                f"{self.name} was never called in calibration", expected="batches that reach it",
                mend="leave it out of the targets, or set on_missing='svd'",
            )
        trace = float(total.trace())
        if trace == 0:
            raise DataError(
                f"the inputs of {self.name} are all zero", expected="activations",
                mend="calibrate with real samples",
            )
        if len(total) > 1 and float(torch.linalg.vector_norm(total)) > PARALLEL * trace:
            raise DataError(
                f"the inputs of {self.name} are constant: {self.tokens} tokens, all along one "
                "vector", expected="activations that differ",
                mend="calibrate with more samples, and different ones",
            )
        return total / self.samples

    def mean_absolute(self) -> Tensor:
        """mean |x_j| over the tokens [n]."""
        if self.absolute is None:
            raise DataError(f"{self.name} was never called in calibration")
        return self.absolute / self.tokens

    def packed(self) -> dict[str, Tensor]:
        """Tensors for a file: C is symmetric, its upper triangle is enough."""
        counts = torch.tensor([self.samples, self.tokens])
        total = self.total
        if total is None or self.absolute is None:
            return {"counts": counts}
        upper = torch.ones_like(total, dtype=torch.bool).triu()
        return {"counts": counts, "upper": total[upper], "absolute": self.absolute}

    @classmethod
    def unpacked(cls, name: str, scaled: bool, tensors: Mapping[str, Tensor]) -> Covariance:
        samples, tokens = tensors["counts"].tolist()
        found = cls(name, scaled, samples, tokens)
        if "upper" in tensors:
            found.absolute = tensors["absolute"]
            n = len(found.absolute)
            upper = torch.ones(n, n, dtype=torch.bool).triu()
            total = torch.zeros(n, n)
            total[upper] = tensors["upper"]
            found._total = total + total.triu(1).T
        return found
