"""The commands that compute: `run`, `train` and `learn-set`. torch is imported inside them, never for the help."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbench.cli.progress import stderr_progress

if TYPE_CHECKING:
    from rbench.everything import Everything
    from rbench.report import Report

FOLDER = click.Path(file_okay=False, path_type=Path)
SEED = click.IntRange(min=0, max=2**63 - 1)  # what a database holds
CERTIFY = click.Choice(["auto", "none", "ibp", "crown-ibp"])
KEPT = click.Choice(["all", "sample", "none"])


def count(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """A whole number of examples, at least 1, or `all`."""
    if value is None or value == "all":
        return value
    if value.isascii() and value.isdigit() and int(value[:18]) > 0:
        return int(value[:18])  # no data set is that long, and Python refuses to read a number of thousands of digits
    raise click.BadParameter(f"{value[:40]!r} is neither a whole number above 0 nor `all`", ctx, param)


@click.command()
@click.option("--model", required=True, metavar="NAME|FILE.py:FACTORY", help="From `rbench models`, or your own (then also --dataset).")
@click.option(
    "--threat", default="union-lp", show_default=True, metavar="NAME|SPEC|all", help="From `rbench threats`, or e.g. linf(eps=0.3)."
)
@click.option("--eps", metavar="E", help="Replaces the radius of a single ball: 0.3, 8/255.")
@click.option("--dataset", metavar="D", help="A name from `rbench datasets`.  [default: the model's own]")
@click.option("--data", type=FOLDER, metavar="DIR", help="Where the data lies.  [default: RBENCH_DATA, else the cache folder]")
@click.option("--n", callback=count, metavar="N|all", help="How many examples, from the first.  [default: 500 for digits, else 1000]")
@click.option(
    "--plan",
    metavar="P",
    help="A name from `rbench plans`, or a spec such as pgd(steps=40).  [default: standard; queries where the card says gradient = false]",
)
@click.option("--certify", type=CERTIFY, default="auto", show_default=True, help="Bounds for sets that are boxes; auto: all there are.")
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="S", help="Where all randomness comes from.")
@click.option("--device", default="cpu", show_default=True, metavar="D", help="cpu, cuda, cuda:1.")
@click.option("--width", type=click.IntRange(min=1), metavar="W", help="Rows per batch: 16, 32, ... 2048.  [default: by the image's size]")
@click.option("--full", is_flag=True, help="Ask every member of a union about every example, also the fallen ones.")
@click.option("--eps-curve", is_flag=True, help="Also the accuracy at 20 radii, up to twice the asked one, for at most twice the passes.")
@click.option("--witnesses", type=KEPT, default="all", show_default=True, help="Which adversarial examples to keep.")
@click.option("--results", type=FOLDER, metavar="DIR", help="Database and site.  [default: RBENCH_RESULTS, else the user's data folder]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
def run(as_json: bool, **options: Any) -> int:
    """Evaluate a model under a threat, store the verdicts, rebuild the site."""
    from rbench.api import evaluate  # imports torch: only commands that compute pay for it
    from rbench.everything import evaluate_all

    every = options["threat"] == "all"
    if every:
        del options["threat"]
    with redirect_stdout(sys.stderr), stderr_progress() as progress:  # a model that prints: stdout is the result's
        asked = {"model": options.pop("model"), "progress": progress, **options}
        report: Report | Everything = evaluate_all(**asked) if every else evaluate(**asked)
    click.echo(report.to_json() if as_json else report.to_table())
    return report.exit_code


@click.command()
@click.argument("recipe")
@click.option("--dataset", default="digits", show_default=True, metavar="D", help="A data set that the recipe is written for.")
@click.option("--data", type=FOLDER, metavar="DIR", help="Where the data lies.  [default: RBENCH_DATA, else the cache folder]")
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="S", help="Initial weights, order of the images and noise.")
@click.option("--device", default="cpu", show_default=True, metavar="D", help="cpu, cuda, cuda:1.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Where card, weights and log go.  [default: this folder]")
@click.option("--name", metavar="NAME", help="The model's name.  [default: DATASET-RECIPE]")
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="In place of the recipe's own number.")
def train(recipe: str, **options: Any) -> None:
    """Train a model by RECIPE: standard, standard-mlp, linf-at, linf-at-wide, l2-at, l1-at, msd, eat, avg, max, rt, union-rt-max,
    union-rt-avg, union-rt-eat, cvae-at, cvae-aug, ibp, ibp-longer, contextual or contextual-map (docs/recipes.md).

    Prints where the card is.

    The same command again goes on after the last epoch that was finished. RBENCH_REGISTRY=DIR makes the model known by its name.
    """
    from rbench.training.loop import train as follow

    with stderr_progress() as progress:
        path = follow(recipe, progress=progress, **options)
    click.echo(path)


@click.command("learn-set")
@click.argument("config")
@click.option("--data", type=FOLDER, metavar="DIR", help="Where the data lies.  [default: RBENCH_DATA, else the cache folder]")
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="S", help="Initial weights, pairs, order and noise.")
@click.option("--device", default="cpu", show_default=True, metavar="D", help="cpu, cuda, cuda:1.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Where card, weights and log go.  [default: this folder]")
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="In place of the config's own; its schedules are stretched.")
def learn_set(config: str, **options: Any) -> None:
    """Learn a perturbation set from pairs, by CONFIG: digits-rts, mnist-rts, mnist-linf-fc, mnist-linf-conv or FILE.toml.

    Prints where the card is: `--threat 'learned("CARD.toml", radius=R)'` is the set, and the card says which R was validated
    (docs/learned-sets.md).

    The same command again goes on after the last epoch that was finished.
    """
    from rbench.training.generative import learn_set as follow

    with stderr_progress() as progress:
        path = follow(config, progress=progress, **options)
    click.echo(path)
