"""The commands that look closely: a stored run or one example of it (`show`), and this machine (`doctor`)."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from rbench.cli.listings import RESULTS
from rbench_core.errors import UsageError

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--example", "index", type=click.IntRange(min=0), metavar="I", help="One example's whole history and its pictures.")
@click.option("--out", type=FILE, metavar="FILE.png", help="Where its pictures go.  [default: examples/ in the results folder]")
@click.option("--as", "shape", type=click.Choice(["robustbench"]), help="In the shape of RobustBench's model_info files.")
@RESULTS
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def show(run_id: str, index: int | None, out: Path | None, shape: str | None, results: Path | None, as_json: bool) -> None:
    """Print a stored run: its id, the beginning of one, or `latest`."""
    from rbench.report import Report

    if shape is not None and index is not None:
        raise UsageError("--as speaks of a run, --example of one image", expected="one of the two")
    if out is not None and index is None:
        raise UsageError(f"--out {out} without --example", fix="Add --example I to draw one example's pictures.")
    report = Report.stored(run_id, results)
    if index is not None:
        example = report.example(index)
        picture = example.save(out)
        click.echo(example.to_json(picture) if as_json else example.to_text(picture))
    elif shape is not None:
        click.echo(json.dumps(report.to_robustbench(), indent=2))
    else:
        click.echo(report.to_json() if as_json else report.to_table())


@click.command()
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Where the data lies.  [default: RBENCH_DATA, else the cache]")
@RESULTS
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
def doctor(data: Path | None, results: Path | None, as_json: bool) -> int:
    """Say what works here, what does not, and what to do. Changes nothing; exit code 1 where something is broken."""
    from rbench.doctor import examine, to_text

    with redirect_stdout(sys.stderr):  # a library that prints when it is imported
        found = examine(data=data, results=results)
    click.echo(json.dumps([finding.to_dict() for finding in found], indent=2) if as_json else to_text(found))
    return int(any(finding.state == "problem" for finding in found))
