"""The `passband` command. Thin: it parses, calls the library, and prints.

Nothing heavy is imported before a command needs it, so `passband list` answers at once.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line; ends with exit code 0, 1 (defect), 2 (user's error) or 130 (Ctrl-C)."""
    from passband.cli.app import app

    app(prog_name="passband")


__all__ = ["main"]
