"""Word pieces: a tokenizer trained on any corpus in seconds, and texts as rows of token ids.

>>> pieces = wordpieces(60, ["the cat sat on the mat", "the dog sat on the log"])
>>> pieces.texts(pieces.rows(["the cat"], max_length=8).ids)
['[CLS]', 'the', 'cat', '[SEP]']
>>> WordPieces.of(pieces.state()).fingerprint == pieces.fingerprint
True

A sequence is [CLS] pieces [SEP]. The same corpus gives the same pieces in every process.

Source: Schuster and Nakajima, ICASSP 2012, as BERT uses it; trained by the package `tokenizers`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np

from passband.data.cache import digest, stored
from passband.errors import CheckpointError, DataError, MissingExtraError
from passband.retrieval.token_rows import TokenRows

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# What other families of tokenizers call them.
OTHER_NAMES = {
    "[PAD]": ("<pad>",), "[UNK]": ("<unk>",), "[CLS]": ("<s>", "<|startoftext|>"),
    "[SEP]": ("</s>", "<|endoftext|>"), "[MASK]": ("<mask>",),
}
MOST_CHARACTERS = 1000  # the most frequent ones; others are [UNK]
FEW = 1024  # pieces, for which little text is enough
TOGETHER = 1024  # texts tokenised at a time


class WordPieces:
    """A `tokenizers.Tokenizer` of any kind, with the numbers of its special tokens.

    Attributes pad, unk, cls, sep, mask: ids. Raises `DataError` where [CLS] or [SEP] is missing.
    """

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
        self.tokenizer = tokenizer
        found = {name: self._id(name) for name in SPECIAL}
        missing = [name for name in ("[CLS]", "[SEP]") if found[name] is None]
        if missing:
            raise DataError(
                f"the tokenizer has no {' and no '.join(missing)}",
                expected="a tokenizer of an encoder, as BERT's or RoBERTa's",
                mend="give another model's folder",
            )
        self.cls, self.sep = found["[CLS]"], found["[SEP]"]
        # What a tokenizer lacks is never read where attention masks hold.
        self.pad, self.unk, self.mask = found["[PAD]"] or 0, found["[UNK]"], found["[MASK]"]
        self.special = frozenset(number for number in found.values() if number is not None)

    def _id(self, name: str) -> int | None:
        names = (name, *OTHER_NAMES[name])
        return next((i for n in names if (i := self.tokenizer.token_to_id(n)) is not None), None)

    def __len__(self) -> int:
        """Tokens of the vocabulary, special ones included."""
        return int(self.tokenizer.get_vocab_size())

    @cached_property
    def tokens(self) -> list[str]:
        """All tokens by id."""
        known = {number: token for token, number in self.tokenizer.get_vocab().items()}
        return [known.get(i, "") for i in range(max(known) + 1)]

    @property
    def lowercase(self) -> bool:
        """Capitals are made small before a text is cut into pieces."""
        normalizer = self.tokenizer.normalizer
        return normalizer is not None and normalizer.normalize_str("A") == "a"

    def texts(self, ids: Iterable[int]) -> list[str]:
        """The tokens of ids."""
        return [self.tokens[int(i)] for i in ids]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: the same for tokenizers that give the same ids."""
        return digest([self.tokenizer.to_str()])

    def rows(
        self, texts: Sequence[str], max_length: int | None = None, *, specials: bool = True
    ) -> TokenRows:
        """Token ids of texts, one after the other; `cut` counts those that were too long.

        max_length  of a row, [CLS] and [SEP] included
        specials    False: the pieces alone
        """
        around = 2 if specials else 0
        limit = None if max_length is None else max(0, max_length - around)
        parts: list[np.ndarray] = []
        lengths, cut = np.empty(len(texts), np.int64), 0
        for start in range(0, len(texts), TOGETHER):
            block = [_beginning(text, limit) for text in texts[start : start + TOGETHER]]
            encoded = self.tokenizer.encode_batch_fast(block, add_special_tokens=False)
            for place, one in enumerate(encoded, start):
                ids = one.ids
                if limit is not None and len(ids) > limit:
                    ids, cut = ids[:limit], cut + 1
                row = [self.cls, *ids, self.sep] if specials else ids
                parts.append(np.asarray(row, np.int32))
                lengths[place] = len(row)
        ids = np.concatenate(parts) if parts else np.empty(0, np.int32)
        return TokenRows(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), cut)

    # ---- as an array, for saved systems ------------------------------------------------------

    def state(self) -> np.ndarray:
        """All of it as bytes, [n] uint8."""
        return np.frombuffer(self.tokenizer.to_str().encode(), np.uint8).copy()

    @classmethod
    def of(cls, state: Any) -> WordPieces:
        """Back from `state()`; `CheckpointError` when that is damaged."""
        library = tokenizers()
        try:
            text = np.asarray(state, np.uint8).tobytes().decode()
            return cls(library.Tokenizer.from_str(text))
        except Exception as error:  # noqa: BLE001 - the package raises plain Exceptions
            raise CheckpointError(
                f"the saved tokenizer can't be read: {str(error)[:200]}",
                expected="what WordPieces.state() gives", mend="train again or copy it again",
            ) from None

    @classmethod
    def of_transformers(cls, tokenizer: Any) -> WordPieces:
        """From a transformers tokenizer; `DataError` for a slow one."""
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is None or not hasattr(fast, "encode_batch_fast"):
            raise DataError(
                f"a {type(tokenizer).__name__}", expected="a fast tokenizer (tokenizer.json)",
                mend="convert it with transformers' convert_slow_tokenizer",
            )
        # A copy: padding and truncation of the other one stay as they are.
        return cls(tokenizers().Tokenizer.from_str(fast.to_str()))


