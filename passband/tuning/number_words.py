"""A small BERT that knows numerals in eight languages, and a task that is taught in English only.

>>> model = pretrained_number_words("smoke")
>>> data = number_words(seed=0, size="smoke")
>>> out = data.train.output(model, data.train.collate([data.train.examples[0]]))
>>> out.logits.shape
torch.Size([1, 10])

Pretraining: masked language modelling on "digits = words" lines in all languages, of three of them
one line in twenty (`passband.data.number_words`). Task: the last digit of a number in English
words. Test: held-out numbers in the three languages, of which the task shows nothing. Text of these
languages has words alone, no digits.

The model is a `BertForMaskedLM` that carries a `classifier` beside its own head: names are
`bert.*`, `cls.*` and `classifier.*`, as of the usual pair ForMaskedLM and ForTokenClassification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.bench.task import Data, Size
from passband.data.cache import stored_tensors
from passband.data.number_words import FIRST_WORD, MASK, NEXT, PAD, NumberWords
from passband.data.number_words import number_words as corpus
from passband.parts.pretraining import pretrain
from passband.tuning.adaptation import Adaptation, Output
from passband.tuning.crosslingual import CrossLingual, TransferExam
from passband.tuning.models.library import quiet, seeded, transformers, versions

CLASSES = 10
SOURCE = "en"
LENGTH = 40  # longest row


@dataclass(frozen=True)
class Recipe:
    """Shape and pretraining of the model, and its languages."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    steps: int = 2500
    batch_size: int = 32
    lr: float = 7e-4
    warmup: int = 100
    masked: float = 0.35
    high: tuple[str, ...] = ("en", "fr", "es", "pl", "id")
    low: tuple[str, ...] = ("kz", "eo", "vi")
    seed: int = 0

    def data(self) -> NumberWords:
        return corpus(self.high, self.low)

    def model(self) -> Any:
        """Fresh weights."""
        library = transformers()
        config = library.BertConfig(
            vocab_size=len(self.data().vocabulary), hidden_size=self.width,
            num_hidden_layers=self.layers, num_attention_heads=self.heads,
            intermediate_size=4 * self.width, max_position_embeddings=LENGTH,
            type_vocab_size=1, pad_token_id=PAD, initializer_range=0.05,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
        with quiet(), seeded(self.seed):
            model = library.BertForMaskedLM(config)
            model.classifier = nn.Linear(self.width, CLASSES)
            nn.init.normal_(model.classifier.weight, std=0.02)
            nn.init.zeros_(model.classifier.bias)
        return model


RECIPES = {
    "small": Recipe(),
    "smoke": Recipe(width=32, layers=1, heads=2, steps=60, warmup=5, high=("en",), low=("kz",)),
}


@dataclass(frozen=True)
class Scale:
    """How much of everything a size has."""

    recipe: str
    examples: int
    texts: int
    held_out: int  # rows of each masked-LM loss


SCALES: dict[str, Scale] = {
    "smoke": Scale("smoke", 200, 200, 40),
    "small": Scale("small", 3000, 3000, 300),
    "full": Scale("small", 20_000, 20_000, 1000),
}


# ---- the model -----------------------------------------------------------------------------------


def pretrained_number_words(preset: str = "small") -> Any:
    """A fresh copy of the pretrained model; made at the first call, then read from the cache."""
    recipe = RECIPES[preset]
    model = recipe.model()
    key = {"version": 1, **asdict(recipe), "data": recipe.data().fingerprint, **versions()}
    state = stored_tensors("number-words", key, lambda: _pretrained(recipe))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])
    return model.eval()


