"""What the paper claims, on generated dialects and on docstrings, at a size that two cores train.

Dialects: 5,000 made-up documents whose concepts have two words each; queries are in one dialect,
and searched are the 1,750 documents that are in the other, so that counting words finds nothing and
a guess has a Recall@100 of 0.06. Docstrings: the query is a first paragraph, the document the rest,
and only documents are trained on. Margins are those of general grounds: for "far above" 0.05
nDCG@10, for "beats" anything above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from passband.bench.claims import Bench, Evidence, judge, not_shown

STEPS, SHORT = "600 steps", "300 steps"
SEEDS = 3
# A document in dialect has 47 tokens: longer chunks would pair words of several documents.
WHOLE_DOCUMENTS: dict[str, Any] = {"chunk_length": 48, "within_documents": True}
OURS: dict[str, Any] = {"system": "contriever"}
UNTRAINED = OURS | {"objective": "none"}
BM25: dict[str, Any] = {"system": "bm25"}
# Few labelled pairs and a short fine-tuning, from either start.
FEW: dict[str, Any] = {"finetune_steps": 150, "finetune_pairs": 1000}


# ---- without labels ------------------------------------------------------------------------------


def beats_words(bench: Bench) -> Evidence:
    """C1: Recall@100 minus that of BM25, queries in the other dialect."""
    return _gap(bench, "two-dialects", OURS, [BM25], "recall@100", margin=0.4, shown=[UNTRAINED])


def words_win_where_they_match(bench: Bench) -> Evidence:
    """C1-words: nDCG@10 of BM25 minus ours, queries in the dialect of their document."""
    return _gap(
        bench, "two-dialects-same", BM25, [OURS], "ndcg@10", margin=0.0, budget=SHORT,
        unit="nDCG@10 that BM25 is ahead",
    )


def real_text(bench: Bench) -> Evidence:
    """C1-real: nDCG@10 on docstrings minus the better of no training and masked words alone."""
    words_only = UNTRAINED | {"vocabulary": "embedded", "pretrained": True}
    return _gap(
        bench, "pydocs", OURS, [UNTRAINED, words_only], "ndcg@10", margin=0.05, shown=[BM25],
    )


def words_stay_ahead(bench: Bench) -> Evidence:
    """C1-ndcg: nDCG@10 of BM25 minus ours on docstrings."""
    return _gap(
        bench, "pydocs", BM25, [OURS], "ndcg@10", margin=0.0, unit="nDCG@10 that BM25 is ahead",
    )


# ---- as a start ----------------------------------------------------------------------------------


def few_labels(bench: Bench) -> Evidence:
    """C3: nDCG@10 after fine-tuning on 1,000 pairs, minus that from a random start."""
    return _gap(
        bench, "pydocs", OURS | FEW | {"steps": 600}, [UNTRAINED | FEW], "ndcg@10", margin=0.05,
        budget=None,
    )


def across_languages(bench: Bench) -> Evidence:
    """C5: Recall@100 minus that of BM25, dialects as languages that share names."""
    return _gap(
        bench, "two-dialects-names", OURS, [BM25], "recall@100", margin=0.0, budget=SHORT,
    )


# ---- parts of the method -------------------------------------------------------------------------


def crops_beat_the_cloze(bench: Bench) -> Evidence:
    """A1: Recall@100 minus that of the inverse cloze task."""
    return _part(bench, {"pairs": "ict"})


def a_queue_beats_the_batch(bench: Bench) -> Evidence:
    """A2: Recall@100 with 2,048 keys minus that with the 64 of the batch; not worse by 0.02."""
    return _part(bench, {"objective": "in-batch"}, margin=-0.02)


def low_temperature(bench: Bench) -> Evidence:
    """A3: Recall@100 minus that at temperature 1."""
    return _part(bench, {"temperature": 1.0})


def _part(bench: Bench, change: Mapping[str, Any], margin: float = 0.0) -> Evidence:
    return _gap(
        bench, "two-dialects", OURS, [OURS | dict(change)], "recall@100", margin=margin,
        budget=SHORT,
    )


# ---- cells ---------------------------------------------------------------------------------------

Metric = Literal["recall@100", "ndcg@10"]


def _gap(
    bench: Bench, task: str, first: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]],
    metric: Metric, *, margin: float, budget: str | None = STEPS, unit: str = "",
    shown: Sequence[Mapping[str, Any]] = (),
) -> Evidence:
    """The first arm's metric minus the best rival's; `shown` stand beside in the table."""
    seeds = bench.seeds(1 if bench.smoke else SEEDS)
    arms = [first, *rivals, *([] if bench.smoke else shown)]
    rows = bench.run_many(
        [_cell(bench, task, arm, seed, budget) for arm in arms for seed in seeds]
    )
    values = [
        [float(row["metrics"].get(metric, float("nan"))) for row in rows[i : i + len(seeds)]]
        for i in range(0, len(rows), len(seeds))
    ]
    gaps = [
        values[0][i] - max(column[i] for column in values[1 : 1 + len(rivals)])
        for i in range(len(seeds))
    ]
    table = [[seed, *(f"{column[i]:.3f}" for column in values)] for i, seed in enumerate(seeds)]
    return judge(
        gaps, margin=margin, better="higher", unit=unit or f"{metric} gained",
        details={"columns": ["seed", *map(_name, arms)], "rows": table},
    )


def _cell(
    bench: Bench, task: str, arm: Mapping[str, Any], seed: int, budget: str | None
) -> dict[str, Any]:
    cell = {"task": task, "seed": seed, **arm}
    if arm["system"] != OURS["system"]:
        small = {"size": "smoke", "preset": "smoke", "task": _smoke_task(task)}
        return cell | (small if bench.smoke else {})
    if task.startswith("two-dialects"):
        cell |= WHOLE_DOCUMENTS
    if not bench.smoke:
        return cell | ({} if budget is None else {"budget": budget})
    small = {"size": "smoke", "preset": "smoke", "task": _smoke_task(task), "budget": "60 steps"}
    few = {name: 20 for name in ("finetune_steps", "finetune_pairs") if name in arm}
    if "pretrained" in arm:
        return cell | small
    return cell | small | few


def _smoke_task(task: str) -> str:
    """Docstrings take half a minute to parse; the dialects are made at once."""
    return "two-dialects" if task == "pydocs" else task


def _name(arm: Mapping[str, Any]) -> str:
    if arm["system"] != OURS["system"]:
        return str(arm["system"])
    changes = ", ".join(f"{k} = {v}" for k, v in arm.items() if k != "system")
    return changes or "contriever"


# ---- out of reach --------------------------------------------------------------------------------


def before_msmarco(bench: Bench) -> Evidence:
    return not_shown(
        "Wikipedia and CCNet (32 GPUs of 32 GB, about 3 days), MS MARCO, the 15 sets of BEIR"
    )


def many_languages(bench: Bench) -> Evidence:
    return not_shown("CCNet in 29 languages (64 GPUs), MS MARCO and Mr. TyDi")


def question_answering(bench: Bench) -> Evidence:
    return not_shown("the published training and the 21 million passages of Natural Questions")


CLAIMS: dict[str, Callable[[Bench], Evidence]] = {
    "C1": beats_words,
    "C1-words": words_win_where_they_match,
    "C1-real": real_text,
    "C1-ndcg": words_stay_ahead,
    "C2": before_msmarco,
    "C3": few_labels,
    "C4": many_languages,
    "C5": across_languages,
    "C5-qa": question_answering,
    "A1": crops_beat_the_cloze,
    "A2": a_queue_beats_the_batch,
    "A3": low_temperature,
}
