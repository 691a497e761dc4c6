"""What the pages promise holds: README's commands run, links lead somewhere, the changelog knows the version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rbench
from command import SCRIPT
from docs.pages import ROOMS, ROOT, anchors, pages, python_blocks, shell_blocks

README = (ROOT / "README.md").read_text()


def promised() -> list[str]:
    """The `rbench` commands of README, also those after `&&`."""
    parts = [part.strip() for line in shell_blocks(README) for part in line.split("&&")]
    return [part.partition(" #")[0].strip() for part in parts if part.startswith("rbench ")]


def test_readme_has_the_two_commands() -> None:
    lines = shell_blocks(README)
    assert "pip install . && rbench run --model digits-linf-at --threat union-lp" in lines
    assert "pip install tox && tox" in lines


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all commands, in README's order: later ones look at what earlier ones stored."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("line", promised())
def test_a_command_of_readme_runs(line: str, home: Path) -> None:
    env = {**os.environ, "PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}", "RBENCH_RESULTS": str(home / "results")}
    done = subprocess.run(["bash", "-c", line], cwd=home, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("block", python_blocks(README))
def test_python_of_readme_runs(block: str, home: Path) -> None:
    env = {**os.environ, "RBENCH_RESULTS": str(home / "results")}
    done = subprocess.run([sys.executable, "-P", "-c", block], cwd=home, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue  # the world outside is not ours to test
        name, _, fragment = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (fragment and fragment not in anchors(path.read_text())):
            broken.append(target)
    assert broken == []


def test_the_map_of_the_docs_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    here = [str(path.relative_to(ROOT / "docs")) for path in pages() if (ROOT / "docs") in path.parents and path.name != "index.md"]
    assert [name for name in here if f"]({name})" not in index] == []


def test_each_room_has_a_readme() -> None:
    assert all((ROOT / room / "README.md").is_file() for room in ROOMS)


def test_the_changelog_knows_this_version() -> None:
    assert f"## {rbench.__version__}" in (ROOT / "CHANGELOG.md").read_text()
