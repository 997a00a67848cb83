"""The state of a system's claims, read from `runs/claims.jsonl` without the engine's checks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from passband.bench.layout import CLAIMS
from passband.bench.verdict import VERDICTS

WORDS = {"holds": ("holds", "hold"), "fails": ("fails", "fail")}  # singular, plural


def verdicts(runs: Path) -> dict[str, dict[str, str]]:
    """System -> claim -> the newest verdict; smoke runs don't count.

    Lines that can't be read are left to the engine, which says so when it reads the same file.
    """
    newest: dict[tuple[str, str], tuple[str, str]] = {}
    try:
        lines = (runs / CLAIMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            row = json.loads(line)
            key = (row["system"], row["claim"])
            entry = (str(row["when"]), str(row["evidence"]["verdict"]))
            full = row["scale"] == "full"
        except (ValueError, KeyError, TypeError):
            continue
        if full and (key not in newest or entry[0] >= newest[key][0]):
            newest[key] = entry
    found: dict[str, dict[str, str]] = {}
    for (system, claim), (_, verdict) in newest.items():
        found.setdefault(system, {})[claim] = verdict
    return found


def state(claims: int, found: dict[str, str]) -> str:
    """
    >>> state(4, {"C1": "holds", "C2": "holds", "C3": "not shown"})
    '2 hold, 1 not shown, 1 open'
    """
    count = Counter(found.values())
    parts = []
    for verdict in VERDICTS:
        if count[verdict]:
            word = WORDS.get(verdict, (verdict, verdict))[count[verdict] > 1]
            parts.append(f"{count[verdict]} {word}")
    unproved = max(0, claims - len(found))
    if unproved and parts:
        parts.append(f"{unproved} open")
    return ", ".join(parts) or (f"{claims} open" if claims else "")
