"""What works here, what does not, and what to do: `rbench doctor`. It changes nothing, asks no network, and no check can end it."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rbench_core.errors import RbenchError
from rbench_core.files import results_folder

STATES = ("ok", "note", "problem")  # a note: something optional is absent, or worth knowing; a problem: something that is needed is broken
LINE = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it stands, what was found, and what to do about it (None: nothing)."""

    name: str
    state: str
    detail: str
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """An object of `rbench doctor --json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look: the data's folder (None: RBENCH_DATA or the cache) and the folder of results."""

    data: Path | None
    results: Path


Check = Callable[[Place], Iterable[Finding]]

CHECKS = {  # name -> module:function, each a Check; imported inside the guard, since an import may be what is broken
    "packages": "rbench.doctor.machine:packages",
    "torchvision": "rbench.doctor.machine:torchvision",
    "devices": "rbench.doctor.machine:devices",
    "threads": "rbench.doctor.machine:threads",
    "data": "rbench.doctor.holdings:data",
    "weights": "rbench.doctor.holdings:weights",
    "registry": "rbench.doctor.registry:registry",
    "entry points": "rbench.doctor.registry:entry_points",
    "database": "rbench.doctor.stored:database",
    "disk": "rbench.doctor.stored:disk",
    "site": "rbench.doctor.stored:site",
    "browser": "rbench.doctor.machine:browser",
}


def examine(*, data: Path | str | None = None, results: Path | str | None = None) -> list[Finding]:
    """Every check's findings, in the order of CHECKS. Never raises for what it finds."""
    folder = results_folder() if results is None else Path(results).expanduser()
    place = Place(None if data is None else Path(data).expanduser(), folder)
    return [finding for name, where in CHECKS.items() for finding in guarded(name, where, place)]


def guarded(name: str, where: str, place: Place) -> Iterator[Finding]:
    """The findings of the check at module:function; what it raises becomes a problem, and those before it are kept."""
    module, _, function = where.partition(":")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check: Check = getattr(import_module(module), function)
            yield from check(place)
    except RbenchError as error:
        what = error.what if error.expected is None else f"{error.what}; expected {error.expected}"
        yield Finding(name, "problem", what, error.fix)
    except (Exception, SystemExit) as error:  # what is broken here is not foreseeable: that is why somebody asks a doctor
        fix = "RBENCH_DEBUG=1 with a command that fails for it says where."
        yield Finding(name, "problem", f"{type(error).__name__}: {error}".rstrip(": "), fix)


def to_text(findings: Sequence[Finding]) -> str:
    """The findings for a person: state, name, detail, and below it what to do; problems counted at the end."""
    width = max(len(finding.name) for finding in findings)
    lines = [line for finding in findings for line in _lines(finding, width)]
    count = {state: sum(finding.state == state for finding in findings) for state in STATES}
    return "\n".join([*lines, "", f"{count['ok']} ok, {count['note']} notes, {count['problem']} problems"])


def _lines(finding: Finding, width: int) -> Iterator[str]:
    head = f"{finding.state:<8} {finding.name:<{width}}  "
    rest = " " * len(head)
    yield from textwrap.wrap(
        head + " ".join(finding.detail.split()), LINE, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    if finding.fix is not None:
        yield from textwrap.wrap(
            f"{rest}→ {finding.fix}", LINE, subsequent_indent=f"{rest}  ", break_long_words=False, break_on_hyphens=False
        )
