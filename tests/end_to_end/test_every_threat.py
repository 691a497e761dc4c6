"""One model under every threat: one run per preset that applies, the rest listed with the reason, one matrix of it all."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from command import rbench as process
from rbench.everything import Everything, evaluate_all
from rbench_results.store import Store
from rbench_threats.catalogue import presets

N = 8
INVARIANCE = {"invariance-l0", "invariance-linf-0.3", "invariance-linf-0.4", "invariance-manual"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def everything(folder: Path) -> Everything:
    return evaluate_all("digits-linf-at", n=N, plan="plan(grid, apgd(steps=3), apgd-sparse(steps=3), topk(steps=3))", results=folder)


def test_every_preset_is_run_or_listed_with_its_reason(everything: Everything) -> None:
    ran = {report.data["threat"] for report in everything.reports}
    on_digits = {name for name, entry in presets().items() if "digits" in entry.table["specs"]}
    assert ran == on_digits
    assert everything.skipped.keys() == presets().keys() - on_digits >= INVARIANCE
    assert all("no limits for digits" in reason for reason in everything.skipped.values())
    assert len({report.run for report in everything.reports}) == len(ran)  # one run per threat
    assert all(report.data["n"] == N for report in everything.reports)


def test_members_are_shared_through_the_store(everything: Everything) -> None:
    union = next(report.data for report in everything.reports if report.data["threat"] == "union-lp")
    alone = next(report.data for report in everything.reports if report.data["threat"] == "linf")
    key = next(question["key"] for question in union["questions"] if question["spec"] == alone["spec"])
    assert key in {question["key"] for question in alone["questions"]}
    assert union["cost"]["this_run"]["forward"] == 0  # its members were asked before it
    assert union["cost"]["forward"] > 0


def test_the_table_has_n_and_interval_in_every_line(everything: Everything) -> None:
    lines = str(everything).splitlines()
    for report in everything.reports:
        (line,) = [line for line in lines if line.split() and line.split()[0] == report.data["threat"]]
        figure = report.data["robust"]
        assert f" {figure['n']} " in line
        assert f"{100 * figure['low']:.1f} – {100 * figure['high']:.1f}" in line
    for name in INVARIANCE:
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line.split()[1] == "–"
        assert "digits" in line


def test_the_matrix_page_shows_every_cell_and_a_dash_where_none_applies(everything: Everything, folder: Path) -> None:
    rows = json.loads((folder / "site" / "data" / "matrix.json").read_text())
    (row,) = rows if isinstance(rows, list) else rows["rows"]
    for report in everything.reports:
        name = report.data["threat"]
        assert (row[f"{name}_n"], row[f"{name}_spec"]) == (report.data["robust"]["n"], report.data["spec"])
    assert all(row[f"{name}_n"] is None for name in INVARIANCE)
    page = unescape((folder / "site" / "matrix.html").read_text())
    assert page.count(f"n = {N}") == 1 + len(everything.reports)  # the clean figure, then one per threat
    assert page.count("no limits for digits, only for mnist") == len(INVARIANCE)


def test_the_command_prints_a_list_of_reports(tmp_path: Path) -> None:
    done = process(
        "run", "--model", "digits-standard", "--threat", "all", "--n", "2", "--plan", "plan(grid, pgd(steps=1))", "--json",
        "--results", str(tmp_path / "results"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    asked = "run model dataset threat plan n clean robust certified members verdicts cost warnings"
    assert set(asked.split()) <= set(reports[0])
    with Store.open(tmp_path / "results", create=False) as store:
        assert [run.threat for run in store.runs()] == [report["threat"] for report in reports]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--eps", "0.1"], "every preset has its own"),
        (["--plan", "autoattacc"], "autoattack"),
        (["--dataset", "digitz"], "digits"),
        (["--model", "no-such-model"], "no model named"),
    ],
)
def test_what_is_wrong_is_one_line(options: list[str], said: str, tmp_path: Path) -> None:
    given = ["--model", "digits-standard"] if "--model" not in options else []
    done = process("run", *given, "--threat", "all", "--n", "2", *options, "--results", str(tmp_path / "results"))
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_model_on_other_images_gets_the_threats_that_fit_them(tmp_path: Path, untrained: Callable[[int], str]) -> None:
    asked = ("--dataset", "mnist", "--threat", "all", "--n", "2", "--plan", "plan(grid, pgd(steps=1))")
    done = process("run", "--model", untrained(784), *asked, "--results", str(tmp_path / "results"))
    if "no files of it" in done.stderr:
        pytest.skip("no MNIST here")
    assert done.returncode == 0, done.stderr
    assert "cvae-rts" in done.stdout


@pytest.fixture
def untrained(tmp_path: Path) -> Callable[[int], str]:
    def make(values: int) -> str:
        (tmp_path / "net.py").write_text(
            "import torch\n\n\ndef make():\n    torch.manual_seed(0)\n"
            f"    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear({values}, 10))\n"
        )
        return f"{tmp_path}/net.py:make"

    return make
