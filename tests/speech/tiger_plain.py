"""TIGER once more, straight from its equations: band by band, head by head, channels first.

Works on tensors under the names and in the shapes of the published weights, in double precision.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def weights(
    widths: tuple[int, ...], channels: int, hidden: int, depth: int, sources: int, heads: int = 4,
    width: int = 4, seed: int = 0,
) -> Weights:
    """Random tensors of one network, as the authors name and shape them."""
    generator = torch.Generator().manual_seed(seed)
    found: Weights = {}

    def draw(name: str, *shape: int, around: float = 0.0, spread: float = 0.3) -> None:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        found[name] = around + spread * values

    def convolution(name: str, *shape: int, bias: bool = True) -> None:
        inputs = shape[1:].numel() if isinstance(shape, torch.Size) else 1
        for size in shape[1:]:
            inputs *= size
        draw(f"{name}.weight", *shape, spread=inputs**-0.5)
        if bias:
            draw(f"{name}.bias", shape[0])

    def norm(name: str, size: int) -> None:
        draw(f"{name}.weight", size, around=1.0)
        draw(f"{name}.bias", size)

    def full_norm(name: str, size: int) -> None:
        draw(f"{name}.gamma", 1, size, 1, 1, around=1.0)
        draw(f"{name}.beta", 1, size, 1, 1)

    def slope(name: str) -> None:
        draw(name, 1, around=0.25, spread=0.1)

    for i, w in enumerate(widths):
        norm(f"BN.{i}.0", 2 * w)
        convolution(f"BN.{i}.1", channels, 2 * w, 1)
        slope(f"mask.{i}.0.weight")
        convolution(f"mask.{i}.1", 4 * w * sources, channels // sources, 1)
    convolution("separator.concat_block.0", channels, 1, 1, 1)
    slope("separator.concat_block.1.weight")
    for path in ("separator.freq_path", "separator.frame_path"):
        at = f"{path}.0."
        convolution(at + "proj_1x1.conv", hidden, channels, 1)
        norm(at + "proj_1x1.norm", hidden)
        slope(at + "proj_1x1.act.weight")
        for d in range(depth):
            convolution(f"{at}spp_dw.{d}.conv", hidden, 1, 5)
            norm(f"{at}spp_dw.{d}.norm", hidden)
        kinds = [(f"loc_glo_fus.{d}", 1) for d in range(depth)]
        kinds += [(f"last_layer.{d}", 5) for d in range(depth - 1)]
        for module, taps in kinds:
            for part in ("local_embedding", "global_embedding", "global_act"):
                convolution(f"{at}{module}.{part}.conv", hidden, 1, taps, bias=False)
                norm(f"{at}{module}.{part}.norm", hidden)
        for layer in ("fc1", "fc2"):
            convolution(f"{at}globalatt.{layer}.conv", hidden, hidden, 1, bias=False)
            norm(f"{at}globalatt.{layer}.norm", hidden)
        convolution(f"{at}globalatt.dwconv", hidden, 1, 5)
        convolution(f"{at}res_conv", channels, hidden, 1)
        for head in range(heads):
            for kind, size in (("Queries", width), ("Keys", width), ("Values", channels // heads)):
                convolution(f"{path}.1.{kind}.{head}.conv", size, channels, 1, 1)
                slope(f"{path}.1.{kind}.{head}.act.weight")
                full_norm(f"{path}.1.{kind}.{head}.norm", size)
        convolution(f"{path}.1.attn_concat_proj.conv", channels, channels, 1, 1)
        slope(f"{path}.1.attn_concat_proj.act.weight")
        full_norm(f"{path}.1.attn_concat_proj.norm", channels)
        full_norm(f"{path}.2", channels)
    return found


def separate(
    w: Weights, x: Tensor, widths: tuple[int, ...], sources: int, iterations: int, depth: int,
    n_fft: int, hop: int, heads: int = 4, legacy: bool = True,
) -> Tensor:
    """x [B, L] -> y [B, K, L]."""
    window = torch.hann_window(n_fft, dtype=torch.float64)
    spectrum = torch.stft(x.double(), n_fft, hop, window=window, return_complex=True)
    bands = spectrum.split(list(widths), 1)
    features = []
    for i, band in enumerate(bands):
        stacked = torch.cat([band.real, band.imag], 1)
        normed = F.group_norm(
            stacked, 1, w[f"BN.{i}.0.weight"], w[f"BN.{i}.0.bias"], torch.finfo(torch.float32).eps
        )
        features.append(F.conv1d(normed, w[f"BN.{i}.1.weight"], w[f"BN.{i}.1.bias"]))
    first = torch.stack(features, 2)  # [B, N, n, T]
    y = _interleave(w, first, heads, depth, legacy)
    for _ in range(iterations - 1):
        mixed = F.conv2d(
            first + y, w["separator.concat_block.0.weight"], w["separator.concat_block.0.bias"],
            groups=first.shape[1],
        )
        mixed = F.prelu(mixed, w["separator.concat_block.1.weight"])
        y = _interleave(w, mixed, heads, depth, legacy)
    estimates = []
    for i, band in enumerate(bands):
        out = F.conv1d(
            F.prelu(y[:, :, i], w[f"mask.{i}.0.weight"]), w[f"mask.{i}.1.weight"],
            w[f"mask.{i}.1.bias"], groups=sources,
        )
        value, gate = out.view(len(x), 2, 2, sources, widths[i], -1).unbind(1)
        real, imaginary = (value * gate.sigmoid()).unbind(1)  # [B, K, w, T]
        real = real - (real.sum(1, keepdim=True) - 1) / sources
        imaginary = imaginary - imaginary.sum(1, keepdim=True) / sources
        estimates.append(band[:, None] * (real + 1j * imaginary))
    found = torch.cat(estimates, 2).flatten(0, 1)
    return torch.istft(found, n_fft, hop, window=window, length=x.shape[-1]).view(
        len(x), sources, -1
    )


def _interleave(w: Weights, x: Tensor, heads: int, depth: int, legacy: bool) -> Tensor:
    """x [B, N, n, T] -> the same: bands of each frame, then frames of each band."""
    for path, turn in (("freq_path", True), ("frame_path", False)):
        at = f"separator.{path}"
        y = x.transpose(2, 3) if turn else x  # the sequence is the last axis
        rows = [
            torch.stack([_scales(w, f"{at}.0.", item[:, a], depth, legacy)
                         for a in range(item.shape[1])], 1)
            for item in y
        ]
        y = torch.stack(rows)
        y = _attend(w, f"{at}.1.", y, heads)
        y = _layer_norm(y, w[f"{at}.2.gamma"], w[f"{at}.2.beta"])
        x = x + (y.transpose(2, 3) if turn else y)
    return x


def _global(w: Weights, name: str, x: Tensor) -> Tensor:
    """gLN of one sequence [C, S]."""
    normed = (x - x.mean()) / (x.var(correction=0) + 1e-8).sqrt()
    return normed * w[f"{name}.weight"][:, None] + w[f"{name}.bias"][:, None]


def _filtered(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Depthwise convolution and gLN of one sequence [C, S]."""
    taps = w[f"{name}.conv.weight"]
    y = F.conv1d(
        x[None], taps, w.get(f"{name}.conv.bias"), stride, taps.shape[-1] // 2, groups=len(x)
    )[0]
    return _global(w, f"{name}.norm", y)


