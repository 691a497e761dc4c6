"""A threat of somebody's own file: no line of the project knows it, and it is attacked, refereed, stored and drawn like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import rbench as process
from rbench.attacks.catalogue import resolve_plan
from rbench_threats.catalogue import resolve

STRIPES = '''
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch

from rbench_threats.spec import Exact


@dataclass(frozen=True)
class Columns:
    x: torch.Tensor


@dataclass(frozen=True)
class Stripes:
    """Each column of the image becomes darker or brighter as a whole, by at most depth."""

    depth: Exact

    family: ClassVar[str] = "stripes"
    capabilities: ClassVar[frozenset] = frozenset({"convex"})

    @property
    def extent(self):
        return {"depth": Fraction(self.depth)}

    @property
    def sentence(self):
        return f"Each column may become darker or brighter as a whole, by at most {self.depth}."

    def check(self, shape):
        pass

    def context(self, x, row):
        return Columns(x)

    def start(self, ctx, row):
        return (2 * row.uniform(ctx.x.shape[3], stream=0) - 1) * float(self.depth)

    def project(self, ctx, theta, scale=1.0):
        limit = torch.as_tensor(scale, dtype=theta.dtype).reshape(-1, 1) * float(self.depth)
        return theta.minimum(limit).maximum(-limit)

    def steepest(self, ctx, grad, share=None):
        return grad.sign() * float(self.depth)

    def gauge(self, ctx, theta):
        return theta.abs().amax(1) / float(self.depth)

    def excess(self, ctx, theta):
        return theta.abs().amax(1) - float(self.depth) - 1e-6

    def render(self, ctx, theta):
        return (ctx.x + theta[:, None, None, :]).clamp(0, 1)
'''


@pytest.fixture
def stripes(tmp_path: Path) -> str:
    (tmp_path / "own sets").mkdir()
    (tmp_path / "own sets" / "stripes.py").write_text(STRIPES)
    return f'"{tmp_path}/own sets/stripes.py:Stripes"(depth=0.2)'


def test_a_set_of_a_file_runs_end_to_end(stripes: str, tmp_path: Path) -> None:
    results = str(tmp_path / "results")
    asked = ("run", "--model", "digits-standard", "--threat", f"union({stripes}, linf(eps=0.05))", "--n", "60", "--full")
    done = process(*asked, "--results", results, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    own, _ = report["members"]
    assert own == stripes
    assert report["members"][own]["broke"] > 10  # of which each has a witness that the referee rendered
    found_by = {verdict["attack"].partition("(")[0] for verdict in report["verdicts"] if verdict["fell_to"] == own}
    assert found_by == {"apgd"}
    assert "Each column may become" in (tmp_path / "results" / "site" / "boards.html").read_text() + "".join(
        page.read_text() for page in (tmp_path / "results" / "site").glob("board-*.html")
    )
    checked = process("verify", "latest", "--results", results)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_it_prints_as_the_spec_that_makes_it_again(stripes: str) -> None:
    threat = resolve(stripes)
    assert str(resolve(str(threat))) == str(threat) == stripes


def test_its_questions_change_with_its_file(stripes: str, tmp_path: Path) -> None:
    before = resolve(stripes).members[0].family
    (tmp_path / "own sets" / "stripes.py").write_text(STRIPES.replace("clamp(0, 1)", "clamp(0, 1).sqrt()"))
    assert resolve(stripes).members[0].family != before


def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, stripes: str) -> None:
    assert [stage.attack.name for stage in resolve_plan("apgd").stages_for(resolve(stripes).members[0])] == ["apgd", "apgd"]  # type: ignore[union-attr]
    (tmp_path / "none.py").write_text("class Empty:\n    pass\n")
    for spec, said in {
        f'"{tmp_path}/none.py:Empty"()': "is no set",
        f'"{tmp_path}/none.py:Other"()': "has no 'Other'",
        f'"{tmp_path}/absent.py:Stripes"(depth=1)': "no such file",
        stripes.replace("depth", "deepness"): "arguments deepness",
    }.items():
        done = process("run", "--model", "digits-standard", "--threat", spec, "--results", str(tmp_path / "results"))
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
