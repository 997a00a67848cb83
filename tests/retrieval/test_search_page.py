"""The search page: its script against Python in a real browser, its bounds, and what it lets in."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import passband.retrieval.search_page as place
from passband import create
from passband.bench.report.artifacts import script_digests
from passband.data.documents.collection import Collection, Document, Listed
from passband.errors import ConfigError
from passband.retrieval.baselines.bm25.system import BM25Search
from passband.retrieval.search_page import write_page
from passband.retrieval.search_page.encoders import SmallBert
from passband.retrieval.search_page.packing import packed_rows

HERE = Path(place.__file__).parent
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium to run the page in")
EVIL = "</script><img src=x onerror=\"document.title='evil'\"> & <!-- <script>"

QUERIES = [
    "compute the eigenvalues of a matrix", "plotting lines", "read a file of separated values",
    "Fourier transforms", "randomly drawn numbers", "sorting arrays quickly", "shortest paths",
    "stopping criteria for minimisers", "gradients", "fitting linear regressions to data",
    "convert strings to dates", "sparse matrices and their solvers", "a the of",
]
ODD = [
    "naïve CAFÉ Ärger", "İstanbul ΣΑΣ ß ﬁ", "x_1=y+2; a.b(c)", "日本語 and 中文字",
    "it's — “quoted”…",
    "tab\there\nnew line\u00a0wide\u3000wider\u200bzero", "\u0007bell \ufffd soft\u00adhyphen",
    "[SEP] [MASK] [unk]", "w" * 101 + " " + "ab" * 50, "emoji 😀 🏳️‍🌈 flags", "", "   ",
    "½ ² ٣ Ⅷ ৪৫",
    "don\u2019t $5 ^ ~ ` | < > 100%", "e\u0301 = é", "\U00020000 \U0002b825 \U0002b820",
]


def run(page: Path, query: str = "") -> str:
    """The page's DOM after its script has run, as Chromium writes it."""
    folder = page.parent / "profile"
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={folder}", "--dump-dom",
         f"{page.resolve().as_uri()}{query}"],
        capture_output=True, timeout=180, check=True,
    )
    return done.stdout.decode()


def payload(page: Path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    return json.loads(found[1])


def evaluate(folder: Path, expression: str, **given) -> object:
    """What an expression over the page's functions gives, with some data as `given`."""
    scripts = "".join((HERE / f"{n}.js").read_text() for n in ("words", "arrays", "bert", "search"))
    text = json.dumps(given).replace("<", "\\u003c")
    page = folder / "evaluate.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><body><script>{scripts}\nconst given = {text};'
        f"document.body.textContent = JSON.stringify({expression});</script>", encoding="utf-8",
    )
    body = re.search(r"<body>(.*)</body>", run(page), re.DOTALL)[1]
    return json.loads(html.unescape(body))


@pytest.fixture(scope="module")
def data() -> Collection:
    """Docstrings of NumPy; the first paragraph of every fifth is a query for the rest of it."""
    texts = {name: getattr(np, name).__doc__ or "" for name in sorted(dir(np))}
    parts = {name: text.strip().split("\n\n", 2) for name, text in texts.items()}
    known = [name for name, part in parts.items() if len(part) == 3][:300]
    documents = [Document(name, parts[name][2][:1000]) for name in known]
    queries = {f"q{name}": parts[name][1] for name in known[::5]}
    return Collection(Listed(documents), queries, {q: {q[1:]: 1} for q in queries})


def encoder(data: Collection):
    """A Contriever whose texts differ and whose every parameter counts, without training."""
    system = create("contriever")
    system._start(data)  # word pieces of these documents
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in system.network.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 2:
                p.copy_(noise * (1.0 if "embeddings" in name else p.shape[1] ** -0.5))
            else:
                p.add_(0.3 * noise)
    return system


@pytest.fixture(scope="module")
def systems(data):
    sparse = create("idf-flops", preset="smoke")
    table = np.random.default_rng(0).uniform(0, 5, sparse.network.vocabulary)
    sparse.network.set_idf(torch.from_numpy(np.where(table < 0.2, 0, table)))
    return {"bm25": create("bm25"), "idf-flops": sparse, "contriever": encoder(data)}


