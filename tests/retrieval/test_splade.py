"""SPLADE's encoder against transformers' own logits and sentence-transformers' pooling."""

import numpy as np
import pytest
import torch

from passband.errors import DataError
from passband.retrieval.backbones import SHAPES, build, mlm
from passband.retrieval.splade import SpladeEncoder, encode_sparse, head, shared_entries
from passband.retrieval.token_rows import TokenRows

IDS = torch.tensor([[2, 40, 41, 42, 3], [2, 50, 3, 0, 0]])
MASK = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]).bool()
TINY = {
    "bert": {**SHAPES["smoke"], "vocab_size": 300},
    "distilbert": {
        "model_type": "distilbert", "vocab_size": 300, "dim": 32, "n_layers": 1, "n_heads": 2,
        "hidden_dim": 64, "max_position_embeddings": 64,
    },
    "roberta": {
        **SHAPES["smoke"], "model_type": "roberta", "vocab_size": 300, "type_vocab_size": 1,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    },
}


def _loud(facts):
    """Fresh weights give logits near 0: larger embeddings make some large."""
    model = build(facts, "mlm", seed=3)
    with torch.no_grad():
        head(model)[1].weight.mul_(20)
    return model


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("l0", [False, True])
def test_equals_pooled_logits_of_transformers(family, l0):
    model = _loud(TINY[family])
    with torch.no_grad():
        ours = SpladeEncoder(model, l0=l0).eval()(IDS, MASK)
        logits = model(input_ids=IDS, attention_mask=MASK.long()).logits
        theirs = torch.log1p(torch.relu(logits * MASK[..., None])).amax(1)
        if l0:
            theirs = torch.log1p(theirs)
    assert (theirs > 0).float().mean() > 0.2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_pooled_logits():
    model = _loud(TINY["bert"])
    weights = model.bert.embeddings.word_embeddings.weight  # tied: input and output
    (ours,) = torch.autograd.grad(SpladeEncoder(model)(IDS, MASK).square().sum(), weights)
    logits = model(input_ids=IDS, attention_mask=MASK.long()).logits
    pooled = torch.log1p(torch.relu(logits * MASK[..., None]).amax(1))
    (theirs,) = torch.autograd.grad(pooled.square().sum(), weights)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_rows_come_back_in_their_order_whatever_the_batches():
    encoder = SpladeEncoder(_loud(TINY["bert"]))
    rows = TokenRows.of([[2, 40, 3], [2, 41, 42, 43, 44, 3], [2, 3], [2, 45, 46, 3]])
    whole = encode_sparse(encoder, rows, 300)
    single = encode_sparse(encoder, rows, 300, tokens=1)
    np.testing.assert_allclose(whole.toarray(), single.toarray(), atol=1e-5)
    alone = encoder(torch.tensor([[2, 45, 46, 3]]), torch.ones(1, 4).bool())
    np.testing.assert_allclose(whole.toarray()[3], alone[0].detach().numpy(), atol=1e-5)


def test_pruning_leaves_out_what_is_small_beside_the_largest():
    encoder = SpladeEncoder(_loud(TINY["bert"]))
    rows = TokenRows.of([[2, 40, 3]])
    whole, pruned = (encode_sparse(encoder, rows, 300, prune=p).toarray()[0] for p in (0, 0.5))
    np.testing.assert_array_equal(pruned, np.where(whole > 0.5 * whole.max(), whole, 0))
    assert 0 < (pruned > 0).sum() < (whole > 0).sum()


def test_a_model_without_such_a_head_is_refused():
    with pytest.raises(DataError, match="no head"):
        SpladeEncoder(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name, count", [
    ("small", 1_503_360), ("minilm", 22_744_506), ("distilbert-base-uncased", 66_985_530),
    ("bert-base-uncased", 109_514_298),
])
def test_parameters_of_the_sheet(name, count):
    with torch.device("meta"):
        encoder = SpladeEncoder(mlm(name))
    assert sum(p.numel() for p in encoder.parameters()) == count


def test_shared_entries_is_the_mean_number_of_products():
    rng = np.random.default_rng(0)
    queries, documents = rng.random((7, 20)) < 0.2, rng.random((9, 20)) < 0.4
    counted = np.mean([(q & d).sum() for q in queries for d in documents])
    import scipy.sparse

    rows = [scipy.sparse.csr_array(x.astype(np.float32)) for x in (queries, documents)]
    assert shared_entries(*rows) == pytest.approx(counted)
