"""Small backbones pretrained here: masked language modelling on docstrings, then the cache.

    of 15 % of the pieces 80 % become [MASK], 10 % any piece, 10 % stay; loss = mean -log p(piece)

>>> model, pieces = pretrained_backbone("smoke", "mlm")
>>> model.config.vocab_size >= len(pieces)
True

Source: Devlin et al., arXiv 1810.04805 (masking); no second task, as Liu et al., arXiv 1907.11692.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from passband.data.cache import stored_tensors
from passband.errors import DataError
from passband.parts.pretraining import pretrain
from passband.parts.transformers_library import versions
from passband.retrieval.backbones import Kind, build, mlm
from passband.retrieval.embedded import embedded_corpus
from passband.retrieval.packed import pack
from passband.retrieval.wordpieces import WordPieces, wordpieces


@dataclass(frozen=True)
class Recipe:
    """One pretraining; `size` of the corpus. Windows of `length` tokens, [CLS] and [SEP] around."""

    shape: str
    size: Literal["full", "smoke"]
    steps: int
    batch_size: int = 32
    length: int = 62
    lr: float = 2e-3
    warmup: int = 40
    seed: int = 0


PRETRAINED = {
    "small": Recipe("small", "full", steps=400),
    "smoke": Recipe("smoke", "smoke", steps=40, batch_size=16, lr=4e-3, warmup=4),
}


def pretrained_backbone(
    name: str = "small", kind: Kind = "encoder", *, seed: int = 0
) -> tuple[Any, WordPieces]:
    """A fresh copy of a pretrained model in evaluation mode, and its word pieces.

    name  of PRETRAINED
    kind  "mlm" with its head, or "encoder" without
    seed  unused by the weights, which are the same for every seed

    Pretrained at the first call, about a minute on one core (smoke: seconds).
    """
    recipe = PRETRAINED[name]
    model = mlm(recipe.shape)
    corpus = embedded_corpus(recipe.size)
    pieces = wordpieces(model.config.vocab_size, corpus)
    key = {
        "version": 2, **asdict(recipe), "pieces": pieces.fingerprint, "data": corpus.fingerprint,
        **versions(),
    }
    found = stored_tensors("retrieval-mlm", key, lambda: _pretrained(recipe, pieces))
    model.load_state_dict(found)
    model.tie_weights()
    if kind == "mlm":
        return model.eval(), pieces
    inner = build({**model.config.to_dict(), "model_type": "bert"}, "encoder")
    inner.load_state_dict(model.bert.state_dict())
    return inner.eval(), pieces


def _pretrained(recipe: Recipe, pieces: WordPieces) -> dict[str, Tensor]:
    model = mlm(recipe.shape)
    texts = [document.full for document in embedded_corpus(recipe.size)]
    tokens = pieces.rows(texts, specials=False).ids
    if len(tokens) < recipe.length:
        raise DataError(f"{len(tokens)} tokens to learn from", expected=f"{recipe.length} or more")
    rng = np.random.default_rng(recipe.seed)

    def loss() -> Tensor:
        starts = rng.integers(0, len(tokens) - recipe.length + 1, recipe.batch_size)
        inside = tokens[starts[:, None] + np.arange(recipe.length)].astype(np.int64)
        ids = np.pad(inside, ((0, 0), (1, 1)))
        ids[:, 0], ids[:, -1] = pieces.cls, pieces.sep
        masked, chosen = mask_tokens(ids, pieces, rng)
        return mlm_loss(model, *map(torch.from_numpy, (masked, ids, chosen)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        pretrain(model, loss, steps=recipe.steps, lr=recipe.lr, warmup=recipe.warmup)
    # Safetensors refuse shared memory: the decoder's weights are the embeddings'.
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def mask_tokens(
    ids: np.ndarray, pieces: WordPieces, rng: np.random.Generator, share: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """(masked ids, which of them are asked for), [B, L] both; special tokens stay as they are."""
    plain = ~np.isin(ids, list(pieces.special))
    chosen = plain & (rng.random(ids.shape) < share)
    fate = rng.random(ids.shape)
    drawn = rng.integers(0, len(pieces), ids.shape)
    masked = np.where(chosen & (fate < 0.8), pieces.mask, ids)
    return np.where(chosen & (fate >= 0.9), drawn, masked), chosen


def mlm_loss(model: Any, masked: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens asked for; the head runs on those alone."""
    states = pack(model, masked, torch.ones_like(masked, dtype=torch.bool)).states
    wanted = chosen.flatten().nonzero()[:, 0]
    return F.cross_entropy(model.cls(states[wanted]), ids.flatten()[wanted])
