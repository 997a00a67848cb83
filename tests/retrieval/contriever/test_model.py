"""The losses of Contriever against a plain formulation with transformers' own encoder."""

import copy

import torch
from torch.nn import functional as F

from passband.retrieval.backbones import encoder
from passband.retrieval.contriever.model import InBatch, MoCo

TAU, M = 0.05, 0.9


def no_dropout(model):
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    return model


def a_pair(seed, rows=4):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (rows,), generator=g)
    lengths[0] = 12
    mask = torch.arange(12) < lengths[:, None]
    return torch.randint(5, 900, (rows, 12), generator=g) * mask, mask


def mean(model, ids, mask):
    """Zero the padded positions, sum, divide by the real ones."""
    states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return states.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)


def test_three_steps_of_moco_are_the_published_ones():
    torch.manual_seed(0)
    start = no_dropout(encoder("smoke", seed=2))
    model = MoCo(copy.deepcopy(start), queue=12, momentum=M, temperature=TAU, seed=7)
    model.train()
    ours = torch.optim.SGD(model.encoder.parameters(), lr=0.05)
    query, key = copy.deepcopy(start), copy.deepcopy(start)
    theirs = torch.optim.SGD(query.parameters(), lr=0.05)
    queue, pointer = model.queue.keys.T.clone(), 0  # [d, K] as the reference has it
    for step in range(5):
        batch = (*a_pair(2 * step), *a_pair(2 * step + 1))
        loss, logged = model(*batch)
        ours.zero_grad()
        loss.backward()
        ours.step()

        q = mean(query, *batch[:2])
        with torch.no_grad():  # before the keys are encoded
            for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                slow.mul_(M).add_(fast, alpha=1 - M)
            k = mean(key, *batch[2:])
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1) / TAU
        expected = F.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        queue = queue.clone()
        queue[:, pointer : pointer + 4] = k.T
        pointer = (pointer + 4) % 12

        torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-4)
        assert float(logged["accuracy"]) == float((logits.argmax(1) == 0).float().mean())
        torch.testing.assert_close(logged["stdq"], q.detach().std(0).mean(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model.queue.keys.T, queue, atol=1e-3, rtol=1e-3)
    for mine, other in zip(model.encoder.parameters(), query.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)


def test_keys_are_encoded_with_dropout_unless_told_otherwise():
    ids, mask = a_pair(0)
    start = encoder("smoke", seed=2)
    for wanted in (True, False):
        model = MoCo(copy.deepcopy(start), queue=8, momentum=M, temperature=TAU,
                     key_dropout=wanted).train()
        keys = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            model.queue.pushed.zero_()
            model(ids, mask, ids, mask)
            keys.append(model.queue.keys[:4].clone())
        assert torch.equal(*keys) is not wanted


def test_no_gradient_reaches_keys_or_queue():
    model = MoCo(encoder("smoke"), queue=8, momentum=M, temperature=TAU)
    loss, _ = model(*a_pair(0), *a_pair(1))
    loss.backward()
    assert all(p.grad is None for p in model.key.parameters())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
        p.numel() for p in model.encoder.parameters()
    )


def test_in_batch_gradients_reach_both_sides():
    """Gradient of the loss of both sides = sum of those where one side is held fixed."""
    base = no_dropout(encoder("smoke", seed=3)).double()
    q, k = a_pair(0), a_pair(1, rows=6)  # four positives, two negatives
    texts = torch.tensor([0, 1, 2, 3, 1, 9])  # the fifth key is a copy of the second answer

    def gradient(hold_q, hold_k):
        base.zero_grad()
        a, b = mean(base, *q), mean(base, *k)
        a, b = (a.detach() if hold_q else a), (b.detach() if hold_k else b)
        logits = a @ b.T / TAU
        logits[1, 4] = -torch.inf
        loss = F.cross_entropy(logits, torch.arange(4))
        loss.backward()
        return loss.detach(), base.embeddings.word_embeddings.weight.grad.clone()

    model = InBatch(base, temperature=TAU)
    base.zero_grad()
    loss, _ = model(*q, *k, texts)
    loss.backward()
    found = base.embeddings.word_embeddings.weight.grad.clone()
    expected, left = gradient(False, True)
    _, right = gradient(True, False)
    torch.testing.assert_close(loss.detach(), expected, check_dtype=False, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, left + right, rtol=1e-4, atol=1e-5)


def test_sides_may_be_normalised_apart():
    ids, mask = a_pair(0)
    model = InBatch(encoder("smoke"), temperature=1.0, norm_query=True)
    torch.testing.assert_close(model.query(ids, mask).norm(dim=1), torch.ones(4))
    assert float(model.document(ids, mask).detach().norm(dim=1).min()) > 1.5
