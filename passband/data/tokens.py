"""From pieces of text to token ids and labels, by a transformers tokenizer or as bytes.

>>> from passband.data.chat import Segment
>>> row = [Segment("2+2=", False), Segment("4", True)]
>>> found = tokenize_segments([row], ByteTokenizer(), 8, True, str)
>>> found[0][1].tolist()
[-100, -100, -100, -100, 52, 0]
>>> found.facts()
{'rows': 1, 'tokens': 6, 'learned': 2, 'cut': 0, 'unsupervised': 0}
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from passband.data.chat import Segment
from passband.data.text import IGNORED, PAD, collate
from passband.errors import DataError, PassbandWarning

Where = Callable[[int], str]
Example = tuple[Tensor, Tensor]


class ByteTokenizer:
    """UTF-8 bytes as tokens; 0, which texts don't hold, ends a sequence and fills batches."""

    vocab_size: ClassVar[int] = 256
    eos_token_id: ClassVar[int] = PAD
    pad_token_id: ClassVar[int] = PAD
    chat_template: ClassVar[None] = None

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != PAD).decode("utf-8", "replace")


@dataclass(frozen=True)
class Tokens(Sequence[Any]):
    """Examples (ids [T], labels [T]) for the training loop.

    kept          the row that each example comes from
    unsupervised  rows that were left out, for nothing in them is learned
    cut           rows that were longer than the limit
    """

    examples: tuple[Example, ...]
    kept: tuple[int, ...]
    unsupervised: tuple[int, ...]
    cut: tuple[int, ...]
    pad: int = PAD

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        return self.examples[index]

    def collate(self, examples: Sequence[Example]) -> Example:
        """A batch: ids [B, T] filled up with the tokenizer's padding, labels with -100."""
        return collate(examples, self.pad)

    def facts(self) -> dict[str, int]:
        """What became of the rows, for reports."""
        return {
            "rows": len(self.examples) + len(self.unsupervised),
            "tokens": sum(len(ids) for ids, _ in self.examples),
            "learned": sum(int((labels != IGNORED).sum()) for _, labels in self.examples),
            "cut": len(self.cut), "unsupervised": len(self.unsupervised),
        }


@dataclass(frozen=True)
class Preferences(Sequence[Any]):
    """Examples (chosen, rejected), each (ids, labels)."""

    examples: tuple[tuple[Example, Example], ...]
    unsupervised: tuple[int, ...]
    pad: int = PAD

    @classmethod
    def of(cls, chosen: Tokens, rejected: Tokens) -> Preferences:
        """Rows that both sides have something to learn from."""
        first = dict(zip(chosen.kept, chosen.examples, strict=True))
        second = dict(zip(rejected.kept, rejected.examples, strict=True))
        both = [row for row in chosen.kept if row in second]
        if not both:
            raise DataError(
                "no row has both a chosen and a rejected answer", expected="at least one",
                mend="check the file",
            )
        dropped = {*chosen.unsupervised, *rejected.unsupervised}
        pairs = tuple((first[row], second[row]) for row in both)
        return cls(pairs, tuple(sorted(dropped)), chosen.pad)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        return self.examples[index]

    def collate(self, examples: Sequence[tuple[Example, Example]]) -> tuple[Example, Example]:
        return (
            collate([chosen for chosen, _ in examples], self.pad),
            collate([rejected for _, rejected in examples], self.pad),
        )


