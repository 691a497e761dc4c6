"""A random sample of what no witness proves, computed again from the start, with the run's own seed, plan and width."""

from __future__ import annotations

import math
import random

from rbench.judging import Judge
from rbench.verification.claim import Claim, Found
from rbench_core.errors import UsageError

SHARE = 0.05  # of the open examples by default: with the witnesses and the clean pass well below a tenth of a run's passes
LEAST = 8


def sample_of(open_: list[int], wanted: int | str | None, seed: int, block: int | None) -> list[int]:
    """The examples to ask again, drawn without regard to anything but the seed; whole blocks where the plan runs in blocks.

    wanted: a number, "all", or None for one in twenty and at least 8.
    """
    if wanted == "all" or wanted is None or isinstance(wanted, int):
        count = len(open_) if wanted == "all" else max(LEAST, math.ceil(SHARE * len(open_))) if wanted is None else int(wanted)
    else:
        raise UsageError(f"sample={wanted!r}", expected="a whole number from 0, or all")
    if count < 0:
        raise UsageError(f"sample={count}", expected="a whole number from 0, or all")
    draw = random.Random(seed)
    if block is None:
        return sorted(draw.sample(open_, min(count, len(open_))))
    blocks = sorted({index // block for index in open_})
    chosen = draw.sample(blocks, min(-(-count // block), len(blocks)))
    return [index for index in open_ if index // block in set(chosen)]


def check_sample(claim: Claim, judge: Judge, chosen: list[int], rest: int, found: Found) -> None:
    """Ask again what is not proved of the chosen examples; every status must come out as it was. rest: how many were open."""
    wrong: list[str] = []
    for place, question in enumerate(claim.questions):
        rows = {i: row for i in chosen if (row := claim.rows[question.key].get(i)) is not None and row.status != "error"}
        asked = {index: row for index, row in rows.items() if (question.key, index) not in found.proved}
        if not asked:
            continue
        need = sorted(asked) if question.kind == "certificate" else _whole(judge, sorted(asked))
        verdicts = judge.answer(place, need).verdicts
        for index, row in asked.items():
            again = verdicts[index]
            if again.status == row.status:
                found.proved.add((question.key, index))
            else:
                told = f", by {again.attack}" if again.attack else f": {again.reason}" if again.reason else ""
                wrong.append(f"example {index} under {question.spec}: {row.status} was claimed; computed again it is {again.status}{told}")
    found.note("sample", len(chosen), wrong, f"of {rest} examples that no witness decides, computed again with the same status")


def _whole(judge: Judge, indices: list[int]) -> list[int]:
    """The blocks that hold the indices, for a plan whose verdicts depend on the block."""
    block, size = judge.asked.plan.block, len(judge.asked.data)
    if block is None:
        return indices
    firsts = sorted({index // block * block for index in indices})
    return [index for first in firsts for index in range(first, min(first + block, size))]


def worst_share(checked: int) -> float | None:
    """Exact one-sided 95 % bound on the share of open examples that would come out otherwise, after `checked` drawn ones did not."""
    return None if checked == 0 else float(1 - 0.05 ** (1 / checked))
