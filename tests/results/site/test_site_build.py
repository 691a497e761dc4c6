"""What a build leaves on the disk: whole pages, a strict CSP, links that lead somewhere, data behind every table, nothing stale."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import shlex
import threading
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest

from rbench_core.errors import FileError
from rbench_results.figures import wilson
from rbench_results.report import run_report
from rbench_results.site.build import build_site
from rbench_results.site.output import MANIFEST, Folder, csv_text, json_text
from rbench_results.store import Store
from results.site.synthetic import FORMULA, HOSTILE, SHOWN, STEERING, Maker, Site
from stored import printed

CSP = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
BUILD = """
import sys
from pathlib import Path
from rbench_results.store import Store
from rbench_results.site.build import build_site
with Store.open(Path(sys.argv[1])) as store:
    build_site(store, Path(sys.argv[2]))
print(*sorted({"torch", "pandas", "sklearn", "scipy", "rbench", "rbench_threats", "rbench_zoo"} & set(sys.modules)))
"""


class Reader(HTMLParser):
    """Collects what the checks need from one page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name) for name in given]
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[name] for name in ("href", "src") if name in given]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def table(site: Site, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((site.root / "data" / f"{name}.csv").read_text())))


def test_every_page_has_the_policy_and_nothing_that_it_would_refuse(site: Site) -> None:
    for name in site.pages:
        page = read(site.root / name)
        assert page.policy == CSP, name
        assert not [pair for pair in page.attributes if pair[1] == "style" or pair[1].startswith("on") or pair[0] in ("style", "iframe")], (
            name
        )
        assert len(page.ids) == len(set(page.ids)), name
        assert "undefined" not in (site.root / name).read_text().lower(), name


def test_links_lead_somewhere(site: Site) -> None:
    ids = {name: set(read(site.root / name).ids) for name in site.pages}
    for name in site.pages:
        for address in read(site.root / name).links:
            if re.match(r"https?://|data:", address):
                continue
            file, _, anchor = address.partition("#")
            assert (site.root / (file or name)).is_file(), f"{name} -> {address}"
            assert not anchor or anchor in ids[file or name], f"{name} -> {address}"


def test_external_links_come_from_cards_and_lead_to_the_web_only(site: Site) -> None:
    links = {link for name in site.pages for link in read(site.root / name).links if ":" in link}
    assert links == {"data:,", "https://arxiv.org/abs/1909.04068", "https://example.invalid/?a=1&b=2"}
    text = "".join((site.root / name).read_text() for name in site.pages)
    assert re.findall(r'<a href="\w+:[^"]*"([^>]*)>', text) == [' rel="noopener noreferrer nofollow"'] * 2


def test_no_character_that_steers_a_screen_reaches_a_page(site: Site) -> None:
    for name in site.pages:
        text = (site.root / name).read_text()
        assert not set(text) & set(STEERING) - set(SHOWN), name
    assert SHOWN in (site.root / "run-t005.html").read_text()


def test_every_table_has_its_data(site: Site) -> None:
    for name in site.pages:
        text = (site.root / name).read_text()
        if "data-sortable" in text and "index" not in name:
            assert text.count("CSV</a>") == text.count("JSON</a>") > 0, name
    for path in (site.root / "data").glob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # called for NaN and Infinity


def test_a_spreadsheet_runs_no_name(site: Site) -> None:
    for path in (site.root / "data").glob("*.csv"):
        for row in csv.reader(io.StringIO(path.read_text())):
            assert not [cell for cell in row if re.match(r"[=+@\t\r]|-[^\d.]", cell)], path
    names = [row["model"] for row in table(site, "runs")]
    assert "'" + FORMULA in names
    assert HOSTILE in names
    assert csv_text([{"-a": "-1", "b": -1.5, "c": None, "d": "+x"}]) == "'-a,b,c,d\n'-1,-1.5,,'+x\n"
    assert STEERING in json.loads((site.root / "data" / "run-t005.json").read_text())["warnings"][0]["text"]


@pytest.mark.parametrize("start", [*"=+-@\t\r\n＝＋－＠", " =", '"=', "'@", " \t+"])
def test_a_cell_that_begins_like_a_formula_is_quoted_and_its_json_is_exact(start: str) -> None:
    text = f"{start}cmd()|' /C calc'!A0"
    for cell, at in ((text, 0), (f"a;{text}", 2), (f"a\t{text}", 2), (f"a\n{text}", 2)):
        (_, (found,)) = csv.reader(io.StringIO(csv_text([{"a": cell}]), newline=""))
        assert found[at] == ("\\" if start == "\r" else "'"), cell  # a carriage return is escaped, and then begins no cell
        assert found.replace("'", "") == cell.replace("'", "").replace("\r", "\\r")
        assert json.loads(json_text({"a": cell})) == {"a": cell}
    assert csv_text([{"a": "union(l2(eps=2), l1)", "b": "x-y; z"}]) == 'a,b\n"union(l2(eps=2), l1)",x-y; z\n'
    assert json_text({"a": [float("nan"), 1.5]}) == '{"a":[null,1.5]}\n'


