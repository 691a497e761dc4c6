"""What pages show beside the figures: a real example per threat, what others reported, who vouches for a row, evidence that is gone."""

from __future__ import annotations

import pytest

from rbench_results.site import models
from rbench_results.site.boards import boards
from rbench_results.site.build import build_site
from rbench_results.site.examples import Example
from rbench_results.site.facts import Facts
from rbench_results.site.overview import matrices
from rbench_results.site.runs import read
from results.site.synthetic import Maker
from stored import digest, run


def examples_of(maker: Maker) -> dict[str, Example]:
    facts = Facts(maker.store)
    (matrix,) = matrices(facts, boards(facts))
    return {strip.board.name: strip.example for strip in matrix.strips}


def test_the_example_is_the_most_robust_models_first_broken_image(maker: Maker) -> None:
    maker.model("weak")
    maker.run("net", {"linf": 0.8})
    maker.run("weak", {"linf": 0.1})
    facts = Facts(maker.store)
    (one,) = boards(facts)
    assert [row.model.name for row in one.rows] == ["net", "weak"]
    fell = [i for i, status in enumerate(one.rows[0].statuses) if status == "broken"]
    found = examples_of(maker)["linf 0.3"]
    assert found.row is not None
    assert found.row.model.name == "net"
    assert found.picture is not None
    assert found.picture.index == fell[0]
    (file,) = {v.witness for v in facts.verdicts(one.rows[0].questions["linf(eps=0.3)"]) if v.witness}
    (maker.store.folder / file).write_text("damaged")
    found = examples_of(maker)["linf 0.3"]
    assert (found.picture, found.why) == (None, "Picture missing: the witness file is gone or damaged.")


def test_no_picture_says_why(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    maker.run("net", {"l2": 1.0})
    monkeypatch.setattr(maker, "_witnesses", lambda asked, id, rows: rows)  # as under --witnesses none
    maker.run("net", {"linf": 0.5})
    found = examples_of(maker)
    assert (found["l2 2"].picture, found["l2 2"].why) == (None, "No picture: no image fell.")
    assert (found["linf 0.3"].picture, found["linf 0.3"].why) == (None, "No picture: the runs kept no witness.")


def test_damaged_witnesses_leave_a_page_that_says_so(maker: Maker) -> None:
    id = maker.run("net", {"linf": 0.5})
    for path in (maker.store.folder / "witnesses").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    pages = build_site(maker.store).parent
    text = (pages / f"run-{id}.html").read_text()
    assert "Picture missing for 24 images" in text
    assert "Picture missing: the witness file" in (pages / "index.html").read_text()
    assert not list(pages.glob("img/*.png"))


def test_what_others_reported_stands_beside_what_was_measured(maker: Maker) -> None:
    reported = [
        {"threat": "linf(eps=0.3)", "robust_accuracy": 0.5, "certified_accuracy": 0.25, "n": 100, "where": "Table 1"},
        {"clean_accuracy": 0.99},
        {"threat": "linf(eps=0.31)", "robust_accuracy": "many"},
        "no table",
    ]
    card = {
        "name": "net",
        "gradient": False,
        "source": {"paper": "arXiv:1909.04068", "reported": reported},
        "training": {"command": "rbench train x"},
        "x": 1,
    }
    maker.model("net", card=card)
    maker.run("net", {"linf": 0.5}, request={"model": "net.py:make", "dataset": "digits"})
    facts = Facts(maker.store)
    (one,) = models.read(facts, boards(facts), [read(facts, run) for run in facts.runs])
    same, clean, other = one.reported
    assert same.figures == ["–", "25.0", "50.0"]
    assert same.said == {"n": 100, "where": "Table 1"}
    assert same.measured is not None
    assert same.measured[1].robust == one.rows[0][1].robust
    assert same.clean == one.clean
    assert (clean.threat, clean.figures, clean.measured, clean.clean) == ("clean images", ["99.0", "–", "–"], None, one.clean)
    assert (other.figures, other.measured, other.clean) == (["–", "–", "many"], None, None)
    assert [heading for heading, _ in one.card] == ["Source", "Training", "Network", "Further"]
    assert dict(one.card)["Training"] == [("command", ["rbench train x"])]
    assert not one.gradient
    assert one.asked_as == ["net.py:make"]


def test_the_row_of_a_local_run_that_rests_on_a_bundle_says_so(maker: Maker) -> None:
    sent = maker.run("net", {"linf": 0.5}, n=30, submitted={"name": "net", "bundle": digest("zip")})
    key = maker.store.run(sent).questions[0]
    asked = maker.store.question(key[0])
    maker.store.start_run(
        run("mine", [asked], model=digest("net"), model_name="net", dataset=maker.data.digest, spec=asked.spec, n=30, started="2002")
    )
    (one,) = boards(Facts(maker.store))
    (row,) = one.rows
    assert row.run.id == "mine"
    assert row.standing is not None
    assert row.standing.text == "submitted, not re-verified"
    assert sent in row.standing.title


def test_a_run_page_has_the_command_that_checks_it_where_a_name_is_enough(maker: Maker) -> None:
    asked = {"model": "net", "dataset": "digits"}
    ids = [maker.run("net", {"linf": 0.5}, n=2, **fields) for fields in (
        {"request": asked}, {}, {"submitted": {"name": "my-net"}}, {"submitted": {"name": "x; rm -r y"}},
    )]  # fmt: skip
    facts = Facts(maker.store)
    checks = [read(facts, maker.store.run(id)).check for id in ids]
    assert checks == [f"rbench verify {ids[0]}", None, "rbench verify my-net.rbench.zip", None]
