"""ELR+ on a data set of one's own, with networks of one's own.

>>> data = torch.utils.data.TensorDataset(torch.randn(60, 5), torch.randint(3, (60,)))
>>> trainer = ELRPlusTrainer(lambda: nn.Linear(5, 3), data, epochs=2, batch_size=20)
>>> outcome = trainer.fit()
>>> outcome.steps                                     # three a network and epoch
12
>>> trainer.predict(torch.randn(4, 5)).shape          # mean of the logits
torch.Size([4, 3])
>>> suspects = trainer.suspects()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, Outcome, train
from passband.bench.optim import build_optimizer
from passband.bench.streams import Streams
from passband.bench.system import Monitor
from passband.dynamics.elr.plus import ELRPlus, Pair, taking_turns
from passband.dynamics.elr.suspects import Suspects, flag_mislabeled
from passband.errors import DataError
from passband.parts.indexed import Indexed, unpack
from passband.parts.modes import evaluating


class ELRPlusTrainer:
    """
    make_model   () -> network [B, ...] -> logits [B, C]; called twice
    train        map-style data set of (x, y); val likewise or None: its accuracy is then a curve
    lam to ema_ramp  see `ELRPlus`; ema_ramp counts steps of one network, or is a share of the run
    epochs       of each network
    config       optimiser, rate, schedule; `select="highest valid_accuracy"` keeps the best by val.
                 Default: SGD of rate 0.02, momentum 0.9, decay 5e-4, a tenth of it from three
                 quarters on
    options      more of `ELRPlus`: storage, modulate, coef_ramp, ...

    Raises DataError for an empty data set and for a network whose output is no [B, C].
    """

    def __init__(
        self, make_model: Callable[[], nn.Module], train: Any, val: Any = None, lam: float = 3.0,
        beta: float = 0.7, mixup: float = 1.0, ema: float = 0.997, ema_ramp: float = 40000, *,
        epochs: int = 200, batch_size: int = 128, config: LoopConfig | None = None, seed: int = 0,
        **options: Any,
    ) -> None:
        self.train = Indexed(train)
        if not len(self.train):
            raise DataError("an empty training set", expected="one example or more")
        self.val, self.streams = val, Streams(seed)
        with self.streams.initialising():
            self.students = Pair(make_model(), make_model())
        x = torch.as_tensor(self.train[0].x)[None]
        with torch.no_grad(), evaluating(self.students):
            out = self.students(x)
        if out.dim() != 2 or len(out) != 1:
            raise DataError(
                f"a network that makes {list(out.shape)} of one example", expected="[1, C] logits"
            )
        size = min(batch_size, len(self.train))
        self.per_epoch = math.ceil(len(self.train) / size)
        self.config = (config or LoopConfig(
            optimizer="sgd", lr=0.02, momentum=0.9, weight_decay=5e-4, schedule="step",
            drop_at=(0.75,),
        )).model_copy(update={"steps": 2 * epochs * self.per_epoch, "batch_size": size})
        self.plus = ELRPlus(
            self.students, len(self.train), out.shape[1], lam, beta, mixup=mixup, ema=ema,
            ema_ramp=ema_ramp, **options,
        )

    def fit(
        self, budget: Budget = Budget(), monitor: Monitor | None = None, *,
        checkpoints: Path | None = None, resume: bool = False,
    ) -> Outcome:
        """Train; a budget in place of the epochs. Checkpoints hold targets and teachers too."""
        step = taking_turns(self.plus, self.per_epoch)
        outcome = train(
            self.students, None, self.train, budget, self.config, streams=self.streams,
            step=lambda stage, batch: step(stage, unpack(batch)), state=self.plus,
            monitor=monitor, checkpoints=checkpoints, resume=resume,
            validate=None if self.val is None else self._validate,
            optimizer={
                str(i): build_optimizer(student.parameters(), self.config)
                for i, student in enumerate(self.students.networks)
            },
        )
        self.plus.cpu()
        return outcome

    def predict(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, C] mean of both networks' logits."""
        device = next(self.students.parameters()).device
        with torch.no_grad(), evaluating(self.students):
            found: Tensor = self.students(x.to(device)).cpu()
        return found

    def suspects(self, labels: Any = None) -> Suspects:
        """Labels that look wrong; `labels` [N] saves reading them from the data set again."""
        if labels is None:
            labels = [int(item.y) for item in self.train]
        return flag_mislabeled(self.plus, labels)

    def _validate(self, _: nn.Module) -> Mapping[str, float]:
        loader = torch.utils.data.DataLoader(self.val, batch_size=256)
        hits = [(self.predict(x).argmax(1) == y).double() for x, y in loader]
        return {"valid_accuracy": 100 * float(torch.cat(hits).mean())}
