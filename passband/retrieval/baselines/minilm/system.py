"""Dense retrieval by a sentence encoder as it comes: cosine of the means of its last states.

    v(x) = mean over tokens of encoder(x),   score(q, d) = <v(q), v(d)> / (|v(q)| |v(d)|)

>>> system = MiniLMSearch.from_preset("small", max_length=64)
>>> _ = system.index(["Close the file.", "A river of ice."])
>>> system.search("glacier", k=1).ids
[['1']]

Source: W. Wang et al., arXiv 2002.10957; all-MiniLM-L6-v2, 22.6 M parameters, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from passband.bench.budget import Budget
from passband.bench.system import Config, Monitor
from passband.errors import CheckpointError
from passband.retrieval.backbones import SHAPES, build, encode, start
from passband.retrieval.retriever import Retriever
from passband.retrieval.wordpieces import WordPieces

PIECES = "word_pieces"  # name of the tokenizer in the saved state


class MiniLMConfig(Config):
    max_length: int = Field(256, ge=8, le=512, description="tokens of a text at most")
    normalise: bool = Field(True, description="vectors of length 1, as it was trained")


class MiniLMSearch(Retriever):
    """Needs no training: the weights come with a package."""

    Config: ClassVar[type[Config]] = MiniLMConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {}, "small": {}, "smoke": {"max_length": 64},
    }
    needs_fit: ClassVar[bool] = False

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._network: nn.Module | None = None
        self._pieces: WordPieces | None = None

    @property
    def network(self) -> nn.Module:
        if self._network is None:
            self._network, self._pieces = start("minilm", "encoder")
        return self._network

    def fit(
        self, data: Any, budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        _ = self.network  # what is missing is said here
        return {"steps": 0, "selected": "as it comes"}

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """[N, 384] float32."""
        network = self.network
        assert self._pieces is not None
        vectors = encode(network, self._pieces.rows(texts, self.config.max_length), "average")
        if self.config.normalise:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return vectors

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self.encode_documents(texts)

    # ---- size and state ---------------------------------------------------------------------

    def parameter_count(self) -> int:
        if self._network is not None:
            return sum(p.numel() for p in self._network.parameters())
        with torch.device("meta"):
            return sum(p.numel() for p in build(SHAPES["minilm"], "encoder").parameters())

    def state(self) -> dict[str, Any]:
        tensors = dict(self.network.state_dict())
        assert self._pieces is not None
        return {**tensors, PIECES: torch.from_numpy(self._pieces.state())}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        if PIECES not in state:
            raise CheckpointError("the saved state has no word pieces", expected=PIECES)
        network = build(SHAPES["minilm"], "encoder")
        network.load_state_dict({n: torch.as_tensor(a) for n, a in state.items() if n != PIECES})
        self._network, self._pieces = network.eval(), WordPieces.of(state[PIECES])
