"""Every error that a user of rbench can meet.

RbenchError                 one line: what was wrong, what was expected, what to do
├── UsageError              the request is wrong: exit code 2
│   ├── SpecError           a threat, plan or attack spec that does not parse or has a bad value
│   ├── NoAttack            a plan without an attack for the set
│   ├── UnknownName         no such model, threat, data set, plan, recipe or run
│   └── CardError           a card, preset, plan or recipe file that is broken
└── Failure                 the request is fine, the world is not: exit code 1
    ├── FileError           unreadable, truncated, wrong digest, read-only, disk full
    ├── DataError           a data set that is absent or broken
    ├── ModelError          a model that cannot be built or run
    │   └── Unsupported     a net with an operator whose bounds are not known: no certificate
    ├── StoreError          the results database
    └── TrainingError       a recipe that diverged or cannot run here
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RbenchError(Exception):
    """Base of the tree; prints as one line, whatever the parts contain."""

    exit_code = 1

    def __init__(self, what: str, *, expected: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what, self.expected, self.fix = what, expected, fix

    def __str__(self) -> str:
        line = self.what if self.expected is None else f"{self.what}; expected {self.expected}"
        if self.fix is not None:
            line = f"{line.rstrip('.')}. {self.fix}"
        return " ".join(line.split())


class UsageError(RbenchError):
    """The request is wrong."""

    exit_code = 2


class SpecError(UsageError):
    """A spec string or one of its values is not accepted."""


class NoAttack(UsageError):
    """No attack of the plan can try the set."""


class CardError(UsageError):
    """A TOML file of a catalogue is broken; `what` names the file."""


class UnknownName(UsageError):
    """A name that no catalogue has; the line lists the nearest names, or all when there are few."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, fix: str | None = None) -> None:
        names = {each.lower(): each for each in sorted(known, reverse=True)}
        near = [names[each] for each in difflib.get_close_matches(name.lower(), names, n=4, cutoff=0.45)] or sorted(names.values())[:8]
        hint = f"one of: {', '.join(near)}" if near else None
        super().__init__(f"no {kind} named {name[:80]!r}", expected=hint, fix=fix)


class Failure(RbenchError):
    """The request is fine, but it cannot be carried out here."""


class FileError(Failure):
    """A file that cannot be read, written or trusted."""


class DataError(Failure):
    """A data set that is absent or broken."""


class ModelError(Failure):
    """A model that cannot be built, loaded or run."""


class Unsupported(ModelError):
    """No certificate for this net: the line names the operator, the submodule and where it stands in the source."""


class StoreError(Failure):
    """The results database cannot be opened, read or written."""


class TrainingError(Failure):
    """A training recipe that cannot be followed to its end."""
