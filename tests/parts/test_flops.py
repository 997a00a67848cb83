"""Counts of multiply-accumulates against hand counts."""

from __future__ import annotations

import torch
from torch import nn

from passband.parts.flops import count_macs


def test_a_convolution():
    layer = nn.Conv1d(8, 16, 5, padding=2, groups=4)
    # 100 positions, 16 outputs, each from 2 channels and 5 taps
    assert count_macs(layer, torch.empty(3, 8, 100)) == 3 * 100 * 16 * 2 * 5


def test_an_lstm():
    layer = nn.LSTM(10, 7, batch_first=True, bidirectional=True)
    # two directions, four gates, input and state, for each of 20 steps
    assert count_macs(layer, torch.empty(2, 20, 10)) == 2 * 20 * 2 * 4 * 7 * (10 + 7)


def test_attention():
    class Attention(nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(q, q, q)

    # scores and weighted sums
    assert count_macs(Attention(), torch.empty(1, 2, 30, 8)) == 2 * 2 * 30 * 30 * 8


def test_what_a_module_says_of_itself():
    class Hidden(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        def macs(self, given: tuple[torch.Tensor], output: torch.Tensor) -> int:
            return given[0].numel() + output.numel()

    module = nn.Sequential(Hidden(), nn.Linear(4, 4), Hidden())
    assert count_macs(module, torch.empty(5, 4)) == 5 * (8 + 16 + 8)


def test_the_module_is_left_as_it_was():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    count_macs(module, torch.empty(1, 4))
    assert module[1].training
    assert module[0].weight.device.type == "cpu"
    assert not module[0]._forward_hooks
