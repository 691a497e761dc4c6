"""The review page and the votes that it saves: what becomes of agreement, ties, no digit and second opinions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import rbench
from invariance.made import arrays, write
from rbench.invariance.review import image_digest, page
from rbench.invariance.votes import import_votes, majority, read_votes
from rbench_core.errors import DataError, UsageError
from rbench_threats.candidates import arrays_of, unpack
from rbench_threats.stored import Stored

CHROMIUM = Path("/usr/bin/chromium")
UNLABELLED = {"human": None, "target": np.array([3, 7, 9, 8])}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write(tmp_path, "made.npz", **UNLABELLED)


def names(made: Path) -> list[str]:
    return [image_digest(adv) for adv in unpack(made.read_bytes(), made).adv]


def votes(folder: Path, rater: str, rows: Sequence[tuple[str, int | None]], name: str = "") -> Path:
    """A file as the page saves it."""
    path = folder / f"{name or rater}.json"
    listed = [{"image": image, "rater": rater, "label": label, "blind": True} for image, label in rows]
    path.write_text(json.dumps({"schema": 1, "set": "", "votes": listed}))
    return path


def test_a_majority_is_more_than_half_of_all_votes() -> None:
    assert majority([3]) == 3
    assert majority([3, 3, 5]) == 3
    assert majority([3, 5]) is None  # a tie
    assert majority([3, 3, 5, 7]) is None  # ahead, but half only
    assert majority([3, 3, None, None]) is None  # no digit counts in the denominator
    assert majority([3, 3, None]) == 3
    assert majority([None, None, 3]) is None  # most saw no digit
    assert majority([]) is None


def test_votes_become_labels_and_what_is_not_settled_leaves_the_set(made: Path, tmp_path: Path) -> None:
    image = names(made)
    files = [
        votes(tmp_path, "anna", [(image[0], 0), (image[1], 7), (image[2], 2), (image[3], None)]),
        votes(tmp_path, "ben", [(image[0], 0), (image[1], 7), (image[2], 9), (image[3], None)]),
        votes(tmp_path, "eva", [(image[0], 4), (image[1], 7)]),
    ]
    done = import_votes(made, [*files, files[0]], tmp_path / "set.npz")  # the same file twice counts once
    assert done[1:] == (4, 2, 1, 3)
    space = Stored(str(tmp_path / "set.npz"))
    assert space.labels().tolist() == [0, 7]
    assert space.examples()[1].tolist() == [0, 1]
    assert space._found().unsettled == 2
    kept = arrays_of((tmp_path / "set.npz").read_bytes(), "set")
    assert kept["unsettled"].tolist() == [8, 9]
    assert kept["votes"][:, [0, 4, 7, 10]].tolist() == [[2, 1, 0, 0], [0, 0, 3, 0]]
    assert str(kept["declared"]) == "linf(eps=0.2)"
    assert np.array_equal(kept["adv"], arrays()["adv"][:2])


def test_csv_is_read_like_json(made: Path, tmp_path: Path) -> None:
    image = names(made)
    path = tmp_path / "votes.csv"
    path.write_text(f'image,rater,label,blind\n{image[0]},"a, b",3,true\n{image[1]},"a, b",,false\n')
    assert read_votes(path) == [(image[0], "a, b", 3), (image[1], "a, b", None)]


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "no file of votes"),
    "another JSON": ({"rows": []}, "no file of votes"),
    "a label outside the classes": ([("x", "anna", 11)], "anna says '11'; expected a class from 0 to 9"),
    "a label that is none": ([("x", "anna", "seven")], "anna says 'seven'"),
    "nobody's vote": ([("x", " ", 1)], "a vote without a rater"),
    "an unknown image": ([("f" * 64, "anna", 1)], "anna votes on an image ffffffffffff… that is not in the file"),
    "a second opinion": ([("0", "anna", 1), ("0", "anna", 2)], "anna has two answers"),
    "no agreement at all": ([("0", "anna", None)], "on none of 4 candidates"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_votes_give_one_line(case: str, made: Path, tmp_path: Path) -> None:
    given, line = WRONG[case]
    path = tmp_path / "votes.json"
    if isinstance(given, list):
        rows = [{"image": names(made)[0] if image == "0" else image, "rater": rater, "label": label} for image, rater, label in given]
        given = {"votes": rows}
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    with pytest.raises(DataError, match=line):
        import_votes(made, [path], tmp_path / "set.npz")
    assert not (tmp_path / "set.npz").exists()


def test_wrong_requests_give_one_line(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one file of votes at least"):
        import_votes(made, [], tmp_path / "set.npz")
    with pytest.raises(DataError, match=r"gone\.json: No such file"):
        import_votes(made, [tmp_path / "gone.json"], tmp_path / "set.npz")
    with pytest.raises(DataError, match=r"no \.npz file"):
        import_votes(votes(tmp_path, "anna", []), [tmp_path / "anna.json"], tmp_path / "set.npz")


def test_the_page_says_nothing_to_the_network_and_hides_what_would_sway(made: Path) -> None:
    text = page(made.read_bytes(), made)
    assert "http:" not in text
    assert "https:" not in text
    data = json.loads(text.partition('type="application/json">')[2].partition("</script>")[0])
    assert [item["image"] for item in data["items"]] == sorted(names(made))
    assert sorted(item["target"] for item in data["items"]) == [3, 7, 8, 9]


def test_from_the_page_to_a_verdict(made: Path, tmp_path: Path) -> None:
    """A browser votes by keyboard, saves; the votes become a set; a model is asked about it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    (tmp_path / "made.html").write_text(page(made.read_bytes(), made))
    trouble: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        tab = browser.new_context(offline=True).new_page()
        tab.on("console", lambda message: trouble.append(message.text))
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.goto((tmp_path / "made.html").as_uri())
        assert tab.locator("#pics img").count() == 1  # the candidate alone
        for key in ("4", "n", "ArrowLeft", "7", "7"):
            tab.keyboard.press(key)
        tab.check("#reveal")
        assert tab.locator("#pics img").count() == 3
        assert "aimed at" in (tab.text_content("#pics") or "")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("2")
        tab.click("#json")
        assert "who you are" in (tab.text_content("#told") or "")
        tab.fill("#rater", "anna 5")  # digits in a name are no votes
        for kind in ("json", "csv"):
            with tab.expect_download() as download:
                tab.click(f"#{kind}")
            download.value.save_as(tmp_path / f"votes.{kind}")
        browser.close()
    assert trouble == []
    order = sorted(names(made))
    assert read_votes(tmp_path / "votes.json") == [
        (order[0], "anna 5", 4),
        (order[1], "anna 5", 7),
        (order[2], "anna 5", 7),
        (order[3], "anna 5", 2),
    ]
    assert read_votes(tmp_path / "votes.csv") == read_votes(tmp_path / "votes.json")
    done = rbench("invariance", "import", str(made), str(tmp_path / "votes.csv"), "--out", str(tmp_path / "set.npz"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 rater: agreement on 4 of 4 candidates, ")
    options = ("--dataset", "digits", "--results", str(tmp_path / "results"), "--json")
    done = rbench("run", "--model", "digits-standard", "--threat", f'invariance("{tmp_path / "set.npz"}")', *options)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["n"] == 4
    assert [row["label"] for row in found["verdicts"]] == [0, 1, 2, 3]
