"""`show` and `site` look at what is stored: the database and witness files alone, without torch, zoo or threats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import rbench, watched
from rbench.report import Report
from rbench_results.store import Store
from results.test_example import images
from stored import filled, question, verdict

ROOMS_OF_OTHERS = {"torch", "torchvision", "sklearn", "foolbox", "rbench_zoo", "rbench_threats"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run, "r1", of four answered images."""
    folder = tmp_path_factory.mktemp("stored")
    asked = question()
    statuses = ["survived", "survived", "broken", "misclassified"]
    with filled(folder, asked) as store:
        rows = [verdict(index, status, clean=0 if status == "misclassified" else 1) for index, status in enumerate(statuses)]
        store.add_chunk(asked.key, rows, [])
        store.finish_run("r1", state="done", warnings=[], seconds=1.0)
    return folder


@pytest.mark.parametrize("name", ["r1", "latest", "r"])
def test_show_prints_a_run_by_its_id_its_beginning_or_as_the_latest(name: str, results: Path) -> None:
    table = rbench("show", name, "--results", str(results))
    assert (table.returncode, table.stderr) == (0, "")
    assert max(map(len, table.stdout.splitlines())) <= 100
    report = json.loads(rbench("show", name, "--results", str(results), "--json").stdout)
    assert report["run"] == "r1"
    assert report["robust"]["accuracy"] == 0.5
    assert report["clean"]["accuracy"] == 0.75


def test_show_tells_one_example_and_says_where_its_pictures_are(results: Path, tmp_path: Path) -> None:
    where = ["--results", str(results)]
    told = rbench("show", "r1", "--example", "2", *where)
    assert (told.returncode, told.stderr) == (0, "")
    assert "broken" in told.stdout
    assert "witness: not kept" in told.stdout
    example = Report.stored("r1", results).example(2)
    assert told.stdout == f"{example}\n"
    data = json.loads(rbench("show", "r1", "--example", "2", "--json", *where).stdout)
    assert data == {**example.data, "picture": None}
    with Store.open(results, create=False) as store:
        store.add_chunk(question().key, [verdict(2, "broken", witness=images(results), row=0)], [])
    drawn = rbench("show", "r1", "--example", "2", *where)
    assert drawn.stdout.splitlines()[-1] == f"picture: {results / 'examples' / 'r1-2.png'}"
    png = (results / "examples" / "r1-2.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    own = tmp_path / "mine.png"
    assert json.loads(rbench("show", "r1", "--example", "2", "--out", str(own), "--json", *where).stdout)["picture"] == str(own)
    assert own.read_bytes() == png


def test_show_in_the_shape_of_robustbench(results: Path) -> None:
    done = rbench("show", "r1", "--as", "robustbench", "--results", str(results))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == Report.stored("r1", results).to_robustbench()
    assert json.loads(done.stdout)["eps"] == "0.3"


WRONG = {
    "outside the slice": (["--example", "4"], "0 to 3"),
    "negative": (["--example", "-1"], "--example"),
    "no number": (["--example", "two"], "--example"),
    "a picture of nothing": (["--out", "a.png"], "--example I"),
    "two at once": (["--as", "robustbench", "--example", "1"], "one of the two"),
    "unknown shape": (["--as", "leaderboard"], "robustbench"),
}


@pytest.mark.parametrize(("args", "hint"), WRONG.values(), ids=WRONG)
def test_a_wrong_question_about_a_run_is_one_line_and_exit_2(args: list[str], hint: str, results: Path) -> None:
    done = rbench("show", "r1", *args, "--results", str(results))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rbench: ")
    assert done.stderr.count("\n") == 1
    assert hint in done.stderr


def test_site_prints_where_the_pages_are(results: Path, tmp_path: Path) -> None:
    done = rbench("site", "--results", str(results), "--out", str(tmp_path / "pages"))
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()) == tmp_path / "pages" / "index.html"
    assert (tmp_path / "pages" / "index.html").is_file()


def test_rbench_results_stands_in_for_the_option(results: Path) -> None:
    assert rbench("show", "latest", RBENCH_RESULTS=str(results)).returncode == 0


def test_a_terminal_that_lacks_a_letter_shows_question_marks(results: Path) -> None:
    done = rbench("show", "r1", "--results", str(results), PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "15.0 ? 85.0" in done.stdout  # an en dash elsewhere


LOOKING = [("show", "latest"), ("show", "r1", "--json"), ("show", "r1", "--example", "0"), ("show", "r1", "--as", "robustbench"), ("site",)]


@pytest.mark.parametrize("args", LOOKING, ids=" ".join)
def test_neither_loads_what_computes(args: tuple[str, ...], results: Path) -> None:
    assert not ROOMS_OF_OTHERS & watched(*args, "--results", str(results)).modules


@pytest.mark.parametrize("args", [("show", "latest"), ("site",)], ids=" ".join)
def test_without_results_it_is_a_failure_that_creates_nothing(args: tuple[str, ...], tmp_path: Path) -> None:
    done = rbench(*args, "--results", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("rbench: ")
    assert done.stderr.count("\n") == 1
    assert "RBENCH_DEBUG" not in done.stderr  # foreseen, not a slip
    assert not (tmp_path / "none").exists()


def test_an_unknown_run_is_a_wrong_request(results: Path) -> None:
    done = rbench("show", "q7", "--results", str(results))
    assert (done.returncode, done.stdout) == (2, "")
    assert "r1" in done.stderr
