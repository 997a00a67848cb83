"""Backbones against transformers' own forward pass, and against published sizes."""

import numpy as np
import pytest
import torch

from passband.errors import DataError, UnknownNameError
from passband.retrieval.backbones import build, encode, encoder, from_folder, mlm, start
from passband.retrieval.packed import pack, pooled, states
from passband.retrieval.pretrained import mask_tokens, mlm_loss, pretrained_backbone
from passband.retrieval.token_rows import TokenRows
from passband.retrieval.wordpieces import WordPieces, wordpieces

LENGTHS = torch.tensor([9, 2, 17, 5, 17])


def a_batch(vocabulary=1000, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(int(LENGTHS.max())) < LENGTHS[:, None]
    return torch.randint(5, vocabulary, mask.shape, generator=g) * mask, mask


@pytest.mark.parametrize(("shape", "kind", "count"), [
    ("small", "encoder", 1_478_400), ("small", "mlm", 1_503_360),
    ("bert-base-uncased", "encoder", 108_891_648),
    ("bert-base-multilingual-cased", "encoder", 177_262_848),
    ("distilbert-base-uncased", "mlm", 66_985_530), ("minilm", "mlm", 22_744_506),
    ("bert-base-uncased", "mlm", 109_514_298),
])
def test_sizes_are_the_published_ones(shape, kind, count):
    with torch.device("meta"):
        model, pieces = start(shape, kind)
    assert model.num_parameters() == count
    assert pieces is None


def test_packed_states_are_those_of_transformers():
    model = encoder("smoke", seed=1)
    ids, mask = a_batch()
    whole = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    found = states(model, ids, mask)
    torch.testing.assert_close(found[mask], whole[mask], atol=1e-5, rtol=1e-4)
    assert not found[~mask].any()
    types = (torch.arange(ids.shape[1]) > 4).long().expand_as(ids).contiguous()
    config = {**model.config.to_dict(), "model_type": "bert"}
    typed = model(input_ids=ids, attention_mask=mask.long(), token_type_ids=types)
    torch.testing.assert_close(
        states(model, ids, mask, types)[mask], typed.last_hidden_state[mask], atol=1e-5, rtol=1e-4
    )
    assert config["num_hidden_layers"] == 1


def test_packed_gradients_are_those_of_transformers():
    model = encoder("smoke", seed=1, num_hidden_layers=2).double()
    ids, mask = a_batch()
    target = torch.randn(int(mask.sum()), 32, dtype=torch.float64)

    def gradients(found):
        model.zero_grad()
        (found * target).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients(model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask])
    for name, gradient in gradients(pack(model, ids, mask).states).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-9, rtol=1e-6)


def test_padding_changes_nothing():
    """A text alone and the same one beside longer ones: the same vector."""
    model = encoder("smoke")
    ids, mask = a_batch()
    together = pooled(model, ids, mask)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = pooled(model, ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)


def test_pooling_is_the_mean_of_all_tokens_or_the_first():
    model = encoder("smoke")
    ids, mask = a_batch()
    whole = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    means = torch.stack([row[keep].mean(0) for row, keep in zip(whole, mask, strict=True)])
    torch.testing.assert_close(pooled(model, ids, mask), means, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled(model, ids, mask, "cls"), whole[:, 0], atol=1e-5, rtol=1e-4)
    with pytest.raises(UnknownNameError, match="average"):
        pooled(model, ids, mask, "mean")


def test_a_row_of_padding_alone_gives_zeros():
    model = encoder("smoke")
    ids, mask = a_batch()
    mask[1] = False
    found = pooled(model, ids, mask)
    assert torch.isfinite(found).all()
    assert not found[1].any()
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_other_architectures_run_as_they_are():
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "vocab_size": 1000}
    model = encoder("distilbert-base-uncased", **sizes)
    ids, mask = a_batch()
    whole = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(states(model, ids, mask)[mask], whole[mask], atol=1e-6, rtol=1e-5)


def test_encoding_keeps_the_order_and_no_batch_size_shows():
    model = encoder("smoke")
    rng = np.random.default_rng(0)
    rows = TokenRows.of([rng.integers(5, 900, n) for n in rng.integers(1, 30, 40)])
    large, small = encode(model, rows), encode(model, rows, tokens=16)
    np.testing.assert_allclose(large, small, atol=1e-5)
    ids, mask = rows.batch([7])
    np.testing.assert_allclose(large[7], pooled(model, ids, mask)[0].detach(), atol=1e-5)


def test_the_head_on_masked_tokens_is_the_models_own_loss():
    model = mlm("smoke")
    pieces = wordpieces(1024)
    ids = pieces.rows(["the value of a key that is not there"] * 4).batch(range(4))[0].numpy()
    masked, chosen = mask_tokens(ids, pieces, np.random.default_rng(0), 0.4)
    assert not np.isin(ids[chosen], list(pieces.special)).any()
    assert (masked[~chosen] == ids[~chosen]).all()
    labels = torch.from_numpy(np.where(chosen, ids, -100))
    expected = model(input_ids=torch.from_numpy(masked), labels=labels).loss
    found = mlm_loss(model, *(torch.from_numpy(x) for x in (masked, ids, chosen)))
    torch.testing.assert_close(found, expected)


