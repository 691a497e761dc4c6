"""On a published net: the plan `autoattack` is AutoAttack, example by example, and the plan `apgd` comes close to it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rbench
from published import mnist_fast_pgd
from rbench.data import sources

N = 200
published = pytest.mark.skipif(
    not (os.environ.get("RBENCH_WEIGHTS") and os.environ.get("RBENCH_DATA")),
    reason="needs RBENCH_WEIGHTS and RBENCH_DATA: the published net and MNIST",
)


def direct(x: Tensor, y: Tensor) -> Tensor:
    """Which images pyautoattack itself leaves robust: one batch, seed 0, frozen parameters."""
    from pyautoattack import AutoAttack

    net = mnist_fast_pgd().requires_grad_(False)
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    with torch.random.fork_rng(devices=[]):
        attack = AutoAttack(net, norm="Linf", eps=0.3, seed=0, version="standard")
        found = attack.run_standard_evaluation(x, y, batch_size=len(x))
    images = found[0] if isinstance(found, tuple) else found
    with torch.no_grad():
        return net(images).argmax(1) == y


@published
@pytest.mark.slow
def test_the_plan_autoattack_is_autoattack_and_apgd_comes_within_two_points(tmp_path: Path) -> None:
    data = sources.load("mnist", n=N)
    with torch.no_grad():
        right = (mnist_fast_pgd()(data.x).argmax(1) == data.y).nonzero().squeeze(1)
    common = {"threat": "linf", "dataset": "mnist", "n": N, "results": tmp_path, "site": False, "name": "mnist_fast_pgd"}
    ours = rbench.evaluate(mnist_fast_pgd(), plan="autoattack", **common)
    status = {row["index"]: row["status"] for row in ours.data["verdicts"]}
    holds = direct(data.x[right], data.y[right])
    expected = {int(index): "survived" if held else "broken" for index, held in zip(right, holds, strict=True)}
    refused = [row["index"] for row in ours.data["verdicts"] if "referee" in (row["reason"] or "")]
    assert refused == []
    assert {index: status[index] for index in expected} == expected
    assert sum(found == "misclassified" for found in status.values()) == N - len(right)
    apgd = rbench.evaluate(mnist_fast_pgd(), plan="apgd", **common)
    assert apgd.data["robust"]["accuracy"] - ours.data["robust"]["accuracy"] <= 0.02
