"""The pilot: its rows are fixed, its thresholds are set before what they gate is looked at, and its late falls are counted, not hidden."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from rbench.attacks.catalogue import Stage, resolve_plan
from rbench.attacks.pilot import FEW, Facts, Pilot, pilot_rows

SCREEN, DEEP, OTHER, MASKED, AUDIT = (
    replace(resolve_plan("pgd(steps=1)").stages[0], **given)
    for given in (
        {"family": "apgd"},
        {"family": "apgd", "rows": "close", "close": 0.25},
        {"family": "fab", "rows": "close", "close": 0.25},
        {"family": "fab", "rows": "masked"},
        {"family": "apgd", "rows": "audit"},
    )
)
ROWS = tuple(range(100, 120))


def through(*falls: tuple[Stage, list[int]], margins: dict[int, float] | None = None) -> Pilot:
    """A pilot of 20 rows whose screen margins are 0, 1, 2, …; then stage by stage who falls."""
    log, still = Pilot(ROWS), list(ROWS)
    log.before(SCREEN)
    log.after(SCREEN, still, [], margins if margins is not None else {row: float(row - 100) for row in ROWS})
    for stage, fell in falls:
        log.before(stage)
        rows = still + [row for row in log.shadows(stage) if row not in still]
        log.after(stage, rows, [row for row in fell if row in rows], dict.fromkeys(rows, 0.0))
        still = [row for row in still if row not in fell]
    return log


def test_the_rows_are_a_matter_of_seed_and_data_set_alone() -> None:
    rows = pilot_rows(10_000, 30, 0)
    assert rows == pilot_rows(10_000, 30, 0)
    assert rows == sorted(set(rows))
    assert len(rows) == 30
    assert rows != pilot_rows(10_000, 30, 1)
    assert max(rows) > 5_000, "drawn from the whole, not from its beginning"
    assert set(pilot_rows(10_000, 20, 0)) < set(rows)
    assert pilot_rows(12, 30, 0) == list(range(12))


def test_a_quantile_of_the_screen_margins_is_the_gate() -> None:
    facts = through((DEEP, [100]), (OTHER, [])).facts(set(), {})
    assert facts.close == {0.25: 4.0}
    assert [facts.lets(DEEP, margin) for margin in (3.9, 4.0, 4.1)] == [True, True, False]
    assert facts.lets(SCREEN, 100.0)
    assert not facts.lets(MASKED, 0.0)
    assert not facts.lets(AUDIT, 0.0)
    assert (facts.late, facts.opened, facts.standing, facts.missed) == (0, False, 19, 0)


def test_what_the_deep_stages_saw_does_not_move_the_gate_of_others() -> None:
    """The deep stage brings every pilot row's margin to 0; only those that would have met it may profit."""
    deeper = replace(OTHER, close=0.5)
    log = through((DEEP, []))
    log.before(deeper)
    assert log.close == {0.25: 4.0, 0.5: 9.0}


def test_a_fall_beyond_the_gate_opens_it_for_everybody() -> None:
    facts = through((DEEP, [119])).facts(set(), {})
    assert (facts.late, facts.opened, facts.masked) == (1, True, False)
    assert all(facts.lets(stage, 100.0) for stage in (SCREEN, DEEP, OTHER, MASKED, AUDIT))
    assert (facts.standing, facts.missed) == (20, 0), "who opens the gate misses nothing"
    shut = through((DEEP, [119])).facts(set(), {}, open_=False)
    assert (shut.opened, shut.standing, shut.missed) == (False, 20, 1)
    assert not shut.lets(DEEP, 100.0)


def test_who_falls_later_on_the_ordinary_way_is_no_late_fall() -> None:
    everybody = replace(OTHER, rows="all")
    facts = through((DEEP, [119]), (everybody, [119])).facts(set(), {})
    assert (facts.late, facts.opened, facts.standing) == (0, False, 19)
    assert [row["broken"] for row in facts.families] == [1, 0], "a fall is counted once, where it came first"
    assert through((DEEP, [119]), (AUDIT, [119])).facts(set(), {}).late == 1


def test_a_stage_that_broke_nothing_stays_gated_on_a_masked_model() -> None:
    facts = through((OTHER, [101, 102, 103, 104]), (MASKED, [])).facts(set(), {})
    assert facts.masked
    assert facts.lets(OTHER, 100.0)
    assert not facts.lets(MASKED, 0.0)
    assert not facts.lets(DEEP, 100.0), "APGD is what masking leads astray"


def test_a_fall_in_a_stage_that_only_the_pilot_meets_opens_as_well() -> None:
    assert through((AUDIT, [101])).facts(set(), {}).opened
    assert through((MASKED, [101])).facts(set(), {}).opened


def test_falls_to_other_families_say_that_the_gradient_is_masked() -> None:
    facts = through((DEEP, [100]), (OTHER, [110, 111, 112, 113])).facts(set(), {})
    assert facts.masked
    assert "of 20 pilot images APGD left 19, and of these other attacks broke 4 (fab 4)" in facts.why
    assert (facts.late, facts.opened) == (0, False), "the masked branch has those stages for everybody"
    assert facts.lets(OTHER, 100.0)
    assert facts.lets(MASKED, 100.0)
    assert not facts.lets(AUDIT, 0.0)
    blind = through((OTHER, [110, 111, 112, 113])).facts(set(), {}, detect=False, open_=False)
    assert (blind.masked, blind.standing, blind.missed) == (False, 20, 4)


@pytest.mark.parametrize(
    ("left", "broke", "masked"), [(20, 1, False), (20, 2, False), (20, 3, True), (8, 2, True), (11, 2, False), (1, 1, False)]
)
def test_the_detector(left: int, broke: int, masked: bool) -> None:
    log = through((SCREEN, list(ROWS[left:])), (OTHER, list(ROWS[:broke])))
    assert log.facts(set(), {}).masked is masked


def test_proved_rows_are_no_part_of_the_audit() -> None:
    assert through((DEEP, [100])).facts({117, 118}, {}).standing == 17


def test_few_survivors_are_all_close() -> None:
    log = through((SCREEN, list(ROWS[FEW - 1 :])), (DEEP, []))
    assert log.close == {0.25: math.inf}
    assert log.facts(set(), {}).lets(DEEP, 1e9)


def test_an_error_without_a_margin_is_far() -> None:
    facts = through((DEEP, []), margins={row: float(row - 100) for row in ROWS[:10]}).facts(set(), {})
    assert facts.close == {0.25: 4.0}


def test_facts_survive_json() -> None:
    log = through((SCREEN, list(ROWS[3:])), (DEEP, [100]), (OTHER, [101]))
    facts = log.facts({102}, {"forward": 10, "backward": 5, "useful": 9, "seconds": 0.5})
    assert Facts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert facts.yields == pytest.approx(19 / 15)
