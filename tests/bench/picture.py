"""README's picture of a board: every digits model of the zoo under union-lp, drawn by a browser.

    python tests/bench/picture.py docs/board.png [RESULTS]

RESULTS is a results folder to use or to go on with; without it a temporary one, and then the runs take some minutes.
Needs playwright and a chromium on the path.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import rbench
from rbench_zoo.catalogue import cards

WIDTH, HEIGHT = 1180, 1170  # the board to its last row


def site(results: Path) -> Path:
    """The pages after one run per model; each run draws them anew."""
    names = [name for name, card in cards().items() if card.dataset == "digits"]
    for name in names:
        rbench.evaluate(name, threat="union-lp", plan="apgd", full=True, results=results, site=name == names[-1])
    return results / "site"


def draw(page: Path, target: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])  # needed as root
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.goto(page.as_uri())
        tab.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else scratch).resolve()
        draw(site(folder) / "board-digits-union-lp.html", Path(sys.argv[1]))
