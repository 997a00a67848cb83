"""Groups of documents, candidates and teachers' scores against loops."""

import numpy as np
import pytest

from passband.data.documents.collection import Collection, Document, Example, Listed
from passband.data.documents.headings import headings
from passband.errors import DataError
from passband.retrieval.first_stage import Bm25Stage
from passband.retrieval.impacts import Words
from passband.retrieval.lessons import Lessons, candidates, examples_of
from passband.retrieval.mining import found_by_stage, mined
from passband.retrieval.teachers import Teacher

RNG = np.random.default_rng


def test_scored_documents_are_cut_into_strided_groups():
    """n = 7, g = 3: step 2, groups {0, 2, 4} and {1, 3, 5}; the seventh is in none."""
    one = Example("q", ("d0",), tuple(f"d{i}" for i in range(1, 7)), tuple(map(float, range(7))))
    lessons = Lessons.of([one], group=3)
    seen = set()
    for seed in range(30):
        drawn = lessons.draw(0, RNG(seed))
        texts = tuple(lessons.documents[i] for i in drawn.documents)
        seen.add(texts)
        assert drawn.scores.tolist() == [float(t[1:]) for t in texts]
    assert seen == {("d0", "d2", "d4"), ("d1", "d3", "d5")}


def test_a_positive_comes_first_and_negatives_differ():
    lessons = Lessons.of([Example("q", ("p", "r"), ("a", "b", "c"))], group=3)
    for seed in range(20):
        first, *rest = (lessons.documents[i] for i in lessons.draw(0, RNG(seed)).documents)
        assert first in ("p", "r") and len(set(rest)) == 2 and set(rest) <= {"a", "b", "c"}


@pytest.mark.parametrize("example, group, told", [
    (Example("q", ("p",)), 2, "groups of 2"),
    (Example("q", (), ("a",)), 1, "0 positives"),
    (Example("q", ("p",), ("a",), (1.0,)), 2, "1 scores for 2 documents"),
])
def test_examples_that_make_no_group(example, group, told):
    with pytest.raises(DataError, match=told):
        Lessons.of([Example("good", ("p",), ("a", "b")), example], group)


def test_nothing_to_learn_from():
    with pytest.raises(DataError, match="nothing to learn"):
        examples_of(Collection(Listed([Document("a", "text"), Document("b", "", title="only")])))


def test_headings_where_nothing_is_judged_or_besides():
    corpus = Listed([
        Document("a", "Rivers of ice. They flow.", title="Glacier"), Document("b", "Hot. Springs."),
        Document("c", "one sentence"), Document("d", "A line\n\nand more. Of it."),
    ])
    bare = examples_of(Collection(corpus))
    assert [(e.query, e.positives[0]) for e in bare] == [
        ("Glacier", "Rivers of ice. They flow."), ("Hot.", "Springs."),
        ("A line", "and more. Of it."),
    ]
    assert [e.positives[1] for e in bare] == [corpus[i].full for i in (0, 1, 3)]
    judged = Collection(corpus, {"q": "cold"}, {"q": {"a": 1}})
    assert [e.query for e in examples_of(judged)] == ["cold"]
    assert [e.query for e in examples_of(judged, titles=1)] == ["cold"]
    both = examples_of(judged, titles=2)
    assert [e.query for e in both] == ["cold", "Glacier", "Hot.", "A line"]
    assert [e.query for e in headings(corpus, most=2)] == ["Glacier", "A line"]


def test_a_document_is_no_negative_of_its_own_heading():
    corpus = Listed([Document(str(i), f"word{i} stands here", title=f"word{i}") for i in range(5)])
    examples = examples_of(Collection(corpus))
    asked = [e.query for e in examples]
    found = found_by_stage(Bm25Stage(Words("english")), corpus, asked, 5)
    assert all(i in places for i, places in enumerate(found))  # it is found first
    for i, texts in mined(corpus, examples, found, 2, RNG(0)).items():
        assert len(texts) >= 2 and corpus[i].full not in texts


@pytest.mark.parametrize("others", ["own", "negatives", "batch"])
def test_candidates_by_a_loop(others):
    b, g = 3, 3
    wanted = []
    for i in range(b):
        own = [i * g + k for k in range(g)]
        negatives = [j * g + k for j in range(b) for k in range(1, g)]
        rest = [j for j in range(b * g) if j != i * g]
        ways = {"own": own, "negatives": [i * g, *negatives], "batch": [i * g, *rest]}
        wanted.append(ways[others])
    assert candidates(b, g, others).tolist() == wanted


def test_mined_negatives_are_no_positives_nor_their_copies():
    corpus = Listed([
        Document("a", "ice river"), Document("b", "ice river"), Document("c", "river of ice"),
        Document("d", "fire"), Document("e", "lava"),
    ])
    examples = [Example("ice river", ("ice river",)), Example("fire", ("fire",))]
    found = found_by_stage(Bm25Stage(Words()), corpus, [e.query for e in examples], 3)
    assert found[0][:2] == [0, 1] and found[1] == [3]
    chosen = mined(corpus, examples, found, 1, RNG(0))
    assert chosen[0] == ["river of ice"]
    assert len(chosen[1]) == 1 and chosen[1] != ["fire"]  # filled up at random


def bm25(query, documents, place, k1=0.9, b=0.4):
    """Lucene's BM25 of words of two letters and more, written out."""
    split = [[w for w in d.split() if len(w) > 1] for d in documents]
    mean, own, score = np.mean([len(d) for d in split]), split[place], 0.0
    for word in query.split():
        df, tf = sum(word in d for d in split), own.count(word)
        idf = np.log(1 + (len(split) - df + 0.5) / (df + 0.5))
        score += idf * tf / (tf + k1 * (1 - b + b * len(own) / mean)) if tf else 0.0
    return score


def test_a_teacher_scores_as_bm25_does_text_by_text():
    documents, queries = ["the cat sat", "cats and dogs and cats", "a bird"], ["cats", "the bird"]
    teacher = Teacher(Bm25Stage(Words()), documents, queries)
    np.testing.assert_allclose(
        teacher.scores([1, 0], [2, 0, 1]).numpy(),
        [[bm25(queries[q], documents, d) for d in (2, 0, 1)] for q in (1, 0)], rtol=1e-5,
    )
