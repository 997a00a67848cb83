"""Systems with the verb `search`: a corpus is indexed once, then asked.

>>> system = create("bm25")
>>> _ = system.index({"ice": "A glacier is a river of ice.", "spring": "Geysers are hot springs."})
>>> hits = system.search("rivers and glaciers", k=2)
>>> hits.ids
[['ice']]
>>> sorted(term for term, _ in system.explain("rivers and glaciers", "ice"))
['glacier', 'river']

A subclass gives `encode_documents` and `encode_queries`: sparse rows (scipy CSR) or dense ones
(NumPy). All else follows: an index in memory or in a folder, search, explanations, files.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from passband.bench.system import Monitor, System
from passband.data.documents.collection import Corpus, Document, Listed
from passband.errors import ConfigError, DataError, PassbandWarning

if TYPE_CHECKING:
    from passband.retrieval.hits import Hits
    from passband.retrieval.index import Index
    from passband.retrieval.search_page.encoders import PageEncoder
    from passband.retrieval.shards import Shards

Vectors: TypeAlias = Any  # scipy.sparse.csr_array [N, V] or numpy.ndarray [N, d]
Documents: TypeAlias = "Corpus | Mapping[str, str] | Iterable[str | Document] | str | Path"
BLOCK = 4096  # documents encoded before they are written to the index
ASKED = 1024  # queries searched at a time


def corpus_of(documents: Documents) -> Corpus:
    """A corpus as it is; id -> text; texts, whose ids are their numbers; or files.

    >>> corpus_of(["ice", "fire"]).ids
    ['0', '1']
    """
    if isinstance(documents, Corpus):
        return documents
    if isinstance(documents, (str, Path)):
        from passband.data.documents.folders import read_corpus

        return read_corpus(Path(documents))
    if isinstance(documents, Mapping):
        return Listed(Document(str(id), text) for id, text in documents.items())
    return Listed(
        one if isinstance(one, Document) else Document(str(place), one)
        for place, one in enumerate(documents)
    )


class Retriever(System):
    """Base of the systems that search.

    An index belongs to the system that made it: vectors of another one mean something else.
    """

    verbs: ClassVar[tuple[str, ...]] = ("search",)
    _index: Index | Shards | None = None  # the one built or opened last

    # ---- what a subclass gives --------------------------------------------------------------

    @abstractmethod
    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """[N, V] scipy CSR or [N, d] array, float32, rows in the order of the texts."""

    @abstractmethod
    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """The same for queries; a row of zeros where a sparse encoder knows no term."""

    def term(self, number: int) -> str:
        """The name of a column of sparse vectors, for explanations."""
        return str(number)

    def page_encoder(self) -> PageEncoder | None:
        """How a browser encodes queries, for `search_page`; None: it can't."""
        return None

    # ---- index ------------------------------------------------------------------------------

    @property
    def last_index(self) -> Index | None:
        """The index built or opened last."""
        return self._index

    def index(
        self, documents: Documents, folder: str | Path | None = None,
        monitor: Monitor | None = None,
    ) -> Index:
        """Encode a corpus and keep its vectors, in memory or in a folder, for `search`.

        documents  a Corpus, a dict id -> text, a list of texts or Documents, or a path as for
                   `passband.data.documents.folders.read_corpus`
        folder     where the index is written; a kill leaves what was there before
        monitor    hears of the progress

        Memory is that of one block of documents where corpus and index are on disk.
        Raises `DataError` for an empty corpus and for an id that comes twice.
        """
        (self._index,) = self._indexes(documents, [folder], monitor)
        return self._index

    def index_shards(
        self, documents: Documents, folders: Sequence[str | Path], monitor: Monitor | None = None
    ) -> list[Index]:
        """The corpus in parts of one size, one index each, for `Shards`: together they are `index`.

        >>> system = create("bm25")
        >>> texts = ["a river of ice", "hot springs", "a river", "dunes of sand"]
        >>> _ = system.index_shards(texts, ["first", "second"])
        >>> from passband.retrieval.shards import Shards
        >>> system.search("rivers", index=Shards(["first", "second"])).ids
        [['2', '0']]

        What a method counts is counted over the whole corpus. Raises what `index` does, and
        `DataError` where there are fewer documents than folders.
        """
        return self._indexes(documents, folders, monitor)

    def _indexes(
        self, documents: Documents, folders: Sequence[str | Path | None], monitor: Monitor | None
    ) -> list[Index]:
        corpus = corpus_of(documents)
        if not len(corpus):
            raise DataError("the corpus is empty", expected="at least one document")
        if len(corpus) < len(folders):
            raise DataError(
                f"{len(corpus)} documents for {len(folders)} shards",
                expected="a document or more for each shard", mend="give fewer folders",
            )
        places = [None if folder is None else Path(folder) for folder in folders]
        self.prepare(corpus, places[0])
        blocks = _Cut(self._blocks(corpus, monitor))
        about = {"system": self.id or type(self).__name__, **self.remember()}
        bounds = [len(corpus) * i // len(places) for i in range(len(places) + 1)]
        found = []
        for place, (start, end) in zip(places, pairwise(bounds), strict=True):
            rows = blocks.take(end - start)
            first = next(rows)
            found.append(self._kind(first).create(
                place, chain([first], rows), corpus.ids[start:end], about=about
            ))
        return found

    def prepare(self, corpus: Corpus, folder: Path | None) -> None:
        """Called before a corpus is encoded: for methods that need counts over all of it."""

    def remember(self) -> dict[str, Any]:
        """JSON to be kept with an index: what its queries need and the system's state lacks."""
        return {}

    def recall(self, about: Mapping[str, Any]) -> None:
        """Called with what `remember` gave when another index than the last one is searched."""

    def open(self, folder: str | Path) -> Index:
        """An index that `index` wrote, for `search`."""
        from passband.retrieval.index import Index

        return self._take(Index.open(Path(folder)))

    def _take(self, index: Index | Shards) -> Any:
        mine = self.id or type(self).__name__
        made_by = index.about.get("system", mine)
        if made_by != mine:
            raise ConfigError(
                f"an index that {made_by!r} made is searched with {mine!r}",
                expected="the system that made it", mend="index the documents with this one",
            )
        self.recall(index.about)
        self._index = index
        return index

    def _blocks(self, corpus: Corpus, monitor: Monitor | None) -> Iterator[Vectors]:
        texts, done = (document.full for document in corpus), 0
        while block := list(islice(texts, BLOCK)):
            yield self.encode_documents(block)
            done += len(block)
            if monitor is not None:
                monitor.progress(done / len(corpus), f"{done} of {len(corpus)} documents")

    @staticmethod
    def _kind(vectors: Vectors) -> type[Index]:
        from passband.retrieval.index import DenseIndex, SparseIndex

        return DenseIndex if isinstance(vectors, np.ndarray) else SparseIndex

    # ---- search -----------------------------------------------------------------------------

    def search(
        self, queries: str | Sequence[str], k: int = 10,
        index: Index | Shards | str | Path | None = None,
    ) -> Hits:
        """The k best documents for each query, best first.

        queries  one text or several
        index    None: the one built or opened last; an Index; the folder of one; or Shards, on this
                 machine or on a Ray cluster

        Returns `Hits` with ids (Q lists), scores (Q arrays) and places. A sparse index gives fewer
        than k where fewer documents share a term with the query; a query without words gives none
        and is warned of. Equal scores: the document that comes first in the corpus comes first.
        Raises `ConfigError` where there is no index yet or k is below 1.
        """
        from passband.retrieval.hits import Hits

        texts = [queries] if isinstance(queries, str) else list(queries)
        if k < 1:
            raise ConfigError(f"k = {k}", expected="at least 1 hit a query")
        found = self._chosen(index)
        known = [i for i, text in enumerate(texts) if text.strip()]
        hits = Hits(
            ids=[[] for _ in texts], scores=[np.empty(0, np.float32) for _ in texts],
            places=[np.empty(0, np.int64) for _ in texts],
        )
        without = [i for i, text in enumerate(texts) if not text.strip()]
        for start in range(0, len(known), ASKED):
            rows = known[start : start + ASKED]
            vectors = self.encode_queries([texts[i] for i in rows])
            without += [rows[i] for i in rows_of_zeros(vectors)]
            part = self.find(found, vectors, k)
            for i, row in enumerate(rows):
                hits.ids[row], hits.scores[row], hits.places[row] = (
                    part.ids[i], part.scores[i], part.places[i]
                )
        if without:
            shown = ", ".join(repr(texts[i][:40]) for i in sorted(without)[:5])
            warnings.warn(
                f"{len(without)} of {len(texts)} queries have no word that this system knows and "
                f"find nothing: {shown}", PassbandWarning, stacklevel=2,
            )
        return hits

    def find(self, index: Index | Shards, vectors: Vectors, k: int) -> Hits:
        """Search with vectors of queries; a method with a search of its own overrides this."""
        return index.search(vectors, k)

    def explain(
        self, query: str, document: str, index: Index | Shards | str | Path | None = None,
    ) -> list[tuple[str, float]]:
        """(term, its share of the score) of a query and a document id, the largest first.

        The shares sum to the score. Dense vectors have no terms: their one share is the whole.
        """
        found = self._chosen(index)
        shares = found.explain(self.encode_queries([query]), document)
        return [(name if isinstance(name, str) else self.term(name), share)
                for name, share in shares]

    def _chosen(self, index: Index | Shards | str | Path | None) -> Index | Shards:
        if isinstance(index, (str, Path)):
            return self.open(index)
        if index is not None:
            return index if index is self._index else self._take(index)
        if self._index is None:
            raise ConfigError(
                "nothing has been indexed yet", expected="an index to search",
                mend="call index(documents) first, or give index=FOLDER",
            )
        return self._index

    # ---- files ------------------------------------------------------------------------------

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Index documents into out/index, or search that index with a file of queries.

        A folder, or a file while out/index is not there yet, is documents: `folders.read` says
        which ones it takes. A .txt, .tsv or .jsonl file beside an out/index is queries. Where a
        folder brings queries of its own they are searched at once. Hits are written to run.trec,
        hits.jsonl (with texts) and hits.html. Beside an index stands search.html, which searches
        in a browser (see `search_page`), where a browser can encode queries or some are given.
        """
        from passband.retrieval.files import apply

        return apply(self, path, out, monitor)


class _Cut:
    """Blocks of rows, taken some rows at a time."""

    def __init__(self, blocks: Iterator[Vectors]) -> None:
        self.blocks, self.rest = blocks, None

    def take(self, rows: int) -> Iterator[Vectors]:
        while rows:
            block = next(self.blocks) if self.rest is None else self.rest
            count = min(rows, block.shape[0])
            self.rest = block[count:] if block.shape[0] > count else None
            rows -= count
            yield block[:count]


def rows_of_zeros(vectors: Vectors) -> list[int]:
    """Rows of sparse vectors without a term; dense ones have none.

    >>> import scipy.sparse
    >>> rows_of_zeros(scipy.sparse.csr_array([[0.0, 1.0], [0.0, 0.0]]))
    [1]
    """
    if isinstance(vectors, np.ndarray):
        return []
    return [int(i) for i in np.flatnonzero(np.diff(vectors.indptr) == 0)]
