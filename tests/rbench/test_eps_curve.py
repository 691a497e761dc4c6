"""Accuracy over eps: the true curve where there is a formula, the run's figure at its radius, at most its passes, and always the same."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import rbench
from laws.formulas import excess, gauge
from laws.nets import digit_net, digits, linear_net
from laws.runs import run, stored, warned
from rbench.api import Report
from rbench.attacks.ladder import Ladder
from rbench_results.curve import STAGE
from rbench_results.records import CurveRow
from rbench_threats.boxes import Linf
from rbench_threats.catalogue import build
from rbench_threats.lp import L0, L2
from rbench_threats.spec import parse

N = 32  # images
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}
PLAN = "plan(apgd(loss=ce, steps=40, restarts=2), apgd-sparse(loss=ce, steps=40, restarts=2), topk(steps=40, restarts=5))"


def linear() -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A linear net and images so near to its boundaries that the image range binds nowhere."""
    net = linear_net((1, 8, 8), 6, seed=3)
    x = 0.5 + 0.05 * torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return net, x, net(x).argmax(1)


def distances(net: Any, x: Tensor, y: Tensor, dual: float) -> Tensor:
    """min over the other classes of (z_y − z_t) / ‖w_y − w_t‖ in the dual norm, float64."""
    weight, z = net[1].weight.double(), net(x).double()
    lead = z.gather(1, y[:, None]) - z
    slope = torch.linalg.vector_norm(weight[y][:, None] - weight[None], dual, dim=2)
    return torch.where(lead == 0, torch.inf, lead / slope).amin(1)


def rows_of(folder: Path, report: Report) -> list[CurveRow]:
    with stored(folder) as store:
        return store.curve(report.data["run"])


def passes(folder: Path, report: Report) -> tuple[int, int]:
    """Of all verdicts under the run's first question, and of the curve; forward and backward."""
    with stored(folder) as store:
        stages = store.stages(question=report.data["questions"][-1]["key"])
    both = [[s.forward + s.backward for s in stages if (s.position == STAGE) == curve] for curve in (False, True)]
    return sum(both[0]), sum(both[1])


@pytest.mark.parametrize("family", DUAL)
@torch.no_grad()
def test_a_linear_model_has_the_true_curve(family: str, tmp_path: Path) -> None:
    net, x, y = linear()
    true = distances(net, x, y, DUAL[family])
    eps = round(float(true.median()), 4)
    report = rbench.evaluate(
        net,
        dataset=(x, y),
        threat=f"{family}(eps={eps})",
        plan=PLAN,
        certify="none",
        eps_curve=True,
        results=tmp_path,
        site=False,
        width=64,
    )
    found = torch.tensor([torch.inf if row.gauge is None else row.gauge for row in rows_of(tmp_path, report)], dtype=torch.float64)
    radius = true / eps
    assert 5 < int((radius < 1).sum()) < N - 5
    assert len({float(level) for level in found}) > 8, "few radii told apart: the test would test little"
    assert bool((found >= radius * (1 - 1e-4)).all()), "nearer than the boundary"
    for step in range(1, 21):
        level = step / 10
        assert not bool(((found > level) & (radius * 1.01 <= level)).any()), f"missed at {level} radii"
    spent = passes(tmp_path, report)
    assert 0 < spent[1] <= spent[0]


@pytest.mark.parametrize("threat", ["linf(eps=0.1)", "l1(eps=2)", "l0(pixels=3)"])
def test_the_curve_goes_through_the_run_and_its_points_hold(threat: str, tmp_path: Path) -> None:
    """At the asked radius the run's figure, falling, within the run's passes; every point inside and adversarial, by other code."""
    report = run(tmp_path, threat=threat, plan=PLAN, n=N, eps_curve=True)
    rows = {row.index: row for row in rows_of(tmp_path, report)}
    assert sorted(rows) == list(range(N))
    fallen = {row["index"] for row in report.data["verdicts"] if row["status"] in ("broken", "misclassified")}
    inside = {index for index, row in rows.items() if row.gauge is not None and row.gauge <= 1}
    assert inside == fallen or (inside > fallen and "curve-below" in warned(report))
    (curve,) = report.data["curve"]
    robust = [point["robust"] for point in curve["points"]]
    assert robust == sorted(robust, reverse=True)
    assert robust[10] == pytest.approx(1 - len(inside) / N)
    assert robust[1] > robust[10]
    spent = passes(tmp_path, report)
    assert 0 < spent[1] <= spent[0]
    points = load_file(tmp_path / f"curves/{report.data['run']}-0.safetensors")
    space, index = build(parse(threat)), points["index"]
    x = digits(N).x[index].numpy().astype(np.float64)
    theta = points["x_adv"].numpy().astype(np.float64).reshape(len(x), -1) - x.reshape(len(x), -1)
    assert len(index) == sum(row.gauge is not None and row.gauge > 0 for row in rows.values()) > 5
    assert np.allclose(gauge(space, x, theta), [rows[i].gauge or 0.0 for i in index.tolist()], rtol=1e-3)
    twice = type(space)(*(2 * value for value in space.extent.values()))
    assert (np.asarray(excess(twice, x, theta)) <= 1e-6).all()
    assert bool((digit_net()(points["x_adv"]).argmax(1) != digits(N).y[index]).all())


