"""BERT without work for padding: all linear layers run on the real tokens alone.

    ids [B, L], mask [B, L]  ->  states [B, L, d], zeros where padded

Tokens of a batch stand one after the other, [T, d] with T = sum of the lengths; they are spread
over [B, L] for attention only, whose share of the work is small at these lengths. The numbers are
those of `model(ids, mask).last_hidden_state`, to rounding; so are the weights, which stay in the
transformers model. Other architectures than BERT run as they are.

>>> from passband.retrieval.backbones import encoder
>>> model = encoder("smoke")
>>> ids, mask = torch.tensor([[2, 5, 3], [2, 3, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
>>> whole = model(input_ids=ids, attention_mask=mask).last_hidden_state
>>> torch.allclose(states(model, ids, mask)[mask], whole[mask], atol=1e-5)
True
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import UnknownNameError

LOWEST = torch.finfo(torch.float32).min  # of an attention score; -inf would make NaN of empty rows


class Packed(NamedTuple):
    """Real tokens of a batch: states [T, d], and where they stand in [B * L]."""

    states: Tensor
    places: Tensor
    shape: tuple[int, int]

    def grid(self) -> Tensor:
        """[B, L, d], zeros where padded."""
        rows, length = self.shape
        if len(self.places) == rows * length:
            return self.states.view(rows, length, -1)
        empty = self.states.new_zeros(rows * length, self.states.shape[-1])
        return empty.index_copy(0, self.places, self.states).view(rows, length, -1)

    def mean(self) -> Tensor:
        """Mean over each row's tokens, [B, d]; zeros for a row without any."""
        rows, length = self.shape
        row = self.places // length
        total = self.states.new_zeros(rows, self.states.shape[-1]).index_add(0, row, self.states)
        count = torch.bincount(row, minlength=rows).clamp_min(1)
        return total / count[:, None]

    def first(self) -> Tensor:
        """The state of each row's first position, [B, d]."""
        return self.grid()[:, 0]


def pooled(model: nn.Module, ids: Tensor, mask: Tensor, how: str = "average") -> Tensor:
    """A vector a row, [B, d]: "average" of the states of its tokens, or "cls", the first one's."""
    ways = {"average": Packed.mean, "cls": Packed.first}
    if how not in ways:
        raise UnknownNameError("way of pooling", how, ways)
    return ways[how](pack(model, ids, mask))


def states(
    model: nn.Module, ids: Tensor, mask: Tensor, types: Tensor | None = None
) -> Tensor:
    """Last hidden states [B, L, d], zeros where padded; `types` [B, L] are token types."""
    return pack(model, ids, mask, types).grid()


def pack(
    model: nn.Module, ids: Tensor, mask: Tensor, types: Tensor | None = None
) -> Packed:
    """The states of the real tokens.

    model  an encoder of transformers, or a model for masked language modelling around one
    mask   padding on the right only
    """
    mask = mask.bool()
    flat = mask.flatten()
    shape = (ids.shape[0], ids.shape[1])
    places = flat.nonzero()[:, 0]
    body = backbone(model)
    if not _is_bert(body):
        more = {} if types is None else {"token_type_ids": types}
        whole = body(input_ids=ids, attention_mask=mask.long(), **more).last_hidden_state
        return Packed(whole.flatten(0, 1)[places], places, shape)
    return Packed(_bert(body, ids, mask, places, types), places, shape)


def backbone(model: nn.Module) -> Any:
    """The encoder inside a model with a head; an encoder itself as it is."""
    prefix = getattr(model, "base_model_prefix", "")
    inner = getattr(model, prefix, None) if prefix else None
    return model if inner is None else inner


def _is_bert(body: Any) -> bool:
    config = getattr(body, "config", None)
    return (
        type(body).__name__ == "BertModel" and not config.is_decoder
        and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
    )


def _bert(bert: Any, ids: Tensor, mask: Tensor, places: Tensor, types: Tensor | None) -> Tensor:
    rows, length = ids.shape
    e = bert.embeddings
    x = e.word_embeddings(ids.flatten()[places]) + e.position_embeddings(places % length)
    if types is None:
        x = x + e.token_type_embeddings.weight[0]
    else:
        x = x + e.token_type_embeddings(types.flatten()[places])
    x = e.dropout(e.LayerNorm(x))
    full = len(places) == rows * length
    bias = None
    if not full:
        lowest = x.new_full((), max(LOWEST, torch.finfo(x.dtype).min))
        bias = torch.where(mask, x.new_zeros(()), lowest)[:, None, None, :]
    for layer in bert.encoder.layer:
        mixed = _attention(layer.attention.self, x, places, bias, (rows, length), full)
        x = layer.attention.output(mixed, x)
        x = layer.output(layer.intermediate(x), x)
    return x


def _attention(
    part: Any, x: Tensor, places: Tensor, bias: Tensor | None, shape: tuple[int, int], full: bool
) -> Tensor:
    """Self-attention of packed states [T, d] -> [T, d]; one product makes q, k and v."""
    projections = (part.query, part.key, part.value)
    qkv = F.linear(
        x, torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])
    )
    rows, length = shape
    if not full:
        qkv = qkv.new_zeros(rows * length, qkv.shape[1]).index_copy(0, places, qkv)
    heads = part.num_attention_heads
    q, k, v = qkv.view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    dropout = part.dropout.p if part.training else 0.0
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    mixed = mixed.transpose(1, 2).reshape(rows * length, -1)
    return mixed if full else mixed[places]
