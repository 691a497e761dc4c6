"""Certificates as questions of a run: asked first, never attacked, joined on boards, verified; an alarm where one contradicts a witness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rbench
from rbench.certificates import Certifier, Proof
from rbench.data import sources
from rbench.report import Report
from rbench_core.errors import UsageError
from rbench_results.seal import sealed
from rbench_results.store import Store

EPS = 0.05
N = 40


class Linear(nn.Module):
    """Nearest class mean: each answer's distance to the boundary is known."""

    def __init__(self) -> None:
        super().__init__()
        data = sources.load("digits", "train")
        means = torch.stack([data.x[data.y == label].flatten(1).mean(0) for label in range(10)])
        self.flatten, self.last = nn.Flatten(), nn.Linear(64, 10)
        with torch.no_grad():
            self.last.weight.copy_(means)
            self.last.bias.copy_(-(means**2).sum(1) / 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.flatten(x))
        return logits


Run = Callable[..., Report]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def ask(model: nn.Module | None = None, **options: object) -> Report:
        given = {"threat": f"linf(eps={EPS})", "dataset": "digits", "n": N, "results": tmp_path / "results", "site": False, **options}
        # no pilot, whose images would be asked apart
        return rbench.evaluate(Linear() if model is None else model, name="linear", **{"plan": "apgd", **given})  # type: ignore[arg-type]

    return ask


def exact(model: Linear, n: int) -> Tensor:
    """Whether no image of the box has another class, by the dual norm, the part of the box that leaves [0, 1] cut off."""
    data = sources.load("digits", n=n)
    x, y = data.x.flatten(1).double(), data.y
    low, high = (x - EPS).clamp(min=0), (x + EPS).clamp(max=1)
    weight, bias = model.last.weight.double(), model.last.bias.double()
    rows = weight[y][:, None] - weight[None]  # (n, 10, 64)
    worst = (rows.clamp(min=0) * low[:, None] + rows.clamp(max=0) * high[:, None]).sum(2) + bias[y][:, None] - bias[None]
    return (worst > 1e-5).scatter(1, y[:, None], True).all(1)


def test_a_linear_net_leaves_no_gap(run: Run) -> None:
    report = run().data
    expected = exact(Linear(), N).tolist()
    assert 5 < sum(expected) < N - 5
    assert [row["status"] == "certified" for row in report["verdicts"]] == expected
    assert report["certified"] == report["robust"]  # what is not proved fell
    assert report["counts"]["survived"] == 0


def test_what_is_proved_is_not_attacked_unless_everything_is_asked(run: Run, tmp_path: Path) -> None:
    report = run().data
    attacks = [stage for stage in report["stages"] if stage["position"] > 0]
    right = sum(row["clean"] == row["label"] for row in report["verdicts"])
    assert attacks[0]["entered"] == right - report["counts"]["certified"]
    whole = run(full=True, results=tmp_path / "full").data
    assert next(stage for stage in whole["stages"] if stage["position"] > 0)["entered"] == right
    assert [row["status"] for row in whole["verdicts"]] == [row["status"] for row in report["verdicts"]]


def test_without_certificates_nothing_is_proved(run: Run) -> None:
    report = run(certify="none").data
    assert report["certified"] is None
    assert report["counts"]["certified"] == 0
    assert run().data["counts"]["certified"] > 0  # the same store, asked with them


def test_a_larger_slice_proves_only_what_is_missing(run: Run) -> None:
    run(n=N // 2)
    (proofs,) = [stage for stage in run().data["stages"] if stage["position"] < 0]
    right = sum(row["clean"] == row["label"] for row in run().data["verdicts"])
    assert proofs["entered"] == right  # over both runs, each image once


def test_a_union_is_proved_only_where_every_member_is(run: Run) -> None:
    report = run(threat=f"union(linf(eps={EPS}), l2(eps=0.1))", full=True).data
    linf, l2 = report["members"].values()
    assert linf["certified"]["accuracy"] > 0
    assert l2["certified"] is None
    assert report["certified"]["accuracy"] == 0
    assert report["counts"]["certified"] == 0


@pytest.mark.parametrize("threat", ["l2(eps=0.5)", "rotation-translation(degrees=10, shift=1)"])
def test_a_method_for_a_set_that_is_no_box_is_refused(threat: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="value by value"):
        run(threat=threat, certify="ibp")
    assert not (tmp_path / "results").exists()


def test_an_unknown_method_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="auto, none, ibp, crown-ibp"):
        run(certify="crown")


class Sorted(Linear):
    """With an operator that no bound is known for."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sort(1).values.cumsum(1)


def test_a_net_without_bounds_goes_on_uncertified(run: Run) -> None:
    report = run(Sorted(), n=4).data
    (said,) = [warning["text"] for warning in report["warnings"] if warning["code"] == "not-certified"]
    assert "sort" in said
    assert "test_certified_runs.py" in said
    assert report["certified"] is None
    assert report["counts"]["unanswered"] == 0


def test_a_proof_that_contradicts_a_witness_is_an_alarm(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def everything(self: Certifier, lower: Tensor, upper: Tensor, label: Tensor, methods: object) -> list[Proof]:
        return [Proof(True, "ibp", 1.0, 0.0) for _ in label]

    monkeypatch.setattr(Certifier, "certify", everything)
    report = run(full=True)
    assert report.exit_code == 1
    assert any("both broken and certified" in warning["text"] for warning in report.data["warnings"])


@pytest.mark.parametrize("kind", ["broken", "misclassified"])
def test_a_false_certificate_is_named(kind: str, run: Run, tmp_path: Path) -> None:
    report = run()
    checked = rbench.verify(report.run, model=Linear(), sample="all", results=tmp_path / "results")
    assert checked.record.ok, checked.record.problems
    assert checked.record.confirmed == N
    index = next(row["index"] for row in report.data["verdicts"] if row["status"] == kind)
    with Store.open(tmp_path / "results", create=False) as store:
        key = next(key for key, _ in store.run(report.run).questions if store.question(key).kind == "certificate")
        (row,) = store.verdicts(key, index, 1)
        store.add_chunk(key, [sealed(key, replace(row, status="certified", seal=""))], [])
    again = rbench.verify(report.run, model=Linear(), sample=0, results=tmp_path / "results")  # proofs are no matter of sampling
    assert not again.record.ok
    assert any(f"example {index} under" in problem for problem in again.record.problems)
