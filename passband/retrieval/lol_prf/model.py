"""A query and the passages it found, read together, become a better query for the same index.

LoL (arXiv 2204.11545): pseudo-relevance feedback drifts, the more passages it reads. Revisions of
one query that read nested sets of passages are trained side by side, and one that read more is
punished for ranking worse.

    B revisions, T tokens, H width, V vocabulary, D vector of the index (V or another), P documents

    H_t    = Encoder([CLS] q [SEP] p_1 [SEP] ... p_k [SEP])                      k = 0 .. 5
    sparse v = normalised ReLU(max_t MLM(H_t)), special tokens 0                 (dqrsm)
    dense  v = LayerNorm(W H_CLS + b)                                            (dqrd)
    l(k)   = -log softmax(D v)[d+]                        documents D frozen, all of a subset
    loss   = mean l(k) + lambda mean_{a > b} max(0, l(a) - l(b))                 see `losses`

>>> from passband.retrieval.backbones import mlm
>>> encoder = mlm("smoke")
>>> from passband.retrieval.lol_prf.heads import MaskedLM
>>> model = Reformulator(encoder, MaskedLM(encoder))
>>> from passband.retrieval.lol_prf.sequences import Frame, stack
>>> read = Frame(cls=2, sep=3).assemble([7, 8], [[9, 10, 11], [12]])
>>> model(stack([read, read.prefix(1), read.prefix(0)])).vectors.shape
torch.Size([3, 1024])

Source: H. Zhu et al., SIGIR 2022; arXiv 2204.11545.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from passband.retrieval.lol_prf.sequences import Batch
from passband.retrieval.packed import backbone, states


@dataclass(frozen=True)
class Revisions:
    """
    vectors   [B, D] in the space of the index
    passages  [B, K] scores of the passages that were read, NaN where there are fewer; None where
              the model has no head for them
    """

    vectors: Tensor
    passages: Tensor | None = None


class Reformulator(nn.Module):
    """Encoder and head, and optionally a head that scores each passage that was read.

    encoder  a transformers encoder, with or without an MLM head
    head     see `heads`
    scorer   `heads.PassageScores` or None
    """

    def __init__(
        self, encoder: nn.Module, head: nn.Module, scorer: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.scorer = encoder, head, scorer

    def forward(self, batch: Batch) -> Revisions:
        # RoBERTa has a single type of token.
        types = batch.types if backbone(self.encoder).config.type_vocab_size > 1 else None
        # Revisions of one query differ in length by what one of them did not read: nothing is
        # computed where a row is padded.
        read = states(self.encoder, batch.ids, batch.mask, types)
        passages = None if self.scorer is None else self.scorer(read, batch.separators)
        return Revisions(self.head(read, batch), passages)
