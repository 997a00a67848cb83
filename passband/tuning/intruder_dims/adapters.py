"""LoRA in the variants whose intruders the paper compares.

    W1 = W0 + c B A        A [r, n], B [m, r] = 0 at the start
    c = alpha / r  (standard)     c = alpha / sqrt(r)  (rank-stabilised)
    train both    A uniform within 1 / sqrt(n)
    train B       A frozen with orthonormal rows: all its singular values are one
alpha = None is 2 r, as the paper recommends; a fixed alpha for all ranks is its counterexample.

Sources: Hu et al., ICLR 2022, arXiv 2106.09685; Kalajdzievski 2023 (rsLoRA), arXiv 2312.03732;
Hayou et al. 2024 (LoRA+), arXiv 2402.12354.

>>> model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
>>> handle = LoRA(rank=2, train="B").attach(model)
>>> sorted(handle.trained())
['0.lora_B', '1.lora_B']
>>> handle.edit().norm()
0.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from passband.errors import ConfigError
from passband.parts.edits import Change
from passband.parts.low_rank import LowRankFactors, LowRankLinear
from passband.parts.targets import find_targets, weight_of
from passband.tuning.handle import Calibration, Handle


@dataclass(frozen=True)
class LoRA:
    """
    rank, alpha      of the update; alpha None: twice the rank
    rank_stabilised  alpha over the root of the rank
    train            both factors, or B alone
    lr_ratio         learning rate of B over that of A (LoRA+: 16)
    dropout          on the input of the factors
    targets          endings of module names
    """

    rank: int = 8
    alpha: float | None = None
    rank_stabilised: bool = False
    train: Literal["both", "B"] = "both"
    lr_ratio: float = 1.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)

    @property
    def scale(self) -> float:
        """c in W0 + c B A.

        >>> LoRA(rank=16).scale, LoRA(rank=16, alpha=8).scale
        (2.0, 0.5)
        """
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    def count(self, model: nn.Module) -> int:
        """Trained scalars; works without weights."""
        shapes = [weight_of(layer)[0].shape for layer in find_targets(model, self.targets).values()]
        inputs = self.train == "both"
        return sum(self.rank * (m + n * inputs) for m, n in shapes)

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> LoRAHandle:
        """Raises `ConfigError` for a rank that a layer can't have, alpha or lr_ratio below 0."""
        if self.scale <= 0 or self.lr_ratio <= 0 or self.train not in ("both", "B"):
            raise ConfigError(
                f"alpha = {self.alpha}, lr_ratio = {self.lr_ratio}, train = {self.train!r}",
                expected="alpha and lr_ratio above 0; train 'both' or 'B'",
            )
        return LoRAHandle(model, method=self, head=head, steps=steps, seed=seed, name=name)


class LoRAHandle(Handle):
    """Factors beside the target layers; the base weights are never touched."""

    def __init__(self, model: nn.Module, *, method: LoRA, **options: Any) -> None:
        super().__init__(model, method=method, **options)
        layers = find_targets(model, method.targets, head=tuple(self.head), rank=method.rank)
        generator = torch.Generator().manual_seed(self.seed)
        self.lr_ratio = method.lr_ratio
        self._layers: dict[str, LowRankLinear] = {}
        for path, layer in layers.items():
            m, n = weight_of(layer)[0].shape
            A = _START[method.train](method.rank, n, generator)
            self._layers[path] = LowRankLinear.of(layer)
            factors = self._layers[path].add(self.name, LowRankFactors(
                A, torch.zeros(m, method.rank), scale=method.scale, dropout=method.dropout
            ))
            factors.A.requires_grad_(method.train == "both")

    def _factors(self) -> dict[str, LowRankFactors]:
        return {path: layer[self.name] for path, layer in self._layers.items()}

    def trained(self) -> dict[str, nn.Parameter]:
        found = {
            _joined(path, f"lora_{letter}"): getattr(factors, letter)
            for path, factors in self._factors().items() for letter in "AB"
        }
        return {name: p for name, p in found.items() if p.requires_grad}

    def changes(self) -> dict[str, Change]:
        return {_joined(p, "weight"): layer.change(self.name) for p, layer in self._layers.items()}

    def optimizer(
        self, lr: float, *, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> Optimizer:
        if self.lr_ratio == 1.0:
            return super().optimizer(lr, weight_decay=weight_decay, betas=betas, eps=eps)
        fast = {id(p) for n, p in self.trained().items() if n.endswith(".lora_B")}
        groups = [
            {**group, "params": params, "lr": lr * rate}
            for group in self.groups(weight_decay)
            for rate, params in (
                (1.0, [p for p in group["params"] if id(p) not in fast]),
                (self.lr_ratio, [p for p in group["params"] if id(p) in fast]),
            ) if params
        ]
        return self.bind(torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, foreach=True))

    def _switch(self, on: bool) -> None:
        for factors in self._factors().values():
            factors.enabled = on

    def _release(self) -> None:
        for layer in self._layers.values():
            layer.detach(self.name)

    def extra_state(self) -> dict[str, Any]:
        """A where it is frozen: it is not among the trained tensors."""
        return {p: f.A.detach() for p, f in self._factors().items() if not f.A.requires_grad}

    @torch.no_grad()
    def load_extra_state(self, state: Any) -> None:
        for path, value in state.items():
            self._factors()[path].A.copy_(value)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name  # the model may be the layer itself


def _uniform(rank: int, n: int, generator: torch.Generator) -> Tensor:
    values: Tensor = (2 * torch.rand(rank, n, generator=generator) - 1) / n**0.5
    return values


def _orthonormal(rank: int, n: int, generator: torch.Generator) -> Tensor:
    rows: Tensor = torch.linalg.qr(torch.randn(n, rank, generator=generator)).Q.T
    return rows


_START = {"both": _uniform, "B": _orthonormal}
