"""How a page encodes a query, as a system tells it in `Retriever.page_encoder`.

    TokenTable   terms of the text, each with a weight from a table        -> sparse
    SmallBert    word pieces, a small network, the mean of its states      -> dense

>>> split = Words({"glacier": 0, "river": 1}, stem=lambda words: [w.rstrip("s") for w in words])
>>> packed = split.pack([0, 1], ["Rivers of ice."])
>>> packed["terms"], packed["endings"][:2], packed["forms"]
(['glacier', 'river'], ['', 's'], ['ab', 'ab'])
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from passband.retrieval.search_page.packing import Packed, packed, packed_rows

Array = np.ndarray[Any, Any]
MOST = 4_000_000  # parameters of a network that a page carries, a byte each
# A word of a query may be none of the corpus: its stem is found by the ending. "=" doubles the
# stem's last letter (plot, plotting), "-" takes it off (categori, category).
ENDINGS = (
    "", "s", "es", "ed", "d", "ing", "e", "er", "ers", "r", "rs", "or", "ors", "ly", "y", "al",
    "ally", "ation", "ations", "ion", "ions", "ment", "ness", "able", "ive",
    "=ing", "=ed", "=er", "=ers", "-y",
)
_WORD = re.compile(r"\w\w+")


@dataclass(frozen=True)
class Words:
    """Lower-case runs of two and more letters, stop words left out, perhaps stemmed.

    columns  term -> column of the vectors
    stem     words to their stems
    """

    columns: Mapping[str, int]
    stopwords: Sequence[str] = ()
    stem: Callable[[list[str]], list[str]] | None = None

    def fits(self) -> bool:
        return True

    def pack(self, used: Sequence[int], texts: Iterable[str]) -> dict[str, Any]:
        """Terms of the used columns, with the words that have them as stems.

        texts  what words are taken from, besides those that `ENDINGS` make
        """
        names = {column: term for term, column in self.columns.items()}
        terms = [names[int(column)] for column in used]
        numbers = {term: i for i, term in enumerate(terms)}
        forms, irregular = ["a"] * len(terms), {}
        if self.stem is not None:
            made = [_form(term, ending) for term in terms for ending in ENDINGS]
            stems = iter(self.stem(made))
            forms = [
                "".join(chr(97 + i) for i in range(len(ENDINGS)) if next(stems) == term)
                for term in terms
            ]
            irregular = self._irregular(numbers, forms, texts)
        return {
            "kind": "words", "stopwords": list(self.stopwords), "terms": terms,
            "endings": list(ENDINGS), "forms": forms, "irregular": irregular,
        }

    def _irregular(
        self, numbers: Mapping[str, int], forms: Sequence[str], texts: Iterable[str]
    ) -> dict[str, int]:
        regular = {
            _form(term, ENDINGS[ord(letter) - 97])
            for term, found in zip(numbers, forms, strict=True) for letter in found
        }
        seen = {word for text in texts for word in _WORD.findall(text.lower())}
        words = sorted(seen - regular)
        assert self.stem is not None
        return {
            word: numbers[stem] for word, stem in zip(words, self.stem(words), strict=True)
            if stem in numbers
        }


def _form(term: str, ending: str) -> str:
    """
    >>> _form("plot", "=ing"), _form("categori", "-y"), _form("glacier", "s")
    ('plotting', 'category', 'glaciers')
    """
    stem = {"=": term + term[-1:], "-": term[:-1]}.get(ending[:1], term)
    return stem + ending.lstrip("=-")


@dataclass(frozen=True)
class Pieces:
    """BERT's word pieces; a piece's number is its column."""

    pieces: Any

    def fits(self) -> bool:
        """Whether the tokenizer is one of those that `words.js` knows: BERT's."""
        made = json.loads(self.pieces.tokenizer.to_str())
        parts = ("normalizer", "pre_tokenizer", "model")
        kinds = [(made.get(part) or {}).get("type") for part in parts]
        if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
            return False
        normalizer, model = made["normalizer"], made["model"]
        return (
            normalizer["clean_text"] and normalizer["handle_chinese_chars"]
            and normalizer["strip_accents"] in (None, normalizer["lowercase"])
            and model["continuing_subword_prefix"] == "##"
            and model["max_input_chars_per_word"] == 100 and self.pieces.unk is not None
        )

    def pack(self, used: Sequence[int], texts: Iterable[str] = ()) -> dict[str, Any]:
        lowercase = json.loads(self.pieces.tokenizer.to_str())["normalizer"]["lowercase"]
        return {
            "kind": "pieces", "tokens": self.pieces.tokens, "unknown": self.pieces.unk,
            "lowercase": lowercase, "used": packed(used, "int32"),
        }


@dataclass(frozen=True)
class TokenTable:
    """Queries without a network.

    weights  of a term in a query, [V]; None: 1
    once     a term that comes twice counts once
    """

    split: Words | Pieces
    weights: Array | None = None
    once: bool = False

    def fits(self) -> bool:
        return self.split.fits()


@dataclass(frozen=True)
class SmallBert:
    """Dense queries by BERT without a pooler; larger ones than MOST are no matter of a page.

    limit  tokens at most, [CLS] and [SEP] included
    unit   vectors of length 1
    """

    network: Any
    pieces: Any
    limit: int
    pooling: str = "average"
    unit: bool = False

    def fits(self) -> bool:
        config = getattr(self.network, "config", None)
        return (
            type(self.network).__name__ == "BertModel" and config.hidden_act == "gelu"
            and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
            and self.parameters <= MOST and self.pooling in ("average", "cls")
            and Pieces(self.pieces).fits()
        )

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    def pack(self) -> dict[str, Any]:
        """What `Dense` of search.js takes, besides the documents' vectors."""
        e, config = self.network.embeddings, self.network.config
        return {
            "split": Pieces(self.pieces).pack([]), "around": [self.pieces.cls, self.pieces.sep],
            "limit": self.limit,
            "bert": {
                "heads": config.num_attention_heads, "eps": config.layer_norm_eps,
                "pooling": self.pooling, "unit": self.unit,
                "embeddings": {
                    "words": _rows(e.word_embeddings.weight),
                    "positions": _rows(e.position_embeddings.weight[: self.limit]),
                    "type": _floats(e.token_type_embeddings.weight[0]),
                    "scale": _floats(e.LayerNorm.weight), "shift": _floats(e.LayerNorm.bias),
                },
                "layers": [_layer(layer) for layer in self.network.encoder.layer],
            },
        }


PageEncoder: TypeAlias = TokenTable | SmallBert


def _layer(layer: Any) -> dict[str, Packed]:
    attention = layer.attention
    linear = {
        "q": attention.self.query, "k": attention.self.key, "v": attention.self.value,
        "mix": attention.output.dense, "inner": layer.intermediate.dense,
        "outer": layer.output.dense,
    }
    norms = {"mix": attention.output.LayerNorm, "outer": layer.output.LayerNorm}
    return (
        {name: _rows(part.weight) for name, part in linear.items()}
        | {f"{name}_bias": _floats(part.bias) for name, part in linear.items()}
        | {f"{name}_scale": _floats(part.weight) for name, part in norms.items()}
        | {f"{name}_shift": _floats(part.bias) for name, part in norms.items()}
    )


def _rows(tensor: Any) -> Packed:
    return packed_rows(tensor.detach().float().cpu().numpy())


def _floats(tensor: Any) -> Packed:
    return packed(tensor.detach().float().cpu().numpy(), "float32")
