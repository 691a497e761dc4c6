"""Bad input through the command line: one line that begins with `rbench: `, 2 for a wrong request, 1 for a failure, nothing lost, nothing left."""

from __future__ import annotations

import contextlib
import errno
import gzip
import html
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rbench
from command import rbench as process
from end_to_end.conftest import Command, Done, Write
from rbench.data import load
from rbench.report import Report
from rbench_core.errors import RbenchError, StoreError, UsageError
from rbench_results import database
from rbench_results.store import Store

PLAN = "pgd(steps=5)"
LONG = 10_000_000
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


def one_line(done: Done, code: int, *hints: str) -> str:
    """The one line of an error; bounded, printable, and without what only a slip of ours would say."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr[:2000]
    assert done.stderr.startswith("rbench: ")
    assert done.stderr.endswith("\n")
    line = done.stderr[:-1]
    assert len(line) < 1500
    assert line.isprintable(), line
    assert "Traceback" not in line
    assert "RBENCH_DEBUG" not in line, line  # foreseen
    for hint in hints:
        assert hint in line, line
    return line


@pytest.fixture
def ask(command: Command, means: str, tmp_path: Path) -> Callable[..., Done]:
    """`rbench run` of the nearest-mean net on five digits, into a folder that is not there yet; options given here prevail."""

    def run(**options: object) -> Done:
        given = {"model": means, "dataset": "digits", "threat": "linf(eps=0.1)", "n": 5, "plan": PLAN, "results": tmp_path / "results"}
        words = {f"--{name}": value for name, value in {**given, **options}.items() if value is not None}
        return command("run", *(name if value is True else f"{name}={value}" for name, value in words.items()))

    return run


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[None]:
    """A refused request does not even make the folder of results."""
    yield
    assert not (tmp_path / "results").exists()


# --- names ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("option", "given", "nearest"),
    [("threat", "lnif", "linf"), ("threat", "union-pl", "union-lp"), ("dataset", "mnits", "mnist"), ("dataset", "CIFAR", "cifar10"), ("plan", "adpg", "apgd"), ("plan", "autoatack", "autoattack"), ("model", "digits-standrad", "no model named")],
)  # fmt: skip
def test_an_unknown_name_lists_the_nearest(option: str, given: str, nearest: str, ask: Callable[..., Done]) -> None:
    one_line(ask(**{option: given}), 2, given, nearest)


def test_an_unknown_recipe_and_an_unknown_run_list_the_nearest(command: Command, ask: Callable[..., Done], tmp_path: Path) -> None:
    one_line(command("train", "msdd", "--out", tmp_path / "out"), 2, "msdd", "msd")
    assert not (tmp_path / "out").exists()
    one_line(command("show", "latest", "--results", tmp_path / "results"), 1, "no results in")
    assert not (tmp_path / "results").exists()
    assert ask().returncode == 0
    one_line(command("show", "2099", "--results", tmp_path / "results"), 2, "2099", "latest")


# --- numbers ----------------------------------------------------------------------------------------------------------------------------

EPS = ["0", "-0.1", "nan", "inf", "-inf", "1e400", "1e-400", "0/0", "1/0", "0/5", "8/", "/8", "8//255", "8/255/2", "0x1", "True", "", " ", "8 / / 255", "٨", "½", "0,3", "1" * 400]  # fmt: skip


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("threat", ["linf", "l2"])
def test_a_radius_that_is_none(threat: str, eps: str, ask: Callable[..., Done]) -> None:
    one_line(ask(threat=threat, eps=eps), 2)
    if "," not in eps:
        one_line(ask(threat=f"{threat}(eps={eps})"), 2)


@pytest.mark.usefixtures("untouched")
def test_eight_is_taken_for_grey_levels_and_the_fraction_is_shown(ask: Callable[..., Done]) -> None:
    for given in ({"threat": "linf", "eps": "8"}, {"threat": "linf(eps=8)"}, {"threat": "union(l2(eps=1), linf(eps=8.0))"}):
        one_line(ask(**given), 2, "eps=8", "8/255")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("threat", ["union-lp", "union(linf(eps=0.1), l2(eps=1))", "rotation-translation", "linf(eps=0.1)"])
def test_eps_beside_anything_but_a_single_ball(threat: str, ask: Callable[..., Done]) -> None:
    one_line(ask(threat=threat, eps="0.3"), 2, "--eps 0.3")


NUMBERS = {
    "n": ["0", "-1", "abc", "1.5", "", "٣", "1_000", "0x5", "nan", "501", str(10**30), "9" * 5000],
    "width": ["17", "0", "-16", "8", "4096", "abc", "16.0", str(10**30)],
    "seed": ["-1", "abc", "0.5", str(2**64), str(10**30), "9" * 5000],
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in NUMBERS.items() for value in values])
def test_a_number_that_cannot_be(option: str, value: str, ask: Callable[..., Done]) -> None:
    one_line(ask(**{option: value}), 2)


@pytest.mark.usefixtures("untouched")
def test_more_images_than_there_are(ask: Callable[..., Done]) -> None:
    one_line(ask(n=501), 2, "n=501", "at most 500", "--n all")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("device", ["nonsense", "", "meta", "vulkan", "gpu", "cuda:-1", "cuda:x", "1", pytest.param("cuda", marks=NO_GPU), pytest.param("cuda:1", marks=NO_GPU)])  # fmt: skip
def test_a_device_that_is_not_here(device: str, ask: Callable[..., Done]) -> None:
    one_line(ask(device=device), 2, "device", "cpu")


# --- specs ------------------------------------------------------------------------------------------------------------------------------

SPECS = {
    "empty": "",
    "blank": "  ",
    "a number": "0.3",
    "unclosed": "linf(eps=0.3",
    "closed twice": "linf(eps=0.3))",
    "only brackets": "()",
    "no value": "linf(eps=)",
    "no name": "linf(=0.3)",
    "a name for a number": "linf(eps=big)",
    "another argument": "linf(radius=0.3)",
    "an argument twice": "linf(eps=0.3, eps=0.3)",
    "too many": "linf(0.1, 0.2)",
    "an empty union": "union()",
    "a union of nothing": "union(union(), union())",
    "a union of numbers": "union(0.1, 0.2)",
    "more pixels than there are": "l0(pixels=65)",
    "half a pixel": "l0(pixels=1.5)",
    "no pixels": "l0(pixels=0)",
    "a shift past the edge": "rotation-translation(degrees=10, shift=8)",
    "degrees below zero": "rotation-translation(degrees=-10, shift=1)",
    "nothing at all moves": "rotation-translation(degrees=0, shift=0)",
    "two specs": "linf(eps=0.1) l2(eps=1)",
    "digits of another script": "linf(eps=٠.٣)",
    "full-width": "ｌｉｎｆ(eps=0.3)",
    "python": "__import__('os').system('touch pwned')",
    "python that parses as a spec": "__import__(os)",
    "a format": "linf(eps={0.__class__})",
    "a path": "../../etc/passwd",
    "a line of our own": "linf(eps=0.3)\nrbench: all is well",
    "carriage return": "linf\rrbench: all is well",
    "line separators": "linf\u2028rbench: all is well\x85",
    "escapes": "\x1b[2J\x1b]0;owned\x07linf",
    "surrogates": "linf\udcff",
    "deep": "union(" * 5000 + "linf(eps=0.1)" + ")" * 5000,
    "deep and short": "union(" * 100 + "linf(eps=0.1)" + ")" * 100,
    "long name": "a" * LONG,
    "long number": f"linf(eps=0.{'1' * LONG})",
    "long list": f"union({','.join(['linf(eps=0.1)'] * 400_000)})",
    "long blank": " " * LONG + "x",
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("option", ["threat", "plan"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_spec_that_is_broken_or_hostile(option: str, spec: str, ask: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.perf_counter()
    one_line(ask(**{option: spec}), 2)
    assert time.perf_counter() - started < 2
    assert list(tmp_path.iterdir()) == []


PLANS = ["pgd(steps=0)", "pgd(steps=-1)", "pgd(steps=1.5)", "pgd(steps=ce)", "pgd(loss=5)", "pgd(loss=nonsense)", "pgd(40)", "plan()", "plan(3)", "plan(pgd, nonsense)", "plan(x=pgd)", "plan(plan(pgd))", "grid", "topk", "autoattack(batch=0)", "autoattack(version=best)", "autoattack(nonsense=1)", "foolbox:", "foolbox:NoSuchAttack", "foolbox:os", "foolbox:L2DeepFoolAttack(steps=many)", "plan(autoattack(batch=100), foolbox:L2DeepFoolAttack(batch=200))"]  # fmt: skip


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_that_cannot_be_followed(plan: str, ask: Callable[..., Done]) -> None:
    one_line(ask(plan=plan), 2)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("option", ["model", "dataset", "device", "n", "seed", "eps", "certify", "witnesses"])
@pytest.mark.parametrize("value", ["a" * LONG, "a\nrbench: b\x1b[2J\u2028c", "\udcff", "a.py:b\n" * 3], ids=["long", "lines", "surrogate", "files"])
def test_an_option_that_is_long_or_hostile(option: str, value: str, ask: Callable[..., Done]) -> None:
    given = {"threat": "linf"} if option == "eps" else {}
    one_line(ask(**{**given, option: value}), 2)


# --- a user's file ----------------------------------------------------------------------------------------------------------------------

FILES = {  # text of the file: exit code, what the line holds
    "does not parse": ("def model(:\n", 1, "line 1"),
    "is no text": ("\0\1\2", 1, "net.py"),
    "raises when read": ("raise RuntimeError('no\\nluck')", 1, "RuntimeError: no luck"),
    "imports what is not there": ("import no_such_module", 1, "no_such_module"),
    "exits when read": ("import sys; sys.exit(0)", 1, "SystemExit"),
    "never ends reading": ("def f(): f()\nf()", 1, "RecursionError"),
    "lacks the name": ("def other(): ...", 2, "other"),
    "raises": ("def model(): raise KeyError('weights')", 1, "KeyError"),
    "exits": ("import sys\ndef model(): sys.exit()", 1, "SystemExit"),
    "wants arguments": ("def model(path, depth): ...", 1, "path"),
    "gives None": ("def model(): pass", 1, "NoneType"),
    "gives a class": ("from torch import nn\ndef model(): return nn.Linear", 1, "type"),
    "is a string": ("model = 'resnet'", 1, "str"),
}

NETS = {
    "another shape": ("nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))", "1×8×8"),
    "another size": ("nn.Sequential(nn.Flatten(), nn.Linear(784, 10))", "1×8×8"),
    "too few classes": ("nn.Sequential(nn.Flatten(), nn.Linear(64, 9))", "9 classes"),
    "too many classes": ("nn.Sequential(nn.Flatten(), nn.Linear(64, 1000))", "1000 classes"),
    "one output": ("nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))", "(16,)"),
    "images": ("nn.Identity()", "(16, 1, 8, 8)"),
    "a list": ("Of(lambda x: [x])", "list"),
    "whole numbers": ("Of(lambda x: x.flatten(1)[:, :10].long())", "int64"),
    "half the rows": ("Of(lambda x: x.flatten(1)[:8, :10])", "(8, 10)"),
    "an exit": ("Of(lambda x: exit(0))", "SystemExit"),
    "an endless recursion": ("Of(lambda x: (f := lambda: f())())", "RecursionError"),
}

OF = """
from torch import nn
class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, x):
        return self.function(x)
