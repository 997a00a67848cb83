"""Systems with the verb `flag`: function names in, scores, flags and words out.

>>> names = ["copy_buffer", "copy_string", "get_size", "set_size", "read_list", "print_list"] * 4
>>> named = Named.labelled(names, [name.startswith("copy") for name in names])
>>> system = create("featherweight", preset="smoke")
>>> _ = system.fit(Data(train=named))
>>> found = system.flag(["copy_list", "get_list"])
>>> found.flags.tolist(), found.words[0][0][0]
([True, False], 'copy')

A subclass gives `scores`, `threshold` and, where it knows, `why`. What is flagged is a list of what
to look at first; no name proves anything.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from passband.bench.system import Monitor, System
from passband.bench.task import Data
from passband.data.names.functions import SUFFIXES, Function, functions_in
from passband.data.names.named import Named
from passband.data.names.readers import unlabelled
from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.identifiers import usable
from passband.retrieval.flags import Array, Flags, write_csv

__all__ = ["Data", "Flagger", "Named"]

LISTS = (".txt", ".csv")


class Flagger(System):
    """Base of the systems that flag names."""

    verbs: ClassVar[tuple[str, ...]] = ("flag",)
    fitted: bool = False

    # ---- what a subclass gives -----------------------------------------------------------------

    @abstractmethod
    def scores(self, names: Sequence[str]) -> Array:
        """[N] in [0, 1] of usable names."""

    @property
    @abstractmethod
    def threshold(self) -> float:
        """Names with a score above it are flagged."""

    def why(self, name: str) -> Sequence[tuple[str, float]]:
        """The words of a name with what each adds to its score; empty where a method can't say."""
        return ()

    # ---- flag ----------------------------------------------------------------------------------

    def flag(self, names: str | Sequence[str]) -> Flags:
        """Score names of functions.

        names  one or several; 1 to 50 characters among a-z A-Z 0-9 _ . -
        Other names get no score (NaN) and no flag, and a `PassbandWarning` counts them.
        Raises `ConfigError` before `fit`, `DataError` for what are no texts.
        """
        if not self.fitted:
            raise ConfigError(
                f"{self.id or type(self).__name__} has learned nothing yet",
                expected="a fitted system", mend="call fit(data), or load a trained one",
            )
        texts = (names,) if isinstance(names, str) else tuple(names)
        wrong = next((name for name in texts if not isinstance(name, str)), None)
        if wrong is not None:
            raise DataError(
                f"a name is {wrong!r} ({type(wrong).__name__})", expected="texts, one a function"
            )
        places, dropped = usable(texts)
        if dropped:
            warnings.warn(f"names without a score: {dropped}", PassbandWarning, stacklevel=2)
        found = np.full(len(texts), np.nan)
        found[places] = self.scores([texts[i] for i in places])
        flags = np.zeros(len(texts), dtype=bool)
        flags[places] = found[places] > self.threshold
        usable_places = set(places)
        reasons = {
            name: tuple(self.why(name))
            for name in {texts[i] for i in usable_places if found[i] > 0}
        }
        return Flags(texts, found, flags, tuple(
            reasons.get(name, ()) if i in usable_places else () for i, name in enumerate(texts)
        ))

    # ---- files ---------------------------------------------------------------------------------

    def scan(self, source: str | Path) -> tuple[list[Function], Flags]:
        """Functions of C, C++ or Python sources, a file or a tree, and what is flagged of them."""
        functions = functions_in(source)
        if not functions:
            raise DataError(f"{source} defines no functions", expected="sources with functions")
        return functions, self.flag([function.name for function in functions])

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Write flags.csv, flags.json and flags.html, the most risky names first.

        path  a tree or file of C, C++ or Python sources, or names: NAME.txt with one on each line,
              NAME.csv with a column `name`
        """
        from passband.retrieval.flag_report import write_html, write_json

        if path.is_file() and path.suffix.lower() in LISTS:
            names = unlabelled(path)
            functions = [Function(name, "", 0) for name in names]
            flags = self.flag(names)
        elif path.is_dir() or path.suffix.lower() in SUFFIXES:
            functions, flags = self.scan(path)
        else:
            raise DataError(
                f"{path} is no list of names and no source file",
                expected=f"a folder of sources, or a file {' '.join((*LISTS, *sorted(SUFFIXES)))}",
            )
        rows = [
            {**flags_row, "file": functions[i].file, "line": functions[i].line}
            for i, flags_row in zip(flags.order(), flags.rows(ranked=True), strict=True)
        ]
        return [
            write_csv(out / "flags.csv", rows),
            write_json(out / "flags.json", rows, self, path.name),
            write_html(out / "flags.html", rows, self, path.name),
        ]

    def about(self) -> dict[str, Any]:
        """Facts for the report: what decided, and by what."""
        return {"system": self.id or type(self).__name__, "threshold": self.threshold}
