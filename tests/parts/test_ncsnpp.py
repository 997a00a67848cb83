"""NCSN++ against a second, plain formulation: zeros inserted, softmax written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.ncsnpp import NCSNpp, ResBlock

COUNTS = [
    ({}, 65_590_822, 128),
    ({"bins": 768, "attention": (), "pyramids": False, "divide": "after"}, 64_739_854, 128),
    ({"bins": 64, "width": 24, "multipliers": (1, 2, 2, 2), "blocks": 1}, 1_007_594, 24),
    ({"bins": 64, "width": 16, "multipliers": (1, 2, 2), "blocks": 1}, 321_718, 16),
]


@pytest.mark.parametrize(("settings", "total", "frozen"), COUNTS)
def test_the_published_counts(settings, total, frozen):
    with torch.device("meta"):
        parameters = list(NCSNpp(**settings).parameters())
    assert sum(p.numel() for p in parameters) == total
    assert sum(p.numel() for p in parameters if not p.requires_grad) == frozen


# ---- the plain formulation -------------------------------------------------------------------


def zero_inserted(x: Tensor, up: int, down: int) -> Tensor:
    """StyleGAN's way: insert zeros, pad, filter with the outer product of [1, 3, 3, 1], drop."""
    batch, channels, height, width = x.shape
    wide = x.new_zeros(batch, channels, height * up, width * up)
    wide[:, :, ::up, ::up] = x
    # p0 + p1 = 4 - factor more, so that the sizes come out: (2, 1) up, (1, 1) down.
    pads = (2, 1, 2, 1) if up > 1 else (1, 1, 1, 1)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2 * up**2
    flat = F.pad(wide, pads).flatten(0, 1)[:, None]
    found = F.conv2d(flat, kernel.flip(0, 1)[None, None])[..., ::down, ::down]
    return found.reshape(batch, channels, *found.shape[-2:])


