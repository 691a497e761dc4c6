"""A plan of a user's own, in a file: what is wrong with it is one line, and a good one runs as a plan does."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbench.attacks.catalogue import resolve_plan
from rbench_core.errors import CardError

STAGE = '[[attacks]]\nspec = "pgd(steps=2)"\n'
WRONG = [
    "attacks = 3",
    "attacks = [1]",
    "pilot = -1\n" + STAGE,
    'opens = "no"\n' + STAGE,
    "pilot = 5\n[[attacks]]\nspec = 5",
    *(f"pilot = 5\n{STAGE}{line}" for line in ('rows = "some"', 'rows = "close"', "close = 0.2", "skip = -1", 'skip = "a"', "family = 3")),
    *(f'pilot = 5\n{STAGE}rows = "close"\nclose = {close}' for close in ('"x"', "0", "1.5", "true")),
    STAGE + 'rows = "masked"',
    STAGE + 'package = "no.such"',
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(CardError, match=r"mine\.toml"):
        resolve_plan(str(tmp_path / "mine.toml"))


def test_a_package_that_is_absent_leaves_its_stage_out(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(STAGE + '[[attacks]]\nspec = "pgd(steps=3)"\npackage = "nosuchpackage"')
    plan = resolve_plan(str(tmp_path / "mine.toml"))
    assert [stage.label for stage in plan.stages] == ["pgd(steps=2)"]
    assert plan.name == str(tmp_path / "mine.toml")
