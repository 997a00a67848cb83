"""Batches with as many examples of every domain, and penalties that start late.

>>> domains = torch.tensor([0, 0, 0, 0, 1, 1])
>>> sampler = DomainBatchSampler(domains, per_domain=2, seed=0)
>>> [domains[index].tolist() for _, index in zip(range(2), sampler)]
[[0, 0, 1, 1], [0, 0, 1, 1]]

A batch lists its domains one after the other, in the order of their numbers; `sizes` says where to
split it. In a network with batch normalisation the domains of such a batch share their statistics:
each then sees the others'.

>>> anneal = PenaltyAnneal(start=100, low=1.0, high=1e4)
>>> anneal(99), anneal(100)
(1.0, 10000.0)
>>> float(anneal.total(torch.tensor(2.0), torch.tensor(3.0), step=100))     # (2 + 1e4 * 3) / 1e4
3.0002...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from passband.errors import ConfigError, DataError


class DomainBatchSampler(Sampler[list[int]]):
    """Endless batches of places, for `DataLoader(dataset, batch_sampler=...)`.

    domain_ids  [N] domain of every example, as numbers
    per_domain  examples of each domain in a batch, the whole of a smaller one; None: all of all
    seed        every pass over it gives the same batches again

    Each domain runs through its own permutations; a small one starts over sooner.
    """

    def __init__(
        self, domain_ids: Tensor | Sequence[int], per_domain: int | None = None, seed: int = 0
    ) -> None:
        ids = torch.as_tensor(domain_ids).long().reshape(-1)
        if per_domain is not None and per_domain < 1:
            raise ConfigError(f"per_domain = {per_domain}", expected="1 or more, or None for all")
        if not len(ids):
            raise DataError("no examples", expected="the domain of each, one or more")
        self.domains = [int(e) for e in torch.unique(ids)]
        self.places = [(ids == e).nonzero().ravel() for e in self.domains]
        self.per_domain, self.seed = per_domain, seed
        self.sizes = [min(len(p), per_domain or len(p)) for p in self.places]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches():
            yield batch.tolist()

    def batches(self) -> Iterator[Tensor]:
        """The same as tensors [sum of sizes]."""
        if self.per_domain is None:
            whole = torch.cat(self.places)
            while True:
                yield whole
        generator = torch.Generator().manual_seed(self.seed)
        left = [places[:0] for places in self.places]
        while True:
            batch = []
            for e, (places, size) in enumerate(zip(self.places, self.sizes, strict=True)):
                while len(left[e]) < size:
                    shuffled = places[torch.randperm(len(places), generator=generator)]
                    left[e] = torch.cat([left[e], shuffled])
                batch.append(left[e][:size])
                left[e] = left[e][size:]
            yield torch.cat(batch)


class PenaltyAnneal:
    """A weight that jumps: `low` before step `start`, `high` from it on.

    rescale  divide the loss by a weight above 1. Adam's steps don't feel the size of a loss, except
             through eps; what changes is the balance with a decay that is no part of the loss
    """

    def __init__(
        self, start: int, low: float = 1.0, high: float = 1e4, rescale: bool = True
    ) -> None:
        if start < 0 or low < 0 or high < 0:
            raise ConfigError(
                f"start = {start}, low = {low:g}, high = {high:g}", expected="none below 0"
            )
        self.start, self.low, self.high, self.rescale = start, low, high, rescale

    def __call__(self, step: int) -> float:
        """The weight in step `step`, counted from 0."""
        return self.low if step < self.start else self.high

    def switches(self, step: int) -> bool:
        """Whether this is the first step of the high weight."""
        return step == self.start and self.start > 0

    def total(self, loss: Tensor, penalty: Tensor, step: int) -> Tensor:
        """loss + weight * penalty, rescaled."""
        weight = self(step)
        return (loss + weight * penalty) / (max(1.0, weight) if self.rescale else 1.0)
