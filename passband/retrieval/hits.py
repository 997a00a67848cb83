"""What a search found, and TREC run files of it.

>>> hits = Hits([["ice", "fire"], []], [np.array([2.5, 1.0], np.float32), np.empty(0, np.float32)])
>>> hits.write_run("run.trec", ["q1", "q2"])
>>> Path("run.trec").read_text()
'q1 Q0 ice 1 2.5 passband\\nq1 Q0 fire 2 1 passband\\n'
>>> queries, again = Hits.read_run("run.trec")
>>> queries, again.ids
(['q1'], [['ice', 'fire']])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from passband.bench.results import write_atomic
from passband.errors import DataError
from passband.parts.topk import TopK

Array = np.ndarray[Any, Any]


@dataclass
class Hits:
    """Documents found for each query, best first; fewer than k where fewer match.

    ids     Q lists of document ids
    scores  Q float32 arrays
    places  Q int64 arrays: the documents' numbers in the index; -1 where they are not known
    """

    ids: list[list[str]]
    scores: list[Array]
    places: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.places:
            self.places = [np.full(len(found), -1, np.int64) for found in self.ids]
        for i, parts in enumerate(zip(self.ids, self.scores, self.places, strict=True)):
            if len({len(part) for part in parts}) > 1:
                raise DataError(
                    f"query {i} has {len(parts[0])} ids, {len(parts[1])} scores and "
                    f"{len(parts[2])} places", expected="one of each for every hit",
                )

    @classmethod
    def of(cls, found: TopK, ids: Any) -> Hits:
        """From places and scores [Q, k]; places of -1 are left out.

        ids  documents' ids by place; a list, or `Ids`
        """
        known = found.places >= 0
        places, inverse = np.unique(found.places[known], return_inverse=True)
        names = np.empty(len(places), object)
        names[:] = [ids[place] for place in places.tolist()]
        ends: Any = np.cumsum(known.sum(1))[:-1] if len(known) else []
        return cls(
            [part.tolist() for part in np.split(names[inverse], ends)] if len(known) else [],
            np.split(found.scores[known], ends) if len(known) else [],
            np.split(found.places[known], ends) if len(known) else [],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[list[tuple[str, float]]]:
        """For each query its (id, score), best first."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> list[tuple[str, float]]:
        return list(zip(self.ids[row], map(float, self.scores[row]), strict=True))

    def ranking(self, queries: Sequence[str]) -> dict[str, list[str]]:
        """Query id -> document ids, for the measures."""
        self._check(queries)
        return dict(zip(queries, self.ids, strict=True))

    def write_run(
        self, path: str | Path, queries: Sequence[str], tag: str = "passband"
    ) -> None:
        """A TREC run file, `query Q0 document rank score tag` in each line.

        Scores have nine digits: read again they are the same float32. Other tools put equal scores
        in an order of their own; the ranks are the order of this search.
        Raises `DataError` for ids with white space, which the format can't hold.
        """
        self._check(queries)
        for name in (*queries, tag, *(id for found in self.ids for id in found)):
            if not name or name.split() != [name]:
                raise DataError(
                    f"the id {name!r} has white space or is empty",
                    expected="ids that a TREC run file can hold", mend="write JSON lines instead",
                )
        lines = [
            f"{query} Q0 {id} {rank} {score:.9g} {tag}\n"
            for query, hits in zip(queries, self, strict=True)
            for rank, (id, score) in enumerate(hits, 1)
        ]
        write_atomic(Path(path), "".join(lines).encode())

    @classmethod
    def read_run(cls, path: str | Path) -> tuple[list[str], Hits]:
        """Query ids in the order of the file, and their hits in the order of the ranks.

        Raises `DataError` with the number of a line that isn't of the format.
        """
        rows: dict[str, list[tuple[int, str, float]]] = {}
        for number, line in enumerate(_lines(Path(path)), 1):
            if not (fields := line.split()):
                continue
            try:
                query, _, id, rank, score, _ = fields
                rows.setdefault(query, []).append((int(rank), id, float(score)))
            except ValueError:
                raise DataError(
                    f"{path}, line {number}: {line.strip()[:80]!r}",
                    expected="query Q0 document rank score tag",
                ) from None
        found = [sorted(hits, key=lambda hit: hit[0]) for hits in rows.values()]
        return list(rows), cls(
            [[id for _, id, _ in hits] for hits in found],
            [np.array([score for _, _, score in hits], np.float32) for hits in found],
        )

    def _check(self, queries: Sequence[str]) -> None:
        if len(queries) != len(self) or len(set(queries)) != len(queries):
            raise DataError(
                f"{len(set(queries))} different query ids for {len(self)} queries",
                expected="one for each",
            )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}", expected="a TREC run file") from None

