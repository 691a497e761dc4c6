"""Every threat at once: one run per preset that applies to a model, members shared through the store, one table of them all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbench.api import evaluate
from rbench.models import find
from rbench_core.errors import DataError, NoAttack, SpecError, UsageError
from rbench_core.files import results_folder
from rbench_results.table import overview_table
from rbench_threats.catalogue import presets, resolve

if TYPE_CHECKING:
    from torch import nn

    from rbench.report import Report


@dataclass(frozen=True)
class Everything:
    """The reports, in the order of the presets' names, and why the other presets do not apply."""

    reports: list[Report]
    skipped: dict[str, str]

    @property
    def exit_code(self) -> int:
        """1 when a run of them raised the alarm."""
        return max((report.exit_code for report in self.reports), default=0)

    def to_json(self) -> str:
        """The reports as a list of the objects of `rbench run --json`."""
        return json.dumps([report.data for report in self.reports], indent=2, allow_nan=False)

    def to_table(self) -> str:
        """One line per threat, as plain text."""
        return overview_table([report.data for report in self.reports], self.skipped)

    __str__ = to_table


def evaluate_all(
    model: str | nn.Module, *, dataset: Any = None, n: int | str | None = None, site: bool = True, **options: Any
) -> Everything:
    """`rbench.evaluate` under every preset that has limits for the data set and fits its images and the plan. Options: those of `evaluate`.

    Sets with examples of their own are asked whole, whatever n. The site is drawn once, at the end. Raises RbenchError.
    """
    if options.pop("eps", None) is not None:
        raise UsageError("--eps with --threat all", expected="no radius: every preset has its own")
    name = options.pop("name", None)
    found = find(model, name)
    named = dataset if dataset is not None else found.dataset
    if named is None:
        raise UsageError(f"model {found.name} does not say which data it is for", expected="a data set", fix="Add --dataset NAME.")
    if not isinstance(named, str):
        raise UsageError("threat all with images of your own", expected="a data set by name", fix="Give threats one by one, as specs.")
    reports: list[Report] = []
    skipped: dict[str, str] = {}
    for threat in _presets(named, skipped):
        try:
            brings = any("examples" in member.capabilities for member in resolve(threat, named).members)
            reports.append(
                evaluate(
                    model,
                    threat=threat,
                    dataset=named,
                    n=None if brings else n,
                    site=False,
                    name=name,
                    request={"skipped": skipped},
                    **options,
                )
            )
        except (SpecError, NoAttack, DataError) as error:  # other images, no attack of the plan, candidates that are not here
            skipped[threat] = str(error)
    if not reports:
        raise UsageError(f"no threat applies to {found.name}: {'; '.join(f'{name} {why}' for name, why in skipped.items())}")
    if site:
        _draw(options.get("results"))
        reports = [type(report).stored(report.run, report.folder) for report in reports]  # which now have a page
    return Everything(reports, dict(sorted(skipped.items())))


def _presets(dataset: str, skipped: dict[str, str]) -> list[str]:
    """The presets with limits for the data set, unions last, so that they find their members answered; into `skipped` go the others."""
    found = presets()
    for name, entry in found.items():
        if dataset not in entry.table["specs"]:
            skipped[name] = f"has no limits for {dataset}, only for {', '.join(entry.table['specs'])}"
    return sorted(found.keys() - skipped.keys(), key=lambda name: (len(resolve(name, dataset).members) > 1, name))


def _draw(results: Path | str | None) -> None:
    from rbench_results.site.build import build_site
    from rbench_results.store import Store

    folder = Path(results).expanduser() if results is not None else results_folder()
    with Store.open(folder, create=False) as store:
        build_site(store)
