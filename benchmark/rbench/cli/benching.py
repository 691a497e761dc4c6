"""`rbench bench`: our plans beside AutoAttack. torch is imported inside, never for the help."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbench.cli.compute import FOLDER, SEED, count
from rbench.cli.progress import stderr_progress
from rbench_core.errors import UsageError

if TYPE_CHECKING:
    from rbench.bench.run import Pair

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--model", metavar="NAME|FILE.py:FACTORY", help="From `rbench models`, or your own (then also --dataset).")
@click.option("--threat", metavar="NAME|SPEC", help="linf, l2 and l1 balls and unions of them: linf(eps=0.3), union-lp.")
@click.option(
    "--plan", "plans", multiple=True, metavar="P", help="A plan as for `run`; several share AutoAttack's runs.  [default: standard]"
)
@click.option("--dataset", metavar="D", help="A name from `rbench datasets`.  [default: the model's own]")
@click.option("--data", type=FOLDER, metavar="DIR", help="Where the data lies.  [default: RBENCH_DATA, else the cache folder]")
@click.option("--n", callback=count, metavar="N|all", help="How many examples, from the first.  [default: 500 for digits, else 1000]")
@click.option("--seed", type=SEED, default=1, show_default=True, metavar="S", help="Of the first round, for both sides; then S+1, ...")
@click.option("--width", type=click.IntRange(min=1), metavar="W", help="Rows per batch of our plans.  [default: by the image's size]")
@click.option("--device", default="cpu", show_default=True, metavar="D", help="cpu, cuda, cuda:1.")
@click.option("--rounds", type=click.IntRange(1, 20), default=2, show_default=True, metavar="R", help="How often each side runs, in turn.")
@click.option("--certify", type=click.Choice(["none", "auto"]), default="none", show_default=True, help="auto: certificates first.")
@click.option("--suite", metavar="NAME|FILE.toml", help="Many pairs of model and threat: published, or your own list. Needs --json.")
@click.option("--json", "out", type=FILE, metavar="FILE", help="Everything as JSON; with --suite one line per pair, finished ones kept.")
@click.option("--table", type=FILE, metavar="FILE", help="Print the tables of a suite's FILE as Markdown, and run nothing.")
def bench(suite: str | None, out: Path | None, table: Path | None, plans: tuple[str, ...], **options: Any) -> None:
    """Compare plans with AutoAttack: the same model, images and seeds, in one process, in turn.

    Prints what each broke, its passes and CPU seconds, the ratios, and the examples on which they disagree.
    """
    if table is not None:
        click.echo(_table(table))
        return
    _check(suite, out, options)
    from rbench.bench.run import Pair

    words = {key: value for key, value in options.items() if value is not None}
    pair = Pair(**{"model": "", "threat": "", **words}, plans=plans or ("standard",))
    if suite is None:
        _one(pair, out)
    else:
        _many(suite, pair, Path(str(out)))


def _check(suite: str | None, out: Path | None, options: dict[str, Any]) -> None:
    """One pair, or a suite and its file. Raises UsageError."""
    if suite is not None and any(options[name] is not None for name in ("model", "threat", "dataset", "n")):
        raise UsageError("--suite beside --model, --threat, --dataset or --n", expected="one of the two: the suite says which pairs")
    if suite is not None and out is None:
        raise UsageError("--suite without --json", expected="--json FILE.jsonl, where finished pairs are kept")
    if suite is None and (options["model"] is None or options["threat"] is None):
        raise UsageError("nothing to compare", expected="--model and --threat, or --suite")


def _one(pair: Pair, out: Path | None) -> None:
    from rbench.bench.run import bench as compare
    from rbench.bench.text import result_text
    from rbench_core.files import atomic_write

    with redirect_stdout(sys.stderr), stderr_progress() as progress:  # a model that prints: stdout is the result's
        result = compare(pair, progress.update)
    if out is not None:
        atomic_write(out, json.dumps(result, indent=2, allow_nan=False) + "\n")
    click.echo(result_text(result))


def _many(suite: str, pair: Pair, out: Path) -> None:
    from rbench.bench.suite import pairs_of, run_suite
    from rbench.bench.text import pair_line, totals_text

    results, stdout = [], sys.stdout
    with redirect_stdout(sys.stderr), stderr_progress() as progress:
        for result in run_suite(pairs_of(suite), pair, out, progress.update):
            results.append(result)
            click.echo(pair_line(result), file=stdout)
            stdout.flush()
    click.echo(f"\n{totals_text(results)}")


def _table(path: Path) -> str:
    from rbench.bench.markdown import markdown
    from rbench.bench.suite import read_lines

    return markdown(read_lines(path))
