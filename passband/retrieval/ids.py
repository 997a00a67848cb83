"""The ids of an index' documents by place, and the other way, without one object for each.

>>> ids = Ids.of(["ice", "fire"])
>>> ids[1], ids.place("fire"), list(ids), len(ids)
('fire', 1, ['ice', 'fire'], 2)

On disk they are their UTF-8 bytes behind one another and the length of each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, count, pairwise
from typing import Any, overload

import numpy as np

from passband.errors import DataError, UnknownNameError

Array = np.ndarray[Any, Any]
BYTES, LENGTHS = "id_bytes", "id_lengths"


class Ids(Sequence[str]):
    """Ids in parts, one for each segment of an index."""

    def __init__(self, parts: Iterable[Mapping[str, Array]] = ()) -> None:
        self._parts: list[tuple[Array, Array]] = []
        self._places: dict[str, int] | None = None
        for part in parts:
            self._add(part)

    @classmethod
    def of(cls, ids: Iterable[str]) -> Ids:
        """Raises `DataError` for an id that comes twice."""
        found = cls()
        found.append(found.checked(ids))
        return found

    def _add(self, arrays: Mapping[str, Array]) -> None:
        lengths = np.asarray(arrays[LENGTHS])
        self._parts.append((np.asarray(arrays[BYTES]), np.concatenate([[0], np.cumsum(lengths)])))
        counts = [len(offsets) - 1 for _, offsets in self._parts]
        self._starts = list(accumulate(counts, initial=0))

    def append(self, arrays: Mapping[str, Array]) -> None:
        """Add ids that are `packed`."""
        start = len(self)
        self._add(arrays)
        if self._places is not None:
            self._places.update(zip(_texts(*self._parts[-1]), count(start)))

    def checked(self, ids: Iterable[str]) -> dict[str, Array]:
        """New ids, `packed`; `DataError` for one that is here or comes twice among them."""
        new = [str(id) for id in ids]
        known: Mapping[str, int] = self._known() if len(self) else {}
        seen: set[str] = set()
        for id in new:
            if id in seen or id in known:
                raise DataError(
                    f"the document id {id!r} comes twice" if id in seen else
                    f"the document id {id!r} is in the index already",
                    expected="an id of its own for each document",
                )
            seen.add(id)
        return packed(new)

    def __len__(self) -> int:
        return self._starts[-1] if self._parts else 0

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        number = bisect_right(self._starts, place) - 1
        (text, offsets), local = self._parts[number], place - self._starts[number]
        return text[offsets[local] : offsets[local + 1]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(_texts(*part) for part in self._parts)

    def __contains__(self, id: object) -> bool:
        return id in self._known()

    def place(self, id: str) -> int:
        """The document's number; `UnknownNameError` with the nearest ids where it isn't here."""
        known = self._known()
        if id not in known:
            raise UnknownNameError("document", id, known)
        return known[id]

    def _known(self) -> dict[str, int]:
        """Made when it is first asked for: searching needs it not."""
        if self._places is None:
            self._places = {id: place for place, id in enumerate(self)}
        return self._places


def _texts(text: Array, offsets: Array) -> list[str]:
    """All ids of one part: much faster than one by one."""
    whole = text.tobytes()
    return [
        whole[start:end].decode("utf-8", "surrogatepass")
        for start, end in pairwise(offsets.tolist())
    ]


def packed(ids: Sequence[str]) -> dict[str, Array]:
    """Ids as the arrays that are kept on disk."""
    texts = [id.encode("utf-8", "surrogatepass") for id in ids]
    return {
        BYTES: np.frombuffer(b"".join(texts), np.uint8),
        LENGTHS: np.array([len(text) for text in texts], np.int32),
    }
