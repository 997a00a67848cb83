"""Heads and the reformulator: against the formulas on transformers' own outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passband.errors import ConfigError
from passband.retrieval.backbones import architecture, build, encoder, mlm
from passband.retrieval.lol_prf.heads import (
    Dense,
    MaskedLM,
    PassageScores,
    TokenWeights,
    Vocabulary,
    silent_ids,
)
from passband.retrieval.lol_prf.model import Reformulator
from passband.retrieval.lol_prf.sequences import Frame, stack

FRAME = Frame(cls=2, sep=3)


@pytest.fixture
def batch():
    read = FRAME.assemble([7, 8, 9], [[10, 11, 7], [12, 1]])
    return stack([read, read.prefix(1), read.prefix(0)])


def plain_states(model, batch):
    """transformers itself, padded."""
    body = getattr(model, "bert", model)
    return body(
        input_ids=batch.ids, attention_mask=batch.mask, token_type_ids=batch.types
    ).last_hidden_state


def test_the_mlm_head_is_the_masked_maximum_of_the_logits(batch) -> None:
    model = mlm("smoke")
    head = MaskedLM(model).silence([0, 2, 3])
    found = Reformulator(model, head)(batch).vectors
    logits = model(
        input_ids=batch.ids, attention_mask=batch.mask, token_type_ids=batch.types
    ).logits
    logits[batch.mask == 0] = -100.0
    pooled = logits.max(1).values
    pooled[:, [0, 2, 3]] = 0.0
    torch.testing.assert_close(found, F.normalize(pooled.relu(), dim=1), rtol=1e-4, atol=1e-5)
    saturated = MaskedLM(model, log_saturation=True).silence([0, 2, 3])
    found = Reformulator(model, saturated)(batch).vectors
    torch.testing.assert_close(
        found, F.normalize(pooled.relu().log1p(), dim=1), rtol=1e-4, atol=1e-5
    )


def test_the_tied_linear_head(batch) -> None:
    model = encoder("smoke")
    head = Vocabulary(model).silence([0])
    nn.init.normal_(head.bias)
    logits = plain_states(model, batch) @ model.embeddings.word_embeddings.weight.T + head.bias
    logits[batch.mask == 0] = -100.0
    pooled = logits.max(1).values.relu()
    pooled[:, 0] = 0.0
    found = Reformulator(model, head)(batch).vectors
    torch.testing.assert_close(found, F.normalize(pooled, dim=1), rtol=1e-4, atol=1e-5)


def test_token_weights_stay_within_the_text(batch) -> None:
    model = encoder("smoke")
    head = TokenWeights(model).silence([2, 3])
    found = Reformulator(model, head)(batch).vectors
    weights = head.weight(plain_states(model, batch))[..., 0].relu()
    expected = torch.zeros(3, 1024)
    for row in range(3):  # token by token
        for column in range(int(batch.mask[row].sum())):
            token = int(batch.ids[row, column])
            if token not in (2, 3):
                expected[row, token] = max(expected[row, token], weights[row, column])
    torch.testing.assert_close(found, F.normalize(expected, dim=1), rtol=1e-4, atol=1e-5)
    assert set(found[1].nonzero()[:, 0].tolist()) <= {7, 8, 9, 10, 11}


def test_the_dense_head(batch) -> None:
    model = encoder("smoke")
    head = Dense(model, out=5)
    found = Reformulator(model, head)(batch).vectors
    first = plain_states(model, batch)[:, 0] @ head.project.weight.T + head.project.bias
    expected = (first - first.mean(1, keepdim=True)) / (
        first.var(1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_revisions_do_not_see_each_other(batch) -> None:
    model = mlm("smoke")
    whole = Reformulator(model, MaskedLM(model))
    together = whole(batch).vectors
    for row in range(3):
        alone = whole(batch.rows(row, row + 1)).vectors[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-6)


def test_passage_scores_are_of_the_mean_states_between_separators(batch) -> None:
    states = torch.randn(3, batch.ids.shape[1], 32, generator=torch.Generator().manual_seed(0))
    head = PassageScores(32)
    found = head(states, batch.separators)
    assert torch.isnan(found).tolist() == [[False, False], [False, True], [True, True]]

    def score(mean):
        return head.score(head.layer_norm(F.gelu(head.dense(mean))))[0]

    # [CLS] 7 8 9 [SEP] 10 11 7 [SEP] 12 1 [SEP]
    torch.testing.assert_close(found[0, 0], score(states[0, 5:8].mean(0)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0, 1], score(states[0, 9:11].mean(0)), rtol=1e-4, atol=1e-5)


def test_sizes_of_the_published_heads() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in PassageScores(768).parameters()) == 592_897
        roberta = build(architecture("roberta-base"), "encoder")
        assert sum(p.numel() for p in Dense(roberta).parameters()) == 592_128
        # The published count has a pooler of 768 x 768 + 768 that nothing reads.
        assert sum(p.numel() for p in roberta.parameters()) == 124_645_632 - 590_592


def test_roberta_is_read_without_token_types() -> None:
    model = build(architecture(
        "roberta-base", vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    ), "encoder")
    read = Frame(cls=0, sep=2).assemble([7, 8], [[9]])
    assert Reformulator(model, Dense(model))(stack([read], pad=1)).vectors.shape == (1, 16)


def test_an_encoder_without_mlm_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="BertModel as the masked"):
        MaskedLM(encoder("smoke"))


def test_silent_entries_of_berts_vocabulary() -> None:
    """0 to 998 but [UNK]: special tokens and [unused...]."""

    class Pieces:
        tokens = (
            ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            + [f"[unused{i}]" for i in range(99, 994)] + ["!", "\""]
        )
        special, unk = frozenset({0, 100, 101, 102, 103}), 100

    assert silent_ids(Pieces()) == [i for i in range(999) if i != 100]
