"""The catalog: every `<family>/<system>/card.toml`, read without importing torch.

>>> card = get("gp-hm")
>>> card.family, card.verbs
('pde', ('solve',))
>>> get("gp-hmm")
Traceback (most recent call last):
...
passband.errors.UnknownNameError: unknown system 'gp-hmm'
  expected: one of ...
  to mend:  did you mean 'gp-hm'?
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passband.card_cache import CardCache
from passband.errors import ConfigError, PassbandError, UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from passband.bench.claims import Proof
    from passband.bench.system import System
    from passband.bench.task import Task

FAMILIES = {
    "pde": "PDE solvers and neural operators",
    "signals": "time series and radio",
    "speech": "separation, enhancement and vocoding",
    "music": "music audio and symbolic music",
    "vision": "images and volumes",
    "tuning": "ways to fine-tune",
    "dynamics": "training dynamics and theory",
    "retrieval": "search and recommendation",
}
# What installed packages bring: rooms of systems, and modules with a TASKS mapping.
ENTRY_POINTS = "passband.systems"  # value: the package of a room, e.g. "mypackage.mymethod"
TASK_ENTRY_POINTS = "passband.tasks"  # value: the module, e.g. "mypackage.tasks"
ROOT = Path(__file__).parent


@dataclass(frozen=True)
class ClaimCard:
    """One claim of a paper as the card states it; its proof is `claims:CLAIMS[id]`."""

    id: str
    statement: str
    reported: str
    source: str = ""
    task: str = ""  # the data it was reported on


@dataclass(frozen=True)
class Card:
    """The facts of one system."""

    id: str
    title: str
    family: str
    verbs: tuple[str, ...]
    summary: str
    entry: str  # "module:Class"
    kind: str = "system"  # or "baseline"
    authors: str = ""
    venue: str = ""
    arxiv: str = ""
    code: str = ""
    licence: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)  # fields this entry fixes
    parameters: Mapping[str, int] = field(default_factory=dict)  # preset -> learned scalars
    extras: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()  # tasks that suit it best, the first is `train`'s default
    claims: tuple[ClaimCard, ...] = ()
    differences: tuple[str, ...] = ()  # from the paper, and why
    room: str = ""  # the package of the room, "passband.pde.gp_hm"
    folder: Path = Path()

    def load(self) -> type[System]:
        """Import the class. This is where torch may come in."""
        module, _, name = self.entry.partition(":")
        try:
            found: type[System] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            if isinstance(error, PassbandError):
                raise
            raise ConfigError(
                f"the card of {self.id!r} names {self.entry!r}, which can't be imported: {error}",
                expected="module:Class", mend="`passband doctor` lists missing packages",
            ) from error
        return found

    def check(self, preset: str = "small", **overrides: Any) -> None:
        """Raise what `create` would raise, without building anything."""
        for name, value in self.config.items():
            if name in overrides and overrides[name] != value:
                raise ConfigError(
                    f"{self.id!r} fixes {name} = {value!r}", expected="another field",
                    mend=f"leave {name} out, or take the system that does not fix it",
                )
        self.load().configure(preset, **{**self.config, **overrides})

    def create(self, preset: str = "small", *, seed: int = 0, **overrides: Any) -> System:
        """Build the system from a preset with single fields changed."""
        self.check(preset, **overrides)
        system = self.load().from_preset(preset, seed=seed, **{**self.config, **overrides})
        system.id = self.id
        return system

    def proofs(self) -> Mapping[str, Proof]:
        """Claim id -> proof, from the room's `claims.py`; empty when the card lists no claims."""
        if not self.claims:
            return {}
        module = importlib.import_module(f"{self.room}.claims")
        proofs: Mapping[str, Proof] = module.CLAIMS
        return proofs


