"""Texts as weights of vocabulary entries: a masked language model, pooled by its maximum (SPLADE).

    H = backbone(ids) [B, L, d],   Z = MLM head(H) [B, L, V]
    w_j = log(1 + ReLU(max_i Z_ij))        over real tokens i;  log(1 + .) twice with `l0`

An entry may have weight without standing in the text: that is expansion. Z is never stored, see
`passband.parts.pooled_max`; states of padded positions are not computed, see `packed`.

>>> from passband.retrieval.backbones import mlm
>>> encoder = SpladeEncoder(mlm("smoke"))
>>> ids, mask = torch.tensor([[2, 5, 3], [2, 3, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
>>> encoder(ids, mask).shape
torch.Size([2, 1024])

    B texts, L tokens, d width, V vocabulary

Source: Formal et al., arXiv 2107.05720 and 2109.10086; `l0`: Shen et al., arXiv 2504.14839.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from passband.errors import DataError
from passband.parts.modes import evaluating
from passband.parts.pooled_max import log_saturation, pooled_max
from passband.retrieval.packed import pack
from passband.retrieval.token_rows import TokenRows

TOKENS = 8192  # positions of a batch when texts are encoded


class SpladeEncoder(nn.Module):
    """
    mlm  a model for masked language modelling of transformers: BERT, DistilBERT or RoBERTa
    l0   log(1 + .) a second time

    Raises `DataError` for another head.
    """

    def __init__(self, mlm: nn.Module, *, l0: bool = False) -> None:
        super().__init__()
        self.mlm, self.times = mlm, 2 if l0 else 1
        head(mlm)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L] -> weights [B, V], none negative; padding stands on the right."""
        transform, decoder, bias = head(self.mlm)
        packed = pack(self.mlm, ids, mask)
        states = packed._replace(states=transform(packed.states)).grid()
        return log_saturation(pooled_max(states, decoder.weight, bias, mask), self.times)

    @property
    def vocabulary(self) -> int:
        return int(head(self.mlm)[1].weight.shape[0])


def head(mlm: Any) -> tuple[Callable[[Tensor], Tensor], Any, Tensor | None]:
    """The parts of an MLM head: transform [.., d] -> [.., d], the decoder [V, d] and its bias."""
    if hasattr(mlm, "cls") and hasattr(mlm.cls, "predictions"):  # BERT
        decoder = mlm.cls.predictions.decoder
        return mlm.cls.predictions.transform, decoder, decoder.bias
    if hasattr(mlm, "vocab_projector"):  # DistilBERT
        decoder = mlm.vocab_projector

        def transform(x: Tensor) -> Tensor:
            return mlm.vocab_layer_norm(mlm.activation(mlm.vocab_transform(x)))

        return transform, decoder, decoder.bias
    if hasattr(mlm, "lm_head") and hasattr(mlm.lm_head, "layer_norm"):  # RoBERTa
        part = mlm.lm_head

        def transform(x: Tensor) -> Tensor:
            return part.layer_norm(nn.functional.gelu(part.dense(x)))

        return transform, part.decoder, part.decoder.bias
    raise DataError(
        f"a {type(mlm).__name__} has no head of a masked language model that is known here",
        expected="BERT, DistilBERT or RoBERTa", mend="give the folder of such a model",
    )


def encode_sparse(
    encoder: nn.Module, rows: TokenRows, vocabulary: int, *, prune: float = 0.0,
    tokens: int = TOKENS,
) -> Any:
    """Weights of rows as CSR [N, V] float32, in their order; batches are of rows of like length.

    encoder  (ids, mask) -> [B, V]
    prune    entries of at most this share of a row's largest are left out
    tokens   positions of a batch at most: memory, not numbers, depends on it
    """
    device = next(encoder.parameters()).device
    places: list[np.ndarray[Any, Any]] = []
    parts: list[Any] = []
    with torch.no_grad(), evaluating(encoder):
        for place, ids, mask in rows.batches(tokens):
            weights = encoder(ids.to(device), mask.to(device)).float()
            if prune:
                weights = weights * (weights > prune * weights.amax(1, keepdim=True))
            places.append(place)
            parts.append(scipy.sparse.csr_array(weights.cpu().numpy()))
    if not parts:
        return scipy.sparse.csr_array((0, vocabulary), dtype=np.float32)
    back = np.argsort(np.concatenate(places), kind="stable")
    return scipy.sparse.vstack(parts, format="csr")[back]


def shared_entries(queries: Any, documents: Any) -> float:
    """Products that a score takes on average, of CSR rows: the FLOPS that papers report.

    sum_j p_q(j) p_d(j), p the share of rows in which entry j is not zero.

    >>> shared_entries(scipy.sparse.csr_array(np.eye(2)), scipy.sparse.csr_array([[1.0, 0.0]]))
    0.5
    """
    shares = [
        np.bincount(rows.indices, minlength=rows.shape[1]) / max(1, rows.shape[0])
        for rows in (queries, documents)
    ]
    return float(shares[0] @ shares[1])
