"""Texts from cards, bundles and merged databases: what becomes a link, what an escape; what is said of a threat and of a run."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from rbench_results.records import RunRecord, VerificationRecord
from rbench_results.site.standing import columns, newest, of_run, of_runs
from rbench_results.site.threats import WORDS, explain
from rbench_results.site.words import exactly, links, number, visible
from stored import digest, question, run

BUNDLE = {"name": "net", "bundle": digest("zip")}


NOWHERE = [
    *("javascript:alert(1)", "JaVaScRiPt:alert(1)", "vbscript:x", "data:text/html,https", "file:///etc/passwd", "http://a.example"),
    *("//a.example", "https:a.example", "https:///a", "https://arxiv.org@evil.example/", "https://user:word@evil.example/"),
    *("https://a\u202eb.example", "https://é.example", "httpſ://a.example", "xhttps://a.example", "lab/net@0123abc:a.pt", ""),
    *("arXiv:17060.6083", "arXiv:١٧٠٦.٠٦٠٨٣", "arXiv:1706.060831"),
]


@pytest.mark.parametrize(
    ("text", "leads"),
    [
        ("Madry et al. 2018 (arXiv:1706.06083)", [("arXiv:1706.06083", "https://arxiv.org/abs/1706.06083")]),
        ("arxiv: 1909.04068v2", [("arxiv: 1909.04068v2", "https://arxiv.org/abs/1909.04068v2")]),
        ("https://a.example/b?c=1&d#e", [("https://a.example/b?c=1&d#e",) * 2]),
        ("see https://a.example/b, (https://c.example)", [("https://a.example/b",) * 2, ("https://c.example",) * 2]),
        ("at https://d.example.", [("https://d.example",) * 2]),
        ("HTTPS://A.example:8080/", [("HTTPS://A.example:8080/",) * 2]),
        ("javascript:https://a.example", [("https://a.example",) * 2]),  # an address within a text is one, whatever stands before it
        *[(text, []) for text in NOWHERE],
    ],
)
def test_only_https_and_arxiv_numbers_lead_somewhere(text: str, leads: list[tuple[str, str]]) -> None:
    found = links(text)
    assert [pair for pair in found if pair[1]] == leads
    assert "".join(piece for piece, _ in found) == text
    assert all(piece for piece, _ in found)


def test_a_long_text_is_searched_for_links_in_a_moment() -> None:
    for text in ("https://" + "a." * 200_000 + "@", "arxiv:" * 100_000, "https://a:" * 100_000, "https://" + "a" * 300_000 + "é"):
        assert "".join(piece for piece, _ in links(text)) == text


def test_what_steers_a_screen_is_shown_as_an_escape() -> None:
    assert visible("a\u202eb\0c\x1bd\u200be\ufefff\r\u2028\ud800") == r"a\u202eb\x00c\x1bd\u200be\ufefff\r\u2028\ud800"
    for kept in ("größe 無限 عربي עברית", "a\n\tb", "क्‍ष", "1 000", "👩‍🚀"):
        assert visible(kept) == kept
    assert [visible(value) for value in (None, 1.5, True, [1])] == [None, 1.5, True, [1]]


def test_numbers_are_read_from_plain_digits_alone() -> None:
    assert [exactly(text) for text in ("3/10", "0.3", "8", "-1")] == [Fraction(3, 10), Fraction(3, 10), 8, -1]
    for text in ("1e999999999", "1/0", "nan", "", "٣", "9" * 5000, " 1"):
        assert exactly(text) is None
        assert number(text) == text


def said(family: str, shape: tuple[int, ...] = (1, 8, 8), **extent: str) -> str:
    return explain([(question(family, extent=extent), "x")], shape, "its own sentence")


def test_a_threat_is_explained_with_its_own_numbers() -> None:
    assert "15 % of the way" in said("linf", eps="3/20")
    assert "38 grey levels of 255" in said("linf", eps="3/20")
    assert "8 grey levels" in said("linf", (3, 32, 32), eps="8/255")
    assert "all 64 pixel values" in said("l2", eps="3/4")
    assert "move a single one by 75 %" in said("l2", eps="3/4")
    assert "all of them by 9.4 %" in said("l2", eps="3/4")  # 0.75 / sqrt(64)
    assert "turn a single one from black to white" in said("l2", eps="2")
    assert "turn 10 values" in said("l1", (1, 28, 28), eps="10")
    assert "all of them by 1.3 %" in said("l1", (1, 28, 28), eps="10")  # 10 / 784
    assert "At most 3 of the 64 pixels" in said("l0", pixels="3")
    assert "3,072 pixel values" in said("l1", (3, 32, 32), eps="12")
    assert "At most 8 of the 1,024 pixels" in said("l0", (3, 32, 32), pixels="8")  # all channels of a pixel count once
    assert "up to 30° either way and shifted by up to 6/7 px" in said("rotation-translation", degrees="30", shift="6/7")


def test_a_union_names_its_members() -> None:
    members = [(question(family), family) for family in ("linf", "l2", "l1")]
    assert "whichever fools the model: linf, l2 or l1." in explain(members, (1, 8, 8), "own")


@pytest.mark.parametrize("family", [*WORDS, "learned", "<b>"])
def test_a_set_that_is_not_known_says_its_own_sentence(family: str) -> None:
    for extent in ({}, {"other": "1"}, {"eps": "1e99"}, {"eps": "-1", "pixels": "0", "degrees": "x", "shift": ""}):
        assert said(family, **extent) == "its own sentence"
    assert said(family, (), eps="1", pixels="1", degrees="1", shift="1") == "its own sentence"
    assert said(family, (1, 0, 8), eps="1", pixels="1", degrees="1", shift="1") == "its own sentence"


def verified(of: str = "r1", *, ok: bool = True, **fields: object) -> VerificationRecord:
    given = {"id": "v", "run": of, "started": "2001-02-03T04:05:06+00:00", "n": 500, "confirmed": 480, **fields}
    return VerificationRecord(ok=ok, **given)  # type: ignore[arg-type]


def text_of(record: RunRecord, found: VerificationRecord | None) -> tuple[str, bool] | None:
    standing = of_run(record, found)
    return (standing.text, standing.warn) if standing else None


def test_a_run_says_where_it_came_from_and_what_was_confirmed() -> None:
    own, sent = run(), run(submitted=BUNDLE)
    assert text_of(own, None) is None
    assert text_of(own, verified()) == ("verified on 480 of 500", False)
    assert text_of(own, verified(ok=False)) == ("verification failed", True)
    assert text_of(sent, None) == ("submitted, not re-verified", True)
    assert text_of(sent, verified()) == ("submitted, re-verified on 480 of 500", False)
    assert text_of(sent, verified(ok=False, confirmed=3)) == ("submitted, verification failed", True)
    assert text_of(sent, verified(confirmed=0)) == ("submitted, re-verified on 0 of 500", True)
    failed = of_run(own, verified(ok=False, problems=["image 3: another label", "x", "y"]))
    assert failed is not None
    assert "image 3: another label, and 2 more." in failed.title
    assert columns(own, None) == {"submitted": None, "verification": None, "confirmed": None, "confirmed_of": None}
    assert columns(sent, verified(ok=False)) == {"submitted": "net", "verification": "failed", "confirmed": 480, "confirmed_of": 500}


def test_the_weakest_run_behind_a_figure_speaks_for_it() -> None:
    own, sent, other = run("own"), run("sent", submitted=BUNDLE), run("other")
    newest = {"own": verified("own"), "other": verified("other")}
    assert of_runs(own, [], {}) is None
    assert of_runs(own, [other], newest) == of_run(own, newest["own"])
    assert of_runs(own, [other], {"other": newest["other"]}) is None, "what was verified of another run says nothing of this one"
    found = of_runs(own, [other, sent], newest)
    assert found is not None
    assert (found.text, found.warn) == ("submitted, not re-verified", True)
    assert "come from run sent" in found.title
    failed = {**newest, "other": replace(newest["other"], ok=False), "sent": verified("sent")}
    worst = of_runs(own, [other, sent], failed)
    assert worst is not None
    assert worst.text == "verification failed"


def test_the_newest_verification_counts_if_it_is_of_this_very_run() -> None:
    runs = [run("own"), run("sent", submitted=BUNDLE)]
    old, new = verified("sent", ok=False), verified("sent", bundle=BUNDLE["bundle"])
    forged = verified("sent", bundle=digest("another bundle that names the same run"))
    assert newest(runs, [old, new, forged, verified("gone"), verified("own", bundle=digest("zip"))]) == {"sent": new}
    assert newest(runs, [new, old, verified("own")]) == {"sent": old, "own": verified("own")}
