"""Published nets on the released sets, by real runs: predictions and counts are those of the reference, one by one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import rbench
from bench.invariance import BEHIND, SAMPLED, SETS, STATED, Thresholded
from laws.given import rows
from rbench_threats.stored import Stored

GOLDEN = ("mnist-fast-pgd", "mnist-fast-fgsm", "mnist-kw-0.1", "mnist-cnn-a-adv")
FOLDER = Path(os.environ.get("RBENCH_DATA") or "nowhere") / "invariance"
published = pytest.mark.skipif(
    not (os.environ.get("RBENCH_WEIGHTS") and FOLDER.is_dir()), reason="needs RBENCH_WEIGHTS, and RBENCH_DATA with a folder invariance"
)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """The four golden nets under the four threats."""
    folder = tmp_path_factory.mktemp("results")
    common: dict[str, Any] = {"results": folder, "site": False, "certify": "none"}
    return {(net, name): rbench.evaluate(net, threat=f"invariance-{name}", **common).data for net in GOLDEN for name in SETS}


@published
@pytest.mark.parametrize("net", GOLDEN)
def test_golden_predictions(net: str, reports: dict[tuple[str, str], Any]) -> None:
    golden = json.loads((FOLDER / "golden_predictions.json").read_text())["nets"][net.replace("-", "_")]
    for name in SETS:
        verdicts = reports[net, name]["verdicts"]
        assert [row["predicted"] for row in verdicts] == golden["adv"][name]
        assert [row["clean"] for row in verdicts] == golden["clean"][name]
        assert {row["status"] for row in verdicts} <= {"survived", "broken"}  # a clean mistake decides nothing


@published
def test_figures_of_a_run(reports: dict[tuple[str, str], Any]) -> None:
    found = reports["mnist-fast-pgd", "manual"]["invariance"]
    assert (found["agreement"]["count"], found["agreement"]["n"]) == (11, 44)
    assert (found["human_change"]["count"], found["n"]) == (44, 50)
    assert round(100 * found["keeps"]["accuracy"]) == 68
    assert found["ceiling"]["accuracy"] == pytest.approx(0.12)
    keeps = [round(100 * reports["mnist-cnn-a-adv", name]["invariance"]["keeps"]["accuracy"]) for name in SETS]
    assert keeps == [58, 95, 84, 93]


@published
@pytest.mark.parametrize("net", [net for net in STATED if net not in SAMPLED])
def test_counts_of_the_zoo(net: str) -> None:
    """The two ABS nets take minutes: tests/bench/invariance.py."""
    plain = rbench.load_model(net)
    models = [(plain, STATED[net]), *([(Thresholded(plain), BEHIND[net])] if net in BEHIND else [])]
    assert [_follows(model) for model, _ in models] == [stated for _, stated in models]


@published
def test_a_binarised_net_trained_so() -> None:
    assert _follows(Thresholded(rbench.load_model("mnist-abs-binary-cnn"))) == BEHIND["mnist-abs-binary-cnn"]


@published
def test_normalised_by_mistake_the_counts_are_others() -> None:
    net = rbench.load_model("mnist-cnn-a-adv")
    assert _follows(torch.nn.Sequential(Normalised(), net))[3] == 9  # 1 as it should be


class Normalised(torch.nn.Module):
    """MNIST's usual mean and deviation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.1307) / 0.3081


def _follows(model: torch.nn.Module) -> tuple[int, ...]:
    """Of each set's changed candidates, how many the model calls what people call them."""
    counts = []
    for name in SETS:
        space = Stored(name)
        (x, y), human = space.examples(), space.labels()
        with torch.no_grad():
            ctx = space.context(x, rows(len(x)))
            predicted = model(space.render(ctx, torch.ones(len(x), 1))).argmax(1)
        counts.append(int(((predicted == human) & (human != y)).sum()))
    return tuple(counts)


@published
def test_the_figures_are_over_the_changed_candidates_in_report_and_matrix(tmp_path: Path) -> None:
    """The unchanged ones have verdicts too, and count in no other figure than that over all."""
    report = rbench.evaluate("mnist-standard", threat="invariance-linf-0.3", results=tmp_path).data
    assert (report["n"], len(report["verdicts"])) == (100, 100)
    changed = [row for row in report["verdicts"] if row["oracle"] != row["label"]]
    assert report["robust"]["n"] == report["invariance"]["agreement"]["n"] == len(changed) == 21
    assert report["robust"]["accuracy"] == sum(row["status"] == "survived" for row in changed) / 21
    (line,) = json.loads((tmp_path / "site" / "data" / "matrix.json").read_text())["rows"]
    assert (line["invariance-linf-0.3_n"], line["invariance-linf-0.3_spec"]) == (21, "invariance(linf-0.3)")
