"""Useful passes per surviving example at n = 100 (ten random draws), 1,000 and 10,000: the cost of a plan is flat in n.

    RBENCH_DATA=... RBENCH_WEIGHTS=... python tests/bench/flat.py [plan] [largest n] [model] [threat]

Rows are islands and a plan's gate is fixed by its pilot, so only the draw of images may move the figure. The pilot is counted apart.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from rbench.api import attack_conditions, find
from rbench.attacks.catalogue import resolve_plan
from rbench.data import sources
from rbench.judging import Asked, Judge
from rbench.models import attacked
from rbench_threats.catalogue import build
from rbench_threats.spec import parse

CHUNK = 250


def useful(judge: Judge, rows: list[int]) -> tuple[int, int]:
    """(useful passes, survivors) of the plan over these images; kept per chunk, as a run does."""
    before, standing = judge.passes.useful, 0
    for first in range(0, len(rows), CHUNK):
        verdicts = judge.answer(0, rows[first : first + CHUNK]).verdicts
        standing += sum(row.status == "survived" for row in verdicts.values())
        judge.clean.clear()
    return judge.passes.useful - before, standing


def main() -> None:
    plan, largest, model, threat = (*sys.argv[1:], *("exhaustive", "10000", "mnist-fast-pgd", "linf(eps=0.3)")[len(sys.argv) - 1 :])
    torch.set_num_threads(1)
    data, found, space = sources.load("mnist"), find(model), build(parse(threat))
    ready = attacked(found.module, name=model, dataset=data, device="cpu", source=found.source, title=found.title)
    with attack_conditions(data, "cpu"), ready as wrapped:
        judge = Judge(Asked(wrapped, data, (space,), resolve_plan(plan), 1, 0, 64, False, "none", "flat", lambda *_: None))
        if judge.entries[0].pilot:
            judge.pilot(0, set())
            print(f"pilot {judge.passes.useful:,} useful passes")
        order = np.random.default_rng(0).permutation(data.size).tolist()
        hundreds = [useful(judge, order[100 * draw : 100 * draw + 100]) for draw in range(10)]
        print(f"n =    100, ten draws: {np.mean([spent / stood for spent, stood in hundreds]):.1f} useful passes per survivor", flush=True)
        for n in (1_000, 10_000):
            if n <= int(largest):
                spent, stood = useful(judge, order[:n])
                print(f"n = {n:6,}: {spent / stood:.1f} useful passes per survivor, {stood} survive", flush=True)


if __name__ == "__main__":
    main()
