"""Speed of the retrieval family, as ratios measured in one run.

    python benchmarks/retrieval.py [--quick] [--only search|dense|head|append|growth] [--json FILE]

search  the inverted index against bm25s (NumPy and numba) and scipy's sparse product, on BM25
        impacts of the same drawn texts: building, queries and bytes. Half of the time of a query
        is adding up its postings, the floor of any exact search that reads them all.
dense   an index of vectors against a plain product with a sort, and faiss' flat index. The floor of
        one query is reading all vectors once (2 ms of 100,000 x 128 here), which is most of
        faiss' time and two thirds of ours: the rest, about a millisecond, is choosing the best
        and scoring them once more in float64, so that scores are exact to the bit.
head    the pooled vocabulary head against the naive form and sentence-transformers' pooling: time,
        and the most bytes of tensors alive at one time, to the byte; "without gradients" leaves
        out those of states, decoder and bias, which every form ends with
append  adding 1,000 documents to many, against building anew
growth  time of building and searching from 10,000 to 1,000,000 documents, with fitted exponents

Works that are compared take turns in one process on one thread, and what is compared is the least
processor time of a call: what else the machine does falls on all of them alike. A comparison whose
results differ stops the run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import (
    cheapest,
    exponent,
    fix_threads,
    in_fresh_process,
    interleaved,
    machine,
    print_machine,
    print_table,
    race,
    same,
    seconds,
)
from scipy import sparse

from passband.parts.inverted_index import InvertedIndex
from passband.parts.pooled_max import log_saturation, pooled_max
from passband.parts.tensor_memory import PeakTensors
from passband.retrieval.index import DenseIndex, SparseIndex

Row = dict[str, Any]
PRELOAD = ("numpy", "scipy.sparse", "torch")
K = 100


def drawn_counts(documents: int, terms: int, seed: int, vocabulary: int = 30_000) -> Any:
    """Counts of terms drawn by Zipf's law: CSR [documents, vocabulary]."""
    rng = np.random.default_rng(seed)
    chances = np.cumsum(1 / (np.arange(vocabulary) + 3.0))
    drawn = np.searchsorted(chances / chances[-1], rng.random(documents * terms))
    rows = np.repeat(np.arange(documents), terms)
    entries = (np.ones(len(rows), np.float32), (rows, drawn))
    return sparse.coo_array(entries, shape=(documents, vocabulary)).tocsr()


def raced(case: str, works: dict[str, Callable[[], Any]], rounds: int) -> list[Row]:
    """The first work is ours; rows of all with their ratios to it."""
    times = race(works, rounds, turn=0.1)
    ours = next(iter(times.values()))
    return [{"case": case, "what": n, "seconds": t, "ratio": t / ours} for n, t in times.items()]


def show(title: str, rows: list[Row]) -> list[Row]:
    print_table(title, ("case", "work", "processor time", "of ours"), [
        (row["case"], row["what"], seconds(row["seconds"]), f"{row['ratio']:.2f}") for row in rows
    ])
    return rows


# ---- search ----------------------------------------------------------------------------------


