"""What the audit says of a masked model when nobody looks: detector and opening of the gate switched off, on `mnist-fast-pgd`, l2 2.0.

    RBENCH_DATA=... RBENCH_WEIGHTS=... python tests/bench/audit.py [n]

The run's own bound, in points of robust accuracy, must then be large: the audit sees what the gate loses.
"""

from __future__ import annotations

import sys
from unittest import mock

import torch

from rbench.api import attack_conditions, find
from rbench.attacks import pilot
from rbench.attacks.catalogue import resolve_plan
from rbench.data import sources
from rbench.judging import Asked, Judge
from rbench.models import attacked
from rbench_results.figures import upper_limit
from rbench_threats.catalogue import build
from rbench_threats.spec import parse

NET, THREAT = "mnist-fast-pgd", "l2(eps=2)"


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    torch.set_num_threads(1)
    data, found, space = sources.load("mnist"), find(NET), build(parse(THREAT))
    ready, whole = attacked(found.module, name=NET, dataset=data, device="cpu", source=found.source, title=found.title), pilot.Pilot.facts

    def blind(self: pilot.Pilot, proved: set[int], cost: dict[str, float], **_: bool) -> pilot.Facts:
        return whole(self, proved, cost, detect=False, open_=False)

    with attack_conditions(data, "cpu"), ready as wrapped, mock.patch.object(pilot.Pilot, "facts", blind):
        judge = Judge(Asked(wrapped, data, (space,), resolve_plan("standard"), n, 0, 256, False, "none", "audit", lambda *_: None))
        judge.pilot(0, set())
        facts = judge.facts[0]
        judge.clean.clear()
        verdicts = judge.answer(0, [index for index in range(n) if index not in facts.indices]).verdicts
    left = sum(row.status == "survived" for row in verdicts.values()) / len(verdicts)
    bound = 100 * upper_limit(facts.missed, facts.standing) * left
    print(f"{facts.missed} of {facts.standing} audited images fell to the full budget; {100 * left:.1f} % of {len(verdicts)} survive;")
    print(f"the run's own bound is {bound:.1f} points")


if __name__ == "__main__":
    main()
