"""Progressive sparse low-rank adaptation (SaRA, arXiv 2409.06633).

A pretrained generator is adapted to a style or subject by training only the entries of its weights
whose absolute value is tiny: they contribute little, so that what the model knows stays.

    M   = 1[|P0| < threshold]              over every parameter: kernels, biases, norms, embeddings
    v   = P0[M]                            trained, fp32, starting where they are
    L   = L_task + lambda_rank |P_M|_*     nuclear norm: the change doesn't use up the whole rank
    M'  = M (.) 1[|P| < threshold]         from half of the run on: only what is still ineffective
                                           is trained, the others stay as they stand
    lr  = 1e-3 exp(-350 threshold)         unless another one is given
    dP  = P - P0 on M                      the edit: scales, adds, merges

Gradients are gathered at the entries layer by layer and the dense ones dropped, so that memory for
gradients and Adam is that of the entries (`passband.parts.selective`). No module is replaced.

>>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
>>> handle = SaRA(fraction=0.1, min_dim=16).attach(model, steps=20)
>>> optimizer = handle.optimizer(lr=1e-2)
>>> x = torch.randn(8, 32)
>>> for _ in range(20):
...     handle.objective((model(x) - x).square().mean()).backward()
...     optimizer.step()
...     optimizer.zero_grad()
>>> handle.report().entries
419
>>> handle.edit().scaled(0.6).norm() > 0
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from passband.errors import ConfigError, DataError
from passband.parts.slots import gather_state
from passband.tuning.entries import EntryHandle
from passband.tuning.handle import Calibration
from passband.tuning.sara.penalty import NuclearNorm, Sampling
from passband.tuning.sara.selection import Order, Selection, select

Adjustment = Literal["keep", "reset", "off"]


@dataclass(frozen=True)
class SaRA:
    """
    threshold      of |P0|; 2e-3 gives 50 M entries of Stable Diffusion 1.5
    fraction       share of all entries that the threshold is chosen for; in place of a threshold
    order          smallest; largest and random train as many others, to compare with
    lambda_rank    weight of the nuclear norm; 0: none
    rank_sampling  matrices a step: "one", "all", or a number
    min_dim        only matrices whose smaller side is larger are penalised
    adjustment     of the trained set at `adjust_at`: "keep" goes on with Adam's moments of the
                   entries that stay, "reset" forgets them and skips one update (the released
                   code), "off" trains all entries to the end
    adjust_at      share of the run
    exclude        patterns of parameter names, such as "*.lora_B.*"
    targets        endings of module names whose weights alone are looked at; empty: everything
    """

    threshold: float | None = 2e-3
    fraction: float | None = None
    order: Order = "smallest"
    lambda_rank: float = 5e-3
    rank_sampling: Sampling = "one"
    min_dim: int = 64
    adjustment: Adjustment = "keep"
    adjust_at: float = 0.5
    exclude: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> SaRAHandle:
        if self.adjustment != "off" and self.order != "smallest":
            raise ConfigError(
                f"adjustment={self.adjustment!r} with order={self.order!r}",
                expected="order='smallest': others are never below the threshold",
                mend="adjustment='off'",
            )
        return SaRAHandle(
            model, self.select(model, head=head, seed=seed), method=self, head=head, steps=steps,
            seed=seed, name=name,
        )

    def select(self, model: nn.Module, *, head: Sequence[str] = (), seed: int = 0) -> Selection:
        """What would be trained on a model, which is left as it is."""
        return select(
            model, threshold=self.threshold, fraction=self.fraction, order=self.order,
            exclude=self.exclude, targets=self.targets, without=head, seed=seed,
        )


def learning_rate(threshold: float) -> float:
    """The paper's rule, fitted for thresholds from 2e-4 to 1e-2.

    >>> f"{learning_rate(2e-3):.1e}", f"{learning_rate(1e-2):.1e}"
    ('5.0e-04', '3.0e-05')
    """
    return 1e-3 * math.exp(-350 * threshold)


@dataclass(frozen=True)
class Report:
    """What was selected, and what became of it.

    entries      of the initial set M;  total: those that were looked at
    zeros        tensors of zeros, which are selected entirely
    fresh        entries of such tensors that are vectors
    remaining    entries that are trained now
    ineffective  share of the initial set that lies below the threshold now
    """

    threshold: float
    total: int
    entries: int
    remaining: int
    ineffective: float
    zeros: tuple[str, ...]
    fresh: int
    skipped: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "zeros": list(self.zeros), "skipped": list(self.skipped)}


class SaRAHandle(EntryHandle):
    """Entries of a model's weights in training; see `SaRA`."""

    clips_penalty = False  # a gradient without a loss, added once a step as in the released code

    def __init__(
        self, model: nn.Module, selection: Selection, *, method: SaRA, **options: Any
    ) -> None:
        super().__init__(model, selection.indices, method=method, **options)
        self.method, self.selection = method, selection
        self.nuclear = NuclearNorm(
            self.selected, sampling=method.rank_sampling, min_dim=method.min_dim, seed=self.seed
        )
        self.adjusted = method.adjustment == "off"
        self._skip = False  # the next update
        self.about |= {"threshold": selection.threshold}

    def optimizer(
        self, lr: float | None = None, *, weight_decay: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    ) -> Optimizer:
        """AdamW over the entries; without a learning rate, that of `learning_rate`."""
        rate = learning_rate(self.selection.threshold) if lr is None else lr
        return super().optimizer(rate, weight_decay=weight_decay, betas=betas, eps=eps)

    def bind(self, optimizer: Optimizer) -> Optimizer:
        optimizer = super().bind(optimizer)
        optimizer.register_step_pre_hook(lambda *_: self._skip_once())
        return optimizer

    # ---- the penalty ------------------------------------------------------------------------

    def penalty(self) -> Tensor | None:
        if self.method.lambda_rank == 0:
            return None
        norm = self.nuclear(self.count)
        return None if norm is None else self.method.lambda_rank * norm

    # ---- progressive adjustment ---------------------------------------------------------------

    def at(self, fraction: float) -> None:
        super().at(fraction)
        self._adjust_when_due()

    def _after_step(self) -> None:
        if self._told is None:  # a plain loop: `steps` says when
            self._adjust_when_due()

    def _adjust_when_due(self) -> None:
        if not self.adjusted and self.fraction >= self.method.adjust_at:
            self.adjust()

    @torch.no_grad()
    def adjust(self) -> None:
        """Go on with the entries that are still below the threshold; the others stay as they are.

        Raises `DataError` when there are none.
        """
        below = {
            name: values.detach().abs() < self.selection.threshold
            for name, values in self.selected.values.items()
        }
        if not any(bool(mask.any()) for mask in below.values()):
            raise DataError(
                f"all {self.selection.count} trained entries have left the threshold of "
                f"{self.selection.threshold:.3g}: nothing is left to train",
                expected="some that are still below it",
                mend="a lower learning rate, a larger threshold, or adjustment='off'",
            )
        for name, mask in below.items():
            values = self.selected.values[name]
            for optimizer in self.optimizers:
                if self.method.adjustment == "keep":
                    gather_state(optimizer, values, mask)
                else:
                    optimizer.state.pop(values, None)
            self.selected.keep(name, mask)
        self._skip = self.method.adjustment == "reset"
        self.adjusted = True

    def _skip_once(self) -> None:
        if not self._skip:
            return
        self._skip = False
        for values in self.selected.values.values():
            values.grad = None

    @torch.no_grad()
    def report(self) -> Report:
        """Counts, and how much of the initial set is still ineffective."""
        self.selected.sync()
        weights = dict(self.model.named_parameters())
        still = 0
        for name, at in self.selected.support.items():
            values = weights[name].detach().flatten()[at].abs().float()
            still += int((values < self.selection.threshold).sum())
        chosen, count = self.selection, self.selection.count
        return Report(
            chosen.threshold, chosen.total, count,
            sum(v.numel() for v in self.selected.values.values()), still / count, chosen.zeros,
            chosen.fresh, chosen.skipped,
        )

    # ---- resume ---------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        return {
            **super().extra_state(), "adjusted": self.adjusted, "skip": self._skip,
            "threshold": self.selection.threshold,
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        super().load_extra_state(state)
        self.adjusted, self._skip = state["adjusted"], state["skip"]
