"""Types and ranges of configuration fields in words."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from passband.bench.fields import fields_of
from passband.bench.system import Config


class Several(Config):
    rank: int = Field(8, ge=1, lt=64, description="rank")
    rate: float | None = Field(None, gt=0, description="rate", json_schema_extra={"unit": "Hz"})
    mode: Literal["fast", "paper"] = Field("fast", description="mode")
    scales: tuple[float, ...] = Field((1.0, 2.0), description="scales")
    needed: str = Field(description="needed")


def test_types_and_ranges_of_fields_are_said_in_words() -> None:
    rank, rate, mode, scales, needed = fields_of(Several)
    assert (rank["type"], rank["default"], rank["range"]) == ("int", 8, "[1, 64)")
    assert (rate["type"], rate["unit"], rate["range"]) == ("float | None", "Hz", "(0, inf)")
    assert mode["type"] == "'fast' | 'paper'" and not mode["required"]
    assert scales["type"] == "tuple[float, ...]" and scales["default"] == (1.0, 2.0)
    assert needed["required"] and needed["default"] is None
