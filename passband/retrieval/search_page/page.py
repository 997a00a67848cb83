"""Writes the page: what each system found, and all that a browser needs to search again.

>>> from passband.data.documents.collection import Collection, Document, Listed
>>> documents = [Document("ice", "A glacier is a river of ice."), Document("fire", "A volcano.")]
>>> data = Collection(Listed(documents), {"q": "rivers"}, {"q": {"ice": 1}})
>>> write_page({"BM25": create("bm25")}, data, "page.html")
PosixPath('page.html')

Documents have the scores that they have in the whole corpus, also where the page holds a part of
it. The recorded queries' best hits are always in the page, so their rankings are those of the
whole corpus too.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passband.bench.report.style import PALETTE
from passband.bench.results import write_atomic
from passband.data.documents.collection import Collection, Corpus
from passband.errors import ConfigError
from passband.retrieval.search_page.encoders import SmallBert, TokenTable
from passband.retrieval.search_page.packing import packed
from passband.retrieval.search_page.selection import Chosen, choose

if TYPE_CHECKING:
    from passband.retrieval.hits import Hits
    from passband.retrieval.index import Index
    from passband.retrieval.retriever import Retriever

DEPTH = 11  # hits of a recorded query: ten, and the query itself where it is a document
SNIPPET = 300  # characters of a text
SHARES = 12  # recorded shares of a hit
_HERE = Path(__file__).parent
_SCRIPTS = ("words.js", "arrays.js", "bert.js", "search.js", "show.js")


def write_page(
    systems: Mapping[str, Retriever], data: Collection, path: str | Path, *,
    documents: int = 4000, queries: int = 100, size: int = 15_000_000,
) -> Path:
    """One HTML file that needs no network, with a column for each system.

    systems    by the names that they are shown under; trained, or needing no training
    data       the corpus, and queries that are recorded with the systems' hits; where there are
               judgements, judged queries only
    documents  at most; those that recorded queries need come first, and the page says how many
    queries    recorded at most, evenly over those that there are
    size       bytes of the file at most: documents are left out until it fits

    A system whose queries a browser can encode (`page_encoder`) answers whatever is typed, others
    the recorded queries. The corpus is indexed, unless a system's last index is of it.
    Raises `ConfigError` without systems or where not even one document has room.
    """
    if not systems:
        raise ConfigError("no system for the page", expected="at least one")
    asked = _asked(data, queries)
    columns = [_Column.of(name, system, data, asked) for name, system in systems.items()]
    needed = [
        [*_relevant(data, query), *(int(p) for c in columns for p in c.hits.places[row])]
        for row, query in enumerate(asked)
    ]
    limit = min(documents, len(data.corpus))
    while True:
        chosen = choose(len(data.corpus), needed, limit)
        page = _render(_payload(columns, data, asked, chosen)).encode("utf-8")
        if len(page) <= size:
            break
        limit = min(limit - 1, int(0.9 * limit * size / len(page)))
        if limit < 1:
            raise ConfigError(
                f"a page of {len(page)} bytes for one document", expected=f"at most {size}",
                mend="take fewer or smaller systems, or a larger size",
            )
    write_atomic(Path(path), page)
    return Path(path)


def _asked(data: Collection, most: int) -> list[str]:
    """Ids of queries."""
    found = [
        q for q, text in data.queries.items() if text.strip() and _relevant(data, q)
    ] if data.judgements else [q for q, text in data.queries.items() if text.strip()]
    places = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    return [found[i] for i in places]


def _same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Id by id: there may be more of them than memory has room for."""
    return len(one) == len(other) and all(a == b for a, b in zip(one, other, strict=True))


def _relevant(data: Collection, query: str) -> list[int]:
    judged = data.judgements.get(query, {})
    return [data.corpus.place(d) for d, grade in judged.items() if grade > 0 and d in data.corpus]


