"""What `passband info` adds to `passband.info`: types and ranges of fields, verdicts of claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from passband import api, catalog
from passband.cli.verdicts import verdicts


def about(name: str, runs: Path) -> dict[str, Any]:
    """Every fact of one system as plain values; this is where its class is imported."""
    facts = api.info(name)
    config = catalog.get(name).load().Config
    known = verdicts(runs).get(name, {})
    facts["fields"] = [_field(*item) for item in config.model_fields.items()]
    facts["claims"] = [
        {**claim, "verdict": known.get(claim["id"], "")} for claim in facts["claims"]
    ]
    return facts


def _field(name: str, info: Any) -> dict[str, Any]:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    return {
        "name": name,
        "type": _type_name(info.annotation),
        "default": "required" if info.is_required() else _shown(info.get_default()),
        "unit": str(extra.get("unit", "")),
        "range": _range(info),
        "description": info.description or "",
    }


def _shown(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)


def _type_name(annotation: Any) -> str:
    """
    >>> _type_name(int), _type_name(float | None), _type_name(Literal["fast", "paper"])
    ('int', 'float | None', "'fast' | 'paper'")
    """
    if get_origin(annotation) is Literal:
        return " | ".join(map(repr, get_args(annotation)))
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None")


def _range(info: Any) -> str:
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


