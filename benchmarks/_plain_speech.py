"""Speech networks as they are usually written, to be timed beside ours with the same weights.

plain_tiger      channels first, one layer for each band and for each head of the attention
four_products    complex layers by four real ones, the norm as a layer of its own
zeros_inserted   FIR resampling by zeros and one channel at a time, attention by two einsums
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.parts import complex_layers, ncsnpp
from passband.speech.frcrn import layers

Weights = Mapping[str, Tensor]


# ---- TIGER -----------------------------------------------------------------------------------


def plain_tiger(
    w: Weights, x: Tensor, widths: Sequence[int], *, sources: int, iterations: int, depth: int,
    n_fft: int, hop: int, heads: int = 4,
) -> Tensor:
    """x [B, L] -> y [B, K, L]; tensors under their published names and shapes."""
    window = torch.hann_window(n_fft)
    bands = torch.stft(x, n_fft, hop, window=window, return_complex=True).split(list(widths), 1)
    features = []
    for i, band in enumerate(bands):
        y = torch.cat([band.real, band.imag], 1)
        y = F.group_norm(y, 1, w[f"BN.{i}.0.weight"], w[f"BN.{i}.0.bias"], 1.1920929e-07)
        features.append(F.conv1d(y, w[f"BN.{i}.1.weight"], w[f"BN.{i}.1.bias"]))
    first = torch.stack(features, 2)  # [B, N, n, T]
    y = _interleaved(w, first, heads, depth)
    at = "separator.concat_block"
    for _ in range(iterations - 1):
        y = F.conv2d(first + y, w[f"{at}.0.weight"], w[f"{at}.0.bias"], groups=first.shape[1])
        y = _interleaved(w, F.prelu(y, w[f"{at}.1.weight"]), heads, depth)
    found = []
    for i, band in enumerate(bands):
        z = F.prelu(y[:, :, i], w[f"mask.{i}.0.weight"])
        z = F.conv1d(z, w[f"mask.{i}.1.weight"], w[f"mask.{i}.1.bias"], groups=sources)
        value, gate = z.view(len(x), 2, 2, sources, widths[i], -1).unbind(1)
        real, imaginary = (value * gate.sigmoid()).unbind(1)
        real = real - (real.sum(1, keepdim=True) - 1) / sources
        imaginary = imaginary - imaginary.sum(1, keepdim=True) / sources
        found.append(band[:, None] * torch.complex(real, imaginary))
    waves = torch.cat(found, 2).flatten(0, 1)
    waves = torch.istft(waves, n_fft, hop, window=window, length=x.shape[-1])
    return waves.view(len(x), sources, -1)


def _interleaved(w: Weights, x: Tensor, heads: int, depth: int) -> Tensor:
    for path, turned in (("freq_path", True), ("frame_path", False)):
        at = f"separator.{path}"
        y = x.transpose(2, 3) if turned else x  # [B, N, A, S]
        batch, channels, others, length = y.shape
        rows = y.permute(0, 2, 1, 3).reshape(batch * others, channels, length)
        y = _scales(w, f"{at}.0.", rows, depth)
        y = y.view(batch, others, channels, length).permute(0, 2, 1, 3)
        y = _attended(w, f"{at}.1.", y, heads)
        y = _channel_norm(y, w[f"{at}.2.gamma"], w[f"{at}.2.beta"])
        x = x + (y.transpose(2, 3) if turned else y)
    return x


def _layer(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Convolution and norm of [M, C, S]; depthwise where the weight says so."""
    weight = w[f"{name}.conv.weight"]
    groups = x.shape[1] // weight.shape[1]
    y = F.conv1d(
        x, weight, w.get(f"{name}.conv.bias"), stride, weight.shape[-1] // 2, groups=groups
    )
    return F.group_norm(y, 1, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"], 1e-8)


def _fused(w: Weights, name: str, local: Tensor, other: Tensor) -> Tensor:
    size = local.shape[-1]
    gate = F.interpolate(_layer(w, f"{name}.global_act", other).sigmoid(), size=size)
    added = F.interpolate(_layer(w, f"{name}.global_embedding", other), size=size)
    return _layer(w, f"{name}.local_embedding", local) * gate + added


def _scales(w: Weights, at: str, x: Tensor, depth: int) -> Tensor:
    p = F.prelu(_layer(w, at + "proj_1x1", x), w[at + "proj_1x1.act.weight"])
    scales = [_layer(w, f"{at}spp_dw.0", p)]
    for d in range(1, depth):
        scales.append(_layer(w, f"{at}spp_dw.{d}", scales[-1], stride=2))
    g = sum(F.adaptive_avg_pool1d(o, scales[-1].shape[-1]) for o in scales)
    g = _layer(w, at + "globalatt.fc1", g)
    taps, bias = w[at + "globalatt.dwconv.weight"], w[at + "globalatt.dwconv.bias"]
    g = _layer(w, at + "globalatt.fc2", F.conv1d(g, taps, bias, 1, 2, groups=g.shape[1]).relu())
    fused = [_fused(w, f"{at}loc_glo_fus.{d}", o, g) for d, o in enumerate(scales)]
    e = fused[depth - 3]
    for d in range(depth - 2, -1, -1):
        e = _fused(w, f"{at}last_layer.{d}", fused[d], e)
    return x + F.conv1d(e, w[at + "res_conv.weight"], w[at + "res_conv.bias"])


def _channel_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * gain + bias


def _projected(w: Weights, name: str, x: Tensor) -> Tensor:
    y = F.conv2d(x, w[f"{name}.conv.weight"], w[f"{name}.conv.bias"])
    y = F.prelu(y, w[f"{name}.act.weight"])
    return _channel_norm(y, w[f"{name}.norm.gamma"], w[f"{name}.norm.beta"])


def _attended(w: Weights, at: str, x: Tensor, heads: int) -> Tensor:
    found = []
    for h in range(heads):
        q, k, v = (
            _projected(w, f"{at}{kind}.{h}", x).permute(0, 3, 1, 2).flatten(2)
            for kind in ("Queries", "Keys", "Values")
        )
        y = ((q @ k.transpose(1, 2)) / q.shape[2] ** 0.5).softmax(-1) @ v
        found.append(y.view(len(x), x.shape[3], -1, x.shape[2]).permute(0, 2, 3, 1))
    return x + _projected(w, at + "attn_concat_proj", torch.cat(found, 1))


# ---- FRCRN -----------------------------------------------------------------------------------


@contextmanager
def four_products() -> Iterator[None]:
    """Complex layers as (A zr - B zi) + i (A zi + B zr)."""

    def forward(self: complex_layers._ComplexLayer, z: Tensor) -> Tensor:
        real, imaginary = self.real, self.imaginary

        def by(layer: torch.nn.Module, x: Tensor) -> Tensor:
            return self.product(x, layer.weight, layer.bias)

        return torch.stack([
            by(real, z[0]) - by(imaginary, z[1]), by(real, z[1]) + by(imaginary, z[0])
        ])

    def activated(self: layers.Step, z: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(z)))

    with (
        patch.object(complex_layers._ComplexLayer, "forward", forward),
        patch.object(layers.Step, "activated", activated),
    ):
        yield


