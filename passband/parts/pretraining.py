"""One small plain training loop that makes the pretrained models that systems start from.

It is apart from the engine's loop on purpose: what is pretrained must not change when the loop
that adapts it does. One thread, so that the weights are the same on any number of cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from passband.errors import DataError


def pretrain(
    model: nn.Module, loss: Callable[[], Tensor], *, steps: int, lr: float, warmup: int = 0,
    weight_decay: float = 0.01,
) -> None:
    """Train in place: AdamW, gradients clipped at norm 1, cosine to a hundredth of `lr`.

    loss  draws a batch and gives its loss; called once a step
    Raises `DataError` where the loss is no longer finite.
    """

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        passed = (step - warmup) / max(1, steps - warmup)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * passed)) / 2

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    model.train()
    with one_thread(), torch.enable_grad():
        for step in range(steps):
            value = loss()
            if not torch.isfinite(value):
                raise DataError(
                    f"the loss of the pretraining is {value.item()} at step {step}",
                    expected="a finite loss", mend="pretrain on another machine and copy its cache",
                )
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    model.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
