"""L_orth of every convolution of a model, as one scalar for a loss of your own.

>>> model = nn.Sequential(
...     nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular"), nn.ReLU(),
...     nn.Conv2d(16, 48, 3, stride=2, padding=1, padding_mode="circular"))
>>> regularizer = OrthRegularizer(model, lam=0.01)
>>> loss = model(torch.randn(2, 3, 8, 8)).square().mean() + regularizer()
>>> loss.backward()

Call it once for each step of the optimiser, not for each micro-batch.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.dynamics.orth_cnn.alternatives import (
    dense_orthogonality,
    kernel_orthogonality,
    spectral_excess,
)
from passband.dynamics.orth_cnn.existence import demand
from passband.dynamics.orth_cnn.geometry import Geometry
from passband.dynamics.orth_cnn.model import Form, Method, lorth_stack
from passband.errors import ConfigError, DataError, PassbandWarning

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SMALL = 2**21  # numbers up to which kernels of one shape are copied together
Penalty = Literal["lorth", "kernel", "spectral"]


@dataclass(frozen=True)
class Layer:
    """A convolution of a model; its weight is asked for each time: it may be reparametrised."""

    name: str
    module: Any
    geometry: Geometry

    @property
    def key(self) -> tuple[Any, ...]:
        """Layers with the same are computed together."""
        weight = self.module.weight
        return self.geometry, self.module.groups, weight.dtype, weight.device


def convolutions(model: nn.Module) -> Iterator[Layer]:
    """All convolutions, transposed ones too, in the order of registration."""
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS + TRANSPOSED):
            geometry = Geometry.of(
                module.weight.shape, module.stride, module.groups, module.dilation
            )
            yield Layer(name or "the model", module, geometry)


class OrthRegularizer:
    """lam times the sum of penalties of the chosen layers.

    model       any module; convolutions of 1 to 3 axes, grouped, dilated and transposed too
    lam         trades the task's loss against orthogonality; see also `warmup`
    include     a pattern searched for in names, or (name, module) -> bool; None: all convolutions
    skip_first  leave out the first of them: a stem on colours loses by being near-isometric
    dense       dense layers too, by ||W W^T - I||^2
    penalty     "lorth"; or, to compare, "kernel" and "spectral" of `alternatives`
    form, method  of `lorth`
    every       evaluate at every such call alone, with a weight as much larger
    warmup      share of the run in which lam rises from 0: `at(fraction)` says where the run is
    impossible  what to do with layers that can't be orthogonal: "raise", "warn", "ignore"
    square      with those of M = C prod S, on which gradient descent often stalls: "warn", "ignore"

    Raises `NoOrthogonalLayerError` for impossible layers, `DataError` when no layer is left.
    """

    def __init__(
        self, model: nn.Module, lam: float = 0.01, *,
        include: str | Callable[[str, nn.Module], bool] | None = None, skip_first: bool = True,
        dense: bool = False, penalty: Penalty = "lorth", form: Form = "squared",
        method: Method = "auto", every: int = 1, warmup: float = 0.0,
        impossible: Literal["raise", "warn", "ignore"] = "raise",
        square: Literal["warn", "ignore"] = "warn",
    ) -> None:
        if not 0 <= lam < float("inf"):
            raise ConfigError(f"lam = {lam}", expected="a number of 0 or more")
        if every < 1 or not 0 <= warmup <= 1:
            raise ConfigError(f"every = {every}, warmup = {warmup}", expected="1 or more; 0 to 1")
        if penalty not in _PENALTIES:
            raise ConfigError(f"penalty = {penalty!r}", expected=f"one of {', '.join(_PENALTIES)}")
        self.lam, self.every, self.warmup = lam, every, warmup
        self.penalty, self.form, self.method = penalty, form, method
        self.calls, self.fraction = 0, 1.0
        wanted = _chooser(include)
        found = list(convolutions(model))[1 if skip_first else 0:]
        self.layers = [layer for layer in found if wanted(layer.name, layer.module)]
        self.dense = [
            (name, m) for name, m in model.named_modules()
            if dense and isinstance(m, nn.Linear) and wanted(name, m)
        ]
        if not self.layers and not self.dense:
            raise DataError(
                "no layer to regularise", expected="a convolution",
                mend="skip_first=False or another `include`" if found or skip_first else "",
            )
        if penalty == "lorth":
            self._check(impossible, square)

    def __call__(self) -> Tensor:
        """The penalty, weighted; a scalar that can be added to a loss."""
        due = self.calls % self.every == 0
        self.calls += 1
        weight = self.weight * self.every
        if not due or weight == 0:
            return torch.zeros((), device=self._device())
        return weight * self.total()

    @property
    def weight(self) -> float:
        """lam at this place of the run."""
        return self.lam * (min(1.0, self.fraction / self.warmup) if self.warmup else 1.0)

    def total(self) -> Tensor:
        """The sum of penalties without lam."""
        parts = [_PENALTIES[self.penalty](self, layers) for layers in self._together()]
        parts += [dense_orthogonality(module.weight) for _, module in self.dense]
        return torch.stack([part.float() for part in parts]).sum()

    def values(self) -> dict[str, float]:
        """Penalty of each layer by name, for logs."""
        with torch.no_grad():
            found = {
                layer.name: float(_PENALTIES[self.penalty](self, [layer])) for layer in self.layers
            }
            return found | {name: float(dense_orthogonality(m.weight)) for name, m in self.dense}

    # ---- as the `state` of a run: warm-up and `every` go on after a kill -----------------------

    def at(self, fraction: float) -> None:
        """Where the run is, in [0, 1]."""
        self.fraction = fraction

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        self.calls = int(tree["calls"])

    # ---- inside ----------------------------------------------------------------------------------

    def _together(self) -> list[list[Layer]]:
        groups: dict[Any, list[Layer]] = {}
        for layer in self.layers:
            alone = layer.module.weight.numel() > SMALL
            groups.setdefault(layer.name if alone else layer.key, []).append(layer)
        return list(groups.values())

    def _lorth(self, layers: list[Layer]) -> Tensor:
        weights = [layer.module.weight for layer in layers]
        stack = torch.cat([w.reshape(-1, layers[0].geometry.M, *w.shape[1:]) for w in weights])
        return self._sum(stack, layers[0].geometry)

    def _sum(self, stack: Tensor, geometry: Geometry) -> Tensor:
        return lorth_stack(
            stack, geometry.stride, dilation=geometry.dilation, form=self.form, method=self.method
        ).sum()

    def _device(self) -> torch.device:
        module = self.layers[0].module if self.layers else self.dense[0][1]
        device: torch.device = module.weight.device
        return device

    def _check(self, impossible: str, square: str) -> None:
        for layer in self.layers:
            if impossible == "raise":
                demand(layer.geometry, layer.name)
            elif impossible == "warn" and not layer.geometry.exists:
                warnings.warn(
                    f"{layer.name}: no orthogonal layer exists, {layer.geometry.says()}; its "
                    f"penalty ends at {layer.geometry.floor}", PassbandWarning, stacklevel=3,
                )
        hard = [layer.name for layer in self.layers if _is_hard(layer.geometry)]
        if hard and square == "warn":
            warnings.warn(
                f"M = C prod S in {', '.join(hard)}: gradient descent often stalls above 0 there. "
                "One more channel on either side helps, or start from block_orthogonal_, or take a "
                "reparametrisation; square='ignore' silences this", PassbandWarning, stacklevel=3,
            )


def _is_hard(geometry: Geometry) -> bool:
    return geometry.case == "square" and max(geometry.offsets) > 1


_PENALTIES: dict[str, Callable[[OrthRegularizer, list[Layer]], Tensor]] = {
    "lorth": OrthRegularizer._lorth,
    "kernel": lambda self, layers: torch.stack(
        [kernel_orthogonality(layer.module.weight) for layer in layers]
    ).sum(),
    "spectral": lambda self, layers: torch.stack(
        [spectral_excess(layer.module.weight) for layer in layers]
    ).sum(),
}


def _chooser(
    include: str | Callable[[str, nn.Module], bool] | None
) -> Callable[[str, nn.Module], bool]:
    if include is None:
        return lambda name, module: True
    if isinstance(include, str):
        pattern = re.compile(include)
        return lambda name, module: pattern.search(name) is not None
    return include
