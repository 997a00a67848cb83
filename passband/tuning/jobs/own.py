"""The user's own text or labels, on the user's own model or on the small ones that come along.

>>> import json
>>> with open("sums.jsonl", "w") as file:
...     for i in range(20):
...         print(json.dumps({"prompt": f"{i} + 1 = ", "response": f"{i + 1}"}), file=file)
>>> data = text(Path("sums.jsonl"))             # on the byte-level Llama
>>> len(data.train.examples)                    # a tenth is held out
18

A model of one's own is a folder, `text(path, model=Path("my-llama"))`; `labels` is the same for
rows with a text and a label, on MiniLM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.bench.task import Data, Size
from passband.data import instructions
from passband.data.instructions import Rows
from passband.data.tokens import Labels, Tokens
from passband.errors import DataError
from passband.tuning.adaptation import Adaptation, Exam, causal_lm, classifier
from passband.tuning.jobs import packages
from passband.tuning.jobs import text as bytes_jobs
from passband.tuning.measures import once
from passband.tuning.models import (
    SentenceClassifier,
    head_of,
    load_model,
    load_tokenizer,
    mean_reciprocal_rank,
    minilm_tokenizer,
    pretrained_byte_lm,
)

LONGEST = 256  # tokens of an example
HELD_OUT = 0.1  # of the rows
LEAST = 10  # rows: below it there is nothing to hold out


def text(path: Path, model: Path | None = None) -> Data[Adaptation]:
    """Instructions, chats or documents for a causal LM; a tenth of the rows is held out.

    model  folder of a transformers model with its tokenizer; None: the byte-level Llama
    Raises `DataError` for files and folders that can't be read.
    """
    tokenizer = load_tokenizer(model) if model else instructions.ByteTokenizer()
    train, test = _split(instructions.read(path))
    known, asked = (
        instructions.tokenize(rows, tokenizer, max_length=LONGEST) for rows in (train, test)
    )
    build = partial(load_model, model, "causal-lm") if model else pretrained_byte_lm
    base = _documents(tokenizer, 100)

    def measure(model: nn.Module) -> Mapping[str, float]:
        kept = bits(model, base, tokenizer)
        return {"target": bits(model, asked, tokenizer), "retention": -kept, "out_of_domain": -kept}

    batches = [known.collate([known[j] for j in range(i, min(i + 8, len(known)))])
               for i in range(0, min(64, len(known)), 8)]
    knowledge = [base.collate([base[j] for j in range(i, i + 8)]) for i in range(0, 64, 8)]
    return Data(
        train=Adaptation(
            "own-text", build, known, causal_lm, "causal-lm", collate=known.collate,
            calibration={
                "task": [bytes_jobs.as_call(*batch) for batch in batches],
                "knowledge": [bytes_jobs.as_call(*batch) for batch in knowledge],
            },
            validation=lambda model: {"bits_per_byte": bits(model, asked, tokenizer)},
        ),
        test=Exam(build, measure, once(measure, build)), name=path.name,
    )


def labels(path: Path, model: Path | None = None) -> Data[Adaptation]:
    """Texts with labels for an encoder; a tenth of the rows is held out.

    model  folder of a transformers encoder with its tokenizer; None: MiniLM
    """
    tokenizer = load_tokenizer(model) if model else minilm_tokenizer()
    rows = instructions.read(path)
    classes = instructions.tokenize_labelled(rows, tokenizer).classes
    train, test = _split(rows)
    known, asked = (
        instructions.tokenize_labelled(part, tokenizer, max_length=LONGEST, classes=classes)
        for part in (train, test)
    )
    build: Callable[[], Any] = (
        partial(load_model, model, "sentences", len(classes)) if model
        else partial(SentenceClassifier, len(classes))
    )
    pairs = packages.retrieval_pairs(100)

    def measure(model: nn.Module) -> Mapping[str, float]:
        kept = mean_reciprocal_rank(model, tokenizer, pairs.queries, pairs.targets)
        return {
            "target": packages.accuracy(model, asked), "retention": kept, "out_of_domain": kept,
        }

    return Data(
        train=Adaptation(
            "own-labels", build, known, classifier, "classification",
            head=head_of(build()), collate=known.collate,
            calibration=_batches(known),
            validation=lambda model: {"accuracy": packages.accuracy(model, asked)},
        ),
        test=Exam(build, measure, once(measure, build)), name=path.name,
    )


def text_example(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    raise _needs_file("chats.jsonl", "messages, prompt/response, instruction/output or text")


def labels_example(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    raise _needs_file("reviews.jsonl", "text and label")


def _needs_file(name: str, columns: str) -> DataError:
    return DataError(
        "this task has no data of its own", expected=f"a file with {columns}",
        mend=f"add --data {name} (and --model FOLDER for a model of your own)",
    )


def _split(rows: Rows) -> tuple[Rows, Rows]:
    """Nine tenths and one, drawn once and for all."""
    if len(rows) < LEAST:
        raise DataError(
            f"{rows.source} has {len(rows)} rows",
            expected=f"at least {LEAST}: a tenth is held out", mend="add rows",
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    out = max(1, round(HELD_OUT * len(rows)))
    return rows.subset(sorted(order[out:])), rows.subset(sorted(order[:out]))


@torch.no_grad()
def bits(model: nn.Module, data: Tokens, tokenizer: Any, batch_size: int = 16) -> float:
    """Bits per byte of the text that is asked for, whatever the tokenizer makes of it."""
    total, count = 0.0, 0
    for start in range(0, len(data), batch_size):
        stop = min(start + batch_size, len(data))
        ids, wanted = data.collate([data[i] for i in range(start, stop)])
        out = causal_lm(model, (ids, wanted))
        assert out.logits is not None and out.labels is not None
        total += float(F.cross_entropy(out.logits.float(), out.labels, reduction="sum"))
        # A token without text of its own, as the end of a sequence, counts as one byte.
        count += max(len(out.labels[:1]), len(tokenizer.decode(out.labels.tolist()).encode()))
    return total / max(count, 1) / math.log(2)


def _documents(tokenizer: Any, count: int) -> Tokens:
    """Held-out docstrings: what any text model knows something about."""
    from passband.data.text import docstrings

    pieces = [p for d in docstrings().test for p in d.split("\n\n") if 40 <= len(p) <= 400]
    texts = [{"text": piece} for piece in pieces[:count]]
    rows = instructions.from_rows(texts, source="docstrings")
    return instructions.tokenize(rows, tokenizer, max_length=64)


def _batches(data: Labels) -> dict[str, list[dict[str, Tensor]]]:
    count = min(len(data), 128)
    task = [
        packages.as_call(*data.collate([data[j] for j in range(i, min(i + 16, count))]))
        for i in range(0, count, 16)
    ]
    return {"task": task, "knowledge": task}
