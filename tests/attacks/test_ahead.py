"""Looking several steps ahead changes nothing but the number of batches: best places, falls and useful looks are those of one by one."""

from __future__ import annotations

import pytest
import torch

from laws.nets import digit_net, digits, right_examples
from rbench.attacks import ahead
from rbench.attacks.build import spec_of
from rbench.attacks.catalogue import resolve_plan
from rbench.attacks.evaluate import Passes
from rbench.attacks.search import Best, Search
from rbench.attacks.stage import part_of
from rbench_threats.catalogue import build
from rbench_threats.spec import parse

CASES = [
    ("linf(eps=0.1)", "square(queries=120)"),
    ("l2(eps=0.5)", "square(queries=120, loss=ce)"),
    ("l1(eps=1)", "square(queries=120)"),
    ("l0(pixels=3)", "sparse-rs(queries=120)"),
]


def searched(spec: str, attack: str, rows: int, few: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Best, Passes]:
    monkeypatch.setattr(ahead, "FEW", few)
    net, passes = digit_net(), Passes()
    examples = part_of(right_examples(net, digits(40)), list(range(rows)))
    built = resolve_plan(attack).stages[0].attack
    search = Search(net, build(parse(spec)), built, examples, spec=spec_of(built), seed=0, width=64, passes=passes)  # type: ignore[arg-type]
    return search.run(), passes


@pytest.mark.parametrize(("spec", "attack"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_as_one_by_one(spec: str, attack: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, slow = searched(spec, attack, rows, 0, monkeypatch)
    together, fast = searched(spec, attack, rows, 16, monkeypatch)
    assert torch.equal(alone.margin, together.margin)
    assert torch.equal(alone.theta, together.theta)
    assert torch.equal(alone.fell, together.fell)
    assert slow.useful == fast.useful
    assert rows > 5 or fast.forward < 0.8 * slow.forward or bool(alone.fell.all())


def test_the_cases_say_something(monkeypatch: pytest.MonkeyPatch) -> None:
    fell = [searched(spec, attack, 16, 16, monkeypatch)[0].fell for spec, attack in CASES]
    assert all(int(some.sum()) > 0 for some in fell)
    assert any(int(some.sum()) < 16 for some in fell)


def test_restarts_fall_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of an example's restarts falls first is evidence of one run; whether one does is not."""
    alone, together = (searched("l1(eps=1)", "square(queries=120, restarts=2)", 5, few, monkeypatch)[0] for few in (0, 16))
    assert torch.equal(alone.fell, together.fell)
