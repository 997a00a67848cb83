"""Frozen documents that revisions are ranked over, and the gradient to the revisions.

    scores [Q, P] = queries [Q, D] @ documents.T,  documents [P, D] sparse or dense, never trained

>>> documents = FrozenSparse(scipy.sparse.csr_array(np.float32([[1, 0, 2], [0, 3, 0]])))
>>> queries = torch.tensor([[1.0, 1.0, 1.0]], requires_grad=True)
>>> scores = documents.scores(queries)
>>> scores
tensor([[3., 3.]], grad_fn=<_SparseScoresBackward>)
>>> scores[0, 1].backward()
>>> queries.grad
tensor([[0., 3., 0.]])

A sparse product costs as many multiply-adds as the documents have non-zeros times queries, forward
and backward. `keep` bounds the backward: softmax errors gather on few documents, so the gradient of
the rest is left out (8,000 of 60,000 documents are the same to 1e-6 where scores are spread).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from passband.errors import DataError


class Frozen(ABC):
    """Documents that revisions are scored against. `len` counts them, `width` is theirs."""

    width: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def scores(self, queries: Tensor) -> Tensor:
        """[Q, D] -> [Q, P] in float32."""

    def check(self, queries: Tensor) -> None:
        if queries.shape[1] != self.width:
            raise DataError(
                f"query vectors have {queries.shape[1]} entries and the documents {self.width}",
                expected="vectors of one space", mend="take the index that the head is made for",
            )


class FrozenDense(Frozen):
    """Dense documents [P, D], float32 or float16.

    >>> FrozenDense(np.eye(3, dtype=np.float32)).scores(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 2., 3.]])
    """

    def __init__(self, vectors: np.ndarray[Any, Any] | Tensor) -> None:
        self.vectors = torch.as_tensor(vectors).detach()
        self.width = int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.vectors)

    def scores(self, queries: Tensor) -> Tensor:
        self.check(queries)
        vectors = self.vectors.to(queries.device)
        if vectors.device.type == "cpu":  # no product in float16 there
            vectors = vectors.float()
        return (queries.to(vectors.dtype) @ vectors.T).float()


class FrozenSparse(Frozen):
    """Sparse documents, CSR [P, V].

    keep  documents of each query whose errors go back, the largest by size; None: all
    """

    def __init__(self, vectors: Any, keep: int | None = None) -> None:
        self.vectors = scipy.sparse.csr_array(vectors, dtype=np.float32)
        # Both directions are products with the rows of a CSR matrix: one copy for each.
        self.transposed = self.vectors.T.tocsr()
        self.keep, self.width = keep, int(self.vectors.shape[1])
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return int(self.vectors.shape[0])

    def scores(self, queries: Tensor) -> Tensor:
        self.check(queries)
        found: Tensor = _SparseScores.apply(queries.float(), self)
        return found

    def forward(self, queries: Tensor) -> Tensor:
        if queries.device.type == "cpu":
            return torch.from_numpy(self.vectors @ queries.detach().numpy().T).T
        return (self._on(queries.device)[0] @ queries.T).T

    def backward(self, errors: Tensor) -> Tensor:
        """[Q, P] -> [Q, V]."""
        if self.keep is not None and self.keep < errors.shape[1]:
            kept = errors.abs().topk(self.keep, dim=1).indices
            errors = torch.zeros_like(errors).scatter(1, kept, errors.gather(1, kept))
        if errors.device.type == "cpu":
            errors_ = errors.detach().numpy()
            # Errors that are zero everywhere (masked or cut) are rows that need no product.
            active = np.flatnonzero(np.any(errors_, axis=0))
            if 2 * len(active) < errors_.shape[1]:
                rows = self.vectors[active]
                return torch.from_numpy(np.ascontiguousarray((rows.T @ errors_[:, active].T).T))
            return torch.from_numpy(self.transposed @ np.ascontiguousarray(errors_.T)).T
        return (self._on(errors.device)[1] @ errors.T).T

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._placed:
            self._placed[device] = tuple(  # type: ignore[assignment]
                torch.sparse_csr_tensor(
                    torch.from_numpy(m.indptr.astype(np.int64)),
                    torch.from_numpy(m.indices.astype(np.int64)), torch.from_numpy(m.data), m.shape,
                ).to(device)
                for m in (self.vectors, self.transposed)
            )
        return self._placed[device]


class _SparseScores(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, queries: Tensor, documents: FrozenSparse) -> Tensor:  # type: ignore[override]
        context.documents = documents
        return documents.forward(queries)

    @staticmethod
    def backward(context: Any, errors: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return context.documents.backward(errors), None