class Plain:
    """The same network from its state, as the formulas are read."""

    def __init__(self, network: NCSNpp) -> None:
        self.state = network.state_dict()
        self.network = network
        blocks = [name for name, m in network.named_modules() if isinstance(m, ResBlock)]
        self.rows, start = {}, 0
        for name in blocks:
            size = self.state[f"{name}.conv1.bias"].numel()
            self.rows[name] = slice(start, start + size)
            start += size

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        groups = x.reshape(batch, min(channels // 4, 32), -1)
        centred = groups - groups.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        weight, bias = (self.state[f"{name}.{k}"][:, None, None] for k in ("weight", "bias"))
        return scaled.reshape(batch, channels, height, width) * weight + bias

    def swish(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def block(self, name: str, x: Tensor, temb: Tensor | None) -> Tensor:
        how = self.network.get_submodule(name).resample
        change = {"down": (1, 2), "up": (2, 1)}.get(how)
        h = self.swish(self.norm(f"{name}.norm1", x))
        if change:
            h, x = zero_inserted(h, *change), zero_inserted(x, *change)
        h = self.conv(f"{name}.conv1", h)
        if temb is not None:
            weight = self.state["shifts.weight"][self.rows[name]]
            bias = self.state["shifts.bias"][self.rows[name]]
            h = h + (self.swish(temb) @ weight.T + bias)[:, :, None, None]
        h = self.conv(f"{name}.conv2", self.swish(self.norm(f"{name}.norm2", h)))
        if f"{name}.shortcut.weight" in self.state:
            x = self.conv(f"{name}.shortcut", x)
        return (x + h) / math.sqrt(2)

    def attention(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.norm", x)
        channels = x.shape[1]
        weights = self.state[f"{name}.qkv.weight"].split(channels)
        biases = self.state[f"{name}.qkv.bias"].split(channels)
        q, k, v = (
            torch.einsum("oc,bchw->bohw", w, h) + b[:, None, None]
            for w, b in zip(weights, biases, strict=True)
        )
        scores = torch.einsum("bchw,bcij->bhwij", q, k) / math.sqrt(channels)
        shares = scores.flatten(3).softmax(-1).reshape(scores.shape)
        h = torch.einsum("bhwij,bcij->bchw", shares, v)
        out = torch.einsum("oc,bchw->bohw", self.state[f"{name}.out.weight"], h)
        return (x + out + self.state[f"{name}.out.bias"][:, None, None]) / math.sqrt(2)

    def embedding(self, t: Tensor) -> Tensor:
        angle = 2 * math.pi * self.state["time.frequencies"] * torch.log(t)[:, None]
        e = torch.cat([torch.sin(angle), torch.cos(angle)], -1)
        e = e @ self.state["time.inner.weight"].T + self.state["time.inner.bias"]
        return self.swish(e) @ self.state["time.outer.weight"].T + self.state["time.outer.bias"]

    def head(self, name: str, h: Tensor) -> Tensor:
        return self.conv(f"{name}.conv", self.swish(self.norm(f"{name}.norm", h)))

    def __call__(self, x: Tensor, t: Tensor | None) -> Tensor:
        net, temb = self.network, None if t is None else self.embedding(t)
        pyramid, h = x, self.conv("first", x)
        skips = [h]
        for i, level in enumerate(net.down):
            for j in range(len(level.blocks)):
                h = self.block(f"down.{i}.blocks.{j}", h, temb)
                if len(level.attend):
                    h = self.attention(f"down.{i}.attend.{j}", h)
                skips.append(h)
            if i < len(net.down) - 1:
                h = self.block(f"down.{i}.resample", h, temb)
                if f"down.{i}.merge.weight" in self.state:
                    pyramid = zero_inserted(pyramid, 1, 2)
                    h = h + self.conv(f"down.{i}.merge", pyramid)
                skips.append(h)
        h = self.block("middle.0", h, temb)
        h = self.block("middle.2", self.attention("middle.1", h), temb)
        out = None
        for i, level in enumerate(net.up):
            for j in range(len(level.blocks)):
                h = self.block(f"up.{i}.blocks.{j}", torch.cat([h, skips.pop()], 1), temb)
            if len(level.attend):
                h = self.attention(f"up.{i}.attend.0", h)
            if f"up.{i}.head.norm.weight" in self.state:
                new = self.head(f"up.{i}.head", h)
                out = new if out is None else zero_inserted(out, 2, 1) + new
            if i < len(net.up) - 1:
                h = self.block(f"up.{i}.resample", h, temb)
        out = self.head("last", h) if out is None else out
        if t is None or net.divide == "never":
            return self.conv("output", out)
        by = t[:, None, None, None]
        return self.conv("output", out / by) if net.divide == "before" else (
            self.conv("output", out) / by
        )


def drawn(**settings) -> NCSNpp:
    """A network whose every weight says something, those that start at nothing included."""
    torch.manual_seed(0)
    network = NCSNpp(**settings)
    with torch.no_grad():
        for p in network.parameters():
            if p.abs().max() < 1e-3 or bool((p == 1).all()):
                p.add_(0.1 * torch.randn_like(p))
    return network.double()


SMALL = {"bins": 32, "width": 8, "multipliers": (1, 2, 2), "blocks": 2, "attention": (16,)}


@pytest.mark.parametrize("settings", [
    SMALL,
    SMALL | {"pyramids": False, "attention": (), "divide": "after"},
    SMALL | {"divide": "never", "attention": (32, 8)},
    SMALL | {"timed": False, "in_channels": 2},
])
def test_against_the_plain_formulation(settings):
    network = drawn(**settings)
    channels = settings.get("in_channels", 4)
    x = torch.randn(2, channels, 32, 12, dtype=torch.float64)
    t = None if settings.get("timed") is False else torch.tensor([0.05, 0.8]).double()
    with torch.no_grad():
        found, expected = network(x, t), Plain(network)(x, t)
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_in_single_precision():
    network = drawn(bins=64, width=16, multipliers=(1, 2, 2), blocks=1).float()
    x, t = torch.randn(1, 4, 64, 16), torch.tensor([0.5])
    with torch.no_grad():
        found, expected = network(x, t), Plain(network)(x, t)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ---- shapes, weights, errors -------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 15])
def test_any_number_of_frames(frames):
    """Zeros to the right, to a multiple of 4, and cut: the same as padding by hand."""
    network = drawn(**SMALL)
    x, t = torch.randn(1, 4, 32, frames).double(), torch.tensor([0.3]).double()
    with torch.no_grad():
        found = network(x, t)
        by_hand = network(F.pad(x, (0, -frames % 4)), t)
    assert found.shape == (1, 2, 32, frames)
    torch.testing.assert_close(found, by_hand[..., :frames])


def test_items_of_a_batch_do_not_see_each_other():
    network = drawn(**SMALL)
    x, t = torch.randn(3, 4, 32, 8).double(), torch.tensor([0.1, 0.5, 0.9]).double()
    with torch.no_grad():
        apart = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(network(x, t), apart)


def test_weights_start_as_stated():
    """Uniform with variance 1 / fan_avg; the last of each residual at nothing; biases at zero."""
    torch.manual_seed(0)
    network = NCSNpp(bins=64, width=32, multipliers=(1, 2), blocks=1)
    block = network.down[0].resample
    fan = 9 * 32
    network.requires_grad_(False)
    assert float(block.conv1.weight.var()) == pytest.approx(1 / fan, rel=0.1)
    assert float(block.conv1.weight.abs().max()) <= math.sqrt(3 / fan)
    assert float(block.conv2.weight.abs().max()) < 1e-4
    rows = network.shifts.weight[: network.sizes[0]]
    assert float(rows.var()) == pytest.approx(1 / ((128 + 32) / 2), rel=0.1)
    for name, p in network.named_parameters():
        if name.endswith("bias") and name != "output.bias":
            assert not p.any(), name
    assert float(network.time.frequencies.std()) == pytest.approx(16, rel=0.4)


@pytest.mark.parametrize(("settings", "what"), [
    ({"bins": 33}, "33 bins"), ({"width": 3}, "3 channels"), ({"blocks": 0}, "blocks 0"),
    ({"multipliers": ()}, "multipliers"), ({"width": 36, "multipliers": (4, 4)}, "channels in 32"),
])
def test_sizes_that_do_not_fit(settings, what):
    with pytest.raises(ConfigError, match=what):
        NCSNpp(**(SMALL | settings))


def test_inputs_that_do_not_fit():
    network = NCSNpp(**SMALL)
    t = torch.ones(1)
    for x in (torch.zeros(1, 4, 31, 8), torch.zeros(1, 3, 32, 8), torch.zeros(1, 4, 32, 0)):
        with pytest.raises(DataError, match="a spectrogram of shape"):
            network(x, t)
    with pytest.raises(DataError, match="a time is missing"):
        network(torch.zeros(1, 4, 32, 8))
    with pytest.raises(DataError, match=r"times of shape \(2,\)"):
        network(torch.zeros(1, 4, 32, 8), torch.ones(2))
    with pytest.raises(DataError, match="a time was given"):
        NCSNpp(**SMALL, timed=False)(torch.zeros(1, 4, 32, 8), t)