"""


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("text", "code", "hint"), FILES.values(), ids=FILES)
def test_a_file_that(text: str, code: int, hint: str, ask: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(text)
    one_line(ask(model=f"{tmp_path / 'net.py'}:model"), code, hint)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("net", "hint"), NETS.values(), ids=NETS)
def test_a_factory_that_returns_a_module_for(net: str, hint: str, ask: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"{OF}\ndef model(): return {net}")
    one_line(ask(model=f"{tmp_path / 'net.py'}:model"), 1, "net.py:model", hint)


@pytest.mark.usefixtures("untouched")
def test_a_file_that_is_not_there_or_not_one(ask: Callable[..., Done], means: str, tmp_path: Path) -> None:
    one_line(ask(model=tmp_path / "nowhere.py:model"), 2, "nowhere.py")
    one_line(ask(model=tmp_path / "nowhere.py"), 2, "FILE.py:FACTORY")
    (tmp_path / "folder.py").mkdir()
    one_line(ask(model=f"{tmp_path / 'folder.py'}:model"), 2, "folder.py")
    one_line(ask(model=means.removesuffix("make")), 2, "make")  # names what it defines
    one_line(ask(model=means, dataset=None), 2, "--dataset")


# --- a model that misbehaves ------------------------------------------------------------------------------------------------------------

NET = """
import os, sys, time

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.calls = make(), 0

    def forward(self, x):
        self.calls += 1
        return out(self, x)

