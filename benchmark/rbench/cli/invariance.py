"""`rbench invariance`: make candidates, let people label them, take their votes. torch is imported inside, never for the help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rbench.cli.compute import FOLDER
from rbench.cli.progress import stderr_progress

FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def invariance() -> None:
    """Invariance examples: generate candidates, import people's votes (docs/invariance.md)."""


@invariance.command()
@click.option("--dataset", required=True, metavar="D", help="mnist or digits: square grey images.")
@click.option("--eps", required=True, metavar="E", help="Radius of the linf ball: 0.3, 102/255.")
@click.option("--index", default="0-99", show_default=True, metavar="I", help="Which test images: 0-24,159.")
@click.option("--out", required=True, type=FILE, metavar="FILE.npz", help="Where the candidates go; their review page, FILE.html, beside.")
@click.option("--rescale-from", metavar="E", help="Make them for this radius and stretch them to --eps, as the released 0.4 set was made.")
@click.option("--targets", type=FILE, metavar="FILE.toml", help="Classes to aim at, a line per class.  [default: mnist's own, else all]")
@click.option("--true-inverse", is_flag=True, help="Undo shift and turn in the right order; the released code does not.")
@click.option("--data", type=FOLDER, metavar="DIR", help="Where the data lies.  [default: RBENCH_DATA, else the cache folder]")
def generate(**options: Any) -> None:
    """Make linf candidates: the nearest transformed training image of another class, approached within the ball.

    About 1.5 s per image of MNIST on one core. Prints the paths of candidates and review page.
    """
    from rbench.invariance.generate import generate as make

    with stderr_progress() as progress:
        paths = make(report=progress.update, **options)
    for path in paths:
        click.echo(path)


@invariance.command(name="import")
@click.argument("file", type=FILE, metavar="FILE.npz")
@click.argument("votes", type=FILE, nargs=-1, metavar="VOTES...")
@click.option("--out", required=True, type=FILE, metavar="SET.npz", help="The set that `--threat 'invariance(\"SET.npz\")'` takes.")
def import_(file: Path, votes: tuple[Path, ...], out: Path) -> None:
    """Turn votes that the review page saved into labels: the class that more than half of an image's votes name."""
    from rbench.invariance.votes import import_votes

    done = import_votes(file, votes, out)
    raters = "1 rater" if done.raters == 1 else f"{done.raters} raters"
    click.echo(f"{raters}: agreement on {done.settled} of {done.n} candidates, {done.changed} of them with another label than before")
    click.echo(done.path)