def test_the_runs_json_is_the_report_without_a_path(site: Site) -> None:
    report = run_report(site.store, "t003")
    found = json.loads((site.root / "data" / "run-t003.json").read_text())
    assert found == json.loads(json.dumps({**report, "site": "run-t003.html"}))
    rows = table(site, "run-t003")
    assert [row["status"] for row in rows] == [verdict["status"] for verdict in report["verdicts"]]
    assert str(site.root) not in "".join(path.read_text() for path in site.root.rglob("*") if path.suffix in (".html", ".json", ".csv"))


def test_boards_csv_carries_the_intervals(site: Site) -> None:
    rows = table(site, site.board.removesuffix(".html"))
    for row in rows:
        held = int(row["survived"])
        if row["robust"]:
            assert [float(row["robust_low"]), float(row["robust_high"])] == pytest.approx(wilson(held, int(row["n"])))
    assert [row["robust"] for row in rows][-1] == ""


def test_nothing_of_torch_is_imported(site: Site, tmp_path: Path) -> None:
    assert printed(BUILD, site.store.folder, tmp_path / "out").split() == []
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in site.root.iterdir()}


def test_a_second_build_touches_no_file(site: Site) -> None:
    before = {path: path.stat().st_mtime_ns for path in site.root.rglob("*") if path.is_file() and path.name != ".lock"}
    assert build_site(site.store) == site.root / "index.html"
    assert before == {path: path.stat().st_mtime_ns for path in site.root.rglob("*") if path.is_file() and path.name != ".lock"}


def test_stale_pages_go_and_foreign_files_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    maker = Maker(tmp_path / "a")
    maker.model("net")
    maker.run("net", {"linf": 0.5}, n=5)
    with maker.store as store:
        build_site(store, out)
    (out / "mine.html").write_text("mine")
    outside = tmp_path / "outside.txt"
    outside.write_text("keep")
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["files"] += ["../outside.txt", str(outside), "data/../../outside.txt", 7]
    (out / MANIFEST).write_text(json.dumps(manifest))
    with Store.open(tmp_path / "b") as empty:
        build_site(empty, out)
    assert not list(out.glob("run-*"))
    assert not list(out.glob("img/*.png"))
    assert not list(out.glob("data/run-*"))
    assert (out / "mine.html").read_text() == "mine"
    assert outside.read_text() == "keep"
    assert "Nothing has been run yet" in (out / "index.html").read_text()


def test_a_killed_build_forgets_no_file(tmp_path: Path) -> None:
    first = Folder(tmp_path)
    first.remember()
    first.write("old.html", "old")
    first.finish()
    killed = Folder(tmp_path)
    killed.remember()
    killed.write("new.html", "new")  # and then nothing more
    last = Folder(tmp_path)
    last.remember()
    last.write("new.html", "new")
    last.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, "new.html"]


def test_a_reader_never_sees_half_a_page(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    maker.model("net")
    page = tmp_path / "site" / "index.html"
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            if page.exists():
                seen.append(page.read_text())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with maker.store as store:
        for _ in range(4):
            maker.run("net", {"linf": 0.5}, n=3)
            build_site(store)
    done.set()
    watcher.join()
    assert len(set(seen)) > 1
    assert all(text.rstrip().endswith("</html>") for text in seen)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(site: Site, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="cannot"):
        build_site(site.store, tmp_path / "out")


def test_a_file_in_the_way_is_one_line(site: Site, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FileError, match="cannot make"):
        build_site(site.store, tmp_path / "out")


def test_submit_is_linked_from_every_page_and_from_the_text_of_the_first(site: Site) -> None:
    assert all("submit.html" in read(site.root / name).links for name in site.pages)
    assert read(site.root / "index.html").links.count("submit.html") == 2


def test_the_page_about_submitting_names_commands_and_options_that_exist(site: Site) -> None:
    from rbench.cli.app import cli

    text = html.unescape((site.root / "submit.html").read_text())
    commands = [block.replace("\\\n", " ") for block in re.findall(r"<pre><code>(.*?)</code></pre>", text, re.DOTALL)]
    assert [command.split()[1] for command in commands] == ["run", "submit", "verify", "verify", "merge"]
    known = {name: cli.get_command(click.Context(cli), name) for name in {command.split()[1] for command in commands}}
    for command in commands:
        program, name, *words = shlex.split(command)
        assert program == "rbench"
        known[name].make_context(name, words)  # UsageError for an option that is not there, or one that is needed
    for option in re.findall(r"<code>(--[a-z-]+)", text):
        assert any(option in parameter.opts for found in known.values() for parameter in found.params), option