def search_pairs(documents: int, queries: int, rounds: int) -> list[Row]:
    import bm25s

    counts, asked = drawn_counts(documents, 60, 0), drawn_counts(queries, 7, 1)
    asked.data[:] = 1  # bm25s has a query's token once where it comes once
    words = [row.tolist() for row in np.split(
        np.repeat(counts.indices, counts.data.astype(int)),
        np.cumsum(np.asarray(counts.sum(1)).ravel().astype(int))[:-1])]
    tokens = [row.tolist() for row in np.split(asked.indices, asked.indptr[1:-1])]
    names = [[str(t) for t in row] for row in words]
    wanted = [[str(t) for t in row] for row in tokens]
    library = {}
    for backend in ("numpy", "numba"):
        library[backend] = bm25s.BM25(k1=0.9, b=0.4, backend=backend)
        library[backend].index(names, show_progress=False)
    scores, columns = library["numpy"].scores, library["numpy"].vocab_dict
    shape = (documents, len(scores["indptr"]) - 1)
    impacts = sparse.csc_array(
        (scores["data"], scores["indices"], scores["indptr"]), shape=shape
    ).tocsr()
    known = [[columns[t] for t in row if t in columns] for row in wanted]
    indptr = np.cumsum([0, *map(len, known)])
    query = sparse.csr_array(
        (np.ones(indptr[-1], np.float32), np.concatenate(known).astype(int), indptr),
        shape=(queries, shape[1]),
    )
    index = InvertedIndex.of(impacts, threads=1)
    plain = InvertedIndex.of(impacts, engine="numpy")
    transposed = impacts.T.tocsr()

    def by_product() -> np.ndarray[Any, Any]:
        product = (query @ transposed).toarray()
        chosen = np.argpartition(-product, K, axis=1)[:, :K]
        return -np.sort(-np.take_along_axis(product, chosen, 1), axis=1)

    def by_library(backend: str) -> Any:
        return library[backend].retrieve(
            wanted, k=K, show_progress=False, n_threads=1 if backend == "numba" else 0
        ).scores

    ours = np.maximum(index.search(query, K).scores, 0)  # what isn't there scores 0 elsewhere
    for other in (by_product(), by_library("numpy"), by_library("numba"),
                  np.maximum(plain.search(query, K).scores, 0)):
        same(ours, other, "search")
    case = f"{documents:,} documents, {queries:,} queries"
    rows = raced(case, {
        "ours": lambda: index.search(query, K),
        "ours without numba": lambda: plain.search(query, K),
        "bm25s, NumPy": lambda: by_library("numpy"),
        "bm25s, numba": lambda: by_library("numba"),
        "scipy product": by_product,
    }, rounds)
    rows += raced(f"{case}: building", {
        "ours, from impacts": lambda: InvertedIndex.of(impacts),
        "bm25s, from tokens": lambda: bm25s.BM25(k1=0.9, b=0.4).index(names, show_progress=False),
    }, max(1, rounds // 3))
    eight = InvertedIndex.of(impacts, quantise="term")
    sizes = {"float32": index.nbytes, "8 bits": eight.nbytes,
             "bm25s": sum(scores[n].nbytes for n in ("data", "indices", "indptr"))}
    print("  bytes: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))
    return rows


def search(quick: bool) -> list[Row]:
    sizes = (3000, 300, 3) if quick else (12_371, 2475, 7)
    return show("Sparse search", in_fresh_process(search_pairs, *sizes))


# ---- dense -----------------------------------------------------------------------------------


def dense_pairs(documents: int, queries: int, width: int, rounds: int) -> list[Row]:
    import faiss

    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((documents, width)).astype(np.float32)
    q = rng.standard_normal((queries, width)).astype(np.float32)
    flat = faiss.IndexFlatIP(width)
    flat.add(x)

    def plain() -> np.ndarray[Any, Any]:
        product = q @ x.T
        chosen = np.argpartition(-product, K, axis=1)[:, :K]
        return -np.sort(-np.take_along_axis(product, chosen, 1), axis=1)

    ids = [str(place) for place in range(documents)]
    whole = DenseIndex.create(None, [x], ids)
    half = DenseIndex.create(None, [x], ids, dtype="float16")
    ours = whole.find(q, K)
    same(ours.scores, plain(), "dense")
    same(ours.scores, flat.search(q, K)[0], "dense")
    return raced(f"{documents:,} x {width}, {queries} queries", {
        "ours": lambda: whole.find(q, K),
        "ours, 16 bits": lambda: half.find(q, K),
        "product and argpartition": plain,
        "faiss IndexFlatIP": lambda: flat.search(q, K),
    }, rounds)


def dense(quick: bool) -> list[Row]:
    cases = ((20_000, 64, 128, 3),) if quick else ((100_000, 1, 128, 9), (100_000, 256, 128, 5))
    rows = [row for case in cases for row in in_fresh_process(dense_pairs, *case)]
    return show("Dense search", rows)


# ---- head ------------------------------------------------------------------------------------


def head_pairs(batch: int, length: int, width: int, vocabulary: int, rounds: int) -> list[Row]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(batch, length, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
    bias = torch.full((vocabulary,), -2.5, requires_grad=True)
    mask = torch.ones(batch, length, dtype=torch.bool)

    def naive() -> torch.Tensor:
        logits = hidden @ weight.T + bias
        return (torch.log1p(torch.relu(logits)) * mask[..., None]).amax(1)

    def pooled() -> torch.Tensor:
        return log_saturation(pooled_max(hidden, weight, bias, mask))

    forms = {"ours": pooled, "naive": naive}
    try:
        from sentence_transformers.sparse_encoder.models import SpladePooling
    except ImportError:
        print("  sentence-transformers is not installed: its pooling is left out")
    else:
        pooling = SpladePooling("max")
        forms["sentence-transformers"] = lambda: pooling({
            "token_embeddings": hidden @ weight.T + bias, "attention_mask": mask,
        })["sentence_embedding"]
    for name, form in forms.items():
        same(pooled().detach(), form().detach(), f"head, {name}")
    case = f"{batch} x {length} x {width}, {vocabulary:,} entries"

    def step(form: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            for tensor in (hidden, weight, bias):
                tensor.grad = None
            form().square().mean().backward()

        return run

    steps = {name: step(form) for name, form in forms.items()}
    rows = raced(case, steps, rounds)
    for row in rows:
        for tensor in (hidden, weight, bias):
            tensor.grad = None
        with PeakTensors() as memory:
            steps[row["what"]]()
        row["bytes"] = memory.peak
        # Gradients that every form must leave: what remains is what the form itself takes.
        row["own"] = memory.peak - sum(t.nbytes for t in (hidden, weight, bias))
    return rows


def head(quick: bool) -> list[Row]:
    cases = ((4, 64, 128, 8192, 2),) if quick else (
        (8, 128, 384, 30_522, 3), (16, 96, 128, 8192, 5))
    rows = [row for case in cases for row in in_fresh_process(head_pairs, *case)]
    show("Vocabulary head, forward and backward", rows)
    ours = {row["case"]: row for row in rows if row["what"] == "ours"}
    for row in rows:
        row["bytes_ratio"] = row["bytes"] / ours[row["case"]]["bytes"]
        row["own_ratio"] = row["own"] / ours[row["case"]]["own"]
    columns = ("case", "work", "most bytes", "of ours", "without gradients", "of ours")
    print_table("The same step: most bytes of tensors alive at one time", columns, [
        (row["case"], row["what"], f"{row['bytes'] / 1e6:.1f} MB", f"{row['bytes_ratio']:.2f}",
         f"{row['own'] / 1e6:.1f} MB", f"{row['own_ratio']:.2f}") for row in rows
    ])
    return rows


# ---- append ----------------------------------------------------------------------------------


def append_pairs(documents: int, added: int, rounds: int) -> list[Row]:
    rows: list[Row] = []
    counts = drawn_counts(documents + added, 60, 0)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((documents + added, 128)).astype(np.float32)
    ids = [str(i) for i in range(documents + added)]
    for kind, whole in ((SparseIndex, counts), (DenseIndex, vectors)):
        with tempfile.TemporaryDirectory() as place:
            index = kind.create(Path(place) / "i", [whole[:documents]], ids[:documents])
            number = iter(range(10**9))

            def more(index: Any = index, whole: Any = whole, number: Any = number) -> None:
                tag = next(number)  # ids are new each time
                index.append(whole[documents:], [f"{tag}-{i}" for i in range(added)])

            def anew(kind: Any = kind, whole: Any = whole, place: str = place) -> None:
                kind.create(Path(place) / "whole", [whole], ids)

            rows += raced(f"{kind.kind}: {added:,} to {documents:,}", {
                "append": more, "build anew": anew,
            }, rounds)
    return rows


def append(quick: bool) -> list[Row]:
    sizes = (10_000, 1000, 2) if quick else (100_000, 1000, 5)
    return show("Adding documents on disk", in_fresh_process(append_pairs, *sizes))


# ---- growth ----------------------------------------------------------------------------------


def grown(documents: int, rounds: int) -> Row:
    block, queries = 10_000, drawn_counts(50, 7, 1)
    blocks = [drawn_counts(block, 40, seed) for seed in range(documents // block)]
    with tempfile.TemporaryDirectory() as place:
        taken = interleaved(
            {"build": lambda: InvertedIndex.create(Path(place) / "i", iter(blocks))}, 1
        )
        index = InvertedIndex.open(Path(place) / "i", threads=1)
        taken |= interleaved({"search": lambda: index.search(queries, K)}, rounds, turn=0.1)
        return {"documents": documents, "bytes": index.nbytes,
                **{name: cheapest(calls) for name, calls in taken.items()}}


def growth(quick: bool) -> list[Row]:
    sizes = (10_000, 30_000) if quick else (10_000, 100_000, 300_000, 1_000_000)
    rows = [in_fresh_process(grown, size, 3) for size in sizes]
    print_table("Growth", ("documents", "building", "50 queries", "MB"), [
        (f"{r['documents']:,}", seconds(r["build"]), seconds(r["search"]),
         f"{r['bytes'] / 1e6:.0f}") for r in rows
    ])
    for name in ("build", "search"):
        fitted = exponent([r["documents"] for r in rows], [r[name] for r in rows])
        print(f"  {name}: time ~ documents^{fitted:.2f}")
    return rows


PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "search": search, "dense": dense, "head": head, "append": append, "growth": growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, within a minute")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args()
    fix_threads(1, PRELOAD)
    facts = machine(1, ("numpy", "scipy", "torch", "numba", "bm25s", "faiss-cpu"))
    print_machine(facts)
    results: dict[str, Any] = {"machine": facts}
    for name, part in PARTS.items():
        if options.only in (None, name):
            results[name] = part(options.quick)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