@dataclass(frozen=True)
class Labels(Sequence[Any]):
    """Examples (ids by input name, class number), and the names of the classes."""

    examples: tuple[tuple[dict[str, Tensor], int], ...]
    classes: tuple[str, ...]
    pad: int = PAD

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        return self.examples[index]

    def collate(
        self, examples: Sequence[tuple[dict[str, Tensor], int]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """({input_ids, attention_mask, ...: [B, T]}, labels [B])."""
        fill = torch.nn.utils.rnn.pad_sequence
        inputs = {
            name: fill(
                [one[name] for one, _ in examples], batch_first=True,
                padding_value=self.pad if name == "input_ids" else 0,
            )
            for name in examples[0][0]
        }
        return inputs, torch.tensor([label for _, label in examples])


def tokenize_segments(
    rows: Sequence[Sequence[Segment]], tokenizer: Any, max_length: int, eos: bool, where: Where
) -> Tokens:
    """Ids and labels of rows in pieces; `where(i)` names row i in messages."""
    if max_length < 2:
        raise DataError(
            f"max_length = {max_length}", expected="at least 2 tokens", mend="raise max_length"
        )
    examples, kept, unsupervised, cut = [], [], [], []
    end = getattr(tokenizer, "eos_token_id", None) if eos else None
    for index, parts in enumerate(rows):
        if not any(part.learned and part.text.strip() for part in parts):
            unsupervised.append(index)
            continue
        ids, learned = _ids(parts, tokenizer)
        if end is not None and parts[-1].learned and ids[-1] != end:
            ids, learned = [*ids, end], [*learned, True]
        if len(ids) > max_length:
            cut.append(index)
            ids, learned = _fitted(ids, learned, max_length, _opening(tokenizer))
        # A first token is predicted from nothing: a causal model is never asked for it.
        if not any(learned[1:]):
            unsupervised.append(index)
            continue
        row = torch.tensor(ids)
        examples.append((row, torch.where(torch.tensor(learned), row, IGNORED)))
        kept.append(index)
    if unsupervised:
        told = f"{len(unsupervised)} of {len(rows)} rows have nothing to learn"
        if not examples:
            raise DataError(
                f"all {len(rows)} rows have nothing to learn ({where(unsupervised[0])}, ...)",
                expected="responses, or turns of an assistant", mend="check the columns",
            )
        warnings.warn(
            f"{told} and are left out, the first: {where(unsupervised[0])}", PassbandWarning,
            stacklevel=3,
        )
    return Tokens(tuple(examples), tuple(kept), tuple(unsupervised), tuple(cut), _pad(tokenizer))


def _pad(tokenizer: Any) -> int:
    """What fills batches up; never learned, so that any token will do where there is none."""
    found = getattr(tokenizer, "pad_token_id", None)
    return PAD if found is None else int(found)


def _opening(tokenizer: Any) -> int | None:
    found = getattr(tokenizer, "bos_token_id", None)
    return None if found is None else int(found)


def _ids(parts: Sequence[Segment], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Ids of the joined text, and whether each lies (in part) in a learned piece."""
    if isinstance(tokenizer, ByteTokenizer):
        pieces = [(tokenizer.encode(part.text), part.learned) for part in parts]
        return (
            [i for ids, _ in pieces for i in ids],
            [learned for ids, learned in pieces for _ in ids],
        )
    if not getattr(tokenizer, "is_fast", False):
        return _apart(parts, tokenizer)
    # One text, so that no word is torn at a border; a token that reaches into a learned piece
    # is learned.
    text = "".join(part.text for part in parts)
    opening = _opening(tokenizer)
    bos = getattr(tokenizer, "bos_token", None)
    found = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    spans, place = [], 0
    for part in parts:
        if part.learned:
            spans.append((place, place + len(part.text)))
        place += len(part.text)
    learned = [
        start < end and any(start < last and first < end for first, last in spans)
        for start, end in found["offset_mapping"]
    ]
    ids = list(found["input_ids"])
    if opening is not None and not (bos and text.startswith(bos)):
        ids, learned = [opening, *ids], [False, *learned]
    return ids, learned


def _apart(parts: Sequence[Segment], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Piece by piece, for tokenizers that don't tell where their tokens lie."""
    opening = _opening(tokenizer)
    ids: list[int] = [] if opening is None else [opening]
    learned = [False] * len(ids)
    for part in parts:
        more = list(tokenizer.encode(part.text, add_special_tokens=False))
        ids += more
        learned += [part.learned] * len(more)
    return ids, learned


def _fitted(
    ids: list[int], learned: list[bool], limit: int, opening: int | None
) -> tuple[list[int], list[bool]]:
    """At most `limit` tokens: the end of the prompt, and the start of what is learned.

    The response gets what the prompt leaves of the room, and at least half of it.
    """
    first = learned.index(True)
    response = min(len(ids) - first, max(limit - first, (limit + 1) // 2))
    prompt = limit - response
    head: list[int] = []
    if opening is not None and first > prompt >= 1 and ids[0] == opening:
        head, prompt = [opening], prompt - 1
    start = first - min(prompt, first)
    return (
        [*head, *ids[start : first + response]],
        [*([False] * len(head)), *learned[start : first + response]],
    )


def tokenize_labelled(
    rows: Sequence[tuple[str, str | None, str]], tokenizer: Any, max_length: int,
    classes: Sequence[str] | None, where: Where,
) -> Labels:
    """Inputs and class numbers of (text, second text or None, label)."""
    found = sorted({label for _, _, label in rows}, key=_label_order)
    names = tuple(classes) if classes is not None else tuple(found)
    if len(names) < 2:
        raise DataError(
            f"all labels are {names[0]!r}" if names else "there are no labels",
            expected="at least two classes", mend="check the column label",
        )
    numbers = {name: i for i, name in enumerate(names)}
    examples = []
    for index, (text, pair, label) in enumerate(rows):
        if label not in numbers:
            raise DataError(
                f"{where(index)}: the label {label!r}", expected=f"one of {', '.join(names[:12])}",
                mend="mend the row, or train on data that has this label",
            )
        examples.append((_inputs(text, pair, tokenizer, max_length), numbers[label]))
    return Labels(tuple(examples), names, _pad(tokenizer))


def _label_order(label: str) -> tuple[bool, float, str]:
    whole = label.lstrip("-").isdecimal()
    return (not whole, float(label) if whole else 0.0, label)


def _inputs(text: str, pair: str | None, tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    if isinstance(tokenizer, ByteTokenizer):
        ids = tokenizer.encode(text if pair is None else f"{text}\n{pair}")[:max_length] or [PAD]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids)).long()}
    found = tokenizer(text, pair, truncation=True, max_length=max_length)
    return {name: torch.tensor(values) for name, values in found.items()}
