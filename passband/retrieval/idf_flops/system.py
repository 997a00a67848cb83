"""idf-flops as a system: presets, training, search without a network at query time, export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field

from passband.bench.system import Config
from passband.retrieval.idf_flops.model import (
    InferenceFree,
    idf_table,
    query_rows,
    read_idf,
)
from passband.retrieval.learned_sparse import LearnedSparse, SparseConfig
from passband.retrieval.splade import SpladeEncoder
from passband.retrieval.token_rows import TokenRows

if TYPE_CHECKING:
    from passband.data.documents.collection import Collection, Corpus
    from passband.retrieval.hits import Hits
    from passband.retrieval.index import Index
    from passband.retrieval.search_page.encoders import PageEncoder

BLOCK = 4096  # documents counted at a time

_MINI: dict[str, Any] = {
    "backbone": "minilm", "max_length": 512, "query_length": 512, "lr": 2e-5, "group": 2,
    "teachers": ("contriever", "splade"), "teacher_preset": "paper", "lambda_d": 2e-3,
    "ramp": 200, "warmup": 200, "steps": 2000, "batch_size": 12, "precision": "fp16",
}


class IdfFlopsConfig(SparseConfig):
    """An inference-free sparse retriever."""

    queries: Literal["idf", "ones"] = Field(
        "idf", description="weights of a query's pieces; ones is the plain FLOPS baseline"
    )
    idf: str = Field(
        "corpus", description="corpus: counted on the corpus of the fit; or an idf.json"
    )
    train_idf: bool = Field(False, description="learn the table as well")
    idf_lr: float = Field(1e-3, gt=0, description="learning rate of the table")
    two_phase: float = Field(
        0.0, ge=0, le=1, description="search by pieces of at least this share of a query's largest "
        "weight first; 0: exact. OpenSearch has 0.4"
    )
    expansion: float = Field(5.0, ge=1, description="candidates of the first phase over hits")


class IdfFlops(LearnedSparse):
    """
    >>> system = IdfFlops.from_preset("smoke")
    >>> _ = system.index({"ice": "a river of ice", "fire": "a volcano"})
    >>> system.encode_queries(["river river"]).nnz == system.encode_queries(["river"]).nnz
    True
    """

    Config: ClassVar[type[Config]] = IdfFlopsConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _MINI | {"backbone": "distilbert-base-uncased"},
        "mini": _MINI,
        "infonce": _MINI | {
            "loss": "infonce", "candidates": "negatives", "lambda_d": 0.05, "batch_size": 15,
        },
        "l0": _MINI | {
            "backbone": "bert-base-uncased", "candidates": "own", "lambda_d": 0.08, "ramp": 40_000,
            "threshold": 150, "l0": True, "warmup": 6_000, "steps": 100_000, "max_length": 256,
            "batch_size": 20,
        },
        "small": {
            "backbone": "small", "pretrained": True, "vocabulary": "embedded", "max_length": 96,
            "lr": 1e-3, "warmup": 50, "steps": 500, "batch_size": 32, "ramp": 150,
            "lambda_d": 3e-3, "clip": 1.0,
        },
        "smoke": {
            "backbone": "smoke", "max_length": 48, "lr": 1e-2, "warmup": 2, "steps": 20,
            "batch_size": 32, "ramp": 20, "lambda_d": 1e-4, "teacher_preset": "smoke",
        },
    }

    def build(self, backbone: Any) -> InferenceFree:
        documents = SpladeEncoder(backbone, l0=self.config.l0)
        return InferenceFree(documents, train=self.config.train_idf)

    def _start(self, collection: Collection | None = None) -> None:
        super()._start(collection)
        network: Any = self._network
        network.keep[sorted(self.pieces.special)] = 0.0

    def begin(self, network: Any, collection: Collection) -> None:
        c = self.config
        if c.queries == "ones":
            return
        if c.idf != "corpus":
            network.set_idf(read_idf(c.idf, self.pieces.tokens, network.vocabulary))
            return
        rows = self._counted(collection.corpus)
        network.set_idf(torch.from_numpy(idf_table(rows, network.vocabulary)))

    def _counted(self, corpus: Corpus) -> Iterator[TokenRows]:
        texts = (document.full for document in corpus)
        while block := list(islice(texts, BLOCK)):
            yield self.pieces.rows(block, specials=False)

    def groups_of_parameters(self, network: Any) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": network.documents.parameters()}]
        if self.config.train_idf:
            groups.append({
                "params": [network.idf], "lr": self.config.idf_lr, "weight_decay": 0.0,
            })
        return groups

    # ---- texts -------------------------------------------------------------------------------

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """Weights CSR [Q, V]: tokenisation and a look-up, no network."""
        network: Any = self.network
        rows = self.pieces.rows(list(texts), specials=False)  # of any length: it costs nothing
        return query_rows(rows, network.table.detach().cpu().numpy())

    def page_encoder(self) -> PageEncoder:
        from passband.retrieval.search_page.encoders import Pieces, TokenTable

        network: Any = self.network
        return TokenTable(Pieces(self.pieces), network.table.detach().cpu().numpy(), once=True)

    def find(self, index: Index, vectors: Any, k: int) -> Hits:
        c = self.config
        if not c.two_phase:
            return super().find(index, vectors, k)
        sparse: Any = index
        return sparse.two_phase(vectors, k, ratio=c.two_phase, expansion=c.expansion)

    def weights(self, text: str, most: int | None = None) -> dict[str, float]:
        """A document's pieces and weights, the largest first: what it is indexed under.

        >>> system = IdfFlops.from_preset("smoke")
        >>> len(system.weights("a river of ice", most=3))
        3
        """
        row = self.encode_documents([text])
        pairs = sorted(zip(row.data.tolist(), row.indices.tolist(), strict=True), reverse=True)
        return {self.term(j): weight for weight, j in pairs[:most]}

    def export(self, folder: str | Path) -> Path:
        """Write the model for sentence-transformers, with the idf.json of OpenSearch.

        >>> folder = IdfFlops.from_preset("smoke").export("exported")
        >>> (folder / "idf.json").exists(), (folder / "modules.json").exists()
        (True, True)
        """
        from passband.retrieval.idf_flops.export import write

        return write(self, Path(folder))
