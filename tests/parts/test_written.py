"""A stamp differs after every way of changing a parameter, and only then."""

import copy

import pytest
import torch
from torch import nn

from passband.parts.written import stamp


def parameter():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    return p


@pytest.mark.parametrize(
    "options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str
)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimisers(kind, options):
    p, other = parameter(), parameter()
    optimizer = kind([p], lr=0.1, **options)
    seen = [stamp(p)]
    for _ in range(3):
        assert stamp(p) == seen[-1]
        optimizer.step()
        assert stamp(p) not in seen
        seen.append(stamp(p))
    mine = stamp(other)
    optimizer.step()
    assert stamp(other) == mine


class ThroughData(torch.optim.Optimizer):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data.add_(1.0)


def test_other_ways():
    p = parameter()
    seen = stamp(p)
    ThroughData([p], {}).step()
    assert stamp(p) != seen
    seen = stamp(p)
    with torch.no_grad():
        p[1:].mul_(2)
    assert stamp(p) != seen
    seen = stamp(p)
    p.data = p.data[:2].clone()
    assert stamp(p) != seen


def test_reading_and_gradients_change_nothing():
    p = parameter()
    seen = stamp(p)
    (p * 2).sum().backward()
    copy.deepcopy(p).data.zero_()
    p.grad = None
    assert stamp(p) == seen
