"""Real text whose relevance people wrote down: the functions that See Also sections name.

>>> data = see_also(size="smoke")
>>> query = next(iter(data.train.judgements))
>>> query in data.train.corpus, query in data.train.judgements[query]
(True, False)

A document is the first paragraph and the body of a docstring, without its section See Also (which
often repeats the first lines of those it names). A query is the first paragraph of a function; its
relevant documents are the functions that it names, 2 to 20 of them. The id of a query is that of
its own document, which is to be left out of its ranking.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from passband.data.cache import digest
from passband.data.documents.collection import Collection
from passband.data.documents.docstrings import Documented, docstrings, here
from passband.data.documents.parts import Parts, split
from passband.data.documents.pydocs import LONGEST_DOCUMENT, SIZES, collect
from passband.errors import UnknownNameError

FEWEST, MOST = 2, 20  # relevant documents of a query
SHORTEST = 10  # words of a document


def see_also(seed: int = 0, size: str = "small", packages: Sequence[str] | None = None) -> Parts:
    """Collections of docstrings with links, over one corpus.

    seed      which queries are for training, validation and test; the corpus is the same
    size      "full", "small" (at most 12,000 documents) or "smoke" (300)
    packages  installed ones; None: all of `docstrings.PACKAGES` that are
    """
    if size not in SIZES:
        raise UnknownNameError("size", size, SIZES)
    documents, valid, test = SIZES[size]
    return split(_collection(documents, here(packages)), seed, valid, test)


@cache
def _collection(most: int, packages: tuple[str, ...]) -> Collection:
    texts: dict[str, Documented] = {}
    for one in docstrings(packages):
        if len(_text(one).split()) >= SHORTEST:
            texts.setdefault(" ".join(_text(one).split()), one)
    found = list(texts.values())
    linked = links(found)
    kept = _whole_neighbourhoods(found, linked, most)
    inside = {one.id for one in kept}
    judgements = {
        one.id: dict.fromkeys(targets, 1) for one in kept
        if FEWEST <= len(targets := [t for t in linked[one.id] if t in inside]) <= MOST
    }
    return collect(((one, _text(one)) for one in kept), packages, judgements)


def _text(one: Documented) -> str:
    return f"{one.first}\n\n{one.rest}"[:LONGEST_DOCUMENT]


def _whole_neighbourhoods(
    found: Iterable[Documented], linked: Mapping[str, Sequence[str]], most: int
) -> list[Documented]:
    """At most `most` of a fixed shuffle, each followed by those that it names.

    A plain sample of a few would cut nearly all links.
    """
    by_id = {one.id: one for one in found}
    kept: dict[str, Documented] = {}
    for id in sorted(by_id, key=lambda id: (not linked[id], digest([id]))):
        for name in (id, *linked[id]):
            if len(kept) < most:
                kept.setdefault(name, by_id[name])
    return sorted(kept.values(), key=lambda one: one.id)


def links(found: Sequence[Documented]) -> dict[str, list[str]]:
    """Id -> ids that its See Also names, itself left out.

    >>> one = lambda id, *names: Documented(id, id.split(".")[0], "", "", "", names)
    >>> links([one("p.a.solve", "inv", "b.inv"), one("p.a.inv"), one("p.b.inv")])
    {'p.a.solve': ['p.a.inv', 'p.b.inv'], 'p.a.inv': [], 'p.b.inv': []}

    A name is looked for in the same package; of several, the one that shares most of the path with
    the function that names it. Where two share as much, the link is dropped.
    """
    named: dict[tuple[str, str], list[Documented]] = defaultdict(list)
    for one in found:
        named[one.package, one.id.rsplit(".", 1)[-1]].append(one)
    return {one.id: list(dict.fromkeys(_resolved(one, named))) for one in found}


def _resolved(
    one: Documented, named: Mapping[tuple[str, str], Sequence[Documented]]
) -> Iterator[str]:
    for name in one.see_also:
        parts = name.split(".")
        package = parts[0] if (parts[0], parts[-1]) in named else one.package
        fitting = [c for c in named.get((package, parts[-1]), ()) if _within(parts, c)]
        ranked = sorted(fitting, key=lambda c: -_shared(one.id, c.id))
        if not ranked or ranked[0].id == one.id:
            continue
        if len(ranked) == 1 or _shared(one.id, ranked[0].id) > _shared(one.id, ranked[1].id):
            yield ranked[0].id


def _within(parts: Sequence[str], candidate: Documented) -> bool:
    """Whether a written path, which may leave out modules, is part of the path of the source."""
    path = iter(candidate.id.split("."))
    return all(part in path or part == candidate.package for part in parts)


def _shared(a: str, b: str) -> int:
    pairs = zip(a.split("."), b.split("."), strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), 0)