def model():
    return Net().eval()

NAN = float("nan")

def off(x):  # where somebody has changed the image: digits have the grey levels 0, 1/16, ..., 1
    return (x * 16 != (x * 16).round()).flatten(1).any(1, keepdim=True)

def out(self, x):
"""


@pytest.fixture
def behaving(model_file: Write) -> Callable[[str], str]:
    """`FILE.py:model` of the nearest-mean net (`self.net`) whose forward pass is the body given."""
    return lambda body: model_file(NET + textwrap.indent(textwrap.dedent(body).strip(), "    "))


@pytest.fixture
def no_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are drawn only in tests that look at them: they cost as much as the run."""
    monkeypatch.setattr("rbench_results.site.build.build_site", lambda store: store.folder)


@pytest.fixture
def report(behaving: Callable[[str], str], ask: Callable[..., Done]) -> Callable[..., dict[str, Any]]:
    """What `rbench run --json` prints of such a net on 60 digits; it must go well."""

    def run(body: str | None = None, **options: Any) -> dict[str, Any]:
        model = {} if body is None else {"model": behaving(body)}
        done = ask(**{**model, "n": 60, "json": True, **options})
        assert (done.returncode, done.stderr) == (0, "")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def statuses(found: dict[str, Any]) -> list[str]:
    return [row["status"] for row in found["verdicts"]]


