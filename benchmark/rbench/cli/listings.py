"""The commands that only list: catalogues (data, not imports), and the site."""

from __future__ import annotations

from pathlib import Path

import click

from rbench.cli.tables import print_listing

FOLDER = click.Path(file_okay=False, path_type=Path)
RESULTS = click.option(
    "--results",
    type=FOLDER,
    metavar="DIR",
    help="Database and site.  [default: RBENCH_RESULTS, else the user's data folder]",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")


@click.command()
@AS_JSON
def models(as_json: bool) -> None:
    """List the zoo."""
    from rbench_zoo.catalogue import listing

    print_listing(listing(), ["name", "dataset", "title", "parameters", "origin", "broken"], as_json=as_json)


@click.command()
@AS_JSON
def threats(as_json: bool) -> None:
    """List the threats that have a name; `--threat` also takes a spec."""
    from rbench_threats.catalogue import listing

    print_listing(listing(), ["name", "summary", "specs"], as_json=as_json)


@click.command()
@AS_JSON
def datasets(as_json: bool) -> None:
    """List the data sets."""
    from rbench.data.sources import listing

    print_listing(listing(), ["name", "title", "shape", "test", "default_n", "found"], as_json=as_json)


@click.command()
@AS_JSON
def plans(as_json: bool) -> None:
    """List the attack plans."""
    from rbench.attacks.catalogue import listing

    print_listing(listing(), ["name", "summary", "attacks"], as_json=as_json)


@click.command()
@RESULTS
@click.option("--out", type=FOLDER, metavar="DIR", help="Where the pages go.  [default: site/ in the results folder]")
def site(results: Path | None, out: Path | None) -> None:
    """Draw the pages from the database alone; prints where they are."""
    from rbench_core.files import results_folder
    from rbench_results.site.build import build_site
    from rbench_results.store import Store

    with Store.open(results or results_folder(), create=False) as store:
        click.echo(build_site(store, out))
