"""How far outside the true perturbations a learned set is searched, and what restarts are worth: the tables of docs/learned-sets.md.

python tests/bench/learned.py MODEL SET RADIUS ... [--n N]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import rbench
from rbench.attacks.apgd import APGD
from rbench.attacks.lockstep import lockstep
from rbench.data import sources
from rbench.evidence.set_quality import to_the_truth
from rbench.models import find
from rbench_threats import partners
from rbench_threats.learned import Learned

PLANS = ("apgd", "apgd(loss=ce, steps=20, restarts=300)", "apgd(loss=ce, steps=100, restarts=50)", "pgd(steps=50, rate=0.2, restarts=50)")


def distance(model: str, name: str, radius: str, n: int) -> str:
    """MSE from what one APGD of 40 steps finds to the nearest true perturbation of the image."""
    found = find(model)
    data, space, net = sources.load(str(found.dataset), n=n), Learned(name, radius), found.module.eval().requires_grad_(False)
    kind = partners.build(space.card.table["training"]["pairs"], space.card.path)
    assert isinstance(kind, partners.Warp)
    images = lockstep(net, space, APGD(steps=40), data.x, data.y, spec="distance", seed=0)
    error = to_the_truth(data.x, images, kind).double().numpy()
    with torch.no_grad():
        wrong = float((net(images).argmax(1) != data.y).float().mean())
    return f"{radius} | {np.median(error):.4f} | {np.quantile(error, 0.9):.4f} | {100 * wrong:.0f} %"


def strength(model: str, spec: str, n: int) -> None:
    """Survivors under each plan, and under all of them so far."""
    left: set[int] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for plan in PLANS:
            report = rbench.evaluate(model, threat=spec, plan=plan, n=n, results=Path(folder), site=False)
            stand = {row["index"] for row in report.data["verdicts"] if row["status"] == "survived"}
            left = stand if left is None else left & stand
            cost = report.data["cost"]
            print(f"{plan} | {len(stand)} | {len(left)} | {cost['forward']:,} | {cost['seconds']:.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("set")
    parser.add_argument("radius", nargs="+")
    parser.add_argument("--n", type=int, default=500)
    given = parser.parse_args()
    print("radius | median distance to the true set | 90 % | wrong")
    for radius in given.radius:
        print(distance(given.model, given.set, radius, min(given.n, 100)), flush=True)
    print("plan | survivors | of all plans so far | passes | seconds")
    strength(given.model, f"learned({given.set}, radius={given.radius[-1]})", given.n)


if __name__ == "__main__":
    main()
