"""The K largest scores over many tensors: exactly K, in one pass, without joining the tensors.

>>> before = {"w": torch.zeros(4), "b": torch.zeros(2)}
>>> after = {"w": torch.tensor([0.0, -3.0, 1.0, 1.0]), "b": torch.tensor([1.0, 2.0])}
>>> largest(Moved(before, after), 3)
{'w': tensor([1, 2]), 'b': tensor([1])}

Equal scores go to the earlier tensor and, inside one, to the lower flat index; a score of exactly
zero is never taken.

A sample of positions gives a bound that K scores exceed almost surely. One pass in chunks that stay
in the processor's cache collects what exceeds it, a little more than K candidates, and the exact
threshold is found among these. Where the sample was unlucky the pass is repeated for all positive
scores, so the answer does not depend on the sample. Cost: one reading of the tensors, memory of the
candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from passband.errors import ConfigError, DataError

CHUNK = 1 << 17  # elements: scores of a chunk take half a megabyte
SAMPLE = 1 << 18  # positions looked at first
SAFETY = 6.0  # standard deviations between the sample's bound and the expected threshold


class Scores(Protocol):
    """Non-negative fp32 scores of the elements of named tensors, computed when asked for."""

    def sizes(self) -> dict[str, int]:
        """Elements by name, in the order in which ties are decided."""

    def between(self, name: str, start: int, stop: int) -> Tensor:
        """Scores of flat positions start to stop: a tensor that may be overwritten."""

    def at(self, name: str, positions: Tensor) -> Tensor:
        """Scores at flat positions [n]."""


@dataclass(frozen=True)
class Moved:
    """|after - before|, in fp32 whatever the tensors' own type."""

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]

    def sizes(self) -> dict[str, int]:
        return {name: tensor.numel() for name, tensor in self.after.items()}

    def between(self, name: str, start: int, stop: int) -> Tensor:
        before, after = _flat(self.before[name])[start:stop], _flat(self.after[name])[start:stop]
        return (after.float() - before.float()).abs_()

    def at(self, name: str, positions: Tensor) -> Tensor:
        before, after = _flat(self.before[name]), _flat(self.after[name])
        return (after[positions].float() - before[positions].float()).abs_()


@dataclass(frozen=True)
class Given:
    """Scores that are there already, such as summed squared gradients."""

    values: Mapping[str, Tensor]

    def sizes(self) -> dict[str, int]:
        return {name: tensor.numel() for name, tensor in self.values.items()}

    def between(self, name: str, start: int, stop: int) -> Tensor:
        return _flat(self.values[name])[start:stop].float().abs()

    def at(self, name: str, positions: Tensor) -> Tensor:
        return _flat(self.values[name])[positions].float().abs()


