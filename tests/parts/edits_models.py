"""Random changes and a model with every layout of weights, for the tests of weight edits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passband.parts.edits import Block, Change, Dense, LowRank, Masked, Replace, Sparse
from passband.parts.edits.place import bits

ADDITIVE = ("dense", "sparse", "block", "low_rank")
KINDS = (*ADDITIVE, "replace", "masked")


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def random_change(kind: str, shape: tuple[int, ...], seed: int) -> Change:
    """A change of this kind; low rank falls back to sparse for vectors."""
    g = torch.Generator().manual_seed(seed)
    numel = int(torch.Size(shape).numel())
    if kind == "low_rank" and len(shape) < 2:
        kind = "sparse"
    if kind == "dense":
        return Dense(normal(g, *shape))
    if kind == "replace":
        return Replace(normal(g, *shape))
    if kind == "masked":
        return Masked(torch.rand(shape, generator=g) < 0.5)
    if kind == "sparse":
        count = int(torch.randint(0, numel + 1, (), generator=g))
        at = torch.randperm(numel, generator=g)[:count]
        values = normal(g, count)
        values[::3] = 0.0  # kept all the same
        return Sparse(at, values, shape)
    if kind == "block":
        dim = int(torch.randint(0, len(shape), (), generator=g))
        count = int(torch.randint(0, shape[dim] + 1, (), generator=g))
        at = torch.randperm(shape[dim], generator=g)[:count]
        return Block(dim, at, normal(g, *shape[:dim], count, *shape[dim + 1 :]), shape)
    m, n = shape[0], numel // shape[0]
    start = (normal(g, m, 3), normal(g, 3, n)) if seed % 2 else (None, None)
    transposed = len(shape) == 2 and seed % 3 == 0
    b, a = normal(g, m, 2), normal(g, 2, n)
    if transposed:
        b, a = a.t(), b.t()
        start = (start[1].t(), start[0].t()) if seed % 2 else (None, None)
    return LowRank(b, a, *start, scale=0.5, shape=shape, transposed=transposed)


class Everything(nn.Module):
    """Linear, kernels (one channels_last), a tied embedding, norm, a transposed Conv1D weight."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 6)
        self.conv = nn.Conv2d(2, 3, 3)
        self.last = nn.Conv2d(4, 2, 3).to(memory_format=torch.channels_last)
        self.conv1d = nn.Parameter(torch.zeros(4, 8))  # [in, out]
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(normal(g, *parameter.shape))
                parameter[(0,) * parameter.ndim] = -0.0  # its bits are not those of 0.0
        self.to(dtype)


def random_changes(model: nn.Module, kinds: tuple[str, ...], seed: int) -> dict[str, Change]:
    """A change of every parameter, the kinds in turn."""
    return {
        name: random_change(kinds[(seed + i) % len(kinds)], tuple(p.shape), seed + i)
        for i, (name, p) in enumerate(model.named_parameters())
    }


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal_bits(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = dict(model.named_parameters())
    return now.keys() == before.keys() and all(
        torch.equal(bits(now[n].detach()), bits(before[n])) for n in now
    )