def codes(found: dict[str, Any]) -> set[str]:
    return {warning["code"] for warning in found["warnings"]}


NOT_FINITE = {
    "always": "return self.net(x) * NAN",
    "infinite": "return self.net(x) / 0",
    "one class only": "return self.net(x).index_fill(1, torch.tensor([7]), NAN)",
    "off the clean images": "return self.net(x).where(~off(x), NAN)",
    "off the clean images, where nobody follows a gradient: the referee": "return self.net(x).where(~off(x), NAN) if not torch.is_grad_enabled() else self.net(x)",
    "infinite off the clean images": "return self.net(x).where(~off(x), -NAN.__class__('inf'))",
}


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize("plan", [PLAN, "apgd", "plan(pgd(steps=2), slide(steps=2))", "autoattack(version=rand, batch=60)"])
@pytest.mark.parametrize("body", NOT_FINITE.values(), ids=NOT_FINITE)
def test_nan_is_an_error_and_never_robust(body: str, plan: str, report: Callable[..., dict[str, Any]]) -> None:
    found = report(body, plan=plan, threat="linf(eps=0.1)", n=20 if "auto" in plan else 60)
    assert found["counts"]["survived"] == 0
    assert found["counts"]["error"] > 0
    assert found["robust"]["accuracy"] == 0
    assert found["robust"]["n"] == found["n"]  # none dropped
    assert "errors" in codes(found)
    assert any("NaN" in row["reason"] or "finite" in row["reason"] for row in found["verdicts"] if row["status"] == "error")


def test_warnings_stand_on_the_page_of_the_run_and_in_its_table(report: Callable[..., dict[str, Any]], command: Command, tmp_path: Path) -> None:
    found = report(NOT_FINITE["always"])
    page = " ".join(html.unescape(Path(found["site"]).read_text()).split())
    table = command("show", "latest", "--results", tmp_path / "results").stdout
    assert {"nan", "errors", "input-range"} <= codes(found)
    for warning in found["warnings"]:
        assert warning["text"] in page
        assert warning["text"][:60] in table
    assert "60 error" in table


@pytest.mark.usefixtures("no_site")
def test_nan_of_some_images_leaves_the_others_alone(report: Callable[..., dict[str, Any]]) -> None:
    found, calm = report("return self.net(x).where(x[:, 0, 4, 4:5] < 0.9, NAN)"), report(results=None)
    bright = load("digits", n=60).x[:, 0, 4, 4]
    for row, other, value in zip(found["verdicts"], calm["verdicts"], bright.tolist(), strict=True):
        if value >= 0.9:
            assert row["status"] == "error"
        elif value < 0.79:  # out of the adversary's reach
            assert row["status"] == other["status"]
        else:
            assert row["status"] in ("error", other["status"])
    assert "errors" in codes(found)


CRASHES = {
    "raises": "raise ValueError('too bright')",
    "exits": "sys.exit(3)",
    "returns a row too few": "return self.net(x)[1:]",
    "returns a class too many": "return torch.cat([self.net(x), 1e3 + self.net(x)[:, :1]], 1)",
    "returns a class too few": "return self.net(x)[:, :9]",
    "returns nothing": "return None",
    "asserts on the device": "assert False",
}


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize("plan", [PLAN, "autoattack(version=rand, batch=60)"])
@pytest.mark.parametrize("body", CRASHES.values(), ids=CRASHES)
def test_a_model_that_fails_on_some_images_is_asked_about_the_others(body: str, plan: str, report: Callable[..., dict[str, Any]]) -> None:
    found = report(f"if (x[:, 0, 4, 4] > 0.95).any() and self.calls > 4:\n    {body}\nreturn self.net(x)", plan=plan, threat="linf(eps=0.01)")
    calm = report(plan=plan, threat="linf(eps=0.01)", results=None)
    bright = load("digits", n=60).x[:, 0, 4, 4] > 0.95  # grey levels 15/16 and 1: the adversary moves none across
    assert 0 < sum(bright) < 60
    for row, other, touched in zip(found["verdicts"], calm["verdicts"], bright.tolist(), strict=True):
        assert row["status"] in (("error", "misclassified") if touched else (other["status"],))
    assert "errors" in codes(found)


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize("after", [4, 6, 9, 10])
def test_a_model_that_fails_for_good_in_the_middle_ends_with_errors(after: int, report: Callable[..., dict[str, Any]]) -> None:
    found = report(f"if self.calls > {after}:\n    raise RuntimeError('CUDA error: an illegal memory access')\nreturn self.net(x)")
    assert found["counts"]["survived"] + found["counts"]["broken"] == 0
    assert found["counts"]["error"] > 0
    assert "illegal memory access" in " ".join(warning["text"] for warning in found["warnings"])


