"""SPLADE: queries and documents expanded by the same network, each with a FLOPS penalty.

    w(x) = log(1 + ReLU(max_i Z_i(x)));   s(q, d) = w(q) . w(d)
    loss = ranking + lambda_d L_FLOPS(d) + lambda_q L_FLOPS(q)

The siamese rival of methods without a network at query time, and a sparse teacher for them.

Source: Formal, Piwowarski, Clinchant, SIGIR 2021 (arXiv 2107.05720); arXiv 2109.10086 (v2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from passband.bench.system import Config
from passband.parts.losses.flops import flops
from passband.retrieval.learned_sparse import LearnedSparse, SparseConfig, warned
from passband.retrieval.splade import SpladeEncoder, encode_sparse


class SpladeConfig(SparseConfig):
    """One encoder for both sides: the common fields, learned from labels by default."""

    loss: Literal["kl", "infonce", "margin_mse"] = Field(
        "infonce", description="of the ranking: labels, or a teacher by KL or MarginMSE"
    )
    lambda_q: float = Field(3e-3, ge=0, description="weight of the queries' FLOPS")


class Siamese(nn.Module):
    """One encoder for both sides; special tokens are zeroed, as in the published models."""

    keep: Tensor

    def __init__(self, encoder: SpladeEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("keep", torch.ones(encoder.vocabulary))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights: Tensor = self.encoder(ids, mask) * self.keep
        return weights

    documents = asked = forward

    @property
    def vocabulary(self) -> int:
        return self.encoder.vocabulary


class Splade(LearnedSparse):
    """
    >>> system = Splade.from_preset("smoke")
    >>> system.encode_queries(["rivers of ice"]).shape
    (1, 1024)
    """

    Config: ClassVar[type[Config]] = SpladeConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "backbone": "distilbert-base-uncased", "max_length": 256, "query_length": 256,
            "lr": 2e-5, "warmup": 6_000, "steps": 150_000, "batch_size": 124, "group": 2,
            "lambda_d": 1e-1, "lambda_q": 3e-1, "ramp": 50_000, "precision": "fp16",
        },
        "small": {
            "backbone": "small", "pretrained": True, "vocabulary": "embedded", "max_length": 96,
            "lr": 1e-3, "warmup": 50, "steps": 500, "batch_size": 32, "ramp": 150,
            "lambda_d": 3e-3, "lambda_q": 3e-3, "clip": 1.0,
        },
        "smoke": {
            "backbone": "smoke", "max_length": 48, "lr": 1e-2, "warmup": 2, "steps": 20,
            "batch_size": 32, "ramp": 20, "lambda_d": 1e-4, "lambda_q": 1e-4,
            "teacher_preset": "smoke",
        },
    }

    def build(self, backbone: Any) -> Siamese:
        return Siamese(SpladeEncoder(backbone, l0=self.config.l0))

    def _start(self, collection: Any = None) -> None:
        super()._start(collection)
        network: Any = self._network
        network.keep[sorted(self.pieces.special)] = 0.0

    def penalty_of_queries(self, weights: Tensor) -> Tensor | None:
        return self.config.lambda_q * flops(weights)

    def encode_documents(self, texts: Sequence[str]) -> Any:
        """Weights of vocabulary entries, CSR [N, V] float32; texts are cut at max_length."""
        return warned(self._encode(texts, self.config.max_length))

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """The same of queries: a pass of the network each."""
        return self._encode(texts, self.config.query_length)

    def _encode(self, texts: Sequence[str], length: int) -> Any:
        network: Any = self.network
        rows = self.rows(list(texts), length)
        return encode_sparse(network, rows, network.vocabulary, prune=self.config.prune)
