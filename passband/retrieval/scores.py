"""How good rankings are, computed by ir_measures as trec_eval does.

>>> judgements = {"q1": {"a": 1, "b": 2}, "q2": {"c": 1}}
>>> each({"q1": ["b", "x", "a"], "q2": []}, judgements)["q1"]["mrr@10"]
1.0
>>> {name: round(value, 4) for name, value in mean({"q1": ["b", "x", "a"]}, judgements).items()}
{'ndcg@10': 0.4751, 'recall@100': 0.5, 'mrr@10': 0.5}

trec_eval sorts by score and breaks ties by the document id, in descending order. Ours is the
order of the ranking that is given: ranks are handed over in place of scores, so nothing is tied.
nDCG has linear gain: (2 + 1/log2(4)) / (2 + 1/log2(3)) = 0.9502 for q1 above.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from passband.errors import DataError, MissingExtraError, UnknownNameError

MEASURES = ("ndcg@10", "recall@100", "mrr@10")
# Ours -> those of ir_measures, which writes a cut-off after an @ as well.
_NAMES = {"ndcg": "nDCG", "recall": "R", "mrr": "RR", "precision": "P", "map": "AP",
          "success": "Success"}
Rankings = Mapping[str, Sequence[str]]
Judgements = Mapping[str, Mapping[str, int]]


def each(
    rankings: Rankings, judgements: Judgements, measures: Sequence[str] = MEASURES, *,
    ignore_identical_ids: bool = True,
) -> dict[str, dict[str, float]]:
    """Query id -> measure -> value, for every query that has a relevant document.

    rankings    query id -> document ids, best first; a query without a ranking scores 0
    judgements  query id -> document id -> relevance; above 0 is relevant
    measures    ndcg, recall, mrr, precision, map or success, then @ and the cut-off
    ignore_identical_ids  a document with the id of the query is taken out of its ranking (the
                query is that document, as in ArguAna or Quora); the ranking should be one longer

    Raises `DataError` where a document comes twice in a ranking, or nothing is judged.
    """
    wanted = [_measure(name) for name in measures]
    known = {q: dict(found) for q, found in judgements.items()
             if any(grade > 0 for grade in found.values())}
    if not known:
        raise DataError(
            "no query has a relevant document", expected="judgements above 0",
            mend="give qrels of these queries",
        )
    run = {q: _ranked(q, rankings.get(q, ()), ignore_identical_ids) for q in known}
    names = dict(zip(map(str, wanted), measures, strict=True))
    found = {q: dict.fromkeys(measures, 0.0) for q in known}
    # A query without hits is left to the zeros above: the libraries differ on it.
    run = {q: ranked for q, ranked in run.items() if ranked}
    if run:
        import ir_measures

        judged = {q: known[q] for q in run}
        for value in ir_measures.iter_calc(wanted, judged, run):
            found[value.query_id][names[str(value.measure)]] = float(value.value)
    return found


def mean(
    rankings: Rankings, judgements: Judgements, measures: Sequence[str] = MEASURES, *,
    ignore_identical_ids: bool = True,
) -> dict[str, float]:
    """Measure -> mean over the queries of `each`."""
    found = each(
        rankings, judgements, measures, ignore_identical_ids=ignore_identical_ids
    ).values()
    return {name: float(np.mean([one[name] for one in found])) for name in measures}


def residual(rankings: Rankings, seen: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The rankings without the documents that were seen before: what feedback found anew.

    >>> residual({"q": ["a", "b", "c"]}, {"q": ["b"]})
    {'q': ['a', 'c']}

    Take them out of the judgements too, or what was found before counts as missed.
    """
    return {
        q: [d for d in ranked if d not in set(seen.get(q, ()))] for q, ranked in rankings.items()
    }


def _ranked(query: str, ids: Sequence[str], ignore_identical: bool) -> dict[str, float]:
    ids = [d for d in ids if d != query] if ignore_identical else list(ids)
    ranked = {d: float(len(ids) - rank) for rank, d in enumerate(ids)}
    if len(ranked) != len(ids):
        again = next(d for i, d in enumerate(ids) if d in ids[:i])
        raise DataError(
            f"the ranking of query {query!r} has document {again!r} twice",
            expected="every document once",
        )
    return ranked


def _measure(name: str) -> object:
    try:
        import ir_measures
    except ModuleNotFoundError:
        raise MissingExtraError("ir-measures", "retrieval") from None
    kind, _, cut = name.partition("@")
    if kind not in _NAMES or (cut and not cut.isdigit()):
        raise UnknownNameError(
            "measure", name, [f"{kind}@10" for kind in _NAMES], mend="for example ndcg@10",
        )
    return ir_measures.parse_measure(_NAMES[kind] + (f"@{cut}" if cut else ""))
