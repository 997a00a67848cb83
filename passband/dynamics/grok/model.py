"""A two-layer network on pairs of residues (Doshi, Das, He, Gromov, arXiv 2310.13061).

    f(m, n) = W phi(U e_m + V e_n)          phi(x) = x^2, no biases
    loss    = mean over pairs and classes of (f - one-hot)^2
    init    all weights normal, std 0.5 / (2 N)^(1/3)

The first layer of one-hot inputs is two look-ups: h = U[:, m] + V[:, n]. Weights are kept with the
neurons last ([p, N], [N, C]), so that a look-up copies a row; `layers()` gives them as the paper
writes them. Full-batch AdamW with lr 0.01, betas (0.9, 0.98) and a large decoupled weight decay is
the paper's training; see `system.py` and `sweep.py` for it.

Letters: p residues, N neurons, C classes, B pairs.

>>> model = QuadraticMLP(97, 500)
>>> model(torch.tensor([[3, 5], [96, 1]])).shape
torch.Size([2, 97])
>>> sum(weight.numel() for weight in model.parameters())
145500
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passband.errors import ConfigError, DataError, PassbandWarning

Activation = Literal["square", "relu"]
Norm = Literal["none", "bn", "ln"]


def square(x: Tensor) -> Tensor:
    return x * x


ACTIVATIONS = {"square": square, "relu": torch.relu}


@dataclass(frozen=True)
class Layers:
    """A two-layer network on pairs as the paper writes it; the measurements take nothing more.

    u, v  [N, p] weights of the first and the second residue
    w     [C, N] weights of the outputs
    gain  [N] factor of each neuron after normalisation; None without
    """

    u: Tensor
    v: Tensor
    w: Tensor
    gain: Tensor | None = None

    @staticmethod
    def of(w_in: Tensor, w_out: Tensor) -> Layers:
        """Of any two-layer model on concatenated one-hots.

        >>> net = nn.Sequential(nn.Linear(22, 50), nn.ReLU(), nn.Linear(50, 11))
        >>> Layers.of(net[0].weight, net[2].weight).v.shape
        torch.Size([50, 11])

        w_in   [N, 2 p]
        w_out  [C, N]
        """
        if w_in.dim() != 2 or w_out.dim() != 2 or w_in.shape[1] % 2:
            raise DataError(
                f"weights of shape {list(w_in.shape)} and {list(w_out.shape)}",
                expected="[N, 2 p] and [C, N]",
            )
        if w_in.shape[0] != w_out.shape[1]:
            raise DataError(
                f"{w_in.shape[0]} neurons in, {w_out.shape[1]} out", expected="the same number",
                mend="give the weights as torch.nn.Linear keeps them: [out, in]",
            )
        p = w_in.shape[1] // 2
        return Layers(w_in.detach()[:, :p], w_in.detach()[:, p:], w_out.detach())


class QuadraticMLP(nn.Module):
    """[B, 2] pairs of residues -> [B, C] scores of classes.

    >>> model = QuadraticMLP(31, 64, dropout=0.3, norm="bn")
    >>> model.eval()(torch.tensor([[30, 2]])).shape
    torch.Size([1, 31])

    act       "square" (the paper's) or "relu"
    dropout   of the input of the activation, in [0, 1)
    norm      "bn" or "ln", between the activation and the output weights
    classes   default: p
    std       of the initial weights; default 0.5 / (2 N)^(1/3)
    momentum  of the running averages of "bn"; None: see `BatchNorm`
    """

    def __init__(
        self, p: int, neurons: int = 500, act: Activation = "square", *, dropout: float = 0.0,
        norm: Norm = "none", classes: int | None = None, std: float | None = None,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ConfigError(f"act = {act!r}", expected=f"one of {', '.join(ACTIVATIONS)}")
        if norm not in ("none", "bn", "ln"):
            raise ConfigError(f"norm = {norm!r}", expected="none, bn or ln")
        classes = p if classes is None else classes
        std = 0.5 / (2 * neurons) ** (1 / 3) if std is None else std
        self.p, self.act = p, act
        self.u = nn.Parameter(torch.randn(p, neurons) * std)
        self.v = nn.Parameter(torch.randn(p, neurons) * std)
        self.w = nn.Parameter(torch.randn(neurons, classes) * std)
        self.dropout = nn.Dropout(dropout)
        self.norm = {
            "none": nn.Identity, "bn": partial(BatchNorm, momentum=momentum), "ln": nn.LayerNorm,
        }[norm](neurons)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.norm(self.activations(self.dropout(self.inputs(pairs)))) @ self.w

    def inputs(self, pairs: Tensor) -> Tensor:
        """What the neurons get, [B, N]."""
        m, n = pairs.unbind(-1)
        return F.embedding(m, self.u) + F.embedding(n, self.v)

    def activations(self, inputs: Tensor) -> Tensor:
        return ACTIVATIONS[self.act](inputs)

    def layers(self) -> Layers:
        """The weights as the paper writes them, detached."""
        gain = getattr(self.norm, "weight", None)
        return Layers(
            self.u.detach().T, self.v.detach().T, self.w.detach().T,
            None if gain is None else gain.detach(),
        )

    @torch.no_grad()
    def calibrate(self, pairs: Tensor) -> None:
        """Batch normalisation's statistics over these pairs, in place of running averages."""
        if isinstance(self.norm, BatchNorm):
            hidden = self.activations(self.inputs(pairs))
            self.norm.mean.copy_(hidden.mean(0))
            self.norm.var.copy_(hidden.var(0, unbiased=False))


class BatchNorm(nn.Module):
    """Batch normalisation whose running averages can be left out, for `vmap` over seeds.

    >>> norm = BatchNorm(8)
    >>> bool(norm(torch.randn(32, 8)).mean(0).abs().max() < 1e-6)
    True

    momentum  of the running averages; None: they stay as they are until `calibrate` sets them
    """

    def __init__(self, features: int, momentum: float | None = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        if self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
            if self.momentum is not None:
                self.mean.lerp_(mean.detach(), self.momentum)
                self.var.lerp_(x.detach().var(0), self.momentum)
        return (x - mean) * ((var + self.eps).rsqrt() * self.weight) + self.bias


def one_hot_mse(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over rows and classes of (scores - one-hot)^2: 1 / C where nothing is predicted.

    >>> round(float(one_hot_mse(torch.zeros(4, 97), torch.tensor([0, 1, 2, 3]))), 4)
    0.0103

    scores   [B, C]
    labels   [B]
    weights  [B] of the rows; default: all the same
    """
    error = scores - torch.zeros_like(scores).scatter(-1, labels[..., None], 1.0)
    rows = error.square().mean(-1)
    return rows.mean() if weights is None else (rows * weights).sum() / weights.sum()


# ---- the solution in closed form -----------------------------------------------------------------


def analytic_weights(
    p: int, neurons: int = 500, seed: int = 0, op: Literal["add", "multiply"] = "add"
) -> QuadraticMLP:
    """A network that knows the whole table, without training (Gromov, arXiv 2301.02679).

        U_kn = cos(2 pi s n/p + a)    V_kn = cos(2 pi s n/p + b)    W_qk = cos(2 pi s q/p + a + b)

    Neuron k has one frequency s, spread evenly over 1..(p-1)/2, and random phases a, b. For
    multiplication modulo a prime the nonzero residues are taken as powers of a primitive root, with
    p - 1 in place of p, and one neuron more answers for zero.

    >>> model = analytic_weights(23, 256)
    >>> pairs = torch.cartesian_prod(torch.arange(23), torch.arange(23))
    >>> float((model(pairs).argmax(1) == pairs.sum(1) % 23).float().mean())
    1.0

    Exact from some 200 neurons at p = 97 on; warns with fewer than two neurons a frequency.
    """
    from passband.data.modular import discrete_log_order

    order = torch.arange(p) if op == "add" else torch.from_numpy(discrete_log_order(p))
    period = len(order)
    frequencies = torch.arange(1, (period - 1) // 2 + 1)
    if not len(frequencies):
        raise ConfigError(f"p = {p} has no frequency", expected="a larger p")
    if neurons < 2 * len(frequencies):
        warnings.warn(
            f"{neurons} neurons for {len(frequencies)} frequencies: the solution is not exact",
            PassbandWarning, stacklevel=2,
        )
    generator = torch.Generator().manual_seed(seed)
    a, b = 2 * torch.pi * (0.5 - torch.rand(2, neurons, generator=generator, dtype=torch.float64))
    s = frequencies[torch.arange(neurons) % len(frequencies)]
    angle = 2 * torch.pi / period * (torch.arange(period)[:, None] * s % period).double()
    spare = int(op == "multiply")
    model = QuadraticMLP(p, neurons + spare, std=0.0)
    with torch.no_grad():
        model.u[order, :neurons] = torch.cos(angle + a).float()
        model.v[order, :neurons] = torch.cos(angle + b).float()
        model.w[:neurons, order] = torch.cos(angle + a + b).float().T
        if spare:  # fires where a factor is zero; the other neurons are of order N there
            model.u[0, -1] = model.v[0, -1] = 1.0
            model.w[-1, 0] = float(neurons)
    return model.eval()