@pytest.mark.usefixtures("no_site")
def test_a_failure_in_the_backward_pass_alone(report: Callable[..., dict[str, Any]]) -> None:
    found = report("""
        class Fragile(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.bad = self.calls > 6
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                if ctx.bad:
                    raise ValueError("backwards")
                return grad
        return self.net(Fragile.apply(x))
    """)
    assert found["counts"]["survived"] == 0
    assert any("backwards" in (row["reason"] or "") for row in found["verdicts"])


SUSPICIOUS = {
    "probabilities": ("return self.net(x).softmax(1)", "probabilities"),
    "a random model": ("return self.net(x + 0.02 * torch.randn_like(x))", "random"),
    "double logits": ("return self.net(x).double()", "dtype"),
    "an image that it overwrites": ("return self.net(x.mul_(1.0))", "in-place"),
    "grey levels 0..255": ("return self.net(x / 255 - 1)", "input-range"),
}


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize(("body", "code"), SUSPICIOUS.values(), ids=SUSPICIOUS)
def test_what_is_suspicious_is_said_and_still_evaluated(body: str, code: str, report: Callable[..., dict[str, Any]]) -> None:
    found = report(body)
    assert found["counts"]["unanswered"] == 0
    if code != "in-place":  # x * 1.0 is x: nothing to be seen
        assert code in codes(found)


@pytest.mark.usefixtures("no_site")
def test_a_model_on_double_or_in_train_mode_gives_the_same_statuses(report: Callable[..., dict[str, Any]], model_file: Write) -> None:
    calm = statuses(report())
    double = report(model=model_file("def model(): return make().double()"), results=None)
    assert (statuses(double), "dtype" in codes(double)) == (calm, True)
    text = "def model(): return nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1, eps=1e-12, affine=False), make()).train()"
    trained = report(model=model_file(text), results=None)
    assert (statuses(trained), "train-mode" in codes(trained)) == (calm, True)


SHORT = {
    "torch": "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')",
    "the allocator on a CPU": "RuntimeError('[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can\\'t allocate memory')",
    "python": "MemoryError()",
}


@pytest.mark.usefixtures("no_site")
@pytest.mark.parametrize("error", SHORT.values(), ids=SHORT)
def test_short_memory_narrows_the_batch_and_changes_no_status(error: str, report: Callable[..., dict[str, Any]]) -> None:
    found = report(f"if len(x) > 32:\n    raise {error}\nreturn self.net(x)", threat="union(linf(eps=0.1), l2(eps=0.6))")
    assert statuses(found) == statuses(report(threat="union(linf(eps=0.1), l2(eps=0.6))", results=None))
    assert "memory" in codes(found)
    assert any("32 rows" in warning["text"] for warning in found["warnings"])


@pytest.mark.usefixtures("no_site")
def test_memory_for_nothing_is_an_error_per_image(report: Callable[..., dict[str, Any]]) -> None:
    found = report("if self.calls > 5:\n    raise MemoryError('all gone')\nreturn self.net(x)")
    assert found["counts"]["survived"] == 0
    assert any("out of memory" in (row["reason"] or "") for row in found["verdicts"])


@pytest.mark.usefixtures("no_site")
def test_a_model_without_a_gradient_is_one_line_under_a_plan_that_needs_one(behaving: Callable[[str], str], ask: Callable[..., Done], tmp_path: Path) -> None:
    one_line(ask(model=behaving("return self.net(x).detach()")), 1, "no gradient")
    with Store.open(tmp_path / "results", create=False) as store:
        assert [run.state for run in store.runs()] == ["failed"]
    done = ask(model=behaving("return self.net(x).detach()"), plan="grid", threat="rotation-translation(degrees=10, shift=1)")
    assert (done.returncode, done.stderr) == (0, "")


