"""Configuration fields as plain values, for `passband.info` and the tables of the command line.

>>> fields_of(LoopConfig)[0]["name"], fields_of(LoopConfig)[0]["range"]
('steps', '(0, inf)')
"""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from passband.bench.system import Config


def fields_of(config: type[Config]) -> list[dict[str, Any]]:
    """Name, type, default, unit, range and description of every field; default None: required."""
    return [_field(name, info) for name, info in config.model_fields.items()]


def _field(name: str, info: FieldInfo) -> dict[str, Any]:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    return {
        "name": name,
        "type": type_name(info.annotation),
        "required": info.is_required(),
        "default": None if info.is_required() else info.get_default(call_default_factory=True),
        "unit": str(extra.get("unit", "")),
        "range": _range(info),
        "description": info.description or "",
    }


def type_name(annotation: Any) -> str:
    """
    >>> type_name(int), type_name(float | None), type_name(Literal["fast", "paper"])
    ('int', 'float | None', "'fast' | 'paper'")
    """
    if get_origin(annotation) is Literal:
        return " | ".join(map(repr, get_args(annotation)))
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None")


def _range(info: FieldInfo) -> str:
    """The bounds of a number as an interval, e.g. "[1, 64]", "(0, inf)"; else nothing."""
    low, high = "(-inf", "inf)"
    for bound in info.metadata:
        if getattr(bound, "ge", None) is not None:
            low = f"[{bound.ge:g}"
        if getattr(bound, "gt", None) is not None:
            low = f"({bound.gt:g}"
        if getattr(bound, "le", None) is not None:
            high = f"{bound.le:g}]"
        if getattr(bound, "lt", None) is not None:
            high = f"{bound.lt:g})"
    return "" if (low, high) == ("(-inf", "inf)") else f"{low}, {high}"
