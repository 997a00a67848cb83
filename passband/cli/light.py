"""Commands whose parameters are taken as they are typed.

Typer builds a pydantic adapter for every parameter, even for --help, and importing pydantic alone
takes longer than `passband list` may. Flags and text need no adapter.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class AsTyped:
    """Stands in for Typer's adapter: text stays text, flags stay flags."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        return value


class Light:
    """Mixed into a command or group that has flags and text parameters only."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            parameter._runtime_param = AsTyped()  # versions of Typer without adapters ignore it
        return parameters


class LightCommand(Light, TyperCommand):
    """A light command."""
