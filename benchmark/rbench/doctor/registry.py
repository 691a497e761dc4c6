"""What joins from outside: folders of cards in RBENCH_REGISTRY, and entry points of installed packages."""

from __future__ import annotations

from collections.abc import Iterator

from rbench.doctor import Finding, Place
from rbench_core.catalogue import installed
from rbench_core.errors import RbenchError

GROUPS = ("rbench.models", "rbench.sets", "rbench.attacks")


def registry(place: Place) -> Iterator[Finding]:
    """The package's cards and each folder's, and every card that cannot be used, with the reason. Nothing of a card is executed."""
    from rbench_zoo.catalogue import folders, read

    found = read()
    for origin, folder in folders():
        cards = [card for card in found.cards.values() if card.path.parent == folder and card.name not in found.broken]
        if folder.is_dir():
            yield Finding("cards" if origin == "built in" else "registry", "ok", f"{folder}: {len(cards)} cards that can be used")
    for name, error in found.broken.items():
        what = error.what if error.expected is None else f"{error.what}; expected {error.expected}"
        yield Finding(f"card {name}", "problem", what, error.fix or "Correct the card; the others work.")


def entry_points(place: Place) -> Iterator[Finding]:
    """Every entry point that other packages bring, loaded, as a run that names it would load it."""
    count = 0
    for group in GROUPS:
        try:
            points = installed(group)
        except RbenchError as error:
            yield Finding(f"entry points {group}", "problem", error.what, error.fix)
            continue
        for name, point in points.items():
            count += 1
            try:
                point.load()
            except (Exception, SystemExit) as error:
                what = f"{point.value} fails: {type(error).__name__}: {error}"
                yield Finding(f"entry point {name}", "problem", what, "Update or remove the package that brings it.")
            else:
                yield Finding(f"entry point {name}", "ok", f"{point.value}, of {group}")
    if not count:
        yield Finding("entry points", "ok", "no other package brings models, sets or attacks")