def _fused(w: Weights, name: str, local: Tensor, other: Tensor) -> Tensor:
    positions = [i * other.shape[1] // local.shape[1] for i in range(local.shape[1])]
    gate = _filtered(w, f"{name}.global_act", other).sigmoid()[:, positions]
    added = _filtered(w, f"{name}.global_embedding", other)[:, positions]
    return _filtered(w, f"{name}.local_embedding", local) * gate + added


def _scales(w: Weights, at: str, x: Tensor, depth: int, legacy: bool) -> Tensor:
    """MSA of one sequence [N, S]."""
    p = w[at + "proj_1x1.conv.weight"][..., 0] @ x + w[at + "proj_1x1.conv.bias"][:, None]
    p = F.prelu(_global(w, at + "proj_1x1.norm", p)[None], w[at + "proj_1x1.act.weight"])[0]
    scales = [_filtered(w, f"{at}spp_dw.0", p)]
    for d in range(1, depth):
        scales.append(_filtered(w, f"{at}spp_dw.{d}", scales[-1], stride=2))
    g = sum(F.adaptive_avg_pool1d(o[None], scales[-1].shape[1])[0] for o in scales)
    g = _global(w, at + "globalatt.fc1.norm", w[at + "globalatt.fc1.conv.weight"][..., 0] @ g)
    g = F.conv1d(
        g[None], w[at + "globalatt.dwconv.weight"], w[at + "globalatt.dwconv.bias"], padding=2,
        groups=len(g),
    )[0].relu()
    g = _global(w, at + "globalatt.fc2.norm", w[at + "globalatt.fc2.conv.weight"][..., 0] @ g)
    fused = [_fused(w, f"{at}loc_glo_fus.{d}", o, g) for d, o in enumerate(scales)]
    e = fused[depth - 3] if legacy else fused[depth - 1]
    for d in range(depth - 2, -1, -1):
        e = _fused(w, f"{at}last_layer.{d}", fused[d], e)
    return x + w[at + "res_conv.weight"][..., 0] @ e + w[at + "res_conv.bias"][:, None]


def _layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Over the channels of [B, C, A, S]."""
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * gain + bias


def _project(w: Weights, name: str, x: Tensor) -> Tensor:
    y = F.conv2d(x, w[f"{name}.conv.weight"], w[f"{name}.conv.bias"])
    y = F.prelu(y, w[f"{name}.act.weight"])
    return _layer_norm(y, w[f"{name}.norm.gamma"], w[f"{name}.norm.beta"])


def _attend(w: Weights, at: str, x: Tensor, heads: int) -> Tensor:
    """F3A of [B, N, A, S]: the S positions attend to each other over all A."""
    found = []
    for h in range(heads):
        q, k, v = (_project(w, f"{at}{kind}.{h}", x) for kind in ("Queries", "Keys", "Values"))
        scores = torch.einsum("beas,beat->bst", q, k) / (q.shape[1] * q.shape[2]) ** 0.5
        found.append(torch.einsum("bst,beat->beas", scores.softmax(-1), v))
    return x + _project(w, at + "attn_concat_proj", torch.cat(found, 1))
