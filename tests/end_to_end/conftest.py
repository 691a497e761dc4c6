"""Models of a few lines as files, the way a user brings them, and processes that may be killed."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from end_to_end.asking import MEANS, NET, PLAN, Ask, Behaving, Command, Done, Reported, Write
from end_to_end.children import Nursery
from rbench.cli.app import main


@pytest.fixture(scope="session")
def means(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`FILE.py:make` of the nearest-mean net."""
    path = tmp_path_factory.mktemp("models") / "means.py"
    path.write_text(MEANS)
    return f"{path}:make"


@pytest.fixture
def model_file(tmp_path: Path) -> Write:
    """Writes a file of a model: MEANS, then the text given; returns `FILE.py:model`, which the text must define."""

    def write(text: str) -> str:
        path = tmp_path / "net.py"
        path.write_text(MEANS + textwrap.dedent(text))
        return f"{path}:model"

    return write


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    children = Nursery()
    yield children
    children.close()


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """`rbench ARGS` in this process: the function behind the installed script, with file descriptors captured."""

    def call(*args: object) -> Done:
        capfd.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Done(["rbench", *map(str, args)], code, out, err)

    return call


@pytest.fixture
def ask(command: Command, means: str, tmp_path: Path) -> Ask:
    """`rbench run` of the nearest-mean net on five digits, into a folder that is not there yet; options given here prevail.

    Without certificates: what is proved is not attacked, and these tests are about what goes wrong under attack.
    """

    def run(**options: object) -> Done:
        given = {"model": means, "dataset": "digits", "threat": "linf(eps=0.1)", "n": 5, "plan": PLAN, "results": tmp_path / "results"}
        given["certify"] = "none"
        words = {f"--{name}": value for name, value in {**given, **options}.items() if value is not None}
        return command("run", *(name if value is True else f"{name}={value}" for name, value in words.items()))

    return run


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[None]:
    """A refused request does not even make the folder of results."""
    yield
    assert not (tmp_path / "results").exists()


@pytest.fixture
def behaving(model_file: Write) -> Behaving:
    """`FILE.py:model` of the nearest-mean net (`self.net`) whose forward pass is the body given."""
    return lambda body: model_file(NET + textwrap.indent(textwrap.dedent(body).strip(), "    "))


@pytest.fixture
def no_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are drawn only in tests that look at them: they cost as much as the run."""
    monkeypatch.setattr("rbench_results.site.build.build_site", lambda store: store.folder)


@pytest.fixture
def report(behaving: Behaving, ask: Ask) -> Reported:
    """What `rbench run --json` prints of such a net on 60 digits; it must go well."""

    def run(body: str | None = None, **options: Any) -> dict[str, Any]:
        model = {} if body is None else {"model": behaving(body)}
        done = ask(**{**model, "n": 60, "json": True, **options})
        assert (done.returncode, done.stderr) == (0, "")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run