@dataclass(frozen=True)
class _Column:
    """A system, its index of the whole corpus, and what it found for the recorded queries."""

    name: str
    system: Retriever
    index: Index
    texts: list[str]
    hits: Hits

    @classmethod
    def of(
        cls, name: str, system: Retriever, data: Collection, asked: Sequence[str]
    ) -> _Column:
        from passband.retrieval.hits import Hits

        index = system.last_index
        if index is None or not _same(index.ids, data.corpus.ids):
            index = system.index(data.corpus)
        texts = [data.queries[q] for q in asked]
        hits = system.search(texts, k=DEPTH, index=index) if texts else Hits([], [])
        return cls(name, system, index, texts, hits)

    def pack(self, chosen: Chosen, corpus: Corpus) -> dict[str, Any]:
        encoder = self.system.page_encoder()
        if isinstance(encoder, TokenTable) and encoder.fits():
            return {"name": self.name, **self._sparse(encoder, chosen, corpus)}
        if isinstance(encoder, SmallBert) and encoder.fits():
            return {"name": self.name, **self._dense(encoder, chosen)}
        return {"name": self.name, **self._recorded(chosen)}

    def _sparse(self, encoder: TokenTable, chosen: Chosen, corpus: Corpus) -> dict[str, Any]:
        columns = self.index.vectors(chosen.places).tocsc()
        columns.sort_indices()
        used = np.flatnonzero(np.diff(columns.indptr))
        if encoder.weights is not None:
            used = used[encoder.weights[used] > 0]
        columns = columns[:, used]
        words = [corpus[int(place)].full for place in chosen.places] + self.texts
        weights = None if encoder.weights is None else packed(encoder.weights[used], "float32")
        small = len(chosen.places) <= 2**16
        return {
            "kind": "sparse", "split": encoder.split.pack(used, words), "once": encoder.once,
            "terms": [self.system.term(int(column)) for column in used], "weights": weights,
            "starts": packed(columns.indptr, "int32"),
            "documents": packed(columns.indices, "uint16" if small else "int32"),
            "impacts": packed(columns.data, "float32"),
            "note": f"Searched here: {len(used):,} terms, {columns.nnz:,} postings.",
        }

    def _dense(self, encoder: SmallBert, chosen: Chosen) -> dict[str, Any]:
        return {
            "kind": "dense", **encoder.pack(),
            "vectors": packed(self.index.vectors(chosen.places), "float16"),
            "note": f"Encoded here: a network of {_count(encoder.parameters)} weights in 8 bits.",
        }

    def _recorded(self, chosen: Chosen) -> dict[str, Any]:
        numbers = {int(place): i for i, place in enumerate(chosen.places)}
        shares = self._shares()
        answers = [
            [self.texts[row], [
                [numbers[int(place)], round(float(score), 6), shares.get((row, int(place)), [])]
                for place, score in zip(
                    self.hits.places[row], self.hits.scores[row], strict=True
                )
            ]] for row in chosen.queries
        ]
        parameters = self.system.parameter_count()
        what = f"a network of {_count(parameters)} weights" if parameters else "its second search"
        return {
            "kind": "recorded", "answers": answers,
            "note": f"Recorded queries only: {what} does not run in a page.",
        }

    def _shares(self) -> dict[tuple[int, int], list[Any]]:
        """(query, place) -> shares of a score, where they are those of the query's own terms."""
        from passband.retrieval.index import SparseIndex

        if not isinstance(self.index, SparseIndex) or not self.texts:
            return {}
        asked = self.system.encode_queries(self.texts)
        found: dict[tuple[int, int], list[Any]] = {}
        for row, (places, scores) in enumerate(
            zip(self.hits.places, self.hits.scores, strict=True)
        ):
            products = self.index.vectors(places).multiply(asked[[row]]).tocsr()
            for i, (place, score) in enumerate(zip(places, scores, strict=True)):
                one = products[[i]]
                if not np.isclose(one.sum(), score, rtol=1e-3):
                    return {}  # a search of its own: other terms have made this score
                order = np.argsort(-one.data, kind="stable")[:SHARES]
                found[row, int(place)] = [
                    [self.system.term(int(one.indices[j])), round(float(one.data[j]), 6)]
                    for j in order
                ]
        return found


def _payload(
    columns: Sequence[_Column], data: Collection, asked: Sequence[str], chosen: Chosen
) -> dict[str, Any]:
    numbers = {int(place): i for i, place in enumerate(chosen.places)}
    documents = [data.corpus[int(place)] for place in chosen.places]
    queries = []
    for row in chosen.queries:
        q = asked[row]
        own = data.queries_are_documents and q in data.corpus
        queries.append({
            "text": data.queries[q], "relevant": [numbers[p] for p in _relevant(data, q)],
            "itself": numbers.get(data.corpus.place(q)) if own else None,
        })
    return {
        "total": len(data.corpus), "queries": queries,
        "documents": [[d.id, d.title, _snippet(d.text)] for d in documents],
        "systems": [column.pack(chosen, data.corpus) for column in columns],
    }


def _snippet(text: str) -> str:
    words = " ".join(text[: 2 * SNIPPET].split())
    return words if len(words) <= SNIPPET else f"{words[:SNIPPET]}…"


def _count(number: int) -> str:
    """
    >>> _count(1_478_400)
    '1.5 million'
    """
    return f"{number / 1e6:.1f} million" if number >= 1e5 else f"{number:,}"


def _render(payload: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    script = "".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n{script}'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    colours = "".join(f"--s{i}:light-dark({a},{b});" for i, (a, b) in enumerate(PALETTE))
    # No tag can end or begin inside the data.
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template("page.html.j2").render(
        digest=digest, palette=Markup(f":root{{{colours}}}"), script=Markup(script),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")), data=Markup(text),
        shown=len(payload["documents"]), total=payload["total"],
        queries=len(payload["queries"]), judged=any(q["relevant"] for q in payload["queries"]),
    )