@pytest.fixture(scope="module")
def page(data, systems, tmp_path_factory) -> Path:
    return write_page(systems, data, tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def answers(page, data, systems) -> dict:
    """What the page's script gives: hits and vectors of queries, terms of words, word pieces."""
    if BROWSER is None:
        pytest.skip("no Chromium to run the page in")
    words = sorted({
        word for d in data.corpus for word in re.findall(r"\w\w+", d.full.lower())
    })
    return evaluate(
        page.parent, """(() => {
            const count = given.data.documents.length;
            const of = given.data.systems.map((s) => new KINDS[s.kind](s, count));
            const split = (text) => of[0].split(text).map((t) => of[0].terms[t] ?? null);
            return {
                hits: given.queries.map((q) => of.map((s) => s.ask(q, 10))),
                vectors: given.queries.map((q) => Array.from(of[2].query(q))),
                words: given.words.map((w) => split(w)[0] ?? null),
                odd: given.odd.map(split), pieces: given.odd.map(of[2].tokens),
            };
        })()""",
        data=payload(page), queries=QUERIES, words=words, odd=ODD,
    ) | {"asked": words}


@pytest.mark.parametrize("number, name", [(0, "bm25"), (1, "idf-flops")])
def test_sparse_hits_are_those_of_search(answers, data, systems, number, name):
    found = 0
    for query, hits in zip(QUERIES[:-1], answers["hits"], strict=False):
        expected = systems[name].search(query, k=10)
        assert [hit["place"] for hit in hits[number]] == expected.places[0].tolist()
        scores = [hit["score"] for hit in hits[number]]
        np.testing.assert_allclose(scores, expected.scores[0], rtol=1e-5)
        for hit in hits[number][:2]:
            shares = systems[name].explain(query, data.corpus.ids[hit["place"]])
            assert {term for term, _ in hit["shares"]} == {term for term, _ in shares}
            assert sum(share for _, share in hit["shares"]) == pytest.approx(hit["score"], rel=1e-5)
            found += 1
    assert found > 12
    assert answers["hits"][-1][0] == []  # stop words alone


def test_the_encoder_is_that_of_python(answers, systems):
    system = systems["contriever"]
    expected, found = system.encode_queries(QUERIES), np.array(answers["vectors"])
    norms = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (expected, found)]
    assert (norms[0] * norms[1]).sum(1).min() > 0.999
    # What all texts have in common would hide differences.
    apart = [v - expected.mean(0) for v in (expected, found)]
    cosines = (apart[0] * apart[1]).sum(1) / np.prod([np.linalg.norm(v, axis=1) for v in apart], 0)
    assert cosines.min() > 0.98
    hits, same = system.search(QUERIES, k=10), 0
    for row, mine in enumerate(answers["hits"]):
        first = np.flatnonzero(hits.places[row] == mine[2][0]["place"])
        # Weights in 8 bits may turn round what is nearly equal.
        assert hits.scores[row][first] >= 0.995 * hits.scores[row][0]
        same += int(first[0] == 0)
        common = {hit["place"] for hit in mine[2]} & set(hits.places[row].tolist())
        assert len(common) >= 8
    assert same >= len(QUERIES) - 2


def test_words_are_stemmed_as_in_python(answers, systems):
    known = systems["bm25"]._columns
    stems = systems["bm25"]._stem().stemWords(answers["asked"])
    stopwords = set(systems["bm25"].page_encoder().split.stopwords)
    expected = [
        stem if stem in known and word not in stopwords else None
        for word, stem in zip(answers["asked"], stems, strict=True)
    ]
    assert answers["words"] == expected
    assert sum(found is not None for found in expected) > 2000


def test_odd_texts_are_split_as_in_python(answers, systems):
    tokens = systems["bm25"]._tokens(ODD, ids=False)
    known = systems["bm25"]._columns
    for mine, theirs in zip(answers["odd"], tokens, strict=True):
        assert [t for t in mine if t] == [t for t in theirs if t in known]
    rows = systems["contriever"].pieces.rows(ODD, specials=False)
    expected = np.split(rows.ids, np.cumsum(rows.lengths)[:-1])
    assert answers["pieces"] == [ids.tolist() for ids in expected]


