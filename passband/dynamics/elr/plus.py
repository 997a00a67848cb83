"""ELR+: two networks, each taught by the averaged weights of the other, on mixed examples.

    T_a[I] <- beta T_a[I] + (1 - beta) softmax(e_b(x))                 e_b: EMA of the other network
    x~ = l x + (1 - l) x[pi],   y~ and q mixed alike of y and T_a[I]   l ~ Beta, at least one half
    loss = mean CE(f_a(x~), y~) + r lam mean log(1 - <q, p>)           p = clamp(softmax(f_a(x~)))

The networks take turns: an epoch each. `ELRPlus` holds what is not trained (targets, teachers);
`trainer.ELRPlusTrainer` does it all for a data set of one's own.

>>> students = Pair(nn.Linear(5, 3), nn.Linear(5, 3))
>>> plus = ELRPlus(students, num_samples=60, num_classes=3)
>>> x, y, index = torch.randn(20, 5), torch.randint(3, (20,)), torch.arange(20)
>>> loss = plus.loss(students, 0, x, y, index)        # of the first network
>>> loss.backward()
>>> plus.follow(students, 0)                          # after the optimiser's step: its teacher
>>> students(x).shape                                 # mean of both networks' logits
torch.Size([20, 3])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.dynamics.elr.ema import WeightEMA, ramped
from passband.dynamics.elr.model import ELRLoss, check_labels, elr_loss
from passband.dynamics.mixup import mixed
from passband.errors import ConfigError
from passband.parts.indexed import check_index


class Pair(nn.Module):
    """Two networks; the output is the mean of their logits, not of their probabilities."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList([first, second])

    def __getitem__(self, which: int) -> nn.Module:
        return self.networks[which]

    def forward(self, x: Any) -> Tensor:
        first, second = self.networks
        found: Tensor = (first(x) + second(x)) / 2
        return found


class ELRPlus(nn.Module):
    """Targets and teachers of two students, and the loss of one step.

    lam, beta      as in `ELRLoss`
    mixup          alpha of the Beta distribution
    ema, ema_ramp  the teachers' memory in the end and the steps of one network until then; below 1
                   a share of the run, as `at` tells it; 0 none
    ema_buffers    see `WeightEMA`
    coef_ramp      the same for the weight of the term: r = exp(-5 (1 - progress)^2); 0: r = 1
    modulate       mixed labels are multiplied by the mixed targets (100 classes)

    It is a module, so that `state_dict` has targets and teachers, and what `bench.loop.train` takes
    as `state`.
    """

    def __init__(
        self, students: Pair, num_samples: int, num_classes: int, lam: float = 3.0,
        beta: float = 0.7, *, mixup: float = 1.0, ema: float = 0.997, ema_ramp: float = 40000,
        ema_buffers: bool = False, coef_ramp: float = 0, modulate: bool = False,
        storage: str = "float32", device: Any = None, k: int = 8,
    ) -> None:
        super().__init__()
        if mixup <= 0:
            raise ConfigError(f"mixup = {mixup}", expected="above 0: ELR+ mixes its examples")
        if coef_ramp < 0:
            raise ConfigError(f"coef_ramp = {coef_ramp}", expected="0 or more")
        self.losses = nn.ModuleList([
            ELRLoss(num_samples, num_classes, lam, beta, storage, device, k=k) for _ in range(2)
        ])
        self.teachers = nn.ModuleList([
            WeightEMA(student, ema, ema_ramp, buffers=ema_buffers) for student in students.networks
        ])
        self.lam, self.mixup, self.coef_ramp, self.modulate = lam, mixup, coef_ramp, modulate
        self.fraction = 0.0  # of the run

    def loss(
        self, students: Pair, which: int, x: Tensor, y: Tensor, index: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Loss of student `which` on x [B, ...], y [B] or [B, C], index [B]; moves its targets."""
        own, teacher = self._loss(which), self._teacher(1 - which)
        index = check_index(index, own.num_samples)
        check_labels(y, len(index), own.num_classes)
        taught = own.update(index, teacher(x).float().softmax(1))
        hot = F.one_hot(y, own.num_classes).float() if y.dim() == 1 else y
        blend, other, share = mixed(x, self.mixup, generator, larger=True)
        targets = share * taught + (1 - share) * taught[other]
        labels = share * hot + (1 - share) * hot[other]
        if self.modulate:
            labels = labels * targets
            labels = labels / labels.sum(1, keepdim=True)
        logits = students[which](blend).float()
        return elr_loss(logits, labels, targets, self._coefficient(which) * self.lam)

    def follow(self, students: Pair, which: int) -> None:
        """The teacher of a student that has just made a step."""
        teacher = self._teacher(which)
        decay = None
        if 0 < teacher.ramp < 1:
            decay = teacher.alpha * ramped(self.fraction / teacher.ramp)
        teacher.update(students[which], decay)

    def at(self, fraction: float) -> None:
        """Where the run stands, in [0, 1): what ramps given as shares go by."""
        self.fraction = fraction

    def dense(self) -> Tensor:
        """[N, C] mean of both networks' targets, rows adding up to 1 where seen."""
        rows = [loss.store.dense() for loss in self.losses]
        return sum(row / row.sum(1, keepdim=True).clamp_min(1e-12) for row in rows) / 2

    def _coefficient(self, which: int) -> float:
        if not self.coef_ramp:
            return 1.0
        if self.coef_ramp < 1:
            return ramped(self.fraction / self.coef_ramp)
        return ramped(int(self._teacher(which).updates) / self.coef_ramp)

    def _loss(self, which: int) -> ELRLoss:
        found = self.losses[which]
        assert isinstance(found, ELRLoss)
        return found

    def _teacher(self, which: int) -> WeightEMA:
        found = self.teachers[which]
        assert isinstance(found, WeightEMA)
        return found


def taking_turns(
    plus: ELRPlus, per_epoch: int
) -> Callable[[Any, Any], Mapping[str, Tensor]]:
    """A step for `bench.loop.train`: an epoch of the first network, one of the second, and so on.

    per_epoch  steps of an epoch
    The module trained is a `Pair`, the optimisers are named "0" and "1".
    """

    def step(stage: Any, batch: Any) -> Mapping[str, Tensor]:
        which = stage.iteration // per_epoch % 2
        plus.to(batch.x.device)
        loss = plus.loss(
            stage.module, which, batch.x, batch.y, batch.index, stage.generator
        )
        value = stage.update(loss, str(which))
        plus.follow(stage.module, which)
        return {"loss": value}

    return step