def _beginning(text: str, tokens: int | None) -> str:
    """So much of a text that it has more than so many tokens: each word has one or more."""
    if tokens is None or len(text) <= 2 * tokens:
        return text
    found = _words(tokens + 1).match(text)
    return text if found is None else text[: found.end()]


@cache
def _words(count: int) -> re.Pattern[str]:
    return re.compile(rf"\s*(?:\S+\s+){{{count}}}")


def tokenizers() -> Any:
    """The package `tokenizers`; `MissingExtraError` where it is not installed."""
    try:
        import tokenizers as found
    except ModuleNotFoundError:
        raise MissingExtraError("tokenizers", "retrieval") from None
    return found


def wordpieces(
    size: int = 8192, corpus: Any = None, *, lowercase: bool = True
) -> WordPieces:
    """Word pieces learned from a corpus, cached where the corpus has a fingerprint.

    size    of the vocabulary at most, special tokens included: a small corpus gives fewer
    corpus  texts, or a `Corpus` of documents; None: embedded text, which needs no download (see
            `embedded`; of the standard library alone for at most 1,024 pieces)

    Raises `DataError` for a corpus without words or a size that its characters alone fill.
    """
    if corpus is None:
        return _embedded(size, lowercase)
    known = getattr(corpus, "fingerprint", None)
    if known is None:
        return _train(list(_texts(corpus)), size, lowercase)
    key = {
        "version": 1, "size": size, "lowercase": lowercase, "data": known,
        "tokenizers": tokenizers().__version__,
    }
    path = stored(
        "word-pieces", key,
        lambda path: path.write_text(
            _train(list(_texts(corpus)), size, lowercase).tokenizer.to_str(), encoding="utf-8"
        ), suffix=".json",
    )
    return WordPieces(tokenizers().Tokenizer.from_file(str(path)))


@cache
def _embedded(size: int, lowercase: bool) -> WordPieces:
    from passband.retrieval.embedded import embedded_corpus

    corpus = embedded_corpus("smoke" if size <= FEW else "full")
    return wordpieces(size, corpus, lowercase=lowercase)


def _texts(corpus: Any) -> Iterable[str]:
    return (one if isinstance(one, str) else one.full for one in corpus)


def _train(texts: Sequence[str], size: int, lowercase: bool) -> WordPieces:
    library = tokenizers()
    normalizer = library.normalizers.BertNormalizer(lowercase=lowercase)
    split = library.pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(normalizer.normalize_str(text)))
    # Most frequent first, ties by code point.
    ranked = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    characters = sorted(ranked[:MOST_CHARACTERS])
    continued = [f"##{c}" for c in characters]
    least = len(SPECIAL) + len(characters) + len(continued)
    if not characters:
        raise DataError(
            f"{len(texts)} texts without a single word", expected="texts to learn word pieces from"
        )
    if size < least:
        raise DataError(
            f"a vocabulary of {size} tokens for {len(characters)} characters",
            expected=f"at least {least}", mend="take a larger backbone or vocabulary",
        )
    # The package numbers continued characters in the order of a hash table, which differs from
    # process to process, and with it which pieces are merged. Named beforehand they have one order.
    learner = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, split
    learner.train_from_iterator(texts, library.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, *continued], initial_alphabet=characters,
        limit_alphabet=len(characters), show_progress=False,
    ))
    # A fresh one around the same vocabulary: the continued characters are no special tokens.
    fresh = library.Tokenizer(library.models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    fresh.normalizer, fresh.pre_tokenizer = normalizer, split
    fresh.decoder = library.decoders.WordPiece()
    fresh.add_special_tokens(list(SPECIAL))
    return WordPieces(fresh)
