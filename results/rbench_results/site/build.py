"""Draws the site: store and witness files in, plain files out. Nothing is computed here that needs a model, a set or torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rbench_results.site import boards as boarding
from rbench_results.site import charts, compare, matrix, models, overview, runs, sets, tradeoff, words
from rbench_results.site.evidence import curve_rows
from rbench_results.site.facts import Facts, class_name
from rbench_results.site.output import Folder, alone
from rbench_results.site.pictures import Picture
from rbench_results.site.scatter import scatter
from rbench_results.store import Store

INVARIANCE = (  # key of rbench_results.invariance.figures, heading, what it is
    ("agreement", "follows", "of the changed: the model says what people say"),
    ("agreement_all", "follows, all", "of all candidates, those that people still call the same included"),
    ("keeps", "keeps", "of the changed: the model says the clean image’s label"),
    ("neither", "neither", "of the changed: the model says something else"),
    ("stuck", "stuck", "of the changed: the model says what it said of the clean image"),
    ("agreement_if_clean_right", "follows, if right", "of the changed whose clean image the model gets right"),
    ("clean", "clean", "of the clean images that the candidates were made from"),
    ("ceiling", "ceiling", "of all candidates: people kept the label; a model constant on every ball follows them no more often"),
)
NEWEST = 10  # runs on the first page

Render = Callable[..., str]


def build_site(store: Store, out: Path | None = None) -> Path:
    """Draw all pages of a store into `out`, or into `site/` of its folder; returns the path of index.html.

    Every file is replaced as a whole, files of an earlier build that lost their subject are removed, nothing else in the folder is touched.
    Raises FileError and StoreError.
    """
    folder = Folder(out or store.folder / "site")
    folder.begin()
    with alone(folder.root):
        _draw(Facts(store), folder)
    return folder.root / "index.html"


def _draw(facts: Facts, folder: Folder) -> None:
    folder.remember()
    boards = boarding.boards(facts)
    all_runs = [runs.read(facts, run) for run in facts.runs]
    all_models = models.read(facts, boards, all_runs)
    all_sets = sets.read(facts, boards)
    pages = Pages(folder, boards, all_runs, facts.twins)
    traded = tradeoff.tradeoff(facts, boards, pages.pictures, all_sets)
    pages.environment.globals["has_tradeoff"] = traded is not None
    pages.environment.globals["page_of_set"] = {page.spec: page.page for page in all_sets}
    for name in ("style.css", "site.js"):
        folder.write(name, (files(__package__) / "static" / name).read_bytes())
    pages.overview(facts, all_models)
    for board in boards:
        pages.board(board)
    for model in all_models:
        pages.model(model)
    for run in all_runs:
        pages.run(facts, run)
    for page in all_sets:
        pages.set(page)
    if traded is not None:
        pages.tradeoff(traded)
    folder.finish()


class Pages:
    """The templates and what every page shares; one method per kind of page writes the page and the data behind its tables."""

    def __init__(self, folder: Folder, boards: Sequence[boarding.Board], all_runs: Sequence[runs.Run], twins: frozenset[str]) -> None:
        self.folder, self.boards, self.runs = folder, boards, all_runs
        self.pictures = {run.record.id: run.pictures for run in all_runs}
        self.environment = environment()
        self.environment.globals["twins"] = twins
        self.environment.globals["page_of_run"] = {run.record.id: run.page for run in all_runs}
        self.environment.globals["page_of_board"] = {(board.dataset.digest, board.spec): board for board in boards}

    def _write(self, name: str, template: str, **values: Any) -> None:
        self.folder.write(name, self.environment.get_template(template).render(**values))

    def overview(self, facts: Facts, all_models: Sequence[models.Model]) -> None:
        """The first page, the three lists, and how to join them."""
        matrices = overview.matrices(facts, self.boards)
        newest = list(reversed(self.runs))
        for part in matrices:
            self.folder.table(f"matrix-{part.slug}", overview.matrix_rows(part))
            if part.sheet:
                self.folder.write(f"img/threats-{part.slug}.png", part.sheet)
        self.folder.table("boards", [board_summary(board) for board in self.boards])
        self.folder.table("models", [models.summary(model) for model in all_models])
        self.folder.table("runs", [runs.summary(run) for run in newest])
        self._write("index.html", "index.html", matrices=matrices, newest=newest[:NEWEST], count=len(newest))
        self._write("boards.html", "boards.html", boards=self.boards)
        self._write("models.html", "models.html", models=all_models)
        self._write("runs.html", "runs.html", runs=newest)
        self._write("submit.html", "submit.html")
        table = matrix.whole(facts, self.boards)
        if table.lines:
            self.folder.table("matrix", matrix.rows(table))
        self._write("matrix.html", "matrix.html", table=table)

    def board(self, board: boarding.Board) -> None:
        """A board and the comparison of its rows."""
        self.folder.table(f"board-{board.slug}", board_rows(board))
        self.folder.table(f"compare-{board.slug}", compare.image_rows(board))
        names = compare.names(board)
        self._write(board.page, "board.html", board=board, names=names)
        pair = compare.first_pair(board)
        sides = ((pair.b, pair.only_a), (pair.a, pair.only_b)) if pair else ()
        shown = [compare.shown(fallen, only, self.pictures) for fallen, only in sides]
        data = compare.script_data(board, self.pictures)
        self._write(board.compare, "compare.html", board=board, names=names, pair=pair, shown=shown, data=data)

    def model(self, model: models.Model) -> None:
        name = model.record.digest[:12]
        self.folder.table(f"model-{name}", models.threat_rows(model))
        for board, history in model.history:
            self.folder.table(f"model-{name}-{board.slug}", [runs.summary(run) for run in history])
        self._write(model.page, "model.html", model=model)

    def set(self, page: sets.SetPage) -> None:
        """A set that has to be seen."""
        for panel in page.panels:
            self.folder.write(panel.sheet, panel.png)
        self._write(page.page, "set.html", page=page)

    def run(self, facts: Facts, run: runs.Run) -> None:
        """A run with its pictures; its JSON is the report that `rbench show --json` prints."""
        if run.sheet:
            self.folder.write(f"img/run-{run.slug}.png", run.sheet)
        self.folder.table(f"run-{run.slug}", runs.verdict_rows(run), data=run.report)
        self.folder.table(f"run-{run.slug}-members", runs.member_rows(run))
        self.folder.table(f"run-{run.slug}-attacks", runs.stage_rows(run))
        if run.report["curve"]:
            self.folder.table(f"run-{run.slug}-curve", curve_rows(run.report["curve"], run.labels))
        self._write(run.page, "run.html", run=run, facts=runs.record_of(facts, run))

    def tradeoff(self, page: tradeoff.Tradeoff) -> None:
        """Robust accuracy against following people."""
        self.folder.table("tradeoff", tradeoff.table_rows(page))
        drawn = {panel.board.slug: scatter(panel) for panel in page.panels}
        self._write("tradeoff.html", "tradeoff.html", page=page, drawn=drawn, readings=tradeoff.readings)


def environment() -> Environment:
    """Jinja2 with autoescape for everything and an error for a name that does not exist."""
    found = Environment(
        loader=PackageLoader("rbench_results.site"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=words.visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("percent", "count", "passes", "size", "duration", "when", "day", "cut", "links", "groups", "plural")
    found.filters.update({name: getattr(words, name) for name in names})
    found.globals.update(
        class_name=class_name,
        model_page=models.model_page,
        key_of=_picture_key,
        statuses=charts.PARTS,
        no_bar=charts.NO_BAR,
        version=_version(),
        span=words.span,
        invariance_words=INVARIANCE,
    )
    return found


def _picture_key(picture: Picture) -> str:
    """An anchor for a witness: member and image."""
    return f"i{picture.index}-{words.slug(picture.member)}"


def _version() -> str:
    try:
        return version("rbench")
    except PackageNotFoundError:  # a source tree that is not installed
        return "(not installed)"


def board_rows(board: boarding.Board) -> list[Mapping[str, Any]]:
    """The board for the CSV."""
    return [
        {
            "place": row.rank,
            "model": row.model.name,
            "digest": row.model.digest,
            "plan": row.plan,
            "n": row.n,
            "first": row.first,
            **models.columns("clean", row.clean),
            **models.columns("certified", row.certified),
            **models.columns("robust", row.robust),
            **{status: row.counts[status] for status in (*charts.PARTS, "unanswered")},
            **{f"robust under {m.label}": figure.accuracy if (figure := row.member(m.spec)) else None for m in board.members},
            "passes_per_image": row.passes,
            "seconds": row.seconds,
            "run": row.run.id,
            "started": row.run.started,
            "standing": row.standing.text if row.standing else None,
        }
        for row in board.rows
    ]


def board_summary(board: boarding.Board) -> dict[str, Any]:
    """The board as one row of the list of boards."""
    best = board.ranked[0] if board.ranked else None
    return {
        "dataset": board.dataset.name,
        "threat": board.name,
        "spec": board.spec,
        "models": len({row.model.digest for row in board.rows}),
        "best": best.model.name if best else None,
        **models.columns("robust", best.robust if best else None),
        "n": best.n if best else None,
        "page": board.page,
    }
