"""Heads: from the states of a query and its passages to a vector of the index.

    states [B, T, H], batch of the same texts  ->  [B, V] sparse or [B, D] dense

>>> from passband.retrieval.backbones import mlm
>>> from passband.retrieval.lol_prf.sequences import Frame, stack
>>> backbone = mlm("smoke")
>>> batch = stack([Frame(cls=2, sep=3).assemble([7, 8], [[9, 10]])])
>>> head = MaskedLM(backbone).silence([0, 2, 3])
>>> vector = head(torch.randn(1, 7, 32), batch)
>>> vector.shape, bool(vector[0, 2] == 0), round(vector.norm().item(), 3)
(torch.Size([1, 1024]), True, 1.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError
from passband.parts.pooled_max import pooled_max
from passband.retrieval.lol_prf.sequences import Batch
from passband.retrieval.packed import backbone


class SparseHead(nn.Module):
    """Base: [B, V] pooled by a maximum -> non-negative, silent entries zero, length 1.

    encoder         a transformers model; its weights belong to the reformulator
    log_saturation  log(1 + v) before the norm
    """

    heard: Tensor

    def __init__(self, encoder: Any, *, log_saturation: bool = False) -> None:
        super().__init__()
        # In a list, so that its weights are registered once, by the reformulator.
        self._encoder = [encoder]
        self.log_saturation = log_saturation
        self.register_buffer("heard", torch.ones(encoder.config.vocab_size), persistent=False)

    def silence(self, ids: Sequence[int]) -> Self:
        """Entries that no query has: special and unused tokens."""
        self.heard.fill_(1.0)
        if len(ids):
            self.heard[torch.as_tensor(list(ids), device=self.heard.device)] = 0.0
        return self

    def forward(self, states: Tensor, batch: Batch) -> Tensor:
        vectors = F.relu(self.pool(states, batch).float()) * self.heard
        if self.log_saturation:
            vectors = torch.log1p(vectors)
        return F.normalize(vectors, dim=1)

    def pool(self, states: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError


class MaskedLM(SparseHead):
    """`dqrsm`: logits of the encoder's own MLM head, their maximum over the tokens."""

    def __init__(self, encoder: Any, *, log_saturation: bool = False) -> None:
        super().__init__(encoder, log_saturation=log_saturation)
        if not hasattr(encoder, "cls"):
            raise ConfigError(
                f"a {type(encoder).__name__} as the masked language model",
                expected="BERT with its MLM head",
                mend="take the head dqrss or dqrs, or another backbone",
            )

    def pool(self, states: Tensor, batch: Batch) -> Tensor:
        predictions = self._encoder[0].cls.predictions
        decoder = predictions.decoder
        return pooled_max(
            predictions.transform(states), decoder.weight, decoder.bias, batch.mask
        )


class Vocabulary(SparseHead):
    """`dqrs`: one linear map to the vocabulary, tied to the word embeddings, with its own bias."""

    def __init__(self, encoder: Any, *, log_saturation: bool = False) -> None:
        super().__init__(encoder, log_saturation=log_saturation)
        self.bias = nn.Parameter(torch.zeros(encoder.config.vocab_size))

    def pool(self, states: Tensor, batch: Batch) -> Tensor:
        weight = backbone(self._encoder[0]).embeddings.word_embeddings.weight
        return pooled_max(states, weight, self.bias, batch.mask)


class TokenWeights(SparseHead):
    """`dqrss`: a weight for each token that was read; nothing beyond the text of the feedback."""

    def __init__(self, encoder: Any, *, log_saturation: bool = False) -> None:
        super().__init__(encoder, log_saturation=log_saturation)
        self.weight = nn.Linear(encoder.config.hidden_size, 1)
        # All tokens count alike at first. From 0 half of them would begin, and stay, without a
        # gradient.
        nn.init.ones_(self.weight.bias)

    def pool(self, states: Tensor, batch: Batch) -> Tensor:
        weights = F.relu(self.weight(states)[..., 0]) * batch.mask
        vectors = weights.new_zeros(len(weights), len(self.heard))
        return vectors.scatter_reduce(1, batch.ids, weights, "amax")


class Dense(nn.Module):
    """`dqrd`: LayerNorm(W h_CLS + b).

    out   D; None: the encoder's width
    norm  power of the norm that vectors are divided by; None: as they are
    """

    def __init__(
        self, encoder: Any, *, out: int | None = None, norm: float | None = None
    ) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.project = nn.Linear(width, out or width)
        self.layer_norm = nn.LayerNorm(out or width)
        self.norm = norm

    def forward(self, states: Tensor, batch: Batch) -> Tensor:
        vectors: Tensor = self.layer_norm(self.project(states[:, 0]))
        return vectors if self.norm is None else F.normalize(vectors, p=self.norm, dim=1)


class PassageScores(nn.Module):
    """One score for each passage: mean of its states -> dense, GELU, LayerNorm -> linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, eps=1e-12)
        self.score = nn.Linear(width, 1)

    def forward(self, states: Tensor, separators: Tensor) -> Tensor:
        """[B, T, H], [B, 1 + K] -> [B, K]; NaN where there is no passage."""
        # Sums between separators are differences of running sums: no loop over passages.
        running = F.pad(states.float().cumsum(1), (0, 0, 1, 0))
        begins, ends = separators[:, :-1] + 1, separators[:, 1:]
        there = ends > begins
        begins, ends = begins.clamp_min(0), ends.clamp_min(0)
        width = states.shape[-1]
        sums = (
            running.gather(1, ends[..., None].expand(-1, -1, width))
            - running.gather(1, begins[..., None].expand(-1, -1, width))
        )
        means = (sums / (ends - begins).clamp_min(1)[..., None]).to(states.dtype)
        scores = self.score(self.layer_norm(F.gelu(self.dense(means))))[..., 0]
        return scores.masked_fill(~there, torch.nan)


SPARSE: dict[str, type[SparseHead]] = {
    "dqrsm": MaskedLM, "dqrss": TokenWeights, "dqrs": Vocabulary,
}


def silent_ids(pieces: Any) -> list[int]:
    """Special and unused entries of a vocabulary, but the one for unknown words.

    Of bert-base-uncased: 0 to 998 without 100. `pieces` is a `WordPieces`.
    """
    unused = {i for i, token in enumerate(pieces.tokens) if token.startswith("[unused")}
    return sorted((pieces.special | unused) - {pieces.unk})
