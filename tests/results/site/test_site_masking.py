"""The Evidence of a run's page: what each kind of attack broke, the detector's word, the audit; and the curves over eps."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from rbench_results.report import run_report
from rbench_results.site import charts, curves
from rbench_results.site.boards import boards
from rbench_results.site.build import build_site
from rbench_results.site.evidence import family_of
from rbench_results.site.facts import Facts
from rbench_results.site.runs import read
from results.site.synthetic import Maker, Site
from stored import digest, run, stage

SETS = ("linf(eps=0.3)", "l2(eps=2)", "l1(eps=10)")


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def section(page: str, name: str) -> str:
    return page.split(f'aria-labelledby="{name}"')[1].split("</section>")[0]


def test_the_page_says_what_the_detector_said_and_what_was_audited(site: Site) -> None:
    told = text_of(section((site.root / "run-t002.html").read_text(), "h-evid"))
    audit = run_report(site.store, "t002")["audit"]
    assert f"missed at most, this run {audit['bound']:.1f} points" in told
    assert f"by all audits of this plan {audit['pooled']['bound']:.1f} points" in told
    assert "linf 0.3 not masked Of 8 pilot images APGD left 5, and of these other attacks broke 0 (fab 0)." in told
    assert "l2 2 gradient masked Of 8 pilot images APGD left 5, and of these other attacks broke 2 (fab 2). Margins mean nothing" in told
    assert "l1 10 gate opened" in told
    assert "1 pilot image fell that the gate would have kept out, so every image met the full budget." in told


def test_a_run_without_a_pilot_gave_nothing_up(site: Site) -> None:
    told = text_of(section((site.root / "run-t004.html").read_text(), "h-evid"))
    assert "no pilot Every image met every attack of the plan: nothing was given up early." in told
    assert "points" not in told


def test_families_add_up_with_the_pilot_apart(site: Site) -> None:
    page = read(Facts(site.store), site.store.run("t002"))
    (linf, l2, _) = page.evidence
    apgd, fab = l2.families
    own = [step for step in page.report["stages"] if step["spec"] == SETS[1] and step["position"] > 0 and not step["pilot"]]
    assert apgd.attacks == ["apgd-ce(steps=100)", "apgd-t(targets=9, steps=100)"]
    assert apgd.own["broken"] == sum(step["broken"] for step in own)
    assert apgd.own["passes"] == sum(step["forward"] + step["backward"] for step in own)
    assert apgd.own["entered"] == max(step["entered"] for step in own)
    assert (fab.own["entered"], fab.pilot["entered"], fab.pilot["broken"], fab.pilot["passes"]) == (0, 5, 2, 850)
    assert (fab.steps, linf.warns, l2.warns) == (0.2, False, True)
    assert [family_of(name) for name in ("apgd(loss=ce)", "apgd-sparse(steps=9)", "apgd-shrinking(loss=margin)", "fab in linf(eps=1)")] == [
        "apgd", "apgd", "apgd-shrinking", "fab",
    ]  # fmt: skip


def test_boards_flag_masked_rows_and_name_what_a_plan_may_miss(site: Site) -> None:
    (board,) = [board for board in boards(Facts(site.store)) if board.page == site.board]
    flagged = [row.run.id for row in board.rows if "gradient masked" in dict(row.flags)]
    assert flagged == ["t002"]
    told = text_of((site.root / site.board).read_text())
    (pool,) = board.pools.values()
    assert (pool.questions, pool.rows, pool.missed) == (3, 13, 0)  # t003's came by a bundle
    assert (
        f"of 13 images that it left standing the full budget broke none, so with 95 % confidence it misses at most {100 * pool.limit:.1f} %"
        in told
    )


# --- curves -------------------------------------------------------------------------------------------------------------------------


def test_the_page_draws_the_reports_curve_and_says_it_as_a_table(site: Site) -> None:
    page = section((site.root / "run-t002.html").read_text(), "h-eps")
    told = run_report(site.store, "t002")["curve"]
    assert page.count("<svg") == len(told) == 3
    assert "Upper bound: verified adversarial points at each radius." in page
    for curve in told:
        for point in curve["points"]:
            row = f"{point['eps']:.3g} {100 * point['robust']:.1f} {100 * point['low']:.1f}–{100 * point['high']:.1f}"
            assert row in text_of(page), row
    partly = text_of(section((site.root / "run-t003.html").read_text(), "h-eps"))
    assert "No curve under linf 0.3: 32 of 64 images were asked." in partly


def test_a_curve_is_a_staircase_with_the_asked_radius_marked(site: Site) -> None:
    told = run_report(site.store, "t002")["curve"][0]
    drawn = curves.chart("linf 0.3", told)
    assert drawn is not None
    assert drawn.asked == pytest.approx((curves.LEFT + curves.RIGHT) / 2)
    corners = [tuple(map(float, corner.split())) for corner in drawn.line[1:].split("L")]
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(corners))  # it keeps a height until the next radius
    assert [x for x, _ in corners] == sorted(x for x, _ in corners)
    asked = told["points"][10]
    assert (drawn.asked, asked["eps"]) == (pytest.approx(drawn.places[10].x), pytest.approx(0.3))
    assert drawn.places[10].text == (
        f"at 0.3: at most {100 * asked['robust']:.1f} % ({100 * asked['low']:.1f}–{100 * asked['high']:.1f}) of 64 images"
    )
    assert sum(place.width for place in drawn.places) == pytest.approx(curves.RIGHT - curves.LEFT)
    assert curves.chart("none", {**told, "points": []}) is None


def test_a_model_shows_the_newest_curve_of_each_set(site: Site, maker: Maker) -> None:
    old, new = (maker.run("net", {"linf": 0.6}) for _ in range(2))
    maker.curve(old)
    maker.curve(new)
    pages = build_site(maker.store).parent
    (page,) = pages.glob("model-*.html")
    shown = section(page.read_text(), "h-eps")
    assert shown.count("<svg") == 1
    assert f'href="run-{new}.html"' in shown
    assert f'href="run-{old}.html"' not in shown


def test_a_point_is_said_where_the_mouse_rests_and_to_a_screen_reader(visit: Any) -> None:
    page = visit("run-t002.html")
    figure = page.locator("#eps-t1").locator("xpath=ancestor::figure")
    assert figure.locator("rect.hover title").count() == 20
    assert "Upper bound of robust accuracy by radius, 64 images: " in page.locator("#eps-d1").text_content()
    figure.locator("summary").click()
    assert figure.locator("table tbody tr").count() == 21
    assert figure.locator("table").is_visible()


# --- gates in the chart of falls ----------------------------------------------------------------------------------------------------


def test_a_gated_attack_meets_some_of_those_that_stand() -> None:
    steps = [charts.Step("screen", 100, 40, 1000), charts.Step("deep", 9, 2, 500), charts.Step("all", 58, 8, 500)]
    chart = charts.flow(steps, wrong=0)
    assert chart is not None
    assert chart.stood == 50
    heights = [(block["high"], block["low"]) for block in chart.blocks]
    assert [high for high, _ in heights[1:]] == [low for _, low in heights[:-1]]  # one staircase
    assert str(chart).startswith("0 were misclassified, 50 fell, 50 survived")


def test_screens_of_all_members_come_before_anybodys_deep_attacks(maker: Maker) -> None:
    owner = digest("net")
    linf, l2 = (maker.question(owner, family, eps) for family, eps in (("linf", "3/10"), ("l2", "2")))
    asked = {"model": owner, "model_name": "net", "dataset": maker.data.digest, "dataset_name": maker.data.name, "n": 64}
    maker.store.start_run(run("r", [linf, l2], **asked))
    for q, at, entered, fell in ((linf, 1, 60, 20), (l2, 1, 40, 10), (linf, 2, 9, 3), (l2, 2, 27, 0), (l2, 3, 5, 1)):  # as they worked
        maker.store.add_chunk(q.key, [], [stage(q, at, run="r", entered=entered, broken=fell, forward=entered)])
    maker.store.add_chunk(linf.key, [], [stage(linf, 1000, run="r", attack="accuracy over eps", entered=60, broken=50, forward=9000)])
    found = read(Facts(maker.store), maker.store.run("r"))
    assert found.steps.pop()["attack"] == "accuracy over eps"  # beside the attacks, and no part of the chart
    assert found.passes == sum((60, 40, 9, 27, 5)) / 64
    assert [family.name for member in found.evidence for family in member.families] == ["apgd", "apgd"]
    order = [("linf 0.3", 1, 40), ("l2 2", 1, 30), ("linf 0.3", 2, 27), ("l2 2", 2, 27), ("l2 2", 3, 26)]
    assert [(step["member"], step["position"], step["standing"]) for step in found.steps] == order
    ((title, chart),) = found.flows
    assert (title, chart.n, chart.stood) == ("", 60, 26)
