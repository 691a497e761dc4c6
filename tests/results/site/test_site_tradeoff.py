"""The trade-off page: joined from boards of one norm and radius, fronts with ties, the ceiling, and every figure with its n."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbench_results.site.build import build_site
from rbench_results.site.facts import Facts
from rbench_results.site.scatter import BOTTOM, LEFT, RIGHT, scatter
from rbench_results.site.tradeoff import Tradeoff, tradeoff
from results.site import candidates
from results.site.synthetic import HOSTILE, Maker
from stored import digest

MODELS = (("steady", 0, 1.0), ("twin", 0, 1.0), ("middle", 2, 0.4), ("beaten", 1, 0.3), ("level", 1, 0.4), ("plain", 4, 0.0))


def fill(maker: Maker) -> Maker:
    for name, _, share in MODELS:
        maker.model(name)
        maker.random = np.random.default_rng(5)  # equal shares make equal figures
        maker.run(name, {"linf": share})
    candidates.add(maker.store, maker.data, [(name, follows) for name, follows, _ in MODELS])
    return maker


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    """For tests that only read; its site is drawn."""
    made = fill(Maker(tmp_path_factory.mktemp("results")))
    build_site(made.store)
    yield made
    made.store.close()


def read(maker: Maker) -> Tradeoff:
    from rbench_results.site import boards, sets

    facts = Facts(maker.store)
    found = boards.boards(facts)
    page = tradeoff(facts, found, {}, sets.read(facts, found))
    assert page is not None
    return page


def rows(root: Path) -> list[dict[str, Any]]:
    with (root / "data" / "tradeoff.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_without_candidates_there_is_no_page_and_no_way_to_it(maker: Maker) -> None:
    maker.run("net", {"linf": 0.5})
    root = build_site(maker.store).parent
    assert not (root / "tradeoff.html").exists()
    assert "Trade-off" not in (root / "index.html").read_text()


def test_panels_join_boards_of_the_declared_radius_alone(filled: Maker) -> None:
    near, free = read(filled).panels
    assert (near.name, near.ball, free.ball) == ("invariance-near", "linf 0.3", None)
    assert (near.ceiling["count"], near.ceiling["n"], near.changed) == (5, 10, 5)
    assert {point.model.name for point in near.placed} == {name for name, _, _ in MODELS}
    assert free.placed == []  # no linf figure stands in for another norm
    assert all(point.robust is None for point in free.points)
    assert scatter(free) is None


def test_a_set_of_another_radius_has_no_robust_accuracy(maker: Maker) -> None:
    filled = fill(maker)
    one = next(q for q in filled.store.questions() if q.spec == "invariance(near)")
    candidates.portrait(filled.store.folder, one, "linf(eps=0.4)")
    panel = next(panel for panel in read(filled).panels if panel.eps)
    assert panel.placed == []


def test_the_front_keeps_ties_and_the_ceiling_marks_what_is_above_it(filled: Maker) -> None:
    points = {point.model.name: point for point in read(filled).panels[0].points}
    assert {name for name, point in points.items() if point.front} == {"steady", "twin", "middle", "plain"}
    assert points["steady"].robust == points["twin"].robust
    over = {name: (point.over, point.within) for name, point in points.items() if point.over}
    assert over == {"steady": (True, False), "twin": (True, False)}
    assert points["steady"].reading == "Pareto front; above the ceiling"
    assert points["beaten"].reading == ""
    assert points["level"].robust == points["middle"].robust  # as robust, and follows less


def test_the_drawing_stays_in_its_frame(filled: Maker) -> None:
    drawn = scatter(read(filled).panels[0])
    assert drawn is not None
    for dot in drawn.dots:
        assert LEFT <= dot.across[0] <= dot.x <= dot.across[1] <= RIGHT
        assert drawn.top <= dot.up[1] <= dot.y <= dot.up[0] <= BOTTOM
    assert drawn.ceiling_span[0] < drawn.ceiling < drawn.ceiling_span[1]
    numbers = [float(value) for value in re.findall(r"-?[\d.]+", drawn.front)]
    assert drawn.front.startswith(f"M{LEFT:g} ")
    assert numbers[-1] == BOTTOM
    texts = [label.text for label in drawn.labels]
    assert len(texts) == len(set(texts))


def test_every_figure_has_its_n_and_its_interval(filled: Maker) -> None:
    root = filled.store.folder / "site"
    text = (root / "tradeoff.html").read_text()
    assert "5 changed images of 10" in text
    assert "4 of 5; 37.6–96.4" in text
    assert "human ceiling 50.0 % (23.7–76.3)" in text
    assert "n = 64" in text
    assert "share no radius" in text
    assert "certified but wrong" not in text  # nobody asked for a proof
    table = rows(root)
    assert len(table) == 2 * len(MODELS)
    plain = next(row for row in table if row["model"] == "plain" and row["set"] == "invariance-near")
    assert (plain["follows_count"], plain["follows_n"], plain["robust"], plain["robust_n"], plain["pareto"]) == (
        "4",
        "5",
        "0.0",
        "64",
        "True",
    )
    assert all(row["robust"] == "" and row["ball"] == "" for row in table if row["set"] == "invariance-free")
    assert 'href="tradeoff.html"' in (root / "index.html").read_text()


def test_a_proof_that_keeps_the_old_label_is_counted(maker: Maker) -> None:
    maker.model("proved")
    sources = candidates.home(maker.store, maker.data, "near")
    key = candidates.asked(maker.store, sources, "near", follows=1, owner=digest("proved"), title="proved", proved=[3, 4, 8])
    candidates.portrait(maker.store.folder, maker.store.question(key), "linf(eps=0.3)")
    assert [point.proved_wrong for point in read(maker).panels[0].points] == [2]  # people still call candidate 8 what it was
    assert "certified but wrong: 2" in (build_site(maker.store).parent / "tradeoff.html").read_text()


def test_a_hostile_name_stays_a_name(maker: Maker) -> None:
    maker.model(HOSTILE)
    maker.run(HOSTILE, {"linf": 0.7})
    candidates.add(maker.store, maker.data, [(HOSTILE, 3)])
    text = (build_site(maker.store).parent / "tradeoff.html").read_text()
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text


def test_a_browser_shows_it_without_complaint(filled: Maker, browser: Any) -> None:
    root = filled.store.folder / "site"
    trouble: list[str] = []
    for width, dark in ((1280, False), (360, True)):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=True)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.goto((root / "tradeoff.html").as_uri())
        assert page.locator("circle.dot.front").count() == 5  # four models, and the key
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("table button", has_text="follows").first.click()
        context.close()
    assert trouble == []