def test_a_pretrained_start_knows_more_than_a_fresh_one():
    model, pieces = pretrained_backbone("smoke", "mlm")
    rows = pieces.rows(["Return the number of items in the list.", "Raise an error if it is not."])
    ids, mask = rows.batch([0, 1])
    chosen = mask & (torch.arange(ids.shape[1]) % 3 == 1)
    masked = torch.where(chosen, pieces.mask, ids)

    def loss(one):
        logits = one(input_ids=masked, attention_mask=mask.long()).logits
        return float(torch.nn.functional.cross_entropy(logits[chosen], ids[chosen]))

    assert loss(model) < loss(mlm("smoke")) - 0.5
    inner, _ = pretrained_backbone("smoke", "encoder")
    torch.testing.assert_close(states(inner, ids, mask), states(model, ids, mask))


# ---- users' folders ------------------------------------------------------------------------------


def saved(folder, pieces, kind="encoder", **changes):
    from transformers import PreTrainedTokenizerFast

    model = (encoder if kind == "encoder" else mlm)("smoke", **changes)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=pieces.tokenizer, cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]",
    ).save_pretrained(folder)
    return model


def test_a_folder_comes_back_with_its_tokenizer(tmp_path):
    pieces = wordpieces(200, ["a few words to learn from", "and a few more of them"])
    model = saved(tmp_path / "m", pieces)
    found, own = from_folder(tmp_path / "m", "encoder")
    text = ["a few more words"]
    assert own.rows(text).ids.tolist() == pieces.rows(text).ids.tolist()
    ids, mask = pieces.rows(text).batch([0])
    torch.testing.assert_close(states(found, ids, mask), states(model, ids, mask))
    headed, _ = from_folder(tmp_path / "m", "mlm", seed=3)
    torch.testing.assert_close(states(headed, ids, mask), states(model, ids, mask))
    assert headed.cls.predictions.decoder.weight is headed.bert.embeddings.word_embeddings.weight


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UnknownNameError, match="small"):
        start("smal", "encoder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"config\.json"):
        from_folder(tmp_path / "empty", "encoder")
    pieces = wordpieces(200, ["a few words to learn from", "and a few more of them"])
    saved(tmp_path / "m", pieces, vocab_size=len(pieces) - 1)
    with pytest.raises(DataError, match="tokenizer has"):
        from_folder(tmp_path / "m", "encoder")


def test_an_unknown_architecture_is_refused():
    from passband.errors import CheckpointError

    with pytest.raises(CheckpointError, match="no-such"):
        build({"model_type": "no-such"}, "encoder")


# ---- word pieces ---------------------------------------------------------------------------------

TEXTS = ["The cat sat on the mat.", "Étude — naïve café, déjà vu!", "x" * 300, "", "[SEP] [MASK]"]


def test_pieces_are_those_of_the_package_one_text_at_a_time():
    pieces = wordpieces(300, TEXTS[:2] * 3)
    rows = pieces.rows(TEXTS)
    for place, text in enumerate(TEXTS):
        alone = pieces.tokenizer.encode(text, add_special_tokens=False).ids
        assert rows[place].tolist() == [pieces.cls, *alone, pieces.sep]
    assert not set(rows[4][1:-1].tolist()) & {pieces.sep, pieces.mask}  # text, no markup


@pytest.mark.parametrize("length", [2, 3, 8, 40])
def test_cutting_early_gives_the_first_tokens(length):
    pieces = wordpieces(300, TEXTS[:2] * 3)
    texts = [" ".join(TEXTS[:2] * 30), "a  b\n\tc " * 50, TEXTS[0]]
    whole, cut = pieces.rows(texts), pieces.rows(texts, length)
    for place in range(len(texts)):
        inside = whole[place][1:-1][: length - 2].tolist()
        assert cut[place].tolist() == [pieces.cls, *inside, pieces.sep]
    assert cut.cut == int((whole.lengths > length).sum())


def test_training_is_the_same_in_every_process(tmp_path):
    """The package alone is not: it numbers characters in the order of a hash table."""
    import subprocess
    import sys

    code = (
        "from passband.retrieval.wordpieces import wordpieces\n"
        "from pathlib import Path; import passband\n"
        "root = Path(passband.__file__).parent\n"
        "texts = [p.read_text() for p in sorted(root.glob('bench/*.py'))]\n"
        "print(wordpieces(1500, texts).fingerprint)"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True
                       ).stdout.strip() for _ in range(3)
    }
    assert len(found) == 1


def test_too_little_to_learn_pieces_from():
    with pytest.raises(DataError, match="without a single word"):
        wordpieces(100, ["", " "])
    with pytest.raises(DataError, match="characters"):
        wordpieces(10, ["a sentence of many letters"])


def test_a_damaged_tokenizer_is_refused():
    from passband.errors import CheckpointError

    with pytest.raises(CheckpointError, match="tokenizer"):
        WordPieces.of(np.frombuffer(b"{", np.uint8))


# ---- rows ----------------------------------------------------------------------------------------


def test_batches_hold_every_row_once_and_little_padding():
    rng = np.random.default_rng(1)
    rows = TokenRows.of([rng.integers(1, 99, n) for n in rng.integers(1, 60, 500)])
    seen = []
    for places, ids, mask in rows.batches(tokens=512):
        assert ids.numel() <= 512
        for place, row, keep in zip(places, ids, mask, strict=True):
            assert row[keep].tolist() == rows[place].tolist()
        seen += places.tolist()
    assert sorted(seen) == list(range(500))
    in_order = 1 - rows.lengths.sum() / sum(
        len(part) * rows.lengths[part].max() for part in np.array_split(np.arange(500), 30)
    )
    assert rows.padding(tokens=512) < 0.1 < in_order
