"""Results: one JSON row per finished cell, appended whole or not at all."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Result:
    """What one cell (system x preset x task x seed) gave and cost.

    seconds       {"fit": s, "evaluate": s}
    peak_memory   bytes of the process above its level when the cell began
    curves        {"seconds": [...], "step": [...], "<name>": [...]}: error against time and more
    artifacts     list of `Artifact` as dicts; their files lie in `folder`
    """

    key: str
    system: str
    preset: str
    overrides: dict[str, Any]
    task: str
    task_version: int
    size: str
    seed: int
    metrics: dict[str, float]
    seconds: dict[str, float]
    peak_memory: int
    parameters: int
    file_bytes: int
    budget: dict[str, Any]
    spent: dict[str, Any]
    selected: str
    versions: dict[str, str]
    code_hash: str
    dirty: bool
    machine: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    folder: str = ""
    when: str = ""
    error: str = ""  # a cell that raised: the text; its metrics are empty

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
