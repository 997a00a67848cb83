"""Passband: published machine-learning systems that really work.

>>> import passband
>>> solver = passband.create("gp-hm")
>>> [card.id for card in passband.list_systems("gp*")]
['gp-hm']

Nothing here imports torch until something is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from passband.api import apply, compare, create, info, list_systems, load, reproduce, train

__version__ = "0.1.0"
__all__ = ["apply", "compare", "create", "info", "list_systems", "load", "reproduce", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from passband import api

        return getattr(api, name)
    raise AttributeError(f"module 'passband' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