def test_whoever_made_the_verdicts_the_curve_is_the_same(tmp_path: Path) -> None:
    """In one go, from verdicts that were there, and again, for nothing."""
    asked: dict[str, Any] = {"threat": "union(linf(eps=0.08), l2(eps=0.4))", "plan": "pgd(steps=20)", "n": N}
    first = run(tmp_path / "one", eps_curve=True, **asked)
    run(tmp_path / "two", **asked)
    late = run(tmp_path / "two", eps_curve=True, **asked)
    again = run(tmp_path / "two", eps_curve=True, **asked)
    told = [rows_of(tmp_path / name, report) for name, report in (("one", first), ("two", late), ("two", again))]
    assert len(told[0]) == 2 * N
    assert told[0] == told[1] == told[2]
    with stored(tmp_path / "two") as store:
        assert not store.stages(run=again.data["run"])


def test_a_proof_holds_and_a_run_with_nothing_to_spend_still_draws(tmp_path: Path) -> None:
    net, x, y = linear()
    eps = round(float(distances(net, x, y, 1).median()), 4)
    asked: dict[str, Any] = {"threat": f"linf(eps={eps})", "plan": "pgd(steps=2, rate=1)", "results": tmp_path, "site": False, "width": 64}
    report = rbench.evaluate(net, dataset=(x, y), eps_curve=True, witnesses="none", **asked)
    proved = {row["index"] for row in report.data["verdicts"] if row["status"] == "certified"}
    rows = {row.index: row.gauge for row in rows_of(tmp_path, report)}
    assert len(proved) > 5
    assert all((rows[index] or 2) > 1 for index in proved)
    assert not (tmp_path / "curves").exists()
    spent = passes(tmp_path, report)
    assert spent[1] <= spent[0]
    assert report.data["curve"][0]["points"][10]["robust"] <= report.data["robust"]["accuracy"]


def test_a_cheap_run_has_a_cheap_curve_and_says_so(tmp_path: Path) -> None:
    """Where a handful of passes break everything, no more than these are spent, and the bound is a coarse one."""
    report = run(tmp_path, threat="linf(eps=0.5)", plan="pgd(steps=4, rate=0.5)", n=N, eps_curve=True)
    spent = passes(tmp_path, report)
    assert 0 < spent[1] <= spent[0] < 12 * N
    assert warned(report) >= {"curve-coarse"}
    assert report.data["curve"][0]["points"][1]["robust"] > report.data["robust"]["accuracy"]


def test_other_sets_get_a_note(tmp_path: Path) -> None:
    report = run(tmp_path, threat="rotation-translation(degrees=5, shift=1)", plan="grid", n=16, eps_curve=True)
    assert warned(report) >= {"no-curve"}
    assert report.data["curve"] is None


def test_radii_are_whole_where_the_set_wants_it_and_end_where_it_ends() -> None:
    tenths = tuple(Fraction(step, 10) for step in range(1, 21))
    assert Ladder.of(L2("2"), (1, 8, 8)).radii == tenths  # type: ignore[union-attr]
    pixels = Ladder.of(L0(5), (1, 3, 3))
    assert [int(space.pixels) for space in pixels.sets] == list(range(1, 10))  # type: ignore[union-attr, attr-defined]
    wide = Ladder.of(Linf("0.6"), (1, 8, 8))
    assert wide is not None
    assert wide.sets[-1] == Linf("1")
    assert len(wide) == 17
    assert wide.radii[wide.asked] == 1
