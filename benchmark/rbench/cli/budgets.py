"""`rbench budgets`: budgets out of a model's saliency. torch is imported inside, never for the help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rbench.cli.progress import stderr_progress

FOLDER = click.Path(file_okay=False, path_type=Path)


def ends(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, float]:
    """Two numbers, `0.15,0.6`."""
    parts = value.split(",")
    try:
        low, high = (float(part) for part in parts)
    except ValueError as error:
        raise click.BadParameter(f"{value[:40]!r} is not two numbers, such as 0.15,0.6", ctx, param) from error
    return low, high


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--dataset", metavar="D", help="A name from `rbench datasets`.  [default: the model's own]")
@click.option("--data", type=FOLDER, metavar="DIR", help="Where the data lies.  [default: RBENCH_DATA, else the cache folder]")
@click.option("--n", type=click.IntRange(min=1), metavar="N", help="How many test images, from the first.  [default: all]")
@click.option("--volume", type=float, required=True, metavar="E", help="The geometric mean of every image's budgets.")
@click.option("--range", "ends", required=True, metavar="L,U", callback=ends, help="The smallest and the largest budget.")
@click.option("--device", default="cpu", show_default=True, metavar="D", help="cpu, cuda, cuda:1.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE", help="A .safetensors file.")
def budgets(model: str, ends: tuple[float, float], **options: Any) -> None:
    """Compute budgets from MODEL's saliency, and print where they lie.

    A pixel gets less where the model's answer depends on it. `--threat 'contextual("FILE")'` is the set.
    """
    from rbench.saliency import budgets as compute

    with stderr_progress() as progress:
        path = compute(model, low=ends[0], high=ends[1], progress=progress, **options)
    click.echo(path)
