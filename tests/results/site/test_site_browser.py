"""The site in a real browser, from file://: what a reader does. Every console message, page error and foreign request is a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rbench_results.figures import mcnemar, wilson
from rbench_results.site.board_rows import packed
from rbench_results.site.boards import boards
from rbench_results.site.compare import first_pair
from rbench_results.site.facts import Facts
from rbench_results.site.words import percent
from results.site.synthetic import FORMULA, HOSTILE, LONG, SHOWN, Site

if TYPE_CHECKING:
    from playwright.sync_api import Page

COLUMN = """(table, key) => { const th = [...table.tHead.rows[0].cells].find(c => c.dataset.key === key);
  return [...table.tBodies[0].rows].map(tr => tr.cells[th.cellIndex].dataset.v); }"""
ROBUST = """table => [...table.tBodies[0].rows].map(tr => { const d = tr.querySelector('[data-c=robust]').dataset;
  return [tr.dataset.row, d.v, d.low, d.high, tr.dataset.n, tr.cells[0].textContent]; })"""


def column(page: Page, key: str) -> list[str]:
    found: list[str] = page.locator("#board").evaluate(COLUMN, key)
    return found


def robust(page: Page) -> list[list[str]]:
    found: list[list[str]] = page.locator("#board").evaluate(ROBUST)
    return found


def numbers(values: list[str]) -> list[float]:
    return [float(value) for value in values if value != ""]


ACTIVE = "document.querySelectorAll('main script, main img, main iframe, main [onerror], a[href^=\"javascript:\" i]').length"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_every_page_opens_without_a_complaint_or_sideways_scroll_and_runs_no_name(site: Site, visit: Any, width: int, dark: bool) -> None:
    page = visit("index.html", width=width, dark=dark)
    for name in site.pages:
        page.goto(f"{site.root.as_uri()}/{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(ACTIVE) == 0, name
        assert page.locator("h1").count() == 1, name


def test_pictures_are_loaded(site: Site, visit: Any) -> None:
    page = visit("run-t002.html")
    sheet = page.locator(".gallery image").first.get_attribute("href")
    size = page.evaluate(
        "href => new Promise(done => { const i = new Image(); i.onload = () => done([i.naturalWidth, i.naturalHeight]); i.src = href; })",
        sheet,
    )
    assert size == [24, 8 * page.locator(".gallery li").count()]
    assert page.locator(".gallery .px").first.evaluate("e => getComputedStyle(e.firstChild).imageRendering") == "pixelated"


def test_a_click_sorts_missing_last_in_both_directions(visit: Any, site: Site) -> None:
    page = visit(site.board)
    for key in ("robust", "clean", "certified", "linf-0.3", "l2-2", "cost", "n", "bar"):
        header = page.locator(f"#board th[data-key='{key}']")
        for _ in range(2):
            header.locator("button").click()
            values, order = column(page, key), header.get_attribute("aria-sort")
            known = numbers(values)
            assert known == sorted(known, reverse=order == "descending"), key
            assert values == [v for v in values if v != ""] + [v for v in values if v == ""], key
            assert page.locator("#board th[aria-sort]").count() == 1
    assert "" in column(page, "l2-2")


def test_names_sort_and_equal_values_keep_their_order(visit: Any, site: Site) -> None:
    page = visit(site.board)
    page.locator("#board th[data-key='robust'] button").click()  # upwards
    before = [row[0] for row in robust(page)]
    page.locator("#board th[data-key='certified'] button").click()  # nothing is certified: all rows are equal
    assert [row[0] for row in robust(page)] == before
    page.locator("#board th[data-key='model'] button").click()
    names = column(page, "model")
    assert names == page.evaluate("names => names.slice().sort((a, b) => a.localeCompare(b, 'en', {numeric: true}))", names)


def test_the_keyboard_sorts_and_skips(visit: Any, site: Site) -> None:
    page = visit(site.board)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#board th[data-key='clean'] button").focus()
    page.keyboard.press("Enter")
    assert page.locator("#board th[data-key='clean']").get_attribute("aria-sort") == "descending"
    assert page.locator("#board th[data-key='clean'] button").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"


def test_search_and_plan_narrow_the_rows(visit: Any, site: Site) -> None:
    page = visit(site.board)
    shown = "#board tbody tr:not([hidden])"
    every = page.locator(shown).count()
    page.fill("[data-filter]", "adversarial LINF")
    assert page.locator(shown).count() == 1
    assert "test-linf" in page.locator(shown).inner_text()
    assert f"1 of {every} rows" in page.locator("[data-status]").inner_text()
    page.fill("[data-filter]", "no such model")
    assert page.locator(shown).count() == 0
    page.fill("[data-filter]", "")
    page.select_option("[data-facet=plan]", "pgd")
    assert page.locator(shown).count() == 1


def test_the_browsers_ranking_is_the_served_one(visit: Any, site: Site) -> None:
    page = visit(site.board)
    served = robust(page)
    tick = page.locator("[name=member]").first
    tick.uncheck()
    assert robust(page) != served
    tick.check()
    drawn = robust(page)
    assert [row[0] for row in drawn] == [row[0] for row in served]
    assert [row[5] for row in drawn] == [row[5] for row in served]
    for now, before in zip(drawn, served, strict=True):
        assert [float(v) for v in now[1:4] if v] == pytest.approx([float(v) for v in before[1:4] if v], abs=1e-9)
        if now[1]:
            k, n = round(float(now[1]) * int(now[4])), int(now[4])
            assert [float(now[2]), float(now[3])] == pytest.approx(wilson(k, n), abs=1e-9)


def test_members_rank_anew_and_a_missing_slice_has_no_figure(visit: Any, site: Site) -> None:
    page = visit(site.board)
    (board,) = [b for b in boards(Facts(site.store)) if b.page == site.board]
    for member in page.locator("[name=member]").all():
        member.set_checked(member.get_attribute("value") == "l2-2")
    expected = {row.key: figure.accuracy if (figure := row.member("l2(eps=2)")) else None for row in board.rows}
    found = {row[0]: float(row[1]) if row[1] else None for row in robust(page)}
    assert found == pytest.approx(expected, abs=1e-12)
    assert None in found.values()
    assert len(set(found.values())) > 2
    values = [row[1] for row in robust(page)]
    assert numbers(values) == sorted(numbers(values), reverse=True)
    assert values[-1] == ""
    page.locator("[name=member]").nth(1).click()
    assert page.locator("[name=member]").nth(1).is_checked(), "the last member cannot be taken away"


def test_a_row_without_a_figure_gets_one_when_the_missing_member_is_unticked(visit: Any, site: Site) -> None:
    page = visit(site.board)
    row = page.locator("#board tbody tr", has_text="test-plain")
    page.locator("[name=member][value='linf-0.3']").uncheck()
    assert "no figure" in row.inner_text()
    page.locator("[name=member][value='linf-0.3']").check()
    page.locator("[name=member][value='l2-2']").uncheck()
    page.locator("[name=member][value='l1-10']").uncheck()
    assert "no figure" not in row.inner_text()
    assert row.locator("svg.bar").is_visible()


def test_the_address_reproduces_what_is_seen(visit: Any, site: Site) -> None:
    page = visit(site.board)
    page.locator("[name=member][value='l1-10']").uncheck()
    page.locator("#board th[data-key='clean'] button").click()
    page.fill("[data-filter]", "test")
    seen = page.locator("#board tbody tr:not([hidden])").all_inner_texts()
    address = page.evaluate("location.href")
    assert "#" in address
    again = visit(address.rsplit("/", 1)[1])
    assert again.locator("#board tbody tr:not([hidden])").all_inner_texts() == seen
    assert not again.locator("[name=member][value='l1-10']").is_checked()
    visit(f"{site.board}#members=%3Cimg%3E,&sort=__proto__.up&plan=nothing&q=")  # a broken address breaks nothing


def test_hostile_cards_runs_and_verifications_are_text(visit: Any, site: Site) -> None:
    page = visit("models.html")
    page.get_by_role("link", name=HOSTILE, exact=True).click()
    shown = page.locator("main").inner_text()
    for text in (
        "javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "javascript:alert(2)",
        HOSTILE,
        FORMULA,
        SHOWN,
        "w" * 400,
    ):
        assert text in shown
    outside = page.locator("main a[href*=':']")
    assert outside.evaluate_all("links => links.map(a => [a.href, a.rel])") == [
        ["https://example.invalid/?a=1&b=2", "noopener noreferrer nofollow"]
    ]
    assert page.get_by_text("no usable gradient").get_attribute("title")
    page.goto(f"{site.root.as_uri()}/run-t004.html")
    assert f"image 3: {HOSTILE}" in page.locator("main").inner_text()
    assert SHOWN in page.locator("main").inner_text()


def test_badges_say_who_vouches_for_a_row(visit: Any, site: Site) -> None:
    page = visit(site.board)
    badges = {
        "test-linf": "submitted, re-verified on 57 of 64",
        "test-plain": "verification failed",
        HOSTILE: "submitted, not re-verified",
    }
    for name, badge in badges.items():
        row = page.locator("#board tbody tr", has=page.get_by_role("link", name=name, exact=True))
        assert row.get_by_text(badge, exact=True).get_attribute("title")
    page.fill("[data-filter]", "submitted")
    assert page.locator("#board tbody tr:not([hidden])").count() == 2


def test_the_search_is_reached_and_used_by_keyboard(visit: Any, site: Site) -> None:
    page = visit(site.board)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('[data-filter]')"):
            break
    assert page.locator("[data-filter]").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    page.keyboard.type("test-linf")
    assert page.locator("#board tbody tr:not([hidden])").count() == 1


def test_on_a_phone_a_column_of_the_matrix_is_no_wider_than_its_figures(visit: Any) -> None:
    page = visit("index.html", width=390)
    widths = page.locator(".matrix tbody tr").first.locator("td").evaluate_all("cells => cells.map(c => c.clientWidth)")
    assert max(widths) < 200
    assert page.locator(".matrix caption").evaluate("e => e.getBoundingClientRect().right") <= 390


def test_hostile_names_are_text(visit: Any, site: Site) -> None:
    page = visit(site.board)
    assert page.get_by_role("rowheader", name=HOSTILE).locator("a").inner_text() == HOSTILE
    assert page.locator("th.model a", has_text=LONG[:20]).first.inner_text() == LONG


def test_two_chosen_rows_are_compared(visit: Any, site: Site) -> None:
    page = visit(site.board)
    boxes = page.locator("#board .pick input")
    keys = page.locator("#board tbody tr").evaluate_all("rows => [0, 3].map(i => rows[i].dataset.row)")
    boxes.nth(0).check()
    boxes.nth(3).check()
    page.locator("[data-compare]").click()
    page.wait_for_url("**/compare-*")
    assert page.locator("select[name=a]").input_value() == keys[0]
    assert page.locator("select[name=b]").input_value() == keys[1]


def test_the_comparison_is_pythons(visit: Any, site: Site) -> None:
    page = visit(site.compare)
    (board,) = [b for b in boards(Facts(site.store)) if b.compare == site.compare]
    pair = first_pair(board)
    assert pair is not None
    served = visit(site.compare, script=False).locator("[data-result]").first.inner_text()
    assert page.locator("[data-result]").first.inner_text() == served
    out = {name: page.locator(f"[data-out={name}]").first.inner_text() for name in ("both", "only-a", "only-b", "neither", "p")}
    assert [int(out[name]) for name in ("both", "only-a", "only-b", "neither")] == [
        pair.both,
        len(pair.only_a),
        len(pair.only_b),
        pair.neither,
    ]
    names = page.locator("select[name=a] option").all_inner_texts()
    page.select_option("select[name=a]", label=next(name for name in names if name.startswith("test-linf")))
    page.select_option("select[name=b]", label=next(name for name in names if name.startswith("test-plain")))
    page.select_option("select[name=member]", "linf-0.3")
    b, c = (int(page.locator(f"[data-out={name}]").first.inner_text()) for name in ("only-a", "only-b"))
    shown = page.locator("[data-out=p]").inner_text()
    assert shown == "< 0.0001" if mcnemar(b, c) < 1e-4 else float(shown) == pytest.approx(mcnemar(b, c), abs=5.1e-5)
    assert page.locator("[data-gallery=a] li").count() > 0
    assert page.locator("[data-gallery=a] image").first.get_attribute("href").startswith("img/")
    page.select_option("select[name=member]", "l1-10")
    assert "No figure: test-" in page.locator("[data-why]").inner_text()
    assert not page.locator("[data-result]").first.is_visible()


def test_the_scripts_formulas_are_pythons(visit: Any, site: Site) -> None:
    script = (site.root / "site.js").read_text()
    source = script[script.index("function fmt") : script.index("function figure(")]
    page = visit("index.html")

    def run(call: str, cases: list[Any]) -> list[Any]:
        found: list[Any] = page.evaluate(f"cases => {{ {source}; return cases.map(c => {call}); }}", cases)
        return found

    shares = [k / n for n in (3, 7, 40, 400, 500, 1000) for k in range(n + 1)]
    assert run("fmt(c)", shares) == [percent(share) for share in shares]
    pairs = [(k, n) for n in (1, 2, 30, 500, 10_000) for k in {*range(0, n + 1, max(1, n // 40)), n}]
    assert run("wilson(c[0], c[1])", pairs) == [pytest.approx(wilson(k, n), abs=1e-9) for k, n in pairs]
    splits = [(0, 0), (3, 3), (0, 9), (137, 112), (40, 400)]
    assert run("mcnemar(c[0], c[1])", splits) == [pytest.approx(mcnemar(b, c), rel=1e-9, abs=1e-12) for b, c in splits]
    flags = [True, False, False, True, True, False, True, False, True, True]
    assert run("[...bits(c, 10)]", [packed(flags)]) == [[int(flag) for flag in flags]]


def test_dark_mode_changes_the_ground_and_pages_read_without_script(visit: Any, site: Site) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    assert visit("index.html").evaluate(ground) != visit("index.html", dark=True).evaluate(ground)
    page = visit(site.board, script=False)
    assert page.locator("#board tbody tr").count() == 7
    assert not page.locator("form.controls").is_visible()
