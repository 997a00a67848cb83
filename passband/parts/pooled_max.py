"""The largest logit of each vocabulary entry over a text's tokens, without keeping the logits.

    m_bv = max(floor, max_i h_bi . W_v + c_v)         i over the real tokens of text b

    h [B, L, d] token states, W [V, d] decoder, c [V] its bias, mask [B, L]  ->  m [B, V]

This is the costly half of learned sparse retrieval: a masked-LM head makes B L V logits of which
the maximum keeps B V. Here the vocabulary is taken in tiles, and of a tile only its maxima and the
positions where they lie are kept: memory grows with B V, not B L V. Backwards, an entry that got a
gradient gives it to the one token it came from, and entries at the floor get none:

    dh[b, i*] += g_bv W_v,     dW_v += g_bv h[b, i*],     dc_v += g_bv

>>> h, W, c = torch.randn(2, 7, 16), torch.randn(50, 16), torch.randn(50)
>>> mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3]).bool()
>>> m = pooled_max(h, W, c, mask)
>>> naive = (h @ W.T + c).masked_fill(~mask[..., None], -torch.inf).amax(1).relu()
>>> m.shape, torch.allclose(m, naive, atol=1e-5)
(torch.Size([2, 50]), True)
>>> weights = log_saturation(m)                             # SPLADE: log(1 + ReLU(max))

Because max commutes with ReLU and log(1 + .), pooling first is exact.

Source: the pooling is that of SPLADE (arXiv 2109.10086); one token of several that tie gets the
whole gradient, as with torch.max.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from passband.errors import DataError

TILE = 1024  # vocabulary entries at a time: a tile of the decoder stays in a core's cache
CHUNK = 1 << 22  # numbers gathered at a time on the way back


def pooled_max(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, *,
    floor: float = 0.0, tile: int = TILE,
) -> Tensor:
    """Maxima of the logits over each text's tokens, no less than `floor`: [B, V].

    hidden  [B, L, d] states of the tokens, after the head's own transform
    weight  [V, d] of the decoder, often the word embedding itself
    bias    [V]
    mask    [B, L], true (or 1) at real tokens; all of them when None
    floor   where no logit is above it the result is `floor` and has no gradient; 0 makes the ReLU
            of SPLADE, `-math.inf` the plain maximum
    tile    vocabulary entries at a time

    A text without any real token gives `floor` everywhere. Under autocast the products are taken
    in its type. Second derivatives are not provided. Raises `DataError` for shapes that don't fit.
    """
    _check(hidden, weight, bias, mask)
    if torch.is_autocast_enabled(hidden.device.type):
        kind = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(kind), weight.to(kind)
        bias = None if bias is None else bias.to(kind)
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (hidden, weight, bias)
    ):
        pooled: Tensor = _PooledMax.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, mask.bool(), floor, tile
        )
        return pooled
    return _forward(hidden, weight, bias, mask.bool(), floor, tile, None)


def log_saturation(pooled: Tensor, times: int = 1) -> Tensor:
    """log(1 + ReLU(x)), applied `times` times: twice in the variant of arXiv 2504.14839.

    >>> [round(v, 3) for v in log_saturation(torch.tensor([-1.0, 0.0, 1.0, 20.0])).tolist()]
    [0.0, 0.0, 0.693, 3.045]
    """
    pooled = pooled.relu()
    for _ in range(times):
        pooled = pooled.log1p()
    return pooled


class _PooledMax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, floor: float,
        tile: int,
    ) -> Tensor:
        # Row b l of the flattened states, per entry; only those above the floor are ever read.
        places = torch.zeros(
            len(hidden), len(weight), dtype=torch.int32, device=hidden.device
        )
        values = _forward(hidden, weight, bias, mask, floor, tile, places)
        ctx.save_for_backward(hidden, weight, values, places)
        ctx.floor, ctx.bias = floor, None if bias is None else bias.dtype
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, values, places = ctx.saved_tensors
        texts, entries = ((gradient != 0) & (values > ctx.floor)).nonzero(as_tuple=True)
        # Sums of many small terms: in float32 at least, whatever the products' type.
        kind = torch.promote_types(hidden.dtype, torch.float32)
        g = gradient[texts, entries].to(kind)
        rows = places[texts, entries].long() + texts * hidden.shape[1]
        states = hidden.flatten(0, 1)
        d_states = torch.zeros_like(states, dtype=kind)
        d_weight = torch.zeros_like(weight, dtype=kind)
        step = max(1, CHUNK // hidden.shape[-1])
        for start in range(0, len(g), step):
            part = slice(start, start + step)
            scale, row, entry = g[part, None], rows[part], entries[part]
            d_states.index_add_(0, row, weight.index_select(0, entry) * scale)
            d_weight.index_add_(0, entry, states.index_select(0, row) * scale)
        d_bias = None
        if ctx.bias is not None:
            d_bias = g.new_zeros(len(weight)).index_add_(0, entries, g)
            d_bias = d_bias.to(ctx.bias)
        d_hidden = d_states.view(hidden.shape).to(hidden.dtype)
        return d_hidden, d_weight.to(weight.dtype), d_bias, None, None, None


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, floor: float, tile: int,
    places: Tensor | None,
) -> Tensor:
    """Maxima [B, V]; where `places` is given, the token each comes from is written there."""
    values = hidden.new_empty(len(hidden), len(weight))
    pieces = list(_pieces(hidden, mask))
    for start in range(0, len(weight), tile):
        columns = slice(start, start + tile)
        rows = weight[columns].mT
        # The bias is the same for all tokens, so it is added to the maxima alone.
        shift = bias[columns] if bias is not None else hidden.new_zeros(())
        for texts, states, padded in pieces:
            if not states.shape[1]:
                values[texts, columns] = floor
                continue
            logits = states @ rows  # [b, l, tile]
            if padded is not None:
                logits.masked_fill_(padded[..., None], -torch.inf)
            if places is None:
                best = logits.amax(1)
            else:
                best, where = _largest(logits, floor - shift)
                places[texts, columns] = where
            values[texts, columns] = (best + shift).clamp_min(floor)
    return values


def _pieces(hidden: Tensor, mask: Tensor) -> list[tuple[slice, Tensor, Tensor | None]]:
    """Texts that are multiplied at a time: slice, states [b, l, d], padding among them.

    On a CPU one text, cut at its last real token: no product is spent on padding and the logits of
    a tile stay in the cache. Elsewhere all of them, since launches are what costs there.
    """
    if hidden.device.type != "cpu":
        return [(slice(None), hidden, ~mask)]
    length = mask.shape[1]
    ends = (length - mask.flip(1).int().argmax(1)) * mask.any(1)
    holes = mask.sum(1) < ends
    return [
        (slice(b, b + 1), hidden[b : b + 1, :end], ~mask[b : b + 1, :end] if hole else None)
        for b, (end, hole) in enumerate(zip(ends.tolist(), holes.tolist(), strict=True))
    ]


def _largest(logits: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima over axis 1 and where they lie; of those up to `least` the place is not looked for.

    torch.max over an axis that is not the last one costs more than the product itself; amax is
    fast, and after some training few entries are above the floor.
    """
    if len(logits) > 1:
        best, where = logits.max(1)
        return best, where.int()
    best = logits.amax(1)
    where = torch.zeros_like(best, dtype=torch.int32)
    above = (best[0] > least).nonzero()[:, 0]
    where[0, above] = logits[0].index_select(1, above).argmax(0).int()
    return best, where


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None) -> None:
    fits = hidden.ndim == 3 and weight.ndim == 2 and hidden.shape[-1] == weight.shape[-1]
    if not fits:
        raise DataError(
            f"states {tuple(hidden.shape)} and a decoder {tuple(weight.shape)}",
            expected="[B, L, d] and [V, d]",
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise DataError(f"a bias {tuple(bias.shape)}", expected=f"[{len(weight)}]")
    if mask is not None and mask.shape != hidden.shape[:2]:
        raise DataError(f"a mask {tuple(mask.shape)}", expected=f"{tuple(hidden.shape[:2])}")
