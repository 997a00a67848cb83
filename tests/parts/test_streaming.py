"""Streaming equals offline, for a small causal network that keeps its past."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passband.errors import ConfigError
from passband.parts.streaming import run_stream


class Causal(nn.Module):
    """Dilated convolutions that see the past only, then a look-ahead of 3 samples."""

    LOOKAHEAD = 3

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(2 if d == 1 else 4, 4, 3, dilation=d) for d in (1, 2, 4)
        )

    def forward(self, x):
        x = F.pad(x, (0, self.LOOKAHEAD))
        for layer in self.layers:
            x = torch.tanh(layer(F.pad(x, (2 * layer.dilation[0], 0))))
        return x[..., self.LOOKAHEAD :]

    def start(self, batch):
        pasts = [torch.zeros(batch, m.in_channels, 2 * m.dilation[0]) for m in self.layers]
        return pasts, self.LOOKAHEAD

    def push(self, x, state):
        pasts, skip = state
        kept = []
        for layer, past in zip(self.layers, pasts, strict=True):
            x = torch.cat([past, x], -1)
            kept.append(x[..., -past.shape[-1] :])
            x = torch.tanh(layer(x))
        return x[..., skip:], (kept, max(0, skip - x.shape[-1]))

    def finish(self, state):
        pasts, _ = state
        silence = torch.zeros(len(pasts[0]), 2, self.LOOKAHEAD)
        return self.push(silence, state)[0]


@pytest.mark.parametrize("block", [1, 2, 7, 100, 500, (1, 2, 3), (200, 1, 50)])
def test_streaming_equals_offline(block):
    torch.manual_seed(0)
    network = Causal().eval()
    x = torch.randn(3, 2, 101)
    with torch.no_grad():
        whole = network(x)
        assert torch.allclose(run_stream(network, x, block), whole, atol=1e-5)
    assert whole.shape == (3, 4, 101)


def test_a_network_that_forgets_is_found_out():
    class Forgets(Causal):
        def push(self, x, state):
            y, (_, skip) = super().push(x, state)
            return y, (self.start(len(x))[0], skip)

    torch.manual_seed(0)
    network, x = Forgets().eval(), torch.randn(3, 2, 101)
    with torch.no_grad():
        assert not torch.allclose(run_stream(network, x, 10), network(x), atol=1e-2)


def test_empty_blocks_are_refused():
    for block in (0, (), (5, 0)):
        with pytest.raises(ConfigError, match="blocks of"):
            run_stream(Causal(), torch.zeros(1, 2, 10), block)
