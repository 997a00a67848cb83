"""Function names with labels, and what had to be left out of them.

>>> named = Named.of(["read_file", "gr\u00f6\u00dfe"], ["copy_buffer", "read_file"])
>>> named.names, named.vulnerable.tolist()
(('copy_buffer', 'read_file'), [True, True])
>>> print(named.note)
1 other characters (for example 'größe'); 1 benign names are vulnerable ones as well
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passband.data.cache import digest
from passband.errors import DataError, PassbandWarning
from passband.parts.identifiers import usable, without_signature

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class Named:
    """N labelled names; duplicates stay.

    names       benign ones first where they came from lists
    vulnerable  [N] bool
    projects    [N] what each name belongs to, or empty
    note        what was left out or relabelled, "" for nothing
    """

    names: tuple[str, ...]
    vulnerable: Mask
    projects: tuple[str, ...] = ()
    note: str = ""

    @classmethod
    def of(
        cls, benign: Sequence[str], vulnerable: Sequence[str], *, strip_signatures: bool = False
    ) -> Named:
        """From two lists. A name in both counts as vulnerable."""
        names = [*benign, *vulnerable]
        labels = [False] * len(benign) + [True] * len(vulnerable)
        return cls.labelled(names, labels, strip_signatures=strip_signatures)

    @classmethod
    def labelled(
        cls, names: Sequence[str], vulnerable: Sequence[bool], projects: Sequence[str] = (), *,
        strip_signatures: bool = False,
    ) -> Named:
        """From one list. In each project, a name that is also vulnerable counts as that alone.

        strip_signatures  take "(int, int)" off the ends of names first
        Names that are empty, longer than 50 or have characters other than a-z A-Z 0-9 _ . - are
        left out; `note` counts them. Raises `DataError` when nothing is left.
        """
        cleaned = [without_signature(n) if strip_signatures else n for n in names]
        places, dropped = usable(cleaned)
        owner = projects or [""] * len(cleaned)
        bad = {(owner[i], cleaned[i]) for i in places if vulnerable[i]}
        kept = [i for i in places if vulnerable[i] or (owner[i], cleaned[i]) not in bad]
        conflicts = len(places) - len(kept)
        notes = [str(dropped)] if dropped else []
        if conflicts:
            notes.append(f"{conflicts} benign names are vulnerable ones as well")
        if not kept:
            raise DataError(
                "no usable names: " + ("; ".join(notes) or "the list is empty"),
                expected="names of 1 to 50 characters among a-z A-Z 0-9 _ . -",
            )
        return cls(
            tuple(cleaned[i] for i in kept), np.array([bool(vulnerable[i]) for i in kept]),
            tuple(owner[i] for i in kept) if projects else (), "; ".join(notes),
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def positives(self) -> int:
        return int(self.vulnerable.sum())

    def take(self, places: Any) -> Named:
        """Some of the names, in the order given."""
        chosen = np.arange(len(self))[places]
        return Named(
            tuple(self.names[i] for i in chosen), self.vulnerable[chosen],
            tuple(self.projects[i] for i in chosen) if self.projects else (), self.note,
        )

    @property
    def fingerprint(self) -> str:
        labels = "".join("01"[int(v)] for v in self.vulnerable)
        return digest((*self.names, labels, *self.projects))

    def __str__(self) -> str:
        return f"{self.positives} vulnerable of {len(self)} names, {self.fingerprint}"

    def warn(self) -> Named:
        """Say what was left out, as a `PassbandWarning`."""
        if self.note:
            warnings.warn(f"names: {self.note}", PassbandWarning, stacklevel=2)
        return self

    def needs(self, positives: int, what: str) -> Named:
        """Raises `DataError` with fewer vulnerable names, or no benign ones."""
        if self.positives < positives or self.positives == len(self):
            raise DataError(
                f"{self.positives} vulnerable and {len(self) - self.positives} benign names",
                expected=f"at least {positives} vulnerable and one benign for {what}",
                mend="give more names" if self.positives else
                "check the labels: 1 or true is vulnerable",
            )
        return self