# --- one's own tensors ------------------------------------------------------------------------------------------------------------------

X, Y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])

TENSORS: dict[str, tuple[Any, str]] = {
    "grey levels": ((X * 255, Y), "[0, 1]"),
    "normalised": ((X - 0.5, Y), "[0, 1]"),
    "bytes": (((X * 255).byte(), Y), "255"),
    "NaN": ((X.where(X < 0.9, torch.nan), Y), "NaN"),
    "flat": ((X.flatten(1), Y), "(4, 64)"),
    "one image": ((X[0], Y[:1]), "(1, 8, 8)"),
    "no images": ((X[:0], Y[:0]), "(0, 1, 8, 8)"),
    "fewer labels": ((X, Y[:3]), "(4,)"),
    "one-hot labels": ((X, torch.eye(4).long()), "(4, 4)"),
    "float labels": ((X, Y.float()), "float32"),
    "negative labels": ((X, Y - 1), "-1"),
    "labels beyond the model's": ((X, Y + 7), "classes"),
    "another shape": ((X[:, :, :7], Y), "1×7×8"),
    "text": (("x", "y"), "x is str"),
    "one tensor": ((X,), "(x, y)"),
    "three": ((X, Y, Y), "(x, y)"),
    "a bare tensor": (X, "(x, y)"),
    "a list of both": ([X, Y], "(x, y)"),
    "a number": (5, "(x, y)"),
    "a loader of images": (torch.utils.data.DataLoader(X), "pairs"),
    "an empty loader": (torch.utils.data.DataLoader([]), "no images"),
    "a loader of two shapes": ([(X, Y), (X[:, :, :7], Y)], "shape"),
}


