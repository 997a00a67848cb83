"""A retriever on the user's files: documents become an index, queries a list of hits.

    passband apply MODEL corpus/ -o out/          writes out/index/, documents.jsonl, search.html
    passband apply MODEL queries.txt -o out/      writes out/run.trec, hits.jsonl, hits.html
"""

from __future__ import annotations

import html
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passband.bench.results import write_atomic
from passband.bench.system import Monitor
from passband.data.documents import folders
from passband.data.documents.collection import Corpus, OnDisk
from passband.errors import DataError, PassbandWarning
from passband.retrieval.search_page import write_page

if TYPE_CHECKING:
    from passband.retrieval.hits import Hits
    from passband.retrieval.retriever import Retriever

INDEX, TEXTS, PAGE = "index", "documents.jsonl", "search.html"
DEPTH = 100  # hits a query in run.trec
SHOWN, SNIPPET = 10, 300  # hits a query with their texts, and characters of each
QUERIES = (".txt", ".tsv", ".jsonl")


def apply(system: Retriever, path: Path, out: Path, monitor: Monitor | None) -> list[Path]:
    """What `Retriever.apply_file` does; returns what was written."""
    if path.is_file() and path.suffix in QUERIES and (out / INDEX).is_dir():
        return _search(system, folders.read_queries(path), out)
    data = folders.read_collection(path)
    # The texts first: an index always has its texts beside it.
    texts = _write_texts(data.corpus, out / TEXTS)
    system.index(data.corpus, out / INDEX, monitor)
    written = [out / INDEX, texts]
    if data.queries or system.page_encoder() is not None:
        written.append(write_page({system.id or "hits": system}, data, out / PAGE))
    return written + (_search(system, data.queries, out) if data.queries else [])


def _write_texts(corpus: Corpus, target: Path) -> Path:
    """The corpus as JSONL, whole or not at all, a line at a time."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for document in corpus:
                record = {"_id": document.id, "title": document.title, "text": document.text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _search(system: Retriever, queries: Mapping[str, str], out: Path) -> list[Path]:
    if not queries:
        raise DataError("there are no queries", expected="at least one line of text")
    index = system.open(out / INDEX)
    corpus = OnDisk(out / TEXTS) if (out / TEXTS).is_file() else None
    if corpus is not None and hasattr(system, "attach"):
        system.attach(corpus)  # what searches twice reads what it found
    hits = system.search(list(queries.values()), k=DEPTH, index=index)
    shown = list(_shown(queries, hits, corpus))
    written = [out / "hits.jsonl", out / "hits.html"]
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in shown)
    write_atomic(written[0], lines.encode())
    write_atomic(written[1], _page(shown).encode())
    try:
        hits.write_run(out / "run.trec", list(queries))
    except DataError as error:  # ids that this one format can't hold
        warnings.warn(f"run.trec is not written: {error.what}", PassbandWarning, stacklevel=2)
        return written
    return [out / "run.trec", *written]


def _shown(
    queries: Mapping[str, str], hits: Hits, corpus: Corpus | None
) -> Iterator[dict[str, Any]]:
    for row, (id, query) in enumerate(queries.items()):
        found = []
        for document, score in hits[row][:SHOWN]:
            one: dict[str, Any] = {"id": document, "score": score}
            if corpus is not None and document in corpus:
                text = corpus[corpus.place(document)]
                one |= {"title": text.title, "text": text.text}
            found.append(one)
        yield {"query_id": id, "query": query, "hits": found}


def _page(shown: list[dict[str, Any]]) -> str:
    """One HTML file that needs nothing else."""
    parts = [_HEAD]
    for one in shown:
        parts.append(f"<h2>{html.escape(one['query'])}</h2>\n<ol>\n")
        for hit in one["hits"]:
            title, text = hit.get("title", ""), hit.get("text", "")
            snippet = text[:SNIPPET] + ("…" if len(text) > SNIPPET else "")
            parts.append(
                f"<li><b>{html.escape(title or hit['id'])}</b> "
                f"<span>{html.escape(hit['id'])} · {hit['score']:.4g}</span>"
                f"<p>{html.escape(snippet)}</p></li>\n"
            )
        parts.append("</ol>\n" if one["hits"] else "</ol>\n<p>Nothing was found.</p>\n")
    return "".join([*parts, "</main>\n"])


_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Hits</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 }
main { max-width: 46rem; margin: 0 auto; padding: 1rem }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem } li { margin: .6rem 0 }
li span { color: #666; font-size: .85rem } li p { margin: .2rem 0; white-space: pre-line }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } li span { color: #999 }
}
</style>
<main>
"""
