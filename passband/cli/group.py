"""How every command ends: 0, 1 after a defect of ours, 2 after a user's error, 130 after Ctrl-C."""

from __future__ import annotations

import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from passband.cli.light import Light
from passband.cli.output import complain, write_json
from passband.errors import PassbandError, PassbandWarning

USER_ERROR, DEFECT, INTERRUPTED = 2, 1, 130
GO_ON = {"train": "--resume", "reproduce": "--reuse", "compare": ""}  # compare does so by itself


class Commands(Light, TyperGroup):
    """Turns exceptions of all commands into one readable block, or one JSON object."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        given = tuple(args)
        context = super().make_context(info_name, args, *rest, **extra)
        context.obj = given
        return context

    def invoke(self, ctx: Any) -> Any:
        given: tuple[str, ...] = ctx.obj or ()
        as_json = "--json" in given
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except PassbandError as error:
            _report(error, as_json)
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            text = interrupted(given)
            if as_json:
                write_json({"error": {"type": "KeyboardInterrupt", "what": text}})
            else:
                complain(text)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if hasattr(error, "format_message"):  # Typer's own: a wrong option or argument
                if not as_json:
                    raise
                _write_error(type(error).__name__, error.format_message(), mend="see --help")
                raise typer.Exit(USER_ERROR) from None
            _report_defect(error, as_json)
            raise typer.Exit(DEFECT) from None


def interrupted(given: Sequence[str]) -> str:
    """
    >>> interrupted(["train", "gp-hm"])
    'interrupted; resume with: passband train gp-hm --resume'
    """
    from passband.bench import facts

    command = given[0] if given else ""
    if command not in GO_ON:
        return "interrupted; run the same command again"
    if command == "reproduce" and facts.dirty():
        return "interrupted; with uncommitted changes nothing is reused: the next call starts anew"
    flag = GO_ON[command]
    again = [*given, flag] if flag and flag not in given else given
    return f"interrupted; resume with: {shlex.join([_program(), *again])}"


def _program() -> str:
    """What the user can type: `make run` calls a command that need not be on the user's path."""
    beside = Path(sys.executable).with_name("passband")
    if shutil.which("passband") is None and beside.exists():
        here = Path.cwd()
        return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
    return "passband"


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: Any = None, line: str | None = None,
) -> None:
    """Ours are for the user and need no source line; others keep theirs."""
    if issubclass(category, PassbandWarning):
        complain(f"warning: {message}", style="yellow")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _report(error: PassbandError, as_json: bool) -> None:
    if as_json:
        _write_error(type(error).__name__, error.what, expected=error.expected, mend=error.mend)
    else:
        head, _, rest = str(error).partition("\n")
        complain(f"error: {head}", style="bold red")
        if rest:
            complain(rest)


def _report_defect(error: Exception, as_json: bool) -> None:
    import traceback

    trace = "".join(traceback.format_exception(error))
    if as_json:
        _write_error(type(error).__name__, str(error), traceback=trace)
        return
    sys.stderr.write(trace)
    complain(
        f"error: {type(error).__name__}: {error}\n"
        "  a defect of passband or of a package it uses; `passband doctor` checks the latter",
        style="bold red",
    )


def _write_error(kind: str, what: str, **more: str) -> None:
    write_json({"error": {"type": kind, "what": what, **{k: v for k, v in more.items() if v}}})
