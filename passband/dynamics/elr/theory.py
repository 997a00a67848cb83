"""Why early learning is there at all: logistic regression on two noisy clusters.

    x = y* v + sigma N(0, I_p),  |v| = 1,  y* = +-1;   the label is -y* with probability `flip`
    theta <- theta - lr grad mean log(1 + exp(-y <x, theta>)),  from 0

With about as many dimensions as examples, gradient descent turns towards v first: wrongly labelled
rows are classified right. Then the gradients of clean rows fade, those of wrong rows take over, and
in the end every wrong label is learned by heart.

>>> story = linear_memorisation(n=60, p=54, steps=400, every=50, seeds=[0, 1])
>>> story.recovered.shape                             # seeds x looks
torch.Size([2, 9])
>>> bool((story.alignment[:, 0] > 0.8).all())         # the first gradient points along v
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from passband.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Story:
    """What was seen; S seeds, K looks.

    steps            [K]
    recovered        [S, K] share of wrong rows classified as what they are
    memorised        [S, K] the rest of them: classified as labelled
    alignment        [S, K] cosine of the negative gradient and v
    clean, wrong     [S, K] mean size of a row's part in the gradient, 1 / (1 + exp(margin)), of
                     clean and of wrong rows: 0.5 at the start
    """

    steps: Tensor
    recovered: Tensor
    alignment: Tensor
    clean: Tensor
    wrong: Tensor

    @property
    def memorised(self) -> Tensor:
        return 1 - self.recovered


def clusters(
    n: int, p: int, sigma: float, flip: float, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x [n, p], labels [n], truth [n], v [p]), labels -1 or 1, float64."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(p, generator=generator, dtype=torch.float64)
    v /= v.norm()
    truth = 2.0 * torch.randint(2, (n,), generator=generator).double() - 1
    noise = torch.randn(n, p, generator=generator, dtype=torch.float64)
    x = truth[:, None] * v + sigma * noise
    flipped = torch.rand(n, generator=generator) < flip
    return x, torch.where(flipped, -truth, truth), truth, v


def linear_memorisation(
    n: int = 400, p: int = 360, sigma: float = 0.3, flip: float = 0.3, *, lr: float = 0.5,
    steps: int = 2000, every: int = 5, seeds: Sequence[int] = (0,),
) -> Story:
    """Gradient descent on all rows, all seeds at once.

    flip  in (0, 0.5);  raises ConfigError outside of it and for sizes below 1
    """
    if not 0 < flip < 0.5:
        raise ConfigError(f"flip = {flip}", expected="above 0 and below one half")
    if min(n, p, steps, every) < 1 or sigma <= 0 or lr <= 0 or not seeds:
        raise ConfigError(
            f"n = {n}, p = {p}, sigma = {sigma}, lr = {lr}, steps = {steps}, every = {every}",
            expected="above 0, and a seed",
        )
    x, y, truth, v = (
        torch.stack(part) for part in zip(
            *(clusters(n, p, sigma, flip, seed) for seed in seeds), strict=True
        )
    )
    wrong = (y != truth).double()
    # A row's gradient is -sigmoid(-margin) of its signed features.
    signed = y[:, :, None] * x
    theta = torch.zeros_like(v)
    looks: list[tuple[Tensor, ...]] = []
    for step in range(steps + 1):
        margin = torch.einsum("snp,sp->sn", signed, theta)
        size = torch.sigmoid(-margin)
        down = torch.einsum("snp,sn->sp", signed, size) / n
        if step % every == 0:
            # The side of a row is label times sign of the margin; at theta = 0 it has none.
            looks.append((
                _mean((margin < 0).double(), wrong),
                torch.einsum("sp,sp->s", down, v) / down.norm(dim=1),
                _mean(size, 1 - wrong), _mean(size, wrong),
            ))
        theta = theta + lr * down
    columns = [torch.stack(column, 1) for column in zip(*looks, strict=True)]
    return Story(torch.arange(0, steps + 1, every), *columns)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """[S, n] -> [S], over rows of weight 1."""
    return (values * weight).sum(1) / weight.sum(1)