def _pretrained(recipe: Recipe) -> dict[str, Tensor]:
    model, data = recipe.model(), recipe.data()
    rows = data.pretraining(recipe.steps * recipe.batch_size, recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    batches = iter(range(0, len(rows), recipe.batch_size))

    def loss() -> Tensor:
        start = next(batches)
        batch = [
            masked(row, rng, recipe.masked, len(data.vocabulary))
            for row in rows[start : start + recipe.batch_size]
        ]
        return masked_lm(model, collate(batch)).loss

    pretrain(model, loss, steps=recipe.steps, lr=recipe.lr, warmup=recipe.warmup)
    return dict(model.named_parameters())  # the tied projection once


# ---- rows and losses -----------------------------------------------------------------------------


def masked(
    row: Sequence[int], rng: np.random.Generator, share: float, vocabulary: int
) -> tuple[list[int], list[int]]:
    """BERT's corruption: of the chosen tokens 80 % hidden, 10 % exchanged, 10 % as they are.

    Only digits and words are chosen, one at least. Returns ids and labels (-100: not asked).
    """
    ids, labels = list(row), [-100] * len(row)
    free = [i for i, token in enumerate(row) if token > NEXT]
    chosen = [i for i in free if rng.random() < share] or [free[rng.integers(len(free))]]
    for i in chosen:
        labels[i], roll = row[i], rng.random()
        if roll < 0.8:
            ids[i] = MASK
        elif roll < 0.9:
            ids[i] = int(rng.integers(FIRST_WORD, vocabulary))
    return ids, labels


@dataclass(frozen=True)
class Masked:
    """Rows as masked-LM examples: another mask each time one is drawn.

    Read by index, an example's mask is fixed: what a loss on held-out text needs, so that it does
    not change with the draw.
    """

    rows: Sequence[Sequence[int]]
    vocabulary: int
    share: float = 0.15

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        return masked(self.rows[index], rng, self.share, self.vocabulary)

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        return self.draw(index, np.random.default_rng((index, 1)))


def collate(rows: Sequence[tuple[list[int], list[int] | int]]) -> tuple[dict[str, Tensor], Tensor]:
    """Ids, padded [B, T], with their attention mask; labels [B, T], or [B] of a classifier."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*ids, *[PAD] * (longest - len(ids))] for ids, _ in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    labels = [
        label if isinstance(label, int) else [*label, *[-100] * (longest - len(label))]
        for _, label in rows
    ]
    return inputs, torch.tensor(labels)


def masked_lm(model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Output:
    """Loss at the hidden tokens; the vocabulary projection is computed for these alone."""
    inputs, labels = batch
    wanted = labels != -100
    hidden = model.bert(**inputs).last_hidden_state
    logits = model.cls(hidden[wanted])
    return Output(F.cross_entropy(logits, labels[wanted]), logits, labels[wanted])


def last_digit(model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Output:
    """The classifier reads the mean of the states where the digits are hidden."""
    inputs, labels = batch
    hidden = model.bert(**inputs).last_hidden_state
    columns = (inputs["input_ids"] == MASK).to(hidden.dtype)[..., None]
    logits = model.classifier((hidden * columns).sum(1) / columns.sum(1).clamp_min(1))
    return Output(F.cross_entropy(logits, labels), logits, labels)


# ---- the job -------------------------------------------------------------------------------------


@torch.no_grad()
def accuracy(model: nn.Module, data: NumberWords, language: str) -> float:
    """% of held-out numbers whose last digit is found."""
    numbers = data.numbers("test")
    inputs, labels = collate([(data.prompt(n, language), n % 10) for n in numbers])
    found = last_digit(model, (inputs, labels))
    assert found.logits is not None
    return 100 * float((found.logits.argmax(-1) == labels).float().mean())


@torch.no_grad()
def masked_lm_loss(model: nn.Module, examples: Masked) -> float:
    """Nats a hidden token, always with the same masks."""
    return float(masked_lm(model, collate([examples[i] for i in range(len(examples))])).loss)


def number_words(seed: int = 0, size: Size = "small") -> Data[CrossLingual]:
    """The task, text in its languages, and the exam; `seed` draws examples and texts."""
    scale = SCALES[size]
    recipe = RECIPES[scale.recipe]
    data = recipe.data()
    vocabulary = len(data.vocabulary)

    def fresh() -> nn.Module:
        model: nn.Module = pretrained_number_words(scale.recipe)
        return model

    def text(language: str) -> Adaptation:
        examples = Masked(data.texts(language, scale.texts, seed), vocabulary)
        return Adaptation(
            f"number-words-{language}", fresh, examples, masked_lm, kind="masked-lm",
            head=("cls",), collate=collate,
        )

    def task(language: str) -> list[tuple[list[int], int]]:
        return [
            (data.prompt(n, language), n % 10) for n in data.draws(scale.examples, seed)
        ]

    held_out = {
        language: Masked(data.texts(language, scale.held_out, 0, "test"), vocabulary)
        for language in data.languages
    }
    known = Masked(data.pretraining(scale.held_out, recipe.seed + 1), vocabulary)
    job = CrossLingual(
        "number-words", fresh, task(SOURCE), last_digit, kind="classification",
        head=("classifier",), collate=collate, source=SOURCE,
        texts={language: text(language) for language in (SOURCE, *data.low)},
        sources={language: task(language) for language in recipe.high},
        sources_texts={language: text(language) for language in recipe.high if language != SOURCE},
    )
    exam = TransferExam(
        fresh, lambda model, language: accuracy(model, data, language),
        lambda model, language: masked_lm_loss(model, held_out[language]),
        lambda model: -masked_lm_loss(model, known), SOURCE, data.low,
        tuple(language for language in recipe.high if language != SOURCE),
    )
    return Data(job, test=exam, name="number-words")