@torch.no_grad()
def largest(
    scores: Scores, count: int, *, taken: Mapping[str, Tensor] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Sorted flat indices, int64, of the `count` largest scores; tensors without one are left out.

    taken  sorted flat indices that are not to be chosen again
    Raises `DataError` for NaN or infinite scores, naming the tensor, and when fewer than `count`
    scores are above zero.
    """
    taken = taken or {}
    sizes = scores.sizes()
    if count < 1:
        raise ConfigError(f"{count} entries", expected="at least one")
    bound = _bound(scores, sizes, count, taken, seed)
    found = _above(scores, sizes, bound, taken)
    if bound > 0 and _held(found) < count:
        found = _above(scores, sizes, 0.0, taken)
    if _held(found) < count:
        raise DataError(
            f"{count} entries are wanted, but {_held(found)} of {sum(sizes.values())} have a score "
            "above zero: all others did not move",
            expected=f"at most {_held(found)}",
            mend="a lower K or density, or a longer first phase with a higher learning rate",
        )
    return _cut(found, count)


def _bound(
    scores: Scores, sizes: Mapping[str, int], count: int, taken: Mapping[str, Tensor], seed: int
) -> float:
    """A score that `count` others exceed almost surely; 0 where all should be looked at."""
    total = sum(sizes.values())
    if total <= 4 * SAMPLE:
        return 0.0
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for name, size in sizes.items():
        share = max(1, round(SAMPLE * size / total))
        positions = torch.randint(size, (share,), generator=generator)
        positions = positions.to(_device(scores, name))
        sample = scores.at(name, positions)
        if name in taken:
            sample[_inside(positions, taken[name].to(positions.device))] = 0.0
        drawn.append(sample.cpu())
    sample = torch.cat(drawn)
    p, n = count / total, len(sample)
    rank = math.ceil(n * p + SAFETY * math.sqrt(n * p * (1 - p)) + SAFETY)
    if rank >= n or not bool(torch.isfinite(sample).all()):
        return 0.0  # the pass over everything names a tensor that is not finite
    return float(sample.kthvalue(n - rank).values)


def _above(
    scores: Scores, sizes: Mapping[str, int], bound: float, taken: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Positions with score > bound, and the scores."""
    found = {}
    for name, size in sizes.items():
        pieces = list(_pieces(scores, name, size, bound, taken.get(name)))
        if pieces:
            positions, values = zip(*pieces, strict=True)
            found[name] = torch.cat(positions), torch.cat(values)
    return found


def _pieces(
    scores: Scores, name: str, size: int, bound: float, taken: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    chunk = CHUNK if _device(scores, name).type == "cpu" else size
    for start in range(0, size, chunk):
        stop = min(start + chunk, size)
        values = scores.between(name, start, stop)
        if not math.isfinite(float(values.max())):  # the maximum carries NaN along
            raise DataError(
                f"{name} has NaN or infinite scores", expected="finite weights after phase 1",
                mend="the training diverged: lower its learning rate or clip the gradients",
            )
        if taken is not None:
            edges = torch.searchsorted(taken, torch.tensor([start, stop], device=taken.device))
            first, last = edges.tolist()
            values[taken[first:last].to(values.device) - start] = 0.0
        inside = _true(values > bound)
        if len(inside):
            yield inside + start, values[inside]


def _cut(found: Mapping[str, tuple[Tensor, Tensor]], count: int) -> dict[str, Tensor]:
    """The `count` best of the candidates; they are in order of tensor and index already."""
    values = torch.cat([value.cpu() for _, value in found.values()])
    threshold = values.kthvalue(len(values) - count + 1).values
    keep = values > threshold
    ties = (values == threshold).nonzero().reshape(-1)
    keep[ties[: count - int(keep.sum())]] = True
    chosen, start = {}, 0
    for name, (positions, _) in found.items():
        mine = keep[start : start + len(positions)].to(positions.device)
        start += len(positions)
        if bool(mine.any()):
            chosen[name] = positions[mine]
    return chosen


def per_tensor(
    scores: Scores, count: int, *, taken: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The largest scores of every tensor by itself: shares of `count` by size, exactly `count`.

    Fractions are rounded down, and what is missing goes to the largest remainders. Raises what
    `largest` does, for a single tensor.
    """
    sizes = scores.sizes()
    total = sum(sizes.values())
    quota = {name: count * size // total for name, size in sizes.items()}
    rest = sorted(sizes, key=lambda name: -(count * sizes[name] % total))
    for name in rest[: count - sum(quota.values())]:
        quota[name] += 1
    chosen: dict[str, Tensor] = {}
    for name, size in sizes.items():
        if quota[name]:
            mine = {name: taken[name]} if taken and name in taken else None
            chosen |= largest(_One(scores, name, size), quota[name], taken=mine)
    return chosen


@dataclass(frozen=True)
class _One:
    """One tensor's scores."""

    scores: Scores
    name: str
    size: int

    def sizes(self) -> dict[str, int]:
        return {self.name: self.size}

    def between(self, name: str, start: int, stop: int) -> Tensor:
        return self.scores.between(name, start, stop)

    def at(self, name: str, positions: Tensor) -> Tensor:
        return self.scores.at(name, positions)


def uniform(
    sizes: Mapping[str, int], count: int, seed: int, taken: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """`count` positions drawn uniformly without replacement; memory of `count`, not of the model.

    >>> chosen = uniform({"w": 1000, "b": 10}, 100, seed=0)
    >>> sum(map(len, chosen.values()))
    100
    """
    taken = taken or {}
    total = sum(sizes.values())
    free = total - sum(map(len, taken.values()))
    if not 1 <= count <= free:
        raise ConfigError(f"{count} entries", expected=f"1 to {free}")
    offsets, start = {}, 0
    for name, size in sizes.items():
        offsets[name] = start
        start += size
    used = torch.cat([taken[n].cpu() + offsets[n] for n in sizes if n in taken] or [_empty()])
    generator = torch.Generator().manual_seed(seed)
    drawn = _empty()
    while len(drawn) < count:
        # A little more than what is missing: some are drawn twice.
        missing = count - len(drawn)
        more = torch.randint(total, (missing + missing // 4 + 16,), generator=generator)
        drawn = torch.cat([drawn, more]).unique()
        drawn = drawn[~_inside(drawn, used)]
        if 2 * count > free:  # most of them: a permutation is cheaper than many rounds
            rest = torch.arange(total)
            drawn = rest[~_inside(rest, used)]
    drawn = drawn[torch.randperm(len(drawn), generator=generator)[:count]].sort().values
    chosen = {}
    for name, size in sizes.items():
        low, high = torch.searchsorted(drawn, torch.tensor([offsets[name], offsets[name] + size]))
        if high > low:
            chosen[name] = drawn[low:high] - offsets[name]
    return chosen


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)


def _empty() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


def _true(flags: Tensor) -> Tensor:
    """Positions of True, ascending; NumPy finds them in half of torch's time on a processor."""
    if flags.device.type != "cpu":
        return flags.nonzero().reshape(-1)
    return torch.from_numpy(np.flatnonzero(flags.numpy()))


def _held(found: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    return sum(len(positions) for positions, _ in found.values())


def _device(scores: Scores, name: str) -> torch.device:
    return scores.between(name, 0, 1).device


def _inside(positions: Tensor, chosen: Tensor) -> Tensor:
    """Which of the positions are among the sorted chosen ones."""
    if not len(chosen):
        return torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    where = torch.searchsorted(chosen, positions).clamp_(max=len(chosen) - 1)
    return chosen[where] == positions
