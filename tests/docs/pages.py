"""The pages of the documentation as text: README, docs/ and the READMEs of the source roots."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("benchmark", "threat_models", "model_zoo", "results")


def pages() -> list[Path]:
    """Every Markdown page that a reader is led to."""
    rooms = (path for room in ROOMS for path in (ROOT / room).glob("*.md"))
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted(rooms)]


def manual() -> str:
    """README and docs/, decisions left out: where a user looks a name up."""
    return "\n".join(path.read_text() for path in pages() if path == ROOT / "README.md" or path.parent == ROOT / "docs")


def code_spans(text: str) -> set[str]:
    """What stands in backticks within a line."""
    return set(re.findall(r"`([^`\n]+)`", text))


def shell_blocks(text: str) -> list[str]:
    """The lines of the fenced blocks marked `sh`."""
    return [line.strip() for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()]


def python_blocks(text: str) -> list[str]:
    """The fenced blocks marked `python`."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The fragment of each heading, as GitHub makes it."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ +(.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}
