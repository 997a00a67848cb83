"""Sparse fine-tuning that composes: Lottery-Ticket SFT.

Problem. One pretrained model, many tasks and many languages (or domains), each learned from data of
its own, and any of them wanted together: a task learned in English, used in a language that has no
task data. Every one becomes a small sparse difference of weights, and differences add.

    theta0 pretrained parameters, M maskable ones (N_m of them), K entries are kept

    phase 1   theta <- argmin L + l1_full R                        everything is trained
    select    mu = the K largest |theta - theta0| over all of M    one threshold for all tensors
    rewind    theta <- theta0                                      heads as well
    phase 2   theta <- argmin L + l1_sparse R,  entries mu alone   optimiser and schedule anew
    phi = (theta - theta0) mu
    R = sum_i |theta_i - theta0_i| / N                             N: all parameters of the model

    compose   theta = theta0 + phi_task + phi_language

Several iterations J repeat this with K / J more entries each, from where the last one ended; the
distance is always the one to theta0. During training for a task the source language's difference is
applied already and stays: `phi_language.apply(model)` first, then attach; phi_task never contains
it. Parameters outside the base model (task heads) are trained densely in both phases.

Source: Ansell, Ponti, Korhonen, Vulic, ACL 2022, arXiv 2110.07560.

>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> handle = LTSFT(count=10).attach(model, head=["2"])
>>> for phase in handle.phases():
...     optimizer = handle.optimizer(lr=1e-2)
...     for _ in range(3):
...         loss = model(torch.randn(16, 4)).square().mean()
...         handle.objective(loss).backward()
...         optimizer.step()
...         optimizer.zero_grad()
>>> sum(len(c.indices) for c in handle.edit().changes.values() if c.kind == "sparse")
10
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import CheckpointError, ConfigError, DataError
from passband.parts.edits import Change, Sparse, fingerprint
from passband.parts.selective import Selected
from passband.tuning.handle import Calibration, Handle, Phase
from passband.tuning.lt_sft.maskable import Parts, find_parts, untied
from passband.tuning.lt_sft.selection import Given, Moved, largest, per_tensor, uniform

Criterion = Literal["lottery", "per_tensor", "random", "bitfit", "first_order"]
Normaliser = Literal["total", "maskable", "none"]


@dataclass(frozen=True)
class LTSFT:
    """
    density            K / N_m; used where `count` is None
    count              K itself
    criterion          lottery      the K that moved farthest in phase 1
                       per_tensor   the same share of every tensor, that moved farthest
                       random       drawn uniformly (RAND-SFT); no phase 1
                       bitfit       all biases; no phase 1
                       first_order  largest summed squared gradients over `calibration["losses"]`,
                                    a sequence of functions model -> loss; no phase 1
    iterations         J, of select and rewind
    full_share         part of each iteration's steps that phase 1 takes
    l1_full, l1_sparse weight of R in either phase. With N = all parameters the pull on one weight
                       is l1 / N: far below Adam's eps for large models, 300 times stronger at
                       5e5 parameters than at 1.8e8. It has to be tuned anew for another size
    l1_normaliser      N: total, maskable, or none (N = 1)
    l1_maskable_only   leave heads out of R
    freeze_*           what phase 1 and the mask leave alone; the decoder is the output projection
    untie_embeddings   give the output projection a weight of its own while attached
    prefix             of the base model in parameter names; None: the model says it
    """

    density: float = 0.05
    count: int | None = None
    criterion: Criterion = "lottery"
    iterations: int = 1
    full_share: float = 0.5
    l1_full: float = 0.0
    l1_sparse: float = 0.0
    l1_normaliser: Normaliser = "total"
    l1_maskable_only: bool = False
    freeze_layer_norm: bool = True
    freeze_embeddings: bool = False
    freeze_head: bool = False
    freeze_decoder: bool = False
    untie_embeddings: bool = False
    prefix: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError(f"density = {self.density}", expected="above 0, at most 1")
        if self.count is not None and self.count < 1:
            raise ConfigError(f"count = {self.count}", expected="at least 1, or None")
        if self.iterations < 1 or (self.iterations > 1 and not self.two_phases):
            raise ConfigError(
                f"{self.iterations} iterations of {self.criterion}", expected="1, or more of "
                "lottery or per_tensor: the others have nothing to select again",
            )
        if not 0 < self.full_share < 1:
            raise ConfigError(f"full_share = {self.full_share}", expected="between 0 and 1")

    @property
    def two_phases(self) -> bool:
        return self.criterion in ("lottery", "per_tensor")

    def parts(self, model: nn.Module, head: Sequence[str] = ()) -> Parts:
        """Which parameters can be masked, and which are trained densely."""
        return find_parts(
            model, head, prefix=self.prefix, layer_norm=not self.freeze_layer_norm,
            embeddings=not self.freeze_embeddings, heads=not self.freeze_head,
            decoder=not self.freeze_decoder,
        )

    def entries(self, model: nn.Module, head: Sequence[str] = ()) -> int:
        """K on this model; works on the meta device."""
        known = dict(model.named_parameters())
        parts = self.parts(model, head)
        if self.criterion == "bitfit":
            return sum(known[n].numel() for n in parts.maskable if known[n].ndim == 1)
        if self.count is not None:
            return self.count
        return max(1, round(self.density * sum(known[n].numel() for n in parts.maskable)))

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> LotteryTicket:
        """Raises `DataError` when there is nothing to mask or K exceeds it."""
        base = fingerprint(model)
        retie = untied(model) if self.untie_embeddings else None
        parts = self.parts(model, head)
        handle = LotteryTicket(
            model, parts, self.entries(model, head), losses=(calibration or {}).get("losses", ()),
            method=self, head=parts.dense, steps=steps, seed=seed, name=name,
        )
        # The base is the model as it came: an edit of it must not ask for an untied one.
        handle.base = base.only(lambda n: n not in handle.head)
        handle.retie = retie
        return handle


class LotteryTicket(Handle):
    """LT-SFT on a model.

    support  sorted flat indices of the entries that are in the mask so far, by name
    start    pretrained values of the maskable tensors; after the last selection of the support alone
    """

    def __init__(
        self, model: nn.Module, parts: Parts, count: int, *, method: LTSFT,
        losses: Sequence[Callable[[nn.Module], Tensor]] = (), **options: Any,
    ) -> None:
        known = dict(model.named_parameters())
        self.method, self.entries, self.losses = method, count, losses
        self.maskable = {name: known[name] for name in parts.maskable}
        self.size = sum(p.numel() for p in self.maskable.values())
        _check(self.maskable, count, self.size)
        super().__init__(model, method=method, **options)
        self.retie: Callable[[], None] | None = None
        self.total = sum(p.numel() for p in model.parameters())
        self.support: dict[str, Tensor] = {}
        self.selected: Selected | None = None
        self._start_of = {n: p.detach().clone() for n, p in self.maskable.items()}
        self._compact = False  # _start_of holds the entries of the support alone
        if method.two_phases:
            self._train_all()
        else:
            self._sparse(self._choose(count))

    # ---- phases ----------------------------------------------------------------------------

    def phases(self) -> Iterator[Phase]:
        method, rounds = self.method, self.method.iterations
        if not method.two_phases:
            yield Phase("sparse")
            return
        for number in range(rounds):
            last = number == rounds - 1
            label = f"-{number + 1}" if rounds > 1 else ""
            heads = {n: p.detach().clone() for n, p in self.head.items()}
            values = self._values()
            self._train_all()
            yield Phase(f"full{label}", method.full_share / rounds)
            chosen = self._choose(
                self.entries - sum(map(len, self.support.values())) if last
                else self.entries // rounds
            )
            self._rewind(values, heads)
            self._sparse(chosen, compact=last)
            yield Phase(f"sparse{label}", (1 - method.full_share) / rounds)

    def _train_all(self) -> None:
        """Phase 1: nothing is masked."""
        if self.selected is not None:
            self.selected.detach(restore=False)
            self.selected = None
        self.optimizers.clear()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.maskable or name in self.head)
            parameter.grad = None

    def _choose(self, count: int) -> dict[str, Tensor]:
        method = self.method
        sizes = {name: p.numel() for name, p in self.maskable.items()}
        if method.criterion == "random":
            return uniform(sizes, count, self.seed)
        if method.criterion == "bitfit":
            return {n: torch.arange(p.numel()) for n, p in self.maskable.items() if p.ndim == 1}
        if method.criterion == "first_order":
            return largest(Given(self._fisher()), count)
        moved = Moved(self._start_of, self.maskable)
        if method.criterion == "per_tensor":
            return per_tensor(moved, count, taken=self.support)
        return largest(moved, count, taken=self.support)

    def _fisher(self) -> dict[str, Tensor]:
        """Squared gradients [shape of each tensor], summed over the calibration losses."""
        if not self.losses:
            raise DataError(
                "criterion 'first_order' without losses", expected="calibration={'losses': [...]}",
                mend="a sequence of functions that take the model and return a loss",
            )
        for parameter in self.maskable.values():
            parameter.requires_grad_(True)
        names = list(self.maskable)
        found = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in self.maskable.items()}
        with torch.enable_grad():
            for loss in self.losses:
                gradients = torch.autograd.grad(
                    loss(self.model), list(self.maskable.values()), allow_unused=True
                )
                for name, gradient in zip(names, gradients, strict=True):
                    if gradient is not None:
                        found[name] += gradient.float().square()
        return found

    @torch.no_grad()
    def _rewind(self, values: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Everything as it was when the iteration began, heads included."""
        for name, parameter in self.maskable.items():
            parameter.copy_(self._start_of[name])
            if name in values:
                parameter.view(-1)[self.support[name]] = values[name].to(parameter.dtype)
        for name, parameter in self.head.items():
            parameter.copy_(heads[name])

    def _sparse(self, chosen: Mapping[str, Tensor], compact: bool = True) -> None:
        """Phase 2: the entries of the mask alone, with an optimiser state of their size."""
        names = [n for n in self.maskable if n in chosen or n in self.support]
        self.support = {
            n: _joined(self.support.get(n), chosen.get(n)).to(self.maskable[n].device)
            for n in names
        }
        if compact:
            self._start_of = {n: self._start(n) for n in names}
            self._compact = True
        self.optimizers.clear()
        for parameter in self.model.parameters():
            parameter.grad = None
        self.selected = Selected(self.model, self.support, also=list(self.head))

    # ---- what a handle gives ---------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        return self.selected.values if self.selected is not None else dict(self.maskable)

    def _start(self, name: str) -> Tensor:
        """Pretrained entries of the support, [k]."""
        start = self._start_of[name]
        return start if self._compact else start.reshape(-1)[self.support[name]]

    def _values(self) -> dict[str, Tensor]:
        """Entries of the support as they stand, [k], in the precision they are trained in."""
        if self.selected is None:
            return {}
        return {n: v.detach().clone() for n, v in self.selected.values.items()}

    def changes(self) -> dict[str, Change]:
        """Sparse changes; in phase 1, whose result is never used, dense ones."""
        if not self.enabled:
            return dict(self._kept)
        return self._changes()

    def _changes(self) -> dict[str, Change]:
        if self.selected is None:
            whole = {n: torch.arange(p.numel()) for n, p in self.maskable.items()}
            return {
                n: Sparse(at, (self.maskable[n].detach().float() - self._start_of[n].float())
                          .reshape(-1), tuple(self.maskable[n].shape))
                for n, at in whole.items()
            }
        return {
            n: Sparse(self.support[n], values.detach().float() - self._start(n).float(),
                      tuple(self.maskable[n].shape))
            for n, values in self.selected.values.items()
        }

    def _switch(self, on: bool) -> None:
        """Exchange what stands in the weights with what stood there before."""
        with torch.no_grad():
            if on:
                for name, values in self._away.items():
                    self._put(name, values)
                self._kept, self._away = {}, {}
                return
            if self.selected is not None:
                self.selected.sync()
            self._kept = self._changes()
            self._away = {n: self._entries(n).clone() for n in self.trained()}
            for name in self.trained():
                self._put(name, self._start_of[name] if self.selected is None
                          else self._start(name))

    def _entries(self, name: str) -> Tensor:
        weight = self.maskable[name].detach()
        return weight if self.selected is None else weight.view(-1)[self.support[name]]

    def _put(self, name: str, values: Tensor) -> None:
        # Through `.data`: graphs made outside of `off()` may still run backward after it.
        weight = self.maskable[name].data
        if self.selected is None:
            weight.copy_(values)
        else:
            weight.view(-1).index_copy_(0, self.support[name], values)

    def _release(self) -> None:
        if self.selected is not None:
            away = {n: self._entries(n).clone() for n in self.trained()}
            names = list(away)
            self.selected.detach(restore=True)
            for name in names:
                self.maskable[name].data.view(-1).index_copy_(0, self.support[name], away[name])
            self.selected = None
        if self.retie is not None:
            self.retie()

    def penalty(self) -> Tensor | None:
        """R, the distance from the pretrained weights, weighted for the phase."""
        method = self.method
        weight = method.l1_full if self.selected is None else method.l1_sparse
        if weight == 0:
            return None
        parts = [
            (p - self._start_of[n]).abs().sum() if self.selected is None
            else (p - self._start(n).to(p.dtype)).abs().sum()
            for n, p in self.trained().items()
        ]
        if not method.l1_maskable_only:
            parts += [(p - super(LotteryTicket, self)._start[n]).abs().sum()
                      for n, p in self.head.items()]
        count = {"total": self.total, "maskable": self.size, "none": 1}[method.l1_normaliser]
        return weight / count * torch.stack([part.float() for part in parts]).sum()
