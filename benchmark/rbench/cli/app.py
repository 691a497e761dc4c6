"""`rbench`: the group of commands, loaded when called for, and the one place where an error becomes a line and an exit code.

Exit codes: 0 done · 1 failed · 2 the request is wrong · 130 stopped by the keyboard.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from rbench_core.errors import RbenchError, UnknownName

COMMANDS = {
    "run": "rbench.cli.compute",
    "train": "rbench.cli.compute",
    "learn-set": "rbench.cli.compute",
    "budgets": "rbench.cli.budgets",
    "invariance": "rbench.cli.invariance",
    "verify": "rbench.cli.evidence",
    "submit": "rbench.cli.evidence",
    "merge": "rbench.cli.evidence",
    "bench": "rbench.cli.benching",
    "models": "rbench.cli.listings",
    "threats": "rbench.cli.listings",
    "datasets": "rbench.cli.listings",
    "plans": "rbench.cli.listings",
    "show": "rbench.cli.looking",
    "site": "rbench.cli.listings",
    "doctor": "rbench.cli.looking",
}
"""Command → module that defines a function of that name, _ for -. The order is the help page's."""

LONGEST = 1000
"""Characters of an error's line."""


class Commands(click.Group):
    """A group that imports a command's module when the command is named: `--help` pays for click alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise UnknownName("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise click.Abort from stop  # here, because click would first print an empty line of its own


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rbench", prog_name="rbench")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """How robust is this image classifier, really?

    \b
    rbench run --model digits-linf-at --threat union-lp
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Every error is one line on stderr that begins with `rbench: `."""
    args = list(sys.argv[1:] if argv is None else argv)
    _write_what_can_be_written()
    try:
        code = int(cli.main(args, prog_name="rbench", standalone_mode=False) or 0)
        sys.stdout.flush()  # here, where a full disk is still an error of ours
        return code
    except RbenchError as error:
        return _complain(str(error), error.exit_code)
    except click.ClickException as error:
        return _complain(_usage_line(error), error.exit_code)
    except click.Abort:
        kept = ": finished chunks are kept, and the same command goes on from there" if args[:1] == ["run"] else ""
        return _complain(f"stopped by the keyboard{kept}.", 130)
    except Exception as error:
        if isinstance(error, OSError):
            _give_up_stdout()
        what = f"{type(error).__name__}: {error}".rstrip(": .")
        return _complain(f"{what}. Rerun with RBENCH_DEBUG=1 for the traceback.", 1)


def _give_up_stdout() -> None:
    """What stdout could not take must not be tried again when the interpreter ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return  # stdout is no file, so nothing is left in it


def _write_what_can_be_written() -> None:
    """A terminal or a pipe that lacks a letter shows `?` in its place."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _usage_line(error: click.ClickException) -> str:
    """Click's complaint with the nearest options and the page to read."""
    ctx = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and ctx is not None:
        known = [name for parameter in ctx.command.get_params(ctx) for name in parameter.opts if name.startswith("--")]
        return str(UnknownName("option", error.option_name, known, fix=f"`{ctx.command_path} --help` lists them all."))
    return f"{error.format_message().rstrip('.')}. See `{ctx.command_path} --help`." if ctx is not None else error.format_message()


def _complain(line: str, code: int) -> int:
    """Print one line, whatever the message holds, and hand the exit code on. RBENCH_DEBUG shows where it came from."""
    if os.environ.get("RBENCH_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    line = " ".join(line.split())
    if len(line) > LONGEST:  # somebody pasted a file: what is wrong stands at the start, what to do at the end
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    click.echo(f"rbench: {printable}", err=True)
    return code