# ---- NCSN++ ----------------------------------------------------------------------------------


def _filtered(x: Tensor, gain: float) -> Tensor:
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) * (gain / 8)
    return F.conv2d(x, torch.outer(row, row)[None, None])


def _down(x: Tensor) -> Tensor:
    flat = F.pad(x.reshape(-1, 1, *x.shape[2:]), (1, 1, 1, 1))
    y = _filtered(flat, 1.0)[:, :, ::2, ::2]
    return y.reshape(*x.shape[:2], *y.shape[2:])


def _up(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    flat = x.reshape(-1, height, 1, width, 1)
    flat = F.pad(flat, (0, 1, 0, 0, 0, 1)).reshape(-1, 1, 2 * height, 2 * width)
    y = _filtered(F.pad(flat, (2, 1, 2, 1)), 2.0)
    return y.reshape(*x.shape[:2], 2 * height, 2 * width)


def _attention(self: ncsnpp.Attention, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    h = self.norm(x).permute(0, 2, 3, 1)
    q, k, v = self.qkv(h).permute(0, 3, 1, 2).chunk(3, dim=1)
    scores = torch.einsum("bchw,bcij->bhwij", q, k) * channels**-0.5
    weights = scores.reshape(batch, height, width, -1).softmax(-1).view(scores.shape)
    y = torch.einsum("bhwij,bcij->bchw", weights, v)
    return (x + self.out(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)) * 0.5**0.5


@contextmanager
def zeros_inserted() -> Iterator[None]:
    with (
        patch.object(ncsnpp, "fir_down", _down), patch.object(ncsnpp, "fir_up", _up),
        patch.object(ncsnpp.Attention, "forward", _attention),
    ):
        yield
