"""MiniLM, a sentence encoder of 22.7 M parameters whose weights come with a package.

>>> model, tokenizer = minilm(), minilm_tokenizer()
>>> model.num_parameters()
22713216
>>> embed(model, tokenizer, ["Close the file.", "Shut a stream."]).shape
torch.Size([2, 384])

Source: W. Wang et al., arXiv 2002.10957; trained on pairs of sentences as all-MiniLM-L6-v2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import DataError
from passband.parts.minilm import mean_states, minilm, minilm_tokenizer
from passband.tuning.models.library import seeded, transformers

__all__ = [
    "SentenceClassifier", "embed", "mean_reciprocal_rank", "mean_states", "minilm",
    "minilm_tokenizer",
]


class SentenceClassifier(nn.Module):
    """Mean of an encoder's last states over the words, then a fresh linear layer.

        input_ids, attention_mask [B, T]  ->  logits [B, classes]

    classes  at least 2
    encoder  a transformers encoder; None: MiniLM
    seed     of the head, which is named `classifier`
    """

    def __init__(self, classes: int, encoder: nn.Module | None = None, *, seed: int = 0) -> None:
        super().__init__()
        if classes < 2:
            raise DataError(
                f"{classes} classes", expected="at least 2", mend="give data with more labels"
            )
        self.encoder: Any = minilm() if encoder is None else encoder
        self.config = self.encoder.config
        width = self.config.hidden_size
        with seeded(seed):
            self.classifier = nn.Linear(width, classes)
            nn.init.normal_(self.classifier.weight, std=width**-0.5)
            nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        labels: Tensor | None = None, **more: Tensor,
    ) -> Any:
        """transformers' `SequenceClassifierOutput`, with the loss where labels [B] are given."""
        pooled = mean_states(self.encoder, input_ids, attention_mask, **more)
        logits = self.classifier(pooled.to(self.classifier.weight.dtype))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        output = transformers().modeling_outputs.SequenceClassifierOutput
        return output(loss=loss, logits=logits)


@torch.no_grad()
def embed(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], *, batch_size: int = 64,
    max_length: int = 64,
) -> Tensor:
    """Sentence vectors of length 1, [N, D]; a `SentenceClassifier` is asked without its head."""
    encoder = model.encoder if isinstance(model, SentenceClassifier) else model
    training, found = encoder.training, torch.empty(0)
    encoder.eval()
    # Texts of like length together: less is filled up. The result is in the order given.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    try:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = tokenizer(
                [texts[i] for i in places], padding=True, truncation=True, max_length=max_length,
                return_tensors="pt",
            ).to(next(encoder.parameters()).device)
            vectors = F.normalize(mean_states(encoder, **batch).float(), dim=-1).cpu()
            if not len(found):
                found = vectors.new_empty(len(texts), vectors.shape[1])
            found[places] = vectors
    finally:
        encoder.train(training)
    return found


def mean_reciprocal_rank(
    model: nn.Module, tokenizer: Any, queries: Sequence[str], targets: Sequence[str]
) -> float:
    """Mean over i of 1 / (rank of target i among all targets by cosine to query i), in (0, 1]."""
    if len(queries) != len(targets) or not queries:
        raise DataError(
            f"{len(queries)} queries and {len(targets)} targets", expected="as many, at least one",
            mend="give one target a query",
        )
    scores = embed(model, tokenizer, queries) @ embed(model, tokenizer, targets).T
    # Ties count against: a model that maps all texts to one vector must not look good.
    ranks = (scores >= scores.diagonal()[:, None]).sum(1)
    return float((1.0 / ranks.double()).mean())
