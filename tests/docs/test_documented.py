"""Every command, option, catalogue name, public name and variable is documented; found by introspection, so none is forgotten."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import pytest

import rbench
from docs.pages import ROOT, code_spans, manual
from rbench.cli.app import COMMANDS, cli

CATALOGUES = {
    "model": "rbench_zoo.catalogue:listing",
    "recipe": "rbench_zoo.recipe:listing",
    "threat": "rbench_threats.catalogue:listing",
    "data set": "rbench.data.sources:listing",
    "plan": "rbench.attacks.catalogue:listing",
}


def names(catalogue: str) -> list[str]:
    module, _, function = CATALOGUES[catalogue].partition(":")
    listing: Callable[[], list[dict[str, Any]]] = getattr(import_module(module), function)
    return [row["name"] for row in listing()]


def sections() -> dict[str, str]:
    """The part of docs/cli.md under each second-level heading, by the command that the heading names."""
    parts = re.split(r"^## `rbench ([\w-]+(?: [\w-]+)?)", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands() -> dict[str, click.Command]:
    """By what a user types: a group's commands one by one."""
    ctx = click.Context(cli)
    known = {name: command for name in COMMANDS if (command := cli.get_command(ctx, name)) is not None}
    groups = {name: command.commands for name, command in known.items() if isinstance(command, click.Group)}
    inner = {f"{name} {part}": command for name, parts in groups.items() for part, command in parts.items()}
    return {name: command for name, command in known.items() if name not in groups} | inner


def test_the_manual_has_a_section_per_command_and_no_other() -> None:
    assert set(sections()) == set(commands())


@pytest.mark.parametrize("name", commands())
def test_every_option_stands_in_its_command_s_section_and_no_other_does(name: str) -> None:
    options = {text for parameter in commands()[name].params for text in parameter.opts if text.startswith("--")}
    told = set(re.findall(r"^\| `(--[\w-]+)", sections()[name], re.MULTILINE))
    assert told == options


def test_the_help_of_train_names_every_recipe() -> None:
    told = re.findall(r"[\w-]+", commands()["train"].help or "")
    assert [name for name in names("recipe") if name not in told] == []


def test_every_option_has_a_help_text() -> None:
    bare = [(name, p.name) for name, command in commands().items() for p in command.params if isinstance(p, click.Option) and not p.help]
    assert bare == []


@pytest.mark.parametrize("catalogue", CATALOGUES)
def test_every_name_of_a_catalogue_is_in_the_manual(catalogue: str) -> None:
    known = names(catalogue)
    assert known
    assert [name for name in known if name not in code_spans(manual())] == []


def test_every_public_name_is_in_the_manual() -> None:
    assert [name for name in rbench.__all__ if f"rbench.{name}" not in manual()] == []


def test_every_variable_that_the_code_reads_is_in_the_manual() -> None:
    packages = ("rbench", "rbench_core", "rbench_threats", "rbench_zoo", "rbench_results")
    sources = [path for package in packages for path in Path(str(files(package))).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r'"(RBENCH_[A-Z]+)"', path.read_text())}
    assert "RBENCH_RESULTS" in read
    assert [name for name in sorted(read) if name not in code_spans(manual())] == []