@pytest.mark.parametrize(("given", "hint"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_cannot_be_data(given: Any, hint: str, means: str, tmp_path: Path) -> None:
    with pytest.raises(RbenchError) as error:
        rbench.evaluate(means, dataset=given, threat="linf(eps=0.1)", plan=PLAN, results=tmp_path / "results")
    assert hint in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": -1}, {"n": "1.5"}, {"n": True}, {"n": "ten"}, {"n": "9" * 5000}, {"seed": -1}, {"seed": 2**63}, {"width": 17}, {"eps": float("nan"), "threat": "linf"}, {"witnesses": "few"}, {"certify": "all"}], ids=str)  # fmt: skip
def test_python_gets_the_same_errors(wrong: dict[str, Any], means: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        rbench.evaluate(means, **{"dataset": "digits", "threat": "linf(eps=0.1)", "plan": PLAN, "results": tmp_path / "results", **wrong})
    assert list(tmp_path.iterdir()) == []


# --- data files -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, an empty cache; returns the folder that RBENCH_DATA names."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.usefixtures("untouched")
def test_absent_data_without_a_network_is_one_line_in_seconds(offline: Path, means: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    done = process("run", "--model", means, "--dataset", "mnist", "--threat", "linf", "--results", str(tmp_path / "results"))
    one_line(done, 1, "mnist", str(offline / "MNIST"), "RBENCH_DATA")
    assert time.perf_counter() - started < 20  # of which torch's import may take half; the search for a network ends after 5


def idx(shape: tuple[int, ...]) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape) + bytes(math.prod(shape))


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-100],
    "cut in its head": lambda data: data[:10],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "of another type": lambda data: data[:2] + b"\x0d" + data[3:],
    "a web page": lambda data: b"<html>404</html>",
    "one that claims too much": lambda data: data[:4] + b"\xff" * 12 + data[16:],
}


@pytest.mark.usefixtures("untouched", "offline")
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_data_file_that_is(damage: Callable[[bytes], bytes], ending: str, ask: Callable[..., Done], offline: Path) -> None:
    files = {"t10k-images-idx3-ubyte": idx((20, 28, 28)), "t10k-labels-idx1-ubyte": idx((20,))}
    for name, data in files.items():
        whole = damage(data) if "images" in name else data
        (offline / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        (offline / "MNIST" / "raw" / f"{name}{ending}").write_bytes(gzip.compress(whole) if ending else whole)
    one_line(ask(dataset="mnist", n=5), 1, "t10k-images")
    if ending and damage is not DAMAGED["longer"]:  # the archive itself; gzip itself passes over zeros at its end
        (path := offline / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz").write_bytes(damage(gzip.compress(idx((20, 28, 28)))))
        one_line(ask(dataset="mnist", n=5), 1, path.name)


@pytest.mark.usefixtures("untouched")
def test_a_data_folder_that_is_none(ask: Callable[..., Done], offline: Path) -> None:
    one_line(ask(dataset="mnist", data=offline / "nowhere"), 1, "nowhere")
    (offline / "file").touch()
    one_line(ask(dataset="mnist", data=offline / "file"), 2, "--data")


# --- the folder of results --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["/proc/results", "/dev/null/results", "file/results", "loop"])
def test_a_folder_that_cannot_be_made(folder: str, ask: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    one_line(ask(results=tmp_path / folder), 1, "--results")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("part", ["site", "witnesses"])
def test_a_file_in_the_way_of_a_part_loses_nothing(part: str, ask: Callable[..., Done], report: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / part).write_text("mine")
    one_line(ask(n=60), 1, part, "--results")
    assert (tmp_path / "results" / part).read_text() == "mine"
    (tmp_path / "results" / part).unlink()
    again = report()
    assert statuses(again) == statuses(report(results=None))
    assert (again["cost"]["this_run"]["forward"] == 0) == (part == "site")  # the site comes last: all verdicts were stored


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own at results/, of a size that can be changed."""
    folder = tmp_path / "results"
    folder.mkdir()

    def mount(size: str) -> Path:
        options = f"size={size}" + (",remount" if folder.is_mount() else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount here")
@pytest.mark.parametrize("size", ["4k", "180k", "300k", "600k"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    size: str, small_disk: Callable[[str], Path], ask: Callable[..., Done], report: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbench.runner.CHUNK", 20)
    folder = small_disk(size)
    line = one_line(ask(n=200), 1, "ree space")
    assert "full" in line or "No space" in line
    before = {}
    with contextlib.suppress(StoreError), Store.open(folder, create=False) as store:
        before = {key: status for question in store.questions() for key, status in store.answered(question.key).items()}
    small_disk("64m")
    again = report(n=200)
    assert statuses(again) == statuses(report(n=200, results=None))
    assert all(again["verdicts"][index]["status"] == status for index, status in before.items())
    assert [path for path in folder.rglob(".*") if path.name not in (".lock", ".rbench-site.json")] == []


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount here")
def test_a_file_system_that_became_read_only(small_disk: Callable[[str], Path], ask: Callable[..., Done], command: Command) -> None:
    folder = small_disk("64m")
    assert ask().returncode == 0
    small_disk("64m,ro")
    one_line(ask(n=7), 1)
    shown = command("show", "latest", "--results", folder)
    assert shown.returncode == 0 or one_line(shown, 1)
    one_line(command("site", "--results", folder), 1)


@pytest.mark.parametrize("k", [1, 3, 4, 12])
def test_a_write_that_fails_leaves_no_half_file(
    k: int, ask: Callable[..., Done], report: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The k-th file that is synced meets a full disk: witness files first, then pages."""
    calls, sync = iter(range(1, 10**6)), os.fsync

    def fails(handle: int) -> None:
        if next(calls) >= k:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr("rbench.runner.CHUNK", 20)
    with monkeypatch.context() as patch:
        patch.setattr("rbench_core.files.os.fsync", fails)
        one_line(ask(n=60), 1, "No space left", "Free space")
    assert [path for path in (tmp_path / "results").rglob(".*.*.*") if path.name != ".rbench-site.json"] == []
    assert statuses(report()) == statuses(report(results=None))


# --- the database -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(ask: Callable[..., Done], tmp_path: Path) -> Path:
    """The database of a run that went well, at rest."""
    assert ask().returncode == 0
    return tmp_path / "results" / "rbench.sqlite"


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()


def overwritten(path: Path) -> None:
    path.write_bytes(b"no database at all " * 999)


def torn(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\x55" * (len(data) - 4096))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE verdict (theirs)")
    connection.close()


@pytest.mark.parametrize(("spoil", "hint"), [(newer, "newer rbench"), (overwritten, "not a database"), (torn, "damaged"), (cut, "damaged"), (foreign, "another program")])  # fmt: skip
def test_a_database_that_is_not_ours_to_use(spoil: Callable[[Path], None], hint: str, stored: Path, ask: Callable[..., Done], command: Command) -> None:
    spoil(stored)
    before = stored.read_bytes()
    for done in (ask(), command("show", "latest", "--results", stored.parent), command("site", "--results", stored.parent)):
        one_line(done, 1, hint, str(stored))
    assert stored.read_bytes() == before


@pytest.mark.usefixtures("no_site")
def test_a_database_that_another_program_keeps_locked(stored: Path, ask: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT", 0.1)
    other = sqlite3.connect(stored)
    other.execute("BEGIN IMMEDIATE")
    one_line(ask(n=7), 1, "locked", "Try again")
    other.close()
    assert ask(n=7).returncode == 0


@pytest.mark.usefixtures("no_site")
def test_a_lock_that_comes_in_the_middle_of_a_run_loses_no_chunk(
    stored: Path, ask: Callable[..., Done], report: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT", 0.1)
    monkeypatch.setattr("rbench.runner.CHUNK", 20)
    other = sqlite3.connect(stored, isolation_level=None)
    whole = Store.add_chunk

    def add_chunk(store: Store, key: str, verdicts: Any, stages: Any) -> None:
        whole(store, key, verdicts, stages)
        if verdicts[-1].index == 39:
            other.execute("BEGIN IMMEDIATE")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_chunk", add_chunk)
        one_line(ask(n=60), 1, "locked", "Try again")
    other.close()
    again = report()
    assert statuses(again) == statuses(report(results=None))
    assert sum(stage["entered"] for stage in again["stages"] if stage["position"] == 0) == 60  # over both runs: none was asked twice


def test_witness_files_that_vanished_or_broke_are_one_line_or_a_gap(stored: Path, command: Command, ask: Callable[..., Done], report: Callable[..., dict[str, Any]]) -> None:
    report()
    [*_, path] = sorted(stored.parent.glob("witnesses/*/*"))
    for spoil in (lambda: path.write_bytes(path.read_bytes()[:50]), path.unlink):
        spoil()
        with pytest.raises(RbenchError, match=path.name):
            Report.stored("latest", stored.parent).adversarial()
        assert command("site", "--results", stored.parent).returncode == 0  # the other pictures are drawn
        assert command("show", "latest", "--results", stored.parent).returncode == 0


# --- the keyboard -----------------------------------------------------------------------------------------------------------------------

SMALL_CHUNKS = "import sys, rbench.runner; rbench.runner.CHUNK = 10; from rbench.cli.app import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.usefixtures("no_site")
def test_control_c_is_one_line_and_the_run_goes_on_from_there(
    behaving: Callable[[str], str], ask: Callable[..., Done], report: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    model = behaving("time.sleep(float(os.environ.get('E2E_SLEEP', 0)))\nreturn self.net(x)")
    args = ["run", "--model", model, "--dataset", "digits", "--threat", "linf(eps=0.1)", "--n", "60", "--plan", PLAN, "--results", str(tmp_path / "results")]
    env = {**os.environ, "E2E_SLEEP": "0.1"}
    child = subprocess.Popen([sys.executable, "-P", "-c", SMALL_CHUNKS, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    while child.poll() is None and not answered(tmp_path / "results"):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    one_line(Done(args, child.returncode, out, err), 130, "stopped by the keyboard", "finished chunks are kept")
    before = answered(tmp_path / "results")
    assert 0 < before < 60
    with Store.open(tmp_path / "results", create=False) as store:
        assert [run.state for run in store.runs()] == ["failed"]
    again = report(model=model)
    assert statuses(again) == statuses(report(results=None))
    assert sum(stage["entered"] for stage in again["stages"] if stage["position"] == 0) < 60 + 10 + 1  # at most the chunk under way twice


def answered(folder: Path) -> int:
    """How many verdicts are stored; read without a lock on the writer."""
    try:
        with Store.open(folder, create=False) as store:
            return sum(len(store.answered(question.key)) for question in store.questions())
    except RbenchError:
        return 0


# --- the installed script ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untouched")
def test_the_script_says_the_same_as_the_function(means: str, tmp_path: Path) -> None:
    args = ["run", "--dataset", "digits", "--results", str(tmp_path / "results")]
    one_line(process(*args, "--model", means, "--threat", "linf(eps=8)"), 2, "8/255")
    one_line(process(*args, "--model", means, "--threat", "x\ny\x1b[2J"), 2)


def test_the_script_survives_an_environment_that_is_odd(tmp_path: Path, means: str) -> None:
    """No home, no UTF-8, and a results folder named by the environment that is a file."""
    (tmp_path / "file").write_text("mine")
    args = ["run", "--model", means, "--dataset", "digits", "--threat", "linf", "--n", "5", "--plan", PLAN]
    one_line(process(*args, RBENCH_RESULTS=str(tmp_path / "file")), 1, "file")
    done = process(*args, "--results", str(tmp_path / "results"), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", HOME="/nonexistent")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == "mine"
