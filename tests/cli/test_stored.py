"""`show` and `site` look at what is stored: the database alone, without torch, zoo or threats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import rbench, watched
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


@pytest.mark.parametrize("args", [("show", "latest"), ("show", "latest", "--json"), ("site",)], ids=" ".join)
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
