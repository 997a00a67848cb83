"""A network that reads names letter by letter (LAVDNN).

    B names, T = 50 letters, A = 66 characters, H units

    x [B, T, A] one-hot -> LSTM [B, T, H] -> BiLSTM [B, T, 2H] -> BiLSTM, last states [B, 2H]
      -> [B, 2]

    i, f, o = sigmoid(W x + R h + b),  g = phi(W x + R h + b)
    c' = f c + i g,   h' = o phi(c')           phi: elu in the first two layers, tanh in the last

Class 0 is "vulnerable". An activation other than tanh rules `nn.LSTM` out: `LSTM` has both. With
tanh throughout it takes PyTorch's fused kernel. One bias a gate, so that sizes are those of Keras.
Source: Li, Feng, Zhang, Tang: A Lightweight Assisted Vulnerability Discovery Method Using Deep
Neural Networks, IEEE Access 7 (2019); github.com/StablelJay/LAVDNN.

>>> network = CharacterLSTM(units=8)
>>> network(encode(["png_read", "copy"])).shape
torch.Size([2, 2])
>>> sum(p.numel() for p in CharacterLSTM(units=120).parameters())
668162
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.parts.identifiers import CHARACTERS, LONGEST

ALPHABET = "".join(sorted(CHARACTERS | {" "}))  # by code point; blanks fill names up
_PLACE = {character: place for place, character in enumerate(ALPHABET)}
BLOCK = 512  # names at a time; results don't depend on it


def encode(names: Sequence[str]) -> Tensor:
    """[N, 50] places in the alphabet, int64, filled up with blanks.

    >>> encode(["ab"])[0, :3].tolist() == [ALPHABET.index(c) for c in "ab "]
    True
    """
    padded = (name.ljust(LONGEST)[:LONGEST] for name in names)
    rows = [[_PLACE[character] for character in name] for name in padded]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, LONGEST)


class LSTM(nn.Module):
    """[B, T, I] -> [B, T, H] with elu or tanh, in one direction.

    kernel [4H, I], recurrent [4H, H], bias [4H]; gates in the order i, f, g, o
    """

    def __init__(self, inputs: int, units: int, activation: str = "elu", *, back: bool = False):
        super().__init__()
        self.activation, self.back = activation, back
        self.kernel = nn.Parameter(torch.empty(4 * units, inputs))
        self.recurrent = nn.Parameter(torch.empty(4 * units, units))
        self.bias = nn.Parameter(torch.zeros(4 * units))
        nn.init.xavier_uniform_(self.kernel)
        nn.init.orthogonal_(self.recurrent)
        with torch.no_grad():
            self.bias[units : 2 * units] = 1.0  # remember at first

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(1) if self.back else x
        y = self._fused(x) if self.activation == "tanh" else self._steps(x)
        return y.flip(1) if self.back else y

    def _fused(self, x: Tensor) -> Tensor:
        start = x.new_zeros(1, len(x), self.recurrent.shape[1])
        weights = [self.kernel, self.recurrent, self.bias, torch.zeros_like(self.bias)]
        y: Tensor = torch.lstm(
            x, (start, start), weights, True, 1, 0.0, self.training, False, True
        )[0]
        return y

    def _steps(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.recurrent.shape[1])
        inputs = F.linear(x, self.kernel, self.bias).unbind(1)
        recurrent, found = self.recurrent.T, []
        for given in inputs:
            i, f, g, o = torch.addmm(given, h, recurrent).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * F.elu(g)
            h = torch.sigmoid(o) * F.elu(c)
            found.append(h)
        return torch.stack(found, dim=1)


class Both(nn.Module):
    """[B, T, I] -> [B, T, 2H]: forward and backward."""

    def __init__(self, inputs: int, units: int, activation: str) -> None:
        super().__init__()
        self.ahead = LSTM(inputs, units, activation)
        self.backward_ = LSTM(inputs, units, activation, back=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.ahead(x), self.backward_(x)], dim=2)


class CharacterLSTM(nn.Module):
    """[B, 50] places in the alphabet -> [B, 2] logits; column 0 is "vulnerable".

    units       H of all three layers
    activation  of the first two layers, "elu" or "tanh"
    dropout     of the second layer's inputs in training: the same ones at all letters
    """

    def __init__(self, units: int = 120, activation: str = "elu", dropout: float = 0.25) -> None:
        super().__init__()
        self.units, self.dropout = units, dropout
        self.first = LSTM(len(ALPHABET), units, activation)
        self.second = Both(units, units, activation)
        self.third = Both(2 * units, units, "tanh")
        self.head = nn.Linear(2 * units, 2)

    def forward(self, places: Tensor) -> Tensor:
        x = F.one_hot(places, len(ALPHABET)).to(self.head.weight.dtype)
        x = self.first(x)
        if self.training and self.dropout:
            x = x * F.dropout(x.new_ones(len(x), 1, self.units), self.dropout)
        x = self.third(self.second(x))
        last = torch.cat([x[:, -1, : self.units], x[:, 0, self.units :]], dim=1)
        logits: Tensor = self.head(last)
        return logits


def probabilities(logits: Tensor, output: str) -> Tensor:
    """[B, 2] -> [B, 2]: "softmax" over the two classes, or a "sigmoid" for each."""
    return logits.softmax(1) if output == "softmax" else logits.sigmoid()


@torch.no_grad()
def vulnerability(network: CharacterLSTM, places: Tensor, output: str = "softmax") -> Tensor:
    """[N, 50] -> [N] probability of class 0, in blocks."""
    device = network.head.weight.device
    found = [
        probabilities(network(block.to(device)), output)[:, 0].cpu()
        for block in places.split(BLOCK)
    ]
    return torch.cat(found) if found else torch.zeros(0)


def word_scores(
    network: CharacterLSTM, words: Sequence[str], output: str = "softmax"
) -> list[float]:
    """Of each word the largest probability over all places it can have among blanks.

    >>> len(word_scores(CharacterLSTM(units=4).eval(), ["read", "copy", "x"]))
    3
    """
    shifted = [" " * s + word for word in words for s in range(LONGEST - len(word) or 1)]
    owner = torch.tensor([i for i, word in enumerate(words)
                          for _ in range(LONGEST - len(word) or 1)])
    best = torch.zeros(len(words))
    for start in range(0, len(shifted), BLOCK):
        part = slice(start, start + BLOCK)
        found = vulnerability(network, encode(shifted[part]), output)
        best.scatter_reduce_(0, owner[part], found.float(), "amax")
    scores: list[float] = best.tolist()
    return scores