@in_browser
def test_a_query_in_the_address_is_answered_and_texts_stay_texts(tmp_path):
    texts = [f"Ice {EVIL} and rivers.", "A volcano.", "Rivers of ice: glaciers."]
    documents = [Document(f"d{i} <b>", text, f"Title <i>{i}") for i, text in enumerate(texts)]
    data = Collection(Listed(documents), {"q": EVIL, "r": "glacier"}, {"q": {"d2 <b>": 1}})
    system = create("bm25")
    page = write_page({"BM25 & more": system}, data, tmp_path / "page.html")
    dom = run(page, "#q=icy%20glacier+ice")
    expected = system.search("icy glacier ice", k=10)
    body = dom.split("<main", 1)[1].split("</main>", 1)[0]
    assert [html.unescape(i) for i in re.findall(r'data-id="([^"]*)"', body)] == expected.ids[0]
    scores = [float(score) for score in re.findall(r'data-score="([^"]*)"', body)]
    np.testing.assert_allclose(scores, expected.scores[0], rtol=1e-5)
    assert "glacier</span>" in body and EVIL[:13] not in body
    assert not re.search(r"<(img|i>\d|b>\d)", body) and "<title>evil" not in dom
    assert "&lt;/script&gt;&lt;img" in body  # shown as it is


def test_documents_are_left_out_evenly_and_it_says_so(data, tmp_path):
    system = create("bm25")
    page = write_page({"bm25": system}, data, tmp_path / "p.html", documents=60, queries=4)
    made = payload(page)
    assert len(made["documents"]) == 60
    assert f"60 of {len(data.corpus)} documents" in page.read_text()
    ids = [d[0] for d in made["documents"]]
    assert ids == sorted(ids, key=data.corpus.place) and len(made["queries"]) == 4
    for query in made["queries"]:
        assert set(system.search(query["text"], k=11).ids[0]) <= set(ids)
        assert query["relevant"]
    assert system.last_index is not None and len(system.last_index) == len(data.corpus)


def test_the_file_keeps_to_its_size(data, tmp_path):
    whole = write_page({"bm25": create("bm25")}, data, tmp_path / "p.html").stat().st_size
    size = whole * 2 // 3
    small = write_page({"bm25": create("bm25")}, data, tmp_path / "q.html", size=size)
    assert 0.5 * size < small.stat().st_size <= size
    with pytest.raises(ConfigError, match="bytes"):
        write_page({"bm25": create("bm25")}, data, tmp_path / "r.html", size=1000)
    with pytest.raises(ConfigError, match="no system"):
        write_page({}, data, tmp_path / "r.html")


def test_other_systems_answer_recorded_queries(data, tmp_path):
    splade, rm3 = create("splade", preset="smoke"), create("rm3")
    page = write_page({"splade": splade, "rm3": rm3}, data, tmp_path / "p.html", queries=5)
    made = payload(page)
    places = [data.corpus.place(d[0]) for d in made["documents"]]
    for column, system in zip(made["systems"], (splade, rm3), strict=True):
        assert column["kind"] == "recorded" and len(column["answers"]) == 5
        for text, hits in column["answers"]:
            expected = system.search(text, k=11)
            assert [places[hit[0]] for hit in hits] == expected.places[0].tolist()
            np.testing.assert_allclose([hit[1] for hit in hits], expected.scores[0], rtol=1e-4)
    terms = [share for _, hits in made["systems"][0]["answers"] for hit in hits for share in hit[2]]
    assert terms and not any(hit[2] for _, hits in made["systems"][1]["answers"] for hit in hits)


def test_large_or_foreign_encoders_are_left_out():
    system = create("contriever", preset="smoke")
    fits = system.page_encoder()
    assert fits.fits()
    system.network.config.hidden_act = "relu"
    assert not SmallBert(system.network, system.pieces, 128).fits()
    assert create("contriever", preset="smoke", normalize_text=True).page_encoder() is None
    assert BM25Search().page_encoder().fits()


def test_rows_in_eight_bits():
    matrix = np.random.default_rng(0).normal(size=(5, 40)) * np.array([[1e-3], [1], [50], [0], [1]])
    packed = packed_rows(matrix)
    import base64

    scales = np.frombuffer(base64.b64decode(packed["scales"]["data"]), "<f4")
    rows = np.frombuffer(base64.b64decode(packed["data"]), "i1").reshape(5, 40) * scales[:, None]
    assert (np.abs(rows - matrix) <= 0.501 * scales[:, None]).all()


def test_the_policy_allows_the_one_script_alone(page):
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    (digest,) = script_digests(text)
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not re.search(r"(src|href)=", text.split('id="data"')[0])
