"""Learned sparse retrieval whose queries cost a look-up: no network runs when a query comes in.

    document   w_j(d) = log(1 + ReLU(max_i Z_ij))                Z: logits of a masked LM [L, V]
    query      q_j    = ReLU(idf_j) if piece j is in the query else 0
    score      s(q, d) = sum_j q_j w_j(d)
    penalty    L_FLOPS(w) = sum_j (mean_d w_j(d))^2              on w, not on idf w

    idf_j = ln(1 + (N - df_j + 1/2) / (df_j + 1/2));  1 for pieces that no document has

With u = idf w in the index and a query of ones the penalty is sum_j (mean_d u_j / idf_j)^2: it
weighs 1 / idf^2. Frequent pieces are pressed out of the vectors, rare ones stay. A query of ones
with the same penalty is the plain baseline, which is what this is before `set_idf`.

>>> from passband.retrieval.backbones import mlm
>>> model = InferenceFree(SpladeEncoder(mlm("smoke")), silent=[0, 2, 3])
>>> ids, mask = torch.tensor([[2, 5, 5, 3], [2, 6, 3, 0]]), torch.tensor([[1] * 4, [1, 1, 1, 0]])
>>> model.set_idf(torch.linspace(0, 4, 1024))
>>> model.asked(ids, mask)[0].nonzero().flatten().tolist()
[5]
>>> (model.asked(ids, mask) @ model.documents(ids, mask).T).shape              # scores
torch.Size([2, 2])

    B texts, L tokens, V vocabulary

Source: Geng, Wang, Ru, Yang, arXiv 2411.04403. `documents` is that of SPLADE, `passband.retrieval.
splade`; special tokens are not taken out of the documents, as in the published code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passband.errors import DataError
from passband.retrieval.splade import SpladeEncoder
from passband.retrieval.token_rows import TokenRows

SHOWN = 5  # mismatches that an error lists
FORM = 'JSON {"token": weight}'


class InferenceFree(nn.Module):
    """A document encoder and a table of the queries' weights, all 1 until `set_idf`.

    silent  special tokens, which queries don't have
    train   the table is learned as well; negative entries count as 0
    """

    keep: Tensor

    def __init__(
        self, documents: SpladeEncoder, silent: Sequence[int] = (), *, train: bool = False
    ) -> None:
        super().__init__()
        self.documents = documents
        ones = torch.ones(documents.vocabulary)
        if train:
            self.idf = nn.Parameter(ones)
        else:
            self.register_buffer("idf", ones)
        keep = torch.ones(documents.vocabulary)
        keep[list(silent)] = 0.0
        self.register_buffer("keep", keep)

    @property
    def vocabulary(self) -> int:
        return self.documents.vocabulary

    @property
    def table(self) -> Tensor:
        """Weight of each entry in a query that has it, [V]; 0 for special tokens."""
        weights: Tensor = self.idf.relu() * self.keep
        return weights

    def set_idf(self, idf: Tensor) -> None:
        """Put a table in place; see `check_idf`."""
        with torch.no_grad():
            self.idf.copy_(check_idf(idf, self.vocabulary))

    def asked(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Queries' weights [B, V]: presence times the table, repeats don't count twice."""
        present = torch.zeros(len(ids), self.vocabulary, device=ids.device)
        present.scatter_reduce_(1, ids, mask.to(present.dtype), "amax")
        return present * self.table


def idf_table(blocks: Iterable[TokenRows], vocabulary: int) -> np.ndarray[Any, Any]:
    """Inverse document frequency of each entry over documents in blocks, [V] float32.

    >>> rows = TokenRows.of([[5, 5, 6], [5]])
    >>> idf_table([rows], 8).round(3)
    array([1.   , 1.   , 1.   , 1.   , 1.   , 0.182, 0.693, 1.   ],
          dtype=float32)

    Entries that no document has are 1. Raises `DataError` without documents.
    """
    frequency, count = np.zeros(vocabulary, np.int64), 0
    for rows in blocks:
        row = np.repeat(np.arange(len(rows)), rows.lengths)
        once = np.unique(row * vocabulary + rows.ids)
        frequency += np.bincount(once % vocabulary, minlength=vocabulary)
        count += len(rows)
    if not count:
        raise DataError("no documents to count", expected="a corpus with at least one")
    idf = np.log1p((count - frequency + 0.5) / (frequency + 0.5))
    return np.where(frequency > 0, idf, 1.0).astype(np.float32)


def query_rows(rows: TokenRows, table: np.ndarray[Any, Any]) -> Any:
    """Sparse queries CSR [Q, V]: each piece of a row once, with its weight, where that is above 0.

    >>> query_rows(TokenRows.of([[1, 2, 1], [0]]), np.array([0.0, 0.5, 2.0])).toarray()
    array([[0. , 0.5, 2. ],
           [0. , 0. , 0. ]], dtype=float32)
    """
    import scipy.sparse

    shape = (len(rows), len(table))
    row = np.repeat(np.arange(len(rows)), rows.lengths)
    once = np.unique(row * shape[1] + rows.ids)
    once = once[table[once % shape[1]] > 0]
    starts = np.searchsorted(once, np.arange(shape[0] + 1) * shape[1])
    entries = once % shape[1]
    weights = table[entries].astype(np.float32)
    return scipy.sparse.csr_array((weights, entries.astype(np.int32), starts), shape=shape)


def check_idf(idf: Any, vocabulary: int) -> Tensor:
    """A table as a tensor [V]; `DataError` for another length, NaN or negative entries."""
    table = torch.as_tensor(idf, dtype=torch.float32)
    if table.shape != (vocabulary,):
        raise DataError(
            f"an idf table {tuple(table.shape)}", expected=f"[{vocabulary}], one a token",
            mend="count it with the tokenizer of this model",
        )
    wrong = (~torch.isfinite(table) | (table < 0)).nonzero().flatten().tolist()
    if wrong:
        shown = ", ".join(f"{i}: {float(table[i]):g}" for i in wrong[:SHOWN])
        raise DataError(
            f"{len(wrong)} entries of the idf table are negative or not finite ({shown})",
            expected="finite numbers, 0 or above",
        )
    return table


def read_idf(path: str | Path, tokens: Sequence[str], vocabulary: int) -> Tensor:
    """An `idf.json` {token: weight}, as OpenSearch has it, for a tokenizer.

    tokens      of the tokenizer, by id
    vocabulary  length of the table; entries without a token are 1

    Raises `DataError` listing the first tokens that only one side knows.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}", expected=FORM) from None
    if not isinstance(given, dict) or not all(isinstance(v, (int, float)) for v in given.values()):
        raise DataError(f"{path} is no table of weights", expected=FORM)
    known = {token: i for i, token in enumerate(tokens) if token}
    unknown = [token for token in given if token not in known]
    missing = [token for token in known if token not in given]
    if unknown or missing:
        raise DataError(
            f"{path} has {len(given)} tokens, the tokenizer {len(known)}: "
            f"{len(unknown)} unknown to it ({', '.join(map(repr, unknown[:SHOWN]))}), "
            f"{len(missing)} missing in the table ({', '.join(map(repr, missing[:SHOWN]))})",
            expected="a table made with this tokenizer", mend="idf='corpus' counts one",
        )
    table = torch.ones(vocabulary)
    for token, weight in given.items():
        table[known[token]] = float(weight)
    return check_idf(table, vocabulary)