@cache
def cards() -> Mapping[str, Card]:
    """Every card by id, systems and baselines, ours and those of installed packages."""
    found: dict[str, Card] = {}
    cache = CardCache()
    for path in sorted(ROOT.glob("*/*/card.toml")) + sorted(ROOT.glob("*/baselines/*/card.toml")):
        room = ".".join(("passband", *path.parent.relative_to(ROOT).parts))
        card = read_card(path, room, cache)
        if card.id in found:
            raise ConfigError(
                f"{path} has the id {card.id!r} of {found[card.id].folder}",
                expected="one card an id",
            )
        found[card.id] = card
    for point in _entry_points(ENTRY_POINTS):
        spec = importlib.util.find_spec(point.value)
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"entry point {point.name!r} names {point.value!r}, which can't be found",
                mend="reinstall the package that declares it",
            )
        card = read_card(Path(spec.origin).parent / "card.toml", point.value, cache)
        found.setdefault(card.id, card)
    cache.close()
    return found


def _entry_points(group: str) -> Iterable[EntryPoint]:
    """What installed packages declare.

    `importlib.metadata` takes longer to import than all the rest of `passband list`: it is asked
    only when some package has such a group at all.
    """
    declared = (
        f"[{group}]" in path.read_text(encoding="utf-8", errors="replace")
        for folder in sys.path for path in Path(folder).glob("*-info/entry_points.txt")
    )
    if not any(declared):
        return ()
    from importlib import metadata

    return metadata.entry_points(group=group)


def read_card(path: Path, room: str, cache: CardCache | None = None) -> Card:
    """Read and check one card.toml."""
    try:
        raw = (cache or CardCache()).read(path)
    except (OSError, ValueError) as error:  # of Unicode and TOML both
        raise ConfigError(f"{path} can't be read: {error}", expected="a card in TOML") from None
    known = set(Card.__dataclass_fields__) - {"room", "folder"}
    missing = {"id", "title", "family", "verbs", "summary", "entry"} - raw.keys()
    unknown = raw.keys() - known
    if missing or unknown:
        wrong = f"lacks {sorted(missing)}" if missing else f"has unknown {sorted(unknown)}"
        raise ConfigError(
            f"{path} {wrong}",
            expected=f"fields among {sorted(known)}",
        )
    try:
        claims = tuple(ClaimCard(**claim) for claim in raw.pop("claims", ()))
    except TypeError as error:
        raise ConfigError(
            f"a claim in {path} has the wrong fields: {error}",
            expected="id, statement, reported and optionally source, task",
        ) from None
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return Card(**lists, claims=claims, room=room, folder=path.parent)


def get(name: str) -> Card:
    """One card by id; an unknown one is answered with the nearest names."""
    known = cards()
    if name not in known:
        raise UnknownNameError("system", name, known, mend="`passband list` shows all")
    return known[name]


def select(
    words: str = "", *, family: str | None = None, verb: str | None = None, kind: str = "system"
) -> list[Card]:
    """Cards whose id, title or summary has every word; wildcards (`*former*`) match ids."""
    from fnmatch import fnmatch

    if family is not None and family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES)
    out = []
    for card in cards().values():
        said = (card.id, card.title, card.summary, card.family, *card.verbs)
        text = " ".join(said).lower()
        matches = all(
            fnmatch(card.id, word) if "*" in word else word.lower() in text
            for word in words.split()
        )
        if matches and card.kind == kind and family in (None, card.family) and (
            verb is None or verb in card.verbs
        ):
            out.append(card)
    return out


@cache
def tasks() -> Mapping[str, Task]:
    """Every task by name, ours and those of installed packages; imports no torch."""
    names = [f"passband.{path.parent.name}.tasks" for path in sorted(ROOT.glob("*/tasks.py"))]
    names += [point.value for point in _entry_points(TASK_ENTRY_POINTS)]
    found: dict[str, Task] = {}
    for name in names:
        for task in importlib.import_module(name).TASKS.values():
            found.setdefault(task.name, task)
    return found


def enters(card: Card, task: Task) -> bool:
    """Whether a system can do a task's work: it has the verb, in the task's family.

    >>> enters(get("rf-eigen"), task("digits-risk")), enters(get("grok"), task("digits-risk"))
    (True, False)
    """
    return task.verb in card.verbs and task.family in ("", card.family)


def task(name: str) -> Task:
    known = tasks()
    if name not in known:
        raise UnknownNameError("task", name, known, mend="`passband info SYSTEM` lists its tasks")
    return known[name]
