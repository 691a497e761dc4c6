"""The commands about evidence: `verify`, `submit` and `merge`. torch is imported inside them, never for the help."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from rbench.cli.compute import FOLDER, SEED, count
from rbench.cli.progress import stderr_progress


def amount(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """A number of examples from 0 on, or `all`."""
    return 0 if value == "0" else count(ctx, param, value)


@click.command()
@click.argument("what", metavar="RUN|BUNDLE")
@click.option("--model", metavar="NAME|FILE.py:FACTORY", help="The model, where its file has moved.  [default: the one that was asked]")
@click.option("--dataset", metavar="D", help="A name from `rbench datasets`.  [default: the one that was asked]")
@click.option("--data", type=FOLDER, metavar="DIR", help="Where the data lies.  [default: RBENCH_DATA, else the cache folder]")
@click.option("--sample", callback=amount, metavar="N|all", help="Open examples to compute again.  [default: one in twenty, at least 8]")
@click.option("--seed", type=SEED, metavar="S", help="Draws the sample.  [default: nobody knows]")
@click.option("--device", default="cpu", show_default=True, metavar="D", help="cpu, cuda, cuda:1.")
@click.option("--width", type=click.IntRange(min=1), metavar="W", help="Rows per batch.  [default: the run's]")
@click.option("--run-code", is_flag=True, help="Run the Python that a bundle brings, with your rights: read it first.")
@click.option("--results", type=FOLDER, metavar="DIR", help="Database and site.  [default: RBENCH_RESULTS, else the user's data folder]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def verify(what: str, as_json: bool, run_code: bool, **options: Any) -> int:
    """Look again at a stored RUN (its id, the beginning of one, or `latest`) or at a BUNDLE from `rbench submit`."""
    from rbench.bundle.door import verify_any

    with redirect_stdout(sys.stderr), stderr_progress() as progress:  # a model that prints: stdout is the result's
        found = verify_any(what, run_code=run_code, progress=progress, **options)
    click.echo(found.to_json() if as_json else found.to_table())
    return found.exit_code


@click.command()
@click.argument("model", metavar="NAME|FILE.py:FACTORY")
@click.option("--name", required=True, metavar="NAME", help="The model's name on the boards.")
@click.option("--title", metavar="TEXT", help="What it is, in a few words.  [required; default: its card's]")
@click.option("--training", metavar="TEXT", help="How it was trained.  [required; default: its card's]")
@click.option("--licence", metavar="TEXT", help="Under which licence others may use it.  [required; default: its card's]")
@click.option("--paper", metavar="TEXT", help="An arXiv id or an address.")
@click.option("--contact", metavar="TEXT", help="Who answers questions.")
@click.option("--build", metavar="FUNCTION", help="Builds the net without its weights, where FACTORY reads them from a file.")
@click.option("--run", "run", metavar="RUN", help="Submit this run alone.  [default: every finished run of the model]")
@click.option("--witnesses", type=click.Choice(["all", "sample", "none"]), default="sample", show_default=True, help="Which to pack.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Where the bundle goes.  [default: this folder]")
@click.option("--results", type=FOLDER, metavar="DIR", help="Database.  [default: RBENCH_RESULTS, else the user's data folder]")
def submit(model: str, **options: Any) -> None:
    """Pack a model and its runs into NAME.rbench.zip, for somebody who verifies it. docs/submit.md walks through it."""
    from rbench.bundle.submit import submit as packed

    with redirect_stdout(sys.stderr):
        path = packed(model, **options)
    click.echo(path)


@click.command()
@click.argument("what", metavar="BUNDLE|DATABASE", type=click.Path(path_type=Path))
@click.option("--results", type=FOLDER, metavar="DIR", help="Database and site.  [default: RBENCH_RESULTS, else the user's data folder]")
def merge(what: Path, results: Path | None) -> None:
    """Add the runs of a bundle, of another database or of a folder of results to this one. Twice is once."""
    from rbench.bundle.door import merge_any

    done, store = merge_any(what, results=results)
    click.echo(f"{done.runs} new runs, {done.verdicts:,} new verdicts, {done.replaced:,} replaced by ones that say more")
    click.echo(f"page: {store.folder / 'site' / 'index.html'}")
