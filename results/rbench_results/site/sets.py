"""One page per set that has to be seen: a learned one, a map of budgets. Drawn from what the command that had the set stored of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbench_results.records import QuestionRecord
from rbench_results.seal import set_digest
from rbench_results.site.boards import Board
from rbench_results.site.facts import Facts
from rbench_results.site.pictures import png, rgba

FACT = ("name", "value", "note")
PIXELS = 4_000_000  # of one panel: a larger one is none of ours


@dataclass(frozen=True)
class Panel:
    """A table of images on one sheet, `rows` × `cols` tiles of height × width."""

    title: str
    caption: str
    sheet: str
    png: bytes
    rows: int
    cols: int
    height: int
    width: int
    row_names: list[str]
    col_names: list[str]


@dataclass
class SetPage:
    """A set with what its page shows and the boards that ask about it."""

    digest: str
    spec: str
    sentence: str
    dataset: str
    panels: list[Panel]
    facts: list[Mapping[str, str]]
    boards: list[Board] = field(default_factory=list)

    @property
    def page(self) -> str:
        return page_of(self.digest)


def page_of(digest: str) -> str:
    """The address of a set's page."""
    return f"set-{digest[:16]}.html"


def read(facts: Facts, boards: Sequence[Board]) -> list[SetPage]:
    """The sets that the store has questions about and that have a portrait, in the order of their specs."""
    asked = {set_digest(question.set): question for question in facts.questions.values()}
    found = [page for digest, question in asked.items() if (page := _page(facts.store.folder, digest, question)) is not None]
    for page in found:
        page.boards = [board for board in boards if any(member.spec == page.spec for member in board.members)]
    return sorted(found, key=lambda page: page.spec)


def _page(folder: Path, digest: str, question: QuestionRecord) -> SetPage | None:
    """None where there is no portrait, or where the file is none: a page is no place to fail."""
    from safetensors import SafetensorError, safe_open

    path = folder / "sets" / f"{digest}.safetensors"
    try:
        with safe_open(path, framework="numpy") as opened:
            words = json.loads((opened.metadata() or {})["portrait"])
            panels = list(_panels(opened, words["panels"], digest))
        facts: list[Mapping[str, str]] = [{name: str(fact.get(name, "")) for name in FACT} for fact in words["facts"]]
        return SetPage(digest, question.spec, question.sentence, str(words["dataset"]), panels, facts)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None


def _panels(opened: Any, words: Sequence[Mapping[str, Any]], digest: str) -> Iterator[Panel]:
    for number, panel in enumerate(words):
        images = opened.get_tensor(f"panel{number}")
        if images.ndim != 5 or images.dtype != np.uint8 or images.size > PIXELS:
            raise ValueError(f"panel {number}: {images.dtype} {images.shape}")
        rows, cols, _, height, width = images.shape
        names = [[str(name) for name in panel[key]] for key in ("rows", "cols")]
        sheet = f"img/set-{digest[:16]}-{number}.png"
        yield Panel(str(panel["title"]), str(panel["caption"]), sheet, _sheet(images), rows, cols, height, width, *names)


def _sheet(images: NDArray[np.uint8]) -> bytes:
    """All tiles beside and below one another, without gaps: the page cuts them out."""
    tiles = [np.concatenate([rgba(tile.astype(np.float32) / 255) for tile in row], axis=1) for row in images]
    return png(np.concatenate(tiles))
