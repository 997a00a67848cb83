"""What the report shows of a search: queries with their first hits, and a page to search with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from passband.bench.task import Artifact
from passband.data.documents.collection import Collection
from passband.retrieval.scores import each
from passband.retrieval.search_page import write_page
from passband.retrieval.tasks import rank

SHOWN = 10  # queries
LENGTH = 100  # characters of a text
PAGE = {"documents": 1500, "queries": 60, "size": 2_500_000}  # what a report has room for


def draw(system: Any, data: Collection, folder: Path) -> list[Artifact]:
    """A table of a few test queries, evenly over those that were answered best and worst, and a
    page in which they and others can be searched for."""
    judged, found = data.queries, rank(system, data, depth=10)
    values = each(found, data.judgements, ("ndcg@10",), ignore_identical_ids=False)
    order = sorted((q for q in found if q in values), key=lambda q: -values[q]["ndcg@10"])
    step = max(1, (len(order) - 1) // max(1, SHOWN - 1))
    rows = [
        [judged[q][:LENGTH], *_first(data, q, found[q]), round(values[q]["ndcg@10"], 3)]
        for q in order[::step][:SHOWN]
    ]
    columns = ["query", "first hit", "relevant", "nDCG@10"]
    (folder / "queries.json").write_text(json.dumps({"columns": columns, "rows": rows}))
    write_page({system.id or "hits": system}, data, folder / "search.html", **PAGE)
    return [
        Artifact("table", "Queries, from the best answered to the worst", "queries.json"),
        Artifact(
            "page", "Search", "search.html", "what this system finds, for words of your own where "
            "a browser can encode them",
        ),
    ]


def _first(data: Collection, query: str, ids: list[str]) -> list[str]:
    if not ids:
        return ["(none)", "no"]
    grade = data.judgements[query].get(ids[0], 0)
    text = data.corpus[data.corpus.place(ids[0])].full
    return [f"{ids[0]}: {text[:LENGTH]}", "yes" if grade > 0 else "no"]
