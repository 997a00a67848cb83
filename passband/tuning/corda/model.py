"""Context-oriented decomposition adaptation (CorDA, NeurIPS 2024, arXiv 2406.05223).

    C_d = C + d mean(diag C) I             C [n, n] second moments of the layer's inputs, d = 0.01
    W C_d = U diag(sigma) V^T              W [m, n]
    B = U_I diag(sigma_I / c)^(1/2),  A = diag(sigma_I c)^(-1/2) U_I^T W        c B A = U_I U_I^T W
    y = x W^T + c [ (x A^T) B^T - (x A0^T) B0^T ] + bias                        c = alpha / r

    knowledge     I = the r smallest: what calibration text needs stays in the frozen part
    instruction   I = the r largest: the adapter begins where the task lives

This A is the paper's diag(sigma_I)^(1/2) V_I^T C_d^(-1), without the inverse (see `orientation`).
The pretrained weight is never replaced by its residual W - c B A: what the factors begin with is
subtracted in the forward pass, so that the model with the adapter off is the pretrained one.

>>> model, batches = byte_lm(32, 64, 2, 4), [{"input_ids": torch.randint(256, (8, 32))}]
>>> handle = CorDA(rank=8, mode="knowledge").attach(model, calibration={"knowledge": batches})
>>> optimizer = handle.optimizer(lr=1e-3)
>>> path = handle.edit().save("adapter.safetensors")    # A, B and A0, B0: no calibration to load
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.edits import Change, Dense
from passband.parts.low_rank import LowRankFactors
from passband.parts.spectral import Balance, balance_ratio, rebalance
from passband.parts.targets import find_targets, weight_of
from passband.tuning.corda.calibration import Batch, collect, first_samples, stream
from passband.tuning.corda.covariance import Covariance
from passband.tuning.corda.orientation import DAMPING, Mode, damped, oriented_factors
from passband.tuning.factors import FactorHandle
from passband.tuning.handle import Calibration

PURPOSE: dict[Mode, str] = {"knowledge": "knowledge", "instruction": "task"}
SAMPLES_PER_INPUT = 128  # tokens for each input of a layer that calibration should see


@dataclass(frozen=True)
class CorDA:
    """
    rank, alpha  of the adapter; alpha None: equal to rank
    mode         "knowledge" (KPA) or "instruction" (IPA)
    context      what orients: "covariance"; "none" is the plain SVD, for comparison
    damping      d; part of the method, not needed for accuracy
    balance      of A against B, whose sizes depend on the units of C: "none" as the paper;
                 "global" one number for the whole model, so that the mean Frobenius norms agree;
                 "exact" the symmetric split of each B A
    scaled       divide each sample by its signed maximum
    samples      calibration samples that are used at most; None: all given
    on_missing   a layer that calibration never reaches: "svd" (with a warning) or "error"
    train_bias   train the biases of the target layers too, as the released code does
    cache        keep covariances in the user's cache folder, by the content of model and batches,
                 for other ranks and modes; all layers' are then in memory at once
    targets      endings of module names
    """

    rank: int = 8
    alpha: float | None = None
    mode: Mode = "knowledge"
    context: Literal["covariance", "none"] = "covariance"
    damping: float = DAMPING
    balance: Balance = "global"
    scaled: bool = True
    samples: int | None = None
    on_missing: Literal["svd", "error"] = "svd"
    train_bias: bool = False
    cache: bool = False
    targets: tuple[str, ...] = ("all-linear",)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> CorDAHandle:
        """Calibrate and decompose, block by block.

        calibration  {"knowledge": batches} or {"task": batches}, by mode; each batch the keyword
                     arguments of one call of the model. Instead of batches, covariances by layer
                     as `calibration.collect` gives them.
        Raises `DataError` without calibration, and for activations that are NaN, zero or constant.
        """
        layers = find_targets(model, self.targets, rank=self.rank, head=tuple(head))
        _refuse_convolutions(layers)
        pairs = self._decomposed(layers, self._covariances(model, layers, calibration))
        start = {
            name: LowRankFactors(a, b, from_start=True, scale=self.scale)
            for name, (b, a) in ((name, pairs[name]) for name in layers)
        }
        return CorDAHandle(
            model, start, method=self, head=head, steps=steps, seed=seed,
            name=name, train_bias=self.train_bias,
        )

    def _covariances(
        self, model: nn.Module, layers: Mapping[str, nn.Module], calibration: Calibration | None
    ) -> Iterator[tuple[str, Covariance | None]]:
        if self.context == "none":
            return iter([(name, None) for name in layers])
        purpose = PURPOSE[self.mode]
        given: Any = (calibration or {}).get(purpose, ())
        if isinstance(given, Mapping):
            return ((name, _found(given, name)) for name in layers)
        batches: list[Batch] = first_samples(given, self.samples)
        if not batches:
            raise DataError(
                f"CorDA in the mode {self.mode!r} has no calibration under {purpose!r}",
                expected="batches of text that says what to keep, or what to learn",
                mend=f"attach(model, calibration={{{purpose!r}: [...]}})",
            )
        if self.cache:
            return iter(collect(model, layers, batches, scaled=self.scaled, cache=True).items())
        return stream(model, layers, batches, scaled=self.scaled)

    def _decomposed(
        self, layers: Mapping[str, nn.Module], found: Iterator[tuple[str, Covariance | None]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """B and A of each layer, sizes balanced."""
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        few: dict[str, Covariance] = {}
        last: tuple[Covariance | None, Tensor | None] = (None, None)
        for name, covariance in found:
            if covariance is None or covariance is not last[0]:  # shared by layers in turn
                last = (covariance, self._context(name, covariance, few))
            weight = weight_of(layers[name])[0]
            pairs[name] = oriented_factors(weight, last[1], self.rank, self.mode, self.scale)
        _warn_of_few(few)
        return _BALANCED[self.balance](pairs)

    def _context(
        self, name: str, covariance: Covariance | None, few: dict[str, Covariance]
    ) -> Tensor | None:
        """C_d of a layer; None for the plain decomposition."""
        if covariance is None:
            return None
        if covariance.total is None and self.on_missing == "svd":
            warnings.warn(
                f"{name} was never called in calibration: plain SVD is taken for it",
                PassbandWarning, stacklevel=4,
            )
            return None
        matrix = covariance.matrix()
        if covariance.tokens < len(matrix):
            few[name] = covariance
        return damped(matrix, self.damping)


def _found(given: Mapping[str, Any], name: str) -> Covariance:
    covariance = given.get(name)
    if not isinstance(covariance, Covariance):
        raise DataError(
            f"no covariance of {name} among {len(given)} given ones",
            expected="batches, or covariances of all layers that are adapted",
            mend="collect(model, find_targets(model, targets), batches)",
        )
    return covariance


def _refuse_convolutions(layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        if getattr(layer, "weight").ndim != 2:  # noqa: B009 - for the type checker
            raise DataError(
                f"{name} is a {type(layer).__name__}", expected="linear layers",
                mend=f"leave {name.rpartition('.')[2]!r} out of the targets",
            )


def _warn_of_few(few: Mapping[str, Covariance]) -> None:
    if not few:
        return
    name, worst = min(few.items(), key=lambda one: one[1].tokens / _inputs(one[1]))
    n, each = _inputs(worst), worst.tokens / worst.samples
    warnings.warn(
        f"{len(few)} inputs of layers were seen in fewer tokens than they have entries ({name}: "
        f"{worst.tokens} tokens, {n} entries): their second moments are of low rank. Some "
        f"{math.ceil(n * SAMPLES_PER_INPUT / each)} samples of this length are advised",
        PassbandWarning, stacklevel=4,
    )


def _inputs(covariance: Covariance) -> int:
    assert covariance.total is not None
    return len(covariance.total)


def _one_number(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    q = balance_ratio([b for b, _ in pairs.values()], [a for _, a in pairs.values()])
    return {name: (b * q, a / q) for name, (b, a) in pairs.items()}


_BALANCED = {
    "none": lambda pairs: pairs,
    "global": _one_number,
    "exact": lambda pairs: {name: rebalance(b, a, "exact") for name, (b, a) in pairs.items()},
}


class CorDAHandle(FactorHandle):
    """CorDA on a model; with `train_bias` the biases of the adapted layers are trained too."""

    def __init__(
        self, model: nn.Module, start: Mapping[str, LowRankFactors], *, train_bias: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, start, **options)
        known = dict(model.named_parameters())
        names = [f"{name}.bias" for name in start if f"{name}.bias" in known]
        if train_bias and not names:
            self._give_up()
            raise ConfigError(
                "train_bias, but none of the target layers has a bias", expected="layers with one",
                mend="train_bias=False",
            )
        self.biases = {name: known[name] for name in names} if train_bias else {}
        self._other = {name: bias.detach().clone() for name, bias in self.biases.items()}
        for bias in self.biases.values():
            bias.requires_grad_(True)

    def _give_up(self) -> None:
        self.biases, self._other = {}, {}
        self.detach()

    def trained(self) -> dict[str, nn.Parameter]:
        return {**super().trained(), **self.biases}

    def changes(self) -> dict[str, Change]:
        sign = 1.0 if self.enabled else -1.0  # what is in the model, against what is kept beside it
        found = {
            name: Dense(sign * (bias.detach().float() - self._other[name].float()))
            for name, bias in self.biases.items()
        }
        return {**super().changes(), **found}

    @torch.no_grad()
    def _switch(self, on: bool) -> None:
        super()._switch(on)
        for name, bias in self.biases.items():
            now = bias.detach().clone()
            bias.copy_(self._other[name])
            self._other[name] = now
